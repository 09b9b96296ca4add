"""The examples: what they compute is right, they learn, they run, and they refuse nonsense in words.

They are loaded by path (their names start with digits) or run as a user would run them, by the same
Python, with warnings as errors.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
# One thread each: BLAS threads that wait for one another's core make a run up to 20 times slower.
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def load(name):
    spec = importlib.util.spec_from_file_location("example_" + name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name, *arguments):
    return [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *map(str, arguments)]


def run(name, *arguments, cwd, env=None):
    """The finished process, with `stdout` and `stderr` as text."""
    env = {**ENVIRONMENT, **(env or {})}
    return subprocess.run(
        command(name, *arguments), cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=120
    )


def succeed(name, *arguments, cwd, env=None):
    done = run(name, *arguments, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def without_matplotlib(tmp_path):
    """An environment in which importing matplotlib fails, as it does where it is not installed."""
    package = tmp_path / "hidden" / "matplotlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('hidden by a test')\n")
    return {"PYTHONPATH": str(package.parent)}


# -- 01: the tape ------------------------------------------------------------------------------------


def logistic(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture
def first_program():
    """A run of the example in float64: the tape, the result, and all that went in."""
    example, rng = load("01_tape"), np.random.default_rng(7)

    def go(coin):
        lin, tape = nn.Linear(5, 5, dtype=np.float64, rng=rng), tg.Tape()
        x1, seed = rng.standard_normal(5), rng.standard_normal(5)
        x2, x3 = (tg.Variable(rng.standard_normal(5), name=name) for name in ("x2", "x3"))
        return tape, example.run(tape, lin, x1, x2, x3, coin, seed), lin, x1, x2, x3, seed

    return go


@pytest.mark.parametrize("coin", [0.9, 0.1])
def test_the_gradients_on_both_sides_of_the_coin_are_those_of_the_formulas(first_program, coin):
    _, result, lin, x1, x2, x3, seed = first_program(coin)
    factor = logistic(x3.value) if coin > 0.5 else x3.value
    slope = factor * (1 - factor) if coin > 0.5 else 1.0
    expected = {
        "result": (result.value, x1 @ lin.weight.value + lin.bias.value + x2.value * factor),
        "weight": (lin.weight.grad, np.outer(x1, seed)),
        "bias": (lin.bias.grad, seed),
        "x2": (x2.grad, seed * factor),
        "x3": (x3.grad, seed * x2.value * slope),
    }
    for name, (found, right) in expected.items():
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-15, err_msg=name)


def table_rows(table):
    """(value, op, inputs, kept) of each line of a Wengert table."""
    pattern = re.compile(r"(\w+) = (\w+)\((.*)\) +keeps (.*?) +\(5,\)")
    matches = [pattern.fullmatch(line) for line in table.splitlines()[1:]]
    assert all(matches), table
    return [(m[1], m[2], m[3].split(", "), m[4].split(", ")) for m in matches]


def test_the_printed_table_lists_what_ran_on_heads(first_program):
    tape, *_ = first_program(0.9)
    affine, plus_bias, gate, product, total = table_rows(str(tape))
    assert affine[1:3] == ("matmul", ["const", "weight"])
    assert plus_bias[1:] == ("add", [affine[0], "bias"], ["nothing"])
    assert gate[1:] == ("sigmoid", ["x3"], ["y"])
    assert product[1:] == ("multiply", ["x2", gate[0]], ["a", "b"])
    assert total[1:] == ("add", [plus_bias[0], product[0]], ["nothing"])


def test_the_printed_table_has_no_sigmoid_on_tails(first_program):
    tape, *_ = first_program(0.1)
    affine, plus_bias, product, total = table_rows(str(tape))
    assert affine[1:3] == ("matmul", ["const", "weight"])
    assert product[1:] == ("multiply", ["x2", "x3"], ["a", "b"])
    assert total[1:] == ("add", [plus_bias[0], product[0]], ["nothing"])


def listed_and_walked(shown):
    """The ops of a printed run: those of the table, and those of the walk."""
    table, walk = shown.split("Backwards")
    return [re.findall(r"= (\w+)\(", part) for part in (table, walk)]


def test_the_first_example_shows_the_sides_it_was_asked_for_and_walks_each_list_backwards(tmp_path):
    ops = {
        "heads": ["matmul", "add", "sigmoid", "multiply", "add"],
        "tails": ["matmul", "add", "multiply", "add"],
    }
    for asked in ("heads", "tails", "both"):
        printed = succeed("01_tape", "--coin", asked, "--seed", 3, cwd=tmp_path).stdout
        runs = dict(re.findall(r"(?ms)^--- (heads|tails): .*?\n(.*?)(?=^---|\Z)", printed))
        assert list(runs) == (["heads", "tails"] if asked == "both" else [asked])
        for side, shown in runs.items():
            listed, walked = listed_and_walked(shown)
            assert listed == ops[side]
            assert walked == ops[side][::-1]
            assert [f"{leaf}.grad" in shown for leaf in ("weight", "bias", "x2", "x3")] == [True] * 4


def test_a_flipped_coin_shows_one_side_and_not_always_the_same(monkeypatch, capsys):
    example, sides = load("01_tape"), set()
    for seed in range(20):
        monkeypatch.setattr(sys, "argv", ["01_tape.py", "--coin", "flip", "--seed", str(seed)])
        assert example.main() == 0
        [side] = re.findall(r"^--- (heads|tails)", capsys.readouterr().out, re.MULTILINE)
        sides.add(side)
    assert sides == {"heads", "tails"}


# -- 02: the sine ------------------------------------------------------------------------------------


def test_three_hundred_recordings_divide_the_error_of_the_sine_network_by_thirty(capsys):
    example, rng = load("02_sine_rnn"), np.random.default_rng(0)
    model = example.Follower(example.UNITS, rng)
    losses, h, t = example.train(model, rng, seconds=60, recordings=300)
    assert (len(losses), t, h.shape) == (300, 300 * example.STEPS, (1, 25))
    assert np.mean(losses[-30:]) < losses[0] / 30, (losses[0], np.mean(losses[-30:]))

    guesses, h, after = example.follow(model, h, t, 100)
    error = np.mean((guesses - np.sin(0.25 * (t + 1 + np.arange(100)))) ** 2)
    assert after == t + 100
    assert error < losses[0] / 100, (losses[0], error)
    assert np.mean((example.run_free(model, h, after, 5) - example.truth(after, 5)) ** 2) < losses[0] / 10
    assert "300 recordings" in capsys.readouterr().out


def test_the_sine_example_runs_learns_and_plots(tmp_path):
    done = succeed("02_sine_rnn", "--quick", cwd=tmp_path)
    said = r"squared error: (\S+) at first, (\S+) now .*, (\d+) times less"
    first, now, times = re.search(said, done.stdout).groups()
    assert float(now) < float(first) / 3, done.stdout
    assert float(first) / float(now) == pytest.approx(int(times), rel=0.1, abs=1)
    assert "* drawn by the network alone" in done.stdout
    if HAS_MATPLOTLIB:
        assert (tmp_path / "runs" / "sine_rnn" / "sine.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_sine_example_says_so_and_goes_on(tmp_path, without_matplotlib):
    done = succeed("02_sine_rnn", "--quick", "--seconds", 0.2, cwd=tmp_path, env=without_matplotlib)
    assert "no PNG: matplotlib is not installed" in done.stdout
    assert not (tmp_path / "runs").exists()


# -- 03: the character model -------------------------------------------------------------------------

REPORTED = {"held_out_bits_per_char", "characters", "seconds", "weights", "window", "stride"}


def last_json(stdout):
    return json.loads(stdout.rstrip("\n").rsplit("\n", 1)[-1])


def test_the_character_model_trains_reports_and_saves(tmp_path):
    done = succeed("03_char_lm", "--quick", "--out", tmp_path, cwd=tmp_path)
    report = last_json(done.stdout)
    assert report.keys() >= REPORTED
    assert 1 < report["held_out_bits_per_char"] < 5, report  # a uniform guess takes about 6.7
    assert report["characters"] > 0
    assert report["interrupted"] is False
    saved = tg.load(tmp_path / "model.npz")
    assert saved["readout.weight"].shape[1] == len(str(saved["vocabulary"]))
    if HAS_MATPLOTLIB:
        for plot in ("loss.png", "lags.png"):
            assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_character_model_says_so_and_goes_on(tmp_path, without_matplotlib):
    out = tmp_path / "out"
    done = succeed(
        "03_char_lm", "--quick", "--seconds", 0.2, "--out", out, cwd=tmp_path, env=without_matplotlib
    )
    assert "matplotlib is not installed" in done.stderr
    assert last_json(done.stdout).keys() >= REPORTED
    assert [path.name for path in out.iterdir()] == ["model.npz"]


NONSENSE = {
    "a missing text": (["--text", "missing.txt"], ["missing.txt", "`path`|--text"]),
    "an empty text": (["--text", "empty.txt"], ["--text", "0 characters"]),
    "a text shorter than the streams": (["--text", "short.txt"], ["--text", "--streams", "20 characters"]),
    "a window of 0": (["--window", "0"], ["`window`|--window", r"\b0\b"]),
    "a stride beyond the window": (["--stride", "40", "--window", "32"], ["`stride`|--stride", "40", "32"]),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_the_character_model_refuses(case, tmp_path):
    arguments, named = NONSENSE[case]
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("twenty characters ..")
    out = tmp_path / "out"
    done = run("03_char_lm", "--quick", "--out", out, *arguments, cwd=tmp_path)
    assert done.returncode != 0
    require_one_paragraph(done.stderr, "03_char_lm", named)
    assert done.stdout == ""
    assert not list(out.glob("*")), "a refused run leaves nothing behind"


def require_one_paragraph(stderr, name, named):
    """`stderr` is a short message of the example `name`, not a traceback, in which every pattern occurs."""
    assert stderr.startswith(f"{name}: "), stderr
    assert "Traceback" not in stderr
    assert "\n\n" not in stderr.strip()
    assert stderr.count("\n") <= 4, stderr
    for pattern in named:
        assert re.search(pattern, stderr), f"{pattern!r} is not in: {stderr}"


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to one process needs POSIX")
def test_ctrl_c_ends_the_training_and_the_model_is_saved(tmp_path):
    arguments = command("03_char_lm", "--seconds", 60, "--hidden", 16, "--out", tmp_path / "out")
    with (tmp_path / "stdout").open("wb") as stdout, (tmp_path / "stderr").open("wb") as stderr:
        child = subprocess.Popen(arguments, cwd=tmp_path, env=ENVIRONMENT, stdout=stdout, stderr=stderr)
    try:
        wait_until(lambda: b"chars/s" in (tmp_path / "stderr").read_bytes(), seconds=30)
        time.sleep(2)
        assert child.poll() is None, "it ended before it was interrupted"
        interrupted = time.monotonic()
        child.send_signal(signal.SIGINT)
        code = child.wait(timeout=30)
        took = time.monotonic() - interrupted
    finally:
        child.kill()
        child.wait()
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert code == 0, said
    assert took < 15
    assert "Traceback" not in said
    report = last_json((tmp_path / "stdout").read_text(encoding="utf-8"))
    assert report["interrupted"] is True
    assert 0 < report["seconds"] < 45
    assert report["held_out_bits_per_char"] < 5
    assert "cell.w_h" in tg.load(tmp_path / "out" / "model.npz")
    assert (tmp_path / "out" / "loss.png").exists() == HAS_MATPLOTLIB


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {seconds} s"
        time.sleep(0.05)


# -- 04: the practical -------------------------------------------------------------------------------

CHARACTERS, HIDDEN, BATCH, LENGTH = 7, 5, 3, 6


@pytest.fixture(scope="module")
def autobw():
    return load("04_autobw_lstm")


@pytest.fixture
def codes():
    return np.random.default_rng(1).integers(0, CHARACTERS, 3 * BATCH * LENGTH + 1)


@pytest.fixture
def practical(autobw, codes):
    """A small practical in float64, whose gradients are not clamped."""
    return make_practical(autobw, codes)


def make_practical(autobw, codes, limit=np.inf):
    model = autobw.Model(CHARACTERS, HIDDEN, dtype=np.float64, rng=np.random.default_rng(2))
    return autobw.LSTMPractical(model, autobw.minibatches(codes, BATCH, LENGTH), BATCH, limit=limit)


def gradients(practical):
    """Copies of the gradients by name."""
    return {name: p.grad.copy() for name, p in practical.model.named_parameters()}


def require_close(found, right, what):
    assert found.keys() == right.keys()
    for name in right:
        error = np.max(np.abs(found[name] - right[name])) / np.max(np.abs(right[name]))
        assert error <= 1e-12, f"{what}: {name} is off by {error:.1e} of its largest element"


def through_time_by_hand(weights, x, y, c, h):
    """Loss, gradients by name and last states of the practical over one minibatch, every line spelled out."""
    embed = weights["embed.weight"]
    w_x, b_x = weights["lstm.from_input.weight"], weights["lstm.from_input.bias"]
    w_h, b_h = weights["lstm.from_hidden.weight"], weights["lstm.from_hidden.bias"]
    w_y, b_y = weights["predict.weight"], weights["predict.bias"]
    batch, length, n, rows = x.shape[0], x.shape[1], h.shape[1], np.arange(x.shape[0])

    loss, before, after, gates, inputs, probabilities = 0.0, {}, {}, {}, {}, {}
    for t in range(length):
        before[t] = c, h
        inputs[t] = embed[x[:, t]]
        z = inputs[t] @ w_x + b_x + h @ w_h + b_h
        i, f, o = logistic(z[:, :n]), logistic(z[:, n : 2 * n]), logistic(z[:, 2 * n : 3 * n])
        g = np.tanh(z[:, 3 * n :])
        c = f * c + i * g
        h = o * np.tanh(c)
        gates[t], after[t] = (i, f, o, g), (c, h)
        logits = h @ w_y + b_y
        probabilities[t] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss += -np.log(probabilities[t][rows, y[:, t]]).mean()

    grads = {name: np.zeros_like(value) for name, value in weights.items()}
    d_c, d_h = np.zeros_like(c), np.zeros_like(h)  # nothing comes from beyond the last step
    for t in reversed(range(length)):
        (c_before, h_before), (c_after, h_after), (i, f, o, g) = before[t], after[t], gates[t]
        d_logits = probabilities[t].copy()
        d_logits[rows, y[:, t]] -= 1
        d_logits /= batch
        grads["predict.weight"] += h_after.T @ d_logits
        grads["predict.bias"] += d_logits.sum(axis=0)
        d_h = d_h + d_logits @ w_y.T

        tanh_c = np.tanh(c_after)
        d_o = d_h * tanh_c
        d_c = d_c + d_h * o * (1 - tanh_c**2)
        d_f, d_i, d_g = d_c * c_before, d_c * g, d_c * i
        gate_slopes = i * (1 - i), f * (1 - f), o * (1 - o), 1 - g**2
        d_z = np.concatenate([d * s for d, s in zip((d_i, d_f, d_o, d_g), gate_slopes, strict=True)], axis=1)

        grads["lstm.from_input.weight"] += inputs[t].T @ d_z
        grads["lstm.from_input.bias"] += d_z.sum(axis=0)
        grads["lstm.from_hidden.weight"] += h_before.T @ d_z
        grads["lstm.from_hidden.bias"] += d_z.sum(axis=0)
        d_input = d_z @ w_x.T
        for row in range(batch):
            grads["embed.weight"][x[row, t]] += d_input[row]
        d_c, d_h = d_c * f, d_z @ w_h.T
    return loss, grads, c, h


def test_the_practicals_gradients_equal_those_written_by_hand(autobw, practical, codes):
    weights = practical.model.state_dict()
    c = h = np.zeros((BATCH, HIDDEN))
    loader = autobw.minibatches(codes, BATCH, LENGTH)
    for chunk in range(3):  # the second and third start from a state that was carried
        loss, grads = practical.feval(practical.params)
        right_loss, right, c, h = through_time_by_hand(weights, *next(loader), c, h)
        assert loss == pytest.approx(right_loss, rel=1e-13)
        assert grads is practical.grads
        require_close(gradients(practical), right, f"minibatch {chunk}")
        np.testing.assert_allclose(practical.initstate_c, c, rtol=1e-12)
        np.testing.assert_allclose(practical.initstate_h, h, rtol=1e-12)


def test_the_practicals_gradients_equal_a_chunked_capacitor(autobw, practical, codes):
    model, criterion = make_practical(autobw, codes).model, nn.CrossEntropy()
    tape = tg.CapacitorTape(tg.Chunked(LENGTH))
    c = h = np.zeros((BATCH, HIDDEN))
    for t, (x, y) in enumerate(tg.data.streams(codes, BATCH)):
        with tape:
            c, h = model.lstm(model.embed(x), c, h)
            loss = criterion(model.predict(h), y)
        sweep = tape.backward(loss)
        assert (sweep is not None) == (t % LENGTH == LENGTH - 1)
        if sweep:
            assert (sweep.segments, sweep.losses) == (LENGTH, LENGTH)
            practical.feval(practical.params)
            right = {name: p.grad.copy() for name, p in model.named_parameters()}
            require_close(gradients(practical), right, f"the chunk that ends at step {t}")
            model.zero_grad()
    assert t == 3 * LENGTH - 1


def test_the_flat_gradients_are_the_modules_gradients_one_after_the_other(practical):
    _, grads = practical.feval(practical.params)
    np.testing.assert_array_equal(grads, np.concatenate([g.ravel() for g in gradients(practical).values()]))
    assert np.count_nonzero(grads) > 0.9 * grads.size


def test_feval_clamps_the_gradients_to_five(autobw, codes):
    free, clamped = make_practical(autobw, codes), make_practical(autobw, codes, limit=5.0)
    steep = free.params.value.copy()
    steep[-free.model.predict.weight.size - CHARACTERS :] *= 100  # a readout that is sure, and wrong
    _, unclamped = free.feval(steep)
    _, grads = clamped.feval(steep)
    beyond = np.abs(unclamped) > 5
    assert 0 < beyond.sum() < beyond.size, "the case must clip some and not all"
    np.testing.assert_array_equal(np.abs(grads[beyond]), 5.0)
    np.testing.assert_array_equal(grads, np.clip(unclamped, -5, 5))


def test_the_practical_clamps_unless_told_otherwise(autobw, codes):
    model = autobw.Model(CHARACTERS, HIDDEN, dtype=np.float64, rng=2)
    assert autobw.LSTMPractical(model, autobw.minibatches(codes, BATCH, LENGTH), BATCH).limit == 5


def test_feval_takes_other_parameters_and_leaves_its_own_alone(practical):
    own = practical.params.value
    practical.feval(practical.params)
    assert practical.params.value is own, "the parameters themselves are not copied"
    other = own + 1.0
    practical.feval(other)
    np.testing.assert_array_equal(practical.params.value, other)
    other[:] = 0  # was copied: the caller keeps its array
    np.testing.assert_array_equal(practical.params.value, own + 1.0)
    np.testing.assert_array_equal(
        np.concatenate([p.value.ravel() for p in practical.model.parameters()]), practical.params.value
    )


def test_the_last_state_becomes_the_initial_state_in_place(practical):
    c, h = practical.initstate_c, practical.initstate_h
    assert not c.any() and not h.any()
    practical.feval(practical.params)
    once = c.copy(), h.copy()
    practical.feval(practical.params)
    assert practical.initstate_c is c and practical.initstate_h is h
    assert once[0].any() and once[1].any()
    assert (once[0] != c).any() and (once[1] != h).any()


def test_minibatches_are_consecutive_and_begin_again(autobw):
    codes = np.arange(2 * 8 + 1)
    loader = autobw.minibatches(codes, 2, 3)  # 8 steps for each row: two minibatches, two steps left out
    first, second, third = (next(loader) for _ in range(3))
    np.testing.assert_array_equal(first[0], [[0, 1, 2], [8, 9, 10]])
    np.testing.assert_array_equal(second[0], [[3, 4, 5], [11, 12, 13]])
    np.testing.assert_array_equal(third[0], first[0])
    for x, y in (first, second):
        np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("arguments", [("--batch", 0), ("--seq-length", 0), ("--batch", 10**6)])
def test_the_practical_refuses_a_minibatch_that_cannot_be_filled(arguments, tmp_path):
    done = run("04_autobw_lstm", "--quick", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    name = arguments[0].removeprefix("--").replace("-", "_")
    require_one_paragraph(done.stderr, "04_autobw_lstm", [f"`{name}` {arguments[1]}\\b"])


def test_sixty_steps_on_a_rhyme_halve_the_practicals_loss(autobw):
    vocabulary = tg.data.Vocabulary("the cat sat on the mat. ")
    codes = vocabulary.encode("the cat sat on the mat. " * 12)
    model = autobw.Model(len(vocabulary), 16, rng=np.random.default_rng(0))
    practical = autobw.LSTMPractical(model, autobw.minibatches(codes, 4, 8), 4)
    optimizer = optim.Adam(practical.params, lr=0.02)
    losses = []
    for _ in range(60):
        losses.append(practical.feval(practical.params)[0])
        optimizer.step()
    assert np.mean(losses[-5:]) < losses[0] / 2, losses


def test_the_practical_runs_learns_and_writes(tmp_path):
    printed = succeed("04_autobw_lstm", "--quick", cwd=tmp_path).stdout
    bits = [float(b) for b in re.findall(r"([\d.]+) bits per character", printed)]
    assert bits[-1] < bits[0] - 0.5, printed
    assert len(printed.split("\n\n", 1)[1]) > 300, "a sample of 300 characters and its beginning"


# -- all ---------------------------------------------------------------------------------------------

NUMBERS = {
    "01_tape": ([], r"x2\.grad +(.*)"),
    "02_sine_rnn": (["--seconds", "0"], r"1 recordings .* squared error (\S+)"),
    "04_autobw_lstm": (["--seconds", "0", "--hidden", "8"], r"1 minibatches .* s +(\S+) bits"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_seed_decides_the_numbers_of_the_example(name, tmp_path, monkeypatch, capsys):
    arguments, pattern = NUMBERS[name]
    example, seen = load(name), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "save_plot", lambda *_: None, raising=False)
    for seed in ("5", "5", "6"):
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--seed", seed])
        assert example.main() == 0
        seen.append(re.findall(pattern, capsys.readouterr().out))
    assert seen[0]
    assert seen[0] == seen[1] != seen[2]


# -- 05: a synthetic gradient ------------------------------------------------------------------------


def test_a_synthetic_gradient_bridges_what_a_chunk_cannot():
    example = load("05_synthetic_gradient")
    assert example.train(bridge=False, steps=3000) > 0.55
    assert example.train(bridge=True, steps=3000) < 0.1
