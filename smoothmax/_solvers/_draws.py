"""Numbers as if drawn, the same in each program, for slices of any length, one that is known only at run time too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_GOLDEN, _MIX, _MIX_AGAIN = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def signs(seed: int, count: int, like: jax.Array) -> jax.Array:
    """Vectors of signs `(count, *1s, d)` for slices in the shape of `like`."""
    return jnp.where(_bits(seed, count, like) >> 31 == 0, jnp.ones((), like.dtype), -1)


def exponentials(seed: int, count: int, like: jax.Array) -> jax.Array:
    """Vectors of exponentially distributed numbers `(count, *1s, d)`: each the negative logarithm of one in (0, 1)."""
    return -jnp.log(((_bits(seed, count, like) >> 8).astype(like.dtype) + 0.5) / 2**24)


def _bits(seed: int, count: int, like: jax.Array) -> jax.Array:
    """A hash of seed, vector and position: the finish of MurmurHash3, by Appleby."""
    shape = (count, *(1,) * (like.ndim - 1), like.shape[-1])
    vector, position = (lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, len(shape) - 1))
    bits = (position + 1) * jnp.uint32(_GOLDEN) ^ (vector + jnp.uint32(1 + 64 * seed)) * jnp.uint32(_MIX)
    bits = (bits ^ bits >> 16) * jnp.uint32(_MIX)
    bits = (bits ^ bits >> 13) * jnp.uint32(_MIX_AGAIN)
    return bits ^ bits >> 16
