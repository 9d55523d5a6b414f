"""`jax.vmap` of a kernel: more slices, not a grid of calls with one slice each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def over_slices(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for arrays `(*batch, d)` and hyper-parameters that are scalars or arrays of that rank, under `jax.vmap`.

    Pallas would put a mapped axis beside the blocks of slices: a mapped call of one slice would fill one lane in 1,024.
    """
    folded = custom_vmap(call)

    @folded.def_vmap
    def _(axis_size, in_batched, x, *others):  # pyright: ignore[reportUnusedFunction]
        x_batched, *batched = in_batched
        if not x_batched:
            x = jnp.broadcast_to(x, (axis_size, *x.shape))
        others = [_lead(a, is_batched, x.ndim) for a, is_batched in zip(others, batched, strict=True)]
        out = folded(x, *others)
        return out, jax.tree.map(lambda _: True, out)

    return folded


def over_batch(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` for arrays, arguments and results, that all have an axis of the batch in front, under `jax.vmap`."""
    folded = custom_vmap(call)

    @folded.def_vmap
    def _(axis_size, in_batched, *args):  # pyright: ignore[reportUnusedFunction]
        def fold(array, is_batched):
            array = array if is_batched else jnp.broadcast_to(array, (axis_size, *array.shape))
            return array.reshape(-1, *array.shape[2:])

        out = folded(*jax.tree.map(fold, args, tuple(in_batched)))
        unfolded = jax.tree.map(lambda a: a.reshape(axis_size, -1, *a.shape[1:]), out)
        return unfolded, jax.tree.map(lambda _: True, out)

    return folded


def _lead(array: jax.Array, is_batched: bool, ndim: int) -> jax.Array:
    """A hyper-parameter in the rank of the scores, or a scalar."""
    if is_batched:
        return array.reshape(array.shape[0], *(1,) * (ndim - array.ndim), *array.shape[1:])
    return array[None] if array.ndim else array
