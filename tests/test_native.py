"""The native kernels, one by one: against the oracles and the reference, on hostile input, over devices and threads."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import reference
from cases.tolerances import OBJECTIVE, PROMISE

import smoothmax as sm
from smoothmax import __main__ as main
from smoothmax import _kernels
from smoothmax._kernels import native
from smoothmax._kernels.native import _calls, _library

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


# Threads, transforms, devices.


def test_threads_change_nothing():
    """Long enough for all threads; a row alone is solved by one."""
    x = scores(0, 300, np.float32, rows=500)
    for (name, whole), (_, one) in zip(solve_all(x), solve_all(x[321:322]), strict=True):
        np.testing.assert_array_equal(whole[321:322], one, name)
    for first, second in zip(solve_all(x), solve_all(x), strict=True):
        np.testing.assert_array_equal(first[1], second[1])


def test_eight_devices_at_once(mesh):
    """More handlers than threads: each must come to its end without the others."""
    x = jnp.asarray(scores(0, 512, np.float32, rows=800))
    cut = jax.device_put(x, jax.NamedSharding(mesh, P("devices")))
    for _ in range(5):
        t, jumps = call["chain"](cut, jnp.float32(0.1), jnp.float32(0.1))
    np.testing.assert_array_equal(t, call["chain"](x, jnp.float32(0.1), jnp.float32(0.1))[0])
    assert jumps.sharding.spec == P("devices") == t.sharding.spec


@pytest.mark.parametrize("spec", [P("devices"), P(None, "devices"), P(None, None, "devices")])
@pytest.mark.parametrize("mapped", [False, True])
def test_sharded_scores_stay_where_they_are(mesh, spec, mapped):
    x = scores(0, 16, np.float32, rows=64).reshape(8, 8, 16)
    cut = jax.device_put(x, jax.NamedSharding(mesh, spec))

    def f(x):
        return _calls.call("threshold", x, 1.0, 1.5), *_calls.call("chain", x, 0.1, 0.2)

    f = jax.jit(jax.vmap(f) if mapped else f)
    np.testing.assert_array_equal(f(cut)[0], f(x)[0])
    # Slices that are cut over devices are put together, and nothing else is.
    assert ("all-gather" in f.lower(cut).compile().as_text()) == (spec == P(None, None, "devices"))


def test_shard_map(mesh):
    x = scores(0, 16, np.float32, rows=8)

    def f(x, alpha):
        return _calls.call("threshold", x, 1.0, alpha), *_calls.call("chain", x, 0.1, alpha)

    alpha = jnp.float32(1.3)
    mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")))
    jax.tree.map(np.testing.assert_array_equal, mapped(x, alpha), jax.jit(f)(x, alpha))


def test_vmap_scan_remat():
    x = scores(0, 12, np.float32, rows=6).reshape(3, 2, 12)
    alpha = np.array([1.2, 1.5, 2.0], np.float32)
    f = jax.jit(lambda x, alpha: _calls.call("threshold", x, 1.0, alpha))
    expected = np.stack([f(row, a) for row, a in zip(x, alpha, strict=True)])
    scanned = jax.jit(lambda *operands: jax.lax.map(lambda v: jax.checkpoint(f)(*v), operands))
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(x, alpha), expected)
    np.testing.assert_array_equal(scanned(x, alpha), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, in_axes=(1, None), out_axes=1))(x, alpha[0]), f(x, alpha[0]))
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(f, in_axes=(None, 0)))(x[0], alpha), np.stack([f(x[0], a) for a in alpha])
    )


def shared_by_all(x, gamma, alpha, weights):
    """The kernels that take hyper-parameters, with one value each and with one for each position."""
    y = _calls.call("threshold", x, gamma, alpha)
    return (
        y,
        _calls.call("threshold_product", y, x, alpha, gamma),
        _calls.call("p_norm", x, gamma, alpha),
        _calls.call("p_norm_product", y, x, alpha, gamma),
        _calls.call("capped", x, gamma, alpha, gamma, jnp.abs(weights)),
        *_calls.call("chain", x, gamma, jnp.abs(weights[..., 1:])),
        *_calls.call("ranks", x, weights),
        *_calls.call("permutahedron", x, gamma, weights),
    )


@pytest.mark.parametrize("rows", [(), (1,), (2,)], ids=str)
def test_on_one_device_all_rows_share_one_row_of_hyper_parameters(monkeypatch, rows):
    x = scores(0, 11, np.float32, rows=6).reshape(3, 2, 11)[:, : rows[0] if rows else 1]
    x = x if rows else x[:, 0]
    weights = -np.sort(scores(1, 11, np.float32))
    weights = weights.reshape(3, *(1,) * len(rows), 11)
    operands = [x, np.float32([0.5, 1, 2]), np.float32([1.2, 1.5, 2]), weights]

    def solved(*operands):
        """With some of them mapped over."""
        for mapped in ((), (0,), (0, 1), (0, 3), (1, 2, 3), (3,)):
            f = jax.vmap(shared_by_all, [0 if i in mapped else None for i in range(4)]) if mapped else shared_by_all
            yield f(*(v if i in mapped else v[1] for i, v in enumerate(operands)))

    expected = jax.jit(lambda *operands: list(solved(*operands)))(*operands)
    monkeypatch.setattr(_calls, "_one_device", lambda: True)
    shared = jax.jit(lambda *operands: list(solved(*operands)))(*operands)
    jax.tree.map(np.testing.assert_array_equal, shared, expected)


@pytest.mark.parametrize("one_device", [True, False])
def test_hyper_parameters_are_repeated_only_where_a_partitioner_cuts(monkeypatch, one_device):
    monkeypatch.setattr(_calls, "_one_device", lambda: one_device)
    solve = jax.jit(jax.vmap(lambda x: _calls.call("threshold", x, 1.0, 1.5)))
    text = solve.lower(jnp.zeros((3, 4, 5), jnp.float32)).as_text()
    assert ("(tensor<3x4x5xf32>, tensor<1x1x1xf32>, tensor<1x1x1xf32>)" in text) == one_device
    assert ("(tensor<3x4x5xf32>, tensor<3x4x1xf32>, tensor<3x4x1xf32>)" in text) != one_device


def test_no_rows_and_no_scores():
    for shape in ((0, 5), (3, 0), (2, 0, 4)):
        assert call["threshold"](jnp.zeros(shape), 1.0, 1.5).shape == shape


# The table, the report, and what goes wrong.


def test_the_table():
    assert set(_kernels.TABLE["native"]) >= {"threshold", "p_norm", "capped", "chain", "ranks", "segment_mean"}
    [kernel] = _kernels.TABLE["native"]["threshold"]
    assert kernel.refuses(jnp.zeros(3, jnp.float32)) is None
    assert kernel.refuses(jnp.zeros(3, jnp.bfloat16)) == "it computes in float32 and float64, not in bfloat16"


def test_report():
    line = next(line for line in main.report().splitlines() if line.startswith("native"))
    assert "available (cpu; XLA FFI 0." in line


def test_another_version_is_noticed(monkeypatch):
    monkeypatch.setattr(_library, "_version_here", lambda: (0, 0))
    library = _library.load(_calls.HANDLERS)
    assert library.reason is not None and "this jaxlib has 0.0: reinstall smoothmax" in library.reason


def test_a_missing_library_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "FILE", tmp_path / "none.so")
    monkeypatch.setattr(_library, "RECORD", tmp_path / "build.json")
    assert "it was not built when smoothmax was installed" in str(_library.load(_calls.HANDLERS).reason)
    (tmp_path / "build.json").write_text(json.dumps({"built": False, "because": "no C++ compiler was found"}))
    assert _library.load(_calls.HANDLERS).reason == "it was not built: no C++ compiler was found"
    monkeypatch.setattr(_library, "FILE", tmp_path / "bad.so")
    (tmp_path / "bad.so").write_text("no library")
    assert "cannot be loaded" in str(_library.load(_calls.HANDLERS).reason)


@pytest.mark.parametrize("environment", [{"CXX": "false"}, {"CXX": "no-such-compiler"}, {"SMOOTHMAX_NATIVE": "0"}])
def test_the_build_succeeds_without_a_compiler(environment, tmp_path):
    pytest.importorskip("hatchling")
    root = os.path.dirname(os.path.dirname(__file__))
    code = (
        "import sys, pathlib, hatch_build\n"
        "print(hatch_build.compile_library(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))"
    )
    arguments = [sys.executable, "-c", code, f"{root}/{'smoothmax/_kernels/native/src'}", str(tmp_path)]
    out = subprocess.run(
        arguments, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert "built=False" in out.stdout
