import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from hpt import GPDSchedule, InputError, get_gpd_schedule


def optimizer(lr, kind=torch.optim.SGD):
    return kind([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler, steps):
    """The learning rate used in each of `steps` steps."""
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("anchor_epochs", [0, 1, 3])
@pytest.mark.parametrize("warmup_steps", [0, 4, 0.25])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_rate_at_every_step_is_two_cosine_schedules(anchor_epochs, warmup_steps, kind):
    steps_per_epoch, transfer_epochs = 10, 2
    scheduler = get_gpd_schedule(
        optimizer(5e-2, kind), steps_per_epoch, anchor_epochs, transfer_epochs, 1e-3, warmup_steps
    )
    expected = []
    for peak, epochs in ((1e-3, anchor_epochs), (5e-2, transfer_epochs)):
        total = epochs * steps_per_epoch
        warmup = round(0.25 * total + 0.4999) if warmup_steps == 0.25 else warmup_steps
        expected += rates(get_cosine_schedule_with_warmup(optimizer(peak), warmup, total), total)
    assert rates(scheduler, len(expected)) == pytest.approx(expected, rel=1e-12)
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_a_warm_up_that_is_a_share_fits_any_stage():
    for steps in (1, 2, 5):
        schedule = GPDSchedule(steps, 1, 1, warmup_steps=0.9)
        assert schedule.warmup("anchor") == steps - 1 and schedule.learning_rate_at(2 * steps - 1) == 5e-2


def test_groups_keep_their_ratio():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.02)]
    scheduler = get_gpd_schedule(torch.optim.SGD(groups, lr=0.1), 5, 1, 1, 0.01, 0)
    for _ in range(9):
        first, second = scheduler.get_last_lr()
        assert second == pytest.approx(first / 5)
        scheduler.optimizer.step()
        scheduler.step()


def test_peak_is_the_first_groups_rate_not_the_optimizers_default():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 5e-2}]
    scheduler = get_gpd_schedule(torch.optim.AdamW(groups), 5, 1, 1, 1e-3, 0)
    assert scheduler.get_last_lr() == [pytest.approx(1e-3)]


def test_state_is_plain_data_and_restores():
    scheduler = get_gpd_schedule(optimizer(0.1), 5, 1, 1, 0.01, 2)
    rates(scheduler, 7)
    state = scheduler.state_dict()
    assert all(isinstance(value, (int, float)) for value in state["lr_lambdas"][0].values())
    other = get_gpd_schedule(optimizer(0.1), 5, 1, 1, 0.01, 2)
    other.load_state_dict(state)
    assert other.get_last_lr() == scheduler.get_last_lr()


def test_stages():
    schedule = GPDSchedule(steps_per_epoch=10, anchor_epochs=2, transfer_epochs=1, warmup_steps=0)
    assert [schedule.stage(step) for step in (0, 19, 20, 29)] == ["anchor", "anchor", "transfer", "transfer"]
    assert (schedule.boundary, schedule.num_epochs) == (20, 3)
    assert GPDSchedule(10, anchor_epochs=0, warmup_steps=0).stage(0) == "transfer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 50}, "warmup_steps is 50, but the anchor stage has only 50 steps"),
        ({"warmup_steps": 60, "anchor_epochs": 10}, "the transfer stage has only 50 steps"),
        ({"transfer_epochs": 0}, "transfer_epochs is 0, but must be a whole number of at least 1"),
        ({"anchor_epochs": 1.5}, "anchor_epochs is 1.5"),
        ({"learning_rate": 0}, "learning_rate is 0, but must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf, but must be above 0 and finite"),
        ({"anchor_learning_rate": math.nan}, "anchor_learning_rate is nan, but must be above 0"),
    ],
)
def test_refuses_what_cannot_be_meant(settings, message):
    with pytest.raises(InputError, match=message):
        GPDSchedule(**({"steps_per_epoch": 10, "warmup_steps": 5} | settings))
