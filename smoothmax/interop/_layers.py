"""What the adapters share: attention with any number of batch axes, and masks as the frameworks write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._attention import Visibility, attend


def missing(framework: str, error: ImportError) -> ImportError:
    """The error for a framework that is not installed."""
    return ImportError(f"{framework} could not be imported ({error}): install it with pip install 'smoothmax[interop]'")


def attend_batched(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    mapping: Callable[..., jax.Array],
    is_causal: bool = False,
    block_size: int | None = None,
    change_weights: Callable[[jax.Array], jax.Array] | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of `(*batch, T, N, H)` queries over `(*batch, S, K, H)` keys: output and weights `(*batch, N, T, S)`.

    Args:
      query, key, value: already projected, with the same batch axes (any number of them) and the same dtype.
      bias: added to the scaled scores; broadcasts to `(*batch, N, T, S)`.
      mask: of any dtype, zero where a query may not see a key; broadcasts as `bias` does.
      mapping: turns scores into weights.
      is_causal: query t sees the keys s <= t only.
      block_size: as in `dot_product_attention`; weights are None then.
      change_weights: applied to weights `(*batch, N, T, S)` before they meet the values.
      **options: `precision` and `products` of `attend`.
    """
    *batch, rows, heads, head_size = query.shape
    columns, key_heads = key.shape[-3:-1]
    for name, array in (("key", key), ("value", value)):
        if array.ndim != query.ndim or array.shape[:-3] != query.shape[:-3] or array.shape[-3:-1] != key.shape[-3:-1]:
            raise ValueError(
                f"{name} of shape {array.shape} does not fit query of shape {query.shape}, key of shape {key.shape}: "
                "batch axes must be equal, and each key needs one value"
            )
    if key.shape[-1] != head_size or heads % key_heads:
        raise ValueError(
            f"key of shape {key.shape} does not fit query of shape {query.shape}: the last axes (head size) must be "
            "equal, and the number of query heads a multiple of the number of key heads"
        )
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1, or None")
    scores_shape = (*batch, heads, rows, columns)

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape(math.prod(batch), *array.shape[len(batch) :])

    def flat_scores(name: str, array: jax.Array | None) -> jax.Array | None:
        """Four axes: all batch axes in one, or one of size 1 where the array is the same for the whole batch."""
        if array is None:
            return None
        shape = (1,) * (len(scores_shape) - array.ndim) + array.shape
        if len(shape) > len(scores_shape) or any(a not in (1, b) for a, b in zip(shape, scores_shape, strict=True)):
            raise ValueError(
                f"{name} of shape {array.shape} does not broadcast to the scores' shape {scores_shape}: insert axes of "
                "size 1"
            )
        array = array.reshape(shape)
        if all(size == 1 for size in shape[:-3]):
            return array.reshape(1, *shape[-3:])
        return flat(jnp.broadcast_to(array, (*batch, *shape[-3:])))

    def change_flat(weights: jax.Array) -> jax.Array:
        assert change_weights is not None
        return change_weights(weights.reshape(scores_shape)).reshape(weights.shape)

    if mask is not None and mask.dtype != bool:
        mask = mask != 0
    output, weights = attend(
        flat(query),
        flat(key),
        flat(value),
        flat_scores("bias", bias),
        Visibility(flat_scores("mask", mask), is_causal),
        mapping=mapping,
        scale=1 / math.sqrt(head_size),
        block_size=block_size,
        change_weights=None if change_weights is None else change_flat,
        **options,
    )
    return output.reshape(*batch, *output.shape[1:]), None if weights is None else weights.reshape(scores_shape)
