"""YAML that strangers may have written, in files and in the cards of models: within bounds, and plain values alone."""

import re
from collections import Counter
from pathlib import Path

import yaml

from hpt.errors import InputError
from hpt.files import read_text


LONGEST_YAML = 100_000  # characters; the longest of hpt's own has a fiftieth, and PyYAML takes a second for these
LONGEST_METADATA = 1_000_000  # characters of YAML in a card, which a thousand results have
METADATA = re.compile(r"\s*---\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)  # of a card, as huggingface_hub finds them


def read_yaml(path: Path, longest: int = LONGEST_YAML):
    """What a YAML file says, which can be as long as of [`parse_yaml`].

    Raises:
        InputError: if it can't be read or isn't UTF-8, or as of [`parse_yaml`].
    """
    try:
        if path.stat().st_size > 4 * longest:  # as many bytes as a character can have
            raise InputError(f"{path} is too long for YAML: {path.stat().st_size:,} bytes.")
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    return parse_yaml(text, path, longest)


def parse_yaml(text: str, where: str | Path, longest: int = LONGEST_YAML):
    """What a text in YAML says. Aliases are refused: a few lines of them can stand for more than any memory holds.

    Args:
        text (`str`): The YAML.
        where (`str` or `Path`): What messages call it.
        longest (`int`, *optional*, defaults to 100,000): Characters that it may have.

    Raises:
        InputError: for a text that is too long, isn't YAML, is nested too deep, or has an alias or a key twice.
    """
    if len(text) > longest:
        raise InputError(f"{where} is too long for YAML: {len(text):,} characters of {longest:,}.")
    try:
        loader = _PlainLoader(text)
        loader.name = str(where)
        return loader.get_single_data()
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"{where} isn't valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deep.") from error
    except (ValueError, LookupError, AttributeError) as error:  # which PyYAML lets pass
        raise InputError(f"{where} has a value that isn't what it looks like, or is tagged as: {error}.") from error


def split_card(card: str, where: str) -> tuple[dict, str]:
    """The metadata that a card of the Hub begins with, none if it has none, and the text behind them.

    Raises:
        InputError: for metadata that [`parse_yaml`] refuses; `where` is what the message calls them.
    """
    block = METADATA.match(card)
    metadata = parse_yaml(block[1], where, LONGEST_METADATA) if block else None
    if not isinstance(metadata, dict | None):
        raise InputError(f"{where} must hold `field: value` lines.")
    return metadata or {}, card[block.end() :] if block else card


class _PlainLoader(yaml.SafeLoader):
    """Of YAML what stands for itself: plain values, and each key once."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            line = alias.start_mark.line + 1
            raise InputError(f"{self.name}, line {line}: write out what the alias *{alias.anchor} stands for.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if keys[key.value if isinstance(key, yaml.ScalarNode) else None] > 1:
                raise InputError(f"{self.name} gives {key.value} more than once: give it once.")
        return super().construct_mapping(node, deep)
