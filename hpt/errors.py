"""What the user got wrong, said in one line: what, where, and what would be right."""

import difflib
import os
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path


# Tokens of the Hub, in any bytes; `hf_` comes first, so that they are searched for at 2 GB/s
TOKEN = re.compile(rb"hf_(?:(?:oauth|jwt)_[A-Za-z0-9._-]{30,}|[A-Za-z0-9]{30,})")


class InputError(ValueError):
    """A mistake in what the user gave; recipes print it without a traceback and exit with 2.

    It says so in one line, below which a list may stand.
    """


class TrainingStopped(RuntimeError):
    """Work can't go on, for a reason said in one line; recipes print it without a traceback and exit with 1."""


class PushFailed(TrainingStopped):
    """The Hub couldn't be reached, or couldn't serve; what was to be pushed lies complete on the disk."""


class WriteFailed(TrainingStopped):
    """A file couldn't be written, for a reason such as a full disk; the line names both."""


class WorkerDied(TrainingStopped):
    """A process of a data loader has died; what was written before lies intact on the disk."""


class MissingSplit(InputError):
    """A dataset that is there lacks the split that is asked for."""


class MissingLabels(InputError):
    """A dataset that is there has images, but no labels that can be used; some objectives do without."""


def check_known(what: str, value: str, known: Collection[str]) -> None:
    """Refuse a name that isn't one of the known ones, which are listed."""
    if value not in known:
        raise InputError(f"Unknown {what} {value!r}; {list_known(value, known)}")


def list_known(name: str, known: Collection[str]) -> str:
    """`known: pgd, cw. Did you mean pgd?`: all known names, and the one that is closest to what was given, if any."""
    close = closest(name, known)
    hint = f" Did you mean {close}?" if close else ""
    return f"known: {', '.join(known) or 'none'}.{hint}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled most like another, in upper or lower case, if one is."""
    in_lower_case = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), in_lower_case, n=1)
    return in_lower_case[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`": did you mean X?"` for the known name that is closest, or a full stop if none is close."""
    close = closest(name, known)
    return f": did you mean {close}?" if close else "."


def did_you_mean_path(path: str) -> str:
    """[`did_you_mean`] among what lies in the folder in which there is no such path, as a path."""
    folder, name = Path(path).parent, Path(path).name
    others = {*os.listdir(folder)} - {name} if folder.is_dir() else []  # itself it is where it is of another kind
    close = closest(name, others)
    return f": did you mean {folder / close}?" if close else "."


def check_at_least(least: int, **settings: int) -> None:
    """Refuse settings that aren't whole numbers of at least so much, given by their names."""
    for name, value in settings.items():
        if not isinstance(value, Integral) or value < least:
            raise InputError(f"{name} is {value!r}, but must be a whole number of at least {least}.")


@contextmanager
def failures_explained(what: str) -> Iterator[None]:
    """Within, what a user's own code raises, which may be anything, becomes a line that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...").rstrip(".: ")
        raise InputError(f"{what}: {reason}.") from error


def causes(error: BaseException) -> list[BaseException]:
    """An error, what caused it, and so on."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain


def message_of(error: Exception) -> str:
    """What an error says, without the traceback that a data loader's worker puts before it."""
    return re.split(r"^hpt\.errors\.\w+: ", str(error).strip(), flags=re.MULTILINE)[-1]


def without_secrets(text: str) -> str:
    """A message that others wrote, with `***` for tokens of the Hub and for passwords in URLs."""
    from huggingface_hub import get_token

    text = re.sub(TOKEN.pattern.decode(), "***", text)
    text = text.replace(token, "***") if (token := get_token()) else text
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def explain_hub_error(kind: str, name: str, error: BaseException) -> InputError:
    """Turn what a failed download raised into one line that says what to do.

    Args:
        kind (`str`): What was being loaded: `"model"` or `"dataset"`.
        name (`str`): Hub id or local path that was asked for.
        error (`BaseException`): What loading raised; its causes are looked at too.

    Returns:
        [`InputError`]: to be raised from `error`.
    """
    names = {base.__name__ for cause in causes(error) for base in type(cause).__mro__}
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    if "GatedRepoError" in names or ("gated" in str(error) and "RepositoryNotFoundError" not in names):
        hint = f"it is gated: accept its terms at {page}, then run `hf auth login` or set HF_TOKEN"
    elif names & {
        "RepositoryNotFoundError",
        "DatasetNotFoundError",
        "RevisionNotFoundError",
        "DataFilesNotFoundError",
    }:
        hint = (
            "no such Hub id or local folder, or it is private: check the spelling, give a local path, or log in "
            "with `hf auth login`"
        )
    elif "HFValidationError" in names:
        hint = "there is no such local folder, and it is no Hub id, which is OWNER/NAME"
    elif names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "TransportError"}:
        from huggingface_hub.constants import ENDPOINT

        hint = (
            "it is no local folder, isn't in the cache, and the Hub can't be reached at "
            f"{without_secrets(ENDPOINT)}: go online once, or give a path"
        )
    else:
        reason = textwrap.shorten(str(deepest), 300, placeholder=" ...").rstrip(".") or "no message"
        hint = f"{type(deepest).__name__}: {without_secrets(reason)}"
    return InputError(f"Can't load the {kind} {name!r}: {hint}.")
