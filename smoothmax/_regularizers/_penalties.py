"""The penalties: total variation along a chain, and sorted weights (OSCAR, OWL).

Both kinds depend only on the order and the ties of the coordinates and grow in proportion to them, so two penalties
of one kind add up to a third: chain penalties by their weight on each border between neighbours, rank penalties by
their weight on each rank.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import total
from .._parameters import Parameter, Range, parameter, tree_class
from .._solvers import chain_prox, group_mean, put_back, segment_mean, sorted_prox, take
from ._regularizer import Penalty, Terms

# Weights along the slice make one problem: one bad weight spoils all of them.
NON_NEGATIVE_WEIGHTS = Range(
    lambda v: ((v >= 0) & (v < jnp.inf)).all(axis=-1, keepdims=True), "zero or positive, and finite"
)
NON_INCREASING = Range(
    lambda v: (v[..., 1:] <= v[..., :-1]).all(axis=-1, keepdims=True) & (abs(v) < jnp.inf).all(axis=-1, keepdims=True),
    "finite and non-increasing along the last axis (the largest coordinate comes first)",
)


# --- Chains ------------------------------------------------------------------------------------------------


class ChainPenalty(Penalty):
    """A sum over the borders between neighbours. Found: int8 `(..., d)`, the jumps of `chain_prox`."""

    order = 0

    def border_weights(self) -> Parameter:
        """The weight of |y_{i+1} - y_i|: a scalar, or an array `(..., d - 1)`."""
        raise NotImplementedError

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return _variation(y, allowed, jnp.asarray(self.border_weights()))

    @classmethod
    def prox(cls, terms: Terms, x: jax.Array, implementation: str | None) -> tuple[jax.Array, jax.Array]:
        weights = _border_weights(terms)
        return chain_prox(_spoiled(x, weights), weights, weights, implementation=implementation)

    @classmethod
    def spread(cls, terms: Terms, x: jax.Array) -> jax.Array:
        # The forces on both borders of the greatest score pull it down, and those of a low score up.
        return 4 * _greatest(_border_weights(terms))

    @classmethod
    def subgradient(cls, terms: Terms, found: jax.Array, y: jax.Array) -> jax.Array:
        # Where the chain steps up from i to i+1, e_i (y_{i+1} - y_i) adds to the slope at i+1 and takes from it at i.
        slope = _border_weights(terms) * found[..., :-1].astype(y.dtype)
        none = jnp.zeros_like(y[..., :1])
        return jnp.concatenate([none, slope], axis=-1) - jnp.concatenate([slope, none], axis=-1)

    @classmethod
    def tied(cls, terms: Terms, found: jax.Array, y: jax.Array, active: jax.Array) -> jax.Array:
        equal = (y[..., 1:] == y[..., :-1]) & active[..., 1:] & active[..., :-1]
        inner = jnp.where(equal & (_border_weights(terms) == 0), 0, found[..., :-1])
        return jnp.concatenate([inner, found[..., -1:]], axis=-1)

    @classmethod
    def average(cls, found: jax.Array, active: jax.Array, v: jax.Array, implementation: str | None) -> jax.Array:
        return segment_mean(v, found, active.astype(v.dtype), implementation=implementation)


ChainPenalty.kind = ChainPenalty


def _border_weights(terms: Terms) -> jax.Array:
    weights = (jnp.asarray(strength * penalty.border_weights()) for strength, penalty in terms)  # pyright: ignore[reportAttributeAccessIssue]
    return functools.reduce(jnp.add, weights)


def _variation(y: jax.Array, allowed: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i weights_i |y_{i+1} - y_i| over the allowed positions `(*batch, d)`, as `(*batch, 1)`.

    The neighbours of deleted positions become neighbours; their border has the smallest weight between them.
    """
    d = y.shape[-1]
    weights = jnp.broadcast_to(weights, (*y.shape[:-1], d - 1)).astype(y.dtype)
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


@tree_class
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
        return 1.0 if self.weights is None else self.weights


# --- Ranks -------------------------------------------------------------------------------------------------


class Groups(NamedTuple):
    """What the prox of a rank penalty finds.

    Attributes:
      order: int32 `(..., d)`: the positions by decreasing score.
      ties: int8 `(..., d)`: nonzero where the value falls behind a rank, 0 within a group.
      kept: int32 `(..., 1)`: the number of positions that are not deleted.
    """

    order: jax.Array
    ties: jax.Array
    kept: jax.Array


class RankPenalty(Penalty):
    """A weighted sum of the coordinates in decreasing order. Found: `Groups`."""

    order = 1  # this prox keeps the order of the coordinates and only adds ties

    def rank_weights(self, kept: jax.Array, d: int, dtype: jnp.dtype) -> jax.Array:
        """The weights `(..., d)` of the ranks when `kept` positions `(..., 1)` are allowed; 0 past them."""
        raise NotImplementedError

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        kept = count(allowed)
        return total(self.rank_weights(kept, y.shape[-1], y.dtype) * _ranked(y, allowed))

    @classmethod
    def prox(cls, terms: Terms, x: jax.Array, implementation: str | None) -> tuple[jax.Array, Groups]:
        kept = count(x > -jnp.inf)
        weights = _rank_weights(terms, kept, x)
        t, order, ties = sorted_prox(x, weights, implementation=implementation)
        return t, Groups(order, ties, kept)

    @classmethod
    def spread(cls, terms: Terms, x: jax.Array) -> jax.Array:
        weights = _rank_weights(terms, count(x > -jnp.inf), x)
        return _greatest(weights) + _greatest(-weights)

    @classmethod
    def subgradient(cls, terms: Terms, found: Groups, y: jax.Array) -> jax.Array:
        return put_back(jnp.broadcast_to(_rank_weights(terms, found.kept, y), y.shape), found.order)

    @classmethod
    def tied(cls, terms: Terms, found: Groups, y: jax.Array, active: jax.Array) -> Groups:
        weights = jnp.broadcast_to(_rank_weights(terms, found.kept, y), y.shape)
        values = take(jnp.where(active, y, -jnp.inf), found.order)
        equal = (values[..., 1:] == values[..., :-1]) & (weights[..., 1:] == weights[..., :-1])
        inner = jnp.where(equal, 0, found.ties[..., :-1])
        return found._replace(ties=jnp.concatenate([inner, found.ties[..., -1:]], axis=-1))

    @classmethod
    def average(cls, found: Groups, active: jax.Array, v: jax.Array, implementation: str | None) -> jax.Array:
        # The weights of the ranks stand at allowed positions only, so deleted ones neither give nor take.
        return group_mean(v, found.order, found.ties, active.astype(v.dtype), implementation=implementation)


RankPenalty.kind = RankPenalty


def _rank_weights(terms: Terms, kept: jax.Array, like: jax.Array) -> jax.Array:
    d, dtype = like.shape[-1], like.dtype
    weights = (strength * penalty.rank_weights(kept, d, dtype) for strength, penalty in terms)  # pyright: ignore[reportAttributeAccessIssue]
    return functools.reduce(jnp.add, weights)


def _ranked(y: jax.Array, allowed: jax.Array) -> jax.Array:
    """The allowed coordinates from the largest to the smallest, then zeros."""
    descending = -jnp.sort(-jnp.where(allowed, y, -jnp.inf), axis=-1)
    return jnp.where(descending == -jnp.inf, 0, descending)


@tree_class
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
        return jnp.maximum(kept - 1 - ranks(kept, d), 0).astype(dtype)


@tree_class
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
        return jnp.where(serving(self.weights, kept, d), self.weights, 0).astype(dtype)


def ranks(kept: jax.Array, d: int) -> jax.Array:
    """0, 1, ..., d - 1 along the slice, in the rank of `kept`."""
    return jnp.arange(d, dtype=kept.dtype).reshape((1,) * (kept.ndim - 1) + (d,))


def count(allowed: jax.Array) -> jax.Array:
    """How many positions are allowed, int32 `(..., 1)`."""
    return jnp.sum(allowed, axis=-1, keepdims=True, dtype=jnp.int32)


def serving(weights: jax.Array, kept: jax.Array, d: int) -> jax.Array:
    """Whether a weight along the slice serves: as many do, from the first, as positions are kept; and NaN, out of
    range, spoils the slice even where it serves no rank."""
    return (ranks(kept, d) < kept) | jnp.isnan(weights)


def _greatest(weights: jax.Array) -> jax.Array:
    """The greatest of some weights along the slice, one of which may stand for all."""
    return jnp.max(weights, axis=-1, keepdims=True, initial=0) if weights.ndim else weights


def _spoiled(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Scores that are NaN where a weight is: a prox only compares with its weights, which would hide it."""
    bad = jnp.isnan(weights)
    return jnp.where(bad.any(axis=-1, keepdims=True) if bad.ndim else bad, jnp.nan, x)
