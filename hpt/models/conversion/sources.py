"""Checkpoints of open_clip, of OpenAI's CLIP and of robust vision towers, read from the disk or the Hub.

A pickle is only opened as far as it holds tensors: `torch.load(..., weights_only=True)`.
"""

import re
import warnings
import zipfile
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from hpt.errors import InputError, did_you_mean_path
from hpt.files import hash_file
from hpt.models.conversion.layouts import find_weights
from hpt.models.conversion.open_clip_config import CONFIG, OpenClipConfig
from hpt.models.conversion.shapes import check_weights, is_vision_only
from hpt.models.failures import failures_explained
from hpt.models.files import find_file, find_license, read_json
from hpt.models.sources import HUB, SAFETENSORS
from hpt.references import FOLDER


# In this order, what open_clip itself looks for
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLE = "open_clip_pytorch_model.bin"  # only of a local folder: no pickle is downloaded
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a CLIP with a ViT, named as in OpenAI's code, and what lies beside them.

    Args:
        source (`str`): The folder, file or `hf-hub:` id that it was read from, as given.
        layout (`str`): In words, how its weights were named, such as `"open_clip's, with the text tower below text."`.
        weights (`dict[str, torch.Tensor]`): By OpenAI's names, in the types that the file keeps them in.
        config ([`OpenClipConfig`], *optional*): What `open_clip_config.json` says; `None` of a lone state dict.
        sha256 (`dict[str, str]`): By name, the SHA-256 of each file that was read: 64 hexadecimal digits. The first
            is that of the weights.
        folder (`Path`, *optional*): Where its tokenizer's files are, if it has some.
        license (`str`, *optional*): What its card says, such as `"mit"`.
        commit (`str`, *optional*): Its commit on the Hub.
    """

    source: str
    layout: str
    weights: dict[str, torch.Tensor]
    config: OpenClipConfig | None
    sha256: dict[str, str]
    folder: Path | None = None
    license: str | None = None
    commit: str | None = None

    @property
    def is_vision_only(self) -> bool:
        """Whether it lacks a text tower."""
        return is_vision_only(self.weights)


def read_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint; little is read of its weights but their hash where the file can be mapped into memory.

    Args:
        source (`str`): `hf-hub:OWNER/NAME`, of which only the files that are needed are downloaded; a folder with
            `open_clip_config.json`, with or without `local-dir:` before it; or a file, such as `.pt` or
            `.safetensors`, with a state dict of a CLIP or of its vision tower, whatever its names begin with.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Returns:
        [`Checkpoint`]: its names and shapes are those of a ViT CLIP, all there, and as its configuration says.

    Raises:
        InputError: for a source that isn't there or can't be reached, a file that holds more than tensors or is a
            program, and weights of no known layout, with missing or further parts, or of another architecture.
    """
    if source.startswith(HUB):
        return _read_folder(source, source.removeprefix(HUB), revision)
    path = Path(expanduser(source.removeprefix(FOLDER)))
    if path.is_dir():
        return _read_folder(source, str(path), None)
    if not path.is_file():
        raise InputError(f"Can't convert {source!r}: no such file or folder{did_you_mean_path(str(path))}")
    weights, layout = _read_weights(source, path)
    return Checkpoint(source, layout, weights, None, _hashes([path]))


def _read_folder(source: str, name: str, revision: str | None) -> Checkpoint:
    """A folder, or what is needed of a repository on the Hub, by its id."""
    with failures_explained("model", name):
        config = _find_config(source, name, revision)
        settings = OpenClipConfig(read_json(config), source)
        commit = config.parent.name if source.startswith(HUB) else None  # all other files are of the same
        tokenizer = [*filter(None, (find_file(name, file, commit) for file in TOKENIZER))]
        license = find_license(name, commit)
        files = WEIGHTS if commit else (*WEIGHTS, PICKLE)
        file = next(filter(None, (find_file(name, file, commit) for file in files)), None)
    if file is None:
        pickled = (
            f" No pickle is downloaded, such as {PICKLE}: if it has one, and you trust it, copy it by hf download "
            f"{name} --local-dir FOLDER, and convert FOLDER."
        )
        complete = pickled if commit else " Take a complete copy."
        raise InputError(f"Can't convert {source!r}: it has none of {', '.join(files)}.{complete}")
    weights, layout = _read_weights(source, file)
    settings.check_weights(weights)
    hashes = _hashes([file, config, *tokenizer])
    return Checkpoint(source, layout, weights, settings, hashes, config.parent if tokenizer else None, license, commit)


def _find_config(source: str, name: str, revision: str | None) -> Path:
    try:
        path = Path(hf_hub_download(name, CONFIG, revision=revision) if source.startswith(HUB) else f"{name}/{CONFIG}")
        if path.is_file():
            return path
    except LocalEntryNotFoundError:  # no answer from the Hub
        raise
    except EntryNotFoundError:
        pass
    raise InputError(
        f"Can't convert {source!r}: there is no {CONFIG}. Give a model of open_clip, or a file of weights; one in the "
        "format of transformers needs no conversion."
    )


def _read_weights(source: str, path: Path) -> tuple[dict[str, torch.Tensor], str]:
    weights, layout = find_weights(source, _read_safetensors(path) if path.suffix == SAFETENSORS else _unpickle(path))
    check_weights(source, weights)
    return weights, layout


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, "safetensors") from error


def _unpickle(path: Path) -> Any:
    """What torch saved in a file, mapped into memory if it can be; nothing in it is run."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_program(path):
        raise InputError(
            f"{path} is a TorchScript archive, a program, which isn't run. Save its weights by themselves, where you "
            f'trust it: torch.save(torch.jit.load({path.name!r}, map_location="cpu").state_dict(), "weights.pt"). '
            "OpenAI's own are on the Hub too, such as openai/clip-vit-base-patch32, and need no conversion."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that weren't made by torch
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise InputError(f"{path} isn't opened: {_why_not(error)}") from error
    except PermissionError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _damaged(path, "torch") from error


def _damaged(path: Path, library: str) -> InputError:
    return InputError(
        f"{path} ({path.stat().st_size:,} bytes) is damaged, or wasn't saved by {library}: take a complete copy. The "
        f"name of a file of safetensors must end in {SAFETENSORS}, and that of torch's in .pt, for example."
    )


def _is_program(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as file:
            return any(Path(name).name == "constants.pkl" for name in file.namelist())
    except zipfile.BadZipFile:
        return False  # torch says what is wrong with it


def _why_not(error: UnpicklingError) -> str:
    further = re.search(r"(?:GLOBAL|global|function|class) `?([\w.]+\.[\w.]+)`?", str(error))
    if further is None:
        return (
            "it is no pickle of tensors alone, or is damaged. Take a complete copy, or a file of safetensors, whose "
            f"name ends in {SAFETENSORS}."
        )
    return (
        f"it needs more than tensors, {further[1]}, which could run any code. Save its state dict by itself, where "
        'you trust it: torch.save(state_dict, "weights.pt").'
    )


def _hashes(paths: list[Path]) -> dict[str, str]:
    return {path.name: hash_file(path) for path in paths}
