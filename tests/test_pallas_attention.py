"""Flash attention for sparse mappings, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

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

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas.tpu import _attention_layout, _flash, _tiles

f32 = jnp.float32
B, T, S, N, K, H, V = 2, 20, 37, 4, 2, 8, 6  # two query heads share a key head; no length is whole blocks

pytestmark = pytest.mark.usefixtures("no_x64", "interpreted")


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(_attention_layout, "ROWS", 8)
    monkeypatch.setattr(_attention_layout, "COLUMNS", 16)
    monkeypatch.setitem(_kernels.TABLE, "pallas", pallas.kernels(interpret=True))


def draw(seed, *shape):
    # Of a size that makes weights of a few keys, so that some blocks have none.
    return 1.5 * normal(seed, *shape)


def seen(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape) < 0.6


LENGTHS = {"query_seq_lengths": np.int32([20, 7]), "key_value_seq_lengths": np.int32([37, 3])}
# A mapping, its hyper-parameters, and options.
CASES = {
    "one alpha and gamma a head, window": (
        sm.entmax,
        {"alpha": per_head(1.05, 1.5, 1.9, 2.0), "gamma": per_head(0.7, 1.0, 1.3, 2.0)},
        {"local_window_size": (5, 3)},
    ),
    "sparsemax, causal, lengths": (sm.sparsemax, {"gamma": f32(0.8)}, {"is_causal": True, **LENGTHS}),
    "softmax, window, causal": (sm.softmax, {}, {"is_causal": True, "local_window_size": 9}),
    "mask and bias": (
        sm.entmax,
        {"alpha": f32(1.5), "gamma": f32(0.5)},
        {"mask": seen(4, B, 1, T, S), "bias": draw(5, 1, N, T, S)},
    ),
    "bias of keys and a gamma a head": (
        sm.entmax,
        {"alpha": f32(1.3), "gamma": per_head(0.5, 1.0, 1.5, 2.0)},
        {"mask": seen(6, B, 1, 1, S), "bias": draw(7, B, 1, 1, S), "is_causal": True},
    ),
    "bias for all heads, in blocks": (sm.entmax, {"alpha": f32(1.7)}, {"bias": draw(7, T, S), "block_size": 8}),
}


def attention_of(case, implementation):
    """Attention as a function of (query, key, value, hyper-parameters, scale, bias), and arguments."""
    mapping, params, options = CASES[case]
    options = dict(options)
    bias = options.pop("bias", None)

    def attend(q, k, v, params, scale, bias):
        of_params = functools.partial(mapping, **params)
        return sm.dot_product_attention(
            q, k, v, bias, mapping=of_params, scale=scale, implementation=implementation, **options
        )

    return attend, (draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, V), params, f32(0.6), bias)


assert_close = functools.partial(cases.assert_close, heads=N)


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_plain_form(case):
    by_kernels, args = attention_of(case, "pallas")
    plain, _ = attention_of(case, "xla")
    bar = draw(9, B, T, N, V)
    # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
    assert_close(pulled(by_kernels, bar)(*args), pulled(plain, bar)(*args), 2e-5)


def test_a_search_that_did_not_arrive_says_nan(monkeypatch):
    monkeypatch.setattr(_flash, "MAX_PASSES", 1)
    by_kernels, args = attention_of("bias for all heads, in blocks", "pallas")
    plain, _ = attention_of("bias for all heads, in blocks", "xla")
    output, bars = jax.tree.map(np.asarray, pulled(by_kernels, draw(9, B, T, N, V))(*args))
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

    assert_close(attend("pallas"), attend("xla"), 2e-5)


def test_heads_too_large_to_be_held_twice(monkeypatch):
    """What lies in memory once gives the same numbers, to the last bit."""
    attend, args = attention_of("mask and bias", "pallas")
    twice = pulled(attend, draw(9, B, T, N, V))(*args)
    query, key, value, *_, bias = args
    mask = CASES["mask and bias"][2]["mask"]
    monkeypatch.setattr(_tiles, "VECTOR_MEMORY", _attention_layout.held(query, key, value, bias, mask))
    assert _attention_layout.plan_of(query, key, value, bias, mask, False, None).buffers == 1
    assert_close(pulled(attend, draw(9, B, T, N, V))(*args), twice, 0)
    monkeypatch.setattr(_tiles, "VECTOR_MEMORY", _tiles.VECTOR_MEMORY - 1)
    with pytest.raises(NotImplementedError, match="vector memory"):
        attend(*args)


def test_bfloat16():
    """Against the plain form on the same numbers in float32: it rounds more where it is in half precision itself."""
    by_kernels, (*qkv, params, scale, bias) = attention_of("sparsemax, causal, lengths", "pallas")
    plain, _ = attention_of("sparsemax, causal, lengths", "xla")
    bar = draw(9, B, T, N, V).astype(jnp.bfloat16)
    half = [a.astype(jnp.bfloat16) for a in qkv]
    results = pulled(by_kernels, bar)(*half, params, scale, bias)
    expected = pulled(plain, bar.astype(f32))(*[a.astype(f32) for a in half], params, scale, bias)
    assert results[0].dtype == jnp.bfloat16
    # Weights and gradients of scores are rounded to 8 bits before the last product, and so are the results.
    assert_close(results, expected, 2e-2)


def test_gradients_of_gradients_and_vmap():
    by_kernels, args = attention_of("bias of keys and a gamma a head", "pallas")
    plain, _ = attention_of("bias of keys and a gamma a head", "xla")

    def twice(attend):
        def length(*args):
            gradients = jax.grad(lambda *args: jnp.sum(jnp.sin(attend(*args))), (0, 3))(*args)
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))

        return jax.jit(jax.grad(length, (0, 2, 3)))(*args)

    # The first gradients differ by 2e-5, and so do weights whose products are summed here.
    assert_close(twice(by_kernels), twice(plain), 1e-4)
    q, *others = args
    alone = jax.jit(lambda q: by_kernels(q, *others))
    mapped = jax.jit(jax.vmap(alone))(np.stack([q, 2 * q]))
    assert_close(mapped, np.stack([alone(q), alone(2 * q)]), 1e-6)


def test_without_a_name_it_is_taken_where_it_serves(monkeypatch):
    """A traced alpha may be above 2: plain JAX takes its place then, and in a program for another platform."""
    case = "one alpha and gamma a head, window"
    attend, (*qkv, params, scale, bias) = attention_of(case, None)
    plain, _ = attention_of(case, "xla")
    text = lambda: str(jax.make_jaxpr(lambda *args: attend(*args))(*qkv, params, scale, bias))
    assert "pallas_call" not in text()
    kernels = {name: dataclasses.replace(k, default=True) for name, k in pallas.kernels(interpret=True).items()}
    only = {name: kernels[name] for name in ("attention", "attention_bars")}
    monkeypatch.setitem(_kernels.TABLE, "pallas", only)
    monkeypatch.setitem(_kernels.TABLE, "native", {})
    assert "pallas_call" in text()
    call, expected = pulled(attend, draw(9, B, T, N, V)), pulled(plain, draw(9, B, T, N, V))
    for alpha in (params["alpha"], 2 * params["alpha"]):
        args = *qkv, {**params, "alpha": alpha}, scale, bias
        assert_close(call(*args), expected(*args), 2e-5)
    known = functools.partial(sm.dot_product_attention, *qkv, mapping=functools.partial(sm.entmax, alpha=2.5))
    assert "pallas_call" not in str(jax.make_jaxpr(known)())
    platforms = {name: dataclasses.replace(kernel, platforms=("tpu",)) for name, kernel in only.items()}
    monkeypatch.setitem(_kernels.TABLE, "pallas", platforms)
    args = *qkv, params, scale, bias
    assert_close(pulled(attend, draw(9, B, T, N, V))(*args), expected(*args), 2e-5)


def test_shared_by_devices():
    """Heads over devices by `shard_map`; gradients of what they share are sums over them."""
    by_kernels, args = attention_of("mask and bias", "pallas")
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = PartitionSpec(None, None, "devices")
    specs = heads, heads, heads, PartitionSpec(), PartitionSpec(), PartitionSpec(None, "devices")

    def loss(attend):
        def gradients(*args):
            return jax.grad(lambda *args: jnp.sum(jnp.sin(attend(*args))), (0, 2, 3, 4, 5))(*args)

        return jax.jit(gradients)(*args)

    with jax.set_mesh(mesh):
        # The interpreter itself does not keep track of what varies.
        alone = loss(jax.shard_map(by_kernels, in_specs=specs, out_specs=heads, check_vma=False))
    assert_close(alone, loss(by_kernels), 2e-5)


def test_what_is_not_finite_stays_with_its_query():
    by_kernels, (q, *others) = attention_of("mask and bias", "pallas")
    call = jax.jit(lambda q: by_kernels(q, *others))
    clean = np.asarray(call(q))
    for bad in (np.nan, np.inf):
        q[0, 3, 1] = bad
        y = np.array(call(q))
        assert np.isnan(y[0, 3, 1]).all()
        y[0, 3, 1] = clean[0, 3, 1]
        np.testing.assert_array_equal(y, clean)


def test_hyper_parameters_out_of_range():
    by_kernels, (*qkv, params, scale, bias) = attention_of("mask and bias", "pallas")
    for bad in ({"alpha": f32(2.5)}, {"gamma": f32(0)}, {"alpha": f32(jnp.nan)}):
        assert np.isnan(jax.jit(by_kernels)(*qkv, {**params, **bad}, scale, bias)).all()


def test_padding_may_hold_anything():
    by_kernels, (q, k, v, *others) = attention_of("sparsemax, causal, lengths", "pallas")
    call = pulled(by_kernels, draw(9, B, T, N, V))
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
    qkv = draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, V)
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
    monkeypatch.setitem(_kernels.TABLE, "pallas", pallas.kernels())
    assert "runs on tpu" in refusal(8)
