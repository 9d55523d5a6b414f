"""The native kernels, one by one: against the oracles and the reference, on hostile input, over threads."""

import functools

import jax
import numpy as np
import oracles
import pytest
from cases import reference
from cases.tolerances import OBJECTIVE, PROMISE

import smoothmax as sm
from smoothmax._kernels import native
from smoothmax._kernels.native import _calls

needs_library = pytest.mark.skipif(native.LIBRARY.reason is not None, reason=str(native.LIBRARY.reason))
pytestmark = [needs_library, pytest.mark.xdist_group("native")]
P = jax.sharding.PartitionSpec

DTYPES = pytest.mark.parametrize("dtype", PROMISE)
# Shorter and longer than a vector of every instruction set, and no multiple of one.
LENGTHS = (1, 2, 5, 50, 131)
call = {problem: jax.jit(functools.partial(_calls.call, problem)) for problem in _calls.HANDLERS}


def scores(seed, d, dtype, scale=1.0, offset=0.0, rows=3):
    return (np.random.default_rng(seed).normal(size=(rows, d)) * scale + offset).astype(dtype)


def rounding(dtype):
    """Both round: the sums over a slice, and the offset."""
    return 20 * np.finfo(dtype).eps


def exact(value, dtype):
    """The number that the kernel sees."""
    return oracles.LD(dtype(value))


# Values.


@DTYPES
@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-6, 1.0001, 1.01, 1.3, 1.5, 1.9, 2.0])
def test_threshold(dtype, alpha):
    for d in (*LENGTHS, 256, 257):  # the widest rows that are solved side by side, and the narrowest that are not
        for scale, offset in ((0.01, 0), (1, 0), (1, 1e5), (30, 0)):
            x = scores(d, d, dtype, scale, offset)
            y = np.asarray(call["threshold"](x, dtype(0.7), dtype(alpha)))
            for ours, row in zip(y, x, strict=True):
                expected = oracles.tsallis(row, exact(alpha, dtype), exact(0.7, dtype))
                np.testing.assert_allclose(ours, expected, atol=PROMISE[dtype], rtol=0)


@DTYPES
@pytest.mark.parametrize("d", [1, 50, 256, 257])
def test_rows_do_not_depend_on_their_neighbours(dtype, d):
    """Rows with one alpha are solved side by side, in whatever order and number they come."""
    rng = np.random.default_rng(d)
    x = (rng.normal(size=(37, d)) * 10 ** rng.uniform(-2, 4, size=(37, 1))).astype(dtype)
    x[3, -1], x[5, 0], x[7], x[9] = np.nan, np.inf, -np.inf, 1
    x[11, ::2] = -np.inf
    alpha = rng.choice(np.asarray([1.0, 1.3, 1.5, 2.0, 3.0], dtype), size=(37, 1))
    gamma = np.exp(rng.normal(size=(37, 1))).astype(dtype)
    gamma[13] = np.nan
    together = np.asarray(call["threshold"](x, gamma, alpha))
    assert np.isnan(together[[3, 5, 13]]).all() and (together[7] == 0).all()
    for rows in (rng.permutation(37), np.arange(37)[::-1], *(np.arange(i, i + 1) for i in range(37))):
        np.testing.assert_array_equal(call["threshold"](x[rows], gamma[rows], alpha[rows]), together[rows])


@DTYPES
@pytest.mark.parametrize("above", [1e-15, 1e-13, 1e-11, 2e-7])
def test_threshold_next_to_softmax(dtype, above):
    """The weights differ from softmax by about (alpha - 1) z^2 y / 2."""
    for d in LENGTHS:
        x = scores(d, d, dtype)
        y = np.asarray(call["threshold"](x, dtype(0.7), dtype(1) + dtype(above)))
        expected = np.stack([oracles.tsallis(row, exact(1, dtype), exact(0.7, dtype)) for row in x])
        np.testing.assert_allclose(y, expected, atol=PROMISE[dtype] + 50 * above, rtol=0)


@DTYPES
@pytest.mark.parametrize("alpha", [2.001, 3.0, 10.0, 40.0, 100.0, 300.0])
def test_threshold_of_concave_powers(dtype, alpha):
    """Here weights are ill-conditioned, so their objective is compared, and their sum."""
    for d in LENGTHS:
        for scale in (0.001, 0.03, 1, 30):
            x = scores(d, d, dtype, scale)
            y = np.asarray(call["threshold"](x, dtype(0.7), dtype(alpha))).astype(oracles.LD)
            np.testing.assert_allclose(y.sum(-1), 1, atol=OBJECTIVE[dtype], rtol=0)
            problem = {"base": "tsallis", "alpha": exact(alpha, dtype), "gamma": exact(0.7, dtype)}
            for ours, row in zip(y, x, strict=True):
                reached = (ours * row).sum() - oracles.omega(ours / ours.sum(), **problem)
                assert reached >= oracles.value(row, **problem) - OBJECTIVE[dtype] * max(1, abs(row).max())


@DTYPES
@pytest.mark.parametrize("p", [1 + 2**-20, 1.001, 1.1, 1.5, 1.9, 2.0])
def test_p_norm(dtype, p):
    for d in LENGTHS:
        for scale in (0.01, 1, 30):
            x = scores(d, d, dtype, scale)
            y = np.asarray(call["p_norm"](x, dtype(0.7), dtype(p)))
            for ours, row in zip(y, x, strict=True):
                expected = oracles.squared_pnorm(row, exact(p, dtype), exact(0.7, dtype))
                np.testing.assert_allclose(ours, expected, atol=PROMISE[dtype], rtol=0)


CAPPED = {
    0.0: {"base": "fermi"},
    1.0: {"base": "shannon"},
    1.3: {"base": "tsallis"},
    1.5: {"base": "tsallis"},
    2.0: {"base": "l2"},
}


@DTYPES
@pytest.mark.parametrize("alpha", CAPPED)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_capped(dtype, alpha, scale):
    problem = dict(CAPPED[alpha])
    if problem["base"] == "tsallis":
        problem["alpha"] = exact(alpha, dtype)
    for d in LENGTHS:
        bounds = np.random.default_rng(d).uniform(0.1, 1, size=(3, d)).astype(dtype)
        for total, upper in ((0.4 * d, 1.0), (1.0, 1.0), (0.9 * d, 1.0), (0.3 * bounds.sum(), bounds)):
            upper = np.full((3, 1), upper, dtype) if np.ndim(upper) == 0 else upper
            total = np.minimum(
                np.full((3, 1), total, dtype), (0.9 * np.broadcast_to(upper, (3, d)).sum(-1, keepdims=True))
            )
            x, total = scores(d, d, dtype, scale), total.astype(dtype)
            y = np.asarray(call["capped"](x, dtype(0.7), dtype(alpha), total, upper))
            for i, row in enumerate(x):
                expected = oracles.capped(
                    row,
                    total=oracles.LD(total[i, 0]),
                    upper=upper[i].astype(oracles.LD),
                    gamma=exact(0.7, dtype),
                    **problem,
                )
                np.testing.assert_allclose(y[i], expected, atol=PROMISE[dtype], rtol=0)


@DTYPES
@pytest.mark.parametrize("alpha", [3.0, 10.0])
def test_capped_by_one_is_the_simplex(dtype, alpha):
    for d in LENGTHS:
        x = scores(d, d, dtype)
        one = dtype(1)
        y = np.asarray(call["capped"](x, one, dtype(alpha), one, one)).astype(oracles.LD)
        np.testing.assert_allclose(y.sum(-1), 1, atol=OBJECTIVE[dtype], rtol=0)
        problem = {"base": "tsallis", "alpha": exact(alpha, dtype)}
        for ours, row in zip(y, x, strict=True):
            reached = (ours * row).sum() - oracles.omega(ours / ours.sum(), **problem)
            assert reached >= oracles.value(row, **problem) - OBJECTIVE[dtype]


def deleted(x, seed):
    return np.where(np.random.default_rng(seed).uniform(size=x.shape) < 0.4, -np.inf, x).astype(x.dtype)


CHAINS = ["plain", "tied", "deleted", "tied and deleted", "isotonic", "by border", "offset"]


def chain_problem(kind, d, dtype, rows=8):
    rng = np.random.default_rng(d)
    x = scores(d, d, dtype, rows=rows)
    if "tied" in kind:
        x = np.round(x * 2) / 2
    if "deleted" in kind:
        x = deleted(x, d)
    if kind == "offset":
        x = x + dtype(1e5)
    if kind == "isotonic":
        return x, np.full((rows, 1), np.inf, dtype), np.zeros((rows, 1), dtype)
    if kind == "by border":
        return x, *(rng.choice([0.1, 0.5, np.inf], size=(rows, d - 1)).astype(dtype) for _ in range(2))
    strength = rng.choice([0.1, 0.5, 3], size=(rows, 1)).astype(dtype)
    return x, strength, strength


@DTYPES
@pytest.mark.parametrize("kind", CHAINS)
def test_chain(dtype, kind):
    for d in (2, 9, 60):
        x, up, down = chain_problem(kind, d, dtype)
        t, jumps = map(np.asarray, call["chain"](x, up, down))
        by_border = (np.broadcast_to(strength, (len(x), d - 1)) for strength in (up, down))
        expected, expected_jumps = map(np.asarray, reference["chain_prox"](x, *by_border))
        size = np.abs(x[np.isfinite(x)]).max()
        np.testing.assert_allclose(t, expected, atol=rounding(dtype) * size, rtol=0)
        np.testing.assert_array_equal(jumps, expected_jumps)


@DTYPES
def test_chain_against_the_oracle(dtype):
    x = scores(0, 700, dtype)
    for strength in (0.0, 0.3, 5.0, 1e6):
        t, jumps = call["chain"](x, dtype(strength), dtype(strength))
        expected = np.stack([oracles.total_variation_prox(row, exact(strength, dtype)) for row in x])
        np.testing.assert_allclose(t, expected, atol=PROMISE[dtype], rtol=0)
        assert np.all(np.sign(np.diff(t)) == np.asarray(jumps)[:, :-1])


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "tied", "deleted", "tied and deleted"])
def test_ranks(dtype, kind):
    for d in (1, 7, 60):
        x, *_ = chain_problem(kind, d + 1, dtype)
        x = x[:, :d]
        weights = -np.sort(-np.random.default_rng(d).integers(0, 4, size=x.shape), axis=-1).astype(dtype) / 8
        t, order, ties = map(np.asarray, call["ranks"](x, weights))
        expected, _, expected_ties = map(np.asarray, reference["sorted_prox"](x, weights))
        np.testing.assert_allclose(t, expected, atol=rounding(dtype), rtol=0)
        np.testing.assert_array_equal(ties, expected_ties)
        np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(d), x.shape))
        assert np.all(np.diff(np.where(np.isinf(x), -99, x)[np.arange(len(x))[:, None], order]) <= 0)


@DTYPES
def test_products(dtype):
    x, v = scores(1, 50, dtype), scores(2, 50, dtype)
    for alpha in (1.0, 1.5, 2.0, 1.3, 3.0):
        y = call["threshold"](x, dtype(1), dtype(alpha))
        ours = call["threshold_product"](y, v, dtype(alpha), dtype(0.5))
        expected = reference["threshold_product"](y, v, dtype(alpha), dtype(0.5))
        np.testing.assert_allclose(ours, expected, atol=rounding(dtype) * np.abs(expected).max(), rtol=0)
    for p in (1.1, 1.5, 1.9, 2.0):
        y = call["p_norm"](x, dtype(1), dtype(p))
        ours = call["p_norm_product"](y, v, dtype(p), dtype(0.5))
        expected = reference["p_norm_product"](y, v, dtype(p), dtype(0.5))
        np.testing.assert_allclose(ours, expected, atol=rounding(dtype) * np.abs(expected).max(), rtol=0)
    jumps, weight = (x > 0.5).astype(np.int8), (x > -1).astype(dtype)
    expected = reference["segment_mean"](v, jumps, weight)
    np.testing.assert_allclose(call["segment_mean"](v, jumps, weight), expected, atol=rounding(dtype), rtol=0)


# Hostile input.


def solve_all(x):
    """Every kernel that maps scores to an array of their shape, on the rows of x."""
    one = x.dtype.type(1)
    for alpha in (1, 1.3, 1.5, 2, 3, 40):
        yield f"threshold {alpha}", np.asarray(call["threshold"](x, one, alpha * one))
    for p in (1.3, 2):
        yield f"p_norm {p}", np.asarray(call["p_norm"](x, one, p * one))
    for alpha in (0, 1, 1.5, 2, 3):
        yield f"capped {alpha}", np.asarray(call["capped"](x, one, alpha * one, one, one))
    yield "chain", np.asarray(call["chain"](x, one / 8, one / 8)[0])
    yield "ranks", np.asarray(call["ranks"](x, np.zeros_like(x))[0])


@DTYPES
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_nan_stays_in_its_slice(dtype, what):
    clean, dirty = scores(0, 50, dtype), scores(0, 50, dtype)
    dirty[1, 7] = what
    for (name, expected), (_, y) in zip(solve_all(clean), solve_all(dirty), strict=True):
        assert np.all(np.isnan(y[1])), name
        np.testing.assert_array_equal(y[0], expected[0], name)
        np.testing.assert_array_equal(y[2], expected[2], name)


@DTYPES
def test_deleted_and_empty(dtype):
    x, masked = scores(0, 50, dtype), scores(0, 50, dtype)
    gone = np.random.default_rng(0).uniform(size=50) < 0.3
    masked[:, gone] = masked[2] = -np.inf
    for (name, y), (_, kept) in zip(solve_all(masked), solve_all(x[:, ~gone]), strict=True):
        floor = -np.inf if name in ("chain", "ranks") else 0
        assert np.all(y[:2, gone] == floor) and np.all(y[2] == floor), name
        np.testing.assert_allclose(y[:2, ~gone], kept[:2], atol=PROMISE[dtype], rtol=0, err_msg=name)


@DTYPES
def test_bad_hyper_parameters(dtype):
    x, one = scores(0, 9, dtype), np.ones((3, 1), dtype)

    def second(value):
        return np.array([[1], [value], [1]], dtype)

    bad = second(np.nan)
    results = [
        call["threshold"](x, bad, one),
        call["threshold"](x, one, bad),
        call["threshold"](x, one, second(0.5)),
        call["threshold"](x, second(-1), one),
        call["p_norm"](x, one, 2 * bad),
        call["p_norm"](x, one, 2 * second(0.5)),
        call["capped"](x, one, 2 * one, bad, one),
        call["capped"](x, one, 2 * one, one, bad),
        call["capped"](x, one, 2 * one, second(9.5), one),  # infeasible
        call["chain"](x, bad, one)[0],
    ]
    for i, y in enumerate(results):
        np.testing.assert_array_equal(np.isnan(y).all(-1), [False, True, False], err_msg=str(i))
        np.testing.assert_array_equal(np.isnan(y).any(-1), [False, True, False], err_msg=str(i))
    np.testing.assert_array_equal(call["capped"](x, one, 2 * one, 0 * one, one), 0)
    np.testing.assert_array_equal(call["capped"](x, one, 2 * one, 9 * one, one), 1)


@DTYPES
@pytest.mark.parametrize("name", ["threshold", "p_norm", "capped"])
def test_strengths_at_the_ends_of_their_range(dtype, name):
    """Scores and gamma times the same number: 1 / gamma or alpha / gamma is no float of full precision."""
    limits = np.finfo(dtype)
    for d in (5, 131, 257):
        x = np.round(16 * scores(d, d, dtype, 0.5)) / 16  # no difference becomes subnormal
        for alpha in (1.0, 1.2, 1.5, 2.0, 3.0, 100.0):
            if not 1 < alpha <= 2 and name == "p_norm":
                continue
            run = lambda x, gamma: np.asarray(
                call[name](x, dtype(gamma), dtype(alpha), *((dtype(2), dtype(1)) if name == "capped" else ()))
            )
            expected = run(x, 1)
            for by in (limits.max / 8, limits.tiny / limits.eps if name == "capped" else limits.tiny * 16):
                got = run(x * dtype(by), by)
                np.testing.assert_allclose(got, expected, atol=PROMISE[dtype], rtol=0, err_msg=f"{d} {alpha} {by}")
        one_hot = np.asarray(call["threshold"](x, dtype(limits.tiny * 16), dtype(100)))
        top = x == x.max(-1, keepdims=True)
        np.testing.assert_allclose(one_hot, top / top.sum(-1, keepdims=True), atol=PROMISE[dtype], rtol=0)


def test_p_norm_product_where_its_strength_overflows():
    x = np.float32([1, 0.5, -0.2])
    gradient = jax.grad(lambda x: sm.pnormmax(x, p=1.0000002, gamma=1e-34, implementation="native")[0])
    np.testing.assert_array_equal(gradient(x), 0)


def test_threads_change_nothing():
    """Long enough for all threads; a row alone is solved by one."""
    x = scores(0, 300, np.float32, rows=500)
    for (name, whole), (_, one) in zip(solve_all(x), solve_all(x[321:322]), strict=True):
        np.testing.assert_array_equal(whole[321:322], one, name)
    for first, second in zip(solve_all(x), solve_all(x), strict=True):
        np.testing.assert_array_equal(first[1], second[1])
