"""Tsallis weights for alpha > 2: one threshold per slice, with powers of infinite slope.

With b = alpha - 1 and r = 1 / b the weights are ``u^r`` for ``u = max(b (z - tau), 0)``, and r < 1. A position close to
the threshold makes the sum of powers steep, and a threshold cannot even be stored precisely enough to say what such a
position weighs: at b = 39 a weight of 0.1 stands for u = 1e-39. What can be stored: the smallest score c of the support
and the weight w there. The weights above it are

    y_i = (b (z_i - c) + w^b)^r,

convex in w with slopes ``(w / y_i)^(b - 1)`` between 0 and 1. So Newton's method on w is well-behaved; where it asks
for a negative w, position c leaves the support, and where w^b grows, smaller scores enter.

The search for the support is what takes passes, and it needs no precision: ten halvings of the bracket ``r d^-b <= -tau
<= r``, on a logarithmic scale, with a power that is off by a few percent and costs next to nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import between, eps, tiny, total, varying_like
from ._power import power, rough_power
from ._scores import Solved, phi, positive, stored, sum_noise

# Five to ten passes are the rule. Halving the bracket alone takes as many as a float has bits, 32 or 64.
MAX_PASSES = 160
# From this pass on a residual that was not halved has the bracket halved.
PATIENCE = 12
# Halvings with the rough power: one more would cost more than it saves the exact passes.
ROUGH_HALVINGS = 10
# The relative error of `rough_power`, rounded up.
ROUGH = 0.07
# A residual below which Newton's method is not held back any more.
CLOSE = 1e-3
# A normalisation repairs rounding, no more: of this many roundings of the sum.
REPAIRABLE = 8


class _State(NamedTuple):
    """The loop. Except for the first `(*batch, 1)`.

    Attributes:
      passes: int32 `()`: how many there were.
      c: the smallest score of the support that is tried.
      w: the weight there.
      floor: no score below it is in the support.
      above: a threshold that is too high.
      last: the sum of the weights less one, of the last pass.
      active: the slices that have not arrived.
    """

    passes: jax.Array
    c: jax.Array
    w: jax.Array
    floor: jax.Array
    above: jax.Array
    last: jax.Array
    active: jax.Array


class _Powers(NamedTuple):
    """What a pass sums. Each `(*batch, d)`.

    Attributes:
      u: b (z - c) + w^b, -1 below c.
      low: u^(r-1) above c; 0 below, at c, and where rounding cannot tell from c.
    """

    u: jax.Array
    low: jax.Array


def concave_weights(z: jax.Array, wanted: jax.Array, b: jax.Array) -> Solved:
    """The weights for b > 1.

    Args:
      z: `(*batch, d)`, at most 0, and 0 somewhere.
      wanted: bool `(*batch, 1)`: the slices to solve; the others arrive nowhere.
      b: `()` or `(*batch or ones, 1)`.
    """
    wanted = varying_like(wanted, z, b)
    b = jnp.where(wanted, b, 2)
    floor, above = _rough_bracket(z, b)
    c = _smallest(z, z > floor)
    w = _root(b * (c - floor), b)
    s = _State(jnp.int32(0), c, w, floor, above, jnp.full_like(c, jnp.inf), wanted)
    s = lax.while_loop(lambda s: (s.passes < MAX_PASSES) & jnp.any(s.active), lambda s: _one_pass(z, b, s), s)
    y = _weights(z, b, s.c, s.w)
    size = total(y)
    arrived = wanted & ~s.active & (jnp.abs(size - 1) <= REPAIRABLE * sum_noise(z))
    return Solved(y / jnp.where(size > 0, size, 1), arrived)


def _rough_bracket(z: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two thresholds `(*batch, 1)` that enclose the root, as close as a rough power tells."""
    r = 1 / b
    log_d = jnp.log(jnp.asarray(z.shape[-1], z.dtype))

    def threshold(digits: jax.Array) -> jax.Array:
        """From -r at 0 to the threshold of d equal scores at 1."""
        return -r * jnp.exp(-b * log_d * digits)

    def halve(k: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        more = low + 2.0 ** -(k + 1)
        u = b * (z - threshold(more))
        rough_mid = total(jnp.where(u > 0, rough_power(u, r), jnp.zeros_like(u)))
        return jnp.where(rough_mid > 1 + ROUGH, more, low), jnp.where(rough_mid < 1 - ROUGH, more, high)

    start = varying_like(jnp.zeros_like(z[..., :1]), z, b)
    low, high = lax.fori_loop(0, ROUGH_HALVINGS, halve, (start, start + 1))
    return threshold(low), threshold(high)


class _Seen(NamedTuple):
    """What a pass sees of the weights that c and w stand for. Each `(*batch, 1)`.

    Attributes:
      above: the sum of the weights above c.
      low: the sum of u^(r-1) above c.
      ties: how many scores there are at c.
      excess: the sum of all weights, less one.
      tau: the threshold.
    """

    above: jax.Array
    low: jax.Array
    ties: jax.Array
    excess: jax.Array
    tau: jax.Array


class _Step(NamedTuple):
    """Where Newton's method leads. Each `(*batch, 1)`.

    Attributes:
      slope: how fast the weights above c grow with that at c.
      w: the weight at c.
      leaves: whether c has no weight.
      e: the power w^b of the new weight at c; below 0 for a threshold above c.
    """

    slope: jax.Array
    w: jax.Array
    leaves: jax.Array
    e: jax.Array


class _Halving(NamedTuple):
    """Where Newton's method is not followed. Each `(*batch, 1)`.

    Attributes:
      halve: whether the next threshold is this one.
      tau: the threshold.
      lowest: whether it is the lower end of what is possible.
    """

    halve: jax.Array
    tau: jax.Array
    lowest: jax.Array


def _one_pass(z: jax.Array, b: jax.Array, s: _State) -> _State:
    seen = _look(z, b, s)
    step = _newton(b, s, seen)
    floor = jnp.where(step.leaves, jnp.nextafter(s.c, 1.0), s.c)
    floor = jnp.where(seen.excess >= 0, jnp.maximum(s.floor, floor), s.floor)
    above = jnp.where(seen.excess < 0, jnp.minimum(s.above, seen.tau), s.above)
    halving = _halving(b, s, seen, step, floor, above)
    stays = ~step.leaves & ~halving.halve
    floor, c, w = _entered(z, b, s, step, halving, stays, floor)

    stalled = (jnp.abs(seen.excess) < sum_noise(z)) & (2 * jnp.abs(seen.excess) > jnp.abs(s.last))
    there = (jnp.abs(seen.excess) <= 4 * eps(z)) | stalled
    # What Newton's step leaves over, for the second derivative in w is at most (b - 1) slope / w. It must be so short,
    # too, that scores which rounding could not tell from c remain so.
    left_over = (b - 1) * step.slope * (s.w - w) ** 2 / (2 * w)
    arrives = stays & (seen.excess > 0) & (left_over <= 4 * eps(z)) & (b * (s.w - w) <= w)
    move = s.active & ~there
    c, w = jnp.where(move, c, s.c), jnp.where(move, w, s.w)
    return _State(s.passes + 1, c, w, floor, above, seen.excess, move & ~arrives)


def _look(z: jax.Array, b: jax.Array, s: _State) -> _Seen:
    e = stored(s.w**b)  # once a slice: fused, a CPU takes it again for each score
    u, low = _powers(z, b, s.c, e)
    above, low, ties = total(low * u), total(low), total((u == e).astype(z.dtype))
    return _Seen(above, low, ties, above + ties * s.w - 1, s.c - (1 / b) * e)


def _newton(b: jax.Array, s: _State, seen: _Seen) -> _Step:
    # For the weight at c. From above it never overshoots: where it leads below 0, c has no weight.
    slope = seen.low * s.w ** (b - 1)
    w = s.w - seen.excess / (slope + seen.ties)
    leaves = w <= 0
    # Without c, a step for the threshold, up to c at least.
    jump = seen.tau - s.c + seen.above / seen.low * phi(jnp.log(seen.above), b)
    jump = positive(jnp.where(seen.above > 1, jump, 0))
    return _Step(slope, w, leaves, jnp.where(leaves, -b * jump, positive(w) ** b))


def _halving(b: jax.Array, s: _State, seen: _Seen, step: _Step, floor: jax.Array, above: jax.Array) -> _Halving:
    """Newton's steps can lead to a place with other positions in the support, and back. Then, and where they are slow,
    the middle of what is possible; or its lower end, since where scores are a rounding apart, no threshold lies between
    them. At that end Newton's method says by itself whether c stays."""
    excess, middle = seen.excess, between(floor, above)
    target = s.c - (1 / b) * step.e
    odd = s.passes % 2 == 1
    strays = ((excess < 0) & (target < middle)) | ((excess > 0) & (target >= above))
    slow = (s.passes > PATIENCE) & ~odd & (2 * jnp.abs(excess) > jnp.abs(s.last))
    halve = ((strays & (jnp.abs(excess) > CLOSE)) | slow) & (floor < middle) & (middle < above)
    halve &= step.leaves | (s.c > s.floor)
    lowest = halve & odd & (excess < 0)
    return _Halving(halve, jnp.where(lowest, floor, middle), lowest)


def _entered(
    z: jax.Array, b: jax.Array, s: _State, step: _Step, halving: _Halving, stays: jax.Array, floor: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The floor; the smallest score above the next threshold, or c if it stays, though its power may be too small for a
    float; and the weight there."""
    halve, tau, lowest = halving
    e = jnp.where(halve, b * (s.c - tau), step.e)
    least, floor = stored((jnp.where(stays & (e == 0), 0, jnp.nextafter(-e, jnp.ones_like(e))), floor))
    c = _smallest(z, ((b * (z - s.c) >= least) | lowest) & (z >= floor))
    w = _root(jnp.where(halve, b * (c - tau), e + b * (c - s.c)), b)
    return floor, c, jnp.where(stays & (c == s.c), step.w, w)


def _powers(z: jax.Array, b: jax.Array, c: jax.Array, e: jax.Array) -> _Powers:
    x = b * (z - c)
    u = jnp.where(x < 0, -1, x + e)
    low = jnp.where(u > e, power(jnp.maximum(u, tiny(z)), 1 / b - 1), 0)
    return _Powers(*stored((u, low)))


def _weights(z: jax.Array, b: jax.Array, c: jax.Array, w: jax.Array) -> jax.Array:
    x, e = b * (z - c), stored(w**b)
    u = jnp.where(x < 0, -1, x + e)
    return jnp.where(u > e, power(jnp.maximum(u, tiny(z)), 1 / b), jnp.where(x < 0, 0, w))


def _smallest(z: jax.Array, inside: jax.Array) -> jax.Array:
    """The smallest score inside, 0 if there is none: the largest score is always in the support."""
    return jnp.min(jnp.where(inside, z, 0), axis=-1, keepdims=True)


def _root(e: jax.Array, b: jax.Array) -> jax.Array:
    return positive(e) ** (1 / b)
