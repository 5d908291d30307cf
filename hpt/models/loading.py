"""Dual encoders from the Hub or the disk: targets, and proxies, frozen ones of another architecture.

What is incomplete or doesn't fit is refused: transformers would fill the gaps with random numbers.
"""

import logging
import os
import re
import shutil
import warnings
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path

import torch
from safetensors import SafetensorError

from hpt.errors import InputError, TrainingStopped, explain_hub_error
from hpt.files import named_if_it_fails
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import check_dual_encoder
from hpt.models.sources import check_source, similar_folder
from hpt.models.weights import check_complete, find_non_finite
from hpt.references import Reference


# What DataParallel and torch.compile put before the names of a model's weights
WRAPPERS = r"^(?:module\.|_orig_mod\.)+"


def load_proxy(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> ZeroShotClassifier:
    """Load a proxy `P` as a frozen classifier in eval mode; whoever uses it gives it classes with `with_classes`.

    Args:
        name (`str`): Hub id or local path of any dual encoder of transformers, or of an adapter on one.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of its weights.

    Raises:
        InputError: when it can't be loaded whole or isn't a dual encoder.
    """
    model, processor = load_dual_encoder(name, revision, dtype)
    return ZeroShotClassifier(model.requires_grad_(False).eval(), processor)


def load_named(reference: Reference, device: torch.device) -> tuple[str, ZeroShotClassifier]:
    """A model as recipes name it, from [`~hpt.references.parse_model`]: its name, and it frozen on its device."""
    return reference.name, load_proxy(reference.source, reference.revision).to(device)


@torch.inference_mode(False)  # attacks follow gradients through what is loaded
def load_dual_encoder(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """Load a dual encoder and its processor from the Hub or a local folder, safetensors only.

    An adapter of PEFT is merged into its base, which its `adapter_config.json` names.

    Args:
        name (`str`): Hub id or local path.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of the weights, whatever was saved.

    Returns:
        `tuple`: the model, in eval mode, and its processor; `model.config._commit_hash` tells the commit on the Hub.

    Raises:
        InputError: when it can't be found or reached, is gated, isn't a dual encoder, or lacks weights.
    """
    from transformers.utils import find_adapter_config_file

    name = expanduser(name)
    check_source(name)
    with _failures_explained("model", name):
        adapter = find_adapter_config_file(name, revision=revision)
    if adapter is None:
        model, processor, config = _load_model(name, revision, dtype)
    else:
        model, processor, config = *_load_adapter(name, revision, dtype), Path(adapter)
    model.config._commit_hash = None if Path(name).is_dir() else config.parent.name
    return model, processor


def _load_model(name: str, revision: str | None, dtype: torch.dtype):
    """Model, processor, and the file of its configuration."""
    from transformers import AutoModel
    from transformers.utils import cached_file

    # Not by commit: of a repository without safetensors, the Hub's conversion is taken for a branch only
    options = {"revision": revision, "dtype": dtype, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # what doesn't fit is refused below
    with _failures_explained("model", name), _without_report():
        model, report = AutoModel.from_pretrained(name, **options)
        if any(re.match(WRAPPERS, key) for key in report["unexpected_keys"]):
            prefixed = f"The names of weights in {name} begin with module. or _orig_mod., which is left out."
            warnings.warn(prefixed, stacklevel=4)
            model, report = AutoModel.from_pretrained(name, **options, key_mapping={WRAPPERS: ""})
        config = Path(cached_file(name, "config.json", revision=revision))
    check_dual_encoder(model)
    shapes = {key: shape for key, shape, _ in report["mismatched_keys"]}
    check_complete(name, model.state_dict(), report["missing_keys"], report["unexpected_keys"], shapes)
    return model, _load_processor(name, revision), config


def _load_adapter(name: str, revision: str | None, dtype: torch.dtype):
    """The base with an adapter merged into it, and the adapter's own processor, or else the base's."""
    from hpt.models.lora import merge_saved, read_adapter

    with _failures_explained("adapter", name):
        config, weights = read_adapter(name, revision)
    try:
        model, processor = load_dual_encoder(config.base_model_name_or_path, config.revision, dtype)
    except InputError as error:
        raise InputError(
            f"{name} is an adapter, and its base can't be had. {error} Write the base's path or Hub id into its "
            "adapter_config.json, as base_model_name_or_path."
        ) from error
    model = merge_saved(name, model, config, weights)
    model.name_or_path = name
    return model, _load_processor(name, revision) if _has_processor(name, revision) else processor


def _load_processor(name: str, revision: str | None):
    from transformers import AutoProcessor

    with _failures_explained("processor", name):
        return AutoProcessor.from_pretrained(name, revision=revision)


def _has_processor(name: str, revision: str | None) -> bool:
    from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

    files = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    return any(
        cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False) for file in files
    )


@contextmanager
def _failures_explained(kind: str, name: str):
    """Within, what loading raises becomes a line, which names the folder that may be meant."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if not Path(name).is_dir() and (near := similar_folder(name)):
            raise InputError(f"Can't load the {kind} {name!r}: no such folder; did you mean {near}?") from error
        raise explain_hub_error(kind, name, error) from error


@contextmanager
def _without_report():
    """Within, transformers prints no table of the weights that don't fit: they are refused in a line."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def save_finished(model, processor, folder: str | Path) -> None:
    """Save model and processor so that a folder holds the model's configuration only once everything else is in it.

    Raises:
        TrainingStopped: if weights aren't finite, as those of adapters that were merged may not be.
        WriteFailed: if the folder can't be written, of which nothing but the configuration is changed then.
    """
    if broken := find_non_finite(model.state_dict()):
        raise TrainingStopped(f"{folder} isn't written: weights of the model are NaN or infinite, {broken}.")
    folder, incomplete = Path(folder), Path(folder) / "incomplete"
    marker = "adapter_config.json" if hasattr(model, "peft_config") else "config.json"
    with named_if_it_fails(folder, Exception):  # for a full disk, safetensors and tokenizers raise errors of their own
        (folder / marker).unlink(missing_ok=True)
        try:
            model.save_pretrained(incomplete)
            processor.save_pretrained(incomplete)
            (incomplete / "README.md").unlink(missing_ok=True)  # PEFT's, which would replace the card that is there
            for file in sorted(incomplete.iterdir(), key=lambda file: file.name == marker):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
