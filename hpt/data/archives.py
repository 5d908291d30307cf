"""Packed folders, and tar archives with `1.jpg` beside `1.cls`: WebDataset's shards, as CLIP_benchmark's sets are."""

import hashlib
import itertools
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from filelock import FileLock
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from hpt.data.folders import role_in
from hpt.errors import InputError
from hpt.references import Reference


MAX_EXPANSION = 100  # of an archive, whose files have that many times its size at most; of images, mostly once
CLASS_NAMES = "classnames.txt"  # in label order; CLIP_benchmark keeps it beside the folders of its splits


def unpack(archive: Path) -> Path:
    """The folder that an archive holds, unpacked into the cache once, and again when the file has changed."""
    state = archive.stat()
    version = hashlib.sha256(f"{archive.resolve()} {state.st_mtime_ns} {state.st_size}".encode()).hexdigest()[:16]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hpt" / "unpacked" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        _check_sizes(archive)
        with TemporaryDirectory(dir=folder.parent) as unfinished:
            manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(cache_dir=unfinished))
            content = manager.extract(str(archive))
            os.rename(content, folder)
    return folder


def _check_sizes(archive: Path) -> None:
    """Refuse an archive that isn't one, or whose files are far larger than images can be in it."""
    most, total = MAX_EXPANSION * archive.stat().st_size, 0
    for size in _sizes(archive):
        total += size
        if total > most:
            raise InputError(
                f"{archive} holds files of more than {MAX_EXPANSION} times its own size: unpack it yourself."
            )


def _sizes(archive: Path) -> Iterator[int]:
    """The sizes that an archive says its files have, read no further than they are asked for."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield from (member.file_size for member in packed.infolist())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed:
            yield from (member.size for member in packed)
    else:
        raise InputError(f"{archive} isn't an archive, whatever its name says.")


def find_shards(folder: Path) -> dict[str, list[str]]:
    """The tar archives of each split, FOLDER/SPLIT/*.tar or FOLDER/SPLIT-*.tar; of `"train"` where there is none."""
    shards = {}
    for file in sorted(folder.rglob("*.tar")):
        roles = filter(None, map(role_in, file.relative_to(folder).parts))
        shards.setdefault(next(roles, "train"), []).append(str(file))
    return shards


def has_shards(files: list[Path | str]) -> bool:
    """Whether the first archive has other files beside its images, and isn't a packed folder of these."""
    with tarfile.open(files[0]) as archive:
        first = [member.name for member in itertools.islice(archive, 20) if member.isfile()]
    return any(name.endswith((".cls", ".json", ".txt")) for name in first)


def find_class_names(reference: Reference) -> Path | None:
    """The file in which the class names come with a dataset; `None` where there is no such file."""
    if Path(reference.place).exists():
        file = Path(reference.place) / CLASS_NAMES
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(reference.source, CLASS_NAMES, repo_type="dataset", revision=reference.revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
