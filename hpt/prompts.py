"""Prompt templates and the class names that are put into them."""

import warnings

from hpt.errors import InputError


DEFAULT_TEMPLATE = "This is a photo of a {}"


def check_class_names(class_names: list[str]) -> list[str]:
    """Refuse anything but a list of names; warn of duplicates, naming them (ImageNet has "crane" twice)."""
    if isinstance(class_names, str):
        raise InputError(f"class_names is the text {class_names!r}, but must be a list with one name per label.")
    class_names = list(class_names)
    if not class_names:
        raise InputError("There are no class names: give one name per label.")
    for label, name in enumerate(class_names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"The class name of label {label} is {name!r}, but must be text.")
    duplicates = sorted({name for name in class_names if class_names.count(name) > 1})
    if duplicates:
        warnings.warn(f"Class names given more than once, which no prompt can tell apart: {duplicates}.", stacklevel=3)
    return class_names
