"""The layers of the package: a file imports only from lower layers, or from earlier files of its own."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tapegrad

PACKAGE = pathlib.Path(tapegrad.__file__).parent

# Lowest first; within a layer a file may import those before it.
ORDER = [
    ["errors", "types"],
    [
        "kernels.cache", "kernels.reference", "kernels.cpu", "kernels.compiled", "kernels.gpu_launch", "kernels.gpu_recurrent", "kernels.gpu_optimizers", "kernels.gpu", "kernels.gpu_cupy",
        "kernels.cuda.costs", "kernels.cuda.plan", "kernels.cuda.source", "kernels.cuda.model", "kernels.cuda.steps", "kernels.cuda.calibrate", "kernels.cuda.rings", "kernels.cuda.blas", "kernels.cuda", "kernels.gpu_choice", "kernels.choice", "kernels",
    ],
    ["backend.products", "backend.capture", "backend.namespace", "backend.scipy", "backend.device"],
    [
        "core.floating", "core.refusals", "core.variable", "core.entry", "core.active", "core.generate", "core.primitive", "core.adjoints",
        "core.printout", "core.guard", "core.seeds", "core.tape", "core.revive", "core.walk", "core.pushforward", "core.schedule", "core.window", "core.sweep", "core.replay",
        "core.lag", "core.memory", "core.part", "core.capacitor", "core.move", "core.snapshot",
    ],
    [
        "ops.operands", "ops.elementwise", "ops.rounding", "ops.trigonometry", "ops.shape", "ops.index", "ops.cumulative", "ops.reduce",
        "ops.join", "ops.arrange", "ops.piecewise", "ops.ranges", "ops.masked", "ops.linalg", "ops.einsum", "ops.statistics",
        "ops.order", "ops.differences", "ops.curves", "ops.windows", "ops.convolve", "ops.polynomials", "ops.pool", "ops.matrix", "ops.factor",
        "ops.determinant", "ops.norm", "ops.softmax", "ops.recurrent", "ops.bessel", "ops.special",
        "ops.transfer", "ops.names", "ops.dispatch", "ops.operators", "ops.protocols", "ops.exchange",
    ],
    ["linalg", "special", "array_api"],
    [
        "program.chance", "program.signature", "program.settle", "program.blocks", "program.trace", "program.exact", "program.live",
        "program.record", "program.plan", "program.loops", "program.rings", "program.emit_numpy", "program.emit_numba",
        "program.interpreter", "program.statements", "program.function", "program.seats", "program.walk", "program.steady", "program.layers", "program.device_layer", "program.device_window", "program.replay", "program", "program.warm",
    ],
    ["nest", "transforms", "opaque"],
    [
        "program.arenas", "program.position", "program.arguments", "program.fitting", "program.launches", "program.rehearsal", "program.graph",
    ],
    [
        "truncation.burn_in", "truncation.joints", "truncation.randomized", "truncation.real_time", "truncation.tolerance",
        "truncation.adaptive", "truncation",
    ],
    [
        "nn.flat", "nn.module", "nn.layers", "nn.cells", "nn.losses", "nn.document", "nn",
        "optim.numbers", "optim.optimizer", "optim.sgd", "optim.adam", "optim.clip", "optim",
        "data.streams", "data.text", "data",
    ],
    ["places", "second_order", "gradcheck"],
    ["files", "render.figure", "render.lags", "render.blocks", "render.spectrum", "render"],
    ["doctor"],
    ["__init__", "__main__"],
]  # fmt: skip
RANK = {module: rank for rank, module in enumerate(m for layer in ORDER for m in layer)}


def files():
    sources = {path: path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    kernels = pathlib.Path(tapegrad.kernels.__file__).parent
    sources |= {
        path: pathlib.Path("kernels") / path.relative_to(kernels).with_suffix("")
        for path in kernels.rglob("*.py")
    }
    return {
        path: ".".join(p for p in name.parts if p != "__init__" or len(name.parts) == 1)
        for path, name in sources.items()
    }


def imports(path, module):
    """The modules of tapegrad that a file imports, wherever in it the import stands."""
    is_package = path.name == "__init__.py"
    here = [] if module == "__init__" else module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == "tapegrad":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                name = ".".join([*base, alias.name])
                yield name if name in RANK else ".".join(base)
        elif isinstance(node, ast.Import):
            yield from (
                ".".join(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "tapegrad"
            )


def test_every_import_points_to_a_lower_layer():
    wrong = []
    for path, module in files().items():
        if module in ("core", "ops", "backend"):
            assert not list(imports(path, module)), f"{module}/__init__.py imports something"
            continue
        assert module in RANK, f"{module} has no place in the layers: add it to ORDER"
        wrong += [f"{module} -> {name}" for name in imports(path, module) if RANK[name] >= RANK[module]]
    assert not wrong


def test_kernels_know_nothing_of_tapegrad():
    for path, module in files().items():
        if module.startswith("kernels"):
            assert not [name for name in imports(path, module) if not name.startswith("kernels")]


def test_kernels_are_installed_as_part_of_the_package_only():
    found = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-E", "-c", "import kernels"],
        cwd=PACKAGE.anchor,
        capture_output=True,
        text=True,
    )
    assert "No module named 'kernels'" in found.stderr


def test_python_started_in_a_copy_of_the_repository_finds_all_of_the_package():
    root = pathlib.Path(__file__).parent.parent
    code = "import tapegrad; print(tapegrad.__file__, tapegrad.kernels.cpu.__file__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert found.stdout.split() == [str(root / "tapegrad/__init__.py"), str(root / "kernels/cpu.py")], (
        found.stderr
    )


def test_importing_tapegrad_imports_nothing_optional():
    code = (
        "import sys, numpy; before = set(sys.modules); import tapegrad; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.anchor)
    assert found.stdout.strip() == "['tapegrad']", found.stderr


def test_the_core_can_be_read_in_an_evening():
    core = [f"core.{name}" for name in ("variable", "primitive", "tape", "adjoints", "schedule", "capacitor")]
    lines = sum(len((PACKAGE / (m.replace(".", "/") + ".py")).read_text().splitlines()) for m in core)
    assert lines < 1500


def test_the_public_names_are_there():
    for name in (
        "Tape",
        "CapacitorTape",
        "Variable",
        "Parameter",
        "Sliding",
        "Chunked",
        "Full",
        "nn",
        "optim",
        "data",
    ):
        assert hasattr(tapegrad, name)
    assert (PACKAGE / "py.typed").exists()


def fresh(code):
    """What a new interpreter prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.anchor)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


LATE = [
    "data",
    "linalg",
    "nn",
    "optim",
    "render",
    "special",
    "truncation",
    "transforms",
    "gradcheck",
    "files",
    "array_api",
]


def test_what_few_programs_need_is_imported_when_it_is_asked_for():
    code = (
        "import sys, tapegrad as tg; loaded = lambda: {m.removeprefix('tapegrad.') for m in sys.modules}; before = loaded(); "
        f"print(*before & set({LATE!r}), '|', *(callable(f) for f in (tg.render.lag_profile, tg.nn.Linear, tg.optim.SGD, "
        "tg.Adaptive, tg.linalg.inv, tg.special.expit, tg.check_gradients, tg.save, tg.compile, tg.grad)), hasattr(tg, 'nothing'))"
    )
    assert fresh(code) == ["|", *["True"] * 10, "False"]


def test_modules_of_ops_that_the_core_does_without_are_imported_when_they_are_asked_for():
    code = (
        "import sys, tapegrad as tg; before = {m for m in sys.modules if m.startswith('tapegrad.ops.')}; "
        "tg.tan; tg.median; "
        "print('tapegrad.ops.recurrent' in before, 'tapegrad.ops.trigonometry' in before, 'tapegrad.ops.order' in sys.modules)"
    )
    assert fresh(code) == ["False", "False", "True"]


@pytest.mark.parametrize(
    "code",
    [
        "import tapegrad.nn; tapegrad.nn.Linear",
        "from tapegrad import nn, optim, data, render, linalg, special; nn.Linear, optim.SGD, linalg.inv, special.erf",
        "from tapegrad import tanh, tan, Adaptive, save, check_gradients, compile, sum",
        "import tapegrad.linalg as la, tapegrad.special as sp; la.inv, sp.erf",
        "import tapegrad as tg; assert {'nn', 'tan', 'Adaptive', 'grad', 'Tape', 'linalg', 'sum', '__version__'} <= set(dir(tg))",
        "import tapegrad as tg; assert all(hasattr(tg, name) for name in dir(tg))",
        "import tapegrad as tg; assert 'inv' in dir(tg.linalg) and 'erf' in dir(tg.special)",
        "import pickle, tapegrad as tg; assert pickle.loads(pickle.dumps(tg.tan)) is tg.tan",
        "import pickle, tapegrad as tg; pickle.loads(pickle.dumps(tg.nn.Linear(2, 3)))",
        "import numpy as np, tapegrad as tg; np.median(tg.Variable([1.0, 2.0]))",
    ],
)
def test_what_is_late_can_be_had_in_every_way(code):
    fresh(code)


def test_a_snapshot_may_name_ops_that_nobody_has_asked_for(tmp_path):
    """Another process loads it, and imports the modules of those ops."""
    make = """
import numpy as np, tapegrad as tg
v, tape = tg.Variable(np.ones(3), name="v"), tg.CapacitorTape(4)
with tape:
    y = np.tan(v)
    loss = tg.sum(y)
"""
    fresh(make + f"tg.save({str(tmp_path / 'a.npz')!r}, tape.state_dict(parameters={{'v': v}}))")
    loaded = fresh(
        "import sys, numpy as np, tapegrad as tg; v, tape = tg.Variable(np.ones(3), name='v'), tg.CapacitorTape(4); "
        f"tape.load_state_dict(tg.load({str(tmp_path / 'a.npz')!r}), parameters={{'v': v}}); "
        "print('tapegrad.ops.trigonometry' in sys.modules)"
    )
    assert loaded == ["True"]
