"""What identifies a model, its images and a run: all of that is noticed which changes a number, and little else."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Image, load_dataset
from helpers import CLASSES, FAMILIES, make_benchmark, make_clip, make_dataset, make_family, make_trainer, save_images
from transformers.trainer_utils import align_special_tokens

from hpt import HPTTrainer, InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.data import hashing
from hpt.data.geometry import ImageTransform
from hpt.data.hashing import hash_files, hash_rows, hash_samples
from hpt.data.streams import identify_stream
from hpt.evaluation.ranking import TransferMatrix
from hpt.evaluation.row_settings import hash_benchmark
from hpt.hub.evaluations import add_saved_evaluations
from hpt.hub.folder import ModelFolder
from hpt.models.identity import hash_configuration, hash_prompts
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.lora import add_lora, merged
from hpt.training.checkpoints import MANIFEST, read_manifest, write_manifest
from hpt.training.identity import identify_proxy
from hpt.training.pretraining import byte_tokenizer


# Models


def reconfigured(model, part: str | None, **settings):
    """The same weights in a model that computes otherwise, as after an edit of its `config.json`."""
    config = copy.deepcopy(model.config)
    for name, value in settings.items():
        setattr(getattr(config, part) if part else config, name, value)
    other = type(model)(type(config).from_dict(config.to_dict())).eval()
    other.load_state_dict(model.state_dict())
    return other


def with_other_tokenizer(processor):
    """A processor whose tokenizer numbers the same tokens otherwise."""
    entries = byte_tokenizer().get_vocab()
    shifted = {entry: (number + 7) % 512 if number < 512 else number for entry, number in entries.items()}
    tokenizer = transformers.CLIPTokenizer(vocab=shifted, merges=[], model_max_length=77)
    return transformers.CLIPProcessor(processor.image_processor, tokenizer)


CONFIGURATIONS = [
    ("vision_config", {"hidden_act": "gelu"}),
    ("vision_config", {"layer_norm_eps": 1e-2}),
    ("vision_config", {"num_attention_heads": 4}),
    ("text_config", {"hidden_act": "gelu"}),
    ("text_config", {"layer_norm_eps": 1e-2}),
    ("text_config", {"num_attention_heads": 4}),
]
CHANGED = [f"{part}-{name}" for part, settings in CONFIGURATIONS for name in settings]


def evaluate(model, processor, folder=None, benchmark=None, **settings):
    evaluator = RobustnessEvaluator(**{"attacks": [], "output_dir": folder} | settings)
    return evaluator(model, processor, benchmark or make_benchmark(), name="mine")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with the clean accuracy of a model."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(*make_clip(0), folder)
    return folder


@pytest.mark.parametrize(("part", "settings"), CONFIGURATIONS, ids=CHANGED)
def test_rows_of_another_configuration_are_refused(evaluated, part, settings):
    model, processor = make_clip(0)
    before = (evaluated / "results.jsonl").read_text()
    with pytest.raises(InputError, match=r"other settings for model mine \(configuration '\w+' there, '\w+' here\)"):
        evaluate(reconfigured(model, part, **settings), processor, evaluated)
    assert (evaluated / "results.jsonl").read_text() == before


def test_rows_of_another_tokenizer_are_refused(evaluated):
    model, processor = make_clip(0)
    with pytest.raises(InputError, match=r"for model mine \(tokens '\w+' there, '\w+' here\)"):
        evaluate(model, with_other_tokenizer(processor), evaluated)


@pytest.mark.parametrize("change", ["mode", "geometry"])
def test_rows_of_other_pixels_of_the_same_images_are_refused(tmp_path, change):
    model, processor = make_clip(0)
    benchmark = replace(make_benchmark(), transform=ImageTransform(18, 16))
    evaluate(model, processor, tmp_path, benchmark)
    grey = replace(benchmark, dataset=benchmark.dataset.cast_column("image", Image(mode="L")))
    other = {"mode": grey, "geometry": replace(benchmark, transform=ImageTransform(24, 16))}[change]
    with pytest.raises(InputError, match=r"for benchmark random \(samples"):
        evaluate(model, processor, tmp_path, other)


def test_images_that_are_asked_for_as_rgb_are_the_same():
    benchmark = make_benchmark()
    as_rgb = replace(benchmark, dataset=benchmark.dataset.cast_column("image", Image(mode="RGB")))
    assert hash_benchmark(as_rgb) == hash_benchmark(benchmark)


@pytest.mark.parametrize("attack", ["adaptive:steps=1", "transfer:steps=1"])
def test_rows_made_with_another_configuration_of_the_proxy_are_refused(tmp_path, attack):
    model, processor = make_clip(0)
    proxy = make_clip(1, patch_size=4)
    settings = {"attacks": [attack], "proxy_name": "proxy"}
    evaluate(model, processor, tmp_path, proxy=ZeroShotClassifier(*proxy), **settings)
    other = ZeroShotClassifier(reconfigured(proxy[0], "vision_config", hidden_act="gelu"), proxy[1])
    with pytest.raises(InputError, match=rf"for attack {attack} \(other_model '\w+' there, '\w+' here\)"):
        evaluate(model, processor, tmp_path, proxy=other, **settings)


def test_predictions_of_another_configuration_are_not_gone_on_with(tmp_path):
    """Of an evaluation that was killed before its first row."""
    model, processor = make_clip(0)
    evaluate(model, processor, tmp_path)
    (tmp_path / "results.jsonl").unlink()
    other = reconfigured(model, "vision_config", hidden_act="relu", layer_norm_eps=1.0)
    (row,), (expected,) = evaluate(other, processor, tmp_path), evaluate(other, processor)
    assert replace(row, seconds=0) == replace(expected, seconds=0)
    assert len((tmp_path / "predictions-0.jsonl").read_text().splitlines()) == 2


def test_without_a_folder_another_configuration_is_measured_anew():
    model, processor = make_clip(0)
    evaluator = RobustnessEvaluator(attacks=[])
    rows = [
        evaluator(measured, processor, make_benchmark(), name="mine")[0]
        for measured in (model, reconfigured(model, "text_config", hidden_act="gelu"), model)
    ]
    assert rows[0] == rows[2] and rows[0].configuration != rows[1].configuration
    assert len(evaluator.results.rows) == 2


def test_verdicts_of_another_configuration_are_not_taken(tmp_path):
    (model, processor), benchmark = make_clip(0), make_benchmark()
    for measured in (model, reconfigured(model, "text_config", hidden_act="gelu")):
        matrix = TransferMatrix({"one": ZeroShotClassifier(measured, processor)}, benchmark, [0.1], 1, folder=tmp_path)
        matrix.measure()
    assert len((tmp_path / "verdicts-0.jsonl").read_text().splitlines()) == 4


def test_rows_of_another_configuration_are_not_published(tmp_path):
    model, processor = make_clip(0)
    save_finished(model, processor, tmp_path / "run")
    evaluate(reconfigured(model, "vision_config", hidden_act="gelu"), processor, tmp_path / "other")
    folder = ModelFolder(tmp_path / "run")
    with pytest.raises(
        InputError, match="other has no results of the weights in .*run: evaluate this model, with its"
    ):
        add_saved_evaluations(folder, tmp_path, [str(tmp_path / "other")])
    evaluate(model, processor, tmp_path / "same")
    assert add_saved_evaluations(folder, tmp_path, [str(tmp_path / "same")]) == [] and len(folder.rows) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_is_saved_and_loaded_is_the_same(tmp_path, name):
    model, processor = make_family(name)
    before = ZeroShotClassifier(model, processor, CLASSES)
    identity = hash_configuration(before), hash_configuration(before, training=True), hash_prompts(before)
    align_special_tokens(model, processor)  # as `Trainer` does
    save_finished(model, processor, tmp_path)
    after = ZeroShotClassifier(*load_dual_encoder(str(tmp_path)), CLASSES)
    assert identity == (hash_configuration(after), hash_configuration(after, training=True), hash_prompts(after))


def test_an_adapter_is_the_same_model_as_what_it_is_merged_into(tmp_path):
    model, processor = make_clip(0)
    model.config.text_config.eos_token_id = 2  # as in OpenAI's configurations
    save_finished(model, processor, tmp_path / "base")
    base = load_dual_encoder(str(tmp_path / "base"))[0]
    adapted = add_lora(base, rank=2)
    expected = hash_configuration(ZeroShotClassifier(adapted, processor))
    align_special_tokens(adapted, processor)
    assert adapted.config.text_config.eos_token_id == 513
    for name, saved in {"adapter": adapted, "robust": merged(adapted)}.items():
        save_finished(saved, processor, tmp_path / name)
        assert hash_configuration(ZeroShotClassifier(*load_dual_encoder(str(tmp_path / name)))) == expected


def test_what_a_version_of_transformers_adds_changes_nothing():
    model, processor = make_clip(0)
    expected = hash_configuration(ZeroShotClassifier(model, processor))

    class Later(type(model.config.vision_config)):
        """The vision tower's configuration with a new setting."""

        def __init__(self, **settings):
            settings.setdefault("with_registers", False)
            super().__init__(**settings)

    model.config.vision_config = Later(**model.config.vision_config.to_dict())
    assert hash_configuration(ZeroShotClassifier(model, processor)) == expected
    model.config.vision_config.with_registers = True
    assert hash_configuration(ZeroShotClassifier(model, processor)) != expected


def test_dropout_changes_training_alone():
    model, processor = make_clip(0)
    both = [
        ZeroShotClassifier(m, processor) for m in (model, reconfigured(model, "vision_config", attention_dropout=0.5))
    ]
    assert hash_configuration(both[0]) == hash_configuration(both[1])
    assert hash_configuration(both[0], training=True) != hash_configuration(both[1], training=True)


# Runs

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "anchor_epochs": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over 48 images, cut off after a step."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, dataset=make_dataset(48), **SAVING).train()
    return folder


def refusal(folder, model=None, dataset=None, **given) -> str:
    trainer = make_trainer(folder, model, dataset or make_dataset(48), **SAVING | {"max_steps": 2} | given)
    with pytest.raises(InputError, match="was trained with other settings") as refused:
        trainer.train(resume_from_checkpoint=True)
    return str(refused.value)


def pixels_of(dataset) -> np.ndarray:
    return np.stack([np.array(image) for image in dataset["image"]])


def with_pixels(dataset, pixels) -> Dataset:
    return Dataset.from_dict({"image": list(pixels), "label": dataset["label"][:]}, features=dataset.features)


def test_one_pixel_of_one_image_is_noticed(run):
    dataset = make_dataset(48)
    pixels = pixels_of(dataset)
    pixels[7, 3, 3, 0] ^= 1  # of an image that isn't among the 16 that hpt 0.3.0 compared
    assert "(samples " in refusal(run, dataset=with_pixels(dataset, pixels))


def test_the_order_of_images_with_the_same_label_is_noticed(run):
    rows = [*range(48)]
    rows[7], rows[10] = 10, 7
    assert "(samples " in refusal(run, dataset=make_dataset(48).select(rows))


def test_one_label_is_noticed(run):
    dataset = make_dataset(48)
    labels = dataset["label"][:]
    labels[7] = (labels[7] + 1) % 3
    dataset = dataset.remove_columns("label").add_column("label", labels, feature=dataset.features["label"])
    assert "samples " in refusal(run, dataset=dataset)


def test_images_decoded_in_another_mode_are_noticed(run):
    assert "(samples " in refusal(run, dataset=make_dataset(48).cast_column("image", Image(mode="L")))


@pytest.mark.parametrize(
    ("part", "settings"),
    [*CONFIGURATIONS, ("vision_config", {"attention_dropout": 0.5})],
    ids=[*CHANGED, "vision_config-attention_dropout"],
)
def test_another_configuration_of_the_target_is_noticed(run, part, settings):
    assert "target_configuration " in refusal(run, reconfigured(make_clip(0)[0], part, **settings))


@pytest.mark.parametrize("name", ["text_model.final_layer_norm.bias", "logit_scale", "visual_projection.weight"])
def test_another_weight_of_the_target_is_noticed(run, name):
    """Whether it trains or not, for the run would go on from weights that aren't this target's."""
    model = make_clip(0)[0]
    model.get_parameter(name).data.flatten()[:1].add_(1e-3) if name != "logit_scale" else model.logit_scale.data.add_(
        1
    )
    assert "(target_weights " in refusal(run, model)


def test_another_tokenizer_of_the_target_is_noticed(run):
    assert "(target_tokens " in refusal(run, processor=with_other_tokenizer(make_clip(0)[1]))


def test_another_configuration_of_the_proxy_is_noticed(run):
    proxy, processor = make_clip(1, patch_size=4)
    other = ZeroShotClassifier(reconfigured(proxy, "text_config", hidden_act="gelu"), processor)
    assert "(proxy_models " in refusal(run, proxy=other)


def test_other_statistics_of_a_proxys_batches_are_noticed():
    model, processor = make_family("Align")
    proxy = ZeroShotClassifier(model, processor, CLASSES)
    before = identify_proxy(proxy)
    dict(model.named_buffers())["vision_model.embeddings.batchnorm.running_mean"].add_(1)
    assert identify_proxy(proxy) != before


def with_optimizer(folder, kind=torch.optim.SGD, **settings):
    model, processor = make_clip(0)
    plain = make_trainer(folder, model, make_dataset(48), processor=processor, **SAVING)
    optimizer = kind(model.vision_model.parameters(), **{"lr": 0.1} | settings)
    given = {"args": plain.args, "proxy": plain.proxy, "train_dataset": make_dataset(48)}
    return HPTTrainer(model, processing_class=processor, optimizers=(optimizer, None), **given)


def test_an_optimizer_that_is_given_is_of_the_run(tmp_path, run):
    with_optimizer(tmp_path, momentum=0.9).train()
    with_optimizer(tmp_path, momentum=0.9).train(resume_from_checkpoint=True)
    for settings, there in (
        ({"momentum": 0.5}, "'momentum': 0.5"),
        ({"kind": torch.optim.Adam}, "torch.optim.adam.Adam"),
    ):
        with pytest.raises(InputError, match=rf"\(optimizer .*'momentum': 0.9.* there, .*{there}.* here\)"):
            with_optimizer(tmp_path, **settings).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"\(optimizer None there, .*SGD"):
        with_optimizer(run).train(resume_from_checkpoint=True)
    assert "(optimizer " in refusal(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with_and_says_so(run, tmp_path, caplog):
    """As far as it says what the run was: of the images, 16."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for file in (run / "checkpoint-1").iterdir():
        os.link(file, folder / file.name)
    manifest = read_manifest(folder)
    new = {"samples", "target_weights", "target_configuration", "target_tokens", "proxy_models"}
    settings = {name: value for name, value in manifest["settings"].items() if name not in new}
    (folder / MANIFEST).unlink()
    write_manifest(folder, settings, manifest["launch"])
    pixels = pixels_of(make_dataset(48))
    pixels[7] = 255 - pixels[7]
    trainer = make_trainer(tmp_path, dataset=with_pixels(make_dataset(48), pixels), **SAVING | {"max_steps": 2})
    trainer.train(resume_from_checkpoint=True)
    assert "is of hpt 0.3.0 or before, which compares only 16 of the training images" in caplog.text
    assert new <= set(read_manifest(tmp_path / "checkpoint-2")["settings"])
    pixels[0] = 255 - pixels[0]
    assert "train_dataset 48 images" in refusal(tmp_path, dataset=with_pixels(make_dataset(48), pixels))


# Streams


def stream_of(dataset):
    """A stream as a trainer is given it, and cuts it into epochs."""
    trainer = make_trainer("unused", dataset=dataset, steps_per_epoch=2)
    return trainer.train_dataset.stream


def parquet(folder, seed=0, rows=12) -> list[str]:
    folder.mkdir(exist_ok=True)
    for part in range(2):
        make_dataset(rows, seed=seed + part).to_parquet(folder / f"{part}.parquet")
    return [str(folder / f"{part}.parquet") for part in range(2)]


def streamed(files):
    return stream_of(load_dataset("parquet", data_files=files, split="train", streaming=True))


def test_a_file_of_a_stream_that_is_replaced_is_noticed(tmp_path):
    """By one of the same name, size and time."""
    files = parquet(tmp_path)
    before, unknown = identify_stream(streamed(files))
    assert unknown == [] and identify_stream(streamed(parquet(tmp_path / "copy")))[0] == before
    state, content = os.stat(files[1]), Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(content.replace(b"IDAT", b"IDAS", 1))
    os.utime(files[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(files[1]).st_size == state.st_size
    assert identify_stream(streamed(files))[0] != before
    assert identify_stream(streamed(files[::-1]))[0] != before


def test_an_image_of_a_streamed_table_or_folder_is_noticed(tmp_path):
    image = save_images(tmp_path) / "train" / "cat" / "0.png"

    def identities():
        table = make_dataset(12, seed=image.stat().st_size).to_iterable_dataset(num_shards=3)
        folder = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True)
        found = [identify_stream(stream_of(stream)) for stream in (table, folder)]
        assert all(unknown == [] for _, unknown in found)
        return [identity for identity, _ in found]

    before = identities()
    assert identities() == before
    image.write_bytes(image.read_bytes() + b"x")
    assert all(now != then for now, then in zip(identities(), before, strict=True))


def a_map_of_mine(row):
    return row


def test_functions_that_rows_pass_through_are_said_to_be_compared_by_name(tmp_path, caplog):
    def make():
        stream = make_dataset(12).to_iterable_dataset(num_shards=2).decode(False)
        stream = stream.map(a_map_of_mine, features=make_dataset(12).features)
        return make_trainer(tmp_path, dataset=stream, steps_per_epoch=2, **SAVING)

    make().train()
    assert "can't be checked, for they come by test_identity.a_map_of_mine: only the name is compared" in caplog.text
    make().train(resume_from_checkpoint=True)
    plain = make_dataset(12).to_iterable_dataset(num_shards=2)
    with pytest.raises(InputError, match="samples "):
        make_trainer(tmp_path, dataset=plain, steps_per_epoch=2, **SAVING).train(resume_from_checkpoint=True)


def test_a_commit_identifies_the_files_of_a_stream():
    class Source:
        """A step of a stream that reads files of the Hub."""

        def __init__(self, commit):
            self.kwargs = {"files": [f"hf://datasets/me/images@{commit}/train.parquet"]}

    stream = stream_of(make_dataset(12).to_iterable_dataset())
    found = []
    for commit in ("a" * 40, "b" * 40, "main"):
        stream.dataset._ex_iterable = Source(commit)
        found.append(identify_stream(stream))
    assert found[0][1] == found[1][1] == [] and found[0][0] != found[1][0]
    assert found[2][1] == ["hf://datasets/me/images@main/train.parquet"]


# Hashes that are kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where hashes are kept that take no time."""
    monkeypatch.setattr(hashing, "WORTH_KEEPING", 0)
    monkeypatch.setattr(hashing, "STILL_CHANGING", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hpt" / "hashes"


def on_disk(folder, seed=0) -> Dataset:
    make_dataset(30, seed=seed).save_to_disk(folder)
    return Dataset.load_from_disk(str(folder))


def test_a_hash_that_is_kept_is_that_of_the_images(kept, tmp_path):
    dataset = on_disk(tmp_path / "data")
    expected = hash_samples(make_dataset(30))  # in memory, of which none is kept
    assert not kept.exists()
    assert hash_samples(dataset) == hash_samples(dataset) == expected
    (file,) = kept.iterdir()
    assert hash_samples(dataset.select(range(20))) == hash_samples(make_dataset(30).select(range(20))) != expected
    assert hash_rows(dataset) == hash_rows(make_dataset(30))
    content = file.read_text()
    for damaged in ("", "x", content[: len(content) // 2], content.replace(content[3], "x", 1), "\0" * 90):
        file.write_text(damaged)
        assert hash_samples(dataset) == expected and file.read_text() == content


def test_a_hash_that_is_kept_is_taken(kept, tmp_path, monkeypatch):
    dataset = on_disk(tmp_path / "data")
    expected = hash_samples(dataset)
    monkeypatch.setattr(hashing, "_hash_contents", None)
    assert hash_samples(dataset) == expected


def test_files_that_were_written_since_are_read_again(kept, tmp_path):
    folder = save_images(tmp_path / "images")
    files = [str(folder / "train" / "cat" / f"{number}.png") for number in range(2)]
    images = Dataset.from_dict({"image": files, "label": [0, 1]}).cast_column("image", Image())
    before = hash_samples(images), hash_files(files)
    assert (hash_samples(images), hash_files(files)) == before and len(list(kept.iterdir())) == 2
    state, content = os.stat(files[0]), Path(files[0]).read_bytes()
    Path(files[0]).write_bytes(content[:-1] + b"x")  # of the same size, and soon of the same time
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert hash_samples(images) != before[0] and hash_files(files) != before[1]


def test_nothing_is_kept_of_files_that_may_still_change_or_where_nothing_can_be_written(kept, tmp_path, monkeypatch):
    dataset = on_disk(tmp_path / "data")
    monkeypatch.setattr(hashing, "STILL_CHANGING", 60)
    expected = hash_samples(dataset)
    assert not kept.exists()
    monkeypatch.setattr(hashing, "STILL_CHANGING", 0)
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder would be")
    assert hash_samples(dataset) == expected
