"""Kill trainings or evaluations at random moments, let them go on, and compare them with some that were never killed.

    python tests/fault_injection.py --kills 20
    python tests/fault_injection.py --evaluation --kills 10

Each kill is a SIGKILL, and what goes on begins at once. A training loses all processes, at a step drawn from both
stages and a further moment within it, so that many hit a checkpoint that is being written; resumed, it is the same bit
for bit. An evaluation loses all processes or a single rank, behind a batch that is drawn and a further moment; its
rows and predictions are the same.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from helpers import ONE_THREAD, TORCHRUN, make_benchmark, make_clip, make_dataset, make_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from hpt import RobustnessEvaluator, ZeroShotClassifier
from hpt.models.lora import add_lora


STEPS = 20
VARIANTS = {
    "plain": {},
    "accumulation, bf16, workers": {"gradient_accumulation_steps": 2, "bf16": True, "dataloader_num_workers": 1},
    "augmentation, workers": {"augmentation": "crop_flip", "dataloader_num_workers": 2},
    "LoRA": {},
    "both towers, AdamW": {"trainable": "all", "optim": "adamw_torch", "learning_rate": 1e-3},
    "stream": {"steps_per_epoch": 5, "shuffle_buffer_size": 7},
}
EVALUATIONS = {
    "several attacks": {"attacks": ["pgd", "cw", "square:queries=20"]},
    "suite, workers": {"attacks": ["pgd", "apgd-ce:steps=10"], "num_workers": 2},
    "proxy": {"attacks": ["adaptive", "transfer", "transfer-to-proxy"], "proxy_name": "proxy"},
}
VICTIMS = ("all", "rank 0", "rank 1")  # of two processes
TIMES = (
    "seconds",
    "digest",
)  # what differs between two evaluations: how long a row or batch took, and a line's digest


class SayStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            print(f"step {state.global_step + 1}", flush=True)


def train(folder: str, variant: str) -> None:
    """Train to the end, from the newest complete checkpoint: 20 steps, a checkpoint every 3, 5 steps an epoch."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    settings = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}
    settings |= {"eval_strategy": "epoch", "anchor_learning_rate": 0.02, "learning_rate": 0.1, "save_endpoints": True}
    settings |= VARIANTS[variant]
    batch_size = 4 // processes // settings.get("gradient_accumulation_steps", 1)
    model, dataset = make_clip(0)[0], make_dataset(20)
    trainer = make_trainer(
        folder,
        add_lora(model, rank=2) if variant == "LoRA" else model,
        dataset.to_iterable_dataset(num_shards=2) if variant == "stream" else dataset,
        eval_dataset=make_dataset(6, seed=5),
        per_device_train_batch_size=batch_size,
        **settings,
    )
    assert trainer.args.world_size == processes
    trainer.add_callback(SayStep())
    trainer.train(resume_from_checkpoint="last")
    trainer._save_now()
    if processes > 1:
        time.sleep(1)  # as `hpt.cli.run_recipe`


def evaluate(folder: str, variant: str) -> None:
    """Evaluate to the end, from the batches that are there: 12 images in batches of 2, under attacks at two radii."""
    (model, processor), settings = make_clip(0), EVALUATIONS[variant]
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4)).eval() if "proxy_name" in settings else None
    evaluator = RobustnessEvaluator(eps=[2 / 255, 8 / 255], batch_size=2, proxy=proxy, output_dir=folder, **settings)
    assert evaluator.state.num_processes == int(os.environ.get("WORLD_SIZE", 1))
    evaluator(model, processor, make_benchmark(12), name="model")
    if evaluator.state.num_processes > 1:
        time.sleep(1)  # as `hpt.cli.run_recipe`


def start(folder: Path, variant: str, processes: int) -> subprocess.Popen:
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    work = "--evaluate" if variant in EVALUATIONS else "--train"
    command = [*launcher, __file__, work, str(folder), "--variant", variant]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)


def finish(folder: Path, variant: str, processes: int) -> str:
    """Run to the end; what it wrote to stderr."""
    process = start(folder, variant, processes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def kill_in_step(folder: Path, variant: str, processes: int, step: int, delay: float) -> None:
    """Start a run, and SIGKILL all of its processes `delay` seconds after step `step` has begun."""
    launched = start(folder, variant, processes)
    for line in launched.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            break
    time.sleep(delay)
    kill_all(launched)


def kill_all(launched: subprocess.Popen) -> None:
    """SIGKILL all processes of a run."""
    for process in [*psutil.Process(launched.pid).children(recursive=True), launched]:
        with suppress(psutil.NoSuchProcess):  # some end by themselves when others are killed
            process.kill()
    launched.communicate()


def kill_rank(launched: subprocess.Popen, rank: str) -> None:
    """SIGKILL one of the processes that torchrun has launched, which then ends the others."""
    for process in psutil.Process(launched.pid).children():
        if process.environ().get("RANK") == rank.removeprefix("rank "):
            process.kill()
    launched.communicate(timeout=60)


def kill_behind_batch(folder: Path, variant: str, processes: int, batches: int, delay: float, victim: str) -> None:
    """Start an evaluation, and SIGKILL it or a rank of it `delay` seconds after so many batches are on the disk."""
    launched = start(folder, variant, processes)
    while not folder.is_dir() or len(read_predictions(folder)) < batches:
        assert launched.poll() is None, launched.communicate()[1]
        time.sleep(0.002)
    time.sleep(delay)
    kill_all(launched) if victim == "all" else kill_rank(launched, victim)


def assert_same_run(reference: Path, resumed: Path) -> None:
    """The last checkpoints of two runs have the same weights, EMA, optimizer state and log, and the runs the same
    endpoints, bit for bit."""
    kept = [sorted((folder / "endpoints").iterdir()) for folder in (reference, resumed)]
    assert [file.name for file in kept[0]] == [file.name for file in kept[1]] and len(kept[0]) == 4
    assert all(first.read_bytes() == second.read_bytes() for first, second in zip(*kept, strict=True))
    folders = [folder / f"checkpoint-{STEPS}" for folder in (reference, resumed)]
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in folders]
    assert names[0] == names[1] and "gpd_state.safetensors" in names[0]
    states = [{name: load_file(folder / name) for name in names[0]} for folder in folders]
    for state, folder in zip(states, folders, strict=True):
        state["optimizer"] = torch.load(folder / "optimizer.pt", weights_only=True)
        log = TrainerState.load_from_json(folder / "trainer_state.json").log_history
        state["log"] = [
            {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
            for entry in log
            if "train_runtime" not in entry
        ]
    assert_equal(*states)


def read_results(folder: Path) -> dict:
    """Rows of an evaluation, in their order, and what was predicted of each batch of each row, but for [`TIMES`]."""
    predictions = read_predictions(folder)
    by_batch = {(line["row"], line["batch"]): line for line in predictions}
    assert len(by_batch) == len(predictions), "a batch was done twice"
    rows = read_lines(folder / "results.jsonl")
    samples = (folder / "samples_random.json").read_text(encoding="utf-8")
    return {"rows": rows, "predictions": by_batch, "samples": samples}


def read_predictions(folder: Path) -> list[dict]:
    return [line for file in sorted(folder.glob("predictions-*.jsonl")) for line in read_lines(file)]


def read_lines(file: Path) -> list[dict]:
    """The whole lines of a file that may be appended to meanwhile."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in whole]


def assert_equal(first, second, where: str = "") -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where} {key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where} {number}")
    else:
        same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
        assert same, f"{where}: {first} is not {second}"


def kill_evaluations(kills: int, seed: int) -> None:
    draw, references = random.Random(seed), {}
    with TemporaryDirectory() as scratch:
        for number in range(kills):
            variant, processes = list(EVALUATIONS)[number // 2 % len(EVALUATIONS)], 1 + number % 2
            if variant not in references:  # by one process, whatever the number of those that are killed
                finish(Path(scratch) / f"whole {variant}", variant, 1)
                references[variant] = read_results(Path(scratch) / f"whole {variant}")
            folder, total = Path(scratch) / f"killed {number}", len(references[variant]["predictions"])
            batches, delay = draw.randint(0, total - 1), draw.uniform(0, 0.05)
            victim = VICTIMS[number // 2 % len(VICTIMS)] if processes == 2 else "all"
            kill_behind_batch(folder, variant, processes, batches, delay, victim)
            there, results = len(read_predictions(folder)), folder / "results.jsonl"
            rows = len(read_lines(results)) if results.exists() else 0
            finish(folder, variant, processes)
            assert_equal(references[variant], read_results(folder))
            print(
                f"{number + 1:2}: {processes} process(es), {variant}: killed {victim} {delay * 1000:.0f} ms behind "
                f"batch {batches} of {total}; {there} batches and {rows} rows were there; same",
                flush=True,
            )
    print(f"{kills} of {kills} evaluations have the rows and predictions of the uninterrupted one")


def kill_trainings(kills: int, seed: int) -> None:
    draw, references = random.Random(seed), {}
    with TemporaryDirectory() as scratch:
        for number in range(kills):
            variant, processes = list(VARIANTS)[number % len(VARIANTS)], 1 + number // len(VARIANTS) % 2
            if (variant, processes) not in references:
                references[variant, processes] = Path(scratch) / f"whole {variant} {processes}"
                finish(references[variant, processes], variant, processes)
            folder, step, delay = Path(scratch) / f"killed {number}", draw.randint(1, STEPS), draw.uniform(0, 0.15)
            kill_in_step(folder, variant, processes, step, delay)
            left = sorted(folder.glob("checkpoint-*"), key=lambda checkpoint: int(checkpoint.name.split("-")[1]))
            whole = [checkpoint.name for checkpoint in left if (checkpoint / "manifest.json").exists()]
            cut = [checkpoint.name for checkpoint in left if checkpoint.name not in whole]
            finish(folder, variant, processes)
            assert_same_run(references[variant, processes], folder)
            stage = "anchor" if step <= STEPS // 2 else "transfer"
            print(
                f"{number + 1:2}: {processes} process(es), {variant}: killed {delay * 1000:.0f} ms into step {step} "
                f"({stage}); complete: {', '.join(whole) or 'none'}; cut off: {', '.join(cut) or 'none'}; same",
                flush=True,
            )
    print(f"{kills} of {kills} are bit-identical to the uninterrupted run")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluation", action="store_true", help="kill evaluations instead of trainings")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train, given.variant)
    elif given.evaluate:
        evaluate(given.evaluate, given.variant)
    else:
        kill = kill_evaluations if given.evaluation else kill_trainings
        kill(given.kills, given.seed)
