"""Memory by address, as compiled programs read it. Imported only where Numba is wanted.

A *block* is a pointer with a dtype: `F0[i]` reads and `F0[i] = x` writes its element i, without any check.
Two things make it different from an array of Numba's. It costs nothing to pass: a compiled program takes one
table of addresses (an array argument costs 0.05 µs). And a program's blocks are declared to overlap no other
(LLVM's scoped `noalias`), so that a loop over twenty of them vectorises: LLVM would need a check for every
two of them, and gives up at eight.
"""

# mypy: ignore-errors
# Numba runs what stands here, by its own types.

from __future__ import annotations

import operator
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PointerModel
from numba.core.imputils import lower_builtin
from numba.extending import intrinsic, register_model

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
BYTE, INT, WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Block(types.CPointer):
    """A pointer to `dtype`. `scope` of `scopes`: which of a function's blocks it is; negative if it may overlap others."""

    def __init__(self, dtype: Any, scope: int, scopes: int) -> None:
        super().__init__(dtype)
        self.scope, self.scopes = scope, scopes
        self.name = f"Block({dtype}, {scope}, {scopes})"

    @property
    def key(self) -> Any:
        return self.dtype, self.scope, self.scopes


register_model(Block)(PointerModel)


def declared(instruction: Any, module: Any, block: Block) -> Any:
    """The load or store, with the promise that it touches no other block's memory."""
    if block.scope >= 0:
        domain = module.add_metadata(["tapegrad"])
        scopes = [module.add_metadata([f"block {i}", domain]) for i in range(block.scopes)]
        own = scopes.pop(block.scope)
        instruction.set_metadata("alias.scope", module.add_metadata([own]))
        if scopes:
            instruction.set_metadata("noalias", module.add_metadata(scopes))
    return instruction


@lower_builtin(operator.getitem, Block, types.Integer)
def read(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer, index = args
    block = signature.args[0]
    stored = declared(builder.load(builder.gep(pointer, [index], inbounds=True)), builder.module, block)
    return context.data_model_manager[block.dtype].from_data(builder, stored)


@lower_builtin(operator.setitem, Block, types.Integer, types.Any)
def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer, index, value = args
    block = signature.args[0]
    value = context.cast(builder, value, signature.args[2], block.dtype)
    stored = context.data_model_manager[block.dtype].as_data(builder, value)
    declared(builder.store(stored, builder.gep(pointer, [index], inbounds=True)), builder.module, block)
    return context.get_dummy_value()


@intrinsic(prefer_literal=True)
def block(typingctx, address, dtype, scope, scopes):
    """The block at `address`."""
    made = Block(getattr(types, dtype.literal_value), scope.literal_value, scopes.literal_value)

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(made))

    return made(types.int64, dtype, scope, scopes), build


@intrinsic
def word(typingctx, address, index):
    """The 8-byte integer number `index` at an address."""

    def build(context, builder, signature, args):
        return builder.load(builder.gep(builder.inttoptr(args[0], WORD.as_pointer()), [args[1]]))

    return types.int64(types.int64, types.int64), build


@intrinsic
def set_word(typingctx, address, index, value):
    """Write the 8-byte integer number `index` at an address."""

    def build(context, builder, signature, args):
        builder.store(args[2], builder.gep(builder.inttoptr(args[0], WORD.as_pointer()), [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@intrinsic
def plus(typingctx, total, term):
    """`total + term`, in a sum whose terms may be added in another order: several at a time."""
    if not isinstance(total, types.Float):
        return total(total, total), lambda context, builder, signature, args: builder.add(*args)

    def build(context, builder, signature, args):
        return builder.fadd(*args, flags=("reassoc", "nsz", "contract"))

    return total(total, total), build


N, T = ord("N"), ord("T")


@intrinsic
def gemm(typingctx, function, op_a, op_b, m, n, k, a, at, lda, b, bt, ldb, c, ct, ldc):
    """BLAS's c = op(a) op(b) at address `function`, column by column: from elements `at`, `bt`, `ct` of blocks on.

    `op_a`, `op_b`: N, or T for the transpose. Sizes as BLAS has them: (m, k), (k, n), (m, n).
    """
    whole = types.int64
    signature = types.void(*[whole] * 6, a, whole, whole, b, whole, whole, c, whole, whole)

    def build(context, builder, signature, args):
        function, op_a, op_b, *sizes = args[:6]
        a, at, lda, b, bt, ldb, c, ct, ldc = args[6:]
        real = a.type.pointee

        def held(value, kind):
            place = cgutils.alloca_once(builder, kind)
            builder.store(builder.trunc(value, kind) if value.type != kind else value, place)
            return place

        m, n, k, lda, ldb, ldc = (held(value, INT) for value in (*sizes, lda, ldb, ldc))
        one, zero = held(real(1.0), real), held(real(0.0), real)
        arguments = [
            held(op_a, BYTE), held(op_b, BYTE), m, n, k, one,
            builder.gep(a, [at]), lda, builder.gep(b, [bt]), ldb, zero, builder.gep(c, [ct]), ldc,
        ]  # fmt: skip
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in arguments])
        builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return signature, build


# -- Python's own memory -------------------------------------------------------------------------------------

C_ORDERED_AND_ALIGNED = 0x0101


def kept(function: Any) -> Any:
    """`function` compiled, and kept on the disk where there is a place for it."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return numba.njit(**OPTIONS)(function)


@kept
def collect(root: int, paths: int, given: int) -> int:
    """Addresses of the elements of arrays inside the list or tuple at address `root`; 0, or 1 if one is not as expected.

    It reads CPython's objects as they lie in memory, 8 bytes at a time (0.01 µs an array; through Python's own
    calls 0.1): an object is (references, type, ...), a list (..., size, items, ...), an array (..., data,
    axes, lengths, strides, base, dtype, flags). Whoever calls this holds `root`, and with it the arrays.
    `paths` (see `Paths` in `emit_numba.py`) says where they are, and which dtype and shape each must have.
    """
    count = word(paths, 0)
    array_type = word(paths, 1)
    list_type = word(paths, 2)
    tuple_type = word(paths, 3)
    first_of_tuple = word(paths, 4)
    at = 5
    for number in range(count):
        found = root
        depth = word(paths, at)
        for step in range(depth):
            position = word(paths, at + 1 + step)
            if word(found, 1) == list_type:
                found = word(word(found, 3), position)
            elif word(found, 1) == tuple_type:
                found = word(found, first_of_tuple + position)
            else:
                return 1
        at += 1 + depth
        dtype, scalar_type, axes = word(paths, at), word(paths, at + 1), word(paths, at + 2)
        at += 3
        if word(found, 1) == array_type:
            flags = word(found, 8) & C_ORDERED_AND_ALIGNED
            if word(found, 7) != dtype or flags != C_ORDERED_AND_ALIGNED:
                return 1
            if axes >= 0:
                if word(found, 3) & 0xFFFFFFFF != axes:
                    return 1
                for axis in range(axes):
                    if word(word(found, 4), axis) != word(paths, at + axis):
                        return 1
            set_word(given, number, word(found, 2))
        elif axes == 0 and word(found, 1) == scalar_type:
            set_word(given, number, found + 16)
        else:
            return 1
        at += max(axes, 0)
    return 0
