"""The blocks of queries and keys that the kernels of `_flash.py` walk over, and the scores in one."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ._machines import LOWEST
from ._tiles import flag


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What is static about a call, on every machine.

    Attributes:
      queries, keys: how many there are, padding to whole blocks included.
      rows, columns: how many queries and keys a block has.
      is_causal, window: the rules of visibility.
    """

    queries: int
    keys: int
    rows: int
    columns: int
    is_causal: bool
    window: tuple[int, int] | None

    def key_blocks(self, i: Any, length: Any) -> tuple[Any, Any]:
        """The first of the key blocks that query block i may see, and the first after them."""
        first, last = i * self.rows, (i + 1) * self.rows - 1
        start, end = jnp.int32(0), _blocks(length, self.columns)
        if self.is_causal:
            end = jnp.minimum(end, last // self.columns + 1)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - left, 0) // self.columns)
            end = jnp.minimum(end, jnp.maximum(last + right, -1) // self.columns + 1)
        return start, jnp.maximum(start, end)

    def query_blocks(self, j: Any) -> tuple[Any, Any]:
        """The first of the query blocks that may see key block j, and the first after them."""
        first, last = j * self.columns, (j + 1) * self.columns - 1
        start, end = jnp.int32(0), jnp.int32(self.queries // self.rows)
        if self.is_causal:
            start = jnp.maximum(start, first // self.rows)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - right, 0) // self.rows)
            end = jnp.minimum(end, jnp.maximum(last + left, -1) // self.rows + 1)
        return jnp.minimum(start, end), end


@dataclasses.dataclass(frozen=True)
class Plan(Blocks):
    """And on TPUs.

    Attributes:
      buffers: how many blocks of whole length lie in memory at a time, 1 or 2.
      has_bias, has_mask: whether there are such arrays.
    """

    buffers: int
    has_bias: bool
    has_mask: bool


class Head(NamedTuple):
    """What a kernel reads beside queries, keys and values: scalars, and references to optional arrays."""

    b: Any  # alpha - 1
    scale: Any
    query_length: Any
    key_length: Any
    bias: Any = None  # or a reference to one number for each key and query, or for each key
    mask: Any = None  # or a reference of that kind


def seen(blocks: Blocks, head: Head, t: jax.Array, s: jax.Array) -> jax.Array:
    """Whether query t may see key s, as lengths and rules have it; a mask may forbid more."""
    visible = (s < head.key_length) & (t < head.query_length)
    if blocks.is_causal:
        visible &= s <= t
    if blocks.window is not None:
        visible &= (s >= t - blocks.window[0]) & (s <= t + blocks.window[1])
    return visible


def block_scores(plan: Plan, head: Head, products: jax.Array, i: Any, j: Any) -> jax.Array:
    """Scores of one block, keys x queries in float32, from the products; LOWEST where a query may not see the key."""
    z = products * head.scale
    t = i * plan.rows + lax.broadcasted_iota(jnp.int32, z.shape, 1)
    s = j * plan.columns + lax.broadcasted_iota(jnp.int32, z.shape, 0)
    visible = seen(plan, head, t, s)
    if head.mask is not None:
        visible &= _part(head.mask, plan, i, j).astype(jnp.int32) != 0
    if head.bias is not None:
        z += _part(head.bias, plan, i, j).astype(jnp.float32)
    return jnp.where(visible, z, LOWEST)


def _part(ref: Any, plan: Plan, i: Any, j: Any) -> jax.Array:
    """The block of an array that holds all keys, all queries, one block of either, or one number for all."""
    height, width = ref.shape
    rows = pl.ds(pl.multiple_of(j * plan.columns, plan.columns), plan.columns) if height > plan.columns else slice(None)
    columns = pl.ds(pl.multiple_of(i * plan.rows, plan.rows), plan.rows) if width > plan.rows else slice(None)
    return ref[rows, columns]


def has_weight(bits: jax.Array, j: Any) -> Any:
    """Whether key block j is marked in a row of marks."""
    block = lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    return jnp.sum(flag((block == j) & (bits != 0))) > 0


def _blocks(n: Any, size: int) -> Any:
    return (n + (size - 1)) // size
