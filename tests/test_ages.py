"""The kernel that moves what a window keeps to older places (`kernels/cuda/ages.cu`), without a GPU."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tapegrad.kernels.cuda import source

QUAD = 16  # bytes


def beside(name):
    """A module that lies beside this file."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


cuda_source = beside("test_cuda_source")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cuda_source.built(tmp_path_factory.mktemp("fibres"), "ages.cu", ["move_ages"])


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("by", [1, 2, 5])
@pytest.mark.parametrize("places", [0, 1, 7, 8, 9, 20, 33])
def test_every_place_moves_and_nothing_else(library, places, by, order):
    quads, threads = 37, 16
    rng = np.random.default_rng(places)
    memory = rng.integers(0, 255, ((places + by + 1), quads * QUAD), np.uint8)
    expected = memory.copy()
    expected[by : by + places] = memory[:places]
    kernel = cuda_source.Fibres({"ages.cu": library}, order).compiled("ages.cu", "move_ages")
    arguments = (memory, np.uint64(quads), np.int32(places), np.int32(by))
    kernel((-(-quads // threads),), (threads,), arguments)
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_it_compiles_for_an_h100_without_spills(tmp_path):
    path = tmp_path / "ages.cu"
    path.write_text(source.text("ages.cu"))
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings",
               "-o", tmp_path / "ages.cubin", path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = cuda_source.REPORT.finditer(done.stderr)
    assert found["stack"] == found["stores"] == found["loads"] == "0"
    assert int(found["registers"]) <= 64  # 1,024 threads of a multiprocessor at once
