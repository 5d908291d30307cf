"""Which files of a trained model's folder may be published, and that nothing private is in them.

Only files that are known to belong to a published model go: weights as safetensors, processor, card, pictures,
run.yaml, training.json and the evaluation. Optimizer, pickles, proxy and whatever else lies there stay. Links are
refused, since what they lead to isn't the model's. Every file is searched for tokens, and texts, what pictures say of
themselves and the metadata of weights for paths of this machine.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import get_token
from PIL import Image
from safetensors import SafetensorError, safe_open

from hpt.errors import TOKEN, InputError
from hpt.hub.card_text import own_sections
from hpt.hub.folder import (
    ADAPTER_FILE,
    AGREEMENT_FILE,
    CARD_FILE,
    CHOICE_FILE,
    CONFIG_FILE,
    CONVERSION_FILE,
    CURVES,
    DIAL,
    EVALUATION_FILE,
    FIGURES,
    RUN_FILE,
    TRAINING_FILE,
    WEIGHTS,
    ModelFolder,
)
from hpt.models.endpoints import ENDPOINTS, INDEX, read_index


CONFIGS = (CONFIG_FILE, ADAPTER_FILE)
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer_config.json",)
DESCRIPTIONS = (TRAINING_FILE, EVALUATION_FILE, CHOICE_FILE, CONVERSION_FILE)
# What hpt or transformers wrote: a push deletes those on the Hub that the folder doesn't have
WRITTEN = (
    *(*CONFIGS, *WEIGHTS, *PROCESSORS, *TOKENIZERS, *DESCRIPTIONS, "model.safetensors.index.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", RUN_FILE, AGREEMENT_FILE),
    *(f"{FIGURES}/{name}" for name in ("robustness_*_linf.png", "robustness_*_l2.png", CURVES, DIAL)),
)
PUBLISHED = (*WRITTEN, CARD_FILE, f"{FIGURES}/*.png")
ENDPOINT_WEIGHTS = f"{ENDPOINTS}/*.safetensors"  # which go only if they are asked for
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt")
# Files whose entries may look like paths
LISTS_OF_TOKENS = ("tokenizer.json", "vocab*", "added_tokens.json", "special_tokens_map.json", "merges.txt")
ABSOLUTE_PATH = re.compile(r"(?<![\w/.<])(/[\w.-]+)/[\w.-]+|\b[A-Z]:\\{1,2}Users\b|\bfile://[\w./-]+")
BLOCK, LONGEST_TOKEN = 2**22, 4096  # bytes
HOMES = ("/home", "/Users", "/root")


def published_files(folder: ModelFolder, token: str | None = None) -> dict[str, bytes | Path]:
    """The files in a folder that go to the Hub, by their names, sorted.

    Args:
        folder ([`ModelFolder`]): Where a model was saved.
        token (`str`, *optional*): Of the Hub, if it isn't the one that is logged in: no file may hold it.

    Returns:
        `dict[str, bytes | Path]`: the bytes that were searched, or the path of weights, which are too large for that.

    Raises:
        InputError: if the folder has no whole trained model in it, or a file is a link, names a local path or holds a
            token.
    """
    refuse_links(folder)
    names = [name for name in folder.names() if _is_published(name)]
    _check_complete(folder, names)
    return {name: published_content(folder, name, token) for name in names}


def published_endpoints(run: Path, model: ModelFolder, token: str | None = None) -> dict[str, bytes | Path]:
    """The endpoints of a run, as [`published_files`] gives the files of its model.

    Args:
        run (`Path`): The run's `output_dir`.
        model ([`ModelFolder`]): The model that goes with them.
        token (`str`, *optional*): As of [`published_files`].

    Raises:
        InputError: if there are none, or they are of another run, links, or name something private.
    """
    index = read_index(run)
    if model.run is None or model.run["vanilla_weights"] != index["vanilla_weights"]:
        raise InputError(f"The endpoints in {run} aren't of the run that {model} is of.")
    names = [INDEX, *(f"{name}.safetensors" for name in index["weights"])]
    for file in (run / ENDPOINTS, *(run / ENDPOINTS / name for name in names)):
        if file.is_symlink() or not file.exists():
            raise InputError(f"{file} is a link or missing, so the endpoints aren't published: leave them out.")
    return {
        name: published_content(ModelFolder(run), name, token) for name in (f"{ENDPOINTS}/{name}" for name in names)
    }


def refuse_links(folder: ModelFolder) -> None:
    """Refuse a folder in which a file that goes to the Hub is a link, or lies in one; the folder itself may be one."""
    for file in (*folder.path.glob("*"), *folder.path.glob(f"{FIGURES}/*")):
        name = file.relative_to(folder.path).as_posix()
        if file.is_symlink() and (name == FIGURES or _is_published(name)):
            raise InputError(
                f"{file} is a link, to {os.readlink(file)}, and links aren't published: put what is meant there "
                "itself, or give a copy of the folder, as `cp -rL` makes it."
            )


def stale_files(there: list[str], pushed: list[str]) -> list[str]:
    """Of the files in a repository, those of kinds that hpt writes which aren't pushed any more."""
    written = (*WRITTEN, ENDPOINT_WEIGHTS, f"{ENDPOINTS}/{INDEX}")
    return [name for name in there if name not in pushed and any(_matches(name, pattern) for pattern in written)]


def _is_published(name: str) -> bool:
    return any(_matches(name, pattern) for pattern in PUBLISHED)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _check_complete(folder: ModelFolder, names: list[str]) -> None:
    for needed in (DESCRIPTIONS, CONFIGS, WEIGHTS, PROCESSORS, TOKENIZERS):
        if not any(_matches(name, pattern) for name in names for pattern in needed):
            raise InputError(
                f"{folder} isn't a finished run: it has no {' or '.join(needed)}. HPTTrainer and recipes/hpt_gpd.py "
                "save all that is needed."
            )
    described = {TRAINING_FILE: folder.run and folder.run["weights"]}
    described[CHOICE_FILE] = folder.choice and folder.choice["saved_weights"]
    described[CONVERSION_FILE] = folder.conversion and folder.conversion.get("saved_weights")
    for name, weights in described.items():
        if weights is not None and weights != folder.saved_weights:
            raise InputError(
                f"The weights in {folder} aren't those that its {name} is of: the save was cut off, or they were "
                "changed since. Save the model again."
            )


def published_content(folder: ModelFolder, name: str, token: str | None = None) -> bytes | Path:
    """What [`published_files`] gives of one file, which it refuses if it is private."""
    file = folder.path / name
    if not name.isprintable():
        raise InputError(f"The name of {str(file)!r} can't be published: give it another one.")
    refuse_token(name, "The name of a picture", token)
    if any(_matches(name, pattern) for pattern in (*WEIGHTS, ENDPOINT_WEIGHTS)):
        for block in _blocks(file):
            refuse_token(block, file, token)
        refuse_local_path(_metadata(file), file)
        return file
    content = folder.content(name)
    refuse_token(content, file, token)
    if name.endswith(TEXTS) and not any(fnmatch(name, pattern) for pattern in LISTS_OF_TOKENS):
        text = folder.text(name)
        refuse_local_path(own_sections(text) if name == CARD_FILE else text, file)
    elif name.endswith(".png"):
        text = _picture_texts(content, file)
        refuse_token(text, file, token)
        refuse_local_path(text, file)
    return content


def _blocks(file: Path) -> Iterator[bytes]:
    """A large file in blocks, each after the end of the one before: none cuts a token in two."""
    end = b""
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            block = end + block
            yield block
            end = block[-LONGEST_TOKEN:]


def _metadata(weights: Path) -> str:
    """What a file of safetensors says of itself."""
    try:
        with safe_open(weights, "pt") as opened:
            return json.dumps(opened.metadata())
    except SafetensorError as error:
        raise InputError(f"{weights} can't be read ({error}): save the model again.") from error


def _picture_texts(content: bytes, file: Path) -> str:
    """What a PNG says of itself, in plain or compressed parts, its colour profile among them."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            profile = picture.info.get("icc_profile", b"").decode("latin-1")
            return "\n".join([*picture.text.values(), profile])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} isn't a PNG that can be read: remove it.") from error


def refuse_token(content: str | bytes, where: str | Path, token: str | None = None) -> None:
    """Refuse a text, or bytes, with the token that is used, or anything like one."""
    content = content.encode() if isinstance(content, str) else content
    secrets = [secret.encode() for secret in (token, get_token()) if secret]
    if TOKEN.search(content) or any(secret in content for secret in secrets):
        raise InputError(f"{where} holds a token of the Hub: remove it before it is pushed.")


def refuse_local_path(text: str, where: str | Path) -> None:
    """Refuse a text with an absolute path whose first folder is there on this machine, or where people have homes."""
    for path in ABSOLUTE_PATH.finditer(text):
        if path[1] is None or path[1] in HOMES or Path(path[1]).is_dir():
            raise InputError(f"{where} names the local path {path[0]}: remove it before it is pushed.")
