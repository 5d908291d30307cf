"""Which of transformers' attention kernels a model computes by."""

import torch
from torch import nn

from hpt.models.families import plain_model


def choose_attention(model: nn.Module, mixed_precision: str = "no") -> None:
    """Let a model attend by products of matrices where torch's fused kernel is slow: in 16 bits on a CPU.

    There the fused kernel's backward pass takes several times as long on a core that multiplies in bfloat16. In
    float32 it takes about as long as the products, and needs less memory. The model stays as it is chosen here; its
    outputs change by rounding.

    Args:
        model (`nn.Module`): A dual encoder, plain or of PEFT, on its device.
        mixed_precision (`str`, *optional*, defaults to `"no"`): `"bf16"` or `"fp16"` if it computes within autocast.
    """
    model = plain_model(model)
    in_16_bits = mixed_precision != "no" or model.dtype in (torch.bfloat16, torch.float16)
    if model.device.type == "cpu" and in_16_bits:
        model.set_attn_implementation("eager")
