import json
import math
import shutil
import signal
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import CLASSES, make_clip, make_dataset
from transformers import CLIPModel, CLIPProcessor, SiglipModel, SiglipProcessor, VisionTextDualEncoderModel

from hpt import InputError, load_benchmark, load_proxy
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.data.mixtures import Mixture
from hpt.evaluation.comparison import measure
from hpt.evaluation.subject import Subject
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import normalizers
from hpt.training.pretraining import (
    ContrastiveTrainer,
    PretrainingConfig,
    build_siglip,
    byte_tokenizer,
    contrastive_loss,
    is_finished,
    pretrain,
    share_of_positives,
    sigmoid_loss,
)


def pretraining_config(folder, **settings):
    tiny = {"image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "text_hidden_size": 16, "projection_dim": 8}
    run = {"num_train_epochs": 1, "max_train_samples": 60, "disable_tqdm": True, "use_cpu": True, "warmup_steps": 1}
    return PretrainingConfig(output_dir=str(folder), **(tiny | run | settings))


def test_all_pairs_of_a_class_are_positives():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 1])
    total = 0.0
    for matrix in (logits, logits.T):
        for row in range(5):
            positives = [column for column in range(5) if labels[column] == labels[row]]
            log_probabilities = matrix[row] - matrix[row].exp().sum().log()
            total -= sum(log_probabilities[column] for column in positives) / len(positives)
    assert contrastive_loss(logits, labels).item() == pytest.approx(total.item() / 10)


def test_sigmoid_loss_scores_each_pair_by_itself():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2])
    total = 0.0
    for row in range(4):
        for column in range(4):
            probability = 1 / (1 + math.exp(-logits[row, column]))
            total -= math.log(probability if labels[row] == labels[column] else 1 - probability)
    assert sigmoid_loss(logits, labels).item() == pytest.approx(total / 4)


@pytest.mark.parametrize("sets", ["one", "one_set", "mixed"])
def test_a_siglip_begins_at_the_log_odds_of_a_positive_pair(tmp_path, sets):
    """Of ten classes a tenth of all pairs is positive, and of one class all; an image's own caption always is."""
    config = pretraining_config(tmp_path, family="siglip", per_device_train_batch_size=20)
    data = load_benchmark("digits", "train").subset(400)
    same = Dataset.from_dict(
        {"image": data.dataset["image"][:400], "label": [0] * 400}, features=data.dataset.features
    )
    expected = 1 / 20 + 19 / 20 * 1 / 10
    if sets != "one":
        data = Mixture([data, replace(data, dataset=same, name="same")], batches=sets)
        expected = (expected + 1) / 2 if sets == "one_set" else 1 / 20 + 19 / 20 * (0.55**2 + 9 * 0.05**2)
    model = ContrastiveTrainer(*build_siglip(config), config, data).model
    assert model.logit_bias.sigmoid().item() == pytest.approx(expected, rel=0.1)
    assert model.logit_scale.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("rows", [6, 7, 9])
def test_positives_are_counted_over_all_pairs_also_those_of_a_smaller_last_batch(rows):
    labels = np.random.default_rng(rows).integers(0, 3, rows)
    pairs = [(row, other) for row in range(rows) for other in range(rows) if row // 3 == other // 3]
    expected = sum(labels[row] == labels[other] for row, other in pairs) / len(pairs)
    assert share_of_positives(labels, 3) == pytest.approx(expected)


def test_a_siglip_of_one_class_begins_at_a_finite_bias(tmp_path):
    data = load_benchmark("digits", "train")
    data = data.rows(np.flatnonzero(np.asarray(data.dataset["label"][:]) == 3))
    config = pretraining_config(tmp_path, family="siglip")
    assert math.isfinite(ContrastiveTrainer(*build_siglip(config), config, data).model.logit_bias.item())


def test_each_caption_is_encoded_once(tmp_path):
    trainer = ContrastiveTrainer(*make_clip(0), pretraining_config(tmp_path), load_benchmark("digits", "train"))
    trainer.model.eval()
    encode, encoded = trainer.model.get_text_features, []
    trainer.model.get_text_features = lambda **tokens: (encoded.append(len(tokens["input_ids"])), encode(**tokens))[1]
    images, captions = torch.rand(4, 3, 16, 16), torch.tensor([3, 0, 3, 21])
    with torch.no_grad():
        logits = trainer._logits(images, captions)
        assert encoded == [3]
        tokens = trainer.classifier.processor.tokenizer(
            [trainer.captions[index] for index in captions], padding=True, return_tensors="pt"
        )
        pixels = (images - trainer.classifier.image_mean) / trainer.classifier.image_std
        expected = trainer.model(pixel_values=pixels, **tokens).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert [trainer.captions[index] for index in (0, 21)] == ["This is a photo of a zero", "one"]


def test_augmentation_mirrors_and_shifts(tmp_path):
    trainer = ContrastiveTrainer(
        *make_clip(0),
        pretraining_config(tmp_path, random_flip=True, random_shift=2),
        load_benchmark("digits", "train"),
    )
    image = torch.rand(3, 6, 8)
    padded = torch.nn.functional.pad(image, [2] * 4)
    possible = [
        mirrored[:, top : top + 6, left : left + 8]
        for mirrored in (padded, padded.flip(-1))
        for top in range(5)
        for left in range(5)
    ]
    augmented = trainer.augment(image.expand(200, 3, 6, 8))
    seen = {next(i for i, view in enumerate(possible) if torch.equal(view, result)) for result in augmented}
    assert len(seen) > 40


def test_tokenizer_tells_any_text_apart(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = byte_tokenizer().from_pretrained(tmp_path)
    assert len(tokenizer) == 514
    texts = ["a cat", "a dog", "é 猫", "CAT"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert len({tuple(tokens) for tokens in ids}) == 4
    assert all(tokens[0] == tokenizer.bos_token_id and tokens[-1] == tokenizer.eos_token_id for tokens in ids)
    assert [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids] == ["a cat", "a dog", "é 猫", "cat"]


@pytest.mark.parametrize(
    ("family", "learning_rate", "model_class", "processor_class"),
    [("clip", 5e-3, CLIPModel, CLIPProcessor), ("siglip", 2e-3, SiglipModel, SiglipProcessor)],
)
def test_pretrained_folder_loads_and_learned(tmp_path, family, learning_rate, model_class, processor_class):
    folder = tmp_path / family
    assert not is_finished(folder)
    run = {"num_train_epochs": 5, "max_train_samples": None, "per_device_train_batch_size": 16}
    pretrain(pretraining_config(folder, family=family, learning_rate=learning_rate, **run))
    assert is_finished(folder)
    test = load_benchmark("digits")
    (row,) = measure([Subject(load_proxy(str(folder)))], test)
    assert row.accuracy > 0.25  # chance is 0.1
    model, processor = model_class.from_pretrained(folder), processor_class.from_pretrained(folder)
    assert load_proxy(str(folder)).model.config.model_type == family
    if family == "clip":
        assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    assert not any(file.suffix in (".bin", ".pt", ".pth") for file in folder.iterdir())


TWO_TOWERS = {"family": "vision_text_dual_encoder", "image_size": 32, "vision_hidden_size": 32, "vision_layers": 1}


@pytest.mark.parametrize(("tower", "patch_size"), [("resnet", 8), ("convnext", 4), ("vit", 16)])
def test_towers_of_other_architectures_are_pretrained(tmp_path, tower, patch_size):
    """The ResNet, which learns fast, beyond chance, with its statistics; the others are saved as they are trained."""
    run = {"num_train_epochs": 3, "max_train_samples": None, "per_device_train_batch_size": 16, "learning_rate": 2e-3}
    run = run if tower == "resnet" else {}
    settings = TWO_TOWERS | {"vision_tower": tower, "patch_size": patch_size} | run
    pretrain(pretraining_config(tmp_path, **settings))
    proxy = load_proxy(str(tmp_path))
    assert proxy.model.config.vision_config.model_type == tower and proxy.image_size == 32
    loaded = VisionTextDualEncoderModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in proxy.model.state_dict().items())
    if tower == "resnet":
        (row,) = measure([Subject(proxy)], load_benchmark("digits"))
        assert row.accuracy > 0.3  # chance is 0.1
        assert all(layer.running_mean.abs().max() > 0 for layer in normalizers(proxy.model))


def test_a_cut_off_pretraining_continues(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(pretraining_config(whole, num_train_epochs=2, save_strategy="epoch"))
    pretrain(pretraining_config(cut, num_train_epochs=2, save_strategy="epoch"))
    shutil.rmtree(cut / "checkpoint-2")
    (cut / "config.json").unlink()
    pretrain(pretraining_config(cut, num_train_epochs=2, save_strategy="epoch"))
    first, second = (CLIPModel.from_pretrained(folder).state_dict() for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


WORKERS = {
    "no workers": {},
    "two workers": {"dataloader_num_workers": 2},
    "two that persist": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


def note_steps(trainer) -> list:
    """What the loss of each step is computed on from here on: sample ids and pixels."""
    steps, compute = [], trainer.compute_loss

    def compute_loss(model, inputs, *given, **named):
        steps.append((inputs["sample_ids"].clone(), inputs["pixel_values"].clone()))
        return compute(model, inputs, *given, **named)

    trainer.compute_loss = compute_loss
    return steps


def images_by_id(steps):
    return {sample_id: image for ids, images in steps for sample_id, image in zip(ids.tolist(), images, strict=True)}


def make_augmented_trainer(folder, sets, **settings):
    args = pretraining_config(folder, augmentation="crop_flip", **settings)
    digits = load_benchmark("digits", "train").subset(48)
    if sets != "one set":
        digits = Mixture({"first": digits.rows(range(24)), "second": digits.rows(range(24, 48))}, batches=sets)
    trainer = ContrastiveTrainer(*make_clip(0), args, digits)
    return trainer, note_steps(trainer)


@pytest.mark.parametrize("sets", ["one set", "one_set", "mixed"])
@pytest.mark.parametrize("workers", WORKERS)
def test_each_epoch_is_augmented_anew_and_goes_on_bit_for_bit(tmp_path, workers, sets):
    """From within the second epoch and from its beginning, with the images that `CropFlip` draws for an epoch."""
    settings = WORKERS[workers] | {"num_train_epochs": 3, "per_device_train_batch_size": 12}
    whole, steps = make_augmented_trainer(tmp_path / "whole", sets, save_strategy="steps", save_steps=1, **settings)
    whole.train()
    epochs = [images_by_id(steps[first : first + 4]) for first in (0, 4, 8)]
    assert len(steps) == 12 and [len(epoch) for epoch in epochs] == [48, 48, 48]
    same = [sum(one[number].equal(other[number]) for number in one) for one, other in pairwise(epochs)]
    assert max(same) < 12  # but for uniform images, every one is another part in another epoch
    if sets == "one set":
        whole.train_dataset.augmentation.set_epoch(1)
        drawn = {item["sample_ids"]: item["pixel_values"] for item in whole.train_dataset}
        assert all(drawn[number].equal(image) for number, image in epochs[1].items())
    for step in (4, 6):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again, rest = make_augmented_trainer(folder, sets, **settings)
        again.train(resume_from_checkpoint="last")
        assert len(rest) == 12 - step
        assert all(one[1].equal(other[1]) for one, other in zip(rest, steps[step:], strict=True))
        trained = again.model.state_dict()
        assert all(torch.equal(weight, trained[name]) for name, weight in whole.model.state_dict().items())


def test_a_run_goes_on_with_its_own_augmentation_alone(tmp_path):
    pretrain(pretraining_config(tmp_path, save_strategy="epoch", num_train_epochs=2))
    (tmp_path / "config.json").unlink()
    changed = pretraining_config(tmp_path, augmentation="crop_flip", num_train_epochs=2)
    with pytest.raises(InputError, match=r"\(augmentation none there, crop_flip here\): use the same"):
        pretrain(changed)
    manifest_file = tmp_path / "checkpoint-2" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    del manifest["digest"], manifest["settings"]["augmentation"]  # as of hpt 0.7.0
    manifest_file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"\(augmentation none there, crop_flip here\): use the same"):
        pretrain(changed)
    pretrain(pretraining_config(tmp_path, num_train_epochs=2))
    assert is_finished(tmp_path)


def test_a_finished_model_is_written_over_only_if_that_is_said(tmp_path):
    pretrain(pretraining_config(tmp_path, save_strategy="epoch"))
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="has a finished model: give another output_dir, or --overwrite"):
        pretrain(pretraining_config(tmp_path, save_strategy="epoch", seed=1))
    assert (tmp_path / "model.safetensors").read_bytes() == before and (tmp_path / "checkpoint-1").is_dir()
    pretrain(pretraining_config(tmp_path, seed=1, overwrite=True))
    assert is_finished(tmp_path) and not (tmp_path / "checkpoint-1").exists()
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_a_cut_off_pretraining_that_writes_over_another_goes_on_without_saying_so_again(tmp_path, monkeypatch):
    pretrain(pretraining_config(tmp_path, save_strategy="epoch"))
    monkeypatch.setattr("hpt.training.pretraining.save_finished", lambda *given: None)  # killed before it
    pretrain(pretraining_config(tmp_path, save_strategy="epoch", seed=1, overwrite=True))
    assert not is_finished(tmp_path)
    monkeypatch.undo()
    pretrain(pretraining_config(tmp_path, save_strategy="epoch", seed=1))
    assert is_finished(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim_args": "momentum"}, "can't be made of the settings: not enough values to unpack"),
        ({"adam_beta1": 2.0}, "can't be made of the settings: Invalid beta parameter"),
        (
            {"lr_scheduler_kwargs": {"cycles": 2}},
            "can't be made of the settings: .*unexpected keyword argument 'cycles'",
        ),
        ({"per_device_train_batch_size": 64, "dataloader_drop_last": True}, "leaves none: a batch has 64"),
    ],
    ids=str,
)
def test_overwriting_deletes_nothing_where_the_run_cannot_begin(tmp_path, settings, message):
    (tmp_path / "checkpoint-1").mkdir()
    for file in ("config.json", "checkpoint-1/weights"):
        (tmp_path / file).write_text("there")
    with pytest.raises(InputError, match=message):
        pretrain(pretraining_config(tmp_path, overwrite=True, **settings))
    assert all((tmp_path / file).read_text() == "there" for file in ("config.json", "checkpoint-1/weights"))


@pytest.fixture
def sigterm_raises():
    """SIGTERM as an exception, as tests can have it."""

    def leave(number, frame):
        raise SystemExit(number)

    before = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("when", ["after the last step", "in the final save"])
def test_a_signal_once_training_is_done_leaves_the_whole_model(tmp_path, monkeypatch, sigterm_raises, when):
    """Without checkpoints, too, as is the default."""
    owner, name = {
        "after the last step": (ContrastiveTrainer, "_finalize_training"),
        "in the final save": (CLIPModel, "save_pretrained"),
    }[when]
    original = getattr(owner, name)

    def interrupted(*given, **settings):
        result = original(*given, **settings)
        signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(SystemExit):
        pretrain(pretraining_config(tmp_path))
    monkeypatch.undo()
    assert is_finished(tmp_path) and not list(tmp_path.glob("checkpoint-*"))
    ZeroShotClassifier(CLIPModel.from_pretrained(tmp_path), CLIPProcessor.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_shift": -1}, "random_shift is -1, but must be a whole number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan, but must be above 0 and finite"),
        ({"patch_size": 7}, "patch_size 7 doesn't divide image_size 16"),
        ({"vision_heads": 3}, "vision_heads 3 doesn't divide vision_hidden_size 16"),
        ({"augmentation": "flip"}, "^Unknown augmentation 'flip'; known: none, crop_flip.[^\n]*$"),
        ({"family": "flava"}, "Unknown family 'flava'; known: clip, siglip, vision_text_dual_encoder"),
        ({"family": "vision_text_dual_encoder"}, "Unknown vision_tower 'None'; known: convnext, resnet, vit"),
        ({"vision_tower": "resnet"}, "only the family vision_text_dual_encoder has a choice of them"),
        (
            {"family": "vision_text_dual_encoder", "vision_tower": "resnet", "vision_hidden_size": 18},
            "vision_hidden_size is 18, but must be a multiple of 4 for a resnet",
        ),
        ({"train_dataset": "mnist"}, "Unknown benchmark 'mnist'"),
    ],
)
def test_refuses_impossible_shapes(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        pretrain(pretraining_config(tmp_path, **settings))


def test_data_that_cannot_be_trained_on_is_refused_before_training(tmp_path):
    small = pretraining_config(tmp_path, max_train_samples=20, dataloader_drop_last=True)
    with pytest.raises(InputError, match="has 20 images, of which dataloader_drop_last leaves none: a batch has 64"):
        pretrain(small)
    dataset = make_dataset(3)
    images = [dataset[0]["image"], None, dataset[2]["image"]]
    dataset = Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features=dataset.features)
    with pytest.raises(InputError, match="The image in row 1 of gaps can't be used: it is missing"):
        benchmark = Benchmark("gaps", "train", dataset, CLASSES, None, ImageTransform())
        ContrastiveTrainer(*make_clip(0), pretraining_config(tmp_path), benchmark)
