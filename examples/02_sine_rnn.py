"""Twenty-five sigmoid units learn to follow a sine, then draw it by themselves.

    python examples/02_sine_rnn.py                 ten seconds, then a plot
    python examples/02_sine_rnn.py --seconds 3

A recurrent network without any machinery for time: one module called at every step of a plain Python
loop, and a Tape begun anew every 40 steps. The state goes on from one recording to the next; there it is
a constant, because what computed it is on a recording that has been forgotten. After autobw's toy example.

The network sees the sine with a little noise and must tell its next value, free of noise. At the end it
is fed its own predictions instead.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

UNITS = 25
STEPS = 40  # of one recording: about one and a half periods
NOISE = 0.05  # on what the network sees, so that it learns to live with its own mistakes
SHOWN = 120  # steps drawn at the end
OUT = pathlib.Path("runs/sine_rnn")


class Follower(nn.Module):
    """The value of the sine in, a guess at the next one out. Shapes: x (1, 1), h (1, units)."""

    def __init__(self, units: int, rng: np.random.Generator) -> None:
        self.from_input = nn.Linear(1, units, rng=rng)
        self.from_state = nn.Linear(units, units, bias=False, rng=rng)
        self.readout = nn.Linear(units, 1, rng=rng)

    def forward(self, x, h):
        h = tg.sigmoid(self.from_input(x) + self.from_state(h))
        return self.readout(h), h


def sine(t: int) -> np.ndarray:
    """The sine after `t` steps of a quarter of a radian. Shape (1, 1)."""
    return np.full((1, 1), np.sin(0.25 * t), np.float32)


def train(model: Follower, rng: np.random.Generator, seconds: float, recordings: float = np.inf, lr=0.01):
    """Follow the sine until the time is up, or so many recordings are made. Prints the error as it goes down.

    Returns the mean squared error of every recording, the last state, and the number of steps.
    """
    optimizer, tape = optim.Adam(model.parameters(), lr=lr), tg.Tape()
    h, t, losses = np.zeros((1, UNITS), np.float32), 0, []
    started, fraction = time.monotonic(), 0.0
    while fraction < 1 or not losses:
        tape.begin()
        loss = 0
        for _ in range(STEPS):
            seen = sine(t) + NOISE * rng.standard_normal((1, 1), np.float32)
            y, h = model(seen, h)
            t += 1
            loss = loss + tg.mean(tg.square(y - sine(t))) / STEPS
        tape.stop()

        optimizer.zero_grad()
        tape.backward(loss)
        optimizer.lr = lr * max(1 - fraction, 0.02)
        optimizer.step()

        losses.append(loss.item())
        if len(losses).bit_count() == 1:  # 1, 2, 4, 8 ...
            report(losses, started)
        fraction = max((time.monotonic() - started) / max(seconds, 1e-9), len(losses) / recordings)
    report(losses, started)
    return losses, h, t


def report(losses: list[float], started: float) -> None:
    recent = losses[-max(len(losses) // 8, 1) :]
    elapsed = time.monotonic() - started
    print(f"{len(losses):>6} recordings  {elapsed:5.1f} s  squared error {np.mean(recent):.6f}")


def follow(model: Follower, h, t: int, steps: int):
    """`steps` guesses by a network that sees the sine without noise; its state and the time after them."""
    guesses = []
    for _ in range(steps):
        y, h = model(sine(t), h)
        t += 1
        guesses.append(y.item())
    return np.array(guesses), h, t


def run_free(model: Follower, h, t: int, steps: int) -> np.ndarray:
    """`steps` guesses, each of which is the network's next input."""
    x, drawn = sine(t), []
    for _ in range(steps):
        x, h = model(x, h)
        drawn.append(x.item())
    return np.array(drawn)


def main() -> int:
    options = parse_options()
    rng = np.random.default_rng(options.seed)
    model = Follower(UNITS, rng)
    losses, h, t = train(model, rng, options.seconds, recordings=300 if options.quick else np.inf)

    guesses, h, t = follow(model, h, t, 200)
    after = float(np.mean((guesses - truth(t - 200, 200)) ** 2))
    times = losses[0] / after
    print(f"\nsquared error: {losses[0]:.6f} at first, {after:.6f} now (no noise), {times:.0f} times less")
    drawn, true = run_free(model, h, t, SHOWN), truth(t, SHOWN)
    print(f"running free for {SHOWN} steps: {np.mean((drawn - true) ** 2):.6f}\n")
    print(text_plot(drawn, true))
    save_plot(losses, drawn, true, options.out)
    return 0


# -- looking at the result -------------------------------------------------------------------------


def truth(t: int, steps: int) -> np.ndarray:
    """The `steps` values of the sine that follow time `t`."""
    return np.array([sine(t + 1 + k).item() for k in range(steps)])


def text_plot(drawn: np.ndarray, true: np.ndarray, rows: int = 13) -> str:
    """The sine as dots, and what was drawn as stars over it."""
    canvas = [[" "] * len(drawn) for _ in range(rows)]
    for mark, curve in ((".", true), ("*", drawn)):
        for column, value in enumerate(np.clip(curve, -1.1, 1.1)):
            canvas[round((1.1 - value) / 2.2 * (rows - 1))][column] = mark
    lines = ["".join(row).rstrip() for row in canvas]
    return "\n".join([*lines, "", "* drawn by the network alone    . the sine"])


def save_plot(losses: list[float], drawn: np.ndarray, true: np.ndarray, out: pathlib.Path) -> None:
    """Both curves and the loss as a PNG, if matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        print("no PNG: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.semilogy(losses, lw=0.7)
    left.set(xlabel="recordings", ylabel="mean squared error", title="while it learns")
    right.plot(true, "C7--", lw=1, label="the sine")
    right.plot(drawn, "C1", lw=1.5, label="drawn by the network alone")
    right.set(xlabel="steps", title="running free")
    right.legend(loc="upper right")
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "sine.png", dpi=120)
    print(f"plot: {out / 'sine.png'}")


# -- the command line ------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="time to train (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=OUT, help="folder for the plot (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="300 recordings, to see that all works")
    options = parser.parse_args()
    if options.quick:
        options.seconds = min(options.seconds, 1.5)
    return options


if __name__ == "__main__":
    sys.exit(main())
