"""Flash attention for sparse mappings, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

Blocks are small here, so that there are several; on a TPU they have the sizes that `_attention.py` gives as defaults.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothmax as sm
from smoothmax._kernels.pallas._attention import attention, refuses_attention

f32 = jnp.float32
B, T, S, N, K, H, V = 2, 20, 37, 4, 2, 8, 6  # two query heads share a key head; no length is whole blocks
BLOCKS = (8, 16)


def draw(seed, *shape):
    # Of a size that makes weights of a few keys, so that some blocks have none.
    return 1.5 * jax.random.normal(jax.random.key(seed), shape, f32)


def seen(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape) < 0.6


CASES = {
    "one alpha a head, window": {"alpha": jnp.asarray([1.05, 1.5, 1.9, 2.0], f32)[:, None, None], "window": (5, 3)},
    "sparsemax, causal, lengths": {
        "alpha": f32(2),
        "is_causal": True,
        "query_lengths": np.int32([20, 7]),
        "key_lengths": np.int32([37, 3]),
    },
    "mask and bias": {"alpha": f32(1.5), "mask": seen(4, B, 1, T, S), "bias": draw(5, 1, N, T, S)},
    "mask and bias of keys": {
        "alpha": f32(1.3),
        "mask": seen(6, B, 1, 1, S),
        "bias": draw(7, B, 1, 1, S),
        "is_causal": True,
    },
}
NAMES = {
    "window": "local_window_size",
    "query_lengths": "query_seq_lengths",
    "key_lengths": "key_value_seq_lengths",
    "is_causal": "is_causal",
}


def both_ways(dtype, alpha, bias=None, mask=None, **rules):
    """The kernels and the plain form as functions of (query, key, value, alpha, scale, bias), and arguments."""

    def by_kernels(q, k, v, alpha, scale, bias):
        return attention(q, k, v, alpha, scale, bias, mask, blocks=BLOCKS, interpret=True, **rules)

    def plain(q, k, v, alpha, scale, bias):
        options = {NAMES[name]: rule for name, rule in rules.items()}
        mapping = functools.partial(sm.entmax, alpha=alpha)
        return sm.dot_product_attention(q, k, v, bias, mask, mapping=mapping, scale=scale, **options)

    qkv = [draw(i, B, length, heads, size).astype(dtype) for i, (length, heads, size) in
           enumerate(((T, N, H), (S, K, H), (S, K, V)))]  # fmt: skip
    return by_kernels, plain, (*qkv, alpha, f32(0.6), bias)


def pulled(function, bar):
    def call(*args):
        output, pull = jax.vjp(function, *args)
        return output, pull(bar)

    return jax.jit(call)


@pytest.mark.usefixtures("no_x64")
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_plain_form(case):
    by_kernels, plain, args = both_ways(f32, **CASES[case])
    bar = draw(9, B, T, N, V)
    results, expected = (jax.tree.leaves(pulled(f, bar)(*args)) for f in (by_kernels, plain))
    for a, b in zip(results, expected, strict=True):
        # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.usefixtures("no_x64")
def test_bfloat16():
    """Against the plain form on the same numbers in float32: it rounds more where it is in half precision itself."""
    by_kernels, plain, args = both_ways(jnp.bfloat16, alpha=f32(1.5), is_causal=True)
    bar = draw(9, B, T, N, V).astype(jnp.bfloat16)
    results = pulled(by_kernels, bar)(*args)
    expected = pulled(plain, bar.astype(f32))(*jax.tree.map(lambda a: a.astype(f32), args))
    assert results[0].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        # Weights and gradients of scores are rounded to 8 bits before the last product, and so are the results.
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=2e-2 * max(1, np.abs(b).max()))


@pytest.mark.usefixtures("no_x64")
def test_what_is_not_finite_stays_with_its_query():
    by_kernels, _, (q, k, v, alpha, scale, _) = both_ways(f32, alpha=f32(1.5))
    call = jax.jit(lambda q, alpha: by_kernels(q, k, v, alpha, scale, None))
    clean, y = call(q, alpha), call(q.at[0, 3, 1].set(jnp.nan), alpha)
    assert np.isnan(y[0, 3, 1]).all()
    np.testing.assert_array_equal(y.at[0, 3, 1].set(clean[0, 3, 1]), clean)
    assert np.isnan(call(q, f32(2.5))).all()


def test_what_it_refuses():
    shape = lambda length, dtype=f32: jax.ShapeDtypeStruct((1, length, 2, 64), dtype)
    assert refuses_attention(shape(8), shape(8), shape(8)) is None
    assert "float16" in refuses_attention(*[shape(8, jnp.float16)] * 3)
    assert "vector memory" in refuses_attention(shape(8), shape(2**17), shape(2**17))
    assert refuses_attention(*[shape(2**15, jnp.bfloat16)] * 3) is None
