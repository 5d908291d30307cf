"""What all recipes share: settings from flat YAML and a command line, and one line on stderr for what goes wrong."""

import difflib
import errno
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments

from hpt.errors import InputError, TrainingStopped, one_line


def parse_config(types: tuple[type, ...], default_config: str | Path | None = None, argv: list[str] | None = None):
    """Read `--config FILE.yaml` (flat) and `--field value ...`, which overrides it, into dataclasses.

    Args:
        types (`tuple[type, ...]`): Dataclasses to fill.
        default_config (`str` or `Path`, *optional*): The YAML file used when `--config` isn't given.
        argv (`list[str]`, *optional*, defaults to `sys.argv[1:]`): Command line.

    Returns:
        `tuple`: one object per type, then the path of the YAML file or `None`.

    Raises:
        InputError: for an unreadable file, an unknown field (with the known ones), or a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config = default_config
    argv = [part for one in argv for part in (one.split("=", 1) if one.startswith("--config=") else [one])]
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise InputError("--config needs a YAML file.")
        config = argv[at + 1]
        del argv[at : at + 2]
    parser = HfArgumentParser(types, allow_abbrev=False)
    known = {one.name for kind in types for one in fields(kind) if one.init}
    from_file = _yaml_as_arguments(Path(config), known) if config is not None else []
    for argument in argv:
        if argument.startswith("--"):
            _check_known(argument[2:].partition("=")[0], known, "the command line")
    parser.error = _raise_input_error
    try:
        return (*parser.parse_args_into_dataclasses(from_file + argv, look_for_args_file=False), config)
    except InputError:
        raise
    except ValueError as error:  # from TrainingArguments
        raise InputError(f"Can't use the settings: {' '.join(str(error).split())}") from error


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe; what the user or the training got wrong ends it with one line on stderr, without a traceback.

    Exit codes: 2 for an [`InputError`], 1 for [`TrainingStopped`], 75 after SIGTERM and a checkpoint.
    """
    try:
        main()
    except (InputError, TrainingStopped) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"error: {error.filename or 'The output'} can't be written: {error.strerror}.", file=sys.stderr)
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():  # gloo's threads take Python's lock to drop the last collective, and
            time.sleep(1)  # abort or hang a process that is ending by then


def _yaml_as_arguments(path: Path, known: set[str]) -> list[str]:
    """A flat YAML file as command-line arguments: PyYAML alone would read `5e-2` and `1/255` as text."""
    import yaml

    if not path.is_file():
        raise InputError(f"There is no configuration file {str(path)!r}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} isn't valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold `field: value` lines.")
    arguments = []
    for name, value in content.items():
        _check_known(str(name), known, path)
        if isinstance(value, dict):
            raise InputError(f"{path}: {name} has fields of its own, but recipes are flat.")
        if value is not None:
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *(str(one) for one in values)]
    return arguments


def _check_known(name: str, known: set[str], where) -> None:
    field_name = name.replace("-", "_")
    if field_name in known or (field_name.removeprefix("no_") in known and where == "the command line"):
        return
    if field_name in ("help", "h"):
        return
    of_trainer = {one.name for one in fields(TrainingArguments) if one.init}
    own, rest = (known - of_trainer, ", and those of TrainingArguments") if of_trainer <= known else (known, "")
    close = difflib.get_close_matches(field_name, known, n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    raise InputError(f"Unknown field {name!r} in {where}:{hint} Known: {', '.join(sorted(own))}{rest}.")


def _raise_input_error(message: str):
    raise InputError(f"Can't read the settings: {message}")
