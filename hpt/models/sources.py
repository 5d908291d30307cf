"""Where models are read from: what can't be one is refused before anything is loaded, with the folder to give."""

import re
from os.path import expanduser
from pathlib import Path

from hpt.errors import InputError, closest, did_you_mean_path
from hpt.references import FOLDER


HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MARKS = ("config.json", "adapter_config.json")  # what a folder has that holds a model, or an adapter
HUB = "hf-hub:"  # as open_clip writes it before an id
OPEN_CLIP_CONFIG = "open_clip_config.json"
SAFETENSORS = ".safetensors"
FILES = (SAFETENSORS, ".pt", ".pth", ".bin", ".ckpt", ".tar")  # with a state dict; TeCoA's end in .pth.tar
BASE_FILE = "base_path.txt"  # where the base lies on this machine, of an adapter that names it as others may know it
FORMAT = (
    "a folder or Hub id in the format of transformers, with config.json and model.safetensors; or what hpt converts, "
    f"{HUB}OWNER/NAME, a folder with {OPEN_CLIP_CONFIG} or a file .pt with a state dict"
)


def check_source(source: str) -> None:
    """Refuse what can be neither a model's folder nor an id on the Hub, without asking the Hub.

    Raises:
        InputError: saying why, and which folder may be meant.
    """
    path = Path(source)
    if not source:
        reason = f"its path is empty. Give {FORMAT}."
    elif is_checkpoint(source):
        return _check_checkpoint(source)
    elif path.is_file():
        reason = _why_not_a_file(path)
    elif path.is_dir() and not _holds_model(path):
        reason = _why_not_a_folder(path)
    elif path.is_dir() or HUB_ID.fullmatch(source):
        return
    else:
        near = similar_folder(source)
        hint = f": did you mean {near}?" if near else "."
        reason = f"there is no such folder, and it is no Hub id, which is OWNER/NAME{hint}"
    raise InputError(f"Can't load the model {source!r}: {reason}")


def is_checkpoint(source: str) -> bool:
    """Whether a model is to be converted before it can be loaded, by names alone: nothing is opened or asked for.

    Such are models of open_clip, and files with a state dict.
    """
    path = Path(expanduser(source))
    if path.is_dir():
        return (path / OPEN_CLIP_CONFIG).is_file() and not _holds_model(path)
    return source.startswith((HUB, FOLDER)) or path.suffix in FILES


def _check_checkpoint(source: str) -> None:
    """Refuse what looks like a checkpoint to convert, and can't be one."""
    path = Path(expanduser(source.removeprefix(FOLDER)))
    if source.startswith(HUB):
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source.removeprefix(HUB)):
            return
        reason = f"{HUB} must be followed by OWNER/NAME."
    elif not path.exists():
        reason = f"there is no such file or folder{did_you_mean_path(str(path))}"
    elif path.is_file() and _holds_model(path.parent) and path.suffix == SAFETENSORS:
        reason = f"it is a file. Give the folder that it is in, {path.parent}."
    else:
        return
    raise InputError(f"Can't load the model {source!r}: {reason}")


def similar_folder(source: str) -> str | None:
    """The folder of a model, near where a path points to, that is spelled most alike, if there is one."""
    near = next((folder for folder in Path(source).parents if folder.is_dir()), Path("."))
    if str(near) in (".", near.anchor):  # nothing of the path is there
        return None
    return closest(str(Path(source)), map(str, _models_below(near)))


def _why_not_a_file(path: Path) -> str:
    return f"it is a file. Give {FORMAT}{f', such as {path.parent}' if _holds_model(path.parent) else ''}."


def _why_not_a_folder(path: Path) -> str:
    if models := _models_below(path):
        return f"there is no config.json in that folder: did you mean {', '.join(map(str, models[:5]))}?"
    return f"there is no config.json in that folder. Give {FORMAT}."


def _holds_model(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def _models_below(folder: Path) -> list[Path]:
    """Folders with a model, one or two levels below, without checkpoints."""
    models = {file.parent for mark in MARKS for depth in ("*/", "*/*/") for file in folder.glob(depth + mark)}
    return sorted(path for path in models if not path.name.startswith("checkpoint-"))
