"""What a run costs: counted on a step, against what the method's equations say."""

from dataclasses import replace

import pytest
from helpers import make_clip, make_family, make_trainer

from hpt import InputError, ZeroShotClassifier
from hpt.comparing.budget import Budget, differing, measure_budget, refuse_unequal
from hpt.training.objectives import OBJECTIVES, Objective


class SeesAll(Objective):
    """Asks for everything: the target on both images, the proxy on one, the original on both."""

    needs_proxy = needs_original = needs_labels = True

    def __call__(self, step):
        asked = [step.target(step.images), step.target(step.adversarial), step.proxy(step.images)]
        asked += [step.original(step.images), step.original(step.adversarial)]
        return sum(outputs.logits.mean(-1) for outputs in asked)


# Of 12 images over 2 + 2 epochs with n attack steps: n passes both ways, and what an objective asks for
EXPECTED = {
    "hpt after anchor": ({}, {"target": 3, "proxy": 1, "original": 0}, {"target": 3, "proxy": 0, "original": 0}),
    "tecoa": ({"objective": "tecoa", "anchor_epochs": 0, "transfer_epochs": 4}, {"target": 3}, {"target": 3}),
    "five steps": ({"attack_steps": 5}, {"target": 6, "proxy": 1}, {"target": 6}),
    "one of your own": (
        {"objective": "all", "anchor_epochs": 0, "transfer_epochs": 4},
        {"target": 4, "proxy": 1, "original": 2},
        {"target": 4},
    ),
    "half of the epochs": (  # the proxy teaches in the anchor stage alone
        {"objective": "tecoa"},
        {"target": 3, "proxy": 0.5},
        {"target": 3},
    ),
}


# Of each image in a step with 2 attack steps: passes of the target, both ways, of the proxy and of the original
OF_OBJECTIVES = {
    "tecoa": (3, 0, 0),
    "pmg_aft": (4, 0, 1),  # T(x) too, and O(x_a)
    "fare": (3, 0, 1),  # O(x), of which the attack and the loss are
    "agft": (3, 0, 1),
    "tga_zsr": (4, 0, 1),
    "clean_distillation": (1, 1, 0),  # without an attack
    "hpt + tecoa": (3, 1, 0),  # which share their passes
    "hpt + pmg_aft": (4, 1, 1),
}


@pytest.mark.parametrize("objective", OF_OBJECTIVES)
def test_passes_of_published_objectives(tmp_path, objective):
    budget = measure_budget(make_trainer(tmp_path, objective=objective, anchor_epochs=0, transfer_epochs=4))
    target, proxy, original = OF_OBJECTIVES[objective]
    assert budget.forward == {"target": 48 * target, "proxy": 48 * proxy, "original": 48 * original}
    assert budget.backward == {"target": 48 * target, "proxy": 0, "original": 0}
    assert budget.attack_steps == (0 if objective == "clean_distillation" else 96)


@pytest.mark.parametrize("proxies, proxy, original", [("several", 2, 0), ("original", 0, 1)])
def test_each_proxy_is_counted(tmp_path, proxies, proxy, original):
    given = (
        [ZeroShotClassifier(*make_clip(seed, patch_size=4)) for seed in (1, 2)] if proxies == "several" else proxies
    )
    budget = measure_budget(make_trainer(tmp_path, proxy=given, anchor_epochs=0, transfer_epochs=4))
    assert (budget.forward["proxy"], budget.forward["original"]) == (48 * proxy, 48 * original)


@pytest.mark.parametrize("name", ["Align", "ResNet", "Swin", "GroupViT"])
def test_passes_through_any_tower_are_counted(tmp_path, name):
    model, processor = make_family(name)
    trainer = make_trainer(tmp_path, model, processor=processor, objective="tecoa", anchor_epochs=0, transfer_epochs=4)
    budget = measure_budget(trainer)
    assert (budget.forward["target"], budget.backward["target"], budget.attack_steps) == (144, 144, 96)


@pytest.mark.parametrize("case", EXPECTED)
def test_passes_are_those_of_the_equations(tmp_path, monkeypatch, case):
    settings, forward, backward = EXPECTED[case]
    monkeypatch.setitem(OBJECTIVES, "all", SeesAll)
    budget = measure_budget(make_trainer(tmp_path, **settings))
    none = dict.fromkeys(("target", "proxy", "original"), 0)
    assert budget.images == 48 and budget.attack_steps == 48 * settings.get("attack_steps", 2)
    assert budget.forward == none | {role: 48 * passes for role, passes in forward.items()}
    assert budget.backward == none | {role: 48 * passes for role, passes in backward.items()}


def test_counting_changes_nothing_of_what_is_trained(tmp_path):
    trainer, counted = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    measure_budget(counted)
    states = [dict(one.model.state_dict()) for one in (trainer, counted)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert counted.state.global_step == 0


BUDGET = Budget(100, 200, {"target": 300}, {"target": 300})


@pytest.mark.parametrize("change, what", [({"images": 50}, "images"), ({"attack_steps": 0}, "attack steps")])
def test_budgets_that_differ_are_refused_and_named(change, what):
    budgets = {"tecoa": BUDGET, "distillation": replace(BUDGET, **change)}
    with pytest.raises(InputError, match=f"'distillation' has .* {what}, 'tecoa' .*allow_unequal_budget"):
        refuse_unequal(budgets)
    assert [*differing(budgets)] == [what]


def test_passes_of_a_proxy_are_no_difference_of_budget():
    budgets = {"tecoa": BUDGET, "hpt": replace(BUDGET, forward={"target": 300, "proxy": 100})}
    refuse_unequal(budgets)  # doesn't raise
    assert differing(budgets) == {}
