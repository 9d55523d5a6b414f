"""From queries, keys and values to weights and an output: scores, mapping, weighted values, for grouped heads."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._arrays import compute_dtype
from .._conjugate import Operator
from .._scaling import LengthScaled
from ._visibility import Product

Mapping = Callable[..., jax.Array]
# Products of queries and keys, and sums of values with weights.
Products = tuple[Product, Product]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    where: jax.Array | None,
    *,
    mapping: Mapping,
    scale: ArrayLike,
    products: Products,
    change_weights: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of `(B, T, N, H)` queries over `(B, S, K, H)` keys: output `(B, T, N, H)`, weights `(B, N, T, S)`."""
    score, average = products
    dtype = compute_dtype(query.dtype)
    scores = score(query, key).astype(dtype) * jnp.asarray(scale, dtype)
    if bias is not None:
        scores = scores + bias.astype(dtype)
    weights = mapping(scores, axis=-1, where=where)
    if jnp.shape(weights) != scores.shape:
        raise ValueError(
            f"mapping must return one weight for each score, shape {scores.shape}, got shape {jnp.shape(weights)}: "
            "pass a mapping such as smoothmax.sparsemax, not its value twin, and let hyper-parameters broadcast to the "
            "scores, for example in shape (heads, 1, 1)"
        )
    applied = weights if change_weights is None else change_weights(weights)
    return average(applied.astype(value.dtype), value).astype(query.dtype), weights


def with_implementation(mapping: Mapping, implementation: str | None) -> Mapping:
    """The mapping, to be solved by the named implementation; None leaves it as it is."""
    if implementation is None:
        return mapping
    if isinstance(mapping, LengthScaled):
        return dataclasses.replace(mapping, mapping=with_implementation(mapping.mapping, implementation))
    if isinstance(mapping, Operator):
        return dataclasses.replace(mapping, implementation=implementation)
    try:
        takes = "implementation" in inspect.signature(mapping).parameters
    except (TypeError, ValueError):  # not callable, or a builtin without a signature
        takes = False
    if not takes:
        raise TypeError(
            f"implementation must be None where the mapping takes no such argument, got {implementation!r} with "
            f"mapping={mapping!r}: leave it out, or give the mapping a keyword `implementation`"
        )
    return partial(mapping, implementation=implementation)


# Grouped heads: heads are split by the key head that serves them, so that no key or value is repeated in memory. The
# mapping sees all heads on one axis again, which is what a hyper-parameter for each head broadcasts to.


def query_key_products(query: jax.Array, key: jax.Array, *, precision: Any = None) -> jax.Array:
    """Products of `(B, T, N, H)` queries and `(B, S, K, H)` keys: `(B, N, T, S)`, at least float32."""
    batch, rows, heads, head_size = query.shape
    columns, key_heads = key.shape[1:3]
    query = query.reshape(batch, rows, key_heads, heads // key_heads, head_size)
    dtype = compute_dtype(query.dtype)
    products = jnp.einsum("btkgh,bskh->bkgts", query, key, precision=precision, preferred_element_type=dtype)
    return products.reshape(batch, heads, rows, columns)


def weighted_values(weights: jax.Array, value: jax.Array, *, precision: Any = None) -> jax.Array:
    """Sums of `(B, S, K, H)` values with `(B, N, T, S)` weights: `(B, T, N, H)`."""
    batch, heads, rows, columns = weights.shape
    key_heads, head_size = value.shape[2:]
    weights = weights.reshape(batch, key_heads, heads // key_heads, rows, columns)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=precision).reshape(batch, rows, heads, head_size)
