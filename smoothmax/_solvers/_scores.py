"""The door of the threshold solvers: scores are centred there once, and what cannot be solved is marked.

Scores come at any offset. Their differences are what a solution depends on, and only next to 0 are they resolved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import eps, greatest, varying_like


class Scores(NamedTuple):
    """Scores at the door, and what is known of their slices.

    Attributes:
      z: `(*batch, d)`: the scores less the largest one, hence at most 0; -inf at deleted positions.
      top: `(*batch, 1)`: the largest score, 0 where there is none.
      bad: bool `(*batch, 1)`: the slice holds NaN or +inf, or one of its hyper-parameters is not finite: NaN.
      empty: bool `(*batch, 1)`: no position is allowed: zeros.
    """

    z: jax.Array
    top: jax.Array
    bad: jax.Array
    empty: jax.Array


def centred(x: jax.Array, *parameters: jax.Array) -> Scores:
    """Scores `(*batch, d)` less the largest of their slice; hyper-parameters are `()` or `(*batch or ones, 1)`."""
    shape = jnp.broadcast_shapes(x.shape, *(p.shape for p in parameters if p.ndim))
    x = varying_like(jnp.broadcast_to(x, shape), *parameters)
    top = greatest(x)
    bad = top == jnp.inf
    for parameter in parameters:
        bad |= ~jnp.isfinite(parameter)
    empty = ~bad & (top == -jnp.inf)
    top = jnp.where(bad | empty, jnp.zeros_like(top), top)
    return Scores(x - top, top, bad, empty)


def over_gamma(x: jax.Array, kept: jax.Array, gamma: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """The kept scores less the largest one, over gamma, and 0 elsewhere; and whether a slice cannot be solved.

    The functions that a user writes bring their own slopes, with which scores are compared as they are. A difference
    that overflows stays a number: it is as low as any that has no weight.
    """
    z = jnp.where(kept, x - jnp.max(x, -1, keepdims=True), 0) / gamma
    z = jnp.maximum(z, -float(jnp.finfo(x.dtype).max) / 8)
    broken = ~jnp.all(jnp.isfinite(z), -1, keepdims=True)
    return jnp.where(broken, 0, z), broken


class Solved(NamedTuple):
    """What a solver hands over.

    Attributes:
      y: `(*batch, d)`: the weights.
      arrived: bool `(*batch, 1)`: whether they solve the problem; a loop that ran out of passes did not.
    """

    y: jax.Array
    arrived: jax.Array


def answered(solved: Solved, scores: Scores) -> jax.Array:
    """The weights; NaN for slices that were bad or not solved, zeros for empty ones."""
    y = jnp.where(solved.arrived & ~scores.bad, solved.y, jnp.full_like(solved.y, jnp.nan))
    return jnp.where(scores.empty, jnp.zeros_like(y), y)


# Pieces that the loops share.


def sum_noise(v: jax.Array) -> float:
    """The rounding of a sum of weights along the slice of `v`, relative to one, with a margin: XLA adds as a tree."""
    return 24 * eps(v)


def positive(v: jax.Array) -> jax.Array:
    return jnp.maximum(v, 0)


def phi(x: jax.Array, c: jax.Array) -> jax.Array:
    """(1 - exp(-c x)) / c, continuous at c = 0."""
    return jnp.where(c == 0, x, -jnp.expm1(-c * x) / jnp.where(c == 0, jnp.ones_like(c), c))


def first_true(*cases: tuple[jax.Array, Callable[[], Any]], otherwise: Callable[[], Any]) -> Any:
    """The branch of the first condition that holds, chosen at run time."""
    if not cases:
        return otherwise()
    (condition, branch), *rest = cases
    return lax.cond(condition, branch, lambda: first_true(*rest, otherwise=otherwise))


def stored(values: Any) -> Any:
    """The values themselves, written to memory on CPU, where several sums over one expression vectorize only then."""
    return lax.platform_dependent(values, cpu=lax.optimization_barrier, default=lambda same: same)
