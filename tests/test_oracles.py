"""The oracles against each other, against certificates and against a conic solver."""

import decimal
import itertools

import numpy as np
import oracles
import pytest
import scipy.optimize
from cases.tolerances import CONIC, CONIC_VALUE, LONG_ULPS, PULLED, SOLVED, SUMS, ULPS

BASES = [
    {"base": "shannon"},
    {"base": "l2"},
    {"base": "fermi"},
    *({"base": "tsallis", "alpha": a} for a in (1.0, 1.0001, 1.2, 1.5, 1.7, 2.0, 2.5, 4.0)),
    *({"base": "pnorm", "p": p} for p in (1.1, 1.5, 2.0)),
]
STEEP = [
    *({"base": "tsallis", "alpha": a} for a in (8.0, 25.0, 40.0, 100.0)),
    *({"base": "pnorm", "p": p} for p in (1.001, 1.02)),
]
DOMAINS = {
    "simplex": {},
    "capped": {"over": "capped", "total": 3.0},
    "capped-low": {"over": "capped", "total": 1.0, "upper": 0.3},
    "capped-bounds": {"over": "capped", "total": 1.7, "upper": np.array([0.2, 1.0, 0.0, 0.7, 0.5, 2.0])},
    "box": {"over": "box"},
    "box-bounds": {"over": "box", "lower": np.array([0, 0.1, 0, 0.2, 0, 0.3]), "upper": np.linspace(0.3, 0.8, 6)},
}
PENALTIES = {
    "none": {},
    "tv": {"tv": 0.3},
    "edges": {"tv": 0.5, "edges": np.array([0.1, 0.8, 0.0, 0.4, 1.0])},
    "oscar": {"oscar": 0.07},
    "owl": {"owl": 0.5, "weights": np.array([0.9, 0.7, 0.2, 0.2, 0.1, -0.3])},
    "tv+oscar": {"tv": 0.15, "oscar": 0.05},
    "edges+owl": {"edges": np.array([0.1, 0.3, 0.0, 0.2, 0.1]), "weights": np.array([0.5, 0.4, 0.2, 0.1, 0.0, 0.0])},
}


# Residuals of entropies are in units of the scores; long double rounds by 5e-20, amplified by y^(alpha-1) at small y
# when alpha is far above 2 and by 1/(alpha - 1) below. Those of proxes are sums of hundreds of scores.
RESIDUAL, PROX_RESIDUAL = 1e-13, 1e-15


def name(problem):
    return "-".join(str(v) for v in problem.values())


def hostile(d, seed=0):
    """Scores of all scales, with ties, with neighbours one float64 apart, at offsets, with extremes."""
    rng = np.random.default_rng(seed)
    for scale in (1e-3, 0.03, 1.0, 30.0):
        x = rng.normal(size=d) * scale
        yield x
        yield np.round(x / scale) * scale
        yield np.where(np.arange(d) % 2, np.nextafter(x[0], 9), x[0]) + 0 * x
        yield x + 1e8
    yield np.zeros(d)
    yield np.where(np.arange(d) == d // 2, 1e300, 0.0)
    yield np.where(np.arange(d) == d // 2, -1e300, 0.0)


@pytest.mark.parametrize("problem", BASES + STEEP, ids=name)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_entropies_satisfy_their_optimality_conditions(problem, gamma):
    for d in (1, 2, 7, 200):
        for x in hostile(d):
            y = oracles.argmax(x, gamma=gamma, **problem)
            assert oracles.residual(y, x, gamma=gamma, **problem) < RESIDUAL * max(np.abs(x).max(), 1)


@pytest.mark.parametrize("domain", [key for key in DOMAINS if key != "simplex"])
@pytest.mark.parametrize("problem", [b for b in BASES + STEEP[:4] if b["base"] != "pnorm"], ids=name)
def test_entropies_satisfy_their_optimality_conditions_over_every_domain(problem, domain):
    problem = problem | DOMAINS[domain]
    free = 0
    for gamma, x in itertools.product((0.5, 2.0), hostile(6)):
        y = oracles.argmax(x, gamma=gamma, **problem)
        assert oracles.residual(y, x, gamma=gamma, **problem) < RESIDUAL * max(np.abs(x).max(), 1)
        free += ((y > 0) & (y < problem.get("upper", 1.0))).any()
    assert free >= 5, "positions within their bounds must be tested"


def test_the_simplex_is_a_capped_simplex():
    for x, problem in itertools.product(hostile(9), ({"base": "shannon"}, {"base": "l2"})):
        expected = oracles.argmax(x, gamma=0.7, **problem)
        # an upper bound just above 1 takes the shortcuts of the simplex away
        got = oracles.capped(x, gamma=0.7, total=1, upper=1 + 1e-9, **problem)
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=LONG_ULPS * max(1, np.abs(x).max() if np.ptp(x) < 1e9 else 1)
        )


@pytest.mark.parametrize(("alpha", "least"), [(20, 0.01), (40, 0.03), (40, 0.2), (100, 0.1), (100, 0.3)])
def test_steep_entropies_against_decimal_numbers(alpha, least):
    """A threshold so near to a score that no float can store it: 200 digits can. The optimality conditions do not see
    a wrong share here (0.4^99 and 0.03^99 are both nothing), only the sum does."""
    x = np.array([0.0, -((1 - 2 * least) ** (alpha - 1)) / (alpha - 1)])[[0, 1, 1]]  # about (1 - 2 least, least, least)
    digits = 40 - int((alpha - 1) * np.log10(least))
    with decimal.localcontext(prec=digits):
        numbers, a = [decimal.Decimal(float(v)) for v in x], decimal.Decimal(alpha - 1)
        weights = lambda e: [(a * (v - min(numbers) + e)) ** (1 / a) for v in numbers]
        low, high = decimal.Decimal(0), decimal.Decimal(1)
        for _ in range(int(digits * 3.4)):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(weights(middle)) < 1 else (low, middle)
        expected = [float(w) for w in weights(high)]
    assert abs(expected[1] - least) < 0.05
    # the scores are float64 numbers in both, and the roundings those of long double
    np.testing.assert_allclose(oracles.tsallis(x, alpha).astype(float), expected, rtol=0, atol=ULPS)


def test_fillings_at_the_ends():
    x = np.array([0.3, -1.0, 2.0, 0.0])
    for base in ("shannon", "l2", "fermi"):
        np.testing.assert_array_equal(oracles.capped(x, base=base, total=4), 1)
        np.testing.assert_array_equal(oracles.capped(x, base=base, total=0), 0)
        np.testing.assert_array_equal(oracles.capped(x, base=base, total=1, upper=0.25), 0.25)
        for impossible in ({"total": 4.1}, {"total": -0.1}, {"total": 1, "upper": 0.2}, {"total": np.nan}):
            assert np.isnan(oracles.capped(x, base=base, **impossible)).all()
            assert oracles.infeasible(4, over="capped", base=base, **impossible)
        assert np.isnan(oracles.box(x, base=base, lower=0.6, upper=0.5)).all()
    # Fermi-Dirac never exceeds 1, whatever the bound
    assert oracles.capped(x, base="fermi", total=3.5, upper=9).max() < 1
    np.testing.assert_array_equal(oracles.capped(x, base="fermi", total=4, upper=9), 1)


def test_box_is_the_inverse_of_the_derivative():
    x = np.array([-3.0, -0.2, 0.1, 0.4, 2.0])
    wide = {"lower": 0.0, "upper": 100.0}
    np.testing.assert_allclose(oracles.box(x, base="shannon", **wide), np.exp(x - 1), rtol=ULPS)
    np.testing.assert_allclose(oracles.box(x, base="fermi", **wide), 1 / (1 + np.exp(-x)), rtol=ULPS)
    np.testing.assert_array_equal(oracles.box(x, base="l2", lower=-1, upper=1), np.clip(x, -1, 1))
    np.testing.assert_allclose(
        oracles.box(x, base="tsallis", alpha=2, **wide), np.maximum(x + oracles.LD(0.5), 0), rtol=0, atol=LONG_ULPS
    )
    near = oracles.box(x, base="tsallis", alpha=1 + 1e-7, **wide)
    np.testing.assert_allclose(near, np.exp(x - 1), rtol=1e-6)  # linear in alpha - 1


def test_entropies_agree_where_families_meet():
    rng = np.random.default_rng(1)
    for d in (1, 3, 40):
        x = rng.normal(size=d) * 2
        l2 = oracles.squared_l2(x, 0.7)
        np.testing.assert_allclose(oracles.tsallis(x, 2, 0.7), l2, rtol=0, atol=LONG_ULPS)
        np.testing.assert_allclose(oracles.squared_pnorm(x, 2, 0.7), l2, rtol=0, atol=10 * LONG_ULPS)
        softmax = oracles.shannon(x, 0.7)
        # linear in alpha - 1: the distance at 1e-7 is about 1e-7
        np.testing.assert_allclose(oracles.tsallis(x, 1 + 1e-7, 0.7), softmax, rtol=0, atol=1e-6)


def test_total_variation_against_bounded_least_squares():
    rng = np.random.default_rng(2)
    for d, strength in itertools.product((2, 5, 12), (0.0, 0.1, 1.0, 10.0)):
        x, edges = rng.normal(size=d), strength * rng.uniform(size=d - 1)
        y = oracles.total_variation_prox(x, edges)
        assert oracles.total_variation_residual(y, x, edges) < PROX_RESIDUAL
        if strength:
            difference = np.diff(np.eye(d), axis=0)
            dual = scipy.optimize.lsq_linear(difference.T, x, bounds=(-edges, edges), method="bvls", tol=1e-15)
            # an active-set method in float64: exact up to rounding
            np.testing.assert_allclose(y.astype(float), x - difference.T @ dual.x, rtol=0, atol=SOLVED)


def test_total_variation_of_long_tied_and_constant_sequences():
    rng = np.random.default_rng(3)
    long = rng.normal(size=3000)
    assert oracles.total_variation_residual(oracles.total_variation_prox(long, 0.7), long, 0.7) < 10 * PROX_RESIDUAL
    ties = rng.integers(0, 3, size=200).astype(float)
    assert oracles.total_variation_residual(oracles.total_variation_prox(ties, 0.5), ties, 0.5) < PROX_RESIDUAL
    np.testing.assert_array_equal(oracles.total_variation_prox(np.full(5, 3.0), 1.0), 3.0)
    np.testing.assert_allclose(oracles.total_variation_prox(long, 1e4), long.mean(), rtol=0, atol=ULPS)


def test_residuals_notice_a_wrong_answer():
    x = np.array([3.0, 1.0, 2.0, -1.0])
    y = oracles.total_variation_prox(x, 0.3)
    assert oracles.total_variation_residual(y + np.array([0, 1e-6, -1e-6, 0]), x, 0.3) > 1e-7
    weights = np.array([0.5, 0.4, 0.2, 0.0])
    y = oracles.owl_prox(x, weights)
    assert oracles.owl_residual(y, x, weights) < 10 * LONG_ULPS
    assert oracles.owl_residual(y + np.array([1e-6, 0, -1e-6, 0]), x, weights) > 1e-7
    x = x / 10  # everything in the support
    y = oracles.squared_pnorm(x, 1.5)
    assert (y > 1e-3).all() and oracles.entropy_residual(y, x, base="pnorm", p=1.5) < 10 * LONG_ULPS
    assert oracles.entropy_residual(y + np.array([1e-6, 0, -1e-6, 0]), x, base="pnorm", p=1.5) > 1e-7


def test_isotonic_against_the_minimax_formula():
    rng = np.random.default_rng(4)
    for d in (1, 2, 9, 30):
        x, w = rng.integers(-3, 4, size=d).astype(float), rng.uniform(0.1, 2, size=d)
        mean = lambda a, b: (w[a : b + 1] @ x[a : b + 1]) / w[a : b + 1].sum()
        # non-increasing: y_i = min over a <= i of max over b >= i of the mean of [a, b]
        expected = [min(max(mean(a, b) for b in range(i, d)) for a in range(i + 1)) for i in range(d)]
        np.testing.assert_allclose(oracles.isotonic(x, w).astype(float), expected, rtol=0, atol=SOLVED)


def test_owl_prox_satisfies_its_optimality_conditions():
    rng = np.random.default_rng(5)
    for d, strength in itertools.product((1, 2, 8, 60), (0.0, 0.05, 1.0)):
        x = rng.normal(size=d)
        for weights in (strength * oracles.oscar_weights(d), strength * np.sort(rng.normal(size=d))[::-1]):
            assert oracles.owl_residual(oracles.owl_prox(x, weights), x, weights) < PROX_RESIDUAL


def agree(x, problem):
    y, value = oracles.conic(x, **problem)
    ours = oracles.argmax(x, **problem)
    # two entropies in one objective, Fermi and Dirac's, leave 7e-9 in the value
    assert abs(float(oracles.value(x, **problem)) - value) < (2e-8 if problem["base"] == "fermi" else CONIC_VALUE)
    np.testing.assert_allclose(ours.astype(float), y, rtol=0, atol=CONIC)
    return y


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
        y = agree(x, problem)
        # and ours is at least as good as the solver's point, evaluated by the definition
        feasible = np.maximum(y, 0) / np.maximum(y, 0).sum()
        theirs = x @ feasible - oracles.omega(feasible, **problem)
        assert oracles.value(x, **problem) >= theirs - SUMS


@pytest.mark.parametrize(
    ("domain", "penalty"),
    [
        *itertools.product(("capped", "capped-low", "box"), ("none", "tv", "edges", "oscar", "owl", "tv+oscar")),
        ("capped-bounds", "none"),  # bounds that differ by position serve bases alone
        ("box-bounds", "none"),
    ],
)
@pytest.mark.parametrize("base", [b for b in BASES if b.get("alpha", 1.5) == 1.5 and b["base"] != "pnorm"], ids=name)
def test_composition_theorem_over_every_domain(base, penalty, domain):
    """Clipping is one more increasing function of every coordinate, if all positions have the same bounds."""
    rng = np.random.default_rng(9)
    for gamma, scale in ((0.5, 0.5), (1.0, 2.0)):
        agree(rng.normal(size=6) * scale, base | PENALTIES[penalty] | DOMAINS[domain] | {"gamma": gamma})


def test_composition_with_bounds_that_differ_by_position_would_be_wrong():
    rng = np.random.default_rng(10)
    problem = {"base": "l2", "tv": 0.3} | DOMAINS["capped-bounds"]
    worst = 0.0
    for _ in range(5):
        x = rng.normal(size=6)
        worst = max(worst, np.abs(oracles.argmax(x, **problem).astype(float) - oracles.conic(x, **problem)[0]).max())
    assert worst > 1e-2


def test_permutahedron():
    rng = np.random.default_rng(11)
    for d, gamma, scale in itertools.product((1, 2, 6, 200), (0.1, 1.0, 10.0), (0.1, 3.0)):
        x = rng.normal(size=d) * scale
        for scores, vertex in (
            (x, np.arange(1.0, d + 1)),
            (np.arange(1.0, d + 1), x),
            (np.round(x), np.round(rng.normal(size=d))),
        ):
            y = oracles.permutahedron(scores, vertex, gamma)
            size = max(1, np.abs(scores).max() / gamma, np.abs(vertex).max()) ** 2 * d  # of the products in it
            assert oracles.permutahedron_residual(y, scores, vertex, gamma) < LONG_ULPS * size
            if d == 6:
                agree(scores, {"base": "l2", "over": "permutahedron", "vertex": vertex, "gamma": gamma})
    wrong = oracles.permutahedron(x, np.arange(1.0, d + 1)) + np.where(np.arange(d) == 3, 1e-6, -1e-6 / (d - 1))
    assert oracles.permutahedron_residual(wrong, x, np.arange(1.0, d + 1)) > 1e-7


def test_soft_ranks_and_sorts_become_hard():
    x = np.array([0.3, -1.0, 2.0, 0.0])
    for descending, ranks, ordered in (
        (False, [3, 1, 4, 2], [-1.0, 0.0, 0.3, 2.0]),
        (True, [2, 4, 1, 3], [2.0, 0.3, 0.0, -1.0]),
    ):
        np.testing.assert_array_equal(oracles.soft_rank(x, 1e-3, descending).astype(float).round(12), ranks)
        np.testing.assert_allclose(oracles.soft_sort(x, 1e-3, descending).astype(float), ordered, rtol=0, atol=ULPS)
        # and with all strength they are the mean, up to scores and ranks over 1e9
        np.testing.assert_allclose(oracles.soft_rank(x, 1e9, descending).astype(float), 2.5, rtol=0, atol=1e-8)
        np.testing.assert_allclose(oracles.soft_sort(x, 1e9, descending).astype(float), x.mean(), rtol=0, atol=1e-8)


def test_absolute_values_in_oscar_would_be_wrong():
    """Sorting by |x|, as the reference implementation does, fails the conic solver on negative scores."""
    x = np.array([-0.8, -1.3, -0.2, 0.4, 1.1, 0.1])
    y, _ = oracles.conic(x, base="l2", oscar=0.2)
    np.testing.assert_allclose(oracles.argmax(x, base="l2", oscar=0.2).astype(float), y, rtol=0, atol=CONIC)
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
    problem |= {"vertex": np.arange(5.0), "upper": np.arange(5.0) / 5, "lower": 0.0, "total": 2.0}
    left = oracles.delete(problem, [True, False, False, True, True])
    np.testing.assert_array_equal(left["edges"], [1.0, 5.0])
    np.testing.assert_array_equal(left["weights"], [9.0, 8.0, 7.0])
    np.testing.assert_array_equal(left["vertex"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(left["upper"], [0.0, 0.6, 0.8])
    assert (left["lower"], left["total"]) == (0.0, 2.0)


def test_masked_slices_by_domain():
    x, keep = np.array([0.3, np.nan, 2.0, 0.0]), np.array([True, False, True, True])
    y = oracles.masked(x, keep, base="l2", over="capped", total=2)[0]
    assert y[1] == 0 and y.sum() == 2  # the same total over the rest
    y = oracles.masked(x, keep, base="l2", over="capped", total=3.5)[0]
    assert y[1] == 0 and np.isnan(y[keep]).all()  # which may be too much for it
    y = oracles.masked(x, keep, base="l2", over="box", lower=0.2)[0]
    np.testing.assert_array_equal(y.astype(float), [0.3, 0, 1, 0.2])  # zero is outside the bounds
    y = oracles.masked(x, keep, base="l2", over="permutahedron", vertex=np.arange(1.0, 5), gamma=1e-3)[0]
    np.testing.assert_allclose(y.astype(float), [2, 0, 3, 1], rtol=0, atol=ULPS)  # ranks count what is allowed
    nothing = np.zeros(4, bool)
    for domain in DOMAINS.values():
        if np.ndim(domain.get("upper", 1)) == 0:
            y, value = oracles.masked(x, nothing, base="l2", **domain)
            assert (y == 0).all() and value == -np.inf


def test_separable_and_quadratic():
    rng = np.random.default_rng(8)
    for d in (1, 2, 6):
        x = rng.normal(size=d)
        halves = oracles.separable(x, lambda v: v / oracles.LD(0.5))
        np.testing.assert_allclose(halves, oracles.squared_l2(x, 0.5), rtol=0, atol=LONG_ULPS)
        entropies = oracles.separable(x, lambda v: np.exp(v - 1), kink=False)
        np.testing.assert_allclose(entropies, oracles.shannon(x), rtol=0, atol=LONG_ULPS)
        y, value = oracles.quadratic(x, 0.5 * np.eye(d), np.zeros(d))
        np.testing.assert_allclose(y, oracles.squared_l2(x, 0.5).astype(float), rtol=0, atol=SOLVED)
        np.testing.assert_allclose(value, float(oracles.value(x, base="l2", gamma=0.5)), rtol=0, atol=SOLVED)


def test_derivatives_by_bounds_and_totals():
    """The formulas for a capped simplex: dy/dk = s / sum s, dy/du_i = e_i - s / sum s."""
    x = np.array([0.9, 0.3, 0.2, 0.1, -2.0])
    problem = {"base": "tsallis", "alpha": 1.5, "over": "capped", "total": 1.9, "upper": np.full(5, 0.8)}
    y = oracles.argmax(x, **problem)
    free = (y > 0) & (y < 0.8)
    assert (y == 0.8).sum() == 1 and free.sum() == 3
    s = np.where(free, y**0.5, 0)
    along = oracles.differences(lambda **problem: oracles.argmax(x, **problem), problem, "total")
    np.testing.assert_allclose(along.astype(float), (s / s.sum()).astype(float), rtol=0, atol=PULLED)
    along = oracles.differences(lambda **problem: oracles.argmax(x, **problem), problem, "upper")
    expected = (np.eye(5)[0] - s / s.sum()).astype(float)
    np.testing.assert_allclose(along[:, 0].astype(float), expected, rtol=0, atol=PULLED)
    np.testing.assert_array_equal(along[:, 1:].astype(float).round(12), 0)


def test_derivatives_of_the_oracle():
    f = lambda t: np.exp(2 * t)
    # rounding 1e-19 / 1e-5; one-sided: truncation h^4 f5 / 5 = 1e-14
    np.testing.assert_allclose(float(oracles.derivative(f, 0.3)), float(2 * f(np.longdouble(0.3))), rtol=0, atol=SOLVED)
    np.testing.assert_allclose(float(oracles.derivative(f, 0.3, side="right")), 2 * np.exp(0.6), rtol=0, atol=PULLED)
