"""What is recorded of a model that was converted: from what, what was taken from where, and how both compare."""

from hpt.json_files import check_whole, unsealed


CONVERSION_FILE = "conversion.json"
KINDS = {
    "source": str,
    "hub_id": str | None,
    "commit": str | None,
    "sha256": dict[str, str],
    "layout": str,
    "license": str | None,
    "base": dict[str, str] | None,
    "facts": list[dict],
    "parity": list[dict],
    "not_compared": list[str],
    "versions": dict[str, str | None],
}
SINCE_SAVED = {"saved_weights": str, "accuracy": dict}  # what is added of a model that is saved with a card
BASE, FACT = {"name": str, "weights": str}, {"name": str, "source": str}
PARITY = {"against": str, "images": int, "prompts": int, "cosine": float, "logit": float}
ACCURACY = {"benchmark": str, "split": str, "n": int, "activation": str, "accuracy": float}
ACCURACY |= {"other_activation": str, "other_accuracy": float, "better": str | None}


def parse_conversion(value: object) -> dict:
    """What [`~hpt.models.converted.describe_conversion`] gave, from a file.

    Raises:
        ValueError: saying what of it was altered, is missing or of another kind.
    """
    record = unsealed(value)
    check_whole(record, KINDS | {name: kind for name, kind in SINCE_SAVED.items() if name in record})
    parts = [("a fact's ", FACT, fact) for fact in record["facts"]]
    parts += [("a comparison's ", PARITY, parity) for parity in record["parity"]]
    parts += [("base's ", BASE, record["base"])] if record["base"] else []
    parts += [("accuracy's ", ACCURACY, record["accuracy"])] if "accuracy" in record else []
    for of, kinds, part in parts:
        check_whole(part, kinds, of)
    if missing := [fact["name"] for fact in record["facts"] if "value" not in fact]:
        raise ValueError(f"it lacks the value of {missing[0]}")
    return record


def name_source(record: dict) -> str:
    """What a model was converted from: a file's or folder's name, or `hf-hub:OWNER/NAME@COMMIT`."""
    return f"{record['source']}@{record['commit']}" if record["commit"] else record["source"]


def describe_parity(comparisons: list[dict]) -> str:
    """How far two models are apart, by each comparison of them, in words."""
    return "; ".join(
        "of {images} images with {prompts} prompts, against {against}, cosines differ by {cosine:.2g} at most and "
        "logits by {logit:.2g}".format(**comparison)
        for comparison in comparisons
    )
