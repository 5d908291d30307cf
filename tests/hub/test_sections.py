"""What the sections of a card say of a run and of rows that were measured."""

import json
import re
import shlex
from dataclasses import asdict, replace

import pytest
from helpers import with_accuracy

from hpt.cli import parse_config
from hpt.evaluation.rows import CLEAN, LARGE_EPS, WORST_CASE, Row
from hpt.hub import card
from hpt.hub.folder import ModelFolder
from hpt.hub.measurements import limits, results
from hpt.hub.rows import THIS, VANILLA, publish_rows, shown_rows
from hpt.hub.sections import SECTIONS, Section, reproduction, summary, training
from hpt.recipes.evaluate import Evaluation


MODEL = {"name": "org/clip", "hub_id": "org/clip", "revision": "c0ffee", "architecture": "CLIPModel"}
MODEL |= {"image_size": 224, "patch_size": 32, "parameters": 151_000_000, "dtype": "float32"}
SCHEDULE = {"steps_per_epoch": 10, "anchor_epochs": 1, "transfer_epochs": 2, "anchor_learning_rate": 1e-5}
SCHEDULE |= {"learning_rate": 5e-5, "warmup_steps": 3, "ema_decay": 0.9, "pull_ratio": 0.5}
RECORD = {
    "target": MODEL,
    "proxy": MODEL | {"name": "org/proxy", "hub_id": "org/proxy", "patch_size": 16},
    "vanilla_weights": "vanilla",
    "data": {"name": "images", "split": "train", "source": None, "images_per_epoch": 2560, "streamed": False}
    | {"class_names": ["cat", "dog"]},
    "prompt_template": "a {}",
    "trainable": "vision",
    "adapter": None,
    "schedule": SCHEDULE,
    "objective": "hpt",
    "divergence": "KL, forward, mean, temperature 1",
    "attack": "PGD-2 at l_inf eps 1/255 in steps of 1/255",
    "batch_size": 256,
    "processes": 1,
    "optimizer": "sgd",
    "precision": "float32",
    "hardware": "1 x NVIDIA H200",
    "seconds": 42,
    "step": 30,
    "steps": 30,
    "stage": "transfer",
    "best_step": None,
    "seed": 7,
    "settings": {"target": "org/clip", "train_dataset": "images", "attack_eps": "4/255"},
    "pretrained_by": {},
    "versions": {"hpt": "0.1.0", "torch": "2.13.0", "commit": "abcdef"},
    "license": None,
    "weights": "saved",
}

ROW = with_accuracy(Row(THIS, None, 0, 0, 0, 100, "digits", "test", "native", samples="s", weights="own"), 0.9)
PGD = with_accuracy(ROW, 0.5, attack="pgd", attacked=THIS, eps=4 / 255, norm="linf", steps=10)
WORST = with_accuracy(PGD, 0.45, attack=WORST_CASE, steps=None, parameters={"attacks": ["apgd", "pgd"]})


def of_vanilla(row: Row) -> Row:
    attacked = VANILLA if row.attacked == THIS else row.attacked
    return with_accuracy(row, 0.1, model=VANILLA, attacked=attacked, weights="vanilla")


@pytest.fixture
def write(tmp_path):
    """What a section says of a folder with these rows and this run."""

    def write(section, *rows: Row, pictures=(), **record) -> str:
        (tmp_path / "training.json").write_text(json.dumps(RECORD | record))
        lines = [json.dumps(asdict(with_accuracy(row, row.accuracy))) for row in rows]
        (tmp_path / "evaluation.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "figures").mkdir(exist_ok=True)
        for name in pictures:
            (tmp_path / "figures" / name).touch()
        return section(ModelFolder(tmp_path), "me/robust")

    return write


TRANSFER = with_accuracy(PGD, 0.8, attack="transfer", attacked="proxy", parameters={"proxy": "proxy"})


@pytest.mark.parametrize(
    ("row", "made"),
    [(TRANSFER, "transfer from proxy"), (with_accuracy(PGD, 0.8, attacked=VANILLA), "PGD-10 made on vanilla")],
    ids=["transfer", "comparison"],
)
def test_the_card_says_which_attacks_did_not_see_the_model(write, row, made):
    assert "the attack has seen" not in write(limits, ROW, PGD)
    text = write(limits, ROW, PGD, row)
    assert (
        f"- On digits, {made} at 4/255: the attack has seen another function than the one scored, so this doesn't say "
        "what this model withstands of an attacker who knows it."
    ) in text.replace("\\_", "_")


def test_what_was_attacked_is_called_what_it_is():
    """The proxy of a transfer attack, the vanilla model, and another function that attacks were made to see."""
    rows = [of_vanilla(PGD), TRANSFER, with_accuracy(PGD, 0.8, attacked="bare", parameters={"attacked_weights": "w"})]
    published = publish_rows(rows, "own", "vanilla")
    assert [(row.model, row.attacked) for row in published] == [(VANILLA, VANILLA), (THIS, "proxy"), (THIS, "other")]
    assert publish_rows([replace(ROW, identified_by="weights")], "own", None) == []


# Summary


def test_the_summary_says_what_was_measured(write):
    text = write(summary, ROW, PGD, WORST, *map(of_vanilla, (ROW, PGD, WORST)))
    assert text.endswith(
        "On 100 images of digits (test) it is right on 90.0 % [82.6, 94.5], and under the worst case at l_inf eps "
        "4/255 on 45.0 % [35.6, 54.8], where the vanilla model is on 10.0 % [5.5, 17.4]."
    )


def test_the_radius_is_that_of_training_if_it_was_measured(write):
    weaker, stronger = replace(PGD, eps=1 / 255, accuracy=0.8), replace(PGD, eps=8 / 255, accuracy=0.1, low=0.0)
    assert "at l_inf eps 4/255 on 50.0 %" in write(summary, ROW, weaker, PGD, stronger)
    assert "at l_inf eps 8/255 on 10.0 %" in write(summary, ROW, weaker, stronger)


def test_clean_and_attacked_are_of_the_same_samples(write):
    other = {"split": "validation", "samples": "t"}
    few = {"n": 20, "samples": "few"}
    text = write(
        summary,
        ROW,
        PGD,
        replace(PGD, **other, accuracy=0.1),
        replace(ROW, **few, accuracy=0.7),
        replace(WORST, **few),
    )
    assert "On 20 images of digits (test) it is right on 70.0 %" in text and "the worst case" in text
    assert "On 100 images of digits (test) it is right on 90.0 %" in write(summary, ROW, replace(PGD, **other), PGD)


def test_what_is_not_trained_yet_is_not_called_fine_tuned(write):
    assert write(summary, step=0) == (
        "<!-- Loaded by me/robust -->\n# robust\n\n"
        "A `CLIPModel` that isn't trained yet. It has not been evaluated: nothing is known of its accuracy and "
        "robustness on test images."
    )


def test_without_an_attack_the_summary_gives_the_clean_accuracy(write):
    assert write(summary, ROW).endswith("On 100 images of digits (test) it is right on 90.0 % [82.6, 94.5].")
    assert write(summary).endswith(
        "It has not been evaluated: nothing is known of its accuracy and robustness on test images."
    )


@pytest.mark.parametrize(
    ("objective", "anchor_epochs", "method", "tag"),
    [
        ("hpt", 1, "HPT-GPD", "hpt-gpd"),
        ("hpt", 0, "HPT without GPD", "hpt"),
        ("anchor", 1, "the objective `anchor` with GPD", "anchor"),
    ],
)
def test_only_what_ran_is_claimed(write, objective, anchor_epochs, method, tag):
    record = {"objective": objective, "schedule": SCHEDULE | {"anchor_epochs": anchor_epochs}}
    assert f"fine-tuned by {method} (" in write(summary, **record)
    table = write(training, **record)
    assert ("EMA decay" in table) == ("generalization-anchored" in table) == (anchor_epochs > 0)
    assert ("generalization-pulled HPT" in table) == (tag == "hpt-gpd")
    assert write(card.card_metadata, **record).tags[:2] == [tag, "robust"]


def test_of_an_unknown_step_nothing_is_claimed(write):
    record = {"trainer": "Mine", "objective": None, "anchor_objective": None, "divergence": None, "attack": None}
    record |= {"proxies": [RECORD["proxy"]], "papers": ["2601.12865"], "own_objectives": []}
    text = write(summary, **record)
    assert "fine-tuned by a training step of its own, that of `Mine`, with GPD (" in text
    assert "What that step minimises, and how it attacks images, isn't recorded." in text
    table = write(training, **record)
    for row in ("objective", "attack in training"):
        assert re.search(rf"\| {row} +\| not recorded ", table)
    assert "| proxy that was given " in table
    whole = write(card.render_card, ROW, PGD, **record)
    assert not re.search("HPT-GPD|pulled HPT|KL|withstand small|by learning from|hpt-gpd|- robust", whole)
    assert "by `Mine`, a subclass of `HPTTrainer` of hpt" in whole and "accelerate launch" not in whole


def test_all_proxies_are_named(write):
    other = MODEL | {"name": "org/other", "hub_id": "org/other", "image_size": 384, "wrapper": None}
    proxies = [RECORD["proxy"] | {"wrapper": "Voting"}, other]
    text = write(summary, proxies=proxies)
    assert "by learning from frozen models of another architecture (`Voting` around [org/proxy](" in text
    assert "), [org/other](https://huggingface.co/org/other))." in text
    table = write(training, proxies=proxies)
    assert "| proxy, in `Voting` " in table and table.count("| proxy") == 2
    assert "learning from" not in write(summary, proxies=[]) and "| proxy" not in write(training, proxies=[])


def test_what_is_not_part_of_hpt_is_said_where_it_is_reproduced(write):
    assert "Not part of hpt: `Mine`. It ran with" in write(reproduction, own_objectives=["Mine"])
    assert "Not part" not in write(reproduction)


def test_another_architecture_is_claimed_where_it_is_one(write):
    assert "a frozen model of another architecture ([org/proxy]" in write(summary)
    assert "a frozen model ([org/proxy]" in write(summary, proxy=MODEL | {"name": "org/proxy", "hub_id": "org/proxy"})
    assert "robust itself" not in write(summary)


def test_a_model_that_guesses_says_so_on_each_benchmark_once(write):
    rows = [replace(ROW, most_predicted=1.0, chance=0.1, samples=samples) for samples in "st"]
    rows += [replace(ROW, accuracy=0.1, low=0.05, most_predicted=0.4, chance=0.1, benchmark="other")]
    _, first, second, rest = write(summary, *rows, of_vanilla(ROW)).split("\n\n")
    assert first == (
        "**On digits this model is no better than guessing. 100 of 100 images get the same class: what such a model "
        "withstands says nothing.**"
    )
    assert second.startswith("**On other this model is no better than guessing. 10.0 % [5.5, 17.4] without an attack")
    assert rest.startswith("A `CLIPModel`, of which")
    assert "guessing" not in write(summary, replace(ROW, most_predicted=0.5, chance=0.1))


# Results


def test_rows_on_different_samples_stand_in_different_tables(write):
    few = [replace(row, n=20, samples="few") for row in (ROW, WORST)]
    text = write(results, ROW, PGD, *map(of_vanilla, (ROW, PGD)), *few)
    full, small = text.split("**digits**")[1:]
    assert (
        "(test, n = 100)" in full and "| none (clean) " in full and "| 10.0 [5.5, 17.4] | 50.0 [40.4, 59.6] |" in full
    )
    assert (
        "(test, n = 20)" in small
        and "vanilla" not in small
        and "Worst case per sample, l_inf eps 4/255: over apgd, pgd." in small
    )


def test_samples_of_the_same_number_are_told_apart(write):
    others = [replace(row, samples="t") for row in (ROW, PGD)]
    text = write(results, ROW, PGD, *others)
    assert "native resolution (samples s):" in text and "native resolution (samples t):" in text
    lines = write(limits, ROW, PGD, *others).splitlines()
    assert len(lines) == len(set(lines))


def test_of_growing_worst_cases_the_largest_is_shown():
    smaller = replace(WORST, parameters={"attacks": ["pgd"]})
    native = replace(WORST, attack_space="224")
    assert shown_rows([WORST, smaller, native]) == [WORST, native]
    assert shown_rows([smaller, WORST]) == [WORST]


def test_of_the_same_measured_again_the_later_is_shown():
    again = replace(PGD, accuracy=0.48, hpt_version="2")
    other_proxy = replace(PGD, parameters={"proxy_weights": "0"})
    assert shown_rows([PGD, other_proxy, again, replace(PGD, attack=LARGE_EPS)]) == [again, other_proxy]


def test_rows_of_other_weights_go(tmp_path):
    old = replace(PGD, weights="old")
    folder = ModelFolder(tmp_path)
    folder.add_rows([old, of_vanilla(PGD)], {"old", "vanilla"})
    folder.add_rows([PGD], {"own", "vanilla"})
    assert folder.rows == ModelFolder(tmp_path).rows == [of_vanilla(PGD), PGD]
    again = with_accuracy(PGD, 0.48)
    folder.add_rows([again], {"own", "vanilla"})
    assert folder.rows == ModelFolder(tmp_path).rows == [of_vanilla(PGD), again]


# Training


def test_the_training_is_told(write):
    table = write(training, pictures=["training_curves.png"])
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.splitlines() if "|" in line}
    link = "[org/clip](https://huggingface.co/org/clip) at c0ffee, 151 M parameters, 224 pixels, 32-pixel patches"
    assert cells["target"] == link
    assert cells["generalization-anchored warm-up"] == (
        "1 epoch, 10 steps, peak learning rate 1e-05, cosine after 3 warm-up steps"
    )
    assert cells["generalization-pulled HPT"].startswith("2 epochs, 20 steps, peak learning rate 5e-05")
    assert cells["objective"] == "hpt (KL, forward, mean, temperature 1)"
    assert cells["time"] == "42 seconds for 30 of 30 steps" and cells["batch"] == "256 images, sgd"
    assert "![Training curves](figures/training_curves.png)" in table


def test_what_was_done_to_the_training_images_is_told(write):
    table = write(training, data=RECORD["data"] | {"geometry": "224-224"}, settings={"augmentation": "crop_flip"})
    assert "2,560 images an epoch, at 224 pixels, by the model's own processor (224-224) |" in table
    assert table.splitlines()[6].split() == "| augmentation | `crop_flip` |".split()
    assert "augmentation" not in write(training) and "images an epoch |" in " ".join(write(training).split())


@pytest.mark.parametrize(("seconds", "text"), [(59, "59 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours")])
def test_time_is_told_in_a_fitting_unit(write, seconds, text):
    assert f" {text} for 30" in write(training, seconds=seconds)


# Limits


def test_attacks_are_missed_by_samples_and_radius(write):
    autoattack = replace(PGD, attack="autoattack", left_out=["apgd-t"], n=20, samples="few")
    text = write(limits, ROW, PGD, replace(PGD, eps=8 / 255), autoattack)
    untried = "cw, apgd-ce, apgd-dlr, apgd-t, fab-t, square, apgd, autoattack, adaptive, transfer"
    assert f"At l_inf eps 4/255, 8/255 on 100 images of digits (test) it was not attacked by {untried}." in text
    assert (
        "At l_inf eps 4/255 on 20 images of digits (test) it was not attacked by pgd, cw, apgd-dlr, apgd-t, apgd, "
        "adaptive, transfer."
    ) in text


def test_an_attack_on_another_model_is_none_on_this(write):
    text = write(
        limits,
        ROW,
        PGD,
        replace(PGD, attack="cw", attacked=VANILLA),
        replace(PGD, attack="transfer", attacked="proxy"),
    )
    assert "not attacked by cw, apgd-ce, apgd-dlr, apgd-t, fab-t, square, apgd, autoattack, adaptive." in text


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ([PGD], "l_inf eps 4/255 on 100 images of digits (test)"),
        ([PGD, replace(WORST, parameters={"attacks": ["pgd"]})], "l_inf eps 4/255 on 100 images of digits (test)"),
        ([PGD, WORST, replace(PGD, eps=8 / 255)], "l_inf eps 8/255 on 100 images of digits (test)"),
        ([PGD, WORST], None),
    ],
    ids=["none", "of one attack", "at one radius", "all"],
)
def test_a_missing_worst_case_is_told(write, rows, missing):
    text = write(limits, ROW, *rows)
    assert ("no worst case over several attacks was measured" in text) == (missing is not None)
    assert missing is None or f"At {missing} no worst case over several attacks" in text


def test_a_missing_worst_case_comes_with_the_command_that_measures_it(write):
    l2 = replace(PGD, norm="l2", eps=1.0, benchmark="birds")
    text = write(limits, ROW, PGD, replace(PGD, eps=8 / 255), l2)
    second, first = re.findall(r"`(hpt evaluate .*?)`", text)
    assert first == (
        "hpt evaluate --models me/robust --benchmarks digits --eps 4/255 8/255 --output_dir outputs/evaluation"
    )
    assert "--models me/robust --benchmarks birds=PATH --eps 1 --norm l2 --output_dir" in second
    for command in (first, second):
        settings, _ = parse_config((Evaluation,), None, shlex.split(command)[2:])
        assert settings.models == ["me/robust"]


def test_doubts_are_told_with_their_radius_and_not_across_samples(write):
    few = [replace(row, n=20, max_samples=20, samples="few") for row in (ROW, replace(WORST, accuracy=0.1, low=0.0))]
    assert "pgd-too-weak" not in write(limits, ROW, PGD, *few)
    weak = write(limits, ROW, PGD, replace(WORST, accuracy=0.2, low=0.1))
    assert "Doubt (`pgd-too-weak`) on digits at l_inf eps 4/255: PGD-10 leaves 50.0 %" in weak
    survivors = replace(PGD, attack=LARGE_EPS, eps=0.5, accuracy=0.3)
    assert "Doubt (`large-eps-survivors`) on digits at l_inf eps 127.5/255" in write(limits, ROW, PGD, survivors)
    assert write(limits, ROW, *few).count("few-samples") == 1


def test_clean_alone_is_no_robustness(write):
    assert "It was not attacked: nothing is known of its robustness." in write(limits, ROW)
    assert "It was not attacked: there is no picture of accuracy over eps." in write(results, ROW)
    assert "It was attacked at too few radii: there is no picture of accuracy" in write(results, ROW, PGD)
    assert ROW.attack == CLEAN


# Reproduction


def test_the_command_gives_what_was_local_and_as_many_processes(write):
    settings = {"target": "PATH/clip", "train_dataset": "birds=PATH/b:split=fit,class_names=PATH/names.txt"}
    settings |= {"eval_datasets": ["digits", "birds=PATH/b:split=test"], "proxy": "org/proxy"}
    text = write(reproduction, settings=settings, processes=2)
    command = text.split("```bash\n")[1].split("\n```")[0].replace(" \\\n   ", "")
    assert command == (
        "accelerate launch --num_processes 2 recipes/hpt_gpd.py --config run.yaml --output_dir outputs/again "
        "--target PATH/clip --train_dataset birds=PATH/b:split=fit,class_names=PATH/names.txt "
        "--eval_datasets digits birds=PATH/b:split=test"
    )
    assert "`PATH` stands for folders of the machine that it ran on" in text and "recipes/pretrain_clip" not in text


def test_only_what_a_recipe_made_is_said_to_be_made(write):
    settings = {"target": "PATH/clip", "train_dataset": "digits"}
    text = write(reproduction, settings=settings, pretrained_by={"target": "digits_target.yaml"})
    assert "The target was made by `recipes/pretrain_clip.py` from `digits_target.yaml`." in text


def test_the_command_names_no_proxy_that_nothing_learned_from(write):
    settings = {"target": "PATH/clip", "proxy": "PATH/proxy", "train_dataset": "digits"}
    made = {"target": "digits_target.yaml", "proxy": "digits_proxy.yaml"}
    text = write(reproduction, settings=settings, pretrained_by=made, proxies=[])
    assert "--target PATH/clip" in text and "The target was made by" in text and "proxy" not in text


@pytest.mark.parametrize(
    ("commit", "checkout"),
    [
        ("abcdef", "at commit `abcdef`, with `run.yaml`"),
        ("abcdef+changes", "at commit `abcdef`, from which files differed when it ran, with"),
        (None, "of version 0.1.0, with `run.yaml`"),
    ],
)
def test_the_commit_can_be_checked_out(write, commit, checkout):
    text = write(reproduction, versions=RECORD["versions"] | {"commit": commit})
    assert f"In a checkout of hpt {checkout}" in text and "--num_processes" not in text


# The list


def test_a_section_is_a_function_and_a_line(write, monkeypatch):
    monkeypatch.setattr(card, "SECTIONS", [*SECTIONS, Section("more", "And more", lambda folder, model_id: model_id)])
    assert write(card.render_card, ROW).endswith(
        "\n\n<!-- hpt:more -->\n## And more\n\nme/robust\n<!-- /hpt:more -->\n"
    )


def test_a_section_without_text_is_left_out(write, monkeypatch):
    before = write(card.render_card, ROW)
    monkeypatch.setattr(card, "SECTIONS", [*SECTIONS, Section("more", "And more", lambda *_: "")])
    assert write(card.render_card, ROW) == before
