"""Frozen proxies: vanilla dual encoders of another architecture than the target's, the teachers of HPT."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from hpt.errors import explain_hub_error
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import check_dual_encoder
from hpt.references import Reference


def load_proxy(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> ZeroShotClassifier:
    """Load a proxy `P` as a frozen classifier in eval mode; whoever uses it gives it classes with `with_classes`.

    Args:
        name (`str`): Hub id or local path of any dual encoder of transformers.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of its weights.

    Raises:
        InputError: when it can't be loaded or isn't a dual encoder.
    """
    model, processor = load_dual_encoder(name, revision, dtype)
    return ZeroShotClassifier(model.requires_grad_(False).eval(), processor)


def load_named(reference: Reference, device: torch.device) -> tuple[str, ZeroShotClassifier]:
    """A model as recipes name it, from [`~hpt.references.parse_model`]: its name, and it frozen on its device."""
    return reference.name, load_proxy(reference.source, reference.revision).to(device)


@torch.inference_mode(False)  # attacks follow gradients through what is loaded
def load_dual_encoder(name: str, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """Load a dual encoder and its processor from the Hub or a local folder, safetensors only.

    Args:
        name (`str`): Hub id or local path.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): dtype of the weights, whatever was saved.

    Returns:
        `tuple`: the model, in eval mode, and its processor; `model.config._commit_hash` tells the commit on the Hub.

    Raises:
        InputError: when it can't be found or reached, is gated, or isn't a dual encoder.
    """
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import cached_file

    try:
        # Not by commit: of a repository without safetensors, the Hub's conversion is taken for a branch only
        model = AutoModel.from_pretrained(name, revision=revision, dtype=dtype, use_safetensors=True)
        config = Path(cached_file(name, "config.json", revision=revision))
    except (OSError, ValueError, SafetensorError) as error:
        raise explain_hub_error("model", name, error) from error
    model.config._commit_hash = None if Path(name).is_dir() else config.parent.name
    check_dual_encoder(model)
    try:
        processor = AutoProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise explain_hub_error("processor", name, error) from error
    return model, processor


def save_finished(model, processor, folder: str | Path) -> None:
    """Save model and processor so that a folder holds the model's configuration only once everything else is in it."""
    folder, incomplete = Path(folder), Path(folder) / "incomplete"
    marker = "adapter_config.json" if hasattr(model, "peft_config") else "config.json"
    (folder / marker).unlink(missing_ok=True)
    model.save_pretrained(incomplete)
    processor.save_pretrained(incomplete)
    (incomplete / "README.md").unlink(missing_ok=True)  # PEFT's, which would replace the card that is there
    for file in sorted(incomplete.iterdir(), key=lambda file: file.name == marker):
        os.replace(file, folder / file.name)
    incomplete.rmdir()
