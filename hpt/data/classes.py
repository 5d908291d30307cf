"""Class names: how two lists of them are held against each other, and which of them a text tower can know.

numbers = match_classes(["dog", "Grey_Heron", "cat"], ["cat", "dog", "grey heron"], "the evaluation set")  # [1, 2, 0]
dataset = renumber(dataset, numbers)  # label 0, "dog", is 1 among the classes that are wanted
"""

import functools
import json
import re
from collections import Counter
from pathlib import Path

from datasets import Dataset, IterableDataset, Value

from hpt.errors import InputError, MissingLabels
from hpt.files import read_text


WORDNET_ID = re.compile(r"n\d{8}")
SHOWN = 5  # class names in a message


@functools.cache
def wordnet_names(dataset: str = "imagenet") -> dict[str, str]:
    """By WordNet id, the first word of each class of ImageNet-1k, or of those that `"tiny_imagenet"` has."""
    file = Path(__file__).parent / "class_names" / f"{dataset}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def match_classes(own: list[str], wanted: list[str], what: str, hint: str = "") -> list[int]:
    """The number that each class of a dataset has among the classes that are wanted.

    Classes are matched by their names, in any order; a dataset may have some of the classes alone. Names are the same
    that differ in case, or in underscores for spaces; so are an ImageNet class's WordNet id and its readable name. A
    dataset whose own names are numbers is matched by these, counted from 0 or from 1.

    Args:
        own (`list[str]`): Class names of the dataset, in the order of its labels.
        wanted (`list[str]`): Class names in the order that labels are to have.
        what (`str`): What messages call the dataset.
        hint (`str`, *optional*): What would be right instead.

    Returns:
        `list[int]`: for each label of the dataset, the label that it becomes.

    Raises:
        InputError: with names that aren't among those wanted, or that several of these could be.
    """
    numbers = _match_names(own, wanted) or _match_numbers(own, len(wanted))
    if numbers is None:
        raise InputError(f"{_mismatch(own, wanted, what)}{hint and ' '}{hint}")
    return numbers


def union_classes(lists: list[list[str]]) -> tuple[list[str], list[list[int]]]:
    """The classes of several datasets together, where names that [`match_classes`] takes for the same are one class.

    Args:
        lists (`list[list[str]]`): Class names of each dataset, in the order of its labels.

    Returns:
        `tuple`: names in the order of their first place, each in its first spelling; and, for each dataset, the number
        that each of its labels becomes.
    """
    names, places = [], {}
    for name in (name for own in lists for name in own):
        if _plain(name) not in places:
            places[_plain(name)] = len(names)
            names.append(name)
    return names, [[places[_plain(name)] for name in own] for own in lists]


def rename_classes(own: list[str], names: dict[str, str], what: str) -> list[str]:
    """Readable names for the classes of a dataset, in the order of its labels.

    Args:
        own (`list[str]`): Class names of the dataset.
        names (`dict[str, str]`): Readable names by own names, of these classes and any others.
        what (`str`): What messages call the dataset.

    Raises:
        InputError: with classes that have no readable name.
    """
    numbers = _match_names(own, list(names))
    if numbers is None:
        missing = [name for name in own if name not in names]
        raise InputError(
            f"{what} has classes without a readable name among the {len(names)} given: {show_names(missing)}."
        )
    readable = list(names.values())
    return [readable[number] for number in numbers]


def readable_names(own: list[str], what: str) -> list[str]:
    """Class names that a text tower can know: WordNet ids of ImageNet's classes become their names.

    Raises:
        MissingLabels: for other WordNet ids, and where all names are numbers.
    """
    names = [wordnet_names().get(name, name) for name in own]
    unknown = [name for name in names if WORDNET_ID.fullmatch(name)]
    if not unknown and all(name.strip().isdecimal() for name in names):
        unknown = names
    if unknown:
        raise MissingLabels(
            f"{what} has class names that no text tower knows, {show_names(unknown)}: give class_names, readable "
            "ones, or the same if they are meant."
        )
    return names


def read_names(file: str | Path, comments: bool = False) -> list[str] | dict[str, str]:
    """Class names from a text file: one a line; or two columns, a dataset's own name and the readable one.

    Columns have a tab between them, or, behind a WordNet id, a space, as ImageNet's lists have it. With `comments`,
    lines that begin with `#` aren't names.

    Raises:
        InputError: for a file that can't be read, or lines of both kinds.
    """
    if not Path(file).is_file():
        raise InputError(f"There is no file {str(file)!r} with class names.")
    lines = read_text(Path(file)).splitlines()
    lines = [line for line in lines if not comments or not line.lstrip().startswith("#")]
    rows = [
        [cell.strip() for cell in re.sub(rf"^({WORDNET_ID.pattern}) ", r"\1\t", line).split("\t")]
        for line in "\n".join(lines).strip().splitlines()
    ]
    columns = {len(row) for row in rows}
    if columns == {2}:
        return dict(rows)
    if columns - {1}:
        raise InputError(f"{file} must have one class name in each line, or two with a tab between them in each.")
    return [name for (name,) in rows]


def renumber(dataset: Dataset | IterableDataset, numbers: list[int]):
    """The dataset with other labels beside the same images, whose files are left as they are.

    Args:
        dataset (`Dataset` or `IterableDataset`): With columns `image` and `label`.
        numbers (`list[int]`): For each label, the one that it becomes; what is no label, such as -1, stays.
    """
    new = dict(enumerate(numbers))
    if isinstance(dataset, Dataset):
        labels = [new.get(label, label) for label in dataset["label"][:]]
        return dataset.remove_columns("label").add_column("label", labels)
    encoded = dataset.decode(False)  # or the map would decode and encode images
    features = encoded.features.copy()
    features["label"] = Value("int64")
    renumbered = encoded.map(_relabel, fn_kwargs={"new": new}, features=features)
    return renumbered.cast_column("image", dataset.features["image"])


def _relabel(row: dict, new: dict[int, int]) -> dict:
    return {"label": new.get(row["label"], row["label"])}


def places_of(name: str, class_names: list[str]) -> list[int]:
    """The numbers of the classes that are called so, as they are spelled or else as [`match_classes`] matches them."""
    for spelling in (str, _plain):
        if places := [number for number, other in enumerate(class_names) if spelling(other) == spelling(name)]:
            return places
    return []


def _match_names(own: list[str], wanted: list[str]) -> list[int] | None:
    """As of [`match_classes`], by names as they are or else by what they come to; `None` where that isn't plain."""
    for spelling in (str, _plain):
        mine, theirs = [spelling(name) for name in own], [spelling(name) for name in wanted]
        if mine == theirs:  # also where two classes have one name
            return list(range(len(own)))
        times, places = Counter(theirs), {name: number for number, name in enumerate(theirs)}
        if len(set(mine)) == len(mine) and all(times[name] == 1 for name in mine):
            return [places[name] for name in mine]
    return None


def _match_numbers(own: list[str], classes: int) -> list[int] | None:
    """As of [`match_classes`], by own names that are numbers; `None` where it isn't plain from what they count."""
    if not all(name.isdecimal() for name in own):
        return None
    numbers = [int(name) for name in own]
    if len(set(numbers)) < len(numbers):
        return None
    if min(numbers) == 0 and max(numbers) < classes:
        return numbers
    if min(numbers) == 1 and max(numbers) == classes:
        return [number - 1 for number in numbers]
    return None


def _plain(name: str) -> str:
    """What a name comes to without case, underscores, spaces too many, and WordNet's id for it."""
    return " ".join(wordnet_names().get(name, name).replace("_", " ").split()).casefold()


def _mismatch(own: list[str], wanted: list[str], what: str) -> str:
    """Why the classes of a dataset can't be matched."""
    listed = f"the {len(wanted)} class names {show_names(wanted)}"
    known = set(map(_plain, wanted))
    if unknown := [name for name in own if _plain(name) not in known]:
        numbers = f", nor numbers from 0, or from 1 to {len(wanted)}" * all(name.isdecimal() for name in own)
        return f"{what} has classes that aren't among {listed}{numbers}: {show_names(unknown)}."
    times = Counter(map(_plain, own)) | Counter(map(_plain, wanted))
    twice = [name for name in own if times[_plain(name)] > 1]
    return f"{what} has another order of classes than {listed}, where {show_names(twice)} can't be told apart."


def show_names(names: list[str]) -> str:
    """The first class names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
