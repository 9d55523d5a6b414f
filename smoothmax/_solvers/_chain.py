"""The chain problem, solved for every slice at once.

    minimise over t   1/2 sum_i w_i (t_i - y_i)^2  +  sum_i up_i [t_{i+1} - t_i]+ + down_i [t_i - t_{i+1}]+

with w_i = 1, or 0 where position i is deleted. Total variation is up = down = lam; isotonic
(non-increasing) regression is up = inf, down = 0.

**Optimality.** Let M_i in [-down_i, up_i] be the force that passes over the border between i and
i+1 (its dual variable), with M = 0 outside. Then w_i (t_i - y_i) + M_{i-1} = M_i, and M_i = up_i
where t rises, -down_i where it falls.

**One question splits a segment.** Which positions have t_i > m? That is a binary problem on the
same chain with data w_i (m - y_i), solved by two sweeps:

    left to right   f_i = w_i (m - y_i) + clip(f_{i-1}, lo_{i-1}, hi_{i-1})
    right to left   b_i = f_i < (hi_i if b_{i+1} else lo_i)

with lo = -down, hi = up. Where b changes, the order over the border is known: cut it, which
means lo = hi = up where it rises and lo = hi = -down where it falls, and the same two formulas
remain right. Asked at the mean of each segment (of its data and the forces at its two ends), the
question splits every segment that is not constant in t; when none splits, the means are the
answer. A deleted position adds nothing to f: messages pass through it.

Decide by the backward sweep, never by the signs of messages from both sides: on ties those
contradict each other.
"""

import jax.numpy as jnp
from jax import lax

# What is known of the border between i and i+1: the public `jumps`.
_FUSED, _RISE, _FALL = 0, 1, -1


def chain_prox(y, up, down):
    """Solve the chain problem for each slice along the last axis.

    Args:
        y: array (..., d); -inf marks a deleted position.
        up, down: penalties of a rise and of a fall, at least 0, +inf allowed: scalars, or arrays
            (..., d-1) or (..., 1) of y's rank.

    Returns:
        t (..., d), -inf at deleted positions, and jumps int8 (..., d): for the border between i and
        i+1, 0 when fused, +1 where t rises, -1 where it falls; 0 in the last place.
    """
    dtype, d = y.dtype, y.shape[-1]
    deleted = y == -jnp.inf
    broken = jnp.any(jnp.isnan(y) | (y == jnp.inf), -1, keepdims=True)
    usable = ~(deleted | broken)

    # Centred data: exact shift invariance first, then small sums.
    top = jnp.max(jnp.where(usable, y, -jnp.inf), -1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)
    z = jnp.where(usable, y - top, 0)
    count = jnp.sum(usable.astype(dtype), -1, keepdims=True)
    centre = jnp.sum(z, -1, keepdims=True) / jnp.maximum(count, 1)
    z = jnp.where(usable, z - centre, 0)
    # Two values closer than this are rounding apart; a segment is not split for less.
    slack = 2 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(z), -1)

    # The position leads, the whole batch is the vector of each step.
    z = jnp.moveaxis(z, -1, 0)
    weight = jnp.moveaxis(usable.astype(dtype), -1, 0)
    up, down = _per_border(up, y), _per_border(down, y)
    zero = jnp.zeros_like(slack)

    def force(jump, up, down):
        return jnp.where(jump == _RISE, up, -down)

    def ask(carry, x):
        message, m, border = carry
        z, w, jump, start, up, down = x
        m = jnp.where(border == _FUSED, m, start)
        f = w * (m - z) + message
        e = force(jump, up, down)
        message = jnp.where(jump == _FUSED, jnp.clip(f, -down, up), e)
        return (message, m, jump), f

    def decide(carry, x):
        above, total, count = carry
        f, z, w, jump, up, down = x
        e = force(jump, up, down)
        end = f < e
        inside = jnp.where(above, f < up + slack, f < -down - slack)
        b = jnp.where(jump == _FUSED, inside, end)
        split = jnp.where(b == above, _FUSED, jnp.where(above, _RISE, _FALL)).astype(jnp.int8)
        jump = jnp.where(jump == _FUSED, split, jump)
        # The force at a cut ends the sum of the segment on its right and starts the one on its left.
        cut, e = jump != _FUSED, force(jump, up, down)
        mean = (total - jnp.where(cut, e, 0)) / jnp.maximum(count, 1)
        total = jnp.where(cut, e, total) + w * z
        count = jnp.where(cut, 0, count) + w
        return (b, total, count), (jump, mean)

    def sweep(state):
        jump, start, _, rounds = state
        first = (zero, zero, jnp.full(zero.shape, _FALL, jnp.int8))
        _, f = lax.scan(ask, first, (z, weight, jump, start, up, down))
        last = (jnp.zeros(zero.shape, bool), zero, zero)
        (_, total, count), (new, after) = lax.scan(
            decide, last, (f, z, weight, jump, up, down), reverse=True
        )
        start = jnp.concatenate([(total / jnp.maximum(count, 1))[None], after[:-1]])
        return new, start, jnp.any(new != jump), rounds + 1

    # A border without a penalty is no border of a segment: cut from the start.
    order = jnp.where(jnp.roll(z, -1, 0) > z, _RISE, _FALL).astype(jnp.int8)
    jump = jnp.where(up + down > 0, jnp.int8(_FUSED), order)
    state = (jump, jnp.zeros_like(z), jnp.array(True), 0)
    jump, start, _, _ = lax.while_loop(
        lambda s: (s[2] | (s[3] < 2)) & (s[3] <= d), sweep, state
    )

    def fill(carry, x):
        m, border = carry
        start, jump = x
        m = jnp.where(border == _FUSED, m, start)
        return (m, jump), m

    _, t = lax.scan(fill, (zero, jnp.full(zero.shape, _FALL, jnp.int8)), (start, jump))
    t = jnp.moveaxis(t, 0, -1) + centre + top
    t = jnp.where(broken, jnp.nan, jnp.where(deleted, -jnp.inf, t))
    return t, jnp.moveaxis(jump.at[-1].set(_FUSED), 0, -1)


def _per_border(strength, y):
    """The penalties as an array (d, ...), 0 behind the last position."""
    d = y.shape[-1]
    strength = jnp.asarray(strength, y.dtype)
    if strength.ndim == 0:
        strength = strength.reshape((1,) * y.ndim)
    borders = jnp.broadcast_to(strength, (*y.shape[:-1], d - 1))
    return jnp.moveaxis(jnp.pad(borders, [(0, 0)] * (y.ndim - 1) + [(0, 1)]), -1, 0)


def segment_mean(v, jumps, weight):
    """The sum of v over each segment, divided by the sum of weight there, at every position of it.

    Linear in v; 0 where the weights of a segment sum to 0.
    """
    v, weight = jnp.moveaxis(v, -1, 0), jnp.moveaxis(weight.astype(v.dtype), -1, 0)
    cut = jnp.moveaxis(jumps, -1, 0) != _FUSED
    zero = jnp.zeros_like(weight[0])

    def add(carry, x):
        total, count = carry
        v, w, cut = x
        total, count = jnp.where(cut, 0, total) + v, jnp.where(cut, 0, count) + w
        return (total, count), (total, count)

    def fill(carry, x):
        mean, after = carry
        total, count, cut = x
        own = jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
        mean = jnp.where(after, own, mean)
        return (mean, cut), mean

    ones = jnp.ones(zero.shape, bool)
    _, (total, count) = lax.scan(add, (jnp.zeros_like(v[0]), zero), (v, weight, cut), reverse=True)
    _, mean = lax.scan(fill, (jnp.zeros_like(v[0]), ones), (total, count, cut))
    return jnp.moveaxis(mean, 0, -1)
