"""Which keys each query may see: a mask, and rules on positions that need no matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arrays import as_array
from .._parameters import index

# Further than any position: a position more or less stays within 32 bits.
_FAR = 2**30

Product = Callable[[jax.Array, jax.Array], jax.Array]


class Visibility(NamedTuple):
    """Which keys each query may see. Only `mask` is stored as a matrix; the rest are rules."""

    mask: jax.Array | None = None  # boolean, four axes, each of size 1 or that of the scores (B, N, T, S)
    is_causal: bool = False  # query t sees the keys s <= t
    window: tuple[int, int] | None = None  # (left, right): query t sees the keys t - left <= s <= t + right
    query_lengths: jax.Array | None = None  # (B,): the queries from there on are padding
    key_lengths: jax.Array | None = None  # (B,): the keys from there on are padding

    def block(self, first_row: ArrayLike, rows: int, first_column: ArrayLike, columns: int) -> jax.Array | None:
        """The mask of one block of the score matrix, or None where everything is visible."""
        t = (first_row + jnp.arange(rows, dtype=jnp.int32))[None, None, :, None]
        s = (first_column + jnp.arange(columns, dtype=jnp.int32))[None, None, None, :]
        parts = []
        if self.mask is not None:
            mask = slice_unless_broadcast(self.mask, 2, first_row, rows)
            parts.append(slice_unless_broadcast(mask, 3, first_column, columns))
        if self.is_causal:
            parts.append(s <= t)
        if self.window is not None:
            left, right = self.window
            parts.append((t - left <= s) & (s <= t + right))
        if self.query_lengths is not None:
            parts.append(t < self.query_lengths[:, None, None, None])
        if self.key_lengths is not None:
            parts.append(s < self.key_lengths[:, None, None, None])
        return reduce(jnp.logical_and, parts) if parts else None

    def real_queries(self, rows: int) -> jax.Array | None:
        """`(B, T)`, False at padding; None where there is none."""
        if self.query_lengths is None:
            return None
        return jnp.arange(rows, dtype=jnp.int32)[None, :] < self.query_lengths[:, None]

    def real_keys(self, columns: int) -> jax.Array | None:
        """`(B, S)` or `(1, S)`, False at keys that are known to be out for every query; None where there are none."""
        parts = []
        if self.key_lengths is not None:
            parts.append(jnp.arange(columns, dtype=jnp.int32)[None, :] < self.key_lengths[:, None])
        if self.mask is not None and self.mask.shape[1:3] == (1, 1):
            parts.append(self.mask[:, 0, 0, :])
        return reduce(jnp.logical_and, parts) if parts else None


# Padding. The mapping gives it weight zero already, but zero times a NaN left in a padded buffer is NaN, in the output
# and in the gradients.


def clear(array: jax.Array, real: jax.Array | None) -> jax.Array:
    """Zeros in `(B, length, heads, size)` where `(B, length)` is False."""
    return array if real is None else jnp.where(real[:, :, None, None], array, jnp.zeros((), array.dtype))


def clearing(product: Product, real: jax.Array | None) -> Product:
    """A product of two arrays after the second was cleared, without reading it twice where it holds numbers only.

    With few queries, as in decoding, clearing the keys and values would take longer than the product. Every number of
    them enters the product, so that one that is not finite shows there: only then are they cleared. Derivatives take
    the cleared array, since a product that comes out finite has the same derivative.
    """
    if real is None:
        return product

    def cleared(a: jax.Array, b: jax.Array, real: jax.Array) -> jax.Array:
        return product(a, clear(b, real))

    def checked(a: jax.Array, b: jax.Array, real: jax.Array) -> jax.Array:
        result = product(a, b)
        return jax.lax.cond(jnp.all(jnp.isfinite(result)), lambda *_: result, cleared, a, b, real)

    @jax.custom_jvp
    def call(a: jax.Array, b: jax.Array, real: jax.Array) -> jax.Array:
        # Other compilers clear while they read, and a condition would stall them.
        return jax.lax.platform_dependent(a, b, real, cpu=checked, default=cleared)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        return call(*primals), jax.jvp(cleared, primals, tangents)[1]

    # `real` is an argument, since what a rule closes over may belong to a trace that is over when the rule is called.
    return lambda a, b: call(a, b, real)


def slice_unless_broadcast(array: jax.Array, axis: int, start: ArrayLike, size: int) -> jax.Array:
    """`array[start : start + size]` along an axis, or the array where the axis broadcasts."""
    length = array.shape[axis]
    if length == 1 or (length == size and isinstance(start, int)):
        return array
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


# --- Checks of the rules -----------------------------------------------------------------------------------


def check_lengths(name: str, lengths: ArrayLike | None, batch: tuple[int, ...]) -> jax.Array | None:
    """The lengths as int32, one for each batch element; `batch` is the batch axis of the query, if it has one."""
    if lengths is None:
        return None
    lengths = jnp.asarray(as_array(name, lengths))
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integers, got dtype {lengths.dtype}: cast it")
    expected = batch or (1,)
    if lengths.shape != expected:
        why = f"the batch size is {batch[0]}" if batch else "query has no batch axis"
        raise ValueError(
            f"{name} must have shape {expected}, since {why}, got shape {lengths.shape}: give one length for each "
            "batch element"
        )
    if jnp.iinfo(lengths.dtype).max > jnp.iinfo(jnp.int32).max:
        lengths = jnp.clip(lengths, 0, _FAR)
    return lengths.astype(jnp.int32)


def check_window(window: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """The window as two integers."""
    if window is None:
        return None
    try:
        pair = window if isinstance(window, tuple | list) else (window, window)
        left, right = (max(-_FAR, min(index(n), _FAR)) for n in pair)
    except (TypeError, ValueError):
        raise TypeError(
            f"local_window_size must be an integer or a pair of integers (left, right), got {window!r}: give numbers "
            "that are known when the function is traced"
        ) from None
    return left, right


def check_causal(is_causal: bool) -> bool:
    if not isinstance(is_causal, bool | np.bool_):
        raise TypeError(f"is_causal must be True or False, got {is_causal!r}: pass what varies as `mask`")
    return bool(is_causal)
