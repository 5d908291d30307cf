"""What frozen models make of clean training images, computed once instead of in every epoch.

    clean = CleanFeatures(choose_models(args, inputs), inputs.train, args)
    clean.build()  # before the first step
    batch = next(iter(DataLoader(clean.beside(inputs.train), 64, collate_fn=collate)))
    clean.of_batch(batch)  # {model: (64, dim)}

Proxies and the target's vanilla copy are frozen, and without augmentation an image is the same in each epoch. Kept are
the features of an image, before they are normalised: logits follow from them for any classes. They lie in
`hpt/clean_features` of the Hub's home (`HF_HOME`), 2 KB for an image and a model of 512 dimensions, in a folder whose
name stands for all that they depend on: weights, configuration, pixel statistics, images, how these come to the model,
versions of Pillow, torch, transformers and hpt, and the kind of device and the precision of its float32. So all runs
that have these in common share them.

They are computed in batches of [`BATCH`] in the order of the training set, whatever run or process does it and
wherever a run stands: one whose features were deleted goes on with the same ones, bit for bit. Of each chunk that
several processes want, one computes it. On GPUs this wasn't tried.

Nothing is kept of functions, subclasses of [`ZeroShotClassifier`] and models with modules that are neither torch's nor
transformers': what their answers depend on isn't known. Nor are patches kept, which would take 100 KB an image, and so
nothing for `tga_zsr`.
"""

import logging
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

import hpt
from hpt.data.benchmark import Benchmark
from hpt.data.epochs import EpochMixture
from hpt.data.hashing import hash_samples
from hpt.data.images import collate, to_unit_range
from hpt.errors import InputError, WriteFailed
from hpt.escaping import one_line
from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.identity import hash_configuration
from hpt.models.proxies import parts_of
from hpt.models.weights import hash_weights
from hpt.processes import on_main_process
from hpt.training.config import ALWAYS, NEVER, HPTConfig
from hpt.training.gpd import ANCHOR, TRANSFER
from hpt.training.inputs import TrainingInputs
from hpt.training.keeping import (
    NOBODY_ASKS,
    asked_for_features,
    cache_folder,
    check_cache,
    refuse_keeping,
    why_not_kept,
)
from hpt.training.kept_rows import CHUNK, keep_rows
from hpt.training.objective_base import OF_ORIGINAL, OF_PROXY, Objective


logger = logging.getLogger(__name__)

BATCH = 64  # images, by which a chunk can be divided
MOST_IMAGES = 4_000_000  # up to which features are kept without being asked for: 8 GB for a model of 512 dimensions
COLUMN = "clean_features_"  # what a batch calls those of the models, with their numbers
assert CHUNK % BATCH == 0


class CleanFeatures:
    """Image features of a training set by frozen models, kept on disk; of no models, nothing.

    Args:
        models (`list[ZeroShotClassifier]`): From [`choose_models`].
        train ([`Benchmark`], *optional*): The training set as the models see it.
        args ([`HPTConfig`]): Settings.
    """

    def __init__(self, models: list[ZeroShotClassifier], train: Benchmark | None, args: HPTConfig):
        self._models, self._train, self._args = models, train, args
        self._rows: list[np.ndarray] = []  # of each model, once they are there

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Of each model, what stands for its features."""
        train = self._train
        images = [hash_samples(train.dataset), repr(train.transform), train.mode]
        versions = [library.__version__ for library in (PIL, torch, transformers, hpt)]
        computed = [*versions, *_precisions(), BATCH]
        return [digest([*images, *computed, *_describe(model)]) for model in self._models]

    @property
    def fingerprint(self) -> str | None:
        """What stands for all of them; `None` if there are none."""
        return digest(self._fingerprints) if self._models else None

    def forget(self) -> None:
        """Look at models and images anew when they are next needed."""
        self._rows = []
        vars(self).pop("_fingerprints", None)

    def build(self) -> None:
        """Have the features there, computing what is missing; the processes of a launch share the work.

        Raises:
            InputError: for an image that can't be read, or features that aren't finite.
            WriteFailed: if they can't be written.
        """
        if not self._models:
            return
        folders = map(cache_folder, on_main_process(lambda: self._fingerprints))
        self._rows = [self._keep(model, folder) for model, folder in zip(self._models, folders, strict=True)]

    def _keep(self, model: ZeroShotClassifier, folder: Path) -> np.ndarray:
        args = self._args
        title = f"What {_name(model)} makes of clean images, once"
        share, quiet = (args.process_index, args.world_size), args.disable_tqdm or args.local_process_index > 0
        try:
            return keep_rows(folder, len(self._train), partial(self._compute, model), title, share=share, quiet=quiet)
        except WriteFailed as error:
            raise WriteFailed(f"{error} Make room, or give cache_clean=false.") from error

    @torch.no_grad()
    def _compute(self, model: ZeroShotClassifier, rows: range) -> np.ndarray:
        """Features of some images `(len(rows), dim)`, without a random number being drawn."""
        batches = [list(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]
        workers = min(self._args.dataloader_num_workers, len(batches))
        own_seed = torch.Generator()  # or the loader would draw one of those that training draws from
        loader = DataLoader(
            self._train, batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=own_seed
        )
        device, dtype = model.model.device, torch.promote_types(model.model.dtype, torch.float32)
        in_its_own_dtype = torch.autocast(device.type, enabled=False)
        with in_its_own_dtype, torch.compiler.set_stance("force_eager"):
            pixels = (to_unit_range(batch["pixel_values"].to(device), dtype) for batch in loader)
            features = torch.cat([model.image_features(images) for images in pixels])
        if not features.isfinite().all():
            raise InputError(f"What {_name(model)} makes of a training image is NaN or infinite: load a sound copy.")
        return features.cpu().numpy()

    def beside(self, train: Dataset) -> Dataset:
        """A training set whose items have their features too, once they are there."""
        return _WithFeatures(train, self._rows) if self._rows and train is self._train else train

    def of_batch(self, inputs: dict) -> dict[nn.Module, torch.Tensor]:
        """The features `(batch, dim)` that a batch has, by the model that they are of."""
        columns = {f"{COLUMN}{number}": model for number, model in enumerate(self._models)}
        return {model: inputs[column] for column, model in columns.items() if column in inputs}


class _WithFeatures(Dataset):
    """A benchmark whose items have rows of arrays beside what they have.

    What a worker is forked with it reads without opening anything; one that is spawned is given a copy.
    """

    def __init__(self, benchmark: Benchmark, arrays: list[np.ndarray]):
        self.benchmark, self.arrays = benchmark, arrays

    def __len__(self) -> int:
        return len(self.benchmark)

    def __getitem__(self, row: int) -> dict:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict]:
        items = self.benchmark.__getitems__(rows)
        for number, array in enumerate(self.arrays):
            for item, values in zip(items, torch.from_numpy(array[rows]), strict=True):
                item[f"{COLUMN}{number}"] = values
        return items


def _precisions() -> list[str]:
    """How exactly devices compute in float32, as now set: `torch_compile`, among others, sets TF32 on a GPU."""
    backends = torch.backends
    return [kind.fp32_precision for kind in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)]


def _describe(model: ZeroShotClassifier) -> list:
    """What a model's features depend on beside the images."""
    statistics = [model.image_mean.flatten().tolist(), model.image_std.flatten().tolist(), model.image_size]
    modules = list(model.model.modules())
    kernels = [part.config._attn_implementation for part in modules if isinstance(part, PreTrainedModel)]
    kernels.append(any(part._compiled_call_impl is not None for part in modules))  # which views leave as they are
    own = [hash_weights(model.model.state_dict()), hash_configuration(model), repr(model.model), *statistics]
    return [*own, *kernels, model.model.device.type]


def _name(model: ZeroShotClassifier) -> str:
    return one_line(str(model.model.name_or_path or type(model.model).__name__))


# Of which models features are kept


def choose_models(args: HPTConfig, inputs: TrainingInputs) -> list[ZeroShotClassifier]:
    """The frozen models of a run of which features are kept, by its setting `cache_clean`.

    By `"auto"` those that are asked about each image in two epochs or more, so that this never costs more passes than
    it saves. What is asked and how often follows from the settings alone, whatever was kept before.

    Raises:
        InputError: where it is `"true"`, but can't be.
    """
    if args.cache_clean == NEVER or inputs.train is None:
        return []
    epochs = _epochs_that_ask(args, inputs)
    problem = why_not_kept(args, isinstance(inputs.train, EpochMixture)) or (None if epochs else NOBODY_ASKS)
    if args.cache_clean == ALWAYS:
        refuse_keeping(problem)
        return list(epochs)
    models = [model for model, number in epochs.items() if number >= 2]
    if problem is not None or len(inputs.train) > MOST_IMAGES or not models:
        return []
    return models if on_main_process(_can_be_written) else []


def _epochs_that_ask(args: HPTConfig, inputs: TrainingInputs) -> dict[ZeroShotClassifier, float]:
    """In how many epochs each model is asked about each image."""
    schedule = inputs.schedule
    last = schedule.num_epochs * schedule.steps_per_epoch
    last = min(last, args.max_steps) if args.max_steps > 0 else last
    steps = {ANCHOR: min(last, schedule.boundary), TRANSFER: max(0, last - schedule.boundary)}
    epochs: dict[ZeroShotClassifier, float] = {}
    for stage, objective in args.make_objectives().items():
        for model in _asked(objective, inputs):
            epochs[model] = epochs.get(model, 0) + steps[stage] / schedule.steps_per_epoch
    return {model: number for model, number in epochs.items() if number > 0}


def _asked(objective: Objective, inputs: TrainingInputs) -> Iterable[ZeroShotClassifier]:
    """The models that an objective asks about clean images, and of which features can be kept."""
    names = asked_for_features(objective)
    asked = list(parts_of(inputs.proxy)) if OF_PROXY in names and inputs.proxy else []
    if OF_ORIGINAL in names:
        asked.append(inputs.original)
    return dict.fromkeys(model for model in asked if _is_known(model))


def _is_known(model: nn.Module) -> bool:
    """Whether all that a model's features depend on is known: not where it has adapters, or others' modules."""
    if type(model) is not ZeroShotClassifier:
        return False
    return all(type(part).__module__.startswith(("torch.", "transformers.")) for part in model.model.modules())


def _can_be_written() -> bool:
    try:
        check_cache()
    except InputError as error:
        logger.warning(f"{error} Until then each epoch computes them anew.")
        return False
    return True
