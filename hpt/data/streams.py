"""Training on more images than fit into memory, or on the disk: epochs cut from a stream.

train = load_benchmark("imagenet", "train", streaming=True)
HPTTrainer(..., args=HPTConfig("outputs/robust", steps_per_epoch=20000), train_dataset=train)
"""

import itertools
import os
import re
from collections.abc import Iterator
from functools import partial
from inspect import ismethod

import datasets
import torch
from datasets.packaged_modules.generator.generator import Generator

from hpt.data.benchmark import StreamingBenchmark
from hpt.data.hashing import hash_files, hash_rows
from hpt.errors import InputError
from hpt.json_files import digest


OF_A_COMMIT = re.compile(r"hf://[^@]+@[0-9a-f]{40}/")  # how a file is called whose content can't change


class EpochStream(torch.utils.data.IterableDataset):
    """Epochs of a fixed length from a [`StreamingBenchmark`], the same for the same seed, workers and batch size.

    The files are read in random order, through a buffer from which rows are drawn at random, and once more in another
    order when they end. Each epoch goes on where the one before it ended, so that all rows have their turn however
    short it is. With workers, each reads its share of the files; they should persist, since an epoch that begins in a
    new process first reads, undecoded, over what the epochs before it took.

    Args:
        stream ([`StreamingBenchmark`]): What is read.
        num_batches (`int`): Batches in an epoch, of all micro-batches and processes together.
        batch_size (`int`): Images in a batch.
        buffer_size (`int`): Rows, as encoded images, among which the next one is drawn.
        seed (`int`): What the orders come from.
        num_workers (`int`): Workers of the data loader.

    Raises:
        InputError: for more workers than files; while iterating, for a share without rows or a row that is broken.
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
        check_workers(stream, num_workers)
        self.stream, self.num_batches, self.batch_size = stream, num_batches, batch_size
        self.buffer_size, self.seed = buffer_size, seed
        self.name, self.split = stream.name, stream.split
        self.class_names, self.transform = stream.class_names, stream.transform
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change
        self._rows, self._position = None, 0  # what is left of the stream behind the last epoch that was read

    @property
    def has_labels(self) -> bool:
        """Whether its images have labels."""
        return self.stream.has_labels

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next, counted from 0."""
        self._epoch.fill_(epoch)

    def close(self) -> None:
        """Let go of the files: Arrow's threads that still read one when Python ends would abort it."""
        self._rows = None

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batches = len(range(number, self.num_batches, workers))  # the loader takes one of each worker in turn
        share = batches * self.batch_size
        start = self._epoch.item() * share
        rows = self._rows if self._position == start and self._rows else itertools.islice(self._endless(), start, None)
        self._rows = None
        for taken in range(1, share + 1):
            row = next(rows)
            if taken == share:
                self._rows, self._position = rows, start + share
            yield self.stream.decode(row)

    def _endless(self) -> Iterator[dict]:
        """The stream's rows, undecoded, over and over in new orders."""
        encoded = self.stream.encoded_rows().map(_unchanged)
        for reading in itertools.count():
            rows = 0
            for row in encoded.shuffle(seed=self.seed * 1_000_003 + reading, buffer_size=self.buffer_size):
                yield row
                rows += 1
            if rows == 0:
                raise InputError(
                    f"{self.name} ({self.split}) has no rows to stream, or none in one worker's share of its files: "
                    "give fewer dataloader_num_workers."
                )


def _unchanged(row: dict) -> dict:
    """Makes `datasets` take rows out of their Arrow tables, each of which a row in the buffer would keep in memory."""
    return row


def check_workers(stream: StreamingBenchmark, num_workers: int) -> None:
    """Refuse more workers than there are files to share out."""
    files = stream.dataset.num_shards
    if num_workers > files:
        raise InputError(
            f"{stream.name} ({stream.split}) is streamed from {files} file{'s' * (files > 1)}, which can't be shared "
            f"out to {num_workers} workers: give at most --dataloader_num_workers {files}."
        )


# What a stream is read from


def identify_stream(stream: StreamingBenchmark) -> tuple[str, list[str]]:
    """What stands for the rows of a stream, and what nothing can stand for.

    Files on this machine count by name and content, those of a repository on the Hub by its commit, and tables by
    their rows. Functions that rows pass through count by name alone.

    Returns:
        `tuple`: 16 hexadecimal digits, and names of functions and addresses whose results may change unnoticed.
    """
    sources, functions = [], []
    for node in _nodes(stream.dataset._ex_iterable):
        sources += _flatten(vars(node).get("kwargs", {}))
        functions += [_name_function(vars(node)[name]) for name in ("function", "mask_function") if name in vars(node)]
        functions += [_name_function(made_by) for made_by in _generators(node)]
    functions = [name for name in functions if not name.startswith(("datasets.", "hpt."))]
    files = [file for file in map(_local_file, sources) if file is not None]
    tables = [source for source in sources if isinstance(source, datasets.Dataset)]
    texts = [source for source in sources if isinstance(source, str) and _local_file(source) is None]
    unfixed = [text for text in texts if "://" in text and not OF_A_COMMIT.match(text)]
    content = [
        hash_files(files) if files else None,
        hash_rows(datasets.concatenate_datasets(tables)) if tables else None,
        texts,
        functions,
    ]
    return digest([*content, stream.mode]), [*dict.fromkeys(functions + unfixed)]


def _nodes(node) -> Iterator:
    """The steps of which `datasets` makes a stream, the last one first."""
    yield node
    within = vars(node)
    for part in [within["ex_iterable"]] if "ex_iterable" in within else within.get("ex_iterables", []):
        yield from _nodes(part)


def _flatten(value) -> list:
    """What lists, tuples and dicts hold, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in _flatten(part)] if isinstance(value, list | tuple) else [value]


def _local_file(source) -> str | None:
    """The file on this machine that a source is, or is in, as in `zip://cat.png::/data/images.zip`."""
    path = source.rpartition("::")[2].removeprefix("file://") if isinstance(source, str) else ""
    return path if os.path.isfile(path) else None


def _generators(node) -> list:
    """The function that [`~datasets.IterableDataset.from_generator`] was given."""
    made_by = vars(node).get("generate_examples_fn")
    return [made_by.__self__.config.generator] if ismethod(made_by) and isinstance(made_by.__self__, Generator) else []


def _name_function(function) -> str:
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
