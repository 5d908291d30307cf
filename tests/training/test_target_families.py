"""Targets of other families than CLIP: they train, are saved, load without hpt, and are evaluated."""

import pytest
import torch
import transformers
from helpers import CLASSES, byte_tokenizer, make_dataset, make_family, make_trainer, weights
from transformers import VisionTextDualEncoderProcessor, ViTImageProcessorPil

from hpt import RobustnessEvaluator, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.lora import add_lora, merged


BENCHMARK = Benchmark("animals", "test", make_dataset(30), CLASSES, None, ImageTransform())


def make_target(family):
    """A tiny model and its processor; for a ViT with a BERT, the processor that goes with them."""
    model, processor = make_family(family)
    if family == "VisionTextDualEncoder":
        image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=3)
        processor = VisionTextDualEncoderProcessor(image_processor, byte_tokenizer())
    return model, processor


@pytest.mark.parametrize("family", ["VisionTextDualEncoder", "Siglip", "MetaClip2", "Aimv2"])
@pytest.mark.parametrize("trainable", ["vision", "all"])
def test_a_target_of_any_family_goes_the_whole_way(tmp_path, images, family, trainable):
    model, processor = make_target(family)
    vanilla = weights(model)
    trainer = make_trainer(tmp_path, model, processor=processor, trainable=trainable)
    trainer.train()
    moved = {name for name, weight in weights(model).items() if not torch.equal(weight, vanilla[name])}
    of_vision = {name for name in moved if name.startswith(("vision_model.", "visual_projection."))}
    assert of_vision and (of_vision == moved) == (trainable == "vision")

    save_finished(model, processor, tmp_path / "robust")
    loaded = getattr(transformers, f"{family}Model").from_pretrained(tmp_path / "robust")
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(loaded).items())
    loaded, processor = load_dual_encoder(str(tmp_path / "robust"))
    classifier = ZeroShotClassifier(model.eval(), trainer.processing_class, CLASSES)
    torch.testing.assert_close(ZeroShotClassifier(loaded, processor, CLASSES)(images), classifier(images))
    clean, *_, attacked, _ = RobustnessEvaluator(attacks=["pgd:steps=2"], eps=8 / 255)(loaded, processor, BENCHMARK)
    assert attacked.attack == "pgd:steps=2" and attacked.accuracy <= clean.accuracy


def test_adapters_of_other_layers_train_and_merge(tmp_path, images):
    model, processor = make_target("VisionTextDualEncoder")
    vanilla = ZeroShotClassifier(model, processor, CLASSES)(images)
    trainer = make_trainer(tmp_path, add_lora(model, rank=2), processor=processor)
    trainer.train()
    adapted = ZeroShotClassifier(trainer.model.eval(), processor, CLASSES)(images)
    assert not torch.allclose(adapted, vanilla, atol=1e-3)
    plain = ZeroShotClassifier(merged(trainer.model), processor, CLASSES)
    torch.testing.assert_close(plain(images), adapted, rtol=1e-4, atol=1e-5)
