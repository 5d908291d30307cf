"""Settings are read from YAML files that may be damaged, or made to do harm: each is one line, and nothing is run."""

import os
import time

import pytest

from hpt import HPTConfig, InputError
from hpt.cli import parse_config
from hpt.yaml_files import LONGEST_YAML, parse_yaml


BOMB = b"tags: &a [x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in b"bcdefgh"
)

REFUSED = {
    "list": (b"- seed", "must hold `field: value` lines"),
    "text": (b"hello", "must hold `field: value` lines"),
    "deep list": (b"seed: " + b"[" * 5000 + b"]" * 5000, "nested too deep"),
    "deep dictionary": (b"seed: " + b"{a: " * 5000 + b"1" + b"}" * 5000, "nested too deep"),
    "alias bomb": (BOMB, r"line 2: write out what the alias \*a stands for"),
    "alias of itself": (b"label_names: &a [*a]", r"line 1: write out what the alias \*a stands for"),
    "merged alias": (b"seed: &x {seed: 1}\n<<: *x", r"line 2: write out what the alias \*x stands for"),
    "key twice": (b"seed: 1\n'seed': 2", "gives seed more than once"),
    "latin-1": ("run_name: é".encode("latin-1"), "isn't UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "isn't UTF-8"),
    "control character": (b"seed: \x07", "isn't valid YAML: unacceptable character"),
    "cut off": (b"label_names: [a,", "isn't valid YAML: while parsing a flow"),
    "two documents": (b"seed: 1\n---\nseed: 2", "expected a single document"),
    "code": (b"seed: !!python/object/apply:os.system [exit]", "could not determine a constructor for the tag"),
    "impossible date": (b"seed: 2020-99-99", "a value that isn't what it looks like"),
    "no timestamp": (b"seed: !!timestamp x", "a value that isn't what it looks like"),
    "no truth": (b"use_cpu: !!bool x", "a value that isn't what it looks like"),
    "huge number": (b"seed: " + b"9" * 5000, "a value that isn't what it looks like"),
    "date": (b"seed: 2020-01-01", "--seed is '2020-01-01', but must be a whole number"),
    "bytes": (b"run_name: !!binary aGVsbG8=", "run_name can't be b'hello'"),
    "set": (b"label_names: !!set {a}", "label_names can't be {'a'}"),
    "list in a list": (b"label_names: [[a]]", r"label_names can't be \['a'\]"),
    "option": (b"label_names: [a, --help]", "label_names can't be '--help', .* begins with no dash"),
    "list as a key": (b"? [a, b]\n: 1", "unhashable key"),
    "empty key": (b"null: 1", "Unknown field 'None'"),
    "too long": (b"#" * (4 * LONGEST_YAML + 1), "is too long for YAML: 400,001 bytes"),
    "many keys": (b"a: 1\n" * (LONGEST_YAML // 5 + 1), "is too long for YAML: 100,005 characters"),
}


def read(path):
    return parse_config((HPTConfig,), None, ["--config", str(path), "--output_dir", "unused", "--use_cpu", "True"])[0]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_config_that_cannot_be_meant_is_refused_in_a_line(tmp_path, kind):
    content, message = REFUSED[kind]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    begun = time.perf_counter()
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert "\n" not in str(refused.value) and time.perf_counter() - begun < 10


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless", "link to itself", "missing"])
def test_what_is_no_file_is_no_config(tmp_path, kind):
    path = tmp_path / "config.yaml"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path.name),
        "missing": lambda: None,
    }
    make[kind]()
    with pytest.raises(InputError, match="There is no configuration file"):
        read(path)


@pytest.mark.parametrize(
    ("content", "seed"),
    [
        (b"seed: 7", 7),
        (b"\xef\xbb\xbfseed: 7", 7),
        (b"seed: &name 7", 7),
        (b"seed: 0x10", 16),
        (b"", 42),
        (b"null", 42),
    ],
    ids=["plain", "mark", "name without alias", "hexadecimal", "empty", "null"],
)
def test_what_can_be_meant_is_read(tmp_path, content, seed):
    (tmp_path / "config.yaml").write_bytes(content)
    assert read(tmp_path / "config.yaml").seed == seed


def test_the_longest_text_is_read():
    text = "tags:\n" + "- a\n" * ((LONGEST_YAML - 6) // 4)
    assert len(parse_yaml(text, "the card")["tags"]) == 24998
    with pytest.raises(InputError, match="the card is too long for YAML: 100,002 characters of 100,000"):
        parse_yaml(text + "- a\n", "the card")
