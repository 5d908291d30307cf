"""Imports point down, from recipes over training and evaluation to the leaves, as `DOWN` says.

A module's layer is its folder; a file directly in `hpt/` is a leaf. All imports count, also those within functions and
under `TYPE_CHECKING`, and calls of `import_module` by the text that they begin with.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT


SIBLINGS = ("attacks", "data", "models")
LEVELS = {"leaf": 0, **dict.fromkeys(SIBLINGS, 1), "evaluation": 2, "hub": 3, "training": 4}
LEVELS |= {"benchmarking": 5, "comparing": 5, "recipes": 6, "main": 7}

FACTS = ("hpt.__version__", "hpt.__file__")  # what modules may ask of the package itself

DOWN = (
    "imports point down: recipes > benchmarking, comparing > training > hub > evaluation > attacks, data, models > "
    "leaves"
)
APART = "attacks, data and models never import each other"
LAZY = "hpt/__init__.py imports nothing of hpt or of other packages: its names load when first used"
BY_NAME = "hpt/__main__.py imports the recipe that is asked for, by import_module"
OWN_MODULE = "inside hpt a name comes from its own module; only __version__ and __file__ come from hpt"
NO_CIRCLE = "modules of one layer don't import each other in a circle"


@dataclass(frozen=True)
class Import:
    """One imported module, as a line of a file has it."""

    file: str
    line: int
    text: str
    module: str  # without the names that are taken from it
    by_name: bool  # by import_module

    def breaks(self, rule: str) -> str:
        return f"{self.file}:{self.line}: {self.text!r} breaks the rule that {rule}."


def broken_rules(sources: dict[str, str]) -> list[str]:
    """A line for each import that breaks a rule: file, line, import, rule.

    Args:
        sources (`dict[str, str]`): Path from the repository's root -> Python source, for all modules.
    """
    modules = {module_name(file) for file in sources}
    modules |= {module.rpartition(".")[0] for module in modules if "." in module}  # folders without __init__.py
    imports = [statement for file, source in sources.items() for statement in read_imports(file, source, modules)]
    imports = list(dict.fromkeys(imports))  # a line that takes two names of one module is one import
    broken = [(statement, rule) for statement in imports if (rule := broken_rule(statement))]
    return [statement.breaks(rule) for statement, rule in [*broken, *circles(imports)]]


def module_name(file: str) -> str:
    """`hpt/data/images.py` -> `hpt.data.images`; the folder `recipes` is installed as `hpt.recipes`."""
    *folders, name = Path(file).with_suffix("").parts
    folders = folders if folders[0] == "hpt" else ["hpt", *folders]
    return ".".join(folders if name == "__init__" else [*folders, name])


def layer(module: str) -> str:
    if module == "hpt.__main__":
        return "main"
    folder = "".join(module.split(".")[1:2])
    return folder if folder in LEVELS else "leaf"


# Reading


def read_imports(file: str, source: str, modules: set[str]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        by_name = isinstance(node, ast.Call)
        for name in _imported_names(node, file):
            yield Import(file, node.lineno, ast.unparse(node), _module_of(name, modules), by_name)


def _imported_names(node: ast.AST, file: str) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            folders = module_name(str(Path(file).with_name("__init__.py"))).split(".")
            parents = folders[: len(folders) + 1 - node.level] if node.level else []
            return [".".join([*parents, *filter(None, [node.module]), alias.name]) for alias in node.names]
        case ast.Attribute(value=ast.Name(id="hpt")):  # after `import hpt`
            return [f"hpt.{node.attr}"]
        case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[argument, *_]):
            return [_first_text(argument).rstrip(".")]
    return []


def _first_text(argument: ast.expr) -> str:
    """What is known of an argument: of `f"hpt.recipes.{name}"`, `hpt.recipes.`"""
    return next((part.value for part in ast.walk(argument) if isinstance(part, ast.Constant)), "")


def _module_of(name: str, modules: set[str]) -> str:
    """`hpt.data.images.collate` -> `hpt.data.images`; `recipes.evaluate` -> `hpt.recipes.evaluate`."""
    name = f"hpt.{name}" if name.split(".")[0] == "recipes" else name
    parent = name.rpartition(".")[0]
    return parent if parent in modules and name not in modules and name not in FACTS else name


# Judging


def broken_rule(statement: Import) -> str | None:
    importer, imported, package = module_name(statement.file), statement.module, statement.module.split(".")[0]
    if importer == "hpt":
        return None if package in sys.stdlib_module_names or statement.by_name else LAZY
    if package != "hpt" or imported in FACTS:
        return None
    above = layer(importer)
    if imported == "hpt":
        return None if above in ("recipes", "main") or statement.text == "import hpt" else OWN_MODULE
    below = layer(imported)
    if above == "main" and below == "recipes" and not statement.by_name:
        return BY_NAME
    if above in SIBLINGS and below in SIBLINGS and above != below:
        return APART
    return DOWN if LEVELS[above] < LEVELS[below] else None


def circles(imports: list[Import]) -> Iterator[tuple[Import, str]]:
    """The imports that lead back to the module they stand in."""
    inside = [
        statement
        for statement in imports
        if statement.module.startswith("hpt.") and layer(statement.module) == layer(module_name(statement.file))
    ]
    targets = {}
    for statement in inside:
        targets.setdefault(module_name(statement.file), set()).add(statement.module)
    for statement in inside:
        reached, waiting = set(), [statement.module]
        while waiting:
            module = waiting.pop()
            waiting += targets.get(module, set()) - reached
            reached |= targets.get(module, set())
        if module_name(statement.file) in reached:
            yield statement, NO_CIRCLE


def test_every_import_keeps_to_the_layers():
    files = [*ROOT.glob("hpt/**/*.py"), *ROOT.glob("recipes/**/*.py")]
    broken = broken_rules({file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files})
    assert not broken, "\n".join(["Imports that break the rule of layers:", *broken])


# The reader itself, on a small house with one more line

HOUSE = {
    "hpt/__init__.py": "from importlib import import_module\nimport_module(f'hpt.{name}')",
    "hpt/__main__.py": "import importlib\nfrom hpt.cli import run\nimportlib.import_module(f'hpt.recipes.{name}')",
    "hpt/cli.py": "from hpt.errors import InputError",
    "hpt/errors.py": "import re",
    "hpt/attacks/__init__.py": "from hpt.attacks.pgd import PGD",
    "hpt/attacks/pgd.py": "from hpt.errors import InputError",
    "hpt/data/__init__.py": "",
    "hpt/data/images.py": "",
    "hpt/evaluation/plan.py": "import hpt\nfrom hpt.attacks import PGD\nhpt.__version__",
    "hpt/hub/card.py": "from hpt.evaluation.plan import Plan",
    "hpt/training/trainer.py": "from hpt.hub.card import write_card\nfrom hpt import __version__",
    "recipes/evaluate.py": "from hpt import PGD\nfrom hpt.cli import run",
}

ADDED_LINES = {
    "up": ("hpt/evaluation/plan.py", "from hpt.hub.card import Card", DOWN),
    "up, in a function": ("hpt/hub/card.py", "def f():\n from hpt.training.trainer import T", DOWN),
    "up, for types alone": ("hpt/data/images.py", "if TYPE_CHECKING:\n import hpt.evaluation.plan", DOWN),
    "up, the module itself": ("hpt/attacks/pgd.py", "from hpt.evaluation import plan", DOWN),
    "up, relatively": ("hpt/attacks/pgd.py", "from ..evaluation.plan import Plan", DOWN),
    "up, by name": ("hpt/training/trainer.py", "importlib.import_module('hpt.recipes.evaluate')", DOWN),
    "up, through hpt": ("hpt/data/images.py", "import hpt\nhpt.training", DOWN),
    "up, through hpt for types alone": ("hpt/cli.py", "if TYPE_CHECKING:\n from hpt import data", DOWN),
    "a leaf": ("hpt/cli.py", "from hpt.data.images import collate", DOWN),
    "a recipe": ("hpt/training/trainer.py", "from recipes.evaluate import main", DOWN),
    "a sibling": ("hpt/attacks/pgd.py", "from hpt.data.images import collate", APART),
    "a sibling, relatively": ("hpt/attacks/pgd.py", "from ..data import images", APART),
    "a public name": ("hpt/hub/card.py", "from hpt import PGD", OWN_MODULE),
    "a public name, through hpt": ("hpt/hub/card.py", "import hpt\nhpt.PGD", OWN_MODULE),
    "hpt itself": ("hpt/__init__.py", "from hpt.errors import InputError", LAZY),
    "hpt itself, another package": ("hpt/__init__.py", "import torch", LAZY),
    "a recipe that wasn't asked for": ("hpt/__main__.py", "from hpt.recipes.evaluate import main", BY_NAME),
    "a circle": ("hpt/errors.py", "from hpt.cli import run", NO_CIRCLE),
    "a circle, relatively": ("hpt/attacks/pgd.py", "from . import PGD", NO_CIRCLE),
}


def test_a_sound_house_breaks_no_rule():
    assert broken_rules(HOUSE) == []


@pytest.mark.parametrize("added", ADDED_LINES)
def test_an_import_that_breaks_a_rule_is_named(added):
    file, source, rule = ADDED_LINES[added]
    lines = [*HOUSE[file].splitlines(), *source.splitlines()]
    broken = broken_rules(HOUSE | {file: "\n".join(lines)})
    assert f"{file}:{len(lines)}: {lines[-1].strip()!r} breaks the rule that {rule}." in broken
    assert all(rule in line for line in broken)
