"""A part of a dataset's samples: which it has, what it is called, and what is refused."""

import numpy as np
import pytest
from helpers import CLASSES, ROOT, make_dataset

from hpt import InputError, load_benchmark
from hpt.data.benchmark import Benchmark
from hpt.data.class_subsets import take_classes
from hpt.data.classes import wordnet_names
from hpt.data.geometry import ImageTransform
from hpt.data.loading import load_available, load_training_data
from hpt.data.names import as_recorded, call_before_loading, parse_benchmark
from hpt.data.sample_subsets import take_samples, with_all_samples
from hpt.data.subsets import SUBSET_NAME, list_part, name_for_command, name_part
from hpt.evaluation.row_settings import hash_benchmark
from hpt.references import Reference


IDS = [2, 3, 5, 7, 11, 13, 250]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("# A few digits\n" + "\n".join(map(str, reversed(IDS))) + "\n\n# the end\n")
    return path


def same_items(first, second):
    for one, other in zip(first, second, strict=True):
        assert one["labels"] == other["labels"] and one["sample_ids"] == other["sample_ids"]
        assert one["pixel_values"].equal(other["pixel_values"])


def test_it_is_the_rows_with_these_numbers_or_all_others(file):
    whole = load_benchmark("digits")
    part, others = load_benchmark(f"digits:samples={file}"), load_benchmark(f"digits:without_samples={file}")
    assert part.ids().tolist() == IDS and part.class_names == others.class_names == whole.class_names
    same_items(part, [whole[row] for row in IDS])
    assert sorted([*IDS, *others.ids()]) == list(range(len(whole)))
    same_items(others.subset(20), [whole[int(row)] for row in others.subset(20).ids()])


def test_text_python_and_another_order_name_the_same(tmp_path, file):
    whole = load_benchmark("digits")
    rest = [row for row in range(len(whole)) if row not in IDS]
    given = [{"samples": str(file)}, {"samples": IDS}, {"samples": np.array(IDS)}, {"without_samples": rest}]
    parts = [load_benchmark("digits", **settings) for settings in given] + [load_benchmark(f"digits:samples={file}")]
    assert len({part.name for part in parts}) == len({hash_benchmark(part) for part in parts}) == 1
    name = parts[0].name
    assert name.startswith(f"digits (7 of {len(whole)} samples, ") and SUBSET_NAME.fullmatch(name)
    assert parts[0].part_of == "digits" and take_samples(whole, samples=range(len(whole))) is whole


def test_other_samples_are_another_set():
    whole = load_benchmark("digits")
    parts = [whole, *(take_samples(whole, samples=ids) for ids in ([1, 2], [1, 3])), take_samples(whole, None, [1, 2])]
    for identity in (hash_benchmark, lambda part: part.name):
        assert len({identity(part) for part in parts}) == 4


def test_classes_and_samples_together_are_the_samples_of_these_classes(file):
    whole = load_benchmark("digits")
    both = load_benchmark(f"digits:classes=two|three|five,samples={file}")
    rows = [row for row in IDS if whole.dataset["label"][row] in (2, 3, 5)]
    assert both.ids().tolist() == rows and 0 < len(rows) < len(IDS)
    classes = take_classes(whole, classes=[2, 3, 5])
    same_items(both, [item for item in classes if item["sample_ids"] in rows])
    assert both.name.startswith(f"{classes.name} ({len(rows)} of {len(classes)} samples, ")
    assert both.part_of == "digits" and name_for_command(both.name) == "digits:classes=FILE,samples=FILE"
    assert list_part(both.name, both.class_names) == "the classes two, three, five"
    within = take_classes(take_samples(whole, samples=IDS), classes=[2, 3, 5])
    assert within.ids().tolist() == rows and name_for_command(within.name) == "digits:samples=FILE,classes=FILE"


def test_cards_and_commands_say_the_part(file):
    name = load_benchmark(f"digits:samples={file}").name
    assert name_for_command(name) == "digits:samples=FILE" and list_part(name, CLASSES) == ""
    assert name_for_command("mine (2 of 3 samples, 0a1b)") == "mine=PATH:samples=FILE"


def test_a_part_and_the_rest_are_evaluated_beside_each_other_and_none_twice(tmp_path, file):
    texts = ["digits", f"digits:samples={file}", f"digits:without_samples={file}"]
    references = [parse_benchmark(text) for text in texts]
    assert len({call_before_loading(reference) for reference in references}) == 3
    loaded, missing = load_available(references)
    assert [len(part) for part in loaded] == [len(loaded[0]), 7, len(loaded[0]) - 7] and not missing
    with pytest.raises(InputError, match=r"'digits \(7 of \d+ samples, ....\)' is given twice"):
        rest = tmp_path / "rest.txt"
        rest.write_text("\n".join(map(str, loaded[2].ids())))
        load_available([references[1], parse_benchmark(f"digits:without_samples={rest}")])


def test_validation_images_are_held_out_of_the_part_or_a_split_of_their_own(tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("\n".join(map(str, range(0, 300, 2))))
    train, validation = load_training_data(f"digits:samples={file}", 20)
    assert sorted([*train.ids(), *validation.ids()]) == list(range(0, 300, 2)) and train.name == validation.name
    for split in ("train", "validation"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        make_dataset(12 if split == "train" else 6).to_parquet(tmp_path / "mine" / f"{split}-00000-of-00001.parquet")
    file.write_text("0\n4\n11\n")
    train, validation = load_training_data(f"mine={tmp_path / 'mine'}:samples={file}")
    assert train.ids().tolist() == [0, 4, 11] and (validation.name, len(validation)) == ("mine", 6)
    assert with_all_samples(f"digits:samples={file},split=train") == "digits:split=train"
    assert with_all_samples("~/mine") == "~/mine"


def test_images_without_labels_have_a_part_too(tmp_path):
    make_dataset(6).remove_columns("label").to_parquet(tmp_path / "images.parquet")
    images = load_benchmark(f"mine={tmp_path / 'images.parquet'}", "train", labelled=False, samples=[1, 4])
    assert not images.has_labels and images.ids().tolist() == [1, 4] and len(images.rows([0])) == 1


# What records keep


def test_records_pin_what_the_file_holds(tmp_path, file, monkeypatch):
    text = f"digits:classes=2|3|5,samples={file},split=test"
    recorded = as_recorded(text)
    assert recorded.startswith(f"digits:classes=2|3|5,samples={file}@") and recorded.endswith(",split=test")
    assert as_recorded(recorded) == recorded and as_recorded("all") == "all"
    assert load_benchmark(recorded).ids().tolist() == load_benchmark(text).ids().tolist()
    monkeypatch.chdir(tmp_path.parent)
    for place in (str(file), f"{tmp_path.name}/few.txt"):
        local = Reference.parse(as_recorded(f"digits:samples={place}")).without_local_paths()
        assert tmp_path.name not in local and local.startswith("digits:samples=PATH/few.txt@")
    file.write_text("# Other comments\n" + "\n".join(map(str, IDS)))
    assert as_recorded(text) == recorded
    file.write_text("1\n2\n")
    assert as_recorded(text) != recorded
    with pytest.raises(InputError, match=r"few.txt has other samples, [0-9a-f]{8}, than those that .*few.txt@"):
        load_benchmark(recorded)
    other = tmp_path / "few.txt@0123abcd"
    other.write_text("8\n")
    assert load_benchmark(f"digits:samples={other}").ids().tolist() == [8]


# What is refused


def test_a_stream_has_no_numbers(file):
    with pytest.raises(InputError, match="samples of digits is given, but the rows of a stream have no numbers"):
        load_benchmark(f"digits:samples={file}", "train", streaming=True)


FILES = {
    "no number": ("1\n2 # two\n", "file names '2 # two' where the number of a sample must stand, counted from 0"),
    "negative": ("1\n-2\n", "file names '-2' where the number of a sample must stand"),
    "fraction": ("1.0\n", "file names '1.0' where the number of a sample must stand"),
    "twice": ("3\n1\n03\n", "file names sample 3 twice"),
    "beyond": (
        "1\n99999\n",
        r"samples of digits names sample 99999, which digits \(test\) hasn't: its \d+ samples are",
    ),
    "huge": (f"{10**40}\n", "names sample 1000000"),
    "empty": ("# nothing\n\n", "file names no sample"),
}


@pytest.mark.parametrize("setting", ["samples", "without_samples"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_something_else_is_refused_in_a_line(tmp_path, monkeypatch, kind, setting):
    monkeypatch.chdir(tmp_path)
    content, message = FILES[kind]
    (tmp_path / "file").write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        load_benchmark(f"digits:{setting}=file")
    assert "\n" not in str(refused.value)


def test_what_cant_be_meant_is_refused_before_anything_is_read(tmp_path, file):
    with pytest.raises(InputError, match="There is no file 'none.txt', which without_samples of digits names"):
        parse_benchmark("digits:without_samples=none.txt")
    with pytest.raises(InputError, match="digits is given samples and without_samples: give one of them"):
        parse_benchmark(f"digits:samples={file},without_samples={file}")
    with pytest.raises(InputError, match=r"'few \(6 of 10 samples, 12ab\)' is what a part of a dataset is called"):
        parse_benchmark("few (6 of 10 samples, 12ab)=.")
    with pytest.raises(InputError, match="all takes its records as they are, but samples is given"):
        load_benchmark("all", samples=np.array([1, 2]))


def test_nothing_left_is_refused(tmp_path):
    whole = Benchmark("few", "test", make_dataset(6), CLASSES, "{}", ImageTransform())
    with pytest.raises(InputError, match=r"without_samples leaves no sample of few \(test\)"):
        take_samples(whole, without_samples=range(6))
    file = tmp_path / "few.txt"
    file.write_text("0\n")
    zero = load_benchmark("digits").dataset["label"][0]
    with pytest.raises(InputError, match=r"samples leaves no sample of digits \(2 of 10 classes, ....\) \(test\)"):
        load_benchmark(f"digits:classes={(zero + 1) % 10}|{(zero + 2) % 10},samples={file}")


@pytest.mark.parametrize("samples", [3, {1: 2}, [True], [None], [1.5], [], [[1]], [-1], [1, 1]], ids=str)
def test_python_is_refused_likewise(samples):
    with pytest.raises(InputError, match="samples of digits"):
        load_benchmark("digits", samples=samples)


# The study's files


def listed(name):
    lines = (ROOT / "recipes" / "study" / name).read_text().splitlines()
    head = "\n".join(line for line in lines if line.startswith("#"))
    return head, [int(line) for line in lines if not line.startswith("#")]


def draw(head, **given):
    """What the code draws that ends the head of a list."""
    exec(head.rpartition(" by:\n#\n")[2].replace("#     ", ""), given)
    return given


def test_the_pretraining_half_of_caltech101_is_drawn_as_its_head_says():
    """Of a stand-in, whose labels have another order, the head's code draws ten rows of each class."""
    head, rows = listed("caltech101_pretraining.txt")
    assert len(rows) == len(set(rows)) == 1010 and rows == sorted(rows) and 0 <= rows[0] and rows[-1] < 2020
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(101), 20))
    assert np.bincount(labels[draw(head, labels=labels)["rows"]]).tolist() == [10] * 101
    assert name_part("caltech101", 1010, 2020, "samples", [rows, 2020]) in head


def test_the_tuned_half_of_tiny_imagenet_names_its_classes():
    head, numbers = listed("tiny_imagenet_tuned.txt")
    assert numbers == draw(head)["numbers"] and len(set(numbers)) == 100
    names = [name for _, name in sorted(wordnet_names("tiny_imagenet").items())]
    images = make_dataset(200).remove_columns("label").add_column("label", list(range(200)))
    whole = Benchmark("tiny_imagenet", "test", images, names, "{}", ImageTransform())
    file = str(ROOT / "recipes" / "study" / "tiny_imagenet_tuned.txt")
    tuned, others = take_classes(whole, classes=file), take_classes(whole, without_classes=file)
    assert tuned.ids().tolist() == numbers and tuned.name in head
    assert sorted([*tuned.ids(), *others.ids()]) == list(range(200))
