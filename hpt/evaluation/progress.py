"""How far an evaluation is, and about how long the rest takes: from the passes that its attacks take through models.

A row's work is at most the passes of its attack for each sample that is right without one. What it really takes is
estimated from the batches in the results, of this run or an earlier one: from those of the same attack on the same
model, which end as early on samples that break, or else from the seconds of a pass through the model.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

from tqdm.auto import tqdm

from hpt.escaping import markdown
from hpt.evaluation.plan import Task
from hpt.evaluation.report import fitting_tables
from hpt.evaluation.results import ResultsFolder


BAR = "{l_bar}{bar}| {n:.1f}/{total} batches [{elapsed}{postfix}]"


class Work(NamedTuple):
    """What batches took."""

    seconds: float = 0.0
    passes: int = 0
    most_passes: int = 0  # had no sample broken early

    def plus(self, other: "Work") -> "Work":
        return Work(*(sum(pair) for pair in zip(self, other, strict=True)))


class Progress:
    """How far an evaluation is.

    Args:
        tasks (`list[Task]`): All rows to be, in order.
        results ([`ResultsFolder`]): What is there of them.
        num_processes (`int`, *optional*, defaults to 1): How many share the work.
    """

    def __init__(self, tasks: list[Task], results: ResultsFolder, num_processes: int = 1):
        self.tasks, self.results, self.num_processes = tasks, results, num_processes
        self._place = {task.key: place for place, task in enumerate(tasks, start=1)}
        self._took: dict[tuple[str, str], Work] = {}  # by model and attack
        kinds = {key: (row.model, row.attack) for key, row in results.rows.items()}
        for key, kind in (kinds | {task.key: _kind(task) for task in tasks}).items():
            for record in results.predictions.get(key, {}).values():
                self._add(kind, record)

    def add(self, task: Task, record: dict) -> None:
        """Take note of a batch that was worked off."""
        self._add(_kind(task), record)

    def _add(self, kind: tuple[str, str], record: dict) -> None:
        if "passes" in record:  # which hpt 0.1.0 didn't write
            took = Work(*(record[name] for name in Work._fields))
            self._took[kind] = self._took.get(kind, Work()).plus(took)

    def done(self, task: Task) -> float:
        """The share of a row's batches that is there."""
        return len(self.results.predictions.get(task.key, {})) / task.num_batches

    def most_passes(self, task: Task) -> int:
        """Passes of a row at most; of an attack, for the samples that are right, or all where that isn't known.

        Of a randomised classifier more are attacked than its accuracy says: those that are right at least once.
        """
        clean = None if task.clean is None else self.results.rows.get(task.clean.key)
        share = 1.0 if clean is None or clean.evaluations else clean.accuracy
        return round(share * len(task.benchmark)) * task.most_passes

    def seconds_left(self, task: Task) -> float | None:
        """About how long the rest of a row takes; `None` if no batch was measured yet."""
        most = (1 - self.done(task)) * self.most_passes(task) / self.num_processes
        same = self._sum(lambda kind: kind == _kind(task))
        if same.passes:
            return most * same.seconds / same.most_passes
        of_model = self._sum(lambda kind: kind[0] == _kind(task)[0])
        other = of_model if of_model.passes else self._sum(lambda kind: True)
        return most * other.seconds / other.passes if other.passes else None

    def _sum(self, counts: Callable[[tuple[str, str]], bool]) -> Work:
        return reduce(Work.plus, (took for kind, took in self._took.items() if counts(kind)), Work())

    def describe(self, task: Task) -> str:
        """Where a task stands among all: `row 16 of 48, about 12 min left: mine, digits, pgd at 4/255`."""
        row = f"row {self._place[task.key]} of {len(self.tasks)}"
        seconds = [self.seconds_left(other) for other in self.tasks[self._place[task.key] - 1 :]]
        return f"{row}: {task}" if None in seconds else f"{row}, {describe_duration(sum(seconds))} left: {task}"

    def bar(self, task: Task, batches: int, disable: bool) -> tqdm:
        """The bar of a row, of which so many batches are to be done here."""
        # By the time alone, not by the number of updates, which are far more in an attack than between batches
        often = {"mininterval": 1, "miniters": 0}
        return tqdm(total=batches, desc=self.describe(task), bar_format=BAR, disable=disable, leave=False, **often)


class PassCounter:
    """Counts the passes of a batch, or of several that are worked off together, and moves a bar by their share of the
    most that there can be, in all by these batches."""

    def __init__(self, bar: tqdm, most_passes: int, batches: int = 1):
        self.bar, self.most_passes, self.batches, self.passes = bar, most_passes, batches, 0
        self._start = bar.n

    def note(self, passes: int) -> None:
        self.passes += passes
        self._move(min(self.passes / self.most_passes, 1))

    def finish(self) -> None:
        self._move(1)

    def _move(self, share: float) -> None:
        self.bar.n = self._start + share * self.batches
        self.bar.update(0)  # which shows it, if it is time to


def describe_duration(seconds: float) -> str:
    """`about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def format_plan(progress: Progress) -> str:
    """The rows to be as a Markdown table, with their work and what is left of it, and an estimate below."""
    header = ["row", "model", "benchmark", "attack", "samples", "passes each", "left"]
    lines = [_plan_line(progress, place, task) for place, task in enumerate(progress.tasks, start=1)]
    done = [progress.done(task) for task in progress.tasks]
    if done.count(1) == len(lines):
        return f"{fitting_tables([header, *lines], keys=4)}\n\nAll {len(lines)} rows are done."
    most = [progress.most_passes(task) for task in progress.tasks]
    passes = sum(round((1 - share) * number) for share, number in zip(done, most, strict=True))
    seconds = [progress.seconds_left(task) for task in progress.tasks]
    if None in seconds:
        time = "How long that takes isn't known before the first batch is done here: start it, and ask again."
    else:
        time = (
            f"That is {describe_duration(sum(seconds))}, from what each attack took in the folder's batches; of an "
            "attack that has none there, as if no sample broke early."
        )
    return (
        f"{fitting_tables([header, *lines], keys=4)}\n\n{len(lines)} rows, {done.count(1)} of them done. The others "
        f"take at most {passes:,} passes of an image through a model, forward or backward: fewer where samples break "
        f"early, and none for those that are wrong without an attack.\n{time}"
    )


def _plan_line(progress: Progress, place: int, task: Task) -> list[str]:
    row, seconds = task.settings, progress.seconds_left(task)
    attack = row["attack"] if task.attack is None else f"{row['attack']} at {task.attack.radius}"
    left = "?" if seconds is None else describe_duration(seconds)
    left = "-" if progress.done(task) == 1 else left
    return [
        str(place),
        markdown(row["model"]),
        markdown(row["benchmark"]),
        markdown(attack),
        f"{len(task.benchmark):,}",
        f"{task.most_passes:,}",
        left,
    ]


def _kind(task: Task) -> tuple[str, str]:
    return task.settings["model"], task.settings["attack"]
