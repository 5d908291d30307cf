"""Two real processes train and evaluate as one does."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import datasets
import pytest
import torch
from helpers import (
    ONE_THREAD,
    TORCHRUN,
    TerminateAt,
    assert_same,
    held_by_another,
    make_benchmark,
    make_clip,
    make_dataset,
    make_family,
    make_trainer,
)
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hpt import InputError, Mixture, RobustnessEvaluator, ZeroShotClassifier
from hpt.classifiers import draw_uniform
from hpt.cli import run_recipe
from hpt.evaluation.results import read_result_rows
from hpt.processes import hold_together, join_processes
from hpt.training import clean_features, kept_rows
from hpt.training.checkpoints import last_checkpoint
from hpt.training.objectives import TeCoA
from hpt.training.resumable import CheckpointError, NonFiniteError
from hpt.training.trainer import NonFiniteLossError


pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")
LOGGED = ("loss", "train_robust_accuracy", "proxy_robust_accuracy", "proxy_right_share")


def run_in_two_processes(folder: Path, *functions, timeout: int | None = None) -> None:
    """One function after another, each in a folder of its name: a launch takes longer than what most of them do."""
    names = [function.__name__ for function in functions]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    command = [*TORCHRUN, __file__, str(folder), *names]
    finished = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=timeout)
    assert finished.returncode == 0, finished.stderr[-5000:]


def train_and_save(folder: Path, dtype: str = "float64", dataset=None, others=(), family="CLIP", **settings) -> None:
    """Train 2 + 2 epochs of 5 steps at a global batch of 8; write each rank's weights and metrics."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    proxy, processor = make_clip(1, patch_size=4)
    target, own_processor = make_clip(0) if family == "CLIP" else make_family(family)
    for module in target.modules():
        if isinstance(module, torch.nn.Dropout):  # which two processes draw otherwise than one
            module.p = 0.0
    settings = {
        "attack_random_start": False,
        "kl_reduction": "sum",  # the reduction that has averages to undo
        "learning_rate": 0.05,
    } | settings
    trainer = make_trainer(
        folder,
        target.to(getattr(torch, dtype)),
        make_dataset(40) if dataset is None else dataset,
        processor=own_processor,
        proxy=[ZeroShotClassifier(proxy.to(getattr(torch, dtype)), processor), *others],
        eval_dataset=make_dataset(7, seed=5),
        per_device_train_batch_size=8 // world_size,
        per_device_eval_batch_size=2,
        **settings,
    )
    assert trainer.args.world_size == world_size
    trainer.train()
    assert trainer.state.global_step == 20
    metrics = trainer.evaluate()
    values = [metrics["eval_clean_accuracy"], metrics["eval_robust_accuracy"]]
    values += [entry[key] for entry in trainer.state.log_history if "loss" in entry for key in LOGGED if key in entry]
    weights = {name: weight.detach().contiguous() for name, weight in trainer.model.named_parameters()}
    save_file(weights | {"metrics": torch.tensor(values)}, folder / f"{world_size}-{rank}.safetensors")


def train_both_towers(folder: Path) -> None:
    """The same with both towers, augmented, from random starts, which belong to an image's place in the run; and by
    two proxies, where they are right."""
    model, processor = make_clip(2, patch_size=4)
    taught = {"others": [ZeroShotClassifier(model.double(), processor)], "proxy_weights": [1, 2]}
    settings = {"trainable": "all", "kl_reduction": "mean", "attack_random_start": True, "augmentation": "crop_flip"}
    train_and_save(folder, **taught, only_where_right=True, save_endpoints=True, **settings)
    own = load_file(folder / f"{os.environ.get('WORLD_SIZE', 1)}-{os.environ.get('RANK', 0)}.safetensors")
    for name, weight in load_file(folder / "endpoints" / "final.safetensors").items():  # which rank 0 writes for both
        assert torch.equal(weight, own[name]), name


def train_on_stream(folder: Path) -> None:
    """The same over a stream, which one process reads for both."""
    stream = make_dataset(40).to_iterable_dataset(num_shards=2)
    train_and_save(folder, dataset=stream, steps_per_epoch=5, shuffle_buffer_size=7, augmentation="crop_flip")


def train_on_a_mixture(folder: Path, **settings) -> None:
    """The same over two sets, each step of one, with augmentation and both towers."""
    birds, cars = make_dataset(16), make_dataset(24, seed=4)
    cars = cars.cast_column("label", datasets.ClassLabel(names=["car", "Dog", "tree"]))
    both_towers = {"trainable": "all", "augmentation": "crop_flip", "attack_random_start": True}
    both_towers["anchor_learning_rate"] = 0.01  # beyond, all classes come to the same logits, which rounding orders
    train_and_save(folder, dataset=Mixture({"birds": birds, "cars": cars}, **settings), **both_towers)


def train_on_mixed_batches(folder: Path) -> None:
    """The same where each process has images of both sets in a batch."""
    train_on_a_mixture(folder, weights=[3, 1], batches="mixed")


def train_a_dinov2_by_fare(folder: Path) -> None:
    """The same without labels, and of a target with a parameter that has no gradient, which DDP must not wait for."""
    images = make_dataset(40).remove_columns("label")
    fare = {"objective": "fare", "anchor_objective": "fare", "attack_random_start": True, "kl_reduction": "mean"}
    train_and_save(folder, dataset=images, family="DINOv2", learning_rate=0.01, anchor_learning_rate=0.01, **fare)


def train_a_resnet(folder: Path) -> None:
    """The same of a target with BatchNorm, and both towers."""
    train_and_save(folder, family="ResNet", trainable="all", kl_reduction="mean", learning_rate=0.01)


def train_with_kept_features(folder: Path) -> None:
    """The same with features of clean images, in chunks of which each process computes some."""
    home = str(folder / f"home-{os.environ.get('WORLD_SIZE', 1)}")
    small = patch.object(kept_rows, "CHUNK", 8), patch.object(clean_features, "BATCH", 4)
    with patch.object(constants, "HF_HOME", home), small[0], small[1]:
        slow = {"kl_reduction": "mean", "anchor_learning_rate": 0.01, "attack_random_start": True}
        train_and_save(folder, anchor_objective="0.5*anchor + fare", **slow)


def train_on_an_uneven_number(folder: Path) -> None:
    """11 images in micro-batches of 2; one process has them at once, and the image that two are filled up with."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    rows = [*range(11), *[0] * (world_size == 1)]
    proxy, processor = make_clip(1, patch_size=4)
    trainer = make_trainer(
        folder,
        make_clip(0)[0].double(),
        make_dataset(11).select(rows),
        proxy=ZeroShotClassifier(proxy.double(), processor),
        per_device_train_batch_size=8 if world_size == 1 else 2,
        gradient_accumulation_steps=world_size,
        train_sampling_strategy="sequential",
        attack_random_start=False,
    )
    trainer.train()
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses) == 8
    weights = {name: weight.detach().contiguous() for name, weight in trainer.model.named_parameters()}
    save_file(weights | {"metrics": losses}, folder / f"{world_size}-{rank}.safetensors")


def assert_trained_alike(folder: Path) -> None:
    alone, first, second = (load_file(folder / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    metrics = [run.pop("metrics") for run in (alone, first, second)]  # Trainer's are float32
    torch.testing.assert_close(*metrics[:2], rtol=1e-6, atol=1e-6)
    assert_same(first, alone, atol=1e-9)
    assert_same(first, second)


def test_two_processes_train_as_one(tmp_path):
    ways = train_on_an_uneven_number, train_and_save, train_both_towers
    ways += (train_with_kept_features,)
    ways += train_on_stream, train_on_a_mixture, train_on_mixed_batches, train_a_dinov2_by_fare, train_a_resnet
    run_in_two_processes(tmp_path, *ways)
    for train in ways:
        train(tmp_path / train.__name__)
        assert_trained_alike(tmp_path / train.__name__)
    one, two = (
        {file.relative_to(home): file.read_bytes() for file in home.rglob("*.npy")}
        for home in (tmp_path / "train_with_kept_features" / f"home-{processes}" for processes in (1, 2))
    )
    assert one == two and len(one) == 2


class CompareGradients(TrainerCallback):
    """Before each optimizer step, every rank has the same gradients, and there are some."""

    def __init__(self):
        self.steps = 0

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                assert weight.dtype == weight.grad.dtype == torch.float32
                there = [torch.empty_like(weight.grad) for _ in range(2)]
                torch.distributed.all_gather(there, weight.grad)
                assert torch.equal(*there), name
                assert there[0].abs().sum() > 0 or name.endswith("k_proj.bias"), name  # which softmax doesn't see
        self.steps += 1


def compare_gradients(folder: Path) -> None:
    """Gradients agree under bf16 autocast, with two micro-batches a step; only rank 0 writes, but for each rank's
    random state."""
    written = []
    sys.addaudithook(lambda event, args: written.append(args) if event == "open" else None)
    trainer = make_trainer(
        folder,
        dataset=make_dataset(16),
        bf16=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="epoch",
    )
    comparison = CompareGradients()
    trainer.add_callback(comparison)
    images = set()
    loss = trainer.compute_loss

    def keep(model, inputs, **kwargs):
        images.update((trainer.state.global_step, row) for row in inputs["sample_ids"].tolist())
        return loss(model, inputs, **kwargs)

    trainer.compute_loss = keep
    trainer.train()
    assert comparison.steps == 8
    both = [None, None]
    torch.distributed.all_gather_object(both, images)
    assert len(both[0]) == len(both[1]) == 32 and not both[0] & both[1]
    opened = {
        str(path) for path, mode, _ in written if mode and mode[0] in "wax" and str(path).startswith(str(folder))
    }
    if trainer.args.process_index == 1:
        assert {Path(path).name for path in opened} <= {"rng_state_1.pth"}, opened
    torch.distributed.barrier()
    states = {file.name for file in (folder / "checkpoint-8").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= states


def terminate_one_rank(folder: Path) -> None:
    """SIGTERM reaches rank 1 alone; both save and leave."""
    trainer = make_trainer(folder, dataset=make_dataset(16), per_device_train_batch_size=2)
    if trainer.args.process_index == 1:
        trainer.add_callback(TerminateAt(3))
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 75
    assert last_checkpoint(folder) == str(folder / "checkpoint-3")


class BreakWeights(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == 3:
            next(model.parameters()).data.view(-1)[0] = torch.nan


def break_weights_of_one_rank(folder: Path) -> None:
    """Both say so, and neither saves the state or waits for the other."""
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 20}
    trainer = make_trainer(folder, dataset=make_dataset(16), per_device_train_batch_size=2, **settings)
    if trainer.args.process_index == 1:
        trainer.add_callback(BreakWeights())
    good = re.escape(str(folder / "checkpoint-2"))
    with pytest.raises(NonFiniteError, match=f"The state after step 3 is NaN .* The last good state is in {good}"):
        trainer.train()
    torch.distributed.barrier()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]


class NanOnOneRank(TeCoA):
    def __call__(self, step):
        is_here = self.trainer.args.process_index == 1 and self.trainer.state.global_step == 2
        return super().__call__(step) * (torch.nan if is_here else 1)


def break_loss_of_one_rank(folder: Path) -> None:
    """Both call it by its name, though it has made the gradients of both NaN, and save the state before that step."""
    trainer = make_trainer(folder, dataset=make_dataset(16), per_device_train_batch_size=2)
    trainer.objectives["anchor"] = NanOnOneRank()
    trainer.objectives["anchor"].trainer = trainer
    good = re.escape(str(folder / "checkpoint-2"))
    with pytest.raises(NonFiniteLossError, match=f"The loss of step 3 .* The state before that step is in {good}"):
        trainer.train()
    torch.distributed.barrier()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]


def fill_the_disk(folder: Path, rank: int, limit: int) -> None:
    """What one rank can't write stops both with the same kind of line, whichever of its files it is."""
    settings = {"trainable": "all", "optim": "adamw_torch", "learning_rate": 1e-3}
    trainer = make_trainer(
        folder, dataset=make_dataset(16), per_device_train_batch_size=2, save_strategy="epoch", **settings
    )
    if trainer.args.process_index == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with pytest.raises(CheckpointError, match="checkpoint-4 can't be written"):
        trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    torch.distributed.barrier()
    assert not list(folder.glob("checkpoint-*"))


def fill_the_disk_for_the_optimizer(folder: Path) -> None:
    fill_the_disk(folder, 0, 200_000)


def fill_the_disk_of_the_other_rank(folder: Path) -> None:
    fill_the_disk(folder, 1, 100)


def test_gradients_agree_and_what_stops_one_rank_stops_both(tmp_path):
    stops = break_weights_of_one_rank, fill_the_disk_for_the_optimizer, fill_the_disk_of_the_other_rank
    stops += (terminate_one_rank, break_loss_of_one_rank)
    run_in_two_processes(tmp_path, compare_gradients, *stops, timeout=240)  # rather than wait for ever


class Noisy:
    """A randomised classifier by the mean colours."""

    randomised = True

    def __call__(self, images, seeds):
        return 20 * images.mean((2, 3)) + 2 * draw_uniform(seeds, 3).to(images)


def evaluate(folder: Path) -> None:
    """Evaluate robustness; the rows land in the folder, and each rank checks that it was given them all."""
    benchmark = make_benchmark(26)
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
    evaluator = RobustnessEvaluator(attacks="pgd:steps=2", evaluations=3, batch_size=4, output_dir=folder)
    rows = evaluator(classifier=Noisy(), benchmarks=benchmark, name="noisy")
    assert [len(row.accuracies) for row in rows] == [3, 3, 3, 3]


def read_results(folder: Path) -> tuple[list, dict]:
    """The rows without their times, and what was predicted in each batch of each row."""
    rows = [replace(row, seconds=None) for row in read_result_rows(folder)]
    lines = [json.loads(line) for file in folder.glob("predictions-*") for line in file.read_text().splitlines()]
    return rows, {(line["row"], line["batch"]): (line["predictions"], line.get("again")) for line in lines}


def go_on_evaluating(folder: Path) -> None:
    """The same where one process has begun."""
    evaluate(folder)


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
    benchmark = make_benchmark(26)
    evaluator = RobustnessEvaluator(attacks=["pgd:steps=1"], batch_size=4, output_dir=folder)
    for _ in range(2):
        with pytest.raises(InputError, match="mine, random, clean: the logits of the model"):
            evaluator(model, processor, benchmark, name="mine")
    type(model).get_image_features = image_features
    assert [row.attack for row in evaluator(model, processor, benchmark, name="mine")][-1] == "worst case"


def hold_folders(folder: Path) -> None:
    """Write what each rank gets for a folder that is free, and for one that is in use."""
    rank = join_processes(use_cpu=True).process_index
    for name in ("free", "used"):
        try:
            with hold_together(folder / name) as first, hold_together(folder / name) as second:
                text = f"{first} {second}"
        except InputError as error:
            text = str(error)
        (folder / f"{name} {rank}").write_text(text)


def test_two_processes_evaluate_as_one(tmp_path):
    """Also where they go on with what one has begun; what fails in one fails in both; and one folder is held for
    both, or both are refused."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    evaluate(alone)
    began, held = both / "go_on_evaluating", both / "hold_folders"
    began.mkdir(parents=True)
    for name, kept in (("results.jsonl", 3), ("predictions-0.jsonl", 24)):
        lines = (alone / name).read_text().splitlines(keepends=True)
        assert len(lines) > kept
        (began / name).write_text("".join(lines[:kept]))
    with held_by_another(held / "used"):
        run_in_two_processes(both, evaluate, go_on_evaluating, fail_on_one_rank, hold_folders)
    for folder in (both / "evaluate", began):
        assert len(list(folder.glob("predictions-*.jsonl"))) == 2
        assert read_results(folder) == read_results(alone)
    for name, text in (("free", "True False"), ("used", f"used is in use by process {os.getpid()} on")):
        texts = {(held / f"{name} {rank}").read_text() for rank in (0, 1)}
        assert len(texts) == 1 and text in texts.pop()


def run_all(folder: str, *names: str) -> None:
    for name in names:
        globals()[name](Path(folder) / name)


if __name__ == "__main__":
    run_recipe(lambda: run_all(*sys.argv[1:]))
