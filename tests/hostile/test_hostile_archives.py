"""Archives, folders and files of datasets that would fill the disk, wait for ever, reach outside or run something."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpt import InputError, load_benchmark


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(file, "PNG")
    return file.getvalue()


def refusal(text: str) -> str:
    """The one line with which a dataset is refused."""
    with pytest.raises(InputError) as refused:
        load_benchmark(f"birds={text}:split=train")[0]
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


# Archives


def pack(path, *members: tuple[str, dict]) -> str:
    """A tar archive of two classes with an image each, and of further members with these settings."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, settings in [("cat/1.png", {}), ("dog/1.png", {}), *members]:
            content = settings.pop("content", png() if not settings else b"")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in settings.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def outside(folder) -> list[str]:
    """What lies in a folder, without the cache."""
    return sorted(path.name for path in folder.iterdir() if path.name != "cache")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "member",
    [
        ("../../../../../evil.png", {}),
        ("{folder}/evil.png", {}),
        ("cat/2.png", {"type": tarfile.SYMTYPE, "linkname": "{folder}/secret.png"}),
        ("cat/2.png", {"type": tarfile.LNKTYPE, "linkname": "{folder}/secret.png"}),
    ],
    ids=["parent", "absolute", "link", "hard link"],
)
def test_members_that_lead_out_of_an_archive_are_left_out(tmp_path, ending, member):
    (tmp_path / "secret.png").write_bytes(png())
    name, settings = member
    settings = {key: value.format(folder=tmp_path) if key == "linkname" else value for key, value in settings.items()}
    archive = pack(tmp_path / f"set.{ending}", (name.format(folder=tmp_path), settings))
    assert len(load_benchmark(f"birds={archive}:split=train")) == 2
    assert outside(tmp_path) == ["secret.png", f"set.{ending}"]


def test_a_pipe_in_an_archive_is_refused(tmp_path):
    line = refusal(pack(tmp_path / "set.tar", ("cat/2.png", {"type": tarfile.FIFOTYPE})))
    assert "2.png is neither a file nor a folder: remove it" in line


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives_that_expand_a_hundredfold_are_not_unpacked(tmp_path, ending):
    path, zeros = tmp_path / f"set.{ending}", bytes(20 << 20)
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/1.png", zeros)
    else:
        pack(path, ("cat/2.png", {"content": zeros}))
    assert "set." in refusal(str(path)) and "holds files of more than 100 times its own size" in refusal(str(path))
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_an_archive_that_claims_terabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "set.tar"
    pack(path)
    member = tarfile.TarInfo("cat/2.png")
    member.size = 1 << 40
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512) + member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "set.tar" in refusal(str(path))
    assert not list((tmp_path / "cache").rglob("2.png"))


def test_flat_images_may_be_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("cat", "dog"):
            file = io.BytesIO()
            Image.new("RGB", (50, 50)).save(file, "BMP")
            archive.writestr(f"{kind}/1.bmp", file.getvalue())
    assert len(load_benchmark(f"birds={tmp_path / 'set.zip'}:split=train")) == 2


class Touch:
    """Its pickle, once it is read, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pyd", "pth", "npy", "npz", "ten", "tb", "mp", "msg"])
def test_nothing_in_a_shard_is_unpickled(tmp_path, ending):
    members = []
    for row in range(2):
        members += [(f"{row}.png", {"content": png()}), (f"{row}.cls", {"content": b"%d" % row})]
        members += [(f"{row}.{ending}", {"content": pickle.dumps(Touch(tmp_path / "done"))})]
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train-0.tar", "w") as archive:
        for name, settings in members:
            member = tarfile.TarInfo(name)
            member.size = len(settings["content"])
            archive.addfile(member, io.BytesIO(settings["content"]))
    (tmp_path / "set" / "classnames.txt").write_text("cat\ndog\n")
    try:
        assert len(load_benchmark(f"birds={tmp_path / 'set'}:split=train")) == 2
    except InputError as error:
        assert str(error).startswith("Can't load the dataset ") and len(str(error).splitlines()) == 1
    assert not (tmp_path / "done").exists()


# Folders and tables


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_in_a_folder(tmp_path, kind):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.png").write_bytes(png())
    path = tmp_path / "set" / "cat" / "2.png"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert f"{path} is neither a file nor a folder" in refusal(str(tmp_path / "set"))


@pytest.mark.parametrize(
    "text",
    [
        "1.png,cat\n../../../../../../../etc/passwd,dog\n",
        "1.png,cat\n/dev/zero,dog\n",
        f"1.png,cat\n{'x' * 300},dog\n",
        "1.png,cat\n.,dog\n",
        "1.png,cat\nhttp://localhost:1/2.png,dog\n",
        f"{'x' * 300},cat\n1.png,dog\n",
        "",
        "\0\n",
    ],
    ids=["another file", "device", "long", "folder", "address", "long first", "nothing", "zero"],
)
def test_tables_that_name_no_images_are_refused(tmp_path, text):
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "set.csv").write_text(f"path,label\n{text}" if text else "")
    try:
        benchmark = load_benchmark(f"birds={tmp_path / 'set.csv'}:split=train,geometry=256-224")
        with pytest.raises(InputError, match=r"The image in row 1 of birds \(train\) can't be used"):
            benchmark[1]
    except InputError as error:
        assert "set.csv" in str(error) and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "description",
    [
        "{",
        "null",
        "[]",
        '{"info": {"features": []}}',
        '{"info": {"features": {"image": {"_type": "Nope"}}}}',
        '{"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
        '{"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": null}}}}',
        2000 * "[",
    ],
    ids=["cut off", "null", "list", "no features", "another type", "numbers as names", "no names", "deep"],
)
def test_a_parquet_file_with_an_odd_description_is_refused_in_a_line(tmp_path, description):
    images = pa.array([{"bytes": png(), "path": None}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": images, "label": [0, 1]}).replace_schema_metadata({"huggingface": description})
    pq.write_table(table, tmp_path / "train.parquet")
    assert "train.parquet" in refusal(str(tmp_path / "train.parquet"))


@pytest.mark.parametrize("rows", [[{"bytes": None, "path": None}], [None], [{"bytes": b"", "path": None}]])
def test_images_that_are_missing_in_a_parquet_file_are_named(tmp_path, rows):
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    description = json.dumps({"info": {"features": features}})
    table = pa.table({"image": images, "label": [0]}).replace_schema_metadata({"huggingface": description})
    pq.write_table(table, tmp_path / "train.parquet")
    benchmark = load_benchmark(f"birds={tmp_path / 'train.parquet'}:split=train,geometry=native")
    with pytest.raises(InputError, match=r"The image in row 0 of birds \(train\) can't be used: "):
        benchmark[0]
