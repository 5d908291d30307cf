"""The few images of a benchmark on which a classifier is checked, and what it says of them."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from hpt.attacks import Attack, AttackResult
from hpt.attacks.base import batch_norm_untouched
from hpt.attacks.queries import float_logits
from hpt.classifiers import VERDICTS, Classifier, draw_seeds
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, read_labels, to_unit_range
from hpt.errors import InputError, failures_explained
from hpt.evaluation.work import finite


CLASSES = 16  # at most, so that each has several images


class Probe:
    """About 128 images of a benchmark, in random order, and a classifier's logits of them.

    Args:
        classifier (`Callable`): From images in [0, 1] to logits over the benchmark's classes; its mode stays as it is.
        benchmark ([`Benchmark`]): With the geometry in which the classifier sees its images.
        number (`int`): About so many images, of at most 16 classes, as many of each as far as they have them.
        batch_size (`int`): Images at once.
        seed (`int`): Of their choice.
        device (`str` or `torch.device`, *optional*): Where the images are put; defaults to a module's own, or the CPU.

    Raises:
        InputError: for images without labels, and what isn't a finite logit for each image and class.
    """

    def __init__(self, classifier: Classifier, benchmark: Benchmark, number: int, batch_size: int, seed: int, device):
        if not benchmark.has_labels:
            raise InputError(f"{benchmark.name} has no labels, which a protocol check compares predictions with.")
        self.classifier, self.benchmark, self.batch_size, self.seed = classifier, benchmark, batch_size, seed
        self.device = _device_of(classifier) if device is None else torch.device(device)
        batches = list(self._load(choose(benchmark, CLASSES, number, seed)))
        self.images = torch.cat([to_unit_range(batch["pixel_values"]) for batch in batches])
        self.labels, self.sample_ids = (torch.cat([b[name] for b in batches]) for name in ("labels", "sample_ids"))
        self.logits = self.see(self.images)
        if self.logits.dim() != 2 or self.logits.shape[1] != len(benchmark.class_names):
            raise InputError(
                f"The classifier gives logits of shape {tuple(self.logits.shape)}, but {benchmark.name} has "
                f"{len(benchmark.class_names)} classes: give logits (batch, {len(benchmark.class_names)})."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(1).numpy()

    @property
    def right(self) -> np.ndarray:
        """Verdicts on the clean images, `(images,)`, bool."""
        return self.predicted == self.labels.cpu().numpy()

    def see(
        self, images: torch.Tensor, rows: torch.Tensor | None = None, *, batch_size: int | None = None
    ) -> torch.Tensor:
        """Logits `(images, classes)` of images, in float32, on the CPU.

        Args:
            images (`torch.Tensor` of shape `(images, 3, height, width)`): The probe's, or others in their place.
            rows (`torch.Tensor` of shape `(images,)`, *optional*): In whose place; by default the probe's first ones.
            batch_size (`int`, *optional*): Images at once, instead of the probe's own.
        """
        size = batch_size or self.batch_size
        pairs = zip(images.split(size), self._at(self.sample_ids, images, rows).split(size), strict=True)
        return torch.cat([self._see_batch(batch, sample_ids) for batch, sample_ids in pairs])

    def judge(self, images: torch.Tensor, rows: torch.Tensor | None = None) -> np.ndarray:
        """Which images are predicted as their labels, `(images,)`, bool; arguments as of [`see`]."""
        return (self.see(images, rows).argmax(1) == self._at(self.labels, images, rows).cpu()).numpy()

    def attack(self, attack: Attack, rows: torch.Tensor, *, batch_size: int | None = None) -> AttackResult:
        """What an attack finds for the images in these rows, so many at once.

        Raises:
            InputError: for logits that have no gradient; and, with a cause, for whatever a user's own code raises.
        """
        with failures_explained(f"{attack.label} fails"):
            results = [
                attack.perturb(self.classifier, self.images[part], self.labels[part], self.sample_ids[part])
                for part in rows.split(batch_size or self.batch_size)
            ]
        return AttackResult(*(torch.cat([getattr(r, name) for r in results]) for name in ("images", "zero_gradient")))

    def seen_by(self, classifier: Classifier) -> "Probe":
        """The same images with the logits of another classifier."""
        probe = copy.copy(self)
        probe.classifier = classifier
        probe.logits = probe.see(probe.images)
        return probe

    def _at(self, values: torch.Tensor, images: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        return values[: len(images)] if rows is None else values[rows]

    def _see_batch(self, images: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        seeds = draw_seeds(self.seed, sample_ids, VERDICTS, 0)  # for a randomised classifier, the same each time
        with torch.no_grad(), batch_norm_untouched(self.classifier):
            return finite(float_logits(self.classifier)(images, seeds)).cpu()

    def predict_more(self, classes: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels of further images, of more classes: see [`choose`]."""
        predicted, labels = [], []
        for batch in self._load(choose(self.benchmark, classes, number, self.seed)):
            predicted.append(self._see_batch(to_unit_range(batch["pixel_values"]), batch["sample_ids"]).argmax(1))
            labels.append(batch["labels"].cpu())
        return torch.cat(predicted).numpy(), torch.cat(labels).numpy()

    def low_precision(self) -> str | None:
        """The dtype of fewer than 32 bits in which the classifier computes something, if there is one."""
        with _NotedDtypes() as noted:
            self._see_batch(self.images[:2], self.sample_ids[:2])
        return next((str(dtype).removeprefix("torch.") for dtype in noted.dtypes if dtype.itemsize < 4), None)

    def _load(self, benchmark: Benchmark) -> Iterator[dict]:
        for batch in DataLoader(benchmark, self.batch_size, collate_fn=collate):
            yield {name: values.to(self.device) for name, values in batch.items()}


class _NotedDtypes(TorchDispatchMode):
    """Within, notes the floating dtypes of all that torch computes."""

    def __init__(self):
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.dtypes |= {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        return output


def choose(benchmark: Benchmark, classes: int, number: int, seed: int) -> Benchmark:
    """About so many images of at most so many classes, drawn at random, in random order, as many of each class."""
    labels, generator = read_labels(benchmark.dataset), np.random.default_rng(seed)
    kept = generator.permutation(np.unique(labels))[:classes]
    each = -(-number // len(kept))
    rows = [generator.permutation(np.flatnonzero(labels == label))[:each] for label in kept]
    return benchmark.rows(generator.permutation(np.concatenate(rows)))


def _device_of(classifier: Classifier) -> torch.device:
    weights = classifier.parameters() if isinstance(classifier, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))
