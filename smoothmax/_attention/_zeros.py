"""Products of attention that leave out tiles of zeros, and whose derivatives do.

A sparse mapping leaves most weights at exactly zero, and at length these fill whole tiles: a block of queries by some
keys. Such a tile adds nothing to the output. Nor does it to any derivative, since a mapping onto the simplex passes
nothing through a weight of zero: the cotangent of such a weight is never looked at, that of its score is zero. So of
the seven products of a step (scores, forward and again backward; output; weights' and values' cotangents; queries' and
keys' cotangents) five visit only the tiles that hold something. The scores have to be known before that is.

All three sums below are linear in both arguments, and each one's derivative is made of the other two: so they can be
differentiated again. On a CPU a loop visits the tiles; elsewhere such a loop would be slower than the whole product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import compute_dtype, varying_like
from .._domains import Simplex
from .._operators import operator_of
from .._scaling import LengthScaled
from ._core import Mapping, Products, query_key_products, weighted_values

# Keys in a tile. Narrower tiles are empty more often; below this the start of each product outweighs that.
_TILE = 128


def skipping_products() -> Products:
    """Products of queries and keys, and weighted values, that skip tiles of zeros."""
    return _scores, _average


def check_skips(mapping: Mapping, block_size: int | None) -> None:
    """Raises unless zeros of the mapping may be skipped."""
    if block_size is None:
        raise ValueError(
            "skip_zeros must be False without block_size, got True: it is blocks of queries whose zeros are skipped; "
            "add block_size=256"
        )
    inner = mapping
    while isinstance(inner, partial | LengthScaled):
        inner = inner.func if isinstance(inner, partial) else inner.mapping
    op = operator_of(inner)
    if op is None or not isinstance(op.over, Simplex):
        raise TypeError(
            f"skip_zeros must be False for mapping={mapping!r}, got True: only a mapping of this library onto the "
            "simplex is known to pass no gradient through a weight of zero; leave skip_zeros out"
        )


# --- The three sums ----------------------------------------------------------------------------------------


@jax.custom_vjp
def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """All products of `(B, T, N, H)` queries and `(B, S, K, H)` keys: `(B, N, T, S)`."""
    return query_key_products(query, key)


@jax.custom_vjp
def _scores_at(flags: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """The same in tiles with a flag, and zeros in the others, where a loop visits tiles."""

    def loop(flags: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        shape = query.shape[0], query.shape[2], query.shape[1], key.shape[1]

        def product(tile: _Tile) -> jax.Array:
            return tile.read("queries", query) @ tile.read("keys", key).T

        return _sum_over_tiles(flags, product, "scores", shape, key.shape[1], key.shape[2], (query, key))

    return lax.platform_dependent(flags, query, key, cpu=loop, default=lambda _, q, k: query_key_products(q, k))


@jax.custom_vjp
def _average(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Sums of `(B, S, K, H)` values with `(B, N, T, S)` weights: `(B, T, N, H)`."""

    def loop(weights: jax.Array, value: jax.Array) -> jax.Array:
        shape = weights.shape[0], weights.shape[2], weights.shape[1], value.shape[-1]

        def product(tile: _Tile) -> jax.Array:
            return tile.read("scores", weights) @ tile.read("keys", value)

        columns, key_heads = value.shape[1:3]
        sums = _sum_over_tiles(_flags(weights), product, "queries", shape, columns, key_heads, (weights, value))
        return sums.astype(value.dtype)

    return lax.platform_dependent(weights, value, cpu=loop, default=weighted_values)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(weights: jax.Array, output: jax.Array, key_heads: int) -> jax.Array:
    """Sums of `(B, T, N, H)` outputs with `(B, N, T, S)` weights for each key: `(B, S, K, H)`."""

    def loop(weights: jax.Array, output: jax.Array) -> jax.Array:
        shape = weights.shape[0], weights.shape[3], key_heads, output.shape[-1]

        def product(tile: _Tile) -> jax.Array:
            return tile.read("scores", weights).T @ tile.read("queries", output)

        sums = _sum_over_tiles(_flags(weights), product, "keys", shape, shape[1], key_heads, (weights, output))
        return sums.astype(output.dtype)

    def whole(weights: jax.Array, output: jax.Array) -> jax.Array:
        batch, heads, rows, columns = weights.shape
        groups = heads // key_heads
        weights = weights.reshape(batch, key_heads, groups, rows, columns)
        output = output.reshape(batch, rows, key_heads, groups, output.shape[-1])
        return jnp.einsum("bkgts,btkgh->bskh", weights, output)

    return lax.platform_dependent(weights, output, cpu=loop, default=whole)


_scores.defvjp(
    lambda query, key: (_scores(query, key), (query, key)),
    lambda saved, bar: _scores_bars(saved, bar),
)
_scores_at.defvjp(
    lambda flags, query, key: (_scores_at(flags, query, key), (flags, query, key)),
    lambda saved, bar: (None, *_scores_bars(saved[1:], jnp.where(_spread(saved[0], bar.shape[-1]), bar, 0))),
)
_average.defvjp(
    lambda weights, value: (_average(weights, value), (weights, value)),
    lambda saved, bar: (_weights_bar(saved[0], bar, saved[1]), _gather(saved[0], bar, saved[1].shape[2])),
)
_gather.defvjp(
    lambda weights, output, key_heads: (_gather(weights, output, key_heads), (weights, output)),
    lambda key_heads, saved, bar: (_weights_bar(saved[0], saved[1], bar), _average(saved[0], bar)),
)


def _scores_bars(saved: tuple[jax.Array, jax.Array], bar: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cotangents of queries and keys from that of their products."""
    query, key = saved
    of_query = _average(bar, key.astype(bar.dtype)).astype(query.dtype)
    of_key: Any = _gather(bar, query.astype(bar.dtype), key.shape[2])
    return of_query, of_key.astype(key.dtype)


def _weights_bar(weights: jax.Array, output: jax.Array, value: jax.Array) -> jax.Array:
    """The cotangent of the weights where it matters."""
    return jnp.asarray(_scores_at(_flags(weights), output, value), weights.dtype)


# --- The loop over tiles -----------------------------------------------------------------------------------


class _Tile(NamedTuple):
    """All queries of a block and some keys, for one head of one batch element."""

    batch: jax.Array
    head: jax.Array
    key_head: jax.Array
    start: jax.Array  # the first key that is read
    first: jax.Array  # the first key of this tile: at the end of the keys, what is read begins in the tile before
    width: int  # the number of keys that are read

    def place(self, kind: str, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[int, ...], tuple[int, int]]:
        """Where the tile lies in an array of scores, queries or keys; its size there; its size as a matrix."""
        zero = jnp.zeros_like(self.head)  # indices must have one dtype
        if kind == "scores":
            return (self.batch, self.head, zero, self.start), (1, 1, shape[2], self.width), (shape[2], self.width)
        if kind == "queries":
            return (self.batch, zero, self.head, zero), (1, shape[1], 1, shape[3]), (shape[1], shape[3])
        return (self.batch, self.start, self.key_head, zero), (1, self.width, 1, shape[3]), (self.width, shape[3])

    def read(self, kind: str, array: jax.Array) -> jax.Array:
        """The tile of an array as a matrix, in float32 at least, with zeros for keys of the tile before."""
        start, size, matrix = self.place(kind, array.shape)
        tile = lax.dynamic_slice(array, start, size).reshape(matrix)
        tile = tile.astype(compute_dtype(tile.dtype))
        if kind == "queries" or array.shape[_KEY_AXIS[kind]] % self.width == 0:
            return tile
        mine = self.start + jnp.arange(self.width, dtype=jnp.int32) >= self.first
        return jnp.where(mine[None, :] if kind == "scores" else mine[:, None], tile, jnp.zeros((), tile.dtype))

    def add(self, kind: str, array: jax.Array, matrix: jax.Array) -> jax.Array:
        """The array with a matrix added to its tile."""
        start, size, _ = self.place(kind, array.shape)
        return lax.dynamic_update_slice(array, lax.dynamic_slice(array, start, size) + matrix.reshape(size), start)


_KEY_AXIS = {"scores": 3, "keys": 1}


def _sum_over_tiles(
    flags: jax.Array,
    product: Callable[[_Tile], jax.Array],
    kind: str,
    shape: tuple[int, ...],
    columns: int,
    key_heads: int,
    operands: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Zeros of the given kind and shape, float32 at least, to which the product of each tile with a flag was added."""
    zeros = varying_like(jnp.zeros(shape, compute_dtype(operands[0].dtype)), flags, *operands)
    if flags.size == 0:
        return zeros
    heads, tiles = flags.shape[1:]
    width = min(_TILE, columns)
    visited = jnp.nonzero(flags.reshape(-1), size=flags.size, fill_value=0)[0].astype(jnp.int32)

    def visit(i: jax.Array, total: jax.Array) -> jax.Array:
        slices, tile = jnp.divmod(visited[i], tiles)
        batch, head = jnp.divmod(slices, heads)
        first = tile * width
        start = jnp.minimum(first, columns - width)
        at = _Tile(batch, head, head // (heads // key_heads), start, first, width)
        return at.add(kind, total, product(at))

    return lax.fori_loop(0, jnp.sum(flags, dtype=jnp.int32), visit, zeros)


def _flags(scores: jax.Array) -> jax.Array:
    """`(B, N, tiles)`: which tiles of `(B, N, T, S)` hold anything but zeros."""
    columns = scores.shape[-1]
    held = jnp.any(scores != 0, axis=2)
    width = min(_TILE, columns)
    held = jnp.pad(held, ((0, 0), (0, 0), (0, -columns % width)))
    return jnp.any(held.reshape(*held.shape[:2], held.shape[2] // width, width), axis=-1)


def _spread(flags: jax.Array, columns: int) -> jax.Array:
    """`(B, N, 1, S)` from the flags of tiles."""
    return jnp.repeat(flags, min(_TILE, columns), axis=-1)[:, :, None, :columns]
