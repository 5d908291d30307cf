"""Families of dual encoders: what their records say is so, and what is done with a family that has none."""

import string

import pytest
import torch
import transformers
from helpers import CLASSES, FAMILIES, VISION, make_clip, make_dataset, make_family, make_trainer
from peft import LoraConfig, get_peft_model
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    XLMRobertaTokenizer,
)

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.models import families
from hpt.models.families import Family, check_towers, family_by_architecture, family_of
from hpt.models.loading import save_finished
from hpt.models.weights import freeze_untrained
from hpt.training.identity import describe_proxy


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
    assert family_by_architecture("OwlViTModel") == Family("unknown", "OwlViTModel")


def test_what_embeds_no_whole_image_is_refused():
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.FlavaConfig(image_config=VISION, text_config=small, multimodal_config=small)
    with pytest.raises(InputError, match="FlavaModel embeds each patch and each token, not an image and a text"):
        ZeroShotClassifier(transformers.FlavaModel(config), make_clip(0)[1])


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
    with pytest.raises(
        InputError, match="of Renamed: it has no vision_model and text_model.*: aimv2, align, altclip, "
    ):
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
    """A tokenizer that keeps the case, as that of SigLIP 2 does, and what it was given."""

    model_max_length = 10**30  # as that of SigLIP 2 says too
    unk_token_id = pad_token_id = None

    def __call__(self, texts, **settings):
        self.texts, self.settings = texts, settings
        return {"input_ids": [[*(ord(letter) % 64 for letter in text), 513] for text in texts]}


# What each family's documentation does with texts, beside what its tokenizer does, where that isn't nothing
OF_PROMPTS = {"Siglip": ("a grey heron", {"padding": "max_length", "max_length": 77})}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_prepared_as_the_family_was_pretrained(name):
    """The padding of the others doesn't count: their towers are causal, or are told of it by a mask."""
    model, processor = make_family(name)
    processor.tokenizer = tokenizer = CasedTokenizer()
    ZeroShotClassifier(model, processor, CLASSES).tokenize(["A grey Heron"])
    longest = model.config.text_config.max_position_embeddings
    text, settings = OF_PROMPTS.get(name, ("A grey Heron", {"padding": "longest", "max_length": longest}))
    assert tokenizer.texts == [text]
    assert {key: tokenizer.settings[key] for key in ("padding", "max_length")} == settings


LETTERS = string.ascii_letters + string.punctuation


def bert_tokenizer():
    """BERT's over letters, which lowers the case."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})


def roberta_tokenizer():
    """XLM-RoBERTa's over letters, which keeps the case, as the models were pretrained."""
    entries = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    return XLMRobertaTokenizer(vocab=[*entries, *((letter, -2.0) for letter in LETTERS), ("<mask>", 0.0)])


@pytest.mark.parametrize(
    ("name", "kind", "tokenizer"),
    [
        ("Align", "Align", bert_tokenizer),
        ("AltCLIP", "AltCLIP", roberta_tokenizer),
        ("Blip", "Blip", bert_tokenizer),
        ("ChineseCLIP", "ChineseCLIP", bert_tokenizer),
        ("MetaClip2", "CLIP", roberta_tokenizer),
        ("VisionTextDualEncoder", "VisionTextDualEncoder", bert_tokenizer),
    ],
)
def test_logits_are_those_of_the_familys_own_tokenizer_and_processor(name, kind, tokenizer):
    """As its documentation calls them, `model(**processor(text=..., padding=True))`."""
    model, processor = make_family(name)
    processor = getattr(transformers, f"{kind}Processor")(processor.image_processor, tokenizer())
    if name == "MetaClip2":
        model.text_model.eos_token_id = processor.tokenizer.eos_token_id
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    side = classifier.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = processor(text=[f"This is a photo of a {name}" for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = (images - classifier.image_mean) / classifier.image_std
        expected = model(pixel_values=pixels, **texts).logits_per_image
    torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=1).min() > 0


def gemma_tokenizer():
    """Gemma's tokenizer over letters, set up as SigLIP 2 of fixed size has it: it keeps the case."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    vocab = {entry: index for index, entry in enumerate([*special, *string.ascii_letters])}
    return GemmaTokenizer(vocab=vocab, merges=[], padding_side="right", model_input_names=["input_ids"])


@pytest.fixture
def siglip2(tmp_path):
    """A tiny SigLIP with Gemma's tokenizer, saved and loaded again."""
    tokenizer, config = gemma_tokenizer(), make_family("Siglip")[0].config
    config.text_config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    processor = SiglipProcessor(SiglipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    save_finished(model, processor, tmp_path / "siglip2")
    return load_proxy(str(tmp_path / "siglip2"))


def test_siglip2_is_given_lower_case(siglip2, images):
    """As its documentation has it: "trained with lowercased text", padded to the longest length."""
    tokenizer = siglip2.processor.tokenizer
    assert isinstance(tokenizer, GemmaTokenizer) and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]
    texts = [f"this is a photo of a {name}" for name in CLASSES]
    inputs = siglip2.processor(text=texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = siglip2.model(pixel_values=(images - 0.5) / 0.5, **inputs).logits_per_image
    logits = siglip2.with_classes([name.upper() for name in CLASSES])(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert siglip2.changes_case and expected.std(dim=1).min() > 0
    assert "prompts in lower case, weights" in describe_proxy(siglip2)  # so that no run with capitals is gone on with


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_case_is_left_to_tokenizers_that_lower_it(family):
    """So what was measured with them before stays what it is."""
    assert not ZeroShotClassifier(*make_family(family)).changes_case


def test_classes_do_not_depend_on_dropout(images):
    """A text tower with dropout, as BERT has, gives the same classes while the model trains."""
    model, processor = make_family("ChineseCLIP")
    classifier = ZeroShotClassifier(model.train(), processor, CLASSES)
    in_training = classifier.text_embeds()
    assert model.text_model.training and not torch.equal(classifier.encode_prompts(), in_training)
    torch.testing.assert_close(in_training, ZeroShotClassifier(model.eval(), processor, CLASSES).text_embeds())
