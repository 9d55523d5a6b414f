"""Weights and values against the oracles: every operator, float64 to float16, every width and scale."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, FAMILIES, REPRESENTATIVES, B, D
from cases.tolerances import FUNCTION32, OBJECTIVE, PROMISE32, PROMISE64, PULLED, SUMS
from jax.extend.core import Literal

HALVES = (jnp.float16, jnp.bfloat16)


def float32_tolerance(case, y=1.0):
    """Of the largest weight."""
    return (FUNCTION32 if case.plain else PROMISE32) * max(1, np.abs(y).max())


def assert_sums(case, y, atol, params=None):
    sums = case.sums(np.ones(y.shape, bool), params)
    if sums is not None:
        np.testing.assert_allclose(np.asarray(y, float).sum(-1), sums, rtol=0, atol=atol * max(1, np.abs(y).max()))


@cases.each()
def test_float64(case):
    x = cases.scores()
    y, value = case.expected(x)
    result = cases.run(case, x)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=case.tol)
    np.testing.assert_allclose(result.value, value, rtol=0, atol=case.tol * np.abs(x).max())
    assert_sums(case, result.y, SUMS)
    if case.shifts:
        assert (result.y > 0).all(-1).any() or (y < 0).any(), "no dense support was tested"
    if case.sparse:
        assert (result.y >= 0).all()
        assert (result.y == 0).any(-1).any(), "no sparse support was tested"
        assert (result.y[y == 0] == 0).all(), "off the support there are zeros, not small numbers"


@cases.each()
def test_float32(case):
    x = cases.scores(dtype=np.float32, seed=1) / np.float32(3)  # of order one
    y, value = case.expected(x)
    got, got_value = cases.in_float32(case, x)
    assert got.dtype == got_value.dtype == np.float32
    tol = float32_tolerance(case, y)
    np.testing.assert_allclose(got, y, rtol=0, atol=tol)
    # the value is a sum of D products of weights and scores, and of Omega
    np.testing.assert_allclose(got_value, value, rtol=0, atol=tol * max(1, np.abs(x).max(), np.abs(value).max()))
    assert_sums(case, got, 1e-6)  # D weights round by 6e-8 each


def equations(jaxpr):
    """What a program does, programs inside of it included: each primitive with its parameters and types."""
    for equation in jaxpr.eqns:
        inside = [leaf for leaf in jax.tree.leaves(list(equation.params.values())) if hasattr(leaf, "eqns")]
        if inside:
            for program in inside:
                yield from equations(program)
        else:
            types = [str(v) if isinstance(v, Literal) else str(v.aval) for v in equation.invars]
            yield equation.primitive.name, str(equation.params), types, [str(v.aval) for v in equation.outvars]


@cases.each(REPRESENTATIVES)
def test_half_precision_is_computed_in_float32(case):
    """Between the conversions of scores and results stands the program of float32, whose numbers have laws here."""
    x = cases.scores(seed=2)
    programs = {
        dtype: list(equations(jax.make_jaxpr(cases.forward(case.family))(case.params(), x.astype(dtype), None).jaxpr))
        for dtype in (np.float32, *HALVES)
    }
    for dtype in HALVES:
        name = f"{np.dtype(dtype)}["
        converts = lambda equation: any(word.startswith(name) for word in equation[2] + equation[3])
        conversions = [equation for equation in programs[dtype] if converts(equation)]
        assert [primitive for primitive, *_ in conversions] == ["convert_element_type"] * 4
        between = [equation for equation in programs[dtype] if not converts(equation)]
        assert between == programs[np.float32]


@cases.each(cases.BY_ID[id] for id in ("sparsemax-gamma1.0", "entmax1.5", "l2+tv"))
def test_half_precision_rounds_once(case):
    x = (cases.scores(seed=2) / 2).astype(jnp.bfloat16)
    y, value = case.expected(x.astype(float))
    got, got_value = map(np.asarray, cases.forward(case.family)(case.params(), x, None))
    assert got.dtype == got_value.dtype == jnp.bfloat16
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    tol = float32_tolerance(case, y)
    # rounding the float32 result once: half an ulp, eps / 2, of the result
    np.testing.assert_array_less(np.abs(got.astype(float) - y), 0.51 * eps * np.abs(y) + tol)
    np.testing.assert_array_less(np.abs(got_value.astype(float) - value), 0.51 * eps * np.abs(value) + 3 * tol)


def wide(case, d):
    """Rows of width d from dense to sparse, and hyper-parameters of that width."""
    params = case.params(d)
    x = np.random.default_rng(d).normal(size=(4, d)) * np.array([[1e-5], [0.05], [1.0], [5.0]])
    return x, params


@cases.each(REPRESENTATIVES)
@pytest.mark.parametrize("d", [1, cases.WIDE])
def test_narrow_and_wide_slices(case, d):
    x, params = wide(case, d)
    y, value = case.expected(x, params=params)
    got, got_value = cases.forward(case.family)(params, x, None)
    np.testing.assert_allclose(got, y, rtol=0, atol=case.tol * max(1, np.abs(y).max()))
    np.testing.assert_allclose(got_value, value, rtol=0, atol=case.tol * max(1, np.abs(x).max(), np.abs(value).max()))
    if d == 1:
        assert_sums(case, got, 0, params)
    elif case.shifts:
        assert (np.asarray(got) > 0).all(-1).any() or (y < 0).any(), "no dense support was tested"


@cases.each(
    c
    for c in CASES
    if c.family.domain in ("simplex", "capped") and not c.family.penalties and not c.plain and c.id != "cubic/capped"
)
def test_many_small_weights_beside_large_ones(case, d=2000):
    """Next to the border of the support, where what rounding a threshold or a sum leaves over counts d times."""
    params = {k: np.float32(p) for k, p in case.params(d).items()}
    exact = {k: p.astype(float) for k, p in params.items()}
    x = cases.next_to_the_border(case, exact, d, 12)
    y, value = case.expected(x.astype(float), params=exact)
    got, got_value = (np.asarray(v, float) for v in cases.forward(case.family)(params, x, None))
    np.testing.assert_allclose(got.sum(-1), y.sum(-1), rtol=0, atol=PROMISE32 * y.sum(-1).max())
    np.testing.assert_allclose(got_value, value, rtol=0, atol=PROMISE32 * max(1, np.abs(value).max()))
    if case.alpha > 2:  # infinitely steep there
        attained = [case.attained(row, weights, np.ones(d, bool), exact) for row, weights in zip(x, got, strict=True)]
        np.testing.assert_array_less(value - attained, OBJECTIVE[np.float32])
    else:
        np.testing.assert_allclose(got, y, rtol=0, atol=float32_tolerance(case, y))
    assert ((y > 0) & (y < 1e-3)).sum(-1).max() > d / 2, "there were no small weights"


@pytest.mark.parametrize("id", ["l2+tv", "l2+oscar", "pnorm+edges"])
def test_ten_thousand_positions_in_float32(id, d=10_000):
    case = cases.BY_ID[id]
    x, params = wide(case, d)
    x = x[1:3].astype(np.float32)
    y, _ = case.expected(x, params=params)
    got, _ = cases.forward(case.family)(params, x, None)
    np.testing.assert_allclose(got, y, rtol=0, atol=PROMISE32)


@cases.each()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_scaling_scores_and_strength_together_changes_nothing(case, scale):
    """Relative accuracy: Pi at (s x, s gamma) is Pi at (x, gamma), and the value is s times the value."""
    x32 = (cases.scores(seed=3) / 3 * scale).astype(np.float32)
    x = x32.astype(float)  # one answer of the oracle for both dtypes
    params = {k: v * scale if cases.HYPER[k].strength else v for k, v in case.params().items()}
    y, value = case.expected(x, params=params)
    result = cases.run(case, x, params=params)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=case.tol)
    # a value is a sum of D products, which may be larger: of weights with scores of size 3, and their logarithms
    np.testing.assert_allclose(result.value, value, rtol=PULLED, atol=case.tol * scale * 3)
    got, got_value = cases.in_float32(case, x32, params)
    tol = float32_tolerance(case, y)
    np.testing.assert_allclose(got, y, rtol=0, atol=tol)
    np.testing.assert_allclose(got_value, value, rtol=0, atol=3 * tol * max(scale, np.abs(value).max()))  # as above


@cases.each()
@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e4])
def test_large_and_small_scores_at_a_fixed_strength(case, scale):
    x32 = (np.random.default_rng(4).normal(size=(B, D)) * scale).astype(np.float32)
    x = x32.astype(float)  # as above
    y, value = case.expected(x)
    result = cases.run(case, x)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=case.tol)
    np.testing.assert_allclose(result.value, value, rtol=PULLED, atol=case.tol)  # a sum of D products, as above
    got, got_value = cases.in_float32(case, x32)
    # Differences of scores near the maximum are exact in floating point; means within segments round like the scores
    # themselves, where the domain lets even the lowest have weight.
    blurred = case.family.penalties and case.family.domain != "simplex"
    tol = float32_tolerance(case, y) * (max(1, scale) if blurred else 1)
    np.testing.assert_allclose(got, y, rtol=0, atol=tol)
    # a sum rounds like its terms, which cancel where ranks weigh scores of both signs: two ulp of float32
    terms = 2.4e-7 * np.abs(x * y).sum(-1) if case.family.domain in ("ranks", "permutahedron") else 0
    gap = np.abs(np.asarray(got_value, float) - value)
    np.testing.assert_array_less(gap, PROMISE32 * np.abs(value) + (PROMISE32 if tol < FUNCTION32 else tol) + terms)


@cases.each(case for case in CASES if case.family.domain == "simplex")
@pytest.mark.parametrize("low", [-1e4, -1e9, -1e38])
def test_scores_far_below_cost_the_others_no_digit(case, low):
    """As where a large negative number stands for a mask: it takes no weight, however large."""
    low = max(low, -1e9) if case.plain else low  # a function's slopes are compared with the spread of the scores
    x = cases.scores(seed=8, dtype=np.float32)
    far = np.random.default_rng(9).uniform(size=x.shape) < 0.3
    far[:, 0] = False
    y, _ = case.expected(np.where(far, -1e4, x))
    got, _ = cases.in_float32(case, np.where(far, np.float32(low), x))
    np.testing.assert_allclose(got, y, rtol=0, atol=float32_tolerance(case))
    assert (got[far] == 0).all()


@cases.each(case for case in FAMILIES if "edges" in case.values)
def test_zero_and_missing_edges(case):
    """Edges of weight zero separate the chain; edges that outweigh all scores join it."""
    params = case.params() | {"edges": np.array([0.0, 5e3, 0.3, 0.0, 0.0, 1e4, 0.1])}
    x = cases.scores(seed=6)
    y, value = case.expected(x, params=params)
    result = cases.run(case, x, params=params)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=PROMISE64)
    np.testing.assert_allclose(result.value, value, rtol=0, atol=10 * PROMISE64)  # weights times scores of order ten
    assert (result.y[:, 1] == result.y[:, 2]).all() and (result.y[:, 5] == result.y[:, 6]).all()


def test_integers_become_floats(no_x64):
    case = cases.BY_ID["sparsemax-gamma1.0"]
    got = case.family.weights(np.array([[3, 2, 2, -1]]), {})
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [[1, 0, 0, 0]])
    got = case.family.weights(np.array([[3, 2, 2, -1]]), {"gamma": 2.0})
    np.testing.assert_allclose(got, [[2 / 3, 1 / 6, 1 / 6, 0]], rtol=0, atol=1e-7)  # float32 rounds by 6e-8


@pytest.mark.parametrize("key", cases.NAMED, ids=lambda key: cases.NAMED[key].name)
def test_default_hyper_parameters(key):
    """The defaults of the signatures: alpha 1.5, p 1.5, lam 0.1 and 0.01, gamma 1."""
    named, (base, penalties, domain, names) = cases.NAMED[key], key
    case = next(c for c in CASES if (c.family.base, c.family.penalties, c.family.domain) == (base, penalties, domain))
    given = {name: case.params()[name] for name in names if name not in ("gamma", *named.defaults)}
    x = cases.scores(6, seed=7)
    y, value = case.expected(x, params=given | named.defaults)
    np.testing.assert_allclose(named(x, **given), y, rtol=0, atol=PROMISE64)
    if named.has_value:
        np.testing.assert_allclose(named(x, suffix="_value", **given), value, rtol=0, atol=PROMISE64)
