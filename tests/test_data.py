"""Text as integers, parallel streams, and files of arrays."""

import os

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import data, nn


def test_the_english_text_is_there():
    text = data.english()
    assert 400_000 < len(text) < 600_000
    assert "assert" in text


def test_a_vocabulary_goes_around_and_maps_what_it_does_not_know_to_0():
    vocabulary = data.Vocabulary("hello wörld 🎈")
    codes = vocabulary.encode("hello wörld 🎈")
    assert vocabulary.decode(codes) == "hello wörld 🎈"
    assert codes.min() > 0
    assert codes.max() == len(vocabulary) - 1
    assert vocabulary.encode("z").tolist() == [0]
    assert vocabulary.encode("").shape == (0,)


def test_streams_read_every_part_in_order():
    steps = list(data.streams(np.arange(11), 3))
    assert [x.tolist() for x, _ in steps] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert all((target == x + 1).all() for x, target in steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.streams(np.arange(3), 3), "streams: 3 elements cannot fill 3 streams.*\n.*batch <= 2"),
        (lambda: data.streams(np.arange(0), 1), "streams: 0 elements cannot fill 1 streams"),
        (
            lambda: data.streams(np.arange(9), 0),
            "streams: `batch` must be a whole number of at least 1, and 0 came",
        ),
        (lambda: data.read_text("no such file.txt"), "read_text: `path` cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(call, message):
    with pytest.raises(tg.ArgumentError, match=message):
        call()


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(tg.ArgumentError, match="is not UTF-8 text .* at byte 2"):
        data.read_text(path)


def test_without_the_english_text_the_error_says_what_to_give_instead(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(tg.ArgumentError, match="--text FILE"):
        data.english()


def test_what_is_saved_comes_back(tmp_path):
    cell, path = nn.LSTMCell(2, 3, rng=0), tmp_path / "cell.npz"
    tg.save(path, {**cell.state_dict(), "vocabulary": "abc", "steps": 7})
    loaded = tg.load(path)
    assert str(loaded.pop("vocabulary")) == "abc"
    assert int(loaded.pop("steps")) == 7
    other = nn.LSTMCell(2, 3, rng=1)
    other.load_state_dict(loaded)
    np.testing.assert_array_equal(other.w_x.value, cell.w_x.value)


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.npz"
    tg.save(path, {"a": np.ones(3)})
    with pytest.raises(
        tg.ArgumentError, match="save: `b` is not an array of numbers or text, and cannot be stored"
    ):
        tg.save(path, {"a": np.zeros(3), "b": test_a_save_that_fails_leaves_the_old_file_and_no_other})

    def fail(*_):
        raise OSError("disk full")

    original, os.replace = os.replace, fail
    try:
        with pytest.raises(OSError, match="disk full"):
            tg.save(path, {"a": np.zeros(3)})
    finally:
        os.replace = original
    assert os.listdir(tmp_path) == ["model.npz"]
    np.testing.assert_array_equal(tg.load(path)["a"], np.ones(3))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 broken", b"\x80\x04N."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(tg.ArgumentError, match="is not a file that save"):
        tg.load(path)
    with pytest.raises(tg.ArgumentError, match="is not a file that save"):
        tg.load(tmp_path / "missing.npz")


def test_any_name_is_saved_and_the_file_can_be_read_by_others(tmp_path):
    path = tmp_path / "odd.npz"
    tg.save(path, {"file": np.ones(1), "allow_pickle": np.zeros(2), 3: np.ones(3)})
    assert {name: a.shape for name, a in tg.load(path).items()} == {
        "file": (1,),
        "allow_pickle": (2,),
        "3": (3,),
    }
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(tg.ArgumentError, match="save: `path` cannot be written"):
        tg.save(tmp_path / "no folder" / "x.npz", {"a": np.ones(1)})
