"""Checkpoints of other formats wherever a model is named: what is said of them, and the cache of what they become."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conversion_sources import MEAN, SAID, OpenAIClip, config_of, save_open_clip
from helpers import CLASSES, run_recipe
from huggingface_hub import constants
from stand_in_hub import COMMIT
from transformers import CLIPProcessor

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.errors import WriteFailed
from hpt.models import converted
from hpt.models.conversion import to_transformers
from hpt.models.conversion.options import ConversionOptions
from hpt.models.converted import check_model
from hpt.models.loading import load_dual_encoder, load_named, load_reference, load_teacher
from hpt.models.origin import parse_conversion
from hpt.models.proxies import parse_proxies
from hpt.models.weights import hash_weights
from hpt.references import STATED, parse_model
from hpt.training.pretraining import byte_tokenizer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the cache is."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hpt" / "converted"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of open_clip, and its vision tower alone."""
    folder, source = tmp_path_factory.mktemp("sources"), OpenAIClip()
    save_open_clip(folder / "open_clip", source.state_dict(), config_of())
    torch.save(source.vision_weights(), folder / "tower.pt")
    torch.save(OpenAIClip(seed=1).vision_weights(), folder / "another.pt")
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """What is converted from here on, by its source."""
    made, convert = [], converted.convert

    def counting(checkpoint, *rest):
        made.append(checkpoint.source)
        return convert(checkpoint, *rest)

    monkeypatch.setattr(converted, "convert", counting)
    return made


# What is said of a checkpoint


def test_references_say_what_options_there_are():
    assert list(STATED) == list(ConversionOptions.__dataclass_fields__)
    for prefix in ("hf-hub:me/clip@v2", "fare.pt", "mine=a/fare.pt"):
        model = parse_model(f"{prefix}:base=o/clip@v1,heads=16,image_mean=0.5|0.4|0.3,activation=gelu", loaded=True)
        options = ConversionOptions.parse(model.settings)
        assert options == ConversionOptions("o/clip@v1", "gelu", 16, image_mean=(0.5, 0.4, 0.3))
        assert (options.base_reference.source, options.base_reference.revision) == ("o/clip", "v1")
    assert model.source == "a/fare.pt" and parse_model("hf-hub:me/clip@v2").place == "hf-hub:me/clip@v2"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("activation=relu", "Unknown activation 'relu'; known: gelu, quick_gelu"),
        ("heads=0", "heads is 0, but must be a whole number of at least 1"),
        ("heads=many", "heads is 'many', but must be a whole number of at least 1"),
        ("image_mean=0.5", "image_mean is 0.5, but must be three numbers, one for each channel"),
        ("image_mean=a|b|c", "image_mean is 'a|b|c', but must be three numbers, such as 0.48|0.46|0.41"),
        ("image_std=1|0|1", "image_std is 1 0 1, but must be three numbers above 0"),
        ("base=no/such/folder", "Can't load the model 'no/such/folder': there is no such folder"),
        ("base=", "base is empty, but must be a Hub id or a path"),
        ("tokenizer= ", "tokenizer is empty, but must be a Hub id or a path"),
        (
            "base={saved}:image_size=32",
            "target:image_size=32', but is loaded as it stands, without image_size: give a Hub",
        ),
        ("base={saved}@v2", "asks for the revision v2, but {saved} lies on this machine and has none"),
        ("colour=blue", "sets 'colour', but of a model only image_size can be set, and of one that is converted base"),
    ],
)
def test_what_cannot_be_said_is_refused_before_anything_is_read(sources, saved, setting, line):
    setting, line = (text.replace("{saved}", str(saved)) for text in (setting, line))
    with pytest.raises(InputError) as refused:
        check_model(parse_model(f"{sources}/tower.pt:{setting}", loaded=True))
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_what_lies_on_the_disk_has_no_revision(sources, saved):
    for place in (saved, f"{sources}/tower.pt", f"local-dir:{sources}/open_clip"):
        with pytest.raises(
            InputError, match=r"@v2' asks for the revision v2, but .* lies on this machine and has none"
        ):
            check_model(parse_model(f"mine={place}@v2"))


def test_a_model_of_transformers_says_all_of_it_itself(saved):
    line = f"activation is given of {saved}, but a model in the format of transformers says that itself"
    for refuse in (check_model, load_reference):
        with pytest.raises(InputError, match=line):
            refuse(parse_model(f"{saved}:activation=gelu", loaded=True))


# The cache


def test_a_folder_of_open_clip_is_loaded_as_any_model_and_converted_once(sources, home, conversions, caplog):
    source, device = OpenAIClip(), torch.device("cpu")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for text in (f"mine={sources}/open_clip", f"again=local-dir:{sources}/open_clip"):
        _, classifier = load_named(parse_model(text, loaded=True), device)
        mean, std = classifier.image_mean, classifier.image_std
        own = source.visual((images - mean) / std)
        torch.testing.assert_close(classifier.outputs(images).image_features, own, rtol=1e-4, atol=1e-5)
        assert mean.flatten().tolist() == pytest.approx(MEAN)
    assert len(conversions) == 1
    (folder,) = home.iterdir()
    assert "open_clip is converted, and kept in" in caplog.text and str(folder) in caplog.text
    record = parse_conversion(json.loads((folder / "conversion.json").read_text()))
    assert record["source"] == "open_clip" and record["base"] is None and str(sources) not in json.dumps(record)


@pytest.mark.parametrize("source", [".", "local-dir:.", "../open_clip", "{sources}/open_clip/"])
def test_a_folder_has_its_own_name_however_it_is_given(sources, home, monkeypatch, source):
    monkeypatch.chdir(sources / "open_clip")
    folder = Path(load_proxy(source.format(sources=sources)).model.name_or_path)
    assert folder.name.startswith("open_clip-")
    assert json.loads((folder / "conversion.json").read_text())["source"] == "open_clip"


def test_a_tower_needs_its_base_and_is_kept_by_all_that_it_is_made_of(sources, home, conversions):
    base = {"base": f"{sources}/open_clip"}
    with pytest.raises(InputError, match="tower.pt' holds a vision tower alone: give the model that it was made from"):
        load_proxy(f"{sources}/tower.pt")
    conversions.clear()
    kept = {}
    for name, said in {"tower": base, "gelu": base | {"activation": "gelu"}, "another": base}.items():
        file = sources / ("another.pt" if name == "another" else "tower.pt")
        kept[name] = load_proxy(str(file), conversion=ConversionOptions(**said)).model
    whole, *towers = (load_proxy(f"{sources}/open_clip").model, kept["tower"], kept["gelu"], kept["another"])
    assert [hash_weights(tower.state_dict()) == hash_weights(whole.state_dict()) for tower in towers] == [1, 1, 0]
    assert [tower.config.vision_config.hidden_act for tower in towers] == ["quick_gelu", "gelu", "quick_gelu"]
    assert len({tower.name_or_path for tower in towers}) == 3 and len(conversions) == 4  # and the base, once


@pytest.mark.parametrize("changed", [{"mean": [0.1, 0.2, 0.3]}, {"resize_mode": "squash"}, {}], ids=str)
def test_what_changes_beside_a_checkpoint_makes_it_another(sources, home, tmp_path, changed):
    def made_with_base(name: str, eos_token: str, **preprocessing):
        config = config_of()
        config["preprocess_cfg"] |= preprocessing
        folder = save_open_clip(tmp_path / name, OpenAIClip().state_dict(), config)
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = eos_token
        tokenizer.save_pretrained(folder)
        return load_dual_encoder(f"{sources}/tower.pt", conversion=ConversionOptions(base=str(folder)))

    before, _ = made_with_base("one", "<|endoftext|>")
    after, processor = made_with_base("two", "<|endoftext|>" if changed else "!", **changed)
    assert before.name_or_path != after.name_or_path
    image_processor = processor.image_processor
    assert image_processor.image_mean == pytest.approx(changed.get("mean", MEAN))
    assert image_processor.do_center_crop == ("resize_mode" not in changed)
    assert processor.tokenizer.eos_token == ("<|endoftext|>" if changed else "!")


def test_processes_that_want_the_same_wait_for_the_one_that_converts_it(sources, home, conversions, monkeypatch):
    convert = converted.convert
    monkeypatch.setattr(
        converted, "convert", lambda *parts: time.sleep(0.2) or convert(*parts)
    )  # others come meanwhile
    with ThreadPoolExecutor(3) as threads:  # locks keep threads out as they do processes
        models = list(threads.map(load_proxy, [f"{sources}/open_clip"] * 3))
    assert len(conversions) == 1 and len({model.model.name_or_path for model in models}) == 1
    (folder,) = home.iterdir()
    assert not (folder / ".hpt.lock").exists() and not (folder / "incomplete").exists()


def test_what_a_kill_has_left_is_made_anew(sources, home, conversions):
    folder = Path(load_proxy(f"{sources}/open_clip").model.name_or_path)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "incomplete").mkdir()
    (folder / "incomplete" / "tokenizer.json").write_text("{")
    load_proxy(f"{sources}/open_clip")
    assert len(conversions) == 2 and not (folder / "incomplete").exists()


def test_what_a_power_cut_has_shortened_is_made_anew(sources, home, conversions):
    model = load_proxy(f"{sources}/open_clip").model
    file, weights = Path(model.name_or_path, "model.safetensors"), hash_weights(model.state_dict())
    half = file.read_bytes()[:-1000]
    file.unlink()  # rather than shortened: the model maps it into memory
    file.write_bytes(half)
    assert hash_weights(load_proxy(f"{sources}/open_clip").model.state_dict()) == weights and len(conversions) == 2


def test_what_cannot_be_converted_leaves_nothing_in_the_cache(sources, home, monkeypatch):
    rename = to_transformers.to_transformers

    def with_an_error(weights):
        return {name: 1.01 * weight if "fc1" in name else weight for name, weight in rename(weights).items()}

    monkeypatch.setattr(to_transformers, "to_transformers", with_an_error)
    with pytest.raises(InputError, match="cosines of the same images and prompts differ by .* Nothing is written"):
        load_proxy(f"{sources}/open_clip")
    assert not list(home.iterdir())


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_full_disk_ends_it_with_a_line_and_nothing_half_written(sources, home, tmp_path, monkeypatch, is_cached):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CLIPProcessor, "save_pretrained", fail)
    with pytest.raises(WriteFailed, match=r"can't be written: No space left on device\.$"):
        if is_cached:
            load_proxy(f"{sources}/open_clip")
        else:
            run_recipe("convert.py", sources / "open_clip", "--output_dir", tmp_path / "clip")
    assert not list(home.glob("*")) and not (tmp_path / "clip").exists()


def test_a_cache_that_cannot_be_written_is_said_with_what_to_set(sources, tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=r"open_clip must be converted and kept\. .* Set HF_HOME to one that can\.$"):
        load_proxy(f"{sources}/open_clip")


# The Hub


@pytest.fixture
def on_hub(hub):
    folder = hub.root / "models" / "org"
    folder.mkdir(parents=True)
    save_open_clip(folder / "clip", OpenAIClip().state_dict(), config_of())
    (folder / "clip" / "README.md").write_text("---\nlicense: mit\n---\n")
    return hub


def test_a_model_of_open_clip_comes_from_the_hub_and_then_from_the_cache(on_hub, conversions, monkeypatch):
    model, processor = load_dual_encoder("hf-hub:org/clip")
    (folder,) = Path(constants.HF_HOME, "hpt", "converted").iterdir()
    record = json.loads((folder / "conversion.json").read_text())
    assert (record["hub_id"], record["commit"], record["license"]) == ("org/clip", COMMIT, "mit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again, _ = load_dual_encoder("hf-hub:org/clip")
    assert hash_weights(again.state_dict()) == hash_weights(model.state_dict()) and len(conversions) == 1
    classifier = ZeroShotClassifier(again, processor, CLASSES)
    assert classifier(torch.rand(1, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("hf-hub:org/none", "Can't load the model 'org/none': no such Hub id or local folder, or it is private"),
        ("hf-hub:org/transformers", "'hf-hub:org/transformers': there is no open_clip_config.json"),
        ("hf-hub:org/gated", "it is gated: accept its terms at https://huggingface.co/org/gated"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_line(on_hub, saved, monkeypatch, name, line):
    (on_hub.root / "models" / "org" / "transformers").symlink_to(saved)
    (on_hub.root / "models" / "org" / "gated").mkdir()
    on_hub.gated = {"org/gated"}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError) as refused:
        load_proxy(name)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("is_offline", [True, False])
def test_a_hub_that_is_gone_is_said_in_a_line(on_hub, monkeypatch, is_offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    on_hub.shutdown()
    on_hub.server_close()
    with pytest.raises(InputError, match="Can't load the model 'org/clip': .* the Hub can't be reached at http"):
        load_proxy("hf-hub:org/clip")


# Proxies


def test_a_proxy_is_converted_with_a_template_of_its_own(sources, home):
    (reference,) = parse_proxies([f"robust={sources}/tower.pt:base={sources}/open_clip,template=a {{}}, robustly"])
    proxy = load_teacher(reference, torch.float32)
    assert proxy.templates == ["a {}, robustly"] and proxy.model.config.vision_config.hidden_act == SAID["activation"]
