"""The chain problem and the means of its segments where several threads share a slice, as on GPUs.

The algorithm is that of `_solvers/_chain.py`, which explains it: a question, asked at the mean of each segment and
answered from the other end, splits the segments; when none splits, the means are the answer. Each thread has a piece
of its slice, neighbouring positions, a number each in registers. A sweep over a piece makes one map of what comes in;
those of the pieces before it are composed, and the sweep is done once more with what does come in.

What is known of borders, and each answer, is a bit: position k of a piece has the k-th from the highest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..shared._slices import flag
from ._threads import Numbers, Threads

# The bits of a mask.
WIDEST = 32

Piece = list[jax.Array]
Forces = Callable[[int], tuple[jax.Array, jax.Array]]


class _Data(NamedTuple):
    """The piece, and what is known of its slice."""

    z: Piece  # centred scores, 0 where they do not count
    counts: jax.Array  # mask
    bad: jax.Array  # 1 where a score is NaN or +inf, or a strength is NaN; else 0
    shift: tuple[jax.Array, jax.Array]  # to be added to the means: the mean of what is left without the top, the top
    slack: jax.Array  # values nearer than this are rounding apart: no segment is split for less
    reach: jax.Array  # more than all the forces on two neighbours can make up


class _Borders(NamedTuple):
    """What is known of the borders behind each position: masks of those where t rises or falls; others are fused."""

    rises: jax.Array
    falls: jax.Array

    def forces(self, k: int, forces: Forces) -> tuple[jax.Array, jax.Array]:
        """The least and the largest force that may pass; where the border is cut, they are the same."""
        up, down = forces(k)
        return jnp.where(has(self.rises, k), up, -down), jnp.where(has(self.falls, k), -down, up)


class _Rounds(NamedTuple):
    """The state of the loop over the questions."""

    asked: jax.Array  # questions
    means: tuple[jax.Array, ...]  # of the segment of each position
    borders: _Borders
    moved: jax.Array  # 1 where the last question split a segment in this piece, else 0
    going: jax.Array  # the sum of `moved` over the block, a scalar


def bit(k: int) -> np.int32:
    return np.int32((1 << (WIDEST - 1 - k)) - (2**WIDEST if k == 0 else 0))


def has(mask: jax.Array, k: int) -> jax.Array:
    return (mask & bit(k)) != 0


def _mask(conditions: Sequence[jax.Array]) -> jax.Array:
    mask = None
    for k, condition in enumerate(conditions):
        one = jnp.where(condition, bit(k), np.int32(0))
        mask = one if mask is None else mask | one
    assert mask is not None
    return mask


def _anew(numbers: Any) -> Any:
    """The same numbers. What was made of them before is made anew rather than kept in registers: one number for each
    position of a piece is a lot, and too many leave room for too few blocks at a time."""
    return lax.optimization_barrier(numbers)


def chain_piece(threads: Threads, x: Piece, forces: Forces, d: int) -> tuple[Piece, _Borders]:
    """The solution of the chain problem from the scores of a piece and the strengths behind its positions.

    Behind the last position of a slice, and wherever it is filled up, the strengths are 0.
    """
    zero = flag(x[0] > jnp.inf)  # the compiler wants to know how numbers lie in registers, and learns it here
    found = _survey(threads, x, forces, zero)
    borders = _known(threads, found, forces, zero)

    def question(s: _Rounds) -> _Rounds:
        data = found._replace(counts=_anew(found.counts))
        means = _means_of_chain(threads, data, forces, s.borders, zero)
        split, above = _answers(threads, data, forces, s.borders, means, zero)
        borders = _Borders(s.borders.rises | (split & above), s.borders.falls | (split & ~above))
        moved = flag(split != 0)
        return _Rounds(s.asked + 1, tuple(means), borders, moved, jnp.sum(moved))

    start = _Rounds(jnp.int32(0), (zero,) * len(x), borders, zero, jnp.float32(1))
    end = lax.while_loop(lambda s: (s.going > 0) & (s.asked <= d), threads.loop_body(question), start)

    [moved] = threads.all([end.moved], _largest)
    bad = (found.bad > 0) | (moved > 0)  # what has not arrived is no answer
    centre, top = found.shift
    t = [jnp.where(has(found.counts, k), mean + centre + top, -jnp.inf) for k, mean in enumerate(end.means)]
    return [jnp.where(bad, jnp.nan, value) for value in t], end.borders


def _largest(a: Numbers, b: Numbers) -> Numbers:
    return [jnp.maximum(*pair) for pair in zip(a, b, strict=True)]


def _sum(a: Numbers, b: Numbers) -> Numbers:
    return [p + q for p, q in zip(a, b, strict=True)]


def _survey(threads: Threads, x: Piece, forces: Forces, zero: jax.Array) -> _Data:
    top, low, up, down, bad = zero - jnp.inf, zero + jnp.inf, zero, zero, zero
    for k, v in enumerate(x):
        top = jnp.maximum(top, jnp.where(v < jnp.inf, v, jnp.inf))
        low = jnp.minimum(low, jnp.where(v > -jnp.inf, v, jnp.inf))
        more_up, more_down = forces(k)
        bad = jnp.where((more_up >= 0) & (more_down >= 0), bad, 1.0)
        up, down = jnp.maximum(up, more_up), jnp.maximum(down, more_down)
    top, low, bad = threads.all([top, -low, bad], _largest)
    up, down = threads.all([up, down], _largest)
    low, bad = -low, jnp.where(top < jnp.inf, bad, 1.0)
    top = jnp.where(top == -jnp.inf, 0.0, top)

    here = [(jnp.abs(v) < jnp.inf) & (bad == 0) for v in x]
    total, count = zero, zero
    for v, counts in zip(x, here, strict=True):
        total, count = total + jnp.where(counts, v - top, 0.0), count + flag(counts)
    total, count = threads.all([total, count], _sum)
    centre = total / jnp.maximum(count, 1.0)
    z = [jnp.where(counts, (v - top) - centre, 0.0) for v, counts in zip(x, here, strict=True)]
    size = jnp.maximum(jnp.abs(centre), jnp.where(count > 0, jnp.abs((low - top) - centre), 0.0))
    return _Data(z, _mask(here), bad, (centre, top), 2 * float(jnp.finfo(jnp.float32).eps) * size, 2 * (up + down))


def _known(threads: Threads, data: _Data, forces: Forces, zero: jax.Array) -> _Borders:
    """Cut at the start where no force can make up the difference, and where there is no force at all."""
    z = [jnp.where(has(data.counts, k), z, jnp.inf) for k, z in enumerate(data.z)]
    [after] = threads.neighbour(-1, [z[0]], [zero])
    cut, rises = [], []
    for k, right in enumerate([*z[1:], after]):
        step = right - z[k]
        up, down = forces(k)
        far = (jnp.abs(step) < jnp.inf) & (jnp.abs(step) > data.reach)
        cut.append((up + down == 0) | far)
        rises.append(step > 0)
    cuts, rising = _mask(cut), _mask(rises)
    return _Borders(cuts & rising, cuts & ~rising)


def _answers(
    threads: Threads, data: _Data, forces: Forces, borders: _Borders, means: Piece, zero: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masks of the borders that the question splits, and of those behind which t is above the mean."""
    data, borders, means = _anew((data, borders, means))
    cuts = borders.rises | borders.falls

    def pull(k):
        return jnp.where(has(data.counts, k), means[k] - data.z[k], 0.0)

    # What comes in, m, is m + a between bounds when it leaves the piece.
    low, high = borders.forces(0, forces)
    a = pull(0)
    for k in range(1, len(means)):
        bounds, more = borders.forces(k, forces), pull(k)
        a, low, high = a + more, _between(low + more, bounds), _between(high + more, bounds)

    def in_turn(first, second):
        (a, low, high), (more, *bounds) = first, second
        return a + more, _between(low + more, bounds), _between(high + more, bounds)

    a, *bounds = threads.before((a, low, high), in_turn, (zero, zero - jnp.inf, zero + jnp.inf))
    message = _between(a, bounds)
    data, borders, cuts, means = _anew((data, borders, cuts, means))
    if_above, if_below = [], []
    for k in range(len(means)):
        low, high = borders.forces(k, forces)
        slack = jnp.where(has(cuts, k), 0.0, data.slack)
        f = pull(k) + message
        if_above.append(f < high + slack)
        if_below.append(f < low - slack)
        message = _between(f, (low, high))

    # A position is above if `if_below`, or if `if_above` and the next one is: so digits of two numbers that are added
    # carry into the next place, where one digit or both are 1. Both masks are added, and the carries are the answers.
    below = _mask(if_below)
    above = _mask(if_above) | below
    one = bit(len(means) - 1)

    def carries_out(carry):
        return flag(has(below | (above & ~(above + below + carry)), 0))  # not "negative": see `_mosaic.py`

    # 0: none; 1: what comes in; 2: one.
    out = carries_out(np.int32(0)) + carries_out(one)
    [carry] = threads.behind([out], lambda later, own: [jnp.where(own[0] == 1, later[0], own[0])], [zero + 1])
    next_above = (above + below + jnp.where(carry == 2, one, np.int32(0))) ^ above ^ below
    here_above = below | (above & next_above)
    return (here_above ^ next_above) & ~cuts, next_above


def _between(a: jax.Array, bounds: Sequence[jax.Array]) -> jax.Array:
    low, high = bounds
    return jnp.minimum(jnp.maximum(a, low), high)


class _Position(NamedTuple):
    """What the mean of a segment is made of at one position."""

    value: jax.Array
    weight: jax.Array
    cut: jax.Array  # whether the segment ends here
    force: jax.Array | float  # the force there


def _means_of_chain(threads: Threads, data: _Data, forces: Forces, borders: _Borders, zero: jax.Array) -> Piece:
    def at(given, k):
        z, counts, borders = given
        return _Position(
            z[k], flag(has(counts, k)), has(borders.rises | borders.falls, k), borders.forces(k, forces)[0]
        )

    def mean(total, count):
        return total / jnp.maximum(count, 1.0)

    return _means(threads, (data.z, data.counts, borders), at, mean, len(data.z), zero)


def mean_piece(threads: Threads, v: Piece, weight: Piece, cuts: jax.Array) -> Piece:
    """The means of segments, at every position of a piece; `cuts` is a mask of the ends of segments."""

    def at(given, k):
        v, weight, cuts = given
        return _Position(v[k], weight[k], has(cuts, k), 0.0)

    def mean(total, count):
        return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)

    return _means(threads, (v, weight, cuts), at, mean, len(v), flag(v[0] > jnp.inf))


def _means(
    threads: Threads,
    given: Any,
    at: Callable[[Any, int], _Position],
    mean: Callable[[jax.Array, jax.Array], jax.Array],
    length: int,
    zero: jax.Array,
) -> Piece:
    """Sums to the right, complete where a segment ends; from there the mean goes back to the left.

    The force at a cut ends the sum of the segment on its left and starts the one on its right.
    """

    def passed(p, total, count):
        return jnp.where(p.cut, -p.force, total), jnp.where(p.cut, 0.0, count)

    total, count, ended = zero, zero, zero
    for k in range(length):
        p = at(given, k)
        total, count = passed(p, total + p.value, count + p.weight)
        ended = jnp.where(p.cut, 1.0, ended)

    def in_turn(first, second):
        here = second[2] > 0
        sums = [jnp.where(here, b, a + b) for a, b in zip(first[:2], second[:2], strict=True)]
        return *sums, jnp.maximum(first[2], second[2])

    total, count, _ = threads.before((total, count, ended), in_turn, (zero,) * 3)
    given = _anew(given)
    means, first = [], zero
    for k in range(length):
        p = at(given, k)
        total, count = total + p.value, count + p.weight
        means.append(mean(total + p.force, count))
        total, count = passed(p, total, count)
    given = _anew(given)
    for k in reversed(range(length)):
        first = jnp.where(at(given, k).cut, means[k], first)

    def nearest(later, own):
        return jnp.where(own[1] > 0, own[0], later[0]), jnp.maximum(own[1], later[1])

    behind, _ = threads.behind((first, ended), nearest, (zero, zero))
    for k in reversed(range(length)):
        behind = means[k] = jnp.where(at(given, k).cut, means[k], behind)
    return means
