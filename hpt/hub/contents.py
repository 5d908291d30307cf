"""Which files of a trained model's folder may be published, and that nothing private is in them.

Only files that are known to belong to a published model go: weights as safetensors, processor, card, pictures,
run.yaml, training.json and the evaluation. Optimizer, pickles, proxy and whatever else lies there stay.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import get_token

from hpt.errors import InputError
from hpt.hub.card_text import own_sections
from hpt.hub.folder import (
    ADAPTER_FILE,
    AGREEMENT_FILE,
    CARD_FILE,
    CONFIG_FILE,
    CURVES,
    EVALUATION_FILE,
    FIGURES,
    RUN_FILE,
    TRAINING_FILE,
    WEIGHTS,
    ModelFolder,
)


CONFIGS = (CONFIG_FILE, ADAPTER_FILE)
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer_config.json",)
DESCRIPTIONS = (TRAINING_FILE, EVALUATION_FILE)
# What hpt or transformers wrote: a push deletes those on the Hub that the folder doesn't have
WRITTEN = (
    *(*CONFIGS, *WEIGHTS, *PROCESSORS, *TOKENIZERS, *DESCRIPTIONS, "model.safetensors.index.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", RUN_FILE, AGREEMENT_FILE),
    *(f"{FIGURES}/{name}" for name in ("robustness_*_linf.png", "robustness_*_l2.png", CURVES)),
)
PUBLISHED = (*WRITTEN, CARD_FILE, f"{FIGURES}/*.png")
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt")
# Files whose entries may look like paths
LISTS_OF_TOKENS = ("tokenizer.json", "vocab*", "added_tokens.json", "special_tokens_map.json", "merges.txt")
ABSOLUTE_PATH = re.compile(r"(?<![\w/.<])(/[\w.-]+)/[\w.-]+|\b[A-Z]:\\{1,2}Users\b|\bfile://[\w./-]+")
HOMES = ("/home", "/Users", "/root")


def published_files(folder: ModelFolder, token: str | None = None) -> list[str]:
    """Names of the files in a folder that go to the Hub, sorted.

    Args:
        folder ([`ModelFolder`]): Where a model was saved.
        token (`str`, *optional*): Of the Hub, if it isn't the one that is logged in: no file may hold it.

    Raises:
        InputError: if the folder has no whole trained model in it, or a file names a local path or holds a token.
    """
    names = [name for name in folder.names() if any(_matches(name, pattern) for pattern in PUBLISHED)]
    _check_complete(folder, names)
    for name in names:
        if name.endswith(TEXTS):
            _refuse_private(folder, name, token)
    return names


def stale_files(there: list[str], pushed: list[str]) -> list[str]:
    """Of the files in a repository, those of kinds that hpt writes which aren't pushed any more."""
    return [name for name in there if name not in pushed and any(_matches(name, pattern) for pattern in WRITTEN)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _check_complete(folder: ModelFolder, names: list[str]) -> None:
    for needed in (DESCRIPTIONS, CONFIGS, WEIGHTS, PROCESSORS, TOKENIZERS):
        if not any(_matches(name, pattern) for name in names for pattern in needed):
            raise InputError(
                f"{folder} isn't a finished run: it has no {' or '.join(needed)}. HPTTrainer and recipes/hpt_gpd.py "
                "save all that is needed."
            )
    if folder.run is not None and not folder.has_weights_of_run:
        raise InputError(
            f"The weights in {folder} aren't those that its {TRAINING_FILE} is of: the save was cut off, or they were "
            "changed since. Save the model again."
        )


def _refuse_private(folder: ModelFolder, name: str, token: str | None) -> None:
    """Refuse to publish a text with a token of the Hub, or a path of this machine that isn't in a part by hand."""
    text, file = folder.text(name), folder.path / name
    refuse_token(text, file, token)
    if not any(fnmatch(name, pattern) for pattern in LISTS_OF_TOKENS):
        refuse_local_path(own_sections(text) if name == CARD_FILE else text, file)


def refuse_token(text: str, where: str | Path, token: str | None = None) -> None:
    """Refuse a text with the token that is used, or anything like one."""
    secrets = [secret for secret in (token, get_token()) if secret]
    if re.search(r"\bhf_[A-Za-z0-9]{30,}", text) or any(secret in text for secret in secrets):
        raise InputError(f"{where} holds a token of the Hub: remove it before it is pushed.")


def refuse_local_path(text: str, where: str | Path) -> None:
    """Refuse a text with an absolute path whose first folder is there on this machine, or where people have homes."""
    for path in ABSOLUTE_PATH.finditer(text):
        if path[1] is None or path[1] in HOMES or Path(path[1]).is_dir():
            raise InputError(f"{where} names the local path {path[0]}: remove it before it is pushed.")
