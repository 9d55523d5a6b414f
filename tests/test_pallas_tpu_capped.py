"""The Pallas kernel for TPUs of weights with bounds and a sum, interpreted on a CPU: same numbers as the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from machines import capped_weights_of_the_oracle, kernels, scores, solved_by, spoil

from smoothmax._kernels.pallas.shared import _capped_equations

pytestmark = pytest.mark.xdist_group("pallas_tpu_capped")  # a kernel is compiled once for all tests with one shape
f32 = jnp.float32
CAPPED = kernels("tpu")["capped"]
solve = functools.partial(solved_by("tpu"), "capped")
ROWS, D = 12, 8


ALPHAS = (0.0, 1.0, 1.3, 1.5, 2.0)


def shortened(lengths, d):
    """Four rows of scores of each length, the second one with ties, in rows of d: the other positions are deleted."""
    x = np.full((4 * len(lengths), d), -np.inf, np.float32)
    for i, length in enumerate(lengths):
        x[4 * i : 4 * i + 4, :length] = scores(4, length, seed=length)
    x[1::4] = np.round(x[1::4])
    return x


def capped_problems(lengths, d, scale):
    """Scores, some of them tied and some deleted; sums; bounds, one a slice and one a position."""
    x = shortened(lengths, d) * np.float32(scale)
    x[2::4, 1::2] = -np.inf
    kept, length = (x > -np.inf).sum(-1, keepdims=True), np.repeat(lengths, 4)[:, None]
    bounds = np.random.default_rng(d).uniform(0.1, 1, size=x.shape).astype(np.float32)
    for total in (0.4 * length, 1, 0.9 * length, length, 0):
        yield x, np.minimum(total, kept).astype(np.float32), np.ones((len(x), 1), np.float32)
    room = np.where(x > -np.inf, bounds, 0).sum(-1, keepdims=True)
    for share in (0.3, 0.95):
        yield x, share * room, bounds


# Scores of 1e4 have two of them a thousandth apart, and the threshold may be behind many. A kernel fills up to whole
# registers of 128 positions, so that one program shows what it does with slices of all lengths below.
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize(("lengths", "d"), [([1], 1), ([1, 2, 5, 50], 50), ([131], 131)], ids=["1", "50", "131"])
def test_capped(lengths, d, scale):
    for x, total, upper in capped_problems(lengths, d, scale):
        for alpha in np.float32(ALPHAS):
            y = solve(x, 0.7, alpha, total, upper)
            expected = capped_weights_of_the_oracle(x, float(np.float32(0.7)), np.full_like(total, alpha), total, upper)
            np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6)
            assert (y[x == -np.inf] == 0).all()
            for row, weights in zip(x, y, strict=True):
                assert len(set(zip(row, weights, strict=True))) >= len(set(row))


@pytest.mark.parametrize("alpha", [2.5, 4.0, 10.0])
def test_capped_far_above_two(alpha):
    """A weight near 0 cannot be stored better than its power; with a sum of 1 the value is that of the simplex."""
    lengths = np.repeat([1, 2, 5, 50], 4)
    x = shortened(lengths[::4], 50)
    for totals in (np.ones(len(x)), 0.4 * lengths):
        y = solve(x, 1.0, alpha, totals[:, None], np.ones((len(x), 1))).astype(float)
        np.testing.assert_allclose(y.sum(-1), totals, rtol=3e-6, atol=0)
        for row, length, total, ours in zip(x.astype(float), lengths, totals, y, strict=True):
            assert (ours[length:] == 0).all()
            row, ours = row[:length], ours[:length]
            problem = {"base": "tsallis", "alpha": alpha}
            best = oracles.capped(row, total=total, **problem)
            value = lambda y, row=row, problem=problem: float((y * row).sum() - oracles.omega(y, **problem))
            assert value(ours) >= value(best) - 3e-6 * max(total, 1)


def test_capped_far_behind_the_largest_scores():
    """Two scores of 1e4 are full; what is left is shared as if they were not there."""
    x, others = np.full((2, ROWS, D + 2), -np.inf, np.float32)
    x[:, :2], x[:, 2:], others[:, 2:] = 1e4, scores(ROWS), scores(ROWS)
    for alpha in ALPHAS:
        y = solve(x, 1.0, alpha, 3.0, 1.0)
        np.testing.assert_array_equal(y[:, :2], 1)
        np.testing.assert_allclose(y[:, 2:], solve(others, 1.0, alpha, 1.0, 1.0)[:, 2:], rtol=0, atol=3e-6)


def test_capped_at_the_bounds():
    """None of the sum, all of it, and what lies between with gaps that leave nothing free."""
    x, bounds = scores(ROWS), np.random.default_rng(0).uniform(0.1, 1, (ROWS, D)).astype(np.float32)

    def weights(x, gamma, alpha, total, upper):
        columns = (np.broadcast_to(np.asarray(of_slices, float), (ROWS, 1)) for of_slices in (gamma, alpha, total))
        return solve(x, *columns, np.broadcast_to(upper, (ROWS, D)))

    for alpha in ALPHAS:
        np.testing.assert_array_equal(weights(x, 1.0, alpha, 0.0, bounds), 0)
        np.testing.assert_array_equal(weights(x, 1.0, alpha, D, 1.0), 1)
        eighths = np.ceil(8 * bounds) / 8
        np.testing.assert_array_equal(weights(x, 1.0, alpha, eighths.sum(-1, keepdims=True), eighths), eighths)
    fermi = ALPHAS[0]  # whose weights stay below 1 whatever the bounds are, so that no more than D can be shared
    np.testing.assert_array_equal(weights(x, 1.0, fermi, 2.5, 1.5), weights(x, 1.0, fermi, 2.5, 1.0))
    np.testing.assert_array_equal(weights(x, 1.0, fermi, D, 1.5), 1)
    assert np.isnan(weights(x, 1.0, fermi, D + 0.5, 1.5)).all()
    x = np.random.default_rng(1).permuted(np.tile(np.arange(D, dtype=np.float32), (ROWS, 1)), axis=-1)
    np.testing.assert_array_equal(weights(4 * x, 1.0, 2.0, 3.0, 1.0), x >= D - 3)
    masked = np.where(x < 2, -1e30, x)  # a mask of one's own
    np.testing.assert_array_equal(weights(masked, 0.1, 2.0, 3.0, 1.0), x >= D - 3)


def test_capped_keeps_slices_apart():
    x = scores(ROWS)
    args = [np.full((ROWS, 1), value, np.float32) for value in (1.0, 1.5, 2.0)] + [np.ones((ROWS, D), np.float32)]
    clean = solve(x, *args)
    x = spoil(x)
    gamma, alpha, total, upper = args
    gamma[4], alpha[5], total[6], upper[7, 2] = np.nan, np.nan, np.nan, np.nan
    gamma[8], alpha[9], total[10], upper[11, 0] = 0, 0.5, D + 0.5, -0.5
    y = solve(x, *args)
    np.testing.assert_array_equal(y[3], 0)
    assert (y[2, :3] == 0).all()
    np.testing.assert_allclose(y[2, 3:], solve(x[2:3, 3:], 1.0, 1.5, 2.0, 1.0)[0], rtol=0, atol=1e-6)
    assert np.isnan(np.delete(y, (2, 3), 0)).all()
    for row in (4, 8):  # its neighbours do not change it
        total[row], gamma[row] = 2.0, 1.0
    np.testing.assert_array_equal(solve(x, *args)[[4, 8]], clean[[4, 8]])


def test_capped_gives_no_answer_rather_than_a_wrong_one(monkeypatch):
    monkeypatch.setattr(_capped_equations, "_MAX_PASSES", 0)
    y = jax.jit(lambda x: CAPPED.call(x, f32(1), f32(1.5), f32(2), f32(1)))(scores(3))
    assert np.isnan(y).all()


def test_vmap_is_more_slices():
    x, total = scores(ROWS).reshape(3, -1, D), np.array([1, 2, 3], np.float32)
    upper = np.random.default_rng(0).uniform(0.5, 1, (3, 1, D)).astype(np.float32)
    mapped = jax.jit(jax.vmap(CAPPED.call, (0, None, None, 0, 0)))(x, f32(1), f32(1.5), total, upper)
    gamma, alpha, *bounds = (
        np.broadcast_to(a, (*x.shape[:-1], np.shape(a)[-1])).reshape(ROWS, -1)
        for a in ([1.0], [1.5], total[:, None, None], upper)
    )
    np.testing.assert_array_equal(mapped.reshape(ROWS, D), solve(x.reshape(ROWS, D), gamma, alpha, *bounds))
