"""Training on more images than fit on the disk: epochs cut from a stream.

train = load_benchmark("imagenet", "train", streaming=True)
HPTTrainer(..., args=HPTConfig("outputs/robust", steps_per_epoch=20000), train_dataset=train)
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from hpt.benchmarks import StreamingBenchmark
from hpt.errors import InputError


class EpochStream(torch.utils.data.IterableDataset):
    """Epochs of a fixed number of batches from a [`StreamingBenchmark`], reproducible from (seed, epoch) alone.

    Each epoch reads the files in a new order, through a buffer from which rows are drawn at random. If they end before
    the epoch does, they are read once more in yet another order. With workers, each reads its share of the files.

    Args:
        stream ([`StreamingBenchmark`]): What is read.
        num_batches (`int`): Batches in an epoch, of all processes together.
        batch_size (`int`): Images in a batch.
        buffer_size (`int`): Rows, as encoded images, among which the next one is drawn.
        seed (`int`): What the orders come from.
        num_workers (`int`): Workers of the data loader.

    Raises:
        InputError: for more workers than files; while iterating, for a stream without rows or with broken ones.
    """

    def __init__(
        self,
        stream: StreamingBenchmark,
        *,
        num_batches: int,
        batch_size: int,
        buffer_size: int,
        seed: int,
        num_workers: int,
    ):
        if num_workers > stream.dataset.num_shards:
            raise InputError(
                f"{stream.name} ({stream.split}) is streamed from {stream.dataset.num_shards} files, which can't be "
                f"shared out to {num_workers} workers: give at most --dataloader_num_workers "
                f"{stream.dataset.num_shards}."
            )
        self.stream, self.num_batches, self.batch_size = stream, num_batches, batch_size
        self.buffer_size, self.seed = buffer_size, seed
        self.name, self.split = stream.name, stream.split
        self.class_names, self.transform = stream.class_names, stream.transform
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share = len(range(number, self.num_batches, workers))  # the loader takes a batch of each worker in turn
        return itertools.islice(self._endless(self._epoch.item()), share * self.batch_size)

    def _endless(self, epoch: int) -> Iterator[dict]:
        for reading in itertools.count():
            seed = self.seed * 1_000_003 + epoch * 1_009 + reading
            shuffled = self.stream.dataset.shuffle(seed=seed, buffer_size=self.buffer_size)
            rows = 0
            for row in replace(self.stream, dataset=shuffled):
                yield row
                rows += 1
            if rows == 0:
                raise InputError(f"{self.name} ({self.split}) has no rows to stream.")
