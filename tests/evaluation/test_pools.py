"""Batches that are attacked together: always the same ones, whoever attacks them and however often it is cut off."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import make_benchmark

from hpt import RobustnessEvaluator
from hpt.classifiers import draw_uniform
from hpt.evaluation import pools
from hpt.evaluation.functions import as_subject
from hpt.evaluation.pools import make_pools
from hpt.evaluation.results import ResultsFolder
from hpt.evaluation.rows import LARGE_EPS


ATTACK = "apgd-ce:steps=4"


class Cut(Exception):
    pass


def make_evaluator(folder=None, **settings):
    settings = {"attacks": ["pgd:steps=2", ATTACK], "eps": 8 / 255, "batch_size": 4} | settings
    return RobustnessEvaluator(output_dir=folder, **settings)


@pytest.fixture
def benchmark():
    return make_benchmark(25)


def predicted(evaluator, tasks):
    """Of each row and batch what was predicted, and what was noticed."""
    names = ("predictions", "zero_gradient", "broken_by")
    return {
        (task.settings["attack"], batch): [record.get(name) for name in names]
        for task in tasks
        for batch, record in sorted(evaluator.results.predictions[task.key].items())
    }


@pytest.mark.parametrize(
    ("batches", "values", "sizes"),
    [
        (1, 100, [1]),
        (2, 100, [2]),
        (4, 100, [2, 2]),
        (6, 100, [3, 3]),  # 360 images in batches of 64: each of two processes has half of them
        (7, 100, [2, 2, 3]),
        (157, 100, [12] * 12 + [13]),
        (16, 64 * 3 * 224 * 224, [2, 3, 3, 2, 3, 3]),  # no more than fit into memory
        (3, 2**26, [1, 1, 1]),  # one batch at least
    ],
)
def test_pools_are_as_many_as_their_batches_and_fit_into_memory(batches, values, sizes):
    made = make_pools(batches, values)
    assert [batch for pool in made for batch in pool] == list(range(batches))
    assert sorted(map(len, made)) == sorted(sizes)
    assert all(len(pool) * values <= pools.MOST_VALUES or len(pool) == 1 for pool in made)


def test_only_attacks_whose_samples_leave_are_pooled(subject, benchmark):
    attacks = ["pgd", "cw", "transfer-to-proxy", "pgd:restarts=2", "apgd-ce", "apgd-t", "fab-t", "square", "apgd"]
    evaluator = make_evaluator(attacks=attacks, proxy=subject.classifier, proxy_name="proxy")
    together = {task.settings["attack"]: max(map(len, task.pools)) for task in evaluator.plan(subject, benchmark)}
    assert {name for name, size in together.items() if size == 1} == {"clean", "pgd", "cw", "transfer-to-proxy"}
    assert {size for name, size in together.items() if size > 1} == {3}


def test_no_sample_of_a_randomised_classifier_leaves(subject, benchmark):
    class Noisy:
        randomised = True

        def __call__(self, images, seeds):
            return subject.classifier.with_classes(benchmark.class_names)(
                images + draw_uniform(seeds, *images.shape[1:]) / 10
            )

    noisy = as_subject(Noisy(), "noisy", torch.device("cpu"))
    assert {len(pool) for task in make_evaluator().plan(noisy, benchmark) for pool in task.pools} == {1}


def test_pools_change_no_verdict(subject, benchmark, monkeypatch):
    evaluator = make_evaluator()
    evaluator.run(tasks := evaluator.plan(subject, benchmark))
    monkeypatch.setattr(pools, "MOST_VALUES", 1)
    alone = make_evaluator()
    alone.run(others := alone.plan(subject, benchmark))
    assert [max(map(len, task.pools)) for task in (tasks[-1], others[-1])] == [3, 1]
    assert predicted(evaluator, tasks) == predicted(alone, others)


def test_batches_of_a_pool_share_what_it_took(subject, benchmark):
    evaluator = make_evaluator(attacks=[ATTACK], eps=1e-6)  # at which nothing breaks
    clean, _, task = tasks = evaluator.plan(subject, benchmark)
    clean_row, _, row, _ = evaluator.run(tasks)
    records = evaluator.results.predictions[task.key].values()
    assert sum(record["seconds"] for record in records) == pytest.approx(row.seconds)
    attacked = [record for record in records if record["passes"]]
    assert sum(record["most_passes"] for record in attacked) == round(clean_row.accuracy * 25) * task.most_passes
    assert 1 < len(attacked) < len(records)  # of some batches, all samples are wrong
    assert all(record["passes"] == record["most_passes"] for record in attacked)


@pytest.mark.parametrize("written", range(0, 16, 3))
def test_a_pool_that_was_cut_off_is_attacked_again_as_a_whole(subject, benchmark, tmp_path, monkeypatch, written):
    whole = make_evaluator(attacks=[ATTACK])
    whole.run(expected := whole.plan(subject, benchmark))
    add, lines, attacked = ResultsFolder.add_predictions, [], []

    def cut(self, row, batch, record):
        if len(lines) == written:
            raise Cut
        lines.append(batch)
        return add(self, row, batch, record)

    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "add_predictions", cut)
        evaluator = make_evaluator(tmp_path, attacks=[ATTACK])
        with pytest.raises(Cut):
            evaluator.run(evaluator.plan(subject, benchmark))
    there = (tmp_path / "predictions-0.jsonl").read_text() if written else ""
    evaluator = make_evaluator(tmp_path, attacks=[ATTACK])
    tasks = evaluator.plan(subject, benchmark)
    work_off = evaluator._work._work_off
    monkeypatch.setattr(
        evaluator._work, "_work_off", lambda task, pool, *rest: attacked.append(pool) or work_off(task, pool, *rest)
    )
    evaluator.run(tasks)
    assert predicted(evaluator, tasks) == predicted(whole, expected)
    assert (tmp_path / "predictions-0.jsonl").read_text().startswith(there)  # what was there stays
    kept = [json.loads(line) for line in (tmp_path / "predictions-0.jsonl").read_text().splitlines()]
    assert len(kept) == len({(line["row"], line["batch"]) for line in kept}) == sum(t.num_batches for t in tasks)
    assert all(pool in [*tasks[0].pools, *tasks[1].pools, *tasks[2].pools] for pool in attacked)


def test_two_processes_share_pools_and_find_the_same(subject, benchmark, monkeypatch):
    single = make_evaluator(attacks=[ATTACK])
    single.run(expected := single.plan(subject, benchmark))
    monkeypatch.setattr("hpt.evaluation.work.gather_object", lambda values: values)  # each by itself
    found, shares = {}, []
    for rank in range(2):
        evaluator = make_evaluator(attacks=[ATTACK])
        clean, check, task = evaluator.plan(subject, benchmark)
        evaluator.run([clean])
        state = {"process_index": rank, "num_processes": 2, "is_local_main_process": False}
        evaluator._work.state = SimpleNamespace(**state)
        evaluator._work._share(task, list(range(task.num_batches)), evaluator.progress([[clean, check, task]]))
        shares.append(sorted(evaluator.results.predictions[task.key]))
        found |= predicted(evaluator, [task])
    assert [len(share) for share in shares] == [5, 2] and sorted(sum(shares, [])) == list(range(7))
    assert found == {key: value for key, value in predicted(single, expected).items() if key[0] == ATTACK}


def test_the_check_at_a_large_eps_is_pooled_too(subject, benchmark, monkeypatch):
    monkeypatch.setattr("hpt.evaluation.plan.LARGE_SAMPLES", 8)
    check = make_evaluator().plan(subject, benchmark)[1]
    assert check.settings["attack"] == LARGE_EPS and list(map(len, check.pools)) == [2]
