"""What stands for images and files: hashes of all their bytes. Those that take long are kept, for all processes.

A hash is kept where `datasets` has its caches, under the names, sizes and times of the files that it was read from, so
that files which were written since are read again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from tqdm.auto import tqdm

from hpt.data.images import encoded_images, read_bytes, read_labels
from hpt.files import read_blocks
from hpt.json_files import digest


WORTH_KEEPING = 1.0  # seconds that a hash takes
STILL_CHANGING = 2.0  # seconds in which a file may be written twice without that showing in its times
ROWS = 256  # images that are in memory at once
QUIET = {"leave": False, "disable": None, "delay": 2}  # of a bar: for people, and not for what is done in no time


def hash_samples(dataset: datasets.Dataset) -> str:
    """64 hexadecimal digits that stand for the encoded images and labels of a dataset, if it has some, in order."""
    has_labels = "label" in dataset.column_names
    labels = read_labels(dataset).astype(np.int64).tobytes() if has_labels else b"without labels"
    return _hash_images(labels, encoded_images(dataset))


def hash_rows(dataset: datasets.Dataset) -> str:
    """16 hexadecimal digits that stand for the rows of any dataset, images undecoded, in order."""
    images = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    hashes = [_hash_images(b"", encoded_images(dataset, name)) for name in images]
    state = hashlib.sha256()
    for batch in dataset.with_format(None).remove_columns(images).iter(ROWS):
        state.update(json.dumps(batch, default=str).encode())
    return digest([images, hashes, state.hexdigest()])


def hash_files(files: list[str]) -> str:
    """64 hexadecimal digits that stand for the names, without their folders, and the contents of files, in order.

    Raises:
        OSError: if one can't be read.
    """
    return _keep(files, "files", lambda: _hash_files(files))


def _hash_images(start: bytes, encoded: datasets.Dataset) -> str:
    """A hash of `start` and of a column of images; see [`~hpt.data.images.encoded_images`]."""
    tables, images = [file["filename"] for file in encoded.cache_files], _image_files(encoded)
    content = [hashlib.sha256(start).hexdigest(), encoded._fingerprint if tables else None]
    return _keep(tables + images, content, lambda: _hash_contents(start, encoded))


def _image_files(encoded: datasets.Dataset) -> list[str]:
    """The files of those images that a dataset only has the paths of, in order."""
    (column,) = encoded.column_names
    if pc.struct_field(encoded.data.column(column), "bytes").null_count == 0:  # known without reading the images
        return []
    return [image["path"] for images in _batches(encoded) for image in images if image["bytes"] is None]


def _batches(encoded: datasets.Dataset) -> Iterator[list[dict]]:
    return (images for batch in encoded.iter(ROWS) for images in batch.values())


def _hash_contents(start: bytes, encoded: datasets.Dataset) -> str:
    state = hashlib.sha256(start)
    with ThreadPoolExecutor() as pool, tqdm(total=len(encoded), desc="Hashing images", **QUIET) as bar:
        for images in _batches(encoded):
            in_files = any(image["bytes"] is None for image in images)
            for content in (pool.map if in_files else map)(read_bytes, images):
                state.update(len(content).to_bytes(8, "little") + content)
            bar.update(len(images))
    return state.hexdigest()


def _hash_files(files: list[str]) -> str:
    size = sum(map(os.path.getsize, files))
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=size, desc="Hashing files", unit="B", unit_scale=True, **QUIET) as bar,
    ):
        hashes = pool.map(lambda file: _hash_file(file, bar), files)
        named = [[Path(file).name, content] for file, content in zip(files, hashes, strict=True)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _hash_file(path: str, bar: tqdm) -> str:
    state = hashlib.sha256()
    for block in read_blocks(path):
        state.update(block)
        bar.update(len(block))
    return state.hexdigest()


# Hashes that are kept


def _keep(files: list[str], content, compute: Callable[[], str]) -> str:
    """The hash that was kept of files and what else it depends on, or else the one that is computed now.

    Of what lies in memory, on the Hub or in an archive, none is kept.
    """
    try:
        states = [_state(file) for file in files]
    except (OSError, ValueError):
        states = []
    if not states:
        return compute()
    place = Path(datasets.config.HF_DATASETS_CACHE, "hpt", "hashes", digest([states, content]))
    if (kept := _read(place)) is not None:
        return kept
    started = time.monotonic()
    value = compute()
    took, age = time.monotonic() - started, time.time() - max(changed for *_, changed in states) / 1e9
    if took >= WORTH_KEEPING and age >= STILL_CHANGING:
        with suppress(OSError):  # a full disk, say, costs no more than hashing again
            _write(place, value)
    return value


def _state(file: str) -> tuple:
    """What of a file changes when it is written or replaced; when that was, in ns, comes last."""
    state = os.stat(file)
    return os.path.abspath(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _read(place: Path) -> str | None:
    """What was kept, unless it isn't there or is damaged."""
    try:
        value, check = place.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return value if check == digest([place.name, value]) else None


def _write(place: Path, value: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    incomplete = place.with_name(f"{place.name}.{os.getpid()}")
    incomplete.write_text(f"{value}\n{digest([place.name, value])}\n", encoding="utf-8")
    os.replace(incomplete, place)
