"""Two real processes train and evaluate as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, make_clip, make_dataset, make_trainer
from safetensors.torch import load_file, save_file

from hpt import InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.benchmarks import Benchmark
from hpt.data import ImageTransform


def run(folder: Path) -> None:
    """Train 2 + 2 epochs at a global batch of 8 in float64; write each rank's weights and metrics."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    proxy, processor = make_clip(1, patch_size=4)
    trainer = make_trainer(
        folder,
        make_clip(0)[0].double(),
        make_dataset(16),
        proxy=ZeroShotClassifier(proxy.double(), processor),
        eval_dataset=make_dataset(7, seed=5),
        per_device_train_batch_size=8 // world_size,
        per_device_eval_batch_size=2,
        train_sampling_strategy="sequential",
        kl_reduction="sum",  # the reduction that has averages to undo
        learning_rate=0.05,
    )
    assert trainer.args.world_size == world_size
    trainer.train()
    metrics = trainer.evaluate()
    values = [metrics["eval_clean_accuracy"], metrics["eval_robust_accuracy"]]
    values += [
        entry[key]
        for entry in trainer.state.log_history
        if "loss" in entry
        for key in ("loss", "train_robust_accuracy", "proxy_robust_accuracy")
    ]
    weights = {name: weight.detach().contiguous() for name, weight in trainer.model.named_parameters()}
    save_file(weights | {"metrics": torch.tensor(values)}, folder / f"{world_size}-{rank}.safetensors")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")
def test_two_processes_train_as_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env, capture_output=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, *command[1:]], check=True, env=env, capture_output=True)
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    torch.testing.assert_close(first.pop("metrics"), alone.pop("metrics"), rtol=0, atol=1e-6)  # Trainer's are float32
    for name in alone:
        torch.testing.assert_close(
            first[name], alone[name], rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(first[name], second[name]), name


def evaluate(folder: Path) -> None:
    """Evaluate robustness; the rows land in the folder, and each rank checks that it was given them all."""
    benchmark = Benchmark("random", "test", make_dataset(26), CLASSES, "{}", ImageTransform())
    evaluator = RobustnessEvaluator(
        attacks=["pgd:steps=2", "apgd"], eps=[2 / 255, 16 / 255], batch_size=4, output_dir=folder
    )
    assert evaluator.state.num_processes == int(os.environ.get("WORLD_SIZE", 1))
    model, processor = make_clip(0)
    rows = evaluator(model, processor, benchmark, name="mine")
    assert [row.attack for row in rows] == [
        "clean",
        "large-eps check",
        *2 * ["pgd:steps=2", "apgd"],
        *2 * ["worst case"],
    ]


def read_results(folder: Path) -> tuple[list, dict]:
    """The rows without their times, and what was predicted in each batch of each row."""
    rows = [json.loads(line) | {"seconds": None} for line in (folder / "results.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for file in folder.glob("predictions-*") for line in file.read_text().splitlines()]
    return rows, {(line["row"], line["batch"]): line["predictions"] for line in lines}


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")
def test_two_processes_evaluate_as_one(tmp_path):
    """Also where they go on with what one has begun."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    alone, shared, continued = (tmp_path / name for name in ("alone", "shared", "continued"))
    subprocess.run([sys.executable, __file__, alone, "evaluate"], check=True, env=env, capture_output=True)
    continued.mkdir()
    for name, kept in (("results.jsonl", 3), ("predictions-0.jsonl", 24)):
        lines = (alone / name).read_text().splitlines(keepends=True)
        assert len(lines) > kept
        (continued / name).write_text("".join(lines[:kept]))
    for folder in (shared, continued):
        subprocess.run([*torchrun, __file__, folder, "evaluate"], check=True, env=env, capture_output=True)
        assert len(list(folder.glob("predictions-*.jsonl"))) == 2
        assert read_results(folder) == read_results(alone)


def fail_on_one_rank(folder: Path) -> None:
    """An image that only one rank gets breaks the model; both ranks say so, and go on alike."""
    model, processor = make_clip(0)
    image_features = type(model).get_image_features
    rank = int(os.environ["RANK"])

    def broken(self, pixel_values, **kwargs):
        output = image_features(self, pixel_values, **kwargs)
        output.pooler_output = output.pooler_output * (torch.nan if rank == 1 else 1)
        return output

    type(model).get_image_features = broken
    benchmark = Benchmark("random", "test", make_dataset(26), CLASSES, "{}", ImageTransform())
    evaluator = RobustnessEvaluator(attacks=["pgd:steps=1"], batch_size=4, output_dir=folder)
    for _ in range(2):
        with pytest.raises(InputError, match="mine, random, clean: the logits of the model"):
            evaluator(model, processor, benchmark, name="mine")
    type(model).get_image_features = image_features
    assert [row.attack for row in evaluator(model, processor, benchmark, name="mine")][-1] == "worst case"


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")
def test_what_fails_in_one_process_fails_in_all(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, __file__, tmp_path, "fail_on_one_rank"], check=True, env=env, capture_output=True)


if __name__ == "__main__":
    {"run": run, "evaluate": evaluate, "fail_on_one_rank": fail_on_one_rank}[sys.argv[2]](Path(sys.argv[1]))
