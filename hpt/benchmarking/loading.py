"""How fast a data loader is beside decoding and transforming alone, on the test split of a benchmark."""

import io
import time
from collections import deque
from collections.abc import Callable, Iterator

import datasets
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.settings import Settings
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate
from hpt.data.loading import load_benchmark


ALONE = "decoding and transforming alone"


def measure_loading(settings: Settings) -> Iterator[Measurement]:
    """Images a second per process, by the clock, since workers are processes of their own."""
    benchmark = load_benchmark(settings.dataset).for_model(CLIPImageProcessorPil())
    number, speeds = len(benchmark), {}
    loaders, together = make_loaders(benchmark, settings.batch_size, settings.workers), {}
    for _ in range(settings.rounds):
        for name, (load, processes) in loaders.items():
            speed = number / seconds_of(load)
            speeds.setdefault(name, []).append(speed / processes)
            together.setdefault(f"{name}: images/s together", []).append(speed)
    title = f"{number} images of {benchmark.name} ({benchmark.split}), batches of {settings.batch_size}, per process"
    yield Measurement("loading", title, "images/s", speeds, ALONE, further=together)


def make_loaders(
    benchmark: Benchmark, batch_size: int, numbers: list[int]
) -> dict[str, tuple[Callable[[], object], int]]:
    """By name, ways through a benchmark's images, with so many workers each, and how many processes share the work."""
    encoded = benchmark.dataset.cast_column("image", datasets.Image(decode=False))["image"]
    encoded = [image["bytes"] for image in encoded]
    loaders = {ALONE: (lambda: decode_all(encoded, benchmark.transform), 1)}
    for workers in numbers:
        loader = DataLoader(
            benchmark, batch_size, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
        )
        deque(loader, 0)  # starts the workers
        name = f"DataLoader, {f'num_workers={workers}' if workers else 'in the main process'}"
        loaders[name] = (lambda loader=loader: deque(loader, 0), max(1, workers))
    return loaders


def decode_all(encoded: list[bytes], transform) -> None:
    """What loading can't do without: decode each image and turn it into a tensor."""
    for content in encoded:
        transform(Image.open(io.BytesIO(content)))


def seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
