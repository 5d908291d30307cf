"""`hpt interpolate` as a user runs it: a point of a run is chosen on images that the run didn't see, and saved."""

import json
import shutil

import pytest
from helpers import assert_same, make_clip, make_family, refusal_of, run_recipe, save_images
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from hpt import InputError, load_benchmark
from hpt.evaluation.results import read_result_rows
from hpt.hub.evaluations import add_saved_evaluations
from hpt.hub.folder import ModelFolder
from hpt.hub.interpolation import load_unseen
from hpt.json_files import read_lines, sealed, unsealed
from hpt.models.endpoints import INDEX, read_endpoints
from hpt.models.loading import load_dual_encoder, save_finished


QUICK = {
    "train_dataset": "digits",
    "max_train_samples": 64,
    "max_eval_samples": 10,
    "anchor_epochs": 1,
    "transfer_epochs": 1,
    "warmup_steps": 0,
    "anchor_learning_rate": 0.01,
    "learning_rate": 0.01,
    "attack_eps": "16/255",
    "attack_step_size": "8/255",
    "eval_attack_steps": 1,
    "per_device_train_batch_size": 32,
    "save_strategy": "no",
    "save_endpoints": True,
    "license": "mit",
    "use_cpu": True,
    "cpu_threads": 1,
}
FEW = {"max_samples": 20, "attacks": "pgd:steps=1", "points": [0.5, 1], "use_cpu": True}


def arguments(settings: dict) -> list[str]:
    lists = {name: value if isinstance(value, list) else [value] for name, value in settings.items()}
    return [part for name, values in lists.items() for part in (f"--{name}", *map(str, values))]


def train(folder, **settings):
    for name, seed, patch_size in (("target", 0, 8), ("proxy", 1, 4)):
        save_finished(*make_clip(seed, patch_size=patch_size), folder / name)
    models = {name: folder / name for name in ("target", "proxy")}
    run_recipe("hpt_gpd.py", *arguments(QUICK | models | {"output_dir": folder / "run"} | settings))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("quick"))


def interpolate(run, **settings) -> dict:
    run_recipe("interpolate.py", *arguments({"run": run} | FEW | settings))
    folder = settings.get("output_dir", run / "dial")
    return unsealed(json.loads((folder / "chosen" / "interpolation.json").read_text()))


def test_a_point_is_chosen_and_saved(run, tmp_path, capsys):
    choice = interpolate(run, average_points=[0, 0.5], output_dir=tmp_path)
    said = capsys.readouterr().out
    assert "20 images of digits (validation), attacked at native resolution by PGD-1 at l_inf eps 16/255" in said
    points = read_lines(tmp_path / "points.jsonl", unsealed)
    assert [(point["t"], point["u"]) for point in points] == [(0.5, 0), (1, 0), (0.5, 0.5), (1, 0.5)]
    best = max(points, key=lambda point: point["clean"] + point["robust"])
    (chosen,) = [point for point in points if point["chosen"]]
    assert chosen["clean"] + chosen["robust"] == pytest.approx(best["clean"] + best["robust"])
    assert (choice["t"], choice["u"], choice["rule"]) == (chosen["t"], chosen["u"], "sum")
    with Image.open(tmp_path / "dial.png") as picture:
        assert picture.width > 500
    assert (tmp_path / "dial.md").read_text().strip() in said
    # The point is a model as any other
    vanilla = CLIPModel.from_pretrained(run.parent / "target").state_dict()
    model = CLIPModel.from_pretrained(tmp_path / "chosen")
    assert_same(dict(model.state_dict()), read_endpoints(run, vanilla).at(choice["t"], choice["u"]))
    processor = CLIPProcessor.from_pretrained(tmp_path / "chosen")
    assert processor.image_processor.crop_size["height"] == 16


def test_the_card_says_which_point_and_why(run, tmp_path):
    choice = interpolate(run, rule="clean>=0", points=[0.4, 0.8], output_dir=tmp_path)
    card, ran = (tmp_path / "chosen" / "README.md").read_text(), ModelFolder(run / "robust").run
    point = ModelFolder(tmp_path / "chosen")
    assert f"training ended with, at t={choice['t']:g}**" in card and "license: mit" in card
    assert "chosen by the rule `clean>=0`: the most robust of the points with a clean accuracy of at least 0." in card
    assert "20 images of digits (validation), attacked at native resolution by PGD-1 at l_inf eps 16/255" in card
    assert "The run didn't train on these images. No test was looked at" in card
    assert ran["vanilla_weights"] in card and "![Clean and robust accuracy of the points](figures/dial.png)" in card
    again = "--points 0.4 0.8 --average_points 0 --attacks pgd:steps=1 --eps 16/255 --max_samples 20 --seed 0"
    assert f"{again} --rule 'clean>=0'" in card
    assert {name: value for name, value in point.run.items() if name != "weights"} == {
        name: value for name, value in ran.items() if name != "weights"
    }
    assert point.has_weights_of_run and point.has_weights_of_choice
    # What was measured on the run's weights is not the point's
    assert ModelFolder(run / "robust").rows and not point.rows
    assert "It has not been evaluated" in card and "model-index" not in card


def test_the_point_can_be_evaluated_and_published(run, tmp_path, capsys):
    interpolate(run, points=[0.5], output_dir=tmp_path)
    evaluation = {"models": f"chosen={tmp_path / 'chosen'}", "benchmarks": "digits", "attacks": "pgd:steps=1"}
    evaluation |= {"eps": "16/255", "max_samples": 10, "use_cpu": True, "output_dir": tmp_path / "evaluation"}
    run_recipe("evaluate.py", *arguments(evaluation))
    publication = {"run": tmp_path / "chosen", "hub_model_id": "me/point", "dry_run": True}
    capsys.readouterr()
    run_recipe("publish.py", *arguments(publication | {"evaluations": tmp_path / "evaluation"}))
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("interpolation.json", "evaluation.jsonl", "figures/dial.png"))
    assert "endpoints" not in listed
    card = (tmp_path / "chosen" / "README.md").read_text()
    assert "under pgd" in card.lower() and "model-index" in card and "me/point" in card
    # Another point in the same folder doesn't inherit what was measured on this one
    interpolate(run, points=[0.75], output_dir=tmp_path)
    assert not ModelFolder(tmp_path / "chosen").rows
    assert "It has not been evaluated" in (tmp_path / "chosen" / "README.md").read_text()


def test_it_goes_on_and_says_if_no_point_is_good_enough(run, tmp_path, capsys):
    output = {"output_dir": tmp_path}
    line = refusal_of("interpolate.py", *arguments({"run": run} | FEW | output | {"rule": "clean>=1"}))
    assert line.startswith("No point has a clean accuracy of 1 or more: the best has 0.") and "chosen" not in line
    table = (tmp_path / "dial.md").read_text()
    assert "t=0.5" in table and "Chosen" not in table and not (tmp_path / "chosen").exists()
    rows = (tmp_path / "results.jsonl").read_bytes()
    interpolate(run, **output)
    assert (tmp_path / "results.jsonl").read_bytes() == rows
    assert {row.weights for row in read_result_rows(tmp_path)} == {
        point["weights"] for point in read_lines(tmp_path / "points.jsonl", unsealed)
    }


def test_adapters_have_a_dial_too(tmp_path):
    run = train(tmp_path, lora_rank=2)
    choice = interpolate(run, points=[1], average_points=[0])
    assert choice["final_weights"] == choice["points"][0]["weights"]
    robust, chosen = (CLIPModel.from_pretrained(folder) for folder in (run / "robust", run / "dial" / "chosen"))
    assert_same(dict(chosen.state_dict()), dict(robust.state_dict()))
    assert not (run / "dial" / "chosen" / "adapter_config.json").exists()


def test_two_models_are_enough(run, tmp_path):
    ends = {"vanilla": run.parent / "target", "final": run / "robust", "output_dir": tmp_path}
    run_recipe("interpolate.py", *arguments(ends | FEW))
    there = interpolate(run, output_dir=tmp_path / "run")
    here = unsealed(json.loads((tmp_path / "chosen" / "interpolation.json").read_text()))
    assert here["points"] == there["points"]


def test_a_model_that_hpt_did_not_train_gets_a_card(run, tmp_path):
    model, processor = make_clip(3)
    model.vision_model.load_state_dict(CLIPModel.from_pretrained(run / "robust").vision_model.state_dict())
    save_finished(model, processor, tmp_path / "other")
    ends = {"vanilla": run.parent / "target", "final": tmp_path / "other", "output_dir": tmp_path / "dial"}
    ends |= {"dataset": "digits", "validation_size": 30, "eps": "4/255"}
    run_recipe("interpolate.py", *arguments(ends | FEW))
    card = (tmp_path / "dial" / "chosen" / "README.md").read_text()
    assert "how it was trained isn't recorded" in card and "at t=" in card
    assert "Whether the model was trained on these images isn't recorded." in card
    run_recipe("publish.py", *arguments({"run": tmp_path / "dial" / "chosen", "dry_run": True}))


# Images


def record(**settings) -> dict:
    """What a run's `training.json` says of its data."""
    settings = {"train_dataset": "digits"} | settings
    seen = load_benchmark("digits", "train")
    if settings.get("validation_size"):
        seen, _ = seen.hold_out(settings["validation_size"])
    seen = seen.subset(settings.get("max_train_samples"))
    data = {"name": "digits", "split": "train", "images_per_epoch": len(seen), "streamed": False}
    return {"settings": settings, "data": data, "seen": set(seen.ids().tolist())}


def test_images_are_those_that_the_run_held_out():
    ran = record(validation_size=50, max_train_samples=900)
    images = load_unseen(None, ran, None, "hpt")
    expected = load_benchmark("digits", "train").hold_out(50)[1]
    assert images.ids().tolist() == expected.ids().tolist() and not set(images.ids().tolist()) & ran["seen"]
    assert load_unseen("digits", ran, 50, "hpt").ids().tolist() == images.ids().tolist()
    with pytest.raises(InputError, match="validation_size is 40, but the run held out 50 images: leave it out"):
        load_unseen(None, ran, 40, "hpt")


@pytest.fixture
def birds(tmp_path):
    """A folder of images without a validation split, and a run's record of it."""
    folder = save_images(tmp_path / "birds", ("train", "test"), ("cat", "dog"))

    def ran(images: int, **settings) -> dict:
        data = {"name": "birds", "split": "train", "images_per_epoch": images, "streamed": False}
        return {"settings": {"train_dataset": "birds=PATH/birds"} | settings, "data": data}

    return f"birds={folder}", ran


def test_a_run_that_saw_all_images_leaves_none(birds):
    dataset, ran = birds
    with pytest.raises(
        InputError, match="trained on all images of birds=.*, which has no validation split.*train with"
    ):
        load_unseen(dataset, ran(4), None, "hpt")
    with pytest.raises(InputError, match="The run trained on birds=PATH/birds: give --dataset, with that folder"):
        load_unseen(None, ran(4), None, "hpt")
    left = load_unseen(dataset, ran(2, max_train_samples=2), None, "hpt")
    train = load_benchmark(dataset, "train")
    assert set(left.ids()) == set(train.ids()) - set(train.subset(2).ids())


@pytest.mark.parametrize(
    ("suffix", "line"),
    [
        (":split=test", r"birds \(test\) is what models are tested on: choose on training images"),
        (":split=train", "The run trained on birds=.*:split=train: give another split"),
        (":split=val", "has no split 'val'"),
    ],
    ids=["test", "train", "missing"],
)
def test_images_that_were_trained_or_are_tested_on_are_refused(birds, suffix, line):
    dataset, ran = birds
    with pytest.raises(InputError, match=line):
        load_unseen(dataset + suffix, ran(4), None, "hpt")


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ("digits:split=test,template={}", "is what models are tested on"),
        ("digits:split=test", "is what models are tested on"),
        ("all", "all is sixteen benchmarks, where one is needed"),
        ("digitz", "Unknown benchmark 'digitz'"),
        (None, "isn't recorded, or has no labels: give the set to choose on, as --dataset"),
    ],
    ids=str,
)
def test_a_set_that_cannot_be_chosen_on_is_refused(dataset, line):
    with pytest.raises(InputError, match=line):
        load_unseen(dataset, None, None, "hpt")


def test_a_run_without_labels_has_its_dial_on_any_set_with_them(birds):
    dataset, ran = birds
    unlabelled = ran(4)
    unlabelled["data"]["labelled"] = False
    assert len(load_unseen("digits", unlabelled, 20, "hpt")) == 20
    with pytest.raises(InputError, match="isn't recorded, or has no labels: give the set"):
        load_unseen(None, unlabelled, None, "hpt")


def test_another_set_than_the_runs_is_refused(birds):
    dataset, ran = birds
    with pytest.raises(InputError, match="The run trained on birds, not on digits: name that, as birds=PATH"):
        load_unseen("digits", ran(4), None, "hpt")
    with pytest.raises(
        InputError, match="The run trained on 7 images of birds, but birds=.* has 4: give the set that"
    ):
        load_unseen(dataset, ran(7), None, "hpt")


def test_a_run_on_some_classes_has_its_dial_on_these():
    six = load_benchmark("digits:classes=0|1|2", "train")
    data = {"name": six.name, "split": "train", "images_per_epoch": 300, "streamed": False}
    ran = {"settings": {"train_dataset": "digits:classes=0|1|2", "max_train_samples": 300}, "data": data}
    images = load_unseen(None, ran, None, "hpt")
    assert (images.name, images.split, len(images.class_names)) == (six.name, "validation", 3)
    with pytest.raises(InputError, match=r"trained on digits \(3 of 10 .*, not on digits: .*, as digits:classes=FILE"):
        load_unseen("digits", ran, None, "hpt")


@pytest.fixture
def mixture(tmp_path):
    """Two folders of images, of which a run trained on a mixture, with what it recorded."""
    sets = {name: save_images(tmp_path / name, ("train", "test"), kinds) for name, kinds in KINDS.items()}
    shared = {"split": "train", "streamed": False, "images_per_epoch": 9, "template": "{}"}
    described = [shared | {"name": name, "images": 2 * len(kinds) - 2} for name, kinds in KINDS.items()]
    settings = {"train_datasets": [f"{name}=PATH/{name}" for name in KINDS], "validation_size": 2}
    ran = {"settings": settings, "data": shared | {"name": "pets (50 %), birds (50 %)", "sets": described}}
    return {name: f"{name}={folder}" for name, folder in sets.items()}, ran


KINDS = {"pets": ("cat", "dog"), "birds": ("heron", "owl", "wren")}


def test_images_without_a_geometry_of_their_own_are_seen_as_the_model_does(run, tmp_path):
    folder = save_images(tmp_path / "mine", ("validation",))
    choice = interpolate(run, dataset=f"mine={folder}:split=validation", output_dir=tmp_path / "dial")
    assert (choice["benchmark"], choice["split"], choice["attack_space"]) == ("mine", "validation", "16-16")


@pytest.mark.filterwarnings("ignore:.* rows can't have their share")
def test_a_run_on_a_mixture_has_its_dial_on_what_it_held_out_of_one_set(mixture):
    named, ran = mixture
    for name, kinds in KINDS.items():
        images = load_unseen(named[name], ran, None, "hpt")
        expected = load_benchmark(named[name], "train").hold_out(2)[1]
        assert images.ids().tolist() == expected.ids().tolist() and images.class_names == list(kinds)
    for dataset, size, line in (
        (
            None,
            None,
            "The run trained on pets=PATH/pets and birds=PATH/birds: give the one to choose on, as --dataset",
        ),
        (named["pets"], 1, "validation_size is 1, but the run held out 2 images"),
        (named["pets"].replace("pets=", "cats="), None, "trained on pets and birds, not on cats: name one of these"),
        (named["birds"].replace("birds=", "pets="), None, "The run trained on 2 images of pets, but pets=.* has 4"),
        (f"{named['pets']}:split=train", None, "The run trained on pets=.*:split=train: give another split"),
    ):
        with pytest.raises(InputError, match=line):
            load_unseen(dataset, ran, size, "hpt")


@pytest.mark.parametrize("tower", [None, "ResNet"])
def test_a_run_at_another_size_has_its_dial_there(tmp_path, tower):
    """Of a target with a table of positions, and of one without, whose weights say nothing of the size."""
    if tower is None:
        settings = {"image_size": 24}
    else:
        save_finished(*make_family(tower), tmp_path / "tower")
        settings = {"image_size": 24, "target": tmp_path / "tower", "objective": "tecoa", "anchor_epochs": 0}
    run = train(tmp_path, **settings)
    choice = interpolate(run, points=[0.5, 1])
    assert choice["final_weights"] == choice["points"][1]["weights"]
    _, processor = load_dual_encoder(str(run / "dial" / "chosen"))
    assert processor.image_processor.crop_size["height"] == 24
    if tower is None:
        return
    # What was measured on the same weights at their own size isn't the vanilla model that this was made from
    own = ["--models", f"vanilla={tmp_path / 'tower'}", f"robust={run / 'robust'}", "--benchmarks", "digits"]
    own += ["--attacks", "pgd:steps=1", "--eps", "1/255", "--max_samples", 10, "--output_dir", run / "evaluation"]
    run_recipe("evaluate.py", *own)
    add_saved_evaluations(folder := ModelFolder(run / "robust"), run)
    rows = [row for row in folder.rows if row.batch_size is not None]
    assert {row.model for row in rows} == {"this model"}


# Bad input


REFUSED = {
    "points outside": ({"points": [0.5, 1.5]}, "t is 1.5, but must be between 0, vanilla, and 1."),
    "negative point": ({"points": ["-0.5"]}, "t is -0.5, but must be"),
    "NaN": ({"points": ["nan"]}, "t is nan, but must be"),
    "no points": ({"points": []}, "--points is given without a value"),
    "a word": ({"points": ["half"]}, "--points is 'half', but must be a number."),
    "twice": ({"points": [0.5, 0.5]}, "The point t=0.5 is given twice"),
    "average twice": ({"average_points": [0.5, 0.5]}, "The point t=0.5,u=0.5 is given twice"),
    "average outside": ({"average_points": [2]}, "u is 2, but must be"),
    "rule": ({"rule": "best"}, "The rule is 'best', but must be sum, or clean>=NUMBER"),
    "samples": ({"max_samples": 0}, "max_samples is 0, but must be"),
    "attack": ({"attacks": "pdg"}, "Unknown attack 'pdg'"),
    "no proxy": ({"attacks": "adaptive"}, "The attack 'adaptive' needs a proxy, but there is none here"),
    "eps": ({"eps": 0}, "eps"),
    "seed": ({"seed": -1}, "seed is -1, but must be"),
    "validation": ({"validation_size": -1}, "validation_size is -1, but must be"),
    "other validation": ({"validation_size": 5}, "validation_size is 5, but the run held out 0 images"),
    "test split": ({"dataset": "digits:split=test"}, "digits (test) is what models are tested on"),
    "train split": ({"dataset": "digits:split=train"}, "The run trained on digits:split=train"),
    "protocol": ({"dataset": "digits:split=validation", "protocol": "x"}, "Unknown protocol 'x'"),
    "run and final": ({"final": "x"}, "Give a run with endpoints as --run, or two models by --vanilla"),
    "no such run": ({"run": "nowhere"}, "There is no folder 'nowhere'"),
    "unknown field": ({"rules": "sum"}, "Unknown field 'rules'"),
    "vanilla": ({"vanilla": "no/such/model"}, "no such folder"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_a_line(run, tmp_path, kind):
    settings, line = REFUSED[kind]
    refused = refusal_of("interpolate.py", *arguments({"run": run} | FEW | {"output_dir": tmp_path} | settings))
    assert line in refused and "\n" not in refused
    assert not (tmp_path / "points.jsonl").exists()


def copy_run(run, folder):
    return shutil.copytree(run, folder / "copy", ignore=shutil.ignore_patterns("dial"))


def alter_index(run, **changes) -> None:
    index = unsealed(json.loads((run / "endpoints" / INDEX).read_text()))
    (run / "endpoints" / INDEX).write_text(json.dumps(sealed(index | changes)))


def put_other_weights(run) -> None:
    model, processor = make_clip(5)
    save_finished(model, processor, run / "robust")


BROKEN = {
    "no endpoints": (lambda run: shutil.rmtree(run / "endpoints"), "has no endpoints (endpoints/endpoints.json)"),
    "damaged": (lambda run: (run / "endpoints" / INDEX).write_text("{"), "endpoints.json is damaged"),
    "missing": (lambda run: (run / "endpoints" / "final.safetensors").unlink(), "final.safetensors is missing"),
    "no model": (lambda run: shutil.rmtree(run / "robust"), "isn't a finished run"),
    "other model": (put_other_weights, "aren't of"),
    "other vanilla": (lambda run: alter_index(run, vanilla_weights="0" * 16), "began with other weights (hash 000"),
    "vanilla gone": (
        lambda run: (run / "endpoints" / "base_path.txt").write_text("/gone/target"),
        "/gone/target, isn't there any more: give it as --vanilla",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_is_a_line(run, tmp_path, kind):
    copy = copy_run(run, tmp_path)
    damage, line = BROKEN[kind]
    damage(copy)
    refused = refusal_of("interpolate.py", *arguments({"run": copy} | FEW))
    assert line in refused and str(tmp_path) in refused and "\n" not in refused


def test_ends_that_do_not_belong_together_are_refused(run, tmp_path):
    quick = {"output_dir": tmp_path / "dial", "dataset": "digits", "eps": "4/255"} | FEW
    target, robust = run.parent / "target", run / "robust"

    def refusal(vanilla, final, **settings):
        return refusal_of("interpolate.py", *arguments(quick | {"vanilla": vanilla, "final": final} | settings))

    save_finished(*make_clip(4), tmp_path / "stranger")
    save_finished(*make_clip(0, patch_size=4), tmp_path / "finer")
    model, processor = make_clip(6)
    model.config.vision_config.num_attention_heads *= 2
    save_finished(model, processor, tmp_path / "heads")
    assert "wasn't trained from" in (line := refusal(tmp_path / "stranger", robust)) and "of hash" in line
    assert "are of different architectures: vision_model.embeddings" in refusal(run.parent / "proxy", robust)
    assert "are of different architectures: " in refusal(target, tmp_path / "finer")
    assert "are configured differently" in refusal(target, tmp_path / "heads")
    assert "are the same weights: there is nothing between them" in refusal(target, target)
    assert "Give a run with endpoints as --run" in refusal_of("interpolate.py", "--vanilla", target)
    assert "There is no average" in refusal(target, tmp_path / "stranger", average_points=0.5, validation_size=30)
    without = {name: value for name, value in quick.items() if name != "eps"}
    ends = {"vanilla": target, "final": tmp_path / "stranger"}
    line = refusal_of("interpolate.py", *arguments(without | ends))
    assert "isn't recorded: give it, such as --eps 4/255" in line
