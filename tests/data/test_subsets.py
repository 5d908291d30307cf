"""A part of a dataset's classes: which samples it has, what it is called, and what is refused."""

import numpy as np
import pytest
from datasets import ClassLabel
from helpers import CLASSES, make_dataset, save_images

from hpt import InputError, load_benchmark
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.class_subsets import take_classes, write_out_classes
from hpt.data.geometry import ImageTransform
from hpt.data.loading import load_available, load_training_data
from hpt.data.names import parse_benchmark
from hpt.data.streams import identify_stream
from hpt.data.subsets import SUBSET_NAME, list_part, name_for_command
from hpt.evaluation.row_settings import hash_benchmark


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def same_items(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one["labels"] == other["labels"] and one["sample_ids"] == other["sample_ids"]
        assert one["pixel_values"].equal(other["pixel_values"])


@pytest.mark.parametrize(
    "given",
    [
        {"classes": ["seven", "one", "three"]},
        {"classes": [7, "ONE", np.int64(3)]},
        {"classes": "7|three|1"},
        {"without_classes": ["zero", 2, "four", "5", 6, "Eight", "nine"]},
    ],
    ids=str,
)
def test_it_is_the_rows_of_its_classes_numbered_anew_in_their_own_order(given):
    whole, part = load_benchmark("digits"), load_benchmark("digits", **given)
    kept = [row for row, label in enumerate(whole.dataset["label"]) if label in (1, 3, 7)]
    assert part.class_names == ["one", "three", "seven"] and part.ids().tolist() == kept
    expected = [whole[row] for row in kept]
    same_items(part, [item | {"labels": [1, 3, 7].index(item["labels"])} for item in expected])


def test_text_and_files_name_the_same_as_python(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("# Three of them\n\nseven\n  # by number\n1\nThree\n")
    parts = [load_benchmark("digits", classes=[1, 3, 7]), load_benchmark(f"digits:classes={file}")]
    parts += [load_benchmark("digits:classes=one|three|7"), load_benchmark("digits", classes=str(file))]
    assert len({hash_benchmark(part) for part in parts}) == len({part.name for part in parts}) == 1
    assert str(parts[0].name).startswith("digits (3 of 10 classes, ") and SUBSET_NAME.fullmatch(parts[0].name)


def test_imagenets_ids_name_classes_too():
    images = make_dataset(4).remove_columns("label").add_column("label", [0, 1, 2, 0])
    whole = Benchmark("few", "test", images, ["tench", "goldfish", "great white shark"], "{}", ImageTransform())
    assert take_classes(whole, without_classes="n01440764").class_names == ["goldfish", "great white shark"]


def test_other_classes_are_another_set_and_all_of_them_are_the_whole():
    whole = load_benchmark("digits")
    parts = [take_classes(whole, classes=classes) for classes in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 3, 4, 5])]
    for identity in (hash_benchmark, lambda part: part.name):
        assert len({identity(part) for part in [whole, *parts]}) == 4
    assert take_classes(whole, classes=list(range(10))) is whole is take_classes(whole)
    within = take_classes(parts[0], classes=["three", "four"])
    assert within.part_of == parts[0].part_of == "digits" and set(within.ids()) < set(parts[0].ids())


def test_two_classes_of_one_name_are_told_apart_by_number():
    images = make_dataset(6).cast_column("label", ClassLabel(names=["crane", "dog", "crane 2"]))
    whole = Benchmark("few", "test", images, ["crane", "dog", "crane"], "{}", ImageTransform())
    with pytest.raises(InputError, match="names 'Crane', as its classes 0 and 2 are called: give their numbers"):
        take_classes(whole, classes=["dog", "Crane"])
    first, second = take_classes(whole, classes=[0, 1]), take_classes(whole, classes=[1, 2])
    assert first.name != second.name and first.ids().tolist() == [0, 1, 3, 4] and second.ids().tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("text_labels", [False, True], ids=["numbers", "text"])
def test_a_stream_has_the_rows_of_what_is_downloaded(tmp_path, text_labels):
    dataset, settings = make_dataset(12), ""
    if text_labels:
        names = [CLASSES[label] for label in dataset["label"]]
        dataset = dataset.remove_columns("label").add_column("label", names)
        (tmp_path / "names.txt").write_text("\n".join(CLASSES))
        settings = f",class_names={tmp_path / 'names.txt'}"
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    text = f"few={tmp_path / 'data'}:classes=grey heron|cat,geometry=native{settings}"
    part, stream = load_benchmark(text, "train"), load_benchmark(text, "train", streaming=True)
    assert part.class_names == stream.class_names == ["cat", "grey heron"] and part.name == stream.name
    assert len(part) == 8 and [item["labels"] for item in stream] == part.dataset["label"][:]
    for item, other in zip(stream, part, strict=True):
        assert item["pixel_values"].equal(other["pixel_values"])
    whole = load_benchmark(text.replace("classes=grey heron|cat,", ""), "train", streaming=True)
    of_whole = {item["sample_ids"]: item["labels"] for item in whole}
    assert all(of_whole[item["sample_ids"]] == 2 * item["labels"] for item in stream)
    same_items(stream.take(3), list(stream)[:3])
    assert identify_stream(stream)[1] == []  # nothing that couldn't be told apart from another


def test_an_odd_label_of_a_stream_is_still_refused():
    rows = make_dataset(4).remove_columns("label").add_column("label", [0, 1, 57, -1])
    stream = StreamingBenchmark("few", "train", rows.to_iterable_dataset(), CLASSES, "{}", ImageTransform())
    with pytest.raises(InputError, match=r"Row 2 of few \(2 of 3 classes, ....\) \(train\) has label 57"):
        list(take_classes(stream, classes=[0, 1]))


def test_validation_images_are_held_out_of_the_part(tmp_path):
    (tmp_path / "classes.txt").write_text("one\nthree\n")
    train, validation = load_training_data(f"digits:classes={tmp_path / 'classes.txt'}", 20)
    whole = load_benchmark("digits", "train")
    assert len(validation) == 20 and validation.split == "validation" and validation.name == train.name
    ids = np.concatenate([train.ids(), validation.ids()])
    assert sorted(ids) == np.flatnonzero(np.isin(whole.dataset["label"][:], [1, 3])).tolist()


def test_a_folder_of_images_has_a_part_too(tmp_path):
    folder = save_images(tmp_path / "mine", ("train", "test"), ("cat", "dog", "grey heron"))
    part = load_benchmark(f"mine={folder}:without_classes=grey_heron")
    assert part.class_names == ["cat", "dog"] and len(part) == 4 and part.name.startswith("mine (2 of 3 classes, ")


def test_several_parts_of_a_set_are_loaded_beside_it_and_none_twice():
    texts = [
        "digits",
        "digits:classes=1|2",
        "digits:without_classes=1|2",
        "digits:classes=1|two",
        "digits:classes=x|1",
    ]
    loaded, missing = load_available([parse_benchmark(text) for text in (*texts[:3], texts[4])])
    assert [len(benchmark.class_names) for benchmark in loaded] == [10, 2, 8] and len(missing) == 1
    with pytest.raises(InputError, match=r"'digits \(2 of 10 classes, ....\)' is given twice"):
        load_available([parse_benchmark(text) for text in texts])


def test_records_have_the_classes_and_not_the_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("grey heron\n3\n")
    assert write_out_classes(f"digits:classes={file},split=test") == "digits:classes=grey heron|3,split=test"
    assert write_out_classes("digits:classes=1|2") == "digits:classes=1|2" and write_out_classes("all") == "all"
    assert (
        write_out_classes(f"few={tmp_path}:without_classes={file}") == f"few={tmp_path}:without_classes=grey heron|3"
    )


@pytest.mark.parametrize("name", ["a|b", "a,b=c"])
def test_a_name_that_no_text_can_hold_is_refused(tmp_path, name):
    (tmp_path / "classes.txt").write_text(f"{name}\ndog\n")
    with pytest.raises(InputError, match="can't stand in a text of settings.* give the numbers"):
        write_out_classes(f"digits:classes={tmp_path / 'classes.txt'}")


def test_cards_and_commands_say_the_part():
    name = load_benchmark("digits", classes=[1, 3]).name
    assert name_for_command(name) == "digits:classes=FILE" and name_for_command("digits") == "digits"
    assert name_for_command("mine (2 of 3 classes, 0a1b)") == "mine=PATH:classes=FILE"
    assert list_part(name, ["one", "three"]) == "the classes one, three" and list_part("digits", NAMES) == ""
    assert list_part(name, list(map(str, range(22)))).endswith("18, 19 and 2 more")


REFUSED = {
    "digits:classes=1|2,without_classes=3": "digits is given classes and without_classes: give one of them",
    "digits:classes=": "classes of digits names no class",
    "digits:classes=thre|one": "names 'thre', but it has no such class: did you mean three",
    "digits:classes=six.txt": "names 'six.txt', which is neither a file nor a class of it",
    "digits:without_classes=six.txt": "'six.txt', which is neither a file nor a class of it.*numbered from 0 to 9",
    "digits:classes=1|11": "names class 11, but they are numbered from 0 to 9",
    "digits:classes=-1|2": "names '-1', but it has no such class",
    "digits:classes=one|1|2": "names a class twice: 'one', '1'",
    "digits:classes=one||two": "names '', but it has no such class",
    "digits:classes=seven": "leaves one class, 'seven' of digits: keep at least two",
    "digits:without_classes=0|1|2|3|4|5|6|7|8|9": "leaves no class of digits",
    "all:classes=1|2": "all is sixteen benchmarks, where one is needed",
    "digits:clases=1|2": "sets 'clases'.* Did you mean classes",
    "few (6 of 10 classes, 12ab)=.": "is what a part of a dataset is called: give another name",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cant_be_meant_is_refused_in_a_line(text):
    with pytest.raises(InputError, match=REFUSED[text]) as refused:
        load_benchmark(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("classes", [3, {"one": 1, "two": 2}, [True, 2], [None, 2], [1.5, 2], [], [[1], 2]], ids=str)
def test_python_is_refused_likewise(classes):
    with pytest.raises(InputError, match="classes of digits"):
        load_benchmark("digits", classes=classes)


def test_classes_without_images_are_refused():
    images = make_dataset(6).filter(lambda row: row["label"] == 0)
    whole = Benchmark("few", "test", images, CLASSES, "{}", ImageTransform())
    with pytest.raises(InputError, match="few .test. has no images of the classes 'dog', 'grey heron'"):
        take_classes(whole, classes=["dog", "grey heron"])


def test_all_with_classes_in_python_is_refused():
    with pytest.raises(InputError, match="all takes its records as they are, but classes is given"):
        load_benchmark("all", classes=[1, 2])
