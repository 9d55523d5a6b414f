"""What a regularizer is: a pytree of hyper-parameters and an algebra.

    gamma * (base + lam * penalty)

A *base* makes the problem strictly convex and can be solved alone; an *entropy* is a base that sums one function over
the coordinates, which makes it solvable over every domain. A *penalty* shapes the solution and is only ever added to a
base. Expressions are kept as they were written (`Scaled`, `Sum`), so that their leaves are the hyper-parameters that
the user knows; `Regularizer.terms` multiplies them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._arrays import as_array
from .._cache import SameFunction
from .._parameters import (
    NON_NEGATIVE,
    POSITIVE,
    Parameter,
    Parametrized,
    Range,
    Spec,
    Visit,
    build,
    checked,
    tree_class,
)
from .._slices import Axis, to_slices
from .._solvers import capped_weights, diagonal_product


class Regularizer(Parametrized):
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

    functions: ClassVar[tuple[SameFunction, ...]] = ()
    """The functions of the user's own that it holds."""

    def __call__(
        self, y: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """The value at each point `y` along `axis`; positions with `where=False` are left out."""
        slices, (omega,), layout = to_slices(as_array("y", y), axis, where, self)
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

    def with_params(self, params: Any) -> Regularizer:
        """The same regularizer with the `params=` given to `conjugate`, for one that wraps the user's function."""
        raise ValueError(
            f"params belong to a plain function, got params={params!r} with {self!r}, whose hyper-parameters are its "
            "own fields: set them there"
        )

    def __add__(self, other: Regularizer) -> Sum:
        if not isinstance(other, Regularizer):
            return NotImplemented
        return Sum((*_summands(self), *_summands(other)))

    def __mul__(self, strength: Parameter) -> Scaled:
        return Scaled(strength, self)

    __rmul__ = __mul__


class Base(Regularizer):
    """A strictly convex regularizer, which can be solved alone. Every method works on slices `(*batch, d)`."""

    composes: ClassVar[bool] = True
    """Whether `Pi_{base + penalty}(x) = Pi_base(prox(x))`: one increasing map turns every score into its weight."""

    counts_zeros: ClassVar[bool] = False
    """Whether `value` depends on which of the positions of weight 0 are allowed, as where phi(0) is not 0."""

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        """The weights over the simplex at strength `gamma`, for scores `x` with -inf at deleted positions."""
        raise NotImplementedError

    def reach(self, dtype: Any) -> Any:
        """How far below the greatest score a position may have weight over the simplex, for gamma = 1; None if that is
        not known."""
        return None

    def gradient(self, y: jax.Array) -> jax.Array:
        """The gradient at `y`; anything finite where the slope is infinite or a position has no weight."""
        raise NotImplementedError

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        """J v, where J is the Jacobian of `solve` in `x` at the solution `y`."""
        raise NotImplementedError


class Entropy(Base):
    r"""A base that sums one function over the coordinates, $\Omega(y) = \sum_i \phi(y_i)$.

    Every domain can serve it, since its solutions are `y_i = psi(x_i - tau)` up to bounds, psi the inverse of phi'. The
    defaults below need `value`, `slope`, `inverse` and `inverse_curvature` alone; an entropy with a solver of its own
    overrides them.
    """

    kernel_alpha: Any = None
    """The alpha under which the kernels for capped thresholds know this entropy, or None if they do not."""

    weights_between: ClassVar[tuple[float, float]] = (0.0, math.inf)
    """Where phi is finite."""

    def inverse(self, u: jax.Array) -> jax.Array:
        """psi(u), the point whose slope is `u`, position by position; 0 below the slope at 0."""
        raise NotImplementedError

    def slope(self, y: jax.Array) -> jax.Array:
        """phi'(y), position by position; anything finite where it is infinite."""
        raise NotImplementedError

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        """1 / phi''(y), position by position; 0 where phi'' is infinite."""
        raise NotImplementedError

    def gradient(self, y: jax.Array) -> jax.Array:
        return self.slope(y)

    def reach(self, dtype: Any) -> Any:
        # y_i = psi(x_i - tau) is at most 1, and a weight that no float holds is none.
        limits = jnp.finfo(dtype)
        reach = self.slope(jnp.asarray(1 - limits.eps, dtype)) - self.slope(jnp.asarray(limits.tiny, dtype))
        return jnp.where(reach >= 0, reach, jnp.inf)

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        one = jnp.ones((), x.dtype)
        return self.solve_capped(x, gamma, one, one, implementation)

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        s = jnp.where(y == 0, 0, self.inverse_curvature(y))
        return diagonal_product(s, v, implementation=implementation) / gamma

    def solve_capped(
        self, x: jax.Array, gamma: jax.Array, size: jax.Array, upper: jax.Array, implementation: str | None
    ) -> jax.Array:
        """The weights between 0 and `upper` of sum `size`."""
        return capped_weights(self, x, gamma, size, upper, implementation=implementation)

    def solve_box(self, u: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
        """psi(u) between the bounds, position by position, for allowed positions."""
        return jnp.clip(self.inverse(u), lower, upper)


class Penalty(Regularizer):
    """A convex function that depends on the order and the ties of the coordinates, and scales with them.

    Penalties of one *kind* (the class that holds these methods) are solved together: each method gets the `terms` of
    its kind, `(strength, penalty)` pairs. What a prox finds, the segments or groups, is a pytree of integers.
    """

    order: ClassVar[int]
    """Kinds of lower order have their prox taken first: one may add ties to what came before, never undo it."""

    kind: ClassVar[type[Penalty]]

    @classmethod
    def prox(cls, terms: Terms, x: jax.Array, implementation: str | None) -> tuple[jax.Array, Any]:
        """argmin over t of |t - x|^2 / 2 + R(t), with -inf at deleted positions of both; and what was found."""
        raise NotImplementedError

    @classmethod
    def spread(cls, terms: Terms, x: jax.Array) -> Any:
        """By how much the prox may bring a score nearer to the greatest one; None if that is not known.

        Scores further below than that never get back to the support. All that is told of them is that they are so low,
        since far away they would cost the others their digits.
        """
        return None

    @classmethod
    def subgradient(cls, terms: Terms, found: Any, y: jax.Array) -> jax.Array:
        """A subgradient of R at `y`, given the order and the ties that were found; linear in the strengths."""
        raise NotImplementedError

    @classmethod
    def tied(cls, terms: Terms, found: Any, y: jax.Array, active: jax.Array) -> Any:
        """What was found, with those ties too that no strength holds and the least would: equal active coordinates.

        Scores move them apart, a strength that grows from 0 does not.
        """
        return found

    @classmethod
    def average(cls, found: Any, active: jax.Array, v: jax.Array, implementation: str | None) -> jax.Array:
        """The means of `v` over the `active` positions of what was tied: the Jacobian of the prox, times `v`.

        What a subgradient puts beside deleted positions has to be reached there, too: so the mean of a segment also
        stands at its deleted positions.
        """
        raise NotImplementedError


Terms = tuple[tuple[Parameter, Penalty], ...]


@tree_class
class Scaled(Regularizer):
    """`strength * inner`."""

    strength: Parameter
    inner: Regularizer

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", checked(self._name, self.strength, self._range))

    @property
    def _scales_base(self) -> bool:
        return any(isinstance(atom, Base) for atom in self.atoms())

    @property
    def _name(self) -> str:
        return "gamma" if self._scales_base else "lam"

    @property
    def _range(self) -> Range:
        return POSITIVE if self._scales_base else NON_NEGATIVE

    def atoms(self) -> Iterator[Regularizer]:
        return self.inner.atoms()

    def terms(self) -> Iterator[tuple[Parameter, Regularizer]]:
        for strength, atom in self.inner.terms():
            yield self.strength * strength, atom

    def map_parameters(self, visit: Visit) -> Scaled:
        strength = visit(self._name, self.strength, Spec(self._range))
        return build(Scaled, {"strength": strength, "inner": self.inner.map_parameters(visit)})

    def with_params(self, params: Any) -> Regularizer:
        return Scaled(self.strength, self.inner.with_params(params))

    def __repr__(self) -> str:
        inner = f"({self.inner!r})" if isinstance(self.inner, Sum) else repr(self.inner)
        return f"{self.strength!r} * {inner}"


@tree_class
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

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.summands))


def _summands(term: Regularizer) -> tuple[Regularizer, ...]:
    return term.summands if isinstance(term, Sum) else (term,)
