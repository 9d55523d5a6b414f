"""What the arguments of attention must be, and the errors when they are not."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arrays import as_array, check_real
from .._parameters import FINITE, checked


def as_arrays(**arrays: ArrayLike) -> Iterator[jax.Array]:
    return (jnp.asarray(as_array(name, array)) for name, array in arrays.items())


def check_flags(**flags: bool) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}: give one of the two")


def check_arrays(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    if query.ndim < 3:
        raise ValueError(
            f"query must have shape (*batch, T, N, H), got {query.shape}: add axes, or split the heads off"
        )
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise TypeError(f"query must be floating, got dtype {query.dtype}: cast it first")
    for name, array in (("key", key), ("value", value)):
        if array.ndim != query.ndim or array.shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{name} must have the batch axes of query, of shape {query.shape}, got shape {array.shape}: add the "
                "batch axis, broadcast or repeat one of them"
            )
        if array.dtype != query.dtype:
            raise TypeError(f"{name} must have the dtype of query, {query.dtype}, got {array.dtype}: cast them to one")
        if array.shape[-3] == 0:
            raise ValueError(
                f"{name} must have at least one position, got shape {array.shape} (B, S, K, H) with S = 0: there is no "
                "distribution over no keys; pad, and mask the padding with key_value_seq_lengths"
            )
    if key.shape[-1] != query.shape[-1] or key.shape[-1] == 0:
        raise ValueError(
            f"key must have the head size (last axis) of query, of shape {query.shape}, and at least 1, got shape "
            f"{key.shape}: project both to one size"
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value must have the shape of key, {key.shape}, in all axes but the last, got {value.shape}: give each "
            "key one value"
        )
    heads, key_heads = query.shape[-2], key.shape[-2]
    if key_heads == 0 or heads % key_heads:
        raise ValueError(
            f"query must have a multiple of the {key_heads} heads of key, of shape {key.shape}, got {heads} heads in "
            f"shape {query.shape}: change the number of heads; the layout is (batch, length, heads, head size)"
        )


def check_scale(scale: ArrayLike | None, query: jax.Array) -> ArrayLike:
    if scale is None:
        return 1.0 / math.sqrt(query.shape[-1])
    if jnp.ndim(scale) != 0:
        raise ValueError(
            f"scale must be a scalar, got shape {jnp.shape(scale)}: multiply `query` by an array of scales and pass "
            "scale=1.0"
        )
    return checked("scale", scale, FINITE)


def flat_scores(name: str, array: ArrayLike | None, scores_shape: tuple[int, ...]) -> jax.Array | None:
    """An array that broadcasts to the scores, with four axes: `(B, N, T, S)`, all batch axes in one, or sizes 1."""
    if array is None:
        return None
    array = jnp.asarray(as_array(name, array))
    if name == "mask" and array.dtype != jnp.bool_:
        raise TypeError(
            f"mask must be boolean, True where a query may attend, got dtype {array.dtype}: write `mask != 0` for a "
            "0/1 mask, or pass an additive one as `bias`"
        )
    if name == "bias" and array.dtype == jnp.bool_:
        raise TypeError("bias must be a number to add, got booleans: pass a boolean array as `mask`")
    check_real(name, array)
    shape = (1,) * (len(scores_shape) - array.ndim) + array.shape
    if len(shape) > len(scores_shape) or any(a not in (1, b) for a, b in zip(shape, scores_shape, strict=True)):
        raise ValueError(
            f"{name} must broadcast to the scores' shape (*batch, N, T, S) = {scores_shape}, got shape {array.shape}: "
            f"insert axes of size 1, for example {name}[:, None, None, :] for one of shape (B, S)"
        )
    array = array.reshape(shape)
    if any(size != 1 for size in shape[:-3]):
        array = jnp.broadcast_to(array, (*scores_shape[:-3], *shape[-3:]))
    return array.reshape(math.prod(array.shape[:-3]), *shape[-3:])
