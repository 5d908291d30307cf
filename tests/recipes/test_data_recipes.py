"""The recipes on a part of a dataset's classes or samples, and on images without labels."""

import json
import re

import pytest
import yaml
from helpers import make_clip, make_dataset, refusal_of, run_recipe

from hpt import RobustnessEvaluator, load_benchmark
from hpt.data.loading import load_training_data
from hpt.evaluation.row_settings import hash_benchmark
from hpt.hub.folder import ModelFolder
from hpt.hub.leaderboard import column_of, title_columns
from hpt.hub.measurements import limits
from hpt.hub.sections import training


SHORT = """
train_dataset: digits
anchor_epochs: 0
transfer_epochs: 1
warmup_steps: 1
max_steps: 2
max_train_samples: 64
max_eval_samples: 30
eval_attack_steps: 2
per_device_train_batch_size: 16
save_strategy: "no"
use_cpu: true
"""


@pytest.fixture
def train(tmp_path, saved):
    """Runs `hpt train` on more arguments, and gives the folder of the robust model."""
    (tmp_path / "short.yaml").write_text(SHORT)
    arguments = ["--config", tmp_path / "short.yaml", "--target", saved, "--output_dir", tmp_path / "run"]

    def run(*more, refused=False):
        if refused:
            return refusal_of("hpt_gpd.py", *arguments, *more)
        run_recipe("hpt_gpd.py", *arguments, *more)
        return ModelFolder(tmp_path / "run" / "robust")

    return run


def test_a_part_is_trained_on_tested_on_and_recorded_by_its_classes(tmp_path, train):
    (tmp_path / "three.txt").write_text("seven\n1\nthree\n")
    part = f"digits:classes={tmp_path / 'three.txt'}"
    folder = train(
        "--objective", "tecoa", "--train_dataset", part, "--validation_size", 20,
        "--eval_datasets", part, part.replace("classes", "without_classes"),
    )  # fmt: skip
    name = load_benchmark("digits", classes=[1, 3, 7]).name
    assert folder.run["data"]["name"] == name and folder.run["data"]["class_names"] == ["one", "three", "seven"]
    settings = yaml.safe_load((folder.path / "run.yaml").read_text())
    assert settings["train_dataset"] == "digits:classes=seven|1|three"
    assert settings["eval_datasets"] == [settings["train_dataset"], "digits:without_classes=seven|1|three"]
    again, _ = load_training_data(settings["train_dataset"], 20)
    assert again.class_names == ["one", "three", "seven"]
    assert {row.benchmark for row in folder.rows} == {name, load_benchmark("digits", without_classes=[1, 3, 7]).name}
    assert f"{name} (train; not read from the Hub)" in training(folder, "me/clip").replace("\\", "")
    assert "the classes one, three, seven" in folder.card and str(tmp_path / "three.txt") not in folder.card
    assert "digits:classes=FILE" in limits(folder, "me/clip") and "three.txt" not in json.dumps(folder.run)
    (tmp_path / "three.txt").write_text("seven\n1\neight\n")
    line = train("--objective", "tecoa", "--train_dataset", part, "--validation_size", 20, refused=True)
    assert "was trained with other settings" in line and "digits:classes=seven|1|eight here" in line


@pytest.mark.parametrize("test", ["digits:split=train", "digits:split=train,classes=7|8"])
def test_a_part_is_never_tested_on_its_own_training_images(train, test):
    line = train(
        "--objective", "tecoa", "--train_dataset", "digits:classes=1|3|7", "--eval_datasets", test, refused=True
    )
    assert "would be tested on its training images (train)" in line


@pytest.fixture
def many(tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("# Every other\n" + "\n".join(map(str, range(0, 300, 2))))
    return file


def test_a_part_by_samples_is_trained_on_and_the_rest_of_its_split_tested_on(train, many):
    part, rest = f"digits:samples={many}", f"digits:without_samples={many},split=train"
    arguments = ["--objective", "tecoa", "--eval_strategy", "no", "--train_dataset", part]
    folder = train(*arguments, "--eval_datasets", rest)
    trained, tested = load_benchmark(part, "train"), load_benchmark(rest)
    assert folder.run["data"]["name"] == trained.name and {row.benchmark for row in folder.rows} == {tested.name}
    assert {row.samples for row in folder.rows} == {hash_benchmark(tested.subset(30))}
    assert not set(tested.ids()) & set(trained.ids())
    settings = yaml.safe_load((folder.path / "run.yaml").read_text())
    assert settings["train_dataset"].startswith("digits:samples=PATH/many.txt@")
    assert f"{trained.name} (train; not read from the Hub)" in training(folder, "me/clip").replace("\\", "")
    assert str(many) not in folder.card and str(many) not in json.dumps(folder.run)
    many.write_text("# Others\n" + "\n".join(map(str, range(1, 300, 2))))
    line = train(*arguments, "--eval_datasets", rest, refused=True)
    assert "was trained with other settings (train_dataset digits:samples=PATH/many.txt@" in line


@pytest.mark.parametrize("test", ["digits:split=train", "digits:samples=FILE,split=train"])
def test_a_part_by_samples_is_never_tested_on_its_own_split_unless_by_others(train, many, test):
    """Though what is drawn of both, 64 and 30 images, has none in common by chance."""
    given = ["--train_dataset", f"digits:samples={many}", "--eval_datasets", test.replace("FILE", str(many))]
    line = train("--objective", "tecoa", "--eval_strategy", "no", *given, refused=True)
    assert "would be tested on its training images (train)" in line


def test_a_part_by_samples_is_tested_on_all_of_the_test_split_unless_that_is_said(train, many):
    given = ["--train_dataset", f"digits:samples={many}", "--eval_strategy", "no", "--max_eval_samples", 20]
    folder = train("--objective", "tecoa", *given)
    assert {(row.benchmark, row.split) for row in folder.rows} == {("digits", "test")}


def test_hpt_pretrain_takes_a_part_by_samples_and_notices_another(tmp_path, many, capsys):
    arguments = ["--config", "digits_target", "--output_dir", tmp_path / "clip", "--max_steps", 2, "--use_cpu"]
    arguments += ["--train_dataset", f"digits:samples={many}", "--save_strategy", "steps", "--save_steps", 1]
    run_recipe("pretrain_clip.py", *arguments)
    assert "test images" not in capsys.readouterr().out
    manifest = json.loads((tmp_path / "clip" / "checkpoint-2" / "manifest.json").read_text())
    assert manifest["settings"]["images_per_epoch"] == 150
    (tmp_path / "clip" / "config.json").unlink()
    many.write_text("\n".join(map(str, range(1, 300, 2))))
    line = refusal_of("pretrain_clip.py", *arguments)
    assert "was trained with other settings (" in line and "; samples " in line


def test_rows_of_a_part_are_rows_of_another_set(tmp_path):
    model, processor = make_clip(0)
    whole, part = load_benchmark("digits"), load_benchmark("digits", classes=[1, 3, 7])
    evaluator = RobustnessEvaluator(attacks=["pgd:steps=1"], eps=0.1, max_samples=40, output_dir=str(tmp_path))
    rows = evaluator(model.eval(), processor, [whole, part], name="mine")
    clean = {row.benchmark: row for row in rows if row.attack == "clean"}
    assert set(clean) == {"digits", part.name} and len({row.samples for row in clean.values()}) == 2
    assert clean[part.name].samples == hash_benchmark(part.subset(40))
    assert len({column_of(row) for row in clean.values()}) == 2
    titles = {title for title, _ in title_columns(map(column_of, clean.values())).values()}
    assert titles == {"digits (test, n = 40)", f"{part.name} (test, n = 40)"}
    (samples,) = [file for file in tmp_path.glob("samples_*.json") if "digits.json" not in file.name]
    saved = json.loads(samples.read_text())
    assert saved["class_names"] == ["one", "three", "seven"]
    assert saved["ids"] == part.subset(40).ids().tolist()
    right = [whole.dataset["label"][row] for row in saved["ids"]]
    assert set(right) == {1, 3, 7}


def test_hpt_evaluate_takes_a_set_and_parts_of_it(tmp_path, saved, capsys):
    arguments = ["--models", f"mine={saved}", "--attacks", "fgsm", "--eps", "1/255", "--max_samples", 20, "--use_cpu"]
    arguments += ["--output_dir", tmp_path / "results", "--benchmarks", "digits", "digits:classes=1|3"]
    run_recipe("evaluate.py", *arguments, "digits:without_classes=one|three")
    table = capsys.readouterr().out
    assert "digits (2 of 10 classes, " in table and "digits (8 of 10 classes, " in table and "few-samples" in table
    assert "is given twice" in refusal_of("evaluate.py", *arguments, "digits:classes=one|three")
    assert "is given twice" in refusal_of("evaluate.py", *arguments, "digits:classes=1|3")


# Images without labels


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for row, example in enumerate(make_dataset(40)):
        example["image"].save(tmp_path / "mine" / f"{row:02}.png")
    return tmp_path / "mine"


@pytest.mark.filterwarnings("ignore:Images without labels")
def test_fare_trains_on_a_folder_of_images(folder, train):
    saved = train(
        "--objective", "fare", "--train_dataset", f"mine={folder}", "--validation_size", 8, "--eval_datasets", "digits"
    )
    assert saved.run["data"] | {"name": "mine", "images_per_epoch": 32, "labelled": False} == saved.run["data"]
    assert saved.run["objective"] == "fare" and {row.benchmark for row in saved.rows} == {"digits"}
    assert "images alone, without labels or captions" in saved.card


@pytest.mark.filterwarnings("ignore:Images without labels")
@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--objective", "tecoa"], "no folders by class: the layout is .* Labels are needed by the objective tecoa."),
        (["--objective", "fare"], "mine has no labels to test by: name sets with labels by --eval_datasets."),
        (
            ["--objective", "fare", "--anchor_epochs", 1, "--eval_datasets", "digits"],
            "needed by the anchor stage's objective, anchor .anchor_epochs=0 leaves that stage out",
        ),
        (
            ["--objective", "fare", "--eval_datasets", "digits", "--validation_size", 8, "--eval_strategy", "epoch"],
            "The validation images of mine have no labels, which accuracy is measured by: give --eval_strategy no",
        ),
        (
            ["--objective", "fare", "--eval_datasets", "digits", "--eval_strategy", "epoch"],
            "mine has no validation images to evaluate on in training",
        ),
    ],
    ids=str,
)
def test_what_images_without_labels_cant_do_is_said_in_a_line(folder, train, more, line):
    message = train("--train_dataset", f"mine={folder}", *more, refused=True)
    assert re.search(line, message), message


def test_pretraining_and_rankings_need_labels(folder, saved, tmp_path):
    pretraining = ["--train_dataset", f"mine={folder}", "--output_dir", tmp_path / "run", "--use_cpu"]
    assert "no folders by class" in refusal_of("pretrain_clip.py", "--config", "digits_target", *pretraining)
    ranking = ["--target", saved, "--proxies", f"other={saved}", "--output_dir", tmp_path / "ranking", "--use_cpu"]
    assert "Labels are needed by a classifier" in refusal_of(
        "rank_proxies.py", *ranking, "--dataset", f"mine={folder}", "--validation_size", 8
    )
