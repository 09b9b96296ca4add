"""docs/ops.md is what the declarations say."""

import importlib.util
import pathlib

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.core.primitive import Primitive
from tapegrad.ops import names

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def ops():
    """docs/ops.py as a module."""
    spec = importlib.util.spec_from_file_location("ops_page", DOCS / "ops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_ops_is_written_from_the_declarations(ops):
    written = (DOCS / "ops.md").read_text(encoding="utf-8")
    assert written.split(ops.NUMPYS)[0] == ops.HEAD + ops.ops_text() + "\n", "run python docs/ops.py"


def test_the_table_of_numpys_functions_is_that_of_this_numpy(ops):
    written = ops.NUMPYS + (DOCS / "ops.md").read_text(encoding="utf-8").split(ops.NUMPYS)[1]
    version = ".".join(np.__version__.split(".")[:2])
    if f"NumPy {version} asks" not in written:
        pytest.skip(f"the page is about another NumPy than {version}")
    assert written == ops.numpy_text(), "run python docs/ops.py"


def test_every_primitive_and_every_function_with_a_public_name_is_on_the_page(ops):
    written = (DOCS / "ops.md").read_text(encoding="utf-8")
    for module in ops.modules():
        for name, _ in ops.functions_of(module):
            assert f"`{name}(" in written
    for p in ops.REGISTRY.values():
        if p.body.__module__.startswith("tapegrad.ops."):
            assert f"`{ops.signature(p)}`" in written


def test_a_pullback_is_shown_as_it_is_written(ops):
    def cotangents(op):
        return ops.op_row(op.primitive, [])[2:4]

    assert cotangents(tg.divide) == ["`a` ← `ct / b`<br>`b` ← `-ct * (y / b)`", "`b`, `y`"]
    assert cotangents(tg.tanh) == ["`a` ← `ct - ct * y * y`", "`y`"]
    assert cotangents(tg.matmul)[0].startswith("`a` ← `left_pullback(ct, b, a_shape)`")


def test_a_pullback_that_has_a_name_is_shown_whole_but_for_its_docstring(ops):
    def doubled(ct, a):
        """Twice the cotangent."""
        return ct + ct  # of both

    def twice_on_a_page(xp, a):
        return xp.add(a, a)

    p = Primitive(twice_on_a_page, {"a": doubled})
    assert ops.op_row(p, ["np.twice"])[2:] == ["`a` ← `doubled(ct, a)`", "`a`", "`np.twice`"]
    assert [ops.body_of(f) for f in ops.named_rules(p)] == [
        "def doubled(ct, a):\n    return ct + ct  # of both"
    ]


def test_every_pullback_on_the_page_has_a_name_or_is_an_expression():
    assert "<lambda>" not in (DOCS / "ops.md").read_text(encoding="utf-8")


def test_functions_that_scipy_does_not_ask_about_variables_are_not_said_to_record():
    written = (DOCS / "ops.md").read_text(encoding="utf-8")
    assert not [n for n in names.NO_UFUNCS if f"`scipy.special.{n}`" in written]


def test_what_a_pullback_calls_is_said_beside_it():
    written = (DOCS / "ops.md").read_text(encoding="utf-8")
    for called in (
        "slope_in_base(a, b)",
        "carried_back(ct, a, axis)",
        "on_triangle(g, lower)",
        "opposite(shift)",
    ):
        assert f"- `{called}`: " in written
