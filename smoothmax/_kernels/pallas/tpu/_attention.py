"""Attention by the kernels of `_flash.py`: what they serve, and the two directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..shared._attention import Rules, summed, unusable, whole
from ..shared._flash import Head
from ..shared._served import Served
from . import _attention_layout as _layout
from . import _flash, _tiles
from ._attention_layout import Inputs
from ._flash import ALPHA_BAR, SCALE_BAR, STATISTICS
from ._flash_blocks import Plan
from ._tiles import LANES, result


def _refuses(query: Any, key: Any, value: Any, bias: Any, *others: Any, **_: Any) -> str | None:
    """Why the kernels cannot serve arrays of these shapes `(B, length, heads, size)`, or None."""
    mask = others[3]
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its attention takes float32 and bfloat16, not {query.dtype}"
    if reason := unusable(query, key, value, bias):
        return reason
    if (held := _layout.held(query, key, value, bias, mask)) > _tiles.VECTOR_MEMORY:
        return (
            f"a head of size {query.shape[3]} with {key.shape[1]} keys and {query.shape[1]} queries takes {held:,} "
            f"bytes, and a chip's vector memory has {_tiles.VECTOR_MEMORY:,}"
        )
    return None


def _pays(query: Any, *_: Any, **__: Any) -> bool:
    """Whether it is worth it: fewer queries would leave most of a block empty, and few of them have few scores."""
    return query.shape[1] >= _layout.ROWS


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
) -> tuple[jax.Array, Any]:
    """Entmax attention, 1 <= alpha <= 2; never more than one block of scores.

    Args:
      query: `(B, T, N, H)`, float32 or bfloat16.
      key, value: `(B, S, K, H)`, of its dtype; N is a multiple of K.
      bias: added to the scaled scores, four axes of size 1 or that of the scores `(B, N, T, S)`.
      scale: the factor on the products, a scalar.
      alpha: a scalar, or one a head, `(N, 1, 1)`.
      gamma: strength of the entropy, as alpha.
      mask: boolean, True where a query may see a key; axes as those of the bias.
      query_lengths, key_lengths: numbers of real queries and keys, int32 `(B,)`.
      is_causal, window: query t sees the keys s <= t, or t - left <= s <= t + right.
      interpret: what `pallas_call` takes under that name.

    Returns:
      `(B, T, N, H)` in the dtype of the query, zeros for a query that sees no key; and what `attention_bars` needs.
    """
    plan = _layout.plan_of(query, key, value, bias, mask, is_causal, window)
    inputs = _layout.inputs_of(plan, query, key, value, bias, scale, alpha, gamma)
    rules = _layout.rules_of(plan, query, key, mask, query_lengths, key_lengths)
    output, *kept = _forward(plan, interpret, inputs, rules)
    return jnp.swapaxes(output[:, :, : query.shape[1]], 1, 2), tuple(kept)


def _attention_bars(*args: Any, is_causal: bool, window: tuple[int, int] | None, interpret: Any = False) -> Any:
    """The cotangents of the first seven arguments of `attention`, from all of them, what it kept, and the output's."""
    *operands, mask, query_lengths, key_lengths, kept, output_bar = args
    query, key, value, bias, *_ = operands
    plan = _layout.plan_of(query, key, value, bias, mask, is_causal, window)
    inputs, back = jax.vjp(partial(_layout.inputs_of, plan), *operands)
    rules = _layout.rules_of(plan, query, key, mask, query_lengths, key_lengths)
    return back(_backward(plan, interpret, inputs, rules, kept, _layout.laid(output_bar, plan.queries)))


# --- The two directions ------------------------------------------------------------------------------------


def _forward(plan: Plan, interpret: Any, inputs: Inputs, rules: Rules) -> Any:
    q, k, v, *_ = inputs
    batch, heads = q.shape[:2]
    blocks, marks = plan.queries // plan.rows, whole(plan.keys // plan.columns, LANES)
    places = _layout.Places(plan, heads // k.shape[1])

    return _run(
        plan,
        interpret,
        partial(_flash.forward, plan),
        inputs=inputs,
        rules=rules,
        blocks=blocks,
        arrays=[(q, places.of_queries(q)), (k, places.all_keys(k)), (v, places.all_keys(v))],
        out=[
            ((batch, heads, plan.queries, v.shape[3]), q.dtype, places.of_queries(v)),
            ((batch, heads, STATISTICS, plan.queries), jnp.float32, places.of_rows()),
            ((batch, heads, blocks, 1, marks), jnp.int32, places.of_marks(marks)),
        ],
        scratch=[pltpu.VMEM((plan.keys // plan.columns, 1, plan.rows), jnp.float32)],
    )


def _backward(plan: Plan, interpret: Any, inputs: Inputs, rules: Rules, found: Any, output_bar: jax.Array) -> Inputs:
    run = partial(_run, plan, interpret, inputs=inputs, rules=rules)
    places = _layout.Places(plan, inputs.q.shape[1] // inputs.k.shape[1])
    dq, rows, *of_pairs = _along_keys(plan, run, places, inputs, found, output_bar)
    dk, dv, *of_sums = _along_queries(plan, run, places, inputs, found, rows, output_bar)

    def over_group(a: jax.Array, like: jax.Array) -> jax.Array:
        return a.reshape(*like.shape[:2], -1, *a.shape[2:]).sum(2).astype(like.dtype)

    bias_bar = None if inputs.bias is None else summed([*of_pairs, *of_sums][0], inputs.bias.shape)
    alpha_bar, scale_bar = (jnp.sum(rows[:, :, r], (0, 2)) for r in (ALPHA_BAR, SCALE_BAR))
    return Inputs(dq, over_group(dk, inputs.k), over_group(dv, inputs.v), alpha_bar, scale_bar, bias_bar)


def _along_keys(
    plan: Plan, run: Any, places: _layout.Places, inputs: Inputs, found: Any, output_bar: jax.Array
) -> list[jax.Array]:
    """For each block of queries: their cotangents, the rows that those of keys need, and those of a bias a query."""
    kept, marked = found
    q, k, v, *_, bias = inputs
    per_query = bias is not None and bias.shape[3] > 1

    def kernel(head, q, k, v, do, kept, marked, dq, rows, *rest):
        dz, i = rest if per_query else (None, *rest)
        _flash.backward_queries(plan, head, q, k, v, do, kept, marked, dq, rows, dz, i)

    out = [(q.shape, q.dtype, places.of_queries(q)), (kept.shape, jnp.float32, places.of_rows())]
    if per_query:
        pairs = *q.shape[:2], plan.keys, plan.queries
        out.append((pairs, jnp.float32, places.of_pairs(pairs, per_query=True)))
    return run(
        kernel,
        blocks=plan.queries // plan.rows,
        arrays=[
            (q, places.of_queries(q)),
            (k, places.all_keys(k)),
            (v, places.all_keys(v)),
            (output_bar, places.of_queries(v)),
            (kept, places.of_rows()),
            (marked, places.of_marks(marked.shape[-1])),
        ],
        out=out,
    )


def _along_queries(
    plan: Plan, run: Any, places: _layout.Places, inputs: Inputs, found: Any, rows: jax.Array, output_bar: jax.Array
) -> list[jax.Array]:
    """For each block of keys and each head: cotangents of keys, of values, and of a bias that queries share."""
    kept, marked = found
    q, k, v, *_, bias = inputs
    heads = q.shape[:2]
    per_key = bias is not None and bias.shape[3] == 1

    def kernel(head, q, k, v, do, kept, rows, marked, dk, dv, *rest):
        dz, j = rest if per_key else (None, *rest)
        _flash.backward_keys(plan, head, q, k, v, do, kept, rows, marked, dk, dv, dz, j)

    out = [((*heads, *a.shape[2:]), jnp.float32, places.of_keys(a, shared=False)) for a in (k, v)]
    if per_key:
        out.append(((*heads, plan.keys, 1), jnp.float32, places.of_keys(jnp.zeros((1, 1, 1, 1)), shared=False)))
    return run(
        kernel,
        blocks=plan.keys // plan.columns,
        arrays=[
            (q, places.all_queries(q)),
            (k, places.of_keys(k)),
            (v, places.of_keys(v)),
            (output_bar, places.all_queries(v)),
            (kept, places.all_rows()),
            (rows, places.all_rows()),
            (marked, places.all_marks(plan.queries // plan.rows, marked.shape[-1])),
        ],
        out=out,
        along_keys=True,
    )


def _run(
    plan: Plan,
    interpret: Any,
    kernel: Callable[..., None],
    *,
    inputs: Inputs,
    rules: Rules,
    blocks: int,
    arrays: list[tuple[jax.Array, pl.BlockSpec]],
    out: list[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    scratch: Any = (),
    along_keys: bool = False,
) -> list[jax.Array]:
    """Runs a kernel for each batch element, query head and block."""
    places = _layout.Places(plan, 1)
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
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=_tiles.MEMORY_LIMIT
        ),
        interpret=interpret,
    )
    return call(*scalars, *pairs, *[a for a, _ in arrays])


KERNELS = {
    "attention": Served(_attention, _refuses, _pays),
    "attention_bars": Served(_attention_bars, _refuses, _pays),
}
