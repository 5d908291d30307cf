"""What `Trainer` adds to a step: its steps beside the same ones in a bare loop, in turn.

The bare loop has the trainer's data loader, attack, objective, clipping, optimizer and schedule, on a target of its
own. In the end both targets must have the same weights; otherwise they didn't do the same, and no time is given.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hpt.benchmarking.gates import relative_distance
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import Samples, make_pair
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.steps import make_our_step
from hpt.benchmarking.timing import Stopwatch
from hpt.benchmarking.trainers import SMALL, prepare_trainer, temporary_folder
from hpt.data.images import to_unit_range
from hpt.models.attention import choose_attention
from hpt.training.gpd import get_gpd_schedule
from hpt.training.trainer import HPTTrainer


BARE, TRAINER = "bare loop", "Trainer"
MAX_GRAD_NORM = 1.0
# Of the trained weights, relative to how far they moved. A GPU's kernels add in no fixed order, by which signs in
# attacks flip: there it catches a loop that leaves out a part of the step, but not another attack.
TOLERANCE = {"cpu": 1e-4, "cuda": 0.05}


def measure_trainer(settings: Settings) -> Iterator[Measurement]:
    """The overhead at the size of the settings, and at the quickstart's, where other things than the model count."""
    sizes = {"trainer": settings, "trainer: small": replace(settings, **SMALL)}
    for name, size in sizes.items():
        with temporary_folder() as folder:
            yield compare_with_bare_loop(name, size, folder)


def compare_with_bare_loop(name: str, settings: Settings, folder: str) -> Measurement:
    """Train for a round more than the settings say, since the first warms up."""
    rounds = settings.rounds + 1
    rows = settings.images * rounds
    trainer = prepare_trainer(settings, folder, rows, max_grad_norm=MAX_GRAD_NORM)()
    between = BareBetween(BareLoop(trainer, settings), settings, name)
    trainer.add_callback(between)
    trainer.train()
    vanilla = make_pair(settings).target.model
    moved = [trained_by(model, vanilla) for model in (between.bare.step.target.model, trainer.model)]
    difference = relative_distance(*moved)
    further = {"difference of the weights, relative to how far they moved": [difference]}
    title = f"{settings.size}, models {settings.models}, {settings.precision}"
    measurement = Measurement(name, title, "s", between.seconds, BARE, further=further)
    allowed = TOLERANCE[settings.device.type]
    if not difference <= allowed:
        measurement.values = {}
        measurement.faults = [
            f"After {rounds} steps the weights of Trainer and of the bare loop differ by {difference:.2g}, "
            f"where {allowed:g} is allowed, so that times would say nothing."
        ]
    return measurement


class BareLoop:
    """The trainer's steps without it: batches, attack, loss, backward pass, clipping, optimizer, schedule.

    Args:
        trainer ([`HPTTrainer`]): Whose data, seed and settings are taken.
        settings ([`Settings`]): For a target and a proxy of its own, with the weights of the trainer's.
    """

    def __init__(self, trainer: HPTTrainer, settings: Settings):
        args, schedule = trainer.args, trainer.schedule
        dtype = PRECISIONS[settings.precision]
        pair = make_pair(settings, dtype)
        choose_attention(pair.target.model, args.mixed_precision)
        choose_attention(pair.proxy.model)
        self.step = make_our_step(pair, settings.attack_steps, dtype)
        self.step.attack.seed = args.seed
        self.batches, self.taken = iter(trainer.get_train_dataloader()), 0
        self.weights = [weight for weight in pair.target.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.SGD(self.weights, lr=args.learning_rate, momentum=0.9)
        self.schedule = get_gpd_schedule(
            self.optimizer,
            schedule.steps_per_epoch,
            schedule.anchor_epochs,
            schedule.transfer_epochs,
            warmup_steps=schedule.warmup_steps,
        )

    def __call__(self) -> None:
        """The next step."""
        batch = next(self.batches)
        images = to_unit_range(batch["pixel_values"].to(self.step.target.model.device))
        ids = self.taken * len(images) + torch.arange(len(images))  # as the trainer has them: places in the run
        self.step(Samples(images, batch["labels"].to(images.device), ids))
        torch.nn.utils.clip_grad_norm_(self.weights, MAX_GRAD_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.taken += 1


class BareBetween(TrainerCallback):
    """After each step of Trainer's, a step of the bare loop; seconds of both, but for the first.

    Trainer's begin where the bare one ends, so that all that it does from step to step counts.

    Attributes:
        seconds (`dict[str, list[float]]`): Of each, in each round.
    """

    def __init__(self, bare: BareLoop, settings: Settings, title: str):
        self.bare, self.seconds = bare, {BARE: [], TRAINER: []}
        self._watch = Stopwatch(settings.device)
        self._progress = tqdm(total=settings.rounds + 1, desc=title, leave=False, disable=None)

    def on_step_end(self, args, state, control, **kwargs):
        took = {TRAINER: self._watch.lap()}
        self.bare()
        took[BARE] = self._watch.lap()
        if state.global_step > 1:
            for name, seconds in took.items():
                self.seconds[name].append(seconds)
        self._progress.update()

    def on_train_end(self, args, state, control, **kwargs):
        self._progress.close()


def trained_by(model, vanilla) -> list[torch.Tensor]:
    """How far training has moved each weight that trains."""
    pairs = zip(model.parameters(), vanilla.parameters(), strict=True)
    return [weight.detach() - first.detach() for weight, first in pairs if weight.requires_grad]
