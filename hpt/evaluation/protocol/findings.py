"""What a protocol check finds: a line for each check, with a verdict, and how verdicts on images are compared.

protocol_check.md     all findings as a table
protocol_check.jsonl  a line of JSON for each, with a digest of itself
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from hpt.escaping import markdown, one_line, terminal
from hpt.evaluation.report import markdown_table
from hpt.files import write_file
from hpt.json_files import as_line


FINE, WRONG, CANT_TELL = VERDICTS = ("fine", "wrong", "can't tell")

DECIDED = 1e-4  # p-value below which images decide; a check compares a handful of times, each time with its own
DOUBTFUL = 0.01  # p-value below which they leave a doubt


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check (`str`): Its name, such as `"batch size"`.
        verdict (`str`): `"fine"`, `"wrong"` or `"can't tell"`.
        message (`str`): What was seen, and of anything but `"fine"` what it means.
        published (`str`, *optional*): Where that mistake was made, or is described, in public.
        model, benchmark (`str`, *optional*): What was checked.
    """

    check: str
    verdict: str
    message: str
    published: str | None = None
    model: str = ""
    benchmark: str = ""

    def __str__(self) -> str:
        see = f" See {self.published}." if self.published else ""
        return f"{self.verdict:10}  {self.check}: {self.message}{see}"


def fine(check: str, message: str) -> Finding:
    return Finding(check, FINE, message)


def wrong(check: str, message: str, published: str | None = None) -> Finding:
    return Finding(check, WRONG, message, published)


def cant_tell(check: str, message: str, published: str | None = None) -> Finding:
    return Finding(check, CANT_TELL, message, published)


# Verdicts on images


def better_by_chance(first: np.ndarray, second: np.ndarray) -> float:
    """How likely chance alone makes the first of two right so much more often than the second, on the same images.

    The one-sided sign test on the images of which the two differ; of verdicts, it is McNemar's exact test.

    Args:
        first, second (`np.ndarray` of shape `(images,)`): Verdicts, or how many of an image's versions are right.
    """
    return more_by_chance(int((first > second).sum()), int((first != second).sum()), 0.5)


def more_by_chance(number: int, of: int, share: float) -> float:
    """How likely at least so many of so many are hit, each with a chance of `share`."""
    from scipy.stats import binomtest  # slow to import

    return float(binomtest(number, of, share, alternative="greater").pvalue) if of else 1.0


def sees_something(predicted: np.ndarray, labels: np.ndarray) -> bool:
    """Whether predictions say more of the labels than predicting each class as often, but blindly, would."""
    return more_by_chance(int((predicted == labels).sum()), len(labels), _blind(predicted, labels)) < DOUBTFUL


def skill(predicted: np.ndarray, labels: np.ndarray) -> float:
    """How much more accurate predictions are than blind ones of the same shares of classes."""
    return float((predicted == labels).mean()) - _blind(predicted, labels)


def _blind(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy to be expected if the predictions were dealt out over the images by chance."""
    classes = 1 + max(predicted.max(), labels.max())
    shares = [np.bincount(values, minlength=classes) / len(values) for values in (predicted, labels)]
    return float(shares[0] @ shares[1])


def percent(verdicts: np.ndarray) -> str:
    """The share of the images that are right, as `96.9 %`."""
    return f"{100 * np.mean(verdicts):.1f} %"


# What is printed and written


def report_findings(findings: Collection[Finding], folder: Path, failures: Iterable[str] = ()) -> None:
    """Print the findings, a line each, and write them into a folder, as a table and as lines of JSON.

    Args:
        findings (`Collection[Finding]`): Of all models and benchmarks.
        folder (`Path`): Made if it isn't there.
        failures (`Iterable[str]`, *optional*): What couldn't be checked, a line each.
    """
    for (model, benchmark), own in groupby(findings, lambda one: (one.model, one.benchmark)):
        print(terminal("\n".join([f"\n{one_line(model)} on {one_line(benchmark)}", *map(str, own)])))
    counted = ", ".join(f"{sum(one.verdict == verdict for one in findings)} {verdict}" for verdict in VERDICTS)
    missing = [f"Missing: {markdown(failure)}" for failure in failures]
    print("\n".join(["", *missing, counted]))
    header = ["model", "benchmark", "check", "verdict", "what was seen", "published"]
    cells = [[one.model, one.benchmark, one.check, one.verdict, one.message, one.published or ""] for one in findings]
    page = f"Protocol check: {counted}\n\n"
    page += f"{markdown_table([header, *([markdown(cell) for cell in line] for line in cells)])}\n"
    page += "".join(f"\n{line}\n" for line in missing)
    write_file(folder / "protocol_check.md", page)
    write_file(folder / "protocol_check.jsonl", "".join(as_line(asdict(finding)) for finding in findings))
    print(f"Findings: {folder}/protocol_check.md, protocol_check.jsonl")
