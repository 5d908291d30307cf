"""Mixtures of training sets: shares, orders, labels and ids, each against what is meant in a line."""

from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from helpers import make_dataset

from hpt import InputError
from hpt.data.augmentation import CropFlip
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import union_classes
from hpt.data.epochs import MIXED, ONE_SET, EpochMixture, EpochOrder, join_classes
from hpt.data.geometry import ImageTransform
from hpt.data.mixtures import Mixture, load_mixture, share_out


BIRDS, CARS = ["cat", "dog", "grey heron"], ["Grey_Heron", "car", "DOG"]


def make_set(rows: int, names=BIRDS, seed: int = 0, size: int = 16, template="a {}", first_id: int = 0) -> Benchmark:
    dataset = make_dataset(rows, size, seed).cast_column("label", datasets.ClassLabel(names=names))
    return Benchmark(
        f"set {seed}",
        "train",
        dataset,
        names,
        template,
        ImageTransform(),
        sample_ids=np.arange(first_id, first_id + rows) if first_id else None,
    )


def make_mixture(batches=MIXED, shares=(10, 23), *, seed=0, step_size=4, augment=False, over_union=True):
    sets = {"birds": make_set(10), "cars": make_set(23, CARS, seed=1)}
    return EpochMixture(
        sets,
        list(shares),
        batches=batches,
        step_size=step_size,
        seed=seed,
        augmentation=CropFlip(seed) if augment else None,
        over_union=over_union,
    )


def read_epochs(mixture: EpochMixture, epochs: int) -> list[list[int]]:
    """The order of each epoch, as a data loader is given it."""
    orders = []
    for epoch in range(epochs):
        mixture.set_epoch(epoch)
        orders.append(list(EpochOrder(mixture)))
    return orders


@pytest.mark.parametrize(
    "images, weights", [(33, [10, 23]), (33, [0.7, 0.3]), (100, [1, 1, 1]), (7, [0.1] * 10), (10**6 + 1, [3, 1e-3])]
)
def test_shares_are_whole_sum_up_and_are_within_one_of_the_weights(images, weights):
    shares = share_out(images, weights)
    assert sum(shares) == images
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - images * weight / sum(weights)) < 1
    assert all(isinstance(share, int) for share in shares)


@pytest.mark.parametrize("weights, shares", [(None, [10, 23]), ([1, 1], [17, 16]), ([7, 3.0], [23, 10])])
def test_the_images_of_an_epoch_are_shared_out_and_filled_up_to_whole_steps_of_one_set(weights, shares):
    sets = [make_set(10), make_set(23, CARS, seed=1)]
    assert Mixture(sets, weights, MIXED).shares(4) == shares
    assert Mixture(sets, weights).shares(4) == [-(-share // 4) * 4 for share in shares]


def test_a_set_with_less_than_a_step_gets_one_and_a_warning_says_so():
    mixture = Mixture([make_set(3), make_set(23, seed=1)])
    with pytest.warns(UserWarning, match="fewer images of set 0 than a step's 8"):
        assert mixture.shares(8) == [8, 24]


def test_by_size_every_image_has_its_turn_once_an_epoch():
    for order in read_epochs(make_mixture(), 3):
        assert sorted(order) == list(range(33))


@pytest.mark.parametrize(
    "batches, shares", [(MIXED, (21, 12)), (MIXED, (3, 30)), (ONE_SET, (24, 12)), (ONE_SET, (4, 28))]
)
def test_each_epoch_has_its_shares_and_no_image_comes_again_before_all_others_of_its_set(batches, shares):
    """Whatever the epochs cut the order into: after each, no two images of a set differ by more than one turn."""
    seen = Counter()
    for order in read_epochs(make_mixture(batches, shares), 7):
        rows = [number % 33 for number in order]
        assert len(order) == sum(shares) == len(set(order))  # a second sight has a number of its own
        assert (sum(row < 10 for row in rows), sum(row >= 10 for row in rows)) == shares
        seen.update(rows)
        for own in (range(10), range(10, 33)):
            turns = [seen[row] for row in own]
            assert max(turns) - min(turns) <= 1


@pytest.mark.parametrize("batches", [MIXED, ONE_SET])
def test_a_step_has_images_of_one_set_or_of_all(batches):
    (order,) = read_epochs(make_mixture(batches, (16, 16)), 1)
    steps = np.array(order).reshape(-1, 4) % 33
    of_cars = (steps >= 10).sum(1)
    assert set(of_cars) <= {0, 4} if batches == ONE_SET else set(of_cars) - {0, 4}
    assert batches == MIXED or (np.diff(of_cars) != 0).sum() > 1  # the steps of the two are shuffled


@pytest.mark.parametrize("batches, shares", [(MIXED, (10, 23)), (ONE_SET, (12, 24))])
def test_the_order_follows_from_seed_and_epoch_alone(batches, shares):
    orders = read_epochs(make_mixture(batches, shares), 3)
    again = make_mixture(batches, shares)
    again.set_epoch(2)
    assert again.order() == orders[2] == again.order()
    assert orders[0] != orders[1] != orders[2]
    assert read_epochs(make_mixture(batches, shares, seed=1), 1)[0] != orders[0]


def test_classes_of_equal_names_are_one_and_each_label_keeps_its_class():
    names, numbers = union_classes([BIRDS, CARS, ["n02124075", "crane", "crane"]])
    assert names == ["cat", "dog", "grey heron", "car", "n02124075", "crane"]
    assert numbers == [[0, 1, 2], [2, 3, 1], [4, 5, 5]]


def test_a_class_of_several_sets_has_the_templates_of_all_of_them():
    names, templates = join_classes([BIRDS, CARS, ["dog"]], ["a {}", ["the {}", "a {}"], "b {}"])
    assert names == ["cat", "dog", "grey heron", "car"]
    assert templates == {
        "cat": ["a {}"],
        "dog": ["a {}", "the {}", "b {}"],
        "grey heron": ["a {}", "the {}"],
        "car": ["the {}", "a {}"],
    }


@pytest.mark.parametrize("over_union", [True, False])
def test_items_are_those_of_the_sets_with_labels_over_the_classes_that_are_meant(over_union):
    mixture = make_mixture(over_union=over_union)
    (order,) = read_epochs(mixture, 1)
    items = mixture.__getitems__(order)
    sets = list(mixture.sets.values())
    for number, item in zip(order, items, strict=True):
        place, row = (0, number) if number < 10 else (1, number - 10)
        there = sets[place][row]
        assert torch.equal(item["pixel_values"], there["pixel_values"])
        assert item.get("set") == (None if over_union else place)
        name = sets[place].class_names[there["labels"]]
        known = mixture.class_names if over_union else sets[place].class_names
        assert known[item["labels"]].lower() == name.replace("_", " ").lower() or known[item["labels"]] == name
    assert len({item["sample_ids"] for item in items}) == 33
    assert mixture[order[0]]["sample_ids"] == items[0]["sample_ids"]


@pytest.mark.parametrize("batches, shares", [(MIXED, (25, 8)), (ONE_SET, (24, 8))])
def test_labels_of_an_epoch_are_those_of_its_images_in_order(batches, shares):
    mixture = make_mixture(batches, shares)
    for epoch in range(2):
        mixture.set_epoch(epoch)
        items = mixture.__getitems__(mixture.order())
        assert mixture.labels().tolist() == [item["labels"] for item in items]


def test_sample_ids_differ_over_sets_and_sights_also_where_a_set_has_ids_of_a_larger_one():
    sets = {"part": make_set(4, first_id=70), "whole": make_set(9, seed=1)}
    mixture = EpochMixture(sets, [12, 9], batches=MIXED, step_size=3, seed=0, over_union=True)
    (order,) = read_epochs(mixture, 1)
    items = mixture.__getitems__(order)
    assert len({item["sample_ids"] for item in items}) == 21
    assert Counter(item["sample_ids"] % (74 + 9) < 74 for item in items) == {True: 12, False: 9}
    assert len({item["sample_ids"] % (74 + 9) for item in items}) == 4 + 9


def test_augmentation_draws_by_epoch_and_by_the_id_of_one_sight():
    mixture = make_mixture(MIXED, (25, 8), augment=True)
    crop = CropFlip(0)
    for epoch in (0, 1):
        mixture.augmentation.set_epoch(epoch)
        crop.set_epoch(epoch)
        (order,) = read_epochs(mixture, 1)
        ids = []
        for number in order[:12]:
            item = mixture[number]
            row = number % 33
            part, own = (mixture.sets["birds"], row) if row < 10 else (mixture.sets["cars"], row - 10)
            image = part.dataset[own]["image"]
            expected = np.asarray(crop(item["sample_ids"], image, image.size))
            assert np.array_equal(item["pixel_values"].permute(1, 2, 0).numpy(), expected)
            ids.append((row, item["sample_ids"]))
        assert len(set(ids)) == 12


BAD_SETS = {
    "none": (({},), "has no sets"),
    "no list": (("digits",), "got a str"),
    "splits": ((datasets.DatasetDict(train=make_dataset(4)),), "got a DatasetDict"),
    "hidden name": (({"a\u200bb": make_set(4)},), "characters that can't be seen"),
    "without a name": (([make_dataset(4)],), "which has no name: give a dict"),
    "twice by name": (([make_set(4), make_set(4)],), "set 0 is twice in the mixture"),
    "name no text": (({3: make_set(4)},), "is called 3, but names must be text"),
    "blank name": (({" ": make_set(4)},), "The name ' ' is blank"),
    "stream": (({"a": make_dataset(4).to_iterable_dataset()},), "a is a stream"),
    "streaming benchmark": (
        ([StreamingBenchmark("s", "train", make_dataset(4).to_iterable_dataset(), BIRDS, "{}")],),
        "s is a stream",
    ),
    "batches": (({"a": make_set(4)}, None, "one-set"), "Unknown batches 'one-set'; known: one_set, mixed"),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_sets_that_cannot_be_mixed_are_refused(kind):
    arguments, line = BAD_SETS[kind]
    with pytest.raises(InputError, match=line):
        Mixture(*arguments)


def test_a_set_that_is_there_under_two_names_is_refused():
    birds = make_set(4)
    with pytest.raises(InputError, match="b is twice in the mixture"):
        Mixture({"a": birds, "b": birds})


@pytest.mark.parametrize(
    "weights, line",
    [
        ([1.0], "2 sets, a, b, but got 1 weights"),
        ([1, 1, 1], "but got 3 weights"),
        (0.5, "but got 0.5"),
        ("0.5", "but got '0.5'"),
        ([1, -0.5], "weight of b is -0.5"),
        ([float("nan"), 1], "weight of a is nan"),
        ([1, float("inf")], "weight of b is inf"),
        ([0, 0], "weight of a is 0"),
        ([1, 0.0], "weight of b is 0.0.*leave out a set"),
        ([1, "1"], "weight of b is '1'"),
        ([1, True], "weight of b is True"),
        ([1, None], "weight of b is None"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights, line):
    with pytest.raises(InputError, match=line):
        Mixture({"a": make_set(4), "b": make_set(4)}, weights)


def test_a_weight_that_leaves_a_set_without_an_image_and_a_set_without_rows_are_refused():
    sets = {"a": make_set(4), "b": make_set(4)}
    with pytest.raises(InputError, match="weight of b gives it none of the 8 images"):
        Mixture(sets, [1, 1e-9]).shares(2)
    with pytest.raises(InputError, match="b has no rows"):
        Mixture(sets | {"b": make_dataset(4).select([])}).shares(2)


def test_images_of_different_sizes_are_refused_in_mixed_batches_alone():
    sets, settings = {"a": make_set(4), "b": make_set(4, size=20)}, {"step_size": 2, "seed": 0, "over_union": True}
    EpochMixture(sets, [4, 4], batches=ONE_SET, **settings)
    with pytest.raises(InputError, match="a have 16 x 16 pixels, those of b 20 x 20, .* batches=one_set"):
        EpochMixture(sets, [4, 4], batches=MIXED, **settings)


def test_sets_are_loaded_by_name_with_their_held_out_images():
    mixture, validation = load_mixture(["digits"], validation_size=100, rows=60)
    assert list(mixture.sets) == ["digits"] and len(mixture.sets["digits"]) == 60 and mixture.batches == ONE_SET
    assert len(validation["digits"]) == 100 and validation["digits"].split == "validation"


@pytest.mark.parametrize(
    "arguments, line",
    [
        ((["digits", "digits"],), "digits is twice"),
        ((["a={0}", "b={0}"],), "b=.* is twice"),
        ((["digits", "nowhere"],), "Unknown benchmark 'nowhere'"),
        ((["digits", "all"],), "all is sixteen benchmarks"),
        ((["digits"], [1, 2]), "1 sets, digits, but got 2 weights"),
        ((["digits"], None, "some"), "Unknown batches 'some'"),
    ],
)
def test_names_that_cannot_be_mixed_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, arguments, line):
    monkeypatch.setattr("hpt.data.mixtures.load_training_data", None)
    names, *others = arguments
    with pytest.raises(InputError, match=line):
        load_mixture([name.format(tmp_path) for name in names], *others)
