"""The page of app.py, and all that needs Gradio."""

from functools import partial

import gradio as gr
from live_attack import Attacked, attack_model, enlarge, parse_class_names, read_image
from PIL import Image

from hpt import InputError, ZeroShotClassifier, load_benchmark
from hpt.escaping import code, html, markdown
from hpt.prompts import DEFAULT_TEMPLATE


INTRODUCTION = """# A vanilla and a robust CLIP under attack

Each model is attacked by itself: with access to its weights, PGD changes every colour value of the image by at most
eps, so that this model leaves the true class. Where none is given, it has to leave its own prediction, right or wrong.

Percentages are a softmax over the class names given here and say nothing of others. A few steps of PGD on one image
are a demonstration and no evaluation: what withstands them may fall to a stronger attack."""

MAX_WAITING = 20  # visitors; further ones are told that the queue is full
MAX_UPLOAD = "10mb"
CSS = """
.gradio-container {--font: system-ui, sans-serif} /* the bold font that Gradio brings lacks most letters */
#image img {width: 100%; height: 100%; object-fit: contain} /* small images fill their frame */
"""
DIGITS_CSS = "img {image-rendering: pixelated}"


def launch(models: dict[str, ZeroShotClassifier], sources: dict[str, str], on_digits: bool) -> None:
    """Serve the page until it is stopped.

    Args:
        models (`dict[str, ZeroShotClassifier]`): The models by what the page calls them.
        sources (`dict[str, str]`): Where each came from.
        on_digits (`bool`): Whether they know digits only; some are offered then, and their names filled in.
    """
    digits = first_digits() if on_digits else {}
    with gr.Blocks(title="A vanilla and a robust CLIP under attack", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        button, inputs = add_inputs(digits)
        outputs = [panel for name in models for panel in add_outputs(name, sources[name], models[name].image_size)]
        button.click(partial(attack, list(models.values())), inputs, outputs, api_name="attack")
    page.queue(max_size=MAX_WAITING)
    page.launch(css=CSS + DIGITS_CSS if on_digits else CSS, max_file_size=MAX_UPLOAD)


def add_inputs(digits: dict[str, Image.Image]) -> tuple[gr.Button, list]:
    """The button, and what [`attack`] gets after the models."""
    with gr.Row():
        # As PNG, since the default, webp, would change the pixels of examples; unopened, so that it is read_image
        # that says what is wrong with a file
        image = gr.Image(label="Image", type="filepath", format="png", height=340, elem_id="image")
        image.preprocess = lambda upload: upload and upload.path
        with gr.Column():
            names = gr.Textbox(", ".join(digits) or "cat, dog, car", label="Class names", lines=2, elem_id="names")
            with gr.Row():
                true_class = gr.Textbox(label="True class", placeholder="the model's own prediction")
                template = gr.Textbox(DEFAULT_TEMPLATE, label="Prompt")
            with gr.Row():
                eps = gr.Slider(0, 32, 16 if digits else 1, step=1, label="eps in 1/255", elem_id="eps")
                steps = gr.Slider(1, 50, 10, step=1, label="PGD steps")
            button = gr.Button("Attack", variant="primary", elem_id="attack")
    if digits:
        gr.Examples(list(digits.values()), image, label="Digits, the first of each class in the test set")
    return button, [image, names, true_class, template, eps, steps]


def add_outputs(name: str, source: str, size: int) -> list:
    """A model's panels, in the order of [`fill_outputs`]."""
    gr.Markdown(f"### {name.capitalize()}: {code(source)}, attacked at {size} x {size} pixels")
    picture = partial(gr.Image, format="png", height=280, interactive=False, buttons=["download", "fullscreen"])
    with gr.Row():
        with gr.Column():
            clean = picture(label="Clean")
            before = gr.Label(label="Clean", num_top_classes=3, elem_id=f"{name}-clean")
        with gr.Column():
            perturbation = picture(label="Perturbation")
            note = gr.Markdown()
        with gr.Column():
            adversarial = picture(label="Attacked")
            after = gr.Label(label="Attacked", num_top_classes=3, elem_id=f"{name}-attacked")
    return [clean, before, perturbation, note, adversarial, after]


def fill_outputs(result: Attacked) -> list:
    """What a model's panels show."""
    magnified = f"The perturbation is magnified {result.magnification:.0f} times; grey is no change."
    note = f"Attacked to leave **{markdown(result.label)}**. {magnified}" if result.eps else "eps is 0: no attack."
    pictures = [enlarge(pixels) for pixels in (result.clean, result.perturbation, result.adversarial)]
    return [pictures[0], result.before, pictures[1], note, pictures[2], result.after]


def attack(models: list[ZeroShotClassifier], path, names, true_class, template, eps, steps) -> list:
    """What the button does: all models' panels; of what the visitor got wrong, one line."""
    settings = {"eps": eps / 255, "steps": int(steps), "true_class": true_class.strip(), "template": template}
    try:
        image, class_names = read_image(path), parse_class_names(names)
        results = [attack_model(model, image, class_names, **settings) for model in models]
    except InputError as error:
        raise gr.Error(html(str(error)), print_exception=False) from error  # which shows HTML
    return [panel for result in results for panel in fill_outputs(result)]


def first_digits() -> dict[str, Image.Image]:
    """Of each class name, the first image in the test split of scikit-learn's digits."""
    dataset = load_benchmark("digits").dataset
    names, labels = dataset.features["label"].names, list(dataset["label"])
    return {name: dataset[labels.index(label)]["image"] for label, name in enumerate(names)}
