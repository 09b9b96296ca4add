"""What nvcc says of kernels that it compiles for an H100."""

import re
import shutil
import subprocess

import pytest

needed = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
REPORT = re.compile(
    r"entry function '(?P<kernel>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def registers(folder, text):
    """The registers of a thread, by the mangled name of each kernel of a source. Nothing may spill."""
    path = folder / "kernels.cu"
    path.write_text(text)
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings",
               "-o", folder / "kernels.cubin", path]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {kernel["kernel"]: kernel for kernel in REPORT.finditer(done.stderr)}
    for kernel in found.values():
        assert kernel["stack"] == kernel["stores"] == kernel["loads"] == "0", kernel[0]
    return {name: int(kernel["registers"]) for name, kernel in found.items()}
