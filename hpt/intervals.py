"""Confidence intervals of accuracies."""

import math


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of the share `correct / total` (Wilson, 1927, JASA 22:209-212); 95 % for the default `z`."""
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding aside, share is inside
