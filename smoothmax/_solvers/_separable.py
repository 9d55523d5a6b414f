"""The simplex problem for a sum of one function over the coordinates, phi convex on [0, 1]:

    minimise over y   sum_i phi(y_i) - <x, y>    subject to   y >= 0,  sum_i y_i = 1

**Threshold.** y_i = psi(x_i - tau), where psi is the inverse of phi', cut off at 0 and 1, and tau makes the weights add
up to one. Their sum falls with tau, and [max x - phi'(1), max x - phi'(1/d)] holds the root: at the lower end the
greatest weight alone is 1, at the upper end none exceeds 1/d.

Both levels, tau and each y_i for a given tau, are monotone equations in one unknown: Newton's steps, and bisection of
the bracket where they leave it. The bracket of y_i is halved on a logarithmic scale, since an entropy has weights of
every magnitude; its ends, eps^1.75 and 1 - eps, stand for 0 and 1, where phi' may be infinite.
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

    def invert(u, guess):
        """psi(u), and its derivative."""

        def step(state):
            k, low, high, y, moving = state
            slope, curvature = slopes(y)
            above = slope > u
            low, high = jnp.where(above, low, y), jnp.where(above, y, high)
            new = y + (u - slope) / curvature
            newton = (new > low) & (new < high) & (k % 4 < 3)
            new = jnp.where(newton, new, jnp.sqrt(low) * jnp.sqrt(high))
            # What has arrived stays: the next bisection would only throw it back.
            new = jnp.where(moving & (slope != u), new, y)
            far = ~newton | (jnp.abs(new - y) > 2 * eps * y)
            moving = moving & (slope != u) & far & (high - low > 2 * eps * low)
            return k + 1, low, high, new, moving

        low, high = jnp.full_like(u, least), jnp.full_like(u, most)
        outside = (u <= slopes(low)[0]) | (u >= slopes(high)[0]) | jnp.isnan(u)
        state = (0, low, high, jnp.clip(guess, 2 * least, 1 - 2 * eps), ~outside)

        def go_on(state):
            return (state[0] < 200) & jnp.any(state[4] & ~outside)

        y = lax.while_loop(go_on, step, state)[3]
        y = jnp.where(u <= slopes(low)[0], 0, jnp.where(u >= slopes(high)[0], 1, y))
        inside = allowed & ~outside
        rate = jnp.where(inside, 1 / slopes(jnp.where(inside, y, most))[1], 0)
        return jnp.where(allowed, y, 0), rate

    def step(state):
        k, low, high, tau, y, _ = state
        y, rate = invert(x - tau, y)
        excess = _total(y) - 1
        low, high = jnp.where(excess >= 0, tau, low), jnp.where(excess <= 0, tau, high)
        speed = _total(rate)
        new = tau + excess / jnp.where(speed > 0, speed, 1)
        new = jnp.where((new > low) & (new < high) & (k % 4 < 3), new, (low + high) / 2)
        moving = (jnp.abs(excess) > 4 * eps) & (high - low > eps * jnp.maximum(jnp.abs(low), jnp.abs(high)))
        return k + 1, low, high, jnp.where(moving, new, tau), y, moving

    even = 1 / jnp.maximum(count, 1)
    even = jnp.minimum(even, most)
    low, high = -slopes(jnp.full_like(even, most))[0], -slopes(even)[0]
    usable = ~broken & (count > 0) & jnp.isfinite(low) & jnp.isfinite(high)
    low, high = jnp.where(usable, low, 0), jnp.where(usable, high, 0)
    state = (0, low, high, high, jnp.broadcast_to(even, x.shape), usable)
    *_, tau, _, _ = lax.while_loop(lambda s: (s[0] < 200) & jnp.any(s[5]), step, state)
    y, rate = invert(x - tau, jnp.broadcast_to(even, x.shape))

    # One step of Newton's method for the whole system takes up the rounding of tau.
    total = _total(rate)
    y = jnp.maximum(y - rate * ((_total(y) - 1) / jnp.where(total > 0, total, 1)), 0)
    solved = usable & (jnp.abs(_total(y) - 1) <= eps**0.75) & _convex(slopes, y, eps)
    return jnp.where(count == 0, 0, jnp.where(solved, y, jnp.nan))


def _convex(slopes, y, eps):
    """Whether phi' rises over a grid on (0, 1), and at the weights."""
    grid = np.union1d(np.geomspace(eps**1.75, 0.5, 64), np.linspace(1 / 64, 1 - eps, 64))
    slope, curvature = slopes(jnp.asarray(grid, y.dtype))
    noise = 64 * eps * jnp.maximum(jnp.abs(slope[1:]), jnp.abs(slope[:-1]))
    on_grid = jnp.all((jnp.diff(slope) >= -noise) & (curvature[1:] >= -64 * eps * jnp.abs(slope[1:])))
    _, curvature = slopes(jnp.where(y > 0, jnp.minimum(y, 1 - eps), 0.5))
    return on_grid & jnp.all((y == 0) | (curvature > 0), -1, keepdims=True)


def _total(v):
    return jnp.sum(v, axis=-1, keepdims=True)
