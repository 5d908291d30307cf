"""One image attacked on one model, as a function of what the page of app.py gives; it needs no Gradio.

result = attack_model(load_proxy("outputs/robust"), image, ["cat", "dog"], eps=4 / 255)
result.before, result.after  # {"cat": 0.98, "dog": 0.02}, {"cat": 0.11, "dog": 0.89}
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from hpt import PGD, InputError, ZeroShotClassifier
from hpt.data.geometry import geometry_of
from hpt.data.images import decode_image, read_size, to_unit_range
from hpt.prompts import DEFAULT_TEMPLATE


# What a visitor may ask for at most, on a machine that all of them share
MAX_PIXELS = 50_000_000  # of an upload, which is decoded whole
MAX_NAMES = 100  # each is a prompt that goes through the text towers
MAX_CHARACTERS = 200  # of a name or the prompt
MAX_STEPS = 50  # of PGD, whatever a program sends instead of the page
SHOWN_SIZE = 448  # pixels of a side that small images are enlarged to


@dataclass(frozen=True)
class Attacked:
    """A model's view of an image before and after the attack on it.

    Args:
        label (`str`): Class that the attack moves away from.
        eps (`float`): Its radius in [0, 1] pixels.
        before, after (`dict[str, float]`): Probabilities of the classes, on the clean and the adversarial image.
        clean, adversarial (`torch.Tensor` of shape `(3, size, size)`): In [0, 1], at the model's input size.
    """

    label: str
    eps: float
    before: dict[str, float]
    after: dict[str, float]
    clean: torch.Tensor
    adversarial: torch.Tensor

    @property
    def magnification(self) -> float:
        """By how much the perturbation is magnified, so that eps reaches from grey to black and white."""
        return 0.5 / self.eps if self.eps else 1.0

    @property
    def perturbation(self) -> torch.Tensor:
        """The change of the image, magnified, `(3, size, size)` in [0, 1]; grey where there is none."""
        return (0.5 + self.magnification * (self.adversarial - self.clean)).clamp(0, 1)


def attack_model(
    model: ZeroShotClassifier,
    image: Image.Image,
    class_names: list[str],
    *,
    eps: float,
    steps: int = 10,
    true_class: str | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Attacked:
    """Attack a model on an image by untargeted PGD in l_inf, with access to its weights.

    Args:
        model ([`ZeroShotClassifier`]): The model; its own classes, if any, don't count.
        image (`PIL.Image`): Brought to the model's input size first, as its own processor does it.
        class_names (`list[str]`): At least two names.
        eps (`float`): Radius in [0, 1] pixels; 0 leaves the image as it is.
        steps (`int`, *optional*, defaults to `10`): Steps of eps / 4, at most 50.
        true_class (`str`, *optional*): Name that the attack moves away from; without it, the model's own prediction.
        template (`str`, *optional*, defaults to `"This is a photo of a {}"`): Prompt template.

    Returns:
        [`Attacked`]: the same at every call with the same arguments.

    Raises:
        InputError: for an image, names or a template that can't be used, or a true class that isn't among the names.
    """
    if not eps >= 0:
        raise InputError(f"eps is {eps:g}, but must be 0 or above.")
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"PGD takes {steps} steps, but must take 1 to {MAX_STEPS}.")
    if len(class_names) < 2:
        raise InputError("There is one class alone, which every image is in: give at least two names.")
    classifier = with_prompts(model, class_names, template)
    if true_class and true_class not in class_names:
        raise InputError(f"The true class {true_class!r} isn't one of the class names: {', '.join(class_names)}.")
    images = square_pixels(image, model.processor.image_processor).to(model.image_mean.device)
    before = probabilities(classifier, images)
    label = true_class or max(before, key=before.get)
    adversarial = images
    if eps > 0:
        labels = torch.tensor([class_names.index(label)], device=images.device)
        sample_ids = torch.tensor([0])  # fixes the random start
        adversarial = PGD(eps=eps, steps=steps)(classifier, images, labels, sample_ids)
    after = probabilities(classifier, adversarial)
    return Attacked(label, eps, before, after, images[0].cpu(), adversarial[0].cpu())


def with_prompts(model: ZeroShotClassifier, class_names: list[str], template: str) -> ZeroShotClassifier:
    """The model over these prompts; prompts that the text tower would cut, of which hpt warns, are refused."""
    for what, text in [("The prompt", template), *(("A class name", name) for name in class_names)]:
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{what} is too long: {len(text)} characters, but at most {MAX_CHARACTERS}.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*class prompts are longer")
            classifier = model.with_classes(class_names, template)
            classifier.text_embeds()
    except UserWarning as warning:
        raise InputError(
            "A class name is too long: with the prompt around it, the model would read a part."
        ) from warning
    return classifier


def square_pixels(image: Image.Image, image_processor) -> torch.Tensor:
    """The image as the model's own processor brings it to its input size, `(1, 3, size, size)` in [0, 1]."""
    try:
        pixels = geometry_of(image_processor)(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"The image can't be used: {error}.") from error
    return to_unit_range(pixels)[None]


@torch.no_grad()
def probabilities(classifier: ZeroShotClassifier, images: torch.Tensor) -> dict[str, float]:
    """Of the first image, the softmax over the class names."""
    return dict(zip(classifier.class_names, classifier(images)[0].softmax(-1).tolist(), strict=True))


def read_image(path: str | Path | None) -> Image.Image:
    """An uploaded image, the right way up."""
    if path is None:
        raise InputError("There is no image yet: upload one.")
    file = {"path": str(path), "bytes": None}
    width, height = read_size(file, "the upload")
    if width * height > MAX_PIXELS:
        raise InputError(f"The image has {width} x {height} pixels, but may have 50 million at most.")
    return decode_image(file, "the upload")


def parse_class_names(text: str) -> list[str]:
    """Class names between commas or on lines of their own; two to a hundred, and no two alike."""
    if len(text) > MAX_NAMES * MAX_CHARACTERS:
        raise InputError(f"The class names have {len(text)} characters, but at most {MAX_NAMES * MAX_CHARACTERS}.")
    names = [" ".join(name.split()) for name in text.replace("\n", ",").split(",") if name.strip()]
    if len(names) < 2:
        raise InputError("Give at least two class names, with commas between them or each on a line of its own.")
    if len(names) > MAX_NAMES:
        raise InputError(f"There are {len(names)} class names, but at most {MAX_NAMES} are taken here.")
    lower = [name.lower() for name in names]  # as CLIP's tokenizer reads them
    duplicates = dict.fromkeys(name for name in lower if lower.count(name) > 1)
    if duplicates:
        raise InputError(f"Class names given more than once, which no prompt can tell apart: {', '.join(duplicates)}.")
    return names


def enlarge(pixels: torch.Tensor) -> Image.Image:
    """A picture of pixels `(3, size, size)` in [0, 1], small ones a whole number of times as large, not smoothed."""
    picture = Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy())
    factor = max(1, SHOWN_SIZE // picture.width)
    return picture.resize((factor * picture.width, factor * picture.height), Image.NEAREST)
