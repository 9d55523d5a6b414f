"""Projection onto the permutahedron, the convex hull of all permutations of some weights.

    minimise over y in P(w)   1/2 sum_i (y_i - z_i)^2,   z = x / gamma

In decreasing order of the scores, ``y = z - t`` with t the non-increasing regression of z - w: a pool of t shares its
weights, ``y_i = mean of w + (z_i - mean of z)`` over the pool. In this form a pool of one gets its weight exactly,
however large its score.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from ._chain import chain_prox, segment_mean
from ._products import product
from ._sorting import put_back, sort_descending, take


def project_permutahedron(
    x: jax.Array, gamma: jax.Array, weights: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The projection of x / gamma onto the permutahedron of the weights of each slice.

    Args:
      x: scores `(*batch, d)`, float32 or float64; -inf deletes a position.
      gamma: greater than 0, of the dtype of `x`: `()`, or `(*batch or ones, 1)`.
      weights: `(*batch, d)`, non-increasing over as many ranks as there are allowed positions, and 0 past them.
      implementation: None for the best one, or its name in the table of `_kernels`.

    Returns:
      y `(*batch, d)`, 0 at deleted positions; the positions by decreasing score, int32 `(*batch, d)`; and int8
      `(*batch, d)`, nonzero where a pool ends in that order. NaN for a slice with NaN, +inf or a NaN hyper-parameter.
    """
    # An implementation that has no kernel for the whole may have one for the chain in it.
    reference = functools.partial(_project_permutahedron, implementation=implementation)
    return _kernels.run("permutahedron", implementation, reference, x, gamma, weights, optional=True)


def _project_permutahedron(
    x: jax.Array, gamma: jax.Array, weights: jax.Array, implementation: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    scores, order = sort_descending(x)
    real = scores != -jnp.inf
    z, up = _runs(scores, weights, gamma)
    none = jnp.zeros((), x.dtype)
    t, ties = chain_prox(jnp.where(real, z - weights, -jnp.inf), up, none, implementation=implementation)
    count = real.astype(x.dtype)
    shared, mean = (segment_mean(v, ties, count, implementation=implementation) for v in (weights, z))
    bad = jnp.any(jnp.isnan(t) | jnp.isnan(x) | jnp.isnan(weights) | (x == jnp.inf), axis=-1, keepdims=True)
    y = jnp.where(real, jnp.where(bad, jnp.nan, shared + (z - mean)), 0)
    return put_back(y, order), order, ties


def _runs(scores: jax.Array, weights: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorted scores cut into runs, each measured from its first score, in units of gamma; and the penalty of a rise.

    Where neighbours are further apart than any two weights, no pool spans them: the border is free. Within a run the
    scores are of the size of the weights, so that their rounding is too, however far apart the runs are.
    """
    spread = jnp.max(weights, axis=-1, keepdims=True) - jnp.min(weights, axis=-1, keepdims=True)
    cut = ~((scores[..., :-1] - scores[..., 1:]) / gamma <= spread)
    position = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    starts = jnp.concatenate([jnp.ones_like(scores[..., :1], bool), cut], axis=-1)
    first = lax.cummax(jnp.where(starts, position, 0), axis=scores.ndim - 1)
    # Not `take`: positions of one run share their first one, which is no order.
    z = (scores - jnp.take_along_axis(scores, first, -1, mode="promise_in_bounds")) / gamma
    return jnp.where(scores == -jnp.inf, 0, z), jnp.where(cut, 0, jnp.inf).astype(scores.dtype)


def group_mean(
    v: jax.Array, order: jax.Array, ties: jax.Array, weight: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """`segment_mean` over groups that are segments in sorted order: of the positions with weight 1, 0 at those with 0.

    Args:
      v: `(*batch, d)`; linear in it.
      order: int32 `(*batch, d)`: the positions in sorted order.
      ties: int8 `(*batch, d)`: nonzero where a group ends, in that order.
      weight: `(*batch, d)`, 0 or 1, of the dtype of `v`.
    """
    reference = functools.partial(_group_mean, implementation=implementation)
    return product("group_mean", implementation, reference, v, order, ties, weight)


def _group_mean(
    v: jax.Array, order: jax.Array, ties: jax.Array, weight: jax.Array, implementation: str | None
) -> jax.Array:
    mean = segment_mean(take(v * weight, order), ties, take(weight, order), implementation=implementation)
    return put_back(mean, order) * weight
