"""Intermediate results survive an interruption and nothing worse."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc_tools.mapping.work import WorkFolder

KEY = {"image": "a.png", "options": {"max_keypoints": 600}, "pairs": [[0, 1]]}


class Maker:
    """Makes arrays and counts how often."""

    def __init__(self, value=1.0):
        self.calls = 0
        self.value = value

    def __call__(self):
        self.calls += 1
        return {
            "keypoints": np.full((3, 2), self.value, np.float32),
            "stored": np.arange(6, dtype=np.uint8).reshape(3, 2),
            "none": np.zeros((0, 2), np.int64),
        }


@pytest.fixture
def make():
    return Maker()


def assert_as_made(arrays):
    expected = Maker()()
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
        assert arrays[name].shape == array.shape


def test_arrays_are_made_once_and_come_back_as_they_were(tmp_path, make):
    path = tmp_path / "work"
    assert_as_made(WorkFolder(path).cached(KEY, make))
    assert_as_made(WorkFolder(path).cached(KEY, make))
    assert make.calls == 1
    assert [file.suffix for file in path.iterdir()] == [".npz"]


def test_the_order_of_a_key_does_not_matter(tmp_path, make):
    folder = WorkFolder(tmp_path)
    folder.cached(KEY, make)
    folder.cached(dict(reversed(KEY.items())), make)
    assert make.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        {"image": "b.png"},
        {"options": {"max_keypoints": 601}},
        {"pairs": [[0, 2]]},
        {"more": None},
    ],
)
def test_another_key_is_another_result(tmp_path, make, change):
    folder = WorkFolder(tmp_path)
    folder.cached(KEY, make)
    other = Maker(2.0)
    assert folder.cached({**KEY, **change}, other)["keypoints"][0, 0] == 2.0
    assert folder.cached(KEY, make)["keypoints"][0, 0] == 1.0
    assert (make.calls, other.calls) == (1, 1)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    folder = WorkFolder(None)
    for _ in range(2):
        assert_as_made(folder.cached(KEY, make))
    folder.remove()
    assert make.calls == 2
    assert list(tmp_path.iterdir()) == []


def cut_at(share):
    return lambda data: data[: int(share * len(data))]


def flip_a_number(data):
    at = data.index(Maker()()["keypoints"].tobytes()) + 3
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_at(share) for share in (0.0, 0.01, 0.5, 0.99)),
        flip_a_number,
        lambda data: b"no archive at all",
    ],
)
def test_a_damaged_file_is_made_again(tmp_path, make, damage):
    """As after a full disk or a bad block."""
    folder = WorkFolder(tmp_path)
    folder.cached(KEY, make)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert_as_made(folder.cached(KEY, make))
    assert_as_made(folder.cached(KEY, make))
    assert make.calls == 2


def test_an_interrupted_computation_leaves_no_result(tmp_path, make):
    folder = WorkFolder(tmp_path)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.cached(KEY, stopped)
    assert_as_made(folder.cached(KEY, make))
    assert make.calls == 1


def test_what_an_interrupted_write_left_is_not_read(tmp_path, make):
    folder = WorkFolder(tmp_path)
    folder.cached(KEY, make)
    (file,) = tmp_path.iterdir()
    file.rename(file.with_suffix(".tmp"))
    assert_as_made(folder.cached(KEY, make))
    assert make.calls == 2
    assert [left.suffix for left in tmp_path.iterdir()] == [".npz"]


def test_remove_takes_the_folder_and_nothing_beside_it(tmp_path, make):
    (tmp_path / "mine.txt").write_text("keep")
    folder = WorkFolder(tmp_path / "site.work")
    folder.cached(KEY, make)
    folder.remove()
    folder.remove()
    assert [left.name for left in tmp_path.iterdir()] == ["mine.txt"]
