"""Attention by the kernels of `_gpu_flash.py`: what they serve, and the two directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _gpu
from . import _gpu_attention_layout as _layout  # its constants
from . import _gpu_flash as _flash
from ._attention_layout import Lengths, lengths_of, unusable, whole
from ._batching import over_batch
from ._gpu import mosaic
from ._gpu_attention_layout import (
    Arrays,
    How,
    arrays_of,
    barriers,
    columns_of,
    fetch,
    filled,
    lines_of,
    marked,
    run,
    tiles,
)
from ._gpu_flash_blocks import Fetched, Stream

# What a block of threads may have of a multiprocessor's shared memory.
_SHARED_MEMORY = 220 * 2**10


def refuses_attention(query: Any, key: Any, value: Any, bias: Any, *others: Any, **_: Any) -> str | None:
    """Why the kernels cannot serve arrays of these shapes `(B, length, heads, size)`, or None."""
    mask = others[3]
    if query.dtype != jnp.bfloat16:
        return f"its attention on GPUs takes bfloat16, as the matrix unit does, not {query.dtype}"
    if reason := unusable(query, key, value):
        return reason
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None:
            return f"its attention on GPUs takes no array as {name}: is_causal, lengths and a window it knows"
    if max(query.shape[3], value.shape[3]) > _layout.WIDEST:
        sizes = f"not {query.shape[3]} and {value.shape[3]}"
        return f"its attention on GPUs takes heads of size up to {_layout.WIDEST}, {sizes}"
    tile = whole(query.shape[3], _layout.TILE)
    blocks = whole(key.shape[1], _layout.COLUMNS) // _layout.FEWER
    held = 2 * (_layout.ROWS + 2 * _layout.FEWER) * tile + 4 * (_layout.ROWS + 1) * blocks
    if held > _SHARED_MEMORY:
        return f"{key.shape[1]} keys take {held:,} bytes of shared memory, and there are {_SHARED_MEMORY:,}"
    if query.shape[1] > _layout.MOST * _layout.ROWS:
        return f"its attention on GPUs takes up to {_layout.MOST * _layout.ROWS:,} queries, not {query.shape[1]:,}"
    return _gpu.missing()


def pays_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> bool:
    """Whether it is worth it: fewer queries would leave most of a block empty. Wide heads have no comparison yet of
    their numbers on a device."""
    narrow = max(query.shape[3], value.shape[3]) <= _layout.TILE
    return narrow and query.shape[1] >= 2 * _layout.ROWS


refuses_attention_bars, pays_attention_bars = refuses_attention, pays_attention


class Kept(NamedTuple):
    """What the backward part needs; T and S filled up to whole blocks."""

    centre: jax.Array  # (B, T, N, H): the values' average by y^(2 - alpha)
    tau: jax.Array  # (B, N, T)
    marks: jax.Array  # (B, N, T / 64, S / 64): 1 where a block has a weight, else 0


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: None,
    scale: jax.Array,
    alpha: jax.Array,
    gamma: jax.Array,
    mask: None,
    query_lengths: jax.Array | None,
    key_lengths: jax.Array | None,
    *,
    is_causal: bool = False,
    window: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, Kept]:
    """Entmax attention, 1 <= alpha <= 2; arguments and results as `_attention.attention`, without bias and mask."""
    how = How(is_causal, window, interpret)
    arrays = arrays_of(query, key, value, scale, alpha, gamma)
    output, *kept = over_batch(partial(_forward, how))(arrays, lengths_of(query, key, query_lengths, key_lengths))
    return output[:, : query.shape[1], :, : value.shape[3]], Kept(*kept)


def attention_bars(*args: Any, is_causal: bool, window: tuple[int, int] | None, interpret: Any = False) -> Any:
    """The cotangents of the first seven arguments of `attention`, from all of them, what it kept, and the output's."""
    query, key, value, _, scale, alpha, gamma, _, query_lengths, key_lengths, kept, output_bar = args
    how = How(is_causal, window, interpret)
    arrays, back = jax.vjp(arrays_of, query, key, value, scale, alpha, gamma)
    lengths = lengths_of(query, key, query_lengths, key_lengths)
    bars = over_batch(partial(_backward, how))(arrays, lengths, Kept(*kept), filled(output_bar, _layout.ROWS))
    q_bar, k_bar, v_bar, *others = back(bars)
    return q_bar, k_bar, v_bar, None, *others


# --- The two directions ------------------------------------------------------------------------------------


def _forward(how: How, arrays: Arrays, lengths: Lengths) -> list[jax.Array]:
    """The output, and what `Kept` has."""
    tau, marks = _search(how, arrays, lengths)
    batch, queries, heads, _ = arrays.q.shape
    averages = batch, queries, heads, arrays.v.shape[3]
    # In float32: neighbouring threads' numbers in bfloat16 are no whole sector of memory, which JAX 0.12 insists on.
    out = tuple((shape, jnp.float32) for shape in (averages, averages, tau.shape))

    def body(head, at, q, k, v, tau, marks, *refs):
        *out, q_here, k_here, v_here, lines, q_bar, k_bar, v_bar, lines_bar = refs
        fetch((at.queries(q), q_here, q_bar), (marks.at[at.batch, at.head, at.block], lines, lines_bar))
        both = Stream((Fetched(partial(at.keys, k), k_here, k_bar), Fetched(partial(at.keys, v), v_here, v_bar)))
        _flash.average(at.plan, head, at.block, q_here, both, at.columns(tau), marked(lines), *at.each(out))

    columns, dtype = columns_of(arrays.q, arrays.v), arrays.q.dtype
    either = jnp.max(marks.reshape(*marks.shape[:3], -1, columns // _layout.FEWER), -1)
    more, sizes = (tau, lines_of(either)), (arrays.q.shape[3], arrays.v.shape[3])
    places = tiles(dtype, _layout.ROWS, sizes[0]), *(tiles(dtype, 2, columns, size) for size in sizes)
    scratch = *places, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *barriers(1, 2, 2, 1)
    output, centre, tau = run(how, body, arrays, lengths, more, columns, True, out, scratch)
    return [output.astype(dtype), centre, tau, marks]


def _search(how: How, arrays: Arrays, lengths: Lengths) -> list[jax.Array]:
    (batch, queries, heads, size), keys, dtype = arrays.q.shape, arrays.k.shape[1], arrays.q.dtype
    blocks, marks = queries // _layout.ROWS, keys // _layout.FEWER

    def body(head, at, q, k, v, tau, marked, q_here, k_here, tops, wanted, q_bar, k_bar):
        fetch((at.queries(q), q_here, q_bar))
        stream, scratch = Stream((Fetched(partial(at.keys, k), k_here, k_bar),)), _flash.Scratch(tops, wanted)
        marked = marked.at[at.batch, at.head, at.block]
        _flash.search(at.plan, head, at.block, q_here, stream, scratch, at.columns(tau), marked)

    out = ((batch, heads, queries), jnp.float32), ((batch, heads, blocks, marks), jnp.int32)
    places = tiles(dtype, _layout.ROWS, size), tiles(dtype, 2, _layout.FEWER, size)
    scratch = (
        *places,
        mosaic.SMEM((marks, _layout.ROWS), jnp.float32),
        mosaic.SMEM((marks,), jnp.int32),
        *barriers(1, 2),
    )
    return run(how, body, arrays, lengths, (), _layout.FEWER, True, out, scratch)


def _backward(how: How, arrays: Arrays, lengths: Lengths, kept: Kept, output_bar: jax.Array) -> Arrays:
    q, k, v, *_ = arrays
    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    delta = jnp.einsum("btnh,btnh->bnt", output_bar.astype(jnp.float32), kept.centre)
    more = output_bar, jnp.stack([kept.tau, delta], 2)
    of_keys, of_queries = lines_of(kept.marks), lines_of(jnp.swapaxes(kept.marks, 2, 3))

    [dq] = _along_keys(how, _flash.backward_queries, arrays, lengths, (*more, of_keys), ((q.shape, jnp.float32),))
    columns = (batch, heads, queries), jnp.float32
    bars = _along_keys(how, _flash.backward_scalars, arrays, lengths, (*more, of_keys), (columns, columns))
    dk, dv = _along_queries(how, arrays, lengths, (*more, of_queries))

    def over_group(a: jax.Array, like: jax.Array) -> jax.Array:
        return a.reshape(batch, keys, like.shape[2], -1, a.shape[3]).sum(3).astype(like.dtype)

    return Arrays(dq.astype(q.dtype), over_group(dk, k), over_group(dv, v), *(jnp.sum(bar, 2) for bar in bars))


def _along_keys(
    how: How,
    backward: Callable[..., None],
    arrays: Arrays,
    lengths: Lengths,
    more: Any,
    out: Any,
) -> list[jax.Array]:
    """A block of queries at a time, with all keys that have a weight."""

    def body(head, at, q, k, v, do, kept, marks, *refs):
        *out, q_here, do_here, k_here, v_here, lines, q_bar, do_bar, k_bar, v_bar, lines_bar = refs
        marks = marks.at[at.batch, at.head, at.block]
        fetch((at.queries(q), q_here, q_bar), (at.queries(do), do_here, do_bar), (marks, lines, lines_bar))
        both = Stream((Fetched(partial(at.keys, k), k_here, k_bar), Fetched(partial(at.keys, v), v_here, v_bar)))
        backward(at.plan, head, at.block, q_here, do_here, both, at.columns(kept), marked(lines), *at.each(out))

    sizes, dtype = (arrays.q.shape[3], arrays.v.shape[3]), arrays.q.dtype
    places = (
        *(tiles(dtype, _layout.ROWS, size) for size in sizes),
        *(tiles(dtype, 2, _layout.FEWER, size) for size in sizes),
    )
    scratch = *places, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *barriers(1, 1, 2, 2, 1)
    return run(how, body, arrays, lengths, more, _layout.FEWER, True, out, scratch)


def _along_queries(how: How, arrays: Arrays, lengths: Lengths, more: Any) -> list[jax.Array]:
    """dK and dV: a block of keys at a time, with all queries that have a weight there."""

    def body(head, at, q, k, v, do, kept, marks, dk, dv, k_here, v_here, *refs):
        q_here, do_here, kept_here, lines, k_bar, v_bar, q_bar, do_bar, kept_bar, lines_bar = refs
        marks = marks.at[at.batch, at.head, at.block]
        fetch((at.keys(k), k_here, k_bar), (at.keys(v), v_here, v_bar), (marks, lines, lines_bar))
        of_queries = Stream(
            (
                Fetched(partial(at.queries, q), q_here, q_bar),
                Fetched(partial(at.queries, do), do_here, do_bar),
                Fetched(partial(at.columns, kept), kept_here, kept_bar),
            )
        )
        dk, dv = (at.keys(ref, of_queries=True) for ref in (dk, dv))
        _flash.backward_keys(at.plan, head, at.block, k_here, v_here, of_queries, marked(lines), dk, dv)

    (batch, keys, *_), heads = arrays.k.shape, arrays.q.shape[2]
    sizes, dtype = (arrays.k.shape[3], arrays.v.shape[3]), arrays.q.dtype
    out = tuple(((batch, keys, heads, size), jnp.float32) for size in sizes)
    places = (
        *(tiles(dtype, _layout.FEWER, size) for size in sizes),
        *(tiles(dtype, 2, _layout.ROWS, size) for size in sizes),
    )
    kept = mosaic.SMEM((2, _flash.STATISTICS, _layout.ROWS), jnp.float32)
    scratch = *places, kept, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *barriers(1, 1, 2, 2, 2, 1)
    return run(how, body, arrays, lengths, more, _layout.FEWER, False, out, scratch)
