"""`hpt benchmark`: one measurement after the other, each printed and written as soon as it is there.

`benchmark.json` holds

- `environment`: versions, CPU, threads and GPUs, from [`describe_environment`];
- `settings`: those of the run;
- `measurements`: of each its fields as of [`Measurement`], with all rounds, all ratios, and of each list of numbers
  the median, the minimum and the maximum;

and a digest of itself. A further measurement is a function from [`Settings`] to [`Measurement`]s, and its line below.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile

import torch

from hpt.benchmarking.attacks import measure_attacks, parse_attacked
from hpt.benchmarking.clean import measure_clean
from hpt.benchmarking.figures import draw_measurements
from hpt.benchmarking.growth import measure_growth
from hpt.benchmarking.loading import measure_loading
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.memory import measure_memory
from hpt.benchmarking.objectives import measure_objectives
from hpt.benchmarking.overhead import measure_trainer
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.startup import measure_startup
from hpt.benchmarking.steps import measure_compiled, measure_evaluation, measure_step
from hpt.benchmarking.training import measure_training
from hpt.data.names import parse_benchmark
from hpt.environment import describe_environment
from hpt.errors import InputError, TrainingStopped, check_known
from hpt.files import check_folder, named_if_it_fails, write_file
from hpt.json_files import sealed
from hpt.precision import exact_convolutions


RESULTS, PICTURE = "benchmark.json", "benchmark.png"
MEASUREMENTS = {
    "step": measure_step,
    "compiled": measure_compiled,
    "evaluation": measure_evaluation,
    "clean": measure_clean,
    "attacks": measure_attacks,
    "memory": measure_memory,
    "growth": measure_growth,
    "trainer": measure_trainer,
    "startup": measure_startup,
    "objectives": measure_objectives,
    "training": measure_training,
    "loading": measure_loading,
}


def run_benchmark(settings: Settings) -> list[Measurement]:
    """Measure what the settings name, print it, and write it to `output_dir` if there is one.

    Raises:
        InputError: for what can't be measured, before anything is.
        WriteFailed: for an `output_dir` that can't be written, likewise.
        TrainingStopped: in the end, if variants failed their equality gates, or in between, if memory didn't suffice.
    """
    check(settings)
    torch.set_num_threads(settings.threads)
    measurements = []
    with exact_convolutions():
        for name in dict.fromkeys(settings.measure):
            for measurement in MEASUREMENTS[name](settings):
                measurements.append(measurement)
                print(f"{measurement}\n", flush=True)
                if settings.output_dir is not None:
                    write(settings, measurements)
    if faults := [f"{measurement.name}: {fault}" for measurement in measurements for fault in measurement.faults]:
        raise TrainingStopped("\n".join(faults))
    return measurements


def check(settings: Settings) -> None:
    """Refuse what can't be measured; [`InputError`]."""
    for name in settings.measure:
        check_known("measure", name, MEASUREMENTS)
    if not settings.measure:
        raise InputError(f"There is nothing to measure: give one or several of {', '.join(MEASUREMENTS)}.")
    if "attacks" in settings.measure:
        parse_attacked(settings)
    if "loading" in settings.measure:
        if settings.dataset is None:
            raise InputError("loading reads real images: give a dataset, such as cifar10 or NAME=PATH.")
        parse_benchmark(settings.dataset)
    if settings.dataset is not None and "loading" not in settings.measure:
        raise InputError("Only loading reads a dataset, all else random images: leave dataset out.")
    if "trainer" in settings.measure and settings.precision == "fp16":
        raise InputError("trainer can't be measured in fp16, whose loss Trainer scales: give float32 or bf16.")
    folder = settings.output_dir
    if folder is not None and (check_folder(Path(folder)) / RESULTS).exists():
        raise InputError(f"{folder} has a {RESULTS} already, which is kept: give another output_dir.")
    if folder is not None:
        try_writing(Path(folder))


def try_writing(folder: Path) -> None:
    """Make a folder, and write into it what goes again, since permissions don't tell all; [`WriteFailed`] if not."""
    with named_if_it_fails(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"tried")


def write(settings: Settings, measurements: list[Measurement]) -> None:
    """Write what there is so far, and a picture of it."""
    folder = Path(settings.output_dir)
    content = {"environment": describe_environment(), "settings": asdict(settings)}
    content["measurements"] = [measurement.as_json() for measurement in measurements]
    write_file(folder / RESULTS, json.dumps(sealed(content), indent=1))
    draw_measurements(measurements, folder / PICTURE)
