"""What is saved is finite: a state that became NaN is never a checkpoint, a model or an average, and ends the run."""

import json

import pytest
import torch
from helpers import TerminateAt, assert_same, make_clip, make_dataset, make_trainer, weights
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hpt import InputError, ZeroShotClassifier
from hpt.errors import TrainingStopped
from hpt.models.loading import save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.weights import find_non_finite
from hpt.training.checkpoints import MANIFEST, last_checkpoint, read_manifest, write_manifest
from hpt.training.pretraining import ContrastiveTrainer, PretrainingConfig, is_finished, pretrain
from hpt.training.resumable import NonFiniteError


NAN, INF = float("nan"), float("inf")
EACH_SECOND = {"save_strategy": "steps", "save_steps": 2}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "anchor_learning_rate": 1e-3}


class Break(TrainerCallback):
    """Put a number into one place of the state, right after the update of a step."""

    def __init__(self, step: int, what: str = "weights", number: float = NAN):
        self.step, self.what, self.number = step, what, number

    def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        if state.global_step + 1 == self.step:
            kept = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
            places = {
                "weights": [weight for weight in model.parameters() if weight.requires_grad],
                "frozen": [weight for weight in model.parameters() if not weight.requires_grad],
                "optimizer": kept,
            }
            places[self.what][-1].data.view(-1)[-1] = self.number


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_one_number_anywhere_is_found(dtype, number):
    for size in (1, 7, 64, 1000):
        for place in {0, size // 2, size - 1}:
            broken = torch.ones(size, dtype=dtype)
            broken[place] = number
            assert find_non_finite({"good": torch.ones(5), "broken": broken}) == "1 of 2 (broken)"
    largest = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)  # whose sum and norm overflow
    assert not find_non_finite({"largest": largest, "empty": torch.ones(0), "whole": torch.arange(3), "": -largest})


BROKEN = {
    "after the first step": (Break(1), {}, None),
    "within an epoch": (Break(5), {}, 4),
    "at a save": (Break(4), {}, 2),
    "infinite": (Break(5, number=INF), {}, 4),
    "clipped": (Break(5), {"max_grad_norm": 1.0}, 4),
    "bf16": (Break(5), {"bf16": True}, 4),
    "fp16": (Break(5), {"fp16": True}, 4),
    "accumulation": (Break(5), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 4),
    "frozen": (Break(5, "frozen"), {}, 4),
    "momentum": (Break(5, "optimizer"), {}, 4),
    "moments of Adam": (Break(5, "optimizer", INF), ADAM, 4),  # whose weights stay finite, and don't learn any more
    "end of the anchor stage": (Break(6), {"save_strategy": "no"}, None),  # which GPD's average would take up
    "last step": (Break(12), {}, 10),
    "last step, nothing saved": (Break(12), {"save_strategy": "no"}, None),
    "last step, saved by epoch": (Break(12), {"save_strategy": "epoch"}, 9),
    "last step, within an epoch": (Break(5), {"max_steps": 5, "save_strategy": "no"}, None),
    "best model": (Break(12), {"save_strategy": "epoch", "load_best_model_at_end": True}, 9),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_state_that_became_nan_is_not_saved_and_ends_the_run(tmp_path, kind):
    broken, settings, good = BROKEN[kind]
    best = {"eval_dataset": make_dataset(6), "eval_strategy": "epoch"} if "load_best_model_at_end" in settings else {}
    trainer = make_trainer(tmp_path, **EACH_SECOND | {"logging_steps": 20} | best | settings)
    trainer.add_callback(broken)
    with pytest.raises(NonFiniteError, match=r"The state after step \d+ is NaN or infinite, \d+ of \d+ \(") as stopped:
        trainer.train()
    assert "a lower learning_rate (now" in str(stopped.value) or "a lower anchor_learning_rate (now" in str(
        stopped.value
    )
    last = None if good is None else str(tmp_path / f"checkpoint-{good}")
    assert last_checkpoint(tmp_path) == last
    assert str(stopped.value).endswith(f"The last good state is in {last}." if last else "no complete checkpoint.")
    assert_all_finite(tmp_path)


def assert_all_finite(folder):
    for file in folder.rglob("*.safetensors"):
        assert not find_non_finite(load_file(file)), file


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 1.0}, {"bf16": True}, ADAM], ids=str)
def test_a_huge_learning_rate_leaves_only_good_checkpoints(tmp_path, settings):
    trainer = make_trainer(tmp_path, **EACH_SECOND | settings | {"learning_rate": 1e30})
    with pytest.raises(NonFiniteError, match=r"a lower learning_rate \(now 1e\+30\)"):
        trainer.train()
    assert_all_finite(tmp_path)
    assert last_checkpoint(tmp_path) is not None


def test_a_run_goes_on_from_the_last_good_state(tmp_path):
    whole = make_trainer(tmp_path / "whole", **EACH_SECOND)
    whole.train()
    broken = make_trainer(tmp_path / "run", **EACH_SECOND)
    broken.add_callback(Break(7))
    with pytest.raises(NonFiniteError):
        broken.train()
    with pytest.raises(InputError, match=r"The model has NaN or infinite weights before training, \d+ of \d+ \("):
        broken.train()
    written = (tmp_path / "run" / "checkpoint-6" / MANIFEST).stat().st_mtime_ns
    again = make_trainer(tmp_path / "run", **EACH_SECOND)
    again.train(resume_from_checkpoint="last")
    assert (tmp_path / "run" / "checkpoint-6" / MANIFEST).stat().st_mtime_ns == written
    assert_same(weights(again.model), weights(whole.model))


def test_sigterm_does_not_save_a_broken_state(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(Break(5))
    trainer.add_callback(TerminateAt(5))
    with pytest.raises(NonFiniteError, match="The state after step 5"):
        trainer.train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["an unused word", "an image weight", "the proxy"])
def test_models_that_are_not_finite_are_refused_before_training(tmp_path, what):
    model, proxy = make_clip(0)[0], ZeroShotClassifier(*make_clip(1, patch_size=4))
    broken = {
        "an unused word": model.text_model.embeddings.token_embedding.weight,
        "an image weight": model.visual_projection.weight,
        "the proxy": proxy.model.visual_projection.weight,
    }
    broken[what].data.view(-1)[0] = NAN
    with pytest.raises(
        InputError, match="The (proxy|model) has NaN or infinite weights.*, 1 of .*: load a sound copy"
    ):
        make_trainer(tmp_path, model, proxy=proxy).train()
    assert not list(tmp_path.iterdir())


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, **EACH_SECOND)

    class BreakAverage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:  # the average is final, and not used before step 10
                next(iter(trainer.gpd.ema.values())).view(-1)[0] = NAN

    trainer.add_callback(BreakAverage())
    with pytest.raises(NonFiniteError, match=r"The state after step 8 is NaN or infinite, 1 of \d+ \(ema\."):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_gradients_that_fp16_never_takes_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("hpt.training.resumable.MAX_SKIPPED", 5)
    trainer = make_trainer(tmp_path, fp16=True, **EACH_SECOND)
    trainer.model.visual_projection.weight.register_hook(
        lambda gradient: gradient * (NAN if trainer.state.global_step >= 5 else 1)
    )
    with pytest.raises(NonFiniteError, match=r"The last 5 steps, up to step 10, changed nothing.*bf16, or float32"):
        trainer.train()


@pytest.mark.parametrize(
    "save",
    [lambda trainer, folder: trainer.save_model(str(folder)), "save_finished"],
    ids=["save_model", "save_finished"],
)
def test_a_model_that_is_not_finite_is_not_written(tmp_path, save):
    trainer = make_trainer(tmp_path / "run")
    trainer.model.logit_scale.data.fill_(NAN)
    with pytest.raises(TrainingStopped, match=r"model isn't written: .* NaN or infinite, 1 of \d+ \(logit_scale\)"):
        if save == "save_finished":
            save_finished(trainer.model, trainer.processing_class, tmp_path / "model")
        else:
            save(trainer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_adapters_that_overflow_when_they_are_merged_are_not_written(tmp_path):
    model, processor = make_clip(0)
    model = add_lora(model, rank=2)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.fill_(1e30)  # finite, but not times itself
    assert not find_non_finite(model.state_dict())
    with pytest.raises(TrainingStopped, match="robust isn't written: weights of the model are NaN or infinite"):
        save_finished(merged(model), processor, tmp_path / "robust")


@pytest.mark.parametrize("file", ["model.safetensors", "gpd_state.safetensors"])
def test_a_broken_checkpoint_of_an_earlier_version_is_not_resumed_from(tmp_path, file, caplog):
    make_trainer(tmp_path, **EACH_SECOND, max_steps=4).train()
    folder = tmp_path / "checkpoint-4"
    tensors = load_file(folder / file)
    next(iter(tensors.values())).view(-1)[0] = NAN
    save_file(tensors, folder / file, metadata={"format": "pt"})
    manifest = read_manifest(tmp_path / "checkpoint-2")
    write_manifest(folder, manifest["settings"], manifest["launch"])
    written = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({part: written[part] for part in ("files", "settings", "launch")}))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert f"Ignored: {folder} is of no use: {file} has NaN or infinite values, 1 of" in caplog.text


@pytest.mark.parametrize("save_strategy", ["no", "epoch"])
@pytest.mark.parametrize("step", [4, 6])
def test_pretraining_that_became_nan_leaves_no_finished_model(tmp_path, monkeypatch, save_strategy, step):
    make = ContrastiveTrainer.__init__

    def make_broken(self, *given):
        make(self, *given)
        self.add_callback(Break(step))

    monkeypatch.setattr(ContrastiveTrainer, "__init__", make_broken)
    tiny = {"image_size": 16, "vision_hidden_size": 16, "text_hidden_size": 16, "projection_dim": 8, "use_cpu": True}
    run = {"max_train_samples": 60, "per_device_train_batch_size": 20, "num_train_epochs": 2, "disable_tqdm": True}
    args = PretrainingConfig(str(tmp_path), save_strategy=save_strategy, **tiny | run)
    with pytest.raises(NonFiniteError, match="The state after step 6 is NaN or infinite"):
        pretrain(args)
    assert not is_finished(tmp_path)
    assert last_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-3") if save_strategy == "epoch" else None)
    assert_all_finite(tmp_path)
