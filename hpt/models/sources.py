"""Where models are read from: what can't be one is refused before anything is loaded, with the folder to give."""

import re
from pathlib import Path

from hpt.errors import InputError, closest


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MARKS = ("config.json", "adapter_config.json")  # what a folder has that holds a model, or an adapter
BASE_FILE = "base_path.txt"  # where the base lies on this machine, of an adapter that names it as others may know it
OF_OPEN_CLIP = ("hf-hub:", "local-dir:")
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
FORMAT = "a folder or Hub id in the format of transformers, with config.json and model.safetensors"


def check_source(source: str) -> None:
    """Refuse what can be neither a model's folder nor an id on the Hub, without asking the Hub.

    Raises:
        InputError: saying why, and which folder may be meant.
    """
    path = Path(source)
    if not source:
        reason = f"its path is empty. Give {FORMAT}."
    elif path.is_file():
        reason = _why_not_a_file(path)
    elif path.is_dir() and not _holds_model(path):
        reason = _why_not_a_folder(path)
    elif path.is_dir() or HUB_ID.fullmatch(source):
        return
    elif source.startswith(OF_OPEN_CLIP):
        reason = f"{source.partition(':')[0]}: stands before models of open_clip. Give {FORMAT}."
    else:
        near = similar_folder(source)
        hint = f": did you mean {near}?" if near else "."
        reason = f"there is no such folder, and it is no Hub id, which is OWNER/NAME{hint}"
    raise InputError(f"Can't load the model {source!r}: {reason}")


def similar_folder(source: str) -> str | None:
    """The folder of a model, near where a path points to, that is spelled most alike, if there is one."""
    near = next((folder for folder in Path(source).parents if folder.is_dir()), Path("."))
    if str(near) in (".", near.anchor):  # nothing of the path is there
        return None
    return closest(str(Path(source)), map(str, _models_below(near)))


def _why_not_a_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return f"it is a pickle of torch, which can run any code, and isn't read. Give {FORMAT}."
    return f"it is a file. Give {FORMAT}{f', such as {path.parent}' if _holds_model(path.parent) else ''}."


def _why_not_a_folder(path: Path) -> str:
    if models := _models_below(path):
        return f"there is no config.json in that folder: did you mean {', '.join(map(str, models[:5]))}?"
    if list(path.glob("open_clip_*")):
        return f"it is a model of open_clip. Give {FORMAT}."
    return f"there is no config.json in that folder. Give {FORMAT}."


def _holds_model(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def _models_below(folder: Path) -> list[Path]:
    """Folders with a model, one or two levels below, without checkpoints."""
    models = {file.parent for mark in MARKS for depth in ("*/", "*/*/") for file in folder.glob(depth + mark)}
    return sorted(path for path in models if not path.name.startswith("checkpoint-"))
