"""Suites of attacks in turn, each on the samples that are still classified right: the worst case per sample."""

from collections.abc import Mapping

import torch

from hpt.attacks.apgd import APGDCE, APGDDLR, APGDT
from hpt.attacks.base import Attack, AttackResult, attack_until_broken
from hpt.attacks.batch import Batch
from hpt.attacks.fab import FABT
from hpt.attacks.passes import passes_until_broken
from hpt.attacks.square import Square


class Suite(Attack):
    """Base of suites; a part that isn't defined for so few classes is left out, and [`left_out`] names it.

    The result's `broken_by` counts the parts that run, in order; see [`running`].

    Args:
        eps, norm, seed: see [`Attack`]; handed to every part.
        settings: Handed to every part too.
    """

    leaves_early = True
    parts: tuple[type[Attack], ...] = ()

    def __init__(self, *, eps: float, norm: str = "linf", seed: int = 0, **settings):
        super().__init__(eps=eps, norm=norm, seed=seed)
        self.attacks = {part.name: part(eps=eps, norm=norm, seed=seed, **settings) for part in self.parts}

    def running(self, num_classes: int) -> list[str]:
        """Names of the parts that run with so many classes, in order."""
        return [name for name, attack in self.attacks.items() if num_classes >= attack.min_classes]

    def left_out(self, num_classes: int) -> list[str]:
        return [name for name, attack in self.attacks.items() if num_classes < attack.min_classes]

    def most_passes(self, num_classes: int) -> int:
        parts = (self.attacks[name] for name in self.running(num_classes))
        return 1 + passes_until_broken((part.most_passes(num_classes) for part in parts), self.eot)

    def _run(self, classifier, batch: Batch) -> AttackResult:
        first = batch.take(torch.tensor([0]))
        num_classes = classifier(first.images, self.seeds(first, -1)[0]).shape[1]
        attempts = [
            lambda samples, _, attack=self.attacks[name]: attack._run(classifier, samples)
            for name in self.running(num_classes)
        ]
        return attack_until_broken(classifier, batch, attempts, self.seeds)

    @property
    def parameters(self) -> dict:
        return {name: attack.parameters for name, attack in self.attacks.items()}


class APGD(Suite):
    """APGD-CE, then APGD-DLR: what the HPT-GPD and PMG-AFT papers call AutoAttack; see [`Suite`].

    With `eot=20`, the attacks of AutoAttack's "rand" version, for randomised classifiers.

    Args:
        eot (`int`, *optional*, defaults to `1`): Draws of a randomised classifier at each step; see [`AutoPGD`].
        eps, norm, seed: see [`Attack`].
    """

    name = "apgd"
    norms = ("linf", "l2")
    parts = (APGDCE, APGDDLR)

    def __init__(self, *, eps: float, eot: int = 1, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, norm=norm, seed=seed, eot=eot)
        self.eot = eot


class AutoAttack(Suite):
    """AutoAttack's standard suite, in its order: APGD-CE, APGD-T, FAB-T, Square (arXiv 2003.01690, section 5).

    100 steps, 9 target classes and 5,000 queries, as in its paper; in l_inf. See [`Suite`].
    """

    name = "autoattack"
    parts = (APGDCE, APGDT, FABT, Square)


class Cascade(Suite):
    """Attacks in order of cost, each on the samples that those before left: the worst case alone.

    An attack finds the same for a sample whichever samples are beside it. So a sample is broken here exactly if one of
    the attacks by itself would break it.

    Args:
        attacks (`Mapping[str, Attack]`): By what they are called; of one radius and seed, at least one.
        num_classes (`int`): On which their costs depend.
    """

    name = "cascade"
    norms = ("linf", "l2")

    def __init__(self, attacks: Mapping[str, Attack], num_classes: int):
        first = next(iter(attacks.values()))
        super().__init__(eps=first.radius, norm=first.norm, seed=first.seed)
        names = sorted(attacks, key=lambda name: attacks[name].most_passes(num_classes))
        self.attacks = {name: attacks[name] for name in names}

    def followed(self, classifier) -> list:
        every = [model for attack in self.attacks.values() for model in attack.followed(classifier)]
        return list({id(model): model for model in every}.values())

    def left_out(self, num_classes: int) -> list[str]:
        return [part for attack in self.attacks.values() for part in attack.left_out(num_classes)]

    @property
    def parameters(self) -> dict:
        return {"attacks": list(self.attacks), "settings": super().parameters}
