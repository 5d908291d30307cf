"""Class prompts as a text tower's tokens, and whether a tokenizer is whole and the tower's own.

A damaged tokenizer gives tokens too, which stand for other words or for none: what can be seen of that is refused.
"""

import json
import warnings
from collections import defaultdict
from unicodedata import normalize

import torch

from hpt.errors import InputError
from hpt.models.families import family_of


LEAST_SHARE = 0.95  # of the text tower's vocabulary that its tokenizer has; some towers were made too large, by 3 %
MADE_SHARE = 0.9  # of a tokenizer's longer tokens that its merges make; some have tokens for bytes and none


def check_tokenizer(name: str, model, tokenizer) -> None:
    """Raise [`InputError`] unless a tokenizer that was loaded from files has about all that its text tower knows.

    Without its files, transformers makes one of the special tokens alone.
    """
    known, size, longest = model.config.text_config.vocab_size, len(tokenizer), tokenizer.model_max_length
    if size < LEAST_SHARE * known:
        raise InputError(
            f"The tokenizer of {name} has {size} tokens, but the text tower knows {known}: tokenizer.json, or another "
            "file of it, is missing or incomplete. Take a complete copy."
        )
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or longest < 1 or longest % 1:
        raise InputError(f"The tokenizer of {name} has the model_max_length {longest!r:.100}, but must have a number.")
    if words := [token for token in tokenizer.all_special_tokens if not token or token[0].isalnum()]:
        raise InputError(
            f"The tokenizer of {name} has the special token {words[0]!r:.100}, which would be cut out of words: its "
            "tokenizer_config.json is damaged. Take a complete copy."
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"The tokenizer of {name} has no pad_token: its tokenizer_config.json is missing or incomplete."
        )
    if unmade := _unmade_tokens(tokenizer):
        raise InputError(
            f"The tokenizer of {name} has {len(unmade)} tokens that none of its merges makes, such as {unmade[0]!r}: "
            "its merges are missing or incomplete. Take a complete copy."
        )


def _unmade_tokens(tokenizer) -> list[str]:
    """Of a tokenizer by byte-pair encoding, the longer tokens that no merge makes, if they are more than a few."""
    if not tokenizer.is_fast:
        return []
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = described["model"], {token["content"] for token in described["added_tokens"]}
    if model["type"] != "BPE":
        return []
    suffix = model["end_of_word_suffix"] or ""
    longer = [token for token in model["vocab"] if len(token.removesuffix(suffix)) > 1 and token not in added]
    merged = {"".join(pair) for pair in model["merges"]}
    unmade = [token for token in longer if token not in merged]
    return unmade if len(unmade) > (1 - MADE_SHARE) * len(longer) else []


def tokenize(model, tokenizer, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Token ids of prompts on the CPU, cased and padded as the model needs it; a warning names one that is cut.

    Raises:
        InputError: if the model doesn't have a token, or the tokenizer knows no prompt.
    """
    family, tower = family_of(model), model.config.text_config
    prompts = [prompt.lower() for prompt in prompts] if family.lower_case else prompts
    longest = min(tokenizer.model_max_length, tower.max_position_embeddings)
    tokens = tokenizer(prompts)["input_ids"]
    if max(tokenizer.pad_token_id or 0, *(max(ids, default=0) for ids in tokens)) >= tower.vocab_size:
        raise InputError(
            f"The tokenizer gives tokens that {type(model).__name__} doesn't have, as for "
            f"{prompts[0]!r}: give the model's own processor, AutoProcessor.from_pretrained(name)."
        )
    _check_known(tokenizer, prompts, tokens)
    if family.pools_at_end:
        _check_end(family.towers(model)[1].eos_token_id, family.legacy_end, prompts, tokens)
    lengths = [len(ids) for ids in tokens]
    if max(lengths) > longest:
        whose = "text tower" if longest == tower.max_position_embeddings else "tokenizer"
        warnings.warn(
            f"{sum(length > longest for length in lengths)} of {len(prompts)} class prompts are longer than the "
            f"{whose}'s {longest} tokens and are cut, such as {prompts[lengths.index(max(lengths))]!r}.",
            stacklevel=3,
        )
    padding = "max_length" if family.pads_to_full_length else "longest"
    return dict(tokenizer(prompts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"))


def _check_known(tokenizer, prompts: list[str], tokens: list[list[int]]) -> None:
    """Refuse prompts all of which have parts that the tokenizer doesn't know; a warning names one of a few."""
    # CLIP's token for the unknown is also its last
    unknown = [prompt for prompt, ids in zip(prompts, tokens, strict=True) if tokenizer.unk_token_id in ids[:-1]]
    if unknown and len(unknown) == len(prompts):
        raise InputError(
            f"The tokenizer doesn't know a part of each class prompt, such as {prompts[0]!r}: its files are damaged, "
            "or it is another language's. Take a complete copy of the model, or prompts in its language."
        )
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(prompts)} class prompts have parts that the tokenizer doesn't know, such as "
            f"{unknown[0]!r}.",
            stacklevel=4,
        )


def _check_end(end: int, legacy_end: int | None, prompts: list[str], tokens: list[list[int]]) -> None:
    """Refuse prompts without the token at which their tower pools: it would take whatever is first, or pads."""
    for prompt, ids in zip(prompts, tokens, strict=True):
        is_legacy = end == legacy_end and ids[-1] == max(ids)
        if not is_legacy and end not in ids:
            raise InputError(
                f"The text tower pools at token {end}, the eos_token_id of its configuration, but {prompt!r:.200} has "
                "none: its tokenizer isn't the model's own, or one of both is damaged."
            )


def check_told_apart(class_names: list[str], tokens: torch.Tensor) -> None:
    """Raise [`InputError`] if classes of different names have the same tokens: no prompt could tell them apart.

    Args:
        class_names (`list[str]`): Classes. Those that differ by case, spaces, punctuation and accents alone, which
            some tokenizers leave out, are let through with a warning, and those of one name, of which
            [`~hpt.prompts.check_class_names`] warns.
        tokens (`torch.Tensor` of shape `(templates * classes, length)`): Of all prompts by the first template, then
            by the second, and so on.
    """
    by_class = tokens.unflatten(0, (-1, len(class_names))).transpose(0, 1).contiguous().numpy()
    alike = defaultdict(list)
    for name, ids in zip(class_names, by_class, strict=True):
        alike[ids.tobytes()].append(name)
    for names in alike.values():
        others = [name for name in names if _plain(name) != _plain(names[0])]
        if others:
            raise InputError(
                f"The tokenizer gives the prompts of {names[0]!r} and {others[0]!r} the same tokens: its files are "
                "damaged, or the prompts are cut before they differ."
            )
        if len(set(names)) > 1:
            same = f"Class names that the tokenizer doesn't tell apart: {sorted(set(names))}."
            warnings.warn(same, stacklevel=4)


def _plain(name: str) -> str:
    """The letters and digits of a name, without case and accents."""
    return "".join(char for char in normalize("NFKD", name).casefold() if char.isalnum())
