"""What loading raises, as one line that says what to do."""

import logging
from contextlib import contextmanager
from pathlib import Path

from hpt.errors import InputError, explain_hub_error
from hpt.models.files import own_code, refuse_own_code
from hpt.models.sources import similar_folder


@contextmanager
def failures_explained(kind: str, name: str, settings: dict[str, dict] | None = None):
    """Within, what loading raises becomes a line, which names the folder that may be meant, or code that is missing.

    Over damaged files, transformers and its libraries raise errors of any kind.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not Path(name).is_dir() and (near := similar_folder(name)):
            raise InputError(f"Can't load the {kind} {name!r}: no such folder; did you mean {near}?") from error
        if code := own_code(settings or {}):
            raise refuse_own_code(kind, name, code) from error
        raise explain_hub_error(kind, name, error) from error


@contextmanager
def without_report():
    """Within, transformers prints no table of the weights that don't fit: they are refused in a line."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
