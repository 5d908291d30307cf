"""What evaluations, comparisons and rankings print and leave in their folders: pages, tables and pictures.

results.json, accuracy_*.png, proxy_robustness_*.png                                              of a comparison
table.md, flags.json, results.csv, robustness_*.png, clean_against_robust_*.png, images_*.png     of an evaluation
ranking.md, ranking.json, matrix.csv, matrix.png                                                  of a ranking
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from hpt.attacks import PGD
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import file_name, markdown
from hpt.evaluation.comparison import compare_models, measure
from hpt.evaluation.evaluator import RobustnessEvaluator
from hpt.evaluation.figures import (
    draw_accuracy_bars,
    draw_accuracy_over_eps,
    draw_adversarial_images,
    draw_clean_against_robust,
    draw_robustness_curves,
    draw_transfer_matrix,
)
from hpt.evaluation.flags import find_flags
from hpt.evaluation.plan import Task
from hpt.evaluation.ranking import TransferMatrix, format_ranking, rank_proxies
from hpt.evaluation.report import (
    describe_resolution,
    format_accuracies,
    format_flags,
    format_samples,
    format_table,
    worst_cases,
    write_csv,
)
from hpt.evaluation.row_settings import hash_benchmark
from hpt.evaluation.rows import Row
from hpt.evaluation.subject import Subject
from hpt.files import write_file
from hpt.json_files import sealed
from hpt.radius import Radius


def report_evaluation(
    evaluator: RobustnessEvaluator, planned: list[list[Task]], missing: Iterable[str], failures: Iterable[str]
) -> None:
    """Print and write the table, the flags and the pictures of all that an evaluator's folder has.

    Args:
        evaluator ([`RobustnessEvaluator`]): With an `output_dir`.
        planned (`list[list[Task]]`): Of each model and benchmark, what it planned, for pictures of adversarial images.
        missing (`Iterable[str]`): Benchmarks that couldn't be loaded; they keep a column.
        failures (`Iterable[str]`): What went wrong, a line each.
    """
    rows, folder = list(evaluator.results.rows.values()), evaluator.results.folder
    flags = find_flags(rows)
    table = format_accuracies(rows, list(dict.fromkeys([*(row.benchmark for row in rows), *missing])))
    page = f"Accuracy in %, with its 95 % interval\n\n{format_samples(rows)}\n\n{table}\n\n"
    page += f"Reliability flags\n\n{format_flags(flags)}\n"
    page += "".join(f"\n{markdown(line)}\n" for line in evaluator.left_out)
    page += "".join(f"\nMissing: {markdown(failure)}\n" for failure in failures)
    print(f"\n{page}")
    write_file(folder / "table.md", page)
    write_file(folder / "flags.json", json.dumps([asdict(flag) for flag in flags], indent=1))
    write_csv(rows, folder / "results.csv")
    draw_rows(rows, folder)
    print(f"Results and pictures: {folder}")
    for tasks in planned:
        try:
            draw_examples(evaluator, tasks, folder)
        except InputError as error:  # the rows are there, whatever became of the images since
            print(f"No adversarial images are drawn: {error}")


def report_comparison(
    subjects: list[Subject], benchmarks: list[Benchmark], attack: PGD, radii: list[Radius], folder: Path, **loader
) -> list[Row]:
    """Compare a target before and after training, and its proxy: print a table for each benchmark, write the rows to
    `results.json`, and draw accuracies, and the proxy's over radii.

    Args:
        subjects (`list[Subject]`): The vanilla target, its proxy if it has one, and the robust target.
        benchmarks (`list[Benchmark]`): What they classify.
        attack ([`PGD`]): On each model, and on the vanilla target.
        radii (`list[Radius]`): At these, PGD also attacks the vanilla target for itself and the proxy, and the robust
            target for itself.
        folder (`Path`): For rows and pictures.
        loader: `batch_size` and `num_workers`.

    Returns:
        `list[Row]`: all rows.
    """
    vanilla, *_, robust = subjects
    taught = len(subjects) > 2
    rows = []
    for benchmark in map(vanilla.see, benchmarks):
        settings = loader | {"samples": hash_benchmark(benchmark)}
        table = compare_models(subjects, benchmark, attack, **settings)
        where = f"{benchmark.name} {benchmark.split}, n = {len(benchmark)}"
        title = f"{where}, l_inf eps = {attack.radius}"
        print(f"\n{markdown(title)}: accuracy in %, with its 95 % interval\n\n{format_table(table)}\n")
        if flags := find_flags(table):
            print(f"{format_flags(flags)}\n")
        transferred, own = [], []
        for radius in radii:
            weaker = PGD(eps=radius, steps=attack.steps, seed=attack.seed)
            transferred += measure(subjects[:-1], benchmark, weaker, vanilla.name, **settings)
            own += measure([robust], benchmark, weaker, robust.name, **settings)
        rows += table + transferred + own
        write_file(folder / "results.json", json.dumps([sealed(asdict(row)) for row in rows], indent=1))
        draw_accuracy_bars(table, title, folder / f"accuracy_{file_name(benchmark.name)}.png")
        if transferred and taught:
            transferred += [row for row in table if row.attacked is None and row.model != robust.name]
            title = f"Images made against the {vanilla.name} ({where}, {attack.label})"
            draw_accuracy_over_eps(transferred, title, folder / f"proxy_robustness_{file_name(benchmark.name)}.png")
    return rows


def draw_rows(rows: list[Row], folder: Path) -> None:
    """Draw accuracy over eps of each benchmark, and clean against robust accuracy at each radius."""
    worst = [row for row in worst_cases(rows) if not row.made_on_other]
    for benchmark, norm in dict.fromkeys((row.benchmark, row.norm) for row in worst):
        draw_robustness_curves(rows, benchmark, norm, folder / f"robustness_{file_name(benchmark)}_{norm}.png")
    for radius in dict.fromkeys(row.radius for row in worst):
        name = f"clean_against_robust_{radius.norm}_{str(radius).replace('/', '_')}.png"
        draw_clean_against_robust(rows, radius, folder / name)


def draw_examples(evaluator: RobustnessEvaluator, tasks: list[Task], folder: Path) -> None:
    """Draw some samples under the first attack at the largest radius, if anything was attacked."""
    examples = evaluator.examples(tasks)
    if examples:
        model, benchmark = (tasks[0].settings[key] for key in ("model", "benchmark"))
        title = f"{model} on {benchmark}, {examples[0]['attack']}"
        draw_adversarial_images(examples, title, folder / f"images_{file_name(benchmark, model)}.png")


def report_ranking(matrix: TransferMatrix, target: str) -> None:
    """Print and write the ranking of the candidates for a target, the matrix and its heat map.

    Args:
        matrix ([`TransferMatrix`]): Measured, with a folder.
        target (`str`): Name of the target; the other models are the candidates.
    """
    ranked, rows, images, folder = rank_proxies(matrix, target), matrix.rows(), matrix.benchmark, matrix.folder
    page = format_ranking(ranked, matrix, target)
    resolution = describe_resolution(images.attack_space)
    where = f"{len(images)} images of {images.name} ({images.split}), attacked at {resolution}"
    page = f"{markdown(where)}\n\n{page}\n"
    print(f"\n{page}")
    write_file(folder / "ranking.md", page)
    content = {
        "target": target,
        "dataset": images.name,
        "split": images.split,
        "source": images.source,
        "n": len(images),
        "attack_space": images.attack_space,
        "eps": matrix.eps,
        "attack": rows[-1].strength,
        "seed": rows[-1].seed,
        "candidates": [asdict(proxy) for proxy in ranked],
    }
    write_file(folder / "ranking.json", json.dumps(content, indent=1))
    write_csv(rows, folder / "matrix.csv")
    within = max(max(row.high - row.accuracy, row.accuracy - row.low) for row in rows)
    title = f"Accuracy (%, within {100 * within:.1f} points at 95 %) on images made by {rows[-1].label},\n{where}"
    draw_transfer_matrix(rows, title, folder / "matrix.png")
    print(f"Ranking, matrix and heat map: {folder}/ranking.md, matrix.csv, matrix.png")
