"""The simplex problem for a smooth convex function.

    minimise over y   gamma Omega(y) - <x, y>    subject to   y >= 0,  sum_i y_i = 1

solved for every slice at once by a primal-dual interior-point method that forms no matrix. Below, x is x / gamma.

**Newton's step.** With multipliers z >= 0 of y >= 0 and slopes c = grad Omega(y) - x, a solution has c + nu 1 = z and
y_i z_i = 0. The method keeps y, z > 0 and aims at y_i z_i = mu, with mu falling to zero; eliminating dz leaves

    (H + diag(z / y)) dy + dnu 1 = mu / y - c,    sum_i dy_i = 0,    H the Hessian of Omega,

which conjugate gradients solve with products H v, preconditioned by a diagonal: an estimate of diag(H), plus z / y.
Near the end z / y spans thirty orders of magnitude, and the slope of an entropy is unbounded; both are diagonal, so
neither slows the solver down, where projected gradients would need a step shorter than the smallest weight.

**Zeros.** At the end y_i z_i is about eps^2: the coordinates with y_i below z_i are zeros, unless the slope at 0 says
otherwise. On the others y is exact to rounding.

**Trust.** Nothing is returned on trust: `_certificate.py` has the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import eps, safe_ratio, tiny, total, varying_like
from ._certificate import Problem, certified
from ._conjugate_gradients import conjugate_gradients, hessian_product
from ._scores import over_gamma

# Newton's steps. 10 to 25 are usual.
_STEPS = 80
# Halvings of a step before it is given up.
_HALVINGS = 40
# mu falls to a tenth after a step that was nearly whole, in the end superlinearly, else to a half.
_NEARLY_WHOLE, _FALL, _SLOW_FALL = 0.8, 0.1, 0.5
# mu ends at this part of eps^2, where y_i z_i no longer shows in any weight.
_LAST_MU = 0.1
# A step ends this part of the fall of mu before the boundary, and rounding before it in any case.
_MARGIN, _MARGIN_ROUNDING = 0.01, 16
# A step is too long where the slope along it has turned and is nine tenths as steep as it was at the start.
_TURNED = 0.9
# The rounding of that slope, in eps of its summands.
_SLOPE_ROUNDING = 16
# Multipliers that have lost touch with mu / y would spoil the next direction.
_TOUCH = 1e3
# The weights are settled when a step changes none by more than this many eps, nor by this part of itself.
_SETTLED, _SETTLED_PART = 16, 0.01
# A start beside the middle: most of the weight on the greatest score.
_ON_THE_BEST = 0.9


class _State(NamedTuple):
    steps: jax.Array  # Newton's steps so far
    y: jax.Array  # weights, positive where allowed
    z: jax.Array  # multipliers of y >= 0, positive where allowed
    mu: jax.Array  # the last aim for y_i z_i
    taken: jax.Array  # the part of the last step that was taken
    convex: jax.Array  # no direction of negative curvature came up
    live: jax.Array  # slices that still move


def interior_point(
    value: Callable[[jax.Array], jax.Array],
    gradient: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    gamma: jax.Array | float = 1.0,
) -> jax.Array:
    """The solution for each slice along the last axis.

    Args:
      value: Omega, from `(*batch, d)` to `(*batch, 1)`; only the certificate asks for it.
      gradient: its gradient, from `(*batch, d)` to the same shape. Both are called at points of the simplex with zeros
        at deleted positions, where the gradient is not used.
      x: scores `(*batch, d)`, -inf at deleted positions.
      gamma: strength of Omega, positive: `()` or `(*batch or ones, 1)`.

    Returns:
      y `(*batch, d)`: zeros for a slice without an allowed position, NaN for one that was not solved.
    """
    problem, start = _begin(value, gradient, x, gamma)
    end = lax.while_loop(lambda s: (s.steps < _STEPS) & jnp.any(s.live), lambda s: _newton(problem, s), start)
    y = _with_zeros(problem, end)
    solved = end.convex & certified(problem, y)
    empty = ~jnp.any(problem.allowed, -1, keepdims=True)
    return jnp.where(empty, 0, jnp.where(solved, y, jnp.nan))


def _begin(
    value: Callable[[jax.Array], jax.Array],
    gradient: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    gamma: jax.Array | float,
) -> tuple[Problem, _State]:
    """The problem with its scores centred, and the state to start from."""
    allowed = x != -jnp.inf
    z, broken = over_gamma(x, allowed, gamma)
    kept = allowed.astype(x.dtype)
    count = jnp.maximum(total(kept), 1)
    centre = kept / count
    greatest = jnp.where(allowed & (z == 0), kept, 0)
    edge = _ON_THE_BEST * safe_ratio(greatest, total(greatest)) + (1 - _ON_THE_BEST) * centre
    problem = Problem(value, gradient, z, allowed, centre, edge, jnp.ones_like(count))

    # A function that underflows in the middle, as a sum of high powers does, may have a slope elsewhere.
    defined = jnp.all(jnp.isfinite(problem.slopes(centre)), -1, keepdims=True)
    y = jnp.where(defined, centre, edge)
    c = problem.slopes(y)
    high = jnp.max(jnp.where(allowed, c, -jnp.inf), -1, keepdims=True)
    low = jnp.min(jnp.where(allowed, c, jnp.inf), -1, keepdims=True)
    size = jnp.max(jnp.abs(c), -1, keepdims=True)
    scale = jnp.maximum(jnp.maximum(high - low, eps(x) * size), tiny(x) / eps(x))
    problem = problem._replace(scale=scale)
    usable = ~broken & jnp.isfinite(scale)
    multipliers = jnp.where(allowed, scale * centre / jnp.where(allowed, y, 1), 0)
    live = usable & (count > 1)
    return problem, _State(jnp.int32(0), y, multipliers, scale / count, jnp.ones_like(scale), usable, live)


def _newton(problem: Problem, s: _State) -> _State:
    """One step of Newton's method."""
    allowed, scale = problem.allowed, problem.scale
    inside = jnp.where(allowed, s.y, 1)
    c, product = hessian_product(problem.slopes, s.y)
    # The aim falls after each step that was nearly whole, from where y and z really are.
    reached = jnp.max(s.y * s.z, -1, keepdims=True)
    fall = jnp.minimum(_FALL, jnp.sqrt(reached / scale))
    mu = jnp.where(s.taken > _NEARLY_WHOLE, fall, _SLOW_FALL) * reached
    mu = jnp.maximum(mu, _LAST_MU * eps(c) ** 2 * scale)
    aim = mu / inside
    dy, _, _, convex = conjugate_gradients(product, jnp.where(allowed, aim - c, 0), allowed, s.z / inside)
    dz = aim - s.z - s.z / inside * dy

    taken = _length(problem, s, c, mu, dy, _reach(inside, dy, fall))
    y = jnp.where(s.live, s.y + taken * dy, s.y)
    z = s.z + _reach(jnp.where(allowed, s.z, 1), dz, fall) * dz
    centred = mu / jnp.where(allowed, y, 1)
    z = jnp.where(s.live & allowed, jnp.clip(z, centred / _TOUCH, centred * _TOUCH), s.z)

    convex = s.convex & (convex | ~s.live)
    still = jnp.abs(dy) <= jnp.minimum(_SETTLED * eps(c), _SETTLED_PART * s.y)
    settled = (mu <= eps(c) ** 2 * scale) & jnp.all(still, -1, keepdims=True)
    live = s.live & convex & ~settled & jnp.all(jnp.isfinite(dy), -1, keepdims=True)
    return _State(s.steps + 1, y, z, mu, taken, convex, live)


def _reach(y: jax.Array, dy: jax.Array, fall: jax.Array) -> jax.Array:
    """The longest step up to 1 along dy that keeps y positive."""
    limit = 1 - jnp.maximum(_MARGIN * fall, _MARGIN_ROUNDING * eps(y))
    return limit / jnp.maximum(limit, jnp.max(-dy / y, -1, keepdims=True))


def _length(problem: Problem, s: _State, c: jax.Array, mu: jax.Array, dy: jax.Array, longest: jax.Array) -> jax.Array:
    """The part of the step dy to take: not far beyond the least value of Omega - <x, .> - mu sum log along dy."""

    def barrier_slopes(c: jax.Array, y: jax.Array) -> jax.Array:
        return c - mu / jnp.where(problem.allowed, y, 1)

    slopes = barrier_slopes(c, s.y)
    mean = total(s.y * slopes)  # dy sums to zero, but only up to rounding
    descent = -total((slopes - mean) * dy)
    noise = _SLOPE_ROUNDING * eps(c) * total((jnp.abs(c) + mu / jnp.where(problem.allowed, s.y, 1)) * jnp.abs(dy))

    def shorten(state):
        halvings, length, _ = state
        trial = s.y + length * dy
        after = total((barrier_slopes(problem.slopes(trial), trial) - mean) * dy)
        beyond = s.live & ~(after <= _TURNED * descent + noise)  # also where the slope is NaN
        return halvings + 1, jnp.where(beyond, length / 2, length), beyond

    start = (jnp.int32(0), longest, varying_like(s.live, longest))
    return lax.while_loop(lambda state: (state[0] < _HALVINGS) & jnp.any(state[2]), shorten, start)[1]


def _with_zeros(problem: Problem, end: _State) -> jax.Array:
    """The weights with zeros where the multiplier is the greater of the two, and a sum of one."""
    small = end.y < jnp.minimum(end.z / problem.scale, eps(end.y))
    rounded = jnp.where(small, 0, end.y)
    c = problem.slopes(rounded)
    y = jnp.where(small & (c >= total(rounded * c)), 0, end.y)
    return safe_ratio(y, total(y))
