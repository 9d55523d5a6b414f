"""The chain problem and the means of its segments for TPUs: 1,024 slices at once, all rounds in one kernel.

A block of slices stays in the chip's vector memory from the first sweep to the last; `_sweeps.py` has the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..._arrays import varying_like
from ._batching import over_slices
from ._sweeps import Tiles, chain_kernel, mean_kernel, row_of
from ._tiles import MEMORY_LIMIT, TILE, VECTOR_MEMORY, as_rows, blocks_of, from_tiles, result, tile, to_tiles

_TILES = Tiles(tile, jnp.zeros_like)


def refuses_chain_prox(x: Any, up: Any, down: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    # Scores, result and jumps; and the strengths, where each border has its own. All are buffered twice.
    arrays = 3 + sum(jnp.ndim(a) > 0 and a.shape[-1] > 1 for a in (up, down))
    return _refuses(x, arrays)


def refuses_segment_mean(v: Any, jumps: Any, weight: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    return _refuses(v, 4)


def _refuses(x: Any, arrays: int) -> str | None:
    if x.dtype != jnp.float32:
        return f"its chain kernel computes in float32, not {x.dtype}"
    widest = VECTOR_MEMORY // (2 * arrays * TILE * 4)
    if not 2 <= x.shape[-1] <= widest:
        return f"its chain kernel holds slices of 2 to {widest} positions in the chip's memory, not of {x.shape[-1]}"
    if x.size == 0:
        return "there are no slices"
    return None


def chain_prox(x: jax.Array, up: Any, down: Any, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """The chain problem for float32 slices `(*batch, d)`; arguments and results as `_solvers.chain_prox`."""

    def solve(x, up, down):
        *batch, d = x.shape
        up, down = (as_rows(a, tuple(batch), x.dtype) for a in (up, down))
        kernel = partial(chain_kernel, d=d, up_at=row_of(up), down_at=row_of(down), tiles=_TILES)
        t, jumps = _call(kernel, (x.reshape(-1, d), up, down), (jnp.float32, jnp.int32), interpret)
        return t.reshape(x.shape), jumps.astype(jnp.int8).reshape(x.shape)

    up, down = jnp.asarray(up, x.dtype), jnp.asarray(down, x.dtype)
    return over_slices(solve)(varying_like(x, up, down), up, down)


def segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, interpret: Any = False) -> jax.Array:
    """The mean of each segment, at every position of it; arguments and results as `_solvers.segment_mean`."""

    def solve(v, jumps, weight):
        *batch, d = v.shape
        cut, weight = as_rows(jumps, tuple(batch), jnp.int32), as_rows(weight, tuple(batch), v.dtype)
        [mean] = _call(partial(mean_kernel, d=d, tiles=_TILES), (v.reshape(-1, d), cut, weight), (v.dtype,), interpret)
        return mean.reshape(v.shape)

    return over_slices(solve)(varying_like(v, jumps, weight), jumps, weight)


def _call(
    kernel: Callable[..., None],
    rows: tuple[jax.Array, ...],
    dtypes: tuple[Any, ...],
    interpret: Any,
) -> list[jax.Array]:
    """Runs a kernel on all blocks of slices: arrays `(n, width)`, the first `(n, d)`, to `(n, d)` of the dtypes."""
    n, d = rows[0].shape
    tiles = [to_tiles(varying_like(a, rows[0])) for a in rows]
    out = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, TILE),),
        in_specs=[blocks_of(a.shape[-1]) for a in rows],
        out_specs=[blocks_of(d) for _ in dtypes],
        out_shape=[result(tiles[0].shape, dtype, tiles[0]) for dtype in dtypes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=MEMORY_LIMIT),
        interpret=interpret,
    )(*tiles)
    return [from_tiles(a, n, d) for a in out]
