"""Einstein summation: every product of arrays whose axes are named by letters, and its pullbacks, which are of the same kind.

`einsum` reads what NumPy's reads and spells it out; `contract` is the primitive, in which each axis of each
operand has a letter and the output is explicit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from string import ascii_letters
from typing import Any

from ..backend.device import module_beside
from ..core.primitive import Case, primitive
from ..errors import ShapeError, UnsupportedError, describe
from .operands import arrayed, value_of
from .shape import broadcast_to, reshape

# Products from which pieces that BLAS can do, which NumPy must plan first, are quicker than NumPy's own loop,
# and how many must fall on an element of the largest operand for there to be such pieces.
WORTH_PLANNING, REUSED = 50_000, 8


def contract_pullbacks(ct: Any, active: Iterable[bool], operands: Any, subscripts: str, optimize: Any) -> Any:
    """The cotangents of the operands that are differentiated, None for the others."""
    # A path was planned for one product: those of the pullbacks are planned anew.
    optimize = optimize if isinstance(optimize, (bool, str)) else True
    made = [
        pullback_of_one(ct, i, operands, subscripts, optimize) if live else None
        for i, live in enumerate(active)
    ]
    return (made,)


def pullback_of_one(ct: Any, at: int, operands: Any, subscripts: str, optimize: Any) -> Any:
    """The cotangent of operand `at`: the output's takes its place, and it that of the output.

    An axis that broadcasting stretched is summed; one that only this operand had is repeated; a letter
    that it has twice is put on a diagonal.
    """
    shape = operands[at].shape
    exchanged, found, letters = transposed(subscripts, at, shape)
    made = contract([ct, *operands[:at], *operands[at + 1 :]], exchanged, optimize)
    length = dict(zip(letters, shape, strict=True))
    distinct = tuple(length.values())
    if made.shape != distinct:
        lengths = dict(zip(found, made.shape, strict=True))
        made = broadcast_to(reshape(made, tuple(lengths.get(s, 1) for s in length)), distinct)
    return made if len(length) == len(letters) else on_diagonals(made, letters, length)


@lru_cache(maxsize=1024)
def transposed(subscripts: str, at: int, shape: tuple[int, ...]) -> tuple[str, str, str]:
    """Subscripts with the output and operand `at` exchanged, the letters of their output, and all of the operand's."""
    inputs, output = split_subscripts(subscripts)
    letters = inputs.pop(at)
    terms = [output, *inputs]
    length = dict(zip(letters, shape, strict=True))
    found = "".join(s for s in length if length[s] != 1 and any(s in term for term in terms))
    return f"{','.join(terms)}->{found}", found, letters


def on_diagonals(a: Any, letters: str, length: dict[str, int]) -> Any:
    """`a`, which has an axis for each letter of `length`, on the diagonals that `letters` repeats: the transpose of "ii->i"."""
    spare = iter(s for s in ascii_letters if s not in letters)
    spelled: list[str] = []
    pairs: list[str] = []
    for s in letters:
        spelled.append(s if s not in spelled else next(spare))
        if spelled[-1] != s:
            pairs.append(s + spelled[-1])
    ones = [module_beside(value_of(a)).eye(length[s[0]], dtype=a.dtype) for s in pairs]
    return contract([a, *ones], f"{','.join([''.join(length), *pairs])}->{''.join(spelled)}")


def split_subscripts(subscripts: str) -> tuple[list[str], str]:
    """The letters of each operand, and those of the output."""
    inputs, _, output = subscripts.partition("->")
    return inputs.split(","), output


def unequal_lengths(operands: Any, subscripts: str, optimize: Any) -> str:
    """Which letter stands for axes of different lengths."""
    length: dict[str, int] = {}
    for letters, a in zip(split_subscripts(subscripts)[0], operands, strict=True):
        for s, n in zip(letters, a.shape, strict=True):
            if n != length.setdefault(s, n) and 1 in (n, length[s]) and letters.count(s) == 1:
                length[s] = max(n, length[s])
            elif n != length[s]:
                return f"the letter `{s}` names axes of {length[s]} and of {n} elements."
    return f"the operands do not fit, or `optimize` is none of NumPy's: {optimize!r}."


@primitive(
    variadic="operands",
    diagnose=unequal_lengths,
    differentiable=("operands",),
    joint=contract_pullbacks,
    cases=[
        Case([(2, 3), (3, 4)], subscripts="ij,jk->ik"),
        Case([(2, 3), (2, 3)], subscripts="ij,ij->"),
        Case([(3, 3)], subscripts="ii->"),
        Case([(3, 2, 3)], subscripts="iji->ij"),
        Case([(2, 3)], subscripts="ij->i"),
        Case([(2, 2, 2), (2,)], subscripts="iii,j->ij"),
        Case([(2, 1, 3), (1, 3, 4)], subscripts="aij,ajk->aik"),
        Case([(2, 3), (3, 2), (2,)], subscripts="ij,jk,k->i"),
        Case([(0, 3), (3,)], subscripts="ij,j->i"),
        Case([(), (3,)], subscripts=",i->i"),
        Case([(2, 3), (3, 4), (4, 2)], subscripts="ij,jk,kl->il", optimize=("einsum_path", (0, 1), (0, 1))),
    ],
)
def contract(xp, operands, *, subscripts, optimize=False):
    r"""Einstein summation with every axis spelled out, $y_{ik} = \sum_j a_{ij} b_{jk}$ for "ij,jk->ik".

    `subscripts` name an axis of length 1 as they like: it broadcasts.
    """
    if optimize is False and len(operands) > 1:
        optimize = worth_planning(subscripts, tuple(a.shape for a in operands))
    return xp.einsum(subscripts, *operands, optimize=optimize)


@lru_cache(maxsize=1024)
def worth_planning(subscripts: str, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a loop over all letters forms many products, and far more than there are elements."""
    length: dict[str, int] = {}
    for letters, shape in zip(split_subscripts(subscripts)[0], shapes, strict=True):
        for s, n in zip(letters, shape, strict=True):
            length[s] = max(n, length.get(s, 1))
    products = math.prod(length.values())
    return products > max(WORTH_PLANNING, REUSED * max(map(math.prod, shapes)))


# -- what a user writes --------------------------------------------------------------------------------


def einsum(subscripts: Any, *operands: Any, optimize: Any = False, **others: Any) -> Any:
    r"""Einstein summation: "ij,jk->ik" multiplies matrices, "ii" is a trace, "...i,...i->..." inner products of stacks.

    Without "->" the output has the letters that occur once, in alphabetical order. The form
    einsum(a, [0, 1], b, [1, 2], [0, 2]) means the same. `optimize` as NumPy's; a product of two or more
    that is large is planned in any case. Raises ShapeError for letters and axes that do not match.
    """
    if others:
        raise UnsupportedError(
            f"einsum: {', '.join(others)} cannot be recorded. Use astype on the operands, or on the result."
        )
    if not isinstance(subscripts, str):
        subscripts, operands = from_lists((subscripts, *operands))
    arrays = [arrayed(a) for a in operands]
    try:
        spelled = spelled_out(subscripts, tuple(a.ndim for a in arrays))
    except Misfit as error:
        shown = ", ".join(map(describe, arrays))
        raise ShapeError(f"einsum: {error}\n  subscripts: {subscripts!r}      operands: [{shown}]") from None
    return contract(arrays, spelled, tuple(optimize) if isinstance(optimize, list) else optimize)


class Misfit(Exception):
    """Subscripts that the operands do not fit, and why."""


def from_lists(arguments: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """Subscripts and operands of the form that names axes by numbers."""

    def letters(numbers: Any) -> str:
        return "".join("..." if n is Ellipsis else ascii_letters[n] for n in numbers)

    count = len(arguments) // 2
    subscripts = ",".join(letters(numbers) for numbers in arguments[1 : 2 * count : 2])
    if len(arguments) % 2:
        subscripts += f"->{letters(arguments[-1])}"
    return subscripts, tuple(arguments[0 : 2 * count : 2])


@lru_cache(maxsize=1024)
def spelled_out(subscripts: str, ranks: tuple[int, ...]) -> str:
    """`subscripts` with a letter for each axis of an ellipsis, and the output explicit."""
    subscripts = subscripts.replace(" ", "")
    inputs, output = split_subscripts(subscripts)
    if len(inputs) != len(ranks):
        raise Misfit(f"the subscripts name {len(inputs)} operands, and {len(ranks)} came.")
    spare = [s for s in ascii_letters if s not in subscripts]
    hidden = [n - len(term) + 3 if "..." in term else 0 for term, n in zip(inputs, ranks, strict=True)]
    most = max(hidden)
    if most > len(spare):
        raise Misfit("there are more axes than letters.")
    shared = "".join(spare[: max(most, 0)])
    terms = []
    for i, (term, n) in enumerate(zip(inputs, hidden, strict=True)):
        letters = term.replace("...", shared[most - n :], 1) if n >= 0 else term
        if any(s not in ascii_letters for s in letters) or len(letters) != ranks[i]:
            raise Misfit(f"`{term}` does not name the {ranks[i]} axes of operand {i}.")
        terms.append(letters)
    if "->" not in subscripts:
        named = "".join(inputs).replace(".", "")
        output = shared + "".join(sorted(s for s in set(named) if named.count(s) == 1))
    elif "..." in output:
        output = output.replace("...", shared, 1)
    elif shared:
        raise Misfit("the operands have an ellipsis, and so the output must.")
    if any(s not in "".join(terms) for s in output) or len(set(output)) < len(output):
        raise Misfit(f"each letter of the output `{output}` must name an axis of an operand, once.")
    return f"{','.join(terms)}->{output}"
