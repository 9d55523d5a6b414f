"""Hyper-parameters: what they may be, checked when a value is known and guarded when it is traced; in one place.

Regularizers and domains are frozen dataclasses and pytrees. Their fields made by `parameter` are hyper-parameters: each
declares its range and how it lies along a slice, once. `Parametrized` checks known values when an object is made;
`_slices.to_slices` visits every hyper-parameter of a call, and there a traced value out of range becomes NaN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._cache import as_it_is

Parameter = float | jax.Array
NUMERIC = (int, float, np.ndarray, np.generic, jax.Array)  # what a hyper-parameter may be; tracers are arrays


class Range(NamedTuple):
    """The values that a hyper-parameter may take, as a test and in words."""

    contains: Callable[[Any], Any]
    words: str


POSITIVE = Range(lambda v: (v > 0) & (v < np.inf), "positive and finite")
FINITE = Range(lambda v: abs(v) < np.inf, "finite")
NON_NEGATIVE = Range(lambda v: (v >= 0) & (v < np.inf), "zero or positive, and finite")


class Spec(NamedTuple):
    """What a field declares about its hyper-parameter.

    Attributes:
      range: the values allowed.
      extent: None for one value a slice; otherwise from the length of a slice to the number of values along it.
      by_position: whether an array may, instead, broadcast with the scores and so have one value a position.
    """

    range: Range
    extent: Callable[[int], int] | None = None
    by_position: bool = False


Visit = Callable[[str, Any, Spec], Any]


def parameter(
    range: Range, *, extent: Callable[[int], int] | None = None, by_position: bool = False, **default: Any
) -> Any:
    """Declares a hyper-parameter; the arguments are those of `Spec`, and `default=...` as for a dataclass field."""
    return dataclasses.field(metadata={"spec": Spec(range, extent, by_position)}, **default)


def index(value: Any) -> int:
    """`operator.index`, for which a boolean is no integer; raises TypeError."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def known(value: Any) -> bool:
    """Whether a value can be looked at: it is not traced, nor a placeholder that JAX puts into a tree."""
    return isinstance(value, NUMERIC) and not isinstance(value, Tracer)


def checked(name: str, value: Any, range: Range) -> Any:
    """The hyper-parameter as it is kept: a number or an array, also of a list or of what a framework wraps around one.

    Raises if it is neither, does not hold real numbers, or is known to lie outside its range.
    """
    if hasattr(value, "__jax_array__") and not isinstance(value, NUMERIC):
        value = value.__jax_array__()
    if isinstance(value, (list, tuple)):
        with contextlib.suppress(TypeError, ValueError):
            value = np.asarray(value, dtype=float)
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "dtype")):
        raise TypeError(
            f"{name} must be a real number or an array, got {value!r}: choose a value that is {range.words}"
        )
    dtype = getattr(value, "dtype", np.dtype(float))
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers, got dtype {dtype}: convert it")
    if known(value) and not np.all(range.contains(np.asarray(value, dtype=np.float64))):
        raise ValueError(f"{name} must be {range.words}, got {value}: choose a value in that range")
    return value


def guarded(value: jax.Array, range: Range) -> jax.Array:
    """NaN where a value lies outside its range: a traced value cannot be refused, but must not look right."""
    return jnp.where(range.contains(value), value, jnp.nan)


def placed(value: Parameter) -> jax.Array:
    """A hyper-parameter as the methods on slices see it: `to_slices` made it an array."""
    return jnp.asarray(value)


def as_floats(tree: Any) -> Any:
    """Lets alpha=2 and alpha=2.0 share one compilation, and both have a gradient."""
    return jax.tree.map(lambda leaf: float(leaf) if type(leaf) is int else leaf, tree)


# --- Frozen dataclasses that are pytrees -------------------------------------------------------------------


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(parameter, dataclasses.field))
def tree_class(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree; fields with metadata `static` are part of its structure.

    Unflattening does not run `__init__`: JAX also builds trees of tracers, shapes and placeholders, and the values
    were checked when the user made the object.
    """
    made: Any = dataclasses.dataclass(frozen=True, repr=cls.__repr__ is object.__repr__)(cls)
    static = [f.name for f in dataclasses.fields(made) if f.metadata.get("static")]
    leaves = [f.name for f in dataclasses.fields(made) if f.name not in static]

    def flatten(self: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(as_it_is(getattr(self, name)) for name in static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        return build(made, dict(zip((*leaves, *static), (*children, *aux), strict=True)))

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made


def build(cls: type[T], fields: dict[str, Any]) -> T:
    """An instance with these fields, without the checks of `__init__`."""
    self = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(self, name, value)
    return self


class Parametrized:
    """A tree class with hyper-parameters: checks them when made, rewrites them one by one, prints them."""

    # Lets a NumPy array on the left of `*` be the strength, instead of multiplying element by element.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        for f in _fields(self):
            spec: Spec | None = f.metadata.get("spec")
            name, value = f"{f.name} of {type(self).__name__}", getattr(self, f.name)
            if spec is None or (value is None and f.default is None):
                continue
            if spec.extent is not None and isinstance(value, NUMERIC) and np.ndim(value) == 0:
                raise ValueError(
                    f"{name} must be an array that runs along the slice, got {value}: multiply by a scalar"
                )
            object.__setattr__(self, f.name, checked(name, value, spec.range))

    def map_parameters(self, visit: Visit) -> Self:
        """The same object with `visit(name, value, spec)` in place of each hyper-parameter."""

        def rewrite(f: dataclasses.Field[Any], value: Any) -> Any:
            if isinstance(value, Parametrized):
                return value.map_parameters(visit)
            if isinstance(value, tuple) and any(isinstance(item, Parametrized) for item in value):
                return tuple(item.map_parameters(visit) for item in value)
            if value is None or "spec" not in f.metadata:
                return value
            return visit(f.name, value, f.metadata["spec"])

        return build(type(self), {f.name: rewrite(f, getattr(self, f.name)) for f in _fields(self)})

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in _fields(self) if getattr(self, f.name) is not None)
        return f"{type(self).__name__}({', '.join(shown)})"


def _fields(self: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(self)
