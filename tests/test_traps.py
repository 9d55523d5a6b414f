"""Mistakes that are easy to make and that no law contains already, each named after the mistake."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import D
from cases.tolerances import CONIC, PROMISE32, PULLED, PULLED_TWICE, SOLVED, ULPS

import smoothmax as sm


def test_one_hot_and_tiny_inputs_do_not_hide_a_wrong_operator():
    """Dense supports: the mean of a wide normal row under each mapping differs from each other mapping."""
    x = np.random.default_rng(130).normal(size=(1, 40)) * 0.2
    answers = [getattr(sm, name)(x) for name in cases.DISTRIBUTIONS]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("name", cases.DISTRIBUTIONS)
def test_mask_fill_with_a_large_negative_number_gives_uniform_weights_on_masked_rows(name):
    function = getattr(sm, name)
    np.testing.assert_array_equal(function(np.ones((1, 4)), where=np.zeros((1, 4), bool)), 0.0)
    # and a score of -1e30 is a score, not a mask: alone in its row it gets all the weight
    where = np.array([[True, False, False, False]])
    np.testing.assert_array_equal(function(np.full((1, 4), -1e30), where=where), [[1.0, 0, 0, 0]])
    np.testing.assert_allclose(function(np.full((1, 4), -1e30), where=np.ones((1, 4), bool)), 0.25, rtol=0, atol=ULPS)


@cases.each([cases.BY_ID["sparsemax-gamma1.0"]])
def test_support_size_counted_over_the_batch_instead_of_the_row(case):
    """Rows of support 1 to 8 in one batch, forward and backward."""
    x = np.where(np.arange(D) <= np.arange(D)[:, None], 0.0, -9.0)
    result = cases.run(case, x, v=np.tile(np.arange(D) ** 2.0, (D, 1)))
    for k in range(1, D + 1):
        np.testing.assert_allclose(result.y[k - 1, :k], 1 / k, rtol=0, atol=ULPS)
        squares = np.arange(k) ** 2.0
        np.testing.assert_allclose(result.x_bar[k - 1, :k], squares - squares.mean(), rtol=0, atol=SOLVED)
        assert (result.x_bar[k - 1, k:] == 0).all()


KINKS = ["sparsemax-gamma1.0", "entmax1.5", "entmax2.0", "pnormmax1.5", "pnormmax2.0"]


@cases.each(cases.BY_ID[id] for id in KINKS)
def test_half_a_gradient_at_a_kink(case):
    """Scores exactly on the threshold: the Jacobian is that of one of the two supports, not their mean
    (grad of maximum(x, 0) at 0 is 0.5)."""
    x = np.array([[0.0, -1.0, -1, -5, -5, -5, -5, -5]]) * (2 if case.alpha == 1.5 else 1)
    jacobian = cases.jacobians(case, x)[0]
    y = cases.run(case, x).y[0]
    np.testing.assert_allclose(y, np.eye(D)[0], rtol=0, atol=SOLVED)
    one = np.zeros((D, D))
    candidates = [one]
    if case.id in ("sparsemax-gamma1.0", "entmax2.0", "pnormmax2.0"):
        for support in ([0, 1], [0, 2], [0, 1, 2]):
            s = np.isin(np.arange(D), support).astype(float)
            candidates.append(np.diag(s) - np.outer(s, s) / s.sum())
    assert min(np.abs(jacobian - c).max() for c in candidates) < PULLED, jacobian


@jax.jit
def entmax_hessians(x, alpha):
    """Of the value in forward mode; and of the weights in reverse mode."""
    value = sm.forward_mode(sm.conjugate(sm.Tsallis(alpha))).max
    return jax.hessian(value)(x), jax.jacrev(jax.jacrev(lambda x: sm.entmax(x, alpha=alpha)))(x)


@cases.each(cases.BY_ID[id] for id in ("entmax2.5", "entmax4.0", "entmax2.0", "entmax1.5"))
def test_entmax_hessian_takes_y_to_a_negative_power_at_zero(case):
    """y^(2 - alpha) at y = 0 is infinite beyond alpha = 2."""
    x = np.array([[3.0, 2.9, 0, -1, -2, -3, -4, -5]])
    assert (cases.run(case, x).y == 0).any()
    jacobian = cases.jacobians(case, x)[0]
    assert np.isfinite(jacobian).all() and np.abs(jacobian).max() > 0.1
    hessian, second = entmax_hessians(x[0], case.alpha)
    np.testing.assert_allclose(hessian, jacobian, rtol=0, atol=PULLED_TWICE)
    assert np.isfinite(second).all()


def test_bfloat16_counts_saturate_at_256():
    """The support of 1000 ties counted in bfloat16 would be 256."""
    for dtype, functions in (
        (jnp.bfloat16, (sm.sparsemax, sm.entmax, sm.fusedmax, sm.oscarmax)),
        (jnp.float16, (sm.sparsemax,)),
    ):
        x = np.zeros((1, 1000), dtype)
        for function in functions:
            np.testing.assert_allclose(np.asarray(function(x), float), 1e-3, rtol=float(jnp.finfo(dtype).eps))
        _, pull = jax.vjp(sm.sparsemax, x)
        (x_bar,) = pull(np.ones_like(x))
        np.testing.assert_array_equal(np.asarray(x_bar, float), 0)
        (x_bar,) = pull(np.eye(1, 1000, dtype=dtype))
        np.testing.assert_allclose(np.asarray(x_bar, float)[0, 0], 0.999, rtol=float(jnp.finfo(dtype).eps))


@cases.each(cases.BY_ID[id] for id in ("l2+tv", "l2+oscar", "pnorm+edges", "shannon+owl"))
def test_absolute_tolerances_when_groups_are_found(case):
    """Scores of order 1e-6 that differ by 1e-7 are different scores: groups follow from the problem, not
    from a tolerance such as 1e-5, and the Jacobian is the same at each scale."""
    x = cases.scores(6, seed=131)[2:]
    v = np.random.default_rng(132).normal(size=x.shape)
    here = cases.run(case, x, v=v)
    for scale in (1e-7, 1e6):
        params = case.params() | {"gamma": case.params()["gamma"] * scale}
        there = cases.run(case, x * scale, v=v, params=params)
        np.testing.assert_allclose(there.y, here.y, rtol=0, atol=SOLVED)
        np.testing.assert_allclose(
            there.x_bar * scale, here.x_bar, rtol=0, atol=PULLED_TWICE * max(1, np.abs(here.x_bar).max())
        )


@cases.each(cases.BY_ID[id] for id in ("l2+oscar", "l2+tv"))
def test_marginals_contradict_each_other_on_ties(case):
    """Isotonic regression on integers, where two-sided marginals came out wrong by 0.25."""
    rng = np.random.default_rng(133)
    x = rng.integers(-2, 3, size=(cases.B, D)).astype(float)
    for params in ({"oscar": 0.25}, {"oscar": 1.0}) if case.id == "l2+oscar" else ({"tv": 0.5}, {"tv": 1.0}):
        params = case.params() | params
        np.testing.assert_allclose(
            cases.run(case, x, params=params).y, case.expected(x, params=params)[0], rtol=0, atol=SOLVED
        )


@cases.each([cases.BY_ID["l2+oscar"]])
def test_oscar_sorted_by_absolute_value(case):
    """Negative scores: |x| in the prox is off by 0.1 to 0.2 and breaks shift invariance."""
    params = {"gamma": 1.0, "oscar": 0.2}
    x = np.random.default_rng(134).normal(size=(cases.B, D)) - 1.0
    expected = case.expected(x, params=params)[0]
    for shift in (0, 5):
        np.testing.assert_allclose(cases.run(case, x + shift, params=params).y, expected, rtol=0, atol=SOLVED)


def test_two_penalties_in_the_other_order():
    """Total variation first, then Oscar; swapped it is off by 0.01 and more."""
    assert "shannon+tv+oscar" in cases.BY_ID
    x = np.random.default_rng(135).normal(size=(20, 6))
    op = sm.conjugate(sm.SquaredL2() + 0.3 * sm.TotalVariation() + 0.2 * sm.Oscar())
    got = np.asarray(op(x))
    for row, y in zip(x[:6], got[:6], strict=True):
        solution, _ = oracles.conic(row, base="l2", tv=0.3, oscar=0.2)
        np.testing.assert_allclose(y, solution, rtol=0, atol=CONIC)


def test_gradient_reaches_ties_that_rounding_splits():
    """A plateau computed in float32 keeps its group: each position of it gets the group's mean gradient."""
    rng = np.random.default_rng(136)
    x = np.repeat(rng.normal(size=(8, 4)), 16, axis=1).astype(np.float32) + rng.normal(size=(8, 64)).astype(
        np.float32
    ) * np.float32(0.01)
    v = rng.normal(size=x.shape).astype(np.float32)
    _, pull = jax.vjp(lambda x: sm.fusedmax(x, lam=0.05), x)
    (x_bar,) = pull(v)
    expected = np.stack([oracles.argmax(r, base="l2", tv=0.05) for r in x]).astype(float)
    groups = 0
    for row, bar in zip(expected, np.asarray(x_bar), strict=True):
        for segment in np.split(np.arange(64), np.nonzero(np.abs(np.diff(row)) > ULPS)[0] + 1):
            groups += len(segment) > 1 and row[segment[0]] > 0
            assert np.ptp(bar[segment]) == 0
    assert groups > 8


def test_the_value_is_minus_infinity_as_logsumexp():
    value, pull = jax.vjp(sm.softmax_value, np.full((2, 3), -np.inf))
    np.testing.assert_array_equal(value, -np.inf)
    np.testing.assert_array_equal(pull(np.array([1.0, 0.0]))[0], 0.0)


def test_standard_session(no_x64):
    """No 64-bit types: everything still float32, and float32 accuracy."""
    x = cases.scores(5, 7, dtype=np.float32)
    for name, problem in cases.DISTRIBUTIONS.items():
        y, pull = jax.vjp(getattr(sm, name), x)
        assert y.dtype == pull(y)[0].dtype == jnp.float32
        np.testing.assert_allclose(y, oracles.rows(x, **problem)[0].astype(float), rtol=0, atol=PROMISE32)
