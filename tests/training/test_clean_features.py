"""What frozen models make of clean images is computed once, and a run is what it would be without."""

import shutil
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from helpers import CLASSES, TerminateAt, assert_same, make_clip, make_dataset, make_trainer, weights
from huggingface_hub import constants
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from hpt import OBJECTIVES, HPTConfig, InputError, Mixture, ZeroShotClassifier
from hpt.attacks import AttackResult
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.errors import WriteFailed
from hpt.training import clean_features, kept_rows
from hpt.training.checkpoints import read_manifest
from hpt.training.clean_features import COLUMN
from hpt.training.data_inputs import check_sets
from hpt.training.keeping import cache_folder
from hpt.training.objectives import RobustTransfer
from hpt.training.sums import make_objective


UNSEEN = {"logging_strategy": "no"}  # a logged step asks the proxy about adversarial images


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home of the Hub, which has the features."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_proxy(seed=1, dtype=torch.float32, **settings) -> ZeroShotClassifier:
    model, processor = make_clip(seed, patch_size=4)
    return ZeroShotClassifier(model.to(dtype), processor, **settings)


def function(images):
    return images.mean((2, 3))


def without_features(batch: dict) -> dict:
    """A batch whose step asks the models about clean images."""
    return {name: values for name, values in batch.items() if not name.startswith(COLUMN)}


@contextmanager
def images_seen(*models):
    """The images that the towers of models are given within, by number."""
    seen, handles = Counter(), []
    for number, model in enumerate(models):
        tower = model.family.towers(model.model)[0]
        handles.append(tower.register_forward_hook(lambda *given, at=number: seen.update({at: len(given[-1][0])})))
    yield seen
    for handle in handles:
        handle.remove()


def make_step(trainer, batch, objective):
    step = trainer._make_step(batch, objective)
    noise = torch.rand(step.images.shape, generator=torch.Generator().manual_seed(0))
    step.attacked = AttackResult((step.images + 0.1 * noise).clamp(0, 1), torch.zeros(len(noise), dtype=torch.bool))
    return step


# Values


@pytest.mark.parametrize("text", ["anchor", "clean_distillation", "fare", "agft", "0.5*anchor + fare"])
def test_losses_are_those_without(tmp_path, text):
    """Also of several proxies, one of which is a function, and one the original."""
    proxies = [make_proxy(), function, "original", make_proxy(2)]
    weights = [1, 2, 3, 4] if make_objective(text).needs_proxy else None
    trainer = make_trainer(tmp_path, proxy=proxies, proxy_weights=weights, anchor_objective=text)
    trainer.prepare()
    objective = trainer.objectives["anchor"]
    dual = [trainer.original, *(part for part in trainer.proxy.proxies if isinstance(part, ZeroShotClassifier))]
    for batch in trainer.get_train_dataloader():
        with images_seen(*dual) as seen:
            losses = objective.losses(make_step(trainer, batch, objective))
        assert not seen
        with images_seen(*dual) as seen:
            expected = objective.losses(make_step(trainer, without_features(batch), objective))
        assert seen
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_an_objective_that_asks_for_patches_is_computed_as_ever(tmp_path):
    """Beside one whose features are kept for the other stage."""
    trainer = make_trainer(tmp_path, anchor_objective="fare", objective="tga_zsr + fare", proxy=None)
    trainer.prepare()
    batch, objective = next(iter(trainer.get_train_dataloader())), trainer.objectives["transfer"]
    with images_seen(trainer.original) as seen:
        losses = objective.losses(make_step(trainer, batch, objective))
    assert seen[0] == len(losses)
    assert torch.equal(losses, objective.losses(make_step(trainer, without_features(batch), objective)))


@pytest.mark.parametrize("settings", [{}, {"dataloader_num_workers": 1}], ids=str)
def test_a_run_is_nearly_that_without(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(kept_rows, "CHUNK", 8)
    monkeypatch.setattr(clean_features, "BATCH", 4)
    runs = []
    for cache in ("auto", "false"):
        target = make_clip(0)[0].double()
        proxy = make_proxy(dtype=torch.float64)
        trainer = make_trainer(tmp_path / cache, target, proxy=proxy, cache_clean=cache, **settings)
        trainer.train()
        losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        runs.append(weights(trainer.model) | {"losses": losses})
    assert_same(*runs, atol=1e-6)


# Once


def test_a_run_asks_about_each_image_once_and_the_next_run_never(tmp_path, home):
    for number, passes in enumerate((12, 0)):
        trainer = make_trainer(tmp_path / str(number), transfer_epochs=1, seed=number, max_steps=6, **UNSEEN)
        with images_seen(trainer.proxy) as seen:
            trainer.train()
        assert seen[0] == passes
    (folder,) = cache_folder().iterdir()
    assert [file.name for file in folder.iterdir()] == ["rows.npy"]
    assert folder.is_relative_to(home)


def test_a_run_without_asks_in_each_epoch(tmp_path):
    trainer = make_trainer(tmp_path, transfer_epochs=1, max_steps=6, cache_clean=False, **UNSEEN)
    with images_seen(trainer.proxy) as seen:
        trainer.train()
    assert seen[0] == 24 and not cache_folder().exists()


def test_a_run_that_goes_on_after_the_features_were_deleted_is_the_uninterrupted_one(tmp_path, home):
    whole = make_trainer(tmp_path / "whole", save_strategy="epoch")
    whole.train()
    cut = make_trainer(tmp_path / "cut")
    cut.add_callback(TerminateAt(4))
    with pytest.raises(SystemExit):
        cut.train()
    shutil.rmtree(home)
    with_cache = make_trainer(tmp_path / "cut", save_strategy="epoch")
    with_cache.train(resume_from_checkpoint="last")
    assert_same(weights(with_cache.model), weights(whole.model))
    launches = [read_manifest(tmp_path / run / "checkpoint-12")["launch"] for run in ("whole", "cut")]
    assert launches[0] == launches[1] and len(launches[0]["clean_features"]) == 16


def test_a_run_that_goes_on_without_them_is_told_that_it_is_not_so_bit_for_bit(tmp_path, caplog):
    make_trainer(tmp_path, save_strategy="epoch", max_steps=9).train()
    trainer = make_trainer(tmp_path, max_steps=9, cache_clean="false")
    trainer.train(resume_from_checkpoint="last")
    assert "clean_features" in caplog.text and "not bit for bit" in caplog.text


def test_a_stage_that_does_not_ask_needs_none(tmp_path, home):
    make_trainer(tmp_path, save_strategy="epoch", max_steps=9).train()
    shutil.rmtree(home)
    make_trainer(tmp_path).train(resume_from_checkpoint="last")
    assert not home.exists()


# What they depend on


def squashed():
    return Benchmark("random", "train", make_dataset(), CLASSES, "{}", ImageTransform(resize=12, crop=12))


def changed(change) -> ZeroShotClassifier:
    """The proxy with its weights, after a change to its model."""
    proxy = make_proxy()
    change(proxy.model)
    return proxy


def with_other_activations(model):
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.SiLU()


CHANGES = {
    "weights": (lambda: {"proxy": make_proxy(2)}, True),
    "dtype": (lambda: {"proxy": make_proxy(dtype=torch.bfloat16)}, True),
    "pixel statistics": (lambda: {"proxy": make_proxy(image_mean=[0.4, 0.5, 0.5])}, True),
    "activation": (lambda: {"proxy": changed(with_other_activations)}, True),
    "attention": (lambda: {"proxy": changed(lambda model: model.set_attn_implementation("eager"))}, True),
    "compiled": (lambda: {"proxy": changed(lambda model: model.vision_model.compile())}, True),
    "the same again": (lambda: {"proxy": make_proxy()}, False),
    "images": (lambda: {"dataset": make_dataset(seed=1)}, True),
    "order": (lambda: {"dataset": make_dataset().select([1, 0, *range(2, 12)])}, True),
    "fewer images": (lambda: {"dataset": make_dataset().select(range(11))}, True),
    "transform": (lambda: {"dataset": squashed()}, True),
    "another model": (lambda: {"objective": "agft"}, True),
    "prompts": (lambda: {"prompt_template": "a {}"}, False),
    "seed": (lambda: {"seed": 3}, False),
    "batch": (lambda: {"per_device_train_batch_size": 3}, False),
    "objective": (lambda: {"anchor_objective": "clean_distillation"}, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_they_depend_on_stands_in_their_name(tmp_path, change):
    settings, changes = CHANGES[change]
    before, after = make_trainer(tmp_path), make_trainer(tmp_path, **settings())
    assert (before._clean.fingerprint != after._clean.fingerprint) is changes


def test_how_exactly_a_device_computes_stands_in_their_name(tmp_path):
    """Which `torch_compile` sets on a GPU, and so `tf32` of the settings doesn't say."""
    before, products = make_trainer(tmp_path)._clean.fingerprint, torch.backends.mkldnn.matmul
    products.fp32_precision = "bf16"
    try:
        assert make_trainer(tmp_path)._clean.fingerprint != before
    finally:
        products.fp32_precision = "none"
    assert make_trainer(tmp_path)._clean.fingerprint == before


def test_weights_that_change_between_two_trainings_are_noticed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=6, **UNSEEN)
    trainer.train()
    before = trainer._clean.fingerprint
    with torch.no_grad():
        trainer.proxy.model.visual_projection.weight.mul_(2)
    with images_seen(trainer.proxy) as seen:
        trainer.train()
    assert trainer._clean.fingerprint != before and seen[0] == 12


def test_what_a_run_is_does_not_depend_on_them(tmp_path):
    on, off = (make_trainer(tmp_path, cache_clean=cache) for cache in ("auto", "false"))
    assert on._clean.fingerprint and off._clean.fingerprint is None
    assert on.mathematics() == off.mathematics()


# When


class Own(RobustTransfer):
    """An objective of a user's own, which says that it asks."""

    asks_about_clean = ("proxy",)

    def __call__(self, step):
        return self._divergence(step, step.adversarial, step.images)


SETTINGS = {
    "two epochs": ({}, 1),
    "one epoch": ({"anchor_epochs": 1}, 0),
    "one epoch of each stage": ({"anchor_epochs": 1, "transfer_epochs": 1, "objective": "clean_distillation"}, 1),
    "cut off before the second ends": ({"max_steps": 5}, 0),
    "cut off after the second": ({"max_steps": 6}, 1),
    "off": ({"cache_clean": False}, 0),
    "on": ({"cache_clean": True, "anchor_epochs": 1}, 1),
    "two models": ({"objective": "agft"}, 2),
    "the original as proxy": ({"proxy": "original", "anchor_objective": "0.5*anchor + fare"}, 1),
    "several proxies": ({"proxy": [make_proxy(), function, make_proxy(2)]}, 2),
    "adversarial images alone": ({"anchor_objective": "pmg_aft"}, 0),
    "patches": ({"anchor_objective": "tga_zsr"}, 0),
    "a function": ({"proxy": function}, 0),
    "adapters within": ({"proxy": changed(partial(inject_adapter_in_model, LoraConfig(target_modules=["fc1"])))}, 0),
    "augmentation": ({"augmentation": "crop_flip"}, 0),
    "own objective": ({"objective": "own", "anchor_epochs": 0}, 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_of_which_models_they_are_kept(tmp_path, name, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "own", Own)
    settings, number = SETTINGS[name]
    assert len(make_trainer(tmp_path, **settings)._clean._models) == number


def stream():
    return make_dataset(40).to_iterable_dataset(num_shards=2)


def mixture():
    return Mixture({"a": make_dataset(), "b": make_dataset()})


KNOWN_FROM_SETTINGS = {
    "augmentation": ({"augmentation": "crop_flip"}, "augmentation is 'crop_flip', which changes them in each epoch"),
    "stream": ({"dataset": stream, "steps_per_epoch": 5}, "a stream is never read in the same order twice"),
    "nobody asks": ({"anchor_objective": "hpt"}, "no objective of this run asks a frozen dual encoder"),
    "patches": ({"anchor_objective": "tga_zsr"}, "no objective of this run asks a frozen dual encoder"),
}
KNOWN_FROM_INPUTS = {
    "mixture": ({"dataset": mixture}, "isn't done for .* a mixture"),
    "function": ({"proxy": function}, "no objective of this run asks a frozen dual encoder"),
}


@pytest.mark.parametrize("name", KNOWN_FROM_SETTINGS | KNOWN_FROM_INPUTS)
def test_where_they_cannot_be_kept_they_are_not_and_asking_for_it_is_refused(tmp_path, name):
    settings, message = (KNOWN_FROM_SETTINGS | KNOWN_FROM_INPUTS)[name]
    settings = {name: value() if name == "dataset" else value for name, value in settings.items()}
    assert make_trainer(tmp_path, **settings)._clean.fingerprint is None
    with pytest.raises(InputError, match=f"cache_clean is true, .*{message}"):
        make_trainer(tmp_path, cache_clean=True, **settings)


@pytest.mark.parametrize("name", KNOWN_FROM_SETTINGS)
def test_what_settings_say_is_refused_with_them(name):
    settings, message = KNOWN_FROM_SETTINGS[name]
    settings = {name: value for name, value in settings.items() if name != "dataset"}
    HPTConfig(output_dir="unused", use_cpu=True, **settings)
    with pytest.raises(InputError, match=f"cache_clean is true, .*{message}"):
        HPTConfig(output_dir="unused", use_cpu=True, cache_clean=True, **settings)


def test_a_home_that_takes_no_files_is_refused_with_the_settings(home):
    home.write_text("a file")
    HPTConfig(output_dir="unused", use_cpu=True)
    with pytest.raises(InputError, match="Features of clean images must be kept. .*Set HF_HOME"):
        HPTConfig(output_dir="unused", use_cpu=True, cache_clean=True)


def test_a_mixture_is_refused_with_the_sets():
    args = partial(HPTConfig, output_dir="unused", use_cpu=True)
    check_sets(mixture(), None, [], args())
    with pytest.raises(InputError, match="cache_clean is true, .*isn't done for .* a mixture"):
        check_sets(mixture(), None, [], args(cache_clean=True))


def test_the_setting_may_be_written_as_text_or_as_a_truth_value():
    for value, meant in ((True, "true"), ("False", "false"), ("auto", "auto")):
        assert HPTConfig(output_dir="unused", use_cpu=True, cache_clean=value).cache_clean == meant
    with pytest.raises(InputError, match="Unknown cache_clean 'always'; known: auto, true, false"):
        HPTConfig(output_dir="unused", use_cpu=True, cache_clean="always")


def test_without_a_place_to_keep_them_a_run_does_without(tmp_path, home, caplog):
    home.write_text("a file")
    trainer = make_trainer(tmp_path / "run", max_steps=6)
    assert "Features of clean images must be kept" in caplog.text and "Set HF_HOME" in caplog.text
    trainer.train()
    with pytest.raises(InputError, match="Features of clean images must be kept. .*Set HF_HOME"):
        make_trainer(tmp_path / "run", cache_clean=True)


def test_a_full_disk_is_said_with_what_to_do(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise WriteFailed("rows.npy can't be written: No space left on device.")

    monkeypatch.setattr(clean_features, "keep_rows", full)
    with pytest.raises(WriteFailed, match="No space left on device. Make room, or give cache_clean=false"):
        make_trainer(tmp_path).train()


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.proxy.model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="makes of a training image is NaN or infinite"):
        trainer.train()
    assert not list(cache_folder().rglob("*.npy"))
