"""Measured accuracies, and the folder that keeps them: appended to as they come, and never mixed with others.

results.jsonl           one line per finished row, a [`Row`]
predictions-RANK.jsonl  one line per finished batch of one row: what was predicted, so that a killed evaluation goes on

Each line carries a digest of itself. One that was altered is measured again, and kept in `NAME.damaged`.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

import hpt
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import file_name
from hpt.evaluation.row_check import FIELDS, check_row
from hpt.evaluation.rows import ADDED, SAID_SINCE, WORST_CASE, Row, Rows
from hpt.files import check_folder, write_file
from hpt.json_files import DIGEST, append_line, check_kinds, digest, parse_file, read_lines, repair_lines, unsealed


logger = logging.getLogger(__name__)

# Settings that have one value in a whole file, per model, per benchmark and per attack.
DETERMINED_BY = {
    (): ("seed", "batch_size", "max_samples"),
    ("model",): ("revision", "weights", "configuration", "dtype", "image_mean", "image_std", "hpt_version")
    + ("identified_by", "evaluations"),
    ("benchmark",): ("split", "attack_space", "templates", "samples"),
    ("model", "benchmark"): ("tokens",),
    ("attack", "model", "attacked", "eps", "norm"): ("parameters", "other_model"),
}
# What a line of predictions has, and what it may have besides
PREDICTIONS = {"row": str, "batch": int, "predictions": list[int], "seconds": float}
NOTED = {"passes": int, "most_passes": int, "stochastic": bool, "zero_gradient": int, "broken_by": dict[str, int]}
NOTED |= {"again": list[list[int]]}  # of a randomised classifier, what was predicted in each further evaluation


class ResultsFolder:
    """Rows and predictions of an evaluation, kept in a folder, or in memory alone if there is none.

    A last line cut off by a kill is dropped, and a damaged one set aside. Whoever reads to go on, and writes, holds
    the folder meanwhile.

    Args:
        folder (`str` or `Path`, *optional*): Made if it isn't there.
        rank (`int`): This process; it writes predictions to a file of its own, and rank 0 the rows.

    Raises:
        InputError: if the folder can't be written.
    """

    def __init__(self, folder: str | Path | None, rank: int = 0):
        self.folder = None if folder is None else check_folder(Path(folder))
        self.rank = rank
        self.rows: dict[str, Row] = {}  # by the digest of their settings
        self.predictions: dict[str, dict[int, dict]] = {}  # by that digest, then by batch
        self._determined: dict[tuple, dict] = {}

    @property
    def file(self) -> Path:
        return self.folder / "results.jsonl"

    def read(self) -> tuple[list[Row], dict]:
        """The rows and predictions that are there, for [`take_up`]; to be called before any process writes.

        Raises:
            InputError: for a line that this version of hpt doesn't know.
        """
        if self.folder is None:
            return [], {}
        predictions: dict[str, dict[int, dict]] = {}
        for file in sorted(self.folder.glob("predictions-*.jsonl")):
            for line in repair_lines(file, parse_predictions):
                predictions.setdefault(line["row"], {})[line["batch"]] = line
        return repair_lines(self.file, _parser_of_rows(predictions)), predictions

    def take_up(self, rows: list[Row], predictions: dict[str, dict[int, dict]]) -> None:
        """Go on from what was read."""
        self.rows, self.predictions = {}, predictions
        for row in rows:
            self._index(row)

    def _index(self, row: Row) -> None:
        settings = row.settings()
        self.rows[digest(settings)] = row
        self.expect(settings)

    def expect(self, settings: dict) -> None:
        """From here on, rows that contradict these settings are refused."""
        for keys, determined in DETERMINED_BY.items():
            values = {name: settings[name] for name in determined if name in settings}
            self._determined[keys, tuple(settings[key] for key in keys)] = values

    def as_said_there(self, settings: dict) -> dict:
        """Settings as the model's rows have them that are there: those of earlier versions lack [`SAID_SINCE`]."""
        own = [
            row for row in self.rows.values() if (row.model, row.weights) == (settings["model"], settings["weights"])
        ]
        if all(row.configuration is not None for row in own):
            return settings
        if self.rank == 0:
            logger.warning(
                f"{self.file} has rows of {settings['model'] or 'the model'} from hpt 0.3.0 or before, which don't "
                "say with which configuration and tokenizer: they are kept as if those were the same."
            )
        return {name: value for name, value in settings.items() if name not in SAID_SINCE}

    def add_row(self, row: Row) -> None:
        self._index(row)
        if self.folder is not None and self.rank == 0:
            append_line(self.file, asdict(row))

    def add_predictions(self, row: str, batch: int, record: dict) -> dict:
        """Keep the predictions of one batch of the row with that digest of its settings."""
        record = {"row": row, "batch": batch} | record
        self.predictions.setdefault(row, {})[batch] = record
        if self.folder is not None:
            append_line(self.folder / f"predictions-{self.rank}.jsonl", record)
        return record

    def predicted(self, row: str) -> np.ndarray:
        """Predicted classes `(evaluations, samples)` of the row with that digest, as far as they are there."""
        records = self.predictions.get(row, {})
        batches = [predictions_of(records[batch]) for batch in sorted(records)]
        return np.concatenate(batches, axis=1) if batches else np.empty((1, 0), int)

    def missing(self, row: str, num_batches: int) -> list[int]:
        """Of so many batches of the row with that digest those whose predictions aren't there."""
        done = self.predictions.get(row, {})
        return [batch for batch in range(num_batches) if batch not in done]

    def save_samples(self, benchmark: Benchmark) -> None:
        """Write the ids of a benchmark's samples, their numbers in the whole split, to `samples_BENCHMARK.json`.

        Of a part of a dataset, the names of its classes too.
        """
        if self.folder is not None and self.rank == 0:
            content = {"benchmark": benchmark.name, "split": benchmark.split, "ids": benchmark.ids().tolist()}
            content |= {"class_names": benchmark.class_names} if benchmark.part_of else {}
            name = f"samples_{file_name(benchmark.name)}.json"
            write_file(self.folder / name, json.dumps(content))

    def refuse_other_settings(self, settings: dict) -> None:
        """Refuse settings that contradict a row in the folder, or one that is expected.

        Raises:
            InputError: naming the file and each difference.
        """
        if self.folder is None:
            return
        for keys in DETERMINED_BY:
            there = self._determined.get((keys, tuple(settings[key] for key in keys)), {})
            differences = [
                f"{name} {there[name]!r} there, {settings.get(name)!r} here"
                for name in there
                if there[name] != settings.get(name) and not _differs_by_model(name, there[name], settings.get(name))
            ]
            if differences:
                what = f" for {keys[0]} {settings[keys[0]]}" if keys else ""
                raise InputError(
                    f"{self.file} has results from other settings{what} ({'; '.join(differences)}): use the same, or "
                    "give another output_dir."
                )


def as_record(predictions: list[list[int]]) -> dict:
    """What a line of predictions says of the predicted classes in each evaluation, of which one is the rule."""
    first, *further = predictions
    return {"predictions": first} | ({"again": further} if further else {})


def predictions_of(record: dict) -> np.ndarray:
    """The predicted classes, `(evaluations, samples)`, of [`as_record`]."""
    return np.array([record["predictions"], *record.get("again", [])], int)


def _differs_by_model(name: str, there, here) -> bool:
    """Whether a setting may have both values: images come to each model by its own processor, and a function may have
    no prompts."""
    if name == "templates":
        return [] in (there, here)
    return name == "attack_space" and "native" not in (there, here) and not (there.isdigit() or here.isdigit())


def read_result_rows(path: str | Path) -> Rows:
    """The rows of a `results.jsonl` or `results.json`, or of the former in a folder.

    Raises:
        InputError: if there is none, or a line isn't a row.
    """
    path = Path(path)
    path = path / "results.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"There are no results at {path}: give the output_dir of `hpt evaluate`.")
    if path.suffix == ".json":
        return Rows(parse_file(path.read_bytes(), path, _parse_rows, "measure again what it says"))
    return Rows(read_lines(path, parse_row))


def _parse_rows(rows: object) -> list[Row]:
    if not isinstance(rows, list):
        raise ValueError("it isn't a list of rows")
    return [parse_row(row) for row in rows]


def parse_row(line: object) -> Row:
    """The row that a line of JSON is; of earlier versions, without the fields that were [`ADDED`] since.

    Raises:
        ValueError: if it was altered, or can't have been measured.
        InputError: if this version of hpt doesn't know its fields.
    """
    values = unsealed(line)
    _check_fields("a row", values, set(FIELDS) - ADDED, set(FIELDS))
    row = Row(**values)
    check_row(row)
    return row


def parse_predictions(line: object) -> dict:
    """The line of predictions that a line of JSON is; raises as [`parse_row`]."""
    record = unsealed(line)
    _check_fields("one of predictions", record, set(PREDICTIONS), {*PREDICTIONS, *NOTED})
    check_kinds(record, PREDICTIONS | NOTED)
    if any(len(further) != len(record["predictions"]) for further in record.get("again", [])):
        raise ValueError("its evaluations are of different numbers of samples")
    counts = [record["seconds"], record["batch"], record.get("zero_gradient", 0), *predictions_of(record).flat]
    if min(counts) < 0:
        raise ValueError("it has a number below zero")
    if "passes" in record and not (record["passes"] >= 0 and record.get("most_passes", 0) > 0):
        raise ValueError("its numbers of passes can't be")
    return record


def _check_fields(what: str, values: dict, needed: set[str], known: set[str]) -> None:
    unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
    if unknown or missing:
        differences = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(unknown)
        raise InputError(
            f"isn't {what} of hpt {hpt.__version__}, but of {values.get('hpt_version') or 'another version'}, or "
            f"damaged (it {' and '.join(differences)}): evaluate into another folder, or remove the line."
        )


def _parser_of_rows(predictions: dict[str, dict]) -> Callable[[object], Row]:
    """[`parse_row`], which of rows without a digest takes only those of whose settings there are predictions.

    Of a worst case, these are the predictions of rows before it. A folder without any predictions has lost them.
    """
    tried: dict[tuple, set[str]] = {}

    def parse(line: object) -> Row:
        row = parse_row(line)
        if DIGEST in line or not predictions:
            return row
        attacks = tried.setdefault((digest(row.subject()), row.eps, row.norm), set())
        if row.attack == WORST_CASE:
            is_backed = attacks >= set(row.parameters["attacks"])
        else:
            is_backed = digest(row.settings()) in predictions
        if not is_backed:
            raise ValueError("nothing in the folder was predicted with its settings")
        attacks.add(row.attack)
        return row

    return parse
