"""Kill training at random moments, let it go on, and compare it with a run that was never killed, bit for bit.

    python tests/fault_injection.py --kills 20

Each kill is a SIGKILL to all processes, at a step drawn from both stages and a further moment within it, so that many
hit a checkpoint that is being written.
"""

import argparse
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
from helpers import ONE_THREAD, TORCHRUN, make_clip, make_dataset, make_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

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


class SayStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            print(f"step {state.global_step + 1}", flush=True)


def train(folder: str, variant: str) -> None:
    """Train to the end, from the newest complete checkpoint: 20 steps, a checkpoint every 3, 5 steps an epoch."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    settings = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}
    settings |= {"eval_strategy": "epoch", "anchor_learning_rate": 0.02, "learning_rate": 0.1} | VARIANTS[variant]
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


def start(folder: Path, variant: str, processes: int) -> subprocess.Popen:
    launcher = TORCHRUN if processes == 2 else [sys.executable]
    command = [*launcher, __file__, "--train", str(folder), "--variant", variant]
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
    for process in [*psutil.Process(launched.pid).children(recursive=True), launched]:
        with suppress(psutil.NoSuchProcess):  # some end by themselves when others are killed
            process.kill()
    launched.communicate()


def assert_same_run(reference: Path, resumed: Path) -> None:
    """The last checkpoints of two runs have the same weights, EMA, optimizer state and log, bit for bit."""
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


def main(kills: int, seed: int) -> None:
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
    parser.add_argument("--train")
    parser.add_argument("--variant")
    given = parser.parse_args()
    train(given.train, given.variant) if given.train else main(given.kills, given.seed)
