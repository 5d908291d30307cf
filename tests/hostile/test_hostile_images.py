"""Images that stand for more memory, time or programs than an image may, and files that are no images."""

import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from hpt import InputError
from hpt.data import benchmark as benchmark_module
from hpt.data import images as images_module
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform, ProcessorTransform
from hpt.data.given import as_benchmarks
from hpt.data.images import MAX_PIXELS, MAX_SCANS, check_images, decode_image


CLASSES = ["cat", "dog"]
PAPERS = ImageTransform(256, 224)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, pixels: bytes = b"", more: bytes = b"") -> bytes:
    """A grey PNG of 8 bits that claims to have this size, whatever pixels it has."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small image whose header says another size."""
    content = bytearray(encoded(Image.new("L", (8, 8)), kind))
    if kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def many_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = encoded(Image.effect_noise((16, 16), 50), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + number * scan + content[-2:]


LARGER = "than 178956970|may have 178 million at most|exceeds limit"  # by Pillow or by hpt
STRIP = "may be 100 times as long as it is wide at most"
UNKNOWN = "cannot identify image file"
TOO_LARGE = {
    "strip": (png(1, 60000, bytes(120000)), STRIP),
    "lying strip": (png(60000, 1, bytes(60001)), STRIP),
    "strip, JPEG": (encoded(Image.new("L", (1, 9000)), "JPEG"), STRIP),
    "strip, WebP": (encoded(Image.new("RGB", (1, 9000)), "WEBP"), STRIP),
    "strip, GIF": (claiming("GIF", 1, 65535), STRIP),
    "strip, TIFF": (encoded(Image.new("L", (1, 9000)), "TIFF"), STRIP),
    "strip, BMP": (encoded(Image.new("1", (1, 9000)), "BMP"), STRIP),
    "strip, PPM": (encoded(Image.new("L", (1, 9000)), "PPM"), STRIP),
    "large, PNG": (png(13400, 13400), LARGER),
    "huge, PNG": (png(60000, 60000), LARGER),
    "largest, PNG": (png(2**31 - 1, 2**31 - 1), LARGER),
    "large, JPEG": (claiming("JPEG", 14000, 14000), LARGER),
    "huge, JPEG": (claiming("JPEG", 60000, 60000), LARGER),
    "large, GIF": (claiming("GIF", 14000, 14000), LARGER),
    "huge, GIF": (claiming("GIF", 60000, 60000), LARGER),
    "large, BMP": (claiming("BMP", 14000, 14000), LARGER),
    "huge, PPM": (b"P6\n60000 60000\n255\n", LARGER),
}
NO_IMAGES = {
    "nothing": (b"", UNKNOWN),
    "HTML": (b"<!DOCTYPE html><title>404 Not Found</title>", UNKNOWN),
    "JSON": (b'{"error": "Entry not found"}', UNKNOWN),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNKNOWN),
    "PDF": (b"%PDF-1.4\n%\xe2\xe3\n", UNKNOWN),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), UNKNOWN),
    "pointer of LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", UNKNOWN),
    "zip": (b"PK\3\4" + bytes(50), UNKNOWN),
    "no pixels": (png(0, 5), UNKNOWN),
    "half a signature": (b"\x89PN", UNKNOWN),
    "PostScript": (encoded(Image.new("RGB", (8, 8)), "EPS"), "format EPS would be drawn by another program"),
    "metafile": (b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 99, 99, 96) + bytes(6) + b"\1\0\t\0" + bytes(30),)
    + ("format WMF would be drawn by another program",),
    "16 bits": (encoded(Image.new("I;16", (8, 8))), "more than 8 bits a channel"),
    "floats": (encoded(Image.new("F", (8, 8)), "TIFF"), "more than 8 bits a channel"),
    "32 bits": (encoded(Image.new("I", (8, 8)), "TIFF"), "more than 8 bits a channel"),
    "bomb in a text": (png(8, 8, bytes(72), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(5 << 20)))), "too large"),
}


def as_table(*files: bytes | None) -> Dataset:
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=CLASSES)})
    rows = [None if file is None else {"bytes": file, "path": None} for file in files]
    return Dataset.from_dict({"image": rows, "label": [0] * len(rows)}, features)


def as_benchmark(*files: bytes | None, transform: ImageTransform = PAPERS) -> Benchmark:
    return Benchmark("birds", "test", as_table(*files), CLASSES, None, transform)


GOOD = encoded(Image.new("RGB", (300, 300)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", [*TOO_LARGE, *NO_IMAGES])
def test_it_is_refused_by_its_row_in_a_line_before_it_is_decoded(name, monkeypatch):
    content, reason = (TOO_LARGE | NO_IMAGES)[name]
    benchmark = as_benchmark(GOOD, content)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it is decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it is decoded"))
    for run in (lambda: benchmark[1], lambda: check_images(benchmark.dataset, "birds (test)")):
        with pytest.raises(
            InputError, match=rf"The image in row 1 of birds \(test\) can't be used: .*({reason})"
        ) as it:
            run()
        assert len(str(it.value).splitlines()) == 1 and len(str(it.value)) < 400


def test_jpegs_of_too_many_scans_are_refused_when_they_are_decoded():
    assert as_benchmark(many_scans(MAX_SCANS // 2))[0]["pixel_values"].shape == (3, 224, 224)
    with pytest.raises(InputError, match=r"row 1 of birds \(test\).*: it has \d+ scans, but a JPEG may have 100"):
        as_benchmark(GOOD, many_scans(MAX_SCANS))[1]


def test_what_looks_like_scans_beside_those_of_a_jpeg_does_not_count():
    content, like_scans = encoded(Image.new("RGB", (300, 300)), "JPEG"), MAX_SCANS * b"\xff\xda"
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(like_scans)) + like_scans
    for photograph in (content + like_scans, content[:2] + thumbnail + content[2:]):
        assert as_benchmark(photograph)[0]["pixel_values"].shape == (3, 224, 224)


def test_files_are_read_up_to_a_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(images_module, "MAX_BYTES", 2**20)
    (tmp_path / "large.png").write_bytes(GOOD + bytes(2**20))
    in_memory, on_disk = {"bytes": GOOD + bytes(2**20), "path": None}, {"bytes": None, "path": tmp_path / "large.png"}
    for file in (in_memory, on_disk | {"path": str(on_disk["path"])}):
        with pytest.raises(InputError, match="The image in a row can't be used: its file has more than 1 MB"):
            decode_image(file, "a row")


@pytest.mark.parametrize("size", [(1, 100), (100, 1), (1, 1), (2, 2), (7, 97), (30, 2900)])
@pytest.mark.parametrize("transform", [PAPERS, ProcessorTransform(224, 224)], ids=str)
def test_what_is_odd_but_small_enough_is_read(size, transform):
    benchmark = as_benchmark(encoded(Image.new("RGB", size)), transform=transform)
    check_images(benchmark.dataset, "birds")
    assert benchmark[0]["pixel_values"].shape == (3, 224, 224)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damage_anywhere_gives_pixels_or_a_line(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))
    whole, draws = encoded(noise, kind), np.random.default_rng(1)
    damaged = [whole[: int(share * len(whole))] for share in (0, 0.1, 0.5, 0.9)]
    for _ in range(20):
        content = bytearray(whole)
        content[draws.integers(min(len(content), 200))] ^= 1 << int(draws.integers(8))
        damaged.append(bytes(content))
    outcomes = set()
    for content in damaged:
        try:
            outcomes.add(tuple(as_benchmark(content)[0]["pixel_values"].shape))
        except InputError as error:
            assert str(error).startswith("The image in row 0 of birds (test) can't be used: ")
            outcomes.add(len(str(error).splitlines()))
    assert outcomes <= {(3, 224, 224), 1} and 1 in outcomes


def test_a_batch_is_decoded_image_by_image(monkeypatch):
    """Or 64 images within the bounds would lie in memory together."""
    steps = []
    decode, transform = benchmark_module.decode_image, ImageTransform.__call__
    monkeypatch.setattr(benchmark_module, "decode_image", lambda *given: steps.append("decode") or decode(*given))
    monkeypatch.setattr(ImageTransform, "__call__", lambda *given: steps.append("resize") or transform(*given))
    as_benchmark(GOOD, GOOD, GOOD).__getitems__([0, 1, 2])
    assert steps == 3 * ["decode", "resize"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((60000, 1, 3), np.uint8), STRIP),
        (Image.new("RGB", (1, 60000)), STRIP),
        (np.zeros((0, 5, 3), np.uint8), "it has no pixels"),
        (np.zeros((8, 8, 4), np.uint8), "its shape is"),
        (np.zeros((3, 8, 8), np.uint8), "its shape is"),
        (np.zeros((8, 8, 3), np.int64), "its pixels are int64"),
        (np.full((8, 8, 3), np.nan), "its pixels go from nan"),
        (np.full((8, 8, 3), 255.0), "its pixels go from 255"),
        (b"x", "it is of type bytes"),
        (None, "it is of type NoneType"),
    ],
    ids=["strip", "PIL strip", "empty", "4 channels", "channels first", "int64", "nan", "255", "bytes", "none"],
)
def test_pixels_that_cannot_be_are_refused_by_their_row(image, reason):
    pairs = Pairs([(np.zeros((8, 8, 3), np.uint8), 0), (image, 1)])
    with pytest.raises(InputError, match=f"The image in row 1 of mine.* can't be used: .*{reason}"):
        as_benchmarks(pairs, "mine")


class Pairs(list):
    classes = CLASSES


def test_the_bound_of_pixels_is_where_pillow_refuses():
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
