"""What the doctor finds, and the fix it names for each thing that is wrong."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from tapegrad.kernels.cuda import calibrate, costs, model, plan, source

from tapegrad import doctor


def found(findings):
    return {f.what: f for f in findings}


def test_a_healthy_installation_has_nothing_wrong(capsys):
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert "Nothing is wrong." in printed and np.__version__ in printed
    assert "self-test, NumPy  gradients differ from the rules' by" in printed


def test_it_runs_as_a_module_and_speaks_json():
    command = [sys.executable, "-m", "tapegrad", "doctor", "--json", "--no-self-test"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    findings = json.loads(done.stdout)
    assert {"Python", "NumPy", "its BLAS", "threads", "CuPy", "driver"} <= {f["what"] for f in findings}
    assert all(set(f) == {"what", "found", "fix"} for f in findings)


def test_an_unknown_command_is_an_error():
    done = subprocess.run([sys.executable, "-m", "tapegrad", "nurse"], capture_output=True, text=True)
    assert done.returncode == 2 and "of doctor" in done.stderr


def distributions(*names):
    return [types.SimpleNamespace(metadata={"Name": name}, version="14.2.0") for name in names]


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        (("numpy", "cupy-cuda12x", "cupy-cuda13x"), "pip uninstall -y cupy-cuda12x cupy-cuda13x; pip install cupy-cuda13x"),
        (("cupy", "cupy-cuda12x"), "pip uninstall -y cupy cupy-cuda12x; pip install cupy-cuda12x"),
        (("cupy",), "pip uninstall -y cupy; pip install cupy-cuda13x (or 12x)"),
        (("cupy-cuda13x",), ""),
        (("numpy",), ""),
    ],
)  # fmt: skip
def test_more_than_one_cupy_is_a_conflict(names, fix, monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: distributions(*names))
    monkeypatch.setattr(doctor, "installed", lambda name: "14.2.0")
    (finding,) = doctor.cupy_packages()
    assert finding.fix == fix


def test_threads_that_make_no_sense_are_named(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    (finding,) = doctor.threads()
    assert "Set OMP_NUM_THREADS to a number from 1 to" in finding.fix


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    if doctor.installed("numba") is None:
        pytest.skip("without Numba nothing is cached")
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TAPEGRAD_CACHE", str(file))
    (finding,) = doctor.cache()
    assert "set TAPEGRAD_CACHE to a folder that is" in finding.fix


class Cuda:
    """Stands in for CuPy where nothing of it is computed with."""

    def __init__(self, runtime=13000, nvrtc=(13, 0), available=True, free=2**33):
        def answer(value):
            def call(*_):
                if isinstance(value, Exception):
                    raise value
                return value

            return call

        self.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(
                runtimeGetVersion=answer(runtime),
                getDeviceProperties=answer({"name": b"A GPU", "major": 9, "minor": 0}),
                memGetInfo=answer((free, 2**36)),
            ),
            nvrtc=types.SimpleNamespace(getVersion=answer(nvrtc)),
            is_available=answer(available),
        )


@pytest.mark.parametrize(
    ("cupy", "driver", "what", "fix"),
    [
        (Cuda(), 13000, "device", ""),
        (Cuda(runtime=13000), 12080, "CUDA runtime", "Update the driver, or pip install cupy-cuda12x."),
        (Cuda(runtime=RuntimeError("no libcudart")), 13000, "CUDA runtime", "Install the CUDA libraries"),
        (Cuda(nvrtc=(12, 9)), 13000, "NVRTC", 'pip install "nvidia-cuda-nvrtc==13.*"'),
        (Cuda(nvrtc=ImportError("no libnvrtc")), 13000, "NVRTC", 'pip install "nvidia-cuda-nvrtc==13.*"'),
        (Cuda(available=False), 13000, "device", "Look at CUDA_VISIBLE_DEVICES"),
        (Cuda(available=False), None, "device", ""),
        (Cuda(free=2**20), 13000, "device", "Its memory is full"),
    ],
)  # fmt: skip
def test_parts_of_cuda_that_do_not_fit_are_named(cupy, driver, what, fix):
    finding = found(doctor.runtime(cupy, driver))[what]
    assert finding.fix.startswith(fix) if fix else not finding.fix


@pytest.mark.parametrize(
    ("version", "said", "fix"),
    [
        (None, "none: no NVIDIA GPU", ""),
        (0, "does not answer", "Restart"),
        (13010, "for CUDA up to 13.1", ""),
    ],
)
def test_a_driver_is_asked_for_its_version(version, said, fix, monkeypatch):
    monkeypatch.setattr(doctor, "driver_version", lambda: version)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    findings = found(doctor.gpu())
    assert said in findings["driver"].found and findings["driver"].fix.startswith(fix)
    if version:
        assert findings["device"].fix == "pip install 'tapegrad[cuda13]'"


def test_a_backend_whose_gradients_are_wrong_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "compared", lambda compile: 0.01)
    assert "Gradients are wrong" in found(doctor.self_tests())["self-test, NumPy"].fix

    def fails(compile):
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(doctor, "compared", fails)
    finding = found(doctor.self_tests())["self-test, NumPy"]
    assert "ZeroDivisionError: mine" in finding.found and finding.fix
    assert doctor.main([]) == 1


def test_a_python_or_a_numpy_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_PYTHON", (99, 0))
    monkeypatch.setattr(doctor, "LEAST_NUMPY", (99, 0))
    assert "needs Python 99.0" in next(doctor.python()).fix
    assert found(doctor.numpy())["NumPy"].fix == 'pip install "numpy>=2.0"'


# -- sweeps on the GPU ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path))
    costs.measured.cache_clear()
    yield tmp_path
    costs.measured.cache_clear()


def on_a_gpu(monkeypatch):
    monkeypatch.setattr(source, "available", lambda: True)
    monkeypatch.setattr(source, "this_gpu", lambda: plan.Gpu("NVIDIA H100"))
    monkeypatch.setattr(costs, "this_origin", lambda: ORIGIN)


ORIGIN = costs.Origin("NVIDIA H100", 13000, 132)
SHOWN = "lstm 256 x 1"


def test_without_a_gpu_the_choice_is_shown_without_times(monkeypatch):
    monkeypatch.setattr(source, "available", lambda: False)
    findings = found(doctor.sweeps())
    assert findings["choice of sweeps"].found == "by estimates for an H100: no GPU is here"
    assert findings[SHOWN].found == "window 5: persistent; window 20: persistent; window 50: persistent"
    assert len(findings) == 5 and not any(f.fix or "µs" in f.found for f in findings.values())


def test_a_gpu_that_was_calibrated_shows_times_and_one_that_was_not_says_so(monkeypatch, folder):
    on_a_gpu(monkeypatch)
    said = found(doctor.sweeps())["choice of sweeps"].found
    assert "NVIDIA H100 has not been calibrated; `python -m tapegrad doctor --calibrate` measures" in said
    slow = costs.ESTIMATES._replace(barrier=100.0)
    costs.keep(slow, ORIGIN, {})
    findings = found(doctor.sweeps())
    assert findings["choice of sweeps"].found == "by what was measured on NVIDIA H100"
    time = model.window_cost("alternating", "lstm", 256, 1, 20, slow, True)
    assert f"window 20: alternating, {time:.0f} µs; " in findings[SHOWN].found


def test_what_the_user_asks_for_is_shown(monkeypatch):
    monkeypatch.setattr(model, "WAY", "generic")
    assert "but 'generic' is asked for" in found(doctor.sweeps())["choice of sweeps"].found


def test_calibrating_without_a_gpu_is_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(source, "available", lambda: False)
    assert doctor.main(["--calibrate", "--no-self-test"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("!!  calibration") and "only a GPU can say what it costs" in printed
    assert "fix: Without one the model goes by estimates for an H100." in printed


def test_calibrating_says_what_came_out_and_where_it_is(monkeypatch, capsys, folder):
    on_a_gpu(monkeypatch)
    kept = costs.ESTIMATES._replace(gap=2.5)

    def calibrated():
        return kept, costs.keep(kept, ORIGIN, {})

    monkeypatch.setattr(calibrate, "calibrate", calibrated)
    monkeypatch.setattr(doctor, "EXAMINATIONS", (doctor.sweeps,))
    assert doctor.main(["--calibrate", "--no-self-test"]) == 0
    printed = capsys.readouterr().out
    assert f"written to {costs.file_of(ORIGIN)}" in printed and "gap 2.5" in printed
    assert "gemm_rates 1: 1.7, 8: 9, " in printed and "by what was measured on NVIDIA H100" in printed


def test_a_calibration_that_breaks_off_is_a_fault(monkeypatch):
    def fails():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibrate, "calibrate", fails)
    (finding,) = doctor.calibration()
    assert "No space left" in finding.found and "idle GPU" in finding.fix
