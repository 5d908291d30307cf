"""The tasks of a comparison: what can be done now, given what is done, and how each is done.

budget--METHOD            a step of each stage, on which passes are counted
train--RUN                a run, as `hpt train` trains it
dial--RUN                 points between vanilla and the run's weights, on held-out images
test--RUN--tT--TEST       a point of a chosen run on a test; test--vanilla--TEST the target before training; both with
                          --epsEPS at their end where that isn't the radius at which points are chosen
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from hpt.comparing.budget import measure_budget
from hpt.comparing.choices import (
    DIVERGED,
    choose_run_point,
    chosen_runs,
    dial_task,
    is_tuned,
    read_dial,
    train_task,
)
from hpt.comparing.given import REMEDY, WEIGHTS, describe_given, refuse_changed
from hpt.comparing.grid import Grid, Run
from hpt.comparing.records import Records
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import file_name
from hpt.evaluation.dial import measure_dial
from hpt.evaluation.evaluator import RobustnessEvaluator
from hpt.evaluation.rows import LARGE_EPS, WORST_CASE
from hpt.evaluation.subject import Subject
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.endpoints import read_endpoints
from hpt.models.interpolation import Endpoints, make_grid
from hpt.models.weights import hash_weights
from hpt.radius import Radius
from hpt.training.resumable import NonFiniteError
from hpt.training.run import load_target, make_trainer, train_and_save
from hpt.training.trainer import HPTTrainer


PHASES = BUDGET, TRAIN, DIAL, TEST = ("budget", "train", "dial", "test")


@dataclass(frozen=True)
class Task:
    """A piece of work, which one process does at a time.

    Args:
        id (`str`): What its record and its claim are called.
        phase (`str`): One of [`PHASES`].
        work (`Callable`): Does it, and gives its record.
    """

    id: str
    phase: str
    work: Callable[[], dict]


@dataclass(frozen=True)
class Plan:
    """What is left of a comparison.

    Args:
        ready (`list[Task]`): What can be done now.
        later (`dict[str, int]`): By phase, how many tasks wait for others, as far as that is known.
        done (`int`): How many tasks are done.
    """

    ready: list[Task]
    later: dict[str, int]
    done: int


def plan_budgets(grid: Grid, records: Records) -> Plan:
    """A task for each method: what its runs cost."""
    tasks = [_task(BUDGET, budget_task(method), _count, grid, grid.first_run(method)) for method in grid.methods]
    return _plan(tasks, records, {})


def plan_runs(grid: Grid, records: Records) -> Plan:
    """All other tasks: training, dials and tests, those that can be done now among them."""
    later = dict.fromkeys(PHASES, 0)
    places = list(product(grid.tests, grid.test_eps))
    points = 2 * len(places)  # for each run, the chosen one and its trained weights
    tasks = []
    for method in grid.methods:
        for run in grid.tuning_runs(method):
            tasks += _plan_run(grid, records, run, later)
    for method in grid.methods:
        others = len(grid.comparison.seeds) - 1
        if not is_tuned(grid, records, method):
            later |= {
                TRAIN: later[TRAIN] + others,
                DIAL: later[DIAL] + others,
                TEST: later[TEST] + points * (others + 1),
            }
            continue
        for run in chosen_runs(grid, records, method):
            if run not in grid.tuning_runs(method):
                tasks += _plan_run(grid, records, run, later)
            if read_dial(records, run) is None:
                later[TEST] += points
            tasks += [
                _task(TEST, test_task(grid, run, t, *place), _test, grid, records, run, t, *place)
                for t in tested_points(grid, records, run)
                for place in places
            ]
    for name, run in grid.targets().items():
        tasks += [
            _task(TEST, test_task(grid, name, 0, *place), _test, grid, records, run, 0.0, *place, name)
            for place in places
        ]
    return _plan(tasks, records, later)


def _plan_run(grid: Grid, records: Records, run: Run, later: dict[str, int]) -> list[Task]:
    """Training and dial of a run; the dial comes once it is trained, if it didn't diverge."""
    tasks = [_task(TRAIN, train_task(run), _train, grid, records, run)]
    trained = records.read(train_task(run))
    if trained is None:
        later[DIAL] += 1
    elif DIVERGED not in trained:
        tasks.append(_task(DIAL, dial_task(run), _measure_dial, grid, records, run))
    return tasks


def tested_points(grid: Grid, records: Records, run: Run) -> list[float]:
    """The points at which a run is tested: the chosen one, and its trained weights; none yet, or none at all."""
    choice = choose_run_point(grid, records, run)
    return [] if choice is None else sorted({choice.point.t, 1.0})


def budget_task(method: str) -> str:
    return f"{BUDGET}--{file_name(method)}"


def test_task(grid: Grid, run: Run | str, t: float, test: str, eps: Radius) -> str:
    """The task of a run's point on a test at a radius; of a vanilla target by its name, whose point is 0."""
    tested = file_name(run) if isinstance(run, str) else f"{run}--t{t:g}"
    return "--".join(filter(None, (TEST, tested, file_name(test), grid.in_file_names(eps))))


def tested_images(grid: Grid, records: Records, test: str) -> dict[str, str]:
    """What stands for the images of a test, by each of its tasks that is done, as far as the grid has these."""
    runs = [run for method in grid.methods for run in grid.runs_of(method)]
    places = [*product(runs, {*grid.comparison.dial, 1.0}), *((name, 0.0) for name in grid.targets())]
    tasks = {test_task(grid, run, t, test, eps) for (run, t), eps in product(places, grid.test_eps)}
    read = records.read_all()
    return {task: read[task]["samples"] for task in sorted(tasks & read.keys())}


def _task(phase: str, task: str, work: Callable[..., dict], *arguments) -> Task:
    return Task(task, phase, lambda: work(*arguments))


def _plan(tasks: list[Task], records: Records, later: dict[str, int]) -> Plan:
    ready = [task for task in tasks if records.read(task.id) is None]
    return Plan(ready, later, len(tasks) - len(ready))


# The work


def _make_trainer(grid: Grid, run: Run) -> tuple[HPTTrainer, Benchmark]:
    """The trainer of a run, and the images that choices are made on, which it sees if they are of its classes."""
    train, held_out = grid.choosing_images(run)
    return make_trainer(*grid.settings(run), train, held_out if grid.trainer_may_evaluate else None), held_out


def _count(grid: Grid, run: Run) -> dict:
    trainer, held_out = _make_trainer(grid, run)
    return {"given": describe_given(trainer, held_out)} | asdict(measure_budget(trainer))


def read_given(records: Records, method: str) -> dict[str, str]:
    """What a method was given when it was begun; nothing if its record doesn't say."""
    return (records.read(budget_task(method)) or {}).get("given", {})


def _train(grid: Grid, records: Records, run: Run) -> dict:
    trainer, held_out = _make_trainer(grid, run)
    refuse_changed(read_given(records, run.method), describe_given(trainer, held_out), run.method)
    try:
        train_and_save(trainer)
    except NonFiniteError as error:
        return {DIVERGED: str(error)}
    return {}


def _measure_dial(grid: Grid, records: Records, run: Run) -> dict:
    _, held_out = grid.choosing_images(run)
    comparison = grid.comparison
    evaluator = _make_evaluator(grid, f"dials/{run}", [comparison.tune_attack], grid.eps, comparison.tune_samples)
    classifier = _load(grid, records, run)
    endpoints = _read_endpoints(grid, records, run, classifier)
    points = measure_dial(classifier, endpoints, held_out, evaluator, make_grid(comparison.dial))
    return {"points": [asdict(point) for point in points]}


def _test(grid: Grid, records: Records, run: Run, t: float, test: str, eps: Radius, name: str | None = None) -> dict:
    """Rows of a point on a test at a radius, and which of its images are right: a digit each."""
    task = test_task(grid, name or run, t, test, eps)
    comparison = grid.comparison
    evaluator = _make_evaluator(grid, f"tests/{task}", comparison.test_attacks, eps, comparison.test_samples)
    classifier = _load(grid, records, run)
    if t > 0:
        classifier.model.load_state_dict(_read_endpoints(grid, records, run, classifier).at(t))
    subject = Subject(classifier, name or f"{run.method}, seed {run.seed}, t={t:g}")
    tasks = evaluator.plan(subject, grid.test_images(run, test))
    if eps != grid.test_eps[0]:  # whether attacks work at all doesn't depend on it
        tasks = [task for task in tasks if task.settings["attack"] != LARGE_EPS]
    _refuse_replaced(grid, records, test, tasks[0].settings["samples"])
    rows = evaluator.run(tasks)
    samples = tasks[0].benchmark
    labels = np.asarray(samples.dataset["label"][:])
    right = {
        task.settings["attack"]: evaluator.results.predicted(task.key)[0] == labels
        for task in tasks
        if task.settings["attack"] != LARGE_EPS
    }
    right[WORST_CASE] = np.logical_and.reduce(list(right.values()))
    verdicts = {attack: "".join(map(str, verdict.astype(int))) for attack, verdict in right.items()}
    return {"rows": [asdict(row) for row in rows], "right": verdicts, "samples": tasks[0].settings["samples"]}


def _refuse_replaced(grid: Grid, records: Records, test: str, here: str) -> None:
    """Refuse images of a test that others weren't tested on, such as those of another list of classes."""
    for task, there in tested_images(grid, records, test).items():
        if there != here:
            raise InputError(f"{test} has other images than when {task} was tested: {REMEDY}.")


def _make_evaluator(
    grid: Grid, folder: str, attacks: list[str], eps: Radius, samples: int | None
) -> RobustnessEvaluator:
    return RobustnessEvaluator(
        attacks=attacks,
        eps=eps,
        max_samples=samples,
        batch_size=grid.args.per_device_eval_batch_size,
        num_workers=grid.args.dataloader_num_workers,
        output_dir=str(grid.folder / folder),
    )


def _load(grid: Grid, records: Records, run: Run) -> ZeroShotClassifier:
    """The vanilla target of a run as a classifier; [`InputError`] if it isn't the one that the method began with."""
    recipe, args = grid.settings(run)
    model, processor = load_target(recipe)
    refuse_changed(read_given(records, run.method), {WEIGHTS: hash_weights(model.state_dict())}, run.method)
    return ZeroShotClassifier(model.requires_grad_(False).to(args.device), processor)


def _read_endpoints(grid: Grid, records: Records, run: Run, vanilla: ZeroShotClassifier) -> Endpoints:
    """The way from the vanilla target to what a run has trained.

    Raises:
        InputError: if that is missing or damaged, with what to delete so that it is trained again.
    """
    folder = grid.run_folder(run)
    try:
        return read_endpoints(folder, vanilla.model.state_dict())
    except InputError as error:
        raise InputError(
            f"{error} In a comparison: delete {folder} and {records.file(train_task(run))}, and it is trained again."
        ) from error
