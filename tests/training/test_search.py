"""`model_init`, and `hyperparameter_search` with it: each trial is a run of its own."""

import signal

import pytest
import torch
from helpers import TerminateAt, assert_same, make_clip, make_dataset, make_trainer, weights
from safetensors.torch import load_file
from torch import nn

from hpt import HPTTrainer, InputError
from hpt.hub.folder import ModelFolder
from hpt.locks import hold_folder
from hpt.training.search import renewed


def load_target() -> nn.Module:
    return make_clip(0)[0]


def load_with_random_part(trial) -> nn.Module:
    """Some of its weights come from the run's seed, as those of adapters do."""
    drawn = torch.randn(16)
    model = load_target()
    model.vision_model.post_layernorm.bias.data.copy_(drawn)
    return model


def make_searcher(folder, model_init=load_target, callbacks=None, arguments=None, **settings) -> HPTTrainer:
    """[`make_trainer`]'s, with 1 + 1 epochs of 3 steps, but for a function that loads the model."""
    settings = {"anchor_epochs": 1, "transfer_epochs": 1, "save_strategy": "epoch"} | settings
    base = make_trainer(folder)
    given = {"proxy": base.proxy, "processing_class": base.processing_class, "train_dataset": make_dataset()}
    given |= {"eval_dataset": make_dataset(30, seed=3), "model_init": model_init, "callbacks": callbacks}
    return HPTTrainer(args=renewed(base.args, **settings), **given | (arguments or {}))


def rates(trial) -> dict:
    return {"learning_rate": trial.suggest_float("learning_rate", 0.1, 2.0)}


def try_values(*values: dict):
    """Search spaces of which trial N has the N-th values, whatever Optuna suggests."""
    return lambda trial: values[trial.number]


def mean_robust_logit(prediction) -> dict:
    """A metric that tells tiny models apart which all see the same class everywhere."""
    return {"logit": prediction.predictions[1].mean().item()}


REAL_VALUED = {"preprocess_logits_for_metrics": lambda logits, labels: logits, "compute_metrics": mean_robust_logit}


@pytest.fixture(scope="module")
def optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


# Runs that begin anew


def test_each_run_begins_with_a_fresh_model_and_with_the_settings_as_they_are_then(tmp_path):
    trainer = make_searcher(tmp_path / "fresh", save_strategy="no")
    for settings in ({}, {"learning_rate": 1.0, "transfer_epochs": 2, "attack_steps": 1, "augmentation": "crop_flip"}):
        for name, value in settings.items():
            setattr(trainer.args, name, value)
        trainer.train()
        plain = make_trainer(tmp_path / "plain", **{"anchor_epochs": 1, "transfer_epochs": 1} | settings)
        plain.train()
        assert_same(weights(trainer.model), weights(plain.model))
        assert trainer.mathematics() == plain.mathematics()


def test_a_run_with_model_init_goes_on(tmp_path):
    whole = make_searcher(tmp_path / "whole")
    whole.train()
    with pytest.raises(SystemExit, match="75"):
        make_searcher(tmp_path / "cut", callbacks=[TerminateAt(5)]).train()
    resumed = make_searcher(tmp_path / "cut")
    resumed.train(resume_from_checkpoint="last")
    assert_same(weights(resumed.model), weights(whole.model))


# Searches


def test_a_trial_gives_the_numbers_of_a_run_of_its_own(optuna, tmp_path):
    tried = [
        {"learning_rate": 0.3, "seed": 2, "transfer_epochs": 2},
        {"learning_rate": "1/10", "anchor_learning_rate": 0.2, "kl_direction": "target_to_proxy", "bf16": True},
        {"objective": "tecoa", "anchor_epochs": 0, "attack_eps": "16/255", "per_device_train_batch_size": 6},
    ]
    trainer = make_searcher(tmp_path / "search", load_with_random_part, arguments=REAL_VALUED)
    space, named = try_values(*tried), {"storage": optuna.storages.InMemoryStorage(), "study_name": "three"}
    best = trainer.hyperparameter_search(space, lambda metrics: metrics["eval_logit"], n_trials=3, **named)
    trials = optuna.load_study(**named).trials
    assert best.objective == max(trial.value for trial in trials) and len({trial.value for trial in trials}) == 3
    for number, settings in enumerate(tried):
        run = make_searcher(tmp_path / str(number), load_with_random_part, arguments=REAL_VALUED, **settings)
        run.train()
        assert run.evaluate()["eval_logit"] == trials[number].value
        name = f"checkpoint-{run.state.global_step}"
        there, here = (folder / name for folder in (tmp_path / "search" / f"run-{number}", tmp_path / str(number)))
        assert_same(load_file(there / "model.safetensors"), load_file(here / "model.safetensors"))
        assert ModelFolder(there).run["schedule"] == ModelFolder(here).run["schedule"]
        assert f"# run-{number}" in (there / "README.md").read_text(encoding="utf-8")


def test_after_a_search_the_trainer_is_as_before(optuna, tmp_path):
    trainer = make_searcher(tmp_path, save_strategy="no")
    before = trainer.evaluate()
    callbacks, settings = [type(callback) for callback in trainer.callback_handler.callbacks], trainer.args.to_dict()
    best = trainer.hyperparameter_search(rates, n_trials=2)
    assert 0 <= best.objective <= 1 and best.hyperparameters.keys() == {"learning_rate"}
    after = trainer.evaluate()
    assert [after[f"eval_{kind}_accuracy"] for kind in ("clean", "robust")] == [
        before[f"eval_{kind}_accuracy"] for kind in ("clean", "robust")
    ]
    assert [type(callback) for callback in trainer.callback_handler.callbacks] == callbacks
    assert trainer.args.to_dict() == settings and not list(tmp_path.glob("checkpoint-*"))
    assert_same(weights(trainer.model), weights(load_target()))


def test_the_weights_that_a_trial_ends_with_count(optuna, tmp_path):
    """The best ones, where these are loaded at the end, and not the last."""
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "logit", "eval_strategy": "epoch"}
    trainer = make_searcher(tmp_path, arguments=REAL_VALUED, transfer_epochs=2, **settings)
    space = try_values({"greater_is_better": True}, {"greater_is_better": False})
    named = {"storage": optuna.storages.InMemoryStorage(), "study_name": "best"}
    trainer.hyperparameter_search(space, lambda metrics: metrics["eval_logit"], n_trials=2, **named)
    highest, lowest = optuna.load_study(**named).trials
    reported = highest.intermediate_values.values()
    assert len(set(reported)) == 2 and highest.value == max(reported) and lowest.value == min(reported)


def test_robust_accuracy_is_searched_for(optuna, tmp_path):
    sets = {"one": make_dataset(30, seed=3), "two": make_dataset(30, seed=4)}
    trainer = make_searcher(tmp_path, arguments={"eval_dataset": sets}, save_strategy="no")
    best = trainer.hyperparameter_search(try_values({}), n_trials=1)
    trainer.train()
    metrics = trainer.evaluate()
    assert best.objective == (metrics["eval_one_robust_accuracy"] + metrics["eval_two_robust_accuracy"]) / 2


def test_a_trial_is_pruned_in_the_transfer_stage_alone(optuna, tmp_path):
    class PruneAll(optuna.pruners.BasePruner):
        def prune(self, study, trial) -> bool:
            return trial.number == 0

    trainer = make_searcher(tmp_path, anchor_epochs=2, eval_strategy="epoch")
    space = try_values({"learning_rate": 0.3}, {"learning_rate": 0.4})
    named = {"storage": optuna.storages.InMemoryStorage(), "study_name": "pruned"}
    trainer.hyperparameter_search(space, n_trials=2, pruner=PruneAll(), **named)
    pruned, whole = optuna.load_study(**named).trials
    assert pruned.state.name == "PRUNED" and list(pruned.intermediate_values) == [9]
    assert whole.state.name == "COMPLETE"
    with hold_folder(tmp_path / "run-0"):
        pass
    plain = make_searcher(tmp_path / "plain", anchor_epochs=2, learning_rate=0.4)
    plain.train()
    assert_same(load_file(tmp_path / "run-1" / "checkpoint-9" / "model.safetensors"), plain.model.state_dict())


def test_a_trial_that_is_not_finite_fails_and_the_search_goes_on(optuna, tmp_path):
    trainer, storage = make_searcher(tmp_path, save_strategy="no"), optuna.storages.InMemoryStorage()
    space = try_values({"learning_rate": 1e30, "optim": "adamw_torch"}, {"learning_rate": 0.3})
    best = trainer.hyperparameter_search(space, n_trials=2, storage=storage, study_name="not finite")
    states = [trial.state.name for trial in optuna.load_study(study_name="not finite", storage=storage).trials]
    assert states == ["FAIL", "COMPLETE"] and best.run_id == "1"


def test_a_search_that_is_stopped_leaves_nothing_behind(optuna, tmp_path):
    trainer = make_searcher(tmp_path, callbacks=[TerminateAt(5, signal.SIGTERM)])
    before = trainer.args
    with pytest.raises(SystemExit, match="75"):
        trainer.hyperparameter_search(rates, n_trials=2)
    assert trainer.args is before and trainer.hp_search_backend is None
    assert (tmp_path / "run-0" / "checkpoint-5" / "manifest.json").is_file()
    with hold_folder(tmp_path / "run-0"):
        pass


def test_a_search_does_not_take_the_folders_of_another(optuna, tmp_path):
    make_searcher(tmp_path).hyperparameter_search(try_values({"learning_rate": 0.3}), n_trials=1)
    with pytest.raises(InputError, match=r"run-0.checkpoint-6 was trained with other settings \(learning_rate 0.3"):
        make_searcher(tmp_path).hyperparameter_search(try_values({"learning_rate": 0.4}), n_trials=1)


# Bad input


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"learning_rat": 0.1},
            "hp_space sets 'learning_rat', which is no field of HPTConfig: did you mean learning_ra",
        ),
        ({"qwertz": 0.1}, "hp_space sets 'qwertz', which is no field of HPTConfig."),
        ({"output_dir": "x"}, "hp_space sets output_dir, but each trial has a folder of its own: leave it out"),
        ({"num_train_epochs": 3}, "hp_space sets num_train_epochs, but it is derived: set anchor_epochs and"),
        ({"learning_rate": -1.0}, "learning_rate is -1, but must be above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', but must be a number"),
        ({"attack_steps": 1.5}, "attack_steps is 1.5, but must be a whole number"),
        ({"objective": "tecao"}, "Unknown objective 'tecao'.*Did you mean tecoa"),
        ([0.1], "hp_space gives a list, but must give a dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:20],
)
def test_settings_that_cannot_be_meant_are_refused_before_the_trial(optuna, tmp_path, values, line):
    trainer = make_searcher(tmp_path)
    with pytest.raises(InputError, match=line):
        trainer.hyperparameter_search(try_values(values))
    assert not list(tmp_path.glob("run-*"))


@pytest.mark.parametrize("name", ["../other", "", "a/b", "."])
def test_a_folder_elsewhere_is_refused(optuna, tmp_path, name):
    with pytest.raises(InputError, match="but must give the plain name of a folder in"):
        make_searcher(tmp_path / "search").hyperparameter_search(rates, hp_name=lambda trial: name)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"hp_space": None}, "hp_space is missing: give a function of a trial to settings"),
        ({"hp_space": {"learning_rate": [0.1]}}, "hp_space is missing: give a function"),
        ({"direction": "minimize"}, "direction is 'minimize', but robust accuracy"),
        ({"direction": ["maximize", "maximize"]}, "direction is .*, but robust accuracy"),
        ({"n_trials": 0}, "n_trials is 0, but must be a whole number of at least 1"),
        ({"n_trials": 1.5}, "n_trials is 1.5, but must be a whole number"),
        ({"n_jobs": 2}, "n_jobs is 2, but a trainer trains one model at a time: start several by themselves"),
        ({"backend": "optun"}, "Unknown backend 'optun'; known: optuna, ray, wandb: did you mean optuna"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:20],
)
def test_a_search_that_cannot_be_meant_is_refused(tmp_path, given, line):
    with pytest.raises(InputError, match=line):
        make_searcher(tmp_path).hyperparameter_search(**{"hp_space": rates} | given)


def test_a_search_without_a_backend_is_refused(tmp_path, monkeypatch):
    trainer = make_searcher(tmp_path)
    for name in ("optuna", "ray_tune", "wandb"):
        monkeypatch.setattr(f"transformers.hyperparameter_search.is_{name}_available", lambda: False)
    with pytest.raises(InputError, match="ray isn't installed: pip install 'ray\\[tune\\]'"):
        trainer.hyperparameter_search(rates, backend="ray")
    with pytest.raises(InputError, match="Neither Optuna nor Ray Tune is installed: pip install optuna"):
        trainer.hyperparameter_search(rates)


def test_a_search_by_several_processes_together_is_refused(tmp_path, monkeypatch):
    trainer = make_searcher(tmp_path)
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(InputError, match="A search runs in one process, not in 2 together: start several by themse"):
        trainer.hyperparameter_search(rates)


def test_a_search_that_would_push_its_trials_is_refused(tmp_path):
    trainer = make_searcher(tmp_path)
    trainer.args.push_to_hub = True
    with pytest.raises(InputError, match="push_to_hub would push all trials to one repository"):
        trainer.hyperparameter_search(rates)


def test_a_search_without_what_it_needs_is_refused(tmp_path):
    with pytest.raises(InputError, match="A search needs a fresh model for each trial: give HPTTrainer model_init"):
        make_trainer(tmp_path, eval_dataset=make_dataset(6)).hyperparameter_search(rates)
    with pytest.raises(InputError, match="A search needs images to train on, and others to choose by"):
        make_searcher(tmp_path, arguments={"eval_dataset": None}).hyperparameter_search(rates)
    own = make_searcher(tmp_path, arguments={"compute_metrics": lambda prediction: {"mine": 0.5}})
    with pytest.raises(InputError, match="compute_objective is missing: it says which of compute_metrics"):
        own.hyperparameter_search(rates)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"model": make_clip(0)[0]}, "Both model and model_init are given: give model_init alone"),
        ({"model_init": make_clip(0)[0]}, "model_init is a CLIPModel, but must be a function that loads the model"),
        ({"model_init": "clip"}, "model_init is a str, but must be a function"),
        ({"model_init": lambda trial, more: None}, "model_init takes several arguments"),
        ({"model_init": lambda: None}, "NoneType isn't a dual encoder"),
        ({"optimizers": (torch.optim.SGD(make_clip(0)[0].parameters()), None)}, "optimizers are given beside"),
    ],
    ids=["model too", "a model", "text", "arguments", "nothing", "optimizer"],
)
def test_a_model_init_that_cannot_be_meant_is_refused(tmp_path, arguments, line):
    with pytest.raises(InputError, match=line):
        make_searcher(tmp_path, arguments=arguments)


def test_a_model_init_that_gives_a_trained_model_is_refused(tmp_path):
    model = load_target()
    trainer = make_searcher(tmp_path, model_init=lambda: model)
    with pytest.raises(InputError, match="model_init gives the same weights again, which have been trained"):
        trainer.train()
