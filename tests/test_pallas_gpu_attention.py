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
from smoothmax._kernels.pallas.gpu import _attention_layout, _flash, _mosaic

interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
pytestmark = [
    pytest.mark.skipif(_mosaic.missing() is not None, reason=str(_mosaic.missing())),
    pytest.mark.usefixtures("no_x64", "interpreted"),
]

f32 = jnp.float32
B, T, S, N, K, H, V = 1, 12, 27, 2, 1, 8, 6  # two query heads share a key head; no length is whole blocks


@pytest.fixture
def interpreted(monkeypatch):
    for name, value in {"ROWS": 8, "COLUMNS": 16, "FEWER": 8, "TILE": 8}.items():
        monkeypatch.setattr(_attention_layout, name, value)
    monkeypatch.setattr(_flash, "NEAR", 1e-4)
    kernels = pallas.gpu_kernels(interpreter.InterpretGPUParams(uninitialized_memory="nan"))
    any_dtype = {name: dataclasses.replace(kernels[name], refuses=lambda *_, **__: None) for name in kernels}
    monkeypatch.setitem(_kernels.TABLE, "pallas", any_dtype)


def draw(seed, *shape):
    # Of a size that makes weights of a few keys, so that some blocks have none.
    return 1.5 * normal(seed, *shape)


LENGTHS = {"query_seq_lengths": np.int32([11]), "key_value_seq_lengths": np.int32([19])}
# Hyper-parameters of entmax, a bias, and options: each of the ways to its weights once.
CASES = {
    "alphas of 1 and 1.5, a gamma a head, window, a bias a pair, a mask for all queries": (
        {"alpha": per_head(1.0, 1.5), "gamma": per_head(0.7, 1.3)},
        draw(3, 1, N, T, S),
        {"local_window_size": (5, 3), "mask": np.arange(S) % 5 != 2},
    ),
    "alphas of 2 and 1.3, causal, lengths, a bias a key, a mask a pair": (
        {"alpha": per_head(2.0, 1.3), "gamma": f32(0.8)},
        draw(4, B, 1, 1, S),
        {"is_causal": True, "mask": (normal(5, 1, 1, T, S) > -1) & (np.arange(S) != 2), **LENGTHS},
    ),
}
PAIRS, KEYS = CASES


def attention_of(case, implementation):
    """Attention as a function of (query, key, value, bias, hyper-parameters, scale), and arguments."""
    params, bias, options = CASES[case]

    def attend(q, k, v, bias, params, scale):
        of_params = functools.partial(sm.entmax, **params)
        return sm.dot_product_attention(
            q, k, v, bias, mapping=of_params, scale=scale, implementation=implementation, **options
        )

    return attend, (draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, V), bias.copy(), params, f32(0.6))


assert_close = functools.partial(cases.assert_close, heads=N)


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_plain_form(case):
    by_kernels, args = attention_of(case, "pallas")
    plain, _ = attention_of(case, "xla")
    bar = draw(9, B, T, N, V)
    # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
    assert_close(pulled(by_kernels, bar)(*args), pulled(plain, bar)(*args), 2e-5)


def test_bad_queries_and_padding():
    """What is not finite stays with its query; padding and a key that a mask hides may hold anything; a bias of -inf
    hides a key too."""
    by_kernels, (q, k, v, bias, *others) = attention_of(KEYS, "pallas")
    bias[..., 4], v[0, 4] = -np.inf, 1e6
    call = jax.jit(lambda q, k, v: by_kernels(q, k, v, bias, *others))
    clean = np.asarray(call(q, k, v))
    assert np.abs(clean).max() < 10
    q, k, v = q.copy(), k.copy(), v.copy()
    q[0, 3, 1], q[0, 5, 0], q[0, 11:], k[0, 2], k[0, 19:], v[0, 19:] = np.nan, np.inf, np.nan, np.nan, np.inf, np.nan
    y = np.array(call(q, k, v))
    for query in ((0, 3, 1), (0, 5, 0)):
        assert np.isnan(y[query]).all()
        y[query] = clean[query]
    np.testing.assert_array_equal(y, clean)


def test_a_search_that_did_not_arrive_says_nan(monkeypatch):
    monkeypatch.setattr(_flash, "MAX_PASSES", 0)
    by_kernels, args = attention_of(PAIRS, "pallas")
    output, bars = pulled(by_kernels, draw(9, B, T, N, V))(*args)
    assert np.isnan(output).all()
    assert np.isnan(bars[0]).any()


def test_vmap_is_a_larger_batch():
    q, k, v = draw(0, 2, 2, 8, N, H), draw(1, 2, 16, K, H), draw(2, 2, 16, K, V)
    bias, mask = draw(3, 1, 1, 1, 16), normal(4, 2, 1, 8, 16) > -1  # shared by the batch, and not
    kernel = _kernels.TABLE["pallas"]["attention"].call
    scales = np.float32([0.3, 0.6])

    def one(q, scale):
        return kernel(q, k, v, bias, scale, f32(1.5), f32(1), mask, None, None)[0]

    together, alone = np.asarray(jax.jit(jax.vmap(one))(q, scales)), jax.jit(one)
    for i in range(2):
        np.testing.assert_array_equal(together[i], alone(q[i], scales[i]))


def test_what_a_kernel_refuses(monkeypatch):
    refuses = pallas.gpu_kernels()["attention"].refuses
    monkeypatch.setattr(_attention_layout, "TILE", 64)
    monkeypatch.setattr(_attention_layout, "ROWS", 64)
    monkeypatch.setattr(_attention_layout, "COLUMNS", 128)

    def refusal(length=128, dtype=jnp.bfloat16, size=64, bias=None, mask=None):
        q = jax.ShapeDtypeStruct((1, length, 2, size), dtype)
        return refuses(q, q, q, bias, None, None, None, mask, None, None)

    assert refusal() is None
    assert "bfloat16, as the matrix unit does, not float32" in refusal(dtype=f32)
    assert refusal(bias=jnp.zeros((1, 1, 1, 128)), mask=jnp.ones((1, 1, 128, 128), bool)) is None
    assert "a bias of shape (1, 1, 128, 1) is one for each query" in refusal(bias=jnp.zeros((1, 1, 128, 1)))
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
