"""The box at its ends: bounds that cannot be met, bases that end inside, scores that overflow."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import ULPS

import smoothmax as sm

X = np.random.default_rng(80).normal(size=(4, 5))


def test_bounds_that_cannot_be_met_spoil_their_slice_alone():
    """But for those of a position that is masked."""
    lower = np.zeros(X.shape)
    lower[1, 2] = lower[2, 2] = 0.6
    where = np.ones(X.shape, bool)
    where[2, 2] = False
    op = lambda upper: sm.conjugate(sm.SquaredL2(), over=sm.Box(lower, upper))
    y = jax.jit(lambda u: op(u).argmax(X, where=where))(0.5)
    np.testing.assert_array_equal(np.isnan(y), np.arange(4)[:, None] == np.full(5, 1))
    np.testing.assert_array_equal(y[2, 2], 0)
    bar = jax.jit(jax.vmap(jax.grad(lambda u, i: jnp.sum(op(u).argmax(X, where=where)[i])), (0, None)))
    spoiled, sound = bar(jnp.asarray([0.5, 0.7]), 1)
    assert np.isnan(spoiled) and np.isfinite(sound)


ENDS = {
    "shannon": (sm.Shannon(), (-1.0, -0.5), (-1.0, 0.0), "upper=-0.5"),
    "tsallis": (sm.Tsallis(1.5), (-1.0, -0.5), (-1.0, 0.0), "upper=-0.5"),
    "fermi": (sm.FermiDirac(), (1.5, 2.0), (1.0, 2.0), "lower=1.5"),
    "fermi below": (sm.FermiDirac(), (-2.0, -1.0), (-2.0, 0.0), "upper=-1.0"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_base_that_ends_outside_of_the_box(name):
    omega, outside, touching, named = ENDS[name]
    cases.refuse(lambda: sm.conjugate(omega, over=sm.Box(*outside)), named, error=ValueError)

    def both(b):
        op = sm.conjugate(omega, over=sm.Box(b[0], b[1]))
        return op.argmax(X), op.max(X)

    got = jax.jit(lambda b: (both(b), jax.vmap(both)(b[None])))(np.array(outside))
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(got))
    np.testing.assert_array_equal(sm.conjugate(omega, over=sm.Box(*touching))(X), max(touching[0], 0.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "omega", [sm.Shannon(), sm.SquaredL2(), sm.FermiDirac(), sm.Tsallis(1.2), sm.Tsallis(100.0)], ids=repr
)
def test_scores_that_overflow_are_at_a_bound(omega, dtype):
    most = np.finfo(dtype).max
    x = np.array([most / 2, -most / 2, 1.0, -1.0], dtype)
    for gamma in (1.0, dtype(1e-30)):
        y = np.asarray(sm.conjugate(gamma * omega, over=sm.Box(0.0, 1.0))(x))
        np.testing.assert_allclose(y[:2], [1, 0], rtol=0, atol=0)
        assert np.isfinite(y).all()
    # The power itself, where a bound leaves room for it.
    y = sm.conjugate(sm.Tsallis(3.0), over=sm.Box(0.0, jnp.inf))(x[:1] / 4)
    np.testing.assert_allclose(y, np.sqrt(2 * x[:1].astype(np.longdouble) / 4), rtol=64 * np.finfo(dtype).eps + ULPS)
