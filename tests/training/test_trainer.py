import copy
import gc
import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CLASSES,
    assert_same,
    make_clip,
    make_dataset,
    make_trainer,
    reference_pgd,
    weights,
    with_other_weights,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel, TrainerCallback

from hpt import InputError, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.training.objectives import Objective
from hpt.training.pretraining import PretrainingConfig, build_siglip
from hpt.training.trainer import NonFiniteLossError


DIAGNOSTICS = ("train_clean_accuracy", "train_robust_accuracy", "proxy_robust_accuracy", "zero_gradient_share")


def logits_of(model, images, text_embeds):
    embeds = model.get_image_features(pixel_values=images).pooler_output
    return model.logit_scale.exp() * F.normalize(embeds, dim=-1) @ text_embeds.T


def reference_run(dataset, ema_decay, pull_ratio, restart=True, kl_direction="proxy_to_target"):
    """GPD with plain tensors: both stages over the rows in order, by the paper's equations, and its ablations.

    In float64: in float32, rounding turns the sign of gradients that are nearly zero, and so attacks, the other way.
    """
    g, b, epochs, batch, eps, step, peaks, warmup = ema_decay, pull_ratio, 2, 4, 8 / 255, 4 / 255, (0.02, 0.1), 1
    target, processor = make_clip(0)
    proxy, _ = make_clip(1, patch_size=4)
    target, proxy = target.double(), proxy.double()
    tokens = processor.tokenizer(
        [f"This is a photo of a {name}" for name in CLASSES], padding=True, return_tensors="pt"
    )
    texts = [F.normalize(m.get_text_features(**tokens).pooler_output, dim=-1).detach() for m in (target, proxy)]
    mean, std = (
        torch.tensor(statistic).view(3, 1, 1)
        for statistic in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )

    def classify(model, text):
        return lambda images: logits_of(model, (images - mean) / std, text)

    T, P = classify(target, texts[0]), classify(proxy, texts[1])
    theta = {n: p for n, p in target.named_parameters() if n.startswith(("vision_model", "visual_projection"))}
    vanilla = {n: p.detach().clone() for n, p in theta.items()}
    ema, velocity = {n: p.clone() for n, p in vanilla.items()}, {}
    images = torch.stack([ImageTransform()(image) for image in dataset["image"]]).double() / 255
    labels = torch.tensor(dataset["label"])
    steps = epochs * len(images) // batch
    for stage in (0, 1):
        for epoch in range(epochs):
            if stage == 1 and epoch > 0:
                for n, p in theta.items():
                    p.data = b * p.data + (1 - b) * ema[n]
            for index in range(len(images) // batch):
                k = epoch * len(images) // batch + index
                cosine = 0.5 * (1 + math.cos(math.pi * (k - warmup) / (steps - warmup)))
                rate = peaks[stage] * (k / warmup if k < warmup else cosine)
                rows = slice(batch * index, batch * (index + 1))
                x, y = images[rows], labels[rows]
                x_a = reference_pgd(T, x, y, eps, 2, step)
                p, t = P(x if stage == 0 else x_a).softmax(-1).detach(), T(x_a).softmax(-1)
                p, t = (p, t) if kl_direction == "proxy_to_target" else (t, p)
                loss = (p * (p.log() - t.log())).sum(-1).mean()
                for (n, w), gradient in zip(
                    theta.items(), torch.autograd.grad(loss, list(theta.values())), strict=True
                ):
                    velocity[n] = gradient if n not in velocity else 0.9 * velocity[n] + gradient
                    w.data = w.data - rate * velocity[n]
            if stage == 0:
                ema = {n: g * ema[n] + (1 - g) * p.data for n, p in theta.items()}
        if stage == 0:
            for n, p in theta.items():
                p.data = vanilla[n].clone() if restart else p.data
            velocity = {}
    return weights(target)


SEQUENTIAL = {"train_sampling_strategy": "sequential", "attack_random_start": False}


@pytest.mark.parametrize(
    "ablation",
    [{}, {"ema_decay": 0.0}, {"pull_ratio": 1.0}, {"restart": False}, {"kl_direction": "target_to_proxy"}],
    ids=str,
)
def test_final_weights_equal_the_equations(tmp_path, ablation):
    rates = {"anchor_learning_rate": 0.02, "learning_rate": 0.1}
    native = Benchmark("random", "train", make_dataset(), CLASSES, None, ImageTransform())
    settings = {"ema_decay": 0.7, "pull_ratio": 0.6} | ablation
    target, proxy = make_clip(0)[0].double(), make_clip(1, patch_size=4)
    proxy = ZeroShotClassifier(proxy[0].double(), proxy[1])
    trainer = make_trainer(tmp_path, target, native, proxy=proxy, **settings, **rates, **SEQUENTIAL)
    start = weights(trainer.model)
    trainer.train()
    assert_same(weights(trainer.model), reference_run(make_dataset(), **settings), atol=1e-6)
    assert max((weights(trainer.model)[name] - start[name]).abs().max() for name in start) > 1e-2


def test_every_trainable_parameter_moves_and_no_other(tmp_path):
    trainer = make_trainer(tmp_path)
    before, proxy_before = weights(trainer.model), copy.deepcopy(trainer.proxy.state_dict())
    trainer.train()
    for name, weight in weights(trainer.model).items():
        trained = name.startswith(("vision_model.", "visual_projection."))
        assert torch.equal(weight, before[name]) != trained, name
    for name, value in trainer.proxy.state_dict().items():
        assert torch.equal(value, proxy_before[name]), name
    assert not any(weight.requires_grad or weight.grad is not None for weight in trainer.proxy.parameters())
    assert not trainer.proxy.model.training


def test_trainable_all_moves_the_text_tower(tmp_path):
    trainer = make_trainer(tmp_path, trainable="all", anchor_epochs=0, transfer_epochs=1)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    still = {name for name in after if torch.equal(after[name], before[name])}
    unseen = {name for name in after if name.endswith("k_proj.bias")}  # softmax doesn't see it
    unseen.add("text_model.embeddings.position_embedding.weight")
    assert still <= unseen


@pytest.mark.parametrize("trainable", ["all", "vision"])
def test_logit_scale_is_clamped_when_it_trains(tmp_path, trainable):
    model, _ = make_clip(0)
    model.logit_scale.data.fill_(math.log(100) + 1)
    make_trainer(tmp_path, model, trainable=trainable, anchor_epochs=0, transfer_epochs=1, learning_rate=1e-6).train()
    expected = math.log(100) + (trainable == "vision")
    assert model.logit_scale.item() == pytest.approx(expected, abs=0.05)


def test_a_siglips_scale_is_not_clamped(tmp_path):
    """It begins above CLIP's limit, and comes with a bias."""
    args = PretrainingConfig(
        output_dir="unused", use_cpu=True, family="siglip", image_size=16, vision_hidden_size=16, text_hidden_size=16
    )
    model, processor = build_siglip(args)
    model.logit_scale.data.fill_(4.765)
    settings = {"trainable": "all", "anchor_epochs": 0, "transfer_epochs": 1, "learning_rate": 1e-6}
    trainer = make_trainer(tmp_path, model, processor=processor, **settings)
    trainer.train()
    assert model.logit_scale.item() == pytest.approx(4.765, abs=0.01)


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """An uninterrupted run with a checkpoint at every step: its folder and final weights."""
    folder = tmp_path_factory.mktemp("full")
    trainer = make_trainer(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    return folder, weights(trainer.model)


@pytest.mark.parametrize("step", range(1, 13))
def test_resuming_at_any_step_changes_nothing(full_run, step):
    folder, expected = full_run
    trainer = with_other_weights(make_trainer(folder, save_strategy="no"))
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert trainer.state.global_step == 12
    assert_same(weights(trainer.model), expected)


def test_checkpoint_is_safe_to_share(full_run):
    folder, _ = full_run
    files = {file.name for file in (folder / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "gpd_state.safetensors", "training_args.json"} <= files
    assert "training_args.bin" not in files
    state = load_file(folder / "checkpoint-4" / "gpd_state.safetensors")
    assert {name.split(".")[0] for name in state} == {"ema", "vanilla"}
    assert {name.split(".")[0] for name in load_file(folder / "checkpoint-8" / "gpd_state.safetensors")} == {"ema"}
    reloaded, report = CLIPModel.from_pretrained(folder / "checkpoint-12", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_resuming_with_other_settings_is_refused(full_run):
    folder, _ = full_run
    trainer = make_trainer(folder, learning_rate=0.25)
    with pytest.raises(InputError, match="learning_rate 0.5 there, 0.25 here"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_resuming_with_another_training_set_is_refused(full_run):
    folder, _ = full_run
    trainer = make_trainer(folder, dataset=make_dataset(24))
    with pytest.raises(
        InputError, match=r"images_per_epoch 12 there, 24 here; train_dataset 12 images, 3 classes, \w+ there, 24"
    ):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_resuming_without_gpd_state_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=3, save_only_model=True).train()
    with pytest.raises(InputError, match="has no gpd_state.safetensors"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulating_eight_batches_of_one_equals_one_of_eight(tmp_path, reduction):
    """Also with a random start: noise belongs to the image's place in the run."""
    rate = 0.5 if reduction == "mean" else 0.05
    settings = {"kl_reduction": reduction, "learning_rate": rate, "train_sampling_strategy": "sequential"}
    runs = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = make_trainer(
            tmp_path,
            make_clip(0)[0].double(),
            make_dataset(16),
            proxy=ZeroShotClassifier(make_clip(1, patch_size=4)[0].double(), make_clip()[1]),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        trainer.train()
        runs.append(weights(trainer.model))
    assert_same(*runs, atol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_short_micro_batch_weighs_by_its_images(tmp_path, reduction):
    """The last of an epoch's three steps has 2 + 1 images; weights and log are those of batches of 4."""
    runs = []
    for batch, accumulation in ((4, 1), (2, 2)):
        trainer = make_trainer(
            tmp_path,
            make_clip(0)[0].double(),
            make_dataset(11),
            proxy=ZeroShotClassifier(make_clip(1, patch_size=4)[0].double(), make_clip()[1]),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            kl_reduction=reduction,
            learning_rate=0.5 if reduction == "mean" else 0.05,
        )
        trainer.train()
        logged = [[entry[key] for key in ("loss", *DIAGNOSTICS)] for entry in trainer.state.log_history[:-1]]
        runs.append(weights(trainer.model) | {"log": torch.tensor(logged)})
    assert runs[0]["log"].shape == (12, 5)
    assert_same(*runs, atol=1e-6)


def test_plain_hpt_has_no_ema_and_no_pull(tmp_path):
    trainer = make_trainer(tmp_path, anchor_epochs=0, transfer_epochs=1, save_strategy="epoch")
    trainer.train()
    assert load_file(tmp_path / "checkpoint-3" / "gpd_state.safetensors") == {}
    assert all(entry["stage"] == 2 for entry in trainer.state.log_history if "loss" in entry)


def test_logs_every_step(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["stage"] for entry in entries] == [1] * 6 + [2] * 6
    rates = [trainer.schedule.learning_rate_at(step) for step in range(12)]
    assert [entry["learning_rate"] for entry in entries] == pytest.approx(rates, abs=1e-15)
    for entry in entries:
        assert all(0 <= entry[key] <= 1 for key in DIAGNOSTICS)
        assert entry["zero_gradient_share"] == 0


def test_diagnostics_are_those_of_the_logged_step(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=4, **SEQUENTIAL)
    calls = []
    original = trainer._diagnostics.note
    trainer._diagnostics.note = lambda *values: (calls.append(trainer.state.global_step), original(*values))
    trainer.train()
    assert calls == [3, 7, 11]
    assert sum("train_clean_accuracy" in entry for entry in trainer.state.log_history) == 3


def make_eval_set(names, seed, size=16):
    dataset = make_dataset(10, size, seed)
    return Benchmark("random", "test", dataset, names, "{}", ImageTransform())


def test_evaluates_each_set_over_its_own_classes(tmp_path):
    sets = {"first": make_eval_set(CLASSES, 3), "second": make_eval_set(["a", "b", "c"], 4, size=24)}
    trainer = make_trainer(tmp_path, eval_dataset=sets, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    trainer.model.eval()
    for name, benchmark in sets.items():
        classifier = ZeroShotClassifier(trainer.model, trainer.processing_class, benchmark.class_names, "{}")
        images = torch.stack([benchmark[row]["pixel_values"] for row in range(10)]) / 255
        labels = torch.tensor(benchmark.dataset["label"])
        adversarial = trainer.eval_attack(classifier, images, labels, torch.arange(10))
        clean, robust = (classifier(x).argmax(-1) == labels for x in (images, adversarial))
        assert metrics[f"eval_{name}_clean_accuracy"] == pytest.approx(clean.float().mean().item())
        assert metrics[f"eval_{name}_robust_accuracy"] == pytest.approx((clean & robust).float().mean().item())


def test_what_was_evaluated_under_inference_mode_trains_as_ever(tmp_path):
    first, second = (make_trainer(tmp_path / name, eval_dataset=make_dataset()) for name in ("first", "second"))
    expected = first.evaluate()
    with torch.inference_mode():
        metrics = second.evaluate()
        second.proxy.text_embeds()
    for name in ("eval_clean_accuracy", "eval_robust_accuracy"):
        assert metrics[name] == expected[name]
    first.train()
    second.train()
    assert_same(weights(first.model), weights(second.model))


def test_evaluation_takes_a_plain_dataset_and_an_override(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=make_dataset(6))
    assert {"eval_clean_accuracy", "eval_robust_accuracy"} <= trainer.evaluate().keys()
    assert "test_clean_accuracy" in trainer.evaluate(make_dataset(7, size=20), metric_key_prefix="test")


def test_evaluation_takes_all_images_where_training_drops_the_last(tmp_path):
    settings = {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 4}
    trainer = make_trainer(tmp_path, dataloader_drop_last=True, **settings)
    assert len(trainer.predict(make_dataset(6)).label_ids) == 6
    assert len(trainer.get_train_dataloader()) == 12 // 5


@pytest.mark.parametrize("kind", ["downloaded", "streamed"])
def test_training_and_evaluation_see_the_pixels_of_the_saved_processor(tmp_path, kind):
    """Those that a pipeline will see: all of an image of the model's size, and as much of a long one."""
    dataset = datasets.concatenate_datasets([make_dataset(4, 16), make_dataset(4, 37)])
    stretched = [
        image.resize((image.width + 24 * (row % 2), image.height)) for row, image in enumerate(dataset["image"])
    ]
    dataset = datasets.Dataset.from_dict({"image": stretched, "label": dataset["label"]}, dataset.features)
    given = {"dataset": dataset.to_iterable_dataset(), "steps_per_epoch": 2} if kind == "streamed" else {}
    trainer = make_trainer(tmp_path, eval_dataset=dataset, **{"dataset": dataset} | given)
    trainer.save_model()
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)  # torchvision, if installed, resizes by itself
    expected = processor(dataset["image"][:], do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    assert torch.equal(expected[0], torch.from_numpy(np.array(dataset[0]["image"])).permute(2, 0, 1))
    for seen in (trainer.train_dataset, trainer.eval_dataset):
        pixels = [row["pixel_values"] for row in seen]
        assert {image.numpy().tobytes() for image in pixels} == {image.byte().numpy().tobytes() for image in expected}


def test_evaluation_never_augments(tmp_path):
    trainer = make_trainer(tmp_path, augmentation="crop_flip", eval_dataset=make_dataset(6), transfer_epochs=1)
    plain = make_trainer(tmp_path)
    assert not torch.equal(trainer.train_dataset[0]["pixel_values"], plain.train_dataset[0]["pixel_values"])
    assert trainer.eval_dataset.augmentation is None
    metrics = [each.evaluate(trainer.train_dataset) for each in (trainer, plain)]
    assert metrics[0]["eval_clean_accuracy"] == metrics[1]["eval_clean_accuracy"]
    loader = trainer.get_test_dataloader(trainer.train_dataset)
    assert torch.equal(next(iter(loader))["pixel_values"][0], plain.train_dataset[0]["pixel_values"])
    with pytest.raises(InputError, match="augmentation 'flip'.*known: none, crop_flip"):
        make_trainer(tmp_path, augmentation="flip")


def test_each_evaluation_reads_its_own_set_when_workers_persist(tmp_path):
    trainer = make_trainer(
        tmp_path, eval_dataset=make_dataset(6), dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    seen = []
    step = trainer.prediction_step
    trainer.prediction_step = lambda *batch, **rest: (seen.append(len(batch[1]["labels"])), step(*batch, **rest))[1]
    for dataset in (None, None, make_dataset(7)):
        trainer.evaluate(dataset)
    assert seen == [6, 6, 7]


@pytest.mark.parametrize(
    ("step", "settings"),
    [(1, {}), (5, {}), (5, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}), (5, {"fp16": True})],
    ids=str,
)
def test_non_finite_loss_stops_after_saving_the_last_good_state(tmp_path, step, settings):
    """Also where it is that of the first of two micro-batches, and where a gradient scaler would skip the step."""
    trainer = make_trainer(tmp_path, **settings)
    trainer.objectives["anchor"] = _NanAt(trainer, step, trainer.objectives["anchor"])
    message = rf"The loss of step {step} \(anchor stage\) isn't finite.*a lower anchor_learning_rate \(now 0.05\)"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.train()
    folder = tmp_path / f"checkpoint-{step - 1}"
    assert folder.exists() == (step > 1)
    if step > 1:
        uninterrupted = make_trainer(tmp_path / "other", **settings)
        uninterrupted.train()
        resumed = make_trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(folder))
        assert_same(weights(resumed.model), weights(uninterrupted.model))


def test_a_run_cut_off_between_micro_batches_can_be_resumed_by_the_same_trainer(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "epoch"}
    uninterrupted = make_trainer(tmp_path / "whole", **settings)
    uninterrupted.train()
    trainer = make_trainer(tmp_path / "cut", **settings)
    attack, calls = trainer.attack, []

    def interrupt(*batch, **settings):
        calls.append(batch)
        if len(calls) == 10:  # the second micro-batch of step 5
            raise KeyboardInterrupt
        return attack.perturb(*batch, **settings)

    trainer.attack = SimpleNamespace(perturb=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert_same(weights(trainer.model), weights(uninterrupted.model))


class _NanAt(Objective):
    def __init__(self, trainer, step, objective):
        self.trainer, self.step, self.objective = trainer, step, objective
        self.asks_about_clean = objective.asks_about_clean

    def __call__(self, step):
        losses = self.objective(step)
        is_here = self.trainer.state.global_step + 1 == self.step and self.trainer._micro_batches == 0
        return losses * (float("nan") if is_here else 1)


def test_progress_bars_leave_the_line_to_what_stops_a_run(tmp_path, capsys):
    trainer = make_trainer(tmp_path, disable_tqdm=False)
    trainer.model.visual_projection.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert capsys.readouterr().err.endswith("\n")


def test_non_finite_gradient_stops_before_the_weights_break(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.visual_projection.weight.register_hook(
        lambda gradient: gradient * (float("inf") if trainer.state.global_step == 7 else 1)
    )
    with pytest.raises(NonFiniteLossError, match=r"The gradient of step 8 \(transfer stage\)"):
        trainer.train()
    assert all(
        torch.isfinite(weight).all() for weight in load_file(tmp_path / "checkpoint-7" / "model.safetensors").values()
    )


@pytest.mark.parametrize("settings", [{}, {"fp16": True}, {"max_grad_norm": 1e6}], ids=str)
def test_the_norm_of_all_gradients_is_logged(tmp_path, settings):
    norms = []

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item())

    trainer = make_trainer(tmp_path, **settings)
    trainer.add_callback(Norms())
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged == pytest.approx(norms, rel=0, abs=0, nan_ok=True) and len(logged) == 12


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (5, 1), (5, 2), (12, 1), (3, 3)])
def test_schedule_knows_the_data_loader(tmp_path, batch, accumulation, drop_last):
    trainer = make_trainer(
        tmp_path,
        warmup_steps=0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=drop_last,
    )
    batches = len(trainer.get_train_dataloader())
    assert trainer.schedule.steps_per_epoch == max(1, math.ceil(batches / accumulation))


def test_schedule_that_is_not_the_loaders_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(InputError, match="The data loader has 24 steps, GPD's schedule 12"):
        trainer.create_scheduler(24)


def test_training_beyond_the_stages_is_refused(tmp_path):
    with pytest.raises(InputError, match="max_steps is 13, but the stages have 12 steps"):
        make_trainer(tmp_path, max_steps=13)
    trainer = make_trainer(tmp_path, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5


def test_prompts_are_encoded_anew_with_an_optimizer_that_changes_weights_unseen(tmp_path):
    trainer = make_trainer(tmp_path, trainable="all", optim="adamw_torch_fused", learning_rate=1e-2)
    encode, calls = trainer.classifier.encode_prompts, []
    trainer.classifier.encode_prompts = lambda: (calls.append(trainer.state.global_step), encode())[1]
    trainer.train()
    assert calls == [*range(12)]  # once in each step, where the attack takes the same
    torch.testing.assert_close(trainer.classifier.text_embeds(), encode(), rtol=0, atol=0)


def test_bfloat16_autocast_reaches_the_redirected_forward(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True, max_steps=1)
    dtypes = []
    trainer.model.visual_projection.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert trainer.model.visual_projection.weight.dtype == torch.float32
    dtypes.clear()
    trainer.evaluate(make_dataset(3))
    assert set(dtypes) == {torch.float32}


def test_peft_target_trains_its_adapters_alone(tmp_path):
    model = get_peft_model(make_clip(0)[0], LoraConfig(target_modules=r"vision_model.*\.(q_proj|v_proj)", r=2))
    trainer = make_trainer(tmp_path, model)
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, weight in weights(trainer.model).items() if not torch.equal(weight, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert trainer.gpd.ema.keys() == {name for name in before if "lora_" in name}


def test_metric_of_the_best_model_must_exist(tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    assert (
        make_trainer(tmp_path, eval_dataset=make_dataset(6), **settings).args.metric_for_best_model
        == "robust_accuracy"
    )
    with pytest.raises(InputError, match="is 'robust_accuracy'; known: eval_a_clean_accuracy, eval_a_robust_accuracy"):
        make_trainer(tmp_path, eval_dataset={"a": make_dataset(6)}, **settings)


def test_predict_uses_the_classes_of_its_set(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=make_eval_set(["a", "b", "c"], 4))
    trainer.evaluate()
    assert trainer.eval_classifier.class_names == ["a", "b", "c"]
    output = trainer.predict(make_dataset(6))
    assert trainer.eval_classifier.class_names == CLASSES
    assert {"test_clean_accuracy", "test_robust_accuracy"} <= output.metrics.keys()


def test_settings_are_saved_as_json(tmp_path):
    trainer = make_trainer(tmp_path, hub_token="secret")
    trainer.save_model(str(tmp_path / "model"))
    text = (tmp_path / "model" / "training_args.json").read_text()
    assert json.loads(text)["attack_eps"] == pytest.approx(8 / 255)
    assert "secret" not in text


class CountTensors(TrainerCallback):
    """How many tensors are alive, and how many bytes they have, after each epoch."""

    def __init__(self):
        self.alive = []

    def on_epoch_end(self, args, state, control, **kwargs):
        gc.collect()
        tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
        self.alive.append((len(tensors), sum(tensor.nbytes for tensor in tensors)))


@pytest.mark.parametrize("trainable", ["vision", "all"])
def test_no_tensor_outlives_its_step(tmp_path, trainable):
    trainer = make_trainer(tmp_path, anchor_epochs=4, transfer_epochs=6, trainable=trainable, logging_steps=100)
    count = CountTensors()
    trainer.add_callback(count)
    trainer.train()
    assert len(count.alive) == 10
    assert count.alive[1:4] == [count.alive[1]] * 3  # anchor stage
    assert count.alive[5:] == [count.alive[5]] * 5  # transfer stage
    assert count.alive[5] < count.alive[1]  # without the vanilla weights


class NotADualEncoder(nn.Module):
    pass


def test_bad_pairs(tmp_path):
    model, processor = make_clip(0)
    with pytest.raises(InputError, match="the same weights"):
        make_trainer(tmp_path, model, proxy=ZeroShotClassifier(copy.deepcopy(model), processor))
    with pytest.raises(InputError, match="the same weights"):
        make_trainer(tmp_path, model, proxy=ZeroShotClassifier(copy.deepcopy(model).bfloat16(), processor))
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(InputError, match="the same weights"):
        make_trainer(tmp_path, adapted, proxy=ZeroShotClassifier(model, processor))
    with pytest.raises(InputError, match="NotADualEncoder isn't a dual encoder"):
        make_trainer(tmp_path, NotADualEncoder())
    with pytest.raises(InputError, match="load it with load_proxy"):
        make_trainer(tmp_path, model, proxy=copy.deepcopy(model))
    with pytest.raises(InputError, match="float16: load it with dtype=torch.float32"):
        make_trainer(tmp_path, make_clip(0)[0].half())
    with pytest.warns(UserWarning, match="same architecture"):
        make_trainer(tmp_path, model, proxy=ZeroShotClassifier(*make_clip(7)))


def test_bad_datasets(tmp_path):
    unnamed = make_dataset().cast_column("label", datasets.Value("int64"))
    with pytest.raises(InputError, match="Class names are missing"):
        make_trainer(tmp_path, dataset=unnamed)
    wrong = unnamed.remove_columns("label").add_column("label", [0] * 10 + [7, 1])
    with pytest.raises(InputError, match="Row 10 of the training set has label 7, but labels go from 0 to 2"):
        _with_names(tmp_path, wrong, CLASSES)
    with pytest.raises(InputError, match="aren't among the 2 class names 'cat', 'dog': 'grey heron'. Leave class_na"):
        _with_names(tmp_path, make_dataset(), CLASSES[:2])
    with pytest.raises(InputError, match="needs .'label'.: rename"):
        _with_names(tmp_path, make_dataset().rename_column("label", "target"), CLASSES)
    with pytest.warns(UserWarning, match="more than once.*'cat'"):
        _with_names(tmp_path, unnamed, ["cat", "cat", "dog"])
    with pytest.raises(InputError, match="no epochs of its own: give steps_per_epoch"):
        _with_names(tmp_path, make_dataset().to_iterable_dataset(), CLASSES)
    with pytest.raises(InputError, match="nothing to evaluate"):
        make_trainer(tmp_path).evaluate()
    with pytest.raises(InputError, match="has 3 images, of which dataloader_drop_last leaves none: a batch has 4"):
        make_trainer(tmp_path, dataset=make_dataset(3), dataloader_drop_last=True)
    unequal = datasets.concatenate_datasets([make_dataset(3), make_dataset(3, size=20)])
    with pytest.raises(InputError, match="The images of the training set have different sizes"):
        make_trainer(tmp_path, dataset=Benchmark("u", "train", unequal, CLASSES, None, ImageTransform()))
    with pytest.raises(InputError, match="warmup_steps is 6, but the anchor stage has only 6 steps"):
        make_trainer(tmp_path, warmup_steps=6)


def _with_names(folder, dataset, names):
    from hpt import HPTConfig, HPTTrainer

    model, processor = make_clip(0)
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4))
    args = HPTConfig(output_dir=str(folder), use_cpu=True, warmup_steps=0.1)
    return HPTTrainer(model, args, proxy, processor, dataset, class_names=names)


def test_pairs_train_as_the_same_images_of_a_dataset_do(tmp_path):
    dataset = make_dataset()
    pairs = list(zip(dataset["image"], dataset["label"], strict=True))
    first, second = (_with_names(tmp_path / name, given, CLASSES) for name, given in (("a", dataset), ("b", pairs)))
    for trainer in (first, second):
        trainer.train()
    assert_same(weights(first.model), weights(second.model))
    assert second.evaluate(pairs)["eval_clean_accuracy"] == first.evaluate(dataset)["eval_clean_accuracy"]
