"""Axis as in jax.nn.softmax: an int, a tuple (one simplex over the flattened axes) or None (all)."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import DIFFERENCE, PROMISE64, STEP, SUMS, ULPS

import smoothmax as sm
from smoothmax._slices import to_slices

SHAPE = (3, 4, 5)


def flatten(x, axis):
    """Slices as rows, the axes of the simplex flattened in the array's own order, and how to go back."""
    axes = (
        tuple(range(x.ndim))
        if axis is None
        else tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    )
    axes = tuple(sorted(axes))
    batch = tuple(a for a in range(x.ndim) if a not in axes)
    rows = np.transpose(x, batch + axes)
    shape, kept = rows.shape, tuple(x.shape[a] for a in batch)
    back = np.argsort(batch + axes)
    d = int(np.prod([x.shape[a] for a in axes]))
    return rows.reshape(-1, d), lambda y: np.transpose(y.reshape(shape), back), lambda value: value.reshape(kept)


@pytest.mark.parametrize("axis", [0, 1, (0, 2), None], ids=str)
def test_axis(axis):
    """Of weights that depend on positions, with a hyper-parameter that lies along them."""
    check_axis(cases.BY_ID["l2+edges/box"], axis)


@cases.each(cases.PIECES)
def test_two_axes_and_the_last_one_first(case):
    check_axis(case, (-1, 1))


def check_axis(case, axis):
    rng = np.random.default_rng(80)
    x, where = rng.normal(size=SHAPE), rng.uniform(size=SHAPE) < 0.8
    v = rng.normal(size=SHAPE)
    rows, back, keep = flatten(x, axis)
    mask, _, _ = flatten(where, axis)
    params = case.params(rows.shape[1])

    @jax.jit
    def everything(params, x, where, v):
        y, pull = jax.vjp(lambda x: case.family.weights(x, params, axis, where), x)
        return y, case.family.value(x, params, axis, where), pull(v)[0]

    y, value, x_bar = everything(params, x, where, v)
    expected, expected_value = case.expected(rows, mask, params)
    np.testing.assert_allclose(y, back(expected), rtol=0, atol=case.tol)
    np.testing.assert_allclose(value, keep(expected_value), rtol=0, atol=case.tol)
    # J is symmetric: <v, J t> by differences of the oracle
    t, h = rng.normal(size=SHAPE), STEP
    plus, minus = (case.expected(flatten(x + s * t, axis)[0], mask, params)[0] for s in (h, -h))
    along = (back(plus - minus) * v).sum() / (2 * h)
    # Sums of sixty terms. A plain function has its Jacobian at weights that are off by FUNCTION64.
    np.testing.assert_allclose((x_bar * t).sum(), along, rtol=1e-6, atol=1e-4 if case.plain else DIFFERENCE)


def test_negative_axes_count_from_the_end():
    x = np.random.default_rng(81).normal(size=SHAPE)
    for function in (sm.sparsemax, sm.sparsemax_value):
        np.testing.assert_array_equal(function(x, -2), function(x, 1))
        np.testing.assert_array_equal(function(x, (0, -1)), function(x, (2, 0)))
        np.testing.assert_array_equal(function(x), function(x, axis=2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_hyper_parameter_a_slice(axis):
    """Arrays of hyper-parameters have size 1 along the axis and broadcast elsewhere."""
    rng = np.random.default_rng(82)
    x = rng.normal(size=SHAPE) * 2
    shape = [n if a != axis else 1 for a, n in enumerate(SHAPE)]
    alpha, gamma = rng.uniform(1, 2.2, size=shape), rng.uniform(0.5, 2, size=(1, *shape[1:]))
    both = jax.jit(lambda x, numbers: (sm.entmax(x, axis, **numbers), sm.entmax_value(x, axis, **numbers)))
    y, value = map(np.asarray, both(x, {"alpha": alpha, "gamma": gamma}))
    case = cases.BY_ID["entmax1.5"]
    for index in np.ndindex(*shape):
        row = tuple(slice(None) if a == axis else i for a, i in enumerate(index))
        params = {"alpha": alpha[index], "gamma": np.broadcast_to(gamma, shape)[index]}
        expected, expected_value = case.expected(x[row][None], params=params)
        np.testing.assert_allclose(y[row], expected[0], rtol=0, atol=PROMISE64)
        np.testing.assert_allclose(
            value[tuple(i for a, i in enumerate(index) if a != axis)], expected_value[0], rtol=0, atol=PROMISE64
        )


def test_hyper_parameters_add_batch_axes():
    """x of shape (d,) against gamma of shape (3, 1): numpy-like, three slices."""
    x = np.random.default_rng(83).normal(size=8)
    gamma = np.array([[0.5], [1.0], [2.0]])
    got = np.asarray(sm.fusedmax(x, gamma=gamma))
    assert got.shape == (3, 8)
    for row, g in zip(got, gamma[:, 0], strict=True):
        np.testing.assert_allclose(row, sm.fusedmax(x, gamma=g), rtol=0, atol=SUMS)


def test_weights_along_the_slice_add_batch_axes():
    """Weights of edges or ranks have the slice last, whatever `axis` is, and broadcast with the batch axes of x."""
    rng = np.random.default_rng(86)
    x, edges, ranks = rng.normal(size=(2, 1, 4, 5)), rng.uniform(size=(3, 5, 3)), -np.sort(rng.normal(size=(3, 1, 4)))
    for op, weights in (
        (lambda w: sm.conjugate(sm.SquaredL2() + sm.TotalVariation(w)), edges),
        (lambda w: sm.conjugate(sm.SquaredL2(), over=sm.Permutahedron(w)), ranks),
    ):

        @jax.jit
        def answers(w, x, op=op):
            y, pull = jax.vjp(lambda w: op(w).argmax(x, axis=2), w)
            return y, op(w).max(x, axis=2), pull(y)[0]

        got, values, bar = map(np.asarray, answers(weights, x))
        assert got.shape == (2, 3, 4, 5) and values.shape == (2, 3, 5)
        wide = np.broadcast_to(weights, (3, 5, weights.shape[-1]))
        for i, j in np.ndindex(3, 5):
            expected = op(wide[i, j]).argmax(x[:, 0, :, j])
            np.testing.assert_allclose(got[:, i, :, j], expected, rtol=0, atol=SUMS)
        _, _, tiled = answers(weights, np.tile(x, (1, 3, 1, 1)))
        np.testing.assert_allclose(bar, tiled, rtol=0, atol=SUMS)


def test_bounds_lie_along_any_axis():
    """What bounds leave room for is counted along the slices: here three of 0.5 for a total of 1.4."""
    rng = np.random.default_rng(87)
    x = rng.normal(size=(2, 3, 4))
    upper = np.full((2, 3, 1), 0.5)
    op = lambda upper: sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(1.4, upper))
    ways = (upper, upper[:1], upper[0], np.full((3, 4), 0.5), np.full((1, 1), 0.5), np.full(4, 0.5), 0.5)
    expected = np.moveaxis(op(np.full(3, 0.5)).argmax(np.moveaxis(x, 1, -1)), -1, 1)
    one_axis, two_axes = jax.jit(lambda x: [[op(way).argmax(x, axis) for way in ways] for axis in (1, (0, 1))])(x)
    for bounds, one, two in zip(ways, one_axis, two_axes, strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=SUMS)
        np.testing.assert_allclose(np.sum(two, (0, 1)), 1.4, rtol=0, atol=SUMS)
        with pytest.raises(ValueError, match="above the sum"):
            op(bounds / 2).argmax(x, axis=1)
    for total, bounds in ((1.4, np.full((5, 1), 0.5)), (np.ones((7, 1, 1)), np.full((5, 1, 1), 0.5))):
        with pytest.raises(ValueError, match="does not broadcast with x"):
            sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(total, bounds)).argmax(x, axis=1)


def test_masks_broadcast():
    x = cases.scores(4, seed=84)
    where = np.array([True, True, False, True, True, False, True, True])
    expected = sm.sparsemax(x, where=np.tile(where, (4, 1)))
    for mask in (where, where[None], jnp.asarray(where)):
        np.testing.assert_array_equal(sm.sparsemax(x, where=mask), expected)
    rows = np.array([[True], [False], [True], [True]])
    got = sm.sparsemax(x, where=rows)
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_array_equal(np.asarray(got)[[0, 2, 3]], np.asarray(sm.sparsemax(x))[[0, 2, 3]])
    np.testing.assert_array_equal(sm.sparsemax(x, where=True), sm.sparsemax(x))


def test_batch_axes_of_size_zero():
    assert sm.sparsemax(jnp.zeros((0, 5))).shape == (0, 5)
    assert sm.fusedmax_value(jnp.zeros((2, 0, 5))).shape == (2, 0)
    assert sm.oscarmax(jnp.zeros((0, 5)), gamma=jnp.ones((0, 1))).shape == (0, 5)


def test_numpy_lists_and_partial_application():
    """NumPy arrays are scores; an operator is a function to hand around."""
    x = np.random.default_rng(85).normal(size=(2, 6))
    for function in (sm.sparsemax, sm.entmax_value, functools.partial(sm.soft_topk, k=2), sm.soft_rank, sm.soft_sort):
        np.testing.assert_array_equal(function(x.tolist()), function(x))
        np.testing.assert_array_equal(function(x.tolist(), axis=0), function(x, axis=0))
    mapping = functools.partial(sm.entmax, alpha=1.3)
    np.testing.assert_allclose(mapping(x), mapping(jnp.asarray(x)), rtol=0, atol=0)


def test_batch_axes_of_size_1_are_dropped_before_solving():
    """They make XLA's loops slow. Hyper-parameters, per slice or along the slice, follow."""
    rng = np.random.default_rng(81)
    x, alpha, edges = rng.normal(size=(3, 8)), np.array([[1.2], [1.5], [1.9]]), rng.uniform(0.1, 0.3, size=(3, 7))

    def op(alpha, edges):
        return sm.conjugate(sm.Tsallis(alpha) + sm.TotalVariation(edges))

    both = jax.jit(lambda alpha, edges, x: (op(alpha, edges).argmax(x), op(alpha, edges).max(x)))
    padded = op(alpha[:, None], edges[:, None])
    slices, omega = jax.eval_shape(lambda x, omega: to_slices(x, -1, None, omega)[:2], x[None, :, None], padded.omega)
    assert slices.shape == (3, 8)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(omega)) == [(3, 1), (3, 7)]
    # two programs of one computation: rounding may differ
    for got, expected in zip(
        both(alpha[:, None], edges[:, None], x[None, :, None]), both(alpha, edges, x), strict=True
    ):
        np.testing.assert_allclose(np.squeeze(got, (0, 2)), expected, rtol=0, atol=ULPS)
    loss = lambda e: jnp.sum(op(alpha[:, None], e).argmax(x[None, :, None]) ** 2)
    assert jax.eval_shape(jax.grad(loss), edges[:, None]).shape == (3, 1, 7)
