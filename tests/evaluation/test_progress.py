"""How far an evaluation is, and about how long the rest takes."""

import json
import re
from io import StringIO

import pytest
from helpers import make_benchmark
from tqdm import tqdm

from hpt import RobustnessEvaluator
from hpt.evaluation.progress import PassCounter, describe_duration, format_plan
from hpt.evaluation.rows import LARGE_EPS
from hpt.json_files import read_lines, unsealed


NUMBER = 20


def make_evaluator(folder=None, **settings):
    settings = {"attacks": ["pgd:steps=2", "cw:steps=3"], "eps": [2 / 255, 16 / 255], "batch_size": 8} | settings
    return RobustnessEvaluator(output_dir=folder, **settings)


@pytest.fixture
def benchmark():
    return make_benchmark(NUMBER)


def took(evaluator, task, batches, seconds, share):
    """Batches of a row as they would be in the results: so many seconds, and that share of the passes."""
    for batch in range(batches):
        passes = {"passes": round(share * 8 * task.most_passes), "most_passes": 8 * task.most_passes}
        evaluator.results.add_predictions(task.key, batch, {"predictions": [0] * 8, "seconds": seconds} | passes)


def test_a_row_takes_its_attacks_passes_for_each_sample(subject, benchmark):
    evaluator = make_evaluator(attacks=["pgd:steps=2", "square:queries=9"])
    progress = evaluator.progress([tasks := evaluator.plan(subject, benchmark)])
    assert [(task.settings["attack"], task.most_passes) for task in tasks[:4]] == [
        ("clean", 1),
        (LARGE_EPS, 203),
        ("pgd:steps=2", 5),
        ("square:queries=9", 10),
    ]
    assert [progress.most_passes(task) for task in tasks[:4]] == [20, 20 * 203, 100, 200]
    evaluator.run(tasks[:1])
    right = round(20 * evaluator.results.rows[tasks[0].key].accuracy)
    assert 0 < right < 20 and [progress.most_passes(task) for task in tasks[1:3]] == [right * 203, right * 5]


def test_the_rest_takes_as_long_as_what_was_measured(subject, benchmark):
    evaluator = make_evaluator()
    clean, check, pgd, cw, pgd_at_16, cw_at_16 = tasks = evaluator.plan(subject, benchmark)
    assert {evaluator.progress([tasks]).seconds_left(task) for task in tasks} == {None}
    took(evaluator, clean, batches=2, seconds=0.8, share=1)  # 0.1 s a pass
    progress = evaluator.progress([tasks])
    assert progress.seconds_left(clean) == pytest.approx(0.1 * 20 / 3)  # one batch of three is left
    assert progress.seconds_left(pgd) == pytest.approx(0.1 * 20 * 5)  # at most
    took(evaluator, pgd, batches=1, seconds=1, share=0.25)  # of an attack's own batches it is known how early it ends
    progress = evaluator.progress([tasks])
    assert progress.seconds_left(pgd) == pytest.approx(2 / 3 * 20 / 8)
    assert progress.seconds_left(pgd_at_16) == pytest.approx(20 / 8)
    assert progress.seconds_left(cw) == pytest.approx(20 * 7 * (1.6 + 1) / (16 + 10))  # a pass of any attack
    progress.num_processes = 2
    assert progress.seconds_left(pgd_at_16) == pytest.approx(20 / 8 / 2)
    assert progress.describe(cw_at_16).startswith(f"row 6 of 6, about {7:.0f} s left: mine, random, cw:steps=3 at 16")


def test_batches_of_earlier_versions_say_nothing_of_the_time(subject, benchmark, tmp_path):
    evaluator = make_evaluator(tmp_path)
    tasks = evaluator.plan(subject, benchmark)
    rows = evaluator.run(tasks)
    file = tmp_path / "predictions-0.jsonl"
    lines = [
        {name: value for name, value in line.items() if "passes" not in name} for line in read_lines(file, unsealed)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluator = make_evaluator(tmp_path, eps=[2 / 255, 4 / 255, 16 / 255])
    tasks = evaluator.plan(subject, benchmark)
    assert evaluator.progress([tasks]).seconds_left(tasks[0]) is None
    assert evaluator.run(tasks)[0] == rows[0]


def test_bars_count_rows_and_say_what_is_left(subject, benchmark, capsys):
    make_evaluator()(subject.classifier.model, subject.classifier.processor, benchmark, name="mine")
    said = capsys.readouterr().err
    assert "row 1 of 6: mine, random, clean:   0%|" in said
    assert re.search(r"row 6 of 6, about \d+ s left: mine, random, cw:steps=3 at 16/255: +\d+%\|", said)
    assert re.search(r"3.0/3 batches \[00:\d\d, clean=[\d.]+ %, robust=[\d.]+ %\]", said)


def test_a_bar_moves_within_a_batch():
    bar = tqdm(total=3, file=StringIO())
    seen = []
    for most in (200, 100, 50):
        counter = PassCounter(bar, most)
        for passes in (20, 30):
            counter.note(passes)
            seen.append(bar.n)
        counter.finish()
        assert counter.passes == 50
    assert seen == pytest.approx([0.1, 0.25, 1.2, 1.5, 2.4, 3]) and bar.n == 3


def test_what_is_counted_is_what_is_computed(subject, benchmark):
    evaluator = make_evaluator(attacks=["pgd:steps=2"], eps=1e-6)  # at which nothing breaks
    tasks = evaluator.plan(subject, benchmark)
    evaluator.run(tasks)
    clean, check, pgd = ([*evaluator.results.predictions[task.key].values()] for task in tasks)
    assert [record["passes"] for record in clean] == [16, 8, 4]  # the first twice, to see whether it is the same
    assert all(record["passes"] == record["most_passes"] for record in pgd)
    assert sum(record["passes"] for record in check) < sum(record["most_passes"] for record in check)


def test_a_plan_lists_rows_and_runs_nothing(subject, benchmark, tmp_path):
    evaluator = make_evaluator(tmp_path / "results")
    tasks = evaluator.plan(subject, benchmark)
    page = format_plan(evaluator.progress([tasks]))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert cells[2] == ["1", "mine", "random", "clean", "20", "1", "?"]
    assert cells[-1] == ["6", "mine", "random", "cw:steps=3 at 16/255", "20", "7", "?"]
    assert "6 rows, 0 of them done. The others take at most 4,560 passes of an image" in page
    assert "isn't known before the first batch is done" in page and not list(tmp_path.iterdir())
    evaluator.run(tasks)
    page = format_plan(evaluator.progress([tasks]))
    assert page.endswith("All 6 rows are done.")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "about 0 s"), (89, "about 89 s"), (720, "about 12 min"), (12600, "about 3.5 h")]
)
def test_durations_are_round(seconds, text):
    assert describe_duration(seconds) == text
