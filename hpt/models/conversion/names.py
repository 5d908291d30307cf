"""The weights of a CLIP by OpenAI's names as those of [`~transformers.CLIPModel`], and back.

OpenAI's keep queries, keys and values one above the other in `in_proj_weight`, and multiply a row of numbers with a
projection from the left. transformers has a linear layer for each, whose weight is the transpose of a projection.
"""

import re

import torch


WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
LAYERS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
IN_PROJ = "attn.in_proj"
QUERY_KEY_VALUE = [f"self_attn.{letter}_proj" for letter in "qkv"]
OPENAI_BLOCK = re.compile(r"(.+\.resblocks)\.(\d+)\.(.+)[._](weight|bias)")
BLOCK = re.compile(r"(.+\.layers)\.(\d+)\.(.+)\.(weight|bias)")


def to_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `state_dict` of a [`~transformers.CLIPModel`], in float32, from weights by OpenAI's names."""
    state = {}
    for name, weight in weights.items():
        weight = weight.float()
        if name in PROJECTIONS:
            state[PROJECTIONS[name]] = weight.T.contiguous()
        elif block := OPENAI_BLOCK.fullmatch(name):
            tower, layer, part, kind = block.groups()
            parts = weight.chunk(3) if part == IN_PROJ else [weight]
            names = QUERY_KEY_VALUE if part == IN_PROJ else [LAYERS[part]]
            state |= {
                f"{TOWERS[tower]}.{layer}.{own}.{kind}": values for own, values in zip(names, parts, strict=True)
            }
        else:
            state[WHOLE[name]] = weight.reshape(()) if name == "logit_scale" else weight
    return {name: weight.contiguous() for name, weight in state.items()}


def to_openai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by OpenAI's names, in float32, from the `state_dict` of a [`~transformers.CLIPModel`]."""
    whole, projections, towers, layers = (
        {theirs: own for own, theirs in table.items()} for table in (WHOLE, PROJECTIONS, TOWERS, LAYERS)
    )
    weights, apart = {}, {}
    for name, weight in state.items():
        weight = weight.detach().float()
        if name in projections:
            weights[projections[name]] = weight.T.contiguous()
        elif block := BLOCK.fullmatch(name):
            tower, layer, part, kind = block.groups()
            if part in QUERY_KEY_VALUE:
                apart.setdefault(f"{towers[tower]}.{layer}.{IN_PROJ}_{kind}", {})[part] = weight
            else:
                weights[f"{towers[tower]}.{layer}.{layers[part]}.{kind}"] = weight
        else:
            weights[whole[name]] = weight
    fused = {name: torch.cat([parts[part] for part in QUERY_KEY_VALUE]) for name, parts in apart.items()}
    return weights | fused
