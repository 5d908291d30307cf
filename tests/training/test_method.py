"""What a run's record, and so its card, says of the method: what was used, and nothing that can't be known."""

import helpers
import pytest
import torch
from helpers import make_clip, make_trainer

from hpt import OBJECTIVES, HPTTrainer, RobustTransfer, ZeroShotClassifier
from hpt.training.record import describe_method
from hpt.training.sums import name_objective


class Squared(RobustTransfer):
    """HPT's loss, squared: no loss of the paper."""

    def __call__(self, step):
        return super().__call__(step) ** 2


class Claiming(Squared):
    arxiv = "1706.06083"

    def describe(self, reduction):
        return f"squared, {reduction}"


class OwnLoss(HPTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Logging(HPTTrainer):
    def log(self, logs, start_time=None):
        super().log(logs, start_time)


def record_of(folder, *, trainer=HPTTrainer, objectives=(), proxy="another", **settings) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "HPTTrainer", trainer)
        made = make_trainer(folder, proxy=proxy, **settings)
    made.objectives |= dict(objectives)
    return made.describe_run()


def test_the_record_names_what_hpt_has(tmp_path):
    record = record_of(tmp_path)
    assert (record["objective"], record["anchor_objective"], record["trainer"]) == ("hpt", "anchor", "HPTTrainer")
    assert record["divergence"] == "KL, proxy_to_target, mean, temperature 1" and record["papers"] == ["2601.12865"]
    assert record["attack"] == "PGD-2 at l_inf eps 8/255 in steps of 4/255 from a random start"
    assert [proxy["patch_size"] for proxy in record["proxies"]] == [4] and record["own_objectives"] == []


@pytest.mark.parametrize("trainer", [OwnLoss, Logging])
def test_a_step_that_a_subclass_replaces_is_unknown(tmp_path, trainer):
    record, known = record_of(tmp_path, trainer=trainer), trainer is Logging
    assert record["trainer"] == trainer.__name__
    for key in ("objective", "anchor_objective", "divergence", "attack"):
        assert (record[key] is not None) == known, key
    assert len(record["proxies"]) == 1


@pytest.mark.parametrize(
    ("objective", "divergence", "papers"),
    [
        (
            Squared(temperature=2),
            "mean over the batch, kl_direction proxy_to_target, temperature 2, proxy_temperature 1.0, "
            "only_where_right False",
            [],
        ),
        (Claiming(), "squared, mean", ["1706.06083"]),
    ],
    ids=["of another", "with words of its own"],
)
def test_the_objective_that_is_used_is_named_and_claims_what_it_says_itself(tmp_path, objective, divergence, papers):
    record = record_of(tmp_path, objectives={"transfer": objective}, anchor_epochs=0)
    assert (record["objective"], record["divergence"], record["papers"]) == (
        type(objective).__name__,
        divergence,
        papers,
    )
    assert record["own_objectives"] == [type(objective).__name__]


def test_what_takes_the_place_of_an_objective_of_hpt_is_not_called_like_it(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "hpt", Squared)
    monkeypatch.setitem(OBJECTIVES, "mine", Claiming)
    assert [name_objective(kind()) for kind in (Squared, Claiming, RobustTransfer)] == ["Squared", "mine", "hpt"]


def test_a_proxy_that_is_not_asked_is_not_named(tmp_path):
    assert record_of(tmp_path, objective="tecoa", anchor_epochs=0)["proxies"] == []
    assert record_of(tmp_path, proxy=None, objective="tecoa", anchor_epochs=0)["proxies"] == []


class Voting(ZeroShotClassifier):
    """The mean of several classifiers."""

    def __init__(self, first: ZeroShotClassifier, *others: ZeroShotClassifier):
        super().__init__(first.model, first.processor)
        self.others = torch.nn.ModuleList(others)


def test_a_wrapped_proxy_is_named_with_all_that_it_asks(tmp_path):
    parts = [ZeroShotClassifier(*make_clip(seed, patch_size=4, vision_layers=seed)) for seed in (1, 2)]
    trainer = make_trainer(tmp_path)
    method = describe_method(trainer.args, "HPTTrainer", trainer.objectives, Voting(*parts))
    assert [proxy["wrapper"] for proxy in method["proxies"]] == ["Voting", None]
    sizes = [sum(weight.numel() for weight in part.model.parameters()) for part in parts]
    assert [proxy["parameters"] for proxy in method["proxies"]] == sizes and sizes[0] < sizes[1]
