"""What a run costs: counted on a step, against what the method's equations say."""

from dataclasses import replace

import pytest
from helpers import make_trainer

from hpt import InputError
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
    refuse_unequal({"tecoa": BUDGET, "hpt": replace(BUDGET, forward={"target": 300, "proxy": 100})})
