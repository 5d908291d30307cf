"""What identifies any function of images, so that results of another one are never gone on with under its name.

identify(defence)  # Identity(configuration="0123456789abcdef", weights="fedcba9876543210", dtype="float32", ...)

Code itself isn't looked at, but what it computes with: of an object its attributes and those of its class, of a
function the variables around it that it uses and its defaults, and so on in what these hold. Tensors give the weights.
Numbers, texts and truth values give the configuration, with the names of classes and functions. What begins with an
underscore doesn't count, and of modules of torch and transformers only the weights do.
"""

import inspect
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.identity import hash_configuration
from hpt.models.proxies import name_function
from hpt.models.weights import hash_weights


LIBRARIES = ("torch", "transformers")  # of whose modules attributes differ between versions
INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


@dataclass(frozen=True)
class Identity:
    """What is known of a function or an object.

    Args:
        configuration (`str`): Hash of the classes, functions and plain values that it computes with.
        weights (`str`, *optional*): Hash of its tensors; `None` if it has none.
        dtype (`str`): Of the floating-point tensors; `"unknown"` if there are none.
        device (`torch.device`, *optional*): Of the first tensor.
    """

    configuration: str
    weights: str | None
    dtype: str
    device: torch.device | None


def identify(thing: Callable | object) -> Identity:
    """What identifies a function or an object, as far as it can be found."""
    seen = _Seen()
    seen.look_into(thing, "")
    floating = {tensor.dtype for tensor in seen.tensors.values() if tensor.is_floating_point()}
    return Identity(
        digest(seen.settings),
        hash_weights(seen.tensors) if seen.tensors else None,
        " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floating)) or "unknown",
        next((tensor.device for tensor in seen.tensors.values()), None),
    )


@dataclass
class _Seen:
    """What was found up to now, by the path that leads there."""

    settings: dict = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)

    def look_into(self, thing, path: str) -> None:
        if id(thing) in self.ids:
            return
        self.ids.add(id(thing))
        self.settings[path] = name_function(thing)
        if isinstance(thing, nn.Module):
            kept = thing.state_dict() | dict(thing.named_buffers())  # also those that aren't saved
            self.tensors |= {f"{path}.{name}": value for name, value in kept.items() if torch.is_tensor(value)}
        if type(thing) is ZeroShotClassifier:
            self.settings[path] = [hash_configuration(thing), thing.class_names, thing.templates, thing.image_size]
        elif _package(thing) not in LIBRARIES:
            for name, value in kept_by(thing).items():
                self._note(value, f"{path}.{name}")

    def _note(self, value, path: str) -> None:
        if torch.is_tensor(value):
            self.tensors[path] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            self.tensors[path] = torch.from_numpy(value)
        elif _is_plain(value) or isinstance(value, torch.dtype):
            self.settings[path] = str(value) if isinstance(value, torch.dtype) else value
        elif callable(value) and not inspect.isclass(value) and not inspect.isbuiltin(value):
            if not inspect.isfunction(value) or _is_own(value):
                self.look_into(value, path)


def kept_by(thing) -> dict[str, object]:
    """What a function or an object computes with, by name, without what begins with an underscore."""
    if inspect.ismethod(thing):
        thing = thing.__self__
    if isinstance(thing, partial):
        kept = {"func": thing.func} | {f"argument {place}": value for place, value in enumerate(thing.args)}
        kept |= thing.keywords
    elif inspect.isfunction(thing):
        used, parameters = inspect.getclosurevars(thing), inspect.signature(thing).parameters.values()
        defaults = {key.name: key.default for key in parameters if key.default is not key.empty}
        kept = used.globals | used.nonlocals | defaults
    else:
        kinds = [kind for kind in type(thing).__mro__ if _package(kind) not in (*LIBRARIES, "hpt", "builtins")]
        of_class = [item for kind in reversed(kinds) for item in vars(kind).items()]  # also methods
        kept = dict(of_class) | (vars(thing) if hasattr(thing, "__dict__") else {})
        kept |= dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    public = {name: value for name, value in kept.items() if name[0] != "_" or name in ("__call__", "__init__")}
    return {name: value for name, value in sorted(public.items()) if name != "training"}


def _is_plain(value) -> bool:
    """Whether a value is one of JSON."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


def _is_own(function) -> bool:
    """Whether a function is of the user's own code, and not of hpt or an installed library."""
    file = Path(function.__code__.co_filename)
    return _package(function) != "hpt" and not any(file.is_relative_to(folder) for folder in INSTALLED)


def _package(thing) -> str:
    """The package that a class or a function was written in, or an object's class."""
    written = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    return (written.__module__ or "").partition(".")[0]
