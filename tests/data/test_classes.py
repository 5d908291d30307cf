"""Class names of two datasets held against each other, and names that no text tower can know."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Value
from helpers import make_dataset, save_images

from hpt import InputError, load_benchmark
from hpt.data.classes import match_classes, read_names, readable_names, rename_classes, renumber, wordnet_names


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


ANIMALS = ["cat", "dog", "grey heron"]
TWELVE = [f"name {number}" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("own", "wanted", "numbers"),
    [
        (ANIMALS, ANIMALS, [0, 1, 2]),
        (["dog", "grey heron", "cat"], ANIMALS, [1, 2, 0]),
        (["Grey_Heron", "CAT"], ANIMALS, [2, 0]),
        (["n01443537", "n01440764"], ["tench", "Goldfish"], [1, 0]),
        (["tench", "goldfish"], ["n01443537", "n01440764"], [1, 0]),
        (["1", "10", "11", "12", *"23456789"], TWELVE, [0, 9, 10, 11, *range(1, 9)]),
        (["0", "1", "10", *"23456789"], TWELVE, [0, 1, 10, *range(2, 10)]),
        (["003", "001"], ["a", "b", "c"], [2, 0]),
        (["2", "10", "1"], ["1", "2", "10"], [1, 2, 0]),  # names, where they are that
        (["crane", "dog", "crane"], ["crane", "dog", "crane"], [0, 1, 2]),
        (["Cat", "cat"], ["cat", "Cat"], [1, 0]),
    ],
    ids=["same", "order", "spelling", "ids", "to ids", "from 1", "from 0", "some", "number names", "twins", "case"],
)
def test_classes_are_matched_by_name_or_number(own, wanted, numbers):
    assert match_classes(own, wanted, "the set") == numbers


@pytest.mark.parametrize(
    ("own", "wanted", "message"),
    [
        (
            ["dog", "cow", "sheep"],
            ANIMALS,
            "the set has classes that aren't among the 3 class names 'cat', 'dog', 'grey heron': 'cow', 'sheep'. Hint",
        ),
        (["5", "6"], ANIMALS, "'grey heron', nor numbers from 0, or from 1 to 3: '5', '6'"),
        (["1", "2"], ANIMALS, "nor numbers from 0, or from 1 to 3"),  # from 0, without 0? or from 1, without 3?
        (["0", "3"], ANIMALS, "nor numbers from 0"),
        (["cat", "1"], ANIMALS, "grey heron': '1'"),
        (["dog", "crane", "crane"], ["crane", "dog", "crane"], "another order of classes than .*, where 'crane', 'cr"),
        (TWELVE, ANIMALS, "'name 1', 'name 2', 'name 3', 'name 4', 'name 5' and 7 more"),
    ],
    ids=["names", "numbers", "no end", "too many", "one number", "twins", "many"],
)
def test_classes_that_cannot_be_matched_are_named(own, wanted, message):
    with pytest.raises(InputError, match=message):
        match_classes(own, wanted, "the set", "Hint.")


def test_classes_are_renamed_by_their_own_names():
    names = {"n01": "worm", "n02": "bat", "n03": "cow"}
    assert rename_classes(["n02", "N01"], names, "the set") == ["bat", "worm"]
    with pytest.raises(
        InputError, match="the set has classes without a readable name among the 3 given: 'n04', 'n05'"
    ):
        rename_classes(["n04", "n01", "n05"], names, "the set")


def test_names_that_no_text_tower_knows_are_replaced_or_refused():
    assert len(wordnet_names()) == 1000 and wordnet_names("tiny_imagenet").items() <= wordnet_names().items()
    assert readable_names(["n01440764", "n02012849", "911"], "it") == ["tench", "crane", "911"]
    with pytest.raises(InputError, match="it has class names that no text tower knows, 'n99999999': give class_names"):
        readable_names(["n01440764", "n99999999"], "it")
    with pytest.raises(
        InputError, match="no text tower knows, '0', '1', '2': give class_names, readable ones, or the"
    ):
        readable_names(["0", "1", "2"], "it")


@pytest.mark.parametrize("streaming", [False, True], ids=["in memory", "streaming"])
def test_other_labels_leave_the_images_files_as_they_are(streaming):
    dataset = make_dataset(9).select([8, 3, 1, 4])  # labels 2, 0, 1, 1
    before = [row["image"]["bytes"] for row in dataset.cast_column("image", datasets.Image(decode=False))]
    after = renumber(dataset.to_iterable_dataset() if streaming else dataset, [5, 3, 4])
    assert after.features == Features({"image": datasets.Image(), "label": Value("int64")})
    rows = list(after.cast_column("image", datasets.Image(decode=False)))
    assert [row["label"] for row in rows] == [4, 5, 3, 3]
    assert [row["image"]["bytes"] for row in rows] == before


def test_an_image_without_a_label_gets_none():
    unlabelled = datasets.Dataset.from_dict({"image": [b""] * 3, "label": [1, -1, None]})
    assert renumber(unlabelled, [7, 8])["label"][:] == [8, -1, None]


# Files of names, and datasets that have some of their own


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\n grey heron \n", ["cat", "grey heron"]),
        ("c1\tcat\nc2\tgrey heron\n", {"c1": "cat", "c2": "grey heron"}),
        (
            "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
            {"n01440764": "tench, Tinca tinca"} | {"n01443537": "goldfish"},
        ),
    ],
    ids=["names", "two columns", "WordNet's"],
)
def test_files_of_class_names(tmp_path, text, names):
    (tmp_path / "names.txt").write_text(text, encoding="utf-8-sig")
    assert read_names(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"c1\tcat\ngrey heron\n", "names.txt must have one class name in each line, or two with a tab between"),
        ("caf\u00e9\n".encode("latin-1"), "names.txt isn't UTF-8"),
    ],
    ids=["both kinds of lines", "another encoding"],
)
def test_files_that_cant_be_read_as_names_are_refused(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path / "names.txt")


@pytest.mark.parametrize("streaming", [False, True], ids=["in memory", "streaming"])
def test_a_file_of_names_is_laid_over_numbered_folders_by_number(tmp_path, streaming):
    """In the order of text, folder 10 is the second."""
    folder = save_images(tmp_path / "set", kinds=[str(number) for number in range(1, 13)])
    (tmp_path / "names.txt").write_text("\n".join(TWELVE))
    own = datasets.load_dataset(str(folder), split="train")
    expected = [TWELVE[int(own.features["label"].int2str(label)) - 1] for label in own["label"]]
    benchmark = load_benchmark(f"{folder}:class_names={tmp_path / 'names.txt'},geometry=native", streaming=streaming)
    labels = [row["labels"] for row in benchmark]
    assert benchmark.class_names == TWELVE and [TWELVE[label] for label in labels] == expected


@pytest.mark.parametrize("given", [["Dog", "cow", "cat"], {"cat": "tabby", "dog": "husky", "cow": "ox"}])
@pytest.mark.parametrize("labels", ["folders", "text"])
def test_names_are_laid_over_names(tmp_path, given, labels):
    """A list gives the order of the labels, and a dict other names in the dataset's own order."""
    folder = save_images(tmp_path / "pets")  # cat, cat, dog, dog
    if labels == "text":
        pets = datasets.load_dataset(str(folder), split="train").cast_column("label", Value("string"))
        pets.remove_columns("label").add_column("label", ["cat", "cat", "dog", "dog"]).to_parquet(
            tmp_path / "p.parquet"
        )
        folder = tmp_path / "p.parquet"
    benchmark = load_benchmark(str(folder), class_names=given, geometry="native")
    listed = isinstance(given, list)
    assert benchmark.class_names == (given if listed else ["tabby", "husky"])
    assert [row["labels"] for row in benchmark] == ([2, 2, 0, 0] if listed else [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["tabby", "husky"],
            "the 2 class names 'tabby', 'husky': 'cat', 'dog'. To rename classes, give a dict, or lines",
        ),
        (["cat", "cow"], "the 2 class names 'cat', 'cow': 'dog'. To rename classes"),
        (["cat", 7], "The class name of label 1 is 7, but must be text"),
        (["cat", "do\udcff"], r"The class name of label 1 is 'do\\udcff', but must be text"),
        ([], "There are no class names"),
        ({"cat": "tabby"}, "classes without a readable name among the 1 given: 'dog'"),
        ({"cat": None, "dog": "husky"}, "The class name of label 0 is None"),
    ],
    ids=["other names", "one other", "number", "half a character", "none", "one missing", "no text"],
)
def test_names_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        load_benchmark(str(save_images(tmp_path / "pets")), class_names=given)


def test_labels_that_are_numbers_alone_take_names_in_their_order(tmp_path):
    make_dataset(3).cast_column("label", Value("int64")).to_parquet(tmp_path / "set.parquet")
    for given in (["x", "y", "z"], {0: "x", 2: "z", 1: "y"}):
        benchmark = load_benchmark(str(tmp_path / "set.parquet"), class_names=given)
        assert benchmark.class_names == ["x", "y", "z"] and benchmark.dataset["label"][:] == [0, 1, 2]


def test_a_folder_of_wordnet_ids_has_imagenets_names_and_no_unknown_ones(tmp_path):
    known = load_benchmark(str(save_images(tmp_path / "known", kinds=["n01440764", "n01443537"])))
    assert known.class_names == ["tench", "goldfish"]
    folder = str(save_images(tmp_path / "unknown", kinds=["n00000001", "n00000002"]))
    with pytest.raises(InputError, match="unknown has class names that no text tower knows, 'n00000001', 'n00000002'"):
        load_benchmark(folder)
    asked_for = load_benchmark(folder, class_names=["n00000001", "n00000002"])
    assert asked_for.class_names == ["n00000001", "n00000002"]
    assert load_benchmark(folder, class_names={"n00000002": "bat", "n00000001": "ant"}).class_names == ["ant", "bat"]


def test_classes_that_are_numbers_are_taken_if_asked_for(tmp_path):
    folder = str(save_images(tmp_path / "numbers", kinds=["0", "1"]))
    with pytest.raises(InputError, match="no text tower knows, '0', '1'"):
        load_benchmark(folder)
    assert load_benchmark(folder, class_names=["0", "1"]).class_names == ["0", "1"]


@pytest.mark.filterwarnings("ignore:.* rows in .* instead of")
def test_tiny_imagenet_may_have_readable_names(tmp_path):
    names = sorted(name.replace(" ", "_") for name in wordnet_names("tiny_imagenet").values())
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    rows = {"image": [np.zeros((8, 8, 3), np.uint8)] * 2, "label": [0, 199]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    benchmark = load_benchmark("tiny_imagenet", "train", path=str(tmp_path))
    assert benchmark.class_names == [name.replace("_", " ") for name in names]


def test_a_class_of_imagenet_that_tiny_imagenet_lacks_is_refused(tmp_path):
    folder = str(save_images(tmp_path / "tiny", kinds=["n01443537", "n01440764"]))
    with pytest.raises(
        InputError, match="n01440764 is none of TinyImageNet's 200 classes: call the dataset by another"
    ):
        load_benchmark("tiny_imagenet", "train", path=folder)
