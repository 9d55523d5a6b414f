"""The solvers called directly: every alpha against long double, any offset, and no answer on trust."""

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import refuse
from cases.tolerances import OBJECTIVE, PROMISE, PROMISE32, PULLED, SOLVED, SUMS, ULPS
from jax import export

import smoothmax as sm
from smoothmax import _arrays, _kernels
from smoothmax import _solvers as solvers
from smoothmax._solvers import _capped, _chain, _concave, _convex, _interior_point, _separable

LD = np.longdouble


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    """These are tests of the solvers in plain JAX, which no kernel may stand in for."""
    monkeypatch.delitem(_kernels.TABLE, "native")


def exact_entmax(x, alpha):
    """Of each row, in long double, by the least score of the support and bisection on the weight there."""
    b, x = LD(alpha) - 1, np.asarray(x, LD)
    x = x - x.max(-1, keepdims=True)

    def weights(c, w):
        return np.where(x > c, (np.maximum(b * (x - c), 0) + w**b) ** (1 / b), np.where(x == c, w, 0))

    total = lambda c, w: weights(c, w).sum(-1, keepdims=True)
    score = lambda place: np.take_along_axis(np.sort(x), place, -1)
    first, last = np.zeros((len(x), 1), int), np.full((len(x), 1), x.shape[1] - 1)
    while (first < last).any():
        middle = (first + last) // 2
        fits = total(score(middle), LD(0)) < 1
        first, last = np.where(fits, first, middle + 1), np.where(fits, middle, last)
    least, low, high = score(last), np.zeros((len(x), 1), LD), np.ones((len(x), 1), LD)
    while ((low < (middle := (low + high) / 2)) & (middle < high)).any():
        above = total(least, middle) > 1
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    y = weights(least, low)
    assert (np.abs(y.sum(-1) - 1) < ULPS).all()
    return y


def objective(x, y, alpha):
    b, x, y = LD(alpha) - 1, np.asarray(x, LD), np.asarray(y, LD)
    on = np.where(y > 0, y, 1)  # at 1 the entropy is 0, as at 0
    return (x * y).sum(-1) - (on * np.expm1(b * np.log(on)) / b).sum(-1) / LD(alpha)


entmax = jax.jit(lambda x, alpha: solvers.tsallis_weights(x, jnp.ones((), x.dtype), alpha, implementation="xla"))
p_norm = jax.jit(functools.partial(solvers.p_norm_weights, implementation="xla"))


# Slices of one shape, in one worker: the program for entmax is compiled once for each dtype.
@pytest.mark.xdist_group("solvers")
@pytest.mark.parametrize("alpha", [1.001, 1.3, 1.5, 2, 2.001, 2.2, 3, 4, 7, 15, 40, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_alpha_reaches_the_optimum(dtype, alpha):
    rng = np.random.default_rng(0)
    scale = np.repeat([1e-3, 1e-2, 0.03, 0.1, 0.3, 1, 3], 8)[:, None]
    x = (rng.normal(size=(56, 40)) * scale).astype(dtype)
    x[::2, 5:9] = x[::2, 5:6]  # ties
    y = np.asarray(entmax(x, dtype(alpha)))
    assert y.dtype == dtype
    exact = exact_entmax(x, dtype(alpha))
    # A sum that is off by its rounding changes the objective in proportion: so at the same sum.
    reached = objective(x, y.astype(LD) / y.astype(LD).sum(-1, keepdims=True), dtype(alpha))
    assert (objective(x, exact, dtype(alpha)) - reached < OBJECTIVE[dtype]).all()
    if alpha <= 4:
        np.testing.assert_allclose(y, exact.astype(float), rtol=0, atol=PROMISE[dtype])


@pytest.mark.parametrize("alpha", [7, 11, 15, 40])
def test_two_weights_next_to_the_border(alpha):
    """Scores at which two positions enter: their powers are below all floats."""
    w = np.geomspace(3e-7, 1e-3, 12)
    b = alpha - 1
    x = np.zeros((12, 3), np.float32)
    x[:, 1:] = -((1 - 2 * w) ** b)[:, None] / b
    y = entmax(x, np.float32(alpha))
    np.testing.assert_allclose(y, exact_entmax(x, alpha).astype(float), rtol=0, atol=PROMISE32)


@pytest.mark.parametrize("b", [1e-3, 1e-5, 2**-23, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_p_norms_next_to_the_largest_score_alone(dtype, b):
    """p down to the float next to 1: scores count by their distance over p - 1, and all of the equation is as small."""
    p = dtype(1) + dtype(max(b, np.finfo(dtype).eps))
    spread = float(p - 1) * np.geomspace(0.1, 30, 24)[:, None]
    x = (np.random.default_rng(1).normal(size=(24, 40)) * spread).astype(dtype)
    x[::3] = np.round(x[::3] / (p - 1)) * (p - 1)  # ties
    x[1::3, 2:] -= dtype(0.5)  # far behind
    y = p_norm(x, dtype(1), p)
    expected = np.array([oracles.squared_pnorm(row, LD(p)) for row in x], float)
    # At the end float64 does not promise its 1e-10: the oracle's own long double has four digits more.
    tol = PROMISE[dtype] if b > 1e-9 or dtype is np.float32 else 1e-5
    np.testing.assert_allclose(y, expected, rtol=0, atol=tol)


@pytest.mark.xdist_group("solvers")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entmax_with_alpha_next_to_one(dtype):
    """Alpha down to the float next to 1, where a threshold moves by no more than a few roundings: what rounding does
    not leave of it tells log F, and no slice may stop before."""
    x = (np.random.default_rng(5).normal(size=(56, 40)) * np.geomspace(1e-3, 8, 56)[:, None]).astype(dtype)
    x[::3, 4:] -= 50
    x[1::3] = np.round(x[1::3])
    for roundings in (1, 2, 7, 15, 16, 21, 28, 60, 1000):
        alpha = 1 + roundings * np.finfo(dtype).eps
        y = entmax(x, dtype(alpha))
        # So near to softmax in float64, which differs by less than is promised, that long double has no digits left.
        near = LD(dtype(alpha)) if dtype is np.float32 else LD(1)
        expected = np.array([oracles.tsallis(row, near) for row in x], float)
        np.testing.assert_allclose(y, expected, rtol=0, atol=PROMISE[dtype], err_msg=f"{roundings} roundings")


def test_the_largest_weight_is_not_swallowed():
    """What float32 got wrong once: 0.60 and 0.40."""
    x = np.zeros((1, 8), np.float32)
    x[0, 1:] = -0.006 - 0.001 * np.arange(7)
    y = entmax(x, np.float32(40))
    np.testing.assert_allclose(y, exact_entmax(x, 40).astype(float), rtol=0, atol=PROMISE[np.float32])


@functools.cache
def compiled(name):
    return jax.jit(SOLVERS[name])


@pytest.mark.xdist_group("solvers")  # with the next test, of slices of the same shape
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "tsallis", "steep", "p_norm", "capped", "chain", "ranks"])
def test_any_offset_bad_slices_and_empty_ones(name):
    solve = compiled(name)
    x = (np.random.default_rng(1).integers(-64, 64, size=(8, 50)) * 0.125).astype(np.float64)
    plain, moved = (np.asarray(solve(x + offset)) for offset in (0, 2.0**26))
    structured = name in ("chain", "ranks")
    tol = 1e-7 if structured else SUMS  # floats at 2^26 lie 1.5e-8 apart
    np.testing.assert_allclose(moved - (2.0**26 if structured else 0), plain, rtol=0, atol=tol)
    x[1, 3], x[2, 4], x[3] = np.nan, np.inf, -np.inf
    got = np.asarray(solve(x))
    assert np.isnan(got[1:3]).all()
    assert (got[3] == (-np.inf if structured else 0)).all()
    sound = [0, 4, 5, 6, 7]
    np.testing.assert_array_equal(got[sound], plain[sound])


LIMITS = {
    "sparsemax": (_convex, "MAX_PASSES", 1),
    "tsallis": (_convex, "MAX_PASSES", 1),
    "p_norm": (_convex, "MAX_PASSES", 1),
    "steep": (_concave, "MAX_PASSES", 1),
    "capped": (_capped, "MAX_PASSES", 2),
    "chain": (_chain, "most_rounds", lambda d: 2),
    "ranks": (_chain, "most_rounds", lambda d: 1),
}


@pytest.mark.xdist_group("solvers")
@pytest.mark.parametrize("name", LIMITS)
def test_nothing_is_returned_on_trust(name, monkeypatch):
    module, limit, value = LIMITS[name]
    x = np.random.default_rng(2).normal(size=(8, 50))
    assert np.isfinite(compiled(name)(x)).all()
    monkeypatch.setattr(module, limit, value)
    got = np.asarray(jax.jit(lambda x: SOLVERS[name](x))(x))  # another function: the first one's program is kept
    assert np.isnan(got).all(axis=-1).any(), "a loop that was cut short"
    assert (np.isnan(got).all(axis=-1) | np.isfinite(got).all(axis=-1)).all()


UNSOLVED = {
    "function": (_interior_point, 4, lambda rate: lambda y: rate * jnp.sum(y**2) / 2),
    "separable": (_separable, 1, lambda rate: sm.separable(lambda t: rate * (jnp.exp(t) + t**2 / 2))),
}


@pytest.mark.parametrize("name", UNSOLVED)
def test_a_function_that_was_not_solved_is_nan(name, monkeypatch):
    module, steps, make = UNSOLVED[name]
    x = np.random.default_rng(2).normal(size=(8, 6))
    solve = lambda rate: np.asarray(sm.conjugate(make(rate))(x))  # of each rate a program is kept
    assert np.isfinite(solve(1.0)).all()
    monkeypatch.setattr(module, "_STEPS", steps)
    got = solve(1.5)
    assert np.isnan(got).all(axis=-1).any(), "a loop that was cut short"
    assert (np.isnan(got).all(axis=-1) | np.isfinite(got).all(axis=-1)).all()


def test_between_halves_the_floats():
    between = jax.jit(_arrays.between)
    for dtype in (np.float32, np.float64):
        low, high = np.array([-3, -1e-30, 1, -1e30, 0], dtype), np.array([2, 1e30, 1.5, -1, 1e-30], dtype)
        for _ in range(64):
            middle = np.asarray(between(low, high))
            assert ((low <= middle) & (middle <= high)).all()
            low = np.where((low < middle) & (middle < high), middle, low)
        assert (np.nextafter(low, dtype(np.inf)) >= np.where(high == 0, high, high)).all()


# --- Capped ------------------------------------------------------------------------------------------------


class Square(NamedTuple):
    kernel_alpha: Any = 2.0
    inverse = staticmethod(lambda u: u)
    slope = staticmethod(lambda y: y)
    inverse_curvature = staticmethod(jnp.ones_like)
    exact = staticmethod(lambda u: np.maximum(u, 0))


class Shannon(NamedTuple):
    kernel_alpha: Any = 1.0
    inverse = staticmethod(lambda u: jnp.exp(u - 1))
    slope = staticmethod(lambda y: jnp.log(jnp.where(y > 0, y, 1)) + 1)
    inverse_curvature = staticmethod(lambda y: y)
    exact = staticmethod(lambda u: np.exp(np.minimum(u, 1000) - 1))


class FermiDirac(NamedTuple):
    kernel_alpha: Any = 0.0
    inverse = staticmethod(jax.nn.sigmoid)
    inverse_curvature = staticmethod(lambda y: y * (1 - y))
    exact = staticmethod(lambda u: 1 / (1 + np.exp(-np.clip(u, -5000, 5000))))  # no overflow

    @staticmethod
    def slope(y):
        inside = jnp.where((y > 0) & (y < 1), y, 0.5)
        return jnp.log(inside) - jnp.log1p(-inside)


class Steep(NamedTuple):
    alpha: Any
    kernel_alpha: Any = None

    def inverse(self, u):
        t = (self.alpha - 1) * (u - 1 / self.alpha)
        return jnp.where(t > -1, jnp.exp(jnp.log1p(jnp.where(t > -1, t, 0)) / (self.alpha - 1)), 0)

    def slope(self, y):
        return jnp.expm1((self.alpha - 1) * jnp.log(jnp.where(y > 0, y, 1))) / (self.alpha - 1) + 1 / self.alpha

    def inverse_curvature(self, y):
        return jnp.where(y > 0, jnp.where(y > 0, y, 1) ** (2 - self.alpha), 0)

    def exact(self, u):
        b = LD(self.alpha) - 1
        return np.maximum(1 + b * (u - 1 / LD(self.alpha)), 0) ** (1 / b)


def exact_capped(entropy, x, size, upper):
    """Of each row, by bisection to two neighbouring long doubles, and the mixture of them."""
    x = np.asarray(x, LD)
    weights = lambda tau: np.clip(entropy.exact(x - tau), 0, np.minimum(upper, size).astype(LD))
    total = lambda y: y.sum(-1, keepdims=True)
    low, high = x.min(-1, keepdims=True) - 3000, x.max(-1, keepdims=True) + 3000
    for _ in range(120):  # of a width of 1e4 nothing is left
        middle = (low + high) / 2
        above = total(weights(middle)) > size
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    more, less = weights(low), weights(high)
    apart = total(more) > total(less)
    t = np.where(apart, LD(size) - total(less), 0) / np.where(apart, total(more) - total(less), 1)
    return less + t * (more - less)


@jax.jit
def capped(entropy, x, size, upper):
    return solvers.capped_weights(entropy, x, jnp.ones((), x.dtype), size, upper)


@pytest.mark.parametrize("entropy", [Square(), Shannon(), FermiDirac(), Steep(1.5), Steep(3.0), Steep(100.0)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_capped(entropy, dtype):
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(16, 20)) * np.repeat([0.1, 1, 1, 1e4], 4)[:, None]).astype(dtype)
    x[4:8, :3] = x[4:8, 3:4]  # ties
    x[12:, :12] = rng.normal(size=(4, 12))  # a threshold far below the largest scores
    for size, upper in [(1, 1), (3, 1), (2.5, 0.3), (1, np.inf), (1e-3, 1), (5, rng.uniform(0.2, 1, (16, 20)))]:
        bounds = np.broadcast_to(np.asarray(upper, dtype), x.shape)
        y = np.asarray(capped(entropy, x, dtype(size), bounds))
        assert y.dtype == dtype and (y >= 0).all() and (y <= bounds).all()
        sums = y.astype(LD).sum(-1, keepdims=True)
        np.testing.assert_allclose(sums.astype(float), size, rtol=PROMISE32 if dtype == np.float32 else SUMS)
        exact = exact_capped(entropy, x, dtype(size), bounds)
        if getattr(entropy, "alpha", 1) <= 3:
            np.testing.assert_allclose(y, exact.astype(float), rtol=0, atol=PROMISE[dtype])
        else:  # Steeper ones are judged by the objective.
            y = y.astype(LD) * (exact.sum(-1, keepdims=True) / sums)
            lack = objective(x, exact, entropy.alpha) - objective(x, y, entropy.alpha)
            assert (lack[np.abs(x).max(-1) < 10] < OBJECTIVE[dtype]).all()


def test_capped_at_its_edges():
    compiled = jax.jit(lambda x, size, upper: solvers.capped_weights(Square(), x, jnp.ones(()), size, upper))

    def solve(size, upper, x=(3.0, 1.0, 2.0, -np.inf)):
        return np.asarray(compiled(np.array([x]), np.asarray(size), np.asarray(upper)))[0]

    np.testing.assert_array_equal(solve(0.0, 1.0), 0)
    np.testing.assert_array_equal(solve(3.0, 1.0), [1, 1, 1, 0])
    np.testing.assert_array_equal(solve(1.5, [[0.25, 1.0, 0.25, 9.0]]), [0.25, 1, 0.25, 0])
    assert np.isnan(solve(3.1, 1.0)).all() and np.isnan(solve(-0.1, 1.0)).all() and np.isnan(solve(np.nan, 1.0)).all()
    assert np.isnan(solve(1.0, -1.0)).all() and np.isnan(solve(1.0, np.nan)).all()
    np.testing.assert_array_equal(solve(1.0, 1.0, (-np.inf,) * 4), 0)
    np.testing.assert_array_equal(solve(1.0, 0.0, (-np.inf,) * 4), 0)
    assert np.isnan(solve(1.0, 0.0)).all()


SOLVERS = {
    "softmax": lambda x: solvers.softmax_weights(x, jnp.ones((), x.dtype)),
    "sparsemax": lambda x: solvers.sparsemax_weights(x, jnp.ones((), x.dtype)),
    "tsallis": lambda x: solvers.tsallis_weights(x, jnp.ones((), x.dtype), jnp.full((), 1.3, x.dtype)),
    "steep": lambda x: solvers.tsallis_weights(x, jnp.ones((), x.dtype), jnp.full((), 3.3, x.dtype)),
    "p_norm": lambda x: solvers.p_norm_weights(x, jnp.ones((), x.dtype), jnp.full((), 1.3, x.dtype)),
    "capped": lambda x: solvers.capped_weights(Square(), x, *np.array([1, 3, 1], x.dtype)),
    "chain": lambda x: solvers.chain_prox(x, jnp.full((), 0.3, x.dtype), jnp.full((), 0.3, x.dtype))[0],
    "ranks": lambda x: solvers.sorted_prox(x, -0.05 * jnp.arange(x.shape[-1], dtype=x.dtype)[None])[0],
}

EXACT = {
    "softmax": oracles.shannon,
    "sparsemax": oracles.squared_l2,
    "tsallis": lambda x: oracles.tsallis(x, 1.3),
    "steep": lambda x: oracles.tsallis(x, 3.3),
    "p_norm": lambda x: oracles.squared_pnorm(x, 1.3),
    "capped": lambda x: oracles.capped(x, base="l2", total=3),
    "chain": lambda x: oracles.total_variation_prox(x, 0.3),
    "ranks": lambda x: oracles.owl_prox(x, -0.05 * np.arange(len(x))),
}


# --- Without 64 bits, by a symbolic length, and products ---------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_without_64_bits(name, no_x64):
    x = np.random.default_rng(4).normal(size=(4, 12)).astype(np.float32)
    y = jax.jit(SOLVERS[name])(x)
    assert y.dtype == np.float32 and np.isfinite(np.asarray(y)).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_exports_with_a_symbolic_length(name):
    (d,) = export.symbolic_shape("d", constraints=["d >= 2"])
    program = export.export(jax.jit(SOLVERS[name]))(jax.ShapeDtypeStruct((3, d), np.float64))
    x = np.random.default_rng(5).normal(size=(3, 7))
    expected = [EXACT[name](row).astype(float) for row in x]
    np.testing.assert_allclose(program.call(x), expected, rtol=0, atol=SOLVED)


def test_a_symbolic_length_that_may_be_1_is_refused_for_chains():
    (d,) = export.symbolic_shape("d")
    like = jax.ShapeDtypeStruct((3, d), np.float64)
    for function in (sm.fusedmax, sm.oscarmax, sm.soft_rank, sm.soft_sort):
        refuse(functools.partial(export.export(jax.jit(function)), like), "symbolic length d", "constraints=")


def test_a_product_by_a_kernel_has_the_derivatives_of_the_reference(monkeypatch):
    kernels = importlib.import_module("smoothmax._kernels")
    y, v = np.random.default_rng(6).dirichlet(np.ones(5), size=3), np.random.default_rng(7).normal(size=(3, 5))
    product = lambda y, v: solvers.threshold_product(y, v, jnp.asarray(1.5), jnp.asarray(2.0))
    second = lambda y, v: jax.jvp(jax.grad(lambda y: (product(y, v) ** 2).sum()), (y,), (v,))
    both = lambda: jax.jit(lambda y, v: (product(y, v), second(y, v)))(y, v)
    expected = both()
    product_of = importlib.import_module("smoothmax._solvers._products")._threshold_product
    asked = []

    def opaque(*args):
        asked.append(args)
        return jax.lax.stop_gradient(product_of(*args))

    monkeypatch.setitem(kernels.TABLE, "double", {"threshold_product": (kernels.Kernel(opaque, ("cpu",)),)})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=PULLED), both(), expected)
    assert asked
