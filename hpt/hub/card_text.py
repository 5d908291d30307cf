"""The text of a model card: hpt's sections, and what was written by hand around them."""

import re
from html import unescape
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import RemoteEntryNotFoundError

from hpt.errors import InputError
from hpt.escaping import html
from hpt.files import read_text, refuse_large
from hpt.hub.folder import CARD_FILE, ModelFolder
from hpt.yaml_files import split_card


NOTE = (
    "<!-- Between each pair of hpt markers the text is written anew with every save; "
    "what stands elsewhere is kept. -->"
)
# Each of hpt's comments begins a line, which no name in the text can do
LOADED_BY = re.compile(r"^<!-- Loaded by (.+?) -->", re.MULTILINE)
BLOCK = re.compile(r"^<!-- hpt:(\w+) -->.*?^<!-- /hpt:\1 -->", re.DOTALL | re.MULTILINE)
INTRODUCTION = re.compile(r"<!-- Between each pair of hpt markers .*?-->\n*", re.DOTALL)


def mark(name: str, text: str) -> str:
    """A section as it stands in a card, where [`BLOCK`] matches it."""
    return f"<!-- hpt:{name} -->\n{text}\n<!-- /hpt:{name} -->"


def loaded_by(model_id: str) -> str:
    """A line that tells the id by which a model is loaded, which `read_model_id` reads back."""
    return f"<!-- Loaded by {html(model_id)} -->"


def read_model_id(card: str) -> str | None:
    """The id by which a card says that its model is loaded."""
    stated = LOADED_BY.search(card)
    return stated and unescape(stated[1])


def merge_cards(new: str, old: str) -> str:
    """The new card with what the old one has beside hpt's sections, in its place, and its further metadata."""
    (data, old_text), (written, new_text) = _parse_card(old), _parse_card(new)
    tags = list(dict.fromkeys([*written["tags"], *(data.get("tags") or [])]))
    if "model-index" not in written:  # a model-index that hpt didn't measure isn't kept
        data.pop("model-index", None)
    data = data | {name: value for name, value in written.items() if value is not None} | {"tags": tags}
    metadata = ModelCardData(ignore_metadata_errors=True, **data).to_yaml()
    sections = {block[1]: block[0] for block in BLOCK.finditer(new_text)}
    known = [block[1] for block in BLOCK.finditer(old_text)]
    text = BLOCK.sub(lambda block: sections.get(block[1], ""), old_text)
    missing = [text for name, text in sections.items() if name not in known]
    text = "\n\n".join([text.strip(), *missing])
    if not known:
        text = f"{INTRODUCTION.search(new_text)[0]}{text}"
    return f"---\n{metadata}\n---\n\n{text.strip()}\n"


def _parse_card(card: str) -> tuple[dict, str]:
    """A card's metadata as huggingface_hub writes them, and its text."""
    where = f"The metadata of {CARD_FILE}"
    metadata, text = split_card(card, where)
    try:
        return ModelCardData(ignore_metadata_errors=True, **metadata).to_dict(), text
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} can't be read ({reason}): repair or remove it.") from error


def hand_written(card: str) -> str:
    """What of a card isn't hpt's: its text beside the sections, without blank lines."""
    body = INTRODUCTION.sub("", BLOCK.sub("", _parse_card(card)[1]))
    return "\n".join(line.rstrip() for line in body.splitlines() if line.strip())


def own_sections(card: str) -> str:
    """What of a card's text is hpt's."""
    return "\n".join(block[0] for block in BLOCK.finditer(card))


def stated_license(card: str) -> str | None:
    """The license that a card's metadata has."""
    return _parse_card(card)[0].get("license")


def is_own_card(card: str) -> bool:
    """Whether hpt has written the card, or a part of it."""
    return BLOCK.search(card) is not None


def remote_card(api: HfApi, repo_id: str, revision: str | None = None) -> str | None:
    """The card that a repository has at a commit, or on a branch; `None` if it has none.

    Raises:
        InputError: for one that is too large, which isn't downloaded, or not UTF-8.
    """
    try:
        size = api.hf_hub_download(repo_id, CARD_FILE, revision=revision, dry_run=True).file_size or 0
        refuse_large(size, f"The card of {repo_id}")
        file = api.hf_hub_download(repo_id, CARD_FILE, revision=revision)
    except RemoteEntryNotFoundError:
        return None
    return read_text(Path(file))


def choose_card(folder: ModelFolder, remote: str | None) -> str | None:
    """Of the card in a folder and that on the Hub, the one whose hand-written parts are kept.

    Raises:
        InputError: if both have such parts, and not the same.
    """
    local = folder.card
    if remote is None or local is None:
        return remote or local
    ours, theirs = hand_written(local), hand_written(remote)
    if ours and theirs and ours != theirs:
        raise InputError(
            f"{folder.path / CARD_FILE} and the card on the Hub have different parts written by hand: bring them "
            "together in the former, and put the same on the Hub."
        )
    return local if ours else remote
