"""The chain problem, solved for every slice at once.

    minimise over t   1/2 sum_i w_i (t_i - x_i)^2  +  sum_i up_i [t_{i+1} - t_i]+ + down_i [t_i - t_{i+1}]+

with w_i = 1, or 0 where position i is deleted. Total variation is up = down = lam; isotonic
(non-increasing) regression is up = inf, down = 0.

**Optimality.** Let M_i in [-down_i, up_i] be the force that passes over the border between i and
i+1 (its dual variable), with M = 0 outside. Then w_i (t_i - x_i) + M_{i-1} = M_i, and M_i = up_i
where t rises, -down_i where it falls.

**One question splits a segment.** Which positions have t_i > m? That is a binary problem on the
same chain with data w_i (m - x_i), solved by two sweeps:

    left to right   f_i = w_i (m - x_i) + clip(f_{i-1}, lo_{i-1}, hi_{i-1})
    right to left   b_i = f_i < (hi_i if b_{i+1} else lo_i)

with lo = -down, hi = up. Where b changes, the order over the border is known: cut it, which
means lo = hi = up where it rises and lo = hi = -down where it falls, and the same two formulas
remain right. The mean of a segment (of its data and the forces at its two ends) is the mean of t
over it, so asked at its mean, every segment that is not constant in t splits; when none
splits, the means are the answer. A deleted position adds nothing to f: messages pass through it.

Decide by the backward sweep, never by the signs of messages from both sides: on ties those
contradict each other.

**Layout.** The position leads and the batch is the vector of each step, so a sweep is a scan.
Its cost is the number of rows it reads and writes, hence the left-to-right sweep hands over, in place of
f and the border, one byte: what is known of the border and the answer b_i to either b_{i+1}.

On an accelerator every step of a scan is a few small kernels; there the whole loop belongs into one kernel, "chain" in
the table of implementations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from .._arrays import eps, total, varying_like
from ._products import product

# What is known of the border between i and i+1: the public `jumps`.
FALL, FUSED, RISE = -1, 0, 1
# The byte of a position: two bits for its border, and b_i if b_{i+1} is true, if it is false.
BORDER, IF_ABOVE, IF_BELOW = 3, 4, 8
# Values nearer than this are rounding apart, relative to the largest one: no segment is split for less.
SLACK = 2


def chain_prox(
    x: jax.Array, up: jax.Array, down: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """The solution of the chain problem for each slice along the last axis.

    Args:
      x: `(*batch, d)`, float32 or float64, at any offset; -inf marks a deleted position.
      up, down: penalties of a rise and of a fall, at least 0, +inf allowed: `()`, `(*batch or ones, d - 1)` or
        `(*batch or ones, 1)`.
      implementation: None for the best one, or its name in the table of `_kernels`.

    Returns:
      t `(*batch, d)`, -inf at deleted positions, and jumps int8 `(*batch, d)`: for the border between i and i+1, 0 when
      fused, +1 where t rises, -1 where it falls; 0 in the last place. A slice with NaN or +inf gives NaN, and so does
      one that still changed when the loop ended.
    """
    up, down = jnp.asarray(up, x.dtype), jnp.asarray(down, x.dtype)
    return _kernels.run("chain", implementation, _chain_prox, x, up, down)


def isotonic(x: jax.Array, *, implementation: str | None = None) -> tuple[jax.Array, jax.Array]:
    """The non-increasing regression of each slice: argmin |t - x|^2 / 2 over t_1 >= t_2 >= ..., as `chain_prox`."""
    return chain_prox(x, jnp.full((), jnp.inf, x.dtype), jnp.zeros((), x.dtype), implementation=implementation)


def segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """The sum of v over each segment, divided by the sum of weight there, at every position of it.

    Linear in v; 0 where the weights of a segment sum to 0.

    Args:
      v: `(*batch, d)`.
      jumps: int8 `(*batch, d)`, nonzero where a segment ends.
      weight: `(*batch, d)`, at least 0.
    """
    return product("segment_mean", implementation, _segment_mean, v, jumps, weight.astype(v.dtype))


# The data of a chain, positions leading.


class _Chain(NamedTuple):
    """The problem: rows are positions, so there are n = d - 1 borders.

    Attributes:
      z: `(d, *batch)`: the centred values; +inf at deleted positions.
      up, down: the strengths of all borders, `(n or 1, *batch)`: one row where it is the same for all of them.
      slack: `(*batch)`: how much two values must differ to be different.
    """

    z: jax.Array
    up: jax.Array
    down: jax.Array
    slack: jax.Array

    def rows(self) -> tuple[jax.Array | None, jax.Array | None]:
        """The strengths to be read step by step; None for those that do not change, which a scan need not read."""
        return tuple(None if a.shape[0] == 1 else a for a in (self.up, self.down))  # pyright: ignore[reportReturnType]

    def at(self, rows: tuple[jax.Array | None, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        """The strengths of one border, from what the scan read."""
        up, down = rows
        return (self.up[0] if up is None else up), (self.down[0] if down is None else down)


class _Segments(NamedTuple):
    """The loop.

    Attributes:
      border: int8 `(n, *batch)`: FALL, FUSED or RISE.
      mean: `(*batch)`: the mean of the first segment.
      next_mean: `(n, *batch)`: the mean of the segment right of each border, if it is cut.
      changed: bool `(*batch)`: whether the last round cut a border, or cannot be the last one.
      rounds: int32 `()`: how many there were.
    """

    border: jax.Array
    mean: jax.Array
    next_mean: jax.Array
    changed: jax.Array
    rounds: jax.Array


def most_rounds(d: int) -> int | jax.Array:
    """Each round but the first two cuts a border that stays cut, or is the last."""
    return d + 2


def _check_symbolic(d: Any) -> None:
    """Raises where JAX could not write the loops over d - 1 borders into a program that is exported."""
    try:
        _ = d >= 2
    except Exception:  # that it is inconclusive, for which JAX 0.8 has no public name
        raise ValueError(
            f"x of symbolic length {d} must be known to have at least 2 positions, for total variation, ranks and "
            "sorting: say so when you make the symbol, as in jax.export.symbolic_shape('n', constraints=['n >= 2'])"
        ) from None


def _chain_prox(x: jax.Array, up: jax.Array, down: jax.Array) -> tuple[jax.Array, jax.Array]:
    _check_symbolic(x.shape[-1])
    x = varying_like(x, up, down)
    deleted = x == -jnp.inf
    broken = jnp.any(jnp.isnan(x) | (x == jnp.inf), -1, keepdims=True)
    usable = ~(deleted | broken)
    z, mean, top = _centred(x, usable)
    chain = _laid_out(z, usable, up, down)
    s = _start(chain)
    limit = most_rounds(x.shape[-1])
    s = lax.while_loop(lambda s: jnp.any(s.changed) & (s.rounds < limit), lambda s: _one_round(chain, s), s)

    t = jnp.moveaxis(_filled(s), 0, -1) + mean + top
    unsolved = broken | s.changed[..., None]
    t = jnp.where(unsolved, jnp.nan, jnp.where(deleted, -jnp.inf, t))
    jumps = jnp.concatenate([s.border, jnp.zeros_like(s.changed, jnp.int8)[None]])
    return t, jnp.moveaxis(jumps, 0, -1)


def _centred(x: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values less their maximum, for shift invariance, and less their mean, for small sums; the mean, the maximum."""
    top = jnp.max(jnp.where(usable, x, -jnp.inf), -1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)
    z = jnp.where(usable, x - top, 0)
    mean = total(z) / jnp.maximum(total(usable.astype(x.dtype)), 1)
    return jnp.where(usable, z - mean, 0), mean, top


def _laid_out(z: jax.Array, usable: jax.Array, up: jax.Array, down: jax.Array) -> _Chain:
    slack = SLACK * eps(z) * jnp.max(jnp.abs(z), -1)
    rows = jnp.moveaxis(jnp.where(usable, z, jnp.inf), -1, 0)
    return _Chain(rows, _strength(up, z), _strength(down, z), slack)


def _strength(strength: jax.Array, z: jax.Array) -> jax.Array:
    """A penalty with the borders leading: `(1, *batch)` where it is the same for all, `(d - 1, *batch)` else."""
    if strength.ndim == 0:
        strength = strength.reshape((1,) * z.ndim)
    strength = jnp.broadcast_to(strength, (*z.shape[:-1], strength.shape[-1]))
    return jnp.moveaxis(varying_like(strength, z), -1, 0)


def _start(chain: _Chain) -> _Segments:
    """Borders are cut where no force can make up the difference, and where there is no force at all."""
    # More than all the forces on two neighbours can make up.
    reach = 2 * sum(jnp.max(force, 0, keepdims=True, initial=0) for force in (chain.up, chain.down))
    step = chain.z[1:] - chain.z[:-1]
    order = jnp.where(step > 0, RISE, FALL).astype(jnp.int8)
    known = (chain.up + chain.down == 0) | (jnp.isfinite(step) & (jnp.abs(step) > reach))
    zero = varying_like(jnp.zeros_like(chain.slack), chain.slack)
    border = jnp.where(known, order, jnp.int8(FUSED))
    return _Segments(border, zero, jnp.broadcast_to(zero, step.shape), zero == 0, jnp.int32(0))


def _one_round(chain: _Chain, s: _Segments) -> _Segments:
    """Asks every segment at its mean, and cuts it where the answer changes."""
    inner, last = chain.z[:-1], chain.z[-1]
    here = last < jnp.inf
    zero = varying_like(jnp.zeros_like(s.mean), s.mean)

    def ask(carry: tuple[jax.Array, ...], row: tuple) -> tuple[tuple[jax.Array, ...], jax.Array]:
        message, m = carry
        z, border, next_mean, strengths = row
        up, down = chain.at(strengths)
        f = jnp.where(z == jnp.inf, 0, m - z) + message
        fused, force = border == FUSED, jnp.where(border == RISE, up, -down)
        if_above = jnp.where(fused, f < up + chain.slack, f < force)
        if_below = jnp.where(fused, f < -down - chain.slack, f < force)
        byte = (border + 1) + _flag(if_above, IF_ABOVE) + _flag(if_below, IF_BELOW)
        message = jnp.where(fused, jnp.clip(f, -down, up), force)
        return (message, jnp.where(fused, m, next_mean)), byte

    def decide(carry: tuple[jax.Array, ...], row: tuple) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        above, sums = carry
        z, byte, strengths = row
        up, down = chain.at(strengths)
        border = (byte & BORDER) - 1
        b = jnp.where(above, (byte & IF_ABOVE) != 0, (byte & IF_BELOW) != 0)
        step = jnp.where(above, jnp.int8(RISE), jnp.int8(FALL))
        border = jnp.where((border == FUSED) & (b != above), step, border)
        # The force at a cut ends the sum of the segment on its right and starts the one on its left.
        cut, force = border != FUSED, jnp.where(border == RISE, up, -down)
        next_mean = (sums[0] - jnp.where(cut, force, 0)) / jnp.maximum(sums[1], 1)
        # One array for the two: a short step costs what it takes to start its kernels.
        sums = jnp.where(cut, jnp.stack([force, jnp.zeros_like(force)]), sums)
        sums += jnp.where(z == jnp.inf, 0, jnp.stack([z, jnp.ones_like(z)]))
        return (b, sums), (border, next_mean)

    rows = chain.rows()
    (message, m), byte = lax.scan(ask, (zero, s.mean), (inner, s.border, s.next_mean, rows))
    above = jnp.where(here, m - last, 0) + message < 0
    end = (above, jnp.where(here, jnp.stack([last, jnp.ones_like(last)]), 0))
    (_, sums), (border, next_mean) = lax.scan(decide, end, (inner, byte, rows), reverse=True)
    # The first question is asked at the mean of the slice, which is no mean of a segment where a border was cut
    # already: it alone cannot be the last.
    changed = jnp.any(border != s.border, axis=0) | (s.rounds == 0)
    return _Segments(border, sums[0] / jnp.maximum(sums[1], 1), next_mean, changed, s.rounds + 1)


def _filled(s: _Segments) -> jax.Array:
    """The mean of its segment at every position, `(d, *batch)`."""

    def fill(mean: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        border, next_mean = row
        return jnp.where(border == FUSED, mean, next_mean), mean

    end, t = lax.scan(fill, s.mean, (s.border, s.next_mean))
    return jnp.concatenate([t, end[None]])


def _flag(condition: jax.Array, bit: int) -> jax.Array:
    return jnp.where(condition, jnp.int8(bit), jnp.int8(0))


# Means of segments.


def _segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array) -> jax.Array:
    v, weight = jnp.moveaxis(v, -1, 0), jnp.moveaxis(weight, -1, 0)
    cut = jnp.moveaxis(jumps, -1, 0) != FUSED
    zero = varying_like(jnp.zeros_like(v[0]), v, weight, cut)

    def add(carry: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], tuple]:
        v, w, cut = row
        before, lost, counts = (jnp.where(cut, 0, a) for a in carry)
        sums = before + v
        added = sums - before
        # What rounding takes from a sum is kept beside it: over thousands of ranks it would add up to more than one.
        lost += (before - (sums - added)) + (v - added)
        counts += w
        return (sums, lost, counts), (sums + lost, counts)

    def fill(carry: tuple[jax.Array, ...], row: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        mean, starts = carry
        sums, counts, cut = row
        own = jnp.where(counts > 0, sums / jnp.where(counts > 0, counts, 1), 0)
        mean = jnp.where(starts, own, mean)
        return (mean, cut), mean

    _, (sums, counts) = lax.scan(add, (zero, zero, zero), (v, weight, cut), reverse=True)
    _, mean = lax.scan(fill, (zero, varying_like(jnp.ones_like(cut[0]), zero)), (sums, counts, cut))
    return jnp.moveaxis(mean, 0, -1)
