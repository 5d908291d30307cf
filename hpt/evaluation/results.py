"""Measured accuracies, and the folder that keeps them: appended to as they come, and never mixed with others.

results.jsonl           one line per finished row, a [`Row`]
predictions-RANK.jsonl  one line per finished batch of one row: what was predicted, so that a killed evaluation goes on
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

import hpt
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import file_name
from hpt.evaluation.rows import ADDED, Row, Rows
from hpt.files import append_line, check_folder, digest, read_lines, write_file


# Settings that have one value in a whole file, per model, per benchmark and per attack.
DETERMINED_BY = {
    (): ("seed", "batch_size", "max_samples"),
    ("model",): ("revision", "weights", "dtype", "image_mean", "image_std", "hpt_version"),
    ("benchmark",): ("split", "attack_space", "templates", "samples"),
    ("attack", "model", "attacked", "eps", "norm"): ("parameters",),
}


class ResultsFolder:
    """Rows and predictions of an evaluation, kept in a folder, or in memory alone if there is none.

    A last line cut off by a kill is dropped. Whoever reads to go on, and writes, holds the folder meanwhile.

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
            InputError: for a damaged line that isn't the last.
        """
        if self.folder is None:
            return [], {}
        rows, predictions = as_rows(read_lines(self.file), self.file), {}
        for file in sorted(self.folder.glob("predictions-*.jsonl")):
            for number, line in enumerate(read_lines(file), start=1):
                if not isinstance(line, dict) or not {"row", "batch", "predictions", "seconds"} <= set(line):
                    raise InputError(f"Line {number} of {file} isn't one of predictions: give another output_dir.")
                predictions.setdefault(line["row"], {})[line["batch"]] = line
        return rows, predictions

    def take_up(self, rows: list[Row], predictions: dict[str, dict[int, dict]]) -> None:
        """Go on from what was read."""
        self.rows, self.predictions = {}, predictions
        for row in rows:
            self._index(row)

    def _index(self, row: Row) -> None:
        self.rows[digest(row.settings())] = row
        self.expect(row.settings())

    def expect(self, settings: dict) -> None:
        """From here on, rows that contradict these settings are refused."""
        for keys, determined in DETERMINED_BY.items():
            values = {name: settings[name] for name in determined}
            self._determined[keys, tuple(settings[key] for key in keys)] = values

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
        """Predicted classes of the samples of the row with that digest, as far as they are there, in order."""
        records = self.predictions.get(row, {})
        return np.concatenate([np.empty(0, int), *(records[batch]["predictions"] for batch in sorted(records))])

    def save_samples(self, benchmark: Benchmark) -> None:
        """Write the ids of a benchmark's samples, their numbers in the whole split, to `samples_BENCHMARK.json`."""
        if self.folder is not None and self.rank == 0:
            content = {"benchmark": benchmark.name, "split": benchmark.split, "ids": benchmark.ids().tolist()}
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
                f"{name} {there[name]!r} there, {settings[name]!r} here"
                for name in there
                if there[name] != settings[name] and not _differs_by_model(name, there[name], settings[name])
            ]
            if differences:
                what = f" for {keys[0]} {settings[keys[0]]}" if keys else ""
                raise InputError(
                    f"{self.file} has results from other settings{what} ({'; '.join(differences)}): use the same, or "
                    "give another output_dir."
                )


def _differs_by_model(name: str, there, here) -> bool:
    """Whether a setting may have both values, since each model has images as its own processor brings them to it."""
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
    return as_rows(json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_lines(path), path)


def as_rows(lines: list, path: Path) -> Rows:
    """The rows that a file's lines of JSON are; of earlier versions, without the fields that were [`ADDED`] since.

    Raises:
        InputError: if one isn't a row that this version of hpt knows, naming the file at `path` and the version.
    """
    known = {field.name for field in fields(Row)}
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not known - ADDED <= set(line) <= known:
            version = line.get("hpt_version") if isinstance(line, dict) else None
            raise InputError(
                f"Row {number} of {path} isn't one of hpt {hpt.__version__}, but of {version or 'another version'}: "
                "evaluate again, into another folder."
            )
    return Rows(Row(**line) for line in lines)
