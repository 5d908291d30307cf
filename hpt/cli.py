"""What all recipes share: settings from flat YAML and a command line, help, one line on stderr for what goes wrong.

A name given to `--config`, such as `cifar10`, is a file beside the recipe; anything else is a path.
"""

import errno
import inspect
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path

from huggingface_hub.utils import enable_progress_bars
from transformers.hf_argparser import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from hpt.errors import InputError, TrainingStopped, did_you_mean, list_known, message_of
from hpt.escaping import terminal
from hpt.radius import describe_length
from hpt.references import Reference
from hpt.yaml_files import read_yaml


WIDTH, COLUMN = 100, 34  # of what `--help` prints, and where its second column begins
NUMBERS = {"Fraction": "a number or a fraction, such as 1/255", "float": "a number", "int": "a whole number"}
MADE_BY_QUICKSTART = [f"outputs/quickstart/{name}" for name in ("target", "proxy", "robust")]
# What keeps other libraries' files from being written, and from being read too
UNWRITABLE, FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS), (errno.EACCES, errno.EPERM)
ERRORS = "HPT_ERRORS"  # the variable that names the folder for the errors of processes that were launched together


def parse_config(
    types: tuple[type, ...],
    default_config: str | Path | None = None,
    argv: list[str] | None = None,
    *,
    folder: Path | None = None,
    announce: bool = False,
):
    """Read `--config NAME_OR_FILE.yaml` (flat) and `--field value ...`, which overrides it, into dataclasses.

    `--help` prints the fields that the dataclasses define themselves, and `--help all` those they inherit too. Their
    order is that of their definition; a class attribute `help_groups` may name groups by their first fields.

    Args:
        types (`tuple[type, ...]`): Dataclasses to fill.
        default_config (`str` or `Path`, *optional*): The YAML file, or its name, used when `--config` isn't given.
        argv (`list[str]`, *optional*, defaults to `sys.argv[1:]`): Command line.
        folder (`Path`, *optional*): Where `--config NAME` is looked up: the recipe's own.
        announce (`bool`, *optional*, defaults to `False`): Print which settings differ from their defaults, once for
            all processes.

    Returns:
        `tuple`: one object per type, then the path of the YAML file or `None`.

    Raises:
        InputError: for an unreadable file, an unknown field (with the known ones), or a value of the wrong type.
    """
    arguments, _, config = read_arguments(types, default_config, argv, folder=folder)
    settings = parse_arguments(types, arguments)
    if announce and os.environ.get("RANK", "0") == "0":
        print(_describe_changes(settings, arguments, config))
    return (*settings, config)


def read_arguments(
    types: tuple[type, ...],
    default_config: str | Path | None = None,
    argv: list[str] | None = None,
    *,
    folder: Path | None = None,
    nested: tuple[str, ...] = (),
) -> tuple[list[str], dict, Path | None]:
    """The arguments that [`parse_config`] parses, those of the YAML file before those of the command line.

    Args:
        types, default_config, argv, folder: As of [`parse_config`].
        nested (`tuple[str]`, *optional*): Further fields of the YAML file, which hold more than a value or a list.

    Returns:
        `tuple`: the arguments, the nested fields as the file has them, and its path or `None`.

    Raises:
        InputError: for an unreadable file, or an unknown field.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--help" in argv or "-h" in argv:
        at = next(place for place, argument in enumerate(argv) if argument in ("--help", "-h"))
        everything = argv[at + 1 : at + 2] == ["all"]
        print(describe_fields(types, folder, default_config, everything=everything, nested=nested))
        sys.exit()
    config, argv = split_option(argv, "config", "a YAML file")
    config = _find_config(default_config if config is None else config, folder, types, nested)
    content = {} if config is None else _read_fields(config)
    further = {name: content.pop(name) for name in nested if name in content}
    from_file = as_arguments(content, types, config)
    for argument in argv:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0]
            if name in nested:
                raise InputError(f"{name} has fields of its own, and so stands in a YAML file, which --config names.")
            _check_known(name, types, "the command line")
    return from_file + argv, further, config


def parse_arguments(types: tuple[type, ...], arguments: list[str]) -> tuple:
    """Dataclasses from arguments such as `--field value`, of which the last of a field counts.

    Raises:
        InputError: for a value of the wrong type, or one that a dataclass refuses.
    """
    parser = HfArgumentParser(types, allow_abbrev=False)
    parser.error = _raise_input_error
    try:
        *settings, unread = parser.parse_args_into_dataclasses(
            arguments, look_for_args_file=False, return_remaining_strings=True
        )
        if unread:
            raise InputError(f"{unread[0]!r} belongs to no field: write --FIELD before it, or leave it out.")
        return tuple(settings)
    except InputError:
        raise
    except ValueError as error:  # from TrainingArguments
        raise InputError(f"Can't use the settings: {' '.join(str(error).split())}") from error


def _describe_changes(settings: list, arguments: list[str], config: Path | None) -> str:
    """The settings among the arguments that differ from their defaults, as a command line would give them."""
    given = {argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    given |= {name.removeprefix("no_") for name in given}
    changed = [
        f"--{field.name} {_as_written(getattr(part, field.name))}"
        for part in settings
        for field in fields(part)
        if field.name in given and "token" not in field.name and getattr(part, field.name) != _default(field)
    ]
    title = f"Settings that differ from the defaults{f', with {config.name}' if config else ''}:"
    wrapped = textwrap.wrap(
        " ".join(changed), WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join([title, *(wrapped or ["  none"])])


def _default(field: Field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; what the user or the training got wrong ends it with one line on stderr, without a traceback.

    Exit codes: 2 for an [`InputError`], 1 for [`TrainingStopped`], 75 after SIGTERM and a checkpoint, 130 for Ctrl-C.
    """
    disable_progress_bar()  # transformers' bars of reading and writing weights, which stay on the screen,
    enable_progress_bars()  # but not huggingface_hub's of downloads
    try:
        main()
        sys.stdout.flush()
    except (InputError, TrainingStopped) as error:
        _print_error(message_of(error))
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _print_error(f"The path {error.filename!r} is too long.")
            sys.exit(2)
        if error.errno not in (*UNWRITABLE, *FORBIDDEN):
            raise
        doing = "written" if error.errno in UNWRITABLE else "read or written"
        _print_error(f"{error.filename or 'The output'} can't be {doing}: {error.strerror}.")
        if error.filename is None:
            _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
            # gloo's threads take Python's lock to drop the last collective, and abort or hang a process that is ending
            time.sleep(1)


def _print_error(text: str) -> None:
    """Print the line on stderr, or leave it to [`hpt.processes.launch`], which prints once what many processes say."""
    line = terminal(text)
    if ERRORS in os.environ:
        with suppress(OSError):  # of a disk that is full there too
            Path(os.environ[ERRORS], os.environ["RANK"]).write_text(line, encoding="utf-8")
            return
    print(f"error: {line}", file=sys.stderr)


def _drop_output() -> None:
    """Send what is still to be printed nowhere: it would fail again as Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_quickstart(models: Iterable[Reference]) -> None:
    """Refuse models of the quickstart that aren't there yet, which recipes take unless others are given."""
    for model in models:
        if model.source in MADE_BY_QUICKSTART and not Path(model.source).exists():
            raise InputError(f"There is no {model.source} yet: run `hpt train`, which makes it, or give other models.")


def split_option(argv: list[str], name: str, value: str = "a value") -> tuple[str | None, list[str]]:
    """The last value of `--name VALUE` or `--name=VALUE`, if it is there, and the other arguments."""
    given, others, arguments = None, [], iter(argv)
    for argument in arguments:
        if argument == f"--{name}":
            given = next(arguments, None)
            if given is None:
                raise InputError(f"--{name} needs {value}.")
        elif argument.startswith(f"--{name}="):
            given = argument.partition("=")[2]
        else:
            others.append(argument)
    return given, others


# Settings


def _find_config(
    config: str | Path | None, folder: Path | None, types: tuple[type, ...], nested: tuple[str, ...]
) -> Path | None:
    """The file that is meant by a path, or by the name of one beside the recipe: `cifar10`, `study/vit_p8`."""
    text = str(config)
    if config is None or folder is None or text.endswith((".yaml", ".yml")):
        return config if config is None else Path(config)
    names = _names_of_configs(folder, types, nested)
    if not (folder / f"{text}.yaml").is_file():
        raise InputError(
            f"Unknown configuration {text!r}; {list_known(text, names)} Or give a path that ends in .yaml."
        )
    return folder / f"{text}.yaml"


def _names_of_configs(folder: Path, types: tuple[type, ...], nested: tuple[str, ...]) -> list[str]:
    """The YAML files beside a recipe that hold nothing but its fields, and one of its nested ones if it has some."""
    known = {field.name for kind in types for field in fields(kind) if field.init} | {*nested}
    held = {file: set(_field_names(file)) for file in sorted(folder.rglob("*.yaml"))}
    return [
        file.relative_to(folder).with_suffix("").as_posix()
        for file, names in held.items()
        if names <= known and (not nested or names & {*nested})
    ]


def _field_names(file: Path) -> list[str]:
    """The words before a colon at the beginning of a YAML file's lines, whether or not it can be read as YAML."""
    return re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)


def _read_fields(path: Path) -> dict:
    """The fields of a YAML file."""
    if not path.is_file():
        raise InputError(f"There is no configuration file {str(path)!r}.")
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold `field: value` lines.")
    return content


def as_arguments(content: dict, types: tuple[type, ...], where) -> list[str]:
    """Fields of a flat YAML file as command-line arguments: PyYAML alone would read `5e-2` and `1/255` as text.

    Args:
        content (`dict`): The fields, as the file has them.
        types (`tuple[type, ...]`): The dataclasses whose fields are known.
        where: What messages call the file, or the part of it.

    Raises:
        InputError: for an unknown field, an empty list, or what is neither a value nor a list of them.
    """
    arguments = []
    for name, value in content.items():
        if isinstance(value, dict):
            raise InputError(
                f"{where}: {name} has fields of its own ({', '.join(map(str, value))}), but recipes are flat: a line "
                "`field: value` for each."
            )
        _check_known(str(name), types, where)
        if value == []:
            raise InputError(f"{where}: {name} is an empty list: give a value, or leave it out.")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if not isinstance(item, str | int | float | date) or (isinstance(item, str) and item.startswith("-")):
                raise InputError(
                    f"{where}: {name} can't be {item!r}, but must be a number, a text that begins with no dash, or a "
                    "list of them."
                )
        arguments += [f"--{name}", *map(str, values)] if value is not None else []
    return arguments


def _check_known(name: str, types: tuple[type, ...], where) -> None:
    """Refuse an unknown field: with the one that is near, or else with all that the dataclasses define themselves."""
    known = {field.name for kind in types for field in fields(kind) if field.init}
    field_name = name.replace("-", "_")
    if field_name in known or (field_name.removeprefix("no_") in known and where == "the command line"):
        return
    hint = did_you_mean(field_name, known)
    if hint != ".":
        raise InputError(f"Unknown field {name!r} in {where}{hint}")
    bases = [kind.__base__ for kind in types if is_dataclass(kind.__base__)]
    own = known - {field.name for base in bases for field in fields(base)}
    rest = "".join(f", and those of {base.__name__}" for base in bases)
    raise InputError(f"Unknown field {name!r} in {where}. Known: {', '.join(sorted(own))}{rest}.")


def _raise_input_error(message: str):
    """Raise what argparse says, in our words where a value is of the wrong type."""
    option, _, problem = re.sub(r"^argument (--\w+)(/--[\w-]+)?: ", r"\1 ", message).partition(" ")
    if wrong := re.fullmatch(rf"invalid ({'|'.join(NUMBERS)}) value: (.*)", problem):
        raise InputError(f"{option} is {wrong[2]}, but must be {NUMBERS[wrong[1]]}.")
    if wrong := re.fullmatch(r"Truthy value expected: got (.*) but expected .*", problem):
        raise InputError(f"{option} is {wrong[1]!r}, but must be True or False.")
    if problem in ("expected one argument", "expected at least one argument"):
        raise InputError(f"{option} is given without a value: write one behind it.")
    _, is_missing, missing = message.partition("the following arguments are required: ")
    if is_missing:
        raise InputError(f"Needed, but not given: {re.sub(r'/--[^ ,]+', '', missing)}.")
    raise InputError(f"Can't read the settings: {message}")


# Help


def describe_fields(
    types: tuple[type, ...],
    folder: Path | None,
    default_config: str | Path | None,
    everything: bool,
    nested: tuple[str, ...] = (),
) -> str:
    """What `--help` prints: groups of fields with their help and defaults, within [`WIDTH`] columns."""
    parts = [
        f"usage: {Path(sys.argv[0]).name} [--config NAME] [--FIELD VALUE ...]",
        textwrap.fill(inspect.getmodule(types[0]).__doc__.strip().splitlines()[0], WIDTH),
        _describe_config_option(types, folder, default_config, nested),
    ]
    for kind in types:
        own = list(inspect.get_annotations(kind))
        by_name = {field.name: field for field in fields(kind) if field.init}
        parts += [_describe_group(title, [by_name[name] for name in names]) for title, names in _groups(kind, own)]
        inherited = [field for name, field in by_name.items() if name not in own]
        if inherited and everything:
            parts.append(_describe_group(f"Of transformers' {kind.__base__.__name__}", inherited))
        elif inherited:
            text = (
                f"Beside these, the {len(inherited)} other fields of transformers' {kind.__base__.__name__}, such as "
                "output_dir, seed, bf16, use_cpu, gradient_accumulation_steps, logging_steps, save_strategy and "
                "report_to: `--help all` prints them."
            )
            parts.append(textwrap.fill(text, WIDTH))
    return "\n\n".join(parts)


def _groups(kind: type, names: list[str]) -> list[tuple[str, list[str]]]:
    """Titles and the names below them: the dataclass's own groups, or one with the first line of its docstring."""
    titles = getattr(kind, "help_groups", {names[0]: kind.__doc__.strip().splitlines()[0].removesuffix(".")})
    starts = [names.index(first) for first in titles]
    return [
        (title, names[start:end])
        for title, start, end in zip(titles.values(), starts, [*starts[1:], len(names)], strict=True)
    ]


def _describe_config_option(
    types: tuple[type, ...], folder: Path | None, default_config: str | Path | None, nested: tuple[str, ...]
) -> str:
    names = _names_of_configs(folder, types, nested) if folder else []
    text = "YAML file with `field: value` lines"
    text += "".join(f", and `{name}:` with lines of its own" for name in nested)
    text += f", or one of these by name: {', '.join(names)}" if names else ""
    text += f" (default: {Path(default_config).stem})" if default_config else ""
    return _describe_option("config", text)


def _describe_group(title: str, listed: list[Field]) -> str:
    return "\n".join([f"{title}:", *(_describe_option(field.name, _describe_field(field)) for field in listed)])


def _describe_option(name: str, text: str) -> str:
    """`  --name   text`, with the text in a column of its own."""
    start = f"  --{name}"
    indent = COLUMN * " "
    lines = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"{start:<{COLUMN}}{lines[COLUMN:]}" if len(start) < COLUMN else f"{start}\n{lines}"


def _describe_field(field: Field) -> str:
    text = " ".join(str(field.metadata.get("help", "")).split()).replace("%%", "%")  # as argparse wants it
    if field.default is MISSING and field.default_factory is MISSING:
        return f"{text} (required)"
    default = _default(field)
    return text if default in (None, [], "") else f"{text} (default: {_as_written(default)})"


def _as_written(value) -> str:
    """A default as a person would write it: `1/255`, `5e-05`, `a b`."""
    if isinstance(value, list | tuple):
        return " ".join(map(_as_written, value))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        text = f"{value:g}"
        return text if float(text) == value else describe_length(value)
    return repr(value) if " " in str(value) else str(value)
