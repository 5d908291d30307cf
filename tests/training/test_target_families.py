"""Targets of every family that recipes/README.md lists: they train, are saved, load without hpt, and are evaluated."""

import json
import re

import pytest
import torch
import transformers
from helpers import (
    CLASSES,
    FAMILIES,
    ROOT,
    TOWERS,
    assert_same,
    class_of,
    make_dataset,
    make_family,
    make_trainer,
    weights,
)
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    TrainerCallback,
    VisionTextDualEncoderProcessor,
    ViTImageProcessorPil,
)

from hpt import InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.json_files import sealed, unsealed
from hpt.models.families import has_positions
from hpt.models.loading import load_dual_encoder, load_saved_weights, save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.weights import normalizers
from hpt.training.checkpoints import MANIFEST


BENCHMARK = Benchmark("animals", "test", make_dataset(9), CLASSES, None, ImageTransform())
SHORT = {"anchor_epochs": 1, "transfer_epochs": 1, "learning_rate": 0.05}
TARGETS = [*FAMILIES, *TOWERS]
# What checkpoints with such towers have: squashed to a square, a part of the centre, and larger by 1 / crop_pct
PROCESSORS = {
    "VisionTextDualEncoder": lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=3),
    "DINOv2": lambda: BitImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
    "ResNet": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.875),
    "ConvNeXt": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 16}),
    "Swin": lambda: ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=3),
}


def make_target(name):
    """A tiny model, and the processor that goes with it."""
    model, processor = make_family(name)
    if name in PROCESSORS:
        processor = VisionTextDualEncoderProcessor(PROCESSORS[name](), processor.tokenizer)
    return model, processor


class Gradients(TrainerCallback):
    """The names of the parameters that had a gradient."""

    def __init__(self):
        self.names = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.names |= {name for name, weight in model.named_parameters() if weight.grad is not None}


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize(
    ("name", "trainable"), [*((name, "all") for name in TARGETS), *((name, "vision") for name in ("Siglip", "ResNet"))]
)
def test_a_target_of_any_family_goes_the_whole_way(tmp_path, monkeypatch, images, name, trainable):
    model, processor = make_target(name)
    vanilla, vanilla_buffers = weights(model), buffers(model)
    settings = {"trainable": trainable, "logging_strategy": "no", **SHORT}
    trainer = make_trainer(tmp_path, model, make_dataset(8), processor=processor, **settings)
    trainer.add_callback(gradients := Gradients())
    trainer.train()
    trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
    moved = {key for key, weight in weights(model).items() if not torch.equal(weight, vanilla[key])}
    assert gradients.names == trained >= moved  # DDP needs each
    towers = {key.partition("_")[0] for key in moved if key.startswith(("vision_model.", "text_model."))}
    assert towers == ({"vision", "text"} if trainable == "all" else {"vision"})
    assert_same(buffers(model), vanilla_buffers)  # of BatchNorm too

    # Saved, and loaded without hpt
    save_finished(model, processor, tmp_path / "robust")
    loaded = getattr(transformers, class_of(name)).from_pretrained(tmp_path / "robust")
    assert_same(loaded.state_dict(), model.state_dict())
    trainer.describe(tmp_path / "robust", "./robust")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 16), (90, 40, 0)).save("image.png")
    for snippet in re.findall(r"```python\n(.*?)```", (tmp_path / "robust" / "README.md").read_text(), re.DOTALL):
        exec(snippet, {})

    # With hpt
    loaded, processor = load_dual_encoder(str(tmp_path / "robust"))
    classifier = ZeroShotClassifier(model.eval(), trainer.processing_class, CLASSES)
    torch.testing.assert_close(ZeroShotClassifier(loaded, processor, CLASSES)(images), classifier(images))
    clean, *_, attacked, _ = RobustnessEvaluator(attacks=["pgd:steps=2"], eps=8 / 255)(loaded, processor, BENCHMARK)
    assert attacked.attack == "pgd:steps=2" and attacked.accuracy <= clean.accuracy


@pytest.mark.parametrize("name", ["Align", "DINOv2"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, name):
    """With dropout in a BERT and an EfficientNet, statistics of BatchNorm, and parameters that don't train.

    No restart takes the place of the weights that it goes on with.
    """
    settings = {"trainable": "all", "save_strategy": "steps", "save_steps": 2, "logging_strategy": "no", **SHORT}
    settings["restart"] = False
    model, processor = make_target(name)
    make_trainer(tmp_path, model, processor=processor, **settings).train()
    resumed, _ = make_target(name)
    trainer = make_trainer(tmp_path, resumed, processor=processor, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_saved_goes_back_into_the_model(tmp_path, name):
    """Whatever transformers calls the weights in the file."""
    model, _ = make_target(name)
    model.save_pretrained(tmp_path)
    other, _ = make_target(name)
    for weight in other.parameters():
        weight.data.fill_(0.5)
    load_saved_weights(other, tmp_path)
    assert_same(other.state_dict(), model.state_dict())


def test_the_best_weights_are_all_loaded(tmp_path):
    """Also those that a DINOv2 has other names for in the file."""
    model, processor = make_target("DINOv2")
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "eval_attack_steps": 1}
    settings = best | {"anchor_epochs": 0, "transfer_epochs": 2, "learning_rate": 0.05, "logging_strategy": "no"}
    trainer = make_trainer(tmp_path, model, eval_dataset=make_dataset(3), processor=processor, **settings)
    trainer.train()
    assert trainer.best_step == 3  # the first of equals
    best, _ = load_dual_encoder(str(tmp_path / "checkpoint-3"))
    assert_same(model.state_dict(), best.state_dict())


@pytest.mark.parametrize("name", ["Swin", "GroupViT"])
def test_what_is_watched_changes_nothing_of_a_target_that_draws_random_numbers(tmp_path, name):
    """A Swin leaves out layers at random, and a GroupViT assigns patches to groups by noise."""
    trained = []
    for watched in ({}, {"logging_strategy": "steps"}, {"eval_strategy": "steps"}):
        model, processor = make_family(name)
        settings = {"processor": processor, "eval_dataset": BENCHMARK, "logging_strategy": "no"} | watched | SHORT
        make_trainer(tmp_path, model, **settings).train()
        trained.append(weights(model))
    assert_same(trained[1], trained[0])
    assert_same(trained[2], trained[0])


def test_a_target_with_batch_norm_sees_each_image_by_itself(tmp_path):
    """So that micro-batches of two give what a batch of four does, and the attack meets what is evaluated."""
    trained = []
    for size, accumulated in ((4, 1), (2, 2)):
        model, processor = make_target("ResNet")
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, **SHORT}
        make_trainer(tmp_path, model, processor=processor, logging_strategy="no", **settings).train()
        trained.append(weights(model))
    assert normalizers(model)
    assert_same(*trained, atol=1e-5)


def test_a_target_with_batch_norm_that_was_trained_by_each_batchs_statistics_is_not_gone_on_with(tmp_path):
    """As checkpoints of 0.4.0 were."""
    model, processor = make_target("ResNet")
    settings = {"processor": processor, "save_strategy": "steps", "save_steps": 3, "logging_strategy": "no", **SHORT}
    make_trainer(tmp_path, model, **settings).train()
    checkpoint = tmp_path / "checkpoint-3"
    manifest = unsealed(json.loads((checkpoint / MANIFEST).read_text()))
    del manifest["settings"]["batch_norm"]
    (checkpoint / MANIFEST).write_text(json.dumps(sealed(manifest)))
    with pytest.raises(InputError, match="batch_norm by the statistics of each batch there, by its pretrained stat"):
        make_trainer(tmp_path, make_target("ResNet")[0], **settings).train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("name", ["VisionTextDualEncoder", "Blip"])
def test_adapters_of_other_layers_train_and_merge(tmp_path, images, name):
    model, processor = make_target(name)
    vanilla = ZeroShotClassifier(model, processor, CLASSES)(images)
    adapted = add_lora(model, rank=2, trainable="all")
    trainer = make_trainer(tmp_path, adapted, processor=processor, trainable="all", learning_rate=0.5)
    trainer.add_callback(gradients := Gradients())
    trainer.train()
    assert gradients.names == {key for key, weight in adapted.named_parameters() if weight.requires_grad}
    logits = ZeroShotClassifier(trainer.model.eval(), processor, CLASSES)(images)
    assert not torch.allclose(logits, vanilla, atol=1e-3)
    plain = ZeroShotClassifier(merged(trainer.model), processor, CLASSES)
    torch.testing.assert_close(plain(images), logits, rtol=1e-4, atol=1e-5)


# What recipes/README.md says of them

SECTION = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8").partition("\n## Targets\n")[2]
TABLE = [
    tuple(cell.strip(" `") for cell in row.strip("|").split("|"))
    for row in re.findall(r"^\| `.*", SECTION.partition("\n## ")[0], re.MULTILINE)
]


def title_of(name):
    """`CLIPModel`, or `VisionTextDualEncoderModel` with its vision tower."""
    return class_of(name) + (f", {name}" if name in TOWERS else ", ViT" if name == "VisionTextDualEncoder" else "")


def test_the_table_lists_what_is_tried():
    assert sorted(title for title, *_ in TABLE) == sorted(map(title_of, TARGETS))


@pytest.mark.parametrize("name", TARGETS)
def test_the_table_says_what_can_be_done(name):
    model, _ = make_target(name)
    _, _, batch_norm, adapters, positions = next(row for row in TABLE if row[0] == title_of(name))
    assert (batch_norm == "yes") == bool(normalizers(model))
    assert (positions == "resized") == has_positions(model)
    if adapters == "yes":
        assert add_lora(model, rank=2, trainable="all").get_nb_trainable_parameters()[0] > 0
    else:
        with pytest.raises(InputError, match="has no layers named as CLIP's are, to adapt by LoRA"):
            add_lora(model)
