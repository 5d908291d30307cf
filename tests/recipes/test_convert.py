"""`hpt convert`: what is written, what is refused, and that what comes out is a model like any other."""

import json
import re
import shutil

import pytest
import torch
from conversion_sources import MEAN, SAID, OpenAIClip, config_of, save_open_clip
from helpers import held_by_another, make_clip, make_dataset, refusal_of, run_recipe
from huggingface_hub import ModelCard, constants
from stand_in_hub import COMMIT, HISTORY, pushed
from transformers import CLIPModel, CLIPProcessor

from hpt import InputError, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.evaluation.activation_check import compare_activations
from hpt.evaluation.comparison import predict
from hpt.evaluation.subject import Subject
from hpt.hub.folder import ModelFolder
from hpt.hub.origin import describe_accuracy
from hpt.models.conversion import NOT_COMPARED, convert, read_checkpoint, to_transformers
from hpt.models.conversion.facts import Stated
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.weights import hash_weights


WRITTEN = {"README.md", "config.json", "conversion.json", "model.safetensors", "processor_config.json"}
WRITTEN |= {"tokenizer.json", "tokenizer_config.json"}
FOR_OPEN_CLIP = {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
FOR_OPEN_CLIP |= {"tokenizer.json", "tokenizer_config.json"}
LIMIT = f"This can't find a wrong guess of what both were computed with: {', '.join(NOT_COMPARED)}."


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of open_clip, a whole state dict, a vision tower alone, and a base for it."""
    folder, source = tmp_path_factory.mktemp("sources"), OpenAIClip()
    save_open_clip(folder / "open_clip", source.state_dict(), config_of())
    torch.save(source.state_dict(), folder / "whole.pt")
    torch.save(source.vision_weights(), folder / "tower.pt")
    torch.save(OpenAIClip(seed=1).vision_weights(), folder / "other.pt")
    run_recipe("convert.py", folder / "open_clip", "--output_dir", folder / "base")
    save_finished(*make_clip(0), folder / "another")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Where the cache is."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    return folder


def as_options(said: dict) -> list:
    """Options of the command line."""
    values = {name: value if isinstance(value, tuple) else [value] for name, value in said.items()}
    return [part for name, listed in values.items() for part in (f"--{name}", *listed)]


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


# What is written


def test_a_folder_of_open_clip_becomes_a_folder_of_transformers(sources, tmp_path, capsys):
    run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path / "clip", "--license", "mit")
    printed = capsys.readouterr().out
    assert names(tmp_path / "clip") == WRITTEN
    model, processor = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPProcessor.from_pretrained(tmp_path / "clip")
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own = OpenAIClip().visual(pixels)
    torch.testing.assert_close(model.get_image_features(pixel_values=pixels).pooler_output, own, rtol=1e-4, atol=1e-5)
    assert list(processor.image_processor.image_mean) == MEAN
    record = json.loads((tmp_path / "clip" / "conversion.json").read_text())
    card = ModelCard.load(tmp_path / "clip" / "README.md")
    assert card.data.license == "mit" and card.data.base_model is None and card.data.tags == ["clip"]
    sha256 = record["sha256"]["open_clip_model.safetensors"]
    for line in (
        "A `CLIPModel` that was converted from `open_clip`, a local checkpoint, and not trained here.",
        f"- `open_clip_model.safetensors`, SHA-256 `{sha256}`",
        LIMIT,
        "Clean accuracy, which a mistake costs, wasn't measured.",
        "How it was trained isn't recorded here.",
    ):
        assert line in card.text
    assert re.search(r"\| activation +\| `quick_gelu` +\| open_clip_config.json +\|", card.text)
    for line in (
        sha256,
        "  activation          quick_gelu (open_clip_config.json)\n",
        LIMIT,
        "against the source's own",
    ):
        assert line in printed
    assert str(sources) not in card.text + json.dumps(record) and f"Saved in {tmp_path}/clip" in printed


def test_of_a_folder_in_both_formats_the_name_says_which(sources, tmp_path):
    folder = shutil.copytree(sources / "another", tmp_path / "both")
    for file in (sources / "open_clip").glob("open_clip*"):
        shutil.copy(file, folder)
    assert "local-dir:FOLDER stands" in refusal_of("convert.py", folder, "--output_dir", tmp_path / "clip")
    run_recipe("convert.py", f"local-dir:{folder}", "--output_dir", tmp_path / "clip")
    weights = [CLIPModel.from_pretrained(place).state_dict() for place in (tmp_path / "clip", sources / "base")]
    assert hash_weights(weights[0]) == hash_weights(weights[1])
    assert hash_weights(load_dual_encoder(str(folder))[0].state_dict()) != hash_weights(weights[0])


def test_what_a_state_dict_does_not_say_is_asked_for_and_not_guessed(sources, tmp_path):
    whole = sources / "whole.pt"
    said = as_options(SAID | {"tokenizer": sources / "open_clip"})
    for name in ("activation", "heads", "image_mean", "tokenizer"):
        at = said.index(f"--{name}")
        end = next((place for place in range(at + 1, len(said)) if str(said[place])[:2] == "--"), len(said))
        line = refusal_of("convert.py", whole, "--output_dir", tmp_path / "clip", *said[:at], *said[end:])
        assert f"'{whole}' doesn't say its " in line and name in line and "\n" not in line
    assert not list(tmp_path.iterdir())
    run_recipe("convert.py", "--source", whole, "--output_dir", tmp_path / "clip", *said)
    model, expected = (CLIPModel.from_pretrained(folder) for folder in (tmp_path / "clip", sources / "base"))
    assert hash_weights(model.state_dict()) == hash_weights(expected.state_dict())
    facts = {fact["name"]: fact for fact in ModelFolder(tmp_path / "clip").conversion["facts"]}
    assert facts["heads"]["value"] == SAID["heads"] and facts["heads"]["source"] == "given"


def test_a_vision_tower_alone_is_joined_with_its_base(sources, tmp_path):
    line = refusal_of("convert.py", sources / "tower.pt", "--output_dir", tmp_path / "clip")
    assert "holds a vision tower alone" in line and "--base ID" in line and not list(tmp_path.iterdir())
    run_recipe("convert.py", sources / "tower.pt", "--base", sources / "base", "--output_dir", tmp_path / "clip")
    base = hash_weights(CLIPModel.from_pretrained(sources / "base").state_dict())
    assert hash_weights(CLIPModel.from_pretrained(tmp_path / "clip").state_dict()) == base
    card = (tmp_path / "clip" / "README.md").read_text()
    assert f"What it doesn't say was taken from `PATH/base` (weights of hash `{base}`)." in card


def test_a_model_is_written_for_open_clip_and_comes_back_the_same(sources, tmp_path, capsys):
    save_finished(*load_dual_encoder(str(sources / "base")), tmp_path / "robust")
    (tmp_path / "robust" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    run_recipe("convert.py", tmp_path / "robust", "--to", "openclip", "--output_dir", tmp_path / "written")
    assert names(tmp_path / "written") == FOR_OPEN_CLIP
    card = ModelCard.load(tmp_path / "written" / "README.md")
    assert (card.data.library_name, card.data.license) == ("open_clip", "apache-2.0")
    assert "written by hpt from `robust`" in card.text and 'open_clip.get_tokenizer("local-dir:written")' in card.text
    assert "Its tokenizer isn't OpenAI's." in card.text and "Write this model's own id there" in card.text
    assert f"create_model_from_pretrained('local-dir:{tmp_path}/written')" in capsys.readouterr().out
    run_recipe("convert.py", tmp_path / "written", "--output_dir", tmp_path / "back")
    before, after = (CLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("robust", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert ModelFolder(tmp_path / "back").conversion["license"] == "apache-2.0"


def test_a_state_dict_is_written_for_open_clip_with_where_it_comes_from(sources, tmp_path):
    to = ["--to", "openclip", "--base", sources / "base"]
    run_recipe("convert.py", sources / "tower.pt", *to, "--output_dir", tmp_path / "written")
    card = (tmp_path / "written" / "README.md").read_text()
    assert names(tmp_path / "written") == FOR_OPEN_CLIP and LIMIT in card and "- `tower.pt`, SHA-256 `" in card
    config = json.loads((tmp_path / "written" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == MEAN and config["model_cfg"]["quick_gelu"]


@pytest.mark.parametrize(
    ("revision", "commit", "seed", "license"), [("", COMMIT, 0, "mit"), ("@v2", "f" * 40, 2, None)]
)
def test_a_model_on_the_hub_is_converted_with_its_commit_and_license(hub, tmp_path, revision, commit, seed, license):
    (hub.root / "models" / "org").mkdir(parents=True)
    for name, number in (("clip", 0), ("clip@v2", 2)):
        weights = OpenAIClip(seed=number).state_dict()
        folder = save_open_clip(hub.root / "models" / "org" / name, weights, config_of())
        (folder / "README.md").write_text("# A CLIP" if number else "---\nlicense: mit\n---\n")
    (folder / HISTORY).write_text(json.dumps([{"id": "f" * 40, "message": "v2"}]))
    run_recipe("convert.py", f"hf-hub:org/clip{revision}", "--output_dir", tmp_path / "made")
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert f"from [hf-hub:org/clip](https://huggingface.co/org/clip) at {commit}" in card.text
    assert (card.data.base_model, card.data.license) == ("org/clip", license)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = CLIPModel.from_pretrained(tmp_path / "made").get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features, OpenAIClip(seed=seed).visual(pixels), rtol=1e-4, atol=1e-5)


# Clean accuracy


def test_clean_accuracy_is_measured_and_published(sources, tmp_path, capsys):
    images = ["--benchmark", "digits", "--max_samples", 20, "--use_cpu"]
    run_recipe("convert.py", sources / "open_clip", *images, "--output_dir", tmp_path / "clip")
    folder = ModelFolder(tmp_path / "clip")
    (row,) = folder.rows
    said = describe_accuracy(folder.conversion["accuracy"])
    assert said.startswith(f"On digits (test, n = 20) it is right on {100 * row.accuracy:.1f} %, and with gelu for ")
    assert said in folder.card and said in capsys.readouterr().out
    assert ModelCard(folder.card).data.eval_results[0].metric_value == row.accuracy


def test_a_wrong_activation_is_found_by_clean_accuracy_alone(tmp_path):
    """On images that gelu and quick_gelu put into different classes, with the labels of the latter."""
    source = OpenAIClip("quick_gelu")
    for name, weight in source.visual.named_parameters():
        if name.endswith(("bias", "embedding")):
            weight.mul_(0.1)  # so that what a model says depends on the image
    save_open_clip(tmp_path / "open_clip", source.state_dict(), config_of())
    checkpoint, said = read_checkpoint(str(tmp_path / "open_clip")), ("gelu", "quick_gelu")
    wrong, right = (convert(checkpoint, stated=Stated(activation=activation)) for activation in said)
    everything = as_benchmark(make_dataset(400).remove_columns("label"), [0] * 400)
    first, second = (predict_classes(converted, everything) for converted in (wrong, right))
    odd = [row for row in range(400) if first[row] != second[row]]
    assert len(odd) >= 10
    images = as_benchmark(everything.dataset.remove_columns("label").select(odd), [second[row] for row in odd])
    row, measured = compare_activations(wrong.model, wrong.processor, images, vision_alone=False)
    assert (row.accuracy, measured["other_accuracy"], measured["better"]) == (0, 1, "quick_gelu")
    assert "with quick_gelu for gelu on 100.0 %, so the other one seems to be right." in describe_accuracy(measured)
    _, measured = compare_activations(right.model, right.processor, images, vision_alone=False)
    assert (measured["accuracy"], measured["other_accuracy"], measured["better"]) == (1, 0, "quick_gelu")
    assert describe_accuracy(measured).endswith("with gelu for quick_gelu on 0.0 %, so its own seems to be right.")
    unsure = describe_accuracy(measured | {"better": None})
    assert unsure.endswith("with gelu for quick_gelu on 0.0 %, which doesn't tell them apart.")
    assert wrong.model.config.vision_config.hidden_act == "gelu"


NAMES = [first * 3 + second for first in "abcdef" for second in "abcdef"]


def as_benchmark(dataset, labels: list[int]) -> Benchmark:
    return Benchmark("odd", "test", dataset.add_column("label", labels), NAMES, "{}", ImageTransform())


def predict_classes(converted, images: Benchmark) -> list[int]:
    subject = Subject(ZeroShotClassifier(converted.model, converted.processor), "any")
    return predict([subject], images)["any"].tolist()


# What is refused


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["base"], "base is in the format of transformers already, which every command takes: there is nothing"),
        (["base", "--to", "openclip", "--activation", "gelu"], "activation is given of "),
        (["base", "--to", "openclip", "--benchmark", "digits"], "--benchmark measures what is converted"),
        (["another", "--to", "onnx"], "Unknown format (--to) 'onnx'; known: transformers, openclip"),
        (["towr.pt"], "there is no such file or folder: did you mean "),
        (["tower.pt:base=x"], "sets base: give it as an option, such as --base ID."),
        (["tower.pt", "--base", "no/such/base"], "Can't load the model 'no/such/base': there is no such folder"),
        (["tower.pt", "--base", "{sources}/another"], "is of another architecture than "),
        (
            ["tower.pt", "--base", "{sources}/base", "--heads", "5"],
            "heads is 5 (given; PATH/base says 3), but must divide the width 24",
        ),
        (["tower.pt", "--heads", "some"], "--heads is 'some', but must be a whole number"),
        (["tower.pt", "--image_mean", "0.5", "0.5"], "image_mean is 0.5 0.5, but must be three numbers"),
        (["whole.pt", "--activation", "relu"], "Unknown activation 'relu'; known: gelu, quick_gelu"),
        (["open_clip", "--benchmark", "mnist"], "Unknown benchmark 'mnist'; known: digits"),
        (["open_clip", "--benchmark", "digits", "--max_samples", "0"], "max_samples is 0, but must be a whole number"),
        (
            ["open_clip", "--max_samples", "10"],
            "--max_samples says how many samples of --benchmark are measured: give",
        ),
        (["open_clip", "--benchmark", ""], "A dataset's path is empty"),
        (["tower.pt", "--base", ""], "base is empty, but must be a Hub id or a path"),
        (["open_clip", "--tokenizer", ""], "tokenizer is empty, but must be a Hub id or a path"),
        (["tower.pt@v1", "--base", "{sources}/base"], "asks for the revision v1, but {sources}/tower.pt lies on this"),
        (["open_clip", "--tokenizer", "no/tokenizer"], "Can't load the tokenizer 'no/tokenizer'"),
    ],
)
def test_bad_input_is_refused_in_a_line_and_nothing_is_written(sources, tmp_path, home, arguments, line):
    source, *more = (str(part).format(sources=sources) for part in arguments)
    refusal = refusal_of("convert.py", f"{sources}/{source}", *more, "--output_dir", tmp_path / "clip")
    assert line.format(sources=sources) in refusal and "\n" not in refusal
    assert not list(tmp_path.iterdir()) and not list(home.iterdir())


@pytest.mark.parametrize("name", ["hf-hub:clip", "hf-hub:org/none"])
def test_a_model_that_the_hub_does_not_have_is_refused(hub, tmp_path, name):
    assert "Can't load the model" in refusal_of("convert.py", name, "--output_dir", tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("to", ["transformers", "openclip"])
def test_logits_that_differ_are_refused_and_nothing_is_written(sources, tmp_path, monkeypatch, to):
    rename = to_transformers.to_transformers

    def with_an_error(weights):
        return {name: 1.01 * weight if "fc1" in name else weight for name, weight in rename(weights).items()}

    monkeypatch.setattr(to_transformers, "to_transformers", with_an_error)
    line = refusal_of("convert.py", sources / "open_clip", "--to", to, "--output_dir", tmp_path / "clip")
    assert "cosines of the same images and prompts differ by" in line and not list(tmp_path.iterdir())


def test_a_folder_that_holds_anything_is_left_alone(sources, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for source, to in ((sources / "open_clip", "transformers"), (sources / "base", "openclip")):
        line = refusal_of("convert.py", source, "--to", to, "--output_dir", tmp_path)
        assert line == f"{tmp_path} isn't empty, but has notes.txt: give another output_dir."
    assert names(tmp_path) == {"notes.txt"}


def test_what_a_killed_conversion_has_left_is_no_hindrance(sources, tmp_path):
    (tmp_path / "incomplete").mkdir()
    (tmp_path / "incomplete" / "model.safetensors").write_bytes(b"half")
    run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path)
    assert names(tmp_path) == WRITTEN


def test_a_folder_in_use_is_refused(sources, tmp_path):
    with held_by_another(tmp_path):
        line = refusal_of("convert.py", sources / "base", "--to", "openclip", "--output_dir", tmp_path)
    assert "is in use by process" in line


# A model like any other


def test_a_converted_folder_is_published_and_loaded_again(hub, sources, tmp_path, capsys):
    run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path / "clip")
    run_recipe("publish.py", "--run", tmp_path / "clip", "--hub_model_id", "me/clip")
    assert pushed(hub, "me/clip") == WRITTEN
    again = CLIPModel.from_pretrained("me/clip").state_dict()
    assert hash_weights(again) == hash_weights(CLIPModel.from_pretrained(tmp_path / "clip").state_dict())
    (tmp_path / "clip" / "model.safetensors").write_bytes((sources / "another" / "model.safetensors").read_bytes())
    line = refusal_of("publish.py", "--run", tmp_path / "clip", "--hub_model_id", "me/clip")
    assert "aren't those that its conversion.json is of" in line


def test_what_is_written_for_open_clip_is_pushed_as_it_is(sources, tmp_path):
    run_recipe("convert.py", sources / "base", "--to", "openclip", "--output_dir", tmp_path / "clip")
    for more in ([], ["--evaluations", tmp_path]):
        line = refusal_of("publish.py", "--run", tmp_path / "clip", "--hub_model_id", "me/clip", *more)
        assert "holds a model of open_clip, which isn't published by hpt: push it as it is" in line
        assert line.endswith(f"by hf upload OWNER/NAME {tmp_path}/clip.")


def test_a_damaged_record_is_refused(sources, tmp_path):
    run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path / "clip")
    file = tmp_path / "clip" / "conversion.json"
    file.write_text(file.read_text().replace("quick_gelu", "gelu"))
    with pytest.raises(InputError, match="conversion.json is damaged .*: convert the checkpoint again"):
        _ = ModelFolder(tmp_path / "clip").conversion


def test_checkpoints_are_evaluated_under_their_names_and_published(sources, tmp_path, capsys):
    models = [f"tower={sources}/tower.pt:base={sources}/base", f"hub={sources}/open_clip", f"base={sources}/base"]
    attack = ["--attacks", "pgd:steps=1", "--eps", "4/255", "--benchmarks", "digits", "--max_samples", 10]
    run_recipe("evaluate.py", "--models", *models, *attack, "--output_dir", tmp_path / "e", "--use_cpu")
    rows = [json.loads(line) for line in (tmp_path / "e" / "results.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"tower", "hub", "base"} and len({row["weights"] for row in rows}) == 1
    run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path / "clip")
    run_recipe("publish.py", "--run", tmp_path / "clip", "--evaluations", tmp_path / "e", "--dry_run")
    card = (tmp_path / "clip" / "README.md").read_text()
    assert "none (clean)" in card and "PGD-1" in card and LIMIT in card and "adversarial-robustness" in card


def test_a_checkpoint_is_ranked_as_a_proxy(sources, tmp_path, capsys):
    models = ["--target", f"mine={sources}/another", "--proxies", f"tower={sources}/tower.pt:base={sources}/base"]
    settings = ["--dataset", "digits", "--validation_size", 20, "--max_samples", 10, "--steps", 1, "--eps", "4/255"]
    run_recipe("rank_proxies.py", *models, *settings, "--output_dir", tmp_path, "--use_cpu")
    assert "tower" in capsys.readouterr().out


def test_a_checkpoint_is_trained(sources, tmp_path, capsys):
    target = f"{sources}/tower.pt:base={sources}/base"
    short = ["--anchor_epochs", 0, "--transfer_epochs", 1, "--warmup_steps", 0, "--max_train_samples", 64]
    short += ["--max_eval_samples", 10, "--eval_attack_steps", 1, "--train_dataset", "digits", "--use_cpu"]
    models = ["--target", target, "--proxies", f"{sources}/other.pt:base={sources}/base,template=a {{}}"]
    run_recipe("hpt_gpd.py", *models, *short, "--output_dir", tmp_path / "run")
    assert f"--models vanilla={target} robust={tmp_path}/run/robust" in capsys.readouterr().out
    run = json.loads((tmp_path / "run" / "robust" / "training.json").read_text())
    assert run["settings"]["target"] == "PATH/tower.pt:base=PATH/base"
    assert run["target"]["converted_from"] == "tower.pt" and run["proxies"][0]["converted_from"] == "other.pt"
    card = (tmp_path / "run" / "robust" / "README.md").read_text()
    assert "a local model, converted from `tower.pt`" in card and str(tmp_path) not in card
    line = refusal_of("hpt_gpd.py", "--target", f"{sources}/base:base=x", *short, "--output_dir", tmp_path / "other")
    assert "Can't load the model" in line and not (tmp_path / "other").exists()
