"""The chain problem and the means of its segments for GPUs: a thread a slice, all rounds in one kernel.

Position i of 128 slices is one tile, a number for each thread, and lies in one piece. The kernels are those of
`_sweeps.py`. A few numbers are held in registers; a sweep reads its tiles from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import _gpu
from ._sweeps import Tiles, mean_segments, solve_chains
from ._tiles import flag

# The compiler wants to know how a tile lies in registers, and learns it from one that was loaded.
_TILES = Tiles(lambda i: i, lambda loaded: flag(loaded > jnp.inf))


def refuses_chain_prox(x: Any, up: Any, down: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    if x.dtype != jnp.float32:
        return f"its chain kernel computes in float32, not {x.dtype}"
    if x.shape[-1] < 2:
        return f"its chain kernel takes slices of at least 2 positions, not of {x.shape[-1]}"
    if x.size == 0:
        return "there are no slices"
    return _gpu.missing()


refuses_segment_mean = refuses_chain_prox


def chain_prox(x: jax.Array, up: Any, down: Any, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """The chain problem for float32 slices `(*batch, d)`; arguments and results as `_solvers.chain_prox`."""
    return solve_chains(partial(_call, interpret=interpret), _TILES, x, up, down)


def segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, interpret: Any = False) -> jax.Array:
    """The mean of each segment, at every position of it; arguments and results as `_solvers.segment_mean`."""
    return mean_segments(partial(_call, interpret=interpret), _TILES, v, jumps, weight)


def _call(
    kernel: Callable[..., None], rows: tuple[jax.Array, ...], dtypes: tuple[Any, ...], interpret: Any
) -> list[jax.Array]:
    """Runs a kernel on all slices: arrays `(n, width)`, the first `(n, d)`, to `(n, d)` of the dtypes."""
    n, d = rows[0].shape
    blocks = pl.cdiv(n, _gpu.THREADS)

    def to_tiles(a):
        a = jnp.pad(a, ((0, blocks * _gpu.THREADS - n), (0, 0)))
        return jnp.swapaxes(a.reshape(blocks, _gpu.THREADS, -1), 1, 2)

    def on_a_block(block, *refs):
        kernel(*(ref.at[block] for ref in refs))

    out = _gpu.run(on_a_block, blocks, [to_tiles(a) for a in rows], dtypes, interpret)
    return [jnp.swapaxes(a, 1, 2).reshape(-1, d)[:n] for a in out]
