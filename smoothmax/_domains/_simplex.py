"""The simplex: how much of each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .._arrays import total
from .._parameters import tree_class
from .._regularizers import Base
from ._domain import Domain


@tree_class
class Simplex(Domain):
    r"""The probability simplex, $\{y \ge 0, \sum_i y_i = 1\}$: the domain of attention, and the default.

    Every regularizer can be solved over it.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(sm.conjugate(sm.SquaredL2(), over=sm.Simplex())(jnp.array([1.0, 0.5, -1.0])))
      [0.75 0.25 0.  ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """

    has_vertices = True
    shift_invariant = True

    def solve(self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None) -> tuple[jax.Array, None]:
        return base.solve(x, gamma, implementation), None

    def reach(self, base: Base, dtype: Any) -> Any:
        return base.reach(dtype)

    def product(
        self, base: Base, y: jax.Array, found: Any, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        return base.product(y, v, gamma, implementation)

    def linear(self, x: jax.Array, y: jax.Array) -> jax.Array:
        # The weights add up to one: so the greatest score can be taken out of the sum, and its rounding with it.
        top = jnp.max(x, axis=-1, keepdims=True)
        top = jnp.where(top == -jnp.inf, 0, top)
        return top + total(jnp.where(y == 0, 0, jnp.where(y == 0, 0, x) - top) * y)
