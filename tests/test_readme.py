"""The documents: what they name exists, their commands can be given, and the README's Python runs, on tiny models."""

import re
import shlex
import sys
from functools import cache
from runpy import run_path

import pytest
import torch
from helpers import ROOT, make_clip

import hpt
from hpt.__main__ import COMMANDS
from hpt.hub.sections import CITATION
from hpt.models.loading import save_finished


FOLDERS = [ROOT / name for name in ("hpt", "recipes", "examples", "tests")]
DOCUMENTS = [ROOT / "README.md", *sorted(file for folder in FOLDERS for file in folder.rglob("[A-Z]*.md"))]
EACH_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
SHORT = "anchor_epochs=1, transfer_epochs=1, warmup_steps=0, use_cpu=True"
# What the README's Python is run with instead: models and images made on the spot, and a run of two epochs
ON_TINY_MODELS = {
    '"openai/clip-vit-base-patch32"': '"target"',
    '"openai/clip-vit-base-patch16"': '"proxy"',
    'load_benchmark("tiny_imagenet", "train")': 'load_benchmark("digits", "train").subset(32)',
    'load_benchmark("cifar10")': 'load_benchmark("digits").subset(20)',
    'HPTConfig("outputs/robust")': f'HPTConfig("outputs/robust", {SHORT})',
    "max_samples=1000": "max_samples=20",
    'ATTACKS["autoattack"](eps=1 / 255)': 'ATTACKS["autoattack"](eps=64 / 255)',  # at which all break at once
}


def code(document, language: str) -> list[str]:
    """The blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(document) -> str:
    """The text around the blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(document) -> list[str]:
    """What stands between backticks in the text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]


def commands(document) -> list[list[str]]:
    """Commands of hpt and launches of recipes, as words; what stands before a recipe is the launcher's."""
    lines = "\n".join(code(document, "bash")).replace("\\\n", " ").splitlines() + spans(document)
    parts = [part for line in lines for part in line.split(" && ")]
    matches = [re.search(r"^hpt [a-z].*|recipes/\w+\.py.*", part) for part in parts]
    return [shlex.split(match[0], comments=True) for match in matches if match]


def recipe_of(words: list[str]) -> tuple[str, bool]:
    """The script behind a command line, and whether it takes `--num_processes`."""
    if words[0] != "hpt":
        return words[0].removeprefix("recipes/").removesuffix(".py"), False
    assert words[1] in COMMANDS, f"hpt has no command {words[1]!r}"
    return COMMANDS[words[1]][:2]


@pytest.fixture
def fields(monkeypatch, capsys):
    """What gives a recipe's fields, as its own `--help all` lists them."""

    @cache
    def fields_of(recipe: str) -> set[str]:
        script = str(ROOT / "recipes" / f"{recipe}.py")
        monkeypatch.setattr(sys, "argv", [script, "--help", "all"])
        with pytest.raises(SystemExit):
            run_path(script, run_name="__main__")
        return set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))

    return fields_of


def test_public_names_are_those_of_the_package():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| public names |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(hpt.__all__)


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    """All blocks, one after another, in a folder that has the tiny models."""
    monkeypatch.chdir(tmp_path)
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size=patch_size), tmp_path / name)
    source = "\n".join(code(ROOT / "README.md", "python"))
    for text, tiny in ON_TINY_MODELS.items():
        assert text in source
        source = source.replace(text, tiny)
    names = {"images": torch.rand(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
    exec(compile(source, "README.md", "exec"), names)
    assert (tmp_path / "outputs" / "robust" / "final" / "model.safetensors").is_file()
    assert {row.benchmark for row in names["rows"]} == {"digits"} and names["adversarial"].shape == (2, 3, 16, 16)


@EACH_DOCUMENT
def test_links_and_pictures_exist(document):
    """Relative ones, on the disk as on GitHub, with the heading that they name."""
    for link in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", prose(document)):
        path, _, heading = "".join(link).partition("#")
        if path.startswith("https:"):
            continue
        linked = document.parent / path if path else document
        assert linked.exists(), f"{path} isn't there"
        assert not heading or heading in headings(linked), f"{linked} has no heading #{heading}"


def headings(document) -> list[str]:
    """Headings as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@EACH_DOCUMENT
def test_files_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"(?:recipes|examples|tests|hpt)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists(), path


@EACH_DOCUMENT
def test_commands_and_their_settings_exist(document, fields):
    for words in commands(document):
        recipe, takes_processes = recipe_of(words)
        options = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        options -= {"help", "config", *(["num_processes"] if takes_processes else [])}
        assert not options or options <= fields(recipe), shlex.join(words)
        if "--config" in words:
            name = words[words.index("--config") + 1]
            assert (ROOT / (name if name.endswith(".yaml") else f"recipes/{name}.yaml")).is_file(), shlex.join(words)


def test_settings_that_stand_alone_exist(fields):
    """What begins with `--` between backticks is a field of some recipe."""
    known = set.union(*(fields(recipe) for recipe, *_ in COMMANDS.values() if recipe != "env"))
    for span in (span for document in DOCUMENTS for span in spans(document) if span.startswith("--")):
        named = set(re.findall(r"(?:^| )--([a-z]\w*)", span))
        assert named <= known | {"config", "help", "num_processes"}, span


def test_the_readme_cites_as_cards_do():
    assert CITATION in (ROOT / "README.md").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^  (\w+)=\{(.*?)\},?$", CITATION, re.MULTILINE))
    assert {"title", "author", "year", "eprint", "archivePrefix", "url"} <= set(fields)
    assert fields["url"].endswith(f"arxiv.org/abs/{fields['eprint']}")
