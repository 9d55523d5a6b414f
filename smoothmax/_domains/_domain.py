"""What a domain is: a convex set, how a base is solved over it, and how its solutions move."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from .._arrays import total
from .._parameters import Parametrized
from .._regularizers import Base, Entropy, Regularizer


class Domain(Parametrized):
    """A convex set of weights, given to `conjugate` as `over`.

    Domains are frozen dataclasses and pytrees, as regularizers are; their hyper-parameters are operands too and have
    gradients. The methods work on slices `(*batch, d)`, with -inf at deleted positions of the scores.
    """

    has_vertices: ClassVar[bool] = False
    """Whether it holds every one-hot vector, so that a label is a point of it."""

    shift_invariant: ClassVar[bool] = False
    """Whether all its points have the same sum, so that a constant added to all scores changes no weight."""

    knows_deleted: ClassVar[bool] = False
    """Whether `active` is every position that is not deleted, whatever its weight."""

    def check_base(self, omega: Regularizer) -> None:
        """Raises if the domain cannot serve the base of an expression, or its penalties."""

    def check_room(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        """Raises if hyper-parameters whose values are known leave the domain empty for slices along these axes."""

    def check_placed(self, has_penalties: bool) -> None:
        """Raises if hyper-parameters, brought to the form of slices, do not go together with penalties."""

    def solve(self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None) -> tuple[jax.Array, Any]:
        """The weights of `gamma * base`, and what `active`, `product` and `respond` need to know beside them."""
        raise NotImplementedError

    def reach(self, base: Base, dtype: Any) -> Any:
        """How far below the greatest score a position may have weight, for gamma = 1; None if that is not known."""
        return None

    def active(self, y: jax.Array, found: Any) -> jax.Array:
        """The positions that take part: all that a derivative may reach."""
        return y != 0

    def product(
        self, base: Base, y: jax.Array, found: Any, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        """J v, where J is the Jacobian of `solve` in `x` at the solution `y`."""
        raise NotImplementedError

    def respond(self, base: Base, y: jax.Array, found: Any) -> jax.Array:
        """`y` as a function of the hyper-parameters of this domain: its value is `y`, its derivative is theirs."""
        return y

    def pull(self, base: Base, y: jax.Array, found: Any, v: jax.Array, implementation: str | None) -> Self:
        """< dy/dk, v > for each hyper-parameter k, in the form of the domain."""
        _, transpose = jax.vjp(lambda domain: domain.respond(base, y, found), self)
        return transpose(v)[0]

    def linear(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """<x, y> as `(*batch, 1)`, over the positions that are not deleted."""
        return total(jnp.where(x == -jnp.inf, 0, x) * y)

    def _entropy(self, base: Base) -> Entropy:
        assert isinstance(base, Entropy)  # `check_base` has seen to it
        return base


def refuse_base(domain: Domain, omega: Regularizer) -> None:
    """Raises unless the base of an expression is an entropy."""
    for atom in omega.atoms():
        if isinstance(atom, Base) and not isinstance(atom, Entropy):
            raise ValueError(
                f"{type(domain).__name__} cannot serve the base {atom!r}: it needs one that sums a function over the "
                "coordinates, so that y_i = psi(x_i - tau) up to the bounds. Use SquaredL2, Shannon, Tsallis, "
                "FermiDirac or separable(phi), or leave `over` out for the simplex"
            )


def refuse_unequal(name: str, bound: Any) -> None:
    """Raises if a bound, brought to the form of slices, differs by position."""
    shape = jnp.shape(bound)
    if shape and shape[-1] > 1:
        raise ValueError(
            f"{name} of shape {shape} differs by position, which penalties do not allow: cutting off at unequal bounds "
            "would break their ties. Give one bound a slice, or drop the penalty"
        )
