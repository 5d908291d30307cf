"""Checkpoints compared by their cards, and never two different things in a column."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, ModelCardData
from test_publishing import run_recipe

from hpt import InputError
from hpt.leaderboard import format_boards, left_out, read_board, select_columns, title_columns
from hpt.model_index import as_eval_result
from hpt.results import CLEAN, WORST_CASE, Row


CLEAN_ROW = Row(THIS := "this model", None, 0.9, 0.85, 0.95, 100, "digits", "test", "native", samples="s")
PGD = replace(CLEAN_ROW, attack="pgd", attacked=THIS, eps=4 / 255, norm="linf", steps=10, step_size=1 / 255)
WORST = replace(PGD, attack=WORST_CASE, steps=None, step_size=None, parameters={"attacks": ["apgd", "pgd"]})


def save_card(folder, *rows, scale: float = 1.0):
    scaled = [
        replace(row, **{name: scale * getattr(row, name) for name in ("accuracy", "low", "high")}) for row in rows
    ]
    results = [as_eval_result(row) for row in scaled]
    folder.mkdir(parents=True, exist_ok=True)
    data = ModelCardData(model_name="clip", eval_results=results, library_name="transformers")
    ModelCard(f"---\n{data}\n---\n\n# A card").save(folder / "README.md")
    return folder


@pytest.fixture
def pair(tmp_path):
    return [
        save_card(tmp_path / "a", CLEAN_ROW, PGD, WORST),
        save_card(tmp_path / "b", CLEAN_ROW, PGD, WORST, scale=0.5),
    ]


def test_what_was_measured_in_the_same_way_shares_a_column(pair):
    boards = [read_board(f"{path.name}={path}") for path in reversed(pair)]
    columns = select_columns(boards)
    samples = "digits (test, n = 100)"
    assert list(title_columns(columns).values()) == [
        (samples, "clean"),
        (samples, "PGD-10 (steps of 1/255) at l_inf eps 4/255"),
        (samples, "the worst case over apgd, pgd at l_inf eps 4/255"),
    ]
    title, _, header, _, clean, *_ = format_boards(boards, columns).splitlines()
    assert title == "digits (test, n = 100)"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, clean)]
    assert cells == [["attack", "a", "b"], ["clean", "90.0 [85.0, 95.0]", "45.0 [42.5, 47.5]"]]  # most robust first


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
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_things_are_not_mixed(tmp_path, change):
    boards = [
        read_board(str(save_card(tmp_path / "a", CLEAN_ROW, PGD))),
        read_board(str(save_card(tmp_path / "b", CLEAN_ROW, replace(PGD, **change)))),
    ]
    with pytest.raises(InputError, match="No attack was measured on all of them with the same settings"):
        select_columns(boards)


def test_worst_cases_over_other_attacks_are_not_mixed(tmp_path):
    weaker = replace(WORST, parameters={"attacks": ["pgd"]})
    boards = [
        read_board(str(save_card(tmp_path / name, CLEAN_ROW, PGD, row))) for name, row in (("a", WORST), ("b", weaker))
    ]
    columns = select_columns(boards)
    assert [column.attack for column in columns] == [CLEAN, "PGD-10 (steps of 1/255)"]
    assert [line.partition(": ")[2] for line in left_out(boards, columns)] == [
        f"the worst case over apgd, pgd at l_inf eps 4/255 (only {tmp_path / 'a'})",
        f"the worst case over pgd at l_inf eps 4/255 (only {tmp_path / 'b'})",
    ]


def test_columns_can_be_chosen(tmp_path, pair):
    further = replace(PGD, eps=8 / 255)
    for path in pair:
        save_card(path, CLEAN_ROW, PGD, WORST, further)
    boards = [read_board(str(path)) for path in pair]
    assert [column.eps for column in select_columns(boards, attacks=["pgd"], eps=[8 / 255])] == [None, 8 / 255]
    with pytest.raises(InputError, match="There is no attack at all"):
        select_columns(boards, benchmarks=["cifar10"])


def test_cards_without_results_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no README.md"):
        read_board(str(tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A card")
    with pytest.raises(InputError, match="has no results of hpt in its model-index"):
        read_board(str(tmp_path))


def test_recipe_compares_a_folder_with_a_repository(hub, pair, tmp_path, capsys):
    save_card(hub.root / "models" / "me" / "clip", CLEAN_ROW, PGD)
    run_recipe("leaderboard.py", "--models", f"local={pair[1]}", "me/clip", "--output_dir", tmp_path / "board")
    printed = capsys.readouterr().out
    assert (tmp_path / "board" / "leaderboard.md").read_text().strip() in printed
    assert printed.index(" me/clip ") < printed.index(" local ") and "- Left out: digits" in printed
    assert (tmp_path / "board" / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="Can't load the model card 'me/none': no such Hub id"):
        run_recipe("leaderboard.py", "--models", "me/none", "me/clip", "--output_dir", tmp_path / "board")
