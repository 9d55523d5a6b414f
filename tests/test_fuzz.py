"""Hypothesis: scores, scales, ties, masks, junk, dtypes, shapes and hyper-parameters all at once.

Each example fills the whole batch of a family's one compiled function, every row with its own problem. How many there
are, and whether they are drawn afresh, is up to the profile: see conftest.
"""

import functools

import cases
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES, B, D
from cases.tolerances import FUNCTION64, PROMISE, PROMISE64, PULLED_TWICE, SOLVED
from hypothesis import strategies as st


def rows(rng, scale, tie):
    x = rng.normal(size=(B, D))
    if tie:
        x = np.round(x * tie) / tie
    return x * scale + rng.normal(size=(B, 1)) * scale * rng.choice([0, 1, 100])


@cases.each(FAMILIES)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3]),
    tie=st.sampled_from([0, 1, 4]),
    kept=st.sampled_from([0.3, 0.7, 1.0]),
    junk=st.sampled_from([0.0, np.nan, np.inf, 1e30]),
)
def test_every_operator(case, seed, scale, tie, kept, junk):
    rng = np.random.default_rng(seed)
    x, where = rows(rng, scale, tie), rng.uniform(size=(B, D)) < kept
    drawn = case.drawn(rng, B)
    problems = [{k: p[i] for k, p in drawn.items()} for i in range(B)]
    result = cases.run(case, np.where(where, x, junk), where, v=rng.normal(size=(B, D)), params=drawn)
    y, value, x_bar = result.y, result.value, result.x_bar
    expected = [case.expected(x[i : i + 1], where[i : i + 1], problem) for i, problem in enumerate(problems)]
    # float64 throughout: scores of 1e3 and offsets of 1e5 cost their rounding, 1e-11, over gamma >= 0.1
    gammas = np.array([problem["gamma"] for problem in problems])
    expected_y, expected_value = (np.concatenate(part) for part in zip(*expected, strict=True))
    size = np.maximum(1, np.abs(x).max(-1))
    tol = (case.tol + SOLVED * size / gammas) * np.maximum(1, np.abs(np.nan_to_num(expected_y)).max(-1))
    # an empty domain, nothing else: what is NaN is the whole slice
    np.testing.assert_array_equal(np.isnan(y).any(-1), np.isnan(expected_y).any(-1))
    feasible, some = ~np.isnan(expected_y).any(-1), where.any(-1)
    np.testing.assert_allclose(y.sum(-1)[feasible], expected_y.sum(-1)[feasible], rtol=0, atol=D * tol.max())
    for i in np.nonzero(feasible & (np.abs(y - expected_y).max(-1) > tol))[0]:
        # Far above alpha = 2, two segments whose means tie but for their rounding may share weight in any way.
        assert case.family.penalties and problems[i].get("alpha", 0) > 4
        assert case.attained(x[i], y[i], where[i], problems[i]) >= expected_value[i] - PROMISE64 * size[i]
    ok = feasible & some
    assert (np.abs(value[ok] - expected_value[ok]) <= (tol * size * 10)[ok]).all()
    assert (value[~some] == -np.inf).all()
    assert np.isfinite(x_bar[feasible]).all() and (x_bar[~where] == 0)[feasible[np.nonzero(~where)[0]]].all()
    if case.shifts:  # J 1 = 0 and J symmetric: the pull-back sums to zero on each slice
        steep = np.maximum(1, np.abs(x_bar).max(-1))
        # A segment averages products with slopes that have no bound above alpha = 2; their rounding is left.
        resolved = feasible & ((np.asarray(drawn.get("alpha", np.ones(B))) <= 4) | (not case.family.penalties))
        assert (np.abs(x_bar.sum(-1)) <= (FUNCTION64 if case.plain else PULLED_TWICE) * steep)[resolved].all()
    assert all(np.isfinite(bar[feasible]).all() for bar in result.bars.values())


SHAPES = [
    ((1,), -1),
    ((5,), 0),
    ((3, 1), -1),
    ((1, 6), 1),
    ((2, 3, 4), 1),
    ((7, 2), (0, 1)),
    ((2, 2, 2, 3), (1, 3)),
    ((4, 3), None),
]


@functools.cache
def along(case, axis):
    """Compiled weights and values along an axis."""
    family, params = case.family, case.params()
    return jax.jit(lambda x, where: (family.weights(x, params, axis, where), family.value(x, params, axis, where)))


@pytest.mark.parametrize("id", ["sparsemax-gamma1.0", "l2+tv"])
@hypothesis.settings(max_examples=2 * hypothesis.settings.default.max_examples)  # one slice or a few each
@hypothesis.given(
    shape_axis=st.sampled_from(SHAPES),
    dtype=st.sampled_from([np.float64, np.float32, jnp.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_shapes_and_dtypes(id, shape_axis, dtype, seed):
    from test_axis import flatten

    case = cases.BY_ID[id]
    (shape, axis), rng = shape_axis, np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 2).astype(dtype)
    where = rng.uniform(size=shape) < 0.8
    y, value = map(np.asarray, along(case, axis)(x, where))
    assert y.dtype == value.dtype == x.dtype and y.shape == shape
    rows, back, keep = flatten(x.astype(float), axis)
    mask, _, _ = flatten(where, axis)
    expected, expected_value = case.expected(rows, mask)
    eps = float(jnp.finfo(dtype).eps)
    tol = PROMISE.get(dtype, eps)
    np.testing.assert_allclose(y.astype(float), back(expected), rtol=0, atol=tol)
    # rounded once, after a sum of products of those weights with scores of order two
    np.testing.assert_allclose(value.astype(float), keep(expected_value), rtol=eps, atol=4 * tol)
    assert value.shape == keep(expected_value).shape
