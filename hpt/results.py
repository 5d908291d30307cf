"""Measured accuracies, and the folder that keeps them: appended to as they come, and never mixed with others.

results.jsonl           one line per finished row, a [`Row`]
predictions-RANK.jsonl  one line per finished batch of one row: what was predicted, so that a killed evaluation goes on
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from hpt.benchmarks import Benchmark
from hpt.data import hash_samples
from hpt.errors import InputError
from hpt.files import append_line, check_folder, digest, read_lines


CLEAN, WORST_CASE, LARGE_EPS = "clean", "worst case", "large-eps check"
# What isn't a setting: the measured, and where the samples were read from, for which their hash stands.
MEASURED = {
    "source",
    "accuracy",
    "low",
    "high",
    "mean_per_class_accuracy",
    "zero_gradient",
    "broken_by",
    "stochastic",
    "seconds",
}
OF_THE_ATTACK = {"attack", "attacked", "eps", "norm", "steps", "step_size", "restarts", "parameters", "left_out"}
# Settings that have one value in a whole file, per model, per benchmark and per attack.
DETERMINED_BY = {
    (): ("seed", "batch_size", "max_samples", "hpt_version"),
    ("model",): ("revision", "weights", "dtype", "image_mean", "image_std"),
    ("benchmark",): ("split", "attack_space", "templates", "samples"),
    ("attack", "model", "attacked", "eps", "norm"): ("parameters",),
}


@dataclass(frozen=True)
class Row:
    """One measured accuracy, with all that it depends on.

    Args:
        model (`str`): Name of the model scored.
        attacked (`str`, *optional*): Name of the model that the images were made against; `None` for clean images.
        accuracy, low, high (`float`): Share of correct samples and its 95 % Wilson interval, in [0, 1]. Of an
            evaluation, a sample that is wrong without an attack is wrong under every attack; `hpt.comparison`, which
            scores several models on the same images, attacks them all.
        n (`int`): Samples.
        benchmark, split (`str`): What was classified.
        source (`str`, *optional*): `ID@COMMIT` of the dataset, if it was read from the Hub.
        attack_space (`str`): Resolution at which images were attacked: `"native"`, or pixels.
        attack (`str`): As it was asked for, such as `"pgd"` or `"pgd:steps=50"`; `"clean"`; `"worst case"`, over the
            attacks named in `parameters`; `"large-eps check"`, an attack that must break everything.
        eps (`float`, *optional*): Radius in [0, 1] pixels.
        steps, restarts (`int`), step_size (`float`), norm (`str`), *optional*: The attack, where it has them.
        parameters (`dict`): All that says how strong the attack is.
        left_out (`list[str]`): Parts of a suite that aren't defined for so few classes.
        mean_per_class_accuracy (`float`, *optional*): Where the benchmark is customarily reported so.
        zero_gradient (`int`, *optional*): Samples whose gradient was exactly zero, or not finite, at some step.
        broken_by (`dict[str, int]`): Of a suite, how many samples each part broke that those before hadn't.
        stochastic (`bool`, *optional*): Whether the same images gave other logits the second time; for clean rows.
        dtype (`str`): Of the model's weights; logits and attacks are float32.
        templates (`list[str]`): Prompt templates.
        image_mean, image_std (`list[float]`): Normalisation inside the model.
        seed, batch_size (`int`), max_samples (`int`, *optional*): Settings of the evaluation.
        samples (`str`): Hash of the sample ids, images, labels and class names.
        revision (`str`, *optional*): The model's commit on the Hub.
        weights (`str`): Hash of the model's weights.
        seconds (`float`): Time spent, summed over processes.
        hpt_version (`str`): Version that measured it.
    """

    model: str
    attacked: str | None
    accuracy: float
    low: float
    high: float
    n: int
    benchmark: str
    split: str
    attack_space: str
    attack: str = CLEAN
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    norm: str | None = None
    parameters: dict = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    mean_per_class_accuracy: float | None = None
    zero_gradient: int | None = None
    broken_by: dict[str, int] = field(default_factory=dict)
    stochastic: bool | None = None
    dtype: str = "float32"
    templates: list[str] = field(default_factory=list)
    image_mean: list[float] = field(default_factory=list)
    image_std: list[float] = field(default_factory=list)
    seed: int | None = None
    batch_size: int | None = None
    max_samples: int | None = None
    samples: str | None = None
    source: str | None = None
    revision: str | None = None
    weights: str | None = None
    seconds: float | None = None
    hpt_version: str | None = None

    @property
    def sample_set(self) -> tuple:
        """What rows share whose attacks had the same samples, at the same resolution."""
        return self.benchmark, self.split, self.attack_space, self.samples or self.n

    def settings(self) -> dict:
        """All that the number depends on."""
        return {name: value for name, value in asdict(self).items() if name not in MEASURED}

    def subject(self) -> dict:
        """Of the settings, those of model, samples and evaluation, without the attack's."""
        return {name: value for name, value in self.settings().items() if name not in OF_THE_ATTACK}


def hash_benchmark(benchmark: Benchmark) -> str:
    """16 hexadecimal digits that stand for the ids, images, labels and class names of a benchmark's samples."""
    return digest([benchmark.ids().tolist(), hash_samples(benchmark.dataset), benchmark.class_names])


class ResultsFolder:
    """Rows and predictions of an evaluation, kept in a folder, or in memory alone if there is none.

    A last line cut off by a kill is dropped.

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
        rows, predictions = [], {}
        if self.folder is None:
            return rows, predictions
        known = {one.name for one in fields(Row)}
        for number, line in enumerate(read_lines(self.file), start=1):
            if not isinstance(line, dict) or set(line) != known:
                raise InputError(
                    f"Line {number} of {self.file} isn't a row of this version of hpt: give another output_dir."
                )
            rows.append(Row(**line))
        for file in sorted(self.folder.glob("predictions-*.jsonl")):
            for number, line in enumerate(read_lines(file), start=1):
                if not isinstance(line, dict) or not {"row", "batch", "predictions", "seconds"} <= set(line):
                    raise InputError(f"Line {number} of {file} isn't one of predictions: give another output_dir.")
                predictions.setdefault(line["row"], {})[line["batch"]] = line
        return rows, predictions

    def take_up(self, rows: list[Row], predictions: dict[str, dict[int, dict]]) -> None:
        """Go on from what was read."""
        self.predictions = predictions
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

    def save_samples(self, benchmark: Benchmark) -> None:
        """Write the ids of a benchmark's samples, their numbers in the whole split, to `samples_BENCHMARK.json`."""
        if self.folder is not None and self.rank == 0:
            content = {"benchmark": benchmark.name, "split": benchmark.split, "ids": benchmark.ids().tolist()}
            self.folder.mkdir(parents=True, exist_ok=True)
            name = benchmark.name.replace("/", "_")
            (self.folder / f"samples_{name}.json").write_text(json.dumps(content), encoding="utf-8")

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
                if there[name] != settings[name]
            ]
            if differences:
                what = f" for {keys[0]} {settings[keys[0]]}" if keys else ""
                raise InputError(
                    f"{self.file} has results from other settings{what} ({'; '.join(differences)}): use the same, or "
                    "give another output_dir."
                )
