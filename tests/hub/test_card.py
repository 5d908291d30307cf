"""Cards say what was measured: metadata that the Hub's parser reads back, sections, and what was written by hand."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from helpers import CLASSES, make_clip, make_dataset, make_family, make_trainer
from huggingface_hub import ModelCard
from PIL import Image

from hpt import HPTConfig, InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.cli import parse_config
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.evaluation.processor_check import compare_with_processor
from hpt.evaluation.rows import ADDED
from hpt.hub.card import write_card
from hpt.hub.card_text import hand_written, merge_cards
from hpt.hub.evaluations import add_evaluation
from hpt.hub.folder import ModelFolder
from hpt.hub.index import as_eval_result, as_row
from hpt.hub.rows import THIS, VANILLA, pair_up, publish_rows
from hpt.models.loading import save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.weights import hash_weights
from hpt.radius import Fraction
from hpt.training.record import describe_settings


LONGEST = "model.config.text_config.max_position_embeddings"
BENCHMARK = Benchmark("animals", "test", make_dataset(30), CLASSES, "a {}", ImageTransform())


def evaluate_on_animals(model, processor, name, **settings):
    settings = {"attacks": ["pgd:steps=2", "fgsm"], "eps": [4 / 255, 8 / 255], "batch_size": 30} | settings
    return RobustnessEvaluator(**settings)(model, processor, BENCHMARK, name=name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained model and an evaluation of it, of the vanilla model and of a third one."""
    folder = tmp_path_factory.mktemp("run") / "robust"
    vanilla, processor = make_clip(0)
    trainer = make_trainer(folder.parent)
    trainer.train()
    save_finished(trainer.model, processor, folder)
    trainer.describe(folder)
    rows = evaluate_on_animals(trainer.model, processor, str(folder))
    rows += evaluate_on_animals(vanilla, processor, "/somewhere/vanilla")
    rows += evaluate_on_animals(make_clip(5)[0], processor, "another")
    before = (folder / "README.md").read_text()
    add_evaluation(ModelFolder(folder), rows, hash_weights(trainer.model.state_dict()))
    return folder, rows, before


@pytest.fixture
def card(run) -> str:
    return (run[0] / "README.md").read_text()


# Metadata


def test_metadata_are_read_back_as_the_measured_rows(run, card):
    own = [row for row in ModelFolder(run[0]).rows if row.model == THIS]
    assert len(own) == 1 + 1 + 2 * (
        2 + 1
    )  # clean, the check at a large eps, and per eps two attacks and the worst case
    data = ModelCard(card).data
    assert data.eval_results == [as_eval_result(row) for row in own]
    measured = {(row.attack, row.eps): row for row in run[1] if row.model == str(run[0])}
    for result in data.eval_results:
        row = measured[result.metric_args["attack"], result.metric_args.get("eps")]
        assert (result.dataset_name, result.dataset_split, result.metric_value) == ("animals", "test", row.accuracy)
        for name in ("n", "low", "high", "norm", "steps", "step_size", "seed", "attack_space", "weights"):
            assert result.metric_args.get(name) == getattr(row, name), name


def test_a_row_survives_the_way_into_metadata_and_back(run):
    kept = ("templates", "image_mean", "image_std", "seconds", *ADDED)
    for row in ModelFolder(run[0]).rows:
        source = replace(row, source="org/animals@abc", model=THIS)
        back = as_row(as_eval_result(source), THIS)
        assert {name: value for name, value in vars(back).items() if name not in kept} == {
            name: value for name, value in vars(source).items() if name not in kept
        }


def test_metadata_name_the_task_and_nothing_local(card):
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "zero-shot-image-classification")
    assert "hpt-gpd" in data["tags"] and "base_model" not in data and "datasets" not in data


def test_models_and_data_of_the_hub_are_named(run, tmp_path):
    record = ModelFolder(run[0]).run
    record["target"] |= {"hub_id": "org/clip", "name": "org/clip", "revision": "c0ffee"}
    record["data"]["source"] = "org/images@abc"
    (tmp_path / "training.json").write_text(json.dumps(record))
    write_card(ModelFolder(tmp_path), "me/robust", license="mit")
    card = ModelCard((tmp_path / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("org/clip", "finetune")
    assert (data["datasets"], data["license"]) == (["org/images"], "mit")
    assert "[org/clip](https://huggingface.co/org/clip) at c0ffee" in card.text and "org/images@abc" in card.text


# Sections


def test_without_an_evaluation_the_card_says_so(run):
    before = run[2]
    assert (
        before.count("It has not been evaluated: nothing is known of its accuracy and robustness on test images.") == 2
    )
    assert "model-index" not in before and "overstated" not in before


def test_results_stand_beside_the_vanilla_models(run, card):
    pairs = {(own.attack, own.eps): (own, vanilla) for own, vanilla in pair_up(ModelFolder(run[0]).rows)}
    own, vanilla = pairs["pgd:steps=2", 8 / 255]
    cells = [f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" for row in (vanilla, own)]
    (line,) = [line for line in card.splitlines() if "PGD-2 (steps of 2/255), l_inf eps 8/255" in line and "|" in line]
    assert [cell.strip() for cell in line.split("|")[2:4]] == cells
    assert "![Accuracy over eps](figures/robustness_animals_linf.png)" in card
    assert (run[0] / "figures" / "robustness_animals_linf.png").read_bytes()[:4] == b"\x89PNG"


def test_summary_gives_the_worst_at_the_radius_of_training(run, card):
    rows = [row for row in ModelFolder(run[0]).rows if row.model == THIS and row.eps == 8 / 255]
    worst = min(rows, key=lambda row: row.accuracy)
    assert f"{100 * worst.accuracy:.1f} % [" in card.split("/hpt:summary")[0]
    assert "l_inf eps 8/255" in card.split("/hpt:summary")[0]


def test_that_the_model_only_guesses_stands_in_the_first_lines(run, card):
    line = "**On animals this model is no better than guessing. 30 of 30 images get the same class"
    assert f"# {run[0].parent.name}\n\n{line}" in card


def test_limits_name_untried_attacks_and_flags(card):
    limits = card.split("## Limits")[1].split("<!-- /hpt")[0]
    untried = "cw, apgd-ce, apgd-dlr, apgd-t, fab-t, square, apgd, autoattack, adaptive, transfer"
    where = "l_inf eps 4/255, 8/255 on 30 images of animals (test)"
    assert f"At {where} it was not attacked by {untried}." in limits
    assert "l_inf eps 4/255, 8/255: each value of a pixel may change by so much" in limits
    assert "Doubt (`collapsed`) on animals: 30 of 30 images" in limits and "Nothing is certified" in limits


@pytest.mark.parametrize("number", [0, 1, 2], ids=["pipeline", "logits", "attack"])
def test_snippets_run(run, card, tmp_path, number):
    snippet = card.split("## How to use it")[1].split("```python\n")[number + 1].split("```")[0]
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "image.png")
    code = snippet.replace('"robust"', repr(str(run[0]))).replace(f'"{run[0].parent.name}"', repr(str(run[0])))
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "cat" in process.stdout or "tensor" in process.stdout


def test_an_adapters_card_loads_it_on_its_base(tmp_path):
    base = tmp_path / "base"
    save_finished(*make_clip(0), base)
    model, processor = make_clip(0)
    model.name_or_path = model.config._name_or_path = str(base)
    trainer = make_trainer(tmp_path, add_lora(model, rank=2))
    trainer.train()
    save_finished(trainer.model, processor, tmp_path / "adapter")
    trainer.describe(tmp_path / "adapter", "me/adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'CLIPModel.from_pretrained("PATH/base"), "me/adapter")' in card and "LoRA adapters of rank 2" in card
    assert str(tmp_path) not in card + (tmp_path / "adapter" / "adapter_config.json").read_text()
    rows = evaluate_on_animals(merged(trainer.model), processor, "merged", eps=8 / 255)
    add_evaluation(ModelFolder(tmp_path / "adapter"), rows, hash_weights(merged(trainer.model).state_dict()))
    assert "pgd" in (tmp_path / "adapter" / "README.md").read_text()


# Rows


def test_only_rows_of_these_weights_are_published(run):
    kept = ModelFolder(run[0]).rows
    assert {row.model for row in kept} == {THIS, VANILLA} and len(kept) == 16
    text = (run[0] / "evaluation.jsonl").read_text()
    assert "another" not in text and "somewhere" not in text and str(run[0].parent) not in text


def test_rows_without_weights_are_nobodys(run):
    unknown = [replace(row, weights=None) for row in run[1]]
    assert publish_rows(unknown, "0", None) == []


def test_an_evaluation_added_twice_counts_once(run, card):
    folder, rows, _ = run
    own = next(row.weights for row in ModelFolder(folder).rows if row.model == THIS)
    add_evaluation(ModelFolder(folder), rows, own)
    assert (folder / "README.md").read_text() == card


def test_comparable_rows_have_the_same_attack_and_samples(run):
    rows = ModelFolder(run[0]).rows
    own = next(row for row in rows if row.model == THIS and row.attack == "fgsm")
    same = next(row for row in rows if row.model == VANILLA and row.attack == "fgsm" and row.eps == own.eps)
    assert pair_up([own, same]) == [(own, same)]
    for change in (
        {"eps": 0.5},
        {"n": 29},
        {"samples": "0"},
        {"step_size": 1.0},
        {"norm": "l2"},
        {"attacked": "proxy"},
        {"parameters": {"proxy_weights": "0"}},
    ):
        assert pair_up([own, replace(same, **change)]) == [(own, None)], change


def test_a_model_that_hpt_did_not_train_gets_a_card_of_its_evaluation(tmp_path):
    model, processor = make_clip(0)
    save_finished(model, processor, tmp_path / "clip")
    folder = ModelFolder(tmp_path / "clip")
    add_evaluation(folder, evaluate_on_animals(model, processor, "clip"), hash_weights(model.state_dict()))
    card = ModelCard((tmp_path / "clip" / "README.md").read_text())
    assert "that hpt has measured; how it was trained isn't recorded" in card.text and "hpt-gpd" not in card.data.tags
    assert len(card.data.eval_results) == 8 and "How to reproduce" not in card.text
    with pytest.raises(InputError, match="has no training.json and no evaluation"):
        write_card(ModelFolder(tmp_path))


@pytest.mark.parametrize(
    ("family", "padding", "template"),
    [
        ("Siglip", f'"max_length", max_length={LONGEST}', "this is a photo of a {}"),
        ("VisionTextDualEncoder", "True", "This is a photo of a {}"),
    ],
)
def test_a_familys_card_names_its_class_and_prepares_prompts_as_hpt_does(tmp_path, family, padding, template):
    model, processor = make_family(family)
    save_finished(model, processor, tmp_path)
    rows = evaluate_on_animals(model, processor, family)
    add_evaluation(ModelFolder(tmp_path), rows, hash_weights(model.state_dict()))
    card = ModelCard((tmp_path / "README.md").read_text())
    assert f"from transformers import {family}Model, AutoProcessor" in card.text and f"padding={padding})" in card.text
    assert card.text.count(f'"{template}"') == 3
    assert card.data.tags == ["adversarial-robustness"]


def test_the_id_that_it_is_loaded_by_stays(run, tmp_path):
    for name in ("training.json", "evaluation.jsonl"):
        (tmp_path / name).write_text((run[0] / name).read_text())
    write_card(ModelFolder(tmp_path), "me/robust")
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("# robust\n", "# A lovely model\n"))
    write_card(ModelFolder(tmp_path))
    assert card.read_text().count('from_pretrained("me/robust")') == 4


# Written by hand


def test_what_was_written_by_hand_stays_in_its_place(run, card):
    old = card.replace("<!-- hpt:results -->", "## My own words\n\nNot hpt's.\n\n<!-- hpt:results -->")
    old = old.replace("## Limits", "## Changed by hand").replace("---\n", "---\nlanguage: en\nlicense: mit\n", 1)
    old = old.replace("- hpt-gpd", "- hpt-gpd\n- mine")
    new = merge_cards(card, old)
    assert new.index("/hpt:use") < new.index("Not hpt's.") < new.index("<!-- hpt:results -->")
    assert "## Limits" in new and "## Changed by hand" not in new
    data = ModelCard(new).data
    assert (data.language, data.license) == ("en", "mit") and "mine" in data.tags
    assert data.eval_results == ModelCard(card).data.eval_results
    assert merge_cards(card, new) == new
    assert hand_written(new) == "## My own words\nNot hpt's." and hand_written(card) == ""


def test_numbers_that_are_gone_do_not_stay(run, card):
    without = merge_cards(run[2], card)
    assert "model-index" not in without and "It has not been evaluated" in without


def test_a_section_that_was_removed_comes_back(card):
    cut = card[: card.index("<!-- hpt:limits -->")] + card[card.index("<!-- /hpt:limits -->") + 21 :]
    assert "## Limits" not in cut and "## Limits" in merge_cards(card, cut)


def test_a_card_that_cannot_be_read_is_left_alone(run, tmp_path):
    broken = "---\nlicense: [\n---\nBy hand."
    (tmp_path / "training.json").write_text((run[0] / "training.json").read_text())
    (tmp_path / "README.md").write_text(broken)
    with pytest.raises(InputError, match="The metadata of README.md isn't valid YAML"):
        write_card(ModelFolder(tmp_path))
    assert (tmp_path / "README.md").read_text() == broken


# Settings and the processor


def test_run_yaml_gives_the_settings_back(run):
    args = parse_config((HPTConfig,), run[0] / "run.yaml", ["--use_cpu", "--output_dir", "x"])[0]
    written = yaml.safe_load((run[0] / "run.yaml").read_text())
    assert written["attack_eps"] == "8/255" and args.attack_eps == Fraction("8/255")
    assert (args.anchor_epochs, args.learning_rate, args.warmup_steps, args.seed) == (2, 0.5, 1, 42)
    assert not {"output_dir", "hub_token", "num_train_epochs"} & set(written)


def test_local_paths_are_left_out_of_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpt").mkdir()
    (tmp_path / "outputs" / "target").mkdir(parents=True)
    recipe = {
        "target": "outputs/target",
        "proxy": "openai/clip-vit-base-patch16",
        "train_dataset": f"cifar10={tmp_path}/hpt",
        "eval_datasets": ["digits", "shards=/data/shards:label_column=fine,class_names=/opt/me/names.txt"],
        "protocol": "hpt",
        "pretrain_target": "digits_target.yaml",
    }
    settings = describe_settings(HPTConfig(str(tmp_path), hub_token="hf_secret", use_cpu=True), recipe)
    assert settings["target"] == "PATH/target" and settings["proxy"] == recipe["proxy"]
    assert settings["train_dataset"] == "cifar10=PATH/hpt" and settings["protocol"] == "hpt"
    assert settings["eval_datasets"] == ["digits", "shards=PATH/shards:label_column=fine,class_names=PATH/names.txt"]
    (tmp_path / "digits").mkdir()  # which isn't what digits stands for
    embedded = describe_settings(HPTConfig(str(tmp_path), use_cpu=True), {"train_dataset": "digits"})
    assert embedded["train_dataset"] == "digits"
    unnamed = describe_settings(
        HPTConfig(str(tmp_path), use_cpu=True), {"train_dataset": "/opt/b.parquet:template=a {}"}
    )
    assert unnamed["train_dataset"] == "PATH/b.parquet:template=a {}"
    assert "hf_secret" not in str(settings) and str(tmp_path) not in str(settings)


@pytest.mark.parametrize(("size", "same"), [(16, True), (40, False)], ids=["own size", "resized"])
def test_the_processors_difference_is_measured(size, same, tmp_path):
    classifier = ZeroShotClassifier(*make_clip(0))
    classifier.eval()
    benchmark = Benchmark("animals", "test", make_dataset(9, size), CLASSES, "a {}", ImageTransform())
    agreement = compare_with_processor(classifier, benchmark, batch_size=4)
    assert agreement["n"] == 9 and 0 <= agreement["accuracy"] <= 1
    assert (agreement["largest_difference"] < 1e-5) == same
    assert agreement["largest_difference"] < agreement["logit_range"]
    images = [image for image in benchmark.dataset["image"]]
    inputs = classifier.processor(
        text=["a cat", "a dog", "a grey heron"], images=images, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        right = classifier.model(**inputs).logits_per_image.argmax(1) == torch.tensor(benchmark.dataset["label"][:])
    assert agreement["accuracy_by_processor"] == pytest.approx(right.float().mean().item())
    ModelFolder(tmp_path).write_agreement(agreement)
    assert ModelFolder(tmp_path).agreement == agreement
