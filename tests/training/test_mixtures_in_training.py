"""Training on a mixture: each step's classes and prompts, resuming, dividing the work, records and refusals."""

import datasets
import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, assert_same, make_clip, make_dataset, make_trainer, weights, with_other_weights
from transformers import TrainerCallback

from hpt import InputError, Mixture, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.hub.folder import ModelFolder
from hpt.hub.sections import training
from hpt.training.objectives import OBJECTIVES, RobustTransfer


OTHERS = ["Dog", "car", "tree", "house"]


def make_sets(rows: tuple[int, int] = (8, 12)) -> dict:
    """Two sets with classes and templates of their own, which share the dog."""
    others = make_dataset(rows[1], seed=3)
    labels = [row % len(OTHERS) for row in range(rows[1])]
    others = others.remove_columns("label").add_column("label", labels, feature=datasets.ClassLabel(names=OTHERS))
    settings = {"transform": ImageTransform(), "source": None}
    return {
        "birds": Benchmark("b", "train", make_dataset(rows[0]), CLASSES, "a photo of a {}", **settings),
        "cars": Benchmark("c", "train", others, OTHERS, ["a {}.", "the {}"], **settings),
    }


def make_mixed_trainer(folder, batches="one_set", weights=None, sets=None, **settings):
    mixture = Mixture(make_sets() if sets is None else sets, weights, batches)
    return make_trainer(folder, dataset=mixture, **{"anchor_epochs": 1, "transfer_epochs": 1} | settings)


def noted_steps(trainer) -> list[tuple]:
    """The images, labels, ids and steps of all micro-batches, as the trainer makes them."""
    noted, make = [], trainer._make_step

    def note(inputs, *others):
        step = make(inputs, *others)
        noted.append((trainer.state.global_step, inputs, step))
        return step

    trainer._make_step = note
    return noted


def class_embeds(model, processor, prompts_of_classes: list[list[str]]) -> torch.Tensor:
    """The mean of the unit embeddings of each class's prompts, of unit length again."""
    embeds = []
    for prompts in prompts_of_classes:
        tokens = processor.tokenizer(prompts, padding=True, return_tensors="pt")
        embeds.append(F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1).mean(0))
    return F.normalize(torch.stack(embeds), dim=-1)


def logits_by_hand(model, processor, images, prompts_of_classes) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in _statistics(processor))
    features = model.get_image_features(pixel_values=(images - mean) / std).pooler_output
    text_embeds = class_embeds(model, processor, prompts_of_classes)
    return model.logit_scale.exp() * F.normalize(features, dim=-1) @ text_embeds.T


def _statistics(processor):
    return processor.image_processor.image_mean, processor.image_processor.image_std


class Comparing(RobustTransfer):
    """HPT, which asks for the vanilla copy too."""

    needs_original = True


PROMPTS = {
    "birds": [[f"a photo of a {name}"] for name in CLASSES],
    "cars": [[f"a {name}.", f"the {name}"] for name in OTHERS],
    "all": [
        ["a photo of a cat"],
        ["a photo of a dog", "a dog.", "the dog"],
        ["a photo of a grey heron"],
        *([f"a {name}.", f"the {name}"] for name in OTHERS[1:]),
    ],
}


@pytest.mark.parametrize("batches", ["one_set", "mixed"])
def test_all_models_classify_over_the_classes_of_the_images_by_their_prompts(tmp_path, batches, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "comparing", Comparing)
    model, processor = make_clip(0)
    proxy = make_clip(1, patch_size=4)
    settings = {"objective": "comparing", "anchor_epochs": 0, "proxy": ZeroShotClassifier(*proxy)}
    trainer = make_mixed_trainer(tmp_path, batches, model=model, **settings)
    loader, names = trainer.get_train_dataloader(), list(trainer.train_dataset.sets)
    seen = set()
    for inputs in loader:
        step = trainer._make_step(inputs, trainer.objectives["transfer"])
        name = "all" if batches == "mixed" else names[inputs["set"]]
        seen.add(name)
        for answers, (clip, its_processor) in (
            (step.target(step.images), (model, processor)),
            (step.original(step.images), (model, processor)),
            (step.proxy(step.images), proxy),
        ):
            expected = logits_by_hand(clip, its_processor, step.images, PROMPTS[name])
            torch.testing.assert_close(answers.logits, expected, rtol=0, atol=2e-5)
            assert answers.logits.shape[1] == len(PROMPTS[name]) > step.labels.max()
    assert seen == ({"all"} if batches == "mixed" else {"birds", "cars"})


def test_each_sets_prompts_are_encoded_once_while_the_text_tower_is_frozen(tmp_path, monkeypatch):
    encoded = []
    encode = ZeroShotClassifier.encode_prompts

    def count(self, *arguments):
        encoded.append((id(self.model), tuple(self.class_names)))
        return encode(self, *arguments)

    monkeypatch.setattr(ZeroShotClassifier, "encode_prompts", count)
    make_mixed_trainer(tmp_path).train()
    assert len(encoded) == len(set(encoded)) == 4  # of target and proxy, over the classes of two sets


def test_an_optimizer_step_is_of_one_set_in_all_of_its_micro_batches(tmp_path):
    trainer = make_mixed_trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    noted = noted_steps(trainer)
    trainer.train()
    sets = {}
    for number, inputs, _ in noted:
        sets.setdefault(number, []).append(inputs["set"])
    assert len(sets) == 10 and all(len(step) == 4 and len(set(step)) == 1 for step in sets.values())
    assert [sum(step[0] == place for step in sets.values()) for place in (0, 1)] == [4, 6]


@pytest.mark.parametrize("batches, trainable", [("one_set", "all"), ("mixed", "vision"), ("mixed", "all")])
def test_micro_batches_train_as_the_whole_batch(tmp_path, batches, trainable):
    trained = []
    for images, steps in ((4, 1), (1, 4)):
        proxy, processor = make_clip(1, patch_size=4)
        trainer = make_mixed_trainer(
            tmp_path / str(steps),
            batches,
            model=make_clip(0)[0].double(),
            proxy=ZeroShotClassifier(proxy.double(), processor),
            trainable=trainable,
            augmentation="crop_flip",
            per_device_train_batch_size=images,
            gradient_accumulation_steps=steps,
        )
        before = weights(trainer.model)
        trainer.train()
        trained.append(weights(trainer.model))
        moved = [name for name in before if not torch.equal(before[name], trained[-1][name])]
        assert any(name.startswith("text") for name in moved) == (trainable == "all")
    assert_same(*trained, atol=1e-9)


@pytest.mark.parametrize("batches", ["one_set", "mixed"])
def test_a_run_goes_on_bit_for_bit(tmp_path, batches):
    """From the middle of an epoch, its end, and the middle of the second."""
    settings = {"augmentation": "crop_flip", "weights": [3, 2]}
    first = make_mixed_trainer(tmp_path, batches, save_strategy="steps", save_steps=1, **settings)
    noted = noted_steps(first)
    first.train()
    ids = [inputs["sample_ids"].tolist() for _, inputs, _ in noted]
    assert len(ids) == first.state.global_step == 10
    for step in (3, 5, 8):
        again = with_other_weights(make_mixed_trainer(tmp_path, batches, **settings))
        noted_again = noted_steps(again)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_same(weights(first.model), weights(again.model))
        assert [inputs["sample_ids"].tolist() for _, inputs, _ in noted_again] == ids[step:]


class EndsAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step
        control.should_save |= state.global_step == self.step


CHANGES = {
    "weights": ({"weights": [1, 2]}, "images of each set {'birds': 8, 'cars': 12} there, {'birds': 8, 'cars': 16}"),
    "batches": ({"batches": "mixed"}, "batches one_set there, mixed here"),
    "order of sets": ({"sets": dict(reversed(make_sets().items()))}, "samples"),
    "name": ({"sets": {"avian": make_sets()["birds"], "cars": make_sets()["cars"]}}, "images of each set"),
    "one set alone": ({"sets": {"birds": make_sets((20, 12))["birds"]}}, "train_dataset"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_does_not_go_on_with_another_mixture(tmp_path, kind):
    change, line = CHANGES[kind]
    trainer = make_mixed_trainer(tmp_path)
    trainer.add_callback(EndsAt(1))
    trainer.train()
    with pytest.raises(InputError, match="was trained with other settings") as refused:
        make_mixed_trainer(tmp_path, **change).train(resume_from_checkpoint="last")
    assert line in str(refused.value)


def test_a_set_with_another_template_is_another_run(tmp_path):
    one, other = (make_mixed_trainer(tmp_path, sets=sets).mathematics() for sets in (make_sets(), _retold()))
    assert {name for name in one if one[name] != other[name]} == {
        "samples",
        "classes",
        "target_tokens",
        "proxy_models",
    }


def _retold() -> dict:
    sets = make_sets()
    birds = Benchmark(**vars(sets["birds"]) | {"template": "{}"})
    return sets | {"birds": birds}


def test_a_dict_is_a_mixture_by_size_also_of_plain_sets_in_the_templates_of_the_settings(tmp_path):
    sets = {"birds": make_dataset(8), "cars": make_dataset(4, seed=1)}
    trainer = make_trainer(tmp_path, dataset=sets, prompt_template="the {}", eval_dataset=make_dataset(5, seed=2))
    assert trainer.train_dataset.shares == [8, 4] and trainer.train_dataset.batches == "one_set"
    assert trainer.train_dataset.templates == {name: ["the {}"] for name in CLASSES}
    assert set(trainer.evaluate()) >= {"eval_clean_accuracy", "eval_robust_accuracy"}


def test_a_part_of_a_benchmark_keeps_its_template(tmp_path):
    sets = make_sets()
    part = torch.utils.data.Subset(sets["birds"], [0, 1, 2, 3])
    trainer = make_mixed_trainer(tmp_path, sets=sets | {"birds": part})
    assert trainer.train_dataset.sets["birds"].template == "a photo of a {}"
    assert trainer.train_dataset.templates["cat"] == trainer.classifier.templates["cat"] == ["a photo of a {}"]


def test_each_set_is_validated_over_its_own_classes(tmp_path):
    held_out = {name: part.rows(torch.arange(5).numpy()) for name, part in make_sets().items()}
    trainer = make_mixed_trainer(tmp_path, eval_dataset=held_out)
    metrics = trainer.evaluate()
    for name, part in held_out.items():
        images = torch.stack([part[row]["pixel_values"] for row in range(5)]) / 255
        logits = logits_by_hand(trainer.model, trainer.processing_class, images, PROMPTS[name])
        labels = torch.tensor([part[row]["labels"] for row in range(5)])
        assert metrics[f"eval_{name}_clean_accuracy"] == (logits.argmax(-1) == labels).double().mean().item()


def test_a_validation_set_without_a_template_may_have_further_classes(tmp_path):
    """Those of the mixture by the prompts of their sets, and others by that of the settings."""
    held_out = Benchmark("held out", "test", make_dataset(5), ["cat", "car", "zebra"], None, ImageTransform())
    trainer = make_mixed_trainer(tmp_path, eval_dataset=held_out)
    assert set(trainer.evaluate()) >= {"eval_clean_accuracy", "eval_robust_accuracy"}
    assert trainer.eval_classifier.templates == {
        "cat": ["a photo of a {}"],
        "car": ["a {}.", "the {}"],
        "zebra": ["This is a photo of a {}"],
    }


class Renamed:
    """A text side that asks a dual encoder about names of its own."""

    def __init__(self, seed=1):
        self.model = ZeroShotClassifier(*make_clip(seed, patch_size=4))

    def with_classes(self, class_names, template=None):
        return self.model.with_classes([f"wild {name}" for name in class_names], "my {}")


def test_a_proxys_own_text_side_is_asked_about_each_set(tmp_path):
    """Also where it makes a dual encoder that could be asked by itself."""
    model, processor = make_clip(1, patch_size=4)
    trainer = make_mixed_trainer(
        tmp_path, proxy=[Renamed(), ZeroShotClassifier(model, processor).with_template("x {}")]
    )
    prompts = {name: [f"my wild {kind}" for kind in kinds] for name, kinds in (("birds", CLASSES), ("cars", OTHERS))}
    own = {name: [f"x {kind}" for kind in kinds] for name, kinds in (("birds", CLASSES), ("cars", OTHERS))}
    for inputs in trainer.get_train_dataloader():
        step = trainer._make_step(inputs, trainer.objectives["transfer"])
        name = list(trainer.train_dataset.sets)[inputs["set"]]
        for logits, texts in zip(step.proxy(step.images).each, (prompts, own), strict=True):
            expected = logits_by_hand(model, processor, step.images, [[text] for text in texts[name]])
            torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


class OnlySix:
    """A text side for the classes of both sets together alone."""

    def __init__(self, fail: bool):
        self.fail = fail

    def with_classes(self, class_names, template=None):
        if self.fail and len(class_names) < 6:
            raise KeyError("no such classes")
        return lambda images: images.mean((1, 2, 3)).unsqueeze(1).expand(-1, 6)


def six(images):
    return images.mean((1, 2, 3)).unsqueeze(1).expand(-1, 6)


@pytest.mark.parametrize(
    ("proxy", "line"),
    [
        (six, "The proxy six is a function .* such as those of one set of a mixture: .*, or mix the batches"),
        (OnlySix(fail=True), "The proxy OnlySix gives no classifier by with_classes.*: KeyError: 'no such classes'"),
        (OnlySix(fail=False), r"The proxy OnlySix gives logits of shape \(6,\) for an image, but there are 3"),
    ],
    ids=["function", "fails", "classes"],
)
def test_a_proxy_that_does_not_know_the_classes_of_one_set_is_refused(tmp_path, proxy, line):
    with pytest.raises(InputError, match=line) as refused:
        make_mixed_trainer(tmp_path, proxy=proxy)
    assert "\n" not in str(refused.value)
    make_mixed_trainer(tmp_path, "mixed", proxy=proxy)


def test_the_record_and_the_card_say_what_was_mixed(tmp_path):
    trainer = make_mixed_trainer(tmp_path, weights=[0.7, 0.3], per_device_train_batch_size=2)
    data = trainer.describe_run()["data"]
    assert data["name"] == "birds (70 %), cars (30 %)" and data["images_per_epoch"] == 20
    assert [part["images_per_epoch"] for part in data["sets"]] == [14, 6]
    assert data["class_names"] == ["cat", "dog", "grey heron", "car", "tree", "house"]
    trainer.save_model(str(tmp_path / "model"))
    trainer.describe(tmp_path / "model")
    card = training(ModelFolder(tmp_path / "model"), "me/model")
    assert "birds (70 %), cars (30 %): 20 images an epoch, each step on images of one set" in card
    assert "birds (train; not read from the Hub), 14 images an epoch, at native resolution, of 8" in card
    assert "`a photo of a {}`, `a {}.`, `the {}`" in card


def _numbered() -> datasets.Dataset:
    return make_dataset(8).cast_column("label", datasets.Value("int64"))


def test_sets_and_settings_that_do_not_go_with_a_mixture_are_refused(tmp_path):
    birds = make_sets()["birds"]
    for sets, settings, line in (
        ({"birds": birds, "plain": _numbered()}, {}, "plain has no class names, which each set of a mixture needs"),
        ({"birds": birds, "more": {"a": birds}}, {}, "more is of type dict, but must be a benchmark"),
        ({"birds": birds, "more": Mixture([birds])}, {}, "more is of type Mixture, but must be a benchmark"),
        ({"birds": birds, "more": "digits"}, {}, "more is of type str, but must be a benchmark"),
        (None, {"prompt_template": "x {}"}, "prompt_template is 'x {}', but each set of the mixture has its own"),
        (None, {"steps_per_epoch": 3}, "steps_per_epoch is for streaming training sets"),
        (None, {"train_sampling_strategy": "sequential"}, "a mixture comes in random order"),
        (None, {"max_steps": 100}, "max_steps is 100, but the stages have 10 steps"),
    ):
        with pytest.raises(InputError) as refused:
            make_mixed_trainer(tmp_path, sets=sets, **settings)
        assert line in str(refused.value)
    with pytest.raises(InputError, match="is a DatasetDict: give one of its splits, train"):
        make_trainer(tmp_path, dataset=datasets.DatasetDict(train=make_dataset()))
