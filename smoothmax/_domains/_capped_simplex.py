"""The capped simplex: which k of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._arrays import safe_ratio, total
from .._parameters import NON_NEGATIVE, Parameter, Range, known, parameter, tree_class
from .._regularizers import Base, Regularizer
from .._solvers import diagonal_product, finite_rates, power_product
from ._domain import Domain, refuse_base, refuse_unequal

UPPER_BOUND = Range(lambda v: v >= 0, "zero or positive")


# What is known of a position beside its weight.
DELETED, ALLOWED, FIRST_OUT, LAST_IN = 0, 1, 2, 3


class Places(NamedTuple):
    """Where a position stands: int8 `(..., d)`.

    Attributes:
      place: DELETED or ALLOWED; and of those allowed the ones that would move first at a vertex, where no position is
        free: FIRST_OUT, of weight 0, if there were more to share, and LAST_IN, at its bound, if there were less.
    """

    place: jax.Array


@tree_class
class CappedSimplex(Domain):
    r"""The capped simplex, $\{0 \le y_i \le u_i, \sum_i y_i = k\}$: a budget `k`, at most `u` a position.

    With the bounds at one, its vertices are the choices of `k` positions: over it, `SquaredL2` gives a sparse, exact
    soft top-k, `FermiDirac` a smooth one, and with `TotalVariation` the `k` positions come in few segments. `k = 1` is
    the simplex.

    Attributes:
      total: the sum `k` of the weights, at least 0; one value a slice (size 1 along the axis).
      upper: the bounds, at least 0; one value a slice, or one a position (broadcasting with the scores), which then
        excludes penalties: the composition theorem needs equal bounds.

    Raises:
      ValueError: a value is out of range, or `total` is above the sum of the bounds (when known; NaN when traced).

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> top2 = sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(2))
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(top2(jnp.array([3.0, 0.3, -1.0, 0.5])))
      [1.  0.4 0.  0.6]

    Reference:
      Malaviya, Ferreira and Martins, "Sparse and Constrained Attention for Neural Machine Translation", 2018.
    """

    shift_invariant = True
    knows_deleted = True

    total: Parameter = parameter(NON_NEGATIVE)
    upper: Parameter = parameter(UPPER_BOUND, by_position=True, default=1.0)

    def check_base(self, omega: Regularizer) -> None:
        refuse_base(self, omega)

    def check_room(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
        if not (known(self.total) and known(self.upper)) or not all(isinstance(n, int) for n in shape):
            return
        size, upper = np.asarray(self.total, np.float64), np.asarray(self.upper, np.float64)
        try:
            np.broadcast_shapes(shape, size.shape, upper.shape)
        except ValueError:
            return  # there is an error with more to say where slices are made
        upper = upper.reshape((1,) * (len(shape) - upper.ndim) + upper.shape)
        along = tuple(a - len(shape) for a in axes)  # from the end, since bounds may bring leading axes
        alike = math.prod(shape[a] for a in along if upper.shape[a] == 1)  # positions of one bound
        room = upper.sum(axis=along, keepdims=True) * alike
        if np.any(size > room * (1 + 1e-6)):
            length = math.prod(shape[a] for a in axes)
            raise ValueError(
                f"total={self.total} is above the sum of the bounds upper={self.upper} over slices of length {length}: "
                "lower total (the k of a top-k), or raise upper"
            )

    def check_placed(self, has_penalties: bool) -> None:
        if has_penalties:
            refuse_unequal("upper", self.upper)

    def solve(self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None) -> tuple[jax.Array, Places]:
        size, upper = jnp.asarray(self.total, x.dtype), jnp.asarray(self.upper, x.dtype)
        y = self._entropy(base).solve_capped(x, gamma, size, upper, implementation)
        allowed, full = x > -jnp.inf, self._full(y)
        # Where weight gains least it is the first to leave its bound; with equal bounds, at the least score.
        gain = x - gamma * base.gradient(y) if upper.shape[-1:] == x.shape[-1:] else x
        first_out = _where_greatest(jnp.where(allowed & (y == 0), x, -jnp.inf))
        last_in = _where_greatest(jnp.where(full, -gain, -jnp.inf))
        moves = jnp.where(first_out, FIRST_OUT, jnp.where(last_in, LAST_IN, ALLOWED))
        return y, Places(jnp.where(allowed, moves, DELETED).astype(jnp.int8))

    def active(self, y: jax.Array, found: Places) -> jax.Array:
        return found.place != DELETED

    def product(
        self, base: Base, y: jax.Array, found: Places, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        s, alpha = self._rates(base, y), self._entropy(base).kernel_alpha
        may_be_steep = isinstance(alpha, jax.Array)
        return (power_product(s, v, alpha) if may_be_steep else diagonal_product(s, v)) / gamma

    def respond(self, base: Base, y: jax.Array, found: Places) -> jax.Array:
        # The free positions take up what the sum or a bound changes, in proportion to their rates. At a vertex the two
        # sides differ, and this is their mean.
        s = self._rates(base, y)
        free = total(s)
        share = jnp.where(free > 0, safe_ratio(s, free), _halves(found, y.dtype))
        bound = jnp.where(self._full(y), self.upper, y)
        # Empty slices are all zeros and stay so.
        lack = jnp.where(jnp.any(y != 0, axis=-1, keepdims=True) | (self.total == 0), self.total - total(bound), 0)
        return bound + share * (lack - jax.lax.stop_gradient(lack))

    def _full(self, y: jax.Array) -> jax.Array:
        return (y == self.upper) & (y > 0)

    def _rates(self, base: Base, y: jax.Array) -> jax.Array:
        """How fast each weight follows its score: 0 at the bounds."""
        rates = finite_rates(self._entropy(base).inverse_curvature(y))
        return jnp.where((y == 0) | self._full(y), 0, rates)


def _where_greatest(scores: jax.Array) -> jax.Array:
    """Where the greatest score stands, and those that are equal; nowhere if all are -inf."""
    return (scores == jnp.max(scores, axis=-1, keepdims=True)) & (scores > -jnp.inf)


def _halves(found: Places, dtype: Any) -> jax.Array:
    """A unit of weight on who would move at a vertex: half on each side, or all on the only one, in equal parts."""
    out, into = ((found.place == side).astype(dtype) for side in (FIRST_OUT, LAST_IN))
    weight = safe_ratio(out, total(out)) + safe_ratio(into, total(into))
    return safe_ratio(weight, total(weight))
