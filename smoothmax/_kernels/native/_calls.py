"""The calls: each takes what the reference takes, brings the hyper-parameters into shape and calls its handler.

A handler reads batch axes and the slice, the same batch in all its operands. So `vmap` only adds an axis, and a
partitioner may cut the batch: what it needs to know is how many axes that is. Where there is one device and nothing to
cut, a hyper-parameter that all rows share is one row: to repeat it takes as long as to solve a small problem. A slice
that is itself cut over devices is put together first; `implementation="xla"` computes on it as it lies.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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


class Handler(NamedTuple):
    """What a handler takes and gives; each problem is that of the solver in plain JAX.

    Attributes:
      arrays: how many operands have the shape of the first one; the others are hyper-parameters.
      others: the dtypes of the results beside the first, which is like the first operand.
    """

    arrays: int = 1
    others: tuple[Any, ...] = ()


HANDLERS = {
    "threshold": Handler(),
    "p_norm": Handler(),
    "capped": Handler(),
    "threshold_product": Handler(arrays=2),
    "p_norm_product": Handler(arrays=2),
    "chain": Handler(others=(jnp.int8,)),
    "segment_mean": Handler(arrays=3),
    "ranks": Handler(others=(jnp.int32, jnp.int8)),
    "sort": Handler(others=(jnp.int32,)),
    "permutahedron": Handler(others=(jnp.int32, jnp.int8)),
    "group_mean": Handler(arrays=4),
}


def refuses(x: Any, *_: Any) -> str | None:
    """Why arguments such as these cannot be served, or None."""
    dtype = jnp.asarray(x).dtype if not hasattr(x, "dtype") else x.dtype
    if dtype not in _SERVED:
        return f"it computes in {' and '.join(DTYPES)}, not in {dtype}"
    if not all(isinstance(n, int) for n in jnp.shape(x)):
        # Programs of unknown sizes are made to be exported, to where there may be no such library.
        return f"it takes arrays of known sizes, not {jnp.shape(x)}"
    return None


def call(problem: str, *args: Any) -> Any:
    """Calls a handler; hyper-parameters have one value a slice or some in their last axis."""
    many, others = HANDLERS[problem]
    arrays, hyper = args[:many], args[many:]

    @custom_batching.custom_vmap
    def run(*operands):
        x, manual = operands[0], bool(jax.sharding.get_abstract_mesh().manual_axes)
        results = [jax.ShapeDtypeStruct(x.shape, dtype, **_placed(x)) for dtype in (x.dtype, *others)]
        with set_xla_metadata(num_batch_dims=str(x.ndim - 1)):
            results = jax.ffi.ffi_call(target(problem, str(x.dtype)), results)(*operands)
        if manual or _one_device():
            return tuple(results)
        # The partitioner sees through the call, but sharding propagates by operations that it knows.
        return tuple(shard_alike(x, result)[1] for result in results)

    @run.def_vmap
    def batched(size, is_batched, *operands):
        operands = [v if has_axis else v[None] for v, has_axis in zip(operands, is_batched, strict=True)]
        shape = (size, *operands[0].shape[1:])
        arrays = [jnp.broadcast_to(v, shape) for v in operands[:many]]
        return run(*arrays, *(_rows(v, shape) for v in operands[many:])), (True,) * (1 + len(others))

    x = arrays[0]
    operands = [*arrays, *(_rows(jnp.asarray(v, x.dtype), x.shape) for v in hyper)]
    results = run(*(varying_like(v, *operands) for v in operands))
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
