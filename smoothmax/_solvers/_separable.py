"""The simplex problem for a sum of one function over the coordinates, phi convex on [0, 1]:

    minimise over y   sum_i phi(y_i) - <x, y>    subject to   y >= 0,  sum_i y_i = 1

**Threshold.** y_i = psi(x_i - tau), where psi is the inverse of phi', cut off at 0 and 1, and tau makes the weights add
up to one. Their sum falls with tau, and [max x - phi'(1), max x - phi'(1/d)] holds the root: at the lower end the
greatest weight alone is 1, at the upper end none exceeds 1/d.

**Steps.** Newton's method on tau and all y_i together: one pass over the coordinates for each step, and two or three
steps once close. tau follows from the greatest weight, whose share tau + phi'(greatest) = max x: the sum of the weights
is linear in it for an entropy as for a square, in tau only for the square.

**Safety.** Each y_i is exact for some threshold, tau_i = x_i - phi'(y_i). So weights that add up to one or more bound
the root from below by min tau_i, and others from above by max tau_i, however wrong they are for tau itself. tau moves
only when the y_i are close enough to judge it, and where Newton's step leaves the bracket or progress is slow, to the
middle, where it then waits until the bracket has shrunk. Meanwhile each y_i closes in on psi(x_i - tau) in a bracket of
its own, halved on a logarithmic scale, since an entropy has weights of every magnitude. The ends eps^1.75 and 1 - eps
stand for 0 and 1, where phi' may be infinite.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax


def separable_weights(slopes, x):
    """The solution for each slice along the last axis.

    Args:
      slopes: elementwise function, t -> (phi'(t), phi''(t)), for t > 0.
      x: scores `(*batch, d)`, -inf at deleted positions.

    Returns:
      y `(*batch, d)`: zeros for a slice without an allowed position; NaN where the slice holds NaN or +inf, and where
      phi is not convex.
    """
    dtype = x.dtype
    eps = float(jnp.finfo(dtype).eps)
    least, most = eps**1.75, 1 - eps
    allowed = x != -jnp.inf
    broken = jnp.any(jnp.isnan(x) | (x == jnp.inf), -1, keepdims=True)
    x = jnp.where(allowed & ~broken, x - jnp.max(x, -1, keepdims=True), 0)
    count = _total(allowed.astype(dtype))

    grid = np.union1d(np.geomspace(least, 0.5, 64), np.linspace(1 / 64, most, 64))
    # On a device mesh the grid must vary where x does: the slope at a value that devices share adds up over them.
    grid_slope, grid_curvature = slopes(jnp.zeros_like(x, shape=grid.shape) + jnp.asarray(grid, dtype))
    bottom, top = grid_slope[0], grid_slope[-1]
    even = jnp.minimum(1 / jnp.maximum(count, 1), most)

    def step(state):
        k, tau, low, high, y, small, large, last, moving = state
        slope, curvature = slopes(y)
        # Weights that tau cuts off are 0, and exact.
        inside = allowed & (x - tau > bottom)
        gap = jnp.where(inside, x - tau - slope, 0)
        rate = jnp.where(inside, 1 / curvature, 0)
        noise = 4 * eps * (jnp.abs(x) + jnp.abs(tau))
        exact = jnp.all(jnp.abs(gap) <= noise, -1, keepdims=True)

        # y_i is exact for tau + gap_i.
        excess = _total(jnp.where(inside, y, 0)) - 1
        below = jnp.where(exact, tau, tau + jnp.min(gap - noise, -1, keepdims=True))
        above = jnp.where(exact, tau, tau + jnp.max(gap + noise, -1, keepdims=True))
        low = jnp.where(excess >= 0, jnp.maximum(low, below), low)
        high = jnp.where(excess <= 0, jnp.minimum(high, above), high)

        # Newton's step for the whole system makes the weights add up to one. It is the last where it is below
        # sqrt(eps), since the next would be rounding, or where y_i and tau fit but for the rounding of x - tau.
        excess = excess + _total(rate * gap)
        shift = excess / _or_one(_total(rate))
        full = jnp.where(inside, y + rate * (gap - shift), 0)
        error = jnp.maximum(jnp.abs(gap), jnp.abs(shift))
        arrived = jnp.all((rate * error <= eps**0.5 / 4 * y) | (error <= noise) | ~inside, -1, keepdims=True)

        # Towards the greatest weight that this gives; the rounding of its slope is no match for a small step of tau.
        greatest = jnp.max(full, -1, keepdims=True)
        new = -slopes(jnp.clip(greatest, even, most))[0]
        new = jnp.where(jnp.abs(shift) <= eps**0.5 * jnp.abs(tau), tau + shift, new)
        newton = (new >= low) & (new <= high) & (jnp.abs(excess) <= last / 2)
        new = jnp.where(newton, new, (low + high) / 2)

        # tau moves once the error of the sum is more than twice that of the weights; from the middle of its bracket,
        # only once that has shrunk.
        lack = _total(jnp.where(jnp.abs(gap) > noise, jnp.abs(rate * gap), 0))
        halved = (last < jnp.inf) | (jnp.minimum(tau - low, high - tau) <= (high - low) / 4)
        go = halved & (lack <= jnp.abs(excess) / 2)
        shift = jnp.where(go, jnp.where(newton, shift, new - tau), 0)
        new = jnp.where(go, new, tau)
        last = jnp.where(go, jnp.where(newton, jnp.abs(excess), jnp.inf), last)

        # Newton's step for each weight, in y or in log y.
        small = jnp.where(new > tau, least, jnp.where(gap > noise, y, small))
        large = jnp.where(new < tau, most, jnp.where(gap < -noise, y, large))
        change = rate * (gap - shift)
        line, curve = y + change, y * jnp.exp(change / y)
        following = jnp.where((curve > small) & (curve < large), curve, jnp.sqrt(small) * jnp.sqrt(large))
        following = jnp.where((line > small) & (line < large), line, following)
        following = jnp.where(inside, following, y)
        following = jnp.where(arrived, jnp.maximum(full, least), following)
        # Slices that have arrived stay, so that none depends on the others.
        y = jnp.where(moving, following, y)
        return k + 1, jnp.where(moving, new, tau), low, high, y, small, large, last, moving & ~arrived

    low, high = jnp.zeros_like(even) - top, -slopes(even)[0]
    usable = ~broken & (count > 0) & jnp.isfinite(low) & jnp.isfinite(high) & _rises(grid_slope, grid_curvature, eps)
    low, high = jnp.where(usable, low, 0), jnp.where(usable, high, 0)
    # The first guess is read off the grid.
    y = jnp.clip(jnp.exp(jnp.interp(x - low, grid_slope, jnp.asarray(np.log(grid), dtype))), least, most)
    state = (0, low, low, high, y, jnp.full_like(y, least), jnp.full_like(y, most), jnp.full_like(low, jnp.inf), usable)
    y = lax.while_loop(lambda s: (s[0] < 500) & jnp.any(s[-1]), step, state)[4]

    # Where the last step led below 0, the other weights take up the difference.
    y = jnp.where(allowed & (y > least), y, 0)
    _, curvature = slopes(jnp.where(y > 0, jnp.minimum(y, most), 0.5))
    rate = jnp.where(y > 0, 1 / curvature, 0)
    y = jnp.maximum(y - rate * ((_total(y) - 1) / _or_one(_total(rate))), 0)
    convex = jnp.all((y == 0) | (curvature > 0), -1, keepdims=True)
    solved = usable & convex & (jnp.abs(_total(y) - 1) <= eps**0.75)
    return jnp.where(count == 0, 0, jnp.where(solved, y, jnp.nan))


def _rises(slope, curvature, eps):
    """Whether phi', given on a grid over (0, 1), rises there."""
    noise = 64 * eps * jnp.maximum(jnp.abs(slope[1:]), jnp.abs(slope[:-1]))
    return jnp.all((jnp.diff(slope) >= -noise) & (curvature[1:] >= -64 * eps * jnp.abs(slope[1:])))


def _or_one(v):
    return jnp.where(v > 0, v, 1)


def _total(v):
    return jnp.sum(v, axis=-1, keepdims=True)
