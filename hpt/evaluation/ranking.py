"""Which proxy to take: accuracy of models on images made against each other, and what follows for one target.

The paper (arXiv 2601.12865) calls it proxy adversarial robustness: a vanilla model keeps most of its accuracy on
adversarial images made against another one. It picks the proxy by clean zero-shot accuracy; here it is measured.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from hpt.attacks import PGD
from hpt.data.benchmark import Benchmark
from hpt.data.hashing import hash_samples
from hpt.errors import InputError
from hpt.escaping import markdown
from hpt.evaluation.comparison import make_row, score
from hpt.evaluation.report import fitting_tables
from hpt.evaluation.rows import MEASURED_SINCE, Row
from hpt.evaluation.subject import Subject
from hpt.json_files import append_line, check_kinds, digest, repair_lines, unsealed
from hpt.models.weights import architecture
from hpt.processes import hold_together
from hpt.radius import as_radii


logger = logging.getLogger(__name__)


class TransferMatrix:
    """Verdicts of every model on clean images, and on images made against each of them at several radii.

    Args:
        models (`dict[str, ZeroShotClassifier]`): By name, on their device, in eval mode.
        benchmark ([`Benchmark`]): Images and labels. If it doesn't say how images come to a model, all models get
            them as the first one sees them.
        eps (`list[float]`): l_inf radii in [0, 1] pixels, or texts such as `"8/255"`.
        steps (`int`, *optional*, defaults to 10): Of PGD, with steps of `eps / 4` from a random start.
        seed (`int`, *optional*, defaults to 0): Of its noise.
        folder (`str` or `Path`, *optional*): Keeps verdicts, so that a killed run goes on where it was, and the same
            models need not be attacked again; a further model has them all attacked again.

    Raises:
        InputError: when two models have the same weights.
    """

    def __init__(self, models, benchmark: Benchmark, eps: list[float], steps: int = 10, seed: int = 0, folder=None):
        self.subjects = [Subject(model, name) for name, model in models.items()]
        self.benchmark = benchmark = self.subjects[0].see(benchmark)
        self.models, self.eps = models, as_radii(eps)
        self._identities = {subject.name: self._identify(subject) for subject in self.subjects}
        for subject in self.subjects:
            twin = next(other for other in self.subjects if other.weights == subject.weights)
            if twin is not subject:
                raise InputError(f"{subject.name!r} and {twin.name!r} are the same weights: give each model once.")
        self.attacks = {radius: PGD(eps=radius, steps=steps, seed=seed) for radius in self.eps}
        self.columns = [(None, None), *((name, radius) for radius in self.eps for name in models)]
        samples = [hash_samples(benchmark.dataset), benchmark.ids().tolist(), benchmark.class_names]
        self._samples = samples = [*samples, benchmark.template, benchmark.attack_space, MEASURED_SINCE]
        self._keys = {
            (name, radius): digest(
                [samples, name and self._identities[name], radius and [self.attacks[radius].parameters, radius, seed]]
            )
            for name, radius in self.columns
        }
        self.folder = None if folder is None else Path(folder)
        self.correct: dict[tuple, dict[str, np.ndarray]] = {}  # by (attacked, eps), then by model

    def _identify(self, subject: Subject) -> str:
        """A digest of all that a model's verdicts on these classes depend on."""
        model = subject.classifier
        statistics = [model.image_size, model.image_mean.tolist(), model.image_std.tolist()]
        return digest([subject.weights, statistics, subject.computes_with(self.benchmark)])

    def measure(self, batch_size: int = 64, num_workers: int = 0, state: PartialState | None = None) -> None:
        """Fill `correct`, from the folder or by attacking; several processes share the columns that are missing.

        Raises:
            InputError: if another run is under way in the folder.
        """
        with hold_together(self.folder):
            self._measure(batch_size, num_workers, state or PartialState())

    def _measure(self, batch_size: int, num_workers: int, state: PartialState) -> None:
        lines = []
        (kept,) = broadcast_object_list([self._read() if state.is_main_process else None])
        missing = [column for column in self.columns if not self._complete(kept.get(self._keys[column], {}))]
        if state.is_main_process:
            self._say_what_is_there(len(self.columns) - len(missing))
        mine = missing[state.process_index :: state.num_processes]
        for name, radius in tqdm(mine, desc="Attacks", leave=False, disable=not state.is_local_main_process):
            attack = None if radius is None else self.attacks[radius]
            loader = {"batch_size": batch_size, "num_workers": num_workers}
            correct = score(self.subjects, self.benchmark, attack, name, **loader)
            verdicts = {self._identities[model]: right.astype(int).tolist() for model, right in correct.items()}
            lines.append({"column": self._keys[name, radius], "correct": verdicts})
            if self.folder:
                append_line(self.folder / f"verdicts-{state.process_index}.jsonl", lines[-1])
        for line in gather_object(lines):
            kept.setdefault(line["column"], {}).update(line["correct"])
        for column in self.columns:
            verdicts = kept[self._keys[column]]
            self.correct[column] = {name: np.array(verdicts[key], bool) for name, key in self._identities.items()}

    def _say_what_is_there(self, number: int) -> None:
        """Say that a ranking goes on, or that there is nothing left of it to measure."""
        if number:
            left = "is finished" if number == len(self.columns) else "goes on"
            logger.warning(f"The ranking in {self.folder} {left}: {number} of {len(self.columns)} columns are there.")

    def _complete(self, verdicts: dict) -> bool:
        return set(self._identities.values()) <= set(verdicts)

    def _read(self) -> dict[str, dict]:
        kept = {}
        for file in sorted(self.folder.glob("verdicts-*.jsonl")) if self.folder else ():
            for line in repair_lines(file, self._parse_verdicts):
                kept.setdefault(line["column"], {}).update(line["correct"])
        return kept

    def _parse_verdicts(self, line: object) -> dict:
        """The line of verdicts that a line of JSON is."""
        verdicts = unsealed(line)
        if set(verdicts) != {"column", "correct"}:
            raise InputError("isn't one of verdicts: give another output_dir, or remove it if it was damaged.")
        check_kinds(verdicts, {"column": str, "correct": dict[str, list[int]]})
        is_own = verdicts["column"] in self._keys.values()
        for values in verdicts["correct"].values():
            if not {*values} <= {0, 1} or is_own and len(values) != len(self.benchmark):
                raise ValueError(f"it isn't of right and wrong for each of {len(self.benchmark)} images")
        return verdicts

    def rows(self) -> list[Row]:
        """A row for each model scored on each column, with its 95 % interval."""
        samples = digest(self._samples)
        return [
            make_row(
                subject,
                column[subject.name],
                self.benchmark,
                self.attacks.get(radius),
                attacked,
                samples=samples,
                hpt_version=subject.measured_since,
            )
            for (attacked, radius), column in self.correct.items()
            for subject in self.subjects
        ]


@dataclass(frozen=True)
class RankedProxy:
    """What a candidate is worth as a proxy of a target.

    Args:
        name (`str`): Of the candidate.
        same_architecture (`bool`): Whether its vision tower is built like the target's.
        clean (`float`): Accuracy on clean images, in [0, 1]: the paper's criterion.
        robust (`list[float]`): Accuracy on images made against the target, per radius.
        kept (`list[tuple]`): Of that, the share of the clean accuracy, per radius, with its 95 % interval.
        mean (`tuple`): Of `robust`, what is ranked by, with its 95 % interval.
        behind (`tuple`): How much the best candidate's mean is above, with its 95 % interval over the same images.
        rank, rank_by_clean (`int`): From 1; the same for the same accuracy.
    """

    name: str
    same_architecture: bool
    clean: float
    robust: list[float]
    kept: list[tuple[float, float, float]]
    mean: tuple[float, float, float]
    behind: tuple[float, float, float]
    rank: int
    rank_by_clean: int


def rank_proxies(matrix: TransferMatrix, target: str) -> list[RankedProxy]:
    """The candidates, best first: by their accuracy on images made against the target, averaged over the radii."""
    clean = matrix.correct[None, None]
    candidates = [name for name in matrix.models if name != target]
    robust = {name: np.stack([matrix.correct[target, eps][name] for eps in matrix.eps]) for name in candidates}
    order = sorted(candidates, key=lambda name: -robust[name].mean())

    def place(verdicts: dict, name: str) -> int:
        return 1 + sum(bool(verdicts[other].mean() > verdicts[name].mean()) for other in candidates)

    shape = architecture(matrix.models[target].model)
    return [
        RankedProxy(
            name=name,
            same_architecture=architecture(matrix.models[name].model) == shape,
            clean=float(clean[name].mean()),
            robust=robust[name].mean(1).tolist(),
            kept=[share(at_radius, clean[name]) for at_radius in robust[name]],
            mean=paired_difference(robust[name].mean(0), np.zeros(robust[name].shape[1])),
            behind=paired_difference(robust[order[0]].mean(0), robust[name].mean(0)),
            rank=place(robust, name),
            rank_by_clean=place(clean, name),
        )
        for name in order
    ]


def share(robust: np.ndarray, clean: np.ndarray) -> tuple[float, float, float]:
    """Accuracy under attack as a share of the clean one on the same samples, with its 95 % bootstrap interval."""

    def ratio(robust, clean, axis=-1):
        return robust.sum(axis) / np.maximum(clean.sum(axis), 1)

    return _with_interval((robust.astype(float), clean.astype(float)), ratio)


def paired_difference(better: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean of `better - other` over the same samples, with its 95 % bootstrap interval."""
    return _with_interval((better - other,), np.mean)


def _with_interval(samples: tuple, statistic) -> tuple[float, float, float]:
    from scipy.stats import bootstrap  # slow to import

    interval = bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(statistic(*samples)), float(interval.low), float(interval.high)


def format_ranking(ranked: list[RankedProxy], matrix: TransferMatrix, target: str) -> str:
    """The ranking as a Markdown table, and what it recommends."""
    rows = {(row.model, row.attacked, row.eps): row for row in matrix.rows()}
    lines = [["rank", "proxy", "rank by clean", "clean", *map(str, matrix.eps), "mean", "behind the best"]]
    for proxy in ranked:
        name = f"{proxy.name} (as the target)" if proxy.same_architecture else proxy.name
        cells = [_cell(rows[proxy.name, target, eps], kept) for eps, kept in zip(matrix.eps, proxy.kept, strict=True)]
        behind = "-" if proxy is ranked[0] else _points(proxy.behind)
        clean = _cell(rows[proxy.name, None, None])
        lines.append(
            [str(proxy.rank), markdown(name), str(proxy.rank_by_clean), clean, *cells, _points(proxy.mean), behind]
        )
    attack = next(iter(matrix.attacks.values()))
    itself = ", ".join(f"{100 * rows[target, target, eps].accuracy:.1f} at {eps}" for eps in matrix.eps)
    own = f"{target} itself: {_cell(rows[target, None, None])} clean, {itself}."
    title = (
        f"Accuracy in % on images made against {target} by {attack.label}, with its 95 % interval and, in "
        "parentheses, the share of the clean accuracy that is kept"
    )
    table = fitting_tables(lines, keys=2)
    return "\n\n".join([markdown(title), table, markdown(own), markdown(recommend(ranked))])


def recommend(ranked: list[RankedProxy]) -> str:
    """In words: the best candidate, which others can't be told from it, and what the paper's criterion would take."""
    best = ranked[0]
    said = f"Recommended proxy: {best.name}, {_points(best.mean)} % on average over the radii."
    if ties := [proxy.name for proxy in ranked[1:] if proxy.behind[1] <= 0]:
        said += f" On these images it can't be told from {', '.join(ties)}."
    first_by_clean = [proxy for proxy in ranked if proxy.rank_by_clean == 1]
    if best in first_by_clean:
        said += " The paper's criterion, clean accuracy, takes the same." if len(ranked) > 1 else ""
    for proxy in first_by_clean if best not in first_by_clean else []:
        behind = f"{_points(proxy.behind)} points behind"
        said += f" The paper's criterion, clean accuracy, takes {proxy.name}, which is {behind}."
    if len({proxy.mean[0] for proxy in ranked}) > 2 and len({proxy.clean for proxy in ranked}) > 1:
        said += (
            f" Spearman's correlation of clean accuracy and the average, over {len(ranked)} candidates: "
            f"{rank_correlation(ranked):.2f}."
        )
    if best.same_architecture:
        said += f" Mind that {best.name} is built like the target: the method is for proxies of other architectures."
    return said


def rank_correlation(ranked: list[RankedProxy]) -> float:
    """Spearman's correlation, over the candidates, of clean accuracy and accuracy on the target's images."""
    from scipy.stats import spearmanr

    return float(spearmanr([proxy.clean for proxy in ranked], [proxy.mean[0] for proxy in ranked]).statistic)


def _cell(row: Row, kept: tuple[float, float, float] | None = None) -> str:
    cell = f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    return cell if kept is None else f"{cell} ({100 * kept[0]:.0f})"


def _points(difference: tuple[float, float, float]) -> str:
    middle, low, high = (100 * value for value in difference)
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"
