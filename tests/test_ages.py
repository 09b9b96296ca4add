"""The kernel that moves what a window keeps to older places (`kernels/cuda/ages.cu`), without a GPU."""

import numpy as np
import pytest
from tapegrad.kernels.cuda import source

import fibres
import nvcc

QUAD = 16  # bytes


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return fibres.built(tmp_path_factory.mktemp("fibres"), "ages.cu", ["move_ages"])


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("by", [1, 2, 5])
@pytest.mark.parametrize("places", [0, 1, 7, 8, 9, 20, 33])
def test_every_place_moves_and_nothing_else(library, places, by, order):
    quads, threads = 37, 16
    rng = np.random.default_rng(places)
    memory = rng.integers(0, 255, ((places + by + 1), quads * QUAD), np.uint8)
    expected = memory.copy()
    expected[by : by + places] = memory[:places]
    kernel = fibres.Fibres({"ages.cu": library}, order).compiled("ages.cu", "move_ages")
    arguments = (memory, np.uint64(quads), np.int32(places), np.int32(by))
    kernel((-(-quads // threads),), (threads,), arguments)
    np.testing.assert_array_equal(memory, expected)


@nvcc.needed
def test_it_compiles_for_an_h100_without_spills(tmp_path):
    (registers,) = nvcc.registers(tmp_path, source.text("ages.cu")).values()
    assert registers <= 64  # 1,024 threads of a multiprocessor at once
