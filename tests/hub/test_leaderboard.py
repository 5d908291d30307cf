"""Checkpoints compared by their cards, and never two different things in a column."""

from dataclasses import replace

import pytest
from helpers import run_recipe, with_accuracy
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hpt import InputError
from hpt.evaluation.rows import ALL_IMAGES, CASCADE, CLEAN, WORST_CASE, Row
from hpt.hub.index import as_eval_result, as_row
from hpt.hub.leaderboard import (
    column_of,
    format_boards,
    left_out,
    read_board,
    read_results,
    shared_columns,
    title_columns,
)
from hpt.json_files import DIGEST
from hpt.references import parse_model


CLEAN_ROW = with_accuracy(Row(THIS := "this model", None, 0, 0, 0, 100, "digits", "test", "native", samples="s"), 0.9)
PGD = replace(CLEAN_ROW, attack="pgd", attacked=THIS, eps=4 / 255, norm="linf", steps=10, step_size=1 / 255)
WORST = replace(PGD, attack=WORST_CASE, steps=None, step_size=None, parameters={"attacks": ["apgd", "pgd"]})


RESULT_OF_ANOTHER = {
    "task_type": "zero-shot-image-classification",
    "dataset_type": "digits",
    "dataset_name": "digits",
    "metric_type": "accuracy",
    "metric_value": 0.5,
}


def save_card(folder, *rows, scale: float | None = None):
    if scale is not None:
        rows = [with_accuracy(row, scale * row.accuracy) for row in rows]
    results = [as_eval_result(row) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    data = ModelCardData(model_name="clip", eval_results=results, library_name="transformers")
    ModelCard(f"---\n{data}\n---\n\n# A card").save(folder / "README.md")
    return folder


def board_of(text):
    return read_board(parse_model(text))


@pytest.fixture
def pair(tmp_path):
    return [
        save_card(tmp_path / "a", CLEAN_ROW, PGD, WORST),
        save_card(tmp_path / "b", CLEAN_ROW, PGD, WORST, scale=0.5),
    ]


def test_what_was_measured_in_the_same_way_shares_a_column(pair):
    boards = [board_of(f"{path.name}={path}") for path in reversed(pair)]
    columns = shared_columns(boards)
    samples = "digits (test, n = 100)"
    assert list(title_columns(columns).values()) == [
        (samples, "clean"),
        (samples, "PGD-10 (steps of 1/255) at l_inf eps 4/255"),
        (samples, "the worst case over apgd, pgd at l_inf eps 4/255"),
    ]
    title, _, header, _, clean, *_ = format_boards(boards, columns).splitlines()
    assert title == "digits (test, n = 100)"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, clean)]
    assert cells == [["attack", "a", "b"], ["clean", "90.0 [82.6, 94.5]", "45.0 [35.6, 54.8]"]]  # most robust first


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 8 / 255},
        {"norm": "l2"},
        {"steps": 50},
        {"step_size": 2 / 255},
        {"attack": "pgd:random_start=0"},
        {"n": 99},
        {"split": "valid"},
        {"samples": "others"},
        {"attack_space": "224"},
        {"attacked": "vanilla"},
        {"parameters": {"random_start": False}},
        {"left_out": ["apgd-t"]},
        {"batch_size": 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_things_are_not_mixed(tmp_path, change):
    boards = [
        board_of(str(save_card(tmp_path / "a", CLEAN_ROW, PGD))),
        board_of(str(save_card(tmp_path / "b", CLEAN_ROW, with_accuracy(PGD, 0.9, **change)))),
    ]
    with pytest.raises(InputError, match="No attack was measured on all of them with the same settings"):
        shared_columns(boards)


def test_worst_cases_over_other_attacks_are_not_mixed(tmp_path):
    weaker = replace(WORST, parameters={"attacks": ["pgd"]})
    boards = [
        board_of(str(save_card(tmp_path / name, CLEAN_ROW, PGD, row))) for name, row in (("a", WORST), ("b", weaker))
    ]
    columns = shared_columns(boards)
    assert [column.attack for column in columns] == [CLEAN, "PGD-10 (steps of 1/255)"]
    assert [line.partition(": ")[2] for line in left_out(boards, columns)] == [
        f"the worst case over apgd, pgd at l_inf eps 4/255 (only {tmp_path / 'a'})",
        f"the worst case over pgd at l_inf eps 4/255 (only {tmp_path / 'b'})",
    ]


def test_columns_can_be_chosen(tmp_path, pair):
    further = replace(PGD, eps=8 / 255)
    for path in pair:
        save_card(path, CLEAN_ROW, PGD, WORST, further)
    boards = [board_of(str(path)) for path in pair]
    assert [column.eps for column in shared_columns(boards, attacks=["pgd"], eps=[8 / 255])] == [None, 8 / 255]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"benchmarks": ["cifar10"]}, "No card has the benchmark 'cifar10'. They have digits."),
        ({"attacks": ["pdg"]}, "No card has the attack 'pdg': did you mean pgd? They have clean, pgd, worst case."),
        ({"attacks": ["pgd", "cw"]}, "No card has the attack 'cw'. They have clean, pgd, worst case."),
        ({"eps": [1 / 255]}, "No card has an attack at eps 1/255. They have 4/255, 8/255."),
        (
            {"attacks": ["pgd"], "eps": [8 / 255]},
            "No card has an attack of that kind at that eps. They have\n"
            "  digits (test, n = 100): PGD-10 (steps of 1/255) at l_inf eps 4/255 (of a, b)\n"
            "  digits (test, n = 100): the worst case over apgd, pgd at l_inf eps 8/255 (of b)",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_no_card_has_is_refused_with_what_they_have(tmp_path, asked, message):
    rows = {"a": (CLEAN_ROW, PGD), "b": (CLEAN_ROW, PGD, replace(WORST, eps=8 / 255))}
    boards = [board_of(f"{name}={save_card(tmp_path / name, *own)}") for name, own in rows.items()]
    with pytest.raises(InputError) as error:
        shared_columns(boards, **asked)
    assert str(error.value) == message


def test_checkpoints_without_an_attack_are_refused(tmp_path):
    with pytest.raises(InputError, match="None of the cards has an attack: evaluate them together by `hpt evaluate`"):
        shared_columns([board_of(str(save_card(tmp_path / "a", CLEAN_ROW)))])


def test_what_is_not_shared_is_listed_in_short_lines(tmp_path):
    rows = {"a": PGD, "b": replace(PGD, steps=50), "c": replace(PGD, steps=50)}
    boards = [board_of(f"{name}={save_card(tmp_path / name, CLEAN_ROW, row)}") for name, row in rows.items()]
    with pytest.raises(InputError) as error:
        shared_columns(boards)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("No attack was measured on all of them with the same settings: evaluate them together")
    assert lines == [
        "  digits (test, n = 100): PGD-10 (steps of 1/255) at l_inf eps 4/255 (of a)",
        "  digits (test, n = 100): PGD-50 (steps of 1/255) at l_inf eps 4/255 (of b, c)",
    ]


def test_an_attack_is_chosen_by_its_name_whatever_its_settings(tmp_path):
    board = board_of(str(save_card(tmp_path / "a", CLEAN_ROW, replace(PGD, attack="pgd:steps=50", steps=50), WORST)))
    assert [column.attack for column in shared_columns([board], attacks=["pgd"])] == [
        CLEAN,
        "PGD-50 (steps of 1/255)",
    ]


def test_comparisons_of_the_first_version_and_of_this_one_share_a_column(tmp_path):
    """The former don't say that they attack all images; cards of either don't."""
    now = replace(PGD, parameters={"steps": 10, ALL_IMAGES: True})
    before = replace(PGD, parameters={"steps": 10})
    assert column_of(now) == column_of(before) != column_of(replace(before, batch_size=64))
    assert as_eval_result(now) == as_eval_result(before)
    assert list(board_of(str(save_card(tmp_path / "a", CLEAN_ROW, now))).rows)[1] == column_of(now)


def test_images_made_against_an_unknown_model_are_not_compared(tmp_path):
    rows = [replace(PGD, attacked="vanilla"), replace(PGD, attack="transfer", attacked="proxy")]
    known = replace(rows[1], parameters={"proxy_weights": "c0ffee"})
    board = board_of(str(save_card(tmp_path / "a", CLEAN_ROW, PGD, *rows, known)))
    assert list(board.rows.values()) == [CLEAN_ROW, PGD, known]
    ends = [line.partition(" on images made against the ")[2] for line in left_out([board], list(board.rows))]
    why = f"on digits of {tmp_path / 'a'}: its images were made against a model that isn't known by its weights"
    assert ends[0] == f"vanilla model at l_inf eps 4/255 {why}" and len(ends) == 2


@pytest.mark.parametrize(
    "change", [{"samples": "t"}, {"attack_space": "224"}, {"parameters": {"random_start": False}}]
)
def test_different_columns_have_different_titles(tmp_path, change):
    board = board_of(str(save_card(tmp_path / "a", CLEAN_ROW, PGD, replace(PGD, **change))))
    titles = title_columns(board.rows)
    assert len(titles) == len(set(titles.values())) == 3
    tables = format_boards([board], list(board.rows))
    assert all(samples in tables and attack in tables for samples, attack in titles.values())


def test_the_most_robust_stand_first_by_the_hardest_attack(tmp_path):
    l2 = replace(PGD, norm="l2", eps=1.0)
    boards = []
    for name, accuracies in (("a", (0.6, 0.3)), ("b", (0.5, 0.4))):
        rows = [with_accuracy(row, value) for row, value in zip((PGD, l2), accuracies, strict=True)]
        boards.append(board_of(f"{name}={save_card(tmp_path / name, CLEAN_ROW, *rows)}"))
    table = format_boards(boards, shared_columns(boards))
    assert table.index(" a ") < table.index(" b ")


@pytest.mark.parametrize("attack", [WORST_CASE, CASCADE])
def test_the_worst_case_is_the_hardest_attack(tmp_path, attack):
    boards = []
    for name, accuracies in (("a", (0.6, 0.3)), ("b", (0.5, 0.4))):
        rows = (PGD, replace(WORST, attack=attack))
        rows = [with_accuracy(row, value) for row, value in zip(rows, accuracies, strict=True)]
        boards.append(board_of(f"{name}={save_card(tmp_path / name, CLEAN_ROW, *rows)}"))
    table = format_boards(boards, shared_columns(boards))
    assert table.index(" b ") < table.index(" a ")


@pytest.mark.parametrize(
    "metadata",
    [
        "[1]",
        "a: [",
        "model-index: x",
        "model-index: {a: 1}",
        "model-index: [{results: null}]",
        "model-index: [{name: x}]",
    ],
)
def test_metadata_that_cannot_be_read_are_refused_in_a_line(tmp_path, metadata):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# A card\n")
    with pytest.raises(
        InputError, match="of the card of .* (can't be read|must hold|isn't valid)|has no results"
    ) as error:
        board_of(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": "high"},
        {"accuracy": 57.5},
        {"accuracy": float("nan")},
        {"eps": "4/255"},
        {"eps": None},
        {"low": [0.1]},
        {"attack": 3},
        {"norm": "l7"},
        {"eps": 4.0},
        {"n": "many"},
        {"steps": "ten"},
        {"attack": WORST_CASE},
        {"parameters": [1]},
        {"left_out": "apgd-t"},
        {"eps": float("inf")},
        {"step_size": float("nan")},
        {"samples": ["s"]},
        {"attacked": {"a": 1}},
        {"attack": WORST_CASE, "parameters": {"attacks": [1]}},
        {"attack": WORST_CASE, "parameters": {"attacks": "pgd"}},
        {"parameters": {1: 1, "a": 1}},
    ],
    ids=str,
)
def test_values_that_cannot_be_are_not_compared(change):
    result = as_eval_result(PGD)
    assert as_row(result, THIS) == PGD
    value = change.get("accuracy", result.metric_value)
    arguments = {name: argument for name, argument in result.metric_args.items() if name != DIGEST}
    with pytest.raises(ValueError, match="it has a value that can't be"):
        as_row(replace(result, metric_value=value, metric_args=arguments | change), THIS)


def test_results_of_others_are_not_compared(tmp_path):
    results = [as_eval_result(CLEAN_ROW), as_eval_result(PGD)]
    results += [EvalResult(**RESULT_OF_ANOTHER), EvalResult(**RESULT_OF_ANOTHER | {"metric_type": "f1"})]
    data = ModelCardData(model_name="clip", eval_results=results, library_name="transformers")
    ModelCard(f"---\n{data}\n---\n\n# A card").save(tmp_path / "README.md")
    assert board_of(f"mine={tmp_path}").unusable == [
        "accuracy on digits of mine: it isn't an accuracy with its settings",
        "f1 on digits of mine: it isn't an accuracy with its settings",
    ]


def test_two_label_sets_of_a_dataset_stay_apart(tmp_path):
    rows = [replace(CLEAN_ROW, benchmark=name, source="org/birds@abc", samples=name) for name in ("species", "genus")]
    board = board_of(str(save_card(tmp_path / "a", *rows)))
    assert {row.benchmark for row in board.rows.values()} == {"species", "genus"}
    assert [result.dataset_name for result in read_results(parse_model(str(tmp_path / "a")))] == ["species", "genus"]


def test_a_result_is_named_by_whom_the_images_were_made_against():
    of_itself, of_vanilla = (
        as_eval_result(replace(PGD, attacked=attacked)).metric_name for attacked in (THIS, "vanilla")
    )
    assert of_itself == "Robust accuracy under PGD-10 (steps of 1/255) at l_inf eps 4/255"
    assert of_vanilla == (
        "Robust accuracy under PGD-10 (steps of 1/255) on images made against the vanilla model at l_inf eps 4/255"
    )


def test_cards_without_results_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no README.md"):
        board_of(str(tmp_path))
    with pytest.raises(InputError, match="A model's path is empty"):
        board_of("clip=")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A card")
    with pytest.raises(InputError, match="has no results of hpt in its model-index"):
        board_of(str(tmp_path))


def test_recipe_compares_a_folder_with_a_repository(hub, pair, tmp_path, capsys):
    save_card(hub.root / "models" / "me" / "clip", CLEAN_ROW, PGD)
    run_recipe("leaderboard.py", "--models", f"local={pair[1]}", "me/clip", "--output_dir", tmp_path / "board")
    printed = capsys.readouterr().out
    assert (tmp_path / "board" / "leaderboard.md").read_text().strip() in printed
    assert printed.index(" me/clip ") < printed.index(" local ") and "- Left out: digits" in printed
    assert (tmp_path / "board" / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="Can't load the model card 'me/none': no such Hub id"):
        run_recipe("leaderboard.py", "--models", "me/none", "me/clip", "--output_dir", tmp_path / "board")
