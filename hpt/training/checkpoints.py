"""Checkpoints that are complete or don't count.

A checkpoint's manifest names each of its files with size and SHA-256, carries a digest of itself, and is written after
all of them, in one atomic step. A folder that doesn't fit its manifest, or has none, was cut off or damaged: it is
never resumed from.
"""

import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hpt.errors import InputError
from hpt.files import hash_file
from hpt.json_files import DIGEST, sealed, unsealed
from hpt.models.weights import find_non_finite
from hpt.radius import describe_length


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PARTS = {"files", "settings", "launch"}  # of every manifest
IN_PIXELS = ("attack_eps", "attack_step_size")  # settings that are written as fractions of 255
# Settings that checkpoints of earlier versions don't name, with what they were
ADDED_SETTINGS = {
    "objective_args": None,
    "anchor_objective": "anchor",
    "anchor_objective_args": None,
    "attack_loss": None,
    "restart": True,
    "proxy_temperature": 1.0,
    "only_where_right": False,
    "proxy_combination": "probabilities",
    "proxy_weights": None,
    "optim_target_modules": None,
    "micro-batches weigh": "alike, whatever their size",
    "augmentation": "none",
    "geometry": "native or 256-224",
    "vision_tower": None,
    "batch_norm": "by the statistics of each batch",
}
# Likewise, which parts of data and models they don't tell apart; every later checkpoint names the first
SAID_SINCE = (
    "samples",
    "target_weights",
    "target_configuration",
    "target_tokens",
    "proxy_models",
    "optimizer",
    "lr_scheduler",
)


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint after optimizer step `step` lies."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def write_manifest(folder: Path, settings: dict, launch: dict) -> None:
    """Declare a checkpoint complete, once all of its files are on the disk.

    Args:
        folder (`Path`): The checkpoint.
        settings (`dict`): What can't change when a run goes on from it, as JSON has it.
        launch (`dict`): What may change, but then the run doesn't go on bit for bit.
    """
    left_out = (folder / MANIFEST, folder / "README.md")  # a card may be written anew, and nothing is resumed from it
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file not in left_out)
    incomplete = folder / f"{MANIFEST}.incomplete"
    with ThreadPoolExecutor() as pool:
        names = [str(file.relative_to(folder)) for file in files]
        described = dict(zip(names, pool.map(_describe, files), strict=True))
        content = {"name": folder.name, "files": described, "settings": settings, "launch": launch}
        incomplete.write_text(json.dumps(sealed(content), indent=1), encoding="utf-8")
        list(pool.map(_flush, [*files, incomplete]))  # a power cut must not leave a manifest of files it took away
    os.replace(incomplete, folder / MANIFEST)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a complete checkpoint, without its digest; those of earlier versions have no `name` either.

    Raises:
        InputError: saying what is missing or damaged; or, of a checkpoint that an earlier version wrote, which didn't
            look, that its weights aren't finite.
    """
    folder = Path(folder)
    try:
        manifest = _parse_manifest(folder)
        for name, described in manifest["files"].items():
            _check_size(folder, name, described["size"])
        with ThreadPoolExecutor() as pool:
            contents = dict(zip(manifest["files"], pool.map(_describe, _paths(folder, manifest)), strict=True))
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error}.") from error
    for name, content in contents.items():
        if content != manifest["files"][name]:
            raise InputError(f"{folder} is damaged: the content of {name} isn't what was written (SHA-256).")
    if "name" not in manifest:
        for path in _paths(folder, manifest):
            if path.suffix == ".safetensors" and (broken := find_non_finite(load_file(path))):
                raise InputError(f"{folder} is of no use: {path.name} has NaN or infinite values, {broken}.")
    return manifest


def _parse_manifest(folder: Path) -> dict:
    """The manifest as it was written; those of earlier versions have no digest, and nothing but [`PARTS`]."""
    if not (folder / MANIFEST).is_file():
        kind = "is incomplete" if folder.is_dir() else "isn't a folder"
        raise InputError(f"{folder} {kind}: it has no {MANIFEST}, which is written last.")
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = unsealed(written)
        whole = DIGEST in written or set(manifest) == PARTS
        whole &= all(isinstance(manifest[part], dict) for part in PARTS)
        files = manifest["files"].items()
        whole &= all(name.isprintable() and isinstance(file["size"], int) for name, file in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{folder} is damaged: its {MANIFEST} can't be read.")
    return manifest


def _paths(folder: Path, manifest: dict) -> list[Path]:
    return [folder / name for name in manifest["files"]]


def _check_size(folder: Path, name: str, expected: int) -> None:
    size = (folder / name).stat().st_size if (folder / name).is_file() else None
    if size != expected:
        fault = "is missing" if size is None else f"has {size:,} of {expected:,} bytes"
        raise InputError(f"{folder} is damaged: {name} {fault}.")


def last_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint in a folder, or `None`; a warning names each newer one and what ails it."""
    for step in sorted(_steps(output_dir), reverse=True):
        folder = checkpoint_folder(output_dir, step)
        try:
            name = read_manifest(folder).get("name", folder.name)  # earlier versions didn't write it
            if name != folder.name:
                raise InputError(f"{folder} isn't of its step: it was written as {name}.")
        except InputError as error:
            logger.warning(f"Ignored: {error}")
        else:
            return str(folder)
    return None


def delete_older(output_dir: str | Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Keep `limit` checkpoints with a manifest, and always the newest and the best; without a limit above 0, all.

    The first to go are those of steps beyond the newest: they are of a run that this one has begun anew. Then those
    of the lowest steps go, whatever the clock said when they were written.
    """
    if limit is None or limit <= 0:  # as transformers has it
        return
    newest_step = int(newest.name.rpartition("-")[2])
    order = sorted(_steps(output_dir), key=lambda step: (step <= newest_step, step))
    complete = [folder for step in order if ((folder := checkpoint_folder(output_dir, step)) / MANIFEST).is_file()]
    kept = {newest.resolve()} | ({Path(best).resolve()} if best else set())
    spare = max(0, len(complete) - limit)
    for folder in [folder for folder in complete if folder.resolve() not in kept][:spare]:
        delete_path(folder)


def delete_path(path: Path) -> None:
    """Delete a folder, as far as it can be, or a link or file in its place; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _steps(output_dir: str | Path) -> list[int]:
    """The steps of all checkpoints in a folder, complete or not."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(0|[1-9][0-9]*)")
    matches = [pattern.fullmatch(folder.name) for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    return [int(match[1]) for match in matches if match]


def check_same_settings(checkpoint: str | Path, manifest: dict, settings: dict, launch: dict) -> None:
    """Refuse to resume with settings that would change the mathematics of the run halfway; warn of another launch.

    Raises:
        InputError: listing each difference.
    """
    added = {name: value for name, value in ADDED_SETTINGS.items() if name in settings}
    unsaid = {name: settings[name] for name in SAID_SINCE if name in settings}
    unsaid = {} if SAID_SINCE[0] in manifest["settings"] else unsaid
    if differing := differences(added | unsaid | manifest["settings"], settings):
        raise InputError(
            f"{checkpoint} was trained with other settings ({differing}): use the same, or give another output_dir."
        )
    if unsaid:
        logger.warning(
            f"{checkpoint} is of hpt 0.3.0 or before, which compares only 16 of the training images and parts of the "
            f"models: the run goes on as if the rest were the same ({', '.join(unsaid)})."
        )
    if differing := differences(manifest["launch"], launch):
        logger.warning(
            f"{checkpoint} was trained in another way ({differing}): the run goes on with the same mathematics, but "
            "not bit for bit."
        )


def differences(there: dict, here: dict) -> str:
    """Each setting of two runs that differs, with both values, or an empty text."""
    here = json.loads(json.dumps(here))
    names = [name for name in there | here if there.get(name) != here.get(name)]
    return "; ".join(f"{name} {_written(name, there)} there, {_written(name, here)} here" for name in names)


def _written(name: str, settings: dict) -> str:
    """A setting as a person would write it: radii and steps of attacks as fractions."""
    value = settings.get(name)
    return describe_length(value) if name in IN_PIXELS and isinstance(value, float) else str(value)


def _describe(path: Path) -> dict:
    """Size and SHA-256 of a file."""
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
