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

from ..._arrays import varying_like
from . import _gpu
from ._batching import over_slices
from ._sweeps import Tiles, chain_kernel, mean_kernel, row_of
from ._tiles import as_rows, flag

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
