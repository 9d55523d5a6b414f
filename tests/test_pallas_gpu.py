"""The Pallas kernels for GPUs, interpreted on a CPU: same numbers as the oracles and as the solvers in plain JAX.

JAX's interpreter of a GPU runs the steps of a grid one after the other, so it cannot tell that two of them touch the
same place: no step does, since each has its slices.
"""

import re
import sys

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import MISSING, capped_weights_of_the_oracle, kernels, on_cpu, solved_by, weights_of_the_oracle

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels.pallas.gpu import _chain, _mosaic, _threshold
from smoothmax._kernels.pallas.shared import _equations

if MISSING is not None:
    pytest.skip(MISSING, allow_module_level=True)

pytestmark = pytest.mark.xdist_group("pallas_gpu")  # a kernel is compiled once for all tests with one shape
f32 = jnp.float32
KERNELS, solve = kernels("gpu"), solved_by("gpu")


# --- Thresholds --------------------------------------------------------------------------------------------


VALUES = {"threshold": (1.0, 1.0001, 1.2, 1.5, 2.0, 3.0), "p_norm": (1 + 2**-20, 1.05, 1.2, 1.5, 2.0)}


# Less than a warp holds at a time, by one number a thread and by two; a single number more than that; several pieces of
# each kind; more than registers hold.
@pytest.mark.parametrize("d", [5, 50, 65, 180, 1025])
@pytest.mark.parametrize(("problem", "values"), VALUES.items())
def test_weights_are_those_of_the_oracle(problem, values, d):
    rows = 5 if d == 5 else 3
    x = np.tile(cases.scores(rows, d, 0, np.float32), (len(values), 1))
    x[1::rows] = np.round(x[1::rows])  # ties
    x[2::rows, 1::2] = -np.inf  # deleted
    if d == 5:  # all but two, all but one
        x[3::rows, 2:] = x[4::rows, 1:] = -np.inf
    powers = np.repeat(np.asarray(values, np.float32), rows)[:, None]
    y = solve(problem, x, np.full_like(powers, 0.5), powers)
    np.testing.assert_allclose(y, weights_of_the_oracle(problem, x, 0.5, powers), rtol=0, atol=3e-6)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=1e-6)
    assert np.all(y[x == -np.inf] == 0)
    for row, weights in zip(x[1::rows], y[1::rows], strict=True):
        assert len(set(zip(row, weights, strict=True))) == len(set(row))


@pytest.mark.parametrize("d", [1, 5, 65])
def test_capped_weights_are_those_of_the_oracle(d):
    """With bounds one a slice, one a position, and a threshold far from the top."""
    x = cases.scores(6, d, 0, np.float32)
    x[1], x[2, 1::2], x[3] = np.round(x[1]), -np.inf, 1e4 * x[3]
    alpha = np.array([0, 1, 1.3, 1.5, 2, 3], np.float32)[:, None]
    kept = (x > -np.inf).sum(-1, keepdims=True)
    bounds = np.random.default_rng(d).uniform(0.5, 1, x.shape).astype(np.float32)
    total = np.float32(0.4 * kept)
    for upper in (bounds[:, :1], bounds):
        y = solve("capped", x, 0.5, alpha, total, upper)
        expected = capped_weights_of_the_oracle(x, 0.5, alpha, total, upper)
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-6)
        np.testing.assert_allclose(y.sum(-1, keepdims=True), total, rtol=1e-6, atol=0)
    x[0, 0], alpha[4], bounds[5] = np.nan, 0.5, -1
    assert np.isnan(solve("capped", x, 0.5, alpha, total, bounds)[[0, 4, 5]]).all()


@pytest.mark.parametrize("problem", VALUES)
def test_slices_are_kept_apart(problem):
    """NaN, inf, nothing left, and bad hyper-parameters are for their slice alone."""
    n = 5 * len(VALUES[problem])
    x, gamma, power = cases.scores(n, 5, 1, np.float32), np.ones((n, 1), np.float32), np.full((n, 1), 1.5, np.float32)
    clean = solve(problem, x, gamma, power)
    x[0, 3], x[1, 1], x[2], gamma[3], power[4], power[5] = np.nan, np.inf, -np.inf, 0, np.nan, 0.9
    y = solve(problem, x, gamma, power)
    assert np.isnan(y[[0, 1, 3, 4, 5]]).all()
    np.testing.assert_array_equal(y[2], 0)
    np.testing.assert_array_equal(y[6:], clean[6:])


def test_no_answer_rather_than_a_wrong_one(monkeypatch):
    """A slice that has not arrived after the last pass is NaN."""
    monkeypatch.setattr(_equations, "MAX_PASSES", 0)
    y = jax.jit(lambda x: KERNELS["threshold"].call(x, f32(1), f32(1.2)))(cases.scores(3, 5, 2, np.float32))
    assert np.isnan(y).all()


def test_logarithms_near_one():
    x = np.concatenate([-np.logspace(-30, -0.001, 400), np.logspace(-30, 6, 400)]).astype(np.float32)
    np.testing.assert_allclose(_threshold._log1p(jnp.asarray(x)), np.log1p(x.astype(float)), rtol=4e-7, atol=0)


def test_vmap_is_one_call():
    x, alphas = cases.scores(6, 5, 3, np.float32).reshape(3, 2, 5), np.array([1.5, 2.0, 3.0], np.float32)
    mapped = jax.vmap(KERNELS["threshold"].call, (0, None, 0))
    text = str(jax.make_jaxpr(mapped)(x, f32(1), alphas)).replace(" ", "")
    assert text.count("mpmd_map[") == 1 and "f32[6,32]" in text


# --- Chains ------------------------------------------------------------------------------------------------

STRENGTHS = {
    "one": (0.3, 0.2),
    "isotonic": (np.inf, 0.0),
    "one a slice": (np.linspace(0, 1, 6)[:, None], 0.1),
    "one a slice and border": tuple(0.4 + 0.3 * np.sin(np.arange(30.0).reshape(6, 5) + i) for i in (0, 1)),
}


@pytest.mark.parametrize("kind", STRENGTHS)
def test_chains_are_those_of_the_solver(kind):
    """The solver is compared with oracles elsewhere. NaN, inf and a bad strength are for their slice alone."""
    up, down = (np.array(s, np.float32) for s in STRENGTHS[kind])
    x = cases.scores(6, 6, 5, np.float32)
    x[0] = np.round(x[0])  # ties
    x[1, 3], x[2, 1], x[3, :3], x[4] = np.nan, np.inf, -np.inf, -np.inf
    if up.ndim:
        up[5] = np.nan
    t, jumps = solve("chain", x, up, down)
    plain, plain_jumps = map(np.asarray, on_cpu["chain_prox"](x, up, down))
    sound = [0, 3, 4] if up.ndim else [0, 3, 4, 5]
    np.testing.assert_allclose(t[sound], plain[sound], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(jumps[sound], plain_jumps[sound])
    assert np.isnan(np.delete(t, sound, 0)).all()


def test_chains_of_more_slices_than_threads():
    x = cases.scores(130, 4, 6, np.float32)
    t, jumps = solve("chain", x, 0.3, 0.2)
    plain, plain_jumps = on_cpu["chain_prox"](x, f32(0.3), f32(0.2))
    np.testing.assert_allclose(t, plain, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(jumps, plain_jumps)


# Threads share a slice, the last one's piece is filled up, or that of several is empty; a block has several slices, and
# the last one is not full.
PIECES = {"4 threads": (2, 35, 7), "64 threads": (2, 3, 100)}


@pytest.mark.parametrize("kind", PIECES)
def test_slices_spread_over_threads(kind, monkeypatch):
    """Slices of one block are done after different numbers of questions."""
    piece, n, d = PIECES[kind]
    monkeypatch.setattr(_chain, "PIECE", piece)
    x = cases.scores(n, d, 7, np.float32) * (1 + np.arange(n, dtype=np.float32)[:, None] % 4)
    x[0], x[1], x[2, 1::3] = np.sort(x[0]), np.round(x[1]), -np.inf
    for up, down in ((0.3, 0.2), (np.inf, 0.0)):
        t, jumps = solve("chain", x, up, down)
        plain, plain_jumps = on_cpu["chain_prox"](x, f32(up), f32(down))
        np.testing.assert_allclose(t, plain, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(jumps, plain_jumps)
    v = np.where(np.isinf(x), 1, x)
    mean = solve("segment_mean", v, jumps, v > 0)
    np.testing.assert_allclose(mean, on_cpu["segment_mean"](v, jumps, v > 0), rtol=0, atol=1e-5)


def test_no_chain_asks_whether_an_integer_is_negative():
    """On a GPU none is, where `jnp.where` made it. The interpreter does not know that."""
    x = jax.ShapeDtypeStruct((4, 50), f32)
    _, text = str(jax.make_jaxpr(KERNELS["chain"].call)(x, f32(1), f32(1))).split("axis_index[")
    compared = re.findall(r" (?:lt|le|gt|ge) \w+ (-?\d+):i32", text)
    assert compared and all(int(number) > 0 for number in compared)


# --- The table ---------------------------------------------------------------------------------------------


def test_what_a_kernel_refuses(monkeypatch):
    refuses, one = KERNELS["threshold"].refuses, f32(1)
    assert "float32, not bfloat16" in refuses(jnp.zeros((2, 5), jnp.bfloat16), one, one)
    assert "1 to 16384 positions on the chip, not of 16385" in refuses(jax.ShapeDtypeStruct((2, 16385), f32), one, one)
    assert "no slices" in refuses(jnp.zeros((0, 5), f32), one, one)
    assert "at least 2 positions, not of 1" in KERNELS["chain"].refuses(jnp.zeros((2, 1), f32), one, one)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.mosaic_gpu", None)
    assert "cannot load Pallas for GPUs" in refuses(jnp.zeros((2, 5), f32), one, one)
    monkeypatch.setattr(jax, "__version_info__", (0, 9, 2))
    assert "need JAX 0.10 or later" in refuses(jnp.zeros((2, 5), f32), one, one)


# Problems of slices; attention has a file of its own.
ARGS = {problem: (jnp.zeros((2, 5), f32), f32(1), f32(2)) for problem in KERNELS if "attention" not in problem}
ARGS["capped"] += (f32(1), f32(1))
HOPPERS = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"
OTHERS = "NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA L4", "AMD Instinct MI300X"


def offered(implementation=None, of=tuple(ARGS)):
    """Where some problem is served by a kernel."""
    return {p for problem in of for p in _kernels.serving(problem, implementation, *ARGS[problem])} - {"cpu"}


def test_the_name_finds_the_kernels_of_the_machine():
    for kind in (*HOPPERS, *OTHERS):
        with cases.program_for(kind, chips=4):
            assert offered("pallas") == {"cuda"}
    with cases.program_for("TPU v5 lite"):
        assert offered("pallas") == {"tpu"}


@pytest.mark.parametrize("problem", ARGS)
def test_without_a_name_it_is_taken_on_chips_that_have_run_it(problem, monkeypatch):
    assert not offered(of=[problem])
    for kind in (*HOPPERS, *OTHERS):
        with cases.program_for(kind):
            assert offered(of=[problem]) == ({"cuda"} if kind in HOPPERS else set())
    monkeypatch.setattr(_mosaic, "missing", lambda: "it cannot be loaded")
    with cases.program_for(HOPPERS[0]):
        assert not offered(of=[problem])


def test_without_a_name_it_is_taken_where_jit_divides_nothing():
    inside = []

    def spy(x):
        inside.append(offered())
        return x

    batch = jax.sharding.PartitionSpec("devices")
    with cases.program_for(HOPPERS[0], chips=4):
        assert not offered()
        jax.eval_shape(jax.shard_map(spy, in_specs=batch, out_specs=batch), jnp.zeros((8, 5), f32))
    assert inside == [{"cuda"}]


@pytest.mark.parametrize("name", ["softmax", "entmax", "pnormmax", "fusedmax", "oscarmax", "soft_rank"])
def test_kernels_inside_shard_map(name):
    """Weights and gradient: arrays in the kernels may differ over the mesh, and loops end with what they start from."""

    def pulled(x):
        y, pull = jax.vjp(getattr(sm, name), x)
        return pull(y)[0]

    batch = jax.sharding.PartitionSpec("devices")
    with cases.program_for(HOPPERS[0], chips=4):
        shared = jax.shard_map(pulled, in_specs=batch, out_specs=batch)
        assert jax.eval_shape(shared, jax.ShapeDtypeStruct((8, 16), f32)).shape == (8, 16)


@pytest.mark.parametrize("kind", ["cpu", HOPPERS[0], OTHERS[0]])
def test_programs_for_machines_elsewhere(kind, monkeypatch):
    """Exported for GPUs on a machine without a Hopper they are in plain JAX; on one with a Hopper its kernel is for
    GPUs alone, in a program for several kinds of machines too. Lengths that are not known yet are for plain JAX."""
    monkeypatch.setitem(_kernels.TABLE, "native", {})
    x, scores = jax.ShapeDtypeStruct((3, 5), f32), cases.scores(3, 5, 7, np.float32)
    sparsemax = jax.jit(sm.sparsemax)
    with cases.program_for(kind):
        for platforms in (["cuda"], ["cpu"], ["cuda", "cpu"]):
            program = jax.export.export(sparsemax, platforms=platforms)(x)
            assert ("mosaic_gpu" in program.mlir_module()) == (kind in HOPPERS and "cuda" in platforms)
            if "cpu" in platforms:
                np.testing.assert_allclose(program.call(scores), sm.sparsemax(scores), rtol=0, atol=1e-6)
        for shape in ("n, 5", "3, d"):
            lengths = jax.export.symbolic_shape(shape)
            program = jax.export.export(sparsemax, platforms=["cuda"])(jax.ShapeDtypeStruct(lengths, f32))
            assert "mosaic_gpu" not in program.mlir_module()
