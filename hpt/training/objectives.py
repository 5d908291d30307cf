"""What a training step minimises, and what its attack maximises: a class for each objective, by name in `OBJECTIVES`.

`T` is the target, `P` the proxy, `O` the target's frozen vanilla copy; `x` is a clean image with label `y`, and `x_a`
its adversarial version made against `T`. To add an objective, write a class like those below, with its equation and
source, and its line in `OBJECTIVES`. Weighted sums of them are in `sums.py`.
"""

import math

import torch
import torch.nn.functional as F

from hpt.attacks.losses import cross_entropy
from hpt.errors import InputError, check_known
from hpt.models.classifier import Outputs
from hpt.training.gpd import GPD_PAPER
from hpt.training.objective_base import OF_ORIGINAL, OF_PROXY, Objective
from hpt.training.step import TrainingStep


KL_DIRECTIONS = ("proxy_to_target", "target_to_proxy")


def kl_divergence(target_logits, proxy_logits, direction="proxy_to_target", temperature=1.0) -> torch.Tensor:
    """KL divergence between the softmax of target and proxy, for each image.

    The paper writes `KL(T || P)`; its code computes `KL(P || T)`, standard distillation, which is the default here.

    Args:
        target_logits, proxy_logits (`torch.Tensor` of shape `(batch, classes)`): `T`'s and `P`'s logits.
        direction (`str`): `"proxy_to_target"` is `KL(P || T)`, `"target_to_proxy"` is `KL(T || P)`.
        temperature (`float`): Divides both logits; the loss is multiplied by its square, which keeps the gradient's
            size (Hinton et al., 2015, arXiv 1503.02531).

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    target = F.log_softmax(target_logits / temperature, dim=-1)
    return divergence(target, F.log_softmax(proxy_logits / temperature, dim=-1), direction) * temperature**2


def divergence(target: torch.Tensor, proxy: torch.Tensor, direction: str = "proxy_to_target") -> torch.Tensor:
    """KL divergence between log-probabilities of target and proxy `(batch, classes)`, for each image `(batch,)`."""
    if direction == "proxy_to_target":  # KL(P || T) = sum_c P_c (log P_c - log T_c)
        loss = F.kl_div(target, proxy, reduction="none", log_target=True)
    else:  # KL(T || P) = sum_c T_c (log T_c - log P_c)
        loss = F.kl_div(proxy, target, reduction="none", log_target=True)
    return loss.sum(-1)


class RobustTransfer(Objective):
    """HPT's robust transfer (arXiv 2601.12865, Eq. 5): `L_RT = mean_i KL(softmax T(x_a) || softmax P(x_a))`.

    Args:
        kl_direction, temperature: see [`kl_divergence`].
        proxy_temperature (`float`, *optional*, defaults to 1.0): Divides the proxy's logits alone, beside
            `temperature`. The loss isn't multiplied by it: it changes what is taught, and the gradient's size doesn't
            shrink with it.
        only_where_right (`bool`, *optional*, defaults to `False`): Drop the loss of images that the proxy gets wrong
            as it sees them; the loss is averaged over all images still. The log has the share that is kept,
            `proxy_right_share`.

    Raises:
        InputError: for an unknown direction, or a temperature that isn't above 0 and finite.
    """

    needs_proxy = needs_labels = is_idle_with_original = True
    arxiv = GPD_PAPER
    fields = ("kl_direction", "temperature", "proxy_temperature", "only_where_right")

    def __init__(
        self,
        *,
        kl_direction: str = "proxy_to_target",
        temperature: float = 1.0,
        proxy_temperature: float = 1.0,
        only_where_right: bool = False,
    ):
        check_known("kl_direction", kl_direction, KL_DIRECTIONS)
        for name, value in (("temperature", temperature), ("proxy_temperature", proxy_temperature)):
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value:g}, but must be above 0 and finite.")
        self.kl_direction, self.temperature = kl_direction, temperature
        self.proxy_temperature, self.only_where_right = proxy_temperature, only_where_right
        self.needs_labels = self.needs_labels or only_where_right
        self.is_idle_with_original &= proxy_temperature == 1

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self._divergence(step, step.adversarial, step.adversarial)  # KL(T(x_a) || P(x_a))

    def _divergence(self, step: TrainingStep, target_sees: torch.Tensor, proxy_sees: torch.Tensor) -> torch.Tensor:
        target = F.log_softmax(step.target(target_sees).logits / self.temperature, dim=-1)
        proxy = step.proxy(proxy_sees).log_probabilities(self.temperature * self.proxy_temperature)
        losses = divergence(target, proxy, self.kl_direction) * self.temperature**2
        if not self.only_where_right:
            return losses
        right = proxy.argmax(-1) == step.labels
        step.note("proxy_right_share", right)
        return torch.where(right, losses, 0.0)

    def describe(self, reduction: str) -> str:
        more = f", proxy temperature {self.proxy_temperature:g}" if self.proxy_temperature != 1 else ""
        more += ", only where the proxy is right" if self.only_where_right else ""
        return f"KL, {self.kl_direction}, {reduction}, temperature {self.temperature:g}{more}"


class GeneralizationAnchor(RobustTransfer):
    """The generalization anchor (arXiv 2601.12865, Eq. 8): `L_GA = mean_i KL(softmax T(x_a) || softmax P(x))`."""

    asks_about_clean = (OF_PROXY,)
    arxiv = GPD_PAPER
    describe = RobustTransfer.describe

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self._divergence(step, step.adversarial, step.images)  # KL(T(x_a) || P(x))


class TeCoA(Objective):
    """Text-guided contrastive adversarial training (Mao et al., 2023, arXiv 2212.07016): `mean_i CE(T(x_a), y)`."""

    needs_labels = True
    arxiv = "2212.07016"

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return cross_entropy(step.target(step.adversarial).logits, step.labels)  # CE(T(x_a), y)


class PMGAFT(Objective):
    """Pre-trained model guided adversarial fine-tuning, PMG-AFT (Wang et al., 2024, arXiv 2401.04350).

    `mean_i CE(T(x_a), y) + a KL(softmax O(x_a) || softmax T(x_a)) + b KL(softmax T(x) || softmax T(x_a))`, with
    gradients through `T(x)` too.

    Args:
        a (`float`, *optional*, defaults to 1.0): Weight of what the vanilla target teaches.
        b (`float`, *optional*, defaults to 1.0): Weight of what the target teaches itself on clean images.

    Raises:
        InputError: for a weight that isn't a number of at least 0.
    """

    needs_original = needs_labels = True
    arxiv = "2401.04350"

    def __init__(self, *, a: float = 1.0, b: float = 1.0):
        check_factors(a=a, b=b)
        self.a, self.b = a, b

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        adversarial = step.target(step.adversarial).logits
        vanilla, clean = step.original(step.adversarial).logits, step.target(step.images).logits
        loss = cross_entropy(adversarial, step.labels)  # CE(T(x_a), y)
        loss = loss + self.a * kl_divergence(adversarial, vanilla)  # + a KL(O(x_a) || T(x_a))
        return loss + self.b * kl_divergence(adversarial, clean)  # + b KL(T(x) || T(x_a))


class FARE(Objective):
    """Fine-tuning for adversarially robust embeddings, FARE (Schlarmann et al., 2024, arXiv 2402.12336).

    `mean_i sum_d (f_T(x_a) - f_O(x))_d^2`, over the dimensions `d` of the image embeddings `f` before they are
    normalised, not divided by their number. The attack maximises the same. It needs no labels and no class prompts,
    and trains the vision tower alone.
    """

    needs_original = needs_random_start = True
    needs_classes = False
    asks_about_clean = (OF_ORIGINAL,)
    arxiv = "2402.12336"

    def attack_loss(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        difference = step.target(images).image_features - step.original(step.images).image_features
        return difference.square().sum(-1)  # sum_d (f_T(x) - f_O(x))_d^2

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self.attack_loss(step, step.adversarial)  # sum_d (f_T(x_a) - f_O(x))_d^2


class AGFT(Objective):
    """Alignment-guided fine-tuning, AGFT (Cui et al., 2026, arXiv 2603.29410).

    `mean_i CE(q, softmax T(x_a))` with the soft targets `q = softmax(r s cos_O(x))`, where `s cos_O(x)` are the
    logits of the vanilla target, at its own scale `s`. The attack maximises the same. It needs no labels.

    Args:
        r (`float`, *optional*, defaults to 1.0): Multiplies those logits; its authors choose it per set.

    Raises:
        InputError: for an `r` that isn't above 0 and finite.
    """

    needs_original = True
    asks_about_clean = (OF_ORIGINAL,)
    arxiv = "2603.29410"

    def __init__(self, *, r: float = 1.0):
        if not 0 < r < math.inf:
            raise InputError(f"r is {r:g}, but must be above 0 and finite.")
        self.r = r
        self.needs_random_start = r == 1  # then T(x) = q at first, where the loss is least

    def attack_loss(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        soft = F.softmax(self.r * step.original(step.images).logits, dim=-1)  # q
        return -(soft * F.log_softmax(step.target(images).logits, dim=-1)).sum(-1)  # CE(q, T(x))

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self.attack_loss(step, step.adversarial)  # CE(q, T(x_a))


NORMALISED_OVER = ("embedding", "patches")


class TGAZSR(Objective):
    """Text-guided attention for zero-shot robustness, TGA-ZSR (Yu et al., 2024, arXiv 2410.21802).

    `mean_i CE(T(x_a), y) + a ||A_T(x_a) - A_O(x)||_2 + b ||A_T(x) - A_O(x)||_2`, with the attention `A(x)` of the
    patches to the label's text: patch tokens after the final norm and the projection, divided by their norm, times
    `t_y`, scaled to [0, 1] by the image's own minimum and maximum, and resized bilinearly to the target's input size.

    Args:
        a (`float`, *optional*, defaults to 0.08): Weight of the attention on adversarial images.
        b (`float`, *optional*, defaults to 0.05): Weight of the attention on clean images.
        normalised_over (`str`, *optional*, defaults to `"embedding"`): What the norm of the tokens is taken over:
            `"embedding"`, of each patch, as the paper writes; or `"patches"`, of each dimension over an image's
            patches, as its authors' code does.

    Raises:
        InputError: for a weight that isn't a number of at least 0, or an unknown axis.
    """

    needs_original = needs_labels = needs_patches = True
    arxiv = "2410.21802"

    def __init__(self, *, a: float = 0.08, b: float = 0.05, normalised_over: str = "embedding"):
        check_factors(a=a, b=b)
        check_known("normalised_over", normalised_over, NORMALISED_OVER)
        self.a, self.b, self.normalised_over = a, b, normalised_over

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        vanilla = self._attention(step, step.original(step.images), step.original_text_embeds())
        adversarial, clean = (
            self._attention(step, step.target(images), step.text_embeds())
            for images in (step.adversarial, step.images)
        )
        loss = cross_entropy(step.target(step.adversarial).logits, step.labels)  # CE(T(x_a), y)
        loss = loss + self.a * (adversarial - vanilla).norm(dim=-1)  # + a ||A_T(x_a) - A_O(x)||_2
        return loss + self.b * (clean - vanilla).norm(dim=-1)  # + b ||A_T(x) - A_O(x)||_2

    def _attention(self, step: TrainingStep, outputs: Outputs, text_embeds: torch.Tensor) -> torch.Tensor:
        """`A`, flattened: `(batch, size * size)`."""
        if self.normalised_over == "embedding":
            patches = outputs.patch_embeds
        else:
            patches = F.normalize(outputs.patch_features, dim=1)
        texts = text_embeds[step.labels].to(patches.dtype)  # t_y
        scores = (patches * texts.unsqueeze(1)).sum(-1)
        low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
        side = math.isqrt(scores.shape[1])
        maps = ((scores - low) / (high - low).clamp(min=1e-12)).view(-1, 1, side, side)
        return F.interpolate(maps, step.input_size, mode="bilinear").flatten(1)


class CleanDistillation(RobustTransfer):
    """Distillation on clean images, an ablation of arXiv 2601.12865: `mean_i KL(softmax P(x) || softmax T(x))`.

    No attack is run, and labels are needed by `only_where_right` alone.

    Args:
        kl_direction, temperature, proxy_temperature, only_where_right: see [`RobustTransfer`].
    """

    needs_attack = needs_labels = False
    is_idle_with_original = True
    asks_about_clean = (OF_PROXY,)
    arxiv = GPD_PAPER
    describe = RobustTransfer.describe

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self._divergence(step, step.images, step.images)  # KL(P(x) || T(x))


def check_factors(**factors: float) -> None:
    """Refuse factors of an objective's parts, by name, that aren't numbers of at least 0."""
    for name, factor in factors.items():
        if not 0 <= factor < math.inf:
            raise InputError(f"{name} is {factor:g}, but must be a number of at least 0.")


OBJECTIVES = {
    "hpt": RobustTransfer,
    "anchor": GeneralizationAnchor,
    "tecoa": TeCoA,
    "pmg_aft": PMGAFT,
    "fare": FARE,
    "agft": AGFT,
    "tga_zsr": TGAZSR,
    "clean_distillation": CleanDistillation,
}
OF_HPT = dict(OBJECTIVES)  # without what users add to them, or put in their place
