"""What the adapters share: masks and dtypes as the frameworks write them, and the error when one is not installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .._attention import Visibility, attend_batched


def missing(framework: str, error: ImportError) -> ImportError:
    """The error for a framework that is not installed."""
    return ImportError(f"{framework} could not be imported ({error}): install it with pip install 'smoothmax[interop]'")


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    is_causal: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array | None]:
    """`attend_batched` for arrays of several dtypes and a mask of any dtype, zero where a query may not see a key."""
    dtype = jnp.result_type(query, key, value)
    if mask is not None and mask.dtype != bool:
        mask = mask != 0
    query, key, value = query.astype(dtype), key.astype(dtype), value.astype(dtype)
    return attend_batched(query, key, value, bias, mask, rules=Visibility(is_causal=is_causal), **options)
