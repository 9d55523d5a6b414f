"""Whether weights solve the simplex problem of a function, and whether the function looks convex.

A slice is refused if its duality gap max_i g_i - <g, y>, with g = x - grad Omega(y), is not at rounding level, or if
Omega dips below its tangent between any two of a few points, or is not finite at one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._arrays import eps, safe_ratio, total
from ._conjugate_gradients import DIFFERENCE
from ._draws import exponentials, signs

# The gap allowed: a power of eps, relative to the spread of the slopes, since a flat function leaves the weights open.
_GAP = 0.75
# What sums of rounded numbers may be off, in eps of their summands.
_ROUNDING = 64
# A weight of 0 is judged by the slope this many eps of the mean weight above it, which is finite for an entropy.
_RAISED = 16
# Directions along which the rounding of y itself is felt.
_DIRECTIONS = 4
# Points drawn inside the simplex, uneven enough to lie near its faces.
_DRAWN, _UNEVEN = 2, 2


class Problem(NamedTuple):
    """minimise over y in the simplex  Omega(y) - <x, y>."""

    value: Callable[[jax.Array], jax.Array]  # Omega
    gradient: Callable[[jax.Array], jax.Array]
    x: jax.Array  # scores with the greatest at 0; 0 at deleted positions
    allowed: jax.Array  # positions that are not deleted
    centre: jax.Array  # equal weights
    edge: jax.Array  # most of the weight on the greatest score
    scale: jax.Array  # the spread of the slopes at the start, against which multipliers and gaps are measured

    def objective(self, y: jax.Array) -> jax.Array:
        return self.value(y) - total(y * self.x)

    def slopes(self, y: jax.Array) -> jax.Array:
        """The gradient of the objective."""
        return jnp.where(self.allowed, self.gradient(y) - self.x, 0)


def certified(problem: Problem, y: jax.Array) -> jax.Array:
    """Whether y is optimal, and the objective above its tangents, `(*batch, 1)`."""
    points = _points(problem, y)
    c = jax.vmap(problem.slopes)(points)
    return _optimal(problem, y, points[1], c[0], c[1]) & _above_tangents(problem, points, c)


def _points(problem: Problem, y: jax.Array) -> jax.Array:
    """Points to compare: y, y off the boundary, and some inside the simplex, `(points, *batch, d)`."""
    centre, edge = problem.centre, problem.edge
    drawn = jnp.where(problem.allowed[None], exponentials(0, _DRAWN, y) ** _UNEVEN, 0)
    one, two = safe_ratio(drawn, total(drawn))
    nudge = _RAISED * eps(y)
    raised = (y + nudge * centre) / (1 + nudge)
    return jnp.stack([y, raised, centre, edge, one, two, (y + one) / 2, (y + two) / 2])


def _optimal(problem: Problem, y: jax.Array, raised: jax.Array, c: jax.Array, c_raised: jax.Array) -> jax.Array:
    # The greatest slope is taken a little above y: a weight of 1e-20 need not be right to many digits.
    gap = jnp.max(jnp.where(problem.allowed, -c_raised, -jnp.inf), -1, keepdims=True) + total(c * y)
    size = jnp.max(jnp.where(y > 0, jnp.abs(c), 0), -1, keepdims=True)
    # No y does better than its own rounding, which a steep Omega shows as differences between the slopes.
    h = eps(y) ** DIFFERENCE
    moved = jax.vmap(problem.slopes)(raised[None] * (1 + h * _directions(y)))
    rounding = eps(y) / h * jnp.max(jnp.abs(moved - c_raised[None]), (0, -1))[..., None]
    allowance = eps(y) ** _GAP * problem.scale + _ROUNDING * (eps(y) * size + rounding)
    return (gap <= allowance) & jnp.isfinite(allowance)


def _directions(y: jax.Array) -> jax.Array:
    """Ones, and some signs: a common scaling, and what the separate rounding of each weight may be."""
    separate = signs(2, _DIRECTIONS - 1, y)
    return jnp.concatenate([jnp.ones_like(separate[:1]), separate])


def _above_tangents(problem: Problem, points: jax.Array, c: jax.Array) -> jax.Array:
    """F(b) >= F(a) + <c(a), b - a> for all points a, b, up to rounding."""
    values = jax.vmap(problem.objective)(points)[..., 0]

    def differences(values: jax.Array, products: jax.Array, sign: int) -> jax.Array:
        own = jnp.moveaxis(jnp.diagonal(products, axis1=0, axis2=1), -1, 0)
        return values[None] + sign * values[:, None] + own[:, None] + sign * products

    # Accelerators multiply with fewer digits unless they are told.
    products = partial(jnp.einsum, "a...i,b...i->ab...", precision="highest")
    above = differences(values, products(c, points), -1)
    noise = differences(jnp.abs(values), products(jnp.abs(c), points), 1)
    fits = above >= -_ROUNDING * eps(c) * noise
    # A function that underflows has no slope there, and that point says nothing; at y itself it must have one.
    sloped = jnp.all(jnp.isfinite(c), -1)
    fits = fits | ~(sloped[None] & sloped[:, None])
    finite = jnp.isfinite(values) | ~sloped
    return (jnp.all(fits, (0, 1)) & jnp.all(finite, 0) & sloped[0] & sloped[1])[..., None]
