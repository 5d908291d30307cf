"""What a comparison's YAML file means: methods, what varies, and what is refused before anything runs."""

import json

import pytest

from hpt import HPTConfig, InputError
from hpt.cli import read_arguments
from hpt.comparing.grid import NESTED, Comparison, Run, read_grid
from hpt.comparing.records import keep_settings
from hpt.data.loading import load_benchmark
from hpt.json_files import sealed
from hpt.recipes.hpt_gpd import Recipe


SHARED = """
target: models/target
train_dataset: digits
learning_rates: [1e-2, 5e-2]
seeds: [3, 4]
tests: [digits]
output_dir: FOLDER
use_cpu: true
"""
METHODS = "methods: {tecoa: {objective: tecoa}, hpt: {anchor_epochs: 0}}"


def read(tmp_path, text=METHODS, *arguments, shared=SHARED):
    file = tmp_path / "grid.yaml"
    file.write_text(f"{shared.replace('FOLDER', str(tmp_path / 'out'))}\n{text}")
    types = (Comparison, Recipe, HPTConfig)
    read_from, nested, config = read_arguments(types, argv=["--config", str(file), *arguments], nested=NESTED)
    return read_grid(read_from, nested, (Recipe, HPTConfig), config)


def test_methods_share_settings_but_for_their_own(tmp_path):
    grid = read(tmp_path, "methods: {tecoa: {objective: tecoa}, hpt: {anchor_epochs: 1, attack_eps: 8/255}}")
    assert [str(run) for run in grid.runs_of("tecoa")] == [
        "tecoa-0.01-3",
        "tecoa-0.01-4",
        "tecoa-0.05-3",
        "tecoa-0.05-4",
    ]
    assert [str(run) for run in grid.tuning_runs("hpt")] == ["hpt-0.01-3", "hpt-0.05-3"]
    recipe, args = grid.settings(grid.runs_of("hpt")[3])
    assert (args.objective, args.anchor_epochs, args.attack_eps) == ("hpt", 1, 8 / 255)
    assert (args.learning_rate, args.seed, args.save_endpoints) == (0.05, 4, True)
    assert args.output_dir == str(tmp_path / "out" / "runs" / "hpt-0.05-4") and recipe.target == "models/target"
    assert grid.settings(grid.first_run("tecoa"))[1].objective == "tecoa"
    assert grid.eps == 1 / 255 and grid.test_eps == [1 / 255]  # whatever the radius of a method


def test_radii_of_tests_are_those_given_and_choices_stay_at_the_shared_one(tmp_path):
    grid = read(tmp_path, METHODS, "--attack_eps", "2/255", "--test_eps", "8/255", "4/255")
    assert grid.test_eps == [4 / 255, 8 / 255] and grid.eps == 2 / 255


def test_a_comparison_notices_other_samples_in_a_file_of_theirs(tmp_path):
    texts = []
    for numbers in ("1\n2\n", "1\n3\n"):
        (tmp_path / "few.txt").write_text(numbers)
        grid = read(tmp_path, METHODS, "--tests", f"digits:samples={tmp_path / 'few.txt'}")
        texts += grid.describe()["protocol"]["tests"]
        assert len(grid.test_images(grid.first_run("tecoa"), texts[-1])) == 2
    assert len(set(texts)) == 2 and all(text.startswith("digits:samples=PATH/few.txt@") for text in texts)


def test_what_varies_makes_a_method_of_each_combination(tmp_path):
    grid = read(
        tmp_path, "methods: {a: {objective: tecoa}, b: {}}\nvary: {attack_steps: [1, 2], trainable: [vision, all]}"
    )
    expected = [
        f"{name}, attack_steps={n}, trainable={part}" for name in "ab" for n in (1, 2) for part in ("vision", "all")
    ]
    assert [*grid.methods] == expected
    assert grid.settings(grid.first_run("b, attack_steps=1, trainable=all"))[1].attack_steps == 1


def test_a_method_may_have_rates_of_its_own(tmp_path):
    grid = read(tmp_path, "methods: {a: {objective: tecoa, learning_rates: [1e-4, 1/8]}, b: {}}")
    assert grid.methods["a"].learning_rates == (1e-4, 0.125) and grid.methods["b"].learning_rates == (0.01, 0.05)


def test_vanilla_targets_have_names(tmp_path):
    assert [*read(tmp_path).targets()] == ["vanilla"]
    several = read(tmp_path, "methods: {a: {}, b: {objective: tecoa}}\nvary: {target: [x/y, z]}")
    assert [*several.targets()] == ["vanilla x/y", "vanilla z"]


def test_all_choose_on_the_same_images_that_none_trains_on(tmp_path):
    """Whatever the seed, the rate, and how much of the rest a method trains on."""
    grid = read(tmp_path, "methods: {a: {}, b: {max_train_samples: 100}, c: {objective: fare}}\nvalidation_size: 50")
    sets = [grid.choosing_images(run) for method in grid.methods for run in grid.runs_of(method)]
    held_out = {tuple(chosen_on.ids()) for _, chosen_on in sets}
    assert len(sets) == 12 and len(held_out) == 1 and len(*held_out) == 50
    assert not any(set(*held_out) & {*train.ids().tolist()} for train, _ in sets)
    assert {len(train) for train, _ in sets} > {100}


@pytest.mark.parametrize("held_out", [0, 300])
def test_choices_can_be_made_on_classes_that_nothing_is_trained_on(tmp_path, held_out):
    """On their training images, or those of them that are held out, or of the dataset's own validation split."""
    classes = ["two", "seven", "nine"]
    text = f"methods: {{a: {{}}, b: {{max_train_samples: 100}}}}\nvalidation_size: {held_out}"
    whole, chosen_on = read(tmp_path, text).choosing_images(Run("a", 0.01, 3))
    grid = read(tmp_path, text, "--validation_classes", "|".join(classes))
    for method in grid.methods:
        train, images = grid.choosing_images(grid.first_run(method))
        assert images.class_names == classes and not {*train.class_names} & {*classes}
        assert len(train.class_names) == 7 and {*train.dataset["label"]} == {*range(7)}
        assert len(train) == (100 if method == "b" else sum(name not in classes for name in names_of(whole)))
        ids = [id for id, name in zip(chosen_on.ids().tolist(), names_of(chosen_on), strict=True) if name in classes]
        assert images.ids().tolist() == ids and {*names_of(images)} == {*classes}


def names_of(benchmark):
    return [benchmark.class_names[label] for label in benchmark.dataset["label"]]


def test_images_of_held_out_classes_are_training_images_where_nothing_else_is_held_out(tmp_path):
    shared = SHARED.replace("train_dataset: digits", "train_dataset: digits:split=train")
    grid = read(tmp_path, METHODS, "--validation_classes", "0|1", shared=shared)
    train, images = grid.choosing_images(grid.first_run("hpt"))
    whole = load_benchmark("digits", "train")
    assert sorted([*train.ids(), *images.ids()]) == sorted(whole.ids()) and images.class_names == ["zero", "one"]


@pytest.mark.parametrize(
    "classes, line",
    [
        ("two|elven", "validation_classes: .*names 'elven'.*"),
        ("two", "validation_classes: classes leaves one class, 'two'"),
        ("0|1|2|3|4|5|6|7|8", "validation_classes: without_classes leaves one class, 'nine'"),
    ],
)
def test_classes_that_cannot_be_chosen_by_are_refused(tmp_path, classes, line):
    grid = read(tmp_path, METHODS, "--validation_classes", classes)
    with pytest.raises(InputError, match=line):
        grid.choosing_images(grid.first_run("hpt"))


@pytest.mark.parametrize(
    "shared, own",
    [
        ("anchor_epochs: 1, transfer_epochs: 2", "pull_ratio: 1.0"),
        ("anchor_epochs: 1, transfer_epochs: 2", "anchor_learning_rate: 0.5"),
        ("anchor_epochs: 1, transfer_epochs: 1, restart: false", "anchor_learning_rate: 0.5"),
        ("anchor_epochs: 1, transfer_epochs: 1", "restart: false"),
    ],
)
def test_settings_that_change_something_make_two_methods(tmp_path, shared, own):
    grid = read(tmp_path, f"methods: {{a: {{{shared}}}, b: {{{shared}, {own}}}}}")
    assert list(grid.methods) == ["a", "b"]


REFUSED = {
    "no methods": ("", [], "has no methods"),
    "a list of methods": ("methods: [tecoa]", [], "methods must be a mapping"),
    "a method without settings": ("methods: {tecoa: }", [], "tecoa must be a mapping of settings"),
    "a method twice": ("methods:\n  a: {objective: tecoa}\n  a: {objective: hpt}", [], "gives a more than once"),
    "the same settings twice": ("methods: {a: {objective: tecoa}, b: {objective: tecoa}}", [], "'a' and 'b' have the"),
    "a pull that never comes": (
        "methods: {a: {anchor_epochs: 1}, b: {anchor_epochs: 1, pull_ratio: 1.0}}", ["--transfer_epochs", "1"],
        "'a' and 'b' would train the same: they differ in pull_ratio alone.*transfer_epochs 1 and restart True"),
    "an anchor that a restart forgets": (
        "methods: {a: {anchor_epochs: 1}, b: {anchor_epochs: 1, anchor_learning_rate: 0.5}}",
        ["--transfer_epochs", "1"], "differ in anchor_learning_rate alone"),
    "a restart of nothing": (
        "methods: {a: {anchor_epochs: 0, restart: false}, b: {anchor_epochs: 0, ema_decay: 0.5}}", [],
        "differ in ema_decay and restart alone"),
    "an anchor stage of no epochs": (
        "methods: {a: {anchor_epochs: 0}, b: {anchor_epochs: 0, anchor_objective: fare}}", [],
        "differ in anchor_objective alone"),
    "an unknown objective": ("methods: {a: {objective: tekoa}}", [], "Method 'a': Unknown objective 'tekoa'.*tecoa"),
    "an unknown field": ("methods: {a: {atack_steps: 3}}", [], "'atack_steps' in method 'a': did you mean"),
    "an unknown setting": ("methods: {a: {objective_args: tau=2}}", [], "Method 'a': objective_args sets 'tau'"),
    "a value out of range": ("methods: {a: {attack_steps: 0}}", [], "Method 'a': attack_steps is 0"),
    "a value of another type": ("methods: {a: {attack_steps: many}}", [], "Method 'a': --attack_steps is 'many'"),
    "fields within a field": ("methods: {a: {objective: {tecoa: 1}}}", [], "objective has fields of its own"),
    "a rate of a method": ("methods: {a: {learning_rate: 1}}", [], "Method 'a' sets learning_rate, but"),
    "a seed of a method": ("methods: {a: {seed: 1}}", [], "Method 'a' sets seed, but"),
    "a folder of a method": ("methods: {a: {output_dir: x}}", [], "Method 'a' sets output_dir"),
    "held-out images of a method": ("methods: {a: {validation_size: 9}}", [], "sets validation_size, but choices of"),
    "a resolution of a method": ("methods: {a: {protocol: pmg}}", [], "sets protocol, but all methods are tested"),
    "no rates of a method": ("methods: {a: {learning_rates: []}}", [], "There are no learning_rates"),
    "a text as rates": ("methods: {a: {learning_rates: fast}}", [], "must be a list of numbers"),
    "a number as rates": ("methods: {a: {learning_rates: 0.1}}", [], "must be a list of numbers"),
    "a negative rate": (METHODS, ["--learning_rates", "-0.1"], "learning_rates have -0.1, but each must be above 0"),
    "an infinite rate": (METHODS, ["--learning_rates", "inf"], "learning_rates have inf"),
    "a rate twice": (METHODS, ["--learning_rates", "0.1", "1/10"], "learning_rates have 0.1 twice"),
    "rates that folders don't tell apart": (METHODS, ["--learning_rates", "0.1", "0.10000001"], "have 0.1 twice"),
    "a seed twice": (METHODS, ["--seeds", "1", "1"], "seeds have 1 twice"),
    "a negative seed": (METHODS, ["--seeds", "-1"], "seeds is -1"),
    "a test twice": (METHODS, ["--tests", "digits", "digits"], "tests have digits twice"),
    "no radius to test at": (f"{METHODS}\ntest_eps: []", [], "test_eps is an empty list"),
    "a radius twice": (METHODS, ["--test_eps", "4/255", "8/255", "4/255"], "test_eps have 4/255 twice"),
    "a radius of 255ths": (METHODS, ["--test_eps", "4"], "test_eps: eps is 4, but.*did you mean 4/255"),
    "a radius of nothing": (METHODS, ["--test_eps", "0"], "test_eps: eps is 0, but must be above 0"),
    "a radius that isn't a number": (METHODS, ["--test_eps", "four"], "test_eps is 'four'"),
    "an attack's step at a radius": (
        METHODS, ["--test_attacks", "pgd:step_size=4/255", "--test_eps", "1/255", "8/255"], "step size is 0.0156"),
    "an unknown test": (METHODS, ["--tests", "digitz"], "Unknown benchmark 'digitz'.*digits"),
    "a point out of range": (METHODS, ["--dial", "0.5", "1.5"], "t is 1.5"),
    "a point twice": (METHODS, ["--dial", "0.5", "0.5"], "given twice"),
    "an unknown rule": (METHODS, ["--choose", "best"], "The rule is 'best'"),
    "a rule out of range": (METHODS, ["--choose", "clean>=60"], "The rule is"),
    "an unknown attack": (METHODS, ["--test_attacks", "apdg"], "[Uu]nknown attack 'apdg'"),
    "an attack twice": (METHODS, ["--test_attacks", "cw", "cw"], "test_attacks have cw twice"),
    "an attack that needs a proxy": (METHODS, ["--test_attacks", "transfer"], "needs a proxy, but there is none here"),
    "an attack to choose by": (METHODS, ["--tune_attack", "pgd:stepz=3"], "stepz"),
    "no samples to choose by": (METHODS, ["--tune_samples", "0"], "tune_samples is 0"),
    "no samples to test on": (METHODS, ["--test_samples", "-3"], "test_samples is -3"),
    "the rate of all": (METHODS, ["--learning_rate", "0.1"], "A comparison sets learning_rate"),
    "sets of single runs": (METHODS, ["--eval_datasets", "digits"], "sets eval_datasets, but tests are"),
    "a length in steps": (METHODS, ["--max_steps", "3"], "sets max_steps, but budgets are compared in epochs"),
    "a push": (METHODS, ["--push_to_hub", "True"], "sets push_to_hub"),
    "no values to vary": (f"{METHODS}\nvary: {{attack_steps: []}}", [], "vary: attack_steps must be a list"),
    "a value to vary": (f"{METHODS}\nvary: {{attack_steps: 3}}", [], "vary: attack_steps must be a list"),
    "a value to vary twice": (f"{METHODS}\nvary: {{attack_steps: [2, 2]}}", [], "vary: attack_steps have 2 twice"),
    "an unknown field to vary": (f"{METHODS}\nvary: {{atack_steps: [2, 3]}}", [], "did you mean attack_steps"),
    "a seed to vary": (f"{METHODS}\nvary: {{seed: [2, 3]}}", [], "sets seed, but seeds"),
    "what varies and is set": (f"{METHODS}\nvary: {{objective: [hpt, tecoa]}}", [], "tecoa sets objective, which"),
    "methods outside the file": (METHODS, ["--methods", "tecoa"], "methods has fields of its own, and so stands in a"),
    "the name of the target": ("methods: {vanilla: {objective: tecoa}}", [], "No method can be called 'vanilla'"),
    "a name with a line's end": ('methods: {"a\\nb": {}}', [], "characters that can't be seen"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_in_a_line(tmp_path, case):
    text, arguments, line = REFUSED[case]
    with pytest.raises(InputError, match=line) as refused:
        read(tmp_path, text, *arguments)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_methods_are_needed():
    with pytest.raises(InputError, match="There are no methods: give a YAML file"):
        read_grid([], {}, (Recipe, HPTConfig), None)


@pytest.mark.parametrize("left_out", ["learning_rates", "tests", "output_dir"])
def test_what_is_needed_is_named(tmp_path, left_out):
    lines = [line for line in SHARED.splitlines() if not line.startswith(left_out)]
    with pytest.raises(InputError, match=f"There (are|is) no {left_out}"):
        read(tmp_path, shared="\n".join(lines))


def test_a_folder_takes_further_methods_rates_and_seeds(tmp_path):
    keep_settings(read(tmp_path, "methods: {tecoa: {objective: tecoa}}"))
    keep_settings(read(tmp_path, METHODS, "--learning_rates", "0.1", "0.2", "--seeds", "4", "5", "6"))
    keep_settings(read(tmp_path, "methods: {hpt: {anchor_epochs: 0}}"))
    (file,) = tmp_path.rglob("comparison.json")
    assert json.loads(file.read_text())["methods"].keys() >= {"tecoa", "hpt"}


def test_a_folder_takes_other_radii_of_tests_but_not_another_of_choices(tmp_path):
    """Also where every method has a radius of its own; and of 0.7.0, whose folders don't say that of the choices."""
    own = "methods: {a: {attack_eps: 4/255}}"
    grid = read(tmp_path, own)
    kept = json.dumps(sealed({"methods": grid.describe()["methods"], "protocol": without_radius(grid.describe())}))
    grid.folder.mkdir()
    (grid.folder / "comparison.json").write_text(kept)
    keep_settings(grid)
    keep_settings(read(tmp_path, own, "--test_eps", "1/255", "8/255"))
    keep_settings(read(tmp_path, own.replace("}}", "}, b: {}}"), "--test_eps", "2/255"))
    with pytest.raises(InputError, match="another comparison .attack_eps 1/255 there, 2/255 here"):
        keep_settings(read(tmp_path, own, "--attack_eps", "2/255"))


def without_radius(described):
    return {name: value for name, value in described["protocol"].items() if name != "attack_eps"}


CHANGED = {
    "a method's settings": ("methods: {tecoa: {objective: tecoa, attack_steps: 3}}", [], "'tecoa' with"),
    "what all share": (METHODS, ["--attack_steps", "3"], "'(tecoa|hpt)' with other settings .attack_steps None there"),
    "the radius of choices": (METHODS, ["--attack_eps", "4/255"], "another comparison .attack_eps 1/255 there, 4/255"),
    "the rule": (METHODS, ["--choose", "clean>=0.5"], "another comparison .choose sum there, clean>=0.5 here"),
    "the dial": (METHODS, ["--dial", "1"], "another comparison .dial"),
    "the tests": (METHODS, ["--tests", "stl10"], "another comparison .tests"),
    "classes to choose by": (METHODS, ["--validation_classes", "1|2"], "another comparison .validation_classes None"),
    "the samples": (METHODS, ["--test_samples", "5"], "another comparison .test_samples"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_a_folder_refuses_another_comparison(tmp_path, change):
    keep_settings(read(tmp_path))
    text, arguments, line = CHANGED[change]
    with pytest.raises(InputError, match=f"{line}.*give another output_dir"):
        keep_settings(read(tmp_path, text, *arguments))


def test_damaged_settings_are_refused(tmp_path):
    grid = read(tmp_path)
    keep_settings(grid)
    file = grid.folder / "comparison.json"
    file.write_text(file.read_text().replace("tecoa", "other"))
    with pytest.raises(InputError, match="comparison.json is damaged"):
        keep_settings(grid)
