"""How fast a machine multiplies matrices, how many operations a step takes, and how few it could take.

FLOPs are 2 for each multiplication with its addition, of matrix products alone, as torch counts them.
"""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hpt.benchmarking.models import Pair
from hpt.models.classifier import ZeroShotClassifier


class Matmul:
    """Products of square matrices, for about two seconds on a core of a CPU.

    Args:
        dtype (`torch.dtype`): Of the matrices.
        device (`torch.device`): Where they are; a GPU has larger ones.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.side, self.times = (8192, 20) if device.type == "cuda" else (2048, 10)
        self.left, self.right = torch.randn(2, self.side, self.side, device=device).to(dtype)

    def __call__(self) -> None:
        for _ in range(self.times):
            self.left @ self.right

    @property
    def flops(self) -> int:
        return 2 * self.side**3 * self.times


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of a call and of the backward passes in it. Attention runs as matrix products meanwhile, to be counted."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def fewest_flops(pair: Pair, attack_steps: int) -> dict[str, float]:
    """What a training step must take an image: `k * 2F + 3F + F_proxy`, with `F` a forward pass of the target.

    Each of `k` attack steps goes forward and backward to the image; the training pass goes forward, backward to the
    activations and backward to the weights. Prompts are encoded once, and cost nothing here.

    Returns:
        `dict[str, float]`: the whole towers' FLOPs, and those of towers whose last block computes nothing but what
        the class token needs, which alone is read.
    """
    whole = [_forward_flops(classifier) for classifier in pair]
    read = [flops - spared_by_class_token(c.model.config.vision_config) for flops, c in zip(whole, pair, strict=True)]
    passes = {"the whole towers": whole, "the last block for the class token only": read}
    return {name: (2 * attack_steps + 3) * target + proxy for name, (target, proxy) in passes.items()}


def _forward_flops(classifier: ZeroShotClassifier) -> int:
    """FLOPs of the model's own forward pass for an image."""
    model, side = classifier.model, classifier.image_size
    image = torch.zeros(1, 3, side, side, device=model.device)
    with torch.no_grad():
        return count_flops(lambda: model.get_image_features(pixel_values=image))


def spared_by_class_token(vision) -> int:
    """FLOPs of a forward pass that the last block of a CLIP's vision tower spends on what nobody reads.

    It needs the keys and values of all tokens, but the query, the attention, the output and the MLP of the class token
    alone.

    Args:
        vision (`CLIPVisionConfig`): Shape of the tower.
    """
    others = (vision.image_size // vision.patch_size) ** 2
    width, inner = vision.hidden_size, vision.intermediate_size
    per_token = 2 * width**2 + 2 * width * inner + 2 * (others + 1) * width
    return 2 * others * per_token
