"""Attacks by name, and what texts say of them."""

import pytest

from hpt import ATTACKS, InputError
from hpt.attacks import Attack, NamedAttack, registry
from hpt.attacks.base import AttackResult
from hpt.radius import Radius


TEXTS = [*ATTACKS, "transfer-to-proxy"]


@pytest.mark.parametrize("text", TEXTS)
def test_attacks_know_their_name_and_label(text):
    named = NamedAttack.parse(text)
    attack = named.make(Radius("4/255"), seed=3, proxy=lambda images: images)
    assert attack.name == str(named) == text and attack.label == named.label
    assert (attack.eps, attack.norm, attack.seed) == (4 / 255, "linf", 3)
    for quality in ("uses_gradients", "needs_proxy", "scored_on_proxy"):
        assert getattr(attack, quality) == getattr(named, quality)


def test_attacks_know_what_they_use():
    named = [NamedAttack.parse(text) for text in TEXTS]
    without_gradients = [str(attack) for attack in named if not attack.uses_gradients]
    assert without_gradients == ["square", "transfer", "transfer-to-proxy"]
    assert [str(attack) for attack in named if attack.needs_proxy] == ["adaptive", "transfer", "transfer-to-proxy"]
    assert [str(attack) for attack in named if attack.is_transfer] == ["transfer", "transfer-to-proxy"]
    assert [str(attack) for attack in named if attack.scored_on_proxy] == ["transfer-to-proxy"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("pgd", "PGD-10"),
        ("pgd:steps=50,restarts=5", "PGD-50 x 5"),
        ("pgd:restarts=2,step_size=1/255", "PGD-10 x 2 (step_size=1/255)"),
        ("cw", "CW-50"),
        ("fgsm", "fgsm"),
        ("square:queries=100", "square (queries=100)"),
        ("apgd-t:num_targets=3", "apgd-t-100 (num_targets=3)"),
        ("autoattack", "autoattack"),
    ],
)
def test_texts_come_back_and_have_a_label(text, label):
    attack = NamedAttack.parse(text)
    assert (str(attack), attack.label) == (text, label)


def test_what_a_constructor_does_not_take_is_refused():
    with pytest.raises(InputError, match="fgsm has no setting 'steps'; known: none.$"):
        NamedAttack.parse("fgsm:steps=5").make(Radius("4/255"))
    with pytest.raises(InputError, match="known: steps, .*Did you mean restarts?"):
        NamedAttack.parse("pgd:restart=5").make(Radius("4/255"))


def test_an_attack_of_another_version_is_unknown_but_can_be_shown():
    attack = NamedAttack.parse("later:steps=3,momentum=1")
    assert not attack.is_known and not attack.uses_gradients and not attack.needs_proxy
    assert attack.label_with(3, None) == "later-3 (momentum=1)"
    with pytest.raises(InputError, match="Unknown attack 'later'"):
        attack.make(Radius("4/255"))


def test_a_further_attack_is_a_class_and_a_line(monkeypatch):
    class Darken(Attack):
        name = "darken"
        uses_gradients = False

        def __init__(self, *, eps, share=1, norm="linf", seed=0):
            super().__init__(eps=eps, norm=norm, seed=seed)
            self.share = share

        def _run(self, classifier, batch):
            images = (batch.images - batch.eps).clamp(0, 1)
            return AttackResult(images, images.new_zeros(len(images)).bool())

    monkeypatch.setitem(registry.ATTACKS, Darken.name, Darken)
    named = NamedAttack.parse("darken:share=2")
    assert named.make(Radius("4/255")).share == 2 and named.label == "darken (share=2)"
