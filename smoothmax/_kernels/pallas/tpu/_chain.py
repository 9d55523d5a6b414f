"""The chain problem and the means of its segments for TPUs: 1,024 slices at once, all rounds in one kernel.

A block of slices stays in the chip's vector memory from the first sweep to the last; the kernels are in
`shared/_sweeps.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...._arrays import varying_like
from ..shared._served import Served
from ..shared._slices import refuses_slices
from ..shared._sweeps import Tiles, mean_segments, solve_chains
from ._tiles import MEMORY_LIMIT, TILE, VECTOR_MEMORY, blocks_of, from_tiles, result, tile, to_tiles

_TILES = Tiles(tile, jnp.zeros_like)


def _refuses_chain(x: Any, up: Any, down: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    # Scores, result and jumps; and the strengths, where each border has its own.
    return _refuses(x, 3 + sum(jnp.ndim(a) > 0 and a.shape[-1] > 1 for a in (up, down)))


def _refuses(x: Any, arrays: int) -> str | None:
    widest = VECTOR_MEMORY // (2 * arrays * TILE * 4)  # all are buffered twice
    return refuses_slices(x, "chain", 2, widest, "in the chip's memory")


def _chain_prox(x: jax.Array, up: Any, down: Any, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """The chain problem for float32 slices `(*batch, d)`; arguments and results as `_solvers.chain_prox`."""
    return solve_chains(partial(_call, interpret=interpret), _TILES, x, up, down)


def _segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, interpret: Any = False) -> jax.Array:
    """The mean of each segment, at every position of it; arguments and results as `_solvers.segment_mean`."""
    return mean_segments(partial(_call, interpret=interpret), _TILES, v, jumps, weight)


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


KERNELS = {
    "chain": Served(_chain_prox, _refuses_chain),
    "segment_mean": Served(_segment_mean, lambda v, *_: _refuses(v, 4)),
}
