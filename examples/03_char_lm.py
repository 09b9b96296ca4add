"""A character language model that learns English through a sliding window, while it reads.

    python examples/03_char_lm.py                  one minute on the text that comes with Python
    python examples/03_char_lm.py --text book.txt --window 64 --stride 8

The training loop is the one that you would write with no truncation at all: the tape forgets what is
older than the window. Ends with held-out bits per character, a sample, plots of the loss and of how far the
gradients reach, the saved model, and one line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import signal
import sys
import time

import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
BITS = 1 / math.log(2)  # from nats


class CharacterModel(nn.Module):
    """A character in, logits for the next one out, the state of a recurrent cell carried along."""

    def __init__(self, characters: int, cell: str, hidden: int, rng: np.random.Generator) -> None:
        self.embedding = nn.Embedding(characters, hidden // 2, rng=rng)
        self.cell = CELLS[cell](hidden // 2, hidden, rng=rng)
        self.readout = nn.Linear(hidden, characters, rng=rng)

    def forward(self, x, state):
        out, state = self.cell(self.embedding(x), state)
        return self.readout(out), state


def main() -> int:
    options = parse_options()
    try:
        text = read(options.text)
        train_text, held_out_text = divide(text, options)
        schedule = tg.Sliding(options.window, stride=options.stride)
        tape = tg.CapacitorTape(schedule, weights=options.weights)
        options.out.mkdir(parents=True, exist_ok=True)
    except (tg.TapegradError, OSError) as error:
        print(f"03_char_lm: {error}", file=sys.stderr)
        return 2

    vocabulary = tg.data.Vocabulary(train_text)
    rng = np.random.default_rng(options.seed)
    model = CharacterModel(len(vocabulary), options.cell, options.hidden, rng)
    history = train(model, tape, vocabulary.encode(train_text), options)

    started = time.monotonic()
    context, held_out = vocabulary.encode(train_text[-CONTEXT:]), vocabulary.encode(held_out_text)
    bits, scored = evaluate(model, np.concatenate([context, held_out]), deadline=started + 6)
    print(sample(model, vocabulary, context, rng))
    tg.save(options.out / "model.npz", {**model.state_dict(), "vocabulary": vocabulary.characters})
    plot(history, bits, options)
    report = {
        "held_out_bits_per_char": round(bits, 4),
        "held_out_characters": scored,
        "characters": history["characters"],
        "seconds": round(history["seconds"], 1),
        "weights": options.weights,
        "window": options.window,
        "stride": options.stride,
        "cell": options.cell,
        "hidden": options.hidden,
        "streams": options.streams,
        "seed": options.seed,
        "interrupted": history["interrupted"],
        "text_characters": len(text),
        "evaluation_seconds": round(time.monotonic() - started, 1),
        "model": str(options.out / "model.npz"),
    }
    print(json.dumps(report))
    return 0


def train(
    model: CharacterModel, tape: tg.CapacitorTape, codes: np.ndarray, options: argparse.Namespace
) -> dict:
    """Read the text over and over until the time is up or Ctrl-C; every sweep is followed by a step."""
    params, _ = model.parameters(flat=True)
    optimizer = optim.Adam(params, lr=options.lr)
    progress, stop = Progress(options.seconds), Interrupt()
    state, stream = None, iter(())
    while progress.fraction < 1 and not stop.asked:
        x, target = next(stream, (None, None))
        if x is None:  # the text is read: sweep what is pending, begin again with a fresh state
            if tape.sweep():
                optimizer.step()
                optimizer.zero_grad()
            tape.reset()
            state, stream = model.cell.initial_state(options.streams), tg.data.streams(codes, options.streams)
            continue
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        progress.step(loss, options.streams)
        if sweep := tape.backward(loss):
            progress.look(sweep)
            progress.norm = optim.clip_by_norm(params, options.clip * options.stride)
            optimizer.lr = options.lr * (0.5 + 0.5 * math.cos(math.pi * progress.fraction))
            optimizer.step()
            optimizer.zero_grad()
    progress.close()
    return {
        "curve": progress.curve,
        "profiles": progress.profiles,
        "characters": progress.characters,
        "seconds": progress.elapsed,
        "interrupted": stop.asked,
    }


# -- looking at the model --------------------------------------------------------------------------

CONTEXT = 100  # characters read before the first one that is scored


def evaluate(model: CharacterModel, codes: np.ndarray, deadline: float, lanes: int = 128):
    """Bits per character over `codes` after the first CONTEXT, each predicted once, and how many those are.

    The text is read in parallel lanes, each of which first reads the CONTEXT characters before its own.
    A lane that is past its end repeats the last character, unscored. Past `deadline` what was read counts.
    """
    scored = len(codes) - CONTEXT
    lanes = min(lanes, scored)
    length = -(-scored // lanes)
    starts = np.arange(lanes) * length
    state, nats, count = model.cell.initial_state(lanes), 0.0, 0
    for t in range(CONTEXT + length - 1):
        at = starts + t
        logits, state = model(codes[np.minimum(at, len(codes) - 1)], state)
        valid = at + 1 < len(codes)
        if t + 1 >= CONTEXT and valid.any():
            scores = tg.log_softmax(logits).value[np.arange(lanes)[valid], codes[at[valid] + 1]]
            nats -= float(scores.sum(dtype=np.float64))
            count += len(scores)
            if time.monotonic() > deadline:
                break
    return nats / count * BITS, count


def sample(
    model: CharacterModel, vocabulary: tg.data.Vocabulary, context: np.ndarray, rng, length: int = 400
) -> str:
    """Text drawn from the model, after it has read `context`."""
    state, codes = model.cell.initial_state(1), []
    for code in context[:-1]:
        _, state = model(np.array([code]), state)
    code = context[-1]
    for _ in range(length):
        logits, state = model(np.array([code]), state)
        weights = tg.softmax(logits * 1.25).value[0].astype(np.float64)  # a temperature of 0.8
        weights[0] = 0  # no unknown characters
        code = rng.choice(len(weights), p=weights / weights.sum())
        codes.append(code)
    return vocabulary.decode(codes)


def plot(history: dict, bits: float, options: argparse.Namespace) -> None:
    """The loss while training, and the norm of the gradients by lag, as PNGs."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        [c / 1e6 for c, _ in history["curve"]],
        [b for _, b in history["curve"]],
        lw=1,
        label="training text, as it is read",
    )
    axes.axhline(bits, color="C1", lw=1, ls="--", label=f"held-out text at the end: {bits:.3f}")
    axes.set(xlabel="million characters read", ylabel="bits per character", ylim=(min(1.5, bits - 0.2), 5))
    axes.set_title(
        f"{options.cell} {options.hidden}, window {options.window}, stride {options.stride}, {options.weights} weights"
    )
    axes.legend()
    figure.savefig(options.out / "loss.png", dpi=120)
    print(f"loss curve: {options.out / 'loss.png'}", file=sys.stderr)
    if any(map(any, history["profiles"])):
        tg.render.lag_profile(history["profiles"], options.out / "lags.png")
        print(f"lag profile: {options.out / 'lags.png'}", file=sys.stderr)


# -- the command line ------------------------------------------------------------------------------


class Progress:
    """What is shown on stderr while training, with tqdm if it is installed, and the loss curve."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.characters, self.norm = 0, 0.0
        self.curve: list[tuple[int, float]] = []
        self.profiles: list[list[float]] = []  # of every fiftieth sweep
        self._sweeps = 0
        self._since: list[float] = []
        self._shown = 0.0
        self._bar = bar_of(seconds)
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        return min(self.elapsed / self.seconds, 1.0) if self.seconds else 1.0

    def step(self, loss: tg.Variable, characters: int) -> None:
        self.characters += characters
        self._since.append(loss.item())
        if self.elapsed - self._shown > 0.2:
            self.show()

    def look(self, sweep: tg.Sweep) -> None:
        self._sweeps += 1
        if self._sweeps % 50 == 1:
            self.profiles.append(sweep.joint_norms)

    def show(self) -> None:
        if not self._since:
            return
        bits = sum(self._since) / len(self._since) * BITS
        self.curve.append((self.characters, bits))
        self._since.clear()
        self._shown = self.elapsed
        rate = self.characters / max(self.elapsed, 1e-9)
        line = f"{bits:.3f} bits/char, {rate:,.0f} chars/s, |gradient| {self.norm:.2f}"
        if self._bar is not None:
            self._bar.n = round(min(self.elapsed, self.seconds), 1)
            self._bar.set_postfix_str(line)
        elif len(self.curve) % 25 == 1:
            print(f"{self.elapsed:4.0f}/{self.seconds:.0f} s  {line}", file=sys.stderr)

    def close(self) -> None:
        self.show()
        if self._bar is not None:
            self._bar.close()


def bar_of(seconds: float):
    """A progress bar over `seconds`, or None where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=seconds, bar_format="{l_bar}{bar:30}| {n:.0f}/{total:.0f} s{postfix}", file=sys.stderr)


class Interrupt:
    """Ctrl-C asks the loop to end between two steps, so that nothing is left half-done; twice ends at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def read(path: pathlib.Path | None) -> str:
    try:
        return tg.data.read_text(path) if path else tg.data.english()
    except tg.ArgumentError as error:
        raise tg.ArgumentError(f"--text: {error}") from error


def divide(text: str, options: argparse.Namespace) -> tuple[str, str]:
    """The first nine tenths to train on, and the last tenth."""
    cut = len(text) - len(text) // 10
    if len(text) // 10 < 1 or cut < options.streams + 1:
        raise tg.ArgumentError(
            f"the text has {len(text)} characters, too few for {options.streams} streams and a held-out tenth.\n"
            f"  Give a longer --text, or fewer --streams."
        )
    return text[:cut], text[cut:]


def at_least(least: float, kind: type = int):
    """What argparse calls to read a number; its error names the option."""

    def read(text: str):
        number = kind(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number of at least {least}, and {text} came")
        return number

    read.__name__ = kind.__name__
    return read


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--text", type=pathlib.Path, help="a UTF-8 file to learn (default: the Python reference)")
    add("--window", type=int, default=32, help="steps that a gradient goes back (default %(default)s)")
    add("--stride", type=int, default=16, help="steps between two sweeps (default %(default)s)")
    add("--weights", choices=["recorded", "current", "replay"], default="recorded")
    add("--cell", choices=sorted(CELLS), default="lstm")
    add("--hidden", type=at_least(2), default=128)
    add("--streams", type=at_least(1), default=32, help="places read at once (default %(default)s)")
    add("--seconds", type=at_least(0, float), default=60, help="time to train (default %(default)s)")
    add("--lr", type=at_least(0, float), default=1e-2, help="Adam's first step size (default %(default)s)")
    add("--clip", type=at_least(1e-9, float), default=1.0, help="largest gradient norm per step of the loop")
    add("--seed", type=at_least(0), default=0)
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/char_lm"), help="folder for the results")
    add("--quick", action="store_true", help="two seconds of a small model, to see that all works")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.hidden = min(options.seconds, 2), min(options.hidden, 32)
    return options


if __name__ == "__main__":
    sys.exit(main())
