"""Rows that are kept are computed once, whoever wants them and whatever ends a process, or are not there."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from hpt.errors import WriteFailed
from hpt.training import kept_rows
from hpt.training.kept_rows import find_rows, keep_rows


NUMBER = 10
EXPECTED = np.arange(NUMBER)[:, None] * np.array([1.0, 2.0], np.float32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(kept_rows, "CHUNK", 4)


class Compute:
    """Rows of [`EXPECTED`]; the numbers that it was asked for; what it does at some of them."""

    def __init__(self, at=None, error=None):
        self.asked, self.at, self.error = [], at, error

    def __call__(self, rows: range) -> np.ndarray:
        if rows.start == self.at:
            raise self.error
        self.asked.append(rows.start)
        return EXPECTED[rows.start : rows.stop].astype(np.float32)


def keep(folder, compute, **settings):
    return keep_rows(folder, NUMBER, compute, "Rows", quiet=True, **settings)


@pytest.mark.parametrize(("share", "order"), [((0, 1), [0, 4, 8]), ((1, 2), [4, 8, 0]), ((2, 3), [8, 0, 4])])
def test_rows_are_computed_once_in_chunks_and_mapped(tmp_path, share, order):
    compute = Compute()
    for _ in range(2):
        rows = keep(tmp_path / "new", compute, share=share)
        assert isinstance(rows, np.memmap) and rows.dtype == np.float32
        np.testing.assert_array_equal(rows, EXPECTED)
    assert compute.asked == order
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["rows.npy"]


def test_chunks_that_are_done_stay_done_when_a_process_ends(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, Compute(at=8, error=KeyboardInterrupt()))
    assert find_rows(tmp_path, NUMBER) is None
    compute = Compute()
    np.testing.assert_array_equal(keep(tmp_path, compute), EXPECTED)
    assert compute.asked == [8]


def test_two_that_want_the_same_share_the_chunks(tmp_path):
    both = [Compute(), Compute()]
    begin = Barrier(2)

    def work(number):
        begin.wait()
        return np.array(keep(tmp_path, both[number], share=(number, 2)))

    with ThreadPoolExecutor(2) as pool:
        for rows in pool.map(work, range(2)):
            np.testing.assert_array_equal(rows, EXPECTED)
    assert sorted(both[0].asked + both[1].asked) == [0, 4, 8]


@pytest.mark.parametrize("left", [0, 40, 150])
def test_a_file_that_was_cut_off_is_not_taken(tmp_path, left):
    keep(tmp_path, Compute())
    os.truncate(tmp_path / "rows.npy", left)
    assert find_rows(tmp_path, NUMBER) is None
    np.testing.assert_array_equal(keep(tmp_path, Compute()), EXPECTED)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(WriteFailed, match="rows.npy can't be written: No space left"):
        patch.setattr(os, "fsync", full)
        keep(tmp_path, Compute())
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    np.testing.assert_array_equal(keep(tmp_path, Compute()), EXPECTED)
