"""What the card of a converted model says: from what it was made, what was taken from where, and how both compare."""

from hpt.escaping import address, code, markdown
from hpt.evaluation.report import markdown_table
from hpt.hub.folder import CONVERSION_FILE, ModelFolder
from hpt.models.origin import describe_parity


def conversion(folder: ModelFolder, model_id: str) -> str:
    """The section of a card; empty for a model that wasn't converted."""
    record = folder.conversion
    return "" if record is None else f"{describe_conversion_in_full(record)}\n\nAll of it is in `{CONVERSION_FILE}`."


def describe_origin(record: dict) -> str:
    """What a model was converted from, as sentences of a card name it."""
    if record["hub_id"] is None:
        return f"{code(record['source'])}, a local checkpoint"
    commit = f" at {markdown(record['commit'])}" if record["commit"] else ""
    return f"[{markdown(record['source'])}](https://huggingface.co/{address(record['hub_id'])}){commit}"


def describe_conversion_in_full(record: dict) -> str:
    """The source with its hash, each fact with where it was taken from, and what the comparison says and doesn't.

    `record` is from [`~hpt.models.converted.describe_conversion`].
    """
    read = [f"- {code(name)}, SHA-256 {code(sha256)}" for name, sha256 in record["sha256"].items()]
    base = ""
    if record["base"]:
        name, weights = (code(record["base"][key]) for key in ("name", "weights"))
        base = f" What it doesn't say was taken from {name} (weights of hash {weights})."
    facts = [
        [markdown(fact["name"]), code(write_value(fact["value"])), markdown(fact["source"])]
        for fact in record["facts"]
    ]
    return "\n\n".join(
        [
            f"It was made from {describe_origin(record)}. Names of its weights: {markdown(record['layout'])}.{base}",
            "What was read:",
            "\n".join(read),
            markdown_table([["fact", "value", "taken from"], *facts]),
            f"Its logits were compared with those of the source: {markdown(describe_parity(record['parity']))}. "
            f"{markdown(describe_unknown(record))}",
        ]
    )


def write_value(value) -> str:
    """A fact's value: settings by name, and numbers with commas between."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {write_value(part)}" for name, part in value.items())
    return ", ".join(map(write_value, value)) if isinstance(value, list | tuple) else str(value)


def describe_unknown(record: dict) -> str:
    """What the comparison can't find, and what was measured that could."""
    measured = record.get("accuracy")
    accuracy = describe_accuracy(measured) if measured else "Clean accuracy, which a mistake costs, wasn't measured."
    facts = ", ".join(record["not_compared"])
    return f"This can't find a wrong guess of what both were computed with: {facts}. {accuracy}"


def describe_accuracy(measured: dict) -> str:
    """`On digits (test, n = 360) it is right on 98.3 %, and with gelu for quick_gelu on 71.4 %, so its own seems ...`

    `measured` is from [`~hpt.evaluation.activation_check.compare_activations`].
    """
    own, other = (f"{100 * measured[name]:.1f} %" for name in ("accuracy", "other_accuracy"))
    decided = {measured["activation"]: "so its own seems to be right", None: "which doesn't tell them apart"}
    follows = decided.get(measured["better"], "so the other one seems to be right")
    return (
        f"On {measured['benchmark']} ({measured['split']}, n = {measured['n']}) it is right on {own}, and with "
        f"{measured['other_activation']} for {measured['activation']} on {other}, {follows}."
    )
