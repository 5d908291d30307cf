"""A classifier out of a Python file of the user's, as `--models my_defence.py:make` names it.

    def make(class_names, template, device):  # each of them where it is wanted, by its name
        return lambda images: ...  # (batch, 3, height, width) in [0, 1] -> (batch, len(class_names))

A function that takes `class_names` is called for the classes of each benchmark, and gives a [`Classifier`]. Without,
it is called once, and gives a [`Classifier`] over the classes of every benchmark, or an [`OpenClassifier`]. `template`
is the benchmark's prompt template, or several, or `None`; `device` is where the evaluation computes.

Only files on this machine are read, and to read one is to run its code: [`describe_code`] says so before.
"""

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from hpt.classifiers import Classifier
from hpt.errors import InputError, did_you_mean_path, failures_explained, list_known
from hpt.escaping import one_line
from hpt.evaluation.functions import as_subject
from hpt.evaluation.subject import Evaluated
from hpt.references import Reference


FORM = "FILE.py:FUNCTION"
CODE = re.compile(r"(.+?\.py)(?::(.*))?", re.DOTALL)


def is_code(model: Reference) -> bool:
    """Whether a model is named as a function in a Python file, or means to be."""
    if model.source is None or CODE.fullmatch(model.source) is None:
        return False
    file, function = _place(model)
    return function is not None or file.is_file()  # folders and Hub ids can end in .py too


def check_code(model: Reference) -> None:
    """Refuse what can't be run, without running it.

    Raises:
        InputError: for a file that isn't there or isn't Python, for what names no function in it, and for settings
            and revisions, which it can't have.
    """
    file, function = _place(model)
    if model.revision or model.settings:
        raise InputError(f"{str(model)!r} is a function in a local file, which has no revision and no settings.")
    if not file.is_file():
        raise InputError(f"Can't load the model {model.source!r}: there is no file {file}{did_you_mean_path(file)}")
    if not (function or "").isidentifier():
        raise InputError(f"Can't load the model {model.source!r}: give a function in that file, as {FORM}.")
    _compile(file, file.read_bytes())


def describe_code(model: Reference) -> str:
    """What is said before a file's code runs."""
    file, function = _place(model)
    return one_line(f"{model.name} is made by {function} in {file}: the code in that file is run.")


@contextmanager
def failures_located(models: Iterable[Reference]) -> Iterator[None]:
    """Within, what fails in the files of models becomes a line that says where.

    Classifiers are called long after they were made, by attacks that know nothing of files.

    Raises:
        InputError: naming file and line.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        for file in {_place(model)[0] for model in models if is_code(model)}:
            if _lines_in(file, error):
                with _failures_located(file):
                    raise
        raise


def load_code(model: Reference, device: torch.device) -> Evaluated:
    """Run a Python file, and give the classifier that its function makes.

    The folder of the file is where Python looks last for what it imports. Of the file itself, exactly the bytes run
    whose hash identifies the classifier.

    Raises:
        InputError: for what can't be run, with the line of the file at fault; a function that isn't there; and what it
            gives that is no classifier.
    """
    file, function = _place(model)
    content = file.read_bytes()
    make = _find(_run(file, content), function, file)
    identity = _hash(content + function.encode())
    over_classes = OverClasses(make, device, file)
    made = over_classes if over_classes.takes_classes else over_classes.call()
    return as_subject(made, model.name, device, identity, what=f"result of {model.source}")


@dataclass
class OverClasses:
    """A user's function as an [`OpenClassifier`]."""

    make: Callable
    device: torch.device
    file: Path

    @property
    def takes_classes(self) -> bool:
        return "class_names" in self._parameters

    @property
    def _parameters(self) -> set[str]:
        return set(inspect.signature(self.make).parameters)

    def with_classes(self, class_names: list[str], template: str | list[str] | None = None) -> Classifier:
        return self.call(class_names=class_names, template=template)

    def call(self, **offered):
        """What the function gives for those of its arguments that it takes."""
        offered |= {"device": self.device}
        self._check_wanted(offered)
        with _failures_located(self.file):
            return self.make(**{name: value for name, value in offered.items() if name in self._parameters})

    def _check_wanted(self, offered: dict) -> None:
        parameters = inspect.signature(self.make).parameters.values()
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = {each.name for each in parameters if each.default is each.empty and each.kind not in optional}
        if unknown := needed - offered.keys():
            raise InputError(
                f"The function in {self.file} needs {', '.join(sorted(unknown))}, but it can only be given "
                "class_names and with it template, and device: give others a default."
            )


def _place(model: Reference) -> tuple[Path, str | None]:
    """The file that a model is named by, and its function."""
    file, function = CODE.fullmatch(model.source).groups()
    return Path(file), function


def _compile(file: Path, content: bytes):
    try:
        return compile(content, str(file), "exec")
    except (SyntaxError, ValueError) as error:  # the latter of zeros
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise InputError(f"{file}{where} isn't Python: {getattr(error, 'msg', error)}.") from error


def _run(file: Path, content: bytes) -> dict:
    """What a file's code defines, by name; it runs once, however many functions of it are named."""
    path = file.resolve()
    name = f"user_code_{file.stem}_{_hash(str(path).encode() + content)}"  # which hides no other module
    if name in sys.modules:
        return vars(sys.modules[name])
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # where dataclasses and pickles look it up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with _failures_located(file):
            exec(_compile(file, content), vars(module))
    except InputError:
        del sys.modules[name]
        raise
    return vars(module)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _find(defined: dict, function: str, file: Path) -> Callable:
    if not callable(defined.get(function)):
        own = [name for name, value in defined.items() if callable(value) and value.__module__ == defined["__name__"]]
        raise InputError(f"{file} has no function {function!r}; {list_known(function, own)}")
    return defined[function]


@contextmanager
def _failures_located(file: Path) -> Iterator[None]:
    """Within, what the code in a file raises becomes a line that says where it did."""
    try:
        with failures_explained(f"The code in {file} fails"):
            yield
    except InputError as error:
        if lines := _lines_in(file, error.__cause__):
            raise InputError(f"{str(error).rstrip('.')}, in line {lines[-1]}.") from error.__cause__
        raise


def _lines_in(file: Path, error: BaseException | None) -> list[int]:
    """The lines of a file that an error passed."""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if frame.filename == str(file)]
