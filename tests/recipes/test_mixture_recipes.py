"""`hpt train` and `hpt pretrain` on several sets at once."""

import json

import pytest
from helpers import refusal_of, run_recipe, save_images

from hpt.hub.folder import ModelFolder
from hpt.yaml_files import read_yaml


PRETRAINING = """
train_dataset: digits
output_dir: {0}/target
image_size: 16
vision_hidden_size: 16
text_hidden_size: 16
num_train_epochs: 1
per_device_train_batch_size: 2
batches: mixed
use_cpu: true
"""

RUN = """
target: {0}/target
pretrain_target: pretraining.yaml
train_datasets: ["pets={0}/pets:template=a photo of a {{}}, a pet.", "birds={0}/birds"]
dataset_weights: [3, 1]
max_eval_samples: 4
validation_size: 2
objective: tecoa
anchor_epochs: 0
transfer_epochs: 1
attack_steps: 1
eval_attack_steps: 1
attack_eps: 8/255
attack_step_size: 8/255
per_device_train_batch_size: 1
eval_strategy: epoch
output_dir: {0}/run
save_strategy: "no"
use_cpu: true
"""


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "pets", ("train", "test"), ("cat", "dog"))
    save_images(tmp_path / "birds", ("train", "test"), ("dog", "heron", "owl"))
    for name, text in (("pretraining", PRETRAINING), ("run", RUN)):
        (tmp_path / f"{name}.yaml").write_text(text.format(tmp_path))
    return tmp_path


@pytest.mark.filterwarnings("ignore:.* rows can't have their share", "ignore:.* has images of 16 pixels")
def test_a_run_on_two_sets_is_recorded_and_the_same_command_finds_it_finished(folder, capsys):
    run_recipe("hpt_gpd.py", "--config", folder / "run.yaml")
    rows = json.loads((folder / "run" / "results.json").read_text())
    assert {row["benchmark"] for row in rows} == {"pets", "birds"}
    robust = ModelFolder(folder / "run" / "robust")
    data = robust.run["data"]
    assert data["name"] == "pets (83.3 %), birds (16.7 %)" and data["class_names"] == ["cat", "dog", "heron", "owl"]
    assert [part["images_per_epoch"] for part in data["sets"]] == [5, 1]  # of 2 + 4 images, 4.5 and 1.5
    assert [part["template"] for part in data["sets"]] == ["a photo of a {}, a pet.", "This is a photo of a {}"]
    settings = read_yaml(folder / "run" / "robust" / "run.yaml")
    assert settings["train_datasets"] == ["pets=PATH/pets:template=a photo of a {}, a pet.", "birds=PATH/birds"]
    assert settings["dataset_weights"] == [3.0, 1.0] and "train_dataset" not in settings and "batches" not in settings
    log = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
    assert {"eval_pets_robust_accuracy", "eval_birds_clean_accuracy"} <= {key for entry in log for key in entry}
    assert "--train_datasets 'pets=PATH/pets:template=a photo of a {}, a pet.' birds=PATH/birds" in robust.card
    line = refusal_of("hpt_gpd.py", "--config", folder / "run.yaml", "--dataset_weights", 1, 1)
    assert "dataset_weights [3.0, 1.0] there, [1.0, 1.0] here" in line


def test_pretraining_takes_the_classes_of_all_sets(folder, capsys):
    sets = ["--train_datasets", f"pets={folder}/pets", f"birds={folder}/birds"]
    run_recipe("pretrain_clip.py", "--config", folder / "pretraining.yaml", "--train_dataset", "", *sets)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" of ")[2] for line in lines if " % of " in line] == [
        "4 pets test images",
        "6 birds test images",
    ]


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--train_dataset", "digits"], "train_datasets is given too: leave one of them out. What a config says is"),
        (["--dataset_weights", "1"], "2 sets, pets, birds, but got 1 weights: give a weight for each"),
        (["--dataset_weights", "1", "nan"], "weight of birds is nan, but must be a number above 0"),
        (["--dataset_weights", "1", "-1"], "weight of birds is -1"),
        (["--batches", "both"], "Unknown batches 'both'; known: one_set, mixed"),
        (["--streaming", "True"], "A mixture doesn't stream"),
        (["--train_datasets", "digits", "digits"], "digits is twice in the mixture"),
        (["--train_datasets", "{0}/pets", "{0}/nowhere"], "There is no folder or file '{0}/nowhere'"),
        (["--validation_size", "0"], "pets + birds has no validation images to evaluate on in training"),
        (["--eval_datasets", "birds={0}/birds:split=train"], "birds would be tested on its training images"),
        (["--prompt_template", "x {}"], "each set of the mixture has its own"),
        (["--warmup_steps", "9"], "warmup_steps is 9, but the transfer stage has only 6 steps"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* rows can't have their share", "ignore:.* has images of 16 pixels")
def test_a_mixture_that_cannot_be_meant_is_refused_before_any_long_work(folder, arguments, line):
    arguments = [argument.replace("{0}", str(folder)) for argument in arguments]
    given = ["--config", folder / "run.yaml", *arguments]
    assert line.replace("{0}", str(folder)) in refusal_of("hpt_gpd.py", *given)
    assert not (folder / "run" / "robust").exists()


@pytest.mark.parametrize("arguments", [["--dataset_weights", "1"], ["--batches", "mixed"]])
def test_what_is_of_several_sets_is_refused_of_one(tmp_path, arguments):
    for script in ("hpt_gpd.py", "pretrain_clip.py"):
        line = refusal_of(script, "--train_dataset", "digits", "--output_dir", tmp_path, "--use_cpu", *arguments)
        assert "is of several sets: give them as train_datasets" in line
