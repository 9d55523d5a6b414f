"""How slices lie in a TPU's memory, and what a Pallas call needs to be told outside its body.

A register holds 8 x 128 numbers. Where a kernel goes along a slice step by step, the slices are what is done at once:
1,024 of them fill a register, and position i of them all is one tile. A block of slices is then a matrix of `8 d` rows
and 128 columns, tile after tile.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

SUBLANES, LANES = 8, 128
TILE = SUBLANES * LANES
# What blocks, buffered twice, may take of a TPU's vector memory: 128 MiB on v5e and v6e, 64 MiB on v5p.
VECTOR_MEMORY = 56 * 2**20
# What the compiler is told that a kernel may take, for its own needs too.
MEMORY_LIMIT = VECTOR_MEMORY + 4 * 2**20


def to_tiles(rows: jax.Array) -> jax.Array:
    """`(n, d)` slices as tiles `(blocks d 8, 128)`, blocks of 1,024 slices, the last filled up with zeros."""
    n, d = rows.shape
    blocks = pl.cdiv(n, TILE)
    rows = jnp.pad(rows, ((0, blocks * TILE - n), (0, 0)))
    return jnp.moveaxis(rows.reshape(blocks, SUBLANES, LANES, d), -1, 1).reshape(-1, LANES)


def from_tiles(tiles: jax.Array, n: int, d: int) -> jax.Array:
    """The slices again."""
    blocks = tiles.shape[0] // (d * SUBLANES)
    return jnp.moveaxis(tiles.reshape(blocks, d, SUBLANES, LANES), 1, -1).reshape(-1, d)[:n]


def tile(i: Any) -> Any:
    """Where the tile of position i lies in a block."""
    start = i * SUBLANES
    return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, SUBLANES), SUBLANES)


def blocks_of(positions: int) -> pl.BlockSpec:
    """One block of 1,024 slices at each step of the grid."""
    return pl.BlockSpec((positions * SUBLANES, LANES), lambda block: (block, 0))


def result(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """The form of a result; inside `jax.shard_map` it differs over the same mesh axes as `like`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    if "vma" in inspect.signature(jax.ShapeDtypeStruct).parameters:  # its name before JAX 0.10
        return jax.ShapeDtypeStruct(shape, dtype, vma=jax.typeof(like).vma)  # pyright: ignore[reportCallIssue]
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
