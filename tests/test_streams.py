"""Epochs cut from a stream, and training on them."""

import datasets
import pytest
import torch
from conftest import CLASSES, make_clip, make_dataset, make_trainer
from test_trainer import assert_same, weights

from hpt import HPTConfig, HPTTrainer, InputError, ZeroShotClassifier, load_benchmark
from hpt.benchmarks import StreamingBenchmark
from hpt.data import ImageTransform, collate
from hpt.streams import EpochStream


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


def test_a_shorter_epoch_is_a_part_that_changes():
    parts = [{row for batch in order(make_stream(num_batches=2), epoch) for row in batch} for epoch in range(4)]
    assert all(len(part) == 8 for part in parts) and len(set().union(*parts)) > 8


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
    with pytest.raises(InputError, match="steps_per_epoch is 0, but must be at least 1"):
        make_trainer(tmp_path, dataset=stream, steps_per_epoch=0)
    with pytest.raises(InputError, match="the evaluation set is a stream: give a part of it"):
        make_trainer(tmp_path, eval_dataset=stream)
    with pytest.raises(InputError, match=r"streams columns \['image', 'kind'\], but needs image and label"):
        _given_names(tmp_path, stream.rename_column("label", "kind"), CLASSES)
    with pytest.raises(InputError, match="has 3 classes, but there are 2 names"):
        benchmark = StreamingBenchmark("rows", "train", stream, CLASSES, "{}", ImageTransform())
        _given_names(tmp_path, benchmark, CLASSES[:2])
    with pytest.raises(InputError, match="Class names are missing"):
        make_trainer(tmp_path, dataset=datasets.IterableDataset.from_generator(lambda: iter([])), steps_per_epoch=5)


def _given_names(folder, dataset, names):
    model, processor = make_clip(0)
    args = HPTConfig(output_dir=str(folder), use_cpu=True, warmup_steps=0.1, steps_per_epoch=5)
    HPTTrainer(model, args, ZeroShotClassifier(*make_clip(1, patch_size=4)), processor, dataset, class_names=names)
