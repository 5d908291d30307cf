"""Model cards that say what was measured, and nothing else.

A card is written from what lies in the folder beside it: `training.json`, `evaluation.jsonl` and the pictures in
`figures/`. What was written by hand between its sections, and metadata that hpt knows nothing of, stay when it is
written anew.
"""

from huggingface_hub import ModelCard, ModelCardData

from hpt.errors import InputError
from hpt.hub.card_text import NOTE, mark, merge_cards, read_model_id
from hpt.hub.folder import CHOICE_FILE, CONVERSION_FILE, EVALUATION_FILE, TRAINING_FILE, ModelFolder
from hpt.hub.index import TASK, as_eval_result
from hpt.hub.rows import THIS
from hpt.hub.run_check import NO_ATTACK
from hpt.hub.sections import SECTIONS, Section, is_hpt_gpd
from hpt.models.families import family_by_architecture


TAG_OF_ANY = "adversarial-robustness"


def write_card(folder: ModelFolder, model_id: str | None = None, old: str | None = None, license: str | None = None):
    """Write the card of a model's folder, or write it anew.

    Args:
        folder ([`ModelFolder`]): With a model and its run, as [`HPTTrainer`] saves it; or, of a model that hpt didn't
            train, with an evaluation or a conversion alone.
        model_id (`str`, *optional*): Hub id that it will be loaded by; otherwise what the old card says, or the
            folder's name.
        old (`str`, *optional*): The card whose hand-written parts are kept, instead of the one in the folder.
        license (`str`, *optional*): Of the weights, as the Hub spells it; otherwise the old card's.

    Raises:
        InputError: if there is nothing to tell, or the old card's metadata can't be read.
    """
    described = (TRAINING_FILE, EVALUATION_FILE, CHOICE_FILE, CONVERSION_FILE)
    if all(folder.text(name) is None for name in described):
        raise InputError(f"{folder} has no {TRAINING_FILE} and no evaluation: there is nothing to write a card of.")
    old = folder.card if old is None else old
    model_id = model_id or read_model_id(old or "") or folder.path.resolve().name
    card = render_card(folder, model_id, license)
    folder.replace_card(merge_cards(card, old) if old else card)


def render_card(folder: ModelFolder, model_id: str, license: str | None = None) -> str:
    """The card of what lies in a folder, without anything written by hand."""
    sections = [_render(section, folder, model_id) for section in SECTIONS]
    text = "\n\n".join([NOTE, *filter(None, sections)])
    card = ModelCard(f"---\n{card_metadata(folder, model_id, license).to_yaml()}\n---\n\n{text}\n")
    return str(card)  # with its metadata as the Hub's own parser reads them


def _render(section: Section, folder: ModelFolder, model_id: str) -> str:
    text = section.write(folder, model_id)
    if not text:
        return ""
    return mark(section.name, f"## {section.title}\n\n{text}" if section.title else text)


def card_metadata(folder: ModelFolder, model_id: str, license: str | None = None) -> ModelCardData:
    """Metadata as the Hub defines it, with a `model-index` of every row measured on this model.

    Base model and datasets are named where they are on the Hub, and left out where they are local.
    """
    run, conversion, architecture = folder.run, folder.conversion, folder.model["architecture"]
    base = run["target"]["hub_id"] if run else conversion and conversion["hub_id"]
    sets = run["data"].get("sets", [run["data"]]) if run else []
    sources = [part["source"].partition("@")[0] for part in sets if part["source"]]
    results = [as_eval_result(row) for row in folder.rows if row.model == THIS]
    return ModelCardData(
        library_name="peft" if folder.is_adapter else "transformers",
        pipeline_tag=TASK,
        base_model=base,
        base_model_relation=run and base and ("adapter" if folder.is_adapter else "finetune"),
        datasets=list(dict.fromkeys(sources)) or None,
        license=license or (run and run["license"]) or (conversion and conversion["license"]),
        tags=[*_tags_of_run(run), *_tag_of_any(folder), *family_by_architecture(architecture).tags],
        model_name=model_id.split("/")[-1],
        eval_results=results or None,
    )


def _tag_of_any(folder: ModelFolder) -> list[str]:
    """What hpt's cards are found by; not that of a model which was converted, and never attacked."""
    only_converted = folder.conversion is not None and not any(row.eps for row in folder.rows)
    return [] if folder.run is None and only_converted else [TAG_OF_ANY]


def _tags_of_run(run: dict | None) -> list[str]:
    if run is None or run["objective"] is None:
        return []
    methods = ["hpt-gpd"] if is_hpt_gpd(run) else run.get("terms", [run["objective"]])
    return [*methods, *["robust"] * (run["attack"] != NO_ATTACK)]
