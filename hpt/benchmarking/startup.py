"""How long a run takes to its first step: with a large training set, and with many classes and templates."""

from collections.abc import Iterator
from dataclasses import replace

from transformers import TrainerCallback

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.timing import Stopwatch
from hpt.benchmarking.trainers import SMALL, prepare_trainer, temporary_folder


FEW_ROWS = 320


class FirstStep(TrainerCallback):
    """Takes the time at which the first step begins, and at which it is done, with the prompts encoded."""

    def __init__(self, watch: Stopwatch):
        self.watch = watch

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = self.watch.lap()

    def on_step_end(self, args, state, control, **kwargs):
        self.done = self.watch.lap()


def measure_startup(settings: Settings) -> Iterator[Measurement]:
    """Seconds until the first step is done, with the quickstart's models, which take hardly any time themselves.

    The training set lies in memory; that the models and the set are made isn't counted. What the first checkpoint
    takes to identify the run by its data is a further number.
    """
    small, many = replace(settings, **SMALL), settings.many_classes
    templates = [f"a photo of a {{}}, number {place}" for place in range(settings.templates)]
    cases = {
        f"{FEW_ROWS} rows, {small.classes} classes, 1 template": (small, FEW_ROWS, {}),
        f"{settings.rows:,} rows, {small.classes} classes, 1 template": (small, settings.rows, {}),
        f"{many} rows, {many} classes, {settings.templates} templates": (
            replace(small, classes=many),
            many,
            {"prompt_template": templates},
        ),
    }
    values, further = {name: [] for name in cases}, {}
    for _ in range(settings.rounds):
        for name, case in cases.items():
            parts = time_start(*case)
            values[name].append(parts["the trainer is made"] + parts["the first step begins"] + parts["it is done"])
            for part, seconds in parts.items():
                further.setdefault(f"{name}: seconds until {part}", []).append(seconds)
    title = f"seconds until the first step is done, models quickstart, {small.images} images a step"
    yield Measurement("startup", title, "s", values, next(iter(cases)), further=further)


def time_start(settings: Settings, rows: int, arguments: dict) -> dict[str, float]:
    """Seconds of each part of a start, each counted from the end of the one before."""
    with temporary_folder() as folder:
        given = prepare_trainer(settings, folder, rows, max_steps=1, **arguments)
        watch = Stopwatch(settings.device)
        trainer = given()
        made = watch.lap()
        first = FirstStep(watch)
        trainer.add_callback(first)
        trainer.train(resume_from_checkpoint="last")
        watch.lap()
        trainer.mathematics()
        return {
            "the trainer is made": made,
            "the first step begins": first.begun,
            "it is done": first.done,
            "the run is identified, at its first checkpoint": watch.lap(),
        }
