"""One training step as an objective sees it: its images, and what the models make of them, each computed once."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from hpt.attacks import AttackResult
from hpt.classifiers import Classifier
from hpt.errors import InputError
from hpt.models.classifier import Outputs, ZeroShotClassifier
from hpt.models.proxies import ProxyOutputs, ask


class TrainingStep:
    """A micro-batch, its adversarial images, and the outputs of target, proxy and original on either.

    Outputs on [`images`] and on [`adversarial`] are computed when they are first asked for, and kept for the step;
    those on other images, such as an attack is trying, anew each time. While the attack runs, which may compute in
    another precision and goes past the wrapper, nothing of the target is kept, but for what [`keeping`] says.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): Clean images `x`, in [0, 1].
        labels (`torch.Tensor` of shape `(batch,)`, *optional*): Their classes `y`; `None` of images without labels.
        target ([`ZeroShotClassifier`]): `T`, which trains.
        proxy ([`Classifier`], *optional*): `P`, frozen; of several, a [`CombinedProxy`].
        original ([`ZeroShotClassifier`], *optional*): `O`, the target's frozen vanilla copy.
        text_embeds (`torch.Tensor` of shape `(classes, dim)`, *optional*): The target's class embeddings with
            gradients, where its text tower trains.
        patches (`bool`, *optional*, defaults to `False`): Whether the outputs of target and original have
            `patch_embeds`.
        attack (`bool`, *optional*, defaults to `True`): Whether there will be adversarial images.
        features (`dict[nn.Module, torch.Tensor]`, *optional*): Of frozen models, the features `(batch, dim)` of the
            clean images as far as they are known already; these aren't computed again.

    Attributes:
        attacked ([`AttackResult`]): What the attack on the target found; set once it has run.
        notes (`dict[str, list[torch.Tensor]]`): What an objective has noted of each image, by name, for the log.
    """

    attacked: AttackResult | None = None

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        *,
        target: ZeroShotClassifier,
        proxy: Classifier | None = None,
        original: ZeroShotClassifier | None = None,
        text_embeds: torch.Tensor | None = None,
        patches: bool = False,
        attack: bool = True,
        features: Mapping[nn.Module, torch.Tensor] | None = None,
    ):
        self.images, self.labels, self.notes = images, labels, {}
        self._target, self._proxy, self._original = target, proxy, original
        self._text_embeds, self._patches, self._attack = text_embeds, patches, attack
        self._features = features or {}
        self._kept: dict[tuple[str, bool, bool], Outputs | ProxyOutputs] = {}
        self._tried: tuple[torch.Tensor, Outputs] | None = None  # by the attack, for as long as it is kept

    @property
    def adversarial(self) -> torch.Tensor:
        """Adversarial images `x_a`, `(batch, 3, height, width)` in [0, 1], made against the target.

        Raises:
            InputError: where no attack is run, since the objective says that it needs none.
            RuntimeError: while the attack runs, such as from `attack_loss`.
        """
        if not self._attack:
            raise InputError(
                "The objective asks for adversarial images, but has needs_attack = False: leave that out of its class."
            )
        if self.attacked is None:
            raise RuntimeError("There are no adversarial images yet: the attack that makes them still runs.")
        return self.attacked.images

    def target(self, images: torch.Tensor) -> Outputs:
        """`T` on images, with gradients wherever they are enabled."""
        if self._tried is not None and images is self._tried[0]:
            return self._tried[1]
        if self._attack and self.attacked is None:
            return self._see(images)
        return self._kept_or_new("target", images, lambda: self._see(images))

    @contextmanager
    def keeping(self, images: torch.Tensor):
        """Within, `T` sees these images once, which an attack is trying, however often it is asked for them."""
        self._tried = images, self.target(images)
        try:
            yield
        finally:
            self._tried = None

    def _see(self, images: torch.Tensor) -> Outputs:
        return self._target.outputs(images, self._text_embeds, self._patches)

    def text_embeds(self) -> torch.Tensor:
        """`T`'s unit-length class embeddings `(classes, dim)`, with gradients where its text tower trains."""
        return self._target.text_embeds() if self._text_embeds is None else self._text_embeds

    def original_text_embeds(self) -> torch.Tensor:
        """`O`'s, without gradients."""
        _check_declared(self._original, "the vanilla target", "needs_original")
        return self._original.text_embeds()

    @property
    def input_size(self) -> int:
        """Side in pixels to which the target resizes images."""
        return self._target.image_size

    def proxy(self, images: torch.Tensor) -> ProxyOutputs:
        """`P` on images, without gradients, in its own dtype; of several proxies, what they say together."""
        _check_declared(self._proxy, "the proxy", "needs_proxy")
        return self._kept_or_new("proxy", images, lambda: ask(self._proxy, images, self._known(images)))

    def original(self, images: torch.Tensor) -> Outputs:
        """`O` on images, without gradients."""
        _check_declared(self._original, "the vanilla target", "needs_original")
        return self._kept_or_new("original", images, lambda: self._see_original(images))

    @torch.no_grad()
    def _see_original(self, images: torch.Tensor) -> Outputs:
        known = self._known(images)
        with torch.autocast(images.device.type, enabled=False):
            if self._original in known and not self._patches:
                return self._original.outputs_of(known[self._original])
            return self._original.outputs(images, None, self._patches)

    def _known(self, images: torch.Tensor) -> Mapping[nn.Module, torch.Tensor]:
        """What is known already of images: of clean ones alone."""
        return self._features if images is self.images else {}

    def note(self, name: str, values: torch.Tensor) -> None:
        """Let the log have the mean of `values` `(batch,)` over the images of a logged step, as `name`.

        What is noted more than once, such as by several terms of a sum, is averaged.
        """
        self.notes.setdefault(name, []).append(values.detach().float())

    def _kept_or_new(self, model: str, images: torch.Tensor, compute: Callable):
        is_clean = images is self.images
        is_adversarial = self.attacked is not None and images is self.attacked.images
        if not is_clean and not is_adversarial:
            return compute()
        with_grad = torch.is_grad_enabled()
        key = model, is_clean, with_grad
        with_gradients = (model, is_clean, True)  # which do without, too
        if key not in self._kept and with_gradients not in self._kept:
            # Whatever asks first, a loss may use what is kept
            with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
                self._kept[key] = compute()
        return self._kept.get(with_gradients) or self._kept[key]


def _check_declared(model, name: str, need: str) -> None:
    """Refuse to ask a model that an objective hasn't said it needs."""
    if model is None:
        raise InputError(f"The objective asks for {name}, but has {need} = False: set it to True in its class.")
