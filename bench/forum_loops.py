"""What do the loops of a forum question compute, who recomputes what, and which of them is a sliding window?

    python bench/forum_loops.py

A PyTorch user asks for backpropagation through a sliding window of K steps, shows five loops, and gets two
suggestions. Each loop runs here as it was written, then with its slips repaired, on one recurrent network of
which tapegrad gets the same weights, and is compared with the exact gradient of a window of K steps:
re-run from the recorded state, K steps for every loss. The weights stay as they are, so that all loops
see the same states, and what is compared is the sum of the gradients that the optimizer is given.
"""

from __future__ import annotations

import paired  # isort: skip (it pins the threads)

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

import tapegrad as tg

torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits

N, K = 60, 10
N_IN, N_HIDDEN, N_OUT = 6, 16, 5


# -- the setting: one network, twice ---------------------------------------------------------------


def drawn() -> dict[str, np.ndarray]:
    """Weights (in, out), inputs and targets, in float64. The recurrent weights are large: memory is long."""
    rng = np.random.default_rng(0)
    return {
        "w_x": rng.normal(size=(N_IN, N_HIDDEN)) / N_IN**0.5,
        "w_h": 1.2 * rng.normal(size=(N_HIDDEN, N_HIDDEN)) / N_HIDDEN**0.5,
        "b": rng.normal(size=N_HIDDEN) / 10,
        "w_out": rng.normal(size=(N_HIDDEN, N_OUT)) / N_HIDDEN**0.5,
        "b_out": rng.normal(size=N_OUT) / 10,
        "data": rng.normal(size=(N, N_IN)),
        "target": rng.integers(0, N_OUT, size=N),
    }


class TheirCell(torch.nn.Module):
    """`out, h = cell.forward(x, h)`. Counts evaluations, and how many of them sweeps pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.RNNCell(N_IN, N_HIDDEN, dtype=torch.float64)
        self.readout = torch.nn.Linear(N_HIDDEN, N_OUT, dtype=torch.float64)
        self.evaluated = self.swept = 0
        arrays = {name: torch.tensor(array) for name, array in drawn().items()}
        with torch.no_grad():
            self.cell.weight_ih.copy_(arrays["w_x"].T)
            self.cell.weight_hh.copy_(arrays["w_h"].T)
            self.cell.bias_ih.copy_(arrays["b"])
            self.cell.bias_hh.zero_()
            self.readout.weight.copy_(arrays["w_out"].T)
            self.readout.bias.copy_(arrays["b_out"])

    def forward(self, x: Any, h: Any) -> tuple[Any, Any]:
        self.evaluated += 1
        h = self.cell(x, h)
        if h.requires_grad:
            h.register_hook(self.count)
        return self.readout(h), h

    def count(self, ct: Any) -> None:
        self.swept += 1

    def weights(self) -> list[Any]:
        """Without the second bias, of which we have none."""
        cell, readout = self.cell, self.readout
        return [cell.weight_ih, cell.weight_hh, cell.bias_ih, readout.weight, readout.bias]


class OurCell(tg.nn.Module):
    """The same network; counts its evaluations."""

    def __init__(self) -> None:
        self.cell = tg.nn.RNNCell(N_IN, N_HIDDEN, dtype=np.float64)
        self.readout = tg.nn.Linear(N_HIDDEN, N_OUT, dtype=np.float64)
        self.evaluated = 0
        arrays = drawn()
        for p, name in zip(self.weights(), ("w_x", "w_h", "b", "w_out", "b_out"), strict=True):
            p.value = arrays[name]

    def forward(self, x: Any, h: Any) -> tuple[Any, Any]:
        self.evaluated += 1
        out, h = self.cell(x[None], h)
        return self.readout(out), h

    def weights(self) -> list[Any]:
        return [self.cell.w_x, self.cell.w_h, self.cell.b, self.readout.weight, self.readout.bias]


class Adder:
    """Stands where the optimizer stands: adds up the gradients that it is given, and moves nothing."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.total: Any = 0.0

    def zero_grad(self) -> None:
        for w in self.cell.weights():
            w.grad = None

    def step(self) -> None:
        self.total = self.total + joined(
            np.zeros(w.shape) if w.grad is None else np.asarray(w.grad) for w in self.cell.weights()
        )


def joined(gradients: Iterable[Any]) -> np.ndarray:
    """One vector; element by element the same order for PyTorch's (out, in) only after `turned`."""
    return np.concatenate([g.ravel() for g in gradients])


def turned(vector: np.ndarray) -> np.ndarray:
    """A vector of PyTorch's gradients in our order."""
    shapes, parts, at = [tuple(w.shape) for w in TheirCell().weights()], [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        parts.append(vector[at : at + size].reshape(shape).T)
        at += size
    return joined(parts)


def setting() -> tuple[TheirCell, Any, Any]:
    """(cell, data, target) in PyTorch."""
    arrays = drawn()
    return TheirCell(), torch.tensor(arrays["data"]), torch.tensor(arrays["target"])


compute_loss = torch.nn.functional.cross_entropy

# -- as written ------------------------------------------------------------------------------------

# The question's text. What it leaves open is supplied: rnn_cell, data, target, compute_loss, optimizer
# (SGD), hidden_size, N, K, and `loss = 0` before each loop.
AS_WRITTEN = {
    "1": """
optimizer.zero_grad()
h = torch.zeros(hidden_size)
for i in range(N):
    out, h = rnn_cell.forward(data[i], h)
    if i > K:
        loss += compute_loss(out, target)

loss.backward()
optimizer.step()
""",
    "2": """
h = torch.zeros(hidden_size)
for i in range(N):
    optimizer.zero_grad()
    out, h = rnn_cell.forward(data[i], h.detach())
    loss += compute_loss(out, target)
    loss.backward(retain_graph=True)
    optimizer.step()
""",
    "3": """
optimizer.zero_grad()
h = torch.zeros(hidden_size)
last_h = deque(maxlen=10)

for i in range(N):
    last_h.append(h)
    out, h = rnn_cell.forward(data[i], h)
    if i > K:
        optimizer.zero_grad()
        loss += compute_loss(out, target)
        loss.backward(retain_graph=True)
        optimizer.step()
""",
    "4": """
h = torch.zeros(hidden_size)
optimizer.zero_grad()

for i in range(0, N, K):
    h = h.detach()

    optimizer.zero_grad()
    for j in range(i, min(i + K, N)):
        out, h = rnn_cell.forward(data[j], h)

    loss += compute_loss(out, target)
    loss.backward()
""",
    "5": """
h = torch.zeros(hidden_size)
optimizer.zero_grad()

for i in range(0, N, K):
    out, h = rnn_cell.forward(data[j], h)
    if i % K == 0 and i > 0:
        optimizer.zero_grad()
        h = h.detach()
        loss += compute_loss(out, target)
        loss.backward()
        optimizer.step()
""",
}
AS_WRITTEN["5, with data[i]"] = AS_WRITTEN["5"].replace("data[j]", "data[i]")
AS_WRITTEN["3, with loss ="] = AS_WRITTEN["3"].replace("loss +=", "loss =")


def as_written(code: str) -> str:
    """What the code raises, or that it runs. The weights move: the optimizer is PyTorch's."""
    cell, data, target = setting()
    names = {
        "torch": torch,
        "deque": deque,
        "N": N,
        "K": K,
        "rnn_cell": cell,
        "data": data,
        "target": target[0],  # of one step, as `out` is
        "targets": target,
        "swept_by_hand": swept_by_hand,
        "compute_loss": compute_loss,
        "optimizer": torch.optim.SGD(cell.parameters(), lr=0.1),
        "hidden_size": N_HIDDEN,
        "loss": 0,
    }
    torch.set_default_dtype(torch.float64)  # for its torch.zeros
    try:
        exec(code, names)
    except (RuntimeError, NameError) as error:
        return f"{type(error).__name__} after {cell.evaluated} evaluations: {error}"
    finally:
        torch.set_default_dtype(torch.float32)
    return f"runs, {cell.evaluated} evaluations"


# -- repaired --------------------------------------------------------------------------------------


def zeros() -> Any:
    return torch.zeros(N_HIDDEN, dtype=torch.float64)


def loop_1(cell, optimizer, data, target):
    loss, h = 0, zeros()
    optimizer.zero_grad()
    for i in range(N):
        out, h = cell.forward(data[i], h)
        if i > K:
            loss += compute_loss(out, target[i])
    loss.backward()
    optimizer.step()


def loop_2(cell, optimizer, data, target):
    h = zeros()
    for i in range(N):
        optimizer.zero_grad()
        out, h = cell.forward(data[i], h.detach())
        loss = compute_loss(out, target[i])
        loss.backward()
        optimizer.step()


def loop_3(cell, optimizer, data, target):
    h, last_h = zeros(), deque(maxlen=K)
    for i in range(N):
        last_h.append(h)
        out, h = cell.forward(data[i], h)
        if i > K:
            optimizer.zero_grad()
            loss = compute_loss(out, target[i])
            loss.backward(retain_graph=True)
            optimizer.step()


def loop_4(cell, optimizer, data, target):
    h = zeros()
    for i in range(0, N, K):
        h = h.detach()
        optimizer.zero_grad()
        for j in range(i, min(i + K, N)):
            out, h = cell.forward(data[j], h)
        loss = compute_loss(out, target[j])
        loss.backward()
        optimizer.step()


def loop_5(cell, optimizer, data, target):
    h = zeros()
    for i in range(N):
        out, h = cell.forward(data[i], h)
        if i % K == 0 and i > 0:
            optimizer.zero_grad()
            h = h.detach()
            loss = compute_loss(out, target[i])
            loss.backward()
            optimizer.step()


def loop_5_every_loss(cell, optimizer, data, target):
    loss, h = 0, zeros()
    for i in range(N):
        out, h = cell.forward(data[i], h)
        loss += compute_loss(out, target[i])
        if (i + 1) % K == 0:
            optimizer.zero_grad()
            h = h.detach()
            loss.backward()
            optimizer.step()
            loss = 0


# -- other ways in PyTorch -------------------------------------------------------------------------


def windows_evaluated_again(cell, optimizer, data, target):
    h, states = zeros(), []
    for i in range(N):
        states.append(h)
        with torch.no_grad():
            _, h = cell.forward(data[i], h)
        if i > K:
            optimizer.zero_grad()
            inner = states[i - K + 1]
            for j in range(i - K + 1, i + 1):
                out, inner = cell.forward(data[j], inner)
            compute_loss(out, target[i]).backward()
            optimizer.step()


def swept_by_hand(cell, optimizer, data, target):
    """Every step starts from a leaf, and the window is swept link by link with torch.autograd.grad."""
    h, entered, left = zeros(), deque(maxlen=K), deque(maxlen=K)
    for i in range(N):
        entered.append(h.detach().requires_grad_())
        out, h = cell.forward(data[i], entered[-1])
        left.append(h)
        if i > K:
            optimizer.zero_grad()
            roots = [compute_loss(out, target[i]), *list(left)[-2::-1]]
            ct, total = None, [torch.zeros_like(w) for w in cell.weights()]
            for root, leaf in zip(roots, reversed(entered), strict=True):
                inputs = [*cell.weights(), leaf]
                *gradients, ct = torch.autograd.grad(
                    root, inputs, ct, retain_graph=True, materialize_grads=True
                )
                total = [a + g for a, g in zip(total, gradients, strict=True)]
            for w, gradient in zip(cell.weights(), total, strict=True):
                w.grad = gradient
            optimizer.step()


def fresh_windows(hop, cell, optimizer, data, target):
    """The answer's: windows of K steps, each from a fresh state; its loss is that of the last step."""
    for i in range(0, N - K + 1, hop):
        h = zeros()
        for j in range(i, i + K):
            out, h = cell.forward(data[j], h)
        optimizer.zero_grad()
        compute_loss(out, target[j]).backward()
        optimizer.step()


def burn_in(cell, optimizer, data, target):
    """The answer's "truncated BPTT": K1 = K steps without gradient, then K2 = K steps with, over and over."""
    h = zeros()
    for i in range(0, N, 2 * K):
        with torch.no_grad():
            for j in range(i, i + K):
                _, h = cell.forward(data[j], h)
        loss = 0
        for j in range(i + K, i + 2 * K):
            out, h = cell.forward(data[j], h)
            loss += compute_loss(out, target[j])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# -- with tapegrad ---------------------------------------------------------------------------------


def carried(schedule: Any, counts: Callable[[int], bool]) -> tuple[np.ndarray, int, int]:
    """The loop on a CapacitorTape. Returns the gradients that an optimizer got, evaluations, steps swept."""
    cell, arrays, swept = OurCell(), drawn(), 0
    optimizer = Adder(cell)
    tape, h = tg.CapacitorTape(schedule), cell.cell.initial_state(1)
    for i in range(N):
        with tape:
            out, h = cell(arrays["data"][i], h)
            loss = tg.softmax_cross_entropy(out, arrays["target"][i : i + 1])
        if counts(i) and (sweep := tape.backward(loss)):
            swept += sweep.segments
            optimizer.step()
            optimizer.zero_grad()
    if sweep := tape.sweep():
        swept += sweep.segments
        optimizer.step()
    return optimizer.total, cell.evaluated, swept


def fresh(hop: int) -> tuple[np.ndarray, int, int]:
    """`tg.data.windows`: each window from a fresh state, on a tape of its own."""
    cell, arrays, swept = OurCell(), drawn(), 0
    optimizer, tape = Adder(cell), tg.Tape()
    for steps, _ in tg.data.windows(np.arange(N + 1), length=K, hop=hop):  # with the step after the last
        optimizer.zero_grad()
        with tape:
            h = cell.cell.initial_state(1)
            for i in steps:
                out, h = cell(arrays["data"][i], h)
            loss = tg.softmax_cross_entropy(out, arrays["target"][[steps[-1]]])
        tape.backward(loss)
        swept += len(steps)
        optimizer.step()
    return optimizer.total, cell.evaluated, swept


# -- the table -------------------------------------------------------------------------------------


class Truth:
    """Exact truncated gradients, from PyTorch: the last steps again, from the recorded state, for one loss."""

    def __init__(self) -> None:
        self.cell, self.data, self.target = setting()
        self.states = [zeros()]
        with torch.no_grad():
            for x in self.data:
                self.states.append(self.cell(x, self.states[-1])[1])

    def gradient(self, losses: Iterable[int], window: int) -> np.ndarray:
        """The sum over the losses of steps `losses`, each through the `window` steps up to it."""
        adder = Adder(self.cell)
        for t in losses:
            first = max(t - window + 1, 0)
            h = self.states[first]
            for i in range(first, t + 1):
                out, h = self.cell(self.data[i], h)
            adder.zero_grad()
            compute_loss(out, self.target[t]).backward()
            adder.step()
        return turned(adder.total)


def theirs(loop: Callable[..., None]) -> tuple[np.ndarray, int, int]:
    cell, data, target = setting()
    adder = Adder(cell)
    loop(cell, adder, data, target)
    return turned(adder.total), cell.evaluated, cell.swept


def after_k(i: int) -> bool:
    """The question's `if i > K`."""
    return i > K


LATE = [i for i in range(N) if after_k(i)]
LAST_OF_CHUNKS = [i for i in range(N) if i % K == K - 1]
WARM = [i for i in range(N) if i % (2 * K) >= K]

# name: (what runs, the steps whose losses it counts)
LOOPS: dict[str, tuple[Callable[[], tuple[np.ndarray, int, int]], list[int]]] = {
    "loop 1": (lambda: theirs(loop_1), LATE),
    "loop 2": (lambda: theirs(loop_2), [*range(N)]),
    "loop 3": (lambda: theirs(loop_3), LATE),
    "loop 4": (lambda: theirs(loop_4), LAST_OF_CHUNKS),
    "loop 5": (lambda: theirs(loop_5), [*range(K, N, K)]),
    "loop 5, every loss": (lambda: theirs(loop_5_every_loss), [*range(N)]),
    "answer: fresh windows, O = 1": (
        lambda: theirs(lambda *given: fresh_windows(1, *given)),
        [*range(K - 1, N)],
    ),
    "answer: fresh windows, O = K": (lambda: theirs(lambda *given: fresh_windows(K, *given)), LAST_OF_CHUNKS),
    "answer: burn-in": (lambda: theirs(burn_in), WARM),
    "PyTorch: evaluated again": (lambda: theirs(windows_evaluated_again), LATE),
    "PyTorch: swept by hand": (lambda: theirs(swept_by_hand), LATE),
    "tapegrad: Sliding(K)": (lambda: carried(tg.Sliding(K), after_k), LATE),
    "tapegrad: Sliding(K, stride=5)": (lambda: carried(tg.Sliding(K, stride=5), after_k), LATE),
    "tapegrad: Chunked(K)": (lambda: carried(tg.Chunked(K), lambda i: True), [*range(N)]),
    "tapegrad: Full()": (lambda: carried(tg.Full(), after_k), LATE),
    "tapegrad: data.windows, O = 1": (lambda: fresh(1), [*range(K - 1, N)]),
    "tapegrad: data.windows, O = K": (lambda: fresh(K), LAST_OF_CHUNKS),
    "tapegrad: BurnIn(K, K)": (lambda: carried(tg.BurnIn(K, K), lambda i: True), WARM),
}


def measured() -> dict[str, dict[str, Any]]:
    """Per loop: losses counted, evaluations, steps swept, norm, error against the exact window and full gradients."""
    truth, rows = Truth(), {}
    for name, (run, losses) in LOOPS.items():
        gradient, evaluated, swept = run()
        window, full = truth.gradient(losses, K), truth.gradient(losses, N)
        rows[name] = {
            "losses": len(losses),
            "cell_evaluations": evaluated,
            "steps_swept": swept,
            "norm": rounded(np.linalg.norm(gradient)),
            "norm_of_window": rounded(np.linalg.norm(window)),
            "error_against_window": rounded(distance(gradient, window)),
            "error_against_full": rounded(distance(gradient, full)),
        }
    return rows


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of b's norm; what is only rounding is 0."""
    relative = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return relative if relative > 1e-12 else 0.0


def rounded(number: float) -> float:
    return float(f"{number:.4g}")


def main() -> None:
    raised = {name: as_written(code) for name, code in AS_WRITTEN.items()}
    raised["swept by hand"] = as_written("swept_by_hand(rnn_cell, optimizer, data, targets)")
    for name, what in raised.items():
        print(f"{name}: {what}")
    rows = measured()
    columns = ["loop", *next(iter(rows.values()))]
    paired.show(f"N = {N}, K = {K}", columns, [[name, *row.values()] for name, row in rows.items()])
    paired.write("forum_loops", {"N": N, "K": K, "as_written": raised, "loops": rows})


if __name__ == "__main__":
    main()
