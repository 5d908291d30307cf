"""Training on images without labels, by an objective that needs none."""

import json
import signal

import datasets
import pytest
import torch
from helpers import CLASSES, TerminateAt, assert_same, make_benchmark, make_clip, make_dataset, make_trainer, weights
from PIL import Image

from hpt import InputError, RobustnessEvaluator, load_benchmark
from hpt.data.benchmark import Benchmark
from hpt.data.class_subsets import take_classes
from hpt.data.loading import load_training_data
from hpt.evaluation.row_settings import hash_benchmark
from hpt.training.identity import describe_training
from hpt.training.objectives import OBJECTIVES, Objective


class Careless(Objective):
    """It doesn't say that its attack, which maximises cross-entropy, needs labels."""

    def __call__(self, step):
        return step.target(step.adversarial).image_features.square().sum(-1)


@pytest.fixture(autouse=True)
def objectives(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "careless", Careless)


def without_labels(rows=12) -> datasets.Dataset:
    return make_dataset(rows).remove_columns("label")


def unlabelled_trainer(folder, dataset=None, **settings):
    settings = {"objective": "fare", "anchor_epochs": 0, "learning_rate": 0.01} | settings
    return make_trainer(folder, dataset=dataset or without_labels(), proxy=None, **settings)


def save_folder(folder, splits=("",), rows=12):
    for split in splits:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for row, example in enumerate(make_dataset(rows)):
            example["image"].save(folder / split / f"{row:02}.png")
    return folder


@pytest.mark.parametrize("settings", [{}, {"augmentation": "crop_flip"}, {"anchor_epochs": 1}], ids=str)
def test_labels_change_nothing_for_an_objective_that_needs_none(tmp_path, settings):
    settings = settings | {"anchor_objective": "fare", "transfer_epochs": 1}
    with_labels = unlabelled_trainer(tmp_path / "labelled", make_dataset(), **settings)
    trainer = unlabelled_trainer(tmp_path / "unlabelled", **settings)
    assert trainer.classifier.class_names is None and not trainer.train_dataset.has_labels
    for one in (with_labels, trainer):
        one.train()
    assert_same(weights(trainer.model), weights(with_labels.model))
    assert any((a != b).any() for a, b in zip(trainer.model.parameters(), make_clip(0)[0].parameters(), strict=True))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged and all("zero_gradient_share" in entry and "stage" in entry for entry in logged)
    assert not any("accuracy" in key for entry in logged for key in entry)


@pytest.mark.parametrize("more", [{}, {"text": "a cat"}, {"caption": ["a", "b"], "width": 3}], ids=str)
def test_other_columns_such_as_captions_dont_count(tmp_path, more):
    dataset = without_labels()
    for name, value in more.items():
        dataset = dataset.add_column(name, [value] * len(dataset))
    trainer = unlabelled_trainer(tmp_path, dataset)
    assert hash_benchmark(trainer.train_dataset) == hash_benchmark(unlabelled_trainer(tmp_path).train_dataset)
    (item, _) = trainer.train_dataset[0], trainer.train()
    assert sorted(item) == ["pixel_values", "sample_ids"]


def test_identities_count_the_images_and_that_there_are_no_labels(tmp_path):
    def identity(dataset):
        trainer = unlabelled_trainer(tmp_path, dataset)
        return json.dumps(describe_training(trainer.args, [], trainer.train_dataset), sort_keys=True)

    others = [make_dataset(), without_labels(11), without_labels().select([1, 0, *range(2, 12)])]
    assert len({identity(dataset) for dataset in [without_labels(), *others]}) == 4
    assert identity(without_labels()) == identity(without_labels())


def test_a_killed_run_is_the_run_that_wasnt(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "anchor_epochs": 1, "anchor_objective": "fare"}
    settings |= {"transfer_epochs": 1}
    whole = unlabelled_trainer(tmp_path / "whole", **settings)
    whole.train()
    killed = unlabelled_trainer(tmp_path / "killed", **settings)
    killed.add_callback(TerminateAt(4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        killed.train()
    again = unlabelled_trainer(tmp_path / "killed", **settings)
    again.train(resume_from_checkpoint="last")
    assert_same(weights(again.model), weights(whole.model))
    assert [entry["loss"] for entry in again.state.log_history if "loss" in entry] == [
        entry["loss"] for entry in whole.state.log_history if "loss" in entry
    ]
    other = unlabelled_trainer(tmp_path / "killed", make_dataset(), **settings)
    with pytest.raises(InputError, match="was trained with other settings"):
        other.train(resume_from_checkpoint="last")


def test_micro_batches_make_the_same_step(tmp_path):
    one = unlabelled_trainer(tmp_path / "one")
    halves = unlabelled_trainer(tmp_path / "halves", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    for trainer in (one, halves):
        trainer.train()
    assert_same(weights(one.model), weights(halves.model), atol=1e-5)


def test_a_stream_trains_too(tmp_path):
    stream = without_labels().add_column("text", ["a cat"] * 12).to_iterable_dataset(num_shards=3)
    trainer = unlabelled_trainer(tmp_path, stream, steps_per_epoch=2)
    trainer.train()
    assert trainer.state.global_step == 4 and not trainer.train_dataset.has_labels


def test_evaluation_sets_bring_their_own_classes(tmp_path):
    trainer = unlabelled_trainer(tmp_path, eval_dataset={"plain": make_dataset(), "benchmark": make_benchmark()})
    metrics = trainer.evaluate()
    assert {"eval_plain_clean_accuracy", "eval_benchmark_robust_accuracy"} <= set(metrics)
    labelled = make_trainer(tmp_path / "labelled", eval_dataset=make_dataset()).evaluate()
    assert metrics["eval_plain_clean_accuracy"] == labelled["eval_clean_accuracy"]


def test_class_names_make_prompts_for_objectives_that_ask_for_them(tmp_path):
    named = Benchmark("mine", "train", without_labels(), CLASSES, None)
    trainer = unlabelled_trainer(tmp_path, named, objective="agft", max_steps=2)
    trainer.train()
    labelled = unlabelled_trainer(tmp_path / "labelled", make_dataset(), objective="agft", max_steps=2)
    labelled.train()
    assert trainer.classifier.class_names == CLASSES
    assert_same(weights(trainer.model), weights(labelled.model))


# Folders and files


@pytest.mark.parametrize("splits", [("",), ("train", "test"), ("0", "1/deep")], ids=str)
def test_a_folder_of_images_is_read_whatever_folders_it_has(tmp_path, splits):
    folder = save_folder(tmp_path / "mine", splits)
    train = load_benchmark(f"mine={folder}", "train", labelled=False)
    assert len(train) == (24 if "0" in splits else 12) and train.class_names == [] and not train.has_labels
    stream = load_benchmark(f"mine={folder}", "train", labelled=False, streaming=True)
    assert [item["pixel_values"].shape for item in stream.for_model(make_clip()[1].image_processor)] == [
        torch.Size([3, 16, 16])
    ] * len(train)


@pytest.mark.parametrize("kind", ["parquet", "csv", "metadata"])
def test_captioned_images_are_read_from_files(tmp_path, kind):
    folder = save_folder(tmp_path / "mine")
    names, place = [file.name for file in sorted(folder.iterdir())], folder
    if kind == "parquet":
        dataset = without_labels().add_column("caption", [f"number {row}" for row in range(12)])
        place = tmp_path / "captions.parquet"
        dataset.to_parquet(place)
    elif kind == "csv":
        place = folder / "captions.csv"
        place.write_text("file,caption\n" + "\n".join(f"{name},number {name}" for name in names))
    else:
        (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(f"{name},a {name}" for name in names))
    with pytest.warns(UserWarning, match="Images without labels are trained on, since"):
        train, _ = load_training_data(f"mine={place}", labels_for=None)
    assert len(train) == 12 and train.dataset.column_names == ["image"]


def test_labels_are_read_where_there_are_some_or_else_missed_by_name(tmp_path):
    folder = save_folder(tmp_path / "mine")
    for name in ("cat", "dog"):
        save_folder(tmp_path / "classes" / name, rows=2)
    labelled, _ = load_training_data(f"mine={tmp_path / 'classes'}", labels_for=None)
    assert labelled.class_names == ["cat", "dog"]
    with pytest.raises(InputError, match="no folders by class.* Labels are needed by the objective tecoa"):
        load_training_data(f"mine={folder}", labels_for="the objective tecoa")
    with pytest.raises(InputError, match="no folders by class"):
        load_training_data(f"mine={folder}:label_column=kind", labels_for=None)


@pytest.mark.filterwarnings("ignore:Images without labels")
def test_images_are_held_out_and_chosen_at_random(tmp_path):
    folder = save_folder(tmp_path / "mine")
    train, validation = load_training_data(f"mine={folder}", 4, labels_for=None)
    again, _ = load_training_data(f"mine={folder}", 4, labels_for=None)
    assert sorted([*train.ids(), *validation.ids()]) == list(range(12)) and len(validation) == 4
    assert train.ids().tolist() == again.ids().tolist() and len(train.subset(5)) == 5


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "tecoa"}, r"has columns \['image'\], but needs \['label'\].* needed by the objective tecoa"),
        ({"objective": "careless"}, "needed by the objective careless"),
        (
            {"anchor_epochs": 1, "anchor_objective": "tecoa"},
            r"needed by the anchor stage's objective, tecoa \(anchor_epochs=0 leaves that stage out\)",
        ),
        ({"objective": "agft"}, "neither labels nor class names, but prompts are needed by the objective agft"),
        ({"objective": "fare + 2*careless"}, r"needed by the objective fare \+ 2\*careless"),
    ],
    ids=str,
)
def test_objectives_that_need_more_are_named(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        unlabelled_trainer(tmp_path, **settings)


def test_nothing_is_evaluated_without_labels(tmp_path):
    with pytest.raises(InputError, match="the evaluation set has no labels, which accuracy is measured by"):
        unlabelled_trainer(tmp_path, eval_dataset=without_labels())
    images = load_benchmark("digits", labelled=False)
    with pytest.raises(InputError, match="digits has no labels, which accuracy is measured by"):
        RobustnessEvaluator(eps=0.1)(*make_clip(), images)
    with pytest.raises(InputError, match="given, but without labels it has no classes to choose from"):
        take_classes(images, classes=[0, 1])
    with pytest.raises(InputError, match="classes of digits is given, but without labels"):
        load_benchmark("digits", classes=[0, 1], labelled=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: without_labels(0), "the training set has no rows"),
        (lambda: datasets.Dataset.from_dict({"text": ["a"] * 12}), r"has columns \['text'\], but needs \['image'\]"),
        (lambda: datasets.Dataset.from_dict({"image": [1, 2]}), "holds Value.*int64.*, but must hold images"),
        (
            lambda: without_labels().rename_column("image", "photo"),
            r"has columns \['photo'\], but needs \['image'\]: rename",
        ),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, make, message):
    dataset = make()
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, dataset=dataset, proxy=None, objective="fare", anchor_epochs=0)


def test_a_damaged_image_is_named(tmp_path):
    folder = save_folder(tmp_path / "mine")
    (folder / "03.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="row 3 of the training set"):
        unlabelled_trainer(tmp_path / "run", load_benchmark(f"mine={folder}", "train", labelled=False))


@pytest.mark.parametrize("make", [lambda folder: folder.mkdir(), lambda folder: (folder / "a").mkdir(parents=True)])
def test_a_folder_without_images_is_refused(tmp_path, make):
    make(tmp_path / "mine")
    with pytest.raises(InputError, match="has no images: it is empty"):
        load_benchmark(f"mine={tmp_path / 'mine'}", "train", labelled=False)


def test_images_beside_splits_are_refused(tmp_path):
    folder = save_folder(tmp_path / "mine", ("train", "extra"), rows=2)
    with pytest.raises(InputError, match="has images in train/ and in extra/, which is no split"):
        load_benchmark(f"mine={folder}", "train", labelled=False)


# What is recorded


def test_the_card_says_that_there_were_no_labels(tmp_path):
    trainer = unlabelled_trainer(tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    folder = trainer.describe(tmp_path / "saved")
    assert folder.run["data"]["labelled"] is False and folder.run["data"]["class_names"] == []
    assert "images alone, without labels or captions" in folder.card
    assert [line for line in folder.card.splitlines() if line.startswith("| prompts")][0].split("|")[
        2
    ].strip() == "none"
    assert "training_curves.png" in folder.card and (tmp_path / "saved/figures/training_curves.png").is_file()
    assert 'labels, template = ["cat", "dog", "car"]' in folder.card
    Image.open(tmp_path / "saved/figures/training_curves.png").verify()
