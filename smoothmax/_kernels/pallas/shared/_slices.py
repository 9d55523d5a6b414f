"""Slices, as the kernels of every machine take them: what is refused of them, and how they and their hyper-parameters
become rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...._arrays import varying_like
from ._batching import over_slices


def flag(condition: jax.Array) -> jax.Array:
    """1 where it holds, else 0."""
    return jnp.where(condition, np.float32(1), np.float32(0))


def loop(steps: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`body(i, carry)` for i from 0 on; i has 32 bits whatever JAX's default is, as Mosaic wants it."""
    return lax.fori_loop(jnp.int32(0), jnp.int32(steps), body, start)


def as_rows(array: Any, batch: tuple[int, ...], dtype: Any) -> jax.Array:
    """A scalar or an array `(*batch or ones, k)` as `(n, k)`, one row a slice."""
    array = jnp.asarray(array, dtype)
    width = array.shape[-1] if array.ndim else 1
    return jnp.broadcast_to(array, (*batch, width)).reshape(math.prod(batch), width)


def refuses_slices(x: Any, kernel: str, least: int, most: int | None = None, place: str = "") -> str | None:
    """Why a kernel for slices of `least` to `most` positions, which it holds in that place, cannot serve, or None."""
    d = x.shape[-1]
    if x.dtype != jnp.float32:
        return f"its {kernel} kernel computes in float32, not {x.dtype}"
    if most is None and d < least:
        return f"its {kernel} kernel takes slices of at least {least} positions, not of {d}"
    if most is not None and not least <= d <= most:
        return f"its {kernel} kernel holds slices of {least} to {most} positions {place}, not of {d}"
    if x.size == 0:
        return "there are no slices"
    return None


def solver(weights: Callable[..., Any], run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of scores `(*batch, d)`, of parameters, each one number, one a slice, or one a position, and of
    `interpret`; it is done by `run(weights, rows, others, interpret)`, from `(n, d)` scores and `(n, 1 or d)`
    parameters to weights."""

    def of_slices(x: jax.Array, *parameters: Any, interpret: Any = False) -> jax.Array:
        def solve(x: jax.Array, *parameters: jax.Array) -> jax.Array:
            *batch, d = x.shape
            rows, others = x.reshape(-1, d), [as_rows(a, tuple(batch), x.dtype) for a in parameters]
            return run(weights, rows, others, interpret).reshape(x.shape)

        parameters = tuple(jnp.asarray(a, x.dtype) for a in parameters)
        shape = jnp.broadcast_shapes(x.shape, *(a.shape for a in parameters))
        return over_slices(solve)(jnp.broadcast_to(varying_like(x, *parameters), shape), *parameters)

    return of_slices
