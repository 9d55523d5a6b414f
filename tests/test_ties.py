"""Ties are fair: equal scores get equal weights, and the Jacobian is symmetric there too."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import B, D
from cases.tolerances import FUNCTION64, PULLED, SOLVED, ULPS

import smoothmax as sm


def tied_scores(seed=40):
    """Small integers (exact ties everywhere) times powers of two; row 0 is constant."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=(B, D)) * np.exp2(rng.integers(-4, 2, size=(B, 1)))
    x[0] = 0.75
    return x


@cases.each()
def test_equal_scores_get_equal_weights(case):
    x = tied_scores()
    y, value = case.expected(x)
    result = cases.run(case, x)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=case.tol)
    np.testing.assert_allclose(result.value, value, rtol=0, atol=case.tol)
    if case.shifts and np.ndim(case.params().get("upper", 0)) == 0:  # scores of no preference
        np.testing.assert_allclose(result.y[0], case.sums(np.ones((1, D), bool))[0] / D, rtol=0, atol=ULPS * D)
    if not case.has_chain:
        same = x[:, :, None] == x[:, None, :]
        gap = np.abs(result.y[:, :, None] - result.y[:, None, :])
        assert gap[same].max() <= (1e-9 if case.plain else 0)  # rounding, over the slopes of a plain function


@cases.each(
    case
    for case in cases.FAMILIES
    if case.family.domain in ("simplex", "capped") and np.ndim(case.params().get("upper", 1)) == 0
)
def test_scores_of_no_preference(case):
    """Whatever the hyper-parameters, all get the same. There a bracket of thresholds has no width but its rounding."""
    rng = np.random.default_rng(43)
    for _ in range(10):
        drawn = case.drawn(rng, B)
        x = np.broadcast_to(rng.normal(size=(B, 1)), (B, D))
        y = cases.run(case, x, params=drawn).y
        share, upper = drawn.get("total", np.ones(B)) / D, drawn.get("upper", np.ones(B))
        share = np.where(share <= upper, share, np.nan)  # an empty domain
        np.testing.assert_allclose(y, np.broadcast_to(share[:, None], y.shape), rtol=0, atol=FUNCTION64)


@cases.each()
def test_jacobian_is_lawful_at_ties(case):
    x = tied_scores(41)[:12]
    for half in (x[:6], x[6:]):
        for jacobian in cases.jacobians(case, half):
            size = max(1, np.abs(jacobian).max())
            tol = FUNCTION64 if case.plain else PULLED
            np.testing.assert_allclose(jacobian, jacobian.T, rtol=0, atol=tol * size)
            if case.shifts:
                np.testing.assert_allclose(jacobian.sum(1), 0, rtol=0, atol=tol * size)
            assert np.linalg.eigvalsh((jacobian + jacobian.T) / 2).min() >= -tol * size


@cases.each(case for case in cases.FAMILIES if case.family.penalties)
def test_fused_and_grouped_positions_have_exactly_equal_weights(case):
    """Groups that the penalty makes are groups to the last bit, in float32 too."""
    x = cases.scores(seed=42)
    y, _ = case.expected(x)
    got, _ = cases.in_float32(case, x)
    tied = np.abs(y[:, :, None] - y[:, None, :]) < ULPS
    if case.has_chain:  # equal neighbours, not equal weights far apart
        tied &= np.abs(np.subtract.outer(np.arange(D), np.arange(D))) == 1
    assert tied[:, ~np.eye(D, dtype=bool)].any()
    gap = np.abs(got[:, :, None] - got[:, None, :])
    assert gap[tied].max() == 0


def equal_in_part():
    """Three slices, and factors of what comes of them."""
    rng = np.random.default_rng(44)
    x = np.repeat(np.linspace(0.05, 0.2, 3), [2, 4, D - 6])[None] + np.zeros((3, 1))
    x[1], x[2] = 0.1, rng.permutation(x[2])
    return x, rng.normal(size=x.shape)


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize(
    ("penalty", "over"),
    [
        (lambda lam: lam * sm.TotalVariation(), sm.Simplex()),
        (lambda lam: sm.TotalVariation(lam * jnp.ones((1, D - 1))), sm.Simplex()),
        (lambda lam: lam * sm.Oscar(), sm.Simplex()),
        (lambda lam: sm.OWL(jnp.where(np.arange(D)[None] < 2, lam, 0.0)), sm.Simplex()),
        (lambda lam: lam * sm.TotalVariation(), sm.Box()),
    ],
    ids=["tv", "edges", "oscar", "owl", "tv/box"],
)
def test_strengths_that_grow_from_zero_part_no_ties(penalty, over, implementation):
    """At 0, equal scores move apart with the scores, not with the strength: its derivative is that from above."""
    x, c = equal_in_part()

    def f(lam):
        return jnp.sum(c * sm.conjugate(sm.SquaredL2() + penalty(lam), over, implementation=implementation)(x), axis=-1)

    @jax.jit
    def with_derivatives(lam):
        ones = jnp.ones_like(lam)
        products, pull = jax.vjp(f, lam)
        return products, pull(ones[:, 0])[0], jax.jvp(sm.forward_mode(f), (lam,), (ones,))[1]

    step = 1e-5  # weights are linear in the strength as long as no ties come or go
    ahead, _, _ = with_derivatives(np.full((3, 1), step))
    here, pulled, pushed = map(np.asarray, with_derivatives(np.zeros((3, 1))))
    expected = (np.asarray(ahead) - here) / step
    assert np.any(np.abs(expected) > 0.01)
    np.testing.assert_allclose(pulled[:, 0], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(pushed, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("implementation", ["xla", None])
def test_a_strength_that_slices_share_parts_no_ties(implementation):
    """As above, of one number for all slices."""
    x, c = equal_in_part()

    @jax.jit
    def with_slope(lam):
        omega = lambda lam: sm.SquaredL2() + lam * sm.TotalVariation()
        f = lambda lam: jnp.sum(c * sm.conjugate(omega(lam), implementation=implementation)(x), axis=-1)
        return f(lam), jax.jacrev(f)(lam)

    step = 1e-5
    (here, slope), (ahead, _) = with_slope(0.0), with_slope(step)
    np.testing.assert_allclose(slope, (np.asarray(ahead) - here) / step, rtol=0, atol=1e-9)
    assert np.any(np.abs(slope) > 0.01)


@pytest.mark.parametrize("implementation", ["xla", None])
def test_equal_strengths_inside_of_a_pool_keep_ties(implementation):
    """Scores that are equal where the strengths of their ranks are: a group with the next one all the same."""
    mapping = sm.conjugate(sm.SquaredL2() + sm.OWL(np.array([0.5, 0.5, 0.0])), implementation=implementation)
    x, run = np.array([0.5, 0.5, 0.45]), jax.jit(lambda x: (mapping(x), jax.jacrev(mapping)(x)))
    y, jacobian = run(x)
    np.testing.assert_allclose(y, 1 / 3, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(jacobian, 0, rtol=0, atol=SOLVED)
