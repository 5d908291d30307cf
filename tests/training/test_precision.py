"""Mixed precision: what runs in which dtype, over float32 weights; compiled towers and checkpointed activations."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import ONE_THREAD, assert_same, make_clip, make_dataset, make_trainer, weights, with_other_weights

from hpt import ZeroShotClassifier
from hpt.models.lean import NO_CHANGES
from hpt.training.objectives import Objective


def dtypes_by_part(trainer) -> dict[str, set]:
    """Which dtypes the image embeddings have in the attack, in the training pass and in the proxy, over one step."""
    seen, part = {"attack": set(), "training": set(), "proxy": set()}, ["training"]
    trainer.model.visual_projection.register_forward_hook(lambda *call: seen[part[0]].add(call[-1].dtype))
    trainer.proxy.model.visual_projection.register_forward_hook(lambda *call: seen["proxy"].add(call[-1].dtype))
    perturb = trainer.attack.perturb

    def attack(*batch, **settings):
        part[0] = "attack"
        result = perturb(*batch, **settings)
        part[0] = "training"
        return result

    trainer.attack.perturb = attack
    trainer.train()
    return seen


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("settings", "attack", "training"),
    [
        ({}, F32, F32),
        ({"bf16": True}, BF16, BF16),
        ({"bf16": True, "attack_dtype": "float32"}, F32, BF16),
        ({"attack_dtype": "bfloat16"}, BF16, F32),
        ({"attack_dtype": "float16"}, F16, F32),
        ({"fp16": True}, F16, F16),
        ({"fp16": True, "attack_dtype": "float32"}, F32, F16),
    ],
    ids=lambda value: " ".join(map(str, value.values())) or "float32" if isinstance(value, dict) else "",
)
def test_each_part_runs_in_its_dtype(tmp_path, settings, attack, training):
    trainer = make_trainer(tmp_path, max_steps=1, **settings)
    assert dtypes_by_part(trainer) == {"attack": {attack}, "training": {training}, "proxy": {F32}}
    assert {weight.dtype for weight in trainer.model.parameters()} == {F32}


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_the_proxy_keeps_its_own_dtype(tmp_path, settings):
    model, processor = make_clip(1, patch_size=4)
    trainer = make_trainer(tmp_path, proxy=ZeroShotClassifier(model.bfloat16(), processor), max_steps=1, **settings)
    assert dtypes_by_part(trainer)["proxy"] == {BF16}
    assert {weight.dtype for weight in trainer.proxy.model.parameters()} == {BF16}


def test_the_text_tower_trains_in_the_trainings_dtype(tmp_path):
    trainer, seen = make_trainer(tmp_path, bf16=True, trainable="all", max_steps=1), set()
    trainer.model.text_projection.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    trainer.train()
    assert BF16 in seen  # and float32 once more, after training


def test_small_gradients_survive_float16(classifier, images, labels):
    """Of a sum of losses, scaled: without, some of the smallest would be zero, and their pixels stay."""
    from hpt.attacks.gradient import PGD

    def faint(x):
        return classifier(x) * 1e-4

    moved = []
    for dtype in (F32, F16):
        with torch.autocast("cpu", dtype, enabled=dtype != F32):
            adversarial = PGD(eps=8 / 255, steps=1, step_size=8 / 255, random_start=False)(faint, images, labels)
        moved.append((adversarial != images).float().mean())
    assert moved[1] > 0.98 * moved[0]


LOWER = [{"bf16": True}, {"fp16": True}, {"attack_dtype": "bfloat16"}, {"proxy": BF16}]


@pytest.mark.parametrize("settings", LOWER, ids=str)
def test_training_in_lower_precision_is_near_float32(tmp_path, settings):
    """Far nearer than the two runs are to where they began."""
    runs, rates = [], {"anchor_learning_rate": 0.02, "learning_rate": 0.05}
    for precision in ({}, settings):
        model, processor = make_clip(1, patch_size=4)
        proxy = ZeroShotClassifier(model.to(precision.get("proxy", F32)), processor)
        trainer = make_trainer(tmp_path, **rates, **precision | {"proxy": proxy})
        begin = weights(trainer.model)
        if "fp16" in precision:  # at the usual 2 ** 16 the first step overflows, which delays the learning rate
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.train()
        runs.append(weights(trainer.model))
    moved = sum((runs[0][name] - begin[name]).square().sum() for name in begin).sqrt()
    apart = sum((runs[0][name] - runs[1][name]).square().sum() for name in begin).sqrt()
    assert 0 < apart < 0.2 * moved


def test_evaluation_attacks_in_float32(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True, attack_dtype="bfloat16", max_steps=1, eval_dataset=make_dataset(4))
    trainer.train()
    seen = set()
    trainer.model.visual_projection.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    trainer.evaluate()
    assert seen == {F32}


def test_fp16_skips_a_step_that_overflows_and_resumes_with_its_scale(tmp_path):
    """The stage goes on with the steps counted; the learning rate waits for those taken."""
    settings = {"fp16": True, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, **settings)
    objective = trainer.objectives["anchor"]

    class Overflow(Objective):
        def __call__(self, step):
            return objective(step) * (1e38 if trainer.state.global_step == 2 else 1)  # finite, but not times the scale

    trainer.objectives["anchor"] = Overflow()
    trainer.train()
    before, after = (load_weights(tmp_path / f"checkpoint-{step}") for step in (2, 3))
    assert_same(before, after)
    files = [tmp_path / f"checkpoint-{step}" / "scaler.pt" for step in range(1, 13)]
    scales = [2.0**16] + [torch.load(file, weights_only=True)["scale"] for file in files]
    skipped = [step + 1 for step in range(12) if scales[step + 1] < scales[step]]
    assert 3 in skipped and scales[3] == scales[2] / 2
    assert trainer.state.global_step == 12 and trainer.lr_scheduler.last_epoch == 12 - len(skipped)
    assert [entry["stage"] for entry in trainer.state.log_history if "stage" in entry] == [1] * 6 + [2] * 6
    resumed = with_other_weights(make_trainer(tmp_path, **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(weights(resumed.model), weights(trainer.model))


def load_weights(folder):
    return weights(make_clip(0)[0].from_pretrained(folder))


@pytest.mark.parametrize("trainable", ["vision", "all"])
def test_checkpointed_activations_change_nothing(tmp_path, trainable):
    runs = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, gradient_checkpointing=checkpointing, trainable=trainable)
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same(*runs)


def test_workers_change_nothing(tmp_path):
    runs = []
    for workers in (0, 2):
        trainer = make_trainer(tmp_path, dataloader_num_workers=workers)
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same(*runs)


def test_the_seed_fixes_everything(tmp_path):
    first, again, other = (make_trainer(tmp_path, seed=seed, full_determinism=full) for seed, full in SEEDS)
    for trainer in (first, again, other):
        trainer.train()
    torch.use_deterministic_algorithms(False)
    assert_same(weights(first.model), weights(again.model))
    assert not torch.equal(first.model.visual_projection.weight, other.model.visual_projection.weight)


SEEDS = [(1, False), (1, True), (2, False)]


def matmul_flops(attack, *batch, **settings) -> int:
    """Of an attack's matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        attack(*batch, **settings)
    return sum(
        event.flops for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm", "aten::bmm")
    )


def compiled_run(folder: Path) -> None:
    """A step of both stages, then an evaluation, in a process of its own: compiling leaves traces in the process."""
    trainer = make_trainer(
        folder,
        anchor_epochs=1,
        transfer_epochs=1,
        warmup_steps=0,
        torch_compile=folder.name == "compiled",
        torch_compile_backend="aot_eager" if folder.name == "compiled" else None,
        eval_dataset=make_dataset(6),
        save_strategy="epoch",
    )
    perturb, flops = trainer.attack.perturb, []

    def counted_perturb(*batch, **settings):
        result = perturb(*batch, **settings)
        with patch.object(trainer.classifier, "changes", NO_CHANGES):  # which compiled towers compute without
            flops.append(matmul_flops(perturb, *batch, **settings))  # of what is compiled by now
        return result

    trainer.attack.perturb = counted_perturb
    trainer.train()
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    metrics = trainer.evaluate()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted  # evaluation isn't compiled
    values = {"graphs": counted, "clean": metrics["eval_clean_accuracy"], "robust": metrics["eval_robust_accuracy"]}
    values["flops of attacks"] = sorted(set(flops))
    (folder / "values.json").write_text(json.dumps(values))


def test_compiled_towers_train_to_the_same_weights(tmp_path):
    """And attacks compute no gradients of weights; see [`RunModels.under_attack`].

    `aot_eager` goes all of torch.compile's way but for generating code, which takes a minute."""
    for name in ("plain", "compiled"):
        (tmp_path / name).mkdir()
        command = [sys.executable, __file__, str(tmp_path / name)]
        subprocess.run(command, check=True, env=ONE_THREAD, capture_output=True)
    plain, compiled = (json.loads((tmp_path / name / "values.json").read_text()) for name in ("plain", "compiled"))
    assert plain.pop("graphs") == 0 and compiled.pop("graphs") >= 3  # attack, training pass, proxy
    assert plain == compiled
    plain_weights, compiled_weights = (
        load_weights(tmp_path / name / "checkpoint-6") for name in ("plain", "compiled")
    )
    assert_same(plain_weights, compiled_weights, atol=1e-5)


if __name__ == "__main__":
    compiled_run(Path(sys.argv[1]))
