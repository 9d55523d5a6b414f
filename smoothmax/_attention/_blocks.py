"""Attention a block of queries at a time, so that the score matrix never exists as a whole.

Queries are cut into stretches of equal blocks. One loop runs over the blocks of a stretch, on the keys that the block
can see, and each block is recomputed in the backward pass instead of keeping its scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._parameters import index
from ._visibility import Visibility, slice_unless_broadcast

# A causal call in blocks is cut into this many stretches of queries; each stretch sees a static prefix of the keys, so
# that most of the upper triangle is never computed. n stretches do (n + 1) / 2n of the work, and each is compiled on
# its own: four keep 5/8 of the work.
_CAUSAL_STRETCHES = 4

# Attention of queries over keys and values, with bias and mask: output and weights.
Core = Callable[
    [jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None],
    tuple[jax.Array, jax.Array],
]


def attend_in_blocks(
    core: Core,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
    block_size: int,
) -> jax.Array:
    """The output of `core`, computed `block_size` queries at a time."""

    # The blocks are recomputed one by one, inside. Out here nothing is computed twice: this only keeps JAX from storing
    # what is the same in each block, such as constants of the mapping that were broadcast to the scores' shape.
    @partial(jax.checkpoint, prevent_cse=False)
    def attend_all(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None) -> jax.Array:
        outputs = [
            _attend_stretch(core, stretch, query, key, value, bias, visibility)
            for stretch in _stretches(query.shape[1], key.shape[1], block_size, visibility)
        ]
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)

    return attend_all(query, key, value, bias)


class _Stretch(NamedTuple):
    """Consecutive blocks of queries that are computed by one loop."""

    first_row: int
    blocks: int
    rows: int  # in each block
    columns: int  # length of the key prefix that the stretch can see
    width: int  # number of keys that a block reads
    left: int  # a block that begins at query t reads from key t - left on, where `width` is less than `columns`


def _stretches(rows: int, columns: int, block_size: int, visibility: Visibility) -> list[_Stretch]:
    """Covers all queries: full blocks in stretches of about equal length, then the rest."""
    window = visibility.window
    if window is not None and visibility.is_causal:
        window = (window[0], min(window[1], 0))
    # A window bounds what a block sees from both sides, which makes the causal prefixes needless.
    prefixes = visibility.is_causal and window is None
    full = rows // block_size
    count = _CAUSAL_STRETCHES if prefixes else 1
    bounds = [full * i // count for i in range(count + 1)]
    pieces = [(a * block_size, b - a, block_size) for a, b in pairwise(bounds) if a < b]
    if rows % block_size:
        pieces.append((full * block_size, 1, rows % block_size))

    def stretch(first_row: int, blocks: int, size: int) -> _Stretch:
        seen = min(columns, first_row + blocks * size) if prefixes else columns
        if window is None:
            return _Stretch(first_row, blocks, size, seen, width=seen, left=0)
        return _Stretch(first_row, blocks, size, seen, width=max(1, min(seen, size + sum(window))), left=window[0])

    return [stretch(*piece) for piece in pieces]


def _attend_stretch(
    core: Core,
    stretch: _Stretch,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
) -> jax.Array:
    """One loop over the blocks of a stretch.

    `jax.checkpoint` makes the backward pass recompute a block from its queries, so that what the loop stores is what it
    was given, and no row of scores outlives its block. Whatever is closed over (keys, values, hyper-parameters of the
    mapping) gets its gradient summed over the blocks.
    """
    rows = slice(stretch.first_row, stretch.first_row + stretch.blocks * stretch.rows)
    query, key, value = query[:, rows], key[:, : stretch.columns], value[:, : stretch.columns]
    # A bias is one for each query, or one for all of them.
    row_bias, shared_bias = (None, bias) if bias is None or bias.shape[2] == 1 else (bias[:, :, rows], None)

    def attend_block(block: tuple[ArrayLike, jax.Array, jax.Array | None]) -> jax.Array:
        first_row, query, row_bias = block
        bias = shared_bias if row_bias is None else row_bias
        # A window lets the block see `first_row - left` to `first_row + rows - 1 + right`, moved inwards at the ends;
        # the mask below takes out what the move brings in.
        columns, width = stretch.columns, stretch.width
        column = 0 if width == columns else jnp.clip(first_row - stretch.left, 0, columns - width)
        output, _ = core(
            query,
            slice_unless_broadcast(key, 1, column, width),
            slice_unless_broadcast(value, 1, column, width),
            None if bias is None else slice_unless_broadcast(bias, 3, column, width),
            visibility.block(first_row, stretch.rows, column, width),
        )
        return output

    # The barriers of `prevent_cse` cost memory and speed, and inside a loop they are not needed.
    attend_block = jax.checkpoint(attend_block, prevent_cse=stretch.blocks == 1)
    if stretch.blocks == 1:
        return attend_block((stretch.first_row, query, row_bias))

    # Queries, and a bias that differs by query, enter the loop cut into blocks: their gradients leave it the same way,
    # where slices of a closed-over array would each have one of full size.
    first_rows = stretch.first_row + stretch.rows * jnp.arange(stretch.blocks, dtype=jnp.int32)
    row_bias = None if row_bias is None else _cut(row_bias, 2, stretch.blocks)
    outputs = jax.lax.map(attend_block, (first_rows, _cut(query, 1, stretch.blocks), row_bias))
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(*query.shape[:3], value.shape[-1])


def _cut(array: jax.Array, axis: int, pieces: int) -> jax.Array:
    """Cuts an axis into equal pieces and puts the axis that counts them first."""
    shape = array.shape
    cut = array.reshape(*shape[:axis], pieces, shape[axis] // pieces, *shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def check_block_size(block_size: int | None, query: jax.Array, key: jax.Array, rules: Visibility) -> int | None:
    """The block size as an int; None where there is nothing to cut."""
    if block_size is None:
        return None
    try:
        size = index(block_size)
    except TypeError:
        raise TypeError(
            f"block_size must be an integer known when the function is traced, or None, got {block_size!r}: give the "
            "number of queries in a block, such as 128"
        ) from None
    if size < 1:
        raise ValueError(f"block_size must be at least 1, or None, got {size}: give 128 or 256, which are good sizes")
    rows, columns = query.shape[-3], key.shape[-3]
    bounded = rules.is_causal or rules.window is not None
    if jax.export.is_symbolic_dim(rows) or (bounded and jax.export.is_symbolic_dim(columns)):
        raise ValueError(
            f"block_size must be None where a length is symbolic, got block_size={size} for query of shape "
            f"{query.shape} and key of shape {key.shape}: leave it out, or export for each length of interest"
        )
    return None if rows == 0 else size
