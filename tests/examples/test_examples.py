"""The short examples, run as they stand, on tiny models and a few images."""

import re
import subprocess
import sys
from functools import partial
from runpy import run_path

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, ONE_THREAD, ROOT, make_clip, save_images
from PIL import Image
from transformers import CLIPImageProcessorPil, ResNetConfig, ResNetForImageClassification

from hpt import OBJECTIVES, InputError, load_proxy
from hpt.attacks import APGDCE, AttackResult
from hpt.classifiers import VERDICTS, draw_seeds, draw_uniform
from hpt.evaluation.subject import Subject
from hpt.hub.folder import ModelFolder
from hpt.models.loading import save_finished
from hpt.references import parse_model
from hpt.training.step import TrainingStep


EXAMPLES = ROOT / "examples"
SHORT = ["classify", "own_images", "own_objective", "own_proxy", "proxy_robustness"]
DIGITS = "zero one two three four five six seven eight nine".split()
TWO_EPOCHS = {"anchor_epochs": 1, "transfer_epochs": 1, "warmup_steps": 0, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in, with tiny models named target and proxy."""
    for name, patch_size in (("target", 8), ("proxy", 4)):
        save_finished(*make_clip(patch_size=patch_size), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *arguments, **settings) -> None:
    run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments, **settings)


@pytest.mark.parametrize("name", SHORT)
def test_they_are_short_and_listed(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
    assert f"[{name}.py]({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def objectives():
    """What a test adds to the objectives is gone after it."""
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


@pytest.mark.usefixtures("objectives")
def test_own_objective(folder):
    run("own_objective", "target", "digits", "trades", transfer_epochs=1, max_steps=2, use_cpu=True)
    robust = ModelFolder(folder / "trades" / "robust")
    assert robust.run["objective"] == "trades" and robust.run["own_objectives"] == ["trades"]
    assert "the objective `trades` without GPD ([arXiv 1901.08573]" in robust.card and "beta 6.0" in robust.card


def test_own_objective_is_trades(classifier, images, labels):
    """Value, and gradient of the attack, against the equation, in float64."""
    trades = run_path(str(EXAMPLES / "own_objective.py"))["Trades"](beta=3.0)
    classifier, images = classifier.double(), images.double()
    step = TrainingStep(images, labels, target=classifier)
    moved = (images + 0.02 * torch.randn_like(images)).clamp(0, 1).requires_grad_(True)
    p, q = classifier(images).softmax(-1), classifier(moved).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1)
    expected = torch.autograd.grad(divergence.sum(), moved, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(trades.attack_loss(step, moved).sum(), moved)[0], expected)
    step.attacked = AttackResult(moved.detach(), torch.zeros(len(images), dtype=torch.bool))
    torch.testing.assert_close(trades(step), F.nll_loss(p.log(), labels, reduction="none") + 3 * divergence)


@pytest.fixture
def resnet(folder) -> ResNetForImageClassification:
    """A tiny one with more classes than digits has, in another order, saved as resnet."""
    labels = dict(enumerate(["gull, Larus", *(f"{name}, a digit" for name in reversed(DIGITS))]))
    shape = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(**shape, id2label=labels)).eval()
    model.save_pretrained("resnet")
    CLIPImageProcessorPil().save_pretrained("resnet")
    return model


def test_own_proxy(folder, resnet):
    run("own_proxy", "target", "resnet", "digits", "own", **TWO_EPOCHS, max_steps=1, per_device_train_batch_size=8)
    card = ModelFolder(folder / "own" / "robust").card
    assert "by learning from a frozen model (`SupervisedProxy`, a function of images)" in card


def test_own_proxy_answers_in_the_order_of_the_labels(resnet):
    proxy = run_path(str(EXAMPLES / "own_proxy.py"))["SupervisedProxy"]("resnet", DIGITS[:3]).eval()
    images, processor = torch.rand(2, 3, 224, 224), CLIPImageProcessorPil()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(proxy(images), resnet((images - mean) / std).logits[:, [10, 9, 8]])
    with pytest.raises(InputError, match="resnet knows no heron: give a classifier of the training classes"):
        run_path(str(EXAMPLES / "own_proxy.py"))["SupervisedProxy"]("resnet", ["one", "heron"])


def test_proxy_robustness(folder, capsys):
    run("proxy_robustness", "target", "proxy", "digits", 20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PGD-10")]
    assert [line.split()[5].rstrip(":") for line in lines] == ["0/255", "1/255", "2/255", "4/255", "8/255"]
    shares = [[float(word) for word in line.split() if word.replace(".", "").isdigit()] for line in lines]
    assert all(later[0] <= first[0] for first, later in zip(shares, shares[1:], strict=False))


def test_own_images(folder, capsys):
    save_images(folder / "birds", ("train", "test"))
    run("own_images", "birds=birds", "target", "proxy", "own", **TWO_EPOCHS)
    assert "| robust " in capsys.readouterr().out
    robust = ModelFolder(folder / "own" / "robust")
    for weights in (Subject(load_proxy("own/robust")).weights, robust.run["vanilla_weights"]):
        measured = {row.attack for row in robust.rows if row.weights == weights}
        assert measured >= {"clean", "pgd", "apgd", "worst case"}
    assert "On 4 images of birds (test) it is right on" in robust.card


def test_own_images_refuses_a_folder_that_is_not_there(folder):
    with pytest.raises(InputError, match="There is no folder or file 'nowhere'"):
        run("own_images", "birds=nowhere", "target", "proxy", "own", **TWO_EPOCHS)


def run_robust_vlm(monkeypatch, capsys, *arguments) -> tuple[float, dict]:
    """The mean cosine that it prints, and by tower and attack the numbers of its table."""
    settings = ["--vanilla", "target", "--max_samples", "10", "--steps", "5", *arguments]
    monkeypatch.setattr(sys, "argv", ["robust_vlm.py", *settings])
    run("robust_vlm")
    printed = capsys.readouterr().out
    lines = [line.strip("| ").split("|") for line in printed.splitlines() if line.startswith("|")][2:]
    measured = {(line[0].strip(), line[1].strip()): [float(cell) for cell in line[2:-1]] for line in lines}
    assert re.search(r"^PGD-5 at 16/255 on \w+: peak memory \d+\.\d\d GiB$", printed, re.MULTILINE)
    return float(re.search(r"mean cosine (-?\d\.\d+)", printed)[1]), measured


def test_robust_vlm(folder, monkeypatch, capsys):
    save_finished(*make_clip(seed=1, patch_size=8), folder / "robust")
    cosine, measured = run_robust_vlm(monkeypatch, capsys, "--robust", "robust")
    assert list(measured) == [(tower, name) for tower in ("its own", "robust") for name in ("untargeted", "targeted")]
    assert abs(cosine) < 0.9
    assert measured["its own", "untargeted"] != measured["robust", "untargeted"]
    for (_, name), (clean_loss, clean_share, loss, share, moved) in measured.items():
        assert (loss > clean_loss) if name == "untargeted" else (loss < clean_loss)
        assert (clean_share == 100 > share) if name == "untargeted" else share >= clean_share
        assert moved > 0


def test_robust_vlm_takes_a_saved_llava(folder, monkeypatch, capsys):
    """Loaded, it is what the example built itself; and the same tower again changes nothing."""
    resized = ["--vanilla", "target=target:image_size=24", "--robust", "target=target:image_size=24"]
    cosine, expected = run_robust_vlm(monkeypatch, capsys, *resized)
    assert cosine == 1
    assert expected["robust", "untargeted"] == expected["its own", "untargeted"]
    target = parse_model("target:image_size=24", loaded=True)
    vlm, processor = run_path(str(EXAMPLES / "robust_vlm.py"))["build_llava"](target)
    vlm.save_pretrained("llava")
    processor.save_pretrained("llava")
    assert run_robust_vlm(monkeypatch, capsys, *resized, "--vlm", "llava") == (cosine, expected)


ROBUST_VLM_REFUSES = {
    "a tower that doesn't fit": (
        ["--robust", "proxy"],
        "doesn't fit LlavaForConditionalGeneration:\n- its patch_size is 4, but the host's 8",
    ),
    "a model that isn't there": (["--vlm", "nowhere"], "Can't load the model 'nowhere': "),
    "a model that is none": (["--vlm", "proxy"], "Can't load the model 'proxy': ValueError: "),
    "an eps of 255": (["--eps", "16"], "eps is 16, but pixels are in .0, 1.*: did you mean 16/255?"),
}


@pytest.mark.parametrize("what", ROBUST_VLM_REFUSES)
def test_robust_vlm_refuses(what, folder, monkeypatch, capsys):
    arguments, message = ROBUST_VLM_REFUSES[what]
    with pytest.raises(InputError, match=message):
        run_robust_vlm(monkeypatch, capsys, "--robust", "target", *arguments)


def test_classify(folder):
    """In a process of its own, which must not load hpt."""
    Image.effect_noise((16, 16), 100).convert("RGB").save("image.png")
    code = (
        "import sys; from runpy import run_path; run_path(sys.argv[1])['main'](*sys.argv[2:]); "
        "assert 'hpt' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES / "classify.py"), "target", "image.png", *CLASSES]
    answer = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, check=True).stdout
    printed = {line.split("%  ")[1]: float(line.split()[0]) / 100 for line in answer.splitlines()}
    pixels = torch.frombuffer(bytearray(Image.open("image.png").tobytes()), dtype=torch.uint8).view(1, 16, 16, 3)
    classifier = load_proxy("target").with_classes(CLASSES)
    expected = classifier(pixels.permute(0, 3, 1, 2) / 255).softmax(-1)[0].tolist()
    assert list(printed) == CLASSES and list(printed.values()) == pytest.approx(expected, abs=1e-3)


# test_time_defence.py


@pytest.fixture
def defences(classifier) -> dict:
    """The example's defences of the tiny classifier, by name."""
    names = run_path(str(EXAMPLES / "test_time_defence.py"))
    counter = {"eps": 0.1, "unrolled": True}
    return {
        "resize": names["RandomResize"](classifier),
        "whole": names["RandomResize"](classifier, least=1.0),
        "unrolled": names["CounterPerturbation"](classifier, **counter),
        "given": names["CounterPerturbation"](classifier, **counter | {"unrolled": False}),
    }


def changed(defence, images, seeds):
    return defence.change(images, seeds, **defence.settings)


SEEDS = draw_seeds(0, torch.arange(4), VERDICTS, 0)


@pytest.mark.parametrize("name", ["resize", "unrolled"])
def test_defences_draw_from_the_seed_of_each_image_alone(defences, images, name):
    defence = defences[name]
    together = changed(defence, images, SEEDS)
    for place in range(4):
        alone = changed(defence, images[place : place + 1], SEEDS[place : place + 1])
        torch.testing.assert_close(alone, together[place : place + 1], rtol=0, atol=1e-5)
    assert not torch.allclose(changed(defence, images, SEEDS + 1), together, atol=1e-2)
    for mode in (torch.no_grad, torch.enable_grad):  # scored and attacked, it is the same function
        with mode():
            given = images.clone().requires_grad_(torch.is_grad_enabled())
            torch.testing.assert_close(changed(defence, given, SEEDS).detach(), together, rtol=0, atol=1e-5)
    logits = defence.with_classes(CLASSES[:2], "{}")(images, SEEDS)
    torch.testing.assert_close(logits, defence.model.with_classes(CLASSES[:2], "{}")(together))


def test_random_resize_shows_the_whole_image_somewhere(defences, images):
    torch.testing.assert_close(changed(defences["whole"], images, SEEDS), images, rtol=0, atol=1e-5)
    white = torch.ones(200, 3, 32, 32)
    seen = changed(defences["resize"], white, draw_seeds(0, torch.arange(200), VERDICTS, 0))
    sides = seen[:, 0].sum((1, 2)).sqrt() / 32  # of the square that is white
    assert 0.74 < sides.min() < 0.78 and 0.97 < sides.max() < 1.01
    assert seen[:, :, 0].amax() > 0.9 and (seen[:, :, 0].amax((1, 2)) == 0).any()  # at the upper edge, and below it


def test_counter_perturbations_move_the_embedding_away_within_their_ball(defences, images):
    counter = defences["unrolled"]
    moved = changed(counter, images, SEEDS)
    assert (moved - images).abs().max() <= 0.1 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    noisy = (images + 0.1 * (2 * draw_uniform(SEEDS, *images.shape[1:]) - 1)).clamp(0, 1)
    embeds = counter.model.image_embeds
    far, near = ((embeds(x) - embeds(images)).norm(dim=1) for x in (moved, noisy))
    assert (far > near).all()


def test_attacks_see_more_of_an_unrolled_counter_perturbation(defences, images):
    """Both are the same function; without unrolling the image's gradient is that of the moved image."""
    gradients = {}
    for name in ("unrolled", "given"):
        x = images.clone().requires_grad_()
        logits = defences[name](x, SEEDS)
        (gradients[name],) = torch.autograd.grad(logits[:, 0].sum(), x)
    x = changed(defences["given"], images, SEEDS).detach().requires_grad_()
    (at_moved,) = torch.autograd.grad(defences["given"].model(x)[:, 0].sum(), x)
    inside = (x > 0) & (x < 1)  # where it isn't clipped
    torch.testing.assert_close(gradients["given"][inside], at_moved[inside])
    assert not torch.allclose(gradients["unrolled"], gradients["given"], rtol=0.1, atol=0)


def test_attack_precision(folder, capsys, monkeypatch):
    arguments = "--models mine=target --proxy teacher=proxy --max_samples 20 --batch_size 10 --eps 8/255"
    monkeypatch.setattr(sys, "argv", ["attack_precision.py", *arguments.split()])
    run("attack_precision")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    attacks = [row for row in rows if row[0] == "mine" and row[1].startswith("PGD")]
    proxies, gradients = [row for row in rows if row[0] == "teacher"], [row for row in rows if row[0] == "mine"][6:]
    dtypes = ["float32", "bfloat16", "float16"]
    assert [row[2] for row in attacks] == 2 * dtypes
    assert [row[1] for row in proxies] == [row[1] for row in gradients] == dtypes
    assert [row[5] == "0.00" for row in attacks] == 2 * [True, False, False]
    assert proxies[0][3:] == ["100.0", "0"] and all(0 < float(row[4]) < 0.01 for row in proxies[1:])
    apart = [float(row[3]) for row in gradients]
    assert apart[0] == 0 and all(0 < percent < 3 for percent in apart[1:])


def test_test_time_defence(folder, capsys, monkeypatch):
    few = "--max_samples 10 --batch_size 10 --naive pgd:steps=1 --adaptive pgd:steps=1,eot=2"
    monkeypatch.setattr(sys, "argv", ["test_time_defence.py", "--model", "target", *few.split()])
    monkeypatch.setattr("hpt.evaluation.plan.APGDCE", partial(APGDCE, steps=1))  # of the large-eps checks
    run("test_time_defence")
    printed = capsys.readouterr().out
    for name in ("random resize", "counter-perturbation", "counter-perturbation, not unrolled"):
        assert f"| {name} " in printed and f"attack-did-not-see-defence: {name} on digits" in printed
    assert "PGD-1 made on undefended" in printed and "PGD-1 (eot=2)" in printed
