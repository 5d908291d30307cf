"""A trained model's folder: the files that hpt writes beside the weights, and what they hold."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import yaml

from hpt.errors import InputError
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.rows import Row


CURVES = "training_curves.png"
EVALUATION_FILE = "evaluation.jsonl"


def read_rows(folder: Path) -> list[Row]:
    """The rows that were added to a model's folder."""
    file = folder / EVALUATION_FILE
    return read_result_rows(file) if file.is_file() else []


def add_rows(folder: Path, rows: list[Row], weights: set[str | None]) -> None:
    """Add rows from [`publish_rows`] to those in a model's folder; one measured again replaces the old one.

    `weights` has the hashes of the model's weights and of its vanilla original: rows of others go.
    """
    kept = {row.identity: row for row in [*read_rows(folder), *rows] if row.weights in weights}
    file = folder / EVALUATION_FILE
    incomplete = file.with_suffix(".incomplete")
    incomplete.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in kept.values()), encoding="utf-8")
    os.replace(incomplete, file)


AGREEMENT_FILE = "processor_check.json"


def write_agreement(folder: Path, agreement: dict) -> None:
    """Keep what [`compare_with_processor`] found beside the model."""
    (folder / AGREEMENT_FILE).write_text(json.dumps(agreement, indent=1), encoding="utf-8")


def read_agreement(folder: Path) -> dict | None:
    """What [`write_agreement`] kept, or `None`."""
    file = folder / AGREEMENT_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


TRAINING_FILE, RUN_FILE = "training.json", "run.yaml"
MODELS = ("target", "proxy")
MAY_BE_LOCAL = (*MODELS, "train_dataset", "eval_datasets")
WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "adapter_model.safetensors")


def write_run(folder: Path, record: dict) -> None:
    """Write `training.json` and `run.yaml` into a folder that holds the model.

    What was measured on other weights that were there before is deleted. The adapters of a PEFT model there name their
    base from here on as others may know it, and not by a local path.
    """
    if (adapter := folder / "adapter_config.json").is_file():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = record["target"]["name"]
        config["revision"] = record["target"]["revision"]
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    record = record | {"weights": hash_saved_weights(folder)}
    if not has_same_weights(folder, record["weights"]):
        for measured in (folder / EVALUATION_FILE, folder / AGREEMENT_FILE, *folder.glob("figures/robustness_*.png")):
            measured.unlink(missing_ok=True)
    (folder / TRAINING_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    text = yaml.safe_dump(record["settings"], sort_keys=False, allow_unicode=True)
    if "PATH/" in text:
        text = "# PATH stands for folders of the machine that it ran on.\n" + text
    (folder / RUN_FILE).write_text(text, encoding="utf-8")


def hash_saved_weights(folder: Path) -> str:
    """16 hexadecimal digits that stand for the files that hold a saved model's weights."""
    state = hashlib.sha256()
    for file in sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        state.update(file.name.encode())
        with file.open("rb") as opened:
            while chunk := opened.read(2**20):
                state.update(chunk)
    return state.hexdigest()[:16]


def has_same_weights(folder: Path, weights: str) -> bool:
    """Whether a folder's `training.json` is of weights with this hash; not if there is none, or it can't be read."""
    try:
        record = read_run(folder)
    except InputError:
        return False
    return record is not None and record["weights"] == weights


def read_run(folder: Path) -> dict | None:
    """What [`write_run`] wrote, or `None` for a model that hpt didn't train.

    Raises:
        InputError: if it was damaged.
    """
    file = folder / TRAINING_FILE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"target", "schedule", "settings", "steps", "weights"} <= set(record):
        raise InputError(f"{file} isn't as this version of hpt writes it: save the model again.")
    return record


CARD_FILE = "README.md"
