"""The chain problem and the means of its segments for GPUs: some threads share a slice, all rounds in one kernel.

Slices of up to 4,096 positions are held in registers, a piece in each thread: `_pieces.py` has the kernels. Pieces of
2, 4, 8, 16 or 32 positions are rows, 128 of them a block; a slice is filled up to a power of two. Rows are read and
written 128 neighbouring numbers at a time, and handed to the threads through shared memory.

Wider slices are done a thread a slice, by the kernels of `shared/_sweeps.py`: position i of 128 slices is one tile, a
number for each thread, and lies in one piece. A few numbers are held in registers; a sweep reads its tiles from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ...._arrays import varying_like
from ..shared._batching import over_slices
from ..shared._served import Served
from ..shared._slices import as_rows, flag, refuses_slices
from ..shared._sweeps import Tiles, mean_segments, solve_chains
from . import _mosaic
from ._mosaic import mosaic
from ._pieces import WIDEST, bit, chain_piece, mean_piece
from ._threads import BOARD, Threads

# Positions of a piece, a power of two; where a slice would need more than 128 of them, they are longer.
PIECE = 16
# The compiler wants to know how a tile lies in registers, and learns it from one that was loaded.
_TILES = Tiles(lambda i: i, lambda loaded: flag(loaded > jnp.inf))


def _chain_prox(x: jax.Array, up: Any, down: Any, *, interpret: Any = False) -> tuple[jax.Array, jax.Array]:
    """The chain problem for float32 slices `(*batch, d)`; arguments and results as `_solvers.chain_prox`."""
    if _too_wide(x):
        return solve_chains(partial(_by_tiles, interpret=interpret), _TILES, x, up, down)
    up, down = jnp.asarray(up, x.dtype), jnp.asarray(down, x.dtype)
    return over_slices(partial(_chains, interpret=interpret))(varying_like(x, up, down), up, down)


def _segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, interpret: Any = False) -> jax.Array:
    """The mean of each segment, at every position of it; arguments and results as `_solvers.segment_mean`."""
    if _too_wide(v):
        return mean_segments(partial(_by_tiles, interpret=interpret), _TILES, v, jumps, weight)
    return over_slices(partial(_means, interpret=interpret))(varying_like(v, jumps, weight), jumps, weight)


# --- A piece a thread --------------------------------------------------------------------------------------


def _too_wide(x: jax.Array) -> bool:
    return x.shape[-1] > _mosaic.THREADS * WIDEST


class _Pieces:
    """How slices `(n, d)` are cut: `threads` pieces of `length` a slice, 128 pieces a block."""

    def __init__(self, n: int, d: int, interpret: Any):
        width = pl.next_power_of_2(d)
        self.n, self.d, self.barrier = n, d, partial(_mosaic.barrier, interpret)
        self.length = min(width, max(PIECE, width // _mosaic.THREADS))
        self.threads = width // self.length
        self.blocks = pl.cdiv(n * self.threads, _mosaic.THREADS)
        self.rows = _mosaic.THREADS // self.length  # pieces that lie in 128 neighbouring numbers

    def cut(self, rows: jax.Array, fill: float) -> jax.Array:
        """Slices of up to d positions as `(blocks, 128, length)`."""
        slices = self.blocks * _mosaic.THREADS // self.threads
        more = self.threads * self.length - rows.shape[-1]
        rows = jnp.pad(rows, ((0, slices - self.n), (0, more)), constant_values=fill)
        return rows.reshape(self.blocks, _mosaic.THREADS, self.length)

    def to_each(self, numbers: jax.Array) -> jax.Array:
        """A number a slice `(n, 1)`, or one a piece, as `(blocks, 128)`."""
        numbers = jnp.broadcast_to(numbers, (self.n, self.threads)).reshape(-1)
        return jnp.pad(numbers, (0, self.blocks * _mosaic.THREADS - numbers.size)).reshape(self.blocks, _mosaic.THREADS)

    def joined(self, pieces: jax.Array) -> jax.Array:
        """Slices `(n, d)` again."""
        return pieces.reshape(-1, self.threads * self.length)[: self.n, : self.d]

    def masks(self, conditions: jax.Array) -> jax.Array:
        """Conditions `(n, d)` as bits, a mask a piece; they hold from the last position on."""
        inner = jnp.arange(self.d)[None] < self.d - 1
        conditions = self.cut(conditions | ~inner, True)
        return jnp.sum(jnp.where(conditions, self._bits(), jnp.int32(0)), axis=-1, dtype=jnp.int32)

    def signs(self, positive: jax.Array, negative: jax.Array) -> jax.Array:
        """int8 `(n, d)` from masks: 1, -1, or 0, which the last position has."""
        more, less = (self.joined((mask[..., None] & self._bits()) != 0) for mask in (positive, negative))
        inner = jnp.arange(self.d)[None] < self.d - 1
        return jnp.where(inner, more.astype(jnp.int8) - less.astype(jnp.int8), jnp.int8(0))

    def _bits(self) -> jax.Array:
        return jnp.asarray([[[bit(k) for k in range(self.length)]]])

    def places(self) -> jax.Array:
        """Which piece of its slice each thread has."""
        return jnp.arange(_mosaic.THREADS, dtype=jnp.int32) % self.threads

    def of_threads(self, places: Any, board: Any) -> Threads:
        return Threads(self.threads, places[...], board, self.barrier)

    def behind_the_last(self, threads: Threads, k: int) -> jax.Array | None:
        """Where position k of a piece is the last one of its slice or is filled up; None where none of them is."""
        first = pl.cdiv(self.d - 1 - k, self.length)
        return threads.place >= first if first < self.threads else None

    def read(self, ref: Any, block: Any, shared: Any) -> None:
        """Lays a block in shared memory, a row for each thread, with a gap: threads that read a column then do not
        want the same bank."""
        pieces = [pl.ds(j * self.rows, self.rows) for j in range(self.length)]
        loaded = [ref[block, some, :] for some in pieces]
        for some, numbers in zip(pieces, loaded, strict=True):
            shared[some, pl.ds(0, self.length)] = numbers
        self.barrier()

    def columns(self, shared: Any) -> list[jax.Array]:
        return [shared[:, k] for k in range(self.length)]

    def write(self, piece: list[jax.Array], ref: Any, block: Any, shared: Any) -> None:
        for k, numbers in enumerate(piece):
            shared[:, k] = numbers  # a row that no other thread has read since it was laid there
        self.barrier()
        for j in range(self.length):
            some = pl.ds(j * self.rows, self.rows)
            ref[block, some, :] = shared[some, pl.ds(0, self.length)]

    @property
    def shared(self) -> tuple[int, int]:
        return _mosaic.THREADS, self.length + 1


def _chains(x: jax.Array, up: jax.Array, down: jax.Array, *, interpret: Any) -> tuple[jax.Array, jax.Array]:
    *batch, d = x.shape
    rows = x.reshape(-1, d)
    pieces = _Pieces(rows.shape[0], d, interpret)
    strengths = [as_rows(a, tuple(batch), x.dtype) for a in (up, down)]
    each = [a.shape[-1] > 1 for a in strengths]
    laid = [pieces.cut(a, 0.0) if own else pieces.to_each(a) for a, own in zip(strengths, each, strict=True)]

    def kernel(block, x_ref, places, up_ref, down_ref, t_ref, rises_ref, falls_ref, board, shared, *own):
        threads = pieces.of_threads(places, board)
        pieces.read(x_ref, block, shared)
        x, own = pieces.columns(shared), list(own)
        of_rise, of_fall = [
            _strengths(pieces, threads, ref, block, own.pop() if one else None)
            for ref, one in zip((up_ref, down_ref), each, strict=True)
        ]
        t, borders = chain_piece(threads, x, lambda k: (of_rise(k), of_fall(k)), d)
        rises_ref[block], falls_ref[block] = borders
        pieces.write(t, t_ref, block, shared)

    x = pieces.cut(rows, -jnp.inf)
    mask = jax.ShapeDtypeStruct((pieces.blocks, _mosaic.THREADS), jnp.int32)
    memory = (BOARD,) + (pieces.shared,) * (1 + sum(each))
    t, *borders = _mosaic.run(
        kernel,
        pieces.blocks,
        [x, pieces.places(), *laid],
        (x.dtype, mask, mask),
        interpret,
        scratch=tuple(mosaic.SMEM(shape, jnp.float32) for shape in memory),
        barriers=False,
    )
    return pieces.joined(t).reshape(*batch, d), pieces.signs(*borders).reshape(*batch, d)


def _strengths(pieces: _Pieces, threads: Threads, ref: Any, block: Any, shared: Any) -> Callable[[int], jax.Array]:
    """The strength behind position k: one of its own, from shared memory, or that of the slice; 0 behind the last."""
    if shared is not None:
        pieces.read(ref, block, shared)
        return lambda k: shared[:, k]
    strength = ref[block]

    def of(k):
        last = pieces.behind_the_last(threads, k)
        return strength if last is None else jnp.where(last, 0.0, strength)

    return of


def _means(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, interpret: Any) -> jax.Array:
    *batch, d = v.shape
    rows = v.reshape(-1, d)
    pieces = _Pieces(rows.shape[0], d, interpret)
    cuts = pieces.masks(as_rows(jumps, tuple(batch), jumps.dtype) != 0)
    weight = pieces.cut(as_rows(weight, tuple(batch), v.dtype), 0.0)

    def kernel(block, v_ref, places, cuts_ref, weight_ref, mean_ref, board, shared, other):
        threads = pieces.of_threads(places, board)
        pieces.read(v_ref, block, shared)
        pieces.read(weight_ref, block, other)
        mean = mean_piece(threads, pieces.columns(shared), pieces.columns(other), cuts_ref[block])
        pieces.write(mean, mean_ref, block, shared)

    memory = BOARD, pieces.shared, pieces.shared
    arrays = [pieces.cut(rows, 0.0), pieces.places(), cuts, weight]
    scratch = tuple(mosaic.SMEM(shape, jnp.float32) for shape in memory)
    [mean] = _mosaic.run(kernel, pieces.blocks, arrays, (v.dtype,), interpret, scratch=scratch, barriers=False)
    return pieces.joined(mean).reshape(*batch, d)


# --- A slice a thread --------------------------------------------------------------------------------------


def _by_tiles(
    kernel: Callable[..., None], rows: tuple[jax.Array, ...], dtypes: tuple[Any, ...], interpret: Any
) -> list[jax.Array]:
    """Runs a kernel on all slices: arrays `(n, width)`, the first `(n, d)`, to `(n, d)` of the dtypes."""
    n, d = rows[0].shape
    blocks = pl.cdiv(n, _mosaic.THREADS)

    def to_tiles(a):
        a = jnp.pad(a, ((0, blocks * _mosaic.THREADS - n), (0, 0)))
        return jnp.swapaxes(a.reshape(blocks, _mosaic.THREADS, -1), 1, 2)

    def on_a_block(block, *refs):
        kernel(*(ref.at[block] for ref in refs))

    # A thread reads what it wrote itself.
    out = _mosaic.run(on_a_block, blocks, [to_tiles(a) for a in rows], dtypes, interpret, barriers=False)
    return [jnp.swapaxes(a, 1, 2).reshape(-1, d)[:n] for a in out]


def _refuses(x: Any, *_: Any) -> str | None:
    """Why the kernels cannot serve, or None."""
    return refuses_slices(x, "chain", 2) or _mosaic.missing()


KERNELS = {"chain": Served(_chain_prox, _refuses), "segment_mean": Served(_segment_mean, _refuses)}
