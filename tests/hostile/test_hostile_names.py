"""Cards, leaderboards and pictures with names that mean something in Markdown, HTML, mathtext, YAML, Python or bash.

Class names, prompts, benchmarks, splits, attacks and models come from datasets, rows and cards of others. Pages with
such names are compared with those of an ordinary one: they have the same elements.
"""

import ast
import csv
import json
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers import HOSTILE, SOUND, of_model, with_accuracy
from huggingface_hub import ModelCardData

from hpt import InputError
from hpt.cli import run_recipe
from hpt.data.names import parse_benchmark
from hpt.escaping import markdown, one_line, terminal
from hpt.evaluation.flags import find_flags
from hpt.evaluation.outputs import draw_rows
from hpt.evaluation.report import format_accuracies, format_flags, format_samples, write_csv
from hpt.evaluation.rows import WORST_CASE, Row
from hpt.hub.card import write_card
from hpt.hub.card_text import BLOCK, hand_written, merge_cards, read_model_id
from hpt.hub.folder import ModelFolder
from hpt.hub.index import as_eval_result
from hpt.hub.leaderboard import draw_leaderboard, format_boards, left_out, make_panels, read_board, shared_columns
from hpt.hub.rows import THIS
from hpt.hub.sections import SECTIONS
from hpt.references import Reference, check_names, parse_model


ORDINARY = "plainname"
MODEL = {"hub_id": None, "revision": None, "architecture": "CLIPModel", "dtype": "float32"}
MODEL |= {"image_size": 224, "patch_size": 32, "parameters": 151_000_000}
SCHEDULE = {"steps_per_epoch": 10, "anchor_epochs": 1, "transfer_epochs": 2, "anchor_learning_rate": 1e-5}
SCHEDULE |= {"learning_rate": 5e-5, "warmup_steps": 3, "ema_decay": 0.9, "pull_ratio": 0.5}
CLEAN_ROW = with_accuracy(Row(THIS, None, 0, 0, 0, 100, "digits", "test", "native", samples="s"), 0.9)
PGD = replace(CLEAN_ROW, attack="pgd", attacked=THIS, eps=4 / 255, norm="linf", steps=10, step_size=1 / 255)
WORST = replace(PGD, attack=WORST_CASE, steps=None, step_size=None)


def record_with(name: str) -> dict:
    """What a run was, called so in all that others name."""
    filled = name.replace("{", "").replace("}", "")
    proxy = MODEL | {"name": name, "hub_id": "org/proxy", "patch_size": 16, "revision": name, "wrapper": name}
    return {
        "target": MODEL | {"name": name},
        "vanilla_weights": "vanilla",
        "proxies": [proxy],
        "data": {"name": name, "split": name, "source": f"{name}@c0ffee", "images_per_epoch": 10, "streamed": False}
        | {"class_names": [name, "dog"]},
        "prompt_template": [f"{filled} {{}}", "a {}"],
        "trainable": "vision",
        "adapter": None,
        "schedule": SCHEDULE,
        "objective": name or "mine",
        "own_objectives": [name],
        "divergence": name,
        "attack": name,
        "papers": [name],
        "batch_size": 4,
        "processes": 1,
        **dict.fromkeys(("optimizer", "precision", "hardware", "license"), name),
        **{"seconds": 42, "step": 30, "steps": 30, "stage": "transfer", "best_step": None, "seed": 7},
        "settings": {"target": f"{name}=PATH/{name}", "attack_eps": "4/255"},
        "pretrained_by": {"target": name},
        "versions": {"hpt": name, "torch": name, "commit": name},
        "weights": "saved",
    }


def choice_with(name: str) -> dict:
    """How a point of the dial was chosen, called so in all that others name."""
    point = {"t": 1.0, "u": 0.0, "clean": 0.5, "robust": 0.5, "num_samples": 8, "weights": name}
    named = "attack eps benchmark split source attack_space vanilla_weights final_weights".split()
    chosen = {"t": 1.0, "u": 0.0, "rule": "sum", "points": [point], "attacks": [name], "samples": 8, "seed": 0}
    return chosen | dict.fromkeys(named, name)


def conversion_with(name: str) -> dict:
    """What a model was converted from, called so in all that checkpoints name."""
    accuracy = {"n": 8, "accuracy": 1.0, "other_accuracy": 0.5, "better": None}
    accuracy |= dict.fromkeys(("benchmark", "split", "activation", "other_activation"), name)
    return {
        **dict.fromkeys(("source", "hub_id", "commit", "layout", "license"), name),
        "sha256": {name: name},
        "base": {"name": name, "weights": name},
        "facts": [{"name": name, "value": name, "source": name}],
        "parity": [{"against": name, "images": 4, "prompts": 8, "cosine": 1e-7, "logit": 1e-5}],
        "not_compared": [name],
        "versions": {name: name},
        "accuracy": accuracy,
    }


def rows_with(name: str) -> list[Row]:
    """Measured rows, called so in all that others name."""
    attacks = [replace(PGD, attack=f"pgd:{name}"), replace(PGD, attacked=name or "x", left_out=[name])]
    rows = [CLEAN_ROW, *attacks, replace(WORST, parameters={"attacks": [name, "pgd"]})]
    return [replace(row, benchmark=name, split=name) for row in rows]


def write_card_with(name: str, path) -> str:
    """The card of a run and of rows that are called so in all that others name."""
    path.mkdir()
    (path / "training.json").write_text(json.dumps(record_with(name)))
    ModelFolder(path).write_choice(choice_with(name))
    ModelFolder(path).write_conversion(conversion_with(name))
    (path / "evaluation.jsonl").write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows_with(name)))
    write_card(ModelFolder(path), f"me/{name.replace('/', '')}")
    return (path / "README.md").read_text(encoding="utf-8")


def leaderboard_with(name: str, path) -> str:
    """The page of two cards whose rows are called so, and of one that has no worst case; its picture is drawn too."""
    data = ModelCardData(model_name="clip", eval_results=list(map(as_eval_result, rows_with(name))))
    path.mkdir()
    (path / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n", encoding="utf-8")
    board = read_board(Reference(name, str(path)))
    assert {row.benchmark for row in board.rows.values()} == {name}
    without = {column: row for column, row in board.rows.items() if row.attack != WORST_CASE}
    boards = [board, replace(board, name="other"), replace(board, name="third", rows=without)]
    columns = shared_columns(boards)
    draw_leaderboard(boards, make_panels(columns), path / "leaderboard.png")
    lines = [f"- {markdown(line)}" for line in left_out(boards, columns)]
    return "\n".join([format_boards(boards, columns), "", *lines])


def evaluation_with(name: str) -> str:
    """The page of an evaluation's rows that are called so."""
    rows = [replace(row, model=name) for row in rows_with(name)]
    flags = find_flags([replace(row, most_predicted=1.0, chance=0.1) for row in rows])
    return "\n\n".join([format_samples(rows), format_accuracies(rows), format_flags(flags)])


def elements(text: str) -> list[str]:
    """The elements of a page of Markdown, without its words; code is the same in either notation."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    parts = [part for token in tokens for part in (token.children or [token])]
    kinds = ["code_inline" if part.content == "<code>" else part.type for part in parts if part.content != "</code>"]
    return [kind for kind in kinds if kind not in ("text", "inline")]


def parts_of(card: str) -> tuple[str, str]:
    """Metadata and text of a card."""
    _, metadata, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return metadata, body


@pytest.fixture(scope="module")
def card_with(tmp_path_factory):
    """The card with a name, written once."""
    return cache(lambda name: write_card_with(name, tmp_path_factory.mktemp("cards") / "run"))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory) -> dict[str, list[str]]:
    """The elements of the pages of an ordinary name."""
    folder = tmp_path_factory.mktemp("ordinary")
    pages = {"card": parts_of(write_card_with(ORDINARY, folder / "card"))[1]}
    pages |= {"board": leaderboard_with(ORDINARY, folder / "board"), "evaluation": evaluation_with(ORDINARY)}
    return {name: elements(page) for name, page in pages.items()}


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Figures, which are laid out with all their texts, and written as empty files."""

    def save(figure, path, layout=True):
        figure.draw_without_rendering()
        Path(path).touch()

    monkeypatch.setattr("hpt.evaluation.figures.save_figure", save)
    monkeypatch.setattr("hpt.hub.leaderboard.save_figure", save)


NAMED = [name for name in HOSTILE if HOSTILE[name]]


@pytest.mark.parametrize("name", NAMED)
def test_a_card_has_the_same_elements_and_is_found_again(ordinary, card_with, name):
    text = card_with(HOSTILE[name])
    assert [block[1] for block in BLOCK.finditer(text)] == [section.name for section in SECTIONS]
    assert hand_written(text) == "" and merge_cards(text, text) == text
    assert read_model_id(text) == f"me/{one_line(HOSTILE[name].replace('/', ''))}"
    metadata, body = parts_of(text)
    results = yaml.safe_load(metadata)["model-index"][0]["results"]
    assert {result["dataset"]["name"] for result in results} == {HOSTILE[name]}
    assert terminal(body) == body and elements(body) == ordinary["card"]


@pytest.mark.parametrize("name", NAMED)
def test_the_code_in_a_card_names_it_and_does_nothing_else(card_with, name):
    for code in re.findall(r"^```python\n(.*?)^```$", card_with(HOSTILE[name]), re.MULTILINE | re.DOTALL):
        nodes = list(ast.walk(ast.parse(code)))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert {f"me/{HOSTILE[name].replace('/', '')}", HOSTILE[name]} <= texts
        assert not any(isinstance(node, ast.Attribute) and node.attr == "abort" for node in nodes)


@pytest.mark.parametrize("name", NAMED)
def test_a_leaderboard_and_an_evaluation_have_the_same_elements(ordinary, tmp_path, name):
    assert elements(leaderboard_with(HOSTILE[name], tmp_path / "board")) == ordinary["board"]
    assert {*elements(evaluation_with(HOSTILE[name]))} == {*ordinary["evaluation"]}  # wide tables are divided


@pytest.mark.parametrize("name", HOSTILE)
def test_pictures_and_tables_stay_in_their_folder(tmp_path, name):
    folder = tmp_path / "a" / "b" / "c" / "out"
    folder.mkdir(parents=True)
    rows = [of_model(row, HOSTILE[name], benchmark=HOSTILE[name]) for row in SOUND]
    draw_rows(rows, folder)
    assert all(file.parent == folder for file in tmp_path.rglob("*") if file.is_file())
    assert len(list(folder.glob("*.png"))) == 2
    write_csv(rows, folder / "results.csv")
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        assert {row["benchmark"].removeprefix("'") for row in csv.DictReader(file)} == {one_line(HOSTILE[name])}


def test_names_that_differ_have_pictures_of_their_own(tmp_path):
    names = ["a/b", "a_b", "a--b", "a b", "x" * 300, "x" * 299]
    draw_rows([replace(row, benchmark=name) for name in names for row in SOUND], tmp_path)
    assert len(list(tmp_path.glob("robustness_*"))) == len(names)


HIDDEN = [name for name, text in HOSTILE.items() if text.strip() != text or one_line(text) != text]


@pytest.mark.parametrize("name", [*HIDDEN, "nothing", "long", "wide"])
def test_names_that_users_give_are_refused_in_a_line(tmp_path, name):
    for read in (parse_model, parse_benchmark):
        with pytest.raises(InputError) as refused:
            read(f"{HOSTILE[name]}={tmp_path}")
        assert one_line(str(refused.value)) == str(refused.value)
    with pytest.raises(InputError, match="^The name '.*NAME=PATH.$"):
        check_names(["mine", HOSTILE[name]])


def test_what_an_error_names_does_nothing_in_a_terminal(capsys):
    def main():
        raise InputError("There is no \x1b]0;owned\x07benchmark\rNothing is wrong.\n  It has\x9b these:")

    with pytest.raises(SystemExit, match="2"):
        run_recipe(main)
    said = "There is no \\x1b]0;owned\\x07benchmark\\rNothing is wrong.\n  It has\\u009b these:"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_long_prompt_is_no_path():
    template = "a photo of a {}, " + "x" * 300
    assert parse_benchmark(f"cifar10:template={template}").settings == {"template": template}


def test_a_path_that_no_file_system_takes_is_refused_in_a_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_recipe(lambda: Path("x" * 300).read_text(encoding="utf-8"))
    assert capsys.readouterr().err == f"error: The path '{'x' * 300}' is too long.\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": MODEL | {"name": "x", "architecture": "CLIPModel; import os"}},
            "as the model's class, which can't",
        ),
        ({"settings": {"attack_eps": "1); import os; (1"}}, "eps is '1.; import os; .1', but must be a number"),
    ],
    ids=["architecture", "eps"],
)
def test_what_is_no_name_cannot_enter_the_code_of_a_card(tmp_path, change, message):
    record = record_with(ORDINARY) | change
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        write_card(ModelFolder(tmp_path), "me/x")


def test_code_for_a_tower_that_reads_lower_case_has_the_same_characters(tmp_path):
    record = record_with("A\U000e0041") | {"target": MODEL | {"name": "x", "architecture": "SiglipModel"}}
    (tmp_path / "training.json").write_text(json.dumps(record))
    write_card(ModelFolder(tmp_path), "me/x")
    code = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert all(ast.literal_eval(re.search(r'\["a[^"]*", "dog"\]', part)[0]) == ["a\U000e0041", "dog"] for part in code)
