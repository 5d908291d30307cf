"""Frozen proxies: vanilla dual encoders of another architecture than the target's, the teachers of HPT."""

from pathlib import Path

import torch

from hpt.modeling import ZeroShotClassifier, load_dual_encoder
from hpt.references import name_and_source


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


def load_named(text: str, device: torch.device) -> tuple[str, ZeroShotClassifier]:
    """A model as recipes name it, `NAME=PATH`, `PATH` or `ID@REVISION`: its name, and it frozen on its device."""
    name, source = name_and_source(text)
    source, _, revision = (source, "", "") if Path(source).exists() else source.partition("@")
    return name, load_proxy(source, revision or None).to(device)
