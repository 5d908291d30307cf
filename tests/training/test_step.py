"""A training step computes what an objective asks for once, and with gradients where a loss needs them."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers import make_step

from hpt import OBJECTIVES, InputError
from hpt.training.diagnostics import Diagnostics


@pytest.fixture
def step():
    return make_step()


def count_calls(classifier):
    calls, outputs = [], classifier.outputs
    classifier.outputs = lambda images, *rest: (calls.append(images), outputs(images, *rest))[1]
    return calls


@pytest.mark.parametrize("model", ["target", "proxy", "original"])
def test_a_step_computes_each_output_once_and_those_of_an_attack_anew(step, model):
    calls, outputs = count_calls(getattr(step, f"_{model}")), getattr(step, model)
    for images in (step.images, step.adversarial, step.images, step.adversarial):
        outputs(images)
    assert len(calls) == 2
    for _ in range(2):
        outputs(step.images.clone())
    assert len(calls) == 4


def test_what_a_step_keeps_has_gradients_where_they_are_enabled(step):
    with torch.no_grad():
        assert not step.target(step.images).logits.requires_grad
    outputs = step.target(step.images)
    assert outputs.logits.requires_grad
    with torch.no_grad():
        assert step.target(step.images) is outputs


@pytest.mark.parametrize("model", ["target", "proxy"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_step_keeps_can_enter_a_loss_whatever_asked_first(step, model, mode):
    with mode():
        first = getattr(step, model)(step.adversarial).logits
        assert not first.requires_grad
    with torch.no_grad():
        assert getattr(step, model)(step.adversarial).logits is first
    (step.target(step.adversarial).logits * first).sum().backward()


def test_while_the_attack_runs_nothing_of_the_target_is_kept(step):
    attacked, step.attacked = step.attacked, None
    with pytest.raises(RuntimeError, match="There are no adversarial images yet"):
        step.adversarial  # noqa: B018
    first, proxy = step.target(step.images), step.proxy(step.images)
    step.attacked = attacked
    assert step.target(step.images) is not first and step.proxy(step.images) is proxy


def test_frozen_models_give_no_gradients_and_embeddings_are_those_of_the_logits(step):
    assert step.target(step.images).logits.requires_grad
    assert not step.proxy(step.images).logits.requires_grad
    assert not any(part.requires_grad for part in step.original(step.images)[:3])
    logits, embeds, features, *_ = step.original(step.images)
    torch.testing.assert_close(embeds, F.normalize(features, dim=-1))
    assert logits.shape == (4, 3) and (features.norm(dim=1) - 1).abs().min() > 1e-3


def test_what_an_attack_tries_is_seen_once_within_keeping(step):
    step.attacked = None
    calls, tried = count_calls(step._target), step.images.clone()
    with step.keeping(tried):
        assert step.target(tried) is step.target(tried)
    assert len(calls) == 1
    assert step.target(tried) is not step.target(tried)


def test_patches_are_there_for_objectives_that_need_them():
    step = make_step(OBJECTIVES["tga_zsr"]())
    for outputs in (step.target(step.images), step.original(step.images)):
        assert outputs.patch_embeds.shape == outputs.patch_features.shape == (4, 16, 8)
        torch.testing.assert_close(outputs.patch_embeds, F.normalize(outputs.patch_features, dim=-1))
    assert step.text_embeds().shape == step.original_text_embeds().shape == (3, 8)
    assert not torch.equal(step.text_embeds(), step.original_text_embeds())


def test_without_an_attack_there_are_no_adversarial_images():
    step = make_step(OBJECTIVES["clean_distillation"]())
    assert step.target(step.images) is step.target(step.images)
    with pytest.raises(InputError, match="asks for adversarial images, but has needs_attack = False"):
        step.adversarial  # noqa: B018


def test_the_log_has_the_mean_of_what_is_noted(step):
    diagnostics = Diagnostics(Accelerator(cpu=True), step._target, has_proxy=False)
    step.note("share", torch.tensor([True, False, False, False]))
    step.note("share", torch.tensor([True, True, False, False]))
    step.note("loss_mine", torch.tensor([1.0, 2.0, 3.0, 6.0], requires_grad=True))
    diagnostics.note(step)
    noted = diagnostics.take()
    assert (noted["share"], noted["loss_mine"]) == (0.375, 3)
    right = step.target(step.images).logits.argmax(-1) == step.labels
    assert noted["train_clean_accuracy"] == right.float().mean() and "proxy_robust_accuracy" not in noted
    assert diagnostics.take() == {}
