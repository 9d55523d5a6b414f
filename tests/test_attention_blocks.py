"""Attention in blocks of queries: the same numbers, without the score matrix."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal
from test_attention import MAPPINGS, OPTIONS, B, H, K, N, S, T, visible

import smoothmax as sm
from smoothmax._attention import dot_product_attention

f32 = jnp.float32
QKV = normal(0, B, T, N, H), normal(1, B, S, K, H), normal(2, B, S, K, H)


def outputs_and_gradients(**static):
    """Compiled for queries, keys and values, and for options that are arrays: a loss that weighs all outputs
    differently, the outputs, and gradients in everything that has one."""

    @jax.jit
    def run(qkv, arrays):
        def loss(qkv, bias):
            options = arrays if bias is None else arrays | {"bias": bias}
            output = dot_product_attention(*qkv, **options, **static)
            return jnp.sum(normal(7, *output.shape) * output), output

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(qkv, arrays.get("bias"))

    return run


of_all = outputs_and_gradients()


CASES = [
    *[((name,), 3) for name in OPTIONS],
    (("bias", "mask", "is_causal", "key_value_seq_lengths"), 1),  # as many stretches as there can be, no rest
    (("bias", "is_causal"), 100),  # one block, longer than the queries
    (("is_causal",), 7),  # one block, exactly as long
    (tuple(OPTIONS), 2),
]


@pytest.mark.parametrize(("names", "block_size"), CASES)
def test_blocks_change_nothing(names, block_size):
    """Compared with all scores at once, what a query may see being told by a mask alone."""
    options = {name: OPTIONS[name] for name in names}
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    blocked = outputs_and_gradients(block_size=block_size, **{k: v for k, v in options.items() if k not in arrays})
    bias, scale = options.get("bias", np.zeros_like(OPTIONS["bias"])), options.get("scale", 1 / np.sqrt(H))
    whole, (of_qkv, of_bias) = of_all(QKV, {"bias": bias, "mask": visible(options), "scale": f32(scale)})
    expected = whole, (of_qkv, of_bias if "bias" in options else None)
    for a, b in zip(*map(jax.tree.leaves, (blocked(QKV, arrays), expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in MAPPINGS if name != "softmax"])
def test_each_mapping_in_blocks(name):
    mask = OPTIONS["mask"][:, :, :6]

    def loss(query, block_size):
        output = dot_product_attention(query, *QKV[1:], mask=mask, mapping=MAPPINGS[name], block_size=block_size)
        return jnp.sum(normal(7, *output.shape) * output)

    query = QKV[0][:, :6]
    whole, blocked = (jax.jit(jax.grad(partial(loss, block_size=size)))(query) for size in (None, 3))
    np.testing.assert_allclose(whole, blocked, atol=5e-5)


@pytest.mark.parametrize("window", [0, (2, 0), (0, 3), (-1, 2), (1, -2), (20, 20)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_windows_that_leave_the_keys(window, is_causal):
    """Slices of the keys are moved inwards at both ends; the mask and a bias for each key have to follow them."""
    bias = normal(9, 1, 1, 1, S)
    attend = partial(dot_product_attention, bias=bias, local_window_size=window, is_causal=is_causal)
    np.testing.assert_allclose(*jax.jit(lambda *qkv: (attend(*qkv, block_size=2), attend(*qkv)))(*QKV), atol=1e-6)


@pytest.mark.parametrize("size", [None, 2])
def test_a_window_without_an_end_on_one_side(size):
    windows = [window for far in (2**31 - 1, 2**40, sys.maxsize) for window in (far, (far, 0))]

    @jax.jit
    def attentions(*qkv):
        attend = partial(dot_product_attention, *qkv)
        expected = attend(), attend(is_causal=True)
        return expected, [attend(block_size=size, local_window_size=window) for window in windows]

    expected, outputs = attentions(*QKV)
    for output, all_or_causal in zip(outputs, 3 * expected, strict=True):
        np.testing.assert_allclose(output, all_or_causal, atol=1e-6)


def test_hyper_parameters_of_a_conjugate_built_inside():
    def loss(theta, block_size):
        mapping = sm.conjugate(theta["gamma"] * (sm.Tsallis(theta["alpha"]) + theta["lam"] * sm.TotalVariation()))
        return jnp.sum(dot_product_attention(QKV[0][:, :6], *QKV[1:], mapping=mapping, block_size=block_size) ** 2)

    theta = {"alpha": jnp.array(1.4, f32), "gamma": jnp.array(0.7, f32), "lam": jnp.array(0.05, f32)}
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    whole, blocked = grad(theta, None), grad(theta, 3)
    for name in theta:
        assert abs(whole[name]) > 1e-3
        np.testing.assert_allclose(whole[name], blocked[name], rtol=1e-4)


def test_no_row_of_scores_outlives_its_block():
    """Neither pass holds an array of T times S, and what grows with T alone stays below it."""
    length, block_size = 1024, 32
    q = normal(0, 1, length, 1, 16)

    def compiled(block_size):
        def loss(q, k, v):
            return jnp.sum(dot_product_attention(q, k, v, mapping=sm.sparsemax, is_causal=True, block_size=block_size))

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()

    scores = 4 * length**2
    assert compiled(None).memory_analysis().temp_size_in_bytes > scores
    blocked = compiled(block_size)
    assert blocked.memory_analysis().temp_size_in_bytes < scores / 2
    assert f"{length},{length}" not in blocked.as_text()


def test_the_forward_pass_stores_only_its_arguments():
    q = normal(0, 1, 256, 1, 16)
    attend = partial(dot_product_attention, mapping=sm.sparsemax, is_causal=True, block_size=32)
    stored = jax.eval_shape(lambda q: jax.vjp(attend, q, q, q)[1], q)
    assert sum(leaf.size for leaf in jax.tree.leaves(stored)) <= 3 * q.size + 64


def test_second_derivatives_in_blocks():
    q = normal(0, 1, 6, 1, 4, dtype=jnp.float64)

    def loss(q, block_size):
        return jnp.sum(dot_product_attention(q, q, q, mapping=sm.sparsemax, block_size=block_size) ** 3)

    direction = normal(1, *q.shape, dtype=jnp.float64)
    second = [
        jax.jit(jax.grad(lambda q, size=size: jnp.vdot(jax.grad(loss)(q, size), direction)))(q) for size in (None, 3)
    ]
    np.testing.assert_allclose(second[0], second[1], atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"block_size": 2}, {"block_size": 2, "skip_zeros": True}], ids=str)
@pytest.mark.parametrize(("batch", "rows"), [(B, 0), (0, T), (0, 0)], ids=["no queries", "no batch", "neither"])
def test_nothing_to_attend(batch, rows, options):
    q, k, v = np.zeros((batch, rows, N, H)), np.zeros((batch, S, K, H)), np.zeros((batch, S, K, H))
    bias, mask, lengths = np.zeros((batch, N, rows, S)), np.ones((batch, 1, rows, S), bool), np.ones(batch, int)

    def total(q, k, v, bias):
        output = dot_product_attention(
            *(q, k, v, bias, mask), mapping=sm.sparsemax, is_causal=True, key_value_seq_lengths=lengths, **options
        )
        assert output.shape == q.shape
        return output.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(q, k, v, bias)
    for gradient, argument in zip(gradients, (q, k, v, bias), strict=True):
        assert gradient.shape == argument.shape and not np.asarray(gradient).any()
