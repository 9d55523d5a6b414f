"""The Pallas kernels for TPUs, interpreted on a CPU: same numbers as the oracles and as the solvers in plain JAX."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental.pallas import tpu as pltpu
from machines import kernels, on_cpu, scores, solved_by, spoil, weights_of_the_oracle

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas

pytestmark = pytest.mark.xdist_group("pallas_tpu")  # a kernel is compiled once for all tests with one shape
f32 = jnp.float32
KERNELS, solve = kernels("tpu"), solved_by("tpu")
D = 8


# --- Thresholds --------------------------------------------------------------------------------------------

ALPHAS = (1.0, 1.0001, 1.2, 1.5, 1.7, 2.0, 2.5, 4.0)
PS = (1 + 2**-20, 1.05, 1.1, 1.5, 2.0)
ROWS = 12


def rows_of(values):
    """Each value with the same rows of scores: scores, and a column of the values as float32 stores them."""
    x = np.tile(scores(ROWS), (len(values), 1))
    return x, np.repeat(np.asarray(values, np.float32), ROWS)[:, None]


# 3e-6 is what float32 promises everywhere.
@pytest.mark.parametrize(("problem", "values"), [("threshold", ALPHAS), ("p_norm", PS)])
def test_thresholds_with_one_power_a_slice(problem, values):
    x, powers = rows_of(values)
    for gamma in (1.0, 0.5):
        y = solve(problem, x, gamma, powers)
        np.testing.assert_allclose(y, weights_of_the_oracle(problem, x, gamma, powers), rtol=0, atol=3e-6)
        np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("problem", "id", "values"),
    [("threshold", "entmax1.5", (1.05, 1.5, 1.9, 2.0)), ("p_norm", "pnormmax1.5", (1.2, 1.5, 1.9, 2.0))],
)
def test_many_small_weights_beside_a_large_one(problem, id, values, d=500):
    case, n = cases.BY_ID[id], 12
    [name] = set(case.family.names) - {"gamma"}
    powers = np.repeat(np.asarray(values, np.float32), n)[:, None]
    of_values = [cases.next_to_the_border(case, {name: float(v), "gamma": 1.0}, d, n) for v in np.float32(values)]
    x = np.concatenate(of_values)
    y = solve(problem, x, 1.0, powers)
    np.testing.assert_allclose(y, weights_of_the_oracle(problem, x, 1.0, powers), rtol=0, atol=3e-6)


def test_thresholds_far_above_two():
    """There a weight near 0 cannot be stored better than its power, but the value is as good as the best one."""
    alphas = (8.0, 12.0, 16.0, 20.0, 25.0, 40.0, 50.0, 60.0)
    x, powers = rows_of(alphas)
    y = solve("threshold", x, 1.0, powers).astype(float)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=1e-6)
    b = powers.astype(float) - 1
    # Optimality: y^b / b - x is one number on the support, and nowhere else is -x below it.
    slope = np.where(y > 0, y**b / b, 0) - x
    on = np.where(y > 0, slope, np.nan)
    level = np.nanmedian(on, axis=-1, keepdims=True)
    np.testing.assert_allclose(on - level, np.where(y > 0, 0, np.nan), rtol=0, atol=2e-6)
    assert np.all(slope >= level - 2e-6)


@pytest.mark.parametrize(("problem", "values"), [("threshold", ALPHAS), ("p_norm", PS)])
def test_thresholds_keep_slices_apart(problem, values):
    x, powers = rows_of(sorted(values, key=lambda value: abs(value - 1.5)))
    clean, y = solve(problem, x, 1.0, powers), solve(problem, spoil(x), 1.0, powers)
    assert np.isnan(y[:2]).all()
    np.testing.assert_array_equal(y[3], 0)
    np.testing.assert_array_equal(y[4:], clean[4:])
    assert (y[2, :3] == 0).all()
    shorter = solve(problem, x[2:3, 3:], 1.0, powers[2:3])
    np.testing.assert_allclose(y[2:3, 3:], shorter, rtol=0, atol=1e-7)
    powers[5] = np.nan
    y = solve(problem, x, 1.0, powers)
    assert np.isnan(y[5]).all() and not np.isnan(np.delete(y, 5, 0)).any()


def test_thresholds_ignore_an_offset_and_share_ties():
    x, powers = rows_of(ALPHAS)
    x = np.round(4 * x) / 4  # whole quarters: an offset of 1e4 rounds nothing away
    x[::ROWS] = x[0, 0]
    y = solve("threshold", x, 1.0, powers)
    np.testing.assert_array_equal(solve("threshold", x + np.float32(1e4), 1.0, powers), y)
    np.testing.assert_array_equal(y[::ROWS], y[::ROWS, :1] * np.ones(D))


# --- Chains ------------------------------------------------------------------------------------------------

WIDTH = 9
STRENGTHS = {
    "one": (0.3, 0.2),
    "isotonic": (np.inf, 0.0),
    "one a slice": (np.linspace(0, 1, 14)[:, None], 0.1),
    "one a border": (0.2 + 0.1 * np.cos(np.arange(WIDTH - 1.0))[None], 0.25),
    "of the last border alone": (4.0 * (np.arange(WIDTH - 1) == WIDTH - 2)[None], 0.0),
    "one a slice and border": tuple(
        0.4 + 0.3 * np.sin(np.arange(14 * (WIDTH - 1.0)).reshape(2, 7, -1) + i) for i in (0, 1)
    ),
}


def chains(seed):
    x = np.random.default_rng(seed).normal(size=(2, 7, WIDTH)).astype(np.float32)
    x[0] = spoil(x[0])
    x[1, 0] = np.round(x[1, 0])  # ties
    return x


@pytest.mark.parametrize("kind", STRENGTHS)
def test_chains_are_those_of_the_solver(kind):
    """The solver is compared with oracles elsewhere; the two differ by the order of some sums."""
    up, down = (np.asarray(s, np.float32) for s in STRENGTHS[kind])
    if kind == "one a slice":
        up = up.reshape(2, 7, 1)
    elif up.shape == (1, WIDTH - 1):
        up = up[None]
    x = chains(1)
    t, jumps = solve("chain", x, up, down)
    plain, plain_jumps = map(np.asarray, on_cpu["chain_prox"](x, up, down))
    np.testing.assert_allclose(t, plain, rtol=0, atol=1e-6)
    sound = np.isfinite(x).any(-1) & ~(np.isnan(x) | (x == np.inf)).any(-1)
    np.testing.assert_array_equal(jumps[sound], plain_jumps[sound])
    assert np.isnan(t[0, :2]).all() and (t[0, 3] == -np.inf).all()


def test_chains_of_more_slices_than_a_block():
    x = cases.scores(1100, 5, dtype=np.float32) + np.float32(1e4)
    t, jumps = solve("chain", x, 0.3, 0.3)
    for i in (0, 500, 1023, 1024, 1099):
        exact = oracles.total_variation_prox(x[i].astype(float), np.full(4, np.float32(0.3), float))
        # 1e4 has half a thousandth for its last digit.
        np.testing.assert_allclose(t[i], np.asarray(exact, float), rtol=0, atol=1e-3)
        assert set(jumps[i, :-1]) <= {-1, 0, 1} and jumps[i, -1] == 0


def test_a_bad_strength_is_nan_for_its_slice_alone():
    up = np.full((2, 7, 1), 0.3, np.float32)
    x = np.random.default_rng(2).normal(size=(2, 7, WIDTH)).astype(np.float32)
    up[1, 3] = np.nan
    t, _ = solve("chain", x, up, 0.1)
    assert np.isnan(t[1, 3]).all() and np.isnan(t).sum() == WIDTH


# --- All ---------------------------------------------------------------------------------------------------


def test_vmap_of_chains_is_more_slices():
    x, alphas = scores(6).reshape(3, 2, D), np.array([1.5, 2.0, 3.0], np.float32)
    chains = jax.vmap(jax.vmap(KERNELS["chain"].call, (0, None, None)), (0, 0, None))
    t, _ = jax.jit(chains)(x, alphas, f32(0.1))
    np.testing.assert_array_equal(t, solve("chain", x, alphas[:, None, None], 0.1)[0])
    text = str(jax.make_jaxpr(jax.vmap(KERNELS["chain"].call, (0, None, None)))(x, f32(1), f32(1)))
    assert text.count("pallas_call") == 1 and "grid=(1,)" in text.replace(" ", "")


@pytest.mark.parametrize("problem", ["threshold", "chain", "capped"])
def test_nothing_is_read_before_it_is_written(problem, capfd):
    """Memory starts as NaN, and two steps of the grid that touch the same place are told."""
    kernel = pallas.kernels(pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"))[problem]
    x, args = scores(10, 4), (f32(1.0), f32(1.5), *((f32(2.0), np.ones((1, 4), f32)) if problem == "capped" else ()))
    expected = {
        "threshold": lambda x: sm.entmax(x, alpha=1.5),
        "chain": lambda x: on_cpu["chain_prox"](x, *args),
        "capped": sm.conjugate(sm.Tsallis(1.5), sm.CappedSimplex(2.0)).argmax,
    }
    y, plain = jax.jit(kernel.call)(x, *args), expected[problem](x)
    for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert "race" not in "".join(capfd.readouterr()).lower()


def test_what_a_kernel_refuses():
    x = jnp.zeros((2, D))
    assert "float32, not float64" in KERNELS["threshold"].refuses(x, x[:1, :1], x[:1, :1])
    wide = jax.ShapeDtypeStruct((2, 10**6), f32)
    assert "not of 1000000" in KERNELS["chain"].refuses(wide, f32(1), f32(1))
    assert "2 to" in KERNELS["chain"].refuses(jax.ShapeDtypeStruct((2, 1), f32), f32(1), f32(1))


def test_a_kernel_does_not_run_elsewhere(monkeypatch):
    monkeypatch.setitem(_kernels.TABLE, "native", {})
    x = jnp.zeros((2, D), f32)
    with pytest.raises(NotImplementedError, match=r"runs on tpu and cuda, and this program is for cpu\. Use .*'xla'"):
        _kernels.run("threshold", "pallas", lambda *_: x, x, f32(1), f32(2))
    assert _kernels.run("threshold", None, lambda *_: x, x, f32(1), f32(2)) is x
