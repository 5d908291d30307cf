"""Families of dual encoders: what their records say is so, and what is done with a family that has none."""

import pytest
import torch
import transformers
from helpers import CLASSES, FAMILIES, VISION, make_clip, make_dataset, make_family, make_trainer
from peft import LoraConfig, get_peft_model

from hpt import InputError, ZeroShotClassifier
from hpt.models import families
from hpt.models.families import Family, check_towers, family_by_architecture, family_of
from hpt.models.weights import freeze_untrained


@pytest.mark.parametrize("name", FAMILIES)
def test_vision_parts_train_and_texts_depend_on_text_parts_alone(name):
    model, processor = make_family(name)
    check_towers(model)
    trained = freeze_untrained(model, "vision")
    assert trained == [key for key, _ in model.named_parameters() if key.startswith(("vision_model.", "visual_proj"))]
    of_texts = {id(weight) for weight in ZeroShotClassifier(model, processor, CLASSES).text_parameters}
    assert of_texts == {id(weight) for key, weight in model.named_parameters() if "text" in key}
    assert freeze_untrained(model, "all") == [key for key, _ in model.named_parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_says_what_the_model_shows(name):
    family = family_of(make_family(name)[0])
    assert family.architecture == f"{name}Model"
    assert (family.has_temperature, family.has_bias) == (name == "Align", name == "Siglip")
    assert family.clamps_logit_scale == (name not in ("Align", "Siglip"))


def test_adapters_leave_a_models_family_and_parts():
    model, processor = make_clip(0)
    tower = model.vision_model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r"text_model.*\.q_proj"))
    family = family_of(adapted)
    assert family is families.FAMILIES["clip"] and family.towers(adapted)[0] is tower
    trained = [weight for weight in ZeroShotClassifier(adapted, processor).text_parameters if weight.requires_grad]
    assert len(trained) == 2  # A and B in the text tower's only layer


def test_a_family_is_known_by_its_class_too():
    assert family_by_architecture("SiglipModel") is families.FAMILIES["siglip"]
    assert family_by_architecture("AltCLIPModel") == Family("unknown", "AltCLIPModel")


def test_a_target_whose_towers_are_elsewhere_is_refused(tmp_path):
    config = transformers.FlavaConfig(
        image_config=VISION, text_config={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    )
    with pytest.raises(InputError, match=r"of FlavaModel: it has no vision_model and text_model.*align, clip, siglip"):
        make_trainer(tmp_path, transformers.FlavaModel(config))


def test_a_record_is_all_that_other_names_need(tmp_path, monkeypatch):
    class Renamed(transformers.CLIPModel):
        """A CLIP whose vision tower has another name."""

        def __init__(self, config):
            super().__init__(config)
            self.encoder_of_images = self.vision_model
            del self.vision_model

        def get_image_features(self, pixel_values):
            features = self.encoder_of_images(pixel_values=pixel_values)
            features.pooler_output = self.visual_projection(features.pooler_output)
            return features

    vanilla, processor = make_clip(0)
    with pytest.raises(InputError, match="Renamed: it has no vision_model"):
        make_trainer(tmp_path, Renamed(vanilla.config))
    record = Family("clip", "Renamed", vision_parts=("encoder_of_images", "visual_projection"))
    monkeypatch.setitem(families.FAMILIES, "clip", record)
    model = Renamed(vanilla.config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    proxy = make_family("Aimv2")
    trainer = make_trainer(tmp_path, model, dataset=make_dataset(), proxy=ZeroShotClassifier(*proxy), max_steps=2)
    trainer.train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all(name.startswith(("encoder_of_images.", "visual_projection.")) for name in moved)


class CasedTokenizer:
    """A tokenizer that keeps the case, as that of SigLIP 2 does, and the texts that it was given."""

    model_max_length = 77

    def __call__(self, texts, **settings):
        self.texts = texts
        return {"input_ids": [[0]] * len(texts)}


def test_classes_do_not_depend_on_dropout(images):
    """A text tower with dropout, as BERT has, gives the same classes while the model trains."""
    model, processor = make_family("ChineseCLIP")
    classifier = ZeroShotClassifier(model.train(), processor, CLASSES)
    in_training = classifier.text_embeds()
    assert model.text_model.training and not torch.equal(classifier.encode_prompts(), in_training)
    torch.testing.assert_close(in_training, ZeroShotClassifier(model.eval(), processor, CLASSES).text_embeds())
