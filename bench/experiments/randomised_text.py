"""Does randomising the truncation help on text? Five ways to truncate, one text, equal compute, five seeds.

    python bench/experiments/randomised_text.py

"While appealing in theory, randomised truncation does not work much better than regular truncation": Dive into
Deep Learning, section 9.7. Contenders, with L = 16:

    Chunked(16)                     regular truncation
    Sliding(32, stride=16)          BPTT(2L; L): every loss sees 17 … 32 steps
    Randomized(16, alpha=6)         ARTBP, unbiased, chunks of 16 in the mean
    Sliding(64, stride=16), ξ       RandomJoint(15/16), D2L's ξ: a path ends after 16 joints in the mean
    Full() over 64                  short sequences, each from a state of zeros, nothing truncated; 8 streams

Text: `tg.data.english()`, the last tenth held out. Model: embedding 32, LSTM 64, 32 streams with the state
carried (but for Full). Adam, step size down a half cosine over the budget, best of three by a seed of its own;
the norm clipped to 1 per loss swept. Equal compute, in characters: one recorded costs 1, one swept 2 (a segment
that no adjoint reaches, after a ξ of 0, costs nothing), and every run has the same total. With 8 streams the
short sequences get as many updates as the rest. Held-out bits per character are scored with a carried state,
for all alike.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

ROOT = pathlib.Path(__file__).resolve().parents[2]
L, SEQUENCE, STREAMS, UNITS, CLIP = 16, 64, 32, 64, 1.0
RATES = (1e-2, 3e-2, 1e-1)
TUNING_SEED = 100
BITS = 1 / math.log(2)


class CharacterModel(nn.Module):
    def __init__(self, characters: int, rng: np.random.Generator) -> None:
        self.embedding = nn.Embedding(characters, UNITS // 2, rng=rng)
        self.cell = nn.LSTMCell(UNITS // 2, UNITS, rng=rng)
        self.readout = nn.Linear(UNITS, characters, rng=rng)

    def forward(self, x, state):
        out, state = self.cell(self.embedding(x), state)
        return self.readout(out), state


CONTENDERS: dict[str, Callable[[int], tg.CapacitorTape]] = {
    f"Chunked({L})": lambda seed: tg.CapacitorTape(tg.Chunked(L)),
    f"Sliding({2 * L}, stride={L})": lambda seed: tg.CapacitorTape(tg.Sliding(2 * L, stride=L)),
    f"Randomized({L}, alpha=6)": lambda seed: tg.CapacitorTape(tg.Randomized(L, alpha=6.0, seed=seed)),
    f"Sliding({4 * L}, stride={L}), ξ": lambda seed: tg.CapacitorTape(
        tg.Sliding(4 * L, stride=L), joint=tg.RandomJoint(1 - 1 / L, seed=seed)
    ),
    f"Full() over {SEQUENCE}": lambda seed: tg.CapacitorTape(tg.Full()),
}


def train(tape: tg.CapacitorTape, codes: np.ndarray, characters: int, seed: int, rate: float, budget: int):
    """A model trained until `budget` is spent (1 per character recorded, 2 per one swept), and what happened."""
    model = CharacterModel(characters, np.random.default_rng(seed))
    params, _ = model.parameters(flat=True)
    optimizer = optim.Adam(params, lr=rate)
    short = isinstance(tape.schedule, tg.Full)
    streams = STREAMS * L // SEQUENCE if short else STREAMS
    state, stream = None, iter(())
    spent = steps = updates = clipped = 0
    longest, curve, since = 0, [], []

    def learn(sweep: tg.Sweep | None) -> None:
        nonlocal spent, updates, clipped, longest
        if sweep is None:
            return
        reached = sum(norm > 0 for norm in sweep.joint_norms) if tape.joint else sweep.segments
        spent += 2 * reached * streams
        updates += 1
        longest = max(longest, sweep.segments)
        clipped += optim.clip_by_norm(params, CLIP * sweep.losses) > CLIP * sweep.losses
        optimizer.lr = rate * (0.5 + 0.5 * math.cos(math.pi * min(spent / budget, 1.0)))
        optimizer.step()
        optimizer.zero_grad()

    while spent < budget:
        x, target = next(stream, (None, None))
        if x is None:  # the text is read: begin again
            learn(tape.sweep())
            tape.reset()
            state, stream = model.cell.initial_state(streams), tg.data.streams(codes, streams)
            continue
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        spent += streams
        steps += 1
        since.append(loss.item())
        learn(tape.backward(loss))
        if short and len(tape.segments) == SEQUENCE:
            learn(tape.sweep())
            tape.reset()
            state = model.cell.initial_state(streams)
        if spent * 40 >= budget * (len(curve) + 1):
            curve.append([steps * streams, round(float(np.mean(since)) * BITS, 4)])
            since.clear()
    return model, {
        "characters": steps * streams,
        "updates": updates,
        "clipped": round(clipped / max(updates, 1), 4),
        "longest": longest,
        "curve": curve,
    }


def held_out_bits(model: CharacterModel, codes: np.ndarray, lanes: int = 128, context: int = 100) -> float:
    """Bits per character, each lane after it has read `context` characters."""
    length = (len(codes) - context - 1) // lanes
    starts = np.arange(lanes) * length
    state, nats = model.cell.initial_state(lanes), []
    for t in range(context + length):
        logits, state = model(codes[starts + t], state)
        if t >= context:
            nats.append(tg.softmax_cross_entropy(logits, codes[starts + t + 1]).item())
    return float(np.mean(nats)) * BITS


def verdict(ours: np.ndarray, regular: np.ndarray) -> dict:
    """The difference by seed: its mean, its standard error, and in words (|t| against 2.78, 95 % of 5 seeds)."""
    difference = ours - regular
    mean = float(difference.mean())
    if len(difference) < 2:
        return {"difference": round(mean, 4), "standard_error": None, "words": "one seed tells nothing"}
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    clear = abs(mean) > 2.78 * error
    words = ("better" if mean < 0 else "worse") if clear else "no clear difference"
    return {"difference": round(mean, 4), "standard_error": round(error, 4), "words": words}


def plot(rows: list[dict], path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for i, row in enumerate(rows):
        curve = np.array(row["curve"])
        left.plot(curve[:, 0] / 1e3, curve[:, 1], color=f"C{i}", lw=1, label=row["contender"])
        right.plot(row["bits"], [i] * len(row["bits"]), "o", ms=4, color=f"C{i}")
        right.plot(np.mean(row["bits"]), i, "|", ms=18, color=f"C{i}")
    left.set(
        xlabel="thousand characters read", ylabel="bits per character", ylim=(2, 4.5), title="training text"
    )
    left.legend(fontsize=8)
    right.set(yticks=range(len(rows)), yticklabels=[row["contender"] for row in rows], xlabel="held-out bits")
    right.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"plot: {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run of one seed; write to runs/")
    parser.add_argument("--budget", type=int, default=2_000_000, help="of each run (default %(default)s)")
    options = parser.parse_args()
    quick = options.quick
    budget, seeds, rates = (130_000, 1, RATES[:1]) if quick else (options.budget, 5, RATES)

    text = tg.data.english()
    cut = len(text) - len(text) // 10
    vocabulary = tg.data.Vocabulary(text[:cut])
    codes, held_out = vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:])

    def run(make, seed: int, rate: float) -> dict:
        started = time.process_time()
        model, found = train(make(seed), codes, len(vocabulary), seed, rate, budget)
        seconds = time.process_time() - started
        return {"bits": round(held_out_bits(model, held_out), 4), "seconds": round(seconds, 1), **found}

    rows = []
    for name, make in CONTENDERS.items():
        tuned = {rate: run(make, TUNING_SEED, rate)["bits"] for rate in rates}
        rate = min(tuned, key=tuned.get)
        runs = [run(make, seed, rate) for seed in range(seeds)]
        rows.append(
            {
                "contender": name,
                "rate": rate,
                "tuning": {str(r): bits for r, bits in tuned.items()},
                "bits": [r["bits"] for r in runs],
                "curve": np.round(np.mean([r.pop("curve") for r in runs], axis=0), 4).tolist(),
                "runs": runs,
            }
        )
        print(f"  {name}: {tuned} -> {rows[-1]['bits']}, {runs[0]['seconds']} s each", flush=True)
    for row in rows:
        row["against_regular"] = verdict(np.array(row["bits"]), np.array(rows[0]["bits"]))
    paired.show(
        f"held-out bits per character, {seeds} seeds, compute {budget:,} each",
        [
            "contender",
            "step size",
            "bits",
            "sd",
            "minus regular",
            "±",
            "",
            "characters",
            "updates",
            "longest",
            "s",
        ],
        [
            [
                row["contender"],
                row["rate"],
                f"{np.mean(row['bits']):.4f}",
                f"{np.std(row['bits'], ddof=1):.4f}" if seeds > 1 else "",
                f"{row['against_regular']['difference']:+.4f}",
                row["against_regular"]["standard_error"],
                row["against_regular"]["words"] if i else "regular",
                row["runs"][0]["characters"],
                row["runs"][0]["updates"],
                max(r["longest"] for r in row["runs"]),
                row["runs"][0]["seconds"],
            ]
            for i, row in enumerate(rows)
        ],
    )
    double, xi = (np.array(row["bits"]) for row in (rows[1], rows[3]))
    xi_against_double = verdict(xi, double)
    print(f"\n  ξ against {rows[1]['contender']}, whose sweeps cost as much: {xi_against_double}")
    randomised = [row for row in rows if "Random" in row["contender"] or "ξ" in row["contender"]]
    holds = all(row["against_regular"]["words"] != "better" for row in randomised)
    print(
        f"  D2L's claim, that randomising does not work better than regular truncation: {'holds' if holds else 'fails'} here"
    )
    results = {
        "text": f"tg.data.english(), {len(text)} characters",
        "budget": budget,
        "cost": "1 per character recorded, 2 per character swept",
        "seeds": seeds,
        "claim_holds": holds,
        "xi_against_double": xi_against_double,
        "rows": rows,
    }
    plot(rows, paired.figure_of("randomised_text", quick))
    paired.write("randomised_text", results, quick)


if __name__ == "__main__":
    main()
