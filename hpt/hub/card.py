"""Model cards that say what was measured, and nothing else.

A card is written from what lies in the folder beside it: `training.json`, `evaluation.jsonl` and the pictures in
`figures/`. What was written by hand between its sections, and metadata that hpt knows nothing of, stay when it is
written anew.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from huggingface_hub import ModelCard, ModelCardData

from hpt.errors import InputError
from hpt.evaluation.figures import draw_accuracy_over_eps
from hpt.evaluation.rows import CLEAN, WORST_CASE, Row
from hpt.hub.card_text import (
    merge_cards,
    read_card,
)
from hpt.hub.folder import CARD_FILE, EVALUATION_FILE, TRAINING_FILE, add_rows, read_rows, read_run
from hpt.hub.index import TASK, as_eval_result
from hpt.hub.rows import THIS, VANILLA, publish_rows, radii, shown_rows
from hpt.hub.sections import (
    describe_limits,
    describe_reproduction,
    describe_results,
    describe_summary,
    describe_training,
)
from hpt.prompts import DEFAULT_TEMPLATE


TEMPLATE = Path(__file__).parent / "model_card_template.md"
TAG_OF_ANY, TAGS = "adversarial-robustness", ["hpt-gpd", "robust"]
EXAMPLE_LABELS = ["cat", "dog", "car"]


def write_card(folder: str | Path, model_id: str | None = None, old: str | None = None, license: str | None = None):
    """Write `README.md` into a folder that holds a trained model, or write it anew.

    Args:
        folder (`str` or `Path`): With a model, and `training.json` as [`HPTTrainer`] saves it; or with an evaluation
            alone of a model that hpt didn't train.
        model_id (`str`, *optional*): Hub id that it will be loaded by; otherwise the old card's title, or the
            folder's name.
        old (`str`, *optional*): The card whose hand-written parts are kept, instead of the one in the folder.
        license (`str`, *optional*): Of the weights, as the Hub spells it; otherwise the old card's.

    Raises:
        InputError: if there is nothing to tell, or the old card's metadata can't be read.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (TRAINING_FILE, EVALUATION_FILE)):
        raise InputError(f"{folder} has no {TRAINING_FILE} and no evaluation: there is nothing to write a card of.")
    old = read_card(folder) if old is None else old
    known = re.search(r"<!-- Loaded by (.+?) -->", old or "")
    text = render_card(folder, model_id or (known[1] if known else folder.resolve().name), license)
    incomplete = folder / f"{CARD_FILE}.incomplete"
    incomplete.write_text(merge_cards(text, old) if old else text, encoding="utf-8")
    os.replace(incomplete, folder / CARD_FILE)


def render_card(folder: Path, model_id: str, license: str | None = None) -> str:
    """The card of what lies in a folder, without anything written by hand."""
    record, rows = read_run(folder), read_rows(folder)
    adapter = (folder / "adapter_config.json").is_file()
    pictures = {file.name for file in (folder / "figures").glob("*.png")}
    model = record["target"] if record else _describe_config(folder)
    architecture = model["architecture"]
    card = ModelCard.from_template(
        card_metadata(record, rows, model_id, architecture, adapter, license),
        template_path=str(TEMPLATE),
        model_id=model_id,
        adapter=adapter,
        architecture=architecture,
        processor="CLIPProcessor" if architecture == "CLIPModel" else "AutoProcessor",
        padding="True" if architecture == "CLIPModel" else '"max_length"',
        load=_load_call(model, model_id, adapter),
        labels=json.dumps(record["data"]["class_names"][:3] if record else EXAMPLE_LABELS, ensure_ascii=False),
        template=json.dumps(record["prompt_template"] if record else DEFAULT_TEMPLATE, ensure_ascii=False),
        image_size=model["image_size"],
        eps=record["settings"].get("attack_eps", "1/255") if record else "1/255",
        summary=describe_summary(record, architecture, rows, adapter),
        results=describe_results(folder, rows, pictures),
        training=describe_training(record, pictures) if record else "How it was trained isn't recorded here.",
        limits=describe_limits(rows),
        local_base=model["name"] if adapter and model["hub_id"] is None else None,
        reproduce=describe_reproduction(record) if record else "",
    )
    return f"{str(card).rstrip()}\n"


def _describe_config(folder: Path) -> dict:
    """Of a model that hpt didn't train, what a card needs of its configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {"architecture": config["architectures"][0], "image_size": config["vision_config"].get("image_size", 224)}


def _load_call(model: dict, model_id: str, adapter: bool) -> str:
    """The Python expression that loads the model."""
    call = f'{model["architecture"]}.from_pretrained("{model_id}")'
    if not adapter:
        return call
    revision = f', revision="{model["revision"]}"' if model["hub_id"] and model["revision"] else ""
    base = f'{model["architecture"]}.from_pretrained("{model["hub_id"] or "PATH/" + model["name"]}"{revision})'
    return f'PeftModel.from_pretrained({base}, "{model_id}").merge_and_unload()'


def add_evaluation(folder: str | Path, rows: Iterable[Row], weights: str) -> None:
    """Add measured rows to a model's folder, draw accuracy over eps, and write the card anew.

    Args:
        folder (`str` or `Path`): With `training.json`, as [`HPTTrainer`] saves it.
        rows (`Iterable[Row]`): Of any models; those of this one and of the vanilla one are taken.
        weights (`str`): Hash of the weights that rows of this model have; of an adapter, of the merged model.
    """
    folder = Path(folder)
    record = read_run(folder)
    vanilla_weights = record and record["vanilla_weights"]
    add_rows(folder, publish_rows(rows, weights, vanilla_weights), {weights, vanilla_weights})
    draw_robustness(folder)
    write_card(folder)


def draw_robustness(folder: Path) -> None:
    """Draw accuracy over eps of the rows in a model's folder, for each benchmark and norm with several radii."""
    (folder / "figures").mkdir(exist_ok=True)
    rows, names, drawn = shown_rows(read_rows(folder)), {THIS: THIS, VANILLA: "vanilla model"}, set()
    for (sample_set, norm, *_), attacked in radii(rows).items():
        first = attacked[0]
        picture = folder / "figures" / f"robustness_{re.sub(r'[^A-Za-z0-9.-]', '_', first.benchmark)}_{norm}.png"
        if picture not in drawn:
            drawn.add(picture)
            clean = [row for row in rows if row.attack == CLEAN and row.sample_set == sample_set]
            curves = [replace(row, model=names[row.model]) for row in clean + attacked]
            over = f" over {', '.join(first.parameters['attacks'])}" if first.attack == WORST_CASE else ""
            title = f"{first.benchmark} {first.split}, n = {first.n}, {first.label}{over}"
            draw_accuracy_over_eps(curves, fill(title, 70), picture)


def card_metadata(
    record: dict | None, rows: list[Row], model_id: str, architecture: str, adapter: bool, license: str | None
) -> ModelCardData:
    """Metadata as the Hub defines it, with a `model-index` of every row measured on this model.

    Base model and datasets are named where they are on the Hub, and left out where they are local.
    """
    source, base = (record["data"]["source"], record["target"]["hub_id"]) if record else (None, None)
    results = [as_eval_result(row) for row in rows if row.model == THIS]
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=TASK,
        base_model=base,
        base_model_relation=base and ("adapter" if adapter else "finetune"),
        datasets=source and [source.partition("@")[0]],
        license=license or (record and record["license"]),
        tags=[*(TAGS if record else []), TAG_OF_ANY, *(["clip"] if architecture.startswith("CLIP") else [])],
        model_name=model_id.split("/")[-1],
        eval_results=results or None,
    )
