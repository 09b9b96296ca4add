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
    ("hop", "starts"),
    [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (4, [0, 4]), (6, [0, 6]), (7, [0]), (50, [0])],
)
def test_windows_begin_a_hop_apart_and_their_targets_come_one_later(hop, starts):
    seen = list(data.windows(np.arange(11), length=4, hop=hop))
    assert [x.tolist() for x, _ in seen] == [[i, i + 1, i + 2, i + 3] for i in starts]
    assert [target.tolist() for _, target in seen] == [[i + 1, i + 2, i + 3, i + 4] for i in starts]


def test_windows_keep_the_shape_of_an_element():
    sequence = np.random.default_rng(0).standard_normal((6, 2, 3))
    seen = list(data.windows(sequence, 5))
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][0], sequence[:5])
    np.testing.assert_array_equal(seen[0][1], sequence[1:])


def test_a_window_with_a_fresh_state_knows_nothing_of_the_one_before():
    cell, tape = nn.RNNCell(1, 3, rng=0), tg.CapacitorTape(tg.Full())
    sequence = np.sin(np.arange(9, dtype=np.float32)).reshape(9, 1, 1)

    def gradient(x):
        tape.reset()
        state = cell.initial_state(batch=1)
        for element in x:
            with tape:
                _, state = cell(element, state)
        tape.backward(state, seed=np.ones_like(state.value))
        return tape.sweep().gradients[cell.w_h]

    for i, (x, _) in enumerate(data.windows(sequence, length=4, hop=2)):
        np.testing.assert_array_equal(gradient(x), gradient(sequence[2 * i : 2 * i + 4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.windows(np.arange(4), 4),
            "windows: 4 elements cannot fill a window of 4.*\n.*length <= 3",
        ),
        (lambda: data.windows(np.arange(0), 1), "windows: 0 elements cannot fill a window of 1"),
        (
            lambda: data.windows(np.arange(9), 0),
            "windows: `length` must be a whole number of at least 1, and 0 came",
        ),
        (
            lambda: data.windows(np.arange(9), 3, 0),
            "windows: `hop` must be a whole number of at least 1, and 0 came",
        ),
        (
            lambda: data.windows("a text", 3),
            "windows: `sequence` must be an array of elements, and str 'a text' came.\n.*Vocabulary",
        ),
        (lambda: data.streams("a text", 3), "streams: `sequence` must be an array of elements, and str"),
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
