"""What is installed, what it needs, and what each extra adds."""

from setuptools import setup

setup(
    name="tapegrad",
    version="0.1.0",
    description="Tape-based reverse-mode autodiff with truncated backpropagation through time as a property of the tape",
    python_requires=">=3.10",
    install_requires=["numpy>=2.0"],
    packages=[
        "tapegrad",
        "tapegrad.backend",
        "tapegrad.core",
        "tapegrad.ops",
        "tapegrad.nn",
        "tapegrad.optim",
        "tapegrad.data",
        "tapegrad.kernels",
    ],
    package_dir={"tapegrad": "tapegrad", "tapegrad.kernels": "kernels"},
    package_data={"tapegrad": ["py.typed"]},
)
