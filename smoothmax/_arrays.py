"""What the numerics are written with: sums and maxima along a slice, rounding, and arrays on a device mesh."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def as_array(name: str, x: Any) -> Any:
    """The argument of that name as something with a shape and a dtype, or an error.

    An array is left alone: to convert it would look at what a mask hides.
    """
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return x
    try:
        return jnp.asarray(None if isinstance(x, str) else x)  # of text NumPy thinks that it names a dtype
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {reprlib.repr(x)}: pass one, or numbers in lists") from error


def floating(name: str, array: jax.typing.ArrayLike) -> jax.Array:
    """The argument of that name as an array of a floating dtype, or an error."""
    array = jnp.asarray(as_array(name, array))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}: convert it, as in {name} * 1.0")
    return array


def check_real(name: str, array: jax.Array) -> None:
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got dtype {array.dtype}: take the real part")


def no_cotangent(a: jax.Array) -> Any:
    """What JAX takes for the cotangent of a number that has no derivative."""
    return np.zeros(a.shape, jax.dtypes.float0)


def total(v: jax.Array) -> jax.Array:
    """The sum along the slice, `(*batch, d)` to `(*batch, 1)`."""
    return jnp.sum(v, axis=-1, keepdims=True)


def greatest(x: jax.Array, axis: int = -1) -> jax.Array:
    """The largest number along an axis, which stays with size 1; +inf where there is a NaN.

    Since jaxlib 0.10, XLA's CPU code for a maximum forgets NaN in arrays of 4,096 numbers or more.
    """
    return jnp.max(jnp.where(x < jnp.inf, x, jnp.inf), axis=axis, keepdims=True)


def safe_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, and 0 where both are 0: what an empty slice has for a mean."""
    return numerator / jnp.where(denominator == 0, jnp.ones_like(denominator), denominator)


def compute_dtype(dtype: Any) -> Any:
    """What to compute in where arrays have this dtype: float32 at least."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def eps(x: jax.Array) -> float:
    """The relative distance between two neighbouring numbers of the dtype of `x`."""
    return float(jnp.finfo(x.dtype).eps)


def tiny(x: jax.Array) -> float:
    """The least positive number of the dtype of `x` that is not subnormal."""
    return float(jnp.finfo(x.dtype).tiny)


def between(low: jax.Array, high: jax.Array) -> jax.Array:
    """The float in the middle of all floats from `low` to `high`.

    Halving a bracket so meets two neighbouring floats within as many steps as a float has bits, whatever the scale.
    """
    integer = jnp.int32 if low.dtype == jnp.float32 else jnp.int64

    def count(v: jax.Array) -> jax.Array:
        """Floats counted from 0, the negative ones below it."""
        bits = lax.bitcast_convert_type(v, integer)
        return jnp.where(bits < 0, jnp.iinfo(integer).min - bits, bits)

    a, b = count(low), count(high)
    middle = (a & b) + ((a ^ b) >> 1)  # (a + b) / 2 without overflow
    bits = jnp.where(middle < 0, jnp.iinfo(integer).min - middle, middle)
    return lax.bitcast_convert_type(bits, low.dtype)


def varying_like(x: jax.Array, *others: Any) -> jax.Array:
    """`x` itself; inside `jax.shard_map` it varies over every mesh axis over which one of the others does.

    A loop must start from what it ends with, and a derivative with respect to what devices share is a sum over them: so
    an array that is made inside a program has to say over which axes it will differ.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x
    over = frozenset().union(*(_varies_over(leaf) for leaf in jax.tree.leaves(others) if hasattr(leaf, "dtype")))
    missing = tuple(sorted(over - _varies_over(x)))
    if not missing:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)  # its name before JAX 0.9  # pyright: ignore[reportAttributeAccessIssue]


def by_partitioner(function: Callable[..., jax.Array], x: Any, without: Sequence[int] = ()) -> Callable[..., jax.Array]:
    """The function, whose result is divided among devices as `x` is, less some axes. On a mesh with explicit axes, as
    `jax.make_mesh` makes them, each operation would have to be told how; so the partitioner decides inside."""
    mesh, spec = jax.sharding.get_abstract_mesh(), (None,) * jnp.ndim(x)
    if isinstance(x, jax.Array):
        placed = jax.typeof(x).sharding
        mesh, spec = placed.mesh if mesh.empty else mesh, placed.spec
    if jax.sharding.AxisType.Explicit not in mesh.axis_types:
        return function

    def divided(*args: Any) -> Any:
        kept = jax.sharding.PartitionSpec(*(names for axis, names in enumerate(spec) if axis not in without))
        with jax.sharding.use_abstract_mesh(mesh):  # that of the array, where none is in use
            return jax.sharding.auto_axes(function, out_sharding=kept)(*args)

    return divided


def _varies_over(x: jax.Array) -> frozenset[Any]:
    """The mesh axes over which an array differs, inside `jax.shard_map`."""
    aval = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.manual_axis_type.varying  # its name from JAX 0.10 on
