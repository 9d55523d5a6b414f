"""The permutahedron: in which order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._parameters import Parameter, Range, parameter, tree_class
from .._regularizers import Base, Regularizer, SquaredL2, ranks
from .._solvers import chain_prox, put_back, segment_mean, sort_descending, take
from ._domain import Domain

FINITE_WEIGHTS = Range(lambda v: (abs(v) < jnp.inf).all(axis=-1, keepdims=True), "finite")


class Pools(NamedTuple):
    """What the projection finds.

    Attributes:
      order: int32 `(..., d)`: the positions by decreasing score.
      ties: int8 `(..., d)`: nonzero where a pool of the isotonic regression ends, in that order.
      by_weight: int32 `(..., d)`: the positions of `weights`, from the largest.
      kept: int32 `(..., 1)`: the number of positions that are not deleted.
    """

    order: jax.Array
    ties: jax.Array
    by_weight: jax.Array
    kept: jax.Array


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
        kept = jnp.sum(allowed, axis=-1, keepdims=True, dtype=jnp.int32)
        scores, order = self._sorted_scores(x, kept)
        sorted_weights, by_weight = self._sorted_weights(kept, x)
        real = ranks(kept, x.shape[-1]) < kept
        sorted_weights = jnp.where(real, sorted_weights, 0)
        z, up = _runs(jnp.where(real, scores, -jnp.inf), sorted_weights, gamma)
        t, ties = chain_prox(
            jnp.where(real, z - sorted_weights, -jnp.inf), up, jnp.zeros((), x.dtype), implementation=implementation
        )
        found = Pools(order, ties, by_weight, kept)
        # y = z - t, written so that a pool of one gets its weight exactly.
        y = self._pooled(found, sorted_weights, implementation) + (z - self._pooled(found, z, implementation))
        bad = jnp.isnan(t) | jnp.isnan(sorted_weights) | jnp.isnan(x) | (x == jnp.inf)
        bad = jnp.any(bad, axis=-1, keepdims=True)
        return put_back(jnp.where(real, jnp.where(bad, jnp.nan, y), 0), order), found

    def active(self, y: jax.Array, found: Pools) -> jax.Array:
        real = jnp.broadcast_to(ranks(found.kept, y.shape[-1]) < found.kept, y.shape)
        return put_back(real.astype(y.dtype), found.order) != 0

    def product(
        self, base: Base, y: jax.Array, found: Pools, v: jax.Array, gamma: jax.Array, implementation: str | None
    ) -> jax.Array:
        v = take(v, found.order)
        real = ranks(found.kept, y.shape[-1]) < found.kept
        return put_back(jnp.where(real, v - self._pooled(found, v, implementation), 0), found.order) / gamma

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        # Within a pool the weights of the ranks are averaged, and y follows their mean.
        real = ranks(found.kept, y.shape[-1]) < found.kept
        weights = jnp.where(real, take(self._serving(found.kept, y), found.by_weight), 0)
        change = self._pooled(found, weights - jax.lax.stop_gradient(weights), None)
        return y + put_back(change, found.order)

    def _sorted_scores(self, x: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The scores from the largest, and the positions they came from."""
        return sort_descending(x)

    def _sorted_weights(self, kept: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights that serve, from the largest, and the positions they came from."""
        return sort_descending(self._serving(kept, like))

    def _serving(self, kept: jax.Array, like: jax.Array) -> jax.Array:
        """The first `kept` weights, in the shape of `like`; past them -inf, or NaN for all to see."""
        weights = jnp.broadcast_to(self.weights, like.shape).astype(like.dtype)
        return jnp.where((ranks(kept, like.shape[-1]) < kept) | jnp.isnan(weights), weights, -jnp.inf)

    def _pooled(self, found: Pools, v: jax.Array, implementation: str | None) -> jax.Array:
        """The means of `v`, in sorted order, over the pools; 0 past the positions that are not deleted."""
        real = jnp.broadcast_to(ranks(found.kept, v.shape[-1]) < found.kept, v.shape).astype(v.dtype)
        return segment_mean(v * real, found.ties, real, implementation=implementation) * real


def _runs(scores: jax.Array, weights: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorted scores cut into runs, each measured from its first score, in units of gamma; and the penalty of a rise.

    Where neighbours are further apart than any two weights, no pool spans them: the border is free. Within a run the
    scores are of the size of the weights, so that their rounding is too, however far apart the runs are.
    """
    gap = (scores[..., :-1] - scores[..., 1:]) / gamma
    spread = jnp.max(weights, axis=-1, keepdims=True) - jnp.min(weights, axis=-1, keepdims=True)
    cut = ~(gap <= spread)
    position = jnp.broadcast_to(ranks(jnp.zeros((1,) * scores.ndim, jnp.int32), scores.shape[-1]), scores.shape)
    starts = jnp.concatenate([jnp.ones_like(scores[..., :1], bool), cut], axis=-1)
    first = lax.cummax(jnp.where(starts, position, 0), axis=scores.ndim - 1)
    z = (scores - take(scores, first)) / gamma
    return jnp.where(scores == -jnp.inf, 0, z), jnp.where(cut, 0, jnp.inf).astype(scores.dtype)


# What soft_rank and soft_sort project onto, each with one of the two sorts known beforehand.


@tree_class
class Ranks(Permutahedron):
    """The permutahedron of 1, ..., n for the n positions of each slice that are not deleted."""

    weights: None = None

    def _sorted_weights(self, kept: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        rank = jnp.broadcast_to(ranks(kept, like.shape[-1]), like.shape)
        return (kept - rank).astype(like.dtype), rank

    def respond(self, base: Base, y: jax.Array, found: Pools) -> jax.Array:
        return y  # nothing that could move


NOT_INFINITE = Range(lambda v: (v < jnp.inf).all(axis=-1, keepdims=True), "finite, or -inf at deleted positions")


@tree_class
class Sorted(Permutahedron):
    """The permutahedron of `weights` that are -inf at deleted positions, for scores that rise along the slice."""

    weights: jax.Array = parameter(NOT_INFINITE, extent=lambda d: d)

    def _sorted_scores(self, x: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        allowed = (x != -jnp.inf).astype(jnp.int32)
        after = kept - jnp.cumsum(allowed, axis=-1)  # allowed positions that come later, and score more
        rank = jnp.where(allowed == 1, after, kept + jnp.cumsum(1 - allowed, axis=-1) - 1)
        order = put_back(jnp.broadcast_to(ranks(kept, x.shape[-1]), x.shape), rank)
        return take(x, order), order

    def _serving(self, kept: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.weights, like.shape).astype(like.dtype)
