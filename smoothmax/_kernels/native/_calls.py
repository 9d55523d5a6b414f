"""The calls: each takes what the reference takes, brings the hyper-parameters into shape and calls its handler.

A handler reads batch axes and the slice, the same batch in all its operands. So `vmap` only adds an axis, and a
partitioner may cut the batch: what it needs to know is how many axes that is. Where there is one device and nothing to
cut, a hyper-parameter that all rows share is one row: to repeat it takes as long as to solve a small problem. A slice
that is itself cut over devices is put together first; `implementation="xla"` computes on it as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_batching
from jax.experimental.xla_metadata import set_xla_metadata

from ..._arrays import varying_like
from ._library import DTYPES, target

try:
    from jax.experimental.shard_alike import shard_alike
except ImportError:  # JAX 0.12 has none

    def shard_alike(x: Any, y: Any) -> tuple[Any, Any]:
        """The same arrays, y through an operation on both, along which sharding propagates. It changes nothing:
        where x is NaN, so is its whole slice, and integers of that slice mean nothing."""
        return x, jnp.where(x != x, x if y.dtype == x.dtype else jnp.zeros((), y.dtype), y)


_SERVED = tuple(jnp.dtype(d) for d in DTYPES)


def threshold(x: jax.Array, gamma: jax.Array, alpha: jax.Array) -> jax.Array:
    """`smoothmax._solvers.tsallis_weights`."""
    return _call("threshold", (x,), (gamma, alpha))


def p_norm(x: jax.Array, gamma: jax.Array, p: jax.Array) -> jax.Array:
    """`smoothmax._solvers.p_norm_weights`."""
    return _call("p_norm", (x,), (gamma, p))


def capped(x: jax.Array, gamma: jax.Array, alpha: jax.Array, total: jax.Array, upper: jax.Array) -> jax.Array:
    """`smoothmax._solvers.capped_weights` for a Tsallis entropy, or for Fermi-Dirac's where alpha is 0."""
    return _call("capped", (x,), (gamma, alpha, total, upper))


def threshold_product(y: jax.Array, v: jax.Array, alpha: jax.Array, scale: jax.Array) -> jax.Array:
    """`smoothmax._solvers.threshold_product`."""
    return _call("threshold_product", (y, v), (alpha, scale))


def p_norm_product(y: jax.Array, v: jax.Array, p: jax.Array, scale: jax.Array) -> jax.Array:
    """`smoothmax._solvers.p_norm_product`."""
    return _call("p_norm_product", (y, v), (p, scale))


def chain(x: jax.Array, up: jax.Array, down: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`smoothmax._solvers.chain_prox`."""
    return _call("chain", (x,), (up, down), jnp.int8)


def segment_mean(v: jax.Array, jumps: jax.Array, weight: jax.Array) -> jax.Array:
    """`smoothmax._solvers.segment_mean`."""
    return _call("segment_mean", (v, jumps, weight.astype(v.dtype)), ())


def ranks(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`smoothmax._solvers.sorted_prox`."""
    return _call("ranks", (x,), (_by_position(weights, x),), jnp.int32, jnp.int8)


def sort(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`smoothmax._solvers.sort_ranked`."""
    return _call("sort", (x,), (), jnp.int32)


def permutahedron(x: jax.Array, gamma: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`smoothmax._solvers.project_permutahedron`."""
    return _call("permutahedron", (x,), (gamma, _by_position(weights, x)), jnp.int32, jnp.int8)


def group_mean(v: jax.Array, order: jax.Array, ties: jax.Array, weight: jax.Array) -> jax.Array:
    """`smoothmax._solvers.group_mean`."""
    return _call("group_mean", (v, order, ties, weight.astype(v.dtype)), ())


def refuses(x: Any, *_: Any) -> str | None:
    """Why arguments such as these cannot be served, or None."""
    dtype = jnp.asarray(x).dtype if not hasattr(x, "dtype") else x.dtype
    if dtype not in _SERVED:
        return f"it computes in {' and '.join(DTYPES)}, not in {dtype}"
    if not all(isinstance(n, int) for n in jnp.shape(x)):
        # Programs of unknown sizes are made to be exported, to where there may be no such library.
        return f"it takes arrays of known sizes, not {jnp.shape(x)}"
    return None


def _by_position(values: Any, x: jax.Array) -> jax.Array:
    """Hyper-parameters of the positions, one for each in the last axis."""
    values = jnp.asarray(values, x.dtype)
    return jnp.broadcast_to(values, (*values.shape[:-1], x.shape[-1]))


def _call(problem: str, arrays: Sequence[jax.Array], hyper: Sequence[Any], *others: Any) -> Any:
    """Calls a handler with arrays of the first one's shape and with hyper-parameters, which have one value a slice or
    some in their last axis. Its first result is like the first array, the others have its shape and these dtypes."""
    many = len(arrays)

    @custom_batching.custom_vmap
    def call(*operands):
        x, manual = operands[0], bool(jax.sharding.get_abstract_mesh().manual_axes)
        results = [jax.ShapeDtypeStruct(x.shape, dtype, **_placed(x)) for dtype in (x.dtype, *others)]
        with set_xla_metadata(num_batch_dims=str(x.ndim - 1)):
            results = jax.ffi.ffi_call(target(problem, str(x.dtype)), results)(*operands)
        if manual or _one_device():
            return tuple(results)
        # The partitioner sees through the call, but sharding propagates by operations that it knows.
        return tuple(shard_alike(x, result)[1] for result in results)

    @call.def_vmap
    def batched(size, is_batched, *operands):
        operands = [v if has_axis else v[None] for v, has_axis in zip(operands, is_batched, strict=True)]
        shape = (size, *operands[0].shape[1:])
        arrays = [jnp.broadcast_to(v, shape) for v in operands[:many]]
        return call(*arrays, *(_rows(v, shape) for v in operands[many:])), (True,) * (1 + len(others))

    x = arrays[0]
    operands = [*arrays, *(_rows(jnp.asarray(v, x.dtype), x.shape) for v in hyper)]
    results = call(*(varying_like(v, *operands) for v in operands))
    return results if others else results[0]


def _rows(value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A hyper-parameter with as many axes as `shape`, and with its batch; or one row, where that may serve for all."""
    *batch, size = value.shape or (1,)
    lacking = (1,) * (len(shape) - 1 - len(batch))
    one_row = _one_device() and math.prod(batch) == 1
    return value.reshape(*lacking, *batch, size) if one_row else jnp.broadcast_to(value, (*shape[:-1], size))


def _one_device() -> bool:
    """Whether no partitioner can cut a program for the CPU."""
    return jax.device_count("cpu") == 1


def _placed(x: jax.Array) -> dict[str, Any]:
    """What a result has in common with x: the mesh axes over which it varies in `shard_map`, and its explicit
    sharding."""
    kind = jax.typeof(x)
    names = ("manual_axis_type", "vma")  # from JAX 0.10 on, and before
    placed = {name: getattr(kind, name) for name in names if hasattr(kind, name)}
    return placed if kind.sharding.mesh.empty else placed | {"sharding": kind.sharding}
