"""A page that attacks a vanilla and a robust model live, and shows what both make of the image before and after.

    python examples/space/app.py                                   # the quickstart's models
    python examples/space/app.py --vanilla openai/clip-vit-base-patch32 --robust outputs/robust/final
    python examples/space/app.py --vanilla ID@REVISION --robust ID@REVISION

On the Hub, where there is no command line, the variables VANILLA and ROBUST name the models; see README.md.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import torch
from live_attack import Attacked, attack_model, enlarge, parse_class_names, read_image
from PIL import Image

from hpt import InputError, ZeroShotClassifier, load_benchmark
from hpt.modeling import DEFAULT_TEMPLATE
from hpt.proxies import load_named


QUICKSTART = {"vanilla": "outputs/quickstart/target", "robust": "outputs/quickstart/robust"}

INTRODUCTION = """# A vanilla and a robust CLIP under attack

Each model is attacked by itself: with access to its weights, PGD changes every colour value of the image by at most
eps, so that this model leaves the true class. Where none is given, it has to leave its own prediction, right or wrong.

Percentages are a softmax over the class names given here and say nothing of others. A few steps of PGD on one image
are a demonstration and no evaluation: what withstands them may fall to a stronger attack."""

CSS = """
.gradio-container {--font: system-ui, sans-serif} /* the bold font that Gradio brings lacks most letters */
#image img {width: 100%; height: 100%; object-fit: contain} /* small images fill their frame */
"""
DIGITS_CSS = "img {image-rendering: pixelated}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, quickstart in QUICKSTART.items():
        source = os.environ.get(name.upper(), quickstart)
        parser.add_argument(f"--{name}", default=source, help="Hub id, ID@REVISION or folder (default: %(default)s).")
    sources = vars(parser.parse_args())
    try:
        models = load_models(sources)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    on_digits = sources == QUICKSTART
    build_page(models, sources, on_digits).launch(css=CSS + DIGITS_CSS if on_digits else CSS)


def load_models(sources: dict[str, str]) -> dict[str, ZeroShotClassifier]:
    """The models by what the page calls them."""
    for source in sources.values():
        if source in QUICKSTART.values() and not Path(source).exists():
            raise InputError(
                f"There is no {source} yet: run `accelerate launch recipes/hpt_gpd.py`, or name two models by "
                "--vanilla and --robust, or by the variables VANILLA and ROBUST."
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: load_named(source, device)[1] for name, source in sources.items()}


def build_page(models: dict[str, ZeroShotClassifier], sources: dict[str, str], on_digits: bool):
    """The page, a `gradio.Blocks`, filled in with digits where the models know nothing else."""
    import gradio as gr  # not in hpt's own environment

    def attack(path, names, true_class, template, eps, steps):
        settings = {"eps": eps / 255, "steps": int(steps), "true_class": true_class.strip(), "template": template}
        try:
            picture, class_names = read_image(path), parse_class_names(names)
            results = [attack_model(model, picture, class_names, **settings) for model in models.values()]
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [update for result in results for update in panels(result)]

    def panels(result: Attacked) -> list:
        return [
            enlarge(result.clean),
            result.before,
            gr.Image(enlarge(result.perturbation), label=f"Perturbation x {result.magnification:.0f}; grey: none"),
            enlarge(result.adversarial),
            gr.Label(result.after, label=f"Attacked, away from {result.label!r}"),
        ]

    def shown(name: str) -> list:
        size = models[name].image_size
        gr.Markdown(f"### {name.capitalize()}: `{sources[name]}`, attacked at {size} x {size} pixels")
        # As PNG: the default, webp, would blur the perturbation
        image = partial(gr.Image, format="png", height=280, interactive=False, buttons=["download", "fullscreen"])
        with gr.Row():
            with gr.Column():
                clean = image(label="Clean")
                before = gr.Label(label="Clean", num_top_classes=3, elem_id=f"{name}-clean")
            with gr.Column():
                perturbation = image(label="Perturbation")
            with gr.Column():
                adversarial = image(label="Attacked")
                after = gr.Label(label="Attacked", num_top_classes=3, elem_id=f"{name}-attacked")
        return [clean, before, perturbation, adversarial, after]

    digits = first_digits() if on_digits else {}
    with gr.Blocks(title="A vanilla and a robust CLIP under attack", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            # As a path and in any mode, so that it is live_attack that says what can't be used
            image = gr.Image(label="Image", type="filepath", image_mode=None, height=340, elem_id="image")
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
        outputs = [output for name in models for output in shown(name)]
        button.click(attack, [image, names, true_class, template, eps, steps], outputs)
    return page


def first_digits() -> dict[str, Image.Image]:
    """Of each class name, the first image in the test split of scikit-learn's digits."""
    dataset = load_benchmark("digits").dataset
    names, labels = dataset.features["label"].names, list(dataset["label"])
    return {name: dataset[labels.index(label)]["image"] for label, name in enumerate(names)}


if __name__ == "__main__":
    main()
