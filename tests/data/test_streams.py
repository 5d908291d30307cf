"""Epochs cut from a stream, and training on them."""

import io
import zlib

import datasets
import pytest
import torch
from helpers import CLASSES, assert_same, make_clip, make_dataset, make_trainer, save_images, weights
from PIL import ImageOps

from hpt import HPTConfig, HPTTrainer, InputError, ZeroShotClassifier, load_benchmark
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import renumber
from hpt.data.geometry import ImageTransform
from hpt.data.images import collate
from hpt.data.streams import EpochStream


def make_stream(rows=20, files=4, **settings) -> EpochStream:
    """Rows whose label tells their number, so that their order can be read from a batch."""
    dataset = make_dataset(rows).remove_columns("label").add_column("label", list(range(rows)))
    names = [str(row) for row in range(rows)]
    stream = StreamingBenchmark(
        "rows", "train", dataset.to_iterable_dataset(num_shards=files), names, "{}", ImageTransform()
    )
    settings = {"num_batches": 5, "batch_size": 4, "buffer_size": 5, "seed": 0, "num_workers": 0} | settings
    return EpochStream(stream, **settings)


def order(stream: EpochStream, epoch: int, workers: int = 0) -> list[list[int]]:
    stream.set_epoch(epoch)
    loader = torch.utils.data.DataLoader(stream, stream.batch_size, collate_fn=collate, num_workers=workers)
    batches = [batch["labels"].tolist() for batch in loader]
    assert len(batches) == len(loader) == stream.num_batches
    return batches


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_epoch_as_long_as_the_stream_has_every_row_once(workers):
    batches = order(make_stream(24, 6, num_batches=6, num_workers=workers), 0, workers)
    flat = [row for batch in batches for row in batch]
    assert {len(batch) for batch in batches} == {4} and sorted(flat) == list(range(24)) != flat


def test_orders_come_from_seed_and_epoch():
    stream = make_stream()
    assert order(stream, 3) == order(make_stream(), 3)
    assert order(stream, 3) != order(stream, 4)
    assert order(stream, 3) != order(make_stream(seed=1), 3)


def test_an_epoch_longer_than_the_stream_reads_it_again_in_another_order():
    flat = [row for batch in order(make_stream(8, 2, num_batches=4), 0) for row in batch]
    assert sorted(flat[:8]) == sorted(flat[8:]) == list(range(8))
    assert flat[:8] != flat[8:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shorter_epoch_goes_on_where_the_last_one_ended(workers):
    """Also when one is read alone, after nothing or after another."""
    parts = {"num_batches": 2, "num_workers": workers}
    stream = make_stream(24, 4, **parts)
    epochs = [[row for batch in order(stream, epoch, workers) for row in batch] for epoch in range(4)]
    seen = [row for part in epochs[:3] for row in part]
    assert sorted(seen) == list(range(24))
    assert sorted(epochs[3]) != sorted(epochs[0])
    for epoch in (2, 1, 1, 3):
        assert [row for batch in order(make_stream(24, 4, **parts), epoch, workers) for row in batch] == epochs[epoch]
        assert [row for batch in order(stream, epoch, workers) for row in batch] == epochs[epoch]


def test_an_epoch_that_was_left_in_its_middle_is_read_anew():
    stream = make_stream(num_batches=2)
    expected = order(make_stream(num_batches=2), 1)
    stream.set_epoch(0)
    iterator = iter(stream)
    next(iterator)
    assert order(stream, 0) != expected and order(stream, 1) == expected


def test_rows_read_over_are_not_decoded(monkeypatch):
    decoded = []
    decode = StreamingBenchmark.decode
    monkeypatch.setattr(StreamingBenchmark, "decode", lambda *row: (decoded.append(row), decode(*row))[1])
    order(make_stream(num_batches=2), 1)
    assert len(decoded) == 8


def test_workers_that_persist_see_the_epoch_change():
    stream = make_stream(num_workers=1)
    loader = torch.utils.data.DataLoader(stream, 4, collate_fn=collate, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        seen.append([row for batch in loader for row in batch["labels"].tolist()])
    assert seen[0] != seen[1]


def test_more_workers_than_files_are_refused():
    with pytest.raises(InputError, match="from 2 files, which can't be shared out to 3 workers.*at most"):
        make_stream(files=2, num_workers=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_workers_cannot_share_evenly(workers):
    batches = order(make_stream(num_batches=5, num_workers=workers), 0, workers)
    assert [len(batch) for batch in batches] == [4] * 5


def test_the_trainers_settings_arrive(tmp_path):
    settings = {"steps_per_epoch": 3, "gradient_accumulation_steps": 2, "shuffle_buffer_size": 9, "data_seed": 5}
    stream = make_dataset().to_iterable_dataset(num_shards=2)
    train = make_trainer(tmp_path, dataset=stream, **settings).train_dataset
    assert (train.num_batches, train.batch_size, len(train)) == (6, 4, 24)
    assert (train.buffer_size, train.seed) == (9, 5)
    args = make_trainer(tmp_path, dataset=stream, dataloader_num_workers=2, **settings).args
    assert args.dataloader_persistent_workers
    with pytest.raises(InputError, match="from 2 files, which can't be shared out to 3 workers"):
        make_trainer(tmp_path, dataset=stream, dataloader_num_workers=3, **settings)
    with pytest.raises(InputError, match="read by one process for all: leave dispatch_batches"):
        make_trainer(tmp_path, dataset=stream, accelerator_config={"dispatch_batches": False}, **settings)


def test_filtered_streams_train(tmp_path):
    """`datasets` decodes the images for a filter, whatever it was told."""
    stream = make_dataset(24).to_iterable_dataset(num_shards=2).filter(lambda row: row["label"] < 2)
    trainer = make_trainer(tmp_path, dataset=stream, **STREAMING | {"steps_per_epoch": 3, "max_steps": 2})
    trainer.train()
    assert trainer.state.global_step == 2


def jpegs(tmp_path, **names):
    """A Parquet file of JPEGs, their checksums, and how the file is opened as a user does."""
    encoded = []
    for image in make_dataset(6, 32)["image"]:
        image.save(file := io.BytesIO(), "JPEG", quality=95)
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=CLASSES))
    dataset = datasets.Dataset.from_dict({"image": encoded, "label": [0, 1, 2] * 2}, features)
    path = str(tmp_path / "jpegs.parquet")
    dataset.cast_column("image", datasets.Image()).rename_columns(names).to_parquet(path)
    return path, [zlib.crc32(image["bytes"]) for image in encoded]


def streamed(dataset) -> StreamingBenchmark:
    return StreamingBenchmark("rows", "train", dataset, CLASSES, "{}", ImageTransform())


@pytest.mark.parametrize("names", [{}, {"image": "img"}, {"image": "img", "label": "kind"}], ids=str)
def test_a_stream_gives_the_files_as_they_are(tmp_path, names):
    """Iterated over, cut into epochs or taken; the pixels are those that are downloaded."""
    path, checksums = jpegs(tmp_path, **names)
    stream, loaded = (
        load_benchmark(f"x={path}:native_resolution=true", "train", streaming=mode) for mode in (True, False)
    )
    epoch = EpochStream(stream, num_batches=3, batch_size=2, buffer_size=3, seed=0, num_workers=0)
    for items in (list(stream), [stream.take(6)[row] for row in range(6)], list(epoch)):
        for item in items:
            row = checksums.index(item["sample_ids"])
            assert torch.equal(item["pixel_values"], loaded[row]["pixel_values"])
            assert item["labels"] == loaded[row]["labels"]
        assert {item["sample_ids"] for item in items} == set(checksums)


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: stream,
        lambda stream: stream.rename_column("label", "kind").rename_column("kind", "label"),
        lambda stream: stream.filter(lambda row: row["label"] < 3),
        lambda stream: stream.map(dict, features=stream.features),
    ],
    ids=["as it is", "renamed", "filtered", "mapped"],
)
def test_a_users_stream_gives_the_files_or_says_how(tmp_path, change):
    path, checksums = jpegs(tmp_path)
    stream = datasets.load_dataset("parquet", data_files=path, split="train", streaming=True)
    threads = streamed(stream.decode(num_threads=2))  # as datasets streams folders of images from the Hub
    undecoded = streamed(change(stream.decode(False)))
    formatted = streamed(stream.with_format("torch"))
    for rows in (streamed(stream), threads, undecoded, formatted):
        assert [item["sample_ids"] for item in rows] == checksums
        assert rows.take(6).ids().tolist() == checksums
    if (changed := change(stream)) is not stream:
        for read in (list, lambda rows: rows.take(2)):
            with pytest.raises(InputError, match=r"rows \(train\) were decoded by a map.*call .decode\(False\) on"):
                read(streamed(changed))


def test_a_stream_is_decoded_in_the_mode_that_the_dataset_asks_for():
    """As it is in memory; also with other labels."""
    grey = make_dataset(4).cast_column("image", datasets.Image(mode="L"))
    expected = Benchmark("rows", "train", grey, CLASSES, "{}", ImageTransform())
    stream = grey.to_iterable_dataset()
    for rows in (streamed(stream), streamed(stream).take(4), streamed(renumber(stream, [0, 1, 2]))):
        for item, in_memory in zip(rows, expected, strict=True):
            assert torch.equal(item["pixel_values"], in_memory["pixel_values"])
    assert torch.equal(item["pixel_values"][0], item["pixel_values"][1])


def test_images_that_a_map_made_are_taken_as_they_are(tmp_path):
    path, _ = jpegs(tmp_path)
    stream = datasets.load_dataset("parquet", data_files=path, split="train", streaming=True)
    flipped = streamed(
        stream.map(lambda row: row | {"image": ImageOps.mirror(row["image"])}, features=stream.features)
    )
    for item, original in zip(flipped, streamed(stream), strict=True):
        assert torch.equal(item["pixel_values"], original["pixel_values"].flip(-1))
        assert item["sample_ids"] != original["sample_ids"]


def test_files_of_a_streamed_folder_are_known_by_their_content(tmp_path):
    """Not by their path: a copy has the same noise."""
    for name in ("here", "there"):
        save_images(tmp_path / name)
    here, there = (
        load_benchmark(f"x={tmp_path / name}:geometry=native", streaming=True) for name in ("here", "there")
    )
    files = sorted((tmp_path / "here").rglob("*.png"))
    assert [item["sample_ids"] for item in here] == [zlib.crc32(file.read_bytes()) for file in files]
    assert [item["sample_ids"] for item in there] == [item["sample_ids"] for item in here]
    assert there.take(4).ids().tolist() == here.take(4).ids().tolist()


def rows_of(images, labels, kind=None):
    features = datasets.Features(image=datasets.Image(decode=False), label=kind or datasets.Value("int64"))
    dataset = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    return dataset.cast_column("image", datasets.Image()).to_iterable_dataset()


@pytest.mark.parametrize(
    ("image", "label", "line"),
    [
        (b"GIF89a cut off", 0, r"The image in the row named 'a.png' of rows \(train\) can't be used: cannot identify"),
        (None, 0, r"The image in a row of rows \(train\) can't be used: it is missing"),
        (b"", 7, "The row named 'a.png' of rows .* has label 7, but labels go from 0 to 2"),
        (b"", None, "has label None"),
    ],
    ids=["image", "no image", "label", "no label"],
)
def test_broken_rows_are_named(image, label, line):
    image = image if image is None else {"bytes": image, "path": "a.png"}
    stream = StreamingBenchmark("rows", "train", rows_of([image], [label]), CLASSES, "{}", ImageTransform())
    epochs = EpochStream(stream, num_batches=1, batch_size=1, buffer_size=1, seed=0, num_workers=0)
    with pytest.raises(InputError, match=line):
        next(iter(epochs))


@pytest.mark.parametrize("kind", ["string", "float32"])
def test_labels_that_are_no_integers_are_refused(tmp_path, kind):
    stream = rows_of([None], [1], datasets.Value(kind))
    with pytest.raises(InputError, match="The labels of the training set are .*, but must be integers from 0"):
        _given_names(tmp_path, stream, CLASSES)


def test_another_number_of_workers_or_files_is_another_run(tmp_path):
    stream = make_dataset(20).to_iterable_dataset(num_shards=2)
    make_trainer(tmp_path, dataset=stream, **STREAMING | {"max_steps": 7}).train()
    again = make_trainer(tmp_path, dataset=stream, dataloader_num_workers=2, **STREAMING)
    with pytest.raises(InputError, match="dataloader_num_workers 0 there, 2 here"):
        again.train(resume_from_checkpoint=True)
    other = make_trainer(tmp_path, dataset=make_dataset(20).to_iterable_dataset(num_shards=4), **STREAMING)
    with pytest.raises(InputError, match="streamed from 2 files, .* there, .* streamed from 4 files"):
        other.train(resume_from_checkpoint=True)


def test_an_empty_stream_is_refused():
    stream = make_stream()
    empty = StreamingBenchmark("none", "train", stream.stream.dataset.take(0), CLASSES, "{}", ImageTransform())
    with pytest.raises(InputError, match=r"none \(train\) has no rows to stream"):
        next(iter(EpochStream(empty, num_batches=1, batch_size=1, buffer_size=1, seed=0, num_workers=0)))


STREAMING = {"steps_per_epoch": 5, "shuffle_buffer_size": 7, "save_strategy": "steps", "save_steps": 7}


def test_gpd_on_a_stream_has_the_epochs_given_and_resumes_in_their_middle(tmp_path):
    def train(folder, resume=None):
        trainer = make_trainer(folder, dataset=make_dataset(20).to_iterable_dataset(num_shards=2), **STREAMING)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train(tmp_path)
    assert (whole.schedule.steps_per_epoch, whole.schedule.boundary, whole.state.global_step) == (5, 10, 20)
    assert whole.gpd.boundary == 3
    resumed = train(tmp_path, tmp_path / "checkpoint-7")
    assert_same(weights(resumed.model), weights(whole.model))


def test_parquet_shards_on_the_disk_are_streamed(tmp_path):
    rows = make_dataset(24)
    (tmp_path / "data").mkdir()
    for number in range(3):
        rows.shard(3, number).to_parquet(str(tmp_path / "data" / f"train-{number:05}-of-00003.parquet"))
    train = load_benchmark(f"mine={tmp_path}", "train", streaming=True, native_resolution=True)
    trainer = make_trainer(tmp_path / "run", dataset=train, max_steps=4, dataloader_num_workers=2, **STREAMING)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 4
    assert any(not torch.equal(weights(trainer.model)[name], before[name]) for name in before)


def test_what_streams_need(tmp_path):
    stream = make_dataset().to_iterable_dataset()
    with pytest.raises(InputError, match="has no epochs of its own: give steps_per_epoch"):
        make_trainer(tmp_path, dataset=stream)
    with pytest.raises(InputError, match="steps_per_epoch is for streaming training sets"):
        make_trainer(tmp_path, steps_per_epoch=5)
    with pytest.raises(InputError, match="steps_per_epoch is 0, but must be a whole number of at least 1"):
        make_trainer(tmp_path, dataset=stream, steps_per_epoch=0)
    with pytest.raises(InputError, match="the evaluation set is a stream: give a part of it"):
        make_trainer(tmp_path, eval_dataset=stream)
    with pytest.raises(InputError, match=r"has columns \['image', 'kind'\], but needs \['label'\]"):
        _given_names(tmp_path, stream.rename_column("label", "kind"), CLASSES)
    with pytest.raises(
        InputError, match="the training set has classes that aren't among the 2 class names 'cat', 'dog': 'grey"
    ):
        benchmark = StreamingBenchmark("rows", "train", stream, CLASSES, "{}", ImageTransform())
        _given_names(tmp_path, benchmark, CLASSES[:2])
    generated = datasets.IterableDataset.from_generator(lambda: iter([]))
    with pytest.raises(InputError, match="Class names are missing"):
        make_trainer(tmp_path, dataset=generated, steps_per_epoch=5)
    with pytest.raises(InputError, match="doesn't say its features: give them to from_generator"):
        _given_names(tmp_path, generated, CLASSES)


def _given_names(folder, dataset, names, streaming=True) -> HPTTrainer:
    model, processor = make_clip(0)
    args = HPTConfig(output_dir=str(folder), use_cpu=True, warmup_steps=0.1, steps_per_epoch=5 if streaming else None)
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4))
    return HPTTrainer(model, args, proxy, processor, dataset, class_names=names)
