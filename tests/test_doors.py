"""The three doors: a domain, a penalty and an implementation that the library does not know, through its public names.

Each double is made here, used, differentiated in scores and hyper-parameters, and gone again. None brings a derivative
rule, and none touches the two other choices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import DIFFERENCE, STEP, SUMS, ULPS

import smoothmax as sm
from smoothmax import _kernels, extend

X = np.random.default_rng(0).normal(size=(5, 6))
V = np.random.default_rng(1).normal(size=(5, 6))


def check_gradient(f, *at, tolerance=DIFFERENCE):
    """Central differences along one direction for each argument."""
    rng = np.random.default_rng(2)
    f = jax.jit(jax.value_and_grad(f, tuple(range(len(at)))))
    _, gradients = f(*at)
    for i, gradient in enumerate(map(np.asarray, gradients)):
        step = STEP * rng.normal(size=np.shape(at[i]))
        ahead, behind = (f(*(a + sign * step if j == i else a for j, a in enumerate(at)))[0] for sign in (1, -1))
        np.testing.assert_allclose(np.sum(gradient * step), (ahead - behind) / 2, rtol=0, atol=tolerance * STEP)
        assert np.any(gradient != 0)


# --- A domain: everything above a bound ----------------------------------------------------------------------


@extend.tree_class
class Above(extend.Domain):
    """{y >= lower}: over it, SquaredL2 is a rectifier."""

    lower: float = extend.parameter(extend.NON_NEGATIVE)

    def solve(self, base, x, gamma, implementation):
        allowed = x != -jnp.inf
        y = base.solve_box(jnp.where(allowed, x, 0) / gamma, self.lower, jnp.inf)
        return jnp.where(allowed, y, 0), None

    def product(self, base, y, found, v, gamma, implementation):
        return jnp.where(y > self.lower, base.inverse_curvature(y), 0) * v / gamma

    def respond(self, base, y, found):
        return jnp.where(y == self.lower, self.lower, y)


def test_a_domain():
    weights = lambda gamma, lower, x: sm.conjugate(gamma * sm.SquaredL2(), over=Above(lower)).argmax(x)
    np.testing.assert_allclose(weights(2.0, 0.1, X), np.maximum(X / 2, 0.1), rtol=ULPS)
    check_gradient(lambda *a: jnp.sum(V * weights(*a)), 2.0, 0.1, X)
    value = lambda gamma, lower, x: jnp.sum(sm.conjugate(gamma * sm.Shannon(), over=Above(lower)).max(x))
    check_gradient(value, 1.5, 0.2, X)
    fused = sm.conjugate(sm.SquaredL2() + 0.3 * sm.TotalVariation(), over=Above(0.1))
    plain = sm.conjugate(sm.SquaredL2() + 0.3 * sm.TotalVariation(), over=sm.Box(-jnp.inf, jnp.inf))
    np.testing.assert_allclose(fused(X), np.maximum(plain(X), 0.1), rtol=0, atol=SUMS)
    with pytest.raises(ValueError, match="lower of Above must be zero or positive"):
        Above(-1.0)


# --- A penalty of another shape than a chain: pairs ----------------------------------------------------------


@extend.tree_class
class Pairs(extend.Penalty):
    """sum_i |y_{2i} - y_{2i+1}|: each position has one partner, as on a grid of two columns."""

    order = 0

    def value(self, y, allowed):
        return jnp.sum(jnp.abs(y[..., ::2] - y[..., 1::2]), axis=-1, keepdims=True)

    @classmethod
    def prox(cls, terms, x, implementation):
        weight = sum(strength for strength, _ in terms)
        a, b = x[..., ::2], x[..., 1::2]
        half = jnp.clip((a - b) / 2, -weight, weight)
        sign = jnp.where(jnp.abs(a - b) <= 2 * weight, 0, jnp.sign(a - b)).astype(jnp.int8)
        mean = (a + b) / 2
        t = jnp.stack([jnp.where(sign == 0, mean, a - half), jnp.where(sign == 0, mean, b + half)], axis=-1)
        return t.reshape(x.shape), sign

    @classmethod
    def subgradient(cls, terms, found, y):
        weight = sum(strength for strength, _ in terms)
        g = weight * found.astype(y.dtype)
        return jnp.stack([g, -g], axis=-1).reshape(y.shape)

    @classmethod
    def average(cls, found, active, v, implementation):
        a, b = v[..., ::2], v[..., 1::2]
        mean = (a + b) / 2
        return jnp.stack([jnp.where(found == 0, mean, a), jnp.where(found == 0, mean, b)], axis=-1).reshape(v.shape)


Pairs.kind = Pairs


def test_a_penalty():
    weights = lambda gamma, lam, x: sm.conjugate(gamma * (sm.Tsallis(1.5) + lam * Pairs())).argmax(x)
    y = np.asarray(weights(1.0, 0.4, X))
    tied = y[:, ::2] == y[:, 1::2]
    assert 0 < tied.mean() < 1
    np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=SUMS)
    # Optimal: no point of the simplex does better.
    omega = sm.Tsallis(1.5) + 0.4 * Pairs()
    reached = lambda y: np.sum(X * y, -1) - np.asarray(jax.jit(omega)(y))
    others = np.random.default_rng(3).dirichlet(np.full(6, 0.5), size=(200, 5))
    assert (reached(0.95 * y + 0.05 * others) <= reached(y) + SUMS).all()
    check_gradient(lambda *a: jnp.sum(V * weights(*a)), 1.3, 0.4, X)
    value = lambda gamma, lam, x: jnp.sum(sm.conjugate(gamma * (sm.SquaredL2() + lam * Pairs())).max(x))
    check_gradient(value, 1.3, 0.4, X)


def test_a_penalty_beside_others_and_over_another_domain():
    omega = sm.SquaredL2() + 0.2 * Pairs() + 0.05 * sm.Oscar()
    y = sm.conjugate(omega, over=sm.CappedSimplex(2.0))(X)
    np.testing.assert_allclose(y.sum(-1), 2, rtol=0, atol=SUMS)
    check_gradient(lambda x: jnp.sum(V * sm.conjugate(omega, over=sm.CappedSimplex(2.0))(x)), X)


# --- An implementation: sparsemax by sorting -----------------------------------------------------------------


@pytest.fixture
def by_sorting():
    """Entered into the table for one test."""
    calls = []

    def sparsemax(x, gamma, alpha):
        calls.append(x.shape)
        z = (x - jnp.max(x, axis=-1, keepdims=True)) / gamma
        descending = -jnp.sort(-z, axis=-1)
        count = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))
        taus = (jnp.cumsum(descending, axis=-1) - 1) / count
        size = jnp.sum(descending > taus, axis=-1, keepdims=True)
        return jnp.maximum(z - jnp.take_along_axis(taus, size - 1, axis=-1), 0)

    wide = lambda x, *_: "it sorts at most 8 positions" if x.shape[-1] > 8 else None
    extend.register("by_sorting", "threshold", extend.Kernel(sparsemax, ("cpu",), wide, default=False))
    yield calls
    del _kernels.TABLE["by_sorting"]


def test_an_implementation(by_sorting):
    np.testing.assert_allclose(sm.sparsemax(X, implementation="by_sorting"), sm.sparsemax(X), rtol=0, atol=SUMS)
    assert by_sorting, "the kernel was not called"
    f = lambda gamma, x: jnp.sum(V * sm.sparsemax(x, gamma=gamma, implementation="by_sorting"))
    check_gradient(f, 1.3, X)
    hessians = [
        jax.hessian(sm.forward_mode(sm.conjugate(sm.SquaredL2(), implementation=implementation)).max)
        for implementation in ("by_sorting", None)
    ]
    hessian, expected = jax.jit(lambda x: [hessian(x) for hessian in hessians])(X[0])
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=SUMS)
    with pytest.raises(NotImplementedError, match="at most 8 positions"):
        sm.sparsemax(np.ones(9), implementation="by_sorting")
    with pytest.raises(NotImplementedError, match="no kernel for the problem 'chain'"):
        sm.fusedmax(X, implementation="by_sorting")


def test_a_kernel_for_each_platform(by_sorting):
    """Beside those for other platforms, in place of the one for its own."""
    table = _kernels.TABLE["by_sorting"]
    [sorting] = table["threshold"]
    others = [extend.Kernel(lambda *_: X, (platform,)) for platform in ("tpu", "cuda", "cpu")]
    for other in others:
        extend.register("by_sorting", "threshold", other)
        assert _kernels.here(table["threshold"]) is (other if other is others[-1] else sorting)
    assert table["threshold"] == tuple(others)


def test_it_is_gone():
    with pytest.raises(ValueError, match="implementation must be None or one of 'xla'"):
        sm.sparsemax(X, implementation="by_sorting")
