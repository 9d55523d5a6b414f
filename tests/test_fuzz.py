"""Hypothesis: scores, scales, ties, masks, junk, dtypes, shapes and hyper-parameters all at once.

Each example fills the whole batch of a family's one compiled function, every row with its own problem.
"""

import cases
import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES, B, D
from hypothesis import strategies as st

DRAW = {
    "gamma": lambda rng: 10 ** rng.uniform(-1, 1),
    "alpha": lambda rng: rng.choice([1.0, 2.0, 1 + 10 ** rng.uniform(-6, 0), rng.uniform(1, 2)]),
    "p": lambda rng: rng.choice([2.0, rng.uniform(1.02, 2)]),
    "tv": lambda rng: rng.choice([0.0, 10 ** rng.uniform(-2, 1)]),
    "oscar": lambda rng: rng.choice([0.0, 10 ** rng.uniform(-3, 0)]),
    "owl": lambda rng: rng.choice([0.0, 10 ** rng.uniform(-2, 1)]),
    "beta": lambda rng: 10 ** rng.uniform(-2, 0.5),
    "edges": lambda rng: rng.uniform(0, 1, D - 1) * rng.integers(0, 2, D - 1),
    "weights": lambda rng: np.sort(rng.integers(-3, 4, D) / 4 if rng.uniform() < 0.5 else rng.normal(size=D))[::-1],
}


def rows(rng, scale, tie):
    x = rng.normal(size=(B, D))
    if tie:
        x = np.round(x * tie) / tie
    return x * scale + rng.normal(size=(B, 1)) * scale * rng.choice([0, 1, 100])


@cases.each(FAMILIES)
@hypothesis.settings(max_examples=4)
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
    problems = [{k: DRAW[k](rng) for k in case.values} for _ in range(B)]
    params = {k: np.stack([np.atleast_1d(problem[k]) for problem in problems]) for k in case.values}
    if not case.family.rowwise:
        params = {k: v[:, 0] for k, v in params.items()}
    v, c = rng.normal(size=(B, D)), np.zeros(B)
    (y, value), (bars, x_bar) = cases._everything(case.family)(params, np.where(where, x, junk), where, v, c)
    expected = [case.expected(x[i : i + 1], where[i : i + 1], problem) for i, problem in enumerate(problems)]
    # float64 throughout: scores of 1e3 and offsets of 1e5 cost their rounding, 1e-11, over gamma >= 0.1
    gammas = np.array([problem["gamma"] for problem in problems])
    tol = case.tol + 1e-13 * np.abs(x).max(-1) / gammas
    assert (np.abs(np.asarray(y) - np.concatenate([e[0] for e in expected])).max(-1) <= tol).all()
    some = where.any(-1)
    difference = np.abs(np.asarray(value)[some] - np.concatenate([e[1] for e in expected])[some])
    assert (difference <= (tol * np.maximum(1, np.abs(x).max(-1)) * 10)[some]).all()
    assert (np.asarray(value)[~some] == -np.inf).all()
    x_bar = np.asarray(x_bar)
    assert np.isfinite(x_bar).all() and (x_bar[~where] == 0).all()
    # J 1 = 0 and J symmetric: the pull-back sums to zero on each slice
    size = np.maximum(1, np.abs(x_bar).max(-1))
    assert (np.abs(x_bar.sum(-1)) <= (1e-6 if case.tol > 1e-10 else 1e-11) * size).all()
    assert all(np.isfinite(bar).all() for bar in bars.values())


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


@pytest.mark.parametrize("id", ["entmax1.5", "l2+tv"])
@hypothesis.settings(max_examples=16)
@hypothesis.given(
    shape_axis=st.sampled_from(SHAPES),
    dtype=st.sampled_from([np.float64, np.float32, jnp.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_shapes_and_dtypes(id, shape_axis, dtype, seed):
    from test_axis import flatten

    case = cases.BY_ID[id]
    (shape, axis), rng = shape_axis, np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=shape) * 2, dtype)
    where = rng.uniform(size=shape) < 0.8
    y = case.family.weights(x, case.params(), axis, where)
    value = case.family.value(x, case.params(), axis, where)
    assert y.dtype == value.dtype == x.dtype and y.shape == shape
    rows, back, keep = flatten(np.asarray(x, float), axis)
    mask, _, _ = flatten(where, axis)
    expected, expected_value = case.expected(rows, mask)
    eps = float(jnp.finfo(dtype).eps)
    tol = {np.float64: 1e-10, np.float32: 3e-6}.get(dtype, eps)
    np.testing.assert_allclose(np.asarray(y, float), back(expected), rtol=0, atol=tol)
    np.testing.assert_allclose(np.asarray(value, float), keep(expected_value), rtol=eps, atol=4 * tol)
    assert value.shape == keep(expected_value).shape
