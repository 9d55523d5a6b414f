"""Attention: the programs for one chip and for four, and long sequences by the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from facts import Facts
from jax.sharding import Mesh, PartitionSpec
from laws import Program, alone, array, bytes_of, no_spills, only_kernels, sorts_only_where, within

import smoothmax as sm

# Batch, queries and keys, heads, head size, and the block of queries.
BATCH, LENGTH, HEADS, HEAD_SIZE, BLOCK = 4, 512, 4, 64, 128
# Queries and keys where scores could not be stored, and where they could.
LONG, SHORT = 32768, 2048
FLAG = {"pred[]", "s32[]", "u32[]"}  # whether some device still iterates, as a platform writes a truth value


def everything(platform: str) -> Iterator[Program]:
    """All programs of attention for a kind of machine."""
    yield from _one_chip(platform)
    yield from _four_chips(platform)
    yield from _long(platform)


def _qkv(mesh: Mesh, queries: int | None = None, keys: int | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
    shape = BATCH, LENGTH, HEADS, HEAD_SIZE
    return array(mesh, *shape, axis=queries), array(mesh, *shape, axis=keys), array(mesh, *shape, axis=keys)


def _with_gradient(mapping, block_size=None, **options):
    attend = partial(sm.dot_product_attention, mapping=mapping, block_size=block_size, **options)

    def function(q, k, v):
        output, pull = jax.vjp(attend, q, k, v)
        return output, pull(output)

    return function


def _with_alpha(q, k, v, alpha):
    def attend(q, k, v, alpha):
        return sm.dot_product_attention(q, k, v, mapping=partial(sm.entmax, alpha=alpha), block_size=BLOCK)

    output, pull = jax.vjp(attend, q, k, v, alpha)
    return output, pull(output)


def _one_chip(platform: str) -> Iterator[Program]:
    """On one chip. In blocks, less of the size of the scores is left; a TPU needs no blocks for that."""
    scores = bytes_of(BATCH, HEADS, LENGTH, LENGTH)

    def law(bound, what, facts):
        yield from alone(facts)
        yield from sorts_only_where(facts, False)
        yield from within(facts.temporary, bound, what)

    whole = partial(law, 6 * scores, "6 arrays of scores")
    less = partial(law, 2 * scores, "two arrays of scores")  # a block's arrays are a quarter of them each
    # By name, so that a TPU too is asked for the form in plain JAX, which is what several chips get.
    plain = partial(_with_gradient, implementation="xla")
    yield Program("attention, softmax", plain(sm.softmax), _qkv, whole)
    yield Program("attention, entmax", plain(sm.entmax), _qkv, whole, may_spill=True)
    yield Program("attention in blocks, causal", plain(sm.sparsemax, BLOCK, is_causal=True), _qkv, less)
    if platform == "tpu":
        yield Program("attention by the kernels, softmax", _with_gradient(sm.softmax), _qkv, _flash)
        # A traced alpha may be above 2, which the kernels leave to plain JAX in blocks: this compiles both.
        traced = lambda mesh: (*_qkv(mesh), array(mesh, HEADS, 1, 1))
        yield Program("attention in blocks, an alpha a head", _with_alpha, traced, less, may_spill=True)


def _flash(facts: Facts) -> Iterator[str]:
    """One kernel forward, two backward; beside them what is laid out for them, in rows of 128 lanes."""
    yield from alone(facts)
    yield from only_kernels(facts, 3)
    yield from within(facts.temporary, 12 * bytes_of(BATCH, HEADS, LENGTH, 128), "12 arrays of queries")


def _four_chips(platform: str) -> Iterator[Program]:
    """On four chips. Under `shard_map` nothing is sent; under jit a flag, and over the keys numbers by all-reduce."""

    def nothing(kernels, facts):
        if facts.sent:
            yield f"sends {facts.sent}, but nothing needs to be"
        yield from only_kernels(facts, kernels)

    def flags(facts):
        if facts.sent.keys() - {"all-reduce"} or facts.sent.get("all-reduce", set()) - FLAG:
            yield f"sends {facts.sent}, but only the flag that a device still iterates needs to be"

    def all_reduces(facts):
        if facts.sent.keys() != {"all-reduce"}:
            yield f"sends {facts.sent}, but the keys need all-reduces and nothing else"

    # A threshold by a kernel for all of attention, a chain by the kernels that the mapping asks for.
    for name, mapping in (("sparsemax", sm.sparsemax), ("fusedmax", sm.fusedmax)):
        for over, axis in (("batch", 0), ("heads", 2)):
            place, spec = partial(_qkv, queries=axis, keys=axis), PartitionSpec(*[None] * axis, "devices")
            whole = _with_gradient(mapping)
            divided = jax.shard_map(whole, in_specs=spec, out_specs=spec)
            # Of the loops of a chain one program each is enough.
            if mapping is sm.sparsemax or over == "batch":
                yield Program(f"attention over {over}, {name}", whole, place, flags, chips=4)
            if mapping is sm.sparsemax or over == "heads":
                # All of attention or a chain: a kernel forward and two backward. On a GPU the mapping asks for one.
                law = partial(nothing, 3 if platform == "tpu" or mapping is sm.fusedmax else 1)
                yield Program(f"attention over {over} by shard_map, {name}", divided, place, law, chips=4)
    # A fused row is one sequence, and blocks slice the keys: over the keys go whole rows of a threshold mapping.
    place = partial(_qkv, keys=1)
    yield Program("attention over keys", _with_gradient(sm.sparsemax), place, all_reduces, chips=4)
    place = partial(_qkv, queries=0, keys=0)
    yield Program("attention in blocks over batch", _with_gradient(sm.sparsemax, BLOCK), place, flags, chips=4)


def _long(platform: str) -> Iterator[Program]:
    """By name, with the gradients of everything: a traced alpha needs no other form then."""

    def law(most, what, facts, has_bias=True):
        yield from alone(facts)
        # One forward, one along the keys, one along the queries; on GPUs one more forward, one for the scalars, and one
        # for the bias.
        yield from only_kernels(facts, 3 if platform == "tpu" else 5 + has_bias)
        yield from no_spills(facts)
        yield from within(facts.temporary, most, what)

    scores = bytes_of(2, LONG, LONG)
    few = partial(law, scores / 50, "a fiftieth of the scores", has_bias=False)
    some = partial(law, scores / 30, "a 30th of the scores")
    name = f"kernel: attention, {LONG} keys"
    yield Program(f"{name}, an alpha a head", *_long_attention(LONG, jnp.bfloat16, options=False), few)
    pairs = partial(law, 6 * bytes_of(2, SHORT, SHORT), "6 arrays of scores")
    arguments = _long_attention(SHORT, jnp.bfloat16, options=True, queries=SHORT)
    yield Program("kernel: attention, a bias and a mask for each query", *arguments, pairs)
    if platform != "tpu":
        wide = _long_attention(LONG, jnp.bfloat16, options=True, size=128)
        yield Program(f"{name}, all options, heads of 128", *wide, some)
        return
    for dtype in (jnp.bfloat16, jnp.float32):
        yield Program(f"{name}, all options, {jnp.dtype(dtype)}", *_long_attention(LONG, dtype, options=True), some)


def _long_attention(length: int, dtype: Any, options: bool, size: int = HEAD_SIZE, queries: int = 1) -> tuple[Any, Any]:
    """Attention with its gradient, and its arguments: two heads that share keys. Bias and mask are for all queries, or
    for so many."""

    def function(q, k, v, alpha, gamma, bias, mask, lengths):
        def attend(q, k, v, alpha, gamma, bias):
            rules = {"key_value_seq_lengths": lengths, "local_window_size": (length // 2, 0)} if options else {}
            mapping = partial(sm.entmax, alpha=alpha, gamma=gamma)
            return sm.dot_product_attention(
                q, k, v, bias, mask, mapping=mapping, is_causal=True, implementation="pallas", **rules
            )

        output, pull = jax.vjp(attend, q, k, v, alpha, gamma, bias)
        return output, pull(output)

    def arguments(mesh):
        q, kv = ((1, length, heads, size) for heads in (2, 1))
        qkv = (array(mesh, *shape, dtype=dtype) for shape in (q, kv, kv))
        bias, mask = (array(mesh, 1, 1, queries, length, dtype=dtype) for dtype in (jnp.float32, jnp.bool_))
        lengths = array(mesh, 1, dtype=jnp.int32)
        return *qkv, array(mesh, 2, 1, 1), array(mesh, 2, 1, 1), *((bias, mask, lengths) if options else (None,) * 3)

    return function, arguments
