"""What a trainer is given: the classes of its training set, of what it is evaluated on, and of its proxy."""

import datasets
import pytest
import yaml
from datasets import ClassLabel, Value
from helpers import CLASSES, assert_same, make_clip, make_dataset, make_trainer, weights

from hpt import HPTConfig, HPTTrainer, InputError, ZeroShotClassifier
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.geometry import ImageTransform
from hpt.data.images import to_unit_range
from hpt.training.data_inputs import as_benchmark, check_sets


def with_names(folder, dataset, names, **settings) -> HPTTrainer:
    model, processor = make_clip(0)
    settings = {
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
    } | settings
    args = HPTConfig(str(folder), use_cpu=True, disable_tqdm=True, **settings)
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4))
    return HPTTrainer(model, args, proxy, processor, dataset, class_names=names)


def in_order(dataset, names) -> datasets.Dataset:
    """The same images and classes as in a dataset, its classes in another order or spelling."""
    own = dataset.features["label"].names
    places = [[name.lower() for name in names].index(own[label]) for label in dataset["label"]]
    numbered = dataset.remove_columns("label").add_column("label", places)
    return numbered.cast_column("label", ClassLabel(names=names))


def labelled_by(trainer, rows) -> datasets.Dataset:
    """Random images in the classes that the target puts them in, so that it is right on all of them."""
    dataset = make_dataset(rows)
    batches = [to_unit_range(batch["pixel_values"]) for batch in trainer.get_test_dataloader(dataset)]
    predicted = [label for images in batches for label in trainer.classifier(images).argmax(-1).tolist()]
    named = dataset.remove_columns("label").add_column("label", predicted)
    return named.cast_column("label", ClassLabel(names=CLASSES))


@pytest.mark.parametrize("names", [CLASSES, ["dog", "grey heron", "cat"], ["Grey Heron", "Cat", "Dog"]])
def test_a_plain_set_is_scored_by_the_names_of_its_classes(tmp_path, names):
    trainer = make_trainer(tmp_path)
    dataset = in_order(labelled_by(trainer, 12), names)
    assert trainer.evaluate(dataset)["eval_clean_accuracy"] == 1
    assert trainer.predict(dataset).metrics["test_clean_accuracy"] == 1
    again = make_trainer(tmp_path, eval_dataset={"given": dataset})
    assert again.evaluate()["eval_given_clean_accuracy"] == 1
    numbers = dataset.cast_column("label", Value("int64"))  # of the training classes
    assert (again.evaluate(numbers)["eval_clean_accuracy"] == 1) == (names == CLASSES)


class Shuffled(list):
    """Pairs of images and labels in the order of class names of their own."""

    classes = ["grey heron", "cat", "dog"]


@pytest.mark.parametrize("form", ["text labels", "pairs"])
def test_sets_of_any_form_are_numbered_by_the_names_of_their_classes(form):
    plain = make_dataset(6).select(range(1, 6))
    names = [CLASSES[label] for label in plain["label"]]
    text = plain.remove_columns("label").add_column("label", names)
    pairs = Shuffled(zip(plain["image"], map(Shuffled.classes.index, names), strict=True))
    given = {"text labels": text, "pairs": pairs}[form]
    image_processor = make_clip(0)[1].image_processor
    assert as_benchmark(given, "the set", CLASSES, image_processor).dataset["label"][:] == plain["label"][:]
    few = text.select([0, 1])  # dog and grey heron, which by themselves would be 0 and 1
    assert as_benchmark(few, "the set", CLASSES, image_processor).dataset["label"][:] == [1, 2]
    with pytest.raises(
        InputError, match="the set has classes that aren't among the 2 class names 'cat', 'dog': 'grey"
    ):
        as_benchmark(given, "the set", CLASSES[:2], image_processor)


def test_a_plain_set_may_have_some_of_the_training_classes(tmp_path):
    trainer = make_trainer(tmp_path)
    dataset = labelled_by(trainer, 12)
    label = dataset["label"][0]
    few = dataset.filter(lambda row: row["label"] == label)
    few = in_order(few, [CLASSES[label]])
    assert trainer.evaluate(few)["eval_clean_accuracy"] == 1


@pytest.mark.parametrize("place", ["eval_dataset", "evaluate", "predict"])
def test_a_plain_set_of_other_classes_is_refused(tmp_path, place):
    other = make_dataset(6).cast_column("label", ClassLabel(names=["cat", "cow", "ox"]))
    message = (
        r"set has classes that aren't among the 3 class names 'cat', 'dog', 'grey heron': 'cow', 'ox'. Only a bench"
    )
    with pytest.raises(InputError, match=message):
        if place == "eval_dataset":
            make_trainer(tmp_path, eval_dataset=other)
        else:
            getattr(make_trainer(tmp_path), place)(other)


@pytest.mark.parametrize("kind", ["plain", "benchmark", "stream", "streaming benchmark"])
def test_class_names_give_the_order_of_the_training_classes(tmp_path, kind):
    names, dataset = ["dog", "Grey_heron", "cat", "ox"], make_dataset()
    settings = {"steps_per_epoch": 3} if "stream" in kind else {}
    rows = dataset.to_iterable_dataset() if "stream" in kind else dataset
    if "benchmark" in kind:
        make = StreamingBenchmark if "stream" in kind else Benchmark
        rows = make("animals", "train", rows, CLASSES, "{}", ImageTransform(18, 16))
    trainer = with_names(tmp_path, rows, names, **settings)
    train = trainer.train_dataset
    assert trainer.classifier.class_names == trainer.proxy.class_names == train.class_names == names
    rows = train.stream.dataset if "stream" in kind else train.dataset
    assert [row["label"] for row in rows] == [(label + 2) % 3 for label in dataset["label"]]
    trainer.train()


def test_names_that_no_text_tower_knows_are_asked_for_or_refused(tmp_path):
    numbered = make_dataset().cast_column("label", ClassLabel(names=["0", "1", "2"]))
    with pytest.raises(InputError, match="The training set has class names that no text tower knows, '0', '1', '2'"):
        make_trainer(tmp_path, dataset=numbered)
    assert with_names(tmp_path, numbered, ["0", "1", "2"]).classifier.class_names == ["0", "1", "2"]
    assert with_names(tmp_path, numbered, CLASSES).classifier.class_names == CLASSES
    ids = make_dataset().cast_column("label", ClassLabel(names=["n02123045", "n01440764", "n01443537"]))
    trainer = make_trainer(tmp_path, dataset=ids, eval_dataset=ids)
    assert trainer.classifier.class_names == ["tabby", "tench", "goldfish"]


def test_a_proxys_own_classes_do_not_matter(tmp_path):
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4))
    plain = make_trainer(tmp_path, proxy=proxy)
    plain.train()
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4), ["ox", "grey heron"], "{}")
    trainer = make_trainer(tmp_path, proxy=proxy)
    assert trainer.proxy.class_names == CLASSES and trainer.proxy.templates == plain.proxy.templates
    trainer.train()
    assert_same(weights(plain.model), weights(trainer.model))


def test_several_prompt_templates_train_as_their_mean(tmp_path):
    trainer = make_trainer(tmp_path, prompt_template=["a {}", "{}"], eval_dataset=make_dataset(6))
    assert trainer.classifier.templates == trainer.proxy.templates == ["a {}", "{}"]
    trainer.evaluate()
    assert trainer.eval_classifier.templates == ["a {}", "{}"]
    assert trainer.mathematics()["prompt_template"] == ["a {}", "{}"]
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "`a {}`, `{}`" in card and 'labels, template = ["cat", "dog", "grey heron"], ["a {}", "{}"]' in card
    assert 'texts = ["a {}".format(label)' in card  # others than hpt take a single template
    assert yaml.safe_load((tmp_path / "saved" / "run.yaml").read_text())["prompt_template"] == ["a {}", "{}"]


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_evaluations_in_training_need_images(tmp_path, strategy):
    with pytest.raises(
        InputError, match=f"eval_strategy is '{strategy}', but there is no eval_dataset to evaluate on"
    ):
        make_trainer(tmp_path, eval_strategy=strategy, eval_steps=1)


def test_a_test_set_is_named_once(tmp_path):
    args = HPTConfig(output_dir=str(tmp_path), use_cpu=True)
    train, test = (Benchmark(name, "test", make_dataset(), CLASSES, "{}", ImageTransform()) for name in ("a", "b"))
    check_sets(train, None, [test], args)
    with pytest.raises(InputError, match="'b' is given twice: rows of the two couldn't be told apart"):
        check_sets(train, None, [test, test], args)
