"""The blocks that the kernels of `_flash.py` walk over: their products and scores, and how they are fetched.

A block is a matrix in the registers of 128 threads, laid out as the matrix unit leaves it; what belongs to each of its
lines is a column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..shared._flash import Blocks, Head, seen
from ..shared._machines import LOWEST
from ._mosaic import load, mosaic


@dataclasses.dataclass(frozen=True)
class Plan(Blocks):
    """What is static about a call, and whether JAX's interpreter runs it, which knows less than a GPU."""

    interpreted: bool


def stretch(i: Any, size: int) -> Any:
    """Where block i lies along queries or keys, of which a block has so many."""
    return pl.ds(i * size, size)


def filled(plan: Plan, shape: tuple[int, ...], value: float = 0.0) -> jax.Array:
    """One number for each query of a block, or each of a block's numbers."""
    layout = mosaic.Layout.WGMMA if len(shape) == 2 else mosaic.Layout.WGMMA.reduce(1)
    full = jnp.full(shape, value, jnp.float32)
    return full if plan.interpreted else mosaic.layout_cast(full, layout)


def iota(plan: Plan, shape: tuple[int, int], axis: int) -> jax.Array:
    if plan.interpreted:
        return lax.broadcasted_iota(jnp.int32, shape, axis)
    return mosaic.broadcasted_iota(jnp.int32, shape, axis, layout=mosaic.Layout.WGMMA)


def along(column: jax.Array, shape: tuple[int, ...], axis: int = 0) -> jax.Array:
    return lax.broadcast_in_dim(column, shape, [axis])


def product(plan: Plan, a: Any, b: Any, transpose: bool = False) -> jax.Array:
    """Of two references to shared memory, or of an array and a reference; by the second's transpose where asked for."""
    m, n = a.shape[0], b.shape[0 if transpose else 1]
    if plan.interpreted:
        a, b = (x[...].astype(jnp.float32) for x in (a, b))
        return jnp.dot(a, b.T if transpose else b, precision="highest")

    def multiply(accumulator):
        mosaic.wgmma(accumulator, a, _transposed(b) if transpose else b)
        return accumulator[...]

    return pl.run_scoped(multiply, mosaic.ACC((m, n), jnp.float32))


def added(plan: Plan, *sums: tuple[jax.Array, Any, Any]) -> list[jax.Array]:
    """For each `(total, a, b)`, the total plus the product; the matrix unit is waited for once."""
    if plan.interpreted:
        return [total + product(plan, a, b) for total, a, b in sums]

    def multiply(accumulators):
        for accumulator, (_, a, b) in zip(accumulators, sums, strict=True):
            mosaic.wgmma(accumulator, a, b)

    return pl.run_state(multiply)([mosaic.ACC.init(total) for total, *_ in sums])


def _transposed(ref: Any) -> Any:
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else mosaic.transpose_ref(ref, (1, 0))


def read(plan: Plan, ref: Any, axis: int = 0) -> jax.Array:
    """One number for each line of a block, along that axis."""
    if plan.interpreted:
        return ref[...]
    return load(ref, (), mosaic.Layout.WGMMA.reduce(1 - axis))


def scores(plan: Plan, head: Head, products: jax.Array, first_query: Any, first_key: Any, queries: int) -> jax.Array:
    """Scores of a block from the products; LOWEST where a query may not see the key. `queries` is their axis."""
    z = products * head.scale
    shape = z.shape
    firsts = (first_query, first_key) if queries == 0 else (first_key, first_query)
    if head.bias is not None:
        z += _part(plan, head.bias, firsts, shape, queries)
        z = jnp.where(z < LOWEST, LOWEST, z)  # -inf; NaN stays
    if head.mask is not None:
        z = jnp.where(_part(plan, head.mask, firsts, shape, queries) > 0, z, LOWEST)
    last_query, last_key = first_query + shape[queries] - 1, first_key + shape[1 - queries] - 1
    whole = (last_query < head.query_length) & (last_key < head.key_length)
    if plan.is_causal:
        whole &= last_key <= first_query
    if plan.window is not None:
        whole &= (first_key >= last_query - plan.window[0]) & (last_key <= first_query + plan.window[1])

    def masked():
        t, s = first_query + iota(plan, shape, queries), first_key + iota(plan, shape, 1 - queries)
        return jnp.where(seen(plan, head, t, s), z, LOWEST)

    return lax.cond(whole, lambda: z, masked)


def _part(plan: Plan, ref: Any, firsts: tuple[Any, Any], shape: tuple[int, ...], queries: int) -> jax.Array:
    """The block of an array, queries x keys or as the scores have it, or `(1, keys)` for what all queries share."""
    rows, columns = (pl.ds(first, n) for first, n in zip(firsts, shape, strict=True))
    if ref.shape[0] > 1:
        part = ref.at[rows, columns]
        part = part[...] if plan.interpreted else load(part, (), mosaic.Layout.WGMMA)
        return part.astype(jnp.float32)
    keys = 1 - queries
    return along(read(plan, ref.at[0, columns if keys == 1 else rows], keys).astype(jnp.float32), shape, keys)


class Staged(NamedTuple):
    """Shared memory for what is copied there from main memory, and what tells that it has arrived."""

    place: Any
    arrived: Any = None  # a barrier; None where nothing is copied


class Fetched(NamedTuple):
    """Parts of an array in main memory that are copied to shared memory."""

    source: Callable[[Any], Any]  # from the number of a part to its reference
    here: Staged  # two places, each with its barrier


class Stream(NamedTuple):
    """Blocks of arrays, fetched one after the other into two places in turn: one is computed, one is on its way."""

    arrays: tuple[Fetched, ...]

    def _fetch(self, j: Any, slot: Any) -> None:
        for array in self.arrays:
            mosaic.copy_gmem_to_smem(array.source(j), array.here.place.at[slot], array.here.arrived.at[slot])

    def loop(self, start: Any, end: Any, wanted: Callable[[Any], Any], body: Callable[..., Any], carry: Any) -> Any:
        """`body(j, references, carry)` for each block j from start to end that is wanted."""

        def following(j):
            return lax.while_loop(lambda j: (j < end) & ~wanted(jnp.minimum(j, end - 1)), lambda j: j + 1, j)

        def step(state):
            j, slot, carry = state
            after = following(j + 1)
            pl.when(after < end)(lambda: self._fetch(after, 1 - slot))
            for array in self.arrays:
                mosaic.barrier_wait(array.here.arrived.at[slot])
            return after, 1 - slot, body(j, [array.here.place.at[slot] for array in self.arrays], carry)

        first = following(start)
        pl.when(first < end)(lambda: self._fetch(first, 0))
        return lax.while_loop(lambda state: state[0] < end, step, (first, jnp.int32(0), carry))[2]


def every(j: Any) -> Any:
    return j >= 0
