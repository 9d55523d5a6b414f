"""The oracles against each other, against certificates and against a conic solver."""

import itertools

import numpy as np
import oracles
import pytest
import scipy.optimize

BASES = [
    {"base": "shannon"},
    {"base": "l2"},
    *({"base": "tsallis", "alpha": a} for a in (1.0, 1.0001, 1.2, 1.5, 1.7, 2.0, 2.5, 4.0)),
    *({"base": "pnorm", "p": p} for p in (1.1, 1.5, 2.0)),
]
PENALTIES = {
    "none": {},
    "tv": {"tv": 0.3},
    "edges": {"tv": 0.5, "edges": np.array([0.1, 0.8, 0.0, 0.4, 1.0])},
    "oscar": {"oscar": 0.07},
    "owl": {"owl": 0.5, "weights": np.array([0.9, 0.7, 0.2, 0.2, 0.1, -0.3])},
    "tv+oscar": {"tv": 0.15, "oscar": 0.05},
    "edges+owl": {"edges": np.array([0.1, 0.3, 0.0, 0.2, 0.1]), "weights": np.array([0.5, 0.4, 0.2, 0.1, 0.0, 0.0])},
}


def name(problem):
    return "-".join(str(v) for v in problem.values())


@pytest.mark.parametrize("problem", BASES, ids=name)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_entropies_satisfy_their_optimality_conditions(problem, gamma):
    rng = np.random.default_rng(0)
    for d, scale in itertools.product((1, 2, 7, 500), (1e-3, 1.0, 30.0)):
        x = rng.normal(size=d) * scale
        y = oracles.argmax(x, gamma=gamma, **problem)
        # The certificate is in units of the scores; long double has 1e-19, amplified by y^(alpha-1) at
        # small y when alpha is far above 2 and by 1/(alpha - 1) below.
        assert oracles.entropy_residual(y, x, gamma=gamma, **problem) < 1e-13 * max(scale, 1)


def test_entropies_agree_where_families_meet():
    rng = np.random.default_rng(1)
    for d in (1, 3, 40):
        x = rng.normal(size=d) * 2
        l2 = oracles.squared_l2(x, 0.7)
        np.testing.assert_allclose(oracles.tsallis(x, 2, 0.7), l2, atol=1e-18)
        np.testing.assert_allclose(oracles.squared_pnorm(x, 2, 0.7), l2, atol=1e-17)
        softmax = oracles.shannon(x, 0.7)
        # linear in alpha - 1: the distance at 1e-7 is about 1e-7
        np.testing.assert_allclose(oracles.tsallis(x, 1 + 1e-7, 0.7), softmax, atol=1e-6)


def test_total_variation_against_bounded_least_squares():
    rng = np.random.default_rng(2)
    for d, strength in itertools.product((2, 5, 12), (0.0, 0.1, 1.0, 10.0)):
        x, edges = rng.normal(size=d), strength * rng.uniform(size=d - 1)
        y = oracles.total_variation_prox(x, edges)
        assert oracles.total_variation_residual(y, x, edges) < 1e-15
        if strength:
            difference = np.diff(np.eye(d), axis=0)
            dual = scipy.optimize.lsq_linear(difference.T, x, bounds=(-edges, edges), method="bvls", tol=1e-15)
            # an active-set method in float64: exact up to rounding
            np.testing.assert_allclose(y.astype(float), x - difference.T @ dual.x, atol=1e-12)


def test_total_variation_of_long_tied_and_constant_sequences():
    rng = np.random.default_rng(3)
    long = rng.normal(size=3000)
    assert oracles.total_variation_residual(oracles.total_variation_prox(long, 0.7), long, 0.7) < 1e-14
    ties = rng.integers(0, 3, size=200).astype(float)
    assert oracles.total_variation_residual(oracles.total_variation_prox(ties, 0.5), ties, 0.5) < 1e-15
    np.testing.assert_array_equal(oracles.total_variation_prox(np.full(5, 3.0), 1.0), 3.0)
    np.testing.assert_allclose(oracles.total_variation_prox(long, 1e4), long.mean(), atol=1e-15)


def test_residuals_notice_a_wrong_answer():
    x = np.array([3.0, 1.0, 2.0, -1.0])
    y = oracles.total_variation_prox(x, 0.3)
    assert oracles.total_variation_residual(y + np.array([0, 1e-6, -1e-6, 0]), x, 0.3) > 1e-7
    weights = np.array([0.5, 0.4, 0.2, 0.0])
    y = oracles.owl_prox(x, weights)
    assert oracles.owl_residual(y, x, weights) < 1e-17
    assert oracles.owl_residual(y + np.array([1e-6, 0, -1e-6, 0]), x, weights) > 1e-7
    x = x / 10  # everything in the support
    y = oracles.squared_pnorm(x, 1.5)
    assert (y > 1e-3).all() and oracles.entropy_residual(y, x, base="pnorm", p=1.5) < 1e-17
    assert oracles.entropy_residual(y + np.array([1e-6, 0, -1e-6, 0]), x, base="pnorm", p=1.5) > 1e-7


def test_isotonic_against_the_minimax_formula():
    rng = np.random.default_rng(4)
    for d in (1, 2, 9, 30):
        x, w = rng.integers(-3, 4, size=d).astype(float), rng.uniform(0.1, 2, size=d)
        mean = lambda a, b: (w[a : b + 1] @ x[a : b + 1]) / w[a : b + 1].sum()
        # non-increasing: y_i = min over a <= i of max over b >= i of the mean of [a, b]
        expected = [min(max(mean(a, b) for b in range(i, d)) for a in range(i + 1)) for i in range(d)]
        np.testing.assert_allclose(oracles.isotonic(x, w).astype(float), expected, atol=1e-13)


def test_owl_prox_satisfies_its_optimality_conditions():
    rng = np.random.default_rng(5)
    for d, strength in itertools.product((1, 2, 8, 60), (0.0, 0.05, 1.0)):
        x = rng.normal(size=d)
        for weights in (strength * oracles.oscar_weights(d), strength * np.sort(rng.normal(size=d))[::-1]):
            assert oracles.owl_residual(oracles.owl_prox(x, weights), x, weights) < 1e-15


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("base", BASES, ids=name)
def test_composition_theorem_against_the_conic_solver(base, penalty):
    """Prox, then base: for every base with every penalty, straight from the definition."""
    rng = np.random.default_rng(6)
    for gamma, scale in ((0.5, 1.0), (2.0, 3.0)):
        problem = base | PENALTIES[penalty] | {"gamma": gamma}
        x = rng.normal(size=6) * scale
        if problem["base"] == "tsallis" and problem["alpha"] == 1.0001:
            continue  # no rational exponent of a power cone comes near; the certificate covers it
        y, value = oracles.conic(x, **problem)
        ours = oracles.argmax(x, **problem)
        # An interior-point method at gap 1e-10: up to 5e-10 in the value and 5e-6 in y were seen.
        assert abs(float(oracles.value(x, **problem)) - value) < 5e-9
        np.testing.assert_allclose(ours.astype(float), y, atol=3e-5)
        # and ours is at least as good as the solver's point, evaluated by the definition
        feasible = np.maximum(y, 0) / np.maximum(y, 0).sum()
        theirs = x @ feasible - oracles.omega(feasible, **problem)
        assert oracles.value(x, **problem) >= theirs - 1e-14


def test_absolute_values_in_oscar_would_be_wrong():
    """Sorting by |x|, as the reference implementation does, fails the conic solver on negative scores."""
    x = np.array([-0.8, -1.3, -0.2, 0.4, 1.1, 0.1])
    y, _ = oracles.conic(x, base="l2", oscar=0.2)
    np.testing.assert_allclose(oracles.argmax(x, base="l2", oscar=0.2).astype(float), y, atol=3e-5)
    order = np.argsort(-np.abs(x))
    signed = np.empty(6)
    signed[order] = np.maximum(oracles.isotonic(np.abs(x)[order] - 0.2 * oracles.oscar_weights(6)), 0)
    assert np.abs(oracles.squared_l2(np.sign(x) * signed) - y).max() > 0.05


def test_order_of_the_two_proxes_matters():
    rng = np.random.default_rng(7)
    worst = 0.0
    for _ in range(20):
        x = rng.normal(size=6)
        weights = 0.2 * oracles.oscar_weights(6)
        swapped = oracles.total_variation_prox(oracles.owl_prox(x, weights), 0.3)
        right = oracles.owl_prox(oracles.total_variation_prox(x, 0.3), weights)
        worst = max(worst, np.abs(right - swapped).max())
    assert worst > 1e-2


def test_deletion_rules():
    problem = {"edges": np.array([3.0, 1.0, 2.0, 5.0]), "weights": np.array([9.0, 8.0, 7.0, 6.0, 5.0])}
    left = oracles.delete(problem, [True, False, False, True, True])
    np.testing.assert_array_equal(left["edges"], [1.0, 5.0])
    np.testing.assert_array_equal(left["weights"], [9.0, 8.0, 7.0])


def test_separable_and_quadratic():
    rng = np.random.default_rng(8)
    for d in (1, 2, 6):
        x = rng.normal(size=d)
        np.testing.assert_allclose(oracles.separable(x, lambda t: 0.5 * t), oracles.squared_l2(x, 0.5), atol=1e-15)
        y, value = oracles.quadratic(x, 0.5 * np.eye(d), np.zeros(d))
        np.testing.assert_allclose(y, oracles.squared_l2(x, 0.5).astype(float), atol=1e-13)
        np.testing.assert_allclose(value, float(oracles.value(x, base="l2", gamma=0.5)), atol=1e-13)


def test_derivatives_of_the_oracle():
    f = lambda t: np.exp(2 * t)
    # rounding 1e-19 / 1e-5; one-sided: truncation h^4 f5 / 5 = 1e-14
    np.testing.assert_allclose(float(oracles.derivative(f, 0.3)), float(2 * f(np.longdouble(0.3))), atol=1e-13)
    np.testing.assert_allclose(float(oracles.derivative(f, 0.3, side="right")), 2 * np.exp(0.6), atol=1e-12)
