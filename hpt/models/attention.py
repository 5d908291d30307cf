"""Which of transformers' attention kernels a model computes by."""

import torch
from torch import nn

from hpt.models.families import plain_model


def choose_attention(model: nn.Module, device: torch.device, mixed_precision: str) -> None:
    """Let a model attend by products of matrices where torch's fused kernel is slow: in 16 bits on a CPU.

    There a forward and a backward pass of the fused kernel take two to six times as long, 17 to 197 tokens, on a core
    that multiplies in bfloat16. In float32 they take as long as the products, and need less memory.

    Args:
        model (`nn.Module`): A dual encoder, plain or of PEFT.
        device (`torch.device`): Where it computes.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
    """
    if device.type == "cpu" and mixed_precision != "no":
        plain_model(model).set_attn_implementation("eager")
