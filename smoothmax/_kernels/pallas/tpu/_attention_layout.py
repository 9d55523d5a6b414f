"""How the arguments of attention are laid out for its kernels, in blocks, and which part of them a step reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..shared._attention import Rules, lengths_of, scalars_of, whole
from . import _tiles
from ._flash import STATISTICS
from ._flash_blocks import Plan
from ._tiles import LANES, SUBLANES

# Queries of a block: a row of what is kept has as many numbers as a register has lanes. Keys of a block: as many as
# keep the matrix unit busy, and few enough that blocks without a weight are found.
ROWS, COLUMNS = LANES, 256


class Inputs(NamedTuple):
    """What the kernels read, laid out for them: B batch, N query heads, K key heads, T queries, S keys, H head size."""

    q: jax.Array  # (B, N, T, H), T and S padded to whole blocks
    k: jax.Array  # (B, K, S, H)
    v: jax.Array  # (B, K, S, H of the values)
    b: jax.Array  # (N,): alpha - 1
    scale: jax.Array  # (N,)
    bias: jax.Array | None  # (B or 1, N or 1, S, T or 1)


def plan_of(
    query: Any, key: Any, value: Any, bias: Any, mask: Any, is_causal: bool, window: tuple[int, int] | None
) -> Plan:
    queries, keys = whole(query.shape[1], ROWS), whole(key.shape[1], COLUMNS)
    # Twice, so that what the next head needs is fetched meanwhile, if that fits.
    buffers = 2 if 2 * held(query, key, value, bias, mask) <= _tiles.VECTOR_MEMORY else 1
    return Plan(queries, keys, ROWS, COLUMNS, is_causal, window, buffers, bias is not None, mask is not None)


def inputs_of(
    plan: Plan,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    scale: jax.Array,
    alpha: jax.Array,
    gamma: jax.Array,
) -> Inputs:
    b, scale = scalars_of(scale, alpha, gamma, query.shape[2])
    if bias is not None:
        bias = _pairs(bias.astype(jnp.float32) / gamma, plan)
    return Inputs(laid(query, plan.queries), laid(key, plan.keys), laid(value, plan.keys), b, scale, bias)


def rules_of(plan: Plan, query: Any, key: Any, mask: Any, query_lengths: Any, key_lengths: Any) -> Rules:
    mask = None if mask is None else _pairs(mask.astype(jnp.int8), plan)
    return Rules(mask, *lengths_of(query, key, query_lengths, key_lengths))


def held(query: Any, key: Any, value: Any, bias: Any, mask: Any) -> int:
    """Bytes of the blocks of whole length that the larger backward kernel holds."""
    queries, keys = whole(query.shape[1], ROWS), whole(key.shape[1], COLUMNS)
    size = query.dtype.itemsize * sum(whole(a.shape[3], LANES) for a in (query, value))
    marks = SUBLANES * whole(keys // COLUMNS, LANES) * 4
    # All keys with a block of queries, and all queries with a block of keys.
    along_keys, along_queries = keys * size, queries * (size + 2 * STATISTICS * 4) + queries // ROWS * marks
    for array in (bias, mask):
        if array is not None:
            bytes_each = 1 if array is mask else 4
            along_keys += bytes_each * LANES * (keys if array.shape[3] > 1 else SUBLANES)
            along_queries += bytes_each * COLUMNS * (queries if array.shape[2] > 1 else LANES)
    if bias is not None and bias.shape[2] > 1:
        along_keys += 4 * LANES * keys  # its gradient
    return max(along_keys, along_queries)


class Places(NamedTuple):
    """Which part of an array a step of the grid (batch, query head, block) reads or writes."""

    plan: Plan
    group: int  # query heads that share a key head

    def _of_whole_length(self, shape: tuple[int | None, ...], place: Callable[..., Any]) -> pl.BlockSpec:
        """A block of whole length."""
        return pl.BlockSpec(shape, place, pipeline_mode=pl.Buffered(self.plan.buffers))

    def of_queries(self, array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.plan.rows, array.shape[3]), lambda b, n, i: (b, n, i, 0))

    def all_queries(self, array: jax.Array) -> pl.BlockSpec:
        return self._of_whole_length((None, None, self.plan.queries, array.shape[3]), lambda b, n, j: (b, n, 0, 0))

    def of_keys(self, array: jax.Array, shared: bool = True) -> pl.BlockSpec:
        group = self.group if shared else 1
        return pl.BlockSpec((None, None, self.plan.columns, array.shape[3]), lambda b, n, j: (b, n // group, j, 0))

    def all_keys(self, array: jax.Array) -> pl.BlockSpec:
        return self._of_whole_length(
            (None, None, self.plan.keys, array.shape[3]), lambda b, n, i: (b, n // self.group, 0, 0)
        )

    def of_rows(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, STATISTICS, self.plan.rows), lambda b, n, i: (b, n, 0, i))

    def all_rows(self) -> pl.BlockSpec:
        return self._of_whole_length((None, None, STATISTICS, self.plan.queries), lambda b, n, j: (b, n, 0, 0))

    def of_marks(self, marks: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, None, 1, marks), lambda b, n, i: (b, n, i, 0, 0))

    def all_marks(self, blocks: int, marks: int) -> pl.BlockSpec:
        return self._of_whole_length((None, None, blocks, 1, marks), lambda b, n, j: (b, n, 0, 0, 0))

    def of_pairs(self, shape: tuple[int, ...], per_query: bool) -> pl.BlockSpec:
        """Of `(B or 1, N or 1, S or 1, T or 1)`: all keys for a block of queries, or all queries for one of keys."""
        (one_b, one_n, one_s, one_t) = (n == 1 for n in shape)
        height = 1 if one_s else self.plan.keys if per_query else self.plan.columns
        width = 1 if one_t else self.plan.rows if per_query else self.plan.queries

        def place(b, n, i):
            first, last = (0, 0 if one_t else i) if per_query else (0 if one_s else i, 0)
            return 0 if one_b else b, 0 if one_n else n, first, last

        return self._of_whole_length((None, None, height, width), place)


def laid(array: jax.Array, length: int) -> jax.Array:
    """`(B, length, heads, size)` as `(B, heads, length, size)`, filled up with zeros."""
    array = jnp.swapaxes(array, 1, 2)
    return jnp.pad(array, ((0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)))


def _pairs(array: jax.Array, plan: Plan) -> jax.Array:
    """`(B, N, T, S)`, or 1 for each of them, as `(B, N, S, T)`, filled up with zeros."""
    array = jnp.swapaxes(array, 2, 3)
    more = [0 if n == 1 else size - n for n, size in zip(array.shape[2:], (plan.keys, plan.queries), strict=True)]
    return jnp.pad(array, ((0, 0), (0, 0), (0, more[0]), (0, more[1])))
