"""A CLIP of transformers as a folder of open_clip: `open_clip_config.json`, weights and tokenizer."""

from pathlib import Path

from hpt.models.conversion.parity import Parity


def write_open_clip(model, processor, folder: str | Path) -> list[Parity]:
    """Write a CLIP so that open_clip loads it, `open_clip.create_model("local-dir:FOLDER")`, and compare both.

    Args:
        model ([`~transformers.CLIPModel`]): Any, also one that has just been converted.
        processor ([`~transformers.CLIPProcessor`]): Its processor.
        folder (`str` or `Path`): Is made, or must not hold a model of open_clip.

    Returns:
        `list[Parity]`: as of [`Converted`].

    Raises:
        InputError: for a model that open_clip has no such architecture for, or whose logits there would differ; then
            nothing is written.
        WriteFailed: if the folder can't be written; nothing half-written is left.
    """
    raise NotImplementedError
