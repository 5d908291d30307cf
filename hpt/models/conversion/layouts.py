"""How the weights of a CLIP are named in the checkpoints that people share, and what is no CLIP with a ViT.

OpenAI's names are the common form, such as `visual.conv1.weight` and `transformer.resblocks.0.ln_1.bias`. open_clip
has the same (github.com/mlfoundations/open_clip, `model.py`), or those of the text tower below `text.`. A robust
vision tower is what lies below `visual.`, alone in a file (github.com/chs20/RobustVLM), or as an entry of a training
checkpoint (github.com/cvlab-columbia/ZSRobust4FoundationModel). Wrappers put `module.` or `model.` before every name.
"""

import torch

from hpt.errors import InputError
from hpt.models.weights import describe_names


# Two weights of one module, by which a CLIP's ViT is found, whatever stands before them
MARKS = ("conv1.weight", "class_embedding")
VISUAL, TEXT = "visual.", "text."
NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # what OpenAI's state dicts also hold
# What else a file can hold, by a part of a name: what it is, and what to do
AS_IT_IS = "evaluate it, or learn from it, as open_clip computes it, by hpt.models.open_clip.OpenClipClassifier"
OTHERS = {
    "attnpool.positional_embedding": "it is a CLIP with a ResNet, which transformers has no class for. Give one with "
    f"a ViT, or {AS_IT_IS}.",
    "visual.trunk.": "its vision tower is one of timm, such as a ConvNeXt or SigLIP's, and no ViT of CLIP. Give a "
    f"SigLIP in the format of transformers, or {AS_IT_IS}.",
    "embeddings.patch_embedding.weight": "its weights have the names of transformers, which needs no conversion. Save "
    "it with its configuration and processor, by save_pretrained, and give that folder.",
}


def find_weights(source: str, content: object) -> tuple[dict[str, torch.Tensor], str]:
    """The weights in what a file holds, by OpenAI's names, and in words how they were named.

    Args:
        source (`str`): What messages call the checkpoint.
        content: A state dict, or a dictionary with one as an entry, beside an optimizer for example.

    Raises:
        InputError: if there is no CLIP with a ViT in it, or several.
    """
    content = content if isinstance(content, dict) else {}
    entries = {"": content} | {str(name): entry for name, entry in content.items() if isinstance(entry, dict)}
    states = {name: _tensors(entry) for name, entry in entries.items()}
    found = [name for name, state in states.items() if _vision_prefix(state) is not None]
    if len(found) > 1:
        raise InputError(
            f"Can't convert {source!r}: it holds several models, {describe_names(set(found))}. Save the one that is "
            "meant by itself: torch.save(state_dict, FILE)."
        )
    if not found:
        raise InputError(f"Can't convert {source!r}: {_why_unknown([*states.values()])}")
    weights, layout = _renamed(source, states[found[0]])
    return weights, layout + f", in the entry {found[0]!r}" * bool(found[0])


def _tensors(entry: dict) -> dict[str, torch.Tensor]:
    by_name = {name: value for name, value in entry.items() if isinstance(name, str)}
    return {name: value.detach() for name, value in by_name.items() if isinstance(value, torch.Tensor)}


def _vision_prefix(names) -> str | None:
    """What stands before the names of the vision tower's weights; `None` if there is none."""
    mark, other = MARKS
    prefixes = (name.removesuffix(mark) for name in names if name.endswith(mark))
    return next((prefix for prefix in prefixes if prefix + other in names), None)


def _renamed(source: str, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    vision = _vision_prefix(weights)
    before = vision.removesuffix(VISUAL)
    below_text = any(name.startswith(before + TEXT) for name in weights)

    def rename(name: str) -> str:
        if name.startswith(vision):
            return VISUAL + name.removeprefix(vision)
        return name.removeprefix(before).removeprefix(TEXT)

    renamed = [(rename(name), weight) for name, weight in weights.items() if rename(name) not in NO_WEIGHTS]
    by_name = dict(renamed)
    if all(name.startswith(VISUAL) for name in by_name):
        layout = "of a vision tower alone"
    else:
        layout = (
            "open_clip's, with the text tower below text." if below_text else "OpenAI's, which are open_clip's too"
        )
    if twice := len(renamed) - len(by_name):
        raise InputError(
            f"Can't convert {source!r}: {twice} weights are there twice, with text. before them and without."
        )
    return by_name, layout + f", each behind {before}" * bool(before)


def _why_unknown(states: list[dict[str, torch.Tensor]]) -> str:
    names = [name for state in states for name in state]
    for part, line in OTHERS.items():
        if any(part in name for name in names):
            return line
    expected = "visual.conv1.weight and visual.class_embedding, or conv1.weight and class_embedding of a vision tower"
    has = f"it has {describe_names(set(names))}" if names else "it has no tensors by name"
    return (
        f"expected the names of OpenAI's and open_clip's CLIPs, such as {expected}, but {has}. If they lie deeper, "
        "save them by themselves: torch.save(state_dict, FILE)."
    )
