"""The algebra of the paper: gamma * (base + lam * penalty), its values, its equivalences, its repr."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, D
from cases.tolerances import PROMISE64, PULLED_TWICE, SOLVED, SUMS, ULPS

import smoothmax as sm

X = cases.scores(6, seed=120)


def distributions(n=10, seed=121):
    rng = np.random.default_rng(seed)
    y = rng.dirichlet(np.full(D, 0.5), size=n)
    y[0], y[1] = np.eye(D)[3], 1 / D
    y[2:5, rng.integers(0, D, 3)] = 0
    return y / y.sum(-1, keepdims=True)


@functools.cache
def compiled_omega(family):
    return jax.jit(lambda params, y: family.omega(params)(y))


@cases.each(case for case in CASES if case.family.rowwise and case.family.domain == "simplex")
def test_values_of_omega(case):
    """omega(y) against the definition, at vertices, at the centre, with zeros inside."""
    y = distributions()
    got = compiled_omega(case.family)(case.params(), y)
    assert got.shape == (len(y),)
    expected = [case.oracle_omega(row.astype(oracles.LD), **case.problem()) for row in y]
    # (sum y^alpha - 1) / (alpha - 1) loses eps / (alpha - 1) if it is written so: 1e-12 at alpha = 1.0001 refuses that
    np.testing.assert_allclose(got, np.array(expected, float), rtol=0, atol=2 * SUMS)


def test_values_of_omega_along_axes_and_with_masks():
    omega = sm.Tsallis(1.5) + 0.3 * sm.TotalVariation() + 0.1 * sm.Oscar()
    y, where = distributions(), cases.holes(10)
    y[0], where[4] = where[0], True
    y = np.where(where, y, 0)
    y /= y.sum(-1, keepdims=True)
    penalties = [
        oracles.omega(row[keep], base="l2", tv=0.3, oscar=0.1) - oracles.omega(row[keep], base="l2")
        for row, keep in zip(y, where, strict=True)
    ]
    # the textbook's formula, of distributions; everything here is of order one and rounds a few times
    expected = ((y**1.5).sum(-1) - 1) / 0.75 + np.array(penalties, float)
    got = jax.jit(omega)(np.where(where, y, np.nan), where=where)
    np.testing.assert_allclose(got, expected, rtol=0, atol=SUMS)
    by_columns, by_rows = jax.jit(lambda y: (omega(y.T, 0), omega(y)))(y)
    np.testing.assert_allclose(by_columns, by_rows, rtol=0, atol=ULPS)


def test_penalties_have_values():
    y, weights, edges = distributions(), np.linspace(1, 0, D), np.linspace(0, 1, D - 1)
    penalties = sm.TotalVariation(), sm.Oscar(), sm.OWL(weights), sm.TotalVariation(edges), 0.5 * sm.Oscar()
    variation, oscar, owl, by_edge, half = jax.jit(lambda y: [penalty(y) for penalty in penalties])(y)
    np.testing.assert_allclose(variation, np.abs(np.diff(y)).sum(-1), rtol=0, atol=ULPS)
    pairs = np.maximum(y[:, :, None], y[:, None, :])[:, *np.triu_indices(D, 1)].sum(-1)
    np.testing.assert_allclose(oscar, pairs, rtol=0, atol=SUMS)
    np.testing.assert_allclose(owl, (weights * np.sort(y)[:, ::-1]).sum(-1), rtol=0, atol=ULPS)
    np.testing.assert_allclose(by_edge, (edges * np.abs(np.diff(y))).sum(-1), rtol=0, atol=ULPS)
    np.testing.assert_allclose(half, 0.5 * pairs, rtol=0, atol=SUMS)


def test_ways_to_write_the_same():
    base, tv, oscar = sm.Tsallis(1.5), sm.TotalVariation(), sm.Oscar()
    ranks, y = np.arange(D - 1.0, -1, -1), distributions()
    pairs = (
        (2.0 * (base + 0.1 * tv), 2.0 * base + 0.2 * tv),
        (base + 0.1 * tv, 0.1 * tv + base),
        (2.0 * (base + 0.1 * tv), (base + tv * 0.1) * 2.0),
        (2 * (0.5 * (base + tv)), base + tv),
        (base + tv + tv, base + 2.0 * tv),
        (base + 0.1 * tv + 0.2 * oscar + 0.3 * tv, base + 0.4 * tv + 0.2 * oscar),
        (base + (0.1 * tv + 0.2 * oscar), (base + 0.2 * oscar) + 0.1 * tv),
        (base + 0.1 * tv, base + sm.TotalVariation(np.full(D - 1, 0.1))),
        (base + 0.1 * oscar, base + 0.1 * sm.OWL(ranks)),
        (base + 0.0 * tv, base),
    )
    values = jax.jit(lambda y: [(one(y), other(y)) for one, other in pairs])(y)
    for (one, other), (value, expected) in zip(pairs, values, strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=SOLVED, err_msg=f"{one} and {other}")


def test_penalties_of_one_kind_add_up():
    """The solutions, too: sums of chain weights and of rank weights, multiplied out, against the oracle."""
    omega = 2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation() + sm.TotalVariation(np.linspace(0, 0.3, D - 1)))
    omega = omega + 0.04 * sm.Oscar() + 0.2 * sm.OWL(np.linspace(1, 0, D))
    op = jax.jit(lambda x: (sm.conjugate(omega).argmax(x), sm.conjugate(omega).max(x)))
    problem = {"base": "tsallis", "alpha": 1.5, "gamma": 2.0, "edges": 0.1 + np.linspace(0, 0.3, D - 1)}
    problem["weights"] = 0.02 * np.arange(D - 1.0, -1, -1) + 0.1 * np.linspace(1, 0, D)
    y, value = op(X)
    expected, best = oracles.rows(X, **problem)
    np.testing.assert_allclose(y, expected.astype(float), rtol=0, atol=PROMISE64)
    np.testing.assert_allclose(value, best.astype(float), rtol=0, atol=10 * PROMISE64)  # weights times scores


def test_families_meet():
    """Tsallis(1) is Shannon, Tsallis(2) and SquaredPNorm(2) are SquaredL2, up to a constant."""
    y = distributions()
    bases = sm.Shannon(), sm.SquaredL2(), sm.Tsallis(1.0), sm.Tsallis(2.0), sm.SquaredPNorm(2.0)

    @jax.jit
    def solved(x, y):
        solutions = [(sm.conjugate(base)(x), sm.conjugate(base).max(x), base(y)) for base in bases]
        return solutions, jax.nn.softmax(x), jax.nn.logsumexp(x, -1)

    (shannon, l2, *others), softmax, logsumexp = jax.tree.map(np.asarray, solved(X, y))
    for one, other, constant in zip(others, (shannon, l2, l2), (0.0, -0.5, 0.0), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=0, atol=SOLVED)
        np.testing.assert_allclose(one[1], other[1] - constant, rtol=0, atol=SOLVED)
        np.testing.assert_allclose(one[2], other[2] + constant, rtol=0, atol=SUMS)
    np.testing.assert_allclose(shannon[0], softmax, rtol=0, atol=SUMS)
    np.testing.assert_allclose(shannon[1], logsumexp, rtol=0, atol=SOLVED)


def test_operators_are_the_fenchel_conjugate():
    """max(x) = <x, y> - omega(y) at y = argmax(x), and is above it at every other distribution."""
    omega = 1.5 * (sm.Tsallis(1.3) + 0.2 * sm.TotalVariation())
    op = sm.conjugate(omega)
    y, best, omega = np.asarray(op.argmax(X)), np.asarray(op.max(X)), jax.jit(omega)
    np.testing.assert_allclose(best, (X * y).sum(-1) - np.asarray(omega(y)), rtol=0, atol=SOLVED)
    others = distributions(50)
    bound = X @ others.T - np.asarray(omega(others))
    assert (best[:, None] >= bound - SOLVED).all()


def test_repr_shows_the_expression():
    omega = 2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation())
    for shown in (repr(omega), repr(sm.conjugate(omega))):
        for word in ("2.0", "Tsallis", "1.5", "0.1", "TotalVariation"):
            assert word in shown
    assert eval(repr(omega), vars(sm)) == omega


def test_operators_in_conjugate_are_differentiable_in_leaves():
    op = sm.conjugate(2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation()))
    gradient = jax.grad(lambda op: jnp.sum(op.max(X)))(op)
    assert jax.tree.structure(gradient) == jax.tree.structure(op)
    y = np.asarray(op(X))
    tv = np.abs(np.diff(y)).sum()
    by_hand = {
        "gamma": -sum(float(oracles.omega(r, base="tsallis", alpha=1.5, tv=0.1)) for r in y),
        "lam": -2 * tv,
    }
    leaves = [float(leaf) for leaf in jax.tree.leaves(gradient)]
    for value in by_hand.values():
        assert min(abs(leaf - value) for leaf in leaves) < PULLED_TWICE


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), jnp.float32(2)])
def test_any_number_is_a_strength(number):
    np.testing.assert_allclose(sm.conjugate(number * sm.SquaredL2())(X), sm.sparsemax(X, gamma=2.0), rtol=0, atol=SUMS)
    np.testing.assert_allclose(sm.conjugate(sm.SquaredL2() * number)(X), sm.sparsemax(X, gamma=2.0), rtol=0, atol=SUMS)
