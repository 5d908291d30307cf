"""Cards of models and datasets whose metadata would take minutes or all memory, or are no metadata."""

import time

import pytest
from huggingface_hub import HfApi
from PIL import Image

from hpt import InputError, load_benchmark
from hpt.files import LONGEST_TEXT
from hpt.hub.card_text import hand_written, merge_cards, remote_card, stated_license
from hpt.hub.leaderboard import read_board, read_results
from hpt.references import parse_model
from hpt.yaml_files import LONGEST_METADATA


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{level}: &a{level} [{', '.join(9 * [f'*a{level - 1}'])}]" for level in range(1, 20)
)
METADATA = {
    "bomb of aliases": (BOMB, "line 2: write out what the alias .a0 stands for"),
    "an alias": ("a: &a 1\nb: *a", "line 2: write out what the alias .a stands for"),
    "an alias of itself": ("a: &a [*a]", "the alias .a"),
    "a merged mapping": ("a: &a {b: 1}\nc: {<<: *a}", "the alias .a"),
    "5 MB": ("\n".join(f"k{n}: [1, 2, {{a: b}}]" for n in range(250_000)), "too long for YAML: .* of 1,000,000"),
    "one line of 2 MB": (f"a: {'x' * 2_000_000}", "too long for YAML"),
    "deep lists": ("a: " + 5000 * "[" + 5000 * "]", "nested too deep"),
    "deep mappings": ("a: " + 5000 * "{a: " + 5000 * "}", "nested too deep"),
    "deep lists without an end": ("a: " + 5000 * "[", "nested too deep|isn't valid YAML"),
    "a Python object": ("a: !!python/object/apply:os.system ['exit 1']", "isn't valid YAML"),
    "an own tag": ("a: !mine 1", "isn't valid YAML"),
    "not closed": ("a: [", "isn't valid YAML"),
    "a tab": ("a:\n\tb: 1", "isn't valid YAML"),
    "a zero": ("a: \0", "isn't valid YAML"),
    "two documents": ("a: 1\n--- \nb: 1", "isn't valid YAML|"),
    "a key twice": ("license: mit\nlicense: gpl", "gives license more than once"),
    "a list": ("[1]", "must hold"),
    "a text": ("hello", "must hold"),
    "a list as a key": ("? [1]\n: 2", "isn't valid YAML"),
    "a date that isn't": ("a: 2024-13-45", "isn't what it looks like"),
    "a number of 5000 digits": (f"a: {'9' * 5000}", "isn't what it looks like"),
    "a number by its tag": ("a: !!int x", "isn't what it looks like"),
}
MODEL_INDEX = {
    "a text": "x",
    "a mapping": "{a: 1}",
    "no results": "[{results: null}]",
    "no name": "[{name: x}]",
    "numbers": "[1, 2]",
    "results of numbers": "[{name: x, results: [1]}]",
    "a result without a task": "[{name: x, results: [{dataset: {}, metrics: []}]}]",
    "metrics of numbers": "[{name: x, results: [{task: {type: a}, dataset: {type: a, name: a}, metrics: [1]}]}]",
    "a value that is a mapping": "[{name: x, results: [{task: {type: a}, dataset: {type: a, name: a}, metrics: "
    "[{type: accuracy, value: {a: 1}, args: {n: {}}}]}]}]",
}


def card_of(metadata: str) -> str:
    return f"---\n{metadata}\n---\n# A card\n"


def merge_into(card: str) -> str:
    return merge_cards(card_of("tags: []"), card)


def assert_refused_at_once(run, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=reason) as refused:
        run()
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 600
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", METADATA)
def test_a_leaderboard_refuses_it_in_a_line(tmp_path, name):
    metadata, reason = METADATA[name]
    (tmp_path / "README.md").write_text(card_of(metadata))
    reason = f"The metadata of the card of .*({reason})|has no results of hpt" if reason[-1] == "|" else reason
    assert_refused_at_once(lambda: read_board(parse_model(str(tmp_path))), reason)


@pytest.mark.parametrize("name", MODEL_INDEX)
def test_a_leaderboard_refuses_results_that_are_none(tmp_path, name):
    (tmp_path / "README.md").write_text(card_of(f"model-index: {MODEL_INDEX[name]}"))
    reason = "The metadata of the card of .* can't be read|has no results of hpt"
    assert_refused_at_once(lambda: read_board(parse_model(str(tmp_path))), reason)


@pytest.mark.parametrize("name", ["bomb of aliases", "5 MB", "deep lists", "not closed", "a list"])
@pytest.mark.parametrize("read", [stated_license, hand_written, merge_into], ids=["license", "text", "merge"])
def test_publishing_refuses_it_in_a_line(name, read):
    metadata, reason = METADATA[name]
    assert_refused_at_once(lambda: read(card_of(metadata)), f"The metadata of README.md.*{reason}")


@pytest.mark.parametrize("name", ["bomb of aliases", "5 MB", "deep lists", "a Python object", "not closed", "a list"])
@pytest.mark.parametrize("beside", [None, "rows.parquet"])
def test_a_folder_of_images_with_such_a_dataset_card_is_refused(tmp_path, name, beside):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / kind / "1.png")
    if beside:
        (tmp_path / beside).write_bytes(b"")
    metadata, reason = METADATA[name]
    (tmp_path / "README.md").write_text(card_of(metadata))
    assert_refused_at_once(lambda: load_benchmark(f"birds={tmp_path}"), f"The metadata of .*README.md.*{reason}")


def test_the_metadata_of_a_thousand_results_are_read():
    metadata = "\n".join(f"k{n}: {'x' * 80}" for n in range(LONGEST_METADATA // 100))
    assert stated_license(card_of(f"{metadata}\nlicense: mit")) == "mit"


def test_a_card_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "README.md").open("wb") as file:
        file.truncate(4 << 30)  # takes no place on the disk
    line = "README.md has 4,294,967,296 bytes, but a text may have 16,000,000 at most"
    for path in (tmp_path, tmp_path / "README.md"):
        assert_refused_at_once(lambda path=path: read_results(parse_model(str(path))), line)


def test_a_card_of_gigabytes_is_not_downloaded(hub, tmp_path):
    (folder := hub.root / "models" / "me" / "clip").mkdir(parents=True)
    (folder / "README.md").write_bytes(b"x" * (LONGEST_TEXT + 1))
    for read in (lambda: remote_card(HfApi(), "me/clip"), lambda: read_results(parse_model("me/clip"))):
        assert_refused_at_once(read, "The card of me/clip has 16,000,001 bytes, but a text may have 16,000,000")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 10_000]


def test_a_card_that_is_no_text_is_refused(hub):
    (folder := hub.root / "models" / "me" / "clip").mkdir(parents=True)
    (folder / "README.md").write_bytes(b"---\nlicense: caf\xe9\n---\n")
    assert_refused_at_once(lambda: read_results(parse_model("me/clip")), "README.md isn't UTF-8")
