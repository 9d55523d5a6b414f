"""Attention by the kernels of `_flash.py`: shapes, blocks, and the derivative rule that connects them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..._arrays import varying_like
from . import _flash
from ._flash import ALPHA_BAR, SCALE_BAR, STATISTICS, Head, Plan
from ._tiles import LANES, MEMORY_LIMIT, VECTOR_MEMORY, result

# Queries of a block: a row of what is kept has as many numbers as a register has lanes. Keys of a block: as many as
# keep the matrix unit busy, and few enough that blocks without a weight are found.
ROWS, COLUMNS = LANES, 256
# Below this, alpha - 1 counts as this: entmax differs from softmax by less than rounding there.
LEAST_B = 1e-6


class Inputs(NamedTuple):
    """What the kernels read, laid out for them: B batch, N query heads, K key heads, T queries, S keys, H head size."""

    q: jax.Array  # (B, N, T, H), T and S padded to whole blocks
    k: jax.Array  # (B, K, S, H)
    v: jax.Array  # (B, K, S, H of the values)
    b: jax.Array  # (N,): alpha - 1
    scale: jax.Array  # (N,)
    bias: jax.Array | None  # (B or 1, N or 1, S, T or 1)


class Rules(NamedTuple):
    """What no derivative is taken of."""

    mask: jax.Array | None  # int8, (B or 1, N or 1, S or 1, T or 1)
    query_lengths: jax.Array  # (B,)
    key_lengths: jax.Array  # (B,)


def refuses_attention(query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None) -> str | None:
    """Why the kernels cannot serve arrays of these shapes `(B, length, heads, size)`, or None."""
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its attention takes float32 and bfloat16, not {query.dtype}"
    if 0 in (*query.shape, *key.shape, *value.shape):
        return "an axis is empty"
    size = max(_whole(query.shape[3], LANES), _whole(value.shape[3], LANES)) * query.dtype.itemsize
    length = max(_whole(query.shape[1], ROWS), _whole(key.shape[1], COLUMNS))
    held = 2 * length * size + length * (4 * STATISTICS * 4)
    for array in (bias, mask):
        if array is not None:
            held += 2 * length * LANES * (4 if array is bias else 1)
    if held > VECTOR_MEMORY:
        return f"{length} keys or queries of one head take {held} bytes, and a chip's vector memory has {VECTOR_MEMORY}"
    return None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    alpha: Any,
    scale: Any,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    query_lengths: jax.Array | None = None,
    key_lengths: jax.Array | None = None,
    *,
    is_causal: bool = False,
    window: tuple[int, int] | None = None,
    blocks: tuple[int, int] = (ROWS, COLUMNS),
    interpret: Any = False,
) -> jax.Array:
    """Entmax attention, 1 <= alpha <= 2; never more than one block of scores.

    Args:
      query: `(B, T, N, H)`, float32 or bfloat16.
      key, value: `(B, S, K, H)`, of its dtype; N is a multiple of K.
      alpha: a scalar, or one a head, `(N, 1, 1)`.
      scale: the factor on the products, a scalar, or one a head, `(N, 1, 1)`.
      bias: added to the scaled scores, four axes of size 1 or that of the scores `(B, N, T, S)`.
      mask: boolean, True where a query may see a key; axes as those of the bias.
      query_lengths, key_lengths: numbers of real queries and keys, int32 `(B,)`.
      is_causal, window: query t sees the keys s <= t, or t - left <= s <= t + right.
      blocks: queries and keys of a block.
      interpret: what `pallas_call` takes under that name.

    Returns:
      `(B, T, N, H)` in the dtype of the query; zeros for a query that sees no key.
    """
    (batch, queries, heads, _), keys = query.shape, key.shape[1]
    rows, columns = blocks
    plan = Plan(
        _whole(queries, rows),
        _whole(keys, columns),
        rows,
        columns,
        is_causal,
        window,
        bias is not None,
        mask is not None,
    )

    def one_a_head(a: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(a, jnp.float32).reshape(-1), (heads,))

    def within(lengths: jax.Array | None, most: int) -> jax.Array:
        return jnp.full((batch,), most, jnp.int32) if lengths is None else jnp.minimum(lengths, most)

    alpha = one_a_head(alpha)
    inputs = Inputs(
        _laid(query, plan.queries),
        _laid(key, plan.keys),
        _laid(value, plan.keys),
        jnp.maximum(alpha - 1, LEAST_B),
        jnp.where((alpha >= 1) & (alpha <= 2), one_a_head(scale), jnp.nan),
        None if bias is None else _pairs(bias, plan).astype(jnp.float32),
    )
    rules = Rules(
        None if mask is None else _pairs(mask.astype(jnp.int8), plan),
        within(query_lengths, queries),
        within(key_lengths, keys),
    )
    inputs, rules = jax.tree.map(lambda a: varying_like(a, inputs, rules), (inputs, rules))
    output: Any = _attend(plan, interpret, inputs, rules)
    return jnp.swapaxes(output[:, :, :queries], 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(plan: Plan, interpret: Any, inputs: Inputs, rules: Rules) -> jax.Array:
    return _attend_fwd(plan, interpret, inputs, rules)[0]


def _attend_fwd(plan: Plan, interpret: Any, inputs: Inputs, rules: Rules) -> Any:
    q, k, v, *_ = inputs
    batch, heads = q.shape[:2]
    blocks, marks = plan.queries // plan.rows, _whole(plan.keys // plan.columns, LANES)
    places = _Places(plan, heads // k.shape[1])

    def kernel(head, q, k, v, output, kept, marked, tops, i):
        _flash.forward(plan, head, q, k, v, output, kept, marked, tops, i)

    output, kept, marked = _run(
        plan,
        interpret,
        kernel,
        inputs,
        rules,
        blocks,
        arrays=[(q, places.of_queries(q)), (k, places.all_keys(k)), (v, places.all_keys(v))],
        out=[
            ((batch, heads, plan.queries, v.shape[3]), q.dtype, places.of_queries(v)),
            ((batch, heads, STATISTICS, plan.queries), jnp.float32, places.of_rows()),
            ((batch, heads, blocks, 1, marks), jnp.int32, places.of_marks(marks)),
        ],
        scratch=[pltpu.VMEM((plan.keys // plan.columns, 1, plan.rows), jnp.float32)],
    )
    return output, (inputs, rules, kept, marked)


def _attend_bwd(plan: Plan, interpret: Any, residuals: Any, output_bar: jax.Array) -> Any:
    inputs, rules, kept, marked = residuals
    q, k, v, *_, bias = inputs
    batch, heads = q.shape[:2]
    blocks, marks = plan.queries // plan.rows, marked.shape[-1]
    places = _Places(plan, heads // k.shape[1])
    per_query = bias is not None and bias.shape[3] > 1
    per_key = bias is not None and bias.shape[3] == 1

    def along_keys(head, q, k, v, do, kept, marked, dq, rows, *rest):
        dz, i = rest if per_query else (None, *rest)
        _flash.backward_queries(plan, head, q, k, v, do, kept, marked, dq, rows, dz, i)

    out = [(q.shape, q.dtype, places.of_queries(q)), (kept.shape, jnp.float32, places.of_rows())]
    if per_query:
        pairs = batch, heads, plan.keys, plan.queries
        out.append((pairs, jnp.float32, places.of_pairs(pairs, per_query=True)))
    dq, rows, *dz = _run(
        plan,
        interpret,
        along_keys,
        inputs,
        rules,
        blocks,
        arrays=[
            (q, places.of_queries(q)),
            (k, places.all_keys(k)),
            (v, places.all_keys(v)),
            (output_bar, places.of_queries(v)),
            (kept, places.of_rows()),
            (marked, places.of_marks(marks)),
        ],
        out=out,
    )

    def along_queries(head, q, k, v, do, kept, rows, marked, dk, dv, *rest):
        dz, j = rest if per_key else (None, *rest)
        _flash.backward_keys(plan, head, q, k, v, do, kept, rows, marked, dk, dv, dz, j)

    out = [((batch, heads, *a.shape[2:]), jnp.float32, places.of_keys(a, shared=False)) for a in (k, v)]
    if per_key:
        out.append(((batch, heads, plan.keys, 1), jnp.float32, places.of_keys(jnp.zeros((1, 1, 1, 1)), shared=False)))
    dk, dv, *dz_sum = _run(
        plan,
        interpret,
        along_queries,
        inputs,
        rules,
        plan.keys // plan.columns,
        arrays=[
            (q, places.all_queries(q)),
            (k, places.of_keys(k)),
            (v, places.of_keys(v)),
            (output_bar, places.all_queries(v)),
            (kept, places.all_rows()),
            (rows, places.all_rows()),
            (marked, places.all_marks(blocks, marks)),
        ],
        out=out,
        along_keys=True,
    )

    def over_group(a: jax.Array, like: jax.Array) -> jax.Array:
        return a.reshape(batch, like.shape[1], -1, *a.shape[2:]).sum(2).astype(like.dtype)

    bias_bar = None if bias is None else _summed([*dz, *dz_sum][0], bias.shape)
    alpha_bar, scale_bar = (jnp.sum(rows[:, :, r], (0, 2)) for r in (ALPHA_BAR, SCALE_BAR))
    bars = Inputs(dq, over_group(dk, k), over_group(dv, v), alpha_bar, scale_bar, bias_bar)
    return bars, jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), rules)


_attend.defvjp(_attend_fwd, _attend_bwd)


class _Places(NamedTuple):
    """Which part of an array a step of the grid (batch, query head, block) reads or writes."""

    plan: Plan
    group: int  # query heads that share a key head

    def of_queries(self, array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.plan.rows, array.shape[3]), lambda b, n, i: (b, n, i, 0))

    def all_queries(self, array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.plan.queries, array.shape[3]), lambda b, n, j: (b, n, 0, 0))

    def of_keys(self, array: jax.Array, shared: bool = True) -> pl.BlockSpec:
        group = self.group if shared else 1
        return pl.BlockSpec((None, None, self.plan.columns, array.shape[3]), lambda b, n, j: (b, n // group, j, 0))

    def all_keys(self, array: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, self.plan.keys, array.shape[3]), lambda b, n, i: (b, n // self.group, 0, 0))

    def of_rows(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, STATISTICS, self.plan.rows), lambda b, n, i: (b, n, 0, i))

    def all_rows(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, STATISTICS, self.plan.queries), lambda b, n, j: (b, n, 0, 0))

    def of_marks(self, marks: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, None, 1, marks), lambda b, n, i: (b, n, i, 0, 0))

    def all_marks(self, blocks: int, marks: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, blocks, 1, marks), lambda b, n, j: (b, n, 0, 0, 0))

    def of_pairs(self, shape: tuple[int, ...], per_query: bool) -> pl.BlockSpec:
        """Of `(B or 1, N or 1, S or 1, T or 1)`: all keys for a block of queries, or all queries for one of keys."""
        (one_b, one_n, one_s, one_t) = (n == 1 for n in shape)
        height = 1 if one_s else self.plan.keys if per_query else self.plan.columns
        width = 1 if one_t else self.plan.rows if per_query else self.plan.queries

        def place(b, n, i):
            first, last = (0, 0 if one_t else i) if per_query else (0 if one_s else i, 0)
            return 0 if one_b else b, 0 if one_n else n, first, last

        return pl.BlockSpec((None, None, height, width), place)


def _run(
    plan: Plan,
    interpret: Any,
    kernel: Callable[..., None],
    inputs: Inputs,
    rules: Rules,
    blocks: int,
    arrays: list[tuple[jax.Array, pl.BlockSpec]],
    out: list[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    scratch: Any = (),
    along_keys: bool = False,
) -> list[jax.Array]:
    """Runs a kernel for each batch element, query head and block."""
    places = _Places(plan, 1)
    scalars = [inputs.b, inputs.scale, rules.query_lengths, rules.key_lengths]
    pairs = [a for a in (inputs.bias, rules.mask) if a is not None]

    def body(b_ref, scale_ref, query_ref, key_ref, *refs):
        refs = list(refs)
        bias = refs.pop(0) if plan.has_bias else None
        mask = refs.pop(0) if plan.has_mask else None
        batch, head, i = (pl.program_id(axis) for axis in range(3))
        kernel(Head(b_ref[head], scale_ref[head], query_ref[batch], key_ref[batch], bias, mask), *refs, i)

    q = inputs.q
    call = pl.pallas_call(
        body,
        grid=(*q.shape[:2], blocks),
        in_specs=[
            *[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(scalars),
            *[places.of_pairs(a.shape, not along_keys) for a in pairs],
            *[spec for _, spec in arrays],
        ],
        out_specs=[spec for *_, spec in out],
        out_shape=[result(shape, dtype, q) for shape, dtype, _ in out],
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=MEMORY_LIMIT
        ),
        interpret=interpret,
    )
    return call(*scalars, *pairs, *[a for a, _ in arrays])


def _summed(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return jnp.sum(array, axes, keepdims=True)


def _whole(n: int, size: int) -> int:
    return pl.cdiv(n, size) * size


def _laid(array: jax.Array, length: int) -> jax.Array:
    """`(B, length, heads, size)` as `(B, heads, length, size)`, filled up with zeros."""
    array = jnp.swapaxes(array, 1, 2)
    return jnp.pad(array, ((0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)))


def _pairs(array: jax.Array, plan: Plan) -> jax.Array:
    """`(B, N, T, S)`, or 1 for each of them, as `(B, N, S, T)`, filled up with zeros."""
    array = jnp.swapaxes(array, 2, 3)
    more = [0 if n == 1 else size - n for n, size in zip(array.shape[2:], (plan.keys, plan.queries), strict=True)]
    return jnp.pad(array, ((0, 0), (0, 0), (0, more[0]), (0, more[1])))
