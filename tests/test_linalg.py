"""Linear algebra: against NumPy's values, against PyTorch's derivatives to second order, at singular points, in words.

What every primitive must do is in test_primitives.py; here are the functions that users call.
"""

import itertools

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import linalg as la
from tapegrad.errors import ArgumentError, GradientStopsWarning, MatrixError, ShapeError, UnsupportedError
from tapegrad.ops import einsum as einsum_module
from tapegrad.ops import linalg as products
from tapegrad.ops.einsum import einsum

TOLERANCE = 1e-9
RNG = np.random.default_rng(7)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def reseeded():
    """Every test draws the same numbers, whichever others run."""
    RNG.bit_generator.state = START


def drawn(*shape):
    return RNG.standard_normal(shape)


def regular(*shape):
    """Square matrices far from singular."""
    return drawn(*shape) + 4.0 * np.eye(shape[-1])


def symmetric(*shape):
    a = regular(*shape)
    return a + a.mT


def listed(y):
    return list(y) if isinstance(y, (tuple, list)) else [y]


def differentiated(y):
    return [v for v in listed(y) if isinstance(v, tg.Variable) and v.dtype.kind == "f"]


def total_of(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def random_cotangents(ys):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(y.shape) for y in ys]


def ours_to_second_order(function, arrays):
    """The outputs, the gradients for random cotangents, and the gradients of a random product of those."""
    leaves = [tg.Variable(a) for a in arrays]
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            ys = differentiated(function(*leaves))
        adjoints = inner.backward(ys, random_cotangents(ys), record=True)
        firsts = [adjoints[v] for v in leaves]
        total = total_of([tg.sum(g * u) for g, u in zip(firsts, random_cotangents(firsts), strict=True)])
    seconds = outer.backward(total) if total._slot else None
    return (
        [y.value for y in ys],
        [g.value for g in firsts],
        [np.zeros(v.shape) if seconds is None else seconds[v] for v in leaves],
    )


def theirs_to_second_order(function, arrays):
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    ys = [y for y in listed(function(*leaves)) if y.dtype == torch.float64]
    cts = [torch.tensor(ct) for ct in random_cotangents(ys)]
    firsts = torch.autograd.grad(ys, leaves, cts, create_graph=True, allow_unused=True)
    firsts = [torch.zeros_like(v) if g is None else g for g, v in zip(firsts, leaves, strict=True)]
    total = sum((g * torch.tensor(u)).sum() for g, u in zip(firsts, random_cotangents(firsts), strict=True))
    if total.requires_grad:
        seconds = torch.autograd.grad(total, leaves, allow_unused=True)
        seconds = [torch.zeros_like(v) if g is None else g for g, v in zip(seconds, leaves, strict=True)]
    else:
        seconds = [torch.zeros_like(v) for v in leaves]
    return [[t.detach().numpy(force=True) for t in part] for part in (ys, firsts, seconds)]


def assert_close(ours, theirs, what):
    assert ours.shape == theirs.shape, what
    scale = max(np.max(np.abs(theirs), initial=0.0), 1.0)
    difference = np.max(np.abs(ours - theirs), initial=0.0)
    assert difference <= TOLERANCE * scale, (
        f"{what} differs by {difference:.3g} of {scale:.3g}\n{ours}\n{theirs}"
    )


def assert_agrees(ours, theirs, arrays):
    for what, one, other in zip(
        ("value", "gradient", "second derivative"),
        ours_to_second_order(ours, arrays),
        theirs_to_second_order(theirs, arrays),
        strict=True,
    ):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, what)


# -- against PyTorch -----------------------------------------------------------------------------------


def torch_linalg(name, *arguments, **options):
    """A function of tensors by its name, looked up when it is called."""

    def call(*tensors):
        import torch

        found = torch
        for part in name.split("."):
            found = getattr(found, part)
        return found(*tensors, *arguments, **options)

    return call


def of_symmetric(function):
    return lambda a: function(a + a.mT)


def squared_vectors(function):
    """Vectors are determined up to their sign: their squares are compared, and products of matching ones."""

    def call(a):
        u, s, vh = function(a)
        first, second = u[..., :, :1] * vh[..., :1, :], u * u
        return s, first, second, vh * vh

    return call


def squared_eigenvectors(function):
    def call(a):
        w, v = function(a + a.mT)
        return w, v * v

    return call


SHAPES = {"square": (4, 4), "tall": (5, 3), "wide": (3, 5), "stack": (2, 3, 3), "tall stack": (2, 1, 4, 2)}
SQUARE = {
    "one": (1, 1),
    "square": (4, 4),
    "stack": (2, 3, 3),
    "stack of stacks": (2, 1, 3, 3),
    "none": (0, 2, 2),
}


@pytest.mark.parametrize("shape", SQUARE.values(), ids=SQUARE)
@pytest.mark.parametrize("name", ["inv", "det", "slogdet"])
def test_functions_of_square_matrices(name, shape):
    def ours(a):
        y = getattr(la, name)(a)
        return y.logabsdet if name == "slogdet" else y

    def theirs(a):
        y = torch_linalg(f"linalg.{name}")(a)
        return y.logabsdet if name == "slogdet" else y

    assert_agrees(ours, theirs, [regular(*shape)])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 3), (3,)),
        ((3, 3), (3, 2)),
        ((2, 3, 3), (2, 3, 4)),
        ((2, 3, 3), (3, 4)),
        ((4, 1, 2, 2), (3, 2, 1)),
        ((1, 1), (1,)),
    ],
)
def test_solve(a, b):
    assert_agrees(la.solve, torch_linalg("linalg.solve"), [regular(*a), drawn(*b)])


def test_solve_takes_a_vector_for_a_stack_of_matrices():
    a, b = regular(2, 3, 3), drawn(3)
    np.testing.assert_allclose(la.solve(a, b), np.linalg.solve(a, b))
    assert_agrees(la.solve, lambda a, b: torch_linalg("linalg.solve")(a, b.expand(2, 3)), [a, b])


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("shape", SQUARE.values(), ids=SQUARE)
def test_cholesky(shape, upper):
    def positive(function):
        return lambda a: function(a @ a.mT)

    ours = positive(lambda a: la.cholesky(a, upper=upper))
    assert_agrees(ours, positive(torch_linalg("linalg.cholesky", upper=upper)), [regular(*shape)])


@pytest.mark.parametrize("triangle", ["L", "U"])
@pytest.mark.parametrize("shape", SQUARE.values(), ids=SQUARE)
def test_eigenvalues_of_symmetric_matrices(shape, triangle):
    a = drawn(*shape)
    ours = squared_eigenvectors(lambda a: la.eigh(a, triangle))
    assert_agrees(ours, squared_eigenvectors(torch_linalg("linalg.eigh", triangle)), [a])
    ours = of_symmetric(lambda a: la.eigvalsh(a, triangle))
    assert_agrees(ours, of_symmetric(torch_linalg("linalg.eigvalsh", triangle)), [a])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_values(shape):
    a = drawn(*shape)
    ours = squared_vectors(lambda a: la.svd(a, full_matrices=False))
    assert_agrees(ours, squared_vectors(torch_linalg("linalg.svd", full_matrices=False)), [a])
    assert_agrees(la.svdvals, torch_linalg("linalg.svdvals"), [a])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_qr(shape):
    ours = lambda a: tuple(la.qr(a))
    theirs = lambda a: tuple(torch_linalg("linalg.qr")(a))
    a = drawn(*shape)
    assert_agrees(ours, theirs, [a])
    q, r = la.qr(a)
    np.testing.assert_allclose(q @ r, a, atol=1e-12)
    np.testing.assert_array_equal(la.qr(a, "r"), r)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pinv(shape):
    assert_agrees(la.pinv, torch_linalg("linalg.pinv"), [drawn(*shape)])


def test_pinv_of_a_matrix_of_lower_rank():
    left, right = drawn(5, 2), drawn(2, 4)
    theirs = lambda a, b: torch_linalg("linalg.pinv", rtol=1e-10)(a @ b)
    assert_agrees(lambda a, b: la.pinv(a @ b, rtol=1e-10), theirs, [left, right])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("columns", [(), (2,)])
def test_lstsq(shape, columns):
    a, b = drawn(*shape), drawn(shape[0], *columns)
    found, expected = la.lstsq(a, b), np.linalg.lstsq(a, b)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-9, atol=1e-12)
    theirs = lambda a, b: torch_linalg("linalg.pinv")(a) @ b
    assert_agrees(lambda a, b: la.lstsq(a, b)[0], theirs, [a, b])


@pytest.mark.parametrize("n", [-3, -1, 0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 2)])
def test_matrix_power(shape, n):
    assert_agrees(lambda a: la.matrix_power(a, n), torch_linalg("linalg.matrix_power", n), [regular(*shape)])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (-1, 0)])
@pytest.mark.parametrize("ord", [2, 1, np.inf, -np.inf, 3, 1.5, 0.5, -1, -2])
def test_norms_of_vectors(ord, axis, keepdims):
    a = drawn(3, 4, 2)
    ours = lambda a: la.vector_norm(a, ord=ord, axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(
        ours(a), np.linalg.vector_norm(a, ord=ord, axis=axis, keepdims=keepdims), rtol=1e-12
    )
    assert_agrees(ours, torch_linalg("linalg.vector_norm", ord, axis, keepdims), [a])
    if isinstance(axis, int):
        np.testing.assert_allclose(
            la.norm(a, ord, axis, keepdims), np.linalg.norm(a, ord, axis, keepdims), rtol=1e-12
        )


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [(0, 1), (2, 0), (-1, -2)])
@pytest.mark.parametrize("ord", ["fro", "nuc", 2, -2, 1, -1, np.inf, -np.inf])
def test_norms_of_matrices(ord, axis, keepdims):
    a = drawn(3, 4, 2)
    ours = lambda a: la.norm(a, ord, axis, keepdims)
    np.testing.assert_allclose(ours(a), np.linalg.norm(a, ord, axis, keepdims), rtol=1e-12)
    assert_agrees(ours, torch_linalg("linalg.matrix_norm", ord, axis, keepdims), [a])


def test_norms_without_an_order_or_an_axis():
    for shape in [(), (3,), (3, 4), (2, 3, 4)]:
        a = drawn(*shape)
        np.testing.assert_allclose(la.norm(a), np.linalg.norm(a), rtol=1e-14)
        np.testing.assert_allclose(la.norm(a, keepdims=True), np.linalg.norm(a, keepdims=True), rtol=1e-14)
    for shape, ord in [((4,), 3), ((4,), 0), ((3, 4), "nuc"), ((3, 4), 1)]:
        a = drawn(*shape)
        np.testing.assert_allclose(la.norm(a, ord), np.linalg.norm(a, ord), rtol=1e-13)
    np.testing.assert_allclose(la.matrix_norm(drawn(2, 3, 4), ord="nuc").shape, (2,))
    assert la.norm([3, 4]) == 5.0


@pytest.mark.parametrize("p", [None, 2, -2, 1, -1, "fro", np.inf, "nuc"])
def test_cond(p):
    def theirs(a):
        if p in (None, 2, -2, "nuc"):
            return torch_linalg("linalg.cond", p)(a)
        norm = torch_linalg("linalg.matrix_norm", p)  # of these their cond fails: it writes over its inverse
        return norm(a) * norm(torch_linalg("linalg.inv")(a))

    a = regular(2, 3, 3)
    np.testing.assert_allclose(la.cond(a, p), np.linalg.cond(a, p), rtol=1e-11)
    assert_agrees(lambda a: la.cond(a, p), theirs, [a])


def test_tensorsolve_and_tensorinv():
    a, b = drawn(2, 3, 6), drawn(2, 3)
    assert_agrees(la.tensorsolve, torch_linalg("linalg.tensorsolve"), [a, b])
    moved = np.moveaxis(a, 2, 0)
    np.testing.assert_allclose(
        la.tensorsolve(moved, b, axes=(0,)), np.linalg.tensorsolve(moved, b, axes=(0,))
    )
    assert_agrees(la.tensorinv, torch_linalg("linalg.tensorinv"), [drawn(4, 6, 8, 3)])
    assert_agrees(lambda a: la.tensorinv(a, 1), torch_linalg("linalg.tensorinv", 1), [drawn(6, 3, 2)])


# -- products ------------------------------------------------------------------------------------------

PRODUCTS = [
    ("dot", [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((), (2, 3)), ((5, 2, 3), (3,)),
             ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 2, 3), (4, 3, 2)), ((3,), (2, 3, 4)), ((0, 3), (3, 2)), ((2, 0), (0, 2))]),
    ("inner", [((3,), (3,)), ((2, 3), (3,)), ((2, 3), (4, 3)), ((5, 2, 3), (4, 3)), ((), (2, 3)), ((2, 2, 3), (4, 2, 3))]),
    ("outer", [((3,), (4,)), ((2, 3), (2, 2)), ((), (3,)), ((0,), (3,))]),
    ("vdot", [((3,), (3,)), ((2, 3), (3, 2)), ((), ())]),
    ("vecdot", [((3,), (3,)), ((2, 3), (3,)), ((4, 1, 3), (2, 3)), ((2, 0), (2, 0))]),
    ("matvec", [((2, 3), (3,)), ((4, 2, 3), (3,)), ((2, 3), (4, 3)), ((4, 2, 3), (4, 3))]),
    ("vecmat", [((2,), (2, 3)), ((2,), (4, 2, 3)), ((4, 2), (2, 3)), ((4, 2), (4, 2, 3))]),
    ("kron", [((2,), (3,)), ((2, 3), (2, 2)), ((2, 3), (4,)), ((2,), (3, 2, 2)), ((), (2, 3)), ((2, 1, 3), (2, 2, 2))]),
    ("cross", [((3,), (3,)), ((2, 3), (3,)), ((4, 1, 3), (2, 3))]),
]  # fmt: skip
EACH_PRODUCT = [(name, *shapes) for name, cases in PRODUCTS for shapes in cases]


def check_by_differences(function, arrays):
    """First and second derivatives, by the definition."""
    values, firsts, seconds = ours_to_second_order(function, arrays)
    cts = random_cotangents(values)
    us = random_cotangents(firsts)
    directions = [np.random.default_rng(5).standard_normal(a.shape) for a in arrays]
    h = 1e-5

    def at(step):
        moved = [a + step * d for a, d in zip(arrays, directions, strict=True)]
        ys, gs, _ = ours_to_second_order(function, moved)
        return (
            sum(np.sum(ct * y) for ct, y in zip(cts, ys, strict=True)),
            sum(np.sum(u * g) for u, g in zip(us, gs, strict=True)),
        )

    ahead, behind = at(h), at(-h)
    for gradients, one, other in zip((firsts, seconds), ahead, behind, strict=True):
        slope = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
        np.testing.assert_allclose(slope, (one - other) / (2 * h), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "a", "b"), EACH_PRODUCT)
def test_a_product_is_that_of_numpy_and_has_its_derivative(name, a, b):
    arrays = [drawn(*a), drawn(*b)]
    ours = getattr(products, name)
    if hasattr(np, name):
        expected = getattr(np, name)(*arrays)
        np.testing.assert_allclose(ours(*arrays), expected, rtol=1e-13, atol=1e-14)
        assert np.shape(ours(*arrays)) == np.shape(expected)
    check_by_differences(ours, arrays)


def test_products_along_other_axes():
    a, b = drawn(3, 4), drawn(3, 4)
    np.testing.assert_allclose(products.vecdot(a, b, axis=0), np.vecdot(a, b, axis=0))
    np.testing.assert_allclose(products.cross(a, b, axis=0), np.cross(a, b, axis=0))
    one, other = drawn(3, 4), drawn(4, 3)
    options = {"axisa": 0, "axisb": 1, "axisc": 0}
    np.testing.assert_allclose(products.cross(one, other, **options), np.cross(one, other, **options))
    check_by_differences(lambda a, b: products.cross(a, b, **options), [one, other])
    np.testing.assert_allclose(la.cross(a, b, axis=0), np.linalg.cross(a, b, axis=0))


@pytest.mark.parametrize("axes", [0, 1, 2, (1, 0), ([1, 2], [0, 1]), ([-1], [1]), ((), ())])
def test_tensordot(axes):
    a, b = drawn(2, 3, 3), drawn(3, 3, 4)
    np.testing.assert_allclose(
        products.tensordot(a, b, axes), np.tensordot(a, b, axes), rtol=1e-13, atol=1e-14
    )
    check_by_differences(lambda a, b: products.tensordot(a, b, axes), [a, b])


@pytest.mark.parametrize(
    "options", [{}, {"offset": 1}, {"offset": -1, "axis1": 2, "axis2": 0}, {"offset": 9}]
)
def test_trace(options):
    a = drawn(3, 4, 3)
    np.testing.assert_allclose(products.trace(a, **options), np.trace(a, **options))
    check_by_differences(lambda a: products.trace(a, **options), [a])
    np.testing.assert_allclose(la.trace(a, offset=1), np.linalg.trace(a, offset=1))
    np.testing.assert_allclose(la.diagonal(a, offset=1), np.linalg.diagonal(a, offset=1))


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3), (3, 4)], [(2, 3), (3, 1), (1, 5)], [(3,), (3, 4), (4, 2), (2,)], [(10, 30), (30, 5), (5, 60)]],
)
def test_multi_dot(shapes):
    arrays = [drawn(*s) / 3 for s in shapes]
    np.testing.assert_allclose(la.multi_dot(arrays), np.linalg.multi_dot(arrays), rtol=1e-12)
    check_by_differences(lambda *arrays: la.multi_dot(arrays), arrays)


def test_multi_dot_takes_the_order_that_multiplies_least():
    assert products.cheapest_cuts([10, 30, 5, 60]) == {(0, 1): 0, (1, 2): 1, (0, 2): 1}
    assert products.cheapest_cuts([30, 35, 15, 5, 10, 20, 25])[0, 5] == 2  # the example of Cormen et al.


# -- einsum --------------------------------------------------------------------------------------------

SUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("ba,cb", (2, 3), (4, 2)), ("ii", (3, 3)), ("ii->i", (3, 3)),
    ("iij->j", (3, 3, 2)), ("iiijj->ij", (2, 2, 2, 3, 3)), ("ij->ji", (2, 3)), ("ij->", (2, 3)), ("i,i", (3,), (3,)), ("i,j->ij", (2,), (3,)),
    ("...ij,...jk->...ik", (5, 2, 3), (3, 4)), ("...ij,...jk", (4, 1, 2, 3), (5, 3, 2)), ("i...->...", (2, 3, 4)), ("...i->...", (3,)),
    ("...,...->...", (2, 1, 3), (4, 3)), ("...ii->...i", (2, 3, 3)), ("i...,i...", (2, 3), (2, 1)), ("bi,bj,bk->ijk", (2, 3), (2, 2), (2, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)), ("ij,ij->ij", (2, 1), (1, 3)), ("ij,jk->ik", (2, 1), (3, 4)), (",ij->ij", (), (2, 3)), ("->", ()),
    ("ij,j->i", (0, 3), (3,)), ("ij,jk->ik", (2, 0), (0, 3)), ("ik,jk->", (2, 3), (4, 3)), ("i->", (3,)), (" ij , jk -> ki ", (2, 3), (3, 4)),
    ("ii,ij->j", (3, 3), (3, 2)), ("ij,kl->", (2, 3), (3, 2)), ("ab...,b...->a...", (2, 3, 4, 1), (3, 1, 5)),
]  # fmt: skip


@pytest.mark.parametrize("optimize", [False, True, "greedy", "optimal"])
@pytest.mark.parametrize(("subscripts", "shapes"), [(s[0], s[1:]) for s in SUMS], ids=str)
def test_einsum(subscripts, shapes, optimize):
    arrays = [drawn(*s) for s in shapes]
    expected = np.einsum(subscripts, *arrays)
    found = einsum(subscripts, *arrays, optimize=optimize)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    check_by_differences(lambda *a: einsum(subscripts, *a, optimize=optimize), arrays)


def test_einsum_takes_numbers_for_letters_and_a_path():
    a, b, c = drawn(2, 3), drawn(3, 4), drawn(4, 2)
    np.testing.assert_array_equal(einsum(a, [0, 1], b, [1, 2], [0, 2]), np.einsum("ij,jk->ik", a, b))
    np.testing.assert_array_equal(einsum(a, [0, 1], b, [1, 2]), np.einsum("ij,jk", a, b))
    np.testing.assert_array_equal(einsum(a, [Ellipsis, 1], [Ellipsis]), np.einsum("...j->...", a))
    path = ["einsum_path", (0, 1), (0, 1)]
    np.testing.assert_allclose(einsum("ij,jk,kl->il", a, b, c, optimize=path), a @ b @ c)
    check_by_differences(lambda a, b, c: einsum("ij,jk,kl->il", a, b, c, optimize=path), [a, b, c])


def test_einsum_of_large_arrays_is_planned_and_equal():
    a, b = drawn(40, 50), drawn(50, 60)
    assert einsum_module.worth_planning("ij,jk->ik", (a.shape, b.shape))
    assert not einsum_module.worth_planning("ij,jk->ik", ((40, 5), (5, 6)))
    assert not einsum_module.worth_planning("ij,ij->i", ((400, 500), (400, 500)))
    np.testing.assert_allclose(einsum("ij,jk->ik", a, b), a @ b, rtol=1e-12, atol=1e-12)


def test_einsum_gives_no_time_to_constants():
    multiplied = []
    original = einsum_module.contract

    def counted(operands, subscripts, optimize=False):
        multiplied.append(subscripts)
        return original(operands, subscripts, optimize)

    v, x = tg.Variable(drawn(3, 4)), drawn(2, 3)
    tape = tg.Tape()
    with tape:
        y = einsum("ij,jk->ik", x, v)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(einsum_module, "contract", counted)
        tape.backward(y, np.ones((2, 4)))
    assert multiplied == ["ik,ij->jk"]
    np.testing.assert_allclose(v.grad, x.T @ np.ones((2, 4)))


@pytest.mark.parametrize(
    ("subscripts", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3)], "einsum: the subscripts name 2 operands, and 1 came.\n  subscripts: 'ij,jk->ik'      operands: [float64 (2, 3)]"),
        ("ijk->i", [(2, 3)], "einsum: `ijk` does not name the 2 axes of operand 0."),
        ("i1->i", [(2, 3)], "einsum: `i1` does not name the 2 axes of operand 0."),
        ("...ijk->i", [(2, 3)], "einsum: `...ijk` does not name the 2 axes of operand 0."),
        ("ij->k", [(2, 3)], "each letter of the output `k` must name an axis of an operand, once."),
        ("ij->ii", [(2, 3)], "each letter of the output `ii` must name an axis of an operand, once."),
        ("...i->i", [(2, 3)], "einsum: the operands have an ellipsis, and so the output must."),
    ],
)  # fmt: skip
def test_einsum_says_what_does_not_fit(subscripts, shapes, message):
    with pytest.raises(ShapeError) as raised:
        einsum(subscripts, *(tg.Variable(drawn(*s)) for s in shapes))
    assert message in str(raised.value)


# -- singular points, by the stated conventions --------------------------------------------------------


def gradient(function, a):
    v = tg.Variable(a)
    tape = tg.Tape()
    with tape:
        y = function(v)
    return tape.backward(y)[v]


def test_the_gradient_of_a_determinant_is_the_cofactors_at_any_rank():
    for rank in range(4):
        a = drawn(3, rank) @ drawn(rank, 3)
        minors = [
            [np.linalg.det(np.delete(np.delete(a, i, 0), j, 1)) * (-1) ** (i + j) for j in range(3)]
            for i in range(3)
        ]
        np.testing.assert_allclose(gradient(la.det, a), minors, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(gradient(la.det, np.zeros((3, 3))), np.zeros((3, 3)))


def test_a_stack_with_singular_matrices_has_all_its_gradients():
    a = np.stack([regular(3, 3), np.ones((3, 3)), np.diag([1.0, 2.0, 0.0])])
    g = gradient(lambda a: tg.sum(la.det(a)), a)
    np.testing.assert_allclose(g[0], np.linalg.det(a[0]) * np.linalg.inv(a[0]).T, rtol=1e-10)
    np.testing.assert_allclose(g[1], np.zeros((3, 3)), atol=1e-12)
    np.testing.assert_allclose(g[2], np.diag([0.0, 0.0, 2.0]), atol=1e-12)


def test_the_third_derivative_of_a_determinant_is_right_at_the_identity():
    """det(1 + t x) has the third derivative 6 det x, whatever the singular values of 1."""
    x = drawn(3, 3)
    t = tg.Variable(np.zeros(()))
    tapes = [tg.Tape() for _ in range(3)]
    with tapes[0]:
        with tapes[1]:
            with tapes[2]:
                y = la.det(np.eye(3) + t * x)
            first = tapes[2].backward(y, record=True)[t]
        second = tapes[1].backward(first, record=True)[t]
    third = tapes[0].backward(second)[t]
    np.testing.assert_allclose(third, 6 * np.linalg.det(x), rtol=1e-10)


def test_functions_of_equal_eigenvalues_have_finite_gradients():
    a = np.diag([2.0, 2.0, 5.0])
    np.testing.assert_allclose(gradient(lambda a: tg.sum(la.eigvalsh(a) ** 2), a), 2 * a)
    np.testing.assert_allclose(gradient(lambda a: tg.sum(la.eigh(a).eigenvalues ** 2), a), 2 * a)
    direction = symmetric(3, 3)

    def projected(a):
        v = la.eigh(a).eigenvectors[..., :2]
        return tg.sum((v @ v.mT) * direction)

    with pytest.warns(GradientStopsWarning, match="eigh: vectors of equal values"):
        found = gradient(projected, a)
    h = 1e-6
    moved = symmetric(3, 3)
    slope = (projected(a + h * moved) - projected(a - h * moved)) / (2 * h)
    np.testing.assert_allclose(np.sum(found * np.tril(moved)), slope, rtol=1e-6)


def test_functions_of_equal_or_no_singular_values_have_finite_gradients():
    q = np.linalg.qr(drawn(3, 3)).Q
    np.testing.assert_allclose(gradient(lambda a: la.norm(a, "nuc"), q), q, atol=1e-12)
    for function in (lambda a: tg.sum(la.svdvals(a) ** 2), lambda a: tg.sum(la.svd(a).S ** 2)):
        np.testing.assert_allclose(gradient(function, 3.0 * q), 6.0 * q, atol=1e-12)
        np.testing.assert_array_equal(gradient(function, np.zeros((3, 3))), np.zeros((3, 3)))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_vectors_of_a_singular_value_of_zero_are_left_where_they_are_with_a_warning(shape):
    a = np.zeros(shape)
    a[0, 0] = 3.0
    assert np.isfinite(gradient(lambda a: tg.sum(la.svd(a, False).S), a)).all()
    with pytest.warns(GradientStopsWarning, match="svd: vectors of equal values, or of the singular value 0"):
        found = gradient(lambda a: tg.sum(la.svd(a, False)[0 if shape == (3, 2) else 2]), a)
    assert np.isfinite(found).all()


def test_a_second_derivative_at_equal_values_is_not_silent():
    for function in (la.eigvalsh, la.svdvals):
        with pytest.warns(GradientStopsWarning):
            ours_to_second_order(lambda a, function=function: tg.sum(function(a) ** 2), [2.0 * np.eye(3)])


@pytest.mark.parametrize("ord", [None, 2, 1, np.inf, -np.inf, 3, 1.5, 0.5, -1])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_norm_of_zero_has_the_gradient_zero(ord):
    np.testing.assert_array_equal(gradient(lambda a: la.norm(a, ord), np.zeros(3)), np.zeros(3))
    _, _, (second,) = ours_to_second_order(lambda a: la.norm(a, ord), [np.zeros(3)])
    np.testing.assert_array_equal(second, np.zeros(3))
    one = gradient(lambda a: la.norm(a, ord), np.array([0.0, 3.0, -4.0]))
    assert one[0] == 0
    assert np.isfinite(one).all()


def test_the_norm_of_order_0_is_a_constant():
    y = la.norm(tg.Variable(np.array([0.0, 3.0, -4.0], np.float32)), 0)
    assert not isinstance(y, tg.Variable)
    assert (y, y.dtype) == (2, np.float32)
    assert not isinstance(la.matrix_rank(tg.Variable(np.ones((3, 2)))), tg.Variable)
    assert la.matrix_rank(tg.Variable(np.ones((3, 2)))) == 1
    assert la.matrix_rank(np.diag([1.0, 1e-17])) == 1
    assert la.matrix_rank(np.diag([1.0, 1e-17]), rtol=0.0) == 2


@pytest.mark.parametrize(
    "function", [la.eigvalsh, lambda a, u: la.cholesky(a, upper=u == "U"), lambda a, u: la.eigh(a, u)[0]]
)
@pytest.mark.parametrize("triangle", ["L", "U"])
def test_only_the_triangle_that_is_read_has_a_gradient(function, triangle):
    a = symmetric(3, 3) + 9 * np.eye(3)
    other = np.triu(np.ones((3, 3)), 1) if triangle == "L" else np.tril(np.ones((3, 3)), -1)
    np.testing.assert_array_equal(function(a, triangle), function(a + other, triangle))
    v = tg.Variable(a)
    tape = tg.Tape()
    with tape:
        y = function(v, triangle)
    g = tape.backward(y, drawn(*y.shape))[v]
    np.testing.assert_array_equal(g * other, np.zeros((3, 3)))
    assert np.count_nonzero(g) == 6


# -- what comes back -----------------------------------------------------------------------------------


def test_results_have_the_names_of_numpy():
    a = regular(3, 3)
    for ours, theirs in [
        (la.eigh(symmetric(3, 3)), np.linalg.eigh(symmetric(3, 3))),
        (la.svd(a), np.linalg.svd(a)),
        (la.qr(a), np.linalg.qr(a)),
        (la.slogdet(a), np.linalg.slogdet(a)),
    ]:
        assert ours._fields == theirs._fields
        assert type(ours).__name__ == type(theirs).__name__


@pytest.mark.parametrize(
    "shape", [(3, 3), (4, 2), (2, 4), (2, 3, 3), (0, 3), (3, 0), (0, 3, 2), (2, 0, 3), (0, 0)]
)
def test_factors_are_those_of_numpy_at_any_shape(shape):
    a = drawn(*shape)
    for ours, theirs in [
        (la.svd(a, full_matrices=False), np.linalg.svd(a, full_matrices=False)),
        (la.svd(a), np.linalg.svd(a)),
        (la.qr(a), np.linalg.qr(a)),
        (la.qr(a, "complete"), np.linalg.qr(a, "complete")),
        ([la.svdvals(a)], [np.linalg.svdvals(a)]),
        ([la.pinv(a)], [np.linalg.pinv(a)]),
    ]:
        for x, y in zip(ours, theirs, strict=True):
            assert x.shape == y.shape
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_arrays_give_arrays_and_lists_are_taken():
    nested = [[2.0, 1.0], [1.0, 3.0]]
    a = np.array(nested)
    for name in ("inv", "det", "cholesky", "eigvalsh", "svdvals", "pinv", "norm", "cond"):
        y = getattr(la, name)(nested)
        assert not isinstance(y, tg.Variable)
        np.testing.assert_allclose(y, getattr(np.linalg, name)(a))
    np.testing.assert_allclose(la.solve([[2, 1], [1, 3]], [1, 2]), np.linalg.solve(a, [1, 2]))
    np.testing.assert_allclose(products.kron([1, 2], [1, 1]), np.kron([1, 2], [1, 1]))


def test_float32_stays_float32_through_every_function():
    a = symmetric(3, 3).astype(np.float32) + 9 * np.eye(3, dtype=np.float32)
    for function in [
        la.inv, la.det, la.cholesky, la.eigvalsh, la.svdvals, la.pinv, la.norm, la.cond, la.matrix_norm, la.vector_norm, la.trace,
        lambda a: la.norm(a, "nuc"), lambda a: la.norm(a, 3, 0), lambda a: la.matrix_power(a, -2), lambda a: la.lstsq(a, a[0])[0],
        lambda a: la.qr(a).R, lambda a: la.svd(a).U, lambda a: la.eigh(a).eigenvectors, lambda a: la.slogdet(a).logabsdet,
        lambda a: einsum("iij->j", a[:, :, None] * a[:, :1, None]), lambda a: products.kron(a, a), lambda a: products.cross(a, a[0]),
    ]:  # fmt: skip
        v = tg.Variable(a)
        tape = tg.Tape()
        with tape:
            y = function(v)
        assert y.dtype == np.float32
        assert function(a).dtype == np.float32
        assert tape.backward(y, np.ones(y.shape, np.float32))[v].dtype == np.float32


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (la.inv, "inv: `a` is singular: it has no inverse.\n  Use tg.linalg.pinv or lstsq, or add a small multiple of the identity.\n  a: float64 (2, 2)"),
        (la.cholesky, "cholesky: `a` is not positive definite."),
        (lambda a: la.svd(a * np.nan), "svd: `a` has no singular values that could be found. Look for NaN or infinity in it."),
    ],
)  # fmt: skip
def test_a_matrix_that_cannot_be_factored_is_named(function, message):
    for a in (np.ones((2, 2)) * -1, tg.Variable(-np.ones((2, 2)))):
        with pytest.raises(MatrixError) as raised:
            function(a)
        assert str(raised.value).startswith(message)
        assert isinstance(raised.value, np.linalg.LinAlgError)
        assert isinstance(raised.value, la.LinAlgError)


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        (ShapeError, lambda v: la.inv(v[:, :2]), "inv: `a` must be a square matrix, or a stack of such.\n  a: float64 (3, 2)"),
        (ShapeError, lambda v: la.det(v[0]), "det: `a` must be a square matrix, or a stack of such.\n  a: float64 (3,)"),
        (ShapeError, lambda v: la.solve(v, v[:2]), "solve: `b` must have a row for each of `a`.\n  a: float64 (3, 3)      b: float64 (2, 3)\n  2 != 3."),
        (ShapeError, lambda v: la.solve(v[:2], v), "solve: `a` must be a square matrix, or a stack of such.\n  a: float64 (2, 3)"),
        (ShapeError, lambda v: la.svd(v[0]), "svd: `a` must be a matrix, or a stack of such.\n  a: float64 (3,)"),
        (ShapeError, lambda v: la.eigh(v[:2]), "eigh: `a` must be a square matrix, or a stack of such.\n  a: float64 (2, 3)"),
        (ArgumentError, lambda v: la.norm(v, axis="last"), "norm: `axis` must be an integer or two in a tuple, and str 'last' came."),
        (ShapeError, lambda v: einsum("ij,jk->ik", v, v[:2]), "contract: the letter `j` names axes of 3 and of 2 elements.\n  operands: [float64 (3, 3), float64 (2, 3)]"),
        (UnsupportedError, lambda v: einsum("ii->i", v, dtype=float), "einsum: dtype cannot be recorded. Use astype"),
        (ShapeError, lambda v: einsum("ii->i", v[:2]), "contract: the letter `i` names axes of 2 and of 3 elements."),
        (ShapeError, lambda v: products.vecdot(v[0, 0], v), "vecdot: `x1` has no axis -1."),
        (ShapeError, lambda v: la.matrix_power(v[:2], 2), "matrix_power: `a` must be square.\n  a: float64 (2, 3)"),
        (ArgumentError, lambda v: la.matrix_power(v, 0.5), "matrix_power: `n` must be an integer, and float 0.5 came."),
        (UnsupportedError, lambda v: la.svd(v[:2]), "svd: the further vectors of full matrices have no derivative. Write full_matrices=False."),
        (UnsupportedError, lambda v: la.qr(v[:, :2], "complete"), "qr: the further columns of the mode 'complete' have no derivative."),
        (UnsupportedError, lambda v: la.qr(v, "raw"), "qr: `mode` must be 'reduced', 'r' or 'complete', and 'raw' came."),
        (UnsupportedError, la.eig, "eig: its results are complex."),
        (UnsupportedError, la.eigvals, "eigvals: its results are complex."),
        (ArgumentError, lambda v: la.eigh(v, "X"), "eigh: `UPLO` must be 'L' or 'U', and 'X' came."),
        (ArgumentError, lambda v: la.eigvalsh(v, "X"), "eigvalsh: `UPLO` must be 'L' or 'U', and 'X' came."),
        (ArgumentError, lambda v: la.norm(v, 7), "norm: of a matrix there is no norm 7."),
        (ArgumentError, lambda v: la.norm(v[0], "fro"), "norm: of a vector there is no norm 'fro'."),
        (ShapeError, lambda v: la.norm(v[None], 2), "norm: `ord` of an array that is no vector or matrix needs an `axis`."),
        (ShapeError, lambda v: la.norm(v, None, (0, 0)), "norm: a matrix has two axes, and (0, 0) came."),
        (ShapeError, lambda v: products.cross(v[:, :2], v[:, :2]), "cross: vectors must have 3 elements.\n  a: float64 (3, 2)      b: float64 (3, 2)\n  For vectors of 2"),
        (ShapeError, lambda v: products.vecdot(v, v[:, :2]), "vecdot: the vectors must have the same length.\n  x1: float64 (3, 3)      x2: float64 (3, 2)\n  3 != 2."),
        (ShapeError, lambda v: products.tensordot(v, v[:2], 1), "tensordot: the axes that are summed must have the same lengths"),
        (ShapeError, lambda v: products.tensordot(v, v, 3), "tensordot: `axes` must be a number of axes that both have"),
        (ShapeError, lambda v: la.multi_dot([v]), "multi_dot: expected two or more matrices"),
        (ShapeError, lambda v: la.lstsq(v, v[:2]), "lstsq: `a` must be a matrix"),
        (ShapeError, lambda v: la.tensorinv(v[None], 1), "tensorinv: the first 1 axes must have as many elements as the rest."),
        (ShapeError, lambda v: la.tensorsolve(v, v), "tensorsolve: the axes of `a` must fall into two groups with as many elements."),
        (ShapeError, lambda v: la.outer(v, v), "outer: expected two vectors. tg.outer flattens its arguments."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(kind, function, message):
    with pytest.raises(kind) as raised:
        function(tg.Variable(symmetric(3, 3)))
    assert str(raised.value).startswith(message)


# -- windows -------------------------------------------------------------------------------------------

STEPS = {
    "solve": lambda h, w: la.solve(w + 4 * np.eye(3), h),
    "inv": lambda h, w: la.inv(w + 4 * np.eye(3)) @ h,
    "det": lambda h, w: h * tg.tanh(la.det(w * 0.5)),
    "cholesky": lambda h, w: la.cholesky(w @ w.mT + 4 * np.eye(3)) @ h,
    "eigh": lambda h, w: la.eigh(w + w.mT).eigenvalues * h,
    "svd": lambda h, w: tg.sum(la.svd(w)[0] ** 2, 1) * h,
    "qr": lambda h, w: la.qr(w).R @ h,
    "norm": lambda h, w: (w @ h) / la.norm(w @ h),
    "p norm": lambda h, w: (w @ h) / la.norm(w @ h, 3),
    "slogdet": lambda h, w: h * la.slogdet(w + 4 * np.eye(3)).logabsdet,
    "einsum": lambda h, w: einsum("ij,jk,k->i", w, w, h),
    "cross": lambda h, w: products.cross(w[0], h) + products.vecdot(w, h),
    "tensordot": lambda h, w: products.tensordot(w, h, 1) + products.trace(w),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_window_has_the_gradient_of_the_rules(name):
    def gradients(compile):
        rng = np.random.default_rng(1)
        w, h = tg.Parameter(rng.standard_normal((3, 3))), rng.standard_normal(3)
        tape = tg.CapacitorTape(4, compile=compile)
        seen = []
        for _ in range(12):
            w.grad = None
            with tape:
                h = tg.tanh(STEPS[name](h, w)) + rng.standard_normal(3)
                loss = tg.sum(h * h)
            tape.backward(loss)
            seen.append(w.grad.copy())
        return seen

    for compiled, ruled in itertools.zip_longest(gradients(True), gradients(False)):
        np.testing.assert_allclose(compiled, ruled, rtol=1e-10, atol=1e-12)


def test_pinv_takes_one_cutoff():
    with pytest.raises(tg.ArgumentError, match="pinv: `rcond` and `rtol` are two names"):
        np.linalg.pinv(tg.Variable(np.eye(2)), 1e-3, rtol=1e-3)
