"""The simplex problem for a smooth convex function.

    minimise over y   Omega(y) - <x, y>    subject to   y >= 0,  sum_i y_i = 1

solved for every slice at once by a primal-dual interior-point method that forms no matrix.

**Newton's step.** With multipliers z >= 0 of y >= 0 and c = grad Omega(y) - x, a solution has c + nu 1 = z and
y_i z_i = 0. The method keeps y, z > 0 and aims at y_i z_i = t, with t falling to zero; eliminating dz leaves

    (H + diag(z / y)) dy + dnu 1 = t / y - c,    sum_i dy_i = 0,    H the Hessian of Omega,

which conjugate gradients solve with products H v, preconditioned by a diagonal: an estimate of diag(H), plus z / y.
Near the end z / y spans thirty orders of magnitude, and the slope of an entropy is unbounded; both are diagonal, so
neither slows the solver down, where projected gradients would need a step shorter than the smallest weight.

**Zeros.** At the end y_i z_i is about eps^2: the coordinates with y_i below z_i are zeros, unless the slope at 0 says
otherwise. On the others y is exact to rounding.

**Certificate.** Nothing is returned on trust. A slice becomes NaN if its duality gap max_i g_i - <g, y>, g = -c, is
not at rounding level, if Omega dips below its tangent between any two of a few points or is not finite there, or if
conjugate gradients met a direction of negative curvature: the function is then not convex, or not smooth enough.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_STEPS = 80  # of Newton; 10 to 25 are usual


def interior_point(value, gradient, x):
    """The solution for each slice along the last axis.

    Args:
      value: Omega, from `(*batch, d)` to `(*batch, 1)`; only the certificate asks for it.
      gradient: its gradient, from `(*batch, d)` to the same shape. Both are called at points of the simplex with zeros
        at deleted positions, where the gradient is not used.
      x: scores `(*batch, d)`, -inf at deleted positions.

    Returns:
      y `(*batch, d)`: zeros for a slice without an allowed position, NaN for one that was not solved.
    """
    eps = float(jnp.finfo(x.dtype).eps)
    allowed = x != -jnp.inf
    broken = jnp.any(jnp.isnan(x) | (x == jnp.inf), -1, keepdims=True)
    top = jnp.max(x, -1, keepdims=True)
    x = jnp.where(allowed & ~broken, x - top, 0)
    count = jnp.maximum(_total(allowed.astype(x.dtype)), 1)
    centre = allowed.astype(x.dtype) / count

    def cost(y):
        return jnp.where(allowed, gradient(y) - x, 0)

    c = cost(centre)
    high = jnp.max(jnp.where(allowed, c, -jnp.inf), -1, keepdims=True)
    low = jnp.min(jnp.where(allowed, c, jnp.inf), -1, keepdims=True)
    size = jnp.max(jnp.abs(c), -1, keepdims=True)
    # All multipliers and gaps are measured against the spread of the slopes.
    scale = jnp.maximum(jnp.maximum(high - low, eps * size), jnp.finfo(x.dtype).tiny / eps)
    hopeless = broken | ~jnp.isfinite(scale)

    def step(state):
        k, y, z, mu, moved, convex, live = state
        inside = jnp.where(allowed, y, 1)
        c, tangent = jax.linearize(gradient, y)
        c = jnp.where(allowed, c - x, 0)
        # The aim falls, in the end superlinearly, after each step that was nearly whole.
        mu = jnp.max(y * z, -1, keepdims=True)
        fall = jnp.minimum(0.1, jnp.sqrt(mu / scale))
        mu = jnp.maximum(jnp.where(moved > 0.8, fall, 0.5) * mu, eps**2 / 10 * scale)
        aim = mu / inside
        dy, _, _, unbent = conjugate_gradients(
            lambda v: jnp.where(allowed, tangent(v), 0), jnp.where(allowed, aim - c, 0), allowed, z / inside
        )
        dz = aim - z - z / inside * dy

        # Not beyond the boundary, and not far beyond the least value of Omega - <x, .> - t sum log along dy.
        t = _reach(inside, dy, fall)
        z_new = z + _reach(jnp.where(allowed, z, 1), dz, fall) * dz
        level = _total(y * (c - aim))  # dy sums to zero, but only up to rounding
        slope = -_total((c - aim - level) * dy)
        noise = 16 * eps * _total((jnp.abs(c) + aim) * jnp.abs(dy))

        def far(state):
            return (state[0] < 40) & jnp.any(state[2])

        def shorten(state):
            j, t, _ = state
            trial = y + t * dy
            after = _total((cost(trial) - mu / jnp.where(allowed, trial, 1) - level) * dy)
            beyond = live & ~(after <= 0.9 * slope + noise)
            return j + 1, jnp.where(beyond, t / 2, t), beyond

        _, t, _ = lax.while_loop(far, shorten, (0, t, live))
        y_new = jnp.where(live, y + t * dy, y)
        # Multipliers that have lost touch with t / y would spoil the next direction.
        centred = mu / jnp.where(allowed, y_new, 1)
        z_new = jnp.where(live & allowed, jnp.clip(z_new, 1e-3 * centred, 1e3 * centred), z)
        convex = convex & (unbent | ~live)
        settled = (mu <= eps**2 * scale) & jnp.all(jnp.abs(dy) <= jnp.minimum(16 * eps, y / 100), -1, keepdims=True)
        live = live & convex & ~settled & jnp.all(jnp.isfinite(dy), -1, keepdims=True)
        return k + 1, y_new, z_new, mu, t, convex, live

    z = jnp.where(allowed, scale, 0)
    start = (0, centre, z, scale / count, jnp.ones_like(scale), ~hopeless, ~hopeless & (count > 1))
    _, y, z, _, _, convex, _ = lax.while_loop(lambda s: (s[0] < _STEPS) & jnp.any(s[-1]), step, start)

    small = y < jnp.minimum(z / scale, eps)
    rounded = jnp.where(small, 0, y)
    c = cost(rounded)
    y = jnp.where(small & (c >= _total(rounded * c)), 0, y)
    y = y / jnp.where(_total(y) == 0, 1, _total(y))

    def objective(y):
        return value(y) - _total(y * x)

    solved = convex & _certified(objective, cost, x, y, centre, allowed, scale)
    empty = ~jnp.any(allowed, -1, keepdims=True)
    return jnp.where(empty, 0, jnp.where(solved, y, jnp.nan))


def _certified(objective, cost, x, y, centre, allowed, scale):
    """Whether y is optimal, and the objective above its tangents at y and at some points inside the simplex."""
    eps = jnp.finfo(y.dtype).eps
    d = y.shape[-1]
    weights = np.random.default_rng(0).exponential(size=(2, d)) ** 2
    weights = jnp.where(allowed[None], jnp.asarray(weights, y.dtype).reshape(2, *(1,) * (y.ndim - 1), d), 0)
    one, two = weights / jnp.where(_total(weights) == 0, 1, _total(weights))
    best = jax.nn.one_hot(jnp.argmax(jnp.where(allowed, x, -jnp.inf), -1), d, dtype=y.dtype)
    raised = (y + 16 * eps * centre) / (1 + 16 * eps)
    points = jnp.stack([y, raised, centre, (9 * best + centre) / 10, one, two, (y + one) / 2, (y + two) / 2])
    c = jax.vmap(cost)(points)

    # The greatest slope is taken a little above y: a weight of 1e-20 need not be right to many digits.
    gap = jnp.max(jnp.where(allowed, -c[1], -jnp.inf), -1, keepdims=True) + _total(c[0] * y)
    size = jnp.max(jnp.where(y > 0, jnp.abs(c[0]), 0), -1, keepdims=True)
    # No y does better than its own rounding, which a steep Omega shows as differences between the slopes.
    signs = np.concatenate([np.ones((1, d)), np.random.default_rng(2).choice([-1.0, 1.0], size=(3, d))])
    signs = jnp.asarray(signs, y.dtype).reshape(4, *(1,) * (y.ndim - 1), d)
    _, tangent = jax.linearize(cost, points[1])
    rounding = eps * jnp.max(jnp.abs(jax.vmap(tangent)(signs * y[None])), (0, -1))[..., None]
    optimal = gap <= eps**0.75 * scale + 64 * eps * size + 64 * rounding

    # F(b) >= F(a) + <c(a), b - a> for all points a, b; above[a, b] is the difference.
    values = jax.vmap(objective)(points)[..., 0]

    def differences(values, products, sign):
        own = jnp.moveaxis(jnp.diagonal(products, axis1=0, axis2=1), -1, 0)
        return values[None] + sign * values[:, None] + own[:, None] + sign * products

    above = differences(values, jnp.einsum("a...i,b...i->ab...", c, points), -1)
    noise = differences(jnp.abs(values), jnp.einsum("a...i,b...i->ab...", jnp.abs(c), points), 1)
    return optimal & jnp.all(above >= -64 * eps * noise, axis=(0, 1))[..., None]


def conjugate_gradients(product, b, face, extra=0.0, tolerance=None):
    """Solves (H + diag(extra)) u + nu 1 = b on the face, sum_i u_i = 0, by preconditioned conjugate gradients.

    Args:
      product: v -> H v, symmetric; v and its result are 0 off the face.
      b: right-hand side `(*batch, d)`, 0 off the face.
      face: boolean `(*batch, d)`, the coordinates that take part.
      extra: `(*batch, d)`, not negative.
      tolerance: of the residual, relative to b, in the norm of the preconditioner.

    Returns:
      u; nu; whether they solve the system; and whether no direction of negative curvature of H came up, `(*batch, 1)`.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    d = b.shape[-1]
    tolerance = eps**0.4 if tolerance is None else tolerance
    inverse = jnp.where(face, 1 / (_diagonal(product, face, b.dtype) + extra), 0)
    total = _total(inverse)

    def multiplier(r):
        return _total(inverse * r) / jnp.where(total == 0, 1, total)

    def level(r):
        """Takes nu out of the residual: at its full size it would drown what remains."""
        return jnp.where(face, r - multiplier(r), 0)

    r = level(b)
    p = inverse * r
    first = rho = _total(r * p)
    # Below the rounding of b there is nothing left to solve.
    enough = jnp.maximum(tolerance**2 * first, 4 * eps**2 * _total(inverse * b * b))
    live = rho > enough

    def step(state):
        k, u, r, p, rho, convex, live = state
        hp = product(p)
        bent = _total(p * hp)
        convex = convex & ~(live & (bent < -(eps**0.5) * jnp.sqrt(_total(p * p) * _total(hp * hp))))
        curvature = bent + _total(p * extra * p)
        live = live & (curvature > 0)
        length = jnp.where(live, rho / jnp.where(live, curvature, 1), 0)
        u, r = u + length * p, level(r - length * (hp + extra * p))
        new = _total(r * inverse * r)
        p = jnp.where(live, inverse * r + new / jnp.where(rho == 0, 1, rho) * p, p)
        rho = jnp.where(live, new, rho)
        return k + 1, u, r, p, rho, convex, live & (rho > enough)

    state = (0, jnp.zeros_like(b), r, p, rho, jnp.ones_like(live), live)
    bound = min(2 * d + 8, 500)
    _, u, _, _, rho, convex, _ = lax.while_loop(lambda s: (s[0] < bound) & jnp.any(s[-1]), step, state)
    solved = rho <= jnp.maximum(enough, eps * first)
    return u, multiplier(b - product(u) - extra * u), solved, convex


def _reach(y, dy, fall):
    """The longest step up to 1 along dy that keeps y positive."""
    limit = 1 - jnp.maximum(0.01 * fall, 16 * jnp.finfo(y.dtype).eps)
    return limit / jnp.maximum(limit, jnp.max(-dy / y, -1, keepdims=True))


def _diagonal(product, face, dtype):
    """A positive estimate of the diagonal of H by two products with fixed random signs; exact if H is diagonal."""
    d = face.shape[-1]
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(2, d))
    signs = jnp.where(face[None], jnp.asarray(signs, dtype).reshape(2, *(1,) * (face.ndim - 1), d), 0)
    products = jax.vmap(product)(signs)
    diagonal = jnp.mean(signs * products, 0)
    floor = jnp.sqrt(jnp.mean(products**2, 0)) / 10
    return jnp.maximum(jnp.maximum(diagonal, floor), jnp.finfo(dtype).tiny)


def _total(v):
    return jnp.sum(v, axis=-1, keepdims=True)
