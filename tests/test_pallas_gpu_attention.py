"""Flash attention for GPUs, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

Blocks are small here, so that there are several, and numbers are float32, so that one sees more than the rounding of
bfloat16. The interpreter has the products in plain JAX: those of the matrix unit are for a GPU.
"""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal, per_head, pulled
from jax.sharding import PartitionSpec

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas import _gpu, _gpu_attention_layout, _gpu_flash

interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
pytestmark = [
    pytest.mark.skipif(_gpu.missing() is not None, reason=str(_gpu.missing())),
    pytest.mark.usefixtures("no_x64", "interpreted"),
]

f32 = jnp.float32
B, T, S, N, K, H, V = 1, 12, 27, 2, 1, 8, 6  # two query heads share a key head; no length is whole blocks


@pytest.fixture
def interpreted(monkeypatch):
    for name, value in {"ROWS": 8, "COLUMNS": 16, "FEWER": 8, "TILE": 8}.items():
        monkeypatch.setattr(_gpu_attention_layout, name, value)
    monkeypatch.setattr(_gpu_flash, "NEAR", 1e-4)
    kernels = pallas.gpu_kernels(interpreter.InterpretGPUParams(uninitialized_memory="nan"))
    any_dtype = {name: dataclasses.replace(kernels[name], refuses=lambda *_, **__: None) for name in kernels}
    monkeypatch.setitem(_kernels.TABLE, "pallas", any_dtype)


def draw(seed, *shape):
    # Of a size that makes weights of a few keys, so that some blocks have none.
    return 1.5 * normal(seed, *shape)


LENGTHS = {"query_seq_lengths": np.int32([11]), "key_value_seq_lengths": np.int32([19])}
# Hyper-parameters of entmax, and options: each of the ways to its weights once.
CASES = {
    "alphas of 1 and 1.5, a gamma a head, window": (
        {"alpha": per_head(1.0, 1.5), "gamma": per_head(0.7, 1.3)},
        {"local_window_size": (5, 3)},
    ),
    "alphas of 2 and 1.3, causal, lengths": (
        {"alpha": per_head(2.0, 1.3), "gamma": f32(0.8)},
        {"is_causal": True, **LENGTHS},
    ),
}


def attention_of(case, implementation):
    """Attention as a function of (query, key, value, hyper-parameters, scale), and arguments."""
    params, options = CASES[case]

    def attend(q, k, v, params, scale):
        of_params = functools.partial(sm.entmax, **params)
        return sm.dot_product_attention(
            q, k, v, mapping=of_params, scale=scale, implementation=implementation, **options
        )

    return attend, (draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, V), params, f32(0.6))


assert_close = functools.partial(cases.assert_close, heads=N)


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_plain_form(case):
    by_kernels, args = attention_of(case, "pallas")
    plain, _ = attention_of(case, "xla")
    bar = draw(9, B, T, N, V)
    # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
    assert_close(pulled(by_kernels, bar)(*args), pulled(plain, bar)(*args), 2e-5)


def test_bad_queries_and_padding():
    """What is not finite stays with its query, and padding may hold anything."""
    by_kernels, (q, k, v, params, scale) = attention_of("alphas of 2 and 1.3, causal, lengths", "pallas")
    call = jax.jit(lambda q, k, v: by_kernels(q, k, v, params, scale))
    bad = q.at[0, 3, 1].set(jnp.nan).at[0, 5, 0].set(jnp.inf).at[0, 11:].set(jnp.nan)
    y = call(bad, k.at[0, 19:].set(jnp.inf), v.at[0, 19:].set(jnp.nan))
    assert np.isnan(y[0, 3, 1]).all()
    assert np.isnan(y[0, 5, 0]).all()
    clean = call(q, k, v)
    np.testing.assert_array_equal(y.at[0, 3, 1].set(clean[0, 3, 1]).at[0, 5, 0].set(clean[0, 5, 0]), clean)


def test_a_search_that_did_not_arrive_says_nan(monkeypatch):
    monkeypatch.setattr(_gpu_flash, "MAX_PASSES", 0)
    by_kernels, args = attention_of("alphas of 1 and 1.5, a gamma a head, window", "pallas")
    output, bars = pulled(by_kernels, draw(9, B, T, N, V))(*args)
    assert np.isnan(output).all()
    assert np.isnan(bars[0]).any()


def test_vmap_is_a_larger_batch():
    q, k, v = draw(0, 2, 8, N, H), draw(1, B, 16, K, H), draw(2, B, 16, K, V)
    kernel = _kernels.TABLE["pallas"]["attention"].call
    scales = jnp.asarray([0.3, 0.6], f32)

    def one(q, scale):
        return kernel(q, k, v, None, scale, f32(1.5), f32(1), None, None, None)[0]

    together = jax.jit(jax.vmap(one))(q[:, None], scales)
    for i in range(2):
        np.testing.assert_array_equal(together[i], jax.jit(one)(q[i][None], scales[i]))


def test_what_a_kernel_refuses(monkeypatch):
    refuses = pallas.gpu_kernels()["attention"].refuses
    monkeypatch.setattr(_gpu_attention_layout, "TILE", 64)
    monkeypatch.setattr(_gpu_attention_layout, "ROWS", 64)
    monkeypatch.setattr(_gpu_attention_layout, "COLUMNS", 128)

    def refusal(length=128, dtype=jnp.bfloat16, size=64, bias=None, mask=None):
        q = jax.ShapeDtypeStruct((1, length, 2, size), dtype)
        return refuses(q, q, q, bias, None, None, None, mask, None, None)

    assert refusal() is None
    assert "bfloat16, as the matrix unit does, not float32" in refusal(dtype=f32)
    assert "no array as bias" in refusal(bias=jnp.zeros((1, 1, 1, 1)))
    assert "no array as mask" in refusal(mask=jnp.ones((1, 1, 1, 1), bool))
    assert "size up to 128, not 192" in refusal(size=192)
    assert "of shared memory" in refusal(2**20)
    assert "empty" in refusal(0)


@pytest.mark.parametrize("axis", [0, 2])
def test_inside_shard_map(axis, monkeypatch):
    """Of batch or heads, for four Hoppers: it is taken without a name, and what devices share has one cotangent."""
    monkeypatch.undo()
    divided, shared = PartitionSpec(*[None] * axis, "devices"), PartitionSpec()

    def gradients(q, k, v, alpha):
        def attend(q, k, v, alpha):
            mapping = functools.partial(sm.entmax, alpha=alpha)
            return sm.dot_product_attention(q, k, v, mapping=mapping, is_causal=True)

        output, pull = jax.vjp(attend, q, k, v, alpha)
        return pull(output)

    q, alpha = jax.ShapeDtypeStruct((4, 128, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((), f32)
    with cases.program_for("NVIDIA H100 80GB HBM3", chips=4):
        specs = divided, divided, divided, shared
        whole = jax.shard_map(gradients, in_specs=specs, out_specs=specs)
        text, bars = jax.make_jaxpr(whole, return_shape=True)(q, q, q, alpha)
    assert [bar.shape for bar in bars] == [q.shape, q.shape, q.shape, ()]
    assert "mpmd_map" in str(text)
