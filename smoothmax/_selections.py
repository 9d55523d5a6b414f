"""Which of them, and in which order: soft top-k, soft ranks and soft sorting.

Each is an operator over a domain other than the simplex: `soft_topk(x, k, gamma=g)` is
`conjugate(g * SquaredL2(), over=CappedSimplex(k)).argmax(x)`, `soft_rank` is the projection of the scores onto the
permutahedron of 1, ..., d, and `soft_sort` that of 1, ..., d onto the permutahedron of the scores. Small gamma gives
the hard answer, exactly once it is small enough; greater gamma softens it. What the head of `_operators.py` says of
dtypes, axes, masks, hyper-parameters and errors holds here too.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ._arrays import as_array, by_partitioner, varying_like
from ._conjugate import Operator, conjugate, mapping
from ._domains import CappedSimplex, Ranks, Sorted
from ._parameters import NON_NEGATIVE, Parameter, as_floats, checked
from ._regularizers import SquaredL2
from ._slices import Axis, normal_axes, to_slices


@mapping
def soft_topk(
    x: ArrayLike,
    k: Parameter,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""A sparse, differentiable choice of `k` positions: the projection of `x / gamma` onto the capped simplex.

    $$\arg\max_{0 \le y \le 1, \, \sum_i y_i = k} \langle x, y \rangle - \frac{\gamma}{2} \sum_i y_i^2$$

    No sort is made. `k` need not be an integer, may be traced, and has a gradient.

    Args:
      x: scores.
      k: the sum of the weights, from 0 to the number of positions; one value a slice.
      axis: the axis or axes of the choice.
      where: boolean mask that broadcasts to `x`; False deletes a position. A slice with fewer than `k` positions left
        gives NaN.
      gamma: strength of the regularizer, positive; greater is softer.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `k` and `gamma`: from 0 to 1, of sum `k` along
      `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([3.0, 0.3, -1.0, 0.5])
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.soft_topk(x, 2), sm.soft_topk(x, 2, gamma=0.1))
      [1.  0.4 0.  0.6] [1. 0. 0. 1.]

    Reference:
      Malaviya, Ferreira and Martins, "Sparse and Constrained Attention for Neural Machine Translation", 2018.
    """
    over = CappedSimplex(checked("k", k, NON_NEGATIVE))
    op = conjugate(gamma * SquaredL2(), over, implementation=implementation)
    return op.argmax(x, axis, where=where)


@mapping
def soft_rank(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    descending: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    r"""Differentiable ranks, 1 for the smallest: the projection of `x / gamma` onto the permutahedron of 1, ..., d.

    $$\arg\max_{y \in \mathcal{P}(1, \dots, d)} \langle x, y \rangle - \frac{\gamma}{2} \sum_i y_i^2$$

    Args:
      x: scores.
      axis: the axis or axes along which to rank.
      where: boolean mask that broadcasts to `x`; a position at False has rank 0 and is not counted.
      gamma: strength of the regularizer, positive; greater moves the ranks of close scores together.
      descending: 1 for the largest instead.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Ranks in the dtype of `x` and in its shape, broadcast with `gamma`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([2.0, -1.0, 0.1])
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.soft_rank(x, gamma=0.5), sm.soft_rank(x, gamma=4.0), sm.soft_rank(x, gamma=0.5, descending=True))
      [3. 1. 2.] [2.408 1.658 1.933] [1. 3. 2.]

    Reference:
      Blondel, Teboul, Berthet and Djolonga, "Fast Differentiable Sorting and Ranking", 2020.
    """
    op = conjugate(gamma * SquaredL2(), Ranks(), implementation=implementation)
    return _compiled(_ranks, op, x, axis, where, descending)


@mapping
def soft_sort(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    descending: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    r"""Differentiable sorting, ascending: the projection of `(1, ..., d) / gamma` onto the permutahedron of the scores.

    $$\arg\max_{y \in \mathcal{P}(x)} \langle (1, \dots, d), y \rangle - \frac{\gamma}{2} \sum_i y_i^2$$

    Args:
      x: scores.
      axis: the axis or axes along which to sort.
      where: boolean mask that broadcasts to `x`; a position at False holds 0, and the others hold what is allowed,
        sorted as if nothing else were there.
      gamma: strength of the regularizer, positive; greater moves neighbours together.
      descending: the largest first instead.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Sorted values in the dtype of `x` and in its shape, broadcast with `gamma`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([2.0, -1.0, 0.1])
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.soft_sort(x, gamma=0.1), sm.soft_sort(x, gamma=1.0))
      [-1.   0.1  2. ] [-0.633  0.367  1.367]

    Reference:
      Blondel, Teboul, Berthet and Djolonga, "Fast Differentiable Sorting and Ranking", 2020.
    """
    op = conjugate(gamma * SquaredL2(), implementation=implementation)
    return _compiled(_sorted, op, x, axis, where, descending)


# Compiled as a whole, so that what a mask hides is not computed with where someone looks for NaN.


def _compiled(run: Any, op: Operator, x: Any, axis: Axis, where: Any, descending: bool) -> jax.Array:
    x, where = as_array("x", x), None if where is None else as_array("where", where)
    normal_axes(axis, x.shape)  # raises where jit would, of a list, with a word of its own
    if not isinstance(descending, bool):
        raise TypeError(f"descending must be True or False, got {descending!r}: give one of them, not an array")
    return by_partitioner(partial(run, axis=axis, descending=descending), x)(as_floats(op), x, where)


@partial(jax.jit, static_argnames=("axis", "descending"))
def _ranks(op: Operator, x: jax.Array, where: Any, *, axis: Axis, descending: bool) -> jax.Array:
    slices, [omega], layout = to_slices(x, axis, where, op.omega)
    y = dataclasses.replace(op, omega=omega).argmax(slices)
    if descending:
        y = _from_the_end(y, slices != -jnp.inf)
    return layout.weights(y)


@partial(jax.jit, static_argnames=("axis", "descending"))
def _sorted(op: Operator, x: jax.Array, where: Any, *, axis: Axis, descending: bool) -> jax.Array:
    slices, [omega], layout = to_slices(x, axis, where, op.omega)
    left = slices != -jnp.inf
    places = _places(left).astype(slices.dtype)
    if descending:
        places = _from_the_end(places, left)
    y = dataclasses.replace(op, omega=omega, over=Sorted(slices)).argmax(places, where=left)
    return layout.weights(y)


def _from_the_end(places: jax.Array, left: jax.Array) -> jax.Array:
    """Places, or soft ones, counted from the other end: both counts add up to n + 1."""
    n = jnp.sum(left, axis=-1, keepdims=True, dtype=places.dtype)
    return jnp.where(left, n + 1, 0) - places


def _places(left: jax.Array) -> jax.Array:
    """1, 2, ... at what is left, as if nothing else were there."""
    # A sum along the slice costs several softmaxes on a CPU, and is for holes alone.
    dense = jnp.all(left[..., 1:] <= left[..., :-1])
    position = varying_like(lax.broadcasted_iota(jnp.int32, left.shape, left.ndim - 1), left)
    return lax.cond(dense, lambda: position + 1, lambda: jnp.cumsum(left, axis=-1, dtype=jnp.int32))
