"""Prompt templates and the class names that are put into them."""

import math
import re
import warnings
from collections import Counter

from hpt.errors import InputError


DEFAULT_TEMPLATE = "This is a photo of a {}"


def is_text(value) -> bool:
    """Whether it is text that tokenizers read, without halves of characters (lone surrogates)."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def list_templates(template: str | list[str]) -> list[str]:
    """One or several prompt templates as a list."""
    return list(template) if isinstance(template, (list, tuple)) else [template]


def check_templates(template: str | list[str] | dict[str, list[str]]) -> list[str] | dict[str, list[str]]:
    """The same, after a look at each: `str.format` must fill it with one class name.

    A dict, which has the templates of each class by its name, stays one.

    Raises:
        InputError: if there is none, or one without a `{}`, with several, or with other braces.
    """
    if isinstance(template, dict):
        return {name: check_templates(own) for name, own in template.items()}
    templates = list_templates(template)
    if not templates:
        raise InputError("There is no prompt template: give at least one, such as 'a photo of a {}'.")
    for text in templates:
        if not isinstance(text, str) or text.count("{}") != 1 or set("{}") & set(text.replace("{}", "")):
            raise InputError(
                f"The prompt template {text!r} must have one {{}} where the class name goes, and no other braces."
            )
        if not is_text(text):
            raise InputError(f"The prompt template {text!r} has half a character, which no tokenizer reads.")
    return templates


def make_prompts(template: str | list[str] | dict[str, list[str]], class_names: list[str]) -> list[str]:
    """The prompts of all classes by the first template, then by the second, and so on.

    Where classes have templates of their own, each class's are gone through over and over until all end together, so
    that the mean over a class's prompts is the one over its templates.
    """
    if isinstance(template, dict):
        rounds = math.lcm(*(len(template[name]) for name in class_names))
        by_class = [(name, template[name]) for name in class_names]
        return [own[number % len(own)].format(name) for number in range(rounds) for name, own in by_class]
    return [text.format(name) for text in list_templates(template) for name in class_names]


def check_class_names(class_names: list[str]) -> list[str]:
    """Refuse anything but a list of names; warn of duplicates, naming them (ImageNet has "crane" twice)."""
    if isinstance(class_names, (str, dict)):
        kind = "text" if isinstance(class_names, str) else "dict"
        raise InputError(f"class_names is the {kind} {class_names!r}, but must be a list with one name per label.")
    class_names = list(class_names)
    if not class_names:
        raise InputError("There are no class names: give one name per label.")
    for label, name in enumerate(class_names):
        if not is_text(name) or not name.strip():
            raise InputError(f"The class name of label {label} is {name!r}, but must be text.")
    duplicates = sorted(name for name, times in Counter(class_names).items() if times > 1)
    if duplicates:
        warnings.warn(f"Class names given more than once, which no prompt can tell apart: {duplicates}.", stacklevel=3)
    return class_names
