"""How exactly a GPU computes in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Within, a GPU convolves in float32 as exactly as it multiplies matrices.

    By torch's defaults it multiplies matrices in float32, but convolves in TF32, with 10 bits of a fraction's 23: what
    is called float32 would depend on which of the two a model embeds patches by. Who asks for TF32, such as by
    `torch.backends.fp32_precision = "tf32"` or `--tf32 True`, has it in both.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = products.fp32_precision
    try:
        yield
    finally:
        convolutions.fp32_precision = before
