"""Epochs of a fixed number of images, made of several training sets: which images, in which order, over which classes.

A [`~hpt.data.mixtures.Mixture`] is what a user gives; this is what a trainer takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from hpt.data.augmentation import CropFlip
from hpt.data.benchmark import Benchmark
from hpt.data.classes import union_classes
from hpt.data.images import encoded_images, read_size
from hpt.errors import InputError
from hpt.prompts import list_templates


ONE_SET, MIXED = "one_set", "mixed"
BATCHES = (ONE_SET, MIXED)


def join_classes(lists: list[list[str]], templates: list[str | list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """The classes of several sets together, and the prompt templates of each: those of all sets that have it.

    Args:
        lists (`list[list[str]]`): Class names of each set.
        templates (`list`): Prompt template of each set, or several.
    """
    names, numbers = union_classes(lists)
    joined = {name: [] for name in names}
    for own, template in zip(numbers, templates, strict=True):
        for number in dict.fromkeys(own):
            known = joined[names[number]]
            known += [text for text in list_templates(template) if text not in known]
    return names, joined


class EpochMixture(torch.utils.data.Dataset):
    """Epochs of a fixed number of images from several sets, the same for the same seed; a torch dataset.

    The images of a set have their turn in random order, and again in another one once all have had it. An epoch goes
    on where the one before it ended, so that all have their turn however small the set's share is. What an epoch has
    follows from seed and epoch alone, whatever workers, processes and micro-batches there are.

    Args:
        sets (`dict[str, Benchmark]`): By name, as the model sees them, with prompt templates.
        shares (`list[int]`): Images of each in an epoch.
        batches (`str`): `"one_set"` or `"mixed"`, as of [`~hpt.data.mixtures.Mixture`].
        step_size (`int`): Images in an optimizer step, of which each share is a multiple for `"one_set"`.
        seed (`int`): What the orders come from.
        augmentation ([`CropFlip`], *optional*): Of the images.
        over_union (`bool`): Whether labels number [`class_names`], those of all sets, or those of the image's set.

    Raises:
        InputError: for `"mixed"`, if images of different sets come to the model at different sizes.
    """

    def __init__(
        self,
        sets: dict[str, Benchmark],
        shares: list[int],
        *,
        batches: str,
        step_size: int,
        seed: int,
        augmentation: CropFlip | None = None,
        over_union: bool,
    ):
        if batches == MIXED:
            check_one_size(sets)
        self.sets, self.shares, self.batches, self.over_union = sets, shares, batches, over_union
        self.step_size, self.seed, self.augmentation = step_size, seed, augmentation
        self.class_names, self._numbers = union_classes([part.class_names for part in sets.values()])
        # Where the rows and the sample ids of each set begin, and at last where those of all end
        self._rows = np.cumsum([0, *map(len, sets.values())])
        self._ids = np.cumsum([0, *(int(part.ids().max()) + 1 for part in sets.values())])
        self._epoch, self._views = 0, {}

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is iterated over next, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(self.shares)

    @property
    def templates(self) -> dict[str, list[str]]:
        """Of each of [`class_names`], the prompt templates: those of all sets that have it."""
        parts = self.sets.values()
        return join_classes([part.class_names for part in parts], [part.template for part in parts])[1]

    def order(self) -> list[int]:
        """The numbers of the epoch's images, in order; those of an optimizer step follow each other."""
        drawn = [self._draw(number) for number in range(len(self.sets))]
        draws = np.random.default_rng([self.seed, self._epoch])
        if self.batches == MIXED:
            return draws.permutation(np.concatenate(drawn)).tolist()
        steps = np.concatenate([images.reshape(-1, self.step_size) for images in drawn])
        return draws.permutation(steps).ravel().tolist()

    def labels(self) -> np.ndarray:
        """The labels of the epoch's images in [`order`], over the union of the sets' classes."""
        parts = zip(self._numbers, self.sets.values(), strict=True)
        of_rows = np.concatenate([np.asarray(numbers)[part.dataset["label"][:]] for numbers, part in parts])
        return of_rows[np.asarray(self.order()) % self._rows[-1]]

    def _draw(self, number: int) -> np.ndarray:
        """The numbers of the epoch's images of one set: a row's own, plus that of all rows for each further sight."""
        size, share = self._rows[number + 1] - self._rows[number], self.shares[number]
        start = self._epoch * share
        first, last = start // size, (start + share - 1) // size  # of the set's readings, over all epochs
        orders = [
            np.random.default_rng([self.seed, reading, number + 1]).permutation(size)
            + (reading - first) * self._rows[-1]
            for reading in range(first, last + 1)
        ]
        taken = np.concatenate(orders)[start - first * size :][:share]
        return taken + self._rows[number]

    def __getitem__(self, number: int) -> dict:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict]:
        """Images by their numbers in [`order`], as items of [`Benchmark`]; the table of each set is read once.

        `sample_ids` are of one set, and of one sight of an image in the epoch, alone. Where labels number the classes
        of the image's set, `set` is the set's place.
        """
        sights, rows = np.divmod(np.asarray(numbers), self._rows[-1])
        places = np.searchsorted(self._rows, rows, side="right") - 1
        items = {}
        for sight, place in sorted({*zip(sights.tolist(), places.tolist(), strict=True)}):
            here = np.flatnonzero((sights == sight) & (places == place))
            items |= zip(here.tolist(), self._read(sight, place, rows[here] - self._rows[place]), strict=True)
        return [items[at] for at in range(len(numbers))]

    def _read(self, sight: int, place: int, rows: np.ndarray) -> Iterator[dict]:
        """Items of one set, augmented as of that sight of them."""
        shift = int(sight * self._ids[-1] + self._ids[place])
        for item in self._view(place, shift).__getitems__(rows.tolist()):
            label = self._numbers[place][item["labels"]] if self.over_union else item["labels"]
            place_of_set = {} if self.over_union else {"set": place}
            yield item | {"labels": label, "sample_ids": shift + item["sample_ids"]} | place_of_set

    def _view(self, place: int, shift: int) -> Benchmark:
        """A set whose augmentation draws for shifted sample ids, kept for the next batch."""
        if shift not in self._views:
            part = list(self.sets.values())[place]
            augmentation = self.augmentation and _Shifted(self.augmentation, shift)
            self._views[shift] = replace(part, augmentation=augmentation)
        return self._views[shift]


@dataclass(frozen=True)
class _Shifted:
    """An augmentation for sample ids that are counted from elsewhere, so that no two sets draw the same."""

    augmentation: CropFlip
    shift: int

    def __call__(self, sample_id: int, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return self.augmentation(self.shift + sample_id, image, size)


def check_one_size(sets: dict[str, Benchmark]) -> None:
    """Refuse sets whose images couldn't share a batch."""
    sizes = {}
    for name, part in sets.items():
        own = read_size(encoded_images(part.dataset)[0]["image"], f"the first row of {name}")
        sizes.setdefault(tuple(part.transform.output_size(*own)), name)
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise InputError(
            f"Images of {one} have {first[0]} x {first[1]} pixels, those of {other} {second[0]} x {second[1]}, which "
            "can't share a batch: give batches=one_set, or load both with one geometry."
        )


class EpochOrder(torch.utils.data.Sampler):
    """The order of a mixture's images, for a data loader, which tells the mixture itself which epoch begins."""

    def __init__(self, mixture: EpochMixture):
        self.mixture = mixture

    def __iter__(self) -> Iterator[int]:
        return iter(self.mixture.order())

    def __len__(self) -> int:
        return len(self.mixture)
