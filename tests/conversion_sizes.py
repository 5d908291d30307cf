"""Round trips of conversion at real sizes: CLIPs of random weights to open_clip, to OpenAI's layout, and back.

    python tests/conversion_sizes.py                      # ViT-B/32, B/16, L/14 and L/14-336: 20 minutes and 9 GB
    python tests/conversion_sizes.py B/32

It prints the largest differences of cosines and logits of each step, against open_clip too where that is installed,
and fails if a weight doesn't come back bit for bit. The vocabulary is that of bytes.
"""

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from hpt.models.conversion import Base, Stated, convert, read_checkpoint, write_open_clip
from hpt.training.pretraining import byte_tokenizer


# Patch and image size, then width, layers and heads of the vision and of the text tower, then embedding size
SIZES = {
    "B/32": (32, 224, (768, 12, 12), (512, 12, 8), 512),
    "B/16": (16, 224, (768, 12, 12), (512, 12, 8), 512),
    "L/14": (14, 224, (1024, 24, 16), (768, 12, 12), 768),
    "L/14-336": (14, 336, (1024, 24, 16), (768, 12, 12), 768),
}
ACTIVATIONS = ("quick_gelu", "gelu")


def make_clip(size: str, activation: str) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of that size, whose weights are about as large as trained ones, and its processor."""
    patch, side, vision, text, dim = SIZES[size]
    tokenizer = byte_tokenizer()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    towers = [dict(zip(names, of_tower, strict=True)) | {"hidden_act": activation} for of_tower in (vision, text)]
    for tower in towers:
        tower |= {"intermediate_size": 4 * tower["hidden_size"], "projection_dim": dim}
    towers[0] |= {"patch_size": patch, "image_size": side}
    towers[1] |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = CLIPModel(CLIPConfig(vision_config=towers[0], text_config=towers[1], projection_dim=dim)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            inputs = weight[0].numel() if weight.dim() > 1 and "embedding.weight" not in name else 10
            offset = weight.dim() == 1 and name.endswith("weight")  # of a norm
            weight.normal_(float(offset), inputs**-0.5) if weight.dim() else weight.fill_(4.6)
    sides = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return model, CLIPProcessor(CLIPImageProcessor(**sides), tokenizer)


def show(what: str, step) -> object:
    """Do a step of conversion, and print what it says of parity, and seconds."""
    begun = time.perf_counter()
    done = step()
    parity = getattr(done, "parity", done)
    seen = "; ".join(f"{one.against}: cosines {one.cosine:.1e}, logits {one.logit:.1e}" for one in parity)
    print(f"{what:44} {seen} ({time.perf_counter() - begun:.0f} s)", flush=True)
    return done


def check_same(one: CLIPModel, other: CLIPModel) -> None:
    weights = other.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())


def main() -> None:
    for size in sys.argv[1:] or SIZES:
        for activation in ACTIVATIONS:
            clip, processor = make_clip(size, activation)
            what = f"{size}, {activation}"
            with tempfile.TemporaryDirectory() as folder:
                to_open_clip = partial(write_open_clip, clip, processor, Path(folder, "open_clip"))
                show(f"{what}: to open_clip", to_open_clip)
                back = show(f"{what}: back", lambda: convert(read_checkpoint(f"{folder}/open_clip")))  # noqa: B023
                check_same(clip, back.model)
                weights = load_file(f"{folder}/open_clip/open_clip_model.safetensors")
                torch.save(weights, f"{folder}/openai.pt")
                heads = SIZES[size][2][2], SIZES[size][3][2]
                statistics = processor.image_processor.image_mean, processor.image_processor.image_std
                stated = Stated(activation, *heads, *map(tuple, statistics), processor.tokenizer)
                checkpoint = read_checkpoint(f"{folder}/openai.pt")
                check_same(clip, show(f"{what}: from OpenAI's .pt", partial(convert, checkpoint, stated=stated)).model)
                tower = {name.removeprefix("visual."): weight for name, weight in weights.items() if "visual." in name}
                torch.save(tower, f"{folder}/tower.pt")
                joined = partial(convert, read_checkpoint(f"{folder}/tower.pt"), Base("the base", clip, processor))
                check_same(clip, show(f"{what}: vision tower .pt and base", joined).model)


if __name__ == "__main__":
    main()
