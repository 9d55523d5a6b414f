"""The kernels of the chain problem and of the means of its segments, as they are on every machine.

The algorithm is that of `_solvers/_chain.py`, which explains it: a question, asked at the mean of each segment by a
sweep to the right and answered by one to the left, splits the segments; when none splits, the means are the answer.
There each sweep is a loop of the program; here many slices are done at once, from the first sweep to the last. Position
i of them all is one tile, in a register or in one of each thread; `Tiles` says how tiles lie in memory.

What is known of a border is kept in the place of the jumps, and the mean behind it in the place of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import varying_like
from ._batching import over_slices
from ._slices import as_rows, flag, loop

# What is known of the border between i and i+1. In memory it is stored plus one, in the two bits `_BORDER`, beside the
# answers to "is t_i above the mean?": if t_{i+1} is, and if it is not.
_FALL, _FUSED, _RISE = -1, 0, 1
_BORDER, _IF_ABOVE, _IF_BELOW = 3, 4, 8


class Tiles(NamedTuple):
    """What kinds of machines do differently."""

    at: Callable[[Any], Any]  # where the tile of a position lies
    zero: Callable[[jax.Array], jax.Array]  # zeros that lie in registers as a tile of float32 does


# Runs a kernel on all slices: arrays `(n, width)`, the first `(n, d)`, to `(n, d)` of the dtypes.
Call = Callable[[Callable[..., None], tuple[jax.Array, ...], tuple[Any, ...]], list[jax.Array]]


def solve_chains(call: Call, tiles: Tiles, x: jax.Array, up: Any, down: Any) -> tuple[jax.Array, jax.Array]:
    """The chain problem for slices `(*batch, d)`; arguments and results as `_solvers.chain_prox`."""

    def solve(x, up, down):
        *batch, d = x.shape
        up, down = (as_rows(a, tuple(batch), x.dtype) for a in (up, down))
        kernel = partial(chain_kernel, d=d, up_at=_row_of(up), down_at=_row_of(down), tiles=tiles)
        t, jumps = call(kernel, (x.reshape(-1, d), up, down), (jnp.float32, jnp.int32))
        return t.reshape(x.shape), jumps.astype(jnp.int8).reshape(x.shape)

    up, down = jnp.asarray(up, x.dtype), jnp.asarray(down, x.dtype)
    return over_slices(solve)(varying_like(x, up, down), up, down)


def mean_segments(call: Call, tiles: Tiles, v: jax.Array, jumps: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of each segment, at every position of it; arguments and results as `_solvers.segment_mean`."""

    def solve(v, jumps, weight):
        *batch, d = v.shape
        cut, weight = as_rows(jumps, tuple(batch), jnp.int32), as_rows(weight, tuple(batch), v.dtype)
        [mean] = call(partial(mean_kernel, d=d, tiles=tiles), (v.reshape(-1, d), cut, weight), (v.dtype,))
        return mean.reshape(v.shape)

    return over_slices(solve)(varying_like(v, jumps, weight), jumps, weight)


def _row_of(strength: jax.Array) -> Callable[[Any], Any]:
    """Where the strength of border i lies: at i, or at 0 where all borders of a slice share one."""
    return (lambda i: 0) if strength.shape[-1] == 1 else (lambda i: i)


@dataclass(frozen=True)
class _Chains:
    """The problem of some slices and the room for its answer: references to tiles."""

    x: Any
    up: Any
    down: Any
    t: Any
    jumps: Any
    d: int
    at: Callable[[Any], Any]
    up_at: Callable[[Any], Any]
    down_at: Callable[[Any], Any]
    zero: jax.Array

    def score(self, i: Any) -> jax.Array:
        return self.x[self.at(i)]

    def forces(self, i: Any) -> tuple[jax.Array, jax.Array]:
        """How far the border between i and i+1 can pull up and down."""
        return self.up[self.at(self.up_at(i))], self.down[self.at(self.down_at(i))]

    def data(self, slices: _Slices, i: Any) -> jax.Array:
        """The centred score, +inf where it does not count."""
        v = self.score(i)
        centred = (v - slices.top) - slices.centre
        return jnp.where((jnp.abs(v) < jnp.inf) & (slices.bad == 0), centred, jnp.inf)


class _Slices(NamedTuple):
    """What is known of the slices before the first question; tiles, one number a slice."""

    bad: jax.Array  # 1 where a score is NaN or +inf, or a strength is NaN; else 0
    top: jax.Array  # the largest score
    centre: jax.Array  # the mean of what is left when the largest score is taken away
    slack: jax.Array  # values nearer than this are rounding apart: no segment is split for less
    reach: jax.Array  # more than all the forces on two neighbours can make up


class _Rounds(NamedTuple):
    """The state of the loop over the questions."""

    asked: jax.Array  # questions
    mean: jax.Array  # the mean of the first segment of each slice
    moved: jax.Array  # 1 where the last question split a segment of the slice, else 0
    going: jax.Array  # the sum of `moved`, a scalar


def chain_kernel(x_ref, up_ref, down_ref, t_ref, jumps_ref, *, d, up_at, down_at, tiles):
    """The chain problem: references to tiles of scores, strengths and the two results."""
    zero = tiles.zero(x_ref[tiles.at(0)])
    chains = _Chains(x_ref, up_ref, down_ref, t_ref, jumps_ref, d, tiles.at, up_at, down_at, zero)
    slices = _survey(chains)
    _cut_at_the_start(chains, slices)

    # The first question is asked at the mean of the slice, which is no mean of a segment where a border was cut
    # already: it alone cannot be the last.
    start = _Rounds(jnp.int32(0), zero, zero, jnp.float32(1))
    end = lax.while_loop(
        lambda s: (s.asked < 2) | ((s.going > 0) & (s.asked <= d)), partial(_question, chains, slices), start
    )
    _write(chains, slices, end)


def _survey(chains: _Chains) -> _Slices:
    """Three passes over the slices: the largest score, the mean, the size; one over the strengths."""
    d, zero = chains.d, chains.zero

    def tops(i, carry):
        top, bad = carry
        v = chains.score(i)
        return jnp.maximum(top, jnp.where(v < jnp.inf, v, -jnp.inf)), jnp.where(v < jnp.inf, bad, 1.0)

    def strengths(i, carry):
        most_up, most_down, bad = carry
        up, down = chains.forces(i)
        bad = jnp.where((up >= 0) & (down >= 0), bad, 1.0)
        return jnp.maximum(most_up, up), jnp.maximum(most_down, down), bad

    def sums(i, carry):
        total, count = carry
        v = chains.score(i)
        counts = (jnp.abs(v) < jnp.inf) & (bad == 0)
        return total + jnp.where(counts, v - top, 0.0), count + flag(counts)

    def sizes(i, size):
        v = chains.score(i)
        counts = (jnp.abs(v) < jnp.inf) & (bad == 0)
        return jnp.maximum(size, jnp.where(counts, jnp.abs((v - top) - centre), 0.0))

    top, bad = loop(d, tops, (zero - jnp.inf, zero))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    borders = max(chains.up_at(d - 2), chains.down_at(d - 2)) + 1
    up, down, bad = loop(borders, strengths, (zero, zero, bad))
    total, count = loop(d, sums, (zero, zero))
    centre = total / jnp.maximum(count, 1.0)
    size = loop(d, sizes, zero)
    return _Slices(bad, top, centre, 2 * float(jnp.finfo(jnp.float32).eps) * size, 2 * (up + down))


def _cut_at_the_start(chains: _Chains, slices: _Slices) -> None:
    """Cut where no force can make up the difference, and where there is no force at all."""

    def cut(i, _):
        up, down = chains.forces(i)
        step = chains.data(slices, i + 1) - chains.data(slices, i)
        far = (jnp.abs(step) < jnp.inf) & (jnp.abs(step) > slices.reach)
        order = jnp.where(step > 0, jnp.int32(_RISE), _FALL)
        chains.jumps[chains.at(i)] = jnp.where((up + down == 0) | far, order, _FUSED) + 1
        chains.t[chains.at(i)] = chains.zero
        return 0

    loop(chains.d - 1, cut, 0)


def _question(chains: _Chains, slices: _Slices, state: _Rounds) -> _Rounds:
    """Asks at the mean of each segment, and splits those whose answers differ."""
    d, tile, t_ref, jumps_ref = chains.d, chains.at, chains.t, chains.jumps
    data = partial(chains.data, slices)

    def ask(i, carry):
        message, m = carry
        up, down = chains.forces(i)
        z, border, next_mean = data(i), (jumps_ref[tile(i)] & _BORDER) - 1, t_ref[tile(i)]
        f = jnp.where(z == jnp.inf, 0.0, m - z) + message
        fused, e = border == _FUSED, jnp.where(border == _RISE, up, -down)
        if_above = f < jnp.where(fused, up + slices.slack, e)
        if_below = f < jnp.where(fused, -down - slices.slack, e)
        jumps_ref[tile(i)] = (
            (border + 1) + jnp.where(if_above, jnp.int32(_IF_ABOVE), 0) + jnp.where(if_below, jnp.int32(_IF_BELOW), 0)
        )
        message = jnp.where(fused, jnp.minimum(jnp.maximum(f, -down), up), e)
        return message, jnp.where(fused, m, next_mean)

    def decide(k, carry):
        i = d - 2 - k
        above, total, count, moved = carry
        up, down = chains.forces(i)
        z, byte = data(i), jumps_ref[tile(i)]
        border = (byte & _BORDER) - 1
        b = jnp.where(above != 0, byte & _IF_ABOVE, byte & _IF_BELOW)
        split = (border == _FUSED) & ((b != 0) != (above != 0))
        border = jnp.where(split, jnp.where(above != 0, jnp.int32(_RISE), _FALL), border)
        # The force at a cut ends the sum of the segment on its right and starts the one on its left.
        cut, e = border != _FUSED, jnp.where(border == _RISE, up, -down)
        t_ref[tile(i)] = (total - jnp.where(cut, e, 0.0)) / jnp.maximum(count, 1.0)
        jumps_ref[tile(i)] = border + 1
        counts = z < jnp.inf
        total = jnp.where(cut, e, total) + jnp.where(counts, z, 0.0)
        count = jnp.where(cut, 0.0, count) + flag(counts)
        return b, total, count, jnp.where(split, 1.0, moved)

    message, m = loop(d - 1, ask, (chains.zero, state.mean))
    z = data(d - 1)
    counts = z < jnp.inf
    above = flag(jnp.where(counts, m - z, 0.0) + message < 0).astype(jnp.int32)
    last = above, jnp.where(counts, z, 0.0), flag(counts), chains.zero
    _, total, count, moved = loop(d - 1, decide, last)
    return _Rounds(state.asked + 1, total / jnp.maximum(count, 1.0), moved, jnp.sum(moved))


def _write(chains: _Chains, slices: _Slices, end: _Rounds) -> None:
    """The means of the segments in the place of those behind the borders, and the jumps in the place of the borders."""
    d, tile, t_ref, jumps_ref = chains.d, chains.at, chains.t, chains.jumps
    bad = jnp.maximum(slices.bad, end.moved)  # what has not arrived is no answer

    def fill(i, mean):
        v = chains.score(i)
        t = jnp.where(v == -jnp.inf, v, mean + slices.centre + slices.top)
        border, next_mean = jumps_ref[tile(i)] - 1, t_ref[tile(i)]
        t_ref[tile(i)] = jnp.where(bad > 0, jnp.nan, t)
        jumps_ref[tile(i)] = border
        return jnp.where(border == _FUSED, mean, next_mean)

    jumps_ref[tile(d - 1)] = chains.zero.astype(jnp.int32) + (_FUSED + 1)
    t_ref[tile(d - 1)] = chains.zero
    loop(d, fill, end.mean)


def mean_kernel(v_ref, jumps_ref, weight_ref, mean_ref, *, d, tiles):
    """The means of segments: references to tiles of values, jumps, weights and the result."""
    tile, zero = tiles.at, tiles.zero(v_ref[tiles.at(0)])

    def add(k, carry):
        """The sums of each segment from its end; at its start they are complete."""
        i = d - 1 - k
        total, count = carry
        cut = jumps_ref[tile(i)] != _FUSED
        total = jnp.where(cut, 0.0, total) + v_ref[tile(i)]
        count = jnp.where(cut, 0.0, count) + weight_ref[tile(i)]
        mean_ref[tile(i)] = jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
        return total, count

    def fill(i, carry):
        mean, starts = carry
        mean = jnp.where(starts > 0, mean_ref[tile(i)], mean)
        mean_ref[tile(i)] = mean
        return mean, flag(jumps_ref[tile(i)] != _FUSED)

    loop(d, add, (zero, zero))
    loop(d, fill, (zero, zero + 1))
