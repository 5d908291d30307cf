"""Damaged records of a run: one line that names the file, and never a traceback from the middle of a card."""

import json

import pytest
from helpers import make_trainer

from hpt import InputError
from hpt.hub.card import render_card
from hpt.hub.folder import ModelFolder
from hpt.json_files import sealed, unsealed


ODD = [None, True, -1, 0.5, 10**400, "x", [], [None], {}, {"x": None}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a trainer's model before training, with its record."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    trainer = make_trainer(folder.parent / "run")
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(folder)
    trainer.describe(folder)
    return folder


@pytest.fixture
def record(saved):
    return unsealed(json.loads((saved / "training.json").read_text()))


def outcome(folder) -> str:
    """What comes of a card of a folder's record: itself, or the line of the refusal."""
    try:
        return render_card(ModelFolder(folder), "me/robust")
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return "refused"


def places(value, path=()):
    """The path to each part of a record, but for lists."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield (*path, name)
            yield from places(part, (*path, name))


def changed(record, path, value):
    name, *rest = path
    return record | {name: changed(record[name], rest, value) if rest else value}


def lacking(record, path):
    name, *rest = path
    if rest:
        return record | {name: lacking(record[name], rest)}
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize("value", [*ODD, "missing"], ids=str)
def test_odd_parts_of_a_record_are_named_or_on_the_card(saved, record, tmp_path, value):
    """Also with a digest of their own, as no damage gives it."""
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    for path in places(record):
        odd = lacking(record, path) if value == "missing" else changed(record, path, value)
        (tmp_path / "training.json").write_text(json.dumps(odd))
        outcome(tmp_path)


def test_a_flipped_bit_of_a_record_is_a_line_or_changes_nothing(saved, record, tmp_path):
    content = json.dumps(sealed(record)).encode()
    (tmp_path / "training.json").write_bytes(content)
    assert "# robust" in outcome(tmp_path)
    for place in range(0, len(content), 17):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 8
        (tmp_path / "training.json").write_bytes(altered)
        try:
            taken = ModelFolder(tmp_path).run  # whose digest is called otherwise
            assert {name: taken[name] for name in record} == record
        except InputError as error:
            assert "training.json isn't" in str(error) and "\n" not in str(error)


def test_a_change_by_hand_is_taken_without_the_digest(saved, record, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(sealed(record) | {"license": "mit"}))
    with pytest.raises(
        InputError, match="it was altered.* What you have changed in it by hand is taken if you remove"
    ):
        ModelFolder(tmp_path).run  # noqa: B018
    (tmp_path / "training.json").write_text(json.dumps(record | {"license": "mit"}))
    assert ModelFolder(tmp_path).run["license"] == "mit"


@pytest.mark.parametrize(
    "config", [b"[]", b"{}", b"{", b'{"architectures": []}', b'{"architectures": ["A"], "vision_config": 1}', b"\xff"]
)
def test_odd_configurations_are_named(tmp_path, config):
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(InputError, match=r"config.json (is damaged|isn't UTF-8)"):
        ModelFolder(tmp_path).model  # noqa: B018
