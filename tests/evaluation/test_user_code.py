"""Classifiers out of Python files: what `make` is given, what is said, and what is refused before and after that."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, ROOT, make_benchmark, make_clip, make_dataset, refusal_of, run_recipe

from hpt import InputError, ZeroShotClassifier
from hpt.evaluation.functions import FunctionSubject
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.subject import Subject
from hpt.evaluation.user_code import check_code, describe_code, failures_located, is_code, load_code
from hpt.models.loading import save_finished
from hpt.references import parse_model


CPU = torch.device("cpu")
DEFENCE = """
from dataclasses import dataclass

import torch

import steps_of_mine


@dataclass
class Flipped:
    weights: torch.Tensor

    def __call__(self, images):
        return images.flip(-1).flatten(1) @ self.weights * steps_of_mine.STEPS


def weights(classes):
    return torch.randn(768, classes, generator=torch.Generator().manual_seed(0))


def make(class_names, template):
    assert template == "{}"
    return Flipped(weights(len(class_names)))


def make_once(device="nowhere"):
    return Flipped(weights(3).to(device))


def make_open():
    class Open:
        def with_classes(self, class_names, template=None):
            return make(class_names, template)

    return Open()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "steps_of_mine.py").write_text("STEPS = 3\n")
    (tmp_path / "my_defence.py").write_text(DEFENCE)
    return tmp_path / "my_defence.py"


def load(file, function="make", name="mine"):
    model = parse_model(f"{name}={file}:{function}", loaded=True)
    assert is_code(model)
    check_code(model)
    return load_code(model, CPU)


def test_the_file_and_the_function_identify_it(file):
    """Also where all that differs isn't looked at, as what begins with an underscore."""
    file.write_text(
        "class Shifted:\n    def __init__(self, by):\n        self._by = by\n\n"
        "    def __call__(self, images):\n        return images.flatten(1)[:, self._by : self._by + 3]\n\n\n"
        "def one():\n    return Shifted(1)\n\n\ndef two():\n    return Shifted(2)\n"
    )
    one, again, two = (load(file, function).configuration for function in ("one", "one", "two"))
    file.write_text(file.read_text().replace("Shifted(1)", "Shifted(5)"))
    assert one == again and len({one, two, load(file, "one").configuration}) == 3


@pytest.mark.parametrize("function", ["make", "make_once", "make_open"])
def test_a_function_in_a_file_makes_a_classifier_over_the_classes(file, function):
    subject, benchmark = load(file, function), make_benchmark()
    assert isinstance(subject, FunctionSubject) and subject.name == "mine"
    images = torch.rand(2, 3, 16, 16)
    weights = torch.randn(768, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(subject.on(benchmark)(images), images.flip(-1).flatten(1) @ weights * 3)
    assert subject.settings(benchmark)["identified_by"] == "file and weights"


def test_names_say_where_it_comes_from_unless_they_are_given(file):
    model = parse_model(f"{file}:make", loaded=True)
    assert model.name == f"{file}:make" and load_code(model, CPU).name == model.name
    named = parse_model(f"mine={file}:make", loaded=True)
    assert describe_code(named) == f"mine is made by make in {file}: the code in that file is run."
    assert not any(is_code(parse_model(text)) for text in ("org/clip", "mine=org/clip", "org/clip@v2", "org/clip.py"))


def test_an_edited_file_or_another_function_is_another_classifier(file):
    benchmark = make_benchmark()

    def kept(function="make"):
        settings = load(file, function).settings(benchmark)
        return settings["configuration"], settings["tokens"]

    before = kept()
    assert kept() == before != kept("make_open")
    file.write_text(DEFENCE + "# a comment\n")
    assert kept()[0] != before[0] and kept()[1] == before[1]


def test_functions_of_one_file_share_it_and_files_of_one_name_do_not(tmp_path):
    code = "import pickle\nclass Classifier:\n    scale = {}\n    def __call__(self, images):\n"
    code += "        return images.flatten(1)[:, :3] * pickle.loads(pickle.dumps(self)).scale\n"
    code += "made = Classifier()\ndef make():\n    return made\ndef make_again():\n    return made\n"
    files = [tmp_path / folder / "same.py" for folder in "ab"]
    for scale, file in enumerate(files, start=2):
        file.parent.mkdir()
        file.write_text(code.format(scale))
    first, again, other = load(files[0]), load(files[0], "make_again"), load(files[1])
    assert first.classifier is again.classifier and first.configuration != again.configuration
    for scale, subject in ((2, first), (3, other)):
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(subject.on(make_benchmark())(images), images.flatten(1)[:, :3] * scale)


def test_another_name_and_folder_change_nothing(file, tmp_path):
    def kept(place):
        subject = load(place)
        return subject.settings(make_benchmark())

    before = kept(file)
    (tmp_path / "moved").mkdir()
    assert kept(file.rename(tmp_path / "moved" / "renamed.py")) == before


def test_weights_that_a_file_reads_count(tmp_path):
    code = "import torch\ndef make():\n    networks = [torch.load({!r})]\n"
    code += "    return lambda images: images.flatten(1) @ networks[0]\n"
    file = tmp_path / "reads.py"
    file.write_text(code.format(str(tmp_path / "weights.pt")))
    seen = []
    for seed in (0, 1):
        torch.save(torch.randn(768, 3, generator=torch.Generator().manual_seed(seed)), tmp_path / "weights.pt")
        seen.append(load(file))
    assert seen[0].configuration == seen[1].configuration and seen[0].weights != seen[1].weights


def test_a_dual_encoder_that_it_loads_is_itself(tmp_path):
    save_finished(*make_clip(0), tmp_path / "clip")
    file = tmp_path / "loads.py"
    file.write_text(f"from hpt import load_proxy\ndef make():\n    return load_proxy({str(tmp_path / 'clip')!r})\n")
    subject = load(file)
    assert isinstance(subject, Subject)
    assert subject.weights == Subject(ZeroShotClassifier(*make_clip(0))).weights


def test_the_defence_of_the_documents_is_one(tmp_path, monkeypatch):
    save_finished(*make_clip(0), tmp_path / "outputs" / "quickstart" / "robust")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "recipes" / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (block,) = [block for block in blocks if "def make(" in block]
    (tmp_path / "my_defence.py").write_text(block)
    subject, benchmark, images = load("my_defence.py"), make_benchmark(), torch.rand(2, 3, 16, 16)
    expected = ZeroShotClassifier(*make_clip(0), CLASSES, "{}").eval()(F.avg_pool2d(images, 2))
    torch.testing.assert_close(subject.on(benchmark)(images), expected)
    assert subject.why_no_gradient(benchmark) is None


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("def make(:\n", "make", "broken.py, line 1 isn't Python: invalid syntax"),
        ("x = 'a\0b'\n", "make", "broken.py.* isn't Python: source code .*null bytes"),
        ("\n\nimport no_such_module\n", "make", "The code in .*broken.py fails: ModuleNotFoundError: .*, in line 3"),
        ("def mak(): pass\nx = 3\n", "make", "has no function 'make'; known: mak. Did you mean mak"),
        ("make = 3\n", "make", "has no function 'make'; known: none"),
        ("def make():\n    return 1 / 0\n", "make", "broken.py fails: ZeroDivisionError: division by zero, in line 2"),
        (
            "def make(network): pass\n",
            "make",
            "broken.py needs network, but it can only be given class_names and with it ",
        ),
        (
            "def make(*any, **more): return 3\n",
            "make",
            "The result of .*broken.py:make is a int, but must be a function of",
        ),
        ("import sys\nsys.exit(3)\n", "make", "The code in .*broken.py fails: SystemExit: 3, in line 2"),
        ("def make(): pass\n", "make", "The result of .*broken.py:make is a NoneType, but must be a function of im"),
        ("def make(class_names): pass\n", "make", "mine gives a NoneType for the classes of random, but must give a"),
        ("def make(class_names):\n    len(3)\n", "make", "broken.py fails: TypeError: .*, in line 2"),
    ],
)
def test_what_cannot_be_run_is_a_line_that_names_the_place(tmp_path, code, function, message):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "broken.py", function).on(make_benchmark())
    assert "\n" not in str(error.value)


def test_what_is_refused_is_not_run(tmp_path):
    (tmp_path / "ran.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    (tmp_path / "folder.py").mkdir()
    for text, message in (
        (f"{tmp_path}/run.py:make", "there is no file .*run.py: did you mean .*ran.py"),
        (f"{tmp_path}/ran.py:make@v2", "is a function in a local file, which has no revision and no settings"),
        (f"{tmp_path}/ran.py:make:image_size=32", "is a function in a local file, which has no revision and no sett"),
        ("https://example.com/defence.py:make", "there is no file https:"),
        (f"{tmp_path}/ran.py", "ran.py': give a function in that file, as FILE.py:FUNCTION"),
        (f"{tmp_path}/ran.py:", "ran.py:': give a function in that file, as FILE.py:FUNCTION"),
        (f"{tmp_path}/ran.py:make()", r"ran.py:make\(\)': give a function in that file, as FILE.py:FUNCTION"),
        (f"{tmp_path}/ran.py:a.b", "give a function in that file, as FILE.py:FUNCTION"),
        (f"{tmp_path}/folder.py:make", r"there is no file .*folder.py\.$"),
    ):
        with pytest.raises(InputError, match=message):
            check_code(parse_model(text, loaded=True))
    check_code(parse_model(f"{tmp_path}/ran.py:make", loaded=True))
    assert not (tmp_path / "touched").exists()


def test_a_file_is_found_whatever_its_name_holds(tmp_path):
    for name in ("a=b.py", "a:b.py", "ä b@1.py"):
        (tmp_path / name).write_text(DEFENCE.replace("import steps_of_mine", ""))
        model = parse_model(f"{tmp_path}/{name}:make_once", loaded=True)
        check_code(model)
        assert load_code(model, CPU).name == f"{tmp_path}/{name}:make_once"


def test_what_fails_in_the_middle_of_an_attack_is_a_line_too(tmp_path):
    """A function that takes one image, but not several; and errors of others stay what they are."""
    make_dataset(10).to_parquet(tmp_path / "images.parquet")
    file = tmp_path / "single.py"
    lines = [
        "def make():",
        "    def f(images):",
        "        assert len(images) == 1",
        "        return images[:, :, 0, 0]",
    ]
    file.write_text("\n".join([*lines, "    return f"]))
    given = [f"images={tmp_path}/images.parquet:split=train,template={{}},geometry=native", "--attacks", "pgd:steps=1"]
    given += ["--eps", "8/255", "--use_cpu", "True", "--output_dir", tmp_path / "out"]
    refused = refusal_of("evaluate.py", "--models", f"{file}:make", "--benchmarks", *given)
    assert refused == f"The code in {file} fails: AssertionError, in line 3."
    with pytest.raises(ZeroDivisionError), failures_located([parse_model(f"{file}:make"), parse_model("a/clip")]):
        raise ZeroDivisionError


def test_the_recipe_says_that_it_runs_code_and_evaluates_what_comes_out(file, capsys):
    """Beside the model that it is a function of; gone on with, and refused when the file was edited."""
    folder = file.parent
    save_finished(*make_clip(0), folder / "clip")
    make_dataset(10).to_parquet(folder / "images.parquet")
    given = ["--models", f"mine={file}:make", f"clip={folder / 'clip'}", "--benchmarks"]
    given += [
        f"images={folder / 'images.parquet'}:split=train,template={{}},geometry=native",
        "--attacks",
        "pgd:steps=1",
    ]
    given += ["--eps", "8/255", "--use_cpu", "True", "--output_dir", folder / "out"]
    run_recipe("evaluate.py", *given)
    printed = capsys.readouterr().out
    said = printed.index(f"mine is made by make in {file}: the code in that file is run.\n")
    assert said < printed.index("| mine ") and "| clip " in printed
    rows = read_result_rows(folder / "out")
    assert {row.model: row.identified_by for row in rows} == {"mine": "file and weights", "clip": None}
    run_recipe("evaluate.py", *given)
    assert "is finished: 6 of 6 rows are there." in capsys.readouterr().out
    assert read_result_rows(folder / "out") == rows
    names = [json.loads(line)["model"] for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert names.count("mine") == 4
    file.write_text(DEFENCE.replace("flip(-1)", "flip(-2)"))
    refused = refusal_of("evaluate.py", *given[:2], *given[3:])
    assert "results from other settings for model mine (configuration" in refused
    assert "no such folder" in refusal_of("evaluate.py", *given, "--proxy", f"{file}:make")
