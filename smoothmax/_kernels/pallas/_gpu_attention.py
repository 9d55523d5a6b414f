"""Attention by the kernels of `_gpu_flash.py`: what they serve, and the two directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..._arrays import varying_like
from . import _gpu
from . import _gpu_flash as _flash
from ._attention_layout import scalars_of, whole
from ._batching import over_batch
from ._gpu import mosaic
from ._gpu_flash_blocks import Fetched, Head, Plan, Stream

# Queries of a block, and keys of one: where values are averaged, and elsewhere, or with wide heads, where registers are
# dear: with 128 for each of its threads a multiprocessor has four blocks at a time, and one waits while others compute.
_ROWS, _COLUMNS, _FEWER = 64, 128, 64
# Numbers of a row of a tile in shared memory, as the matrix unit wants it. Wider heads would need more registers.
_TILE, _WIDEST = 64, 128
# Marks of blocks are read together: so many in a line, and by so many, since 128 threads copy them; 256 lines at most.
_LINE, _LINES, _MOST = 4, 32, 1024
# What a block of threads may have of a multiprocessor's shared memory.
_SHARED_MEMORY = 220 * 2**10


def refuses_attention(query: Any, key: Any, value: Any, bias: Any, *others: Any, **_: Any) -> str | None:
    """Why the kernels cannot serve arrays of these shapes `(B, length, heads, size)`, or None."""
    mask = others[3]
    if query.dtype != jnp.bfloat16:
        return f"its attention on GPUs takes bfloat16, as the matrix unit does, not {query.dtype}"
    if not all(isinstance(n, int) for n in (*query.shape, *key.shape, *value.shape)):
        return "an axis has a symbolic length"
    if 0 in (*query.shape, *key.shape, *value.shape):
        return "an axis is empty"
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None:
            return f"its attention on GPUs takes no array as {name}: is_causal, lengths and a window it knows"
    if max(query.shape[3], value.shape[3]) > _WIDEST:
        return f"its attention on GPUs takes heads of size up to {_WIDEST}, not {query.shape[3]} and {value.shape[3]}"
    sizes = whole(query.shape[3], _TILE), whole(value.shape[3], _TILE)
    held = 2 * (_ROWS + 2 * _FEWER) * sizes[0] + 4 * (_ROWS + 1) * whole(key.shape[1], _COLUMNS) // _FEWER
    if held > _SHARED_MEMORY:
        return f"{key.shape[1]} keys take {held:,} bytes of shared memory, and there are {_SHARED_MEMORY:,}"
    if query.shape[1] > _MOST * _ROWS:
        return f"its attention on GPUs takes up to {_MOST * _ROWS:,} queries, not {query.shape[1]:,}"
    return _gpu.missing()


def pays_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> bool:
    """Whether it is worth it: fewer queries would leave most of a block empty. Wide heads have no comparison yet of
    their numbers on a device."""
    narrow = max(query.shape[3], value.shape[3]) <= _TILE
    return narrow and isinstance(query.shape[1], int) and query.shape[1] >= 2 * _ROWS


refuses_attention_bars, pays_attention_bars = refuses_attention, pays_attention


class Kept(NamedTuple):
    """What the backward part needs; T and S filled up to whole blocks."""

    centre: jax.Array  # (B, T, N, H): the values' average by y^(2 - alpha)
    tau: jax.Array  # (B, N, T)
    marks: jax.Array  # (B, N, T / 64, S / 64): 1 where a block has a weight, else 0


class _Arrays(NamedTuple):
    """The arguments as the kernels take them."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    b: jax.Array  # (B, N): alpha - 1
    scale: jax.Array  # (B, N)


class _Lengths(NamedTuple):
    """Numbers of real queries and keys, (B,)."""

    queries: jax.Array
    keys: jax.Array


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
    how = _How(is_causal, window, interpret)
    arrays = _arrays_of(query, key, value, scale, alpha, gamma)
    output, *kept = over_batch(partial(_forward, how))(arrays, _lengths_of(query, key, query_lengths, key_lengths))
    return output[:, : query.shape[1], :, : value.shape[3]], Kept(*kept)


def attention_bars(*args: Any, is_causal: bool, window: tuple[int, int] | None, interpret: Any = False) -> Any:
    """The cotangents of the first seven arguments of `attention`, from all of them, what it kept, and the output's."""
    query, key, value, _, scale, alpha, gamma, _, query_lengths, key_lengths, kept, output_bar = args
    how = _How(is_causal, window, interpret)
    arrays, back = jax.vjp(_arrays_of, query, key, value, scale, alpha, gamma)
    lengths = _lengths_of(query, key, query_lengths, key_lengths)
    bars = over_batch(partial(_backward, how))(arrays, lengths, Kept(*kept), _filled(output_bar, _ROWS))
    q_bar, k_bar, v_bar, *others = back(bars)
    return q_bar, k_bar, v_bar, None, *others


def _arrays_of(query: Any, key: Any, value: Any, scale: Any, alpha: Any, gamma: Any) -> _Arrays:
    b, scale = (jnp.broadcast_to(a, query.shape[:3:2]) for a in scalars_of(scale, alpha, gamma, query.shape[2]))
    return _Arrays(_filled(query, _ROWS), _filled(key, _COLUMNS), _filled(value, _COLUMNS), b, scale)


def _filled(array: jax.Array, block: int) -> jax.Array:
    """`(B, length, heads, size)`, filled up with zeros to whole blocks and tiles."""
    more = whole(array.shape[1], block) - array.shape[1], whole(array.shape[3], _TILE) - array.shape[3]
    return jnp.pad(array, ((0, 0), (0, more[0]), (0, 0), (0, more[1])))


def _columns(q: Any, v: Any) -> int:
    """Keys of a block where values are averaged."""
    return _COLUMNS if max(q.shape[3], v.shape[3]) <= _TILE else _FEWER


def _lengths_of(query: Any, key: Any, query_lengths: Any, key_lengths: Any) -> _Lengths:
    def within(lengths: jax.Array | None, array: jax.Array) -> jax.Array:
        full = varying_like(jnp.full((array.shape[0],), array.shape[1], jnp.int32), query)
        return full if lengths is None else jnp.minimum(lengths, full)

    return _Lengths(within(query_lengths, query), within(key_lengths, key))


class _How(NamedTuple):
    """What is static about a call."""

    is_causal: bool
    window: tuple[int, int] | None
    interpret: Any


class _Place(NamedTuple):
    """Where in the arrays a step of the grid works."""

    plan: Plan
    batch: Any
    head: Any
    key_head: Any
    block: Any

    def queries(self, ref: Any, i: Any = None) -> Any:
        """A block of queries `(rows, size)` of an array `(B, T, N, size)`; the step's own, or the given one."""
        return ref.at[self.batch, self._rows(i), self.head]

    def keys(self, ref: Any, j: Any = None, of_queries: bool = False) -> Any:
        """A block of keys; of an array with a head for each query head where told."""
        j, size = self.block if j is None else j, self.plan.columns
        return ref.at[self.batch, pl.ds(j * size, size), self.head if of_queries else self.key_head]

    def columns(self, ref: Any, i: Any = None) -> Any:
        """A block of queries of an array `(B, N, ..., T)`."""
        return ref.at[(self.batch, self.head, *[slice(None)] * (len(ref.shape) - 3), self._rows(i))]

    def each(self, refs: Any) -> Any:
        """The step's own part of results of either kind."""
        return (self.queries(ref) if len(ref.shape) == 4 else self.columns(ref) for ref in refs)

    def _rows(self, i: Any) -> Any:
        return pl.ds((self.block if i is None else i) * self.plan.rows, self.plan.rows)


def _run(
    how: _How,
    body: Callable[..., None],
    arrays: _Arrays,
    lengths: _Lengths,
    more: tuple[jax.Array, ...],
    columns: int,
    along_keys: bool,
    out: tuple[tuple[tuple[int, ...], Any], ...],
    scratch: tuple[Any, ...],
) -> list[jax.Array]:
    """Runs `body(head, place, *references)` for each batch element, query head and block."""
    (batch, queries, heads, _), (_, keys, key_heads, _) = arrays.q.shape, arrays.k.shape
    plan = Plan(queries, keys, _ROWS, columns, how.is_causal, how.window, bool(how.interpret))
    blocks = queries // _ROWS if along_keys else keys // columns

    def kernel(b, scale, query_length, key_length, *refs):
        batch, n, block = (lax.axis_index(name) for name in ("batch", "head", "block"))
        if along_keys and how.is_causal:
            block = blocks - 1 - block  # those with the most keys first
        head = Head(b[batch, n], scale[batch, n], query_length[batch], key_length[batch])
        body(head, _Place(plan, batch, n, n // (heads // key_heads), block), *refs)

    call = mosaic.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(*form) for form in out],
        scratch_types=scratch,
        grid=(heads, blocks, batch),
        grid_names=("head", "block", "batch"),
        compiler_params=mosaic.CompilerParams(approx_math=True, lowering_semantics=mosaic.LoweringSemantics.Lane),
        interpret=how.interpret,
    )
    results = call(arrays.b, arrays.scale, *lengths, arrays.q, arrays.k, arrays.v, *more)
    return [varying_like(a, arrays.q) for a in results]  # Mosaic GPU forgets over which mesh axes they differ


def _tiles(dtype: Any, *shape: int) -> Any:
    """Shared memory for a matrix, or several, laid out for the matrix unit."""
    layout = mosaic.TilingTransform((8, _TILE)), mosaic.SwizzleTransform(_TILE * jnp.dtype(dtype).itemsize)
    return mosaic.SMEM(shape, dtype, transforms=layout)


def _barriers(*counts: int) -> tuple[Any, ...]:
    return tuple(mosaic.Barrier(num_barriers=n) for n in counts)


def _fetch(*copies: tuple[Any, Any, Any]) -> None:
    """Copies from main memory to shared memory, each with its barrier, and waits for them."""
    for source, place, barrier in copies:
        mosaic.copy_gmem_to_smem(source, place, barrier)
    for *_, barrier in copies:
        mosaic.barrier_wait(barrier)


# --- The two directions ------------------------------------------------------------------------------------


def _forward(how: _How, arrays: _Arrays, lengths: _Lengths) -> list[jax.Array]:
    """The output, and what `Kept` has."""
    tau, marks = _search(how, arrays, lengths)
    batch, queries, heads, _ = arrays.q.shape
    averages = batch, queries, heads, arrays.v.shape[3]
    out = (averages, arrays.q.dtype), (averages, jnp.float32), (tau.shape, jnp.float32)

    def body(head, at, q, k, v, tau, marks, *refs):
        *out, q_here, k_here, v_here, lines, q_bar, k_bar, v_bar, lines_bar = refs
        _fetch((at.queries(q), q_here, q_bar), (marks.at[at.batch, at.head, at.block], lines, lines_bar))
        both = Stream((Fetched(partial(at.keys, k), k_here, k_bar), Fetched(partial(at.keys, v), v_here, v_bar)))
        _flash.average(at.plan, head, at.block, q_here, both, at.columns(tau), _marked(lines), *at.each(out))

    columns, dtype = _columns(arrays.q, arrays.v), arrays.q.dtype
    either = jnp.max(marks.reshape(*marks.shape[:3], -1, columns // _FEWER), -1)
    more, sizes = (tau, _lines(either)), (arrays.q.shape[3], arrays.v.shape[3])
    tiles = _tiles(dtype, _ROWS, sizes[0]), *(_tiles(dtype, 2, columns, size) for size in sizes)
    scratch = *tiles, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *_barriers(1, 2, 2, 1)
    output, centre, tau = _run(how, body, arrays, lengths, more, columns, True, out, scratch)
    return [output, centre, tau, marks]


def _search(how: _How, arrays: _Arrays, lengths: _Lengths) -> list[jax.Array]:
    (batch, queries, heads, size), keys, dtype = arrays.q.shape, arrays.k.shape[1], arrays.q.dtype
    blocks, marks = queries // _ROWS, keys // _FEWER

    def body(head, at, q, k, v, tau, marked, q_here, k_here, tops, wanted, q_bar, k_bar):
        _fetch((at.queries(q), q_here, q_bar))
        stream, scratch = Stream((Fetched(partial(at.keys, k), k_here, k_bar),)), _flash.Scratch(tops, wanted)
        marked = marked.at[at.batch, at.head, at.block]
        _flash.search(at.plan, head, at.block, q_here, stream, scratch, at.columns(tau), marked)

    out = ((batch, heads, queries), jnp.float32), ((batch, heads, blocks, marks), jnp.int32)
    tiles = _tiles(dtype, _ROWS, size), _tiles(dtype, 2, _FEWER, size)
    scratch = *tiles, mosaic.SMEM((marks, _ROWS), jnp.float32), mosaic.SMEM((marks,), jnp.int32), *_barriers(1, 2)
    return _run(how, body, arrays, lengths, (), _FEWER, True, out, scratch)


def _backward(how: _How, arrays: _Arrays, lengths: _Lengths, kept: Kept, output_bar: jax.Array) -> _Arrays:
    q, k, v, *_ = arrays
    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    delta = jnp.einsum("btnh,btnh->bnt", output_bar.astype(jnp.float32), kept.centre)
    more = output_bar, jnp.stack([kept.tau, delta], 2)
    of_keys, of_queries = _lines(kept.marks), _lines(jnp.swapaxes(kept.marks, 2, 3))

    [dq] = _along_keys(how, _flash.backward_queries, arrays, lengths, (*more, of_keys), ((q.shape, q.dtype),))
    columns = (batch, heads, queries), jnp.float32
    bars = _along_keys(how, _flash.backward_scalars, arrays, lengths, (*more, of_keys), (columns, columns))
    dk, dv = _along_queries(how, arrays, lengths, (*more, of_queries))

    def over_group(a: jax.Array, like: jax.Array) -> jax.Array:
        return a.reshape(batch, keys, like.shape[2], -1, a.shape[3]).sum(3).astype(like.dtype)

    return _Arrays(dq, over_group(dk, k), over_group(dv, v), *(jnp.sum(bar, 2) for bar in bars))


def _lines(marks: jax.Array) -> jax.Array:
    """Marks `(B, N, m, n)` in lines, `(B, N, m, n / 4, 4)`."""
    *shape, n = marks.shape
    return jnp.pad(marks, ((0, 0), (0, 0), (0, 0), (0, -n % _LINES))).reshape(*shape, -1, _LINE)


def _marked(lines: Any) -> Callable[[Any], Any]:
    """Whether a block is marked."""
    return lambda j: lines[j // _LINE, j % _LINE] > 0


def _along_keys(
    how: _How, backward: Callable[..., None], arrays: _Arrays, lengths: _Lengths, more: Any, out: Any
) -> list[jax.Array]:
    """A block of queries at a time, with all keys that have a weight."""

    def body(head, at, q, k, v, do, kept, marks, *refs):
        *out, q_here, do_here, k_here, v_here, lines, q_bar, do_bar, k_bar, v_bar, lines_bar = refs
        marks = marks.at[at.batch, at.head, at.block]
        _fetch((at.queries(q), q_here, q_bar), (at.queries(do), do_here, do_bar), (marks, lines, lines_bar))
        both = Stream((Fetched(partial(at.keys, k), k_here, k_bar), Fetched(partial(at.keys, v), v_here, v_bar)))
        backward(at.plan, head, at.block, q_here, do_here, both, at.columns(kept), _marked(lines), *at.each(out))

    sizes, dtype = (arrays.q.shape[3], arrays.v.shape[3]), arrays.q.dtype
    places = *(_tiles(dtype, _ROWS, size) for size in sizes), *(_tiles(dtype, 2, _FEWER, size) for size in sizes)
    scratch = *places, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *_barriers(1, 1, 2, 2, 1)
    return _run(how, body, arrays, lengths, more, _FEWER, True, out, scratch)


def _along_queries(how: _How, arrays: _Arrays, lengths: _Lengths, more: Any) -> list[jax.Array]:
    """dK and dV: a block of keys at a time, with all queries that have a weight there."""

    def body(head, at, q, k, v, do, kept, marks, dk, dv, k_here, v_here, *refs):
        q_here, do_here, kept_here, lines, k_bar, v_bar, q_bar, do_bar, kept_bar, lines_bar = refs
        marks = marks.at[at.batch, at.head, at.block]
        _fetch((at.keys(k), k_here, k_bar), (at.keys(v), v_here, v_bar), (marks, lines, lines_bar))
        of_queries = Stream(
            (
                Fetched(partial(at.queries, q), q_here, q_bar),
                Fetched(partial(at.queries, do), do_here, do_bar),
                Fetched(partial(at.columns, kept), kept_here, kept_bar),
            )
        )
        dk, dv = (at.keys(ref, of_queries=True) for ref in (dk, dv))
        _flash.backward_keys(at.plan, head, at.block, k_here, v_here, of_queries, _marked(lines), dk, dv)

    (batch, keys, *_), heads = arrays.k.shape, arrays.q.shape[2]
    sizes, dtype = (arrays.k.shape[3], arrays.v.shape[3]), arrays.q.dtype
    out = tuple(((batch, keys, heads, size), jnp.float32) for size in sizes)
    places = *(_tiles(dtype, _FEWER, size) for size in sizes), *(_tiles(dtype, 2, _ROWS, size) for size in sizes)
    kept = mosaic.SMEM((2, _flash.STATISTICS, _ROWS), jnp.float32)
    scratch = *places, kept, mosaic.SMEM(more[-1].shape[3:], jnp.int32), *_barriers(1, 1, 2, 2, 2, 1)
    return _run(how, body, arrays, lengths, more, _FEWER, False, out, scratch)
