"""Attention by the kernels of `_flash.py`: what they serve, and the two directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..shared._attention import Rules, summed, unusable, whole
from ..shared._batching import over_batch
from ..shared._served import Served
from . import _attention_layout as _layout
from . import _flash, _mosaic
from ._attention_layout import Arrays, How
from ._flash_blocks import Fetched, Staged, Stream
from ._mosaic import mosaic

# What a block of threads may have of a multiprocessor's shared memory.
_SHARED_MEMORY = 220 * 2**10


def _refuses(query: Any, key: Any, value: Any, bias: Any, *_: Any, **__: Any) -> str | None:
    """Why the kernels cannot serve arrays of these shapes `(B, length, heads, size)`, or None."""
    if query.dtype != jnp.bfloat16:
        return f"its attention on GPUs takes bfloat16, as the matrix unit does, not {query.dtype}"
    if reason := unusable(query, key, value, bias):
        return reason
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
    return _mosaic.missing()


def _pays(query: Any, key: Any, value: Any, bias: Any, *others: Any, **_: Any) -> bool:
    """Whether it is worth it: fewer queries would leave most of a block empty. With wide heads, a bias or a mask its
    numbers were not compared on a device yet."""
    mask = others[3]
    compared = max(query.shape[3], value.shape[3]) <= _layout.TILE and bias is None and mask is None
    return compared and query.shape[1] >= 2 * _layout.ROWS


class Kept(NamedTuple):
    """What the backward part needs; T and S filled up to whole blocks."""

    centre: jax.Array  # (B, T, N, H): the values' average by y^(2 - alpha)
    tau: jax.Array  # (B, N, T)
    marks: jax.Array  # (B, N, T / 64, S / 64): 1 where a block has a weight, else 0


def _attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    scale: jax.Array,
    alpha: jax.Array,
    gamma: jax.Array,
    mask: jax.Array | None,
    query_lengths: jax.Array | None,
    key_lengths: jax.Array | None,
    *,
    is_causal: bool = False,
    window: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, Kept]:
    """Entmax attention, 1 <= alpha <= 2; arguments and results as in `tpu/_attention.py`, in bfloat16."""
    how = How(is_causal, window, interpret)
    arrays = _layout.arrays_of(query, key, value, bias, scale, alpha, gamma)
    rules = _layout.rules_of(query, key, mask, query_lengths, key_lengths)
    output, *kept = over_batch(partial(_forward, how))(arrays, rules)
    return output[:, : query.shape[1], :, : value.shape[3]], Kept(*kept)


def _attention_bars(*args: Any, is_causal: bool, window: tuple[int, int] | None, interpret: Any = False) -> Any:
    """The cotangents of the first seven arguments of `attention`, from all of them, what it kept, and the output's."""
    *operands, mask, query_lengths, key_lengths, kept, output_bar = args
    query, key, *_ = operands
    how = How(is_causal, window, interpret)
    arrays, back = jax.vjp(_layout.arrays_of, *operands)
    rules = _layout.rules_of(query, key, mask, query_lengths, key_lengths)
    output_bar = _layout.filled(output_bar, _layout.ROWS)
    return back(over_batch(partial(_backward, how))(arrays, rules, Kept(*kept), output_bar))


# --- The two directions ------------------------------------------------------------------------------------


def _forward(how: How, arrays: Arrays, rules: Rules) -> list[jax.Array]:
    """The output, and what `Kept` has."""
    tau, marks = _search(how, arrays, rules)
    batch, queries, heads, _ = arrays.q.shape
    averages = batch, queries, heads, arrays.v.shape[3]
    # In float32: neighbouring threads' numbers in bfloat16 are no whole sector of memory, which JAX 0.12 insists on.
    out = tuple((shape, jnp.float32) for shape in (averages, averages, tau.shape))

    def body(head, at, here, q, k, v, tau, marks, *out):
        _layout.fetch((at.queries(q), here["q"]), (at.lines(marks), here["lines"]))
        both = Stream((Fetched(partial(at.keys, k), here["k"]), Fetched(partial(at.keys, v), here["v"])))
        marked = _layout.marked(here["lines"])
        _flash.average(at.plan, head, at.block, here["q"].place, both, at.columns(tau), marked, *at.each(out))

    columns, dtype = _layout.columns_of(arrays, rules), arrays.q.dtype
    either = jnp.max(marks.reshape(*marks.shape[:3], -1, columns // _layout.FEWER), -1)
    size, value_size, lines = arrays.q.shape[3], arrays.v.shape[3], _layout.lines_of(either)
    staged = {
        "q": _layout.once(dtype, _layout.ROWS, size),
        "k": _layout.in_turn(dtype, columns, size),
        "v": _layout.in_turn(dtype, columns, value_size),
        "lines": _layout.lines_here(lines),
    }
    output, centre, tau = _layout.run(how, body, arrays, rules, (tau, lines), columns, True, out, staged)
    return [output.astype(dtype), centre, tau, marks]


def _search(how: How, arrays: Arrays, rules: Rules) -> list[jax.Array]:
    (batch, queries, heads, size), keys, dtype = arrays.q.shape, arrays.k.shape[1], arrays.q.dtype
    blocks, marks = queries // _layout.ROWS, keys // _layout.FEWER

    def body(head, at, here, q, k, v, tau, marks):
        _layout.fetch((at.queries(q), here["q"]))
        stream = Stream((Fetched(partial(at.keys, k), here["k"]),))
        scratch = _flash.Scratch(here["tops"].place, here["wanted"].place)
        _flash.search(at.plan, head, at.block, here["q"].place, stream, scratch, at.columns(tau), at.lines(marks))

    out = ((batch, heads, queries), jnp.float32), ((batch, heads, blocks, marks), jnp.int32)
    staged = {
        "q": _layout.once(dtype, _layout.ROWS, size),
        "k": _layout.in_turn(dtype, _layout.FEWER, size),
        "tops": Staged(mosaic.SMEM((marks, _layout.ROWS), jnp.float32)),
        "wanted": Staged(mosaic.SMEM((marks,), jnp.int32)),
    }
    return _layout.run(how, body, arrays, rules, (), _layout.FEWER, True, out, staged)


def _backward(how: How, arrays: Arrays, rules: Rules, kept: Kept, output_bar: jax.Array) -> Arrays:
    q, k, v, *_, bias = arrays
    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    delta = jnp.swapaxes(jnp.sum(output_bar.astype(jnp.float32) * kept.centre, 3), 1, 2)
    more = output_bar, jnp.stack([kept.tau, delta], 2)
    of_keys, of_queries = _layout.lines_of(kept.marks), _layout.lines_of(jnp.swapaxes(kept.marks, 2, 3))

    along_keys = partial(_along_keys, how, arrays, rules, (*more, of_keys))
    along_queries = partial(_along_queries, how, arrays, rules, (*more, of_queries))

    [dq] = along_keys(_flash.backward_queries, q.shape)
    bars = along_keys(_flash.backward_scalars, *[(batch, heads, queries)] * 2)
    dk, dv = along_queries(_flash.backward_keys, *((batch, keys, heads, a.shape[3]) for a in (k, v)))

    def bias_bar() -> jax.Array | None:
        if bias is None:
            return None
        if bias.shape[2] > 1:
            [dz] = along_keys(_flash.backward_pair_bias, (batch, queries, heads, keys))
            dz = jnp.swapaxes(dz, 1, 2)
        else:
            [dz] = along_queries(_flash.backward_key_bias, (batch, heads, keys))
            dz = dz[:, :, None]
        return summed(dz.reshape(bias.shape[0], -1, *dz.shape[1:]).sum(1), bias.shape)

    def over_group(a: jax.Array, like: jax.Array) -> jax.Array:
        return a.reshape(batch, keys, like.shape[2], -1, a.shape[3]).sum(3).astype(like.dtype)

    b_bar, scale_bar = (jnp.sum(bar, 2) for bar in bars)
    return Arrays(dq.astype(q.dtype), over_group(dk, k), over_group(dv, v), b_bar, scale_bar, bias_bar())


def _along_keys(
    how: How, arrays: Arrays, rules: Rules, more: Any, backward: Callable[..., None], *shapes: tuple[int, ...]
) -> list[jax.Array]:
    """A block of queries at a time, with all keys that have a weight; results of these shapes."""

    def body(head, at, here, q, k, v, do, kept, marks, *out):
        _layout.fetch((at.queries(q), here["q"]), (at.queries(do), here["do"]), (at.lines(marks), here["lines"]))
        both = Stream((Fetched(partial(at.keys, k), here["k"]), Fetched(partial(at.keys, v), here["v"])))
        kept, marked = at.columns(kept), _layout.marked(here["lines"])
        block = _flash.Queries(at.plan, head, at.block, here["q"].place, here["do"].place, both, kept, marked)
        backward(block, *at.each(out))

    size, value_size, dtype = arrays.q.shape[3], arrays.v.shape[3], arrays.q.dtype
    staged = {
        "q": _layout.once(dtype, _layout.ROWS, size),
        "do": _layout.once(dtype, _layout.ROWS, value_size),
        "k": _layout.in_turn(dtype, _layout.FEWER, size),
        "v": _layout.in_turn(dtype, _layout.FEWER, value_size),
        "lines": _layout.lines_here(more[-1]),
    }
    out = tuple((shape, jnp.float32) for shape in shapes)
    return _layout.run(how, body, arrays, rules, more, _layout.FEWER, True, out, staged)


def _along_queries(
    how: How, arrays: Arrays, rules: Rules, more: Any, backward: Callable[..., None], *shapes: tuple[int, ...]
) -> list[jax.Array]:
    """A block of keys at a time, with all queries that have a weight there."""

    def body(head, at, here, q, k, v, do, kept, marks, *out):
        _layout.fetch((at.keys(k), here["k"]), (at.keys(v), here["v"]), (at.lines(marks), here["lines"]))
        of_queries = Stream(
            (
                Fetched(partial(at.queries, q), here["q"]),
                Fetched(partial(at.queries, do), here["do"]),
                Fetched(partial(at.columns, kept), here["kept"]),
            )
        )
        marked = _layout.marked(here["lines"])
        block = _flash.Keys(at.plan, head, at.block, here["k"].place, here["v"].place, of_queries, marked)
        backward(block, *at.each_of_keys(out))

    size, value_size, dtype = arrays.k.shape[3], arrays.v.shape[3], arrays.q.dtype
    statistics = mosaic.SMEM((2, _flash.STATISTICS, _layout.ROWS), jnp.float32)
    staged = {
        "k": _layout.once(dtype, _layout.FEWER, size),
        "v": _layout.once(dtype, _layout.FEWER, value_size),
        "q": _layout.in_turn(dtype, _layout.ROWS, size),
        "do": _layout.in_turn(dtype, _layout.ROWS, value_size),
        "kept": Staged(statistics, mosaic.Barrier(num_barriers=2)),
        "lines": _layout.lines_here(more[-1]),
    }
    out = tuple((shape, jnp.float32) for shape in shapes)
    return _layout.run(how, body, arrays, rules, more, _layout.FEWER, False, out, staged)


KERNELS = {
    "attention": Served(_attention, _refuses, _pays),
    "attention_bars": Served(_attention_bars, _refuses, _pays),
}
