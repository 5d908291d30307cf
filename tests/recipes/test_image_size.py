"""`hpt train` and `hpt evaluate` at another input size than the model's own."""

import json
import warnings

import pytest
import yaml
from helpers import make_clip, refusal_of, run_recipe
from transformers import CLIPModel, CLIPProcessor

from hpt.models.loading import save_finished


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size=patch_size), folder / name)
    return folder


def arguments(models, folder, *more):
    named = [
        "--target",
        models / "target",
        "--proxy",
        models / "proxy",
        "--train_dataset",
        "digits",
        "--output_dir",
        folder,
    ]
    short = ["--anchor_epochs", 0, "--transfer_epochs", 1, "--warmup_steps", 0, "--max_train_samples", 64]
    return [*named, *short, "--max_eval_samples", 10, "--eval_attack_steps", 1, "--use_cpu", *more]


def test_a_target_is_trained_at_another_size(models, tmp_path, capsys):
    run_recipe("hpt_gpd.py", *arguments(models, tmp_path, "--image_size", 24))
    said, robust = capsys.readouterr().out, tmp_path / "robust"
    assert f"vanilla={models}/target:image_size=24 robust={robust}" in said
    model, processor = CLIPModel.from_pretrained(robust), CLIPProcessor.from_pretrained(robust)
    assert model.config.vision_config.image_size == 24 and processor.image_processor.crop_size["height"] == 24
    assert model.vision_model.embeddings.position_embedding.weight.shape[0] == 1 + 3**2
    assert CLIPModel.from_pretrained(models / "target").config.vision_config.image_size == 16
    assert "24 pixels, 8-pixel patches, its input size changed before training" in (robust / "README.md").read_text()
    assert yaml.safe_load((robust / "run.yaml").read_text())["image_size"] == 24
    rows = json.loads((tmp_path / "results.json").read_text())
    assert "vanilla target" in str(rows)
    line = refusal_of("hpt_gpd.py", *arguments(models, tmp_path, "--image_size", 32))
    assert "was trained with other settings (image_size 24 there, 32 here)" in line

    evaluated = ["--models", f"v={models}/target:image_size=24", f"small={models}/target", "--benchmarks", "digits"]
    run_recipe(
        "evaluate.py", *evaluated, "--attacks", "pgd:steps=1", "--max_samples", 10, "--output_dir", tmp_path / "e"
    )
    rows = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    hashes = {row["model"]: row["weights"] for row in rows}
    assert hashes["v"] == json.loads((robust / "training.json").read_text())["vanilla_weights"] != hashes["small"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--image_size", "30"], "image_size is 30, but patches have 8 pixels: give 24 or 32"),
        (["--image_size", "0"], "image_size is 0, but must be 1 to 4096 pixels"),
        (["--image_size", "-16"], "image_size is -16, but must be 1 to 4096 pixels"),
        (["--image_size", "5000"], "image_size is 5000, but must be 1 to 4096 pixels"),
        (["--image_size", "24.5"], "24.5"),
        (["--image_size", "big"], "big"),
        (["--image_size", "24", "--lora_rank", "2"], "adapters would be saved for a base of another size"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused_before_anything_is_written(models, tmp_path, more, line):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert line in refusal_of("hpt_gpd.py", *arguments(models, tmp_path / "run", *more))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("image_size=30", "image_size is 30, but patches have 8 pixels: give 24 or 32"),
        ("image_size=x", "must say a number of pixels"),
        ("dtype=float16", "of a model only image_size can be set"),
    ],
)
def test_of_models_that_are_evaluated_too(models, tmp_path, setting, line):
    more = ["--benchmarks", "digits", "--output_dir", tmp_path / "e", "--use_cpu"]
    assert line in refusal_of("evaluate.py", "--models", f"{models}/target:{setting}", *more)
    assert not list(tmp_path.iterdir())
