"""Checks of a benchmark: do its labels name what its images show, and does it have the images that it should?"""

import numpy as np

from hpt.data.benchmark import Benchmark
from hpt.data.classes import wordnet_names
from hpt.data.images import read_labels
from hpt.evaluation.protocol.findings import (
    DECIDED,
    DOUBTFUL,
    Finding,
    better_by_chance,
    cant_tell,
    fine,
    percent,
    sees_something,
    wrong,
)
from hpt.evaluation.protocol.probe import Probe


CLASSES, EACH = 128, 8  # at most, of the images by which the order of classes is checked
FAR = 0.25  # how much more another order of the classes has to explain
MOST = 0.75  # share of a class's images
TINY_IMAGENET = "tiny_imagenet"
FLAT_FOLDER = "github.com/microsoft/robustlearn, issue 59 (TinyImageNet: 0.23 % robust instead of 23.12 %)"


def check_layout(benchmark: Benchmark) -> Finding:
    """Whether all its classes have images, as they don't where a validation folder without classes is read by class.

    TinyImageNet's is such a folder: `val/images` has the images of all classes, and a file beside it their classes.
    """
    check, names = "layout", benchmark.class_names
    counts = np.bincount(read_labels(benchmark.dataset), minlength=len(names))
    present = int((counts > 0).sum())
    if present == 1 < len(names):
        only = names[int(counts.argmax())]
        return wrong(
            check,
            f"all {len(benchmark)} images have one label of {len(names)}, {only!r}: a folder without classes was read "
            "as one class, as TinyImageNet's val/images is, whose classes stand in val_annotations.txt; or only the "
            "first images of a sorted split were taken.",
            FLAT_FOLDER,
        )
    if benchmark.name == TINY_IMAGENET and (problem := _tiny_imagenet_order(names)):
        return wrong(check, problem, FLAT_FOLDER)
    seen = f"{present} of {len(names)} classes have images, from {counts[counts > 0].min()} to {counts.max()} each"
    if present <= len(names) / 2:
        return cant_tell(check, f"{seen}: is that the whole split, and do its labels number these classes?")
    return fine(check, f"{seen}.")


def _tiny_imagenet_order(names: list[str]) -> str | None:
    """What is wrong with the order of TinyImageNet's classes, whose labels follow their WordNet ids."""
    readable = wordnet_names(TINY_IMAGENET)
    expected = [readable[wordnet_id] for wordnet_id in sorted(readable)]
    if sorted(names) != sorted(expected) or names == expected:
        return None
    place = next(place for place, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
    return (
        f"label {place} is called {names[place]!r}, but TinyImageNet's labels follow their WordNet ids, by which it "
        f"is {expected[place]!r}."
    )


def check_class_order(probe: Probe) -> Finding:
    """Whether another order of the classes explains the predictions far better than their own.

    The order that explains most of one half of the images, by the assignment problem, is tried on the other half, and
    the reverse: what merely fits few images explains no others.
    """
    check = "class order"
    predicted, labels = probe.predict_more(CLASSES, CLASSES * EACH if _many(probe) else len(probe))
    renamed = _renamed(predicted, labels)
    own, other = predicted == labels, predicted == renamed
    seen = f"labels explain {percent(own)} of {len(labels)} predictions, another order of the classes {percent(other)}"
    published = "github.com/azshue/TPT, issue 17; github.com/openai/CLIP, issue 318"
    chance = better_by_chance(other, own)
    far = other.mean() - own.mean() > FAR and other.mean() > 0.5 and sees_something(predicted, renamed)
    if chance < DECIDED and far and len(np.unique(labels[renamed != labels])) > 2:  # a model may well confuse two
        pairs = _pairs(predicted, labels, probe.benchmark.class_names)
        return wrong(check, f"{seen}: the class names stand in another order than the labels ({pairs}).", published)
    if exchanged := _exchanged(predicted, labels, probe.benchmark.class_names):
        return cant_tell(check, f"{exchanged}: are these two names exchanged?", published)
    if chance < DOUBTFUL and other.mean() > own.mean():
        return cant_tell(check, f"{seen}: a weak model, or some names in another order.", published)
    if not sees_something(predicted, labels):
        return cant_tell(check, f"{seen}: no more than by guessing.")
    return fine(check, f"{seen}.")


def _many(probe: Probe) -> bool:
    return len(probe.benchmark.class_names) > len(np.unique(probe.labels.cpu().numpy()))


def _renamed(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels by the order of classes that suits the predictions of the other half of the images best."""
    half = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        half[rows[1::2]] = 1  # each class has its share in both
    renamed = labels.copy()
    for part in (0, 1):
        order = _best_order(predicted[half == part], labels[half == part])
        renamed[half != part] = [order.get(label, label) for label in labels[half != part]]
    return renamed


def _best_order(predicted: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """The class as which each label's images are predicted, one for each, so that most predictions are explained."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    present = np.unique(labels)
    counts = np.zeros((len(present), 1 + max(predicted.max(initial=0), labels.max(initial=0))))
    np.add.at(counts, (np.searchsorted(present, labels), predicted), 1)
    counts[np.arange(len(present)), present] += 0.5  # where images decide nothing, the class itself
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return dict(zip(present[rows].tolist(), columns.tolist(), strict=True))


def _pairs(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> str:
    """Three examples of what images of a class are called."""
    order = _best_order(predicted, labels)
    moved = [(label, called) for label, called in order.items() if label != called]
    return ", ".join(f"images of {names[label]!r} are called {names[called]!r}" for label, called in moved[:3])


def _exchanged(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> str | None:
    """Two classes whose images are called by the name of the other, nearly all of them, if there are such."""
    for label in np.unique(labels):
        called, number = _mostly(predicted[labels == label])
        back, back_number = _mostly(predicted[labels == called]) if (labels == called).any() else (None, 0)
        if label < called and back == label:
            shares = number / (labels == label).sum(), back_number / (labels == called).sum()
            if min(shares) >= MOST and min(number, back_number) >= 4:
                return (
                    f"{number} of {(labels == label).sum()} images of {names[label]!r} are called {names[called]!r}, "
                    f"and {back_number} of {(labels == called).sum()} the reverse"
                )
    return None


def _mostly(predicted: np.ndarray) -> tuple[int, int]:
    """The most frequent prediction, and how often it is made."""
    counts = np.bincount(predicted)
    return int(counts.argmax()), int(counts.max())
