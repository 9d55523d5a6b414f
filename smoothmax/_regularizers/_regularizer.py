"""What a regularizer is: a pytree of hyper-parameters and an algebra.

    gamma * (base + lam * penalty)

A *base* makes the problem strictly convex and can be solved alone. A *penalty* shapes the solution and is only
ever added to a base. Expressions are kept as they were written (`Scaled`, `Sum`), so that their leaves are the
hyper-parameters that the user knows; `Regularizer.terms` multiplies them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._slices import Axis, Extent, to_slices

Parameter = float | jax.Array
NUMERIC = (int, float, np.ndarray, np.generic, jax.Array)  # what a hyper-parameter may be; tracers are arrays


# --- Hyper-parameters --------------------------------------------------------------------------------------


class Domain(NamedTuple):
    """The values that a hyper-parameter may take, as a test and in words."""

    contains: Callable[[Any], Any]
    words: str


POSITIVE = Domain(lambda v: (v > 0) & (v < np.inf), "positive and finite")
NON_NEGATIVE = Domain(lambda v: (v >= 0) & (v < np.inf), "zero or positive, and finite")


def parameter(domain: Domain, *, extent: Extent | None = None, **default: Any) -> Any:
    """Declares a hyper-parameter of a regularizer.

    Args:
      domain: the values allowed.
      extent: None for one value a slice; otherwise the number of values that run along a slice of length d.
      **default: `default=...`, as for a dataclass field.
    """
    return dataclasses.field(metadata={"domain": domain, "extent": extent}, **default)


def check(name: str, value: Any, domain: Domain) -> None:
    """Raises if a hyper-parameter whose value is known lies outside its domain."""
    if isinstance(value, Tracer) or not isinstance(value, NUMERIC):
        return
    if not np.all(domain.contains(np.asarray(value, dtype=np.float64))):
        raise ValueError(f"{name} must be {domain.words}, got {value}: choose a value in that range")


def guarded(value: Any, domain: Domain) -> jax.Array:
    """NaN where a value lies outside its domain: a traced value cannot be refused, but must not look right."""
    value = jnp.asarray(value)
    return jnp.where(domain.contains(value), value, jnp.nan)


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(parameter, dataclasses.field))
def regularizer(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree; fields with metadata `static` are part of its structure.

    Unflattening does not run `__init__`: JAX also builds trees of tracers, shapes and placeholders, and the values
    were checked when the user made the object.
    """
    made: Any = dataclasses.dataclass(frozen=True, repr=False)(cls)
    static = [f.name for f in dataclasses.fields(made) if f.metadata.get("static")]
    leaves = [f.name for f in dataclasses.fields(made) if f.name not in static]

    def flatten(self: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return children, tuple(getattr(self, name) for name in static)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        return _build(made, dict(zip((*leaves, *static), (*children, *aux), strict=True)))

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made


def _build(cls: type[T], fields: dict[str, Any]) -> T:
    """An instance with these fields, without the checks of `__init__`."""
    self = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(self, name, value)
    return self


# --- The algebra -------------------------------------------------------------------------------------------


class Regularizer:
    """A convex function of a distribution: combine with `+` and `*`, call for its value, give to `conjugate`.

    Regularizers are frozen dataclasses and pytrees whose leaves are the hyper-parameters. They cross `jax.jit` as
    arguments, and are hashable when the hyper-parameters are Python numbers.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> omega = 2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation())
      >>> print(omega)
      2.0 * (Tsallis(alpha=1.5) + 0.1 * TotalVariation())
      >>> print(f"{omega(jnp.array([0.2, 0.8, 0.0])):.3f}")
      -0.240

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """

    # Lets a NumPy array on the left of `*` be the strength, instead of multiplying element by element.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            name, value = f"{f.name} of {type(self).__name__}", getattr(self, f.name)
            if "domain" not in f.metadata or value is None:
                continue
            if isinstance(value, (list, tuple)):
                value = np.asarray(value, dtype=float)
                object.__setattr__(self, f.name, value)
            if f.metadata["extent"] is not None and np.ndim(value) == 0:
                raise ValueError(
                    f"{name} must be an array that runs along the slice, got {value}: multiply by a scalar"
                )
            check(name, value, f.metadata["domain"])

    def __call__(
        self, y: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """The value at each distribution `y` along `axis`; positions with `where=False` are left out."""
        slices, omega, layout = to_slices(y, axis, where, self)
        allowed = slices > -jnp.inf
        slices = jnp.where(allowed, slices, 0)
        value = sum(strength * atom.value(slices, allowed) for strength, atom in omega.terms())
        return layout.values(jnp.asarray(value))

    def atoms(self) -> Iterator[Regularizer]:
        """The bases and penalties of the expression."""
        yield self

    def terms(self) -> Iterator[tuple[Parameter, Regularizer]]:
        """The expression multiplied out: each base or penalty with its strength."""
        yield 1.0, self

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        """The value on slices `(*batch, d)`, as `(*batch, 1)`; `y` is 0 where not `allowed`."""
        raise NotImplementedError

    def map_parameters(self, visit: Callable[[str, Any, Extent | None], Any]) -> Self:
        """The same expression with `visit(name, value, extent)` in place of each hyper-parameter."""

        def rewrite(f: dataclasses.Field[Any], value: Any) -> Any:
            if isinstance(value, Regularizer):
                return value.map_parameters(visit)
            if value is None or "domain" not in f.metadata:
                return value
            return visit(f.name, value, f.metadata["extent"])

        children = {f.name: rewrite(f, getattr(self, f.name)) for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        return _build(type(self), children)

    def __add__(self, other: Regularizer) -> Sum:
        if not isinstance(other, Regularizer):
            return NotImplemented
        return Sum((*_summands(self), *_summands(other)))

    def __mul__(self, strength: Parameter) -> Scaled:
        if not isinstance(strength, NUMERIC):
            return NotImplemented
        return Scaled(strength, self)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields if getattr(self, f.name) is not None)
        return f"{type(self).__name__}({', '.join(shown)})"


class Base(Regularizer):
    """A strictly convex regularizer, which can be solved alone. Every method works on slices `(*batch, d)`."""

    composes = True
    """Whether `Pi_{base + penalty}(x) = Pi_base(prox(x))`: one increasing map turns every score into its weight."""

    counts_zeros = False
    """Whether `value` depends on which of the positions of weight 0 are allowed, as where phi(0) is not 0."""

    def solve(self, z: jax.Array) -> jax.Array:
        """The weights at strength 1, for scores `z` with -inf at deleted positions."""
        raise NotImplementedError

    def gradient(self, y: jax.Array) -> jax.Array:
        """grad Omega(y) on the support, up to a constant; 0 off the support."""
        raise NotImplementedError

    def product(self, y: jax.Array, v: jax.Array) -> jax.Array:
        """J v at strength 1, where J is the Jacobian of `solve` at the solution `y`."""
        raise NotImplementedError


class Penalty(Regularizer):
    """A convex function that depends on the order and the ties of the coordinates, and scales with them."""


@regularizer
class Scaled(Regularizer):
    """`strength * inner`."""

    strength: Parameter
    inner: Regularizer

    def __post_init__(self) -> None:
        check(self._name, self.strength, self._domain)

    @property
    def _scales_base(self) -> bool:
        return any(isinstance(atom, Base) for atom in self.atoms())

    @property
    def _name(self) -> str:
        return "gamma" if self._scales_base else "lam"

    @property
    def _domain(self) -> Domain:
        return POSITIVE if self._scales_base else NON_NEGATIVE

    def atoms(self) -> Iterator[Regularizer]:
        return self.inner.atoms()

    def terms(self) -> Iterator[tuple[Parameter, Regularizer]]:
        outer = guarded(self.strength, self._domain)
        for strength, atom in self.inner.terms():
            yield outer * strength, atom

    def map_parameters(self, visit: Callable[[str, Any, Extent | None], Any]) -> Scaled:
        fields = {"strength": visit(self._name, self.strength, None), "inner": self.inner.map_parameters(visit)}
        return _build(Scaled, fields)

    def __repr__(self) -> str:
        inner = f"({self.inner!r})" if isinstance(self.inner, Sum) else repr(self.inner)
        return f"{self.strength!r} * {inner}"


@regularizer
class Sum(Regularizer):
    """One base plus penalties, or penalties alone that wait for a base."""

    summands: tuple[Regularizer, ...]

    def __post_init__(self) -> None:
        bases = [atom for atom in self.atoms() if isinstance(atom, Base)]
        if len(bases) > 1:
            raise ValueError(
                f"a sum holds one base, got {' and '.join(map(repr, bases))}: keep one of them, or write the sum as a "
                "function of y and give that to `conjugate`"
            )
        penalties = [atom for atom in self.atoms() if isinstance(atom, Penalty)]
        if penalties and not all(base.composes for base in bases):
            raise ValueError(
                f"{bases[0]!r} does not take penalties, got {' and '.join(map(repr, penalties))}: its weights are "
                "not one increasing function of score - tau; use smoothmax.separable(phi) if it sums over coordinates"
            )

    def atoms(self) -> Iterator[Regularizer]:
        for summand in self.summands:
            yield from summand.atoms()

    def terms(self) -> Iterator[tuple[Parameter, Regularizer]]:
        for summand in self.summands:
            yield from summand.terms()

    def map_parameters(self, visit: Callable[[str, Any, Extent | None], Any]) -> Sum:
        return _build(Sum, {"summands": tuple(summand.map_parameters(visit) for summand in self.summands)})

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.summands))


def _summands(term: Regularizer) -> tuple[Regularizer, ...]:
    return term.summands if isinstance(term, Sum) else (term,)
