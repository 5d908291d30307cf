"""Adapters: what trains, what is saved, and that merging and loading give the same model."""

import copy
import json
import shutil

import pytest
import torch
from helpers import CLASSES, make_clip, make_family, make_trainer, weights
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModel, CLIPModel, TrainerCallback

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.hub.folder import ModelFolder
from hpt.models.classifier import frozen_copy
from hpt.models.loading import load_dual_encoder, load_named, save_finished
from hpt.models.lora import add_lora, merged, read_adapter
from hpt.models.sources import BASE_FILE
from hpt.models.weights import hash_weights, plain_weights
from hpt.references import parse_model
from hpt.training.gpd import trained_weights


@pytest.mark.parametrize(("trainable", "layers"), [("vision", 12), ("all", 18)])
def test_adapters_begin_as_the_vanilla_model(images, trainable, layers):
    model, processor = make_clip(0)
    expected = ZeroShotClassifier(model, processor, CLASSES)(images)
    adapted = add_lora(model, rank=2, trainable=trainable)
    torch.testing.assert_close(ZeroShotClassifier(adapted, processor, CLASSES)(images), expected, rtol=0, atol=0)
    trained = trained_weights(adapted)
    assert len(trained) == 2 * layers and all("lora_" in name for name in trained)
    assert all(("vision_model" in name) or trainable == "all" for name in trained)


def test_the_seed_fixes_the_adapters_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (trained_weights(add_lora(make_clip_quietly(), rank=2, seed=seed)) for seed in (1, 1, 2))
    name = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(torch.rand(1), expected)


def make_clip_quietly():
    with torch.random.fork_rng():
        return make_clip(0)[0]


class KeepWeights(TrainerCallback):
    """The trained weights at each step's begin, after GPD's callback, and at its end."""

    def __init__(self):
        self.begin, self.end = [], []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.begin.append({name: weight.detach().clone() for name, weight in trained_weights(model).items()})

    def on_step_end(self, args, state, control, model, **kwargs):
        self.end.append({name: weight.detach().clone() for name, weight in trained_weights(model).items()})


@pytest.mark.parametrize("kind", ["lora", "all"])
def test_average_restart_and_pull_act_on_exactly_the_trained_tensors(tmp_path, kind):
    """2 + 2 epochs of 3 steps; g = 0.7, b = 0.6."""
    g, b = 0.7, 0.6
    model = add_lora(make_clip(0)[0], rank=2) if kind == "lora" else make_clip(0)[0]
    trainer = make_trainer(tmp_path, model, ema_decay=g, pull_ratio=b, trainable="vision" if kind == "lora" else "all")
    frozen = {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    kept = KeepWeights()
    trainer.add_callback(kept)
    trainer.train()
    assert trainer.gpd.ema.keys() == trained_weights(model).keys()
    for name in trainer.gpd.ema:
        vanilla = kept.begin[0][name]
        ema = g * (g * vanilla + (1 - g) * kept.end[2][name]) + (1 - g) * kept.end[5][name]
        torch.testing.assert_close(trainer.gpd.ema[name], ema)
        assert torch.equal(kept.begin[6][name], vanilla), name
        torch.testing.assert_close(kept.begin[9][name], b * kept.end[8][name] + (1 - b) * ema)
        assert not torch.equal(kept.end[5][name], vanilla) or name.endswith("k_proj.bias") or "text_model" in name
    for name, weight in frozen.items():
        assert torch.equal(dict(model.named_parameters())[name], weight), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA run with its last checkpoint, and the vanilla model beside it."""
    folder = tmp_path_factory.mktemp("lora")
    vanilla, processor = make_clip(0)
    save_finished(vanilla, processor, folder / "vanilla")
    model = add_lora(load_dual_encoder(str(folder / "vanilla"))[0], rank=2, alpha=4)
    trainer = make_trainer(folder / "run", model, save_strategy="steps", save_steps=4)
    trainer.train()
    save_finished(trainer.model, processor, folder / "adapter")
    save_finished(merged(trainer.model), processor, folder / "robust")
    return folder, trainer


def test_adapters_are_small_and_load_on_the_vanilla_model(trained, images):
    folder, trainer = trained
    assert not (folder / "adapter" / "model.safetensors").exists()
    size = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < (folder / "vanilla" / "model.safetensors").stat().st_size / 2
    expected = ZeroShotClassifier(trainer.model.eval(), trainer.processing_class, CLASSES)(images)
    vanilla = CLIPModel.from_pretrained(folder / "vanilla")
    before = ZeroShotClassifier(vanilla, trainer.processing_class, CLASSES)(images)
    loaded = PeftModel.from_pretrained(vanilla, folder / "adapter")
    adapted = ZeroShotClassifier(loaded.eval(), trainer.processing_class, CLASSES)(images)
    torch.testing.assert_close(adapted, expected, rtol=0, atol=0)
    assert not torch.allclose(adapted, before, atol=1e-3)


def test_merging_gives_the_same_logits_and_leaves_the_trained_model(trained, images):
    folder, trainer = trained
    expected = ZeroShotClassifier(trainer.model.eval(), trainer.processing_class, CLASSES)(images)
    plain, report = CLIPModel.from_pretrained(folder / "robust", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    logits = ZeroShotClassifier(plain.eval(), trainer.processing_class, CLASSES)(images)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    double = trainer.model.double()
    exact = ZeroShotClassifier(merged(double), trainer.processing_class, CLASSES)(images.double())
    there = ZeroShotClassifier(double, trainer.processing_class, CLASSES)(images.double())
    torch.testing.assert_close(exact, there, rtol=1e-12, atol=1e-12)
    trainer.model.float()


@pytest.mark.parametrize("step", [4, 8])
def test_a_run_with_adapters_resumes_bit_for_bit(trained, step, tmp_path):
    folder, trainer = trained
    model = add_lora(load_dual_encoder(str(folder / "vanilla"))[0], rank=2, alpha=4, seed=9)
    again = make_trainer(tmp_path, model)
    again.train(resume_from_checkpoint=str(folder / "run" / f"checkpoint-{step}"))
    for name, weight in weights(again.model).items():
        assert torch.equal(weight, dict(trainer.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"alpha": 8}, "adapter.lora_alpha 4 there, 8 here"),
        ({"base": 3}, r"adapter_base \w+ there, \w+ here"),
    ],
    ids=["alpha", "base"],
)
def test_resuming_with_another_adapter_or_base_is_refused(trained, tmp_path, change, line):
    folder, _ = trained
    base = make_clip(change["base"])[0] if "base" in change else load_dual_encoder(str(folder / "vanilla"))[0]
    again = make_trainer(tmp_path, add_lora(base, rank=2, alpha=change.get("alpha", 4)))
    with pytest.raises(InputError, match=line):
        again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-4"))


def test_bad_adapters():
    with pytest.raises(InputError, match="rank of the LoRA adapters is 0, but must be at least 1"):
        add_lora(make_clip(0)[0], rank=0)
    with pytest.raises(InputError, match="alpha of the LoRA adapters is 0, but must be above 0"):
        add_lora(make_clip(0)[0], alpha=0)
    with pytest.raises(InputError, match="Unknown trainable 'text'; known: vision, all"):
        add_lora(make_clip(0)[0], trainable="text")
    with pytest.raises(InputError, match="has adapters already"):
        add_lora(add_lora(make_clip(0)[0]))
    with pytest.raises(InputError, match="Linear isn't a dual encoder"):
        add_lora(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="The vision_model of AlignModel has no layers named as CLIP's are"):
        add_lora(make_family("Align")[0])
    model = make_clip(0)[0]
    model.text_model.encoder.layers = torch.nn.ModuleList()
    with pytest.raises(InputError, match="The text_model of CLIPModel has no layers"):
        add_lora(model, trainable="all")


LAYERS = r"vision_model.*\.(q_proj|v_proj)"
# What of PEFT's adapters is tried: by what a card calls them
OF_PEFT = {
    "LoRA adapters of rank 2, alpha 8": LoraConfig(r=2, target_modules=LAYERS, bias="lora_only"),
    "LoRA adapters of rank 3, alpha 8": LoraConfig(
        r=3, target_modules=LAYERS, modules_to_save=["visual_projection"], use_rslora=True
    ),
    "DoRA adapters of rank 2, alpha 4": LoraConfig(r=2, lora_alpha=4, target_modules=LAYERS, use_dora=True),
    "IA3 adapters": IA3Config(target_modules=LAYERS, feedforward_modules=[]),
    "LOHA adapters": LoHaConfig(r=2, target_modules=LAYERS),
    "OFT adapters": OFTConfig(r=0, oft_block_size=4, target_modules=LAYERS),
    "VERA adapters": VeraConfig(r=2, target_modules=LAYERS),
    "LN_TUNING adapters": LNTuningConfig(target_modules=r"vision_model.*layer_norm1"),
}


@pytest.mark.parametrize("called", OF_PEFT)
def test_any_adapters_of_peft_train_resume_and_load(tmp_path, images, called):
    base, processor = make_clip(0)
    save_finished(base, processor, tmp_path / "base")

    def make():
        torch.manual_seed(0)
        return get_peft_model(load_dual_encoder(str(tmp_path / "base"))[0], copy.deepcopy(OF_PEFT[called]))

    assert hash_weights(plain_weights(make())) == hash_weights(base.state_dict())
    whole = make_trainer(tmp_path / "run", make(), save_strategy="steps", save_steps=4)
    whole.train()
    again = make_trainer(tmp_path / "again", make())
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for name, weight in weights(again.model).items():
        assert torch.equal(weight, dict(whole.model.named_parameters())[name]), name

    save_finished(whole.model, processor, tmp_path / "run" / "adapter")
    whole.describe(tmp_path / "run" / "adapter")
    run = ModelFolder(tmp_path / "run" / "adapter").run
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"{called.partition(' ')[0]} adapters for a `CLIPModel`, of which the vision tower was" in card
    assert run["adapter"] == called and run["target"]["parameters"] == base.num_parameters()
    proxy = load_proxy(str(tmp_path / "run" / "adapter")).with_classes(CLASSES)
    expected = ZeroShotClassifier(whole.model.eval(), processor, CLASSES)(images)
    torch.testing.assert_close(proxy(images), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, ZeroShotClassifier(base, processor, CLASSES)(images), atol=1e-3)
    assert hash_weights(proxy.model.state_dict()) == hash_weights(merged(whole.model).state_dict())


@pytest.mark.parametrize("called", [called for called in OF_PEFT if "rank 2, alpha 8" not in called])
def test_the_original_has_no_adapters(images, called):
    """As objectives ask it that need the vanilla model, also of adapters that were trained before."""
    base, processor = make_clip(0)
    expected = ZeroShotClassifier(base, processor, CLASSES)(images)
    adapted = get_peft_model(make_clip(0)[0], copy.deepcopy(OF_PEFT[called]))
    with torch.no_grad():
        for weight in trained_weights(adapted).values():
            weight.add_(0.3 * torch.randn_like(weight))
    classifier = ZeroShotClassifier(adapted, processor, CLASSES)
    assert not torch.allclose(classifier(images), expected, atol=1e-3)
    torch.testing.assert_close(frozen_copy(classifier)(images), expected)


def test_prompts_for_language_models_are_refused(tmp_path):
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, token_dim=16, num_layers=1, num_attention_heads=2
    )
    with pytest.raises(InputError, match="PROMPT_TUNING adapters learn prompts .* such as LORA, IA3 or LOHA"):
        make_trainer(tmp_path, get_peft_model(make_clip(0)[0], config))


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of the adapter that was trained, and beside it what it is an adapter of."""
    folder, _ = trained
    shutil.copytree(folder / "vanilla", tmp_path / "vanilla")
    return shutil.copytree(folder / "adapter", tmp_path / "adapter")


def rewrite(adapter, **values):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapter_is_found_its_base(trained, adapter, images):
    """By its path, or by its name alone, as hpt leaves it for others, beside the adapter; named as it is asked for."""
    folder, trainer = trained
    expected = ZeroShotClassifier(trainer.model.eval(), trainer.processing_class, CLASSES)(images)
    for base in (str(folder / "vanilla"), "vanilla"):
        rewrite(adapter, base_model_name_or_path=base)
        name, proxy = load_named(parse_model(f"mine={adapter}"), torch.device("cpu"))
        torch.testing.assert_close(proxy.with_classes(CLASSES)(images), expected, rtol=1e-5, atol=1e-5)
        assert (name, proxy.model.name_or_path, proxy.model.config._commit_hash) == ("mine", str(adapter), None)
        assert type(proxy.model) is CLIPModel


def test_the_path_of_a_base_that_is_written_into_an_adapter_counts(adapter, tmp_path):
    """Before the one that hpt noted where it trained."""
    (adapter / BASE_FILE).write_text(str(shutil.copytree(tmp_path / "vanilla", tmp_path / "noted")))
    for base, expected in {"vanilla": "noted", str(tmp_path / "vanilla"): "vanilla"}.items():
        rewrite(adapter, base_model_name_or_path=base)
        assert read_adapter(str(adapter), None)[0].base_model_name_or_path == str(tmp_path / expected)


def test_an_adapter_of_the_hub_has_the_processor_of_its_base(trained, hub, images):
    folder, trainer = trained
    pushed = hub.root / "models" / "me"
    shutil.copytree(folder / "vanilla", pushed / "vanilla")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (pushed / "adapter").mkdir(exist_ok=True)
        shutil.copy(folder / "adapter" / name, pushed / "adapter" / name)
    rewrite(pushed / "adapter", base_model_name_or_path="me/vanilla")
    proxy = load_proxy("me/adapter")
    expected = ZeroShotClassifier(trainer.model.eval(), trainer.processing_class, CLASSES)(images)
    torch.testing.assert_close(proxy.with_classes(CLASSES)(images), expected, rtol=1e-5, atol=1e-5)
    assert proxy.model.config._commit_hash


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda folder: rewrite(folder, base_model_name_or_path="gone/base/model"),
            "is an adapter, and its base can't be had. Can't load the model 'gone/base/model': there is no such",
        ),
        (
            lambda folder: rewrite(folder, base_model_name_or_path=None),
            "adapter whose adapter_config.json doesn't say its base_model_name_or_path",
        ),
        (
            lambda folder: rewrite(folder, r=3),
            r"of another shape \(base_model.model.vision_model\S+ \(2, 16\), not \(3, 16\)",
        ),
        (lambda folder: rewrite(folder, target_modules="nothing"), "doesn't fit its base .*: .*nothing"),
        (lambda folder: rewrite(folder, target_modules=r"text_model.*q_proj"), r"2 missing .*; 24 unexpected "),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    ],
    ids=["no base", "no name of a base", "another rank", "no layer", "another layer", "no weights"],
)
def test_adapters_that_do_not_fit_are_refused(adapter, spoil, line):
    spoil(adapter)
    with pytest.raises(InputError, match=line) as error:
        load_proxy(str(adapter))
    assert "\n" not in str(error.value)


def test_adapters_that_do_not_train_are_refused(tmp_path, trained):
    folder, _ = trained
    frozen = PeftModel.from_pretrained(CLIPModel.from_pretrained(folder / "vanilla"), folder / "adapter")
    with pytest.raises(InputError, match="Nothing in the target trains: load adapters with is_trainable=True"):
        make_trainer(tmp_path, frozen)


@pytest.mark.parametrize(("trainable", "layers"), [("vision", 12), ("all", 24)])
def test_layers_of_other_names_are_adapted(trainable, layers):
    """Six in each of the two layers of a ViT and of a BERT; their poolers and projections stay as they are."""
    adapted = add_lora(make_family("VisionTextDualEncoder")[0], rank=2, trainable=trainable)
    assert len(trained_weights(adapted)) == 2 * layers


def test_siglip_can_be_adapted():
    from transformers import SiglipConfig

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = small | {"image_size": 16, "patch_size": 8}
    model = AutoModel.from_config(SiglipConfig(text_config=small | {"vocab_size": 20}, vision_config=vision))
    assert len(trained_weights(add_lora(model, rank=2))) == 12
