"""Folders of images: to which split and class each file belongs.

ROOT/CLASS/*.png, ROOT/SPLIT/CLASS/*.png, both also with folders above or as CLASS/images/*.png, and TinyImageNet as it
is published. Links are followed. A class that would be left out and a split that would be a class are refused.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hpt.errors import InputError, MissingLabels
from hpt.escaping import one_line
from hpt.files import read_text
from hpt.yaml_files import split_card


# What folders and files of a split are called, by its role
ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
READ_BY_DATASETS = (".parquet", ".arrow", "metadata.csv", "metadata.jsonl")
ARCHIVES = (".tar", ".zip")  # where there are no images beside them
LAYOUT = "ROOT/CLASS/IMAGE or ROOT/SPLIT/CLASS/IMAGE, with splits such as train and test; or give a .csv of paths"

Parts = tuple[str, ...]  # of a folder, below the root


def role_of(split: str) -> str:
    """`"validation"` for `"valid"`, `"val"` and `"dev"`, and so on; a name that says no role as it is."""
    return next((role for role, names in ROLES.items() if split in names), split)


def read_image_folder(root: Path, source: str, labelled: bool = True) -> dict[str, Dataset] | None:
    """The splits of a folder of images, by role or else by their own name, `"train"` where it has none.

    Args:
        root (`Path`): The folder.
        source (`str`): What messages call it.
        labelled (`bool`, *optional*, defaults to `True`): Whether each class has a folder; without, folders within the
            splits mean nothing, and there is no column `label`.

    Returns:
        `dict`: datasets with columns `image` and `label`, in the order of their paths, which share the class names of
        all; `None` for a folder of other files, or one whose card or metadata says what they are.

    Raises:
        MissingLabels: for folders that aren't by class.
        InputError: for a folder or a class without images that can be read.
    """
    listing = dict(_list_folders(root, ()))
    files = [name for names in listing.values() for name in names]
    others = READ_BY_DATASETS if any(map(_is_image, files)) else READ_BY_DATASETS + ARCHIVES
    if _has_configurations(root) or any(name.endswith(others) for name in files):
        return None
    if not labelled:
        return _read_unlabelled(root, listing, source)
    rows = _published_tiny_imagenet(root, listing) or _rows_by_folder(root, listing, source)
    classes = sorted({name for _, _, name in rows})
    if len(classes) == 1:
        raise MissingLabels(f"{source} has images of one class alone, {classes[0]!r}: the layout is {LAYOUT}.")
    features = Features(image=datasets.Image(), label=ClassLabel(names=classes))
    numbers = {name: number for number, name in enumerate(classes)}
    splits = {}
    for path, split, name in sorted(rows):
        columns = splits.setdefault(split, {"image": [], "label": []})
        columns["image"].append(path)
        columns["label"].append(numbers[name])
    return {split: Dataset.from_dict(splits[split], features) for split in sorted(splits, key=[*ROLES, *splits].index)}


def _list_folders(folder: Path, parts: Parts, above: tuple[str, ...] = ()) -> Iterator[tuple[Parts, list[str]]]:
    """The names of the files in a folder and in those below it, without hidden ones."""
    real = os.path.realpath(folder)
    if real in above:
        raise InputError(f"{folder} is a link to a folder that it lies in: remove it.")
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise InputError(f"{entry.path} is a link to nothing: mend or remove it.")
            if not entry.is_dir() and not entry.is_file():
                raise InputError(f"{entry.path} is neither a file nor a folder: remove it.")
            (folders if entry.is_dir() else files).append(entry.name)
    yield parts, files
    for name in folders:
        yield from _list_folders(folder / name, (*parts, name), (*above, real))


def _has_configurations(root: Path) -> bool:
    """Whether a dataset card says which files make up which split."""
    card = root / "README.md"
    return card.is_file() and bool(split_card(read_text(card), f"The metadata of {card}")[0].get("configs"))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ImageFolder.EXTENSIONS


def _rows_by_folder(root: Path, listing: dict[Parts, list[str]], source: str) -> list[tuple[str, str, str]]:
    """Path, split and class of each image."""
    with_images = [parts for parts, names in listing.items() if any(map(_is_image, names))]
    depth = _depth_of_classes(with_images, listing, source)
    level = next((level for level in range(depth - 1) if any(role_in(parts[level]) for parts in with_images)), None)
    if level is None:
        check_classes({parts[depth - 1] for parts in with_images if parts}, source)
    beside = {parts[: depth - 1] for parts in with_images}
    of_classes = {}
    for parts, names in listing.items():
        if len(parts) >= depth and (parts[: depth - 1] in beside or (level is not None and role_in(parts[level]))):
            of_classes.setdefault(parts[depth - 1], []).append(names)
    _check_nothing_is_lost(of_classes, source)
    rows = []
    for parts in with_images:
        split = "train" if level is None else role_in(parts[level]) or parts[level]
        folder = root.joinpath(*parts)
        rows += [(os.path.join(folder, name), split, parts[depth - 1]) for name in listing[parts] if _is_image(name)]
    return rows


def _depth_of_classes(with_images: list[Parts], listing: dict[Parts, list[str]], source: str) -> int:
    """How many folders deep the images lie, without a last one that is called `images` for all of them."""
    if not with_images:
        raise InputError(f"{source} has no images: {_say_files(listing.values())}. The layout is {LAYOUT}.")
    shallow, deep = min(with_images, key=len), max(with_images, key=len)
    if len(shallow) < len(deep):
        raise MissingLabels(
            f"{source} has images in {_say(shallow)} and deeper in {_say(deep)}: the layout is {LAYOUT}."
        )
    inside_classes = len(deep) > 1 and all(parts[-1] == "images" for parts in with_images)
    return len(deep) - inside_classes


def check_classes(names: Iterable[str], source: str) -> None:
    """Refuse folders of splits as classes, which images that lie right in them would make of them."""
    if all(map(role_in, names)):
        folders = ", ".join(f"{name}/" for name in sorted(names)) or "it itself"
        raise MissingLabels(f"{source} has images in {folders}, but no folders by class: the layout is {LAYOUT}.")


def role_in(name: str) -> str | None:
    """The role in the name of a folder or file such as `train`, `val2017` or `my-test.tar`."""
    for role, words in ROLES.items():
        if re.fullmatch(rf"(.*[-._ 0-9])?({'|'.join(words)})([-._ 0-9].*)?", name, re.IGNORECASE):
            return role
    return None


def _check_nothing_is_lost(files: dict[str, list[list[str]]], source: str) -> None:
    """Refuse classes whose folders have no images, and warn of other files in them."""
    for name, contents in files.items():
        if not any(_is_image(file) for names in contents for file in names):
            raise InputError(
                f"The class folder {name!r} of {source} has no images: {_say_files(contents)}. Add some or remove it."
            )
    _warn_of_unread([names for contents in files.values() for names in contents], source)


def _warn_of_unread(listings: list[list[str]], source: str) -> None:
    unread = [[file for file in names if not _is_image(file)] for names in listings]
    if any(unread):
        warnings.warn(one_line(f"{source} is read without some of its files: {_say_files(unread)}."), stacklevel=10)


def _read_unlabelled(root: Path, listing: dict[Parts, list[str]], source: str) -> dict[str, Dataset]:
    """Images in the order of their paths, by split where the folders right below the root are some."""
    images = {parts: list(filter(_is_image, names)) for parts, names in listing.items()}
    images = {parts: names for parts, names in images.items() if names}
    if not images:
        raise InputError(f"{source} has no images: {_say_files(listing.values())}.")
    roles = {parts: role_in(parts[0]) if parts else None for parts in images}
    in_splits = [parts for parts, role in roles.items() if role]
    if in_splits and len(in_splits) < len(images):
        beside = next(parts for parts, role in roles.items() if not role)
        raise InputError(
            f"{source} has images in {_say(in_splits[0])} and in {_say(beside)}, which is no split: put all of them "
            "into splits, or none."
        )
    _warn_of_unread([names for parts, names in listing.items() if parts in images], source)
    splits = {}
    for parts, names in images.items():
        splits.setdefault(roles[parts] or "train", []).extend(os.path.join(root, *parts, name) for name in names)
    features = Features(image=datasets.Image())
    ordered = sorted(splits, key=[*ROLES].index)
    return {split: Dataset.from_dict({"image": sorted(splits[split])}, features) for split in ordered}


def _say(parts: Parts) -> str:
    return "/".join((*parts, "")) or "it itself"


def _say_files(listings) -> str:
    """Why there are no images: `it is empty`, or `it has files that aren't read as images (3 x .heic)`."""
    endings = Counter(os.path.splitext(name)[1].lower() or "without an ending" for files in listings for name in files)
    counted = ", ".join(f"{count} x {ending}" for ending, count in endings.most_common(3))
    return f"it has files that aren't read as images ({counted})" if endings else "it is empty"


def _published_tiny_imagenet(root: Path, listing: dict[Parts, list[str]]) -> list[tuple[str, str, str]]:
    """Rows of TinyImageNet's own layout: train/ID/images, and val/images with the classes in a file of their own."""
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return []
    rows = []
    for parts, names in listing.items():
        if parts[:1] == ("train",) and parts[2:] == ("images",):
            rows += [(os.path.join(root, *parts, name), "train", parts[1]) for name in names if _is_image(name)]
    for line in annotations.read_text(encoding="utf-8").splitlines():
        name, wnid = line.split("\t")[:2]
        rows.append((os.path.join(root, "val", "images", name), "validation", wnid))
    return rows
