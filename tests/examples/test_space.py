"""What the demo Space computes, without the page around it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import CLASSES, ROOT, make_clip
from PIL import Image

from hpt import InputError, ZeroShotClassifier


SPACE = ROOT / "examples" / "space"


@pytest.fixture
def live_attack(monkeypatch):
    monkeypatch.syspath_prepend(SPACE)
    import live_attack

    return live_attack


@pytest.fixture
def model() -> ZeroShotClassifier:
    clip, processor = make_clip(0)
    return ZeroShotClassifier(clip.eval(), processor)


def noise_image(width: int = 40, height: int = 30) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator).byte().numpy())


def test_the_attack_moves_the_prediction_within_eps(live_attack, model):
    result = live_attack.attack_model(model, noise_image(), CLASSES, eps=16 / 255)
    assert result.clean.shape == result.adversarial.shape == (3, 16, 16)
    assert (result.adversarial - result.clean).abs().max() <= 16 / 255 + 1e-6
    assert result.label == max(result.before, key=result.before.get)
    assert result.after[result.label] < result.before[result.label]
    for view in (result.before, result.after):
        assert list(view) == CLASSES and sum(view.values()) == pytest.approx(1)
    assert result.magnification == pytest.approx(255 / 32) and result.perturbation.min() >= 0
    again = live_attack.attack_model(model, noise_image(), CLASSES, eps=16 / 255)
    assert torch.equal(again.adversarial, result.adversarial)


def test_the_true_class_is_what_is_left(live_attack, model):
    own = live_attack.attack_model(model, noise_image(), CLASSES, eps=0).label
    other = next(name for name in CLASSES if name != own)
    result = live_attack.attack_model(model, noise_image(), CLASSES, eps=16 / 255, true_class=other)
    assert result.label == other and result.after[other] < result.before[other]


def test_eps_0_changes_nothing(live_attack, model):
    result = live_attack.attack_model(model, noise_image(), CLASSES, eps=0)
    assert result.after == result.before and torch.equal(result.adversarial, result.clean)
    assert (result.perturbation == 0.5).all() and result.magnification == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"true_class": "cow"}, "'cow' isn't one of the class names: cat, dog, grey heron"),
        ({"template": "a photo"}, "must have one {}"),
        ({"eps": -0.1}, "eps is -0.1, but must be 0 or above"),
        ({"eps": float("nan")}, "eps is nan, but must be 0 or above"),
        ({"class_names": ["cat"]}, "one class alone"),
        ({"template": "a {} of {}"}, "must have one {}"),
        ({"class_names": ["cat", "d" * 200]}, "A class name is too long: with the prompt around it"),
        ({"class_names": ["cat", "d" * 201]}, "A class name is too long: 201 characters, but at most 200"),
        ({"template": "{}" + 10**6 * "x"}, "The prompt is too long: 1000002 characters, but at most 200"),
        ({"steps": 10**9}, "PGD takes 1000000000 steps, but must take 1 to 50"),
        ({"steps": 0}, "PGD takes 0 steps, but must take 1 to 50"),
        ({"image": noise_image(3000, 1)}, "it has 3000 x 1 pixels, but may be 100 times as long as it is wide"),
        ({"image": Image.new("I;16", (20, 20))}, "more than 8 bits a channel"),
    ],
    ids=["class", "no name", "negative", "nan", "one name", "two names", "cut name", "long name", "long prompt"]
    + ["many steps", "no steps", "strip", "16 bits"],
)
def test_what_cannot_be_attacked_is_refused(live_attack, model, change, line):
    given = {"image": noise_image(), "class_names": CLASSES, "eps": 4 / 255} | change
    with pytest.raises(InputError, match=line):
        live_attack.attack_model(model, **given)


def test_class_names_are_read(live_attack):
    assert live_attack.parse_class_names(" cat, dog\ncar,") == ["cat", "dog", "car"]
    with pytest.raises(InputError, match="at least two"):
        live_attack.parse_class_names("cat")
    for twice in ("Cat, cat", "cat, a  cat, a cat"):
        with pytest.raises(InputError, match="more than once.*: (a )?cat"):
            live_attack.parse_class_names(twice)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (", ".join(map(str, range(101))), "There are 101 class names, but at most 100 are taken here"),
        ("a," * 10**6, "The class names have 2000000 characters, but at most 20000"),
    ],
    ids=["names", "characters"],
)
def test_more_class_names_than_a_demonstration_takes_are_refused(live_attack, text, line):
    assert len(live_attack.parse_class_names(", ".join(map(str, range(100))))) == 100
    with pytest.raises(InputError, match=line):
        live_attack.parse_class_names(text)


def test_images_are_read_and_enlarged(live_attack, tmp_path):
    with pytest.raises(InputError, match="no image yet"):
        live_attack.read_image(None)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="The image in the upload can't be used: cannot identify image file"):
        live_attack.read_image(tmp_path / "broken.png")
    Image.new("1", (10000, 5001)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="has 10000 x 5001 pixels, but may have 50 million at most"):
        live_attack.read_image(tmp_path / "large.png")
    picture = live_attack.enlarge(torch.rand(3, 32, 32))
    assert picture.size == (448, 448) and len(picture.getcolors(10**6)) <= 32 * 32
    assert live_attack.enlarge(torch.rand(3, 336, 336)).size == (336, 336)


def test_missing_models_are_told_before_the_page_starts(tmp_path):
    run = subprocess.run(
        [sys.executable, str(SPACE / "app.py")], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("error: There is no outputs/quickstart/target yet: run `hpt train`")


def test_missing_gradio_is_told_in_a_line(monkeypatch):
    monkeypatch.syspath_prepend(SPACE)
    monkeypatch.setitem(sys.modules, "gradio", None)
    import app

    with pytest.raises(InputError, match="gradio isn't installed: pip install -r .*/requirements.txt"):
        app.find_page()


class Shown(Exception):
    """What Gradio shows as HTML in place of results."""

    def __init__(self, message, print_exception):
        super().__init__(message)


def test_what_visitors_type_is_shown_as_text(live_attack, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(Button=object, Error=Shown))
    monkeypatch.delitem(sys.modules, "page", raising=False)
    import page

    image, name = torch.full((3, 8, 8), 0.5), "<b>x</b> *y*"
    note = page.fill_outputs(live_attack.Attacked(name, 0.1, {name: 1.0}, {name: 1.0}, image, image))[3]
    assert note.startswith(r"Attacked to leave **&lt;b&gt;x&lt;/b&gt; \*y\***.")
    monkeypatch.setattr(page, "read_image", lambda path: noise_image())
    with pytest.raises(Shown, match="which no prompt can tell apart: &lt;b&gt;.$"):
        page.attack([], "image.png", "<b>, <b>", "", "{}", 1, 1)
    monkeypatch.delitem(sys.modules, "page")
