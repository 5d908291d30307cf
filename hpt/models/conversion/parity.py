"""Whether two models give the same logits; a CLIP's own arithmetic in plain torch, from its architecture alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parity:
    """How far the logits of the same images and prompts are apart, from the source and from what it was made into.

    Args:
        against (`str`): What computed the source's, such as `"the source's own arithmetic"` or `"open_clip 3.3.0"`.
        images, prompts (`int`): So many were compared, each with each.
        cosine (`float`): Largest difference between cosines, the logits before scale and bias.
        logit (`float`): Largest difference between logits.
    """

    against: str
    images: int
    prompts: int
    cosine: float
    logit: float
