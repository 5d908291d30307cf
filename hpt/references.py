"""How texts name models and benchmarks: `NAME=SOURCE@REVISION:key=value,...`, parsed once, where a text enters."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from os.path import exists, expanduser
from pathlib import Path

from hpt.errors import InputError
from hpt.escaping import one_line


WITH_SETTINGS = re.compile(r"(.*?)(?::(\w+=.*))?", re.DOTALL)
FUNCTION = re.compile(r"(.+\.py):\w+", re.DOTALL)  # in a file
LONGEST_NAME = 255
IMAGE_SIZE = "image_size"  # the setting of any model
FOLDER = "local-dir:"  # as open_clip writes it before a folder
# What can be said of a model that is converted, as `hpt.models.conversion.options` reads it
STATED = ("base", "activation", "heads", "text_heads", "image_mean", "image_std", "tokenizer")
BETWEEN_SETTINGS = re.compile(r",(?=\w+=)")  # a comma may stand in a prompt template too


@dataclass(frozen=True)
class Reference:
    """A model or benchmark as a command line names it: `NAME=SOURCE@REVISION:key=value,...`, or a part of that.

    `str` gives the text back, with `~` written out.

    Args:
        name (`str`): What rows and messages call it.
        source (`str`, *optional*): A path, or an id on the Hub; `None` for a benchmark that is read by its record.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        settings (`dict[str, str]`, *optional*): What stands behind the colon.
        named (`bool`, *optional*, defaults to `True`): Whether the text says the name, or it comes from the source.
    """

    name: str
    source: str | None = None
    revision: str | None = None
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    named: bool = True

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """What a text names; what is on the disk is a path as it stands, whatever `=`, `@` and `:` it has, also before
        the name of a function, `FILE.py:FUNCTION`.

        Where a path can stand, `~` is the home folder, as in a shell.
        """
        text = expanduser(text)
        code = FUNCTION.fullmatch(text)
        if exists(text) or (code and exists(code[1])):
            return cls(text, text, named=False)
        name, equals, path = text.partition("=")
        if equals and ":" not in name and exists(expanduser(path)):
            return cls(name, expanduser(path))
        head, listed = WITH_SETTINGS.fullmatch(text).groups()
        items = [item.split("=", 1) for item in BETWEEN_SETTINGS.split(listed)] if listed else []
        settings = {key: expanduser(value) for key, value in items}
        name, equals, place = head.partition("=")
        if equals and not exists(head):
            return cls(name, settings=settings).at(place)
        return cls(head, settings=settings, named=False).at(head)

    def at(self, place: str) -> "Reference":
        """The same, to be read from a path or from `ID` or `ID@REVISION` on the Hub."""
        place = expanduser(place)
        source, _, revision = (place, "", "") if exists(place) else place.partition("@")
        return replace(self, source=source, revision=revision or None)

    @property
    def place(self) -> str | None:
        """Where it is read from, as messages say it: its source, with `@REVISION` if it has one."""
        return f"{self.source}@{self.revision}" if self.revision else self.source

    def check_revision(self) -> None:
        """Refuse a revision of what lies on this machine: only the Hub keeps several.

        Raises:
            InputError: if there is one.
        """
        if self.revision and exists(expanduser(self.source.removeprefix(FOLDER))):
            raise InputError(
                f"{self.place!r} asks for the revision {self.revision}, but {self.source} lies on this machine and "
                "has none: leave it out."
            )

    def __str__(self) -> str:
        return self._write(self.place, self.settings)

    def without_local_paths(self) -> str:
        """Its text for other machines, with nothing but the last part of each local path: `cifar10=PATH/copy`."""
        settings = {key: _without_folder(value) for key, value in self.settings.items()}
        return self._write(self.place and _without_folder(self.place), settings)

    def _write(self, place: str | None, settings: dict[str, str]) -> str:
        named = self.name if place is None else f"{self.name}={place}"
        listed = ",".join(f"{key}={value}" for key, value in settings.items())
        return (named if self.named else place) + (f":{listed}" if listed else "")


def _without_folder(text: str) -> str:
    """`PATH/cifar10` for a local path to that, and any other text as it is."""
    path = text.removeprefix(FOLDER)
    local = path != text or Path(path).is_absolute() or path.startswith(("./", "../", "~"))
    local = local or exists(path) or exists(path.rpartition("@")[0])  # behind a file may stand what pins its content
    return f"PATH/{Path(path).name}" if local else text


def parse_model(text: str, loaded: bool = False) -> Reference:
    """A model as recipes name it, `NAME=PATH`, `PATH` or `ID@REVISION`.

    Args:
        text (`str`): What names it.
        loaded (`bool`): Whether it will be loaded, and so can have another input size, as in `PATH:image_size=336`,
            and what a checkpoint of another format doesn't say, as in `PATH.pt:base=ID,activation=gelu`.

    Raises:
        InputError: for a setting that it can't have, or a size that is no number.
    """
    model = Reference.parse(text)
    for key, value in model.settings.items():
        if not loaded:
            raise InputError(f"{text!r} sets {key!r}, but a model has no settings.")
        if key not in (IMAGE_SIZE, *STATED):
            known = f"{IMAGE_SIZE} can be set, and of one that is converted {', '.join(STATED)}"
            raise InputError(f"{text!r} sets {key!r}, but of a model only {known}.")
        if key == IMAGE_SIZE and (not value.isdecimal() or int(value) == 0):
            raise InputError(f"{text!r} sets {IMAGE_SIZE} to {value!r}, but must say a number of pixels.")
    check_names([model.name])
    return model


def check_names(names: Iterable[str]) -> None:
    """Refuse names that users give, or that come from a path, which tables couldn't show on a line, or tell apart.

    Raises:
        InputError: for the first that is blank or too long, has a character that can't be seen, or is there twice.
    """
    names = list(names)
    for name in names:
        if name != name.strip() or not name or one_line(name) != name:
            raise InputError(
                f"The name {name!r} is blank, or has spaces around it or characters that can't be seen: give another, "
                "as NAME=PATH."
            )
        if len(name) > LONGEST_NAME:
            raise InputError(
                f"The name {name[:40]!r}... has {len(name)} characters: give a shorter one, as NAME=PATH."
            )
        if names.count(name) > 1:
            raise InputError(f"{name!r} is given twice: rows of the two couldn't be told apart.")
