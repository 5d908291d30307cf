"""Training by one proxy or several, of any kind: losses, runs that go on, records, and what is refused."""

import copy
import json
import logging
import re
import warnings

import pytest
import torch
from helpers import CLASSES, FAMILIES, assert_same, make_clip, make_dataset, make_family, make_trainer, weights
from peft import LoraConfig, get_peft_model
from torch import nn

from hpt import HPTConfig, InputError, RobustTransfer, ZeroShotClassifier
from hpt.attacks import AttackResult
from hpt.models.proxies import CombinedProxy, combine, over_classes
from hpt.training.step import TrainingStep


def another(seed=1, **shape):
    return ZeroShotClassifier(*make_clip(seed, **{"patch_size": 4} | shape))


class Colours(nn.Module):
    """Three classes from the mean colour."""

    def __init__(self, classes=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, classes)

    def forward(self, images):
        return 20 * self.layer(images.mean((2, 3)))


def colours(images):
    return 10 * images.mean((2, 3))


# Losses


@pytest.fixture
def step():
    """Images of a step in float64, attacked, with a target and two proxies whose logits differ much."""
    (target, processor), pairs = make_clip(0), [make_clip(seed, patch_size=4) for seed in (1, 2)]
    parts = [ZeroShotClassifier(model.double(), processor, CLASSES) for model, processor in pairs]
    for part in parts:
        part.model.logit_scale.data.fill_(4)
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 12, 3, 16, 16, generator=generator, dtype=torch.float64)
    proxy = combine(parts, "probabilities", [3, 1])
    target = ZeroShotClassifier(target.double(), processor, CLASSES)
    step = TrainingStep(images, torch.arange(12) % 3, target=target, proxy=proxy)
    step.attacked = AttackResult((images + 0.1 * (noise - 0.5)).clamp(0, 1), torch.zeros(12, dtype=torch.bool))
    return step


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("proxy_temperature", [1.0, 0.5])
@pytest.mark.parametrize("only_where_right", [False, True])
def test_the_loss_is_its_definition(step, temperature, proxy_temperature, only_where_right):
    settings = {"temperature": temperature, "proxy_temperature": proxy_temperature}
    losses = RobustTransfer(**settings, only_where_right=only_where_right)(step)
    first, second = (part(step.adversarial).detach() / temperature / proxy_temperature for part in step._proxy.proxies)
    p = 0.75 * first.softmax(1) + 0.25 * second.softmax(1)
    t = (step.target(step.adversarial).logits / temperature).softmax(1)
    expected = temperature**2 * (p * (p.log() - t.log())).sum(1)
    right = p.argmax(1) == step.labels
    assert 0 < right.sum() < len(right)
    if only_where_right:
        expected = expected * right
        assert torch.equal(step.notes["proxy_right_share"][0], right.float())
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)
    weight = step._target.model.visual_projection.weight
    ours, theirs = (torch.autograd.grad(loss.mean(), weight, retain_graph=True)[0] for loss in (losses, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("setting", ["temperature", "proxy_temperature"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_temperatures_that_are_none_are_refused(setting, value):
    with pytest.raises(InputError, match=f"^{setting} is .*, but must be above 0 and finite"):
        RobustTransfer(**{setting: value})


def test_where_the_proxy_is_right_labels_are_needed():
    class WithoutLabels(RobustTransfer):
        needs_labels = False

    assert not WithoutLabels().needs_labels and WithoutLabels(only_where_right=True).needs_labels


# Runs


def train(folder, proxy, **settings):
    trainer = make_trainer(folder, proxy=proxy, **settings)
    trainer.train()
    return trainer


def test_a_list_of_one_trains_as_the_one(tmp_path):
    alone = train(tmp_path / "alone", another(), max_steps=8)
    listed = train(tmp_path / "listed", [another()], max_steps=8, proxy_combination="logits", proxy_weights=[7])
    assert_same(weights(alone.model), weights(listed.model))
    assert listed.mathematics()["proxy_models"] == alone.mathematics()["proxy_models"]
    assert [entry.get("loss") for entry in alone.state.log_history] == [
        entry.get("loss") for entry in listed.state.log_history
    ]


def test_a_run_with_several_proxies_goes_on_as_if_it_had_not_stopped(tmp_path):
    def proxies():
        return [another(), Colours(), "original"]

    settings = {"only_where_right": True, "save_strategy": "steps", "save_steps": 5, "transfer_epochs": 1}
    whole = train(tmp_path, proxies(), **settings)
    assert isinstance(whole.proxy, CombinedProxy)
    resumed = make_trainer(tmp_path, proxy=proxies(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert_same(weights(whole.model), weights(resumed.model))
    shares = [entry["proxy_right_share"] for entry in whole.state.log_history if "loss" in entry]
    assert len(shares) == 9 and len(set(shares)) > 1 and all(0 <= share <= 1 for share in shares)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two proxies, after one step."""
    folder = tmp_path_factory.mktemp("run")
    train(folder, [another(), Colours()], save_strategy="steps", save_steps=1, max_steps=1)
    return folder


@pytest.mark.parametrize(
    ("proxies", "settings", "differs"),
    [
        (lambda: [Colours(), another()], {}, r"proxy clip .* \+ Colours, .* there, Colours, .* \+ clip "),
        (lambda: [another(), Colours(seed=1)], {}, "proxy_models"),
        (lambda: [another(2), Colours()], {}, "proxy_models"),
        (lambda: [another()], {"proxy_weights": [1]}, "proxy_models"),
        (lambda: [another(), Colours()], {"proxy_weights": [1, 2]}, r"proxy_weights None there, \[1.0, 2.0\] here"),
        (
            lambda: [another(), Colours()],
            {"proxy_combination": "logits"},
            "proxy_combination prob.* there, logits",
        ),
        (lambda: [another(), Colours()], {"proxy_temperature": 2}, "proxy_temperature 1.0 there, 2.0 here"),
        (lambda: [another(), Colours()], {"only_where_right": True}, "only_where_right False there, True here"),
    ],
    ids=["order", "module", "model", "number", "weights", "combination", "temperature", "where right"],
)
def test_a_run_of_other_proxies_is_not_gone_on_with(run, proxies, settings, differs):
    with pytest.raises(InputError, match=differs):
        make_trainer(run, proxy=proxies(), max_steps=1, **settings).train(resume_from_checkpoint=True)


def test_eight_micro_batches_are_one_batch(tmp_path):
    """Loss, weights and the share that is kept, of 1 x 8 and 8 x 1 images."""
    runs = []
    for size, steps in ((8, 1), (1, 8)):
        pairs = [make_clip(seed, patch_size=4) for seed in (1, 2)]
        proxies = [ZeroShotClassifier(model.double(), processor) for model, processor in pairs]
        trainer = make_trainer(
            tmp_path / str(size),
            make_clip(0)[0].double(),
            make_dataset(16),
            proxy=proxies,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            attack_random_start=False,
            only_where_right=True,
            anchor_epochs=0,
        )
        trainer.train()
        log = [[entry["loss"], entry["proxy_right_share"]] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((weights(trainer.model), torch.tensor(log)))
    assert_same(runs[0][0], runs[1][0], atol=1e-9)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-5, atol=1e-6)
    assert 0 < runs[0][1][:, 1].mean() < 1


@pytest.mark.parametrize("family", ["Siglip", "Align", "VisionTextDualEncoder"])
def test_proxies_of_other_families_teach_beside_clip(tmp_path, family):
    assert family in FAMILIES
    trainer = train(tmp_path, [another(image_size=24), ZeroShotClassifier(*make_family(family))], max_steps=2)
    first, second = trainer.proxy.proxies
    assert first.image_size == 24 and second.family is not first.family
    step = trainer._make_step(next(iter(trainer.get_train_dataloader())), trainer.objectives["transfer"])
    p = (first(step.images).softmax(1) + second(step.images).softmax(1)) / 2
    torch.testing.assert_close(step.proxy(step.images).logits.softmax(1), p)


class TextSide:
    """How long the names of classes are, times the brightness."""

    def with_classes(self, class_names, template=None):
        return lambda images: (
            images.mean((1, 2, 3))[:, None] * torch.tensor([float(len(name)) for name in class_names])
        )


@pytest.mark.parametrize("proxy", [Colours(), colours, TextSide()], ids=["module", "function", "text side"])
def test_any_function_of_images_teaches(tmp_path, proxy, caplog):
    start = weights(make_clip(0)[0])
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, proxy, save_strategy="steps", save_steps=2, max_steps=2, anchor_epochs=0)
    unknown = "has the same proxy" in caplog.text
    assert unknown == (not isinstance(proxy, Colours))
    assert any(not torch.equal(weight, start[name]) for name, weight in weights(trainer.model).items())
    logits = trainer.proxy(torch.zeros(2, 3, 16, 16))
    assert logits.shape == (2, 3) and not any(weight.requires_grad for weight in trainer.proxy.parameters())
    folder = tmp_path / "checkpoint-2"
    [record] = json.loads((folder / "training.json").read_text())["proxies"]
    name = {Colours: "Colours", TextSide: "TextSide"}.get(type(proxy), "colours")
    assert record["function"] == name and (record["weights"] is None) == (name != "Colours")
    card = (folder / "README.md").read_text()
    assert f"by learning from a frozen model (`{name}`, a function of images)" in card
    assert f"`{name}`, a function of images to logits" in card
    assert "proxy" not in (folder / "run.yaml").read_text()


def test_the_vanilla_copy_is_a_proxy_by_name(tmp_path):
    vanilla = weights(make_clip(0)[0])
    trainer = train(tmp_path, "original", objective="anchor", anchor_epochs=0, max_steps=2)
    assert trainer.proxy is trainer.original
    assert_same(weights(trainer.proxy.model), vanilla)
    assert max((weight - vanilla[name]).abs().max() for name, weight in weights(trainer.model).items()) > 1e-3
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "by learning from a frozen model (its own vanilla copy)" in card
    assert "the target's own vanilla copy, 0.0" in card and "same architecture" not in card


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"anchor_epochs": 0}, "hpt.*where the transfer stage begins"),
        ({"anchor_epochs": 0, "objective": "clean_distillation"}, "clean_distillation.*where the transfer stage"),
        ({"anchor_epochs": 0, "objective": "hpt + clean_distillation"}, "hpt [+] 1[*]clean_distillation"),
        ({"anchor_epochs": 1, "anchor_objective": "hpt", "restart": False}, "hpt.*where the anchor stage begins"),
        ({"anchor_epochs": 1, "restart": True}, "hpt.*where the transfer stage begins"),
        ({"anchor_epochs": 1, "restart": False}, None),
        ({"anchor_epochs": 0, "objective": "anchor"}, None),
        ({"anchor_epochs": 0, "objective": "hpt + tecoa"}, None),
        ({"anchor_epochs": 0, "proxy_temperature": 2}, None),
    ],
)
def test_a_stage_that_learns_nothing_from_the_vanilla_copy_is_warned_of(tmp_path, settings, idle):
    """In float64, so that rounding, which alone moves the weights of such a stage, moves them by next to nothing."""
    model, vanilla = make_clip(0)[0].double(), weights(make_clip(0)[0].double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"transfer_epochs": 1, "learning_rate": 0.05, "report_to": "none"} | settings
        trainer = make_trainer(tmp_path, model, proxy="original", **settings)
    said = [str(warning.message) for warning in caught if "own vanilla copy" in str(warning.message)]
    assert len(said) == (idle is not None) and (idle is None or re.search(idle, said[0]))
    trainer.train()
    moved = max((weight - vanilla[name]).abs().max() for name, weight in weights(trainer.model).items())
    assert trainer.args.anchor_epochs or (moved < 1e-9) == (idle is not None)


def test_the_vanilla_copy_is_without_the_targets_adapters(tmp_path):
    model = make_clip(0)[0]
    vanilla = weights(model)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"], r=2))
    trainer = make_trainer(tmp_path, adapted, proxy=["original", another()], anchor_epochs=0, max_steps=2)
    trainer.train()
    assert_same(weights(trainer.proxy.proxies[0].model), vanilla)


@pytest.mark.parametrize(("trainable", "texts"), [("vision", False), ("all", True)])
def test_towers_are_compiled_once_each_and_that_of_texts_only_to_train_it(trainable, texts, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: compiled.append(self))
    proxies = ["original", another(), Colours(), "original"]
    trainer = make_trainer(tmp_path, proxy=proxies, torch_compile=True, trainable=trainable)
    frozen = [trainer.original, trainer.proxy.proxies[1]]
    assert compiled == [
        trainer.model.vision_model,
        *[trainer.model.text_model] * texts,
        *(part.model.vision_model for part in frozen),
    ]


def test_a_record_has_all_proxies_and_says_how_they_teach(tmp_path):
    proxies = [another(), another(2, vision_layers=1), "original"]
    settings = {"proxy_weights": ["1/2", 1, 0], "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = train(tmp_path, proxies, **settings)
    run = trainer.describe_run()
    assert [proxy["original"] for proxy in run["proxies"]] == [False, False, True]
    assert run["proxy_combination"] == "probabilities averaged with weights 0.3333, 0.6667, 0"
    assert trainer.mathematics()["proxy"].count("weights ") == 3
    card = (tmp_path / "checkpoint-1" / "README.md").read_text()
    assert card.count("\n| proxy ") == 3 and "probabilities averaged with weights 0.3333, 0.6667, 0" in card
    assert "proxy_weights:\n- 0.5\n- 1.0\n- 0.0\n" in (tmp_path / "checkpoint-1" / "run.yaml").read_text()


# What is refused


def broken():
    proxy = another()
    proxy.model.logit_scale.data.fill_(torch.nan)
    return proxy


@pytest.mark.parametrize(
    ("proxy", "settings", "message"),
    [
        ("orignal", {}, r"The proxy is the text 'orignal'; known: original.* load_proxy.*: did you mean original\?"),
        ([another(), "a"], {}, "Proxy 2 of 2 is the text 'a'; known: original"),
        (Colours, {}, "The proxy is the class Colours: make one of it"),
        (3, {}, r"The proxy is a int: load it with load_proxy\(name\), or give a function"),
        ([another(), None], {}, "Proxy 2 of 2 is a NoneType"),
        ([another(), [colours]], {}, "Proxy 2 of 2 is a list"),
        (make_clip(1)[0], {}, "The proxy is a CLIPModel: load it"),
        ([], {}, "There is no proxy, but one is needed by the anchor stage's objective, anchor [(]anchor_epochs=0"),
        ([another(), broken()], {}, r"Proxy 2 of 2 has NaN or infinite weights, 1 of \d+"),
        (
            [another(), Colours(classes=4)],
            {},
            r"Proxy 2, Colours, gives logits of shape \(4,\) .* there are 3",
        ),
        (lambda images: images, {}, r"The proxy .*lambda.* gives logits of shape \(3, 16, 16\) for an image"),
        (
            [another(), colours],
            {"proxy_weights": [1]},
            "proxy_weights is 1, but of proxies the run has 2: give as many",
        ),
        (another(), {"proxy_weights": [1, 2]}, "proxy_weights is 1, 2, but of proxies the run has 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the text of a model has its address in memory
)
def test_what_can_not_teach_is_refused(tmp_path, proxy, settings, message):
    with pytest.raises(InputError, match=message) as refused:
        make_trainer(tmp_path, proxy=proxy, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proxy_combination": "mean"}, "Unknown proxy_combination 'mean'; known: probabilities, logits, most_conf"),
        ({"proxy_weights": [0, 0]}, "proxy_weights is 0, 0, but must be finite numbers of at least 0"),
        ({"proxy_weights": []}, "proxy_weights is empty, but must be finite numbers"),
        ({"proxy_weights": ["a", 1]}, "must be a list of numbers, one for each proxy"),
        ({"proxy_weights": 2.0}, "must be a list of numbers, one for each proxy"),
        ({"proxy_weights": [1, 1], "proxy_combination": "most_confident"}, "proxy_weights are of averages, but"),
        ({"proxy_temperature": 0}, "proxy_temperature is 0, but must be above 0"),
        ({"objective": "tecoa", "anchor_epochs": 0, "only_where_right": True}, "no objective of this run has it"),
    ],
    ids=str,
)
def test_settings_that_can_not_be_meant_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        HPTConfig(output_dir="unused", use_cpu=True, **settings)


def test_a_proxy_goes_unasked_where_there_are_no_classes(tmp_path):
    images = make_dataset().remove_columns("label")
    settings = {"objective": "fare", "anchor_epochs": 0, "max_steps": 2}
    trainer = train(tmp_path, [another(), "original"], dataset=images, **settings)
    assert trainer.proxy is None and trainer.original is not None and trainer.state.global_step == 2


def test_weights_without_proxies_are_refused(tmp_path):
    with pytest.raises(InputError, match="proxy_weights are given, but there is no proxy"):
        make_trainer(tmp_path, proxy=None, objective="tecoa", anchor_epochs=0, proxy_weights=[1])


def test_the_target_in_other_clothes_is_refused(tmp_path):
    model, processor = make_clip(0)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = ZeroShotClassifier(model, processor, CLASSES)

        def forward(self, images):
            return self.classifier(images)

    for proxy in (Wrapped(), [another(), ZeroShotClassifier(*make_clip(0))]):
        with pytest.raises(InputError, match="and the target are the same weights.*by the name 'original'"):
            make_trainer(tmp_path, model, proxy=proxy)


def test_a_proxy_that_nothing_asks_is_watched_as_before(tmp_path):
    trainer = train(tmp_path, [another(), colours], objective="tecoa", anchor_epochs=0, max_steps=1)
    assert "proxy_robust_accuracy" in trainer.state.log_history[0]
    assert trainer.describe_run()["proxies"] == [] and trainer.describe_run()["proxy_combination"] is None
    assert "proxy" not in trainer.mathematics()


def test_a_classifier_over_classes_is_frozen_where_it_is_a_module():
    module = Colours()
    over_classes(module, CLASSES, "{}")
    assert not module.training and not any(weight.requires_grad for weight in module.parameters())
