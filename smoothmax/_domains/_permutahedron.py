"""The permutahedron: in which order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._parameters import Parameter, Range, parameter, tree_class
from .._regularizers import Base, Regularizer, SquaredL2, ranks
from .._solvers import group_mean, project_permutahedron, put_back, segment_mean, sort_descending, take
from ._domain import Domain

FINITE_WEIGHTS = Range(lambda v: (abs(v) < jnp.inf).all(axis=-1, keepdims=True), "finite")


class Pools(NamedTuple):
    """What the projection finds.

    Attributes:
      order: int32 `(..., d)`: the positions by decreasing score.
      ties: int8 `(..., d)`: nonzero where a pool ends, in that order.
      by_weight: int32 `(..., d)`: the positions of `weights`, from the largest; None where no one asks for them.
      allowed: bool `(..., d)`: the positions that are not deleted.
    """

    order: jax.Array
    ties: jax.Array
    by_weight: jax.Array | None
    allowed: jax.Array


@tree_class
class Permutahedron(Domain):
    r"""The permutahedron, the convex hull of all permutations of `weights`: the domain of ranks and of sorting.

    $$\arg\max_{y \in \mathcal{P}(w)} \langle x, y \rangle - \frac{\gamma}{2} \lVert y \rVert^2$$

    is the Euclidean projection of `x / gamma`. Small gamma gives the permutation of `weights` that is sorted as the
    scores are, greater gamma moves weights of close scores together. Only `SquaredL2` can be solved over it.
    `soft_rank` and `soft_sort` are made of it.

    Attributes:
      weights: `(..., d)` along the slice, in any order. Where positions are masked, the first weights serve the ones
        that remain.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> op = sm.conjugate(0.5 * sm.SquaredL2(), over=sm.Permutahedron(jnp.array([1.0, 2.0, 3.0])))
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(op(jnp.array([2.0, -1.0, 0.1])), op(jnp.array([0.2, -1.0, 0.1])))
      [3. 1. 2.] [2.6 1.  2.4]

    Reference:
      Blondel, Teboul, Berthet and Djolonga, "Fast Differentiable Sorting and Ranking", 2020.
    """

    shift_invariant = True

    weights: Parameter = parameter(FINITE_WEIGHTS, extent=lambda d: d)

    def check_base(self, omega: Regularizer) -> None:
        for atom in omega.atoms():
            if not isinstance(atom, SquaredL2):
                raise ValueError(
                    f"Permutahedron serves SquaredL2 alone, got {atom!r} in {omega!r}: use gamma * SquaredL2(), or "
                    "another domain"
                )

    def solve(self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None) -> tuple[jax.Array, Pools]:
        allowed = x != -jnp.inf
        kept = _count(allowed)
        weights, by_weight = self._sorted_weights(kept, x, implementation)
        weights = jnp.where(ranks(kept, x.shape[-1]) < kept, weights, 0)
        y, order, ties = project_permutahedron(x, gamma, weights, implementation=implementation)
        return y, Pools(order, ties, by_weight, allowed)

    def active(self, y: jax.Array, found: Pools) -> jax.Array:
        return found.allowed

    def product(
        self, base: Base, y: jax.Array, found: Pools, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        allowed = found.allowed.astype(v.dtype)
        mean = group_mean(v, found.order, found.ties, allowed, implementation=implementation)
        return jnp.where(found.allowed, v - mean, 0) / gamma

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        # Within a pool the weights of the ranks are averaged, and y follows their mean.
        assert found.by_weight is not None
        kept = _count(found.allowed)
        real = jnp.broadcast_to(ranks(kept, y.shape[-1]) < kept, y.shape)
        weights = jnp.where(real, take(self._serving(kept, y), found.by_weight), 0)
        change = segment_mean(weights - jax.lax.stop_gradient(weights), found.ties, real.astype(y.dtype))
        return y + put_back(jnp.where(real, change, 0), found.order)

    def _sorted_weights(
        self, kept: jax.Array, like: jax.Array, implementation: str | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The weights that serve, from the largest, and the positions they came from."""
        return sort_descending(self._serving(kept, like), implementation=implementation)

    def _serving(self, kept: jax.Array, like: jax.Array) -> jax.Array:
        """The first `kept` weights, in the shape of `like`; past them -inf, or NaN for all to see."""
        weights = jnp.broadcast_to(self.weights, like.shape).astype(like.dtype)
        return jnp.where((ranks(kept, like.shape[-1]) < kept) | jnp.isnan(weights), weights, -jnp.inf)


def _count(allowed: jax.Array) -> jax.Array:
    return jnp.sum(allowed, axis=-1, keepdims=True, dtype=jnp.int32)


# What soft_rank and soft_sort project onto.


@tree_class
class Ranks(Permutahedron):
    """The permutahedron of 1, ..., n for the n positions of each slice that are not deleted."""

    weights: None = None

    def _sorted_weights(self, kept: jax.Array, like: jax.Array, implementation: str | None) -> tuple[jax.Array, None]:
        return jnp.broadcast_to(kept - ranks(kept, like.shape[-1]), like.shape).astype(like.dtype), None

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        return y  # nothing that could move


NOT_INFINITE = Range(lambda v: (v < jnp.inf).all(axis=-1, keepdims=True), "finite, or -inf at deleted positions")


@tree_class
class Sorted(Permutahedron):
    """The permutahedron of `weights` that are -inf at deleted positions, wherever those are."""

    weights: jax.Array = parameter(NOT_INFINITE, extent=lambda d: d)

    def _serving(self, kept: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.weights, like.shape).astype(like.dtype)
