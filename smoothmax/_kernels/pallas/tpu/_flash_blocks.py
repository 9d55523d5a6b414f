"""The blocks of queries and keys that the kernels of `_flash.py` walk over, and the scores in one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..shared._flash import Blocks, Head, seen
from ..shared._machines import LOWEST
from ..shared._slices import flag


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


def stretch(i: Any, size: int) -> Any:
    """Where block i lies along queries or keys, of which a block has so many."""
    return pl.ds(pl.multiple_of(i * size, size), size)


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
    rows = stretch(j, plan.columns) if height > plan.columns else slice(None)
    columns = stretch(i, plan.rows) if width > plan.rows else slice(None)
    return ref[rows, columns]


def has_weight(bits: jax.Array, j: Any) -> Any:
    """Whether key block j is marked in a row of marks."""
    block = lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    return jnp.sum(flag((block == j) & (bits != 0))) > 0
