"""Checkpoints of other formats as folders that transformers loads: each converted once, and kept.

    folder = cached_conversion("hf-hub:OWNER/NAME", None, ConversionOptions(), load_dual_encoder)

It is kept by the hashes of all that it was made from, in `hpt/converted` of the Hub's home (`HF_HOME`), with what
[`describe_conversion`] says of it. Several processes that want the same one wait for the first, which converts it.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os.path import abspath, expanduser
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError

import hpt
from hpt.environment import describe_versions
from hpt.errors import InputError
from hpt.escaping import file_name
from hpt.files import check_folder, filled_at_once, named_if_it_fails, write_file
from hpt.json_files import digest, sealed
from hpt.locks import hold_folder
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.conversion import NOT_COMPARED, Base, Checkpoint, Converted, Stated, convert, read_checkpoint
from hpt.models.conversion.options import ConversionOptions
from hpt.models.failures import failures_explained
from hpt.models.files import CONFIG, read_weight_headers
from hpt.models.identity import hash_configuration
from hpt.models.origin import CONVERSION_FILE, describe_parity
from hpt.models.sources import HUB, check_source, is_checkpoint
from hpt.models.weights import hash_weights
from hpt.references import FOLDER, Reference


logger = logging.getLogger(__name__)
Load = Callable[[str, str | None], tuple]  # such as `load_dual_encoder`


def check_model(reference: Reference) -> None:
    """Refuse what a text names if it can be no model, or can't be converted as the text says; nothing is loaded.

    Raises:
        InputError: as of [`check_source`], or for what is said of a model that says it itself.
    """
    check_source(reference.source)
    reference.check_revision()
    check_options(reference.source, ConversionOptions.parse(reference.settings))


def check_options(source: str, options: ConversionOptions) -> None:
    """Refuse options of a model that isn't converted, and a base that can be none."""
    if options.given and not is_checkpoint(source):
        raise InputError(
            f"{next(iter(options.given))} is given of {source}, but a model in the format of transformers says that "
            "itself: leave it out."
        )
    if options.base is not None:
        check_source(options.base_reference.source)


@dataclass(frozen=True)
class Parts:
    """What a model is converted from.

    Args:
        checkpoint ([`Checkpoint`]): The weights, and what their files say.
        base ([`Base`], *optional*): The model that says the rest.
        stated ([`Stated`]): What whoever converts says.
    """

    checkpoint: Checkpoint
    base: Base | None
    stated: Stated

    def hash(self) -> str:
        """16 hexadecimal digits that stand for all of it, and for the version of hpt."""
        stated = vars(self.stated) | {"tokenizer": _hash_tokenizer(self.stated.tokenizer)}
        return digest([self.checkpoint.sha256, stated, self.base and _hash_base(self.base), hpt.__version__])


def _hash_base(base: Base) -> str:
    processor = base.processor
    configuration = hash_configuration(ZeroShotClassifier(base.model, processor))
    said = [processor.image_processor.to_json_string(), _hash_tokenizer(processor.tokenizer)]
    return digest([hash_weights(base.model.state_dict()), configuration, *said])


def _hash_tokenizer(tokenizer) -> str | None:
    if tokenizer is None:
        return None
    return digest([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.model_max_length])


def read_parts(source: str, revision: str | None, options: ConversionOptions, load: Load) -> Parts:
    """Read a checkpoint, and load what the options name; `load` loads the base.

    Raises:
        InputError: as of [`check_source`], [`read_checkpoint`] and `load`; or if the tokenizer can't be loaded.
    """
    check_source(source)
    base, tokenizer = options.base_reference, options.tokenizer
    checkpoint = read_checkpoint(expanduser(source), revision)
    base = base and Base(base.without_local_paths(), *load(base.source, base.revision))
    said = {name: value for name, value in options.given.items() if name not in ("base", "tokenizer")}
    return Parts(checkpoint, base, Stated(**said, tokenizer=tokenizer and _load_tokenizer(Reference.parse(tokenizer))))


def _load_tokenizer(place: Reference):
    from transformers import AutoTokenizer

    with failures_explained("tokenizer", place.source):
        return AutoTokenizer.from_pretrained(place.source, revision=place.revision, trust_remote_code=False)


def describe_conversion(parts: Parts, converted: Converted) -> dict:
    """What there is to know of a model that was converted, as far as others may: no local path."""
    checkpoint = parts.checkpoint
    on_hub = checkpoint.source.startswith(HUB)
    return {
        "source": checkpoint.source if on_hub else _short_name(checkpoint.source),
        "hub_id": checkpoint.source.removeprefix(HUB) if on_hub else None,
        "commit": checkpoint.commit,
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "license": checkpoint.license,
        "base": parts.base and {"name": parts.base.name, "weights": hash_weights(parts.base.model.state_dict())},
        "facts": [asdict(fact) for fact in converted.facts],
        "parity": [asdict(parity) for parity in converted.parity],
        "not_compared": list(NOT_COMPARED),
        "versions": describe_versions(),
    }


def _short_name(source: str) -> str:
    """The last part of a path or a Hub id; of `.`, the folder's own name."""
    return Path(abspath(expanduser(source.removeprefix(FOLDER)))).name


def save_converted(converted: Converted, folder: Path) -> None:
    """Save model and processor; [`WriteFailed`] if the folder can't be written."""
    with named_if_it_fails(folder, Exception):  # for a full disk, safetensors and tokenizers raise errors of their own
        converted.model.save_pretrained(folder)
        converted.processor.save_pretrained(folder)


def cached_conversion(source: str, revision: str | None, options: ConversionOptions, load: Load) -> Path:
    """The folder of a checkpoint that is converted, made now unless it is there.

    Args:
        source (`str`): What [`is_checkpoint`] takes for a checkpoint to convert.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        options ([`ConversionOptions`]): What is said of it.
        load (`Callable`): Loads the base, by its source and revision.

    Raises:
        InputError: if it can't be read or converted.
        WriteFailed: if the cache can't be written, which holds nothing half-written then.
    """
    parts = read_parts(source, revision, options, load)
    folder = Path(constants.HF_HOME, "hpt", "converted", f"{file_name(_short_name(source))}-{parts.hash()}")
    if not _is_whole(folder):
        _check_cache(source, folder)
        with hold_folder(folder, wait=True):
            if not _is_whole(folder):
                _convert_into(folder, parts)
    return folder


def _check_cache(source: str, folder: Path) -> None:
    try:
        check_folder(folder)
    except InputError as error:
        raise InputError(f"{source} must be converted and kept. {error} Set HF_HOME to one that can.") from error


def _is_whole(folder: Path) -> bool:
    """Whether a model was kept there, and its weights are as long as they say, which a power cut may have undone."""
    try:
        return (folder / CONFIG).is_file() and read_weight_headers(str(folder), None) is not None
    except (SafetensorError, InputError):  # the latter for a shard that is missing
        return False


def _convert_into(folder: Path, parts: Parts) -> None:
    converted = convert(parts.checkpoint, parts.base, parts.stated)
    record = describe_conversion(parts, converted)
    with filled_at_once(folder, last=CONFIG) as incomplete:
        save_converted(converted, incomplete)
        write_file(incomplete / CONVERSION_FILE, json.dumps(sealed(record), indent=1))
    logger.warning(f"{record['source']} is converted, and kept in {folder}: {describe_parity(record['parity'])}.")
