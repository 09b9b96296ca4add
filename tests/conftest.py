"""Which tests compute on a GPU: `pytest -m gpu` runs these alone. Without one they are skipped, or there is nothing to run.

Where CuPy sees a GPU, `-m gpu` also runs the op sweep of `test_cupy.py` and the loops of `test_gpu_device.py` on CuPy
itself, as TAPEGRAD_TEST_CUPY=real does. They share a process with nothing that runs on the stand-in.
"""

import functools
import importlib.util
import os

import pytest

REAL = "TAPEGRAD_TEST_CUPY"


@functools.cache
def why_no_gpu():
    """What is missing, or nothing. CuPy is not imported where it is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    return "" if cupy.cuda.is_available() else "CuPy finds no GPU"


def asks_for_gpu(config):
    chosen = config.getoption("markexpr") or ""
    return "gpu" in chosen and "not gpu" not in chosen


def pytest_configure(config):
    if asks_for_gpu(config) and not why_no_gpu():
        os.environ.setdefault(REAL, "real")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks by file: its tests compute on the device unless they name a fixture that says otherwise."""
    for item in items:
        name = item.path.name
        on_device = (name == "test_gpu_kernels.py" and "host" not in item.fixturenames) or (
            name in ("test_cupy.py", "test_gpu_device.py") and os.environ.get(REAL) == "real"
        )
        if on_device:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def gpu():
    """CuPy, for a test that needs a device."""
    if why := why_no_gpu():
        pytest.skip(f"needs a GPU: {why}")
    import cupy

    return cupy
