"""HPT's step and PGD in the published order of work, on transformers' own `CLIPModel`: what ours are measured against.

All prompts are encoded at every forward pass, padded to 77 tokens. The attack calls `backward()`, which computes the
gradients of all weights too, and the proxy runs with gradients.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hpt.attacks import PGD
from hpt.attacks.base import random_start
from hpt.attacks.batch import make_batch
from hpt.benchmarking.gates import Outcome
from hpt.benchmarking.models import Pair, Samples
from hpt.models.classifier import ZeroShotClassifier
from hpt.prompts import make_prompts


@dataclass
class Published:
    """The published order of work over samples and the random start that ours has.

    Args:
        pair ([`Pair`]): Target and proxy, of which all weights have gradients from here on.
        samples ([`Samples`]): The batch.
        attack ([`PGD`]): Whose radius, steps and random start are taken.
        dtype (`torch.dtype`, *optional*): Of autocast around each forward pass, if it is to be on.
    """

    pair: Pair
    samples: Samples
    attack: PGD
    dtype: torch.dtype | None = None

    def __post_init__(self):
        for classifier in self.pair:
            classifier.model.requires_grad_(True)
        target = self.pair.target
        prompts = make_prompts(target.templates, target.class_names)
        tokens = target.processor.tokenizer(prompts, padding="max_length", return_tensors="pt")
        self.tokens = tokens.to(target.model.device)
        images, labels, ids = self.samples
        batch = make_batch(images, labels, ids, None, self.attack.radius)
        self.start = random_start(batch, self.attack.norm, self.attack.seed) - images

    def step(self) -> Outcome:
        """`KL(P || T)` of the adversarial images, and its gradient in every weight."""
        target, proxy = self.pair
        adversarial = self._perturb()
        teacher, student = self._logits(proxy, adversarial), self._logits(target, adversarial)
        loss = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
        loss.backward()
        return Outcome(adversarial, loss=loss.detach())

    def evaluation(self) -> Outcome:
        """Who is right under the attack."""
        adversarial = self._perturb()
        with torch.no_grad():
            right = self._logits(self.pair.target, adversarial).argmax(-1) == self.samples.labels
        return Outcome(adversarial, right=right)

    def _perturb(self) -> torch.Tensor:
        images, labels, _ = self.samples
        eps, step_size, delta = self.attack.eps, self.attack.step_size, self.start
        for _ in range(self.attack.steps):
            delta = delta.detach().requires_grad_()
            F.cross_entropy(self._logits(self.pair.target, images + delta), labels).backward()
            delta = (delta.detach() + step_size * delta.grad.sign()).clamp(-eps, eps)
            delta = (images + delta).clamp(0, 1) - images
        for classifier in self.pair:  # of what the attack, and the step before, have left
            classifier.model.zero_grad()
        return images + delta

    def _logits(self, classifier: ZeroShotClassifier, images: torch.Tensor) -> torch.Tensor:
        pixel_values = (images - classifier.image_mean) / classifier.image_std
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits = classifier.model(pixel_values=pixel_values, **self.tokens).logits_per_image
        return logits.float()
