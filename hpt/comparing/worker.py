"""What a process of `hpt compare` does: one task after the other that nobody else has, until none is left.

Several processes, on one machine or on many that share the folder, do the same; whoever comes last writes the report.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpt.comparing.budget import Budget, refuse_unequal
from hpt.comparing.claims import claim, cpu_seconds, holder, last_claim
from hpt.comparing.given import HELD_OUT, refuse_changed, refuse_mixed
from hpt.comparing.grid import Grid
from hpt.comparing.records import Records, keep_settings
from hpt.comparing.tasks import PHASES, Plan, Task, budget_task, plan_budgets, plan_runs, read_given
from hpt.errors import InputError, list_known, message_of
from hpt.evaluation.row_settings import hash_benchmark
from hpt.files import check_folder
from hpt.models.converted import check_model
from hpt.training.data_inputs import check_sets, may_share_images
from hpt.training.run import named_models


WAIT = 5  # seconds until a process that has nothing to do looks again
TRIES = 3  # after so many processes that ended within a task, it comes after all others


def check(grid: Grid, records: Records) -> None:
    """Refuse what can't be compared, before any of it runs: what isn't there, or was replaced since it began.

    Raises:
        InputError: naming the method, if it is of one.
    """
    if grid.args.world_size > 1:
        raise InputError("Processes share a comparison by its folder: start the same command several times, alone.")
    check_folder(grid.folder)
    runs = [grid.first_run(method) for method in grid.methods]
    for run in runs:
        for model in sum(named_models(*grid.settings(run)).values(), []):
            check_model(model)
    checked = []
    for run in runs:
        train, held_out = images = grid.choosing_images(run)
        if images in checked:
            continue
        checked.append(images)
        if held_out is None or not held_out.has_labels:
            missing = "no held-out images" if held_out is None else "no labels of held-out images"
            raise InputError(f"{train.name} has {missing} to choose by: give validation_size, or a set that has some.")
        if len(held_out) < grid.comparison.tune_samples:
            raise InputError(
                f"tune_samples is {grid.comparison.tune_samples}, but {train.name} has {len(held_out)} images to "
                "choose by: give fewer, or another validation_size."
            )
        if not grid.trainer_may_evaluate and grid.settings(run)[1].eval_strategy != "no":
            raise InputError(
                "A run can't be evaluated in training on validation_classes, which it isn't trained on: give "
                "--eval_strategy no."
            )
        tests = [grid.test_images(run, test) for test in grid.tests]
        check_sets(train, held_out if grid.trainer_may_evaluate else None, tests, grid.settings(run)[1])
        taken_from = train.split if grid.settings(run)[0].validation_size else held_out.split
        for test in tests:
            if may_share_images(test, replace(held_out, split=taken_from)):
                raise InputError(
                    f"{test.name} would be tested on images that choices are made on ({test.split}): test on others."
                )
    keep_settings(grid)
    for _, held_out in checked:
        here = {HELD_OUT: hash_benchmark(held_out)}
        for run in runs:
            if grid.choosing_images(run)[1] is held_out:
                refuse_changed(read_given(records, run.method), here, run.method)


def measure_budgets(grid: Grid, records: Records) -> dict[str, Budget]:
    """What the runs of each method cost, counted once for all processes.

    Raises:
        InputError: if they differ in images or attack steps, unless that is allowed; or if models or images aren't
            those that other methods were begun with.
    """
    _work(grid, records, plan_budgets)
    refuse_mixed(grid, {method: read_given(records, method) for method in grid.methods})
    read = {method: records.read(budget_task(method)) for method in grid.methods}
    budgets = {method: Budget.of(record) for method, record in read.items()}
    if not grid.comparison.allow_unequal_budget:
        refuse_unequal(budgets)
    return budgets


def work_all(grid: Grid, records: Records) -> None:
    """Do tasks until none is left; wait for those that others do.

    Raises:
        InputError: if some failed, after all others are done.
    """
    _work(grid, records, plan_runs)


def work_one(grid: Grid, records: Records, task_id: str) -> None:
    """Do one task.

    Raises:
        InputError: if it can't be done now, or another process does it.
    """
    ready = {task.id: task for task in plan_runs(grid, records).ready}
    if task_id not in ready:
        if records.read(task_id) is not None:
            print(f"{task_id} is done.")
            return
        raise InputError(f"{task_id!r} isn't among the tasks that can be done now; {list_known(task_id, ready)}")
    if not _do(grid, records, ready[task_id]):
        raise InputError(f"{task_id} is being done by {holder(_claims(grid), task_id)}.")


def free_tasks(grid: Grid, records: Records) -> list[str]:
    """The tasks that can be done now, and that no process has."""
    return [task.id for task in plan_runs(grid, records).ready if holder(_claims(grid), task.id) is None]


def _claims(grid: Grid) -> Path:
    return grid.folder / "claims"


def _work(grid: Grid, records: Records, plan: Callable[[Grid, Records], Plan]) -> None:
    failed: dict[str, str] = {}
    waits = False
    while True:
        planned = plan(grid, records)
        ready = [task for task in _tired_last(grid, planned.ready) if task.id not in failed]
        if not ready:
            break
        if not waits:
            _say_what_is_left(records, planned)
        waits = not any([_do_or_note(grid, records, task, failed) for task in ready])
        if waits:
            time.sleep(WAIT)
    if failed:
        task, message = next(iter(failed.items()))
        others = f", and so did {', '.join([*failed][1:])}" if len(failed) > 1 else ""
        raise InputError(f"{task} failed{others}: {message}")


def _tired_last(grid: Grid, tasks: list[Task]) -> list[Task]:
    """Tasks in order, but for those within which process after process has ended, such as for want of memory."""
    tries = {task.id: last_claim(_claims(grid), task.id)[0] + 1 for task in tasks}
    return sorted(tasks, key=lambda task: tries[task.id] >= TRIES)


def _do_or_note(grid: Grid, records: Records, task: Task, failed: dict[str, str]) -> bool:
    """[`_do`] a task; one that can't be done, for a reason that others needn't have, is noted among the failed."""
    try:
        return _do(grid, records, task)
    except InputError as error:
        failed[task.id] = message_of(error)
        print(f"{task.id} failed: {failed[task.id]}", flush=True)
        return True


def _do(grid: Grid, records: Records, task: Task) -> bool:
    """Do a task unless another process has it, and say whether this one did, or found it done."""
    if records.read(task.id) is not None:  # another has done it since
        return True
    with claim(_claims(grid), task.id) as own:
        if own is None:
            return False
        if records.read(task.id) is not None:
            return True
        begun, before = time.time(), cpu_seconds() - own.cpu_seconds
        print(f"{task.id} ...", flush=True)
        record = task.work()
        cost = {"cpu_seconds": cpu_seconds() - before, "seconds": time.time() - begun}
        records.write(task.id, record | {"phase": task.phase} | cost)
    return True


def _say_what_is_left(records: Records, planned: Plan) -> None:
    """How many tasks are left, and what they will cost, as soon as one of each kind is done."""
    left = {phase: planned.later.get(phase, 0) for phase in PHASES}
    for task in planned.ready:
        left[task.phase] += 1
    spent = records.cpu_seconds()
    known = [phase for phase in PHASES if left[phase] and spent.get(phase)]
    minutes = sum(left[phase] * sum(spent[phase]) / len(spent[phase]) for phase in known) / 60
    unknown = [phase for phase in PHASES if left[phase] and phase not in known]
    estimate = f"about {minutes:,.1f} core-minutes" if known else "how long isn't known yet"
    more = f", without {', '.join(unknown)}, of which none is done yet" if known and unknown else ""
    print(f"{planned.done} tasks are done, {sum(left.values())} left: {estimate}{more}.")
