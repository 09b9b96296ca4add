"""Long documents: a recurrent encoder that learns from every chunk, and a head that reads them all (BPT3C).

A document runs through a cell word by word. The state is cut at the border of every chunk of `bptt` words, so
no gradient travels further back than a chunk; but the outputs of the last `max_seq` words all reach the head,
and so the head's gradient enters every chunk on its own. Source: fast.ai's MultiBatchRNN (Howard & Ruder 2018).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device
from ..core.active import alone
from ..core.generate import keep
from ..core.schedule import require_count
from ..core.variable import Variable
from ..errors import ArgumentError, ShapeError, describe
from ..ops.elementwise import stop_gradient
from ..ops.reduce import max as largest
from ..ops.reduce import mean
from ..ops.shape import concat, stack, unstack
from .layers import Linear
from .module import Module


class DocumentEncoder(Module):
    """The outputs of `cell` for the last `max_seq` words of a document, as a list of Variables, oldest first.

        encoder = tg.nn.DocumentEncoder(cell, bptt=100, max_seq=1000, embedding=embedding)
        head = tg.nn.PoolingLinear(n_hidden, n_classes)
        with tape:
            loss = tg.softmax_cross_entropy(head(encoder(words)), label)
        tape.backward(loss)

    `words`: any iterable, read once, of one element per word: with an `embedding` integers, a number or (batch,);
    without one what the cell takes, (batch, n_in). Each output is (batch, n_hidden).

    A word is held back until `max_seq` others have followed it, and then carries the state on with nothing
    recorded; the last `max_seq` are recorded. So memory is bounded by `max_seq` whatever the length, on any
    tape, and gradients reach exactly those words. The state is cut before the words bptt, 2 bptt ... counted
    from the document's start, and before the first word that is recorded; with `bptt=None` only there.

    Raises ArgumentError for a document without words, ShapeError for words of unlike shapes.
    """

    def __init__(self, cell: Module, bptt: int | None, max_seq: int, embedding: Module | None = None) -> None:
        if bptt is not None:
            require_count("DocumentEncoder", "bptt", bptt)
        require_count("DocumentEncoder", "max_seq", max_seq)
        if not callable(cell) or not hasattr(cell, "initial_state"):
            raise ArgumentError(
                f"DocumentEncoder: `cell` must be a cell, with an initial_state(batch), and {describe(cell)} came."
            )
        if embedding is not None and not callable(embedding):
            raise ArgumentError(
                f"DocumentEncoder: `embedding` must be a module, and {describe(embedding)} came."
            )
        self.cell: Any = cell  # any that has an initial_state
        self.bptt, self.max_seq, self.embedding = bptt, max_seq, embedding

    def forward(self, words: Iterable[Any]) -> list[Any]:
        kept: deque[Any] = deque()
        state, first = None, 0
        for word in words:
            kept.append(self._held(word, kept))
            if len(kept) > self.max_seq:
                state = self._carry_on(kept.popleft(), state)
                first += 1
        if not kept:
            raise ArgumentError(
                "DocumentEncoder: the document has no words. Leave it out, or give it a mark for its end."
            )
        state = self._initial_state(kept[0]) if state is None else cut(state)
        outputs = []
        for t, x in enumerate(self._embedded(kept), first):
            if t > first and self.bptt is not None and t % self.bptt == 0:
                state = cut(state)
            out, state = self.cell(x, state)
            outputs.append(out)
        return outputs

    def _held(self, word: Any, before: Sequence[Any]) -> Any:
        """`word` to be used later: an array that the caller may write to is copied."""
        if not isinstance(word, Variable):
            word = word if on_device(word) else np.asarray(word)
            if self.embedding is not None and word.ndim == 0:
                word = word.reshape(1)
            word = keep(word)
        if before and word.shape != before[-1].shape:
            raise ShapeError(
                f"DocumentEncoder: every word must have the same shape.\n"
                f"  this word: {describe(word)}      the one before: {describe(before[-1])}"
            )
        return word

    def _carry_on(self, word: Any, state: Any) -> Any:
        """The state after `word`, with no tape recording."""
        with alone():
            x = word if self.embedding is None else self.embedding(word)
            return self.cell(x, self._initial_state(word) if state is None else state)[1]

    def _embedded(self, words: Sequence[Any]) -> Iterable[Any]:
        """What the cell takes for each word. The table is read once: each read costs a gradient of its size."""
        return (
            words
            if self.embedding is None
            else unstack(self.embedding(module_beside(*words).stack(list(words))), axis=0)
        )

    def _initial_state(self, word: Any) -> Any:
        if not word.ndim:
            raise ShapeError(
                f"DocumentEncoder: a word must be (batch, n_in), and {describe(word)} came.\n"
                f"  For integers give an embedding: DocumentEncoder(cell, bptt, max_seq, embedding)."
            )
        return self.cell.initial_state(word.shape[0])


class ConcatPooling(Module):
    """The last output, the largest over time and the mean over time, side by side.

    Shapes: a sequence of (batch, n), or one (time, batch, n) -> (batch, 3n). Source: Howard & Ruder 2018.
    """

    def forward(self, outputs: Any) -> Any:
        if not len(outputs):
            raise ArgumentError("ConcatPooling: there are no outputs to pool. Give at least one.")
        over_time = (
            outputs
            if isinstance(outputs, Variable | np.ndarray) or on_device(outputs)
            else stack(outputs, axis=0)
        )
        return concat([outputs[-1], largest(over_time, axis=0), mean(over_time, axis=0)], axis=-1)


class PoolingLinear(Module):
    """`Linear(3n, n_out)` of `ConcatPooling`: logits of a document. Shapes: a sequence of (batch, n) -> (batch, n_out)."""

    def __init__(self, n_in: int, n_out: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        require_count("PoolingLinear", "n_in", n_in)
        self.pooling = ConcatPooling()
        self.linear = Linear(3 * n_in, n_out, dtype=dtype, rng=rng)

    def forward(self, outputs: Any) -> Any:
        return self.linear(self.pooling(outputs))


def cut(state: Any) -> Any:
    """`state`, a Variable or a tuple of states, as constants."""
    return tuple(map(cut, state)) if isinstance(state, tuple) else stop_gradient(state)
