"""Each measurement through the recipe, at a tiny size: its table, its JSON, its picture; and what is refused."""

import errno
import json
from statistics import median

import pytest
from helpers import refusal_of, run_recipe
from PIL import Image
from torch import nn

from hpt import OBJECTIVES
from hpt.benchmarking import attacks, loading, memory, run
from hpt.benchmarking.run import MEASUREMENTS
from hpt.benchmarking.settings import COMPILE_MODES, Settings
from hpt.data.loading import load_benchmark
from hpt.environment import describe_environment
from hpt.errors import WriteFailed
from hpt.json_files import unsealed


SIZE = ["--models", "quickstart", "--images", 2, "--classes", 3, "--rounds", 2, "--use_cpu"]
GROWTH = {"classes": ["2", "5"], "images": ["1", "2"], "attack_steps": ["1", "2"], "image_size": ["32", "48"]}
GROWTH_FIELDS = ["--growth_classes", 2, 5, "--growth_images", 1, 2, "--growth_attack_steps", 1, 2]
STARTS = ["320 rows, 10 classes, 1 template", "400 rows, 10 classes, 1 template", "4 rows, 4 classes, 2 templates"]
ORDERS = ["published", "ours"]
WITH_WHOLE = [*ORDERS, "ours, whole towers"]
MODEL = "a model=PATH"  # where one is saved
LOADERS = [f"DataLoader, {how}" for how in ("in the main process", "num_workers=2")]

# Measurement: further arguments, and by the names of what comes out its variants
CASES = {
    "step": ([], {"step": WITH_WHOLE}),
    "compiled": ([], {f"compiled: {mode}": [*ORDERS, "ours, compiled"] for mode in COMPILE_MODES}),
    "evaluation": ([], {"evaluation": WITH_WHOLE}),
    "clean": ([], {"clean": ["proxy asked", "features kept"]}),
    "attacks": (
        ["--attacked", MODEL, "--attacked_dataset", "digits", "--attacks", "apgd-ce:steps=2", "--batch_size", 8],
        {"attacks: apgd-ce-2, a model": ["batch by batch", "in pools"]},
    ),
    "memory": ([], {"memory": ORDERS}),
    "growth": (
        [*GROWTH_FIELDS, "--growth_image_sizes", 32, 48],
        {f"growth: {axis}": values for axis, values in GROWTH.items()},
    ),
    "trainer": ([], {name: ["bare loop", "Trainer"] for name in ("trainer", "trainer: small")}),
    "startup": (["--rows", 400, "--many_classes", 4, "--templates", 2], {"startup": STARTS}),
    "objectives": (
        ["--objectives", "tecoa", *sorted(set(OBJECTIVES) - {"tecoa"}), "0.5*hpt + tecoa"],
        {"objectives": ["tecoa", *sorted(set(OBJECTIVES) - {"tecoa"}), "0.5*hpt + tecoa"]},
    ),
    "training": (["--batch_size", 2, "--steps", 4], {"training": ["a step"]}),
    "loading": (
        ["--dataset", "digits", "--batch_size", 16, "--workers", 0, 2],
        {"loading": [loading.ALONE, *LOADERS]},
    ),
}
ROUNDS = {"memory": 1, "training": 4}  # of others, as many as are asked for


def test_every_measurement_is_tried():
    assert list(CASES) == list(MEASUREMENTS)


@pytest.mark.filterwarnings("ignore:digits .* has images of 8 pixels")
@pytest.mark.parametrize("measure", CASES)
def test_each_measurement_prints_a_table_and_writes_all_that_it_knows(measure, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attacks, "load_benchmark", lambda name: load_benchmark(name).subset(40))
    monkeypatch.setattr(loading, "load_benchmark", lambda name: load_benchmark(name).subset(40))
    monkeypatch.setattr(memory, "peaks_apart", memory.peaks_of_steps)  # here, where torch is imported already
    compile_tower = nn.Module.compile  # without generating code, which takes half a minute
    monkeypatch.setattr(nn.Module, "compile", lambda tower, **how: compile_tower(tower, backend="aot_eager"))
    arguments, expected = CASES[measure]
    arguments = [f"a model={saved}" if argument == MODEL else argument for argument in arguments]
    run_recipe("benchmark.py", *SIZE, "--measure", measure, *arguments, "--output_dir", tmp_path)
    content = unsealed(json.loads((tmp_path / "benchmark.json").read_text()))
    assert content["environment"] == describe_environment()
    assert content["settings"]["images"] == 2 and content["settings"]["measure"] == [measure]
    described = {measurement["name"]: measurement for measurement in content["measurements"]}
    assert {name: list(own["values"]) for name, own in described.items()} == expected
    printed = capsys.readouterr().out
    for name, own in described.items():
        assert f"{name}: {own['title']}" in printed and own["faults"] == []
        for variant, values in own["values"].items():
            assert f"| {variant}" in printed
            assert len(values) == ROUNDS.get(measure, 2) and min(values) > 0
            firsts = own["values"][own["reference"]]
            ratios = [a / b if own["speeds"] else b / a for a, b in zip(firsts, values, strict=True)]
            assert own["ratios"][variant] == ratios
            assert own["ratios_summary"][variant]["median"] == median(ratios)
    with Image.open(tmp_path / "benchmark.png") as picture:
        picture.verify()
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.png"}


def test_what_is_measured_is_kept_if_the_next_thing_fails(tmp_path, monkeypatch):
    def fail(settings):
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASUREMENTS, "growth", fail)
    with pytest.raises(KeyboardInterrupt):
        run_recipe("benchmark.py", *SIZE, "--measure", "step", "growth", "--output_dir", tmp_path)
    (step,) = json.loads((tmp_path / "benchmark.json").read_text())["measurements"]
    assert step["name"] == "step" and len(step["values"]["ours"]) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--measure", "steps"], "Unknown measure 'steps'; known: step, compiled, evaluation"),
        (["--models", "vit_l"], "Unknown models 'vit_l'; known: vit_b, quickstart."),
        (["--precision", "half"], "Unknown precision 'half'; known: float32, bf16, fp16."),
        (["--images", "0"], "images is 0, but must be a whole number of at least 1."),
        (["--classes", "1"], "classes is 1, but must be a whole number of at least 2."),
        (["--growth_images", "4", "0"], "growth_images[1] is 0, but must be a whole number of at least 1."),
        (["--growth_classes", "1", "10"], "growth_classes[0] is 1, but must be a whole number of at least 2."),
        (["--image_size", "-32"], "image_size is -32, but must be a whole number of at least 1."),
        (["--image_size", "100"], "Images of 100 pixels aren't whole patches of 32: give a multiple."),
        (["--measure", "growth", "--growth_image_sizes", "224", "240"], "Images of 240 pixels aren't whole patches"),
        (["--objectives", "tecoa", "hbt"], "Unknown objectives 'hbt'; known: hpt, "),
        (["--measure", "attacks"], "attacks are timed on trained models: give attacked"),
        (["--measure", "attacks", "--attacked", "m", "--attacks", "apdg"], "Unknown attack 'apdg'"),
        (["--measure", "attacks", "--attacked", "./m"], "Can't load the model './m': there is no such folder"),
        (["--measure", "attacks", "--attacked", "m", "--attacked_dataset", "digitz"], "Unknown benchmark 'digitz'"),
        (["--measure", "loading", "--dataset", "digitz"], "Unknown benchmark 'digitz'"),
        (["--measure", "loading"], "loading reads real images: give a dataset"),
        (["--dataset", "digits"], "Only loading reads a dataset"),
        (["--workers", "2", "-1"], "workers[1] is -1, but must be a whole number of at least 0."),
        (["--compile_modes", "max"], "Unknown compile_modes 'max'; known: default, reduce-overhead."),
        (["--measure", "trainer", "--precision", "fp16"], "trainer can't be measured in fp16"),
        (["--output_dir", "{folder}"], "has a benchmark.json already, which is kept: give another output_dir."),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(arguments, line, tmp_path, monkeypatch):
    for name in MEASUREMENTS:
        monkeypatch.setitem(MEASUREMENTS, name, None)  # which couldn't be called
    (tmp_path / "benchmark.json").write_text("{}")
    given = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    assert line in refusal_of("benchmark.py", *given)
    assert (tmp_path / "benchmark.json").read_text() == "{}"


def test_a_folder_that_takes_no_file_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    """Though its permissions allow it, as those of a read-only file system may."""

    def fail(**settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run, "TemporaryFile", fail)
    monkeypatch.setitem(MEASUREMENTS, "growth", None)  # which couldn't be called
    with pytest.raises(WriteFailed, match="speed can't be written: Read-only file system.$"):
        run.run_benchmark(Settings(measure=["growth"], output_dir=str(tmp_path / "speed")))
    monkeypatch.undo()
    run.check(Settings(output_dir=str(tmp_path / "speed")))
    assert list((tmp_path / "speed").iterdir()) == []
