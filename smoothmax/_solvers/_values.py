"""The values of the structured penalties at any point, from their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def variation(y: jax.Array, allowed: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i weights_i |y_{i+1} - y_i| over the allowed positions `(*batch, d)`, as `(*batch, 1)`.

    The neighbours of deleted positions become neighbours; their border has the smallest weight between them.
    """
    d = y.shape[-1]
    weights = jnp.broadcast_to(weights, (*y.shape[:-1], d - 1)).astype(y.dtype)
    weights = jnp.concatenate([weights, jnp.full_like(y[..., :1], jnp.inf)], axis=-1)

    def step(carry: tuple[jax.Array, ...], now: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        last, weight, started = carry
        here, here_allowed, border = now
        jump = jnp.where(here_allowed & started, weight * jnp.abs(here - last), 0)
        last = jnp.where(here_allowed, here, last)
        weight = jnp.minimum(jnp.where(here_allowed, jnp.inf, weight), border)
        return (last, weight, started | here_allowed), jump

    positions = tuple(jnp.moveaxis(a, -1, 0) for a in (y, allowed, weights))
    start = (jnp.zeros_like(y[..., 0]), jnp.zeros_like(y[..., 0]), jnp.zeros_like(allowed[..., 0]))
    _, jumps = lax.scan(step, start, positions)
    return jnp.sum(jumps, axis=0)[..., None]


def ranked(y: jax.Array, allowed: jax.Array) -> jax.Array:
    """The allowed coordinates from the largest to the smallest, then zeros."""
    descending = -jnp.sort(-jnp.where(allowed, y, -jnp.inf), axis=-1)
    return jnp.where(descending == -jnp.inf, 0, descending)
