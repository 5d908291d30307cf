"""A comparison from its YAML file to its tables: cut off and gone on with, shared, blind to tests while it chooses."""

import json
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from runpy import run_path

import pytest
from helpers import ROOT, make_clip, refusal_of, run_recipe

from hpt import HPTConfig
from hpt.cli import read_arguments
from hpt.comparing import grid as comparing_grid
from hpt.comparing import tasks, worker
from hpt.comparing.choices import choose_rate, choose_run_point, chosen_runs
from hpt.comparing.claims import claim
from hpt.comparing.grid import NESTED, Comparison, read_grid
from hpt.comparing.records import Records
from hpt.comparing.results import CHOSEN, collect
from hpt.comparing.tasks import plan_runs
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.evaluation.work import Work
from hpt.models.loading import save_finished
from hpt.recipes.hpt_gpd import Recipe
from hpt.training.trainer import HPTTrainer


TECOA = "tecoa: {objective: tecoa, anchor_epochs: 0, transfer_epochs: 2}"
HPT = "hpt: {anchor_epochs: 1, transfer_epochs: 1}"
SMALL = {"methods": f"{{{TECOA}}}", "seeds": "[0]", "learning_rates": "[0.05]"}
GRID = """
methods: {{METHODS}}
target: {models}/target
proxy: {models}/proxy
train_dataset: digits
max_train_samples: 24
per_device_train_batch_size: 8
learning_rates: [0.05, 0.5]
anchor_learning_rate: 0.05
seeds: [0, 1]
attack_eps: 16/255
attack_step_size: 8/255
attack_steps: 1
dial: [0.5, 1.0]
tune_samples: 12
tune_attack: pgd:steps=1
tests: [digits]
test_samples: 12
test_attacks: [pgd:steps=1, cw:steps=1]
output_dir: {folder}
save_steps: 1
logging_strategy: "no"
disable_tqdm: true
use_cpu: true
"""


def as_yaml(models, folder, **changed) -> str:
    """The grid as YAML, with other values of some fields."""
    text = GRID.format(models=models, folder=folder).replace("{METHODS}", f"{{{TECOA}, {HPT}}}")
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    return "\n".join((lines | {field: f"{field}: {value}" for field, value in changed.items()}).values())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, patch_size) in enumerate({"target": 8, "proxy": 4}.items()):
        save_finished(*make_clip(seed, patch_size=patch_size), folder / name)
    return folder


@pytest.fixture
def grid(models, tmp_path):
    """What writes the YAML file of a comparison into a folder."""

    def write(name, **changed):
        file = tmp_path / f"{name}.yaml"
        file.write_text(as_yaml(models, tmp_path / name, **changed))
        return file

    return write


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """The folder of a comparison that was never cut off."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "grid.yaml").write_text(as_yaml(models, folder / "out"))
    run_recipe("compare.py", "--config", folder / "grid.yaml")
    return folder / "out"


def results(folder):
    """What a comparison says, without what it cost."""
    lines = [json.loads(line) for line in (folder / "comparison.jsonl").read_text().splitlines()]
    cost = {"seconds", "cpu_seconds", "digest"}
    told = [{name: value for name, value in line.items() if name not in cost} for line in lines]
    for line in told:
        for row in line.get("rows", []):
            del row["seconds"]
    return told, (folder / "comparison.md").read_text().partition("## What it cost")[0]


def test_a_comparison_ends_in_tables_and_pictures(whole):
    lines, text = results(whole)
    kinds = [line["kind"] for line in lines]
    assert {"record", "choice", "accuracy", "flag", "pair"} == {*kinds} and kinds.count("choice") == 2
    assert kinds.count("pair") == 3 * 2  # of vanilla and two methods, clean and in the worst case
    assert {file.name for file in whole.glob("*.png")} == {"frontiers.png", "tests_digits.png"}
    for what in (
        "| vanilla | before training     | -    |",
        "| tecoa   | at t = 1            | 2    |",
        "All see as many images",
        "![Dials on held-out images](frontiers.png)",
        "few-samples on digits: vanilla (1), tecoa at the chosen point (2)",
        "Of 6 such intervals, about 0 miss",
        "vanilla against hpt",
    ):
        assert what in text
    accuracies = [line for line in lines if line["kind"] == "accuracy" and line["where"]]
    assert all(len(line["runs"]) == 2 for line in accuracies)
    records = {line["task"]: line for line in lines if line["kind"] == "record"}
    budgets = [records[f"budget--{method}"] for method in ("tecoa", "hpt")]
    assert [(budget["images"], budget["attack_steps"]) for budget in budgets] == [(48, 48), (48, 48)]
    chosen = next(line for line in lines if line["kind"] == "choice")
    end = "smallest" if chosen["learning_rate"] == 0.05 else "largest"
    assert f"- tecoa: its rate is the {end} that was tried" in text
    dial = records[f"dial--{chosen['runs'][0]['run']}"]["points"]
    best = max(dial, key=lambda point: (point["clean"] + point["robust"], point["robust"], -point["t"]))
    assert chosen["runs"][0]["t"] == best["t"]


def test_verdicts_are_those_of_the_rows(whole):
    for record in Records(whole).read_all().values():
        for row in record.get("rows", []):
            if row["attack"] in record["right"]:
                assert record["right"][row["attack"]].count("1") == round(row["accuracy"] * row["n"])
        if right := record.get("right"):
            assert {*right} == {"clean", "pgd:steps=1", "cw:steps=1", "worst case"}
            under_each = zip(*(right[attack] for attack in right if attack != "worst case"), strict=True)
            assert right["worst case"] == "".join(map(min, under_each))


class Killed(BaseException):
    """Ends a process as a kill would, but for the claim, which ends too."""


def test_a_comparison_that_was_cut_off_thrice_comes_to_the_same(grid, whole, monkeypatch):
    """Within training, within an evaluation, and right before a record is written."""
    file, steps = grid("cut"), {"left": 0}

    def dying(work, after):
        def count(*arguments, **named):
            steps["left"] -= 1
            if steps["left"] == 0:
                raise Killed
            return work(*arguments, **named)

        steps["left"] = after
        return count

    cuts = (HPTTrainer, "compute_loss", 12), (Work, "_work_off", 7), (Records, "write", 3)
    for owner, name, after in cuts:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dying(getattr(owner, name), after))
            with pytest.raises(Killed):
                run_recipe("compare.py", "--config", file)
    run_recipe("compare.py", "--config", file)
    assert results(file.with_suffix("")) == results(whole)


def test_what_another_process_does_is_left_to_it_and_waited_for(grid, monkeypatch):
    file, done, waited = grid("shared", **SMALL), [], []
    folder, write = file.with_suffix(""), Records.write
    other = claim(folder / "claims", "test--vanilla--digits")
    monkeypatch.setattr(
        Records, "write", lambda records, task, record: (done.append(task), write(records, task, record))
    )
    with ThreadPoolExecutor(1) as thread:
        thread.submit(other.__enter__).result()

        def let_go(seconds):
            waited.append(set(done))
            thread.submit(other.__exit__, None, None, None).result()

        monkeypatch.setattr(worker, "WAIT", 0)
        monkeypatch.setattr(worker.time, "sleep", let_go)
        run_recipe("compare.py", "--config", file)
    assert done[-1] == "test--vanilla--digits" and waited == [{*done[:-1]}] and len(done) == len({*done})
    assert (folder / "comparison.md").is_file()


def test_a_finished_comparison_takes_another_seed(grid, monkeypatch):
    trained, train = [], tasks.train_and_save
    monkeypatch.setattr(tasks, "train_and_save", lambda trainer: trained.append(trainer.args.seed) or train(trainer))
    for seeds in ("[0]", "[0]", "[0, 5]"):
        run_recipe("compare.py", "--config", grid("more", **SMALL | {"seeds": seeds}))
    assert trained == [0, 5]


def test_a_finished_comparison_is_tested_at_another_radius_and_nothing_else_is_done_again(grid, monkeypatch):
    """Its methods are trained at radii of their own, and chosen at that of the settings that all share."""
    methods = {
        "methods": f"{{{TECOA}, tecoa at 4/255: {{objective: tecoa, attack_eps: 4/255, attack_step_size: 2/255}}}}"
    }
    changed = SMALL | methods | {"anchor_epochs": 0, "transfer_epochs": 2}
    file, done, write = grid("radii", **changed), [], Records.write
    folder = file.with_suffix("")
    run_recipe("compare.py", "--config", file)
    before, records = results(folder), Records(folder).read_all()
    assert {row["eps"] for task, record in records.items() for row in record.get("rows", [])} == {None, 16 / 255, 0.5}
    monkeypatch.setattr(
        Records, "write", lambda records, task, record: (done.append(task), write(records, task, record))
    )
    run_recipe("compare.py", "--config", file)
    assert not done and results(folder) == before
    run_recipe("compare.py", "--config", file, "--test_eps", "4/255", "16/255")
    tested = [task for task in records if task.startswith("test--")]
    assert sorted(done) == sorted(f"{task}--eps4--255" for task in tested) and len(tested) >= 3
    assert {file.name for file in folder.glob("tests_*.png")} == {"tests_digits.png", "tests_digits_eps4--255.png"}
    lines, text = results(folder)
    of_radius = {eps: [line for line in lines if line.get("test_eps") == eps] for eps in (4 / 255, 16 / 255)}
    worst = [line for line in of_radius[16 / 255] if line["kind"] == "accuracy"]
    assert worst == [line for line in before[0] if line["kind"] == "accuracy"]
    told = [line["attack"] for line in of_radius[4 / 255] if line["kind"] == "pair"]
    assert told.count("clean") == 3 and told.count("worst case") == 3
    assert [line["attack"] for line in of_radius[16 / 255] if line["kind"] == "pair"] == ["worst case"] * 3
    for what in ("trained at | at 4/255", "### At l_inf eps 4/255", "### At l_inf eps 16/255", "worst case at 4/255 "):
        assert what in text
    assert re.search(r"tecoa at 4/255 +\| at the chosen point +\| 4/255 ", text)
    run_recipe("compare.py", "--config", file)
    assert results(folder)[1] == before[1]  # which is read without the radius that came later


def test_choices_never_see_a_test(grid, monkeypatch):
    """Images of a test are read by its own tasks alone; those before them read what is held out or trained on."""
    read, begun = {}, []
    rows, work = Benchmark.__getitems__, worker._do

    def note(benchmark, numbers):
        read.setdefault(begun[-1].partition("--")[0] if begun else "before", set()).add(benchmark.split)
        return rows(benchmark, numbers)

    monkeypatch.setattr(Benchmark, "__getitems__", note)
    monkeypatch.setattr(
        worker, "_do", lambda grid, records, task: (begun.append(task.id), work(grid, records, task))[1]
    )
    run_recipe("compare.py", "--config", grid("blind", **SMALL))
    assert read == {"budget": {"train"}, "train": {"train"}, "dial": {"validation"}, "test": {"test"}}


def read_comparison(file):
    """The grid of a YAML file, as the recipe reads it."""
    types = Comparison, Recipe, HPTConfig
    arguments, nested, config = read_arguments(types, argv=["--config", str(file)], nested=NESTED)
    return read_grid(arguments, nested, types[1:], config)


def choices_of(grid, records):
    """By method the chosen run, and the chosen point of each run at its rate."""
    chosen = {method: choose_rate(grid, records, method) for method in grid.methods}
    runs = {method: chosen_runs(grid, records, method) for method in grid.methods}
    return chosen, {str(run): choose_run_point(grid, records, run) for own in runs.values() for run in own}


def test_all_choices_can_be_made_while_no_test_can_be_read(grid, monkeypatch):
    """Neither images nor labels of tests can be had, and every choice is what it is once they can."""
    file, load = grid("unreadable", **SMALL | {"learning_rates": "[0.05, 0.5]"}), comparing_grid.load_benchmark

    def refuse(rows):
        raise InputError("a test was read.")

    def unreadable(*arguments, **named):
        benchmark = load(*arguments, **named)
        return replace(benchmark, dataset=benchmark.dataset.with_transform(refuse))

    with monkeypatch.context() as patched:
        patched.setattr(comparing_grid, "load_benchmark", unreadable)
        patched.setattr(worker, "check_sets", lambda *_: None)  # which looks at the size of the tests' images
        assert refusal_of("compare.py", "--config", file).endswith(": a test was read.")
    read, records = read_comparison(file), Records(file.with_suffix(""))
    left, chosen = plan_runs(read, records).ready, choices_of(read, records)
    assert {task.phase for task in left} == {"test"} and len(left) >= 2
    assert len(chosen[1]) == 1 and None not in [*chosen[0].values(), *chosen[1].values()]
    run_recipe("compare.py", "--config", file)
    assert not plan_runs(read, records).ready and choices_of(read, records) == chosen


def test_verdicts_on_tests_change_no_choice(whole, tmp_path):
    """Records of tests say that whatever was chosen is always wrong, and all else that could be always right."""
    read, records = read_comparison(whole.parent / "grid.yaml"), Records(tmp_path)
    test = Records(whole).read("test--vanilla--digits")
    for task, record in Records(whole).read_all().items():
        if not task.startswith("test--"):
            records.write(task, record)
    chosen = choices_of(read, records)
    best = {(str(choice.run), choice.point.t) for choice in [*chosen[0].values(), *chosen[1].values()]}
    for run, t in product([run for method in read.methods for run in read.runs_of(method)], (0.5, 1.0)):
        right = (str(run), t) not in best
        rows = [row | {"accuracy": float(right), "low": float(right), "high": float(right)} for row in test["rows"]]
        verdicts = {attack: str(int(right)) * len(digits) for attack, digits in test["right"].items()}
        records.write(tasks.test_task(read, run, t, "digits", read.eps), test | {"rows": rows, "right": verdicts})
    assert choices_of(read, records) == chosen
    (tested,) = {one.accuracies("clean")[0] for one in collect(read, records).tested if one.where == CHOSEN}
    assert tested == 0  # they are read, for the tables


def test_choices_on_held_out_classes_are_zero_shot(grid, monkeypatch):
    """No run is trained on them, and what is measured there is asked among their names alone."""
    trained, asked, train, measure = [], [], tasks.train_and_save, tasks.measure_dial
    monkeypatch.setattr(
        tasks, "train_and_save", lambda run: trained.append(run.train_dataset.class_names) or train(run)
    )

    def note(classifier, endpoints, held_out, evaluator, points):
        measured = measure(classifier, endpoints, held_out, evaluator, points)
        asked.append(json.loads(next(evaluator.results.folder.glob("samples_*.json")).read_text()))
        return measured

    monkeypatch.setattr(tasks, "measure_dial", note)
    file = grid("unseen", **SMALL | {"validation_classes": "two|7|nine"})
    run_recipe("compare.py", "--config", file)
    unseen = ["two", "seven", "nine"]
    assert [one["class_names"] for one in asked] == [unseen] and len(asked[0]["ids"]) == 12
    assert len(trained) == 1 and len(*trained) == 7 and not {*trained[0]} & {*unseen}
    lines, text = results(file.with_suffix(""))
    assert "on 12 training images of classes that no run was trained on ('two', 'seven', 'nine')" in text
    assert {line["test"] for line in lines if line["kind"] == "accuracy"} == {"digits"}  # of all ten


def test_commands_of_what_can_be_done_now(grid, capsys):
    file, done = grid("commands", **SMALL), []
    arguments = ["--config", str(file), "--test_samples", "10"]
    while True:
        run_recipe("compare.py", *arguments, "--print_commands", "True")
        lines = capsys.readouterr().out.splitlines()  # which nothing else is in
        if not lines:
            break
        for words in map(shlex.split, lines):
            assert words[:-1] == ["hpt", "compare", *arguments, "--task"]
            run_recipe("compare.py", *words[2:])
            assert capsys.readouterr().out == ""
            done.append(words[-1])
    assert done[:3] == ["train--tecoa-0.05-0", "test--vanilla--digits", "dial--tecoa-0.05-0"]
    assert len(done) == len({*done}) and {task.partition("--")[0] for task in done[3:]} == {"test"}
    run_recipe("compare.py", *arguments)
    assert (file.with_suffix("") / "comparison.md").is_file()


@pytest.mark.parametrize("asked", [["--print_commands"], ["--print_commands", "True"], ["--print_commands=True"]])
def test_a_command_has_all_but_what_asks_for_commands(asked):
    command = run_path(str(ROOT / "recipes" / "compare.py"))["command"]
    for argv in (["--config", "a b.yaml", *asked], [*asked, "--config", "a b.yaml"]):
        assert command(argv, "train--m-0.1-0") == "hpt compare --config 'a b.yaml' --task train--m-0.1-0"


REFUSED = {
    "no target": ({"target": "no/where/at/all"}, "Can't load the model 'no/where/at/all'"),
    "no dataset": ({"train_dataset": "digitz"}, "Unknown benchmark 'digitz'"),
    "no test": ({"tests": "[stl10=./no/where]"}, "There is no folder or file './no/where'"),
    "other steps": ({"methods": "{a: {}, b: {attack_steps: 2}}"}, "Budgets differ: 'a' has 240 attack steps, 'b' 480"),
    "other epochs": ({"methods": "{a: {}, b: {anchor_epochs: 7}}"}, "Budgets differ: 'a' has 240 images, 'b' 288"),
    "too few held out": (
        {"tune_samples": 100_000},
        "tune_samples is 100000, but digits has [0-9]+ images to choose by",
    ),
    "a test on training images": ({"tests": "[digits:split=train]"}, "would be tested on its training images"),
    "a test on what choices are made on": ({"tests": "[digits:split=validation]"}, "images that choices are made on"),
    "a test on classes to choose by": (
        {"tests": "['digits:split=train,classes=1|2|3']", "train_dataset": "digits:split=train"}
        | {"validation_classes": "1|2|3"},
        "digits .3 of 10 classes, [0-9a-f]+. would be tested on images that choices are made on .train.: test on",
    ),
    "evaluations on classes that aren't trained on": (
        {"validation_classes": "1|2|3", "eval_strategy": "epoch"},
        "evaluated in training on validation_classes.*--eval_strategy no",
    ),
    "an unknown task": ({"task": "train--tecoa-0.5-7"}, "isn't among the tasks.*Did you mean train--tecoa-0.5-0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_before_it_runs(grid, tmp_path, case):
    changed, line = REFUSED[case]
    assert re.search(line, refusal_of("compare.py", "--config", grid("refused", **changed)))
    assert not [*tmp_path.glob("refused/runs/*/checkpoint-*")]


def test_processes_are_started_one_by_one(grid):
    arguments = ["--config", grid("launched"), "--num_processes", "2"]
    assert "start the same command several times instead" in refusal_of("compare.py", *arguments)


def test_unequal_budgets_are_said_if_they_are_allowed(grid):
    short = "short: {objective: tecoa, anchor_epochs: 0, transfer_epochs: 1}"
    file = grid("unequal", **SMALL | {"methods": f"{{{TECOA}, {short}}}", "allow_unequal_budget": "true"})
    run_recipe("compare.py", "--config", file)
    text = (file.with_suffix("") / "comparison.md").read_text()
    assert "**The budgets differ in images and attack steps.**" in text


def test_what_fails_keeps_nothing_else_from_being_done_and_is_named_as_unfinished(grid, monkeypatch, capsys):
    file, measure = grid("failing", **SMALL | {"learning_rates": "[0.05, 0.1]"}), tasks.measure_dial

    def fail_once(classifier, endpoints, held_out, evaluator, points):
        if "0.05" in evaluator.results.folder.name:
            raise InputError("the logits aren't finite.")
        return measure(classifier, endpoints, held_out, evaluator, points)

    monkeypatch.setattr(tasks, "measure_dial", fail_once)
    assert refusal_of("compare.py", "--config", file) == "dial--tecoa-0.05-0 failed: the logits aren't finite."
    done = {record.stem for record in file.with_suffix("").glob("records/*")}
    assert {"dial--tecoa-0.1-0", "test--vanilla--digits"} <= done and len(done) == 5
    run_recipe("compare.py", "--config", file, "--report", "True")
    text = capsys.readouterr().out
    assert "## What isn't finished" in text and "\n- dial--tecoa-0.05-0\n" in text and "At least 2 more wait" in text
    assert "| vanilla | before training " in text and "There are no two methods yet" in text


def test_a_run_whose_folder_was_deleted_says_what_to_delete_too(grid, monkeypatch):
    file, trained, train = grid("deleted", **SMALL), [], tasks.train_and_save
    run_recipe("compare.py", "--config", file, "--task", "train--tecoa-0.05-0")
    folder = file.with_suffix("")
    shutil.rmtree(folder / "runs" / "tecoa-0.05-0")
    refusal = refusal_of("compare.py", "--config", file, "--task", "dial--tecoa-0.05-0")
    record = folder / "records" / "train--tecoa-0.05-0.json"
    assert refusal.endswith(f"delete {folder}/runs/tecoa-0.05-0 and {record}, and it is trained again.")
    record.unlink()
    monkeypatch.setattr(tasks, "train_and_save", lambda trainer: trained.append(trainer.args.seed) or train(trainer))
    run_recipe("compare.py", "--config", file, "--task", "train--tecoa-0.05-0")
    assert trained == [0]


def test_models_that_were_replaced_between_two_calls_are_refused(grid, models, tmp_path):
    target = shutil.copytree(models / "target", tmp_path / "target")
    run_recipe("compare.py", "--config", grid("replaced", **SMALL | {"target": target}), "--print_commands")
    save_finished(*make_clip(5, patch_size=8), target)
    changed = "Method 'tecoa' is given something else than when its comparison began: target_weights differ"
    for task in ("train--tecoa-0.05-0", "test--vanilla--digits"):
        refusal = refusal_of("compare.py", "--config", grid("replaced", **SMALL | {"target": target}), "--task", task)
        assert changed in refusal
    more = grid("replaced", target=target, seeds="[0]", learning_rates="[0.05]")
    assert re.match(
        "Methods 'tecoa' and 'hpt' have the same target, but it has changed",
        refusal_of("compare.py", "--config", more),
    )


def test_another_list_of_classes_to_choose_by_under_its_name_is_refused(grid, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("0\n1\n2\n")
    given = SMALL | {"validation_classes": classes}
    run_recipe("compare.py", "--config", grid("chosen", **given))
    text = (tmp_path / "chosen" / "comparison.md").read_text()
    classes.write_text("0\n1\n3\n")
    line = "Method 'tecoa' is given something else than when its comparison began: held_out_samples differ. Bring back"
    assert line in refusal_of("compare.py", "--config", grid("chosen", **given))
    assert (tmp_path / "chosen" / "comparison.md").read_text() == text
    classes.write_text("# The same\n2\none\n0\n")
    run_recipe("compare.py", "--config", grid("chosen", **given))


def test_runs_are_not_tested_on_another_list_of_classes_than_those_before(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = tmp_path / "classes.txt"
    classes.write_text("5\n6\n7\n")
    given = SMALL | {"tests": "['digits:classes=classes.txt']"}
    run_recipe("compare.py", "--config", grid("lists", **given))
    records = Records(tmp_path / "lists")
    before = {file: file.read_bytes() for file in records.folder.glob("test--*")}
    classes.write_text("5\n6\n8\n")
    refusal = refusal_of("compare.py", "--config", grid("lists", **given | {"seeds": "[0, 1]"}))
    assert re.search(
        "digits:classes=.*classes.txt has other images than when test--tecoa-0.05-0--t.* was tested", refusal
    )
    assert before == {file: file.read_bytes() for file in records.folder.glob("test--*")}
    task = next(iter(before)).stem
    records.write(task, records.read(task) | {"samples": "others"})
    assert "were tested on other images under one name" in refusal_of("compare.py", "--config", grid("lists", **given))


def test_trained_weights_are_listed_once_where_the_dial_has_them_alone(grid):
    file = grid("trained", **SMALL | {"dial": "[1.0]"})
    run_recipe("compare.py", "--config", file)
    lines, text = results(file.with_suffix(""))
    assert text.count("| tecoa   | at the chosen point |") == 1 and "| at t = 1" not in text
    assert {line["where"] for line in lines if line["kind"] == "accuracy"} == {"", "at the chosen point"}


def test_a_method_that_diverges_is_named_and_left_out(grid):
    file = grid("diverging", **SMALL | {"learning_rates": "[1e30]"})
    run_recipe("compare.py", "--config", file)
    text = (file.with_suffix("") / "comparison.md").read_text()
    assert "tecoa-1e+30-0 diverged and is left out: The " in text and "| none " in text and "| vanilla " in text
