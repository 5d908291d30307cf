"""Converted models as folders, each with a card: of transformers, and of open_clip."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hpt.escaping import code, markdown, python_literal
from hpt.evaluation.rows import Row
from hpt.files import filled_at_once, write_file
from hpt.hub.card import write_card
from hpt.hub.folder import CARD_FILE, CONFIG_FILE, ModelFolder
from hpt.hub.index import TASK
from hpt.hub.origin import describe_conversion_in_full
from hpt.hub.rows import publish_rows
from hpt.models.conversion import Converted, write_open_clip
from hpt.models.conversion.open_clip_config import is_openais
from hpt.models.converted import save_converted
from hpt.models.origin import describe_parity


OPEN_CLIP_CARD = """\
# {name}

A CLIP in the format of open_clip, written by hpt from {origin}.

```python
import open_clip

# once it is on the Hub, "hf-hub:OWNER/NAME"
model, preprocess = open_clip.create_model_from_pretrained({place})
tokenizer = open_clip.get_tokenizer({place})
```

Its logits were compared with those of the model that it was written from: {parity}.{details}
"""
# Of a model whose tokenizer open_clip hasn't built in
OWN_TOKENIZER = """\
Its tokenizer isn't OpenAI's. Of a folder, open_clip takes the one that lies in it; on the Hub, that of the repository
which `hf_tokenizer_name` in `open_clip_config.json` names. Write this model's own id there before you push it."""


def save_conversion(folder: Path, converted: Converted, record: dict, rows: Iterable[Row] = ()) -> None:
    """Save a converted model with processor, record and card; the folder holds all of it, or nothing.

    Args:
        folder (`Path`): Where to, without a model.
        converted ([`Converted`]): The model.
        record (`dict`): From [`~hpt.models.converted.describe_conversion`].
        rows (`Iterable[Row]`): What was measured of the model.

    Raises:
        WriteFailed: if it can't be written.
    """
    with filled_at_once(folder, last=CONFIG_FILE) as incomplete:
        save_converted(converted, incomplete)
        model = ModelFolder(incomplete)
        model.write_conversion(record)
        if rows := list(rows):
            model.add_rows(publish_rows(rows, rows[0].weights, None), {rows[0].weights})
        write_card(model, folder.resolve().name)


def save_for_open_clip(
    folder: Path, model, processor, origin: str, license: str | None, record: dict | None = None
) -> str:
    """Save a CLIP as open_clip loads it, with a card; how far its logits are from the model's, in words.

    Args:
        folder (`Path`): Where to, without a model.
        model ([`~transformers.CLIPModel`]), processor: What is saved.
        origin (`str`): What it was written from: a Hub id, or the name of a folder or file.
        license (`str`, *optional*): Of the weights, as the Hub spells it.
        record (`dict`, *optional*): Of a model that was converted from a third format, as of [`save_conversion`].

    Raises:
        InputError: as of [`write_open_clip`].
        WriteFailed: if it can't be written.
    """
    parity = describe_parity([*map(asdict, write_open_clip(model, processor, folder))])
    name = folder.resolve().name
    details = "" if is_openais(processor.tokenizer) else f"\n\n{OWN_TOKENIZER}"
    details += f"\n\n## What it was converted from\n\n{describe_conversion_in_full(record)}" if record else ""
    text = OPEN_CLIP_CARD.format(
        name=markdown(name),
        origin=code(origin),
        place=python_literal(f"local-dir:{name}"),
        parity=markdown(parity),
        details=details,
    )
    data = ModelCardData(library_name="open_clip", pipeline_tag=TASK, license=license, tags=["clip"])
    write_file(folder / CARD_FILE, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))
    return parity
