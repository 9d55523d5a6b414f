"""Linear systems with the Hessian of a function on a face of the simplex, given by its products only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import eps, safe_ratio, tiny, total, varying_like
from ._draws import signs

Product = Callable[[jax.Array], jax.Array]

# The step of a difference quotient, relative to the weights, as a power of eps. One third would balance rounding and
# curvature for mild functions; those whose Hessian overflows are steep.
DIFFERENCE = 0.45

# Exact arithmetic needs d steps. Rounding needs more, and what 500 do not solve is not going to be solved.
_STEPS_A_COORDINATE, _STEPS_BESIDE, _MOST_STEPS = 2, 8, 500
# The residual asked for, relative to the right-hand side: Newton's method needs 40 % of the digits.
_TOLERANCE = 0.4  # as a power of eps
# A residual that is smaller than half of the digits of the right-hand side still counts as solved.
_ACCEPTED = 0.5  # as a power of eps
# The right-hand side is itself rounded in its last place, or the last but one.
_ROUNDED = 2
# Curvature below zero, relative to the preconditioner, that rounding, or differences in place of products, can feign.
_FEIGNED = 1 / 3  # as a power of eps
# Two vectors of signs estimate a diagonal, of which no entry is taken below a tenth of the products' size there.
_PROBES, _LEAST_SHARE = 2, 0.1


def hessian_product(gradient: Product, y: jax.Array) -> tuple[jax.Array, Product]:
    """The gradient at y `(*batch, d)`, and the product v -> H v there.

    A second derivative may overflow on the way where its value does not, as that of a p-norm for large p. A difference
    of two gradients stands in for such a product.
    """
    slope, tangent = jax.linearize(gradient, y)

    def difference(v: jax.Array) -> jax.Array:
        width = jnp.max(jnp.abs(v), -1, keepdims=True)
        h = eps(y) ** DIFFERENCE * safe_ratio(jnp.max(y, -1, keepdims=True), width)
        ahead, behind = jax.vmap(gradient)(jnp.maximum(jnp.stack([y + h * v, y - h * v]), y[None] / 2))
        return safe_ratio(ahead - behind, 2 * h)

    good = jnp.isfinite(total(tangent(y)))
    all_good = jnp.all(good)

    def product(v: jax.Array) -> jax.Array:
        exact = tangent(v)
        return lax.cond(all_good, lambda: exact, lambda: jnp.where(good, exact, difference(v)))

    return slope, product


class Solution(NamedTuple):
    """What `conjugate_gradients` found.

    Attributes:
      u: the solution `(*batch, d)`, 0 off the face.
      nu: the multiplier of sum u = 0, `(*batch, 1)`.
      solved: whether u and nu solve the system, `(*batch, 1)`.
      convex: whether no direction of negative curvature of H came up, `(*batch, 1)`.
    """

    u: jax.Array
    nu: jax.Array
    solved: jax.Array
    convex: jax.Array


class _State(NamedTuple):
    steps: jax.Array  # taken so far
    u: jax.Array  # the solution so far
    nu: jax.Array  # the multiplier so far
    r: jax.Array  # what remains of b, without its part along 1
    p: jax.Array  # the next direction
    rho: jax.Array  # <r, M^-1 r>, the square of the residual's size; M is the preconditioner
    convex: jax.Array  # no direction so far had negative curvature
    live: jax.Array  # slices that are still being solved


def conjugate_gradients(
    product: Product, b: jax.Array, face: jax.Array, extra: jax.Array | float = 0.0, tolerance: float | None = None
) -> Solution:
    """Solves (H + diag(extra)) u + nu 1 = b on the face, sum_i u_i = 0, by preconditioned conjugate gradients.

    Args:
      product: v -> H v, symmetric; v and its result are 0 off the face.
      b: right-hand side `(*batch, d)`, 0 off the face.
      face: boolean `(*batch, d)`, the coordinates that take part.
      extra: `(*batch, d)`, not negative.
      tolerance: of the residual, relative to b, in the norm of the preconditioner.
    """
    eps_ = eps(b)
    metric = jnp.where(face, _diagonal(product, face, b) + extra, 0)
    inverse = jnp.where(face, 1 / jnp.where(face, metric, 1), 0)

    def level(r: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Moves the part of a residual along 1 to nu: at its full size it would drown what remains."""
        for _ in range(2):  # twice: beside a flat coordinate that part is nearly its residual, and they cancel
            along = safe_ratio(total(inverse * r), total(inverse))
            r, nu = jnp.where(face, r - along, 0), nu + along
        return r, nu

    r, nu = level(b, jnp.zeros_like(b[..., :1]))
    first = total(r * inverse * r)
    # Below the rounding of b there is nothing left to solve.
    asked = eps_**_TOLERANCE if tolerance is None else tolerance
    enough = jnp.maximum(asked**2 * first, (_ROUNDED * eps_) ** 2 * total(inverse * b * b))

    def step(s: _State) -> _State:
        hp = product(s.p)
        bent = total(s.p * hp)
        convex = s.convex & ~(s.live & (bent < -(eps_**_FEIGNED) * total(s.p * metric * s.p)))
        curvature = bent + total(s.p * extra * s.p)
        live = s.live & (curvature > 0)
        length = jnp.where(live, s.rho / jnp.where(live, curvature, 1), 0)
        u = s.u + length * s.p
        r, nu = level(s.r - length * (hp + extra * s.p), s.nu)
        rho = jnp.where(live, total(r * inverse * r), s.rho)
        p = jnp.where(live, inverse * r + safe_ratio(rho, s.rho) * s.p, s.p)
        return _State(s.steps + 1, u, nu, r, p, rho, convex, live & (rho > enough))

    zeros = varying_like(jnp.zeros_like(b), first)
    start = _State(jnp.int32(0), zeros, nu, r, inverse * r, first, first == first, first > enough)
    bound = jnp.minimum(_STEPS_A_COORDINATE * b.shape[-1] + _STEPS_BESIDE, _MOST_STEPS)
    end = lax.while_loop(lambda s: (s.steps < bound) & jnp.any(s.live), step, start)
    return Solution(end.u, end.nu, end.rho <= jnp.maximum(enough, eps_ ** (2 * _ACCEPTED) * first), end.convex)


def _diagonal(product: Product, face: jax.Array, like: jax.Array) -> jax.Array:
    """A positive estimate of the diagonal of H by products with fixed random signs; exact if H is diagonal."""
    probes = jnp.where(face[None], signs(1, _PROBES, like), 0)
    products = jax.vmap(product)(probes)
    floor = _LEAST_SHARE * jnp.sqrt(jnp.mean(products**2, 0))
    return jnp.maximum(jnp.maximum(jnp.mean(probes * products, 0), floor), tiny(like))
