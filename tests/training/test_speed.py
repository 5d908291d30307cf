"""Objectives are timed in turn, each as itself; on models made on the spot in place of those of real size."""

import re

from helpers import CLASSES, make_clip, make_dataset, refusal_of

from hpt import OBJECTIVES
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.training import speed


def test_each_objective_is_timed_beside_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "make_model", lambda patch_size: make_clip(patch_size, patch_size=patch_size // 4))
    timed, steps = [], speed.HPTTrainer.compute_loss
    monkeypatch.setattr(
        speed.HPTTrainer,
        "compute_loss",
        lambda self, *args, **kwargs: (timed.append(self.objectives["transfer"]), steps(self, *args, **kwargs))[1],
    )
    train = Benchmark("random", "train", make_dataset(24), CLASSES, None, ImageTransform())
    texts = ["tecoa", *sorted(set(OBJECTIVES) - {"tecoa"}), "0.5*hpt + tecoa"]
    speed.compare_objectives(train, texts, images=2, classes=3, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Steps per second, 2 images and 3 classes, and their ratio to tecoa, 2 rounds:")
    assert lines[start + 1].endswith("1.00 [1.00-1.00]")
    pattern = r"(.+): \d+\.\d+ steps/s, (\d+\.\d+) \[(\d+\.\d+)-(\d+\.\d+)\]"
    found = [re.fullmatch(pattern, line).groups() for line in lines[start + 1 :]]
    assert [name for name, *_ in found] == texts
    assert all(float(low) <= float(median) <= float(high) for _, median, low, high in found)
    kinds = [type(objective) for objective in timed[-len(texts) :]]
    assert kinds == [*(OBJECTIVES[text] for text in texts[:-1]), kinds[-1]]


def test_an_unknown_objective_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--dataset", "digits", "--objectives", "tecoa", "hbt")
    assert "Unknown objectives 'hbt'; known: hpt, " in refusal_of("benchmark.py", *arguments)
    assert not list(tmp_path.iterdir())
