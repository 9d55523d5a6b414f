"""Flash attention for GPUs, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

Blocks are small here, so that there are several, and numbers are float32, so that one sees more than the rounding of
bfloat16. The interpreter has the products in plain JAX: those of the matrix unit are for a GPU.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal, pulled
from jax.sharding import PartitionSpec
from machines import ATTENTION, draw, interpret_attention, on_gpus

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas.gpu import _attention_layout, _flash

pytestmark = [on_gpus, pytest.mark.usefixtures("no_x64", "interpreted")]

f32 = jnp.float32
gpu = ATTENTION["gpu"]
_, _, _, N, K, H, V = gpu.sizes
PAIRS, KEYS = gpu.cases


@pytest.fixture
def interpreted(monkeypatch):
    interpret_attention("gpu", monkeypatch)


def test_bad_queries_and_padding():
    """What is not finite stays with its query; padding and a key that a mask hides may hold anything; a bias of -inf
    hides a key too."""
    by_kernels, (q, k, v, bias, *others) = gpu.of(KEYS, "pallas")
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
    by_kernels, args = gpu.of(PAIRS, "pallas")
    output, bars = pulled(by_kernels, gpu.bar())(*args)
    assert np.isnan(output).all()
    assert np.isnan(bars[0]).any()


def test_vmap_is_a_larger_batch():
    q, k, v = draw(0, 2, 2, 8, N, H), draw(1, 2, 16, K, H), draw(2, 2, 16, K, V)
    bias, mask = draw(3, 1, 1, 1, 16), normal(4, 2, 1, 8, 16) > -1  # shared by the batch, and not
    [kernel] = _kernels.TABLE["pallas"]["attention"]
    scales = np.float32([0.3, 0.6])

    def one(q, scale):
        return kernel.call(q, k, v, bias, scale, f32(1.5), f32(1), mask, None, None)[0]

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
