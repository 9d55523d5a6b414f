"""Flash attention on TPUs, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

Blocks are small here, so that there are several; on a TPU they have the sizes that `_attention_layout.py` gives.
"""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal, per_head, pulled, refuse
from jax.sharding import PartitionSpec
from machines import ATTENTION, interpret_attention, take

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas.tpu import _attention_layout, _flash, _tiles

f32 = jnp.float32
tpu = ATTENTION["tpu"]
B, T, S, N, K, H, V = tpu.sizes
assert_close = tpu.assert_close

pytestmark = pytest.mark.usefixtures("no_x64", "interpreted")


@pytest.fixture
def interpreted(monkeypatch):
    interpret_attention("tpu", monkeypatch)


def test_a_search_that_did_not_arrive_says_nan(monkeypatch):
    monkeypatch.setattr(_flash, "MAX_PASSES", 1)
    by_kernels, args = tpu.of("bias for all heads, in blocks", "pallas")
    plain = tpu.plain("bias for all heads, in blocks")
    output, bars = jax.tree.map(np.asarray, pulled(by_kernels, tpu.bar())(*args))
    missing = np.isnan(output)
    assert missing.mean() > 0.5
    # Queries with one weight arrive at once.
    np.testing.assert_allclose(output[~missing], np.asarray(jax.jit(plain)(*args))[~missing], rtol=0, atol=4e-5)
    assert np.isnan(bars[0]).any()


def test_many_small_weights_beside_a_large_one(monkeypatch):
    """Next to the border of the support, where a threshold's rounding counts as often as there are keys."""
    monkeypatch.setattr(_attention_layout, "COLUMNS", 256)
    alphas, keys = np.float32([1.2, 1.5, 1.9, 2.0]), 2000
    problems = [{"alpha": float(alpha), "gamma": 1.0} for alpha in alphas]
    bias = np.stack([cases.next_to_the_border(cases.BY_ID["entmax1.5"], problem, keys, T) for problem in problems])

    def attend(implementation):
        def of_values(v):
            q, k = np.zeros((1, T, N, H), f32), np.zeros((1, keys, K, H), f32)
            mapping = functools.partial(sm.entmax, alpha=per_head(*alphas))
            return sm.dot_product_attention(q, k, v, bias[None], mapping=mapping, implementation=implementation)

        # Gradients for the scores go with powers of weights: there they are worth nothing, by any form.
        return pulled(of_values, normal(1, 1, T, N, V))(normal(2, 1, keys, K, V))

    assert_close(attend("pallas"), attend(None), 2e-5)


def test_heads_too_large_to_be_held_twice(monkeypatch):
    """What lies in memory once gives the same numbers, to the last bit."""
    attend, args = tpu.of("mask and bias", "pallas")
    twice = pulled(attend, tpu.bar())(*args)
    query, key, value, bias, *_ = args
    mask = tpu.cases["mask and bias"][3]["mask"]
    monkeypatch.setattr(_tiles, "VECTOR_MEMORY", _attention_layout.held(query, key, value, bias, mask))
    assert _attention_layout.plan_of(query, key, value, bias, mask, False, None).buffers == 1
    assert_close(pulled(attend, tpu.bar())(*args), twice, 0)
    monkeypatch.setattr(_tiles, "VECTOR_MEMORY", _tiles.VECTOR_MEMORY - 1)
    with pytest.raises(NotImplementedError, match="vector memory"):
        attend(*args)


def test_bfloat16():
    """Against the plain form on the same numbers in float32: it rounds more where it is in half precision itself."""
    by_kernels, (*qkv, bias, params, scale) = tpu.of("sparsemax, causal, lengths", "pallas")
    plain = tpu.plain("sparsemax, causal, lengths")
    bar = tpu.bar().astype(jnp.bfloat16)
    half = [a.astype(jnp.bfloat16) for a in qkv]
    results = pulled(by_kernels, bar)(*half, bias, params, scale)
    expected = pulled(plain, bar.astype(f32))(*[a.astype(f32) for a in half], bias, params, scale)
    assert results[0].dtype == jnp.bfloat16
    # Weights and gradients of scores are rounded to 8 bits before the last product, and so are the results.
    assert_close(results, expected, 2e-2)


def test_gradients_of_gradients_and_vmap():
    by_kernels, args = tpu.of("bias of keys and a gamma a head", "pallas")
    plain = tpu.plain("bias of keys and a gamma a head")

    def twice(attend):
        def length(*args):
            gradients = jax.grad(lambda *args: jnp.sum(jnp.sin(attend(*args))), (0, 4))(*args)
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

        return jax.jit(jax.grad(length, (0, 2, 4)))(*args)

    # The first gradients differ by 2e-5, and so do weights whose products are summed here.
    assert_close(twice(by_kernels), twice(plain), 1e-4)
    q, *others = args
    alone = jax.jit(lambda q: by_kernels(q, *others))
    mapped = jax.jit(jax.vmap(alone))(np.stack([q, 2 * q]))
    assert_close(mapped, np.stack([alone(q), alone(2 * q)]), 1e-6)


def test_without_a_name_it_is_taken_where_it_serves(monkeypatch):
    """A traced alpha may be above 2: plain JAX takes its place then, and in a program for another platform."""
    case = "one alpha and gamma a head, window"
    attend, (*qkv, bias, params, scale) = tpu.of(case, None)
    alphas = params["alpha"], 2 * params["alpha"]
    several = [(*qkv, bias, {**params, "alpha": alpha}, scale) for alpha in alphas]
    plain = pulled(tpu.plain(case), tpu.bar())
    expected = [plain(*args) for args in several]  # as long as no kernel is taken
    text = lambda: str(jax.make_jaxpr(lambda *args: attend(*args))(*qkv, bias, params, scale))
    assert "pallas_call" not in text()
    kernels = {name: dataclasses.replace(k, default=True) for name, k in pallas.kernels(interpret=True).items()}
    only = {name: kernels[name] for name in ("attention", "attention_bars")}
    take(monkeypatch, only)
    monkeypatch.setitem(_kernels.TABLE, "native", {})
    assert "pallas_call" in text()
    call = pulled(attend, tpu.bar())
    for args, wanted in zip(several, expected, strict=True):
        assert_close(call(*args), wanted, 2e-5)
    known = functools.partial(sm.dot_product_attention, *qkv, mapping=functools.partial(sm.entmax, alpha=2.5))
    assert "pallas_call" not in str(jax.make_jaxpr(known)())
    platforms = {name: dataclasses.replace(kernel, platforms=("tpu",)) for name, kernel in only.items()}
    take(monkeypatch, platforms)
    assert_close(pulled(attend, tpu.bar())(*several[0]), expected[0], 2e-5)


def test_shared_by_devices():
    """Heads over devices by `shard_map`; gradients of what they share are sums over them."""
    by_kernels, args = tpu.of("mask and bias", "pallas")
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = PartitionSpec(None, None, "devices")
    specs = heads, heads, heads, PartitionSpec(None, "devices"), PartitionSpec(), PartitionSpec()

    def loss(attend):
        def gradients(*args):
            return jax.grad(lambda *args: jnp.sum(jnp.sin(attend(*args))), (0, 2, 3, 4, 5))(*args)

        return jax.jit(gradients)(*args)

    with jax.set_mesh(mesh):
        # The interpreter itself does not keep track of what varies.
        alone = loss(jax.shard_map(by_kernels, in_specs=specs, out_specs=heads, check_vma=False))
    assert_close(alone, loss(by_kernels), 2e-5)


def test_what_is_not_finite_stays_with_its_query():
    by_kernels, (q, *others) = tpu.of("mask and bias", "pallas")
    call = jax.jit(lambda q: by_kernels(q, *others))
    clean = np.asarray(call(q))
    for bad in (np.nan, np.inf):
        q[0, 3, 1] = bad
        y = np.array(call(q))
        assert np.isnan(y[0, 3, 1]).all()
        y[0, 3, 1] = clean[0, 3, 1]
        np.testing.assert_array_equal(y, clean)


def test_hyper_parameters_out_of_range():
    by_kernels, (*qkv, bias, params, scale) = tpu.of("mask and bias", "pallas")
    for bad in ({"alpha": f32(2.5)}, {"gamma": f32(0)}, {"alpha": f32(jnp.nan)}):
        assert np.isnan(jax.jit(by_kernels)(*qkv, bias, {**params, **bad}, scale)).all()


def test_padding_may_hold_anything():
    by_kernels, (q, k, v, *others) = tpu.of("sparsemax, causal, lengths", "pallas")
    call = pulled(by_kernels, tpu.bar())
    clean = call(q, k, v, *others)
    q, k, v = q.copy(), k.copy(), v.copy()
    q[1, 7:], k[1, 3:], v[1, 3:] = np.nan, np.inf, np.nan
    np.testing.assert_array_equal(jax.jit(by_kernels)(q, k, v, *others), clean[0])
    assert_close(call(q, k, v, *others), clean, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mapping": sm.fusedmax}, ["Shannon, SquaredL2 and Tsallis", "TotalVariation", "functools.partial"]),
        ({"mapping": functools.partial(sm.entmax, alpha=2.5)}, ["alpha from 1 to 2", "2.5"]),
        ({"mapping": functools.partial(sm.entmax, alpha=jnp.full((T, 1), 1.5))}, ["one a head", str((T, 1))]),
        ({"mapping": functools.partial(sm.sparsemax, implementation="native")}, ["its own", "'native'"]),
        ({"mapping": sm.conjugate(sm.SquaredL2() + 0.1 * sm.Oscar())}, ["Oscar", "over Simplex"]),
        ({"mapping": sm.conjugate(sm.FermiDirac(), sm.CappedSimplex(2))}, ["CappedSimplex"]),
        ({"mapping": sm.forward_mode(sm.conjugate(sm.SquaredL2()))}, ["forward mode"]),
        ({"mapping": sm.length_scaled(sm.sparsemax)}, ["LengthScaled"]),
        ({"return_weights": True}, ["return_weights"]),
        ({"bias": jnp.zeros((T, 1))}, ["leave it out"]),
    ],
)
def test_what_it_refuses(options, words):
    qkv = tpu.qkv()
    refuse(
        lambda: sm.dot_product_attention(*qkv, implementation="pallas", **{"mapping": sm.sparsemax} | options),
        *words,
        "implementation='pallas' cannot serve here",
        "implementation='xla'",
        error=NotImplementedError,
    )


def test_arrays_that_it_refuses(monkeypatch):
    def refusal(length, dtype=f32, size=64):
        attend = functools.partial(sm.dot_product_attention, mapping=sm.sparsemax, implementation="pallas")
        try:
            jax.eval_shape(attend, *[jax.ShapeDtypeStruct((1, length, 2, size), dtype)] * 3)
        except NotImplementedError as error:
            return str(error)

    monkeypatch.setattr(_attention_layout, "ROWS", 128)
    monkeypatch.setattr(_attention_layout, "COLUMNS", 256)
    assert "float16" in refusal(8, jnp.float16)
    assert "head of size 64 with 131072 keys" in refusal(2**17)
    assert "head of size 4096" in refusal(2**12, size=4096)
    assert refusal(2**15) is None
    take(monkeypatch, pallas.kernels())
    assert "runs on tpu" in refusal(8)
