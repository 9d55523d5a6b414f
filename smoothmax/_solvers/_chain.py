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
remain right. The mean of a segment (of its data and the forces at its two ends) is the mean of t
over it, so asked at its mean, every segment that is not constant in t splits; when none
splits, the means are the answer. A deleted position adds nothing to f: messages pass through it.

Decide by the backward sweep, never by the signs of messages from both sides: on ties those
contradict each other.

**Layout.** The position leads and the batch is the vector of each step, so a sweep is a scan.
Its cost is the number of rows it reads and writes, hence the left-to-right sweep hands over, in place of
f and the border, one byte: what is known of the border and the answer b_i to either b_{i+1}.
"""

import jax.numpy as jnp
from jax import lax

# What is known of the border between i and i+1: the public `jumps`.
_FALL, _FUSED, _RISE = -1, 0, 1
# The byte of a position: two bits for its border, and b_i if b_{i+1} is true, if it is false.
_BORDER, _IF_ABOVE, _IF_BELOW = 3, 4, 8


def chain_prox(y, up, down):
    """Solve the chain problem for each slice along the last axis.

    Args:
        y: array (..., d), float32 or float64; -inf marks a deleted position.
        up, down: penalties of a rise and of a fall, at least 0, +inf allowed: scalars, or arrays
            (..., d-1) or (..., 1) of y's rank.

    Returns:
        t (..., d), -inf at deleted positions, and jumps int8 (..., d): for the border between i and
        i+1, 0 when fused, +1 where t rises, -1 where it falls; 0 in the last place. A slice with
        NaN or +inf gives NaN.
    """
    d, dtype = y.shape[-1], y.dtype
    deleted = y == -jnp.inf
    broken = jnp.any(jnp.isnan(y) | (y == jnp.inf), -1, keepdims=True)
    usable = ~(deleted | broken)

    # Centred data: by the maximum first, for shift invariance, then by the mean, for small sums.
    top = jnp.max(jnp.where(usable, y, -jnp.inf), -1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)
    z = jnp.where(usable, y - top, 0)
    size = jnp.sum(usable.astype(dtype), -1, keepdims=True)
    centre = jnp.sum(z, -1, keepdims=True) / jnp.maximum(size, 1)
    z = jnp.where(usable, z - centre, 0)
    # Values nearer than this are rounding apart: no segment is split for less.
    slack = 2 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(z), -1)

    z = jnp.moveaxis(jnp.where(usable, z, jnp.inf), -1, 0)  # +inf: deleted
    inner, last = z[:-1], z[-1]
    up, down = _strength(up, y), _strength(down, y)
    # More than all the forces on two neighbours can make up.
    reach = 2 * (jnp.max(up, 0, keepdims=True, initial=0) + jnp.max(down, 0, keepdims=True, initial=0))
    zero = _zeros(slack, slack, reach[0])
    # A strength that is the same for all borders is one row, which the scans need not read again.
    up_rows, down_rows = (None if a.shape[0] == 1 else a for a in (up, down))

    def limits(up_row, down_row):
        return (up[0] if up_row is None else up_row), (down[0] if down_row is None else down_row)

    def ask(carry, x):
        message, m = carry
        z, border, next_mean, up, down = x
        up, down = limits(up, down)
        f = jnp.where(z == jnp.inf, 0, m - z) + message
        fused, e = border == _FUSED, jnp.where(border == _RISE, up, -down)
        if_above = jnp.where(fused, f < up + slack, f < e)
        if_below = jnp.where(fused, f < -down - slack, f < e)
        byte = (border + 1) + _flag(if_above, _IF_ABOVE) + _flag(if_below, _IF_BELOW)
        message = jnp.where(fused, jnp.clip(f, -down, up), e)
        return (message, jnp.where(fused, m, next_mean)), byte

    def decide(carry, x):
        above, sums = carry
        total, count = sums
        z, byte, up, down = x
        up, down = limits(up, down)
        border = (byte & _BORDER) - 1
        b = jnp.where(above, (byte & _IF_ABOVE) != 0, (byte & _IF_BELOW) != 0)
        step = jnp.where(above, jnp.int8(_RISE), jnp.int8(_FALL))
        border = jnp.where((border == _FUSED) & (b != above), step, border)
        # The force at a cut ends the sum of the segment on its right and starts the one on its left.
        cut, e = border != _FUSED, jnp.where(border == _RISE, up, -down)
        next_mean = (total - jnp.where(cut, e, 0)) / jnp.maximum(count, 1)
        # One array for the two: a short step costs what it takes to start its kernels.
        sums = jnp.where(cut, jnp.stack([e, jnp.zeros_like(e)]), sums)
        sums += jnp.where(z == jnp.inf, 0, jnp.stack([z, jnp.ones_like(z)]))
        return (b, sums), (border, next_mean)

    def sweeps(state):
        border, mean, next_mean, _, rounds = state
        (message, m), byte = lax.scan(ask, (zero, mean), (inner, border, next_mean, up_rows, down_rows))
        here = last < jnp.inf
        b = jnp.where(here, m - last, 0) + message < 0
        end = (b, jnp.where(here, jnp.stack([last, jnp.ones_like(last)]), 0))
        (_, (total, count)), (cut, next_mean) = lax.scan(decide, end, (inner, byte, up_rows, down_rows), reverse=True)
        mean = total / jnp.maximum(count, 1)
        return cut, mean, next_mean, jnp.any(cut != border), rounds + 1

    # Cut at the start where no force can make up the difference, and where there is no force at all.
    step = z[1:] - inner
    order = jnp.where(step > 0, _RISE, _FALL).astype(jnp.int8)
    known = (up + down == 0) | (jnp.isfinite(step) & (jnp.abs(step) > reach))
    border = jnp.where(known, order, jnp.int8(_FUSED))

    # The first question is asked at the mean of the slice, which is no mean of a segment where a
    # border was cut already: it alone cannot be the last.
    state = (border, zero, jnp.broadcast_to(zero, inner.shape), jnp.any(zero == 0), 0)
    border, mean, next_mean, _, _ = lax.while_loop(lambda s: (s[4] < 2) | (s[3] & (s[4] <= d)), sweeps, state)

    def fill(mean, x):
        border, next_mean = x
        return jnp.where(border == _FUSED, mean, next_mean), mean

    end, t = lax.scan(fill, mean, (border, next_mean))
    t = jnp.moveaxis(jnp.concatenate([t, end[None]]), 0, -1) + centre + top
    t = jnp.where(broken, jnp.nan, jnp.where(deleted, -jnp.inf, t))
    jumps = jnp.concatenate([border, jnp.zeros((1, *zero.shape), jnp.int8)])
    return t, jnp.moveaxis(jumps, 0, -1)


def _zeros(row, *others):
    """Zeros in the form of `row` that vary over a device mesh where any of the others does.

    `shard_map` asks this of what a loop starts from; the compiler removes it. The row itself takes no part in it: it
    may be the operand of a linear function, which cannot be compared.
    """
    zero = jnp.zeros_like(row)
    for other in others:
        zero = jnp.where(other == other, zero, zero)
    return zero


def _flag(condition, bit):
    return jnp.where(condition, jnp.int8(bit), jnp.int8(0))


def _strength(strength, y):
    """A penalty with the borders leading: (1, ...) where it is the same for all, (d-1, ...) else."""
    strength = jnp.asarray(strength, y.dtype)
    if strength.ndim == 0:
        strength = strength.reshape((1,) * y.ndim)
    return jnp.moveaxis(jnp.broadcast_to(strength, (*y.shape[:-1], strength.shape[-1])), -1, 0)


def segment_mean(v, jumps, weight):
    """The sum of v over each segment, divided by the sum of weight there, at every position of it.

    Linear in v; 0 where the weights of a segment sum to 0.
    """
    v, weight = jnp.moveaxis(v, -1, 0), jnp.moveaxis(weight.astype(v.dtype), -1, 0)
    cut = jnp.moveaxis(jumps, -1, 0) != _FUSED
    zero = _zeros(v[0], weight[0], cut[0])

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

    _, (total, count) = lax.scan(add, (zero, zero), (v, weight, cut), reverse=True)
    _, mean = lax.scan(fill, (zero, zero == 0), (total, count, cut))
    return jnp.moveaxis(mean, 0, -1)
