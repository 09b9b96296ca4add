"""What the kernels in CUDA C++ compute, in NumPy, with their arguments: what the stand-in for CuPy runs for them.

    strict_cupy.KERNELS.update(...)  # an own function for one name; `Kernels` finds those of this file by itself

The kernels themselves are run by `test_cuda_source.py`, and in `test_device_window.py` in place of these.
"""

import functools

import numpy as np
from tapegrad.kernels import cpu

STATES = {"Lstm": 4, "Gru": 3, "Rnn": 1}  # gates by cell


class Kernels(dict):
    """Functions by name or expression. Of a template the name will do."""

    def __missing__(self, expression):
        name, _, arguments = expression.partition("<")
        if name not in OURS:
            raise KeyError(expression)
        cell = arguments.partition(",")[0].rstrip(">")
        return functools.partial(OURS[name], cell) if cell else OURS[name]


def given(array):
    """A pointer that may be null."""
    return isinstance(array, np.ndarray)


class Ring:
    def __init__(self, head, slots):
        (self.newest, self.steps), self.slots = map(int, head), int(slots)

    def of_age(self, age):
        return (self.newest - age) % self.slots


def deposit(grid, block, args, shared_mem=0):
    head, slots, window, batch, n_in, n, _, x, h, c, gates, extra, h_next, inputs, stride, cs, *rest = args
    ring_gates, ring_extra, ticket = rest
    assert inputs.shape == (slots, batch, stride) and x.shape == (batch, n_in) and not ticket.any()
    slot = (int(head[0]) + 1) % int(slots)
    inputs[slot, :, :n_in], inputs[slot, :, n_in : n_in + n] = x, h
    for ring, array in ((cs, c), (ring_gates, gates), (ring_extra, extra)):
        if given(array):
            ring[slot] = array
    if given(h_next):
        inputs[(slot + 1) % int(slots), :, n_in : n_in + n] = h_next
    head[0], head[1] = slot, min(int(head[1]) + 1, int(window))


def by_age(grid, block, args, shared_mem=0):
    head, slots, size, ring, ages = args
    assert ring.size == int(slots) * int(size) and ages.size == grid[1] * int(size)
    flat, ring = ages.reshape(grid[1], -1), ring.reshape(int(slots), -1)
    for age in range(grid[1]):
        flat[age] = ring[Ring(head, slots).of_age(age)]


def seed(age, seeds, ages):
    assert len(seeds) == ages
    return seeds[age] if age < len(seeds) else np.float32(0)


def pulled(cell, ring, age, ct_h, ct_c, before, gates, extra):
    """Deltas of x w_x and of h w_h, what h gets without a product, and the cotangent of c."""
    slot, nothing = ring.of_age(age), np.float32(0)
    if cell == "Lstm":
        ct_z, ct_c = cpu.lstm_step_pullback(ct_h, ct_c, before[slot], gates[slot], extra[slot])
        return ct_z, ct_z, nothing, ct_c
    if cell == "Gru":
        of_x, of_h, through = cpu.gru_step_pullback(ct_h, before[slot], gates[slot], extra[slot])
        return of_x, of_h, through, ct_c
    ct_z = cpu.rnn_step_pullback(ct_h, before[(slot + 1) % ring.slots])
    return ct_z, ct_z, nothing, ct_c


def store(ring, age, of_x, of_h, deltas_x, deltas):
    deltas[ring.of_age(age)] = of_h
    if given(deltas_x):
        deltas_x[ring.of_age(age)] = of_x


def clear(ring, deltas_x, deltas):
    for age in range(ring.steps, ring.slots):
        store(ring, age, 0, 0, deltas_x, deltas)


def persistent_backward(cell, grid, block, args, shared_mem=0):
    head, slots, batch, w_h, seeds, ages, joints, before, _, gates, extra, *rest = args
    deltas_x, deltas, passed_h, passed_c, counters = rest
    ring, n = Ring(head, slots), len(w_h)
    assert w_h.flags.c_contiguous and not w_h.ctypes.data % 16 and len(counters) >= 32 * grid[1]
    ct_h, ct_c = np.zeros((2, int(batch), n), np.float32)
    clear(ring, deltas_x, deltas)
    for age in range(ring.steps):
        ct_h = ct_h + seed(age, seeds, ages)
        of_x, of_h, through, ct_c = pulled(cell, ring, age, ct_h, ct_c, before, gates, extra)
        store(ring, age, of_x, of_h, deltas_x, deltas)
        ct_h = through + of_h @ w_h.T
        passed_h[age] = ct_h
        if given(passed_c):
            passed_c[age] = ct_c
        factor = joints[ring.of_age(age)] if given(joints) else np.float32(1)
        ct_h, ct_c = ct_h * factor, ct_c * factor


def step_backward(cell, grid, block, args, shared_mem=0):
    head, slots, age, _, _, seeds, ages, joints, before, _, gates, extra, *rest = args
    from_h, from_product, from_c, deltas_x, deltas, ct_h, ct_c, deltas_now = rest
    ring, age = Ring(head, slots), int(age)
    shape = (deltas_now.shape[0], deltas_now.shape[1] // STATES[cell])
    here_h, here_product, here_c = (
        a.copy() if given(a) else np.zeros(shape, np.float32) for a in (from_h, from_product, from_c)
    )
    here_h += here_product
    if age == 0:
        clear(ring, deltas_x, deltas)
    assert age < ring.steps
    factor = joints[ring.of_age(age - 1)] if age and given(joints) else np.float32(1)
    ct = here_h * factor + seed(age, seeds, ages)
    of_x, of_h, here_h, here_c = pulled(cell, ring, age, ct, here_c * factor, before, gates, extra)
    store(ring, age, of_x, of_h, deltas_x, deltas)
    deltas_now[...] = of_h
    for to, ct in ((ct_h, here_h), (ct_c, here_c)):
        if given(to):
            to[...] = ct


def move_ages(grid, block, args, shared_mem=0):
    """`ages.cu`: the oldest place first."""
    memory, quads, places, by = args
    rows = memory.reshape(-1, int(quads) * 16)
    for at in range(int(places) - 1, -1, -1):
        rows[at + int(by)] = rows[at]


OURS = {
    "move_ages": move_ages,
    "deposit": deposit,
    "by_age": by_age,
    "persistent_backward": persistent_backward,
    "step_backward": step_backward,
}
