"""The box: which of them, however many."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._parameters import Parameter, Range, known, parameter, placed, tree_class
from .._regularizers import Base, Entropy, Regularizer
from ._domain import Domain, refuse_base, refuse_unequal

BOUND = Range(lambda v: v == v, "a number")


class Allowed(NamedTuple):
    """Boolean `(..., d)`: the positions that are not deleted. A weight of 0 does not tell."""

    positions: jax.Array


@tree_class
class Box(Domain):
    r"""The box, $\{l_i \le y_i \le u_i\}$: each position on its own, so any number of them can be chosen.

    Over it, `SquaredL2` cuts the scores off at the bounds and `FermiDirac` gives the sigmoid; with a penalty the
    choices are no longer independent, so `SquaredL2() + lam * TotalVariation()` is a sparse mask in few pieces. Scores
    matter themselves here, not only their differences. A masked position is 0.

    Attributes:
      lower: lower bounds; one value a slice (size 1 along the axis), or one a position (broadcasting with the scores).
      upper: upper bounds, not below `lower`. Bounds that differ by position exclude penalties.

    Raises:
      ValueError: a lower bound is above the upper one, or the base has no weights between them, such as negative ones
        of an entropy (when known; NaN when traced).

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([0.9, 0.7, -0.2, 1.8, -3.0])
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.conjugate(sm.SquaredL2(), over=sm.Box())(x))
      ...     print(sm.conjugate(sm.SquaredL2() + 0.2 * sm.TotalVariation(), over=sm.Box())(x))
      [0.9 0.7 0.  1.  0. ]
      [0.7 0.7 0.2 1.  0. ]

    Reference:
      Martins et al., "Sparse and Structured Hopfield Networks", 2024, and Blondel, Martins and Niculae, "Learning with
      Fenchel-Young Losses", 2020, for regularized prediction over a box.
    """

    lower: Parameter = parameter(BOUND, by_position=True, default=0.0)
    upper: Parameter = parameter(BOUND, by_position=True, default=1.0)

    has_vertices = True
    knows_deleted = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if known(self.lower) and known(self.upper) and np.any(np.asarray(self.lower) > np.asarray(self.upper)):
            raise ValueError(f"lower={self.lower} must not be above upper={self.upper}: exchange them")

    def check_base(self, omega: Regularizer) -> None:
        refuse_base(self, omega)
        [entropy] = [atom for atom in omega.atoms() if isinstance(atom, Entropy)]
        least, most = entropy.weights_between
        bounds = ("upper", self.upper, lambda u: u < least), ("lower", self.lower, lambda l: l > most)
        for name, bound, misses in bounds:
            if known(bound) and np.any(misses(np.asarray(bound))):
                raise ValueError(
                    f"{name}={bound} leaves no weight between {least} and {most}, as {entropy!r} needs them: choose "
                    "another bound, or use SquaredL2, which allows all weights"
                )

    def check_placed(self, has_penalties: bool) -> None:
        if has_penalties:
            refuse_unequal("lower", self.lower)
            refuse_unequal("upper", self.upper)

    def solve(
        self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> tuple[jax.Array, Allowed]:
        allowed = x != -jnp.inf
        y = self._entropy(base).solve_box(jnp.where(allowed, x, 0) / gamma, placed(self.lower), placed(self.upper))
        least, most = self._entropy(base).weights_between
        none = ~(self.lower <= self.upper) | (self.upper < least) | (self.lower > most)
        bad = jnp.any(jnp.isnan(x) | (x == jnp.inf) | (allowed & none), axis=-1, keepdims=True)
        return jnp.where(allowed, jnp.where(bad, jnp.nan, y), 0), Allowed(allowed)

    def active(self, y: jax.Array, found: Allowed) -> jax.Array:
        return found.positions

    def product(
        self, base: Base, y: jax.Array, found: Allowed, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        free = found.positions & (y > self.lower) & (y < self.upper)
        return jnp.where(free, self._entropy(base).inverse_curvature(y), 0) * v / gamma

    def respond(self, base: Base, y: jax.Array, found: Allowed) -> jax.Array:
        at_bound = jnp.where(y == self.lower, self.lower, jnp.where(y == self.upper, self.upper, y))
        # Where y is NaN, so are the derivatives of both bounds.
        spoiled = jnp.where(y == y, 0, y) * (self.lower + self.upper)
        return jnp.where(found.positions, jnp.where(y == y, at_bound, spoiled), y)
