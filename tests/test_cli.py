"""Settings from YAML and a command line, help, and how recipes end."""

import errno
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from helpers import ONE_THREAD

from hpt import HPTConfig, InputError
from hpt.cli import WIDTH, parse_config, run_recipe, split_option
from hpt.errors import TrainingStopped
from hpt.radius import Fraction


@dataclass
class Data:
    """What it is about."""

    dataset: str = field(default="digits", metadata={"help": "A benchmark."})
    sets: list[str] = field(default_factory=lambda: ["a"], metadata={"help": "Several of them."})
    eps: list[Fraction] | None = field(default=None, metadata={"help": "Radii."})


@dataclass
class Needed:
    """What has to be given."""

    run: str


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "dataset: cifar10\nattack_eps: 2/255\nlearning_rate: 5e-3\nsets: [b, c]\neps: [1/255, 0.5]\n"
        f"output_dir: {tmp_path}\nattack_random_start: false\nsave_strategy: 'no'\nuse_cpu: true\nobjective:\n"
    )
    return path


def test_what_differs_from_the_defaults_is_printed_once(file, capsys, monkeypatch):
    arguments = ["--attack_steps", "2", "--no_dataloader_in_order", "--dataloader-in-order", "True"]
    arguments += ["--hub_token", "hf_secret", "--attack-eps=4/255", "--sets", "a", "--kl_reduction=sum"]
    parse_config((Data, HPTConfig), file, arguments, announce=True)
    printed = " ".join(capsys.readouterr().out.split())
    begin = "Settings that differ from the defaults, with run.yaml: --dataset cifar10 --eps 1/255 0.5 "
    assert printed.startswith(begin)
    for setting in ("--attack_eps 4/255", "--learning_rate 0.005", "--kl_reduction sum", "--save_strategy no"):
        assert setting in printed
    for name in ("attack_steps", "sets", "secret", "objective", "in_order"):
        assert name not in printed
    monkeypatch.setenv("RANK", "1")
    parse_config((Data, HPTConfig), file, arguments, announce=True)
    assert capsys.readouterr().out == ""


def test_yaml_then_command_line(file):
    data, args, path = parse_config((Data, HPTConfig), file, ["--attack_eps", "4/255", "--transfer-epochs", "7"])
    assert (data.dataset, data.sets, data.eps) == ("cifar10", ["b", "c"], [1 / 255, 0.5])
    assert args.attack_eps == pytest.approx(4 / 255) and args.learning_rate == 5e-3
    assert (args.transfer_epochs, args.attack_random_start, args.objective) == (7, False, "hpt")
    assert path == file
    for given in (["--config", str(file)], [f"--config={file}"]):
        data, args, path = parse_config((Data, HPTConfig), None, [*given, "--sets", "d"])
        assert (data.sets, path) == (["d"], file)


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        ("datset: x", [], r"Unknown field 'datset' in .*: did you mean dataset\?$"),
        ("atack_eps: 1", [], r"did you mean attack_eps\?$"),
        ("dataset: x", ["--sett", "y"], r"Unknown field 'sett' in the command line: did you mean sets\?$"),
        ("hue: 1", [], r"'hue' in .*\. Known: .*anchor_epochs.*, and those of TrainingArguments\.$"),
        ("attack:\n  eps: 1", [], r"attack has fields of its own \(eps\), but recipes are flat: a line"),
        ("dataset:\n  name: x\n  y: z", [], r"dataset has fields of its own \(name, y\), but recipes are flat"),
        ("eps: []", [], "bad.yaml: eps is an empty list: give a value, or leave it out"),
        ("- a", [], "must hold `field: value` lines"),
        ("a: b: c", [], "isn't valid YAML"),
        ("", ["--config"], "--config needs a YAML file"),
        ("", ["--config", "nowhere.yaml"], "no configuration file 'nowhere.yaml'"),
        ("", ["--anchor_epochs", "1", "2"], "^'2' belongs to no field: write --FIELD before it, or leave it out.$"),
        ("", ["--restart", "maybe"], "^--restart is 'maybe', but must be True or False.$"),
        ("", ["--anchor_epochs"], "^--anchor_epochs is given without a value: write one behind it.$"),
        ("", ["--eps"], "^--eps is given without a value"),
        ("", ["--anchor_epochs", "few"], "^--anchor_epochs is 'few', but must be a whole number.$"),
        ("eps: 4/25x", [], "^--eps is '4/25x', but must be a number or a fraction, such as 1/255.$"),
        (
            "",
            ["--output_dir", "unused", "--use_cpu", "True", "--fp16", "True", "--bf16", "True"],
            "Can't use the settings: At most one of",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path, content, argv, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        parse_config((Data, HPTConfig), path, argv)


def test_a_setting_that_is_needed_is_named_as_it_is_given():
    with pytest.raises(InputError, match="^Needed, but not given: --run.$"):
        parse_config((Needed,), argv=[])


# Names of configurations


@pytest.fixture
def recipe_folder(tmp_path):
    """A recipe's folder, with a configuration for it and one for another recipe."""
    (tmp_path / "small.yaml").write_text("dataset: cifar10\n")
    (tmp_path / "other.yaml").write_text("target: x\n")
    return tmp_path


@pytest.mark.parametrize("given", [["--config", "small"], ["--config=small"], []])
def test_a_name_is_a_file_beside_the_recipe(recipe_folder, monkeypatch, given):
    (recipe_folder / "elsewhere").mkdir()
    monkeypatch.chdir(recipe_folder / "elsewhere")
    data, path = parse_config((Data,), None if given else "small", given, folder=recipe_folder)
    assert (data.dataset, path) == ("cifar10", recipe_folder / "small.yaml")


def test_a_name_may_have_a_folder_before_it(recipe_folder):
    (recipe_folder / "study").mkdir()
    (recipe_folder / "study" / "large.yaml").write_text("dataset: all\n")
    data, path = parse_config((Data,), None, ["--config", "study/large"], folder=recipe_folder)
    assert (data.dataset, path) == ("all", recipe_folder / "study" / "large.yaml")
    with pytest.raises(InputError, match="'study/larg'; known: small, study/large. Did you mean study/large"):
        parse_config((Data,), None, ["--config", "study/larg"], folder=recipe_folder)


def test_a_path_is_a_path(recipe_folder, monkeypatch):
    (recipe_folder / "elsewhere").mkdir()
    monkeypatch.chdir(recipe_folder / "elsewhere")
    with pytest.raises(InputError, match="no configuration file 'small.yaml'"):
        parse_config((Data,), None, ["--config", "small.yaml"], folder=recipe_folder)
    (recipe_folder / "elsewhere" / "small.yaml").write_text("dataset: mine\n")
    for given in ("small.yaml", "./small.yaml", "../elsewhere/small.yaml"):
        assert parse_config((Data,), None, ["--config", given], folder=recipe_folder)[0].dataset == "mine"


def test_an_unknown_name_is_refused_with_those_that_fit(recipe_folder):
    with pytest.raises(
        InputError,
        match="Unknown configuration 'smal'; known: small. Did you mean small. Or give a path that ends in .yaml",
    ):
        parse_config((Data,), None, ["--config", "smal"], folder=recipe_folder)


def test_an_option_is_taken_out():
    assert split_option(["a", "--n", "1", "b", "--n=2", "--no"], "n") == ("2", ["a", "b", "--no"])
    assert split_option(["a"], "n") == (None, ["a"])
    with pytest.raises(InputError, match="--n needs a number."):
        split_option(["--n"], "n", "a number")


# Help


def help_text(capsys, *argv, types=(Data, HPTConfig), **settings) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_config(types, None, list(argv), **settings)
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_shows_own_fields_first_in_groups_with_defaults(capsys, recipe_folder):
    text = help_text(capsys, "--dataset", "x", "--help", folder=recipe_folder)
    starts = ["  --config ", "What it is about:", "  --dataset ", "Objective:", "Stages:", "Attack:", "Model:"]
    places = [text.index(f"\n{start}") for start in starts]
    assert places == sorted(places)
    for line in (
        "or one of these by name:\n                                  small",
        "  --sets                          Several of them. (default: a)",
        "  --eps                           Radii.\n",
        "  --attack_eps                    l_inf radius in [0, 1] pixels. (default: 1/255)",
        "  --anchor_learning_rate          Peak learning rate of stage 1. (default: 5e-05)",
        "`--help all`",
    ):
        assert line in text
    assert "--adam_beta1" not in text and "--lr_scheduler_kwargs" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_all_shows_inherited_fields_too(capsys, flag):
    text = help_text(capsys, flag, "all")
    assert "  --adam_beta1 " in text and "%%" not in text
    assert text.index("  --ddp_find_unused_parameters ") < text.index("Of transformers' TrainingArguments:")
    assert all(len(line) <= WIDTH or " " not in line.strip() for line in text.splitlines())


def test_every_field_of_a_group_is_shown_once(capsys):
    text = help_text(capsys, "--help", "all", types=(HPTConfig,))
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    assert sorted(options) == sorted({*options})


# How recipes end


@pytest.mark.parametrize(
    "text", ["wrong", "Caught InputError in worker 0.\nTraceback:\nhpt.errors.InputError: wrong\n"]
)
def test_recipes_end_with_one_line(capsys, text):
    def main():
        raise InputError(text)

    with pytest.raises(SystemExit) as stop:
        run_recipe(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: wrong\n"


def test_a_list_below_the_line_is_printed_too(capsys):
    def main():
        raise InputError("nothing is shared:\n  a has x\n  b has y")

    with pytest.raises(SystemExit):
        run_recipe(main)
    assert capsys.readouterr().err == "error: nothing is shared:\n  a has x\n  b has y\n"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (TrainingStopped("the loss isn't finite"), 1, "error: the loss isn't finite"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "error: x.png can't be written: No space left"),
    ],
    ids=["stopped", "full disk"],
)
def test_what_stops_a_recipe_is_one_line_too(capsys, raised, code, line):
    def main():
        raise raised

    with pytest.raises(SystemExit) as stop:
        run_recipe(main)
    assert stop.value.code == code and capsys.readouterr().err.startswith(line)


def test_other_errors_keep_their_traceback():
    def main():
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError):
        run_recipe(main)


def test_errors_of_processes_launched_together_are_left_to_the_launcher(monkeypatch, capsys, tmp_path):
    def main():
        raise InputError("wrong")

    monkeypatch.setenv("HPT_ERRORS", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_recipe(main)
    assert (tmp_path / "1").read_text() == "wrong" and not capsys.readouterr().err


def test_settings_are_read_without_torch():
    code = "import sys, hpt.cli; print({'torch', 'datasets', 'accelerate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=ONE_THREAD) == "set()\n"
