"""Packed folders, and tar archives with `1.jpg` beside `1.cls`: WebDataset's shards, as CLIP_benchmark's sets are."""

import hashlib
import itertools
import os
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from filelock import FileLock
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from hpt.data.folders import role_in
from hpt.errors import InputError
from hpt.references import Reference


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
        with TemporaryDirectory(dir=folder.parent) as unfinished:
            manager = datasets.DownloadManager(download_config=datasets.DownloadConfig(cache_dir=unfinished))
            content = manager.extract(str(archive))
            if not Path(content).is_dir():  # the file itself, where its content isn't that of an archive
                raise InputError(f"{archive} isn't an archive, whatever its name says.")
            os.rename(content, folder)
    return folder


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
