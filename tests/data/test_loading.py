"""Benchmarks: every record on a tiny copy in the Hub's layout, and datasets that have no record."""

import warnings
from runpy import run_path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers import CLASSES, ROOT, make_dataset, save_images
from hub_layouts import LAYOUTS, raw_names, write_repository
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from hpt import BENCHMARKS, InputError, ZeroShotClassifier, load_benchmark
from hpt.data.images import collate
from hpt.data.loading import load_available, load_training_data
from hpt.data.names import expand_all, name_benchmark, parse_benchmark
from hpt.data.records import SIXTEEN
from hpt.references import Reference


EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.filterwarnings("ignore:.* rows in .* instead of")


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# Records


def test_there_are_the_sixteen_benchmarks_and_the_embedded_one():
    expected = "tiny_imagenet cifar10 cifar100 stl10 imagenet caltech101 caltech256 sun397 oxford_pets flowers102 "
    expected += "fgvc_aircraft stanford_cars food101 eurosat dtd pcam"
    assert SIXTEEN == expected.split() and set(BENCHMARKS) == {"digits", *SIXTEEN} == {"digits", *LAYOUTS}
    for record in BENCHMARKS.values():
        assert "test" in record.splits and set(record.native_splits) == {"hpt", "pmg"}


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streaming"])
@pytest.mark.parametrize("name", SIXTEEN)
def test_every_record_reads_its_layout(tmp_path, name, streaming):
    """Columns, types, configuration and splits as on the Hub; a protocol of several splits gets all of their rows."""
    record = BENCHMARKS[name]
    folder = write_repository(tmp_path, name)
    benchmark = load_benchmark(name, path=folder, streaming=streaming)
    examples = list(benchmark) if streaming else [benchmark[row] for row in range(len(benchmark))]
    labels = [0, 1, 0] if name == "pcam" else [0, 1, 2]
    assert [example["labels"] for example in examples] == labels * len(record.splits["test"].split("+"))
    assert len({example["pixel_values"].numpy().tobytes() for example in examples}) == len(examples)
    assert benchmark.dataset.column_names == ["image", "label"]
    assert len(benchmark.class_names) == record.num_classes and benchmark.source is None
    native = name in ("cifar10", "cifar100", "stl10", "tiny_imagenet")
    side = 16 if native else 224
    assert examples[0]["pixel_values"].shape == (3, side, side) and examples[0]["pixel_values"].dtype == torch.uint8
    if not streaming:
        assert benchmark.attack_space == ("native" if native else "224")
        pmg = load_benchmark(name, path=folder, protocol="pmg")
        assert pmg.attack_space == ("native" if native and name != "tiny_imagenet" else "224")
        assert benchmark.mean_per_class == (name in ("caltech101", "oxford_pets", "flowers102", "fgvc_aircraft"))


def test_training_splits_are_read_and_tiny_imagenet_trains_at_224(tmp_path):
    folder = write_repository(tmp_path, "tiny_imagenet")
    assert load_benchmark(f"tiny_imagenet={folder}", "train")[0]["pixel_values"].shape == (3, 224, 224)
    assert load_benchmark(f"tiny_imagenet={folder}")[0]["pixel_values"].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "given", "cleaned"),
    [
        ("cifar100", "cra", "crab"),
        ("cifar100", "maple_tree", "maple tree"),
        ("imagenet", "tench, Tinca tinca", "tench"),
        ("imagenet", "crane2", "crane"),
        ("caltech256", "001.ak47", "ak47"),
        ("caltech256", "253.faces-easy-101", "faces easy"),
        ("sun397", "/b/boat_deck", "boat deck"),
        ("sun397", "/c/church/outdoor", "church outdoor"),
        ("oxford_pets", "american_bulldog", "american bulldog"),
        ("fgvc_aircraft", "707-320", "Boeing 707-320"),
        ("fgvc_aircraft", "A300B4", "A300B4"),
        ("stanford_cars", "AM General Hummer SUV 2000", "AM General Hummer SUV"),
        ("food101", "apple_pie", "apple pie"),
        ("eurosat", "AnnualCrop", "annual crop"),
        ("eurosat", "SeaLake", "sea lake"),
        ("dtd", "polka-dotted", "polka-dotted"),
        ("tiny_imagenet", "n13001041", "mushroom"),  # one of the Hub copy's 18 wrong ids
        ("tiny_imagenet", "n08742578", "Chihuahua"),
    ],
)
def test_names_are_cleaned_by_rule(name, given, cleaned):
    assert BENCHMARKS[name].clean_name(given) == cleaned


def test_tiny_imagenet_wnids_are_mended_to_200_classes():
    names = raw_names("tiny_imagenet")
    assert len(set(names)) == len({BENCHMARKS["tiny_imagenet"].clean_name(name) for name in names}) == 200


def test_pcam_has_boolean_labels_and_takes_its_names_from_the_record(tmp_path):
    benchmark = load_benchmark("pcam", path=write_repository(tmp_path, "pcam"))
    assert benchmark.dataset["label"][:] == [0, 1, 0]
    assert benchmark.class_names == ["lymph node", "lymph node containing metastatic tumor tissue"]


def test_duplicate_names_are_both_kept_with_a_warning(tmp_path, classifier):
    """ImageNet's bird and machine are both called crane, which the Hub tells apart by "crane2"."""
    folder = write_repository(tmp_path, "imagenet")
    with pytest.warns(UserWarning, match=r"more than once, which no prompt can tell apart: \['crane'\]"):
        benchmark = load_benchmark("imagenet", path=folder)
    assert benchmark.class_names[3:5] == ["crane", "crane"] and len(benchmark.class_names) == 1000
    few = benchmark.class_names[2:6]
    with pytest.warns(UserWarning, match="crane"):
        prompts = ZeroShotClassifier(classifier.model, classifier.processor, few).text_embeds()
    assert len(prompts) == 4 and torch.equal(prompts[1], prompts[2])


def test_names_longer_than_the_text_tower_are_cut_with_a_warning(classifier):
    names = ["cat", "a " + "very " * 20 + "long dog"]
    with pytest.warns(
        UserWarning, match="1 of 2 class prompts are longer than the text tower's 77 tokens and are cut"
    ):
        ZeroShotClassifier(classifier.model, classifier.processor, names).text_embeds()


@pytest.mark.parametrize(
    ("name", "of_split", "message"),
    [
        ("cifar10", {"class_names": [f"class_{i}" for i in range(11)]}, "has 11 classes, but cifar10 has 10"),
        ("cifar100", {"class_names": ["cat"]}, "has 1 classes, but cifar100 has 100"),
        ("stl10", {"rows": 0}, r"The split 'test' of .* has no rows"),
    ],
)
def test_upstream_changes_are_refused(tmp_path, name, of_split, message):
    folder = write_repository(tmp_path, name, **of_split)
    with pytest.raises(InputError, match=message):
        load_benchmark(name, path=folder)


def test_a_records_only_split_is_never_taken_for_another(tmp_path):
    folder = write_repository(tmp_path, "dtd", splits=("train",))
    with pytest.raises(InputError, match="has no split 'test'; it has: train"):
        load_benchmark("dtd", path=folder)


def test_the_records_configuration_is_taken(tmp_path):
    """Of a copy with several, the first of which would be the default."""
    right = write_repository(tmp_path / "right", "cifar100", splits=("test",))
    other = tmp_path / "right" / "other"
    other.mkdir()
    make_dataset(5).to_parquet(other / "test-00000-of-00001.parquet")
    card = "configs:\n- {config_name: other, default: true, data_files: other/test-*}\n"
    card += "- {config_name: cifar100, data_files: [{split: test, path: cifar100/test-*}]}\n"
    (tmp_path / "right" / "README.md").write_text(f"---\n{card}---\n")
    assert len(load_benchmark("cifar100", path=right)) == 3


def test_streams_check_what_they_give(tmp_path):
    stream = load_benchmark("pcam", path=write_repository(tmp_path, "pcam"), streaming=True)
    assert [type(example["labels"]) for example in stream] == [int] * 3
    dataset = make_dataset(3).cast_column("label", Value("int64"))
    dataset.to_parquet(tmp_path / "set.parquet")
    settings = {"class_names": ["cat", "dog"], "geometry": "native"}
    streamed = load_benchmark(str(tmp_path / "set.parquet"), streaming=True, **settings)
    with pytest.raises(InputError, match=r"Row 2 of set \(train\) has label 2, but labels go from 0 to 1"):
        list(streamed)
    with pytest.raises(InputError, match=r"Row 2 of set \(train\) has label 2, but labels go from 0 to 1"):
        streamed.take(3)
    make_dataset(3).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(InputError, match="aren't among the 2 class names 'cat', 'dog': 'grey heron'"):
        load_benchmark(str(tmp_path / "set.parquet"), streaming=True, class_names=["cat", "dog"])


def test_renamed_columns_and_splits_are_refused_with_what_was_found(tmp_path):
    folder = write_repository(tmp_path, "cifar10", splits=("train", "eval"))
    with pytest.raises(InputError, match="has no split 'test'; it has: train, eval"):
        load_benchmark("cifar10", path=folder)
    with pytest.raises(
        InputError, match=r"has columns \['img', 'label'\], .*, but is expected to have \['fine_label'\]"
    ):
        load_benchmark("cifar100", "train", path=folder)


def test_an_unlabelled_split_is_refused(tmp_path):
    features = Features({"img": datasets.Image(), "label": ClassLabel(names=raw_names("cifar10"))})
    image = Image.new("RGB", (8, 8))
    (tmp_path / "data").mkdir()
    unlabelled = Dataset.from_dict({"img": [image, image], "label": [0, -1]}, features=features)
    unlabelled.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"Row 1 of cifar10 \(test\) has label -1.* \(-1 marks an unlabelled split\)"):
        load_benchmark("cifar10", path=str(tmp_path))
    with pytest.raises(InputError, match=r"Row 1 of cifar10 \(test\) has label -1"):
        list(load_benchmark("cifar10", path=str(tmp_path), streaming=True))


def test_fewer_rows_than_published_are_said(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_benchmark("dtd", path=write_repository(tmp_path, "dtd"))
    messages = [str(warning.message) for warning in caught]
    assert any("dtd has 3 rows in" in message and "instead of 1880" in message for message in messages)


def test_the_table_of_the_records_is_read_back(tmp_path, monkeypatch, capsys):
    for name in SIXTEEN:
        if name != "dtd":
            write_repository(tmp_path / name, name)
    monkeypatch.setattr("sys.argv", ["list_benchmarks.py", f"all={tmp_path}"])
    with pytest.raises(SystemExit, match="1"):  # one is missing
        run_path(str(EXAMPLES / "list_benchmarks.py"))["main"]()
    printed = capsys.readouterr().out
    table = {
        cells[0]: cells
        for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.split("\n") if "|" in line)
    }
    assert list(table)[2:] == [name for name in SIXTEEN if name != "dtd"]
    licence = "ImageNet's terms of access"
    assert table["imagenet"][1:7] == ["ILSVRC/imagenet-1k, gated", "validation", "3 of 50000", "1000", "224", licence]
    assert table["tiny_imagenet"][5] == "own size, 224" and table["cifar10"][5] == "own size"
    prompts = "This is a photo of a ak47; This is a photo of a american flag; This is a photo of a backpack"
    assert table["caltech256"][7] == prompts
    assert "- Missing: There is no folder or file" in printed and "- sun397: One image fewer" in printed


# Any other dataset


def test_a_folder_of_images_in_one_line(tmp_path):
    benchmark = load_benchmark(str(save_images(tmp_path / "pets")))
    assert (benchmark.name, benchmark.split, benchmark.class_names) == ("pets", "train", ["cat", "dog"])
    assert benchmark.dataset["label"][:] == [0, 0, 1, 1]
    native = load_benchmark(f"small={tmp_path / 'pets'}:native_resolution=true,template=a {{}} here")
    assert native[0]["pixel_values"].shape == (3, 16, 20) and native.attack_space == "native"
    assert (native.name, native.template) == ("small", "a {} here")
    streamed = list(load_benchmark(f"{tmp_path / 'pets'}:geometry=native", streaming=True))
    assert [example["labels"] for example in streamed] == [0, 0, 1, 1]


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streaming"])
def test_without_a_record_images_come_as_the_models_own_processor_has_them(tmp_path, streaming):
    folder = str(save_images(tmp_path / "pets"))
    benchmark = load_benchmark(folder, streaming=streaming)
    for unknown in (lambda: next(iter(benchmark)), lambda: benchmark.attack_space):
        with pytest.raises(
            InputError, match=r"pets \(train\) has no geometry of its own.*for_model\(processor.image_p"
        ):
            unknown()
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    seen = benchmark.for_model(processor)
    expected = processor(Image.open(tmp_path / "pets/train/cat/1.png"), do_normalize=False, do_rescale=False)
    assert np.array_equal([*seen][1]["pixel_values"], expected["pixel_values"][0]) and seen.attack_space == "8x8"
    assert seen.for_model(CLIPImageProcessorPil()) is seen
    papers = load_benchmark(f"{folder}:geometry=256-224", streaming=streaming)
    assert next(iter(papers))["pixel_values"].shape == (3, 224, 224) and papers.attack_space == "224"
    assert papers.for_model(processor) is papers
    assert load_benchmark(folder, geometry="256-224", streaming=streaming).transform == papers.transform


def test_images_that_are_smaller_than_the_model_are_said(tmp_path):
    benchmark = load_benchmark(str(save_images(tmp_path / "pets")))
    with pytest.warns(
        UserWarning, match=r"pets \(train\) has images of 16 pixels, which are enlarged to the model's 224"
    ):
        benchmark.for_model(CLIPImageProcessorPil())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark.for_model(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}))


@pytest.mark.parametrize("settings", [{"geometry": "256-224"}, {"geometry": "native"}], ids=str)
def test_a_records_geometry_cannot_be_changed(settings):
    with pytest.raises(InputError, match="digits has a record, which says its geometry: call the dataset by another"):
        load_benchmark("digits", **settings)


def test_the_right_split_is_taken_and_never_a_training_split_for_another(tmp_path):
    folder = str(save_images(tmp_path / "pets", splits=("train", "validation")))
    assert load_benchmark(f"{folder}:split=validation").split == "validation"
    assert load_benchmark(folder, "train").split == "train"
    with pytest.raises(InputError, match="pets has no split 'test'; it has: train, validation"):
        load_benchmark(folder)
    only = str(save_images(tmp_path / "only"))
    for split in ("validation", "dev"):
        with pytest.raises(InputError, match=f"has no split '{split}'; it has: train"):
            load_benchmark(only, split)


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streaming"])
def test_a_folders_classes_are_those_of_all_its_splits(tmp_path, streaming):
    save_images(tmp_path / "pets", ("train",), ("bird", "cat", "dog"))
    folder = str(save_images(tmp_path / "pets", ("test",), ("cat", "dog")))
    test = load_benchmark(folder, streaming=streaming, geometry="native")
    assert test.class_names == ["bird", "cat", "dog"] and [example["labels"] for example in test] == [1, 1, 2, 2]
    assert test.split == "test"


def test_text_labels_of_one_split_of_several_need_names(tmp_path):
    for split, labels in (("train", ["bird", "cat", "dog"]), ("test", ["dog", "cat"])):
        dataset = make_dataset(len(labels)).remove_columns("label").add_column("label", labels)
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(tmp_path / "set" / "data" / f"{split}.parquet")
    with pytest.raises(InputError, match="are text, and its other splits may have more of them: give class_names"):
        load_benchmark(str(tmp_path / "set"))
    assert load_benchmark(str(tmp_path / "set"), class_names=["bird", "cat", "dog"]).dataset["label"][:] == [2, 1]


def test_training_data_comes_with_a_validation_set_where_there_is_one(tmp_path):
    both = str(save_images(tmp_path / "both", ("train", "validation")))
    train, validation = load_training_data(both)
    assert (train.split, validation.split) == ("train", "validation")
    assert load_training_data(str(save_images(tmp_path / "only")))[1] is None
    assert load_training_data(f"{both}:split=validation")[1] is None
    assert [benchmark.split for benchmark in load_training_data("digits")] == ["train", "validation"]
    train, held_out = load_training_data("digits", validation_size=100)
    assert (len(train), len(held_out)) == (977, 100) and not set(train.ids()) & set(held_out.ids())
    with pytest.raises(InputError, match="all is sixteen benchmarks"):
        load_training_data("all")


@pytest.fixture
def parquet(tmp_path):
    def write(label, values, image="photo", **more):
        dataset = make_dataset(len(values)).select_columns("image").rename_column("image", image)
        for name, column in ({"label": values} if label is None else {label: values} | more).items():
            dataset = dataset.add_column(name, column)
        dataset.to_parquet(tmp_path / "set.parquet")
        return str(tmp_path / "set.parquet")

    return write


def test_a_parquet_file_with_numbers_takes_names_that_are_given(parquet, tmp_path):
    file = parquet("species", [0, 1, 2])
    (tmp_path / "names.txt").write_text("cat\ndog \ngrey heron\n\n", encoding="utf-8-sig")
    text = f"birds={file}:label_column=species,class_names={tmp_path / 'names.txt'}"
    for benchmark in (load_benchmark(text), load_benchmark(file, label_column="species", class_names=CLASSES)):
        assert benchmark.class_names == CLASSES and benchmark.dataset["label"][:] == [0, 1, 2]
    assert load_benchmark(text).name == "birds"


def test_labels_that_are_text_are_the_names(parquet):
    benchmark = load_benchmark(parquet("label", ["dog", "cat", "dog"]))
    assert benchmark.class_names == ["cat", "dog"] and benchmark.dataset["label"][:] == [1, 0, 1]
    ordered = load_benchmark(parquet("label", ["dog", "cat"]), class_names=["dog", "cat"])
    assert ordered.dataset["label"][:] == [0, 1]


def test_images_stored_as_plain_bytes_are_read(tmp_path):
    encoded = make_dataset(2).cast_column("image", datasets.Image(decode=False))
    plain = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("int64")})
    Dataset.from_list(list(encoded), features=plain).to_parquet(tmp_path / "plain.parquet")
    benchmark = load_benchmark(str(tmp_path / "plain.parquet"), class_names=CLASSES, native_resolution=True)
    assert torch.equal(benchmark[1]["pixel_values"], load_benchmark_of(make_dataset(2), tmp_path)[1]["pixel_values"])


def load_benchmark_of(dataset, tmp_path):
    dataset.to_parquet(tmp_path / "again.parquet")
    return load_benchmark(str(tmp_path / "again.parquet"), native_resolution=True)


@pytest.mark.parametrize(
    ("label", "values", "arguments", "message"),
    [
        ("label", [0, 1], {}, "labels of .* are int64 and name no classes: give class_names"),
        ("label", [0.5, 1.0], {}, "labels of .* are float64, but must be integers or text"),
        ("label", ["a", "b"], {"class_names": ["a"]}, "has classes that aren't among the 1 class names 'a': 'b'"),
        ("label", ["a", "b"], {"streaming": True}, "are text, which a stream doesn't gather: give class_names"),
        ("label", [0, 2], {"class_names": ["a", "b"]}, "Row 1 of set .* has label 2, but labels go from 0 to 1"),
        (
            "species",
            [0, 1],
            {},
            r"has columns \['photo', 'species'\], \['photo'\] of them with images and none with class names, but is "
            r"expected to have \['label'\]: say which by image_column and label_column",
        ),
        ("label", [0, 1], {"template": "no place"}, "template 'no place' must have one {} where the class name goes"),
        ("species", [0, 1], {"label_column": "kind"}, r"but is expected to have \['kind'\]"),
        ("label", [0, 1], {"image_column": "label"}, "column 'label' holds .*, but must hold images"),
        ("label", [0, 1], {"class_names": "no-such.txt"}, "no file 'no-such.txt' with class names"),
    ],
)
def test_what_cannot_be_meant_is_said(parquet, label, values, arguments, message):
    with pytest.raises(InputError, match=message):
        load_benchmark(parquet(label, values), **arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar10", ("cifar10", None, None, {})),
        ("cifar10:template=a {}", ("cifar10", None, None, {"template": "a {}"})),
        ("cifar10=data/c", ("cifar10", "data/c", None, {})),
        ("owner/birds@v2", ("birds", "owner/birds", "v2", {})),
        ("o/birds@refs/convert/parquet", ("birds", "o/birds", "refs/convert/parquet", {})),
        ("b=o/birds:split=val,label_column=kind", ("b", "o/birds", None, {"split": "val", "label_column": "kind"})),
        ("o/birds:split=val", ("birds", "o/birds", None, {"split": "val"})),
        (
            "b=o/birds:template=a {}: a, bird,split=val",
            ("b", "o/birds", None, {"template": "a {}: a, bird", "split": "val"}),
        ),
    ],
)
def test_texts_name_benchmarks(text, expected):
    benchmark = parse_benchmark(text)
    assert (benchmark.name, benchmark.source, benchmark.revision, benchmark.settings) == expected
    assert str(benchmark) == text and name_benchmark(benchmark) == benchmark


def test_a_reference_loads_what_its_text_does(tmp_path):
    text = f"{save_images(tmp_path / 'pets', ('train', 'validation'))}:native_resolution=true"
    for reference in (Reference.parse(text), parse_benchmark(text)):
        loaded, (train, validation) = load_benchmark(reference, "train"), load_training_data(reference)
        assert (loaded.name, loaded.split, loaded.attack_space) == ("pets", "train", "native")
        assert (train.split, validation.split) == ("train", "validation")
    assert load_benchmark(Reference("digits")).name == load_benchmark(Reference.parse("digits")).name == "digits"
    with pytest.raises(InputError, match="There is no folder 'nowhere' with copies of the benchmarks"):
        load_benchmark(Reference.parse("all=nowhere"))


def test_a_record_goes_by_its_name_whatever_folders_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "digits")
    (tmp_path / "all").mkdir()
    assert parse_benchmark("digits") == Reference("digits")
    assert parse_benchmark("digits=digits") == Reference("digits", "digits")
    assert len(expand_all(["all"])) == 16
    assert load_benchmark(f"{save_images(tmp_path / 'in' / 'all')}").name == "all"


def test_all_stands_for_the_sixteen():
    with pytest.raises(InputError, match="all takes its records as they are, but template is given"):
        load_benchmark("all", template="a {}")
    assert expand_all(["digits", "all"]) == [Reference(name) for name in ("digits", *SIXTEEN)]
    assert expand_all(["all=copies"])[1] == Reference("cifar10", "copies/cifar10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet-v9", "Unknown benchmark 'imagenet-v9'; known: digits, tiny_imagenet, cifar10, cifar100"),
        ("cifar1O", "digits, .*, all. Did you mean cifar10\\? Give any other dataset by its Hub id OWNER/NAME"),
        ("all:split=train", "all is sixteen benchmarks, where one is needed: tiny_imagenet, cifar10"),
        ("o/birds:splits=val", "sets 'splits'; known: split, config, image_column"),
        ("o/birds:native_resolution=1", "native_resolution, which must be true or false"),
        ("o/birds:geometry=224", "geometry '224'.*known: native, 256-224"),
        ("o/birds:geometry=256-224,native_resolution=true", "geometry is '256-224', but native_resolution is set"),
        (
            "cifar10:label_column=kind",
            "cifar10 has a record, which says its label_column: call the dataset by another",
        ),
        ("cifar10=no/such/folder", "no folder or file 'no/such/folder', and it is no Hub id"),
        (
            "uoft-cs/cifar10",
            "'uoft-cs/cifar10' may be the benchmark cifar10 or another dataset: write cifar10=uoft-cs",
        ),
        ("zh-plus/tiny-imagenet", "may be the benchmark tiny_imagenet or another dataset"),
        ("all=nowhere", "There is no folder 'nowhere' with copies of the benchmarks"),
        ("", "A dataset's path is empty: give a folder"),
        ("q=", "'q=' must be NAME=PATH, with a name without /"),
        ("my/own=somewhere", "'my/own=somewhere' must be NAME=PATH, with a name without /"),
        ("digits=owner/digits", "digits is embedded in its library"),
    ],
)
def test_texts_that_name_nothing_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        load_benchmark(text)


# Iterating


def test_a_batch_is_read_at_once_and_keeps_ids(tmp_path):
    benchmark = load_benchmark("cifar10", path=write_repository(tmp_path, "cifar10", rows=20))
    few = benchmark.rows(np.array([7, 3, 11]))
    assert [example["sample_ids"] for example in few.__getitems__([2, 0])] == [11, 7]
    (batch,) = DataLoader(few, 3, collate_fn=collate, num_workers=1)
    single = [few[row] for row in range(3)]
    assert batch["sample_ids"].tolist() == [example["sample_ids"] for example in single] == [7, 3, 11]
    assert torch.equal(batch["pixel_values"], torch.stack([example["pixel_values"] for example in single]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_gives_the_same_images_for_any_number_of_workers(tmp_path, num_workers):
    folder = write_repository(tmp_path, "eurosat", rows=5)
    streamed, loaded = (load_benchmark("eurosat", path=folder, streaming=mode) for mode in (True, False))
    batches = list(DataLoader(streamed, 4, collate_fn=collate, num_workers=num_workers))
    pixels, ids = (torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "sample_ids"))
    expected = {loaded[row]["pixel_values"].numpy().tobytes() for row in range(15)}
    assert len(pixels) == 15 and {image.numpy().tobytes() for image in pixels} == expected
    assert sorted(ids.tolist()) == sorted(example["sample_ids"] for example in streamed)
    assert len(set(ids.tolist())) == 15


def test_rows_taken_from_a_stream_are_a_benchmark(tmp_path):
    folder = write_repository(tmp_path, "food101", rows=7)
    taken = load_benchmark("food101", path=folder, streaming=True).take(4)
    loaded = load_benchmark("food101", path=folder).rows(np.arange(4))
    assert (len(taken), taken.class_names, taken.split) == (4, loaded.class_names, "test")
    streamed = load_benchmark("food101", path=folder, streaming=True)
    assert [taken[row]["sample_ids"] for row in range(4)] == [example["sample_ids"] for example in streamed][:4]
    with pytest.raises(InputError, match=r"Can't take 0 rows of food101 \(test\): give at least 1"):
        streamed.take(0)
    assert all(torch.equal(taken[row]["pixel_values"], loaded[row]["pixel_values"]) for row in range(4))


@pytest.mark.parametrize("content", [b"not an image", b"P6\n8 x\n255\n" + bytes(192), None])
def test_a_first_image_that_cannot_be_used_leaves_out_its_set_alone(tmp_path, content):
    whole = make_dataset(6)
    images = list(whole.cast_column("image", datasets.Image(decode=False))["image"])
    images[0] = content and {"bytes": content, "path": None}
    broken = Dataset.from_dict({"image": images, "label": whole["label"][:]}, features=whole.features)
    for name, dataset in (("broken", broken), ("whole", whole)):
        dataset.to_parquet(tmp_path / f"{name}.parquet")
    references = [parse_benchmark(str(tmp_path / f"{name}.parquet")) for name in ("broken", "whole")]
    benchmarks, missing = load_available(references)
    assert [benchmark.name for benchmark in benchmarks] == ["whole"]
    assert list(missing) == ["broken"] and missing["broken"].startswith("The image in row 0 of broken")
