"""Which words of a text a gradient connects: D2L's picture of randomised, regular and full BPTT.

No schedule is looked into. A loop runs under a real CapacitorTape, one word a segment,

    h = W[t] * h        W all ones, h a vector with one coordinate for every word's loss

and the loss of word s is coordinate s of h. The gradient of W[t, s] then tells whether the loss of word s
reached word t. (https://d2l.ai/chapter_recurrent-neural-networks/bptt.html, figure 9.7.1)
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.capacitor import CapacitorTape
from ..core.schedule import Schedule, as_schedule
from ..core.variable import Parameter
from ..errors import ArgumentError, WindowWarning, describe
from ..ops.elementwise import multiply
from ..ops.index import getitem
from ..types import Array
from .figure import COLORS, GREY, figure, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARACTER, LINE, TEXT = 0.11, 0.3, 12  # width and height in inches, size of the letters in points
SPACES = 3  # characters between two words, for the boxes' sake
BELOW, LANE = 0.85, 0.4  # lines of text from the words to their first arrow, from one arrow to the next


class Blocks(NamedTuple):
    """What gradients flow over: `spans` (first word, last word), left to right, and the words in none of them."""

    spans: list[tuple[int, int]]
    unreached: list[int]

    @property
    def overlap(self) -> bool:
        return any(before[1] >= after[0] for before, after in zip(self.spans, self.spans[1:], strict=False))


def reach(schedule: Any, steps: int) -> Array:
    """(steps, steps): at [s, t] what the gradient of step s is multiplied with on its way to step t.

    0 where it does not arrive, 1 on the way of plain backpropagation; a joint that scales makes another number
    of it. Every step hands in a loss. `schedule`: a schedule, a number of segments, or a CapacitorTape
    (for its joint policy), of which a copy runs.
    """
    tape = as_tape(schedule)
    W, h = Parameter(np.ones((steps, steps))), np.ones(steps)
    found = np.zeros((steps, steps))
    sweeps = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WindowWarning)  # of this loop it would say nothing
        for s, loss in enumerate(np.eye(steps)):
            with tape:
                h = multiply(getitem(W, s), h)
            sweeps.append(tape.backward(h, loss))
        sweeps.append(tape.sweep())
    for sweep in sweeps:
        if sweep is not None:
            found += sweep.gradients[W].T
    return found


def blocks(schedule: Any, steps: int) -> Blocks:
    """The widest spans of steps over which a gradient flows, from `reach`."""
    connected = reach(schedule, steps) != 0
    spans: list[tuple[int, int]] = []
    for s in reversed(range(steps)):
        if connected[s, s]:
            first = s + 1 - int(np.argmin([*connected[s, s::-1], False]))
            if not spans or first < spans[-1][0]:  # else it lies within the span of a later loss
                spans.append((first, s))
    return Blocks(spans[::-1], [t for t in range(steps) if not connected[:, t].any()])


def partition_text(schedule: Any, words: Iterable[str]) -> str:
    """The words, split into the blocks over which gradients flow: `the time | machine by h | g wells`.

    Blocks that overlap get a line each, the words under one another. Words that no gradient reaches stand
    in parentheses. `schedule`: a schedule, a number of segments, a CapacitorTape that has recorded nothing
    (for its joint policy), or a list or a dict of them; several come with their names, one below the other.

    Raises ArgumentError for no words, or words that are no list of strings.
    """
    tokens = as_words("partition_text", words)
    texts = {name: text_of(blocks(one, len(tokens)), tokens) for name, one in by_name(schedule).items()}
    if not isinstance(schedule, (Mapping, list, tuple)):
        return next(iter(texts.values()))
    width = max(len(name) for name in texts) + 2
    return "\n".join(
        (name if at == 0 else "").ljust(width) + line
        for name, text in texts.items()
        for at, line in enumerate(text.split("\n"))
    )


def text_of(found: Blocks, words: list[str]) -> str:
    runs = runs_of(found.unreached)
    if not found.overlap:
        pieces = sorted([(span, "{}") for span in found.spans] + [(run, "({})") for run in runs])
        return " | ".join(form.format(" ".join(words[a : b + 1])) for (a, b), form in pieces)
    starts = starts_of(words)
    lines = sorted([(span, "", "") for span in found.spans] + [(run, "(", ")") for run in runs])
    indent = 1 if runs else 0  # room for the parenthesis of the first word
    return "\n".join(
        " " * (indent + starts[a] - len(opening)) + opening + " ".join(words[a : b + 1]) + closing
        for (a, b), opening, closing in lines
    )


def partition(schedule: Any, words: Iterable[str], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the words in the blocks over which gradients flow, a row for each schedule.

    Blocks that do not overlap are boxes around their words; windows that do are brackets below them. Grey
    words are reached by no gradient. `schedule` and `words` as in `partition_text`.

    Returns the Figure, saved to `path` if given. Raises as `partition_text`, and MissingExtraError without
    matplotlib.
    """
    tokens = as_words("partition", words)
    rows = {name: blocks(one, len(tokens)) for name, one in by_name(schedule).items()}
    margin = max(len(name) for name in rows) + 4
    width = starts_of([*tokens, ""], SPACES)[-1]
    height = sum(height_of(found) for found in rows.values()) + 0.4
    drawn = figure("render.partition", (margin + width) * CHARACTER, height * LINE, layout=None)
    ax = drawn.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-margin, width), ylim=(height, 0))
    ax.axis("off")
    y = 1.0
    for name, found in rows.items():
        draw_row(ax, y, name, tokens, found)
        y += height_of(found)
    return finish(drawn, path)


def draw_row(ax: Any, y: float, name: str, words: list[str], found: Blocks) -> None:
    """One schedule's row, its words at height `y`; heights are in lines of text and grow downwards."""
    starts = starts_of(words, SPACES)
    ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
    ax.text(-2, y, name, ha="right", va="center", weight="bold", size=TEXT - 2)
    for t, word in enumerate(words):
        color = GREY if t in found.unreached else "black"
        ax.text((starts[t] + ends[t]) / 2, y, word, ha="center", va="center", color=color, size=TEXT)
    lanes = lanes_of(found.spans)
    for at, ((first, last), lane) in enumerate(zip(found.spans, lanes, strict=True)):
        color = COLORS[at % len(COLORS)]
        left, right = starts[first] - 0.8, ends[last] + 0.8
        if not found.overlap:
            ax.fill_between([left, right], y - 0.55, y + BELOW + 0.3, color=color, alpha=0.2, lw=0)
        height = y + BELOW + LANE * lane
        tip = {"arrowstyle": "->", "color": color, "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (left + 0.4, height), (right - 0.4, height), arrowprops=tip)
        ax.plot([right - 0.4] * 2, [height - 0.13, height + 0.13], color=color, lw=1.5)


def height_of(found: Blocks) -> float:
    """Lines of text that a row takes."""
    return 2.1 + LANE * max(lanes_of(found.spans), default=0)


def lanes_of(spans: list[tuple[int, int]]) -> list[int]:
    """For every span the first lane, counted from 0, in which it meets no earlier one."""
    lanes: list[int] = []
    busy: list[int] = []  # the last step taken in every lane
    for first, last in spans:
        lane = next((at for at, end in enumerate(busy) if end < first), len(busy))
        busy[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes


def starts_of(words: list[str], spaces: int = 1) -> list[int]:
    """Where each word starts, in characters, `spaces` between two of them."""
    return [int(at) for at in np.cumsum([0, *(len(word) + spaces for word in words[:-1])])]


def runs_of(steps: list[int]) -> list[tuple[int, int]]:
    """Consecutive steps as (first, last)."""
    runs: list[tuple[int, int]] = []
    for t in steps:
        if runs and runs[-1][1] == t - 1:
            runs[-1] = (runs[-1][0], t)
        else:
            runs.append((t, t))
    return runs


def as_tape(schedule: Any) -> CapacitorTape:
    """A tape of its own for the loop: the caller's schedule, with its random state, stays as it is."""
    if not isinstance(schedule, CapacitorTape):
        return CapacitorTape(copy.deepcopy(schedule))
    if schedule.recording or len(schedule.segments):
        raise ArgumentError(
            f"render.partition: the CapacitorTape has recorded {len(schedule.segments)} segments already.\n"
            f"  Give a new one: CapacitorTape(schedule, joint=...)."
        )
    return copy.deepcopy(schedule)


def as_words(where: str, words: Any) -> list[str]:
    """`words` as a list of at least one word."""
    if isinstance(words, str):
        raise ArgumentError(
            f"render.{where}: `words` must be a list of words, and one string came: {words!r}.\n"
            f"  Write {words[:30]!r}.split()."
        )
    listed = list(words) if isinstance(words, Iterable) else [words]
    wrong = [word for word in listed if not isinstance(word, str)]
    if wrong:
        raise ArgumentError(
            f"render.{where}: `words` must be a list of strings, and {describe(wrong[0])} came.\n"
            f"  Write [str(word) for word in words]."
        )
    if not listed:
        raise ArgumentError(f"render.{where}: `words` is empty.\n  Give at least one word.")
    return listed


def by_name(schedules: Any) -> dict[str, Any]:
    """`schedules` as a dict; those of a list, and a lone one, are called what they are."""
    if isinstance(schedules, Mapping):
        named = {str(name): schedule for name, schedule in schedules.items()}
    else:
        listed = list(schedules) if isinstance(schedules, (list, tuple)) else [schedules]
        names = [name_of(schedule) for schedule in listed]
        twice = {name for name in names if names.count(name) > 1}
        named = {
            f"{name} {at}" if name in twice else name: schedule
            for at, (name, schedule) in enumerate(zip(names, listed, strict=True), 1)
        }
    if not named:
        raise ArgumentError(
            "render.partition: `schedule` is empty.\n"
            "  Give a schedule such as tg.Chunked(3), or a list or a dict of them."
        )
    return named


def name_of(schedule: Any) -> str:
    """A schedule as one would write it, defaults left out: `Sliding(window=3, stride=2)`."""
    if isinstance(schedule, CapacitorTape):
        joint = schedule.joint
        called = (
            joint if isinstance(joint, (int, float)) else getattr(joint, "__name__", type(joint).__name__)
        )
        return name_of(schedule.schedule) + ("" if joint is None else f", joint={called}")
    schedule = as_schedule(schedule)
    chosen = [
        f"{name}={name_of(value) if isinstance(value, Schedule) else repr(value)}"
        for name, parameter in inspect.signature(type(schedule)).parameters.items()
        if repr(value := getattr(schedule, name, parameter.default)) != repr(parameter.default)
    ]
    return f"{type(schedule).__name__}({', '.join(chosen)})"
