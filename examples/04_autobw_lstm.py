"""An LSTM that reads characters, with its backward pass deleted.

    python examples/04_autobw_lstm.py              thirty seconds on the text that comes with Python

The LSTM program of Oxford's machine learning course (practical 6) cloned every module once per time step
and spelled out the backward pass. autobw's README shortened it, and this is the same program here: one
copy of each module, called at every step, and a tape that plays the forward pass backwards. `feval` is
what Torch's optimizers asked for: the parameters as one vector in, the loss and one vector of gradients
out. 03_char_lm.py learns the same task with no `feval`, no minibatches of sequences and no carried arrays.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator

import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

BITS = 1 / math.log(2)  # from nats


class LSTM(nn.Module):
    """One step: an input and two states in, the next states out. Shapes: x (batch, n_in), c, h (batch, n)."""

    def __init__(self, n_in: int, n: int, *, dtype=np.float32, rng=None) -> None:
        self.from_input = nn.Linear(n_in, 4 * n, dtype=dtype, rng=rng)
        self.from_hidden = nn.Linear(n, 4 * n, dtype=dtype, rng=rng)

    def forward(self, x, c, h):
        i, f, o, g = tg.split(self.from_input(x) + self.from_hidden(h), 4, axis=-1)
        c = tg.sigmoid(f) * c + tg.sigmoid(i) * tg.tanh(g)
        return c, tg.sigmoid(o) * tg.tanh(c)


class Model(nn.Module):
    """The practical's modules; whatever holds parameters is found here by `parameters`."""

    def __init__(self, characters: int, hidden: int, *, dtype=np.float32, rng=None) -> None:
        self.embed = nn.Embedding(characters, hidden, dtype=dtype, rng=rng)
        self.lstm = LSTM(hidden, hidden, dtype=dtype, rng=rng)
        self.predict = nn.Linear(hidden, characters, dtype=dtype, rng=rng)


class LSTMPractical:
    """The program: a model, its flat parameters and gradients, the tape, the carried state, and `feval`.

    `loader` yields minibatches (x, y) of characters as integers, both (batch, seq_length), where each
    continues the one before. `limit` is the largest gradient that `feval` returns.
    """

    def __init__(self, model: Model, loader: Iterator, batch: int, *, limit: float = 5.0) -> None:
        self.model, self.loader, self.limit = model, loader, limit
        self.criterion = nn.CrossEntropy()
        self.params, self.grads = model.parameters(flat=True)
        self.tape = tg.Tape()
        n = model.lstm.from_hidden.weight.shape[0]
        self.initstate_c = np.zeros((batch, n), self.params.dtype)
        self.initstate_h = np.zeros((batch, n), self.params.dtype)

    def feval(self, x) -> tuple[float, np.ndarray]:
        """Forward and backward over the next minibatch with parameters `x`: the loss, and the gradients.

        The loss is summed over the steps and averaged over the batch, in nats.
        """
        if x is not self.params:
            self.params.value = x
        self.grads[:] = 0

        # ------------------ get minibatch -------------------
        x, y = next(self.loader)

        # ------------------- forward pass -------------------
        model, loss = self.model, 0
        c, h = self.initstate_c, self.initstate_h
        self.tape.begin()
        for t in range(x.shape[1]):
            c, h = model.lstm(model.embed(x[:, t]), c, h)
            loss = loss + self.criterion(model.predict(h), y[:, t])
        self.tape.stop()

        # ------------------ backward pass -------------------
        self.tape.backward(loss)

        # ----------------------- misc -----------------------
        # transfer the final state to the initial state (backpropagation through time, truncated here)
        self.initstate_c[:] = c.value
        self.initstate_h[:] = h.value
        np.clip(self.grads, -self.limit, self.limit, out=self.grads)
        return loss.item(), self.grads


def minibatches(codes: np.ndarray, batch: int, seq_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The text in minibatches (x, y), y one character ahead of x, over and over. Shapes: (batch, seq_length).

    Each row goes on where the same row of the minibatch before ended. Raises ArgumentError if the text
    does not fill one minibatch.
    """
    if min(batch, seq_length) < 1 or len(codes) <= batch * seq_length:
        raise tg.ArgumentError(
            f"minibatches: `batch` {batch} x `seq_length` {seq_length} does not fit a text of {len(codes)}.\n"
            f"  Both must be at least 1, and the text longer than their product."
        )
    return itertools.chain.from_iterable(one_pass(codes, batch, seq_length) for _ in itertools.count())


def one_pass(codes: np.ndarray, batch: int, seq_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The minibatches of one reading of the text; what does not fill a last one is left out."""
    steps = tg.data.streams(codes, batch)
    while len(taken := list(itertools.islice(steps, seq_length))) == seq_length:
        x, y = zip(*taken, strict=True)
        yield np.stack(x, axis=1), np.stack(y, axis=1)


def train(practical: LSTMPractical, seconds: float, seq_length: int, lr: float = 3e-3) -> list[float]:
    """Call `feval` and step until the time is up. Returns, and prints, the losses in bits per character."""
    optimizer, losses = optim.Adam(practical.params, lr=lr), []
    started, shown = time.monotonic(), 0.0
    while True:
        loss, _ = practical.feval(practical.params)
        optimizer.step()
        losses.append(loss / seq_length * BITS)
        elapsed = time.monotonic() - started
        if elapsed >= seconds or elapsed - shown > seconds / 15:
            shown = elapsed
            recent = np.mean(losses[-20:])
            print(f"{len(losses):>6} minibatches  {elapsed:5.1f} s  {recent:.3f} bits per character")
        if elapsed >= seconds:
            return losses


def sample(model: Model, vocabulary: tg.data.Vocabulary, start: str, length: int, rng) -> str:
    """`start`, and `length` characters drawn from the model one after the other."""
    n = model.lstm.from_hidden.weight.shape[0]
    c = h = np.zeros((1, n), model.embed.weight.dtype)
    codes = vocabulary.encode(start).tolist()
    for t in range(len(codes) + length - 1):
        c, h = model.lstm(model.embed(np.array([codes[t]])), c, h)
        if t == len(codes) - 1:
            p = tg.softmax(model.predict(h)).value[0].astype(np.float64)
            p[0] = 0  # no unknown characters
            codes.append(int(rng.choice(len(p), p=p / p.sum())))
    return vocabulary.decode(codes)


def main() -> int:
    options = parse_options()
    rng = np.random.default_rng(options.seed)
    try:
        text = tg.data.english()
        vocabulary = tg.data.Vocabulary(text)
        loader = minibatches(vocabulary.encode(text), options.batch, options.seq_length)
    except tg.TapegradError as error:
        print(f"04_autobw_lstm: {error}", file=sys.stderr)
        return 2
    model = Model(len(vocabulary), options.hidden, rng=rng)
    practical = LSTMPractical(model, loader, options.batch)
    train(practical, options.seconds, options.seq_length)
    print("\n" + sample(model, vocabulary, "The ", 300, rng))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="time to train (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="places read at once (default %(default)s)")
    parser.add_argument(
        "--seq-length", type=int, default=32, help="steps of a recording (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two seconds of a small model")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.hidden = min(options.seconds, 2), min(options.hidden, 32)
    return options


if __name__ == "__main__":
    sys.exit(main())
