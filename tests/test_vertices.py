"""The capped simplex at its vertices, where no position is free: the derivatives from the two sides differ, and their
mean is taken, whoever moves. And the box where a bound is 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import DIFFERENCE, SOLVED, STEP

import smoothmax as sm

BASES = {
    "l2": sm.SquaredL2(),
    "entmax": sm.Tsallis(1.5),
    "sparsemax": sm.Tsallis(2.0),
    "steep": sm.Tsallis(3.0),
    "function": sm.separable(lambda y: y**2 + 0.1 * y**3),
}
PENALTIES = {"none": None, "chain": sm.TotalVariation(), "groups": 0.5 * sm.Oscar()}
# Two positions in, two out: all apart, and tied with each other on one side or both.
ROWS = np.array([[3.0, 2.9, 0.3, 0.1], [3.0, 3.0, 0.3, 0.1], [3.0, 2.9, 0.1, 0.1], [0.1, 3.0, 0.1, 3.0]])


def operator(base, penalty, total, upper=1.0):
    omega = BASES[base] if PENALTIES[penalty] is None else BASES[base] + PENALTIES[penalty]
    return sm.conjugate(0.1 * omega, over=sm.CappedSimplex(total, upper))


def from_both_sides(function, at):
    return (function(at + STEP) - function(at - STEP)) / (2 * STEP)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("base", BASES)
def test_derivatives_by_the_sum_are_the_mean_of_both_sides(base, penalty):
    """A step away from the vertex, derivatives are off by as much as a weight of one step moves a slope: by the square
    root of it for entmax."""
    weights = jax.jit(lambda k: operator(base, penalty, k)(ROWS))
    value = jax.jit(lambda k: operator(base, penalty, k).max(ROWS))
    np.testing.assert_array_equal(np.sort(weights(2.0)), np.tile([0, 0, 1, 1], (4, 1)))
    apart = 0.2 * STEP**0.5 if base == "entmax" else 2 * STEP + DIFFERENCE
    np.testing.assert_allclose(jax.jacrev(weights)(2.0), from_both_sides(weights, 2.0), rtol=0, atol=apart)
    np.testing.assert_allclose(jax.jacrev(value)(2.0), from_both_sides(value, 2.0), rtol=0, atol=apart)


def test_forward_mode_at_a_vertex():
    for method in ("argmax", "max"):
        reverse = lambda k: getattr(operator("l2", "chain", k), method)(ROWS)
        _, pushed = jax.jvp(sm.forward_mode(reverse), (2.0,), (1.0,))
        np.testing.assert_allclose(pushed, jax.jacrev(reverse)(2.0), rtol=SOLVED)


@pytest.mark.parametrize("total", [0.0, 4.0])
def test_at_the_ends_all_that_are_equal_move_alike(total):
    bar = jax.jacrev(lambda k: sm.soft_topk(jnp.zeros(4), k))(total)
    np.testing.assert_array_equal(bar, np.full(4, 0.25))


@pytest.mark.parametrize("base", BASES)
def test_bounds_that_differ(base):
    """The first to leave its bound is where weight gains least, not where the score is least."""
    x, upper = jnp.array([3.0, 2.94, 0.1, 0.0]), jnp.array([0.5, 1.0, 0.7, 1.0])
    weights = jax.jit(lambda k, u: operator(base, "none", k, u)(x))
    np.testing.assert_allclose(weights(1.5, upper), [0.5, 1, 0, 0])
    by_total, by_upper = jax.jacrev(weights, (0, 1))(1.5, upper)
    np.testing.assert_allclose(by_total, from_both_sides(lambda k: weights(k, upper), 1.5), rtol=0, atol=STEP**0.5)
    for i in range(4):
        moved = from_both_sides(lambda u, i=i: weights(1.5, upper.at[i].set(u)), upper[i])
        np.testing.assert_allclose(by_upper[:, i], moved, rtol=0, atol=STEP**0.5)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_a_lower_bound_of_zero(alpha):
    """The slope of an entropy at 0 is finite above alpha = 1. Below 0 there are no weights: one side alone counts."""
    x = jnp.array([3.0, -1.0, 0.2, -3.0])
    value = jax.jit(lambda lower: sm.conjugate(sm.Tsallis(alpha), over=sm.Box(lower, 1.0)).max(x))
    expected = (value(STEP) - value(0.0)) / STEP
    np.testing.assert_allclose(jax.grad(value)(0.0), expected, rtol=0, atol=4 * STEP ** min(1, alpha - 1))


@pytest.mark.parametrize("total", [1e-20, 1e-30, 1e-37])
def test_tiny_weights_have_finite_gradients(total):
    """y^(2 - alpha) is no float then."""
    x = jnp.zeros((2, 4), jnp.float32)
    mapping = sm.conjugate(sm.Tsallis(4.0), over=sm.CappedSimplex(total))
    bar = jax.jit(jax.grad(lambda x: jnp.sum(mapping(x) @ jnp.arange(4, dtype=jnp.float32))))(x)
    assert np.isfinite(bar).all() and (np.diff(bar) > 0).all()
