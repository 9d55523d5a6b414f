"""Zeros that are not computed: the same numbers without the tiles of keys that no query of a block looks at."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal, pulled
from jax.sharding import PartitionSpec

import smoothmax as sm
from smoothmax._attention import _zeros

# Two blocks of three queries. Of the keys that they see at most one number is less than a tile's and the others are no
# multiples of it, so the last tile overlaps.
B, T, S, N, K, H = 2, 6, 11, 4, 2, 3
f64 = jnp.float64
# Scores far apart, so that most tiles are empty.
QKV = tuple(6 * normal(i, *s, dtype=f64) for i, s in enumerate([(B, T, N, H), *2 * [(B, S, K, H)]]))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(_zeros, "_TILE", 4)


def loss(q, k, v, skip_zeros=True, **options):
    """All products as a whole, or those of blocks of queries with tiles that hold something."""
    output = sm.dot_product_attention(q, k, v, skip_zeros=skip_zeros, block_size=3 if skip_zeros else None, **options)
    return jnp.sum(jnp.cos(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape) * output)


MAPPINGS = {
    "sparsemax": sm.sparsemax,
    "entmax": partial(sm.entmax, alpha=1.3),
    "fusedmax": sm.fusedmax,
    "operator": sm.conjugate(sm.Tsallis(1.7) + 0.1 * sm.Oscar()),
    "length scaled": sm.length_scaled(sm.sparsemax, slope=0.1),
    "softmax": sm.softmax,  # no zero but those of the mask, and of underflow
}


@functools.cache
def of_all(name):
    """Compiled loss and gradients without blocks, for any mask."""
    return jax.jit(jax.value_and_grad(partial(loss, mapping=MAPPINGS[name], skip_zeros=False), (0, 1, 2)))


QUERY, KEY = np.ogrid[:T, :S]
VISIBLE = {
    "causal": ({"is_causal": True}, KEY <= QUERY),
    "window": ({"local_window_size": (2, 2)}, abs(QUERY - KEY) <= 2),
}


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("rule", VISIBLE)
def test_the_same_numbers(name, rule):
    options, mask = VISIBLE[rule]
    skipping = jax.jit(jax.value_and_grad(partial(loss, mapping=MAPPINGS[name], **options), (0, 1, 2)))
    for a, b in zip(*map(jax.tree.leaves, (of_all(name)(*QKV, mask=mask), skipping(*QKV))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_learned_hyper_parameters_and_second_order():
    def objective(alpha, q, skip):
        return loss(q, *QKV[1:], mapping=partial(sm.entmax, alpha=alpha), skip_zeros=skip)

    def second(alpha, skip):
        """A derivative of the gradient, by which all three sums are differentiated once more."""
        gradients = jax.grad(objective, (0, 1))(alpha, QKV[0], skip)
        return jnp.sum(gradients[0]) + jnp.vdot(jnp.sin(QKV[0]), gradients[1])

    alpha = jnp.linspace(1.2, 1.8, N, dtype=f64).reshape(N, 1, 1)
    whole, skipping = (jax.jit(jax.value_and_grad(second), static_argnums=1)(alpha, skip) for skip in (False, True))
    for a, b in zip(whole, skipping, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_only_tiles_that_hold_something_are_visited(monkeypatch):
    visited = []
    add = _zeros._Tile.add

    def spy(tile, kind, array, matrix):
        jax.debug.callback(
            lambda batch, head, first: visited.append((kind, int(head), int(first))), *tile[:2], tile.first
        )
        return add(tile, kind, array, matrix)

    monkeypatch.setattr(_zeros._Tile, "add", spy)
    weights = np.zeros((1, 2, 3, 11))
    weights[0, 0, 1, 5], weights[0, 1, 2, 9:] = 1, 0.5
    value = np.arange(33.0).reshape(1, 11, 1, 3)
    bar = np.ones((1, 3, 2, 3))
    output, (weights_bar, value_bar) = jax.tree.map(np.asarray, pulled(_zeros._average, bar)(weights, value))
    jax.effects_barrier()
    tiles = {(0, 4), (1, 8)}
    assert sorted(visited) == sorted((kind, *tile) for kind in ("queries", "scores", "keys") for tile in tiles)
    np.testing.assert_allclose(output, np.einsum("bnts,bsh->btnh", weights, value[:, :, 0]))
    np.testing.assert_allclose(value_bar[:, :, 0], np.einsum("bnts,btnh->bsh", weights, bar))
    expected = np.einsum("btnh,bsh->bnts", bar, value[:, :, 0])
    np.testing.assert_allclose(weights_bar[0, 0, :, 4:8], expected[0, 0, :, 4:8])
    np.testing.assert_allclose(weights_bar[0, 1, :, 8:], expected[0, 1, :, 8:])
    assert (
        not weights_bar[0, 0, :, :4].any() and not weights_bar[0, 0, :, 8:].any() and not weights_bar[0, 1, :, :8].any()
    )


def test_half_precision_and_nan():
    low = tuple(a.astype(jnp.bfloat16) for a in QKV)
    attend = partial(loss, mapping=sm.sparsemax, is_causal=True)
    grads = jax.jit(jax.grad(attend, (0, 1, 2)))(*low)
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    expected = jax.jit(jax.grad(attend, (0, 1, 2)))(*(a.astype(f64) for a in low))
    for a, b in zip(grads, expected, strict=True):  # 8 bits, and gradients up to 10
        np.testing.assert_allclose(np.asarray(a, float), b, atol=0.02 * np.abs(b).max())
    q = QKV[0].copy()
    q[0, 4, 1] = np.nan
    attend = partial(sm.dot_product_attention, mapping=sm.sparsemax, block_size=3, skip_zeros=True)
    output = np.asarray(jax.jit(attend)(q, *QKV[1:]))
    assert np.isnan(output[0, 4, 1]).all() and np.isnan(output).sum() == H


def test_sharded_by_shard_map(mesh):
    arrays = [6 * normal(i, 8, 6, 1, 4, dtype=f64) for i in range(3)]
    skipping, whole = (
        jax.grad(partial(loss, mapping=sm.sparsemax, skip_zeros=skip), (0, 1, 2)) for skip in (True, False)
    )
    spec = PartitionSpec(mesh.axis_names[0])
    mapped = jax.shard_map(skipping, mesh=mesh, in_specs=spec, out_specs=spec)
    alone = jax.vmap(lambda *a: whole(*(x[None] for x in a)))
    for a, b in zip(jax.jit(mapped)(*arrays), jax.jit(alone)(*arrays), strict=True):
        np.testing.assert_allclose(a, np.asarray(b)[:, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (ValueError, {"block_size": None}, "skip_zeros must be False without block_size"),
        (TypeError, {"mapping": lambda x, axis=-1, *, where=None: x}, "skip_zeros must be False for mapping=.*lambda"),
        (TypeError, {"mapping": sm.conjugate(sm.SquaredL2(), sm.Box())}, "onto the simplex"),
    ],
)
def test_bad_input(error, options, words):
    options = {"mapping": sm.sparsemax, "block_size": 3} | options
    with pytest.raises(error) as caught:
        sm.dot_product_attention(*QKV, skip_zeros=True, **options)
    assert re.search(words, str(caught.value))
