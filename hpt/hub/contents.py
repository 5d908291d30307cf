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
    AGREEMENT_FILE,
    CARD_FILE,
    EVALUATION_FILE,
    RUN_FILE,
    TRAINING_FILE,
    WEIGHTS,
    has_same_weights,
    hash_saved_weights,
    read_run,
)


CONFIGS = ("config.json", "adapter_config.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZERS = ("tokenizer_config.json",)
DESCRIPTIONS = (TRAINING_FILE, EVALUATION_FILE)
# What hpt or transformers wrote: a push deletes those on the Hub that the folder doesn't have
WRITTEN = (
    *(*CONFIGS, *WEIGHTS, *PROCESSORS, *TOKENIZERS, *DESCRIPTIONS, "model.safetensors.index.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", RUN_FILE, AGREEMENT_FILE),
    *("figures/robustness_*_linf.png", "figures/robustness_*_l2.png", "figures/training_curves.png"),
)
PUBLISHED = (*WRITTEN, CARD_FILE, "figures/*.png")
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt")
# Files whose entries may look like paths
LISTS_OF_TOKENS = ("tokenizer.json", "vocab*", "added_tokens.json", "special_tokens_map.json", "merges.txt")
ABSOLUTE_PATH = re.compile(r"(?<![\w/.<])(/[\w.-]+)/[\w.-]+|\b[A-Z]:\\{1,2}Users\b|\bfile://[\w./-]+")
HOMES = ("/home", "/Users", "/root")


def published_files(folder: str | Path, token: str | None = None) -> list[str]:
    """Names of the files in a folder that go to the Hub, sorted.

    Args:
        folder (`str` or `Path`): Where a model was saved.
        token (`str`, *optional*): Of the Hub, if it isn't the one that is logged in: no file may hold it.

    Raises:
        InputError: if the folder has no whole trained model in it, or a file names a local path or holds a token.
    """
    folder = Path(folder)
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    names = sorted(name for name in names if any(_matches(name, pattern) for pattern in PUBLISHED))
    _check_complete(folder, names)
    for name in names:
        if name.endswith(TEXTS):
            _refuse_private(folder / name, token)
    return names


def stale_files(there: list[str], pushed: list[str]) -> list[str]:
    """Of the files in a repository, those of kinds that hpt writes which aren't pushed any more."""
    return [name for name in there if name not in pushed and any(_matches(name, pattern) for pattern in WRITTEN)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _check_complete(folder: Path, names: list[str]) -> None:
    for needed in (DESCRIPTIONS, CONFIGS, WEIGHTS, PROCESSORS, TOKENIZERS):
        if not any(_matches(name, pattern) for name in names for pattern in needed):
            raise InputError(
                f"{folder} isn't a finished run: it has no {' or '.join(needed)}. HPTTrainer and recipes/hpt_gpd.py "
                "save all that is needed."
            )
    if read_run(folder) is not None and not has_same_weights(folder, hash_saved_weights(folder)):
        raise InputError(
            f"The weights in {folder} aren't those that its {TRAINING_FILE} is of: the save was cut off, or they were "
            "changed since. Save the model again."
        )


def _refuse_private(file: Path, token: str | None) -> None:
    """Refuse to publish a text with a token of the Hub, or a path of this machine that isn't in a part by hand."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} isn't UTF-8: {error}.") from error
    refuse_token(text, file, token)
    if any(fnmatch(file.name, pattern) for pattern in LISTS_OF_TOKENS):
        return
    refuse_local_path(own_sections(text) if file.name == CARD_FILE else text, file)


def refuse_token(text: str, where: str | Path, token: str | None = None) -> None:
    """Refuse a text with the token that is used, or anything like one."""
    used = [one for one in (token, get_token()) if one]
    if re.search(r"\bhf_[A-Za-z0-9]{30,}", text) or any(one in text for one in used):
        raise InputError(f"{where} holds a token of the Hub: remove it before it is pushed.")


def refuse_local_path(text: str, where: str | Path) -> None:
    """Refuse a text with an absolute path whose first folder is there on this machine, or where people have homes."""
    for found in ABSOLUTE_PATH.finditer(text):
        if found[1] is None or found[1] in HOMES or Path(found[1]).is_dir():
            raise InputError(f"{where} names the local path {found[0]}: remove it before it is pushed.")
