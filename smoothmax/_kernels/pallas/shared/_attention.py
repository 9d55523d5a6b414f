"""The arguments of attention, as the kernels of every machine take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import varying_like

# Below this, alpha - 1 counts as this: entmax differs from softmax by less than rounding there.
_LEAST_B = 1e-6


class Rules(NamedTuple):
    """What no derivative is taken of."""

    mask: jax.Array | None  # in four axes, of size 1 where all share it
    query_lengths: jax.Array  # (B,)
    key_lengths: jax.Array  # (B,)


def scalars_of(scale: jax.Array, alpha: jax.Array, gamma: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
    """alpha - 1 and the factor on the products, one a head; what is out of range makes the factor NaN."""
    # Below the least b, entmax is softmax, and its derivative by alpha goes on.
    b = alpha - 1
    b += lax.stop_gradient(jnp.maximum(b, _LEAST_B) - b)
    scale = jnp.where((alpha >= 1) & (alpha <= 2) & (gamma > 0) & (gamma < jnp.inf), scale / gamma, jnp.nan)
    b, scale = (jnp.broadcast_to(a.reshape(-1), (heads,)) for a in (b, scale))
    return b, scale


def lengths_of(query: Any, key: Any, query_lengths: Any, key_lengths: Any) -> tuple[jax.Array, jax.Array]:
    """Numbers of real queries and keys, `(B,)`: those that are given, or all of them."""

    def within(lengths: jax.Array | None, most: int) -> jax.Array:
        full = varying_like(jnp.full((query.shape[0],), most, jnp.int32), query)
        return full if lengths is None else jnp.minimum(lengths, full)

    return within(query_lengths, query.shape[1]), within(key_lengths, key.shape[1])


def unusable(query: Any, key: Any, value: Any, bias: Any) -> str | None:
    """Why no kernel serves arrays of these shapes, or None."""
    lengths = *query.shape, *key.shape, *value.shape
    if not all(isinstance(n, int) for n in lengths):
        return "an axis has a symbolic length"
    if 0 in lengths:
        return "an axis is empty"
    if bias is not None and bias.shape[3] == 1 < bias.shape[2]:
        return (
            f"a bias of shape {bias.shape} is one for each query, and none for the keys it chooses from: leave it out"
        )
    return None


def whole(n: int, size: int) -> int:
    return -(-n // size) * size


def summed(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sum over what is shared: the axes of size 1 in that shape."""
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return jnp.sum(array, axes, keepdims=True)
