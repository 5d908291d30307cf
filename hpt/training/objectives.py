"""Training losses of HPT-GPD: what the target learns from the frozen proxy.

`T` is the target, `P` the proxy, `x` a clean image and `x_a` its adversarial version made against `T`. An objective
says which image the proxy sees (`proxy_sees`), which loss the attack on `T` maximises (`attack_loss`), and maps both
models' logits to the training loss.
"""

import torch
import torch.nn.functional as F

from hpt.attacks.losses import cross_entropy
from hpt.errors import InputError


KL_DIRECTIONS = ("proxy_to_target", "target_to_proxy")
KL_REDUCTIONS = ("mean", "sum")


def kl_divergence(target_logits, proxy_logits, direction="proxy_to_target", reduction="mean", temperature=1.0):
    """KL divergence between the softmax of target and proxy.

    The paper writes `KL(T || P)` averaged over the batch; its code computes `KL(P || T)` summed over it. The default
    is the code's direction (standard distillation) with the paper's mean.

    Args:
        target_logits, proxy_logits (`torch.Tensor` of shape `(batch, classes)`): `T`'s and `P`'s logits.
        direction (`str`): `"proxy_to_target"` is `KL(P || T)`, `"target_to_proxy"` is `KL(T || P)`.
        reduction (`str`): `"mean"` or `"sum"` over the batch.
        temperature (`float`): Divides both logits; the loss is multiplied by its square, which keeps the gradient's
            size (Hinton et al., 2015, arXiv 1503.02531).

    Returns:
        `torch.Tensor`: a scalar.
    """
    target = F.log_softmax(target_logits / temperature, dim=-1)
    proxy = F.log_softmax(proxy_logits / temperature, dim=-1)
    reduction = "batchmean" if reduction == "mean" else reduction
    if direction == "proxy_to_target":  # KL(P || T) = sum_c P_c (log P_c - log T_c)
        loss = F.kl_div(target, proxy, reduction=reduction, log_target=True)
    else:  # KL(T || P) = sum_c T_c (log T_c - log P_c)
        loss = F.kl_div(proxy, target, reduction=reduction, log_target=True)
    return loss * temperature**2


class RobustTransfer:
    """HPT's robust transfer (arXiv 2601.12865, Eq. 5): `L_RT = mean_i KL(softmax T(x_a) || softmax P(x_a))`.

    Args:
        kl_direction, kl_reduction, temperature: see [`kl_divergence`].
    """

    proxy_sees = "adversarial"
    attack_loss = staticmethod(cross_entropy)

    def __init__(self, kl_direction="proxy_to_target", kl_reduction="mean", temperature=1.0):
        self.kl = {"direction": kl_direction, "reduction": kl_reduction, "temperature": temperature}

    def __call__(self, target_logits: torch.Tensor, proxy_logits: torch.Tensor) -> torch.Tensor:
        """Scalar loss of `T(x_a)` and `P` at what it sees, both of shape `(batch, classes)`."""
        return kl_divergence(target_logits, proxy_logits, **self.kl)


class GeneralizationAnchor(RobustTransfer):
    """The generalization anchor (arXiv 2601.12865, Eq. 8): `L_GA = mean_i KL(softmax T(x_a) || softmax P(x))`."""

    proxy_sees = "clean"


OBJECTIVES = {"hpt": RobustTransfer, "anchor": GeneralizationAnchor}


def check_objective(name: str, kl_direction: str, kl_reduction: str, temperature: float) -> None:
    """Raise [`InputError`], listing what is known, unless all four are usable."""
    for what, value, known in (
        ("objective", name, OBJECTIVES),
        ("kl_direction", kl_direction, KL_DIRECTIONS),
        ("kl_reduction", kl_reduction, KL_REDUCTIONS),
    ):
        if value not in known:
            raise InputError(f"Unknown {what} {value!r}; known: {', '.join(known)}.")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature:g}, but must be above 0.")
