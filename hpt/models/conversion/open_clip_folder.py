"""A CLIP of transformers as a folder of open_clip: `open_clip_config.json`, weights and tokenizer."""

import json
from pathlib import Path

from safetensors.torch import save_file

from hpt.errors import InputError
from hpt.files import check_folder, filled_at_once, named_if_it_fails
from hpt.models.conversion.comparison import compare_all
from hpt.models.conversion.names import to_openai
from hpt.models.conversion.open_clip_config import (
    CONFIG,
    MODEL,
    PREPROCESSING,
    is_openais,
    model_config,
    preprocessing_config,
)
from hpt.models.conversion.parity import Arithmetic, Parity
from hpt.models.conversion.shapes import TextShape, VisionShape, check_clip
from hpt.models.weights import check_finite


WEIGHTS = "open_clip_model.safetensors"


def write_open_clip(model, processor, folder: str | Path) -> list[Parity]:
    """Write a CLIP so that open_clip loads it, `open_clip.create_model("local-dir:FOLDER")`, and compare both before.

    A tokenizer of another vocabulary than OpenAI's is found by open_clip in the folder. On the Hub, open_clip reads it
    from the repository that `hf_tokenizer_name` in the configuration names: that must then be the model's own.

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
    folder, name = Path(folder), model.name_or_path or type(model).__name__
    check_clip(f"What is to be written for open_clip, {name!r},", model)
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a model of open_clip: give another folder, or delete that one.")
    check_folder(folder)
    state = model.state_dict()
    check_finite(name, state)
    weights, how = to_openai(state), Arithmetic.of_config(model.config)
    vision, text = VisionShape.of_config(model.config), TextShape.of_config(model.config)
    image_size, tokenizer = model.config.vision_config.image_size, processor.tokenizer
    config = {MODEL: model_config(name, vision, image_size, text, how, tokenizer)}
    config[PREPROCESSING] = preprocessing_config(name, processor.image_processor)
    if not is_openais(tokenizer):
        config[MODEL]["text_cfg"]["hf_tokenizer_name"] = folder.resolve().name
    parity = compare_all(name, weights, how, config[MODEL], model, processor)
    _write(folder, config, weights, tokenizer)
    return parity


def _write(folder: Path, config: dict, weights: dict, tokenizer) -> None:
    """The configuration last, so that a folder that has one is complete."""
    # For a full disk, safetensors and tokenizers raise errors of their own
    with filled_at_once(folder, last=CONFIG) as incomplete, named_if_it_fails(folder, Exception):
        save_file(weights, incomplete / WEIGHTS, {"format": "pt"})
        tokenizer.save_pretrained(incomplete)
        (incomplete / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
