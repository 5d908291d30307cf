"""Where images come from besides the Hub: folders in every layout, archives, shards, tables; and what is refused."""

import tarfile
import zipfile

import datasets
import pytest
import torch
from helpers import CLASSES, make_dataset, save_images
from hub_layouts import WNIDS, write_repository, write_shard, write_shards
from PIL import Image

from hpt import InputError, load_benchmark
from hpt.data.loading import load_training_data
from hpt.data.names import expand_all


pytestmark = [
    pytest.mark.filterwarnings("ignore:.* has images of 8 pixels"),
    pytest.mark.filterwarnings("ignore:.* rows in .* instead of"),
]


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save(root, *paths):
    """An image of its own under each path, or an empty file where its name doesn't end in .png."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch() if not path.endswith(".png") else save_image(root / path, number)
    return str(root)


def save_image(file, number: int):
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")


def numbers(benchmark) -> list[int]:
    """Which of the images of [`save`] these are."""
    return [item["pixel_values"][0, 0, 0].item() for item in benchmark]


def names(benchmark) -> list[str]:
    return [benchmark.class_names[item["labels"]] for item in benchmark]


@pytest.fixture(params=[False, True], ids=["downloaded", "streaming"])
def load(request):
    """Loads images as they are: all at once or as a stream."""

    def load(source, split="test", **settings):
        loaded = load_benchmark(
            f"set={source}", split, streaming=request.param, **{"native_resolution": True} | settings
        )
        assert loaded.dataset.column_names == ["image", "label"]
        return loaded if request.param else [loaded[row] for row in range(len(loaded))] and loaded

    return load


# Folders


@pytest.mark.parametrize(
    ("paths", "split", "role"),
    [
        (["cat/1.png", "dog/2.png"], "test", "train"),
        (["train/1.png", "plane/2.png"], "test", "train"),
        (["test/train/1.png", "test/plane/2.png", "train/train/3.png"], "test", "test"),
        (["birds/val/cat/1.png", "birds/val/dog/2.png", "birds/train/cat/3.png"], "validation", "validation"),
        (["val/cat/1.png", "val/dog/2.png", "train/cat/3.png"], "val", "validation"),
        (["Train/cat/1.png", "Train/dog/2.png", "Test/cat/3.png"], "train", "train"),
        (["rotated/cat/1.png", "rotated/dog/2.png", "test/cat/3.png"], "rotated", "rotated"),
        (["cat/images/1.png", "dog/images/2.png"], "test", "train"),
        (["test/cat/images/1.png", "test/dog/images/2.png"], "test", "test"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_folders_by_class_are_read(tmp_path, load, paths, split, role):
    """Also a class called `train`, a split called by its folder or its role, and a folder above or below."""
    benchmark = load(save(tmp_path, *paths), split)
    assert benchmark.split == role
    classes = sorted({"train", "plane"} if any("plane" in path for path in paths) else {"cat", "dog"})
    assert benchmark.class_names == classes
    assert dict(zip(names(benchmark), numbers(benchmark), strict=True)) == {
        next(name for name in classes if f"{name}/" in path.removeprefix(f"{split}/")): number
        for number, path in enumerate(paths[:2])
    }


def test_a_class_folder_that_is_a_link_is_read(tmp_path, load):
    save(tmp_path / "elsewhere", "1.png", "2.png")
    folder = save(tmp_path / "set", "cat/1.png", "dog/2.png")
    (tmp_path / "set" / "heron").symlink_to(tmp_path / "elsewhere")
    assert names(load(folder)) == ["cat", "dog", "heron", "heron"]


@pytest.mark.parametrize(
    ("paths", "line"),
    [
        (["cat/1.png", "dog/2.png", "heron/"], "class folder 'heron' of .* has no images: it is empty. Add some or"),
        (["cat/1.png", "dog/2.png", "heron/1.heic"], r"'heron' .*: it has files that aren't read .* \(1 x .heic\)"),
        (["cat/1.png", "dog/2.png", "heron/1"], r"'heron' .*: it has files .* \(1 x without an ending\)"),
        (["train/cat/1.png", "train/dog/2.png", "test/heron/1.heic"], r"class folder 'heron' .* \(1 x .heic\)"),
        (["train/1.png", "test/2.png"], "images in test/, train/, but no folders by class: the layout is ROOT/CLASS"),
        (["train/images/1.png", "test/images/2.png"], "images in test/, train/, but no folders by class"),
        (["1.png", "2.png"], "has images in it itself, but no folders by class: the layout is ROOT/CLASS/IMAGE or"),
        (["cat/1.png", "cat/2.png"], "has images of one class alone, 'cat'"),
        (["cat/1.png", "dog/big/2.png"], "has images in cat/ and deeper in dog/big/: the layout is"),
        (["cat/1.heic", "dog/2.heic"], r"has no images: .* aren't read as images \(2 x .heic\). The layout is"),
        ([".hidden/1.png"], "has no images: it is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_classes_that_would_be_lost_or_invented_are_refused(tmp_path, load, paths, line):
    for path in paths:
        (tmp_path / path).mkdir(parents=True) if path.endswith("/") else save(tmp_path, path)
    with pytest.raises(InputError, match=line):
        load(tmp_path)


def test_folders_apart_from_those_of_classes_may_hold_anything(tmp_path, load):
    folder = save(tmp_path, "train/cat/1.png", "train/dog/2.png", "notes/more/1.xml", "notes/1.txt", "train/1.txt")
    assert load(folder).class_names == ["cat", "dog"]


def test_a_class_may_lack_images_in_one_of_the_splits(tmp_path, load):
    folder = save(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    (tmp_path / "test" / "dog").mkdir()
    assert load(folder).class_names == ["cat", "dog"] and names(load(folder)) == ["cat"]


def test_a_class_may_be_called_as_missing_values_are(tmp_path):
    save(tmp_path, "a.png", "b.png")
    (tmp_path / "birds.csv").write_text("image,label\na.png,None\nb.png,NA\n")
    assert load_benchmark(f"{tmp_path}/birds.csv").class_names == ["NA", "None"]


def test_links_that_lead_nowhere_or_back_are_refused(tmp_path, load):
    folder = save(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "heron").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="heron is a link to nothing: mend or remove it"):
        load(folder)
    (tmp_path / "heron").unlink()
    (tmp_path / "dog" / "all").symlink_to(tmp_path)
    with pytest.raises(InputError, match="all is a link to a folder that it lies in"):
        load(folder)


def test_files_left_out_beside_images_are_said(tmp_path, load):
    folder = save(tmp_path, "cat/1.png", "cat/2.heic", "dog/2.png", "about.txt", "cat/.DS_Store", "all.zip")
    with pytest.warns(UserWarning, match=r"read without some of its files: .* aren't read as images \(1 x .heic\)"):
        assert numbers(load(folder)) == [0, 2]


def test_folders_are_read_in_the_order_of_datasets(tmp_path):
    """Which fixes each image's noise, and so the figures measured before."""
    folder = save(
        tmp_path, *(f"{kind}/{number}.png" for kind in ("cat", "cat 2", "Dog", "é") for number in (10, 2, "b"))
    )
    ours, theirs = load_benchmark(f"set={folder}", "train").dataset, datasets.load_dataset(folder, split="train")
    assert theirs.features == ours.features and list(theirs["label"]) == list(ours["label"])
    undecoded = [rows.cast_column("image", datasets.Image(decode=False))["image"][:] for rows in (ours, theirs)]
    assert [image["path"] for image in undecoded[0]] == [image["path"] for image in undecoded[1]]


def test_metadata_and_cards_say_what_a_folder_holds(tmp_path, load):
    save(tmp_path / "metadata", "train/1.png", "train/2.png")
    (tmp_path / "metadata" / "train" / "metadata.csv").write_text("file_name,label\n1.png,dog\n2.png,cat\n")
    assert names(load(tmp_path / "metadata", class_names=["cat", "dog"])) == ["dog", "cat"]
    save(tmp_path / "card", "a/cat/1.png", "a/dog/2.png", "b/cat/1.png", "b/dog/2.png")
    card = "configs: [{config_name: default, data_files: [{split: odd, path: b/**}]}]"
    (tmp_path / "card" / "README.md").write_text(f"---\n{card}\n---\n")
    assert load(tmp_path / "card", "odd").split == "odd"


# TinyImageNet, and what splits are called


@pytest.fixture
def published_tiny_imagenet(tmp_path):
    """Two images of each of its 200 classes for training, and one in `val`."""
    root, wnids = tmp_path / "tiny-imagenet-200", sorted(WNIDS)
    for number, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").touch()
        for image in range(2):
            save_image(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", number)
    for part in ("val", "test"):
        (root / part / "images").mkdir(parents=True)
        for number in range(200):
            save_image(root / part / "images" / f"{part}_{number}.JPEG", number)
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62" for number, wnid in enumerate(wnids)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streaming"])
def test_tiny_imagenet_is_read_as_it_is_published(published_tiny_imagenet, streaming):
    """Its validation images lie in one folder, with their classes in a file."""
    for split, images in (("test", 1), ("train", 2)):
        benchmark = load_benchmark("tiny_imagenet", split, str(published_tiny_imagenet), streaming=streaming)
        items = list(benchmark) if streaming else [benchmark[row] for row in range(len(benchmark))]
        assert benchmark.split == split and len(items) == 200 * images and len(benchmark.class_names) == 200
        wnids = sorted(WNIDS)
        for item in items:
            wnid = wnids[item["pixel_values"][0, 0, 0]]
            assert benchmark.class_names[item["labels"]] == WNIDS[wnid]


def test_tiny_imagenet_is_read_sorted_into_folders(tmp_path):
    for split in ("train", "val"):
        save(tmp_path, *(f"{split}/{wnid}/{number}.png" for number, wnid in enumerate(WNIDS)))
    for split in ("test", "valid"):
        benchmark = load_benchmark("tiny_imagenet", split, path=str(tmp_path))
        assert benchmark.split == "test" and len(benchmark) == 200


@pytest.mark.parametrize(
    ("name", "split", "role"),
    [
        ("tiny_imagenet", "valid", "test"),
        ("imagenet", "validation", "test"),
        ("pcam", "valid", "validation"),
        ("eurosat", "train+validation+test", "test"),
        ("cifar10", "train", "train"),
    ],
)
def test_a_record_knows_what_the_hub_calls_its_splits(tmp_path, name, split, role):
    folder = write_repository(tmp_path, name)
    own, by_role = load_benchmark(f"{name}={folder}:split={split}"), load_benchmark(name, role, path=folder)
    assert own.split == by_role.split == role and own.transform == by_role.transform
    assert torch.equal(own[0]["pixel_values"], by_role[0]["pixel_values"])


def test_a_split_that_a_record_tests_on_is_never_trained_or_chosen_on(tmp_path):
    """Food-101's and Caltech-101's are called `validation` and `train` on the Hub."""
    food, caltech = (write_repository(tmp_path / name, name) for name in ("food101", "caltech101"))
    assert load_training_data(f"food101={food}")[1] is None
    with pytest.raises(InputError, match=r"caltech101 has no split 'train'; known: test \(on the Hub train\)"):
        load_training_data(f"caltech101={caltech}")
    with pytest.raises(InputError, match=r"tiny_imagenet has no split 'dev'; known: train, test \(on the Hub valid\)"):
        load_benchmark("tiny_imagenet", "dev")


# Archives, shards and tables


def pack(root, file):
    """A folder as an archive of it."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in paths:
                archive.write(path, path.relative_to(root.parent))
    else:
        with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as archive:
            for path in paths:
                archive.add(path, path.relative_to(root.parent))
    return file


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz"])
def test_a_packed_folder_is_read_as_the_folder(tmp_path, load, ending):
    save_images(tmp_path / "birds", ("train", "test"))
    benchmark = load(pack(tmp_path / "birds", tmp_path / f"birds.{ending}"))
    assert benchmark.split == "test" and names(benchmark) == ["cat", "cat", "dog", "dog"]
    assert load_benchmark(str(tmp_path / f"birds.{ending}")).name == "birds"
    save(tmp_path / "flat", "1.png")
    with pytest.raises(InputError, match=rf"flat.{ending} has images in flat/, but no|flat.{ending} has .* one class"):
        load(pack(tmp_path / "flat", tmp_path / f"flat.{ending}"))


def test_an_archive_that_has_changed_is_unpacked_again(tmp_path):
    for number, kinds in enumerate((["cat", "dog"], ["cat", "heron"])):
        archive = pack(save_images(tmp_path / str(number) / "set", ("test",), kinds), tmp_path / "set.zip")
        assert load_benchmark(str(archive)).class_names == kinds
    assert len([path for path in (tmp_path / "cache" / "hpt" / "unpacked").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["cut off", "no archive"])
def test_damaged_archives_are_refused_and_left_as_they_are(tmp_path, ending, damage):
    archive = pack(save_images(tmp_path / "set", ("test",)), tmp_path / f"set.{ending}")
    content = archive.read_bytes()
    content = content[: len(content) // 2] if damage == "cut off" else b"hello"
    archive.write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"set.{ending}"):
            load_benchmark(str(archive))
    assert archive.read_bytes() == content


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "wds", CLASSES)


def test_shards_are_read_with_their_class_names(shards, load):
    benchmark = load(shards)
    assert benchmark.split == "test" and benchmark.class_names == CLASSES
    assert names(benchmark) == CLASSES * 2 and numbers(benchmark) == [0, 1, 2, 3, 4, 5]
    assert numbers(load(shards, "train")) == list(range(9))
    write_shard(shards / "more" / "birds-val-0000.tar", 7, "png")
    assert numbers(load(shards / "more", "validation", class_names=CLASSES)) == [7, 8, 9]
    (shards / "classnames.txt").unlink()
    with pytest.raises(InputError, match="are int64 and name no classes: give class_names, a file with one a line"):
        load(shards)


def test_one_shard_is_read_by_its_names(tmp_path, load):
    file = write_shard(tmp_path / "birds.tar", 5, "png")
    assert numbers(load(file, class_names=CLASSES)) == [5, 6, 7]


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_table_of_paths_and_labels_is_read(tmp_path, load, ending, separator):
    save(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    rows = ["photo kind size", "images/b.png heron 8", "images/a.png cat 9", "images/c.png cat 7"]
    (tmp_path / f"birds.{ending}").write_text("\n".join(rows).replace(" ", separator))
    benchmark = load(tmp_path / f"birds.{ending}", label_column="kind", class_names=["cat", "heron"])
    assert numbers(benchmark) == [1, 0, 2] and names(benchmark) == ["heron", "cat", "cat"]
    by_itself = load_benchmark(f"{tmp_path}/birds.{ending}:label_column=kind")
    assert by_itself.class_names == ["cat", "heron"] and by_itself.name == "birds"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("image,label\n", "birds.csv has no rows"),
        ("image,label\nno.png,cat\n", r"has no column of images: the paths in one of \['image', 'label'\] must"),
        ("image,label\na.png,cat\nb.png,dog\n", "Row 1 of .*birds.csv has 'b.png' as image, but there is no such"),
        ("image,kind\na.png,cat\n", r"has columns \['image', 'kind'\].*expected to have \['label'\]"),
        ("image,label\na.png,cat\na.png,\n", "Row 1 of .*birds.csv has no label"),
        ("", "Can't load the dataset .*birds.csv': EmptyDataError: No columns to parse"),
    ],
    ids=["no rows", "no paths", "no file", "no labels", "no label", "empty"],
)
def test_tables_that_say_too_little_are_refused(tmp_path, text, line):
    save(tmp_path, "a.png")
    (tmp_path / "birds.csv").write_text(text)
    with pytest.raises(InputError, match=line):
        load_benchmark(f"{tmp_path}/birds.csv")


@pytest.mark.parametrize("ending", ["json", "npz", "7z", "pt"])
def test_other_files_are_refused_with_what_is_read(tmp_path, ending):
    (tmp_path / f"birds.{ending}").write_text("{}")
    with pytest.raises(
        InputError, match=r"can't be read as a dataset: give a file that ends in .parquet, .csv, .tsv, .zip"
    ):
        load_benchmark(str(tmp_path / f"birds.{ending}"))


def test_text_labels_are_streamed_with_names(tmp_path):
    labels = ["dog", "cat", "dog"]
    make_dataset(3).remove_columns("label").add_column("label", labels).to_parquet(tmp_path / "set.parquet")
    text = f"{tmp_path}/set.parquet:geometry=native"
    stream = load_benchmark(text, streaming=True, class_names=["cat", "dog"])
    assert [item["labels"] for item in stream] == stream.take(3).dataset["label"][:] == [1, 0, 1]
    with pytest.raises(InputError, match="are text, which a stream doesn't gather: give class_names"):
        load_benchmark(text, streaming=True)
    unknown = load_benchmark(text, streaming=True, class_names=["dog", "heron"])
    for read in (list, lambda rows: rows.take(3)):
        with pytest.raises(InputError, match="[Rr]ow 1 of .* has label 'cat'"):
            read(unknown)


# Paths


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_images(tmp_path / "pets")
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    for benchmark in (
        load_benchmark("pets=~/pets:class_names=~/names.txt"),
        load_benchmark("~/pets", class_names="~/names.txt"),
        load_benchmark("pets", path="~/pets", class_names=["dog", "cat"]),
    ):
        assert (benchmark.name, benchmark.class_names, len(benchmark)) == ("pets", ["dog", "cat"], 4)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{}/pest",
            "There is no folder or file '.*/pest', and it is no Hub id, which is OWNER/NAME: did you mean .*/pets",
        ),
        ("birds={}/pets/tran", "/pets/tran', .*: did you mean .*/pets/train?"),
        ("birds={}/nothing/like/it", "is no Hub id, which is OWNER/NAME\\.$"),
        ("digit", "Unknown benchmark 'digit'; .* Did you mean digits?"),
    ],
)
def test_a_path_to_nothing_is_refused_before_others_are_loaded(tmp_path, text, line):
    save_images(tmp_path / "pets")
    with pytest.raises(InputError, match=line):
        expand_all(["digits", text.format(tmp_path)])


def test_a_path_that_could_be_an_id_is_compared_with_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "data" / "pets")
    with pytest.raises(InputError, match="Can't load the dataset 'data/pest': .*: did you mean data/pets?"):
        load_benchmark("data/pest")
