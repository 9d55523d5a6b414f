"""From the caller's arrays to slices and back: where scores are masked, cast and given their shape.

Everything below the public functions works on one form: scores of shape `(*batch, d)` in float32 or
float64, the slices along the last axis, and minus infinity where a position is deleted. A mask is
nothing else than that: `where=False` and a score of `-inf` mean the same thing, so one representation
carries both, and the solvers need no mask argument.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ._arrays import compute_dtype, varying_like
from ._parameters import Parametrized, Spec, guarded, index

Axis = int | tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How to bring results on slices back into the caller's shape and dtype."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any

    @property
    def _order(self) -> tuple[int, ...]:
        batch = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        return batch + self.axes

    @property
    def _batch(self) -> tuple[int, ...]:
        return tuple(n for i, n in enumerate(self.shape) if i not in self.axes)

    def squeezed(self, array: jax.Array) -> jax.Array:
        """Drops the batch axes of size 1 from an array of shape `(*batch, n)`, sizes 1 standing for any.

        XLA's CPU code for a loop over scores with such an axis is up to ten times slower.
        """
        batch = self._batch
        array = array.reshape((1,) * (1 + len(batch) - array.ndim) + array.shape)
        return array.squeeze(tuple(i for i, n in enumerate(batch) if n == 1))

    def slices(self, array: jax.Array) -> jax.Array:
        """Brings an array that broadcasts to `shape` into the form `(*batch, d)`; its axes of size 1 stay so."""
        array = array.reshape((1,) * (len(self.shape) - array.ndim) + array.shape)
        if any(array.shape[a] != 1 for a in self.axes):  # along the slice: then along all of it
            whole = tuple(n if i in self.axes else array.shape[i] for i, n in enumerate(self.shape))
            array = jnp.broadcast_to(array, whole)
        array = array.transpose(self._order)
        split = len(self.shape) - len(self.axes)
        return self.squeezed(array.reshape(*array.shape[:split], math.prod(array.shape[split:])))

    def weights(self, y: jax.Array) -> jax.Array:
        """Undoes `slices`."""
        y = y.reshape(*self._batch, *(self.shape[i] for i in self.axes))
        inverse = tuple(self._order.index(i) for i in range(len(self.shape)))
        return y.transpose(inverse).astype(self.dtype)

    def values(self, value: jax.Array) -> jax.Array:
        """Drops the slice axis from results of shape `(*batch, 1)`."""
        return value.reshape(self._batch).astype(self.dtype)


def to_slices(
    x: jax.typing.ArrayLike, axis: Axis, where: jax.typing.ArrayLike | None, *terms: Parametrized
) -> tuple[jax.Array, Any, Layout]:
    """Brings scores, mask and hyper-parameters into the solvers' form.

    Args:
      x: scores of any real dtype.
      axis: the slices: an int, a tuple (flattened in the array's own order) or None (all axes).
      where: boolean mask that broadcasts to `x`, or None.
      *terms: the regularizer, the domain; hyper-parameters that are arrays broadcast with `x` and have size 1 along
        `axis`, unless they are declared to run along it.

    Returns:
      The slices `(*batch, d)` without batch axes of size 1, the terms with their hyper-parameters shaped to match (NaN
      where out of range), and the layout.
    """
    x = jnp.asarray(x)
    axes = normal_axes(axis, x.shape)
    dtype, x = masked(x, where)

    # Counted from the end, so that leading axes gained from the hyper-parameters do not shift them.
    from_end = tuple(a - x.ndim for a in axes)
    shape = _joint_shape(x.shape, from_end, terms)
    x = jnp.broadcast_to(x, shape)
    layout = Layout(tuple(a + len(shape) for a in from_end), shape, dtype)

    def place(name: str, value: Any, spec: Spec) -> jax.Array:
        value = guarded(jnp.asarray(value).astype(x.dtype), spec.range)
        if value.ndim == 0:
            return value
        if spec.extent is not None:  # already laid out with the slice last
            return layout.squeezed(value)
        return layout.slices(value)

    # Weights that belong to different hyper-parameters are not shared by the devices of a mesh.
    slices = varying_like(layout.slices(x), *map(jnp.asarray, jax.tree.leaves(terms)))
    return slices, tuple(term.map_parameters(place) for term in terms), layout


def masked(x: jax.Array, where: jax.typing.ArrayLike | None) -> tuple[Any, jax.Array]:
    """The dtype of the results, and the scores to compute with, -inf where a position is deleted.

    What a deleted position holds is cleared before anything sees it, NaN included, which `jax_debug_nans` would find.
    """
    dtype, compute = dtypes(x)
    if where is not None:
        x = x.astype(dtype)
        x = jnp.where(mask(where, x), x, -jnp.inf)
    return dtype, x.astype(compute)


def dtypes(x: jax.Array) -> tuple[Any, Any]:
    """The dtype of the results, and the one to compute in."""
    if x.dtype == bool or jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"x must hold real scores, got dtype {x.dtype}: convert it, for example with x.astype(float)")
    dtype = jax.eval_shape(jnp.exp, jax.ShapeDtypeStruct((), x.dtype)).dtype  # integers become floats as JAX has it
    return dtype, compute_dtype(dtype)


def normal_axes(axis: Axis, shape: tuple[Any, ...], name: str = "x") -> tuple[int, ...]:
    """The axes in order, counted from 0, or an error that says what is wrong with them."""
    if not shape:
        raise ValueError(f"{name} must have at least one axis, got a scalar: wrap it, for example with {name}[None]")
    normal = []
    for a in range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,):
        try:
            a = index(a)
        except TypeError:
            raise TypeError(
                f"axis must be an integer, a tuple of integers or None, got {axis!r}: write axis=(0, 1) for two axes"
            ) from None
        if not -len(shape) <= a < len(shape):
            raise ValueError(
                f"axis={axis} is out of range for {name} of shape {shape}: use -{len(shape)} to {len(shape) - 1}, "
                "or None for all"
            )
        normal.append(a % len(shape))
    if not normal or len(set(normal)) < len(normal):
        raise ValueError(
            f"axis={axis} must name at least one axis of {name} and none of them twice: use None for all of them"
        )
    if any(shape[a] == 0 for a in normal):
        raise ValueError(
            f"{name} of shape {shape} is empty along axis={axis}: there is no distribution over nothing; "
            "drop such slices or pad them and mask the padding with `where`"
        )
    return tuple(sorted(normal))


def mask(where: jax.typing.ArrayLike, x: jax.Array) -> jax.Array:
    """The mask in the shape of `x`."""
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise TypeError(
            f"where must be boolean (True keeps a position), got dtype {where.dtype}: compare it, for example with "
            "`where != 0`"
        )
    try:
        return jnp.broadcast_to(where, x.shape)
    except ValueError:
        raise ValueError(
            f"where of shape {where.shape} does not broadcast to x of shape {x.shape}: insert axes of size 1, "
            "for example with where[:, None]"
        ) from None


def _joint_shape(shape: tuple[int, ...], axes: tuple[int, ...], terms: tuple[Parametrized, ...]) -> tuple[int, ...]:
    """The shape of `x` broadcast with all hyper-parameters; `axes` count from the end."""
    joint = shape
    length = math.prod(shape[a] for a in axes)
    batch = [a for a in range(-len(shape), 0) if a not in axes]

    def visit(name: str, value: Any, spec: Spec) -> Any:
        nonlocal joint
        found = jnp.shape(value)
        if spec.extent is not None:
            expected = spec.extent(length)
            sizes = dict(zip(reversed(batch), reversed(found[:-1]), strict=False))
            try:
                if not found or found[-1] != expected or len(found) > 1 + len(batch):
                    raise ValueError
                joint = jnp.broadcast_shapes(joint, tuple(sizes.get(a, 1) for a in range(-len(shape), 0)))
            except ValueError:
                raise ValueError(
                    f"{name} of shape {found} does not fit slices of length {length} of x of shape {shape}: give its "
                    f"last axis the size {expected}, and axes before it that broadcast with the {len(batch)} batch "
                    "axes of x"
                ) from None
            return value
        if not spec.by_position and any(-a <= len(found) and found[a] != 1 for a in axes):
            raise ValueError(
                f"{name} of shape {found} must have size 1 along the axis of the slices (x has shape {shape}): "
                "there is one value for each slice, for example alpha[..., None] for axis=-1"
            )
        try:
            joint = jnp.broadcast_shapes(joint, found)
            if any(joint[a] != shape[a] for a in axes):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{name} of shape {found} does not broadcast with x of shape {shape}: insert axes of size 1, for "
                "example alpha[:, None, None] for one value a head"
            ) from None
        return value

    for term in terms:
        term.map_parameters(visit)
    return joint
