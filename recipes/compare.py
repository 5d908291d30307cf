"""Compare methods at equal budget: objectives x rates x seeds, tuned on held-out images, tested in the worst case.

    hpt compare --config compare_cifar10
    hpt compare --config mine.yaml --print_commands True    # what can be run now, a command a line
    hpt compare --config mine.yaml --report True            # tables of what is done by now

The YAML file has what all runs share, fields of `hpt train`; `methods:`, a line for each with what differs, such as
`tecoa: {objective: tecoa}`; and the fields of `Comparison`. `vary:` makes a method of each combination of values, such
as `{augmentation: [none, crop_flip]}`. The same command goes on where it was cut off, and shares the work with others
in the same output_dir, on this machine or on any that sees the folder.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from hpt import HPTConfig, InputError
from hpt.cli import read_arguments, run_recipe, split_option
from hpt.comparing.grid import NESTED, Comparison, Grid, read_grid
from hpt.comparing.records import Records
from hpt.comparing.report import write_report
from hpt.comparing.worker import check, free_tasks, measure_budgets, work_all, work_one
from hpt.escaping import shell
from hpt.processes import set_cpu_threads
from hpt.recipes.hpt_gpd import Recipe


PRINT = "--print_commands"


def main():
    argv = sys.argv[1:]
    if split_option(argv, "num_processes")[0] is not None:
        raise InputError("Processes share a comparison by its folder: start the same command several times instead.")
    arguments, nested, config = read_arguments(
        (Comparison, Recipe, HPTConfig), folder=Path(__file__).parent, nested=NESTED
    )
    grid = read_grid(arguments, nested, (Recipe, HPTConfig), config)
    compare(grid, argv)


def compare(grid: Grid, argv: list[str]) -> None:
    """Do what is left of a comparison, or say what that is; commands and tables have stdout for themselves."""
    settings, records = grid.comparison, Records(grid.folder)
    with redirect_stdout(sys.stderr):
        set_cpu_threads(grid.recipe.cpu_threads)
        check(grid, records)
        measure_budgets(grid, records)
        if settings.task is not None and not settings.print_commands:
            work_one(grid, records, settings.task)
            return
        if not settings.print_commands and not settings.report:
            work_all(grid, records)
    if settings.print_commands:
        for task in free_tasks(grid, records):
            print(command(argv, task))
    else:
        print(write_report(grid, records))
        print(f"\nTables, pictures and all results: {grid.folder}/comparison.md, comparison.jsonl, *.png")


def command(argv: list[str], task: str) -> str:
    """The command line that does one task, instead of printing all."""
    given, before = [], ""
    for word in argv:
        is_its_value = before == PRINT and not word.startswith("--")
        if word.partition("=")[0] != PRINT and not is_its_value:
            given.append(word)
        before = word
    return " ".join(map(shell, ["hpt", "compare", *given, "--task", task]))


if __name__ == "__main__":
    run_recipe(main)
