"""Gradients for scores and for every hyper-parameter, of weights and of values, against fourth-order
differences of the long double oracles: nothing of the library takes part in the expected numbers."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import D
from cases.tolerances import PULLED

import smoothmax as sm

N = 6  # slices


def tolerances(case):
    # Rounding of the oracle differences is 1e-14 and of the library's products a few 1e-13; alpha = 4 has
    # derivatives y^(2 - alpha) that amplify both. The generic solver knows y to 1e-6 and J through y.
    return {"rtol": 1e-4, "atol": 1e-5} if case.plain else {"rtol": 1e-8, "atol": 1e-9}


def away_from_kinks():
    """Slices of spread 0.3 to 3."""
    return np.random.default_rng(60).normal(size=(N, D)) * np.geomspace(0.3, 3, N)[:, None]


def solution(row, **problem):
    """The weights of one slice, and its value after them: one solution of the oracle for both."""
    return np.append(*oracles.solution(row, **problem))


@functools.cache
def point(case):
    """Slices and the oracle's derivatives of their solutions by their scores, (N, D + 1, D)."""
    x, problem = away_from_kinks(), case.problem()

    def column(row, j):
        at = lambda t: np.where(np.arange(D) == j, t, row.astype(oracles.LD))
        return oracles.derivative(lambda t: solution(at(t), **problem), row[j])

    return x, np.stack([np.stack([column(row, j) for j in range(D)], 1) for row in x]).astype(float)


@functools.cache
def by_hyper_parameter(case, name):
    """The oracle's derivatives of the solutions of the same slices by a hyper-parameter: (N, D + 1), and its length."""
    by = lambda row: oracles.differences(lambda **problem: solution(row, **problem), case.problem(), name)
    return np.stack([by(row) for row in away_from_kinks()]).astype(float)


@cases.each()
def test_scores(case):
    x, expected = point(case)
    np.testing.assert_allclose(cases.jacobians(case, x), expected[:, :D], **tolerances(case))


@cases.each()
def test_scores_of_the_value(case):
    """grad max = argmax (Danskin), here by differences of the value."""
    x, expected = point(case)
    c = np.arange(1.0, N + 1)
    np.testing.assert_allclose(cases.run(case, x, c=c).x_bar, c[:, None] * expected[:, D], **tolerances(case))


@cases.each()
def test_hyper_parameters(case):
    x = away_from_kinks()
    v = np.random.default_rng(61).normal(size=x.shape)
    bars = cases.run(case, x, v=v).bars
    assert set(bars) == set(case.values)
    for name, bar in bars.items():
        expected = np.einsum("nd,nd...->n...", v, by_hyper_parameter(case, name)[:, :D])
        np.testing.assert_allclose(bar, expected, err_msg=name, **tolerances(case))


@cases.each()
def test_hyper_parameters_of_the_value(case):
    bars = cases.run(case, away_from_kinks(), c=np.ones(N)).bars
    for name, bar in bars.items():
        np.testing.assert_allclose(bar, by_hyper_parameter(case, name)[:, D], err_msg=name, **tolerances(case))


@cases.each(cases.REPRESENTATIVES)
def test_float32_pull_backs(case):
    """What people train in, against the same pull-backs in float64, which have oracles above."""
    x = away_from_kinks().astype(np.float32)
    rng = np.random.default_rng(64)
    v, c = rng.normal(size=x.shape).astype(np.float32), rng.normal(size=N).astype(np.float32)
    single = cases.run(case, x, v=v, c=c, dtype=np.float32)
    double = cases.run(case, x, v=v, c=c)
    assert single.x_bar.dtype == np.float32
    # weights are right to 3e-6, and products of D of them with numbers of order one follow; a plain function's weights
    # to 3e-4, which its Hessian magnifies
    tol = 2e-2 if case.plain else 2e-5
    np.testing.assert_allclose(single.x_bar, double.x_bar, rtol=tol, atol=tol * np.abs(double.x_bar).max())
    # At a vertex of the capped simplex the two sides of a derivative by its sum differ, and which one it is, or their
    # mean, is for the last bit of a weight to say.
    free = ((double.y > 0) & (double.y < 1)).any(-1)
    for name, bar in double.bars.items():
        rows = free if name == "total" else slice(None)
        np.testing.assert_allclose(
            single.bars[name][rows], bar[rows], rtol=tol, atol=tol * max(1, np.abs(bar).max()), err_msg=name
        )


@jax.jit
def slopes_in_alpha(alpha, x):
    """Derivatives of entmax and its value by one alpha for all slices."""
    return jax.jacrev(lambda a: (sm.entmax(x, alpha=a), sm.entmax_value(x, alpha=a)))(alpha)


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.001, 1.01, 1.1, 1.5, 2.0])
def test_float32_gradient_of_alpha(alpha):
    """Within 1% where the published formula is 21% off or has the wrong sign (alpha = 1.001, 1.0001)."""
    x = (np.random.default_rng(62).normal(size=(8, D))).astype(np.float32)
    derivative = lambda function: oracles.differences(lambda alpha: function(alpha), {"alpha": alpha}, "alpha")
    weights, value = map(np.asarray, slopes_in_alpha(np.float32(alpha), x))
    assert weights.dtype == value.dtype == jnp.float32
    # the float32 alpha is not the decimal number; at 1.0001 the difference is 1e-8, far inside the 1%
    for i, row in enumerate(x):
        expected = derivative(lambda a: oracles.tsallis(row, a)).astype(float)
        np.testing.assert_allclose(weights[i], expected, rtol=0, atol=0.01 * np.abs(expected).max())
        expected = float(derivative(lambda a: oracles.value(row, base="tsallis", alpha=a)))
        np.testing.assert_allclose(value[i], expected, rtol=0.01)


@cases.each([cases.BY_ID["entmax1.0"]])
@pytest.mark.parametrize("alpha", [1 + 1e-12, 1 + 1e-9, 1 + 1e-6, 1.0001, 1.01])
def test_gradient_of_alpha_is_continuous_through_one(case, alpha):
    """In float64 the derivative at 1 + e is that at 1 up to O(e)."""
    x = away_from_kinks()
    v = np.random.default_rng(63).normal(size=x.shape)
    at_one = cases.run(case, x, v=v).bars["alpha"]
    near = cases.run(case, x, v=v, params={"alpha": alpha, "gamma": 1.0}).bars["alpha"]
    np.testing.assert_allclose(near, at_one, rtol=0, atol=30 * (alpha - 1) + 1e-8)  # 1e-8 as in `tolerances`


@cases.each(cases.BY_ID[id] for id in ("l2+tv", "l2+oscar"))
def test_slope_in_lam_at_zero(case):
    """At lam = 0 the value's right derivative is -R(y), and every gradient is finite."""
    x, (name,) = away_from_kinks(), case.family.penalties
    result = cases.run(case, x, v=np.ones(x.shape), c=np.ones(N), params=case.params() | {name: 0.0})
    for i, row in enumerate(x):
        y = oracles.squared_l2(row)
        slope = oracles.omega(y, base="l2", **{name: 1.0}) - oracles.omega(y, base="l2")
        np.testing.assert_allclose(result.bars[name][i], -float(slope), rtol=0, atol=PULLED)
    assert np.isfinite(result.x_bar).all()


@cases.each(cases.REPRESENTATIVES)
def test_descent_in_every_hyper_parameter_reaches_the_teacher(case):
    """Gradients are good for something: Gauss-Newton steps on the values bring a shifted hyper-parameter back."""
    x, truth = away_from_kinks(), case.params()
    target = cases.run(case, x).value
    for name in truth:
        params = dict(truth)
        params[name] = truth[name] * 1.05
        for _ in range(8):  # Gauss-Newton over the slices for a common scale of this hyper-parameter
            result = cases.run(case, x, c=np.ones(N), params=params)
            slope = (result.bars[name] * truth[name]).reshape(N, -1).sum(1)
            residual = result.value - target
            params[name] = params[name] - truth[name] * (slope @ residual) / (slope @ slope)
        # eight steps square a distance of 5% away: the rounding of values over their slopes is left
        np.testing.assert_allclose(params[name], truth[name], rtol=1e-4 if case.plain else 1e-7, atol=1e-9)


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_tiny_weights_move_steeply_and_sums_stay(shape, implementation):
    """Above alpha = 2, next to the border, in float32: x + c has the same weights, so gradients add up to zero."""
    x = np.float32([[0, 0, -(0.125 - 1e-6) / 3]])
    v = np.float32([[1, 2, -3]])

    @jax.jit
    def pulled(x, v):
        alpha = jnp.full(shape, 4, x.dtype)
        return jax.vjp(lambda x: sm.entmax(x, alpha=alpha, implementation=implementation), x)[1](v)[0]

    bar, exact = np.asarray(pulled(x, v)), np.asarray(pulled(x.astype(float), v.astype(float)))
    np.testing.assert_allclose(bar, exact, rtol=2e-2)  # a weight of 5e-3, the cube root of what float32 leaves of it
    np.testing.assert_allclose(bar.sum(), 0, rtol=0, atol=1e-6 * np.abs(bar).max())
