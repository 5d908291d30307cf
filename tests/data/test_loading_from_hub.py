"""The network path, by real ids: datasets and models from a stand-in for the Hub, in a process of their own."""

import json
import os
import subprocess
import sys

import pytest
from helpers import CLASSES, make_clip, save_images
from hub_layouts import LAYOUTS, write_repository, write_shards
from PIL import Image
from stand_in_hub import COMMIT, TOKEN, stand_in_hub

from hpt import BENCHMARKS
from hpt.data.records import SIXTEEN
from hpt.models.loading import save_finished


SCRIPT = """
import json, sys, warnings
from hpt import InputError, load_benchmark, load_proxy
warnings.simplefilter("always")
outcomes = {}
for text in sys.argv[1:]:
    name, _, mode = text.partition("+")
    with warnings.catch_warnings(record=True) as caught:
        try:
            if mode == "proxy":
                outcomes[text] = load_proxy(name).model.config._commit_hash
                continue
            loaded = load_benchmark(name, streaming=mode == "streaming")
            benchmarks = loaded if isinstance(loaded, dict) else {name: loaded}
            outcomes[text] = {
                key: [next(iter(benchmark))["labels"], benchmark.source, benchmark.class_names[1]]
                for key, benchmark in benchmarks.items()
            }
        except InputError as error:
            outcomes[text] = str(error)
        messages = [str(warning.message) for warning in caught]
        outcomes[text + " warned"] = [message for message in messages if "instead of" not in message]
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def full_hub(tmp_path_factory):
    """All sixteen but one, ImageNet gated; and a proxy, beside a gated one."""
    root = tmp_path_factory.mktemp("hub")
    for name in LAYOUTS:
        if name != "dtd":
            write_repository(root / "datasets" / BENCHMARKS[name].hub_id, name, card=name != "tiny_imagenet")
    write_shards(root / "datasets" / "org" / "shards", CLASSES)
    for split in ("train", "test"):
        (root / "datasets" / "org" / "flat" / split).mkdir(parents=True)
    for file in save_images(root / "datasets" / "org" / "pets", ("train", "test")).rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
        Image.new("RGB", (8, 8)).save(root / "datasets" / "org" / "flat" / file.parts[-3] / f"{file.stem}.png")
    for name in ("org/proxy", "org/gated"):
        save_finished(*make_clip(1, patch_size=4), root / "models" / name)
    with stand_in_hub(root, gated={BENCHMARKS["imagenet"].hub_id, "org/gated"}) as server:
        yield server


@pytest.fixture
def load_from(full_hub, tmp_path):
    """Loads benchmarks in a process of its own, which sees the stand-in as the Hub, and gives what became of each."""

    def load(*texts, **environment):
        environment = {
            "HF_ENDPOINT": full_hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        } | environment
        full_hub.requests.clear()
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, *texts], env=os.environ | environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert TOKEN not in run.stdout + run.stderr
        return json.loads(run.stdout)

    return load


def downloaded(hub) -> list[str]:
    return sorted({path.partition(COMMIT)[2] for kind, path in hub.requests if kind == "GET" and ".parquet" in path})


def test_all_are_loaded_from_the_hub_but_what_cannot_be_had(full_hub, load_from):
    """Found, missing, gated with and without a token; then from the cache without the Hub."""
    outcomes = load_from("all")
    assert list(outcomes["all"]) == [name for name in SIXTEEN if name not in ("imagenet", "dtd")]
    assert outcomes["all"]["cifar10"] == [0, f"uoft-cs/cifar10@{COMMIT}", "automobile"]
    (left_out,) = [message for message in outcomes["all warned"] if message.startswith("Left out: ")]
    first, second = left_out.split(" dtd: ")
    assert first.startswith("Left out: imagenet: Can't load the dataset 'ILSVRC/imagenet-1k': it is gated: accept")
    assert "https://huggingface.co/datasets/ILSVRC/imagenet-1k, then run `hf auth login` or set HF_TOKEN" in first
    assert second.startswith("Can't load the dataset 'tanganke/dtd': no such Hub id or local folder")
    files = [path for kind, path in full_hub.requests if kind == "GET" and path.endswith(".parquet")]
    splits = {path.rsplit("/", 1)[1].partition("-")[0] for path in files if "stanford_cars" in path}
    assert splits == {"test"}  # neither its training images nor its corrupted ones
    assert len([path for path in files if "sun397" in path]) == 3  # train, validation and test make up the protocol's

    hub_was_asked = len(full_hub.requests)
    offline = load_from("all", HF_HUB_OFFLINE="1")
    assert hub_was_asked and not full_hub.requests and offline["all"] == outcomes["all"]
    assert f"isn't in the cache, and the Hub can't be reached at {full_hub.url}" in offline["all warned"][-1]

    with_token = load_from("imagenet", HF_TOKEN=TOKEN)
    assert with_token["imagenet"]["imagenet"] == [0, f"ILSVRC/imagenet-1k@{COMMIT}", "goldfish"]
    assert downloaded(full_hub) == ["/data/validation-00000-of-00001.parquet"]


def test_streaming_reads_from_the_hub_without_a_cache(full_hub, load_from, tmp_path):
    outcomes = load_from("food101+streaming", "caltech256+streaming", "stl10+streaming")
    assert outcomes["food101+streaming"] == {"food101": [0, f"ethz/food101@{COMMIT}", "baby back ribs"]}
    assert outcomes["caltech256+streaming"]["caltech256"][2] == "american flag"
    assert not list((tmp_path / "home" / "hub").rglob("*.parquet"))
    assert downloaded(full_hub)[0] == "/data/test-00000-of-00001.parquet"
    offline = load_from("food101+streaming", "dtd", HF_HUB_OFFLINE="1")
    assert all("the Hub can't be reached" in offline[text] for text in ("food101+streaming", "dtd"))


@pytest.mark.parametrize("mode", ["", "+streaming"], ids=["downloaded", "streaming"])
def test_shards_and_folders_of_images_are_read_from_the_hub(load_from, mode):
    """With the class names that lie beside the shards; the files of a streamed folder aren't decoded on the way."""
    shards, pets, flat = (f"org/{name}:geometry=native" for name in ("shards", "pets", "flat"))
    outcomes = load_from(f"{shards}{mode}", f"{pets}{mode}", f"{flat}{mode}")
    assert outcomes[f"{shards}{mode}"] == {shards: [0, f"org/shards@{COMMIT}", "dog"]}
    assert "org/flat has images in test/, train/, but no folders by class" in outcomes[f"{flat}{mode}"]
    assert outcomes[f"{pets}{mode}"] == {pets: [0, f"org/pets@{COMMIT}", "dog"]}


def test_a_pinned_revision_is_kept_apart_in_the_cache(full_hub, load_from):
    pinned = f"cifar10=uoft-cs/cifar10@{COMMIT}"
    missing = "cifar10=uoft-cs/cifar10@v9"
    outcomes = load_from(pinned, missing)
    assert outcomes[pinned][pinned][1] == f"uoft-cs/cifar10@{COMMIT}"
    assert "Can't load the dataset 'uoft-cs/cifar10@v9': no such" in outcomes[missing]
    offline = load_from(pinned, "cifar10", HF_HUB_OFFLINE="1")
    assert offline[pinned][pinned][0] == 0 and "can't be reached" in offline["cifar10"]


def test_proxies_are_found_missing_or_gated(load_from):
    outcomes = load_from("org/proxy+proxy", "org/gated+proxy", "org/missing+proxy")
    assert outcomes["org/proxy+proxy"] == COMMIT
    assert "'org/missing': no such Hub id or local folder" in outcomes["org/missing+proxy"]
    assert "'org/gated': it is gated: accept its terms at" in outcomes["org/gated+proxy"]
    assert "hf auth login" in outcomes["org/gated+proxy"]
