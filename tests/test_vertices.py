"""The capped simplex at its vertices, where no position is free: the derivatives from the two sides differ, and their
mean is taken, whoever moves. And the box where a bound is 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import DIFFERENCE, SOLVED, STEP

import smoothmax as sm

FUNCTION = sm.separable(lambda y: y**2 + 0.1 * y**3)
ENTROPIES = {"l2": lambda alpha: sm.SquaredL2(), "tsallis": sm.Tsallis, "function": lambda alpha: FUNCTION}
# entropy and alpha: numbers are operands, so those that differ in alpha alone share what is compiled
BASES = {
    "l2": ("l2", 2.0),
    "entmax": ("tsallis", 1.5),
    "sparsemax": ("tsallis", 2.0),
    "steep": ("tsallis", 3.0),
    "function": ("function", 2.0),
}
PENALTIES = {"none": None, "chain": sm.TotalVariation(), "groups": 0.5 * sm.Oscar()}
# Two positions in, two out: all apart, and tied with each other on one side or both.
ROWS = np.array([[3.0, 2.9, 0.3, 0.1], [3.0, 3.0, 0.3, 0.1], [3.0, 2.9, 0.1, 0.1], [0.1, 3.0, 0.1, 3.0]])


def operator(entropy, alpha, penalty, total, upper=1.0):
    omega = ENTROPIES[entropy](alpha)
    omega = omega if PENALTIES[penalty] is None else omega + PENALTIES[penalty]
    return sm.conjugate(0.1 * omega, over=sm.CappedSimplex(total, upper))


@functools.cache
def pulled(entropy, penalty):
    """Compiled weights and values of slices with a total each, and what comes of (v, c) in the totals."""

    def both(alpha, total, x):
        op = operator(entropy, alpha, penalty, total)
        return op(x), op.max(x)

    def program(alpha, total, x, v, c):
        outputs, pull = jax.vjp(lambda total: both(alpha, total, x), total)
        return outputs, pull((v, c))[0]

    return jax.jit(program)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("base", BASES)
def test_derivatives_by_the_sum_are_the_mean_of_both_sides(base, penalty):
    """A step away from the vertex, derivatives are off by as much as a weight of one step moves a slope: by the square
    root of it for entmax."""
    entropy, alpha = BASES[base]
    v, c = np.split(np.eye(5), [4], axis=1)  # of each slice: four weights, and the value
    totals = 2.0 + STEP * np.array([0, -1, 1])[:, None, None, None]
    totals, x, v, c = (np.broadcast_to(a, (3, 4, 5, a.shape[-1])) for a in (totals, ROWS[:, None], v, c))
    (y, value), slope = jax.tree.map(np.asarray, pulled(entropy, penalty)(alpha, totals, x, v, c[..., 0]))
    np.testing.assert_array_equal(np.sort(y[0]), np.broadcast_to([0, 0, 1, 1], (4, 5, 4)))
    _, behind, ahead = np.concatenate([y[:, :, 0], value[:, :, :1]], -1)
    apart = 0.2 * STEP**0.5 if base == "entmax" else 2 * STEP + DIFFERENCE
    np.testing.assert_allclose(slope[0, ..., 0], (ahead - behind) / (2 * STEP), rtol=0, atol=apart)


def test_forward_mode_at_a_vertex():
    @jax.jit
    def pushed_and_pulled(k):
        both = lambda k: [getattr(operator("l2", 2.0, "chain", k), method)(ROWS) for method in ("argmax", "max")]
        return jax.jvp(sm.forward_mode(both), (k,), (1.0,))[1], jax.jacrev(both)(k)

    for pushed, pulled in zip(*pushed_and_pulled(2.0), strict=True):
        np.testing.assert_allclose(pushed, pulled, rtol=SOLVED)


def at_each(function, *points, by):
    """What a function gives at each of the points, and its derivatives by some of its arguments there."""

    def twice(*args):
        outputs = function(*args)
        return outputs, outputs

    slopes, outputs = jax.jit(jax.vmap(jax.jacrev(twice, by, has_aux=True)))(*points)
    return jax.tree.map(np.asarray, (outputs, slopes))


def test_at_the_ends_all_that_are_equal_move_alike():
    _, bars = at_each(lambda k: sm.soft_topk(np.zeros(4), k), np.array([0.0, 4.0]), by=0)
    np.testing.assert_array_equal(bars, np.full((2, 4), 0.25))


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_bounds_that_differ(entropy):
    """The first to leave its bound is where weight gains least, not where the score is least."""
    x, upper = np.array([3.0, 3.02, 0.1, 0.0]), np.array([0.5, 1.0, 0.7, 1.0])
    alphas = [alpha for name, alpha in BASES.values() if name == entropy]
    steps = STEP * np.tile(np.concatenate([np.zeros((1, 5)), np.eye(5), -np.eye(5)]), (len(alphas), 1))
    points = np.repeat(alphas, 11), 1.5 + steps[:, 0], upper + steps[:, 1:]
    weights, slopes = at_each(lambda alpha, k, u: operator(entropy, alpha, "none", k, u)(x), *points, by=(1, 2))
    weights, by_total, by_upper = (a.reshape(len(alphas), 11, *a.shape[1:]) for a in (weights, *slopes))
    for y, of_total, of_upper in zip(weights, by_total, by_upper, strict=True):
        np.testing.assert_allclose(y[0], [0.5, 1, 0, 0])
        expected = (y[1:6] - y[6:]).T / (2 * STEP)
        np.testing.assert_allclose(of_total[0], expected[:, 0], rtol=0, atol=STEP**0.5)
        np.testing.assert_allclose(of_upper[0], expected[:, 1:], rtol=0, atol=STEP**0.5)


def test_a_lower_bound_of_zero():
    """The slope of an entropy at 0 is finite above alpha = 1. Below 0 there are no weights: one side alone counts."""
    x, alphas = np.array([3.0, -1.0, 0.2, -3.0]), (1.5, 2.0, 3.0)
    value = lambda alpha, lower: sm.conjugate(sm.Tsallis(alpha), over=sm.Box(lower, 1.0)).max(x)
    values, slopes = at_each(value, np.repeat(alphas, 2), np.tile([0, STEP], 3), by=1)
    for alpha, (here, ahead), (slope, _) in zip(alphas, values.reshape(3, 2), slopes.reshape(3, 2), strict=True):
        np.testing.assert_allclose(slope, (ahead - here) / STEP, rtol=0, atol=4 * STEP ** min(1, alpha - 1))


def test_tiny_weights_have_finite_gradients():
    """y^(2 - alpha) is no float then."""
    x = np.zeros((2, 4), np.float32)
    mapping = lambda x, total: sm.conjugate(sm.Tsallis(4.0), over=sm.CappedSimplex(total))(x)
    slope = jax.jit(jax.grad(lambda x, total: jnp.sum(mapping(x, total) @ np.arange(4, dtype=np.float32))))
    for total in (1e-20, 1e-30, 1e-37):
        bar = slope(x, np.float32(total))
        assert np.isfinite(bar).all() and (np.diff(bar) > 0).all()
