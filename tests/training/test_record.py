"""What is known of the run that left a model, and whether another may be written over it."""

import pytest
from helpers import make_trainer

from hpt import InputError
from hpt.hub.folder import ModelFolder
from hpt.training.record import refuse_other_run


RECIPE = {"target": "t", "proxy": "p", "train_dataset": "digits", "max_eval_samples": 30}


@pytest.fixture
def trained(tmp_path):
    """A trainer whose model lies in a folder, with the record of its run."""
    trainer = make_trainer(tmp_path)
    trainer.recipe = RECIPE
    trainer.save_model(str(tmp_path / "robust"))
    return trainer


@pytest.mark.parametrize(
    ("settings", "recipe", "difference"),
    [
        ({}, {}, None),
        ({"logging_steps": 7}, {"max_eval_samples": None}, None),  # the weights don't depend on these
        ({"attack_eps": 4 / 255}, {}, "attack_eps 8/255 there, 4/255 here"),
        ({}, {"target": "other"}, "target t there, other here"),
        ({"pull_ratio": 0.9}, {}, "pull_ratio 0.5 there, 0.9 here"),  # 0.5 is the default
        ({"learning_rate": 0.05}, {"lora_rank": 2}, "lora_rank None there, 2 here"),
    ],
    ids=["same", "watched otherwise", "eps", "target", "default", "two"],
)
def test_another_run_is_not_overwritten(trained, tmp_path, settings, recipe, difference):
    args = make_trainer(tmp_path, **settings).args
    if difference is None:
        return refuse_other_run(tmp_path / "robust", args, RECIPE | recipe)
    message = f"robust was trained with other settings .*{difference}.*: give another output_dir, or --overwrite"
    with pytest.raises(InputError, match=message):
        refuse_other_run(tmp_path / "robust", args, RECIPE | recipe)


def test_a_model_of_no_run_is_not_overwritten(trained, tmp_path):
    refuse_other_run(tmp_path / "elsewhere", trained.args, RECIPE)
    (tmp_path / "robust" / "training.json").unlink()
    with pytest.raises(InputError, match="robust has a model that no run of hpt left there"):
        refuse_other_run(tmp_path / "robust", trained.args, RECIPE)


def test_an_infinite_setting_is_described_as_a_recipe_reads_it(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=float("inf"))  # which logs the norm, and clips nothing
    trainer.save_model(str(tmp_path / "robust"))
    assert ModelFolder(tmp_path / "robust").run["settings"]["max_grad_norm"] == "inf"
    assert "max_grad_norm: inf\n" in (tmp_path / "robust" / "run.yaml").read_text()
    refuse_other_run(tmp_path / "robust", trainer.args, {})
