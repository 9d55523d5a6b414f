"""The permutahedron: in which order."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._parameters import Range, parameter, tree_class
from .._regularizers import Base, Regularizer, SquaredL2, count, ranks, serving
from .._solvers import group_mean, project_permutahedron, put_back, sort_ranked, take
from ._domain import Domain

FINITE_WEIGHTS = Range(lambda v: (abs(v) < jnp.inf).all(axis=-1, keepdims=True), "finite")


class Pools(NamedTuple):
    """What the projection finds.

    Attributes:
      order: int32 `(..., d)`: the positions by decreasing score.
      ties: int8 `(..., d)`: nonzero where a pool ends, in that order.
      rank: int32 `(..., d)`: the rank of each of the `weights`, 0 for the largest; None where no one asks for it.
      allowed: bool `(..., d)`: the positions that are not deleted.
    """

    order: jax.Array
    ties: jax.Array
    rank: jax.Array | None
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
    knows_deleted = True

    weights: Any = parameter(FINITE_WEIGHTS, extent=lambda d: d)

    def check_base(self, omega: Regularizer) -> None:
        for atom in omega.atoms():
            if not isinstance(atom, SquaredL2):
                raise ValueError(
                    f"Permutahedron serves SquaredL2 alone, got {atom!r} in {omega!r}: use gamma * SquaredL2(), or "
                    "another domain"
                )

    def solve(self, base: Base, x: jax.Array, gamma: jax.Array, implementation: str | None) -> tuple[jax.Array, Pools]:
        allowed = x != -jnp.inf
        weights, rank = self._sorted_weights(allowed, x, implementation)
        y, order, ties = project_permutahedron(x, gamma, weights, implementation=implementation)
        return y, Pools(order, ties, rank, allowed)

    def active(self, y: jax.Array, found: Pools) -> jax.Array:
        return found.allowed

    def product(
        self, base: Base, y: jax.Array, found: Pools, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        return jnp.where(found.allowed, v - _pool_mean(v, found, implementation), 0) / gamma

    # Within a pool the weights of the ranks are averaged, and y follows their mean.

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        assert found.rank is not None
        weights = put_back(self._serving(found, y), found.rank)
        change = put_back(weights - jax.lax.stop_gradient(weights), found.order)
        return y + _pool_mean(change, found)

    def pull(self, base: Base, y: jax.Array, found: Pools, v: jax.Array, implementation: str | None) -> Self:
        # `respond` transposed, with gathers in place of scatters.
        assert found.rank is not None
        mean = _pool_mean(v, found, implementation)
        _, transpose = jax.vjp(lambda domain: domain._serving(found, y), self)
        return transpose(take(take(mean, found.order), found.rank))[0]

    def _sorted_weights(
        self, allowed: jax.Array, like: jax.Array, implementation: str | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The weights that serve, from the largest, 0 past them, and the rank of each."""
        weights = jnp.where(self._serves(allowed), self._spread(like), -jnp.inf)
        weights, rank = sort_ranked(weights, implementation=implementation)
        return jnp.where(weights == -jnp.inf, 0, weights), rank

    def _serving(self, found: Pools, like: jax.Array) -> jax.Array:
        """The weights that serve, in the shape of `like`, 0 elsewhere."""
        return jnp.where(self._serves(found.allowed), self._spread(like), 0)

    def _spread(self, like: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.weights, like.shape).astype(like.dtype)

    def _serves(self, allowed: jax.Array) -> jax.Array:
        """The weights that serve: as many, from the first, as there are positions; and NaN, for all to see."""
        return serving(self.weights, count(allowed), allowed.shape[-1])


def _pool_mean(v: jax.Array, found: Pools, implementation: str | None = None) -> jax.Array:
    allowed = found.allowed.astype(v.dtype)
    return group_mean(v, found.order, found.ties, allowed, implementation=implementation)


# What soft_rank and soft_sort project onto.


@tree_class
class Ranks(Permutahedron):
    """The permutahedron of 1, ..., n for the n positions of each slice that are not deleted."""

    weights: Any = None

    def _sorted_weights(
        self, allowed: jax.Array, like: jax.Array, implementation: str | None
    ) -> tuple[jax.Array, None]:
        kept = count(allowed)
        weights = jnp.maximum(kept - ranks(kept, like.shape[-1]), 0)
        return jnp.broadcast_to(weights, like.shape).astype(like.dtype), None

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        return y  # nothing that could move


NOT_INFINITE = Range(lambda v: (v < jnp.inf).all(axis=-1, keepdims=True), "finite, or -inf at deleted positions")


@tree_class
class Sorted(Permutahedron):
    """The permutahedron of `weights` that are -inf at deleted positions, wherever those are."""

    weights: Any = parameter(NOT_INFINITE, extent=lambda d: d)

    def _serves(self, allowed: jax.Array) -> jax.Array:
        return self.weights != -jnp.inf
