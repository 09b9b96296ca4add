"""The sweep of a window on a GPU by kernels: for each recurrent layer one launch, or a launch and a product a step.

What each segment's step kept is copied into a ring when the segment is first swept. A sweep pulls the losses back to
the layer's outputs by rules, runs the kernels over the whole ring, and forms the gradients of all weights in one
product; then it goes on to the layer below. As the ring's head lies on the device, and everything else is told by age,
the launches of a loop that goes on as it did are the same at every step: a CUDA graph can repeat them.

Whatever does not fit (see `layers.py`) is left to the sweep by rules: nothing here changes what a sweep means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from ..backend import capture as seam
from ..backend.device import module_beside
from ..core.adjoints import AdjointMap
from ..core.entry import OUT, Bundle, Entry
from ..core.sweep import Joints, Sweep
from ..core.variable import LEAVES
from ..core.window import Clock, WindowSegment
from ..kernels.cuda import model
from .device_layer import Array, Layer, Passed
from .layers import Layers, kept_by, layers_of, linked, residual

# Of one layer w_x and w_h: an array each, or one for each age.
Weights = tuple[Sequence[Array], Sequence[Array]]


class Found:
    """What one sweep found at the joints of a window."""

    def __init__(
        self, window: Sequence[WindowSegment], layers: Sequence[Layers], joint: float | None
    ) -> None:
        self.window, self.layers, self.joint = window, layers, joint
        self.seeds: dict[int, dict[int, Array]] = {}  # of the losses, by slot, by the segment's index
        self.passed: dict[int, tuple[int, Passed]] = {}  # by layer: from which age on, and what

    def at_joint(self, age: int) -> dict[int, Array]:
        """The cotangents that come out of the segment of `age`, by slot."""
        steps, found = self.layers[-1 - age].steps, {}
        for number, (since, arrays) in self.passed.items():
            for slot, ages in zip(steps[number].before, arrays, strict=True):
                if slot > 0 and age >= since:
                    found[slot] = ages[age]
        return found

    def adjoints_of(self, segment: WindowSegment) -> AdjointMap | None:
        """What entered a segment of the window: its losses, and what crossed the joint above it."""
        age = next((age for age, other in enumerate(reversed(self.window)) if other is segment), None)
        if age is None:
            return None
        entered = dict(self.seeds.get(segment.index, {}))
        for slot, ct in (self.at_joint(age - 1) if age else {}).items():
            crossed = ct if self.joint is None else ct * self.joint
            entered[slot] = entered[slot] + crossed if slot in entered else crossed
        return AdjointMap(entered)


class AtJoints(Sequence[AdjointMap]):
    """The adjoints at every joint, newest first, each made when it is read."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found.window)

    def __getitem__(self, at: Any) -> Any:
        return AdjointMap(self.found.at_joint(range(len(self))[at]))


class DeviceWindow:
    """How one tape sweeps its window through kernels. `sweeps` counts how often it did."""

    def __init__(self, tape: Any) -> None:
        self.tape = tape
        self.sweeps = 0
        self.rings: list[Layer] = []
        self.made_for: Any = None  # what the rings were made for; there are none if rules are quicker
        self.held: list[tuple[WindowSegment, Layers]] = []  # whose steps lie in them, oldest first
        self.latest: Found | None = None

    def forget(self) -> None:
        """Nothing is known of what lies in the rings: the next sweep fills them again."""
        self.held, self.latest = [], None

    @property
    def nbytes(self) -> int:
        """Bytes of the rings."""
        return sum(layer.nbytes for layer in self.rings)

    def source(self) -> str:
        """How each layer is swept, as comments."""
        return "\n".join(
            f"# {kind.op}, batch {kind.batch}, {kind.hidden} units: swept by kernels in kernels/cuda, {layer.way}"
            for layer in self.rings
            if (kind := layer.kind)
        )

    def adjoints_of(self, segment: WindowSegment) -> AdjointMap | None:
        """What entered `segment` in the last sweep, if that was done here."""
        return None if self.latest is None else self.latest.adjoints_of(segment)

    def run(self, sweep: Sweep, window: Sequence[WindowSegment], clocks: Sequence[Clock]) -> bool:
        """Sweep `window` through kernels. False, and nothing has changed, if it has to be swept by rules."""
        latest, self.latest = self.latest, None
        done = self.swept(sweep, window, clocks)
        self.sweeps += done
        if latest is not None:  # those whose adjoints are not found anew keep them
            new = {id(segment) for segment, _ in self.held} if done else set()
            for segment in latest.window:
                if segment.held and id(segment) not in new:
                    segment.adjoints = latest.adjoints_of(segment) or AdjointMap({})
        return done

    def swept(self, sweep: Sweep, window: Sequence[WindowSegment], clocks: Sequence[Clock]) -> bool:
        """`run`, but for the adjoints of the sweep before."""
        joints = Joints(window, clocks, self.tape.joint)
        window = [segment for segment in window if segment.index >= joints.last]
        if not self.plain(joints, window):
            return False
        held, new = self.continued(window)
        if new is None or not self.readable(sweep, clocks, held + new):
            return False
        weights = self.weights(held + new)
        newest, layers = (held + new)[-1]
        x = residual(newest.entries[layers.steps[0].at], "x")
        with x.device:
            if weights is None or not self.prepared(layers, x):
                return False
            try:
                self.fill(held, new)
                self.sweep(sweep, clocks, weights)
            except BaseException:
                self.forget()
                raise
        return True

    # -- whether it fits -------------------------------------------------------------------------------------

    def plain(self, joints: Joints, window: Sequence[WindowSegment]) -> bool:
        """Whether the schedule and the joints are what kernels know."""
        tape, longest = self.tape, self.tape.schedule.window
        if tape.recording or tape.weights == "replay" or len(tape._clocks) > 1 or longest is None:
            return False
        if callable(tape.joint) or tape.joint == 0 or joints.scaled or joints.may_end:
            return False
        return 0 < len(window) <= longest and all(len(segment.spans) == 1 for segment in window)

    def continued(self, window: Sequence[WindowSegment]) -> tuple[list[Any], list[Any] | None]:
        """The segments of `window` whose steps the rings have, and the others; None if kernels cannot sweep those."""
        held = self.held
        newest = held[-1][0] if held else None
        count = next((at + 1 for at in reversed(range(len(window))) if window[at] is newest), 0)
        known = held[len(held) - count :] if count <= len(held) else []
        if any(pair[0] is not segment for pair, segment in zip(known, window, strict=False)):
            known = []
        new = [(segment, layers_of(segment)) for segment in window[len(known) :]]
        chain = [layers for _, layers in known[-1:] + new]
        return known, new if None not in chain and linked(cast(Any, chain)) else None

    def readable(
        self, sweep: Sweep, clocks: Sequence[Clock], pairs: Sequence[tuple[WindowSegment, Layers]]
    ) -> bool:
        """Whether losses, and values whose adjoints are asked for, lie where rules pull."""
        for segment, layers in pairs:
            if segment.losses:
                cells = [slot for step in layers.steps for slot in step.after[1:]]
                if any(loss.slot in cells for loss in segment.losses if loss.seeds(clocks)):
                    return False
        if not any(slot > 0 for slot in sweep.kept):
            return True
        states = {slot for _, layers in pairs for step in layers.steps for slot in step.after}
        # The newest state is reached by nothing but rules, the one that the window began with by kernels alone.
        states -= {step.after[0] for step in pairs[-1][1].steps}
        states |= {slot for step in pairs[0][1].steps for slot in step.before}
        return states.isdisjoint(sweep.kept)

    def weights(self, pairs: Sequence[tuple[WindowSegment, Layers]]) -> list[Weights] | None:
        """The weights of each layer; None if kernels cannot read them."""
        made: list[Weights] = []
        for number, kind in enumerate(pairs[-1][1].kinds):
            both = []
            for name, slot in zip(("w_x", "w_h"), kind.weights, strict=False):
                leaf = LEAVES.get(slot) if self.tape.weights == "current" and slot else None
                arrays = [] if leaf is None else [leaf._array]
                if leaf is None:
                    arrays = [
                        residual(s.entries[found.steps[number].at], name) for s, found in reversed(pairs)
                    ]
                if all(array is arrays[0] for array in arrays):
                    arrays = arrays[:1]
                if any(array is None or array.dtype != np.float32 for array in arrays):
                    return None
                both.append(arrays)
            made.append((both[0], both[1]))
        return made

    # -- the rings ---------------------------------------------------------------------------------------------

    def prepared(self, layers: Layers, x: Array) -> bool:
        """Make the rings if there are none for such layers. False if rules are quicker."""
        length, captured = self.tape.schedule.window, seam.now() is not None
        made_for = layers.kinds, length, self.tape.joint, captured, x.device.id, model.WAY
        if made_for == self.made_for:
            return bool(self.rings)
        ways = [model.choose(k.cell, k.hidden, k.batch, length, captured=captured) for k in layers.kinds]
        self.forget()
        self.made_for, self.rings = made_for, []
        if "generic" not in ways:
            xp, joint = module_beside(x), self.tape.joint
            self.rings = [Layer(xp, k, length, joint, way) for k, way in zip(layers.kinds, ways, strict=True)]
        return bool(self.rings)

    def fill(self, held: list[Any], new: list[Any]) -> None:
        """Copy what the steps of new segments kept into the rings."""
        if not self.held:  # rings that were made just now, or of which nothing is known
            held, new = [], held + new
        if not held:
            self.held = []
            for layer in self.rings:
                layer.restart()
        for segment, layers in new:
            for layer, step in zip(self.rings, layers.steps, strict=True):
                layer.deposit(kept_by(segment.entries[step.at]))
            segment.swept_by = self
            self.held.append((segment, layers))
        steps = len(held) + len(new)
        if min(len(self.held), self.tape.schedule.window) > steps:
            for layer in self.rings:
                layer.shorten(steps)
        del self.held[:-steps]
        seam.writes(*(array for layer in self.rings for array in layer.arrays))

    # -- the sweep -------------------------------------------------------------------------------------------

    def sweep(self, sweep: Sweep, clocks: Sequence[Clock], weights: Sequence[Weights]) -> None:
        """From the losses down through all layers; what is found goes to `sweep`."""
        window, layers = [s for s, _ in self.held], [found for _, found in self.held]
        found = Found(window, layers, self.tape.joint)
        pull = Pull(sweep, window)
        for segment in window:
            if segment.losses:
                self.seed(sweep, segment, clocks, found)
        for number in reversed(range(len(self.rings))):
            layer, (w_x, w_h) = self.rings[number], weights[number]
            seeds = {}
            for age, steps in enumerate(reversed([of.steps for of in layers])):
                ct = pull.to(age, steps[number].at)
                if ct is not None:
                    seeds[age] = ct
            if not seeds:
                continue
            since = min(seeds)
            found.passed[number] = since, layer.sweep(seeds, len(window), w_h)
            if any(layer.kind.weights):
                for slot, gradient in zip(layer.kind.weights, layer.gradients(), strict=True):
                    if slot:
                        sweep.add(slot, gradient)
            if layer.kind.x:
                cts = layer.inputs(len(window), w_x)
                for age in range(since, len(window)):
                    sweep.add(layers[-1 - age].steps[number].x, cts[age])
                    pull.reached.add(age)
        for age in range(len(window)):
            pull.to(age, -1)
        for number, (_, arrays) in found.passed.items():
            for slot, ages in zip(layers[0].steps[number].before, arrays, strict=True):
                if slot < 0:  # the window began with a leaf
                    sweep.add(slot, ages[-1])
        sweep._at_joints = cast(Any, AtJoints(found))
        sweep.losses, sweep.segments = len(sweep._seeded), len(window)
        # In a graph's memory nothing may outlive the step.
        self.latest = found if seam.now() is None else None

    def seed(self, sweep: Sweep, segment: WindowSegment, clocks: Sequence[Clock], found: Found) -> None:
        """Hand a segment's losses to the sweep."""
        seeds = found.seeds[segment.index] = {}
        for loss in segment.losses:
            if loss.seeds(clocks):
                sweep.add(loss.slot, loss.seed)
                sweep._seeded.add(loss.slot)
                if loss.slot > 0:
                    seeds[loss.slot] = loss.seed


class Pull:
    """What rules do of a sweep: in each segment, back from its losses through what lies between the layers."""

    def __init__(self, sweep: Sweep, window: Sequence[WindowSegment]) -> None:
        self.sweep, self.segments = sweep, window[::-1]
        self.ends = [len(segment.entries) for segment in self.segments]
        self.reached = {age for age, segment in enumerate(self.segments) if segment.losses}
        self.entries: dict[int, list[Entry]] = {}

    def to(self, age: int, at: int) -> Array | None:
        """Pull to behind the entry at `at` in the segment of `age`; returns the cotangent of its first output."""
        end, self.ends[age] = self.ends[age], at
        if age not in self.reached:
            return None
        if age not in self.entries:
            self.entries[age] = self.segments[age].entries_today()
        sweep, entries = self.sweep, self.entries[age]
        sweep.sweep(reversed(entries[at + 1 : end]))
        if at < 0:
            return None
        slot = entries[at][OUT]
        ct = sweep.sums.pop(slot, None)
        sweep.owned.discard(slot)
        if ct is not None and slot in sweep.kept:
            sweep.kept[slot] = ct
        return ct.parts[0] if isinstance(ct, Bundle) else ct
