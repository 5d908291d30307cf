"""The recipes as a user runs them, cut down to seconds."""

import json
import os
import re
import subprocess
import sys
from runpy import run_path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers import ROOT, make_clip, refusal_of, run_recipe, run_recipe_apart, save_images
from peft import PeftModel
from stand_in_hub import messages, pushed
from transformers import CLIPModel, CLIPProcessor

from hpt import HPTConfig, InputError, load_benchmark
from hpt.cli import parse_config, read_arguments
from hpt.comparing.grid import read_grid
from hpt.models.loading import save_finished
from hpt.training.run import advise_on_precision
from hpt.yaml_files import read_yaml


RECIPES = ROOT / "recipes"
CONFIGS = [file for folder in (RECIPES, RECIPES / "study") for file in sorted(folder.glob("*.yaml"))]
EACH_CONFIG = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.relative_to(RECIPES).as_posix())

PRETRAINING = """
train_dataset: digits
output_dir: {folder}
image_size: 16
patch_size: {patch}
vision_hidden_size: 16
text_hidden_size: 16
num_train_epochs: 1
max_train_samples: 64
seed: {patch}
"""

QUICK = """
target: {folder}/target
pretrain_target: target.yaml
proxy: {folder}/proxy
pretrain_proxy: proxy.yaml
train_dataset: digits
eval_datasets: [digits]
max_train_samples: 64
max_eval_samples: 30
proxy_eps: [8/255, 16/255]
anchor_epochs: 1
transfer_epochs: 1
warmup_steps: 0.5
attack_eps: 16/255
attack_step_size: 8/255
eval_attack_steps: 2
output_dir: {folder}
per_device_train_batch_size: 32
save_strategy: epoch
logging_steps: 1
bf16: true
use_cpu: true
"""


LAUNCH_FILES = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("file", LAUNCH_FILES, ids=lambda file: file.stem)
def test_launch_files_are_accelerates(file):
    from accelerate.commands.config.config_args import load_config_from_file

    text = file.read_text()
    assert f"accelerate launch --config_file recipes/accelerate/{file.name}" in text
    config = load_config_from_file(str(file))
    processes = {"cpu": 1, "single_gpu": 1, "ddp": 2, "multi_node": 16}[file.stem]
    assert config.num_processes == processes and config.use_cpu == (file.stem == "cpu")
    assert "never run" in text or file.stem != "multi_node"


def test_two_processes_train_adapters_by_the_launch_file(hub, tmp_path):
    """Two ranks, as the world size in the manifest says; adapter and merged model are saved and pushed once."""
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size, patch_size=patch_size), tmp_path / name)
    (tmp_path / "quick.yaml").write_text(QUICK.format(folder=tmp_path).replace("pretrain_", "# pretrain_"))
    launcher = ["--config_file", RECIPES / "accelerate" / "ddp.yaml"]
    arguments = ["--config", tmp_path / "quick.yaml", "--lora_rank", 2, "--per_device_train_batch_size", 16]
    arguments += ["--push_to_hub", True, "--hub_model_id", "org/adapter", "--hub_always_push", True]
    there = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    run = launch("hpt_gpd.py", *arguments, launcher=launcher, **there)
    assert run.returncode == 0, run.stderr
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    assert messages(hub, "org/adapter") == [*steps, "End of training"] and run.stdout.count("Pushed to ") == 1
    assert {"adapter_config.json", "adapter_model.safetensors", "evaluation.jsonl"} <= pushed(hub, "org/adapter")
    assert not {"config.json", "model.safetensors"} & pushed(hub, "org/adapter")
    assert "--num_processes 2 " in (hub.root / "models" / "org" / "adapter" / "README.md").read_text()
    manifest = json.loads((tmp_path / "checkpoint-4" / "manifest.json").read_text())
    assert manifest["launch"]["world_size"] == 2 and manifest["settings"]["adapter.r"] == 2
    assert run.stdout.count("| robust target ") == 1
    merged = CLIPModel.from_pretrained(tmp_path / "robust")
    adapted = PeftModel.from_pretrained(CLIPModel.from_pretrained(tmp_path / "target"), tmp_path / "adapter")
    pixels = torch.rand(2, 3, 16, 16)
    features, expected = (model.get_image_features(pixel_values=pixels).pooler_output for model in (merged, adapted))
    torch.testing.assert_close(features, expected)


def test_parquet_shards_are_streamed(tmp_path):
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size, patch_size=patch_size), tmp_path / name)
    rows = load_benchmark("digits", "train").dataset
    (tmp_path / "shards").mkdir()
    for number in range(2):
        rows.shard(20, number).to_parquet(tmp_path / "shards" / f"train-{number:05}-of-00002.parquet")
    (tmp_path / "quick.yaml").write_text(QUICK.format(folder=tmp_path).replace("pretrain_", "# pretrain_"))
    arguments = ["--config", tmp_path / "quick.yaml", "--train_dataset", f"shards={tmp_path / 'shards'}"]
    text = (tmp_path / "quick.yaml").read_text().replace("max_train_samples: 64\n", "")
    (tmp_path / "quick.yaml").write_text(text)
    arguments += ["--streaming", "True", "--steps_per_epoch", 3, "--dataloader_num_workers", 2]
    run = run_recipe_apart("hpt_gpd.py", *arguments)
    assert run.returncode == 0, run.stderr
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6 and state["epoch"] == 2


def launch(script, *arguments, launcher=("--cpu",), **environment):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *map(str, launcher),
        str(RECIPES / script),
        *map(str, arguments),
    ]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_evaluation_of_the_quickstart_wants_it_run_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no outputs/quickstart/target yet: run `hpt train`"):
        run_recipe("evaluate.py")


def test_quickstart_end_to_end(tmp_path):
    (tmp_path / "target.yaml").write_text(PRETRAINING.format(patch=8, folder=tmp_path / "target"))
    (tmp_path / "proxy.yaml").write_text(PRETRAINING.format(patch=4, folder=tmp_path / "proxy"))
    (tmp_path / "quick.yaml").write_text(QUICK.format(folder=tmp_path))
    first = launch("hpt_gpd.py", "--config", tmp_path / "quick.yaml")
    assert first.returncode == 0, first.stderr
    for name in ("target", "proxy", "robust"):
        CLIPModel.from_pretrained(tmp_path / name)
        CLIPProcessor.from_pretrained(tmp_path / name)
    for line in ("| vanilla target |", "| proxy ", "| robust target "):
        assert line in first.stdout
    assert (
        f"Stronger attacks than PGD: hpt evaluate --models vanilla={tmp_path}/target robust={tmp_path}/robust "
        f"--benchmarks digits --attacks pgd:steps=50 cw apgd --eps 16/255 --output_dir {tmp_path}/evaluation "
        "--max_samples 30\n"
    ) in first.stdout
    assert "- at-chance: vanilla target on digits. " in first.stdout  # after an epoch on 64 images
    assert first.stdout.startswith("Settings that differ from the defaults, with quick.yaml:\n  --target ")
    assert "--attack_eps 16/255" in first.stdout and "The real thing" not in first.stdout  # not of the quickstart
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["n"] for row in rows} == {30} and len(rows) == 14
    card = (tmp_path / "robust" / "README.md").read_text()
    assert "| PGD-2 (steps of 8/255), l_inf eps 16/255" in card and "figures/robustness_digits_linf.png" in card
    assert "The target was made by `recipes/pretrain_clip.py` from `target.yaml`." in card
    assert str(tmp_path) not in card + (tmp_path / "robust" / "run.yaml").read_text()
    for row in rows:
        assert row["low"] <= row["accuracy"] <= row["high"]
    for picture in ("accuracy_digits.png", "proxy_robustness_digits.png", "training_curves.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"
    vanilla, robust = (CLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("target", "robust"))
    changed = {name for name in vanilla if not torch.equal(vanilla[name], robust[name])}
    assert changed and all(name.startswith(("vision_model.", "visual_projection.")) for name in changed)

    stamp = (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns
    second = launch("hpt_gpd.py", "--config", tmp_path / "quick.yaml")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns == stamp
    assert f"The run in {tmp_path} is finished: it was found in checkpoint-4." in second.stderr
    other = launch("hpt_gpd.py", "--config", tmp_path / "quick.yaml", "--pull_ratio", "0.9")
    assert other.returncode != 0 and "error: " in other.stderr and "pull_ratio 0.5 there, 0.9 here" in other.stderr
    elsewhere = ["--target", "some/clip", "--output_dir", tmp_path / "elsewhere"]
    elsewhere = launch("hpt_gpd.py", "--config", tmp_path / "quick.yaml", *elsewhere)
    assert "error: Can't load the model 'some/clip'" in elsewhere.stderr  # not pretrained under that name


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], ("outputs/quickstart/target", ["digits"], 16 / 255, 10, None)),
        (["--use_cpu", "--output_dir", "x"], ("outputs/quickstart/target", ["digits"], 16 / 255, 10, None)),
        (["--target", "mine"], ("mine", ["tiny_imagenet"], 1 / 255, 5, None)),
        (["--train-dataset=mine=x"], ("openai/clip-vit-base-patch32", ["mine=x"], 1 / 255, 5, None)),
        (["--proxy", "x", "--license", "mit"], ("openai/clip-vit-base-patch32", ["tiny_imagenet"], 1 / 255, 5, "mit")),
        (["--config", "cifar10", "--proxy", "x"], ("outputs/cifar10/target", ["cifar10"], 4 / 255, 5, None)),
    ],
    ids=["nothing", "technical", "target", "data", "proxy", "config"],
)
def test_the_quickstart_is_read_only_without_models_or_data(monkeypatch, arguments, settings):
    monkeypatch.setattr("sys.argv", ["hpt_gpd.py", *arguments])
    module = run_path(str(RECIPES / "hpt_gpd.py"))
    types = (module["Recipe"], HPTConfig)
    recipe, args, _ = parse_config(types, module["default_config"](), folder=RECIPES)
    assert (recipe.target, recipe.eval_datasets, args.attack_eps, args.anchor_epochs, recipe.license) == settings


@EACH_CONFIG
def test_no_example_has_a_license(file):
    assert "license" not in file.read_text()


def test_only_the_quickstart_ends_with_the_real_thing(capsys, tmp_path):
    print_next_steps = run_path(str(RECIPES / "hpt_gpd.py"))["print_next_steps"]
    for is_example in (True, False):
        print_next_steps(tmp_path, "CLIPModel", "hpt evaluate", is_example)
        assert ("hpt train --config vit_b32_eps1" in capsys.readouterr().out) == is_example


def test_several_proxies_are_trained_by_recorded_and_compared(tmp_path, capsys):
    for name, architecture in (("target", {}), ("small", {"patch_size": 4}), ("large", {"image_size": 24})):
        save_finished(*make_clip(len(name), **architecture), tmp_path / name)
    text = QUICK.format(folder=tmp_path).replace("pretrain_", "# pretrain_").replace("proxy:", "# proxy:")
    (tmp_path / "quick.yaml").write_text(text)
    proxies = [tmp_path / "small", f"mine={tmp_path / 'large'}:template=the digit {{}}, large", "original"]
    command = ["hpt_gpd.py", "--config", tmp_path / "quick.yaml", "--proxies", *proxies]
    run_recipe(*command, "--proxy_weights", 1, "1/2", 1)
    printed = capsys.readouterr().out
    for name in ("vanilla target", f"proxy {tmp_path / 'small'}", "proxy mine", "robust target"):
        assert f"| {name} " in printed
    run = json.loads((tmp_path / "robust" / "training.json").read_text())
    assert [proxy["templates"] for proxy in run["proxies"]] == [
        None,
        ["the digit {}, large"],
        None,
    ]
    named = ["PATH/small", "mine=PATH/large:template=the digit {}, large", "original"]
    assert run["settings"]["proxies"] == named and run["settings"]["proxy_weights"] == [1, 0.5, 1]
    card = (tmp_path / "robust" / "README.md").read_text()
    assert "--proxies PATH/small 'mine=PATH/large:template=the digit {}, large' original" in card
    assert "prompts `the digit {}, large`" in card and str(tmp_path) not in card
    with pytest.raises(InputError, match="proxy_weights .* there, None here"):
        run_recipe(*command)


@pytest.mark.parametrize(
    ("precision", "device", "settings", "advice"),
    [
        ("bf16", "cuda", {}, "trains in bf16, but the proxy stays in float32, .*: --proxy_dtype bfloat16 is faster"),
        ("fp16", "cuda", {}, "trains in fp16, but the proxy stays in float32, .*: --proxy_dtype float16 is faster"),
        ("no", "cuda", {}, None),
        ("bf16", "cpu", {}, None),
        ("bf16", "cuda", {"proxy_dtype": "bfloat16"}, None),
        ("bf16", "cuda", {"proxy": "original"}, None),
        ("bf16", "cuda", {"proxies": ["original", "org/another"]}, "the proxy stays in float32"),
        ("bf16", "cuda", {"needs_proxy": False}, None),
    ],
)
def test_a_proxy_that_stays_in_float32_is_named(precision, device, settings, advice):
    needs_proxy = settings.get("needs_proxy", True)
    args = SimpleNamespace(needs_proxy=needs_proxy, mixed_precision=precision, device=torch.device(device))
    kind = run_path(str(RECIPES / "hpt_gpd.py"))["Recipe"]
    recipe = kind(**{name: value for name, value in settings.items() if name != "needs_proxy"})
    said = advise_on_precision(recipe, args)
    assert said is None if advice is None else re.search(advice, said)


@pytest.mark.parametrize("rank", [0, 1])
def test_advice_is_printed_by_one_process_before_anything_is_loaded(tmp_path, capsys, monkeypatch, rank):
    run = run_path(str(RECIPES / "hpt_gpd.py"))["run"]
    stand_ins = {"advise_on_precision": lambda *_: "advice", "set_cpu_threads": lambda *_: None}
    for name, function in stand_ins.items():
        monkeypatch.setitem(run.__globals__, name, function)
    monkeypatch.setitem(run.__globals__, "named_models", Mock(side_effect=InputError("stop")))
    recipe = SimpleNamespace(cpu_threads=None, pretrain_target=None, pretrain_proxy=None)
    with pytest.raises(InputError, match="stop"):
        run(recipe, SimpleNamespace(output_dir=str(tmp_path), process_index=rank), None)
    assert capsys.readouterr().out == ("" if rank else "advice\n")


def test_overwriting_deletes_a_run_but_not_what_it_needs(tmp_path):
    module = run_path(str(RECIPES / "hpt_gpd.py"))
    for name in ("robust", "adapter", "checkpoint-4", "target"):
        (tmp_path / name).mkdir()
    recipe = module["Recipe"](target=str(tmp_path / "robust"))
    with pytest.raises(InputError, match="--overwrite would delete .*robust, which the run needs"):
        module["delete_run"](tmp_path, recipe)
    module["delete_run"](tmp_path, module["Recipe"](target=str(tmp_path / "target")))
    assert [folder.name for folder in tmp_path.iterdir()] == ["target"]


def test_overwriting_deletes_nothing_where_the_optimizer_cannot_be_made(tmp_path):
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size, patch_size=patch_size), tmp_path / name)
    (tmp_path / "quick.yaml").write_text(QUICK.format(folder=tmp_path).replace("pretrain_", "# pretrain_"))
    (tmp_path / "checkpoint-4").mkdir()
    command = ["hpt_gpd.py", "--config", tmp_path / "quick.yaml", "--overwrite", True, "--optim_args", "momentum"]
    assert "The optimizer or its learning rates can't be made of the settings" in refusal_of(*command)
    assert (tmp_path / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--attack_eps", "16"], "did you mean 16/255?"),
        (["--warmup_steps", "1000"], "warmup_steps is 1000, but the anchor stage has only"),
        (["--proxy_eps", "16"], "did you mean 16/255?"),
        (["--max_eval_samples", "0"], "max_eval_samples is 0, but must be a whole number of at least 1"),
        (["--train_dataset", "mnist"], "Unknown benchmark 'mnist'; known: digits"),
        (["--proxy_dtype", "int8"], "Unknown proxy_dtype 'int8'; known: float32, bfloat16, float16"),
        (["--streaming", "True"], "A streaming training set has no epochs of its own: give steps_per_epoch"),
        (["--streaming", "True", "--validation_size", "9"], "No images can be held out of a stream"),
        (["--proxy", "a/b", "--proxies", "c/d"], "proxies are given, and proxy too: write all proxies into proxies"),
        (
            ["--proxy", "a/b", "--proxy_revision", "v2", "--proxies", "c/d"],
            'What a config says is taken back by --proxy "" --proxy_revision "".',
        ),
        (["--proxies", "c/d", "c/d"], "'c/d' is given twice"),
        (["--proxies", "no/such/folder"], "Can't load the model 'no/such/folder': there is no such folder"),
        (["--proxies", "original:template=a {}"], "has a template, but original has that of the training"),
        (["--proxy", "original", "--proxy_revision", "v2"], "'original@v2' has a revision, but original is a copy of"),
        (
            ["--proxies", "a/b", "original", "--proxy_weights", "1", "x"],
            "--proxy_weights is 'x', but must be a number",
        ),
        (["--proxies", "a/b", "original", "--proxy_weights", "1", "-1"], "proxy_weights is 1, -1, but must be finite"),
    ],
    ids=["eps", "warm-up", "proxy eps", "subset", "benchmark", "dtype", "epochs", "held out"]
    + ["both", "all three", "twice", "no folder", "template", "revision", "no weight", "negative weight"],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in refusal_of("hpt_gpd.py", *arguments, "--output_dir", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_one_line_on_stderr(tmp_path):
    run = run_recipe_apart("hpt_gpd.py", "--atack_eps", "1/255", cwd=tmp_path)
    assert run.returncode == 2 and not list(tmp_path.iterdir())
    line = "error: Unknown field 'atack_eps' in the command line: did you mean attack_eps?"
    assert run.stderr.splitlines()[-1] == line and "Traceback" not in run.stderr


@EACH_CONFIG
def test_yaml_files_are_valid(file, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.chdir(ROOT)  # where the lists are that some of them name
    from hpt_gpd import Recipe

    from hpt.training.pretraining import PretrainingConfig

    fields = read_yaml(file).keys()
    types = (Recipe, HPTConfig)
    if "family" in fields or "patch_size" in fields:
        types = (PretrainingConfig,)
    elif "models" in fields:
        types = (run_path(str(RECIPES / "evaluate.py"))["Evaluation"],)
    elif file.stem.startswith("rank_proxies"):
        types = (run_path(str(RECIPES / "rank_proxies.py"))["Ranking"],)
    elif "methods" in fields:
        types = (run_path(str(RECIPES / "compare.py"))["Comparison"], Recipe, HPTConfig)
        arguments, nested, path = read_arguments(types, file, ["--use_cpu"], nested=("methods", "vary"))
        assert read_grid(arguments, nested, (Recipe, HPTConfig), path).args.output_dir.startswith("outputs/")
        return
    *_, args, path = parse_config(types, file, ["--use_cpu"])
    assert args.output_dir.startswith("outputs/")


STUDY = {file.stem: read_yaml(file) for file in sorted((RECIPES / "study").glob("*.yaml"))}
OWN = {"methods", "output_dir", "anchor_epochs", "transfer_epochs", "save_strategy", "save_steps"}
OWN |= {"logging_strategy", "logging_steps"}
OWN_OF_FILES = {
    "eps": {"learning_rates", "dial"},
    "images": {"learning_rates"},
    "final": {"learning_rates", "seeds", "tests", "test_samples"},
    "finer": {"target", "proxy"},
}
SHARED = {"train_datasets", "dataset_weights", "num_train_epochs", "per_device_train_batch_size", "augmentation"}


@pytest.mark.parametrize("name", STUDY)
def test_a_file_of_the_study_differs_from_others_in_its_question_alone(name):
    fields = STUDY[name]
    if "methods" in fields:
        shared = {*fields} - OWN - OWN_OF_FILES.get(name, set())
        assert all(value == fields[field] for field, value in STUDY["objectives"].items() if field in shared)
        assert STUDY["objectives"].keys() - fields.keys() <= OWN | {"proxy"}
    elif "family" in fields:
        own_size = [name.replace("cifar=uoft-cs/cifar10", "cifar10") for name in fields["train_datasets"]]
        assert all((fields | {"train_datasets": own_size})[field] == STUDY["vit_p16"][field] for field in SHARED)
        seeds = [other["seed"] for other in STUDY.values() if "seed" in other]
        assert seeds.count(fields["seed"]) == 1
    else:
        assert fields["dataset"] == STUDY["objectives"]["train_dataset"]


@pytest.mark.parametrize("name", STUDY)
def test_each_model_of_the_study_is_made_by_the_file_of_its_name(name):
    fields = STUDY[name]
    named = {*re.findall(r"outputs/study/(\w+)", str(fields))} - {name}
    assert all("family" in STUDY[model] for model in named) and fields["output_dir"] == f"outputs/study/{name}"


def evaluation_arguments(models, folder, *arguments):
    """Arguments of a short evaluation of two models made on the spot."""
    listed = [f"{name}={folder / name}" for name in models]
    arguments = ["--models", *listed, "--attacks", "pgd:steps=1", "--eps", "4/255", "16/255", *arguments]
    return [*arguments, "--max_samples", "30", "--batch_size", "8", "--output_dir", folder / "results", "--use_cpu"]


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        save_finished(*make_clip(seed), folder / name)
    return folder


def test_the_plan_of_an_evaluation_is_printed_and_nothing_runs(two_models, tmp_path, capsys):
    arguments = evaluation_arguments(["first", "second"], two_models, "--benchmarks", "digits", "cifar10=no/where")
    run_recipe("evaluate.py", *arguments, "--output_dir", tmp_path / "results", "--plan")
    plan = capsys.readouterr().out
    assert "| 8   | second | digits    | pgd:steps=1 at 16/255 " in plan and "8 rows, 0 of them done" in plan
    assert "Missing: cifar10: Can't load the dataset 'no/where'" in plan and not list(tmp_path.iterdir())


def test_evaluation_end_to_end(two_models, capsys):
    arguments = evaluation_arguments(["first", "second"], two_models, "--benchmarks", "digits", "cifar10=no/where")
    run = run_recipe_apart("evaluate.py", *arguments)
    assert run.returncode == 1, run.stderr  # one benchmark is missing, the other was evaluated
    assert "Missing: cifar10: Can't load the dataset 'no/where': it is no local folder" in run.stdout
    output = two_models / "results"
    assert (output / "table.md").read_text() in run.stdout
    for line in ("| model  | attack     | digits", "| second | worst case | ", "few-samples: first on digits"):
        assert line in run.stdout
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (2 + 2 + 2)
    assert len((output / "results.csv").read_text().splitlines()) == len(rows) + 1
    assert {flag["name"] for flag in json.loads((output / "flags.json").read_text())} >= {"few-samples"}
    assert len(json.loads((output / "samples_digits.json").read_text())["ids"]) == 30
    radii = [f"clean_against_robust_linf_{eps}_255" for eps in (4, 16)]
    for picture in ("robustness_digits_linf", *radii):
        assert (output / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"

    arguments = evaluation_arguments(["second"], two_models, "--benchmarks", "digits")
    run_recipe("evaluate.py", *arguments, "--attacks", "cw:steps=1", "--eps", "4/255")
    again = capsys.readouterr().out
    assert f"The evaluation in {output} goes on: 2 of 3 rows are there." in again
    for line in (
        "| first  | PGD-1      |",
        "| second | CW-1       |",
        "l_inf eps = 16/255",
    ):  # all that the folder has
        assert line in again
    assert json.loads((output / "results.jsonl").read_text().splitlines()[-1])["parameters"] == {
        "attacks": ["cw:steps=1", "pgd:steps=1"]
    }


def test_an_evaluation_measures_all_but_what_cannot_be(two_models, tmp_path, capsys):
    folders = {name: save_images(tmp_path / name) for name in ("cut", "page", "good")}
    first = {name: folder / "train" / "cat" / "0.png" for name, folder in folders.items()}
    whole = first["cut"].read_bytes()
    first["cut"].write_bytes(whole[:-30])
    first["page"].write_text("<html>404</html>")
    benchmarks = ["--benchmarks", *(f"{name}={folder}" for name, folder in folders.items())]
    arguments = evaluation_arguments(["first", "second"], two_models, *benchmarks)
    arguments += ["--output_dir", tmp_path / "results", "--eps", "4/255"]
    with pytest.raises(SystemExit, match="1"):
        run_recipe("evaluate.py", *arguments)
    printed = capsys.readouterr().out
    assert printed.count("Missing: page: The image in row 0 of page can't be used: cannot identify image file") == 2
    for model in ("first", "second"):
        assert f"Missing: {model}, cut, clean: The image in row 0 of cut (train) can't be used: " in printed
    results = tmp_path / "results" / "results.jsonl"
    measured = [(row["model"], row["benchmark"]) for row in map(json.loads, results.read_text().splitlines())]
    assert set(measured) == {("first", "good"), ("second", "good")}

    for name in ("cut", "page"):
        first[name].write_bytes(whole)
    run_recipe("evaluate.py", *arguments)
    assert "goes on: 6 of 18 rows are there." in capsys.readouterr().out
    assert len(results.read_text().splitlines()) == 3 * len(measured)


def test_what_other_settings_measured_is_refused_for_its_model_alone(two_models, tmp_path, capsys):
    arguments = ["--benchmarks", "digits", "--output_dir", tmp_path / "results", "--eps", "4/255"]
    settings = [*evaluation_arguments(["first"], two_models, *arguments), *arguments[2:]]
    run_recipe("evaluate.py", *settings)
    models = ["--models", f"first={two_models / 'second'}", f"second={two_models / 'second'}"]
    with pytest.raises(SystemExit, match="1"):
        run_recipe("evaluate.py", *settings, *models)
    printed = capsys.readouterr().out
    assert "Missing: first, digits: " in printed and "has results from other settings for model first" in printed
    line = refusal_of("evaluate.py", *settings, *models, "--seed", "1")
    assert "first, digits: " in line and "second, digits: " in line and "seed 0 there, 1 here" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--benchmarks", "mnist"], "Unknown benchmark 'mnist'; known: digits"),
        (["--benchmarks", "digits", "--attacks", "adaptive"], "The attack 'adaptive' needs a proxy"),
        (["--benchmarks", "digits", "--proxy", "first=x"], "'first' is given twice"),
        (["--benchmarks", "digits", "--max_samples", "0"], "max_samples is 0, but must be a whole number"),
        (["--benchmarks", "cifar10=no/where", "--batch_size", "0"], "batch_size is 0, but must be a whole number"),
        (["--benchmarks", "cifar10=no/where"], "Can't load the dataset 'no/where'"),
        (["--benchmarks", "digits", "cifar10=nowhere"], "There is no folder or file 'nowhere'"),
        (["--benchmarks", "digits", "--models", "no/model"], "Can't load the model 'no/model'"),
        (
            ["--benchmarks", "cifar10=no/where", "--models", "a/b/model"],
            "the model 'a/b/model': there is no such folder",
        ),
        (["--benchmarks", "digits", "--models", "a=x", "a=y"], "'a' is given twice"),
    ],
    ids=[
        "benchmark",
        "proxy",
        "proxy's name",
        "samples",
        "batch size",
        "nothing left",
        "folder",
        "model",
        "model before data",
        "names",
    ],
)
def test_evaluation_refuses_what_cannot_be_meant(two_models, tmp_path, arguments, line):
    settings = evaluation_arguments(["first"], two_models)
    assert line in refusal_of("evaluate.py", *settings, *arguments, "--output_dir", tmp_path / "results")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--train_dataset", "{pets}", "--eval_datasets", "{pets}"],
            "pets would be tested on its training images (train): give a folder with train/ and test/",
        ),
        (
            ["--train_dataset", "{pets}", "--eval_datasets", "digits", "--eval_strategy", "epoch"],
            "pets has no validation",
        ),
        (["--train_dataset", "all"], "all is sixteen benchmarks, where one is needed"),
        (
            ["--config", "vit_b32_eps1", "--train_dataset", "mine=nowhere", "--proxy", "mine.pt/of/yesterday"],
            "Can't load the model 'mine.pt/of/yesterday': there is no such folder",
        ),
    ],
    ids=["test", "validation", "all", "model before data"],
)
def test_training_on_a_folder_of_images_refuses_what_would_mislead(tmp_path, arguments, line):
    pets = save_images(tmp_path / "pets")
    arguments = [argument.format(pets=pets) for argument in arguments]
    assert line in refusal_of("hpt_gpd.py", *arguments, "--output_dir", tmp_path / "run", "--use_cpu")
    assert not (tmp_path / "run").exists()


def test_import_costs_nothing():
    """`import hpt` loads neither torch nor transformers."""
    code = "import sys, hpt; print({'torch', 'transformers', 'datasets', 'evaluate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
