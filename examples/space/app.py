"""A page that attacks a vanilla and a robust model live, and shows what both make of the image before and after.

    python examples/space/app.py                                   # the quickstart's models
    python examples/space/app.py --vanilla openai/clip-vit-base-patch32 --robust outputs/robust/final
    python examples/space/app.py --vanilla ID@REVISION --robust ID@REVISION

On the Hub, where there is no command line, the variables VANILLA and ROBUST name the models; see README.md.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from hpt import InputError, ZeroShotClassifier
from hpt.cli import check_quickstart
from hpt.escaping import terminal
from hpt.models.loading import load_named
from hpt.references import parse_model


QUICKSTART = {"vanilla": "outputs/quickstart/target", "robust": "outputs/quickstart/robust"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, quickstart in QUICKSTART.items():
        source = os.environ.get(name.upper(), quickstart)
        parser.add_argument(f"--{name}", default=source, help="Hub id, ID@REVISION or folder (default: %(default)s).")
    sources = vars(parser.parse_args())
    try:
        models = load_models(sources)
        launch = find_page()
    except InputError as error:
        print(f"error: {terminal(str(error))}", file=sys.stderr)
        sys.exit(2)
    launch(models, sources, on_digits=sources == QUICKSTART)


def find_page():
    """The function that serves the page; [`InputError`] where there is no Gradio."""
    try:
        from page import launch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} isn't installed: pip install -r {Path(__file__).with_name('requirements.txt')}"
        ) from error
    return launch


def load_models(sources: dict[str, str]) -> dict[str, ZeroShotClassifier]:
    """The models by what the page calls them, on the GPU if there is one."""
    models = {name: parse_model(source) for name, source in sources.items()}
    check_quickstart(models.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: load_named(model, device)[1] for name, model in models.items()}


if __name__ == "__main__":
    main()
