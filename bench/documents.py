"""Why cut a long document into chunks, and what does it cost? The questions of docs/documents.md, measured.

python bench/documents.py [--quick]

Four ways to differentiate a document of which a head reads the outputs of the last `max_seq` words:

    cut         the state is cut every `bptt` words (BPT3C): the head's gradient enters each chunk on its own
    no cut      backpropagation through all `max_seq` words
    last only   the head reads all `max_seq` outputs, and only the last `bptt` words are recorded
    window      as "cut", from a loop by hand on a CapacitorTape, with one segment per word

For learning also "cut, last read" and "no cut, last read": the head reads the last output only.
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import argparse
import gc
import tracemalloc

import numpy as np

import tapegrad as tg

VOCABULARY = 1000
CELLS = {"RNN": tg.nn.RNNCell, "GRU": tg.nn.GRUCell, "LSTM": tg.nn.LSTMCell}


class Classifier(tg.nn.Module):
    """Embedding, cell and head, and the ways to run a document through them."""

    def __init__(self, cell, n_in, n_hidden, bptt, max_seq, vocabulary=VOCABULARY, dtype=np.float32, seed=0):
        rng = np.random.default_rng(seed)
        self.bptt, self.max_seq = bptt, max_seq
        self.embedding = tg.nn.Embedding(vocabulary, n_in, dtype=dtype, rng=rng)
        self.cell = CELLS[cell](n_in, n_hidden, dtype=dtype, rng=rng)
        self.head = tg.nn.PoolingLinear(n_hidden, 2, dtype=dtype, rng=rng)

    def outputs(self, way, words, tape):
        if way == "last only":
            return self.last_only(words, tape)
        bptt = None if way.startswith("no cut") else self.bptt
        outputs = tg.nn.DocumentEncoder(self.cell, bptt, self.max_seq, self.embedding)(words)
        return outputs[-1:] if way.endswith("last read") else outputs

    def last_only(self, words, tape):
        outputs, state = [], self.cell.initial_state(words.shape[1])
        with tape.pause():
            for word in words[: -self.bptt]:
                out, state = self.cell(self.embedding(word), state)
                outputs = [*outputs, tg.stop_gradient(out)][-self.max_seq :]
        for x in tg.unstack(self.embedding(words[-self.bptt :])):
            out, state = self.cell(x, state)
            outputs.append(out)
        return outputs[-self.max_seq :]

    def recorded(self, way, words, labels):
        """A tape on which the document has run, its outputs and its loss."""
        if way == "window":
            return self.window(words, labels)
        tape = tg.Tape()
        with tape:
            outputs = self.outputs(way, words, tape)
            loss = tg.softmax_cross_entropy(self.head(outputs), labels)
        return tape, outputs, loss

    def window(self, words, labels):
        tape, outputs, state = tg.CapacitorTape(self.max_seq + 1), [], self.cell.initial_state(words.shape[1])
        for t, word in enumerate(words):
            with tape:
                if t % self.bptt == 0:
                    state = constants(state)
                out, state = self.cell(self.embedding(word), state)
            outputs.append(out)
        with tape:
            loss = tg.softmax_cross_entropy(self.head(outputs[-self.max_seq :]), labels)
        return tape, outputs, loss


def constants(state):
    return tuple(map(tg.stop_gradient, state)) if isinstance(state, tuple) else tg.stop_gradient(state)


# -- memory and time -------------------------------------------------------------------------------


def document(length, batch, seed=0, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    return rng.integers(0, vocabulary, (length, batch)), rng.integers(0, 2, batch)


def cost(cell, rounds, length=2000, batch=8, n_in=64, n_hidden=128, bptt=100, max_seq=1000):
    """Kept bytes, peak of allocated bytes, and seconds of a forward and backward pass over one batch."""
    model = Classifier(cell, n_in, n_hidden, bptt, max_seq)
    words, labels = document(length, batch)

    def pass_over(way):
        tape, _, loss = model.recorded(way, words, labels)
        tape.backward(loss)
        model.zero_grad()

    ways = ["cut", "no cut", "last only", "window"]
    found = {}
    for way in ways:
        tape, outputs, loss = model.recorded(way, words, labels)
        found[way] = {"kept_MB": megabytes(tape.nbytes)}
        del tape, outputs, loss
        gc.collect()
        tracemalloc.start()
        pass_over(way)
        found[way]["peak_MB"] = megabytes(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    longer = document(5 * length, batch)
    found["cut"]["kept_MB_of_a_document_5_times_as_long"] = megabytes(
        model.recorded("cut", *longer)[0].nbytes
    )
    taken = paired.seconds_of({way: lambda way=way: pass_over(way) for way in ways}, rounds)
    for way in ways:
        found[way]["ms"] = round(float(np.median(taken[way])) * 1e3, 1)
        found[way]["over_no_cut"] = paired.ratio(taken, way, "no cut")
    return found


def megabytes(n):
    return round(n / 1e6, 2)


def torch_cost(rounds, length=2000, batch=8, n_in=64, n_hidden=128, bptt=100, max_seq=1000):
    """The same with torch.nn.LSTM: bytes that its graph saves, and seconds."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(paired.THREADS)
    torch.manual_seed(0)
    table, lstm = torch.nn.Embedding(VOCABULARY, n_in), torch.nn.LSTM(n_in, n_hidden)
    head = torch.nn.Linear(3 * n_hidden, 2)
    words, labels = map(torch.tensor, document(length, batch))
    parameters = [*table.parameters(), *lstm.parameters(), *head.parameters()]

    def loss_of(way):
        with torch.no_grad():
            _, state = lstm(table(words[:-max_seq]))
        outputs = []
        size = max_seq if way == "no cut" else bptt
        for at in range(length - max_seq, length, size):
            state = tuple(s.detach() for s in state)
            with torch.set_grad_enabled(way != "last only" or at == length - bptt):
                out, state = lstm(table(words[at : at + size]), state)
            outputs.append(out)
        out = torch.cat(outputs)
        pooled = torch.cat([out[-1], out.max(dim=0).values, out.mean(dim=0)], dim=-1)
        return torch.nn.functional.cross_entropy(head(pooled), labels)

    def pass_over(way):
        loss_of(way).backward()
        for p in parameters:
            p.grad = None

    def saved(way):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(way)
        return sum(storage.nbytes() for storage in storages.values())

    ways = ["cut", "no cut", "last only"]
    taken = paired.seconds_of({way: lambda way=way: pass_over(way) for way in ways}, rounds)
    return {
        way: {
            "saved_MB": megabytes(saved(way)),
            "ms": round(float(np.median(taken[way])) * 1e3, 1),
            "over_no_cut": paired.ratio(taken, way, "no cut"),
        }
        for way in ways
    }


# -- gradient norms --------------------------------------------------------------------------------

LAGS = (1, 10, 100, 300, 999)


def norms(cell, scale, documents=5, length=1000, n_in=16, n_hidden=64, bptt=100):
    """Adjoints of earlier outputs, from the last one; norms of the gradients of w_h. Recurrent weights times `scale`."""
    model = Classifier(cell, n_in, n_hidden, bptt, length, dtype=np.float64)
    model.embedding.weight.value = model.embedding.weight.value / 2
    model.cell.w_h.value = model.cell.w_h.value * scale
    radius = None
    if cell == "RNN":
        radius = round(float(np.abs(np.linalg.eigvals(model.cell.w_h.value)).max()), 3)
    by_lag, by_way, cosines = {lag: [] for lag in LAGS}, {"cut": [], "no cut": [], "last only": []}, []
    for seed in range(documents):
        words, labels = document(length + 1, 1, seed)
        gradients = {}
        for way in by_way:
            tape, outputs, loss = model.recorded(way, words[1:], labels)
            gradients[way] = tape.backward(loss).gradients[model.cell.w_h].ravel()
            by_way[way].append(np.linalg.norm(gradients[way]))
            if way == "no cut":
                seed_ct = np.random.default_rng(seed).standard_normal((1, n_hidden))
                last = tape.backward(outputs[-1], seed_ct / np.linalg.norm(seed_ct), keep=outputs)
                for lag in LAGS:
                    by_lag[lag].append(np.linalg.norm(last[outputs[-1 - lag]]))
        cosines.append(gradients["cut"] @ gradients["no cut"] / (by_way["cut"][-1] * by_way["no cut"][-1]))
    return {
        "spectral_radius": radius,
        "adjoint_by_lag": {lag: rounded(np.median(v)) for lag, v in by_lag.items()},
        "norm": {way: rounded(np.median(v)) for way, v in by_way.items()},
        "largest_norm": {way: rounded(np.max(v)) for way, v in by_way.items()},
        "cosine_of_cut_and_no_cut": rounded(np.median(cosines)),
    }


def rounded(x):
    return float(f"{x:.3g}")


# -- learning --------------------------------------------------------------------------------------


def clue(rng, batch, length):
    """One word of the first tenth says which class the document is of."""
    words, labels = rng.integers(4, 20, (length, batch)), rng.integers(0, 2, batch)
    words[rng.integers(0, length // 10, batch), np.arange(batch)] = labels
    return words, labels


def pair(rng, batch, length):
    """One word in the fourth tenth and one in the ninth: the class is whether they are of the same kind."""
    words, marks = rng.integers(4, 20, (length, batch)), rng.integers(0, 2, (2, batch))
    for i, tenth in enumerate((3, 8)):
        at = rng.integers(tenth * length // 10, (tenth + 1) * length // 10, batch)
        words[at, np.arange(batch)] = 2 * i + marks[i]
    return words, (marks[0] == marks[1]).astype(int)


def learned(task, way, cell, seed, steps, length=100, batch=16):
    """Held-out accuracy after training, and the largest norm of a gradient (before it is clipped to 1) on the way."""
    model = Classifier(cell, 16, 32, length // 10, length, vocabulary=20, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    optimizer = tg.optim.Adam(model.parameters(), lr=5e-3)
    largest = 0.0
    for _ in range(steps):
        tape, _, loss = model.recorded(way, *task(rng, batch, length))
        tape.backward(loss)
        largest = max(largest, tg.optim.clip_by_norm(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
    words, labels = task(np.random.default_rng(1), 1000, length)
    outputs = tg.nn.DocumentEncoder(model.cell, None, length, model.embedding)(words)
    logits = model.head(outputs[-1:] if way.endswith("last read") else outputs)
    right = (logits.value.argmax(axis=-1) == labels).mean()
    return float(right), rounded(largest)


def learning(seeds, steps):
    found = {}
    for task in (clue, pair):
        for cell in ("LSTM", "GRU"):
            for way in ("cut", "no cut", "last only", "cut, last read", "no cut, last read"):
                runs = [learned(task, way, cell, seed, steps) for seed in range(seeds)]
                found[f"{task.__name__}, {cell}, {way}"] = {
                    "accuracy": [accuracy for accuracy, _ in runs],
                    "largest_norm": [largest for _, largest in runs],
                }
                print(task.__name__, cell, way, runs, flush=True)
    return found


def main(quick: bool) -> None:
    rounds = 3 if quick else 15
    results = {"cost": {}, "norms": {}}
    for cell in ("LSTM", "RNN"):
        results["cost"][cell] = found = cost(cell, rounds)
        paired.show(
            f"{cell}, batch 8, hidden 128, document of 2,000 words, bptt 100, max_seq 1,000",
            ["", "MB kept", "MB peak", "ms", "over no cut"],
            [
                [way, f["kept_MB"], f["peak_MB"], f["ms"], f["over_no_cut"]["median"]]
                for way, f in found.items()
            ],
        )
    results["cost"]["torch.nn.LSTM"] = found = torch_cost(rounds)
    paired.show(
        "the same with torch.nn.LSTM",
        ["", "MB saved", "ms", "over no cut"],
        [[way, f["saved_MB"], f["ms"], f["over_no_cut"]["median"]] for way, f in (found or {}).items()],
    )
    for cell, scales in (("RNN", (1, 2, 3, 4)), ("LSTM", (1, 4, 8, 16))):
        for scale in scales:
            results["norms"][f"{cell} x {scale}"] = norms(cell, scale, documents=3 if quick else 10)
    paired.show(
        "adjoint of the output `lag` words before the last, of a unit adjoint there; norm of the gradient of w_h",
        ["", "radius", *(f"lag {lag}" for lag in LAGS), "cut", "no cut", "last only", "cosine"],
        [
            [
                name,
                r["spectral_radius"],
                *r["adjoint_by_lag"].values(),
                *r["norm"].values(),
                r["cosine_of_cut_and_no_cut"],
            ]
            for name, r in results["norms"].items()
        ],
    )
    if not quick:
        results["learning"] = learning(seeds=3, steps=1000)
        paired.write("documents", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a minute, without the learning; writes nothing")
    main(parser.parse_args().quick)
