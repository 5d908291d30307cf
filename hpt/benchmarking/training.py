"""A training as users run it: seconds of its first and its last steps, its peak memory, and memory as steps go on."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.timing import Stopwatch
from hpt.benchmarking.trainers import prepare_trainer, temporary_folder
from hpt.benchmarking.usage import memory_in_use, peak_memory


MARKS = (1, 10, 100, 200, 300)  # steps after which memory in use is said


class StepTimes(TrainerCallback):
    """Seconds of each step, with the loading of its batch but for the first, and GiB in use after it."""

    def __init__(self, settings: Settings):
        self.device, self.seconds, self.memory = settings.device, [], []
        self._progress = tqdm(total=settings.steps, desc="training", leave=False, disable=None)

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.seconds:
            self._watch = Stopwatch(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self._watch.lap())
        self.memory.append(memory_in_use(self.device))
        self._progress.update()

    def on_train_end(self, args, state, control, **kwargs):
        self._progress.close()


def measure_training(settings: Settings) -> Iterator[Measurement]:
    """`steps` training steps of `batch_size` images, compiled if asked; not a comparison, but what a user sees.

    Peak memory is that of this process so far, and so belongs to training only if nothing was measured before.
    """
    size, times = replace(settings, images=settings.batch_size), StepTimes(settings)
    with temporary_folder() as folder:
        rows, compiled = settings.batch_size * settings.steps, settings.compile
        trainer = prepare_trainer(size, folder, rows, torch_compile=compiled)()
        trainer.add_callback(times)
        trainer.train()
    further = {f"seconds of step {number}": [took] for number, took in enumerate(times.seconds[:3], start=1)}
    further["seconds of a step in the end"] = [statistics.median(times.seconds[-10:])]
    further["peak memory of this process (GiB)"] = [peak_memory(settings.device)]
    marks = sorted({mark for mark in (*MARKS, settings.steps) if mark <= settings.steps})
    further |= {f"memory in use after step {mark} (GiB)": [times.memory[mark - 1]] for mark in marks}
    title = f"{size.size}, models {size.models}, {size.precision}{', compiled' * compiled}, {size.device}"
    yield Measurement("training", title, "s", {"a step": times.seconds}, "a step", further=further)
