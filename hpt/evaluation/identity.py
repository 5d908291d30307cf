"""What identifies any function of images, so that results of another one are never gone on with under its name.

identify(defence)  # Identity(configuration="0123456789abcdef", weights="fedcba9876543210", dtype="float32", ...)

Code itself isn't looked at, but what it computes with: of an object its attributes and those of its class, of a
function the variables around it that it uses and its defaults, and so on in what these hold, in lists and dicts too.
Tensors give the weights. Numbers, texts and truth values give the configuration, with the names of classes and
functions; those whose name begins with an underscore don't count, nor do those of modules of torch and transformers.
"""

import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace

import numpy as np
import torch
from torch import nn

from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.identity import hash_configuration
from hpt.models.proxies import name_function
from hpt.models.weights import hash_weights


OF_MODULES = {*vars(nn.Module())}  # where modules keep what `state_dict` has, and whether they train
LIBRARIES = ("torch", "transformers")  # of whose modules attributes differ between versions
NOT_OWN = {*LIBRARIES, "hpt", *sys.stdlib_module_names}
INSTALLED = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


@dataclass(frozen=True)
class Identity:
    """What is known of a function or an object.

    Args:
        configuration (`str`): Hash of the classes, functions and plain values that it computes with.
        weights (`str`, *optional*): Hash of its tensors; `None` if it has none.
        dtype (`str`): Of the floating-point tensors; `"unknown"` if there are none.
        device (`torch.device`, *optional*): Of the largest tensor.
        modules (`list[nn.Module]`): That were found.
    """

    configuration: str
    weights: str | None
    dtype: str
    device: torch.device | None
    modules: list[nn.Module] = field(compare=False, repr=False)


def identify(thing: Callable | object) -> Identity:
    """What identifies a function or an object, as far as it can be found."""
    found = _Found()
    found.look_into(thing, "")
    floating = {tensor.dtype for tensor in found.tensors.values() if tensor.is_floating_point()}
    largest = max(found.tensors.values(), key=torch.Tensor.numel, default=None)
    return Identity(
        digest(found.settings),
        hash_weights(found.tensors) if found.tensors else None,
        " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floating)) or "unknown",
        None if largest is None else largest.device,
        [thing for thing in found.seen.values() if isinstance(thing, nn.Module)],
    )


@dataclass
class _Found:
    """What was found up to now, by the path that leads there."""

    settings: dict = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: dict[int, object] = field(default_factory=dict)  # by id, which is theirs as long as they are kept

    def look_into(self, thing, path: str) -> None:
        if id(thing) in self.seen:
            return
        self.seen[id(thing)] = thing
        self.settings[path] = name_function(thing)
        if isinstance(thing, nn.Module):
            kept = thing.state_dict() | dict(thing.named_buffers())  # also those that aren't saved
            self.tensors |= {f"{path}.{name}": value for name, value in kept.items() if torch.is_tensor(value)}
        if inspect.ismethod(thing):
            self.look_into(thing.__self__, f"{path}.self")
        elif type(thing) is ZeroShotClassifier:
            self.settings[path] = [hash_configuration(thing), thing.class_names, thing.templates, thing.image_size]
        elif _package(thing) not in LIBRARIES:
            for name, value in kept_by(thing).items():
                self._note(value, f"{path}.{name}", is_private=name[0] == "_")

    def _note(self, value, path: str, is_private: bool) -> None:
        """Take what something holds under a name; of what is private, the tensors."""
        if torch.is_tensor(value):
            self.tensors[path] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            self.tensors[path] = torch.from_numpy(np.array(value, order="C"))
        elif _is_plain(value):
            self.settings |= {} if is_private else {path: value}
        elif isinstance(value, torch.dtype | np.generic | Enum):
            self.settings |= {} if is_private else {path: str(value)}
        elif isinstance(value, list | tuple | dict):
            for place, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._note(item, f"{path}.{place}", is_private)
        elif _is_looked_into(value):
            self.look_into(value, path)


def kept_by(thing) -> dict[str, object]:
    """What a function or an object computes with, by name."""
    if isinstance(thing, partial):
        kept = {"func": thing.func} | {f"argument {place}": value for place, value in enumerate(thing.args)}
        kept |= thing.keywords
    elif inspect.isfunction(thing):
        parameters = inspect.signature(thing).parameters.values()
        defaults = {key.name: key.default for key in parameters if key.default is not key.empty}
        kept = _variables(thing) | vars(thing) | defaults
    else:
        kinds = [kind for kind in type(thing).__mro__ if _package(kind) not in NOT_OWN]
        of_class = [item for kind in reversed(kinds) for item in vars(kind).items()]  # also methods
        kept = dict(of_class) | (vars(thing) if hasattr(thing, "__dict__") else {})
        slots = [name for name, value in of_class if inspect.ismemberdescriptor(value)]
        kept |= {name: getattr(thing, name, None) for name in slots}
        kept |= dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    unseen = OF_MODULES | _follows_from_the_rest(type(thing), kept)
    return {name: value for name, value in sorted(kept.items()) if name not in unseen}


def _follows_from_the_rest(kind: type, names: Iterable[str]) -> set[str]:
    """Names of what Python itself keeps, of cached properties, and of what objects of hpt keep for themselves."""
    of_hpt = any(_package(base) == "hpt" for base in kind.__mro__)
    cached = {
        name for base in kind.__mro__ for name, value in vars(base).items() if isinstance(value, cached_property)
    }
    return cached | {name for name in names if name.startswith("_" if of_hpt else "__")} - {"__call__", "__init__"}


def _variables(function: FunctionType) -> dict[str, object]:
    """The variables around a function that it, or a function inside it, uses."""
    used = {name for code in _codes(function.__code__) for name in code.co_names}
    around = inspect.getclosurevars(function).nonlocals
    return {name: function.__globals__[name] for name in sorted(used & set(function.__globals__))} | around


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_looked_into(value) -> bool:
    """Whether a value may hold weights or settings: what can be called, and other objects of the user's own code."""
    if inspect.isclass(value) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return False
    if inspect.isfunction(value):
        return _package(value) != "hpt" and _is_own(value.__code__.co_filename)
    return callable(value) or isinstance(value, SimpleNamespace) or _is_of_own_class(value)


def _is_of_own_class(value) -> bool:
    """Whether an object's class is of the user's own code, and not of hpt, Python or an installed library."""
    module = sys.modules.get(type(value).__module__)
    if module is None or _package(value) in NOT_OWN:
        return False
    return _is_own(getattr(module, "__file__", None) or "")


def _is_own(file: str) -> bool:
    """Whether code is the user's own, and not of an installed library."""
    return not any(Path(file).is_relative_to(folder) for folder in INSTALLED)


def _is_plain(value) -> bool:
    """Whether a value is one of JSON."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


def _package(thing) -> str:
    """The package that a class or a function was written in, or an object's class."""
    written = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    return (getattr(written, "__module__", None) or "").partition(".")[0]  # those of C have none
