"""What is installed, what it needs, and what each extra adds."""

import pathlib

from setuptools import setup

PACKAGES = [
    "backend",
    "core",
    "data",
    "kernels",
    "kernels.cuda",
    "nn",
    "ops",
    "optim",
    "program",
    "render",
    "truncation",
]

setup(
    name="tapegrad",
    version="0.1.0",
    description="Differentiate the loop you wrote: tapes, and backpropagation through time over a window of one.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    install_requires=["numpy>=2.0"],
    extras_require={
        "jit": ["numba", "scipy"],
        "cuda12": ["cupy-cuda12x", "numba-cuda[cu12]", "scipy"],
        "cuda13": ["cupy-cuda13x", "numba-cuda[cu13]", "scipy"],
        "viz": ["matplotlib"],
        "examples": ["matplotlib", "tqdm"],
        "test": ["pytest>=8", "pytest-xdist"],
        "lint": ["mypy", "ruff"],
        "bench": ["autograd", "jax", "matplotlib", "mygrad", "scipy", "tinygrad", "torch"],
    },
    packages=["tapegrad", *(f"tapegrad.{name}" for name in PACKAGES)],
    package_dir={"tapegrad": "tapegrad", "tapegrad.kernels": "kernels"},
    package_data={"tapegrad": ["py.typed"], "tapegrad.kernels.cuda": ["*.cu", "*.h"]},
)
