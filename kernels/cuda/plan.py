"""How the kernels are divided over a GPU: blocks, their units and rows, shared memory; and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .costs import ESTIMATES, Costs

# By cell: its struct in `cells.h`, its gates, and the sums of products that a unit of it needs.
CELLS = {"lstm": ("Lstm", 4, 4), "gru": ("Gru", 3, 4), "rnn": ("Rnn", 1, 1)}
WARPS = 8
FLOAT = 4  # bytes
USUAL_STEPS = 20  # of a window: a division is chosen for them


class Gpu(NamedTuple):
    """What a plan must know of a GPU."""

    name: str = "an H100"
    multiprocessors: int = 132
    shared_bytes: int = 227 * 1024  # that one block may have, of 228 KiB


H100 = Gpu()


class Backward(NamedTuple):
    """A launch of `persistent_backward`. The sizes repeat `Shares` of `backward.cu`."""

    cell: str
    hidden: int
    batch: int
    units: int  # of a block, a power of two
    rows: int  # of a block, a power of two
    warps: int = WARPS

    @property
    def width(self) -> int:
        """Floats of one unit's weights, and of one row of deltas."""
        return CELLS[self.cell][1] * self.hidden

    @property
    def grid(self) -> tuple[int, int]:
        """Groups of units, and groups of rows: one block for each pair."""
        return blocks_for(self.hidden, self.units), blocks_for(self.batch, self.rows)

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def height(self) -> int:
        """Rows that a warp multiplies at once."""
        return min(self.rows, 8, 64 // self.units)

    @property
    def tiles(self) -> int:
        return self.rows // self.height

    @property
    def splits(self) -> int:
        """Warps that share a tile's sums."""
        return self.warps // self.tiles if self.tiles < self.warps else 1

    @property
    def shared_bytes(self) -> int:
        return FLOAT * (self.units * self.width + self.splits * self.rows * self.units)

    @property
    def expression(self) -> str:
        return f"persistent_backward<{CELLS[self.cell][0]}, {self.hidden}, {self.units}, {self.rows}, {self.warps}>"

    def step(self, costs: Costs = ESTIMATES) -> float:
        """Microseconds of a step: the blocks wait for each other, and for the slowest of what goes on at once."""
        quads, groups = self.width / 4, self.grid[0] * self.grid[1]
        deltas = self.rows * self.width * FLOAT
        from_l2 = max(deltas / costs.l2_of_block, deltas * groups / costs.l2) / 1e3
        products = 2 * self.rows * self.units * self.width / costs.fp32_of_block / 1e3
        loads = self.tiles * quads * (self.height + self.units) / 8 / costs.clock
        turns = blocks_for(self.tiles * self.splits, self.warps) * quads / (32 * self.splits)
        waiting = costs.latency * turns / (4 if self.height < 4 else 2)
        sums = 4 * self.height * self.units * blocks_for(self.tiles, self.warps) / costs.clock
        barrier = costs.barrier + costs.barrier_of_block * self.grid[0]
        return barrier + max(from_l2, products, loads, waiting) + sums

    def filling(self, costs: Costs = ESTIMATES) -> float:
        """Microseconds until every block has its weights, once a launch."""
        weights = self.units * self.width * FLOAT
        return max(weights / costs.l2_of_block, weights * self.grid[0] * self.grid[1] / costs.l2) / 1e3


class Forward(NamedTuple):
    """A launch of `forward_step`."""

    cell: str
    n_in: int
    hidden: int
    batch: int
    units: int
    rows: int
    warps: int = WARPS

    @property
    def grid(self) -> tuple[int, int]:
        """Groups of rows, and groups of units: those that read the same weights come one after the other."""
        return blocks_for(self.batch, self.rows), blocks_for(self.hidden, self.units)

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared_bytes(self) -> int:
        return FLOAT * self.warps * self.rows * CELLS[self.cell][2] * self.units

    @property
    def expression(self) -> str:
        return f"forward_step<{CELLS[self.cell][0]}, {self.units}, {self.rows}, {self.warps}>"

    def time(self, multiprocessors: int, costs: Costs = ESTIMATES) -> float:
        """Microseconds of its blocks, if the weights lie in L2, and one is on a multiprocessor at a time."""
        _, gates, sums = CELLS[self.cell]
        inputs, blocks = self.n_in + self.hidden, self.grid[0] * self.grid[1]
        # Memory hands out eight floats at a time.
        weights = FLOAT * inputs * gates * max(self.units, 8)
        products = 2 * self.rows * self.units * gates * inputs / costs.fp32_of_block / 1e3
        # A thread waits for its weights, multiplies, and asks for the next ones then.
        loads = blocks_for(inputs * self.units, 16 * self.threads) * costs.latency
        added = 4 * self.warps * self.rows * sums / costs.clock
        of_block = max(weights / costs.l2_of_block / 1e3, products + loads) + added
        return max(blocks_for(blocks, multiprocessors) * of_block, weights * blocks / costs.l2 / 1e3)


# Adjoints that a thread finishes: it keeps what they need in registers beside its 64 sums.
MOST_EACH = 4
MOST_UNITS = 32
MOST_ROWS = 256
# Rows whose sums a thread of `forward_step` can hold: 16 for each with an LSTM.
MOST_FORWARD_ROWS = 8


def persistent_backward(
    cell: str, hidden: int, batch: int, gpu: Gpu = H100, costs: Costs = ESTIMATES
) -> Backward:
    """The division of a window's backward over a GPU. Raises ValueError, with the reason, if it does not fit."""
    check("persistent_backward", cell, hidden, batch)
    fitting = [plan for plan in candidates(cell, hidden, batch, gpu) if plan.shared_bytes <= gpu.shared_bytes]
    if not fitting:
        raise ValueError(why_not(cell, hidden, batch, gpu))
    return min(fitting, key=lambda plan: plan.filling(costs) + USUAL_STEPS * plan.step(costs))


def candidates(cell: str, hidden: int, batch: int, gpu: Gpu) -> Iterator[Backward]:
    """The plans whose blocks are on the GPU all at once, one on a multiprocessor."""
    for units in powers_of_two(min(MOST_UNITS, hidden)):
        for rows in powers_of_two(min(MOST_ROWS, 2 * batch - 1)):
            plan = Backward(cell, hidden, batch, units, rows)
            owned = units * rows
            if plan.grid[0] * plan.grid[1] <= gpu.multiprocessors and owned <= MOST_EACH * plan.threads:
                yield plan


def why_not(cell: str, hidden: int, batch: int, gpu: Gpu) -> str:
    """Why no plan fits."""
    least = next(
        units for units in powers_of_two(1 << 30) if blocks_for(hidden, units) <= gpu.multiprocessors
    )
    weights = FLOAT * least * CELLS[cell][1] * hidden
    text = f"persistent_backward: {cell} of {hidden} units, batch {batch}, does not fit {gpu.name}.\n  "
    if weights > gpu.shared_bytes or least > MOST_UNITS:
        text += (
            f"{gpu.multiprocessors} blocks of {least} units each hold {weights // 1024} KiB of weights; "
            f"a block has {gpu.shared_bytes // 1024} KiB of shared memory."
        )
    else:
        text += (
            f"{blocks_for(hidden, least)} of {gpu.multiprocessors} blocks hold the weights, and each can finish "
            f"{MOST_EACH * 32 * WARPS // least} rows at a time."
        )
    return text + " Use step_backward, with a GEMM for each step."


def forward_step(cell: str, n_in: int, hidden: int, batch: int) -> Forward:
    """The division of a step over a GPU. Raises ValueError if the kernel cannot read arrays of such sizes."""
    check("forward_step", cell, hidden, batch)
    if n_in < 4 or n_in % 4:
        raise ValueError(
            f"forward_step: n_in must be a multiple of 4, rows are read 16 bytes at a time.\n  n_in: {n_in}"
        )
    rows = max(powers_of_two(min(MOST_FORWARD_ROWS, 2 * batch - 1)))
    # Eight units are the 32 bytes that memory hands out at once. With fewer a narrow layer has more blocks.
    units = 8 if hidden >= 512 else 4
    # Few rows are a matter of reading weights: more warps have more loads on their way.
    return Forward(cell, n_in, hidden, batch, units, rows, 2 * WARPS if rows <= 2 else WARPS)


def check(kernel: str, cell: str, hidden: int, batch: int) -> None:
    if cell not in CELLS:
        raise ValueError(f"{kernel}: no cell is called {cell!r}; there are {', '.join(CELLS)}.")
    if hidden < 4 or hidden % 4:
        raise ValueError(
            f"{kernel}: hidden must be a multiple of 4, rows are read 16 bytes at a time.\n  hidden: {hidden}"
        )
    if batch < 1:
        raise ValueError(f"{kernel}: batch must be at least 1.\n  batch: {batch}")


def blocks_for(items: int, each: int) -> int:
    return -(-items // each)


def powers_of_two(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    power = 1
    while power <= most:
        yield power
        power *= 2
