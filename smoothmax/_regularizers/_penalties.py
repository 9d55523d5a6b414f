"""The penalties: total variation along a chain, and sorted weights (OSCAR, OWL).

Both kinds depend only on the order and the ties of the coordinates and grow in proportion to them, so two penalties
of one kind add up to a third: chain penalties by their weight on each border between neighbours, rank penalties by
their weight on each rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ._regularizer import Domain, Parameter, Penalty, guarded, parameter, regularizer

# Weights along the slice make one problem: one bad weight spoils all of them.
NON_NEGATIVE_WEIGHTS = Domain(
    lambda v: ((v >= 0) & (v < jnp.inf)).all(axis=-1, keepdims=True), "zero or positive, and finite"
)
NON_INCREASING = Domain(
    lambda v: (v[..., 1:] <= v[..., :-1]).all(axis=-1, keepdims=True) & (abs(v) < jnp.inf).all(axis=-1, keepdims=True),
    "finite and non-increasing along the last axis (the largest coordinate comes first)",
)


class ChainPenalty(Penalty):
    """A sum over the borders between neighbours."""

    def border_weights(self) -> Parameter:
        """The weight of |y_{i+1} - y_i|: a scalar, or an array `(..., d - 1)`."""
        raise NotImplementedError

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        # The neighbours of deleted positions become neighbours; their border has the smallest weight between them.
        d = y.shape[-1]
        weights = jnp.broadcast_to(self.border_weights(), (*y.shape[:-1], d - 1)).astype(y.dtype)
        weights = jnp.concatenate([weights, jnp.full_like(y[..., :1], jnp.inf)], axis=-1)

        def step(carry: tuple[jax.Array, ...], now: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
            last, weight, started = carry
            here, here_allowed, border = now
            jump = jnp.where(here_allowed & started, weight * jnp.abs(here - last), 0)
            last = jnp.where(here_allowed, here, last)
            weight = jnp.minimum(jnp.where(here_allowed, jnp.inf, weight), border)
            return (last, weight, started | here_allowed), jump

        positions = tuple(jnp.moveaxis(a, -1, 0) for a in (y, allowed, weights))
        start = (jnp.zeros_like(y[..., 0]), jnp.zeros_like(y[..., 0]), jnp.zeros_like(allowed[..., 0]))
        _, jumps = lax.scan(step, start, positions)
        return jnp.sum(jumps, axis=0)[..., None]


class RankPenalty(Penalty):
    """A weighted sum of the coordinates in decreasing order."""

    def rank_weights(self, kept: jax.Array, d: int, dtype: jnp.dtype) -> jax.Array:
        """The weights `(..., d)` of the ranks when `kept` positions `(..., 1)` are allowed; 0 past them."""
        raise NotImplementedError

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        kept = jnp.sum(allowed, axis=-1, keepdims=True, dtype=jnp.int32)
        ranked = -jnp.sort(-jnp.where(allowed, y, -jnp.inf), axis=-1)
        ranked = jnp.where(ranked == -jnp.inf, 0, ranked)
        return jnp.sum(self.rank_weights(kept, y.shape[-1], y.dtype) * ranked, axis=-1, keepdims=True)


@regularizer
class TotalVariation(ChainPenalty):
    r"""Total variation, $R(y) = \sum_i w_i \lvert y_{i+1} - y_i \rvert$: neighbours fuse into segments.

    `SquaredL2() + lam * TotalVariation()` is the regularizer of fusedmax.

    Attributes:
      weights: None (every border has weight 1), or `(..., d - 1)` non-negative weights along the slice.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([1.0, 1.2, 0.9, -0.5])
      >>> for penalty in (sm.TotalVariation(), sm.TotalVariation(jnp.array([1.0, 0.0, 1.0]))):
      ...     with jnp.printoptions(precision=3, suppress=True):
      ...         print(sm.conjugate(sm.SquaredL2() + 0.2 * penalty)(x))
      [0.367 0.367 0.267 0.   ]
      [0.467 0.467 0.067 0.   ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """

    weights: jax.Array | None = parameter(NON_NEGATIVE_WEIGHTS, extent=lambda d: d - 1, default=None)

    def border_weights(self) -> Parameter:
        return 1.0 if self.weights is None else guarded(self.weights, NON_NEGATIVE_WEIGHTS)


@regularizer
class Oscar(RankPenalty):
    r"""Pairwise maxima, $R(y) = \sum_{i<j} \max(y_i, y_j)$: coordinates fuse into groups, wherever they stand.

    `SquaredL2() + lam * Oscar()` is the regularizer of oscarmax.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.conjugate(sm.SquaredL2() + 0.1 * sm.Oscar())(jnp.array([1.0, -0.5, 1.1, 0.8])))
      [0.367 0.    0.367 0.267]

    Reference:
      Bondell and Reich, "Simultaneous Regression Shrinkage, Variable Selection, and Supervised Clustering of Predictors
      with OSCAR", 2008.
    """

    def rank_weights(self, kept: jax.Array, d: int, dtype: jnp.dtype) -> jax.Array:
        # In decreasing order, the coordinate of rank k (from 0) is the greater one of kept - 1 - k pairs.
        return jnp.maximum(kept - 1 - _ranks(kept, d), 0).astype(dtype)


@regularizer
class OWL(RankPenalty):
    r"""Ordered weights, $R(y) = \sum_k w_k y_{(k)}$ with $y_{(1)} \ge y_{(2)} \ge \dots$.

    Attributes:
      weights: `(..., d)`, non-increasing, the first for the largest coordinate. Where positions are masked, the
        first weights serve the ones that remain.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> top = sm.OWL(jnp.array([0.3, 0.0, 0.0, 0.0]))  # only the largest weight is held back
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.conjugate(sm.SquaredL2() + top)(jnp.array([1.0, -0.5, 0.9, 0.8])))
      [0.333 0.    0.333 0.333]

    Reference:
      Zeng and Figueiredo, "The Ordered Weighted l1 Norm", 2014.
    """

    weights: jax.Array = parameter(NON_INCREASING, extent=lambda d: d)

    def rank_weights(self, kept: jax.Array, d: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.where(_ranks(kept, d) < kept, guarded(self.weights, NON_INCREASING), 0).astype(dtype)


def _ranks(kept: jax.Array, d: int) -> jax.Array:
    return jnp.arange(d, dtype=kept.dtype).reshape((1,) * (kept.ndim - 1) + (d,))
