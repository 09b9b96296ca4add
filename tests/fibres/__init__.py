"""Kernels in CUDA C++ on a CPU: g++ compiles them over fibres, one for each thread of a grid.

    library = fibres.built(folder, "ages.cu", ["move_ages"])
    kernel = fibres.Fibres({"ages.cu": library}).compiled("ages.cu", "move_ages")
    kernel(grid, block, arguments)

`device.h` is put in the place of the kernels' own, `launch.h` runs a grid. What waits for the other threads of a block or
for the other blocks is a *barrier*; each has a number, and can be left out.
"""

import ctypes
import functools
import itertools
import mmap
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tapegrad.kernels.cuda import source

FOLDER = pathlib.Path(__file__).parent
LIBC = ctypes.CDLL(None)
BARRIER = re.compile(r"^ +(?:__syncthreads\(\)|barrier\.come\(\)|barrier\.wait\(\));", re.MULTILINE)
OUTCOMES = (
    "done",
    "its threads wait for each other for ever",
    "it reads or writes beyond the end of an array",
    "there is no such kernel",
    "it takes other arguments",
)


class Machine:
    """Runs kernels as `source.compiled` would, on copies of the arrays where the kernels can reach them."""

    def launch(self, kernel, grid, block, args, shared_mem=0):
        owners = [None if not isinstance(a, np.ndarray) else a if a.base is None else a.base for a in args]
        there = {id(owner): self.copy(owner) for owner in owners if owner is not None}
        moved = [
            a
            if owner is None
            else np.uintp(self.address(there[id(owner)]) + a.ctypes.data - owner.ctypes.data)
            for a, owner in zip(args, owners, strict=True)
        ]
        self.call(kernel, grid, block, moved, shared_mem)
        for owner in owners:
            if owner is not None:
                owner[...] = self.back(there[id(owner)])


class Fibres(Machine):
    """On a CPU. Behind each array lies memory that nobody may touch. `order` draws which thread goes first;
    `left_out` are numbers of barriers that are not there."""

    def __init__(self, libraries, order=2, left_out=()):
        self.libraries, self.order, self.left_out = libraries, order, left_out

    def compiled(self, name, expression, shared_bytes=0, cooperative=False):
        return functools.partial(self.launch, (self.libraries[name], expression))

    def call(self, kernel, grid, block, args, shared_mem):
        library, expression = kernel
        cells = [np.array(a) for a in args]
        pointers = (ctypes.c_void_p * len(cells))(*(c.ctypes.data for c in cells))
        failed = library.launch(
            expression.encode(), *(*grid, 1)[:2], block[0], ctypes.c_size_t(shared_mem), self.order,
            sum(1 << i for i in self.left_out), len(cells), pointers,
        )  # fmt: skip
        if failed:
            raise RuntimeError(f"{expression}: {OUTCOMES[failed]}")

    def copy(self, array):
        page, room = mmap.PAGESIZE, -(-array.nbytes // 16) * 16
        memory = mmap.mmap(-1, -(-room // page) * page + page)
        whole = np.frombuffer(memory, np.uint8)
        end = ctypes.c_void_p(whole.ctypes.data + len(memory) - page)
        assert LIBC.mprotect(end, ctypes.c_size_t(page), 0) == 0
        there = whole[-page - room :][: array.nbytes].view(array.dtype).reshape(array.shape)
        there[...] = array
        return there

    def address(self, there):
        return there.ctypes.data

    def back(self, there):
        return there


def in_place(library, expression, grid, block, args, shared_mem=0):
    """A launch of a kernel of `library` where the arrays lie."""
    pointers = [np.uintp(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in args]
    Fibres({}).call((library, expression), grid[:2], block, pointers, shared_mem)


def barriers(name):
    return [m[0].strip() for m in BARRIER.finditer(on_fibres(name))]


def on_fibres(name):
    return source.text(name, {"device.h": FOLDER / "device.h"})


def numbered(text):
    """The source with each barrier under a condition."""
    numbers = itertools.count()
    return BARRIER.sub(lambda m: f"if (!(fibres::left_out >> {next(numbers)} & 1)) {m[0].strip()}", text)


def built(folder, name, kernels):
    """The library that runs `kernels`, the expressions of a source, over fibres."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++ on Linux")
    table = ", ".join(f'{{"{e}", {{by_pointers({e}), arguments({e})}}}}' for e in dict.fromkeys(kernels))
    path = folder / f"{name[:-3]}.cpp"
    path.write_text(
        f"{numbered(on_fibres(name))}\n{(FOLDER / 'launch.h').read_text()}\n"
        f"namespace fibres {{\nconst std::map<std::string, Kernel> kernels = {{{table}}};\n}}\n"
    )
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-fno-gnu-unique", "-w",
               "-o", path.with_suffix(".so"), path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(path.with_suffix(".so")))
