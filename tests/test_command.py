"""`hpt COMMAND`: the recipes by name, as they are installed, in one process or several."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from helpers import ONE_THREAD, ROOT, make_clip

from hpt import HPTConfig
from hpt.__main__ import COMMANDS
from hpt.errors import InputError
from hpt.models.loading import save_finished
from hpt.processes import launch


RECIPES = ROOT / "recipes"
installed = pytest.mark.skipif(find_spec("hpt.recipes") is None, reason="hpt isn't installed")
needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")


def hpt(*arguments, cwd, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hpt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ONE_THREAD | environment)


def test_help_lists_the_commands_without_loading_anything(tmp_path):
    code = "import sys; sys.argv[1:] = ['--help']; import hpt.__main__ as command; command.main(); "
    code += "print({'torch', 'transformers', 'yaml', 'hpt.cli'} & set(sys.modules))"
    text = subprocess.check_output([sys.executable, "-c", code], text=True, env=ONE_THREAD)
    assert text.endswith("set()\n")
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_every_recipe_is_a_command():
    assert {module for module, *_ in COMMANDS.values()} == {file.stem for file in RECIPES.glob("[a-z]*.py")}


@pytest.mark.parametrize(
    "argument, closest",
    [("trian", "train"), ("rank_proxy", "rank-proxies"), ("--env", "env"), ("--verison", "--version")],
)
def test_an_unknown_command_is_one_line(tmp_path, argument, closest):
    run = hpt(argument, cwd=tmp_path)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr == f"error: Unknown command {argument!r}: did you mean {closest}? `hpt --help` lists them.\n"


@installed
@pytest.mark.parametrize("module", sorted(module for module, *_ in COMMANDS.values()))
def test_recipes_are_a_package_once_installed(module):
    assert import_module(f"hpt.recipes.{module}").main


@installed
def test_a_configuration_comes_by_name_in_any_folder(tmp_path):
    run = hpt("train", "--config", "vit_b32_eps1", "--attack_eps", "16", cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.splitlines()[-1].startswith("error: ") and "16/255?" in run.stderr
    assert not list(tmp_path.iterdir())


@installed
def test_environment_names_versions_and_devices_but_no_one(tmp_path):
    run = hpt("env", cwd=tmp_path, HF_TOKEN="hf_secret", HF_HOME=str(tmp_path))
    assert run.returncode == 0, run.stderr
    for name in ("hpt", "python", "torch", "transformers", "huggingface_hub", "CPU", "threads", "GPUs"):
        assert re.search(rf"^{name} +\S", run.stdout, re.MULTILINE), name
    assert "hf_secret" not in run.stdout and str(tmp_path) not in run.stdout and str(ROOT) not in run.stdout
    assert "1, OMP_NUM_THREADS is 1" in run.stdout


def test_packages_are_those_that_are_there():
    """What pyproject.toml lists, with `recipes/` as `hpt.recipes`."""
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {str(file.parent.relative_to(ROOT)).replace(os.sep, ".") for file in (ROOT / "hpt").rglob("__init__.py")}
    data = {"hpt.data.class_names", "hpt.recipes.accelerate"}  # folders of files, which setuptools wants listed
    assert set(settings["packages"]) == there | data | {"hpt.recipes"}
    assert settings["package-dir"]["hpt.recipes"] == "recipes"
    for package, patterns in settings["package-data"].items():
        folder = ROOT / package.replace("hpt.recipes", "recipes").replace(".", "/")
        assert all(list(folder.glob(pattern)) for pattern in patterns)


# Several processes


@pytest.mark.parametrize("number", ["x", "0", "-2", "1.5"])
def test_a_number_of_processes_that_cannot_be_meant_is_refused(number):
    with pytest.raises(InputError, match="must be a whole number of at least 1"):
        launch(["hpt"], number)


SETTINGS = """
target: {folder}/target
proxy: {folder}/proxy
train_dataset: digits
eval_datasets: [digits]
max_train_samples: 64
max_eval_samples: 30
anchor_epochs: 1
transfer_epochs: 50
warmup_steps: 0.5
eval_attack_steps: 2
output_dir: {folder}/run
per_device_train_batch_size: 8
logging_steps: 1
use_cpu: true
"""


@pytest.fixture
def settings(tmp_path):
    """A YAML file of a run of many short steps."""
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size, patch_size=patch_size), tmp_path / name)
    (tmp_path / "run.yaml").write_text(SETTINGS.format(folder=tmp_path))
    return tmp_path / "run.yaml"


@installed
@needs_gloo
def test_mistakes_are_one_line_from_two_processes_too(settings, tmp_path):
    run = hpt("train", "--num_processes", 2, "--config", settings, "--proxy_eps", 16, cwd=tmp_path)
    assert run.returncode == 2
    assert re.fullmatch(r"error: eps is 16, .*\n", run.stderr), run.stderr


@installed
@needs_gloo
@pytest.mark.parametrize(
    ("number", "processes", "code", "name"),
    [(signal.SIGTERM, 2, 75, "SIGTERM"), (signal.SIGINT, 2, 130, "Ctrl-C"), (signal.SIGINT, 1, 130, "Ctrl-C")],
)
def test_a_signal_reaches_the_processes_and_the_run_is_saved(settings, tmp_path, number, processes, code, name):
    command = [sys.executable, "-m", "hpt", "train", f"--num_processes={processes}", "--config", str(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=ONE_THREAD, cwd=tmp_path, **pipes)
    while "'loss'" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert f"Stopped by {name} after step" in errors and "Traceback" not in errors
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert f'"world_size": {processes}' in (checkpoint / "manifest.json").read_text()


@needs_gloo
def test_a_process_that_is_killed_is_named(tmp_path):
    (tmp_path / "killed.py").write_text(
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    code = "import sys; from hpt.processes import launch; sys.exit(launch(['killed'], '2'))"
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ONE_THREAD)
    assert run.returncode == 128 + signal.SIGKILL and time.monotonic() - start < 60
    assert run.stderr == "\nerror: Process 1 was ended by SIGKILL.\n"


@needs_gloo
@pytest.mark.skipif(torch.accelerator.is_available(), reason="of machines without an accelerator")
def test_processes_train_together_without_being_told_to_use_the_cpu(tmp_path):
    (tmp_path / "world.py").write_text("from hpt import HPTConfig\nprint(HPTConfig('run').world_size, end='')\n")
    code = "import sys; from hpt.processes import launch; sys.exit(launch(['world'], '2'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ONE_THREAD)
    assert (run.returncode, run.stdout) == (0, "22"), run.stderr


def test_processes_that_would_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched, but each would train alone: without GPUs, "):
        HPTConfig("run")


def test_cores_are_divided_unless_threads_are_set(tmp_path):
    (tmp_path / "threads.py").write_text("import os\nprint(os.environ['OMP_NUM_THREADS'], end='')\n")
    code = "import sys; from hpt.processes import launch; sys.exit(launch(['threads'], '2'))"
    for given, expected in (({"OMP_NUM_THREADS": "3"}, "3"), ({}, str(max(1, len(os.sched_getaffinity(0)) // 2)))):
        env = {name: value for name, value in ONE_THREAD.items() if name != "OMP_NUM_THREADS"} | given
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert (run.returncode, run.stdout, run.stderr) == (0, 2 * expected, "")
