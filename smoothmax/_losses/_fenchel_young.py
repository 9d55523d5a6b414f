r"""Fenchel-Young losses: the loss that belongs to each regularizer.

$$L_\Omega(x, t) = \max_\Omega(x) + \Omega(t) - \langle x, t \rangle \;\ge\; 0$$

It is convex in the scores, its gradient is `Pi_Omega(x) - t`, and it is zero exactly where `Pi_Omega(x) = t`. Softmax
gives cross-entropy, sparsemax the sparsemax loss.

The value is computed as a difference of like terms, with y = Pi_Omega(x):

    L(x, t) = <x, y - t> - (Omega(y) - Omega(t)),

whose terms vanish where y = t: the three terms of the definition would leave the rounding of the scores. (Compiled, the
two values of Omega may still differ in their last bits.) The derivatives, of every order, are those of the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._arrays import as_array, check_real, eps
from .._cache import compiled
from .._conjugate import Operator, conjugate
from .._parameters import as_floats, index
from .._regularizers import Base, Regularizer
from .._slices import Axis, mask, masked, normal_axes

Omega = Regularizer | Operator | Callable[..., jax.Array]


def fenchel_young_loss(
    logits: jax.typing.ArrayLike,
    targets: jax.typing.ArrayLike,
    omega: Omega,
    axis: Axis = -1,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The Fenchel-Young loss of scores against a target, unreduced.

    $$L_{\Omega, D}(x, t) = \max_{\Omega, D}(x) + \Omega(t) - \langle x, t \rangle$$

    Args:
      logits: scores `x`, of any real dtype.
      targets: points `t` of the domain along `axis`, in the shape of `logits`. Over the simplex they are distributions:
        non-negative, of sum one.
      omega: the regularizer, a function of y, or an operator made from either by `conjugate`. An operator may have
        another domain: targets are then k-hot over the capped simplex, any subset over the box, and a permutation of
        the weights over the permutahedron.
      axis: the axis of the classes; a tuple or None for one target over several axes.
      where: boolean mask that broadcasts to `logits`: False takes a class out of the problem, whatever its score and
        its target hold.

    Returns:
      Losses in the dtype of `logits`, of its shape without `axis`. Never negative, and zero where the weights equal the
      targets, up to some ulps of Omega; infinite when a target is positive where the score is -inf; zero for a slice
      with nothing allowed.

    Raises:
      ValueError: `targets` do not have the shape of `logits`, or `axis` is out of range.
      TypeError: `logits` are complex or boolean, `targets` complex, or `where` is not boolean.

    Example:
      >>> import jax, jax.numpy as jnp, smoothmax as sm
      >>> x, t = jnp.array([2.0, 0.5, -1.0]), jnp.array([0.5, 0.5, 0.0])
      >>> print(sm.fenchel_young_loss(x, t, sm.SquaredL2()))
      0.5
      >>> print(jax.grad(sm.fenchel_young_loss)(x, t, sm.SquaredL2()))  # sparsemax(x) - t
      [ 0.5 -0.5  0. ]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020.
    """
    x, t = as_array("logits", logits), as_array("targets", targets)
    if t.shape != x.shape:
        raise ValueError(
            f"targets of shape {t.shape} must have the shape of logits, {x.shape}: one number for each "
            "class; for labels use fenchel_young_loss_with_integer_labels"
        )
    check_real("targets", t)
    axes, op = normal_axes(axis, x.shape, "logits"), as_floats(conjugate(omega))
    op.over.check_room(x.shape, axes)
    return _against_targets(op, x, t, where, axes=tuple(a - x.ndim for a in axes))


def fenchel_young_loss_with_integer_labels(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    omega: Omega,
    axis: int = -1,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The Fenchel-Young loss against one true class a slice, unreduced.

    $$L_\Omega(x, e_k) = \max_\Omega(x) + \Omega(e_k) - x_k$$

    No array of one-hot vectors is made.

    Args:
      logits: scores `x`, of any real dtype.
      labels: integers `k` from 0 to the number of classes less one, in the shape of `logits` without `axis`.
      omega: the regularizer, a function of y, or an operator made from either by `conjugate` over a domain that holds
        the one-hot vectors: the simplex, or the box.
      axis: the axis of the classes.
      where: boolean mask that broadcasts to `logits`: False takes a class out of the problem.

    Returns:
      Losses in the dtype of `logits`, in the shape of `labels`. Infinite for a class that is masked or has the score
      -inf, NaN for a label out of range, zero for a slice with nothing allowed, whatever its label.

    Raises:
      TypeError: `labels` are not integers, `axis` is not one, `logits` are complex or boolean, or `where` is not
        boolean.
      ValueError: `labels` do not have the shape of `logits` without `axis`, or the domain has no one-hot vectors.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.fenchel_young_loss_with_integer_labels(x, jnp.array([0, 2]), sm.SquaredL2()))
      [0.    0.243]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020.
    """
    x, k = as_array("logits", logits), check_labels(labels)
    try:
        axis = index(axis)
    except TypeError:
        raise TypeError(
            f"axis must be one integer, got {axis!r}: a label counts along a single axis; use fenchel_young_loss for "
            "several"
        ) from None
    [along] = normal_axes(axis, x.shape, "logits")
    expected = x.shape[:along] + x.shape[along + 1 :]
    if k.shape != expected:
        raise ValueError(
            f"labels of shape {k.shape} must have the shape of logits {x.shape} without axis {axis}, "
            f"{expected}: give one class for each slice"
        )
    return against_labels(operator_for_labels(omega), x, k, where, axis=along - x.ndim)


def check_labels(labels: jax.typing.ArrayLike) -> jax.Array:
    labels = jnp.asarray(as_array("labels", labels))
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}: for distributions use fenchel_young_loss")
    return labels


def operator_for_labels(omega: Omega) -> Operator:
    """The operator, if its domain holds the one-hot vectors."""
    op = as_floats(conjugate(omega))
    if not op.over.has_vertices:
        raise ValueError(
            f"labels are points of the simplex or the box, got omega over {op.over!r}, which holds no one-hot vectors: "
            "give targets of that domain to fenchel_young_loss"
        )
    return op


# --- The two forms: any target, and a vertex -----------------------------------------------------------------


@partial(compiled, static_argnames="axes")
def _against_targets(
    op: Operator, logits: jax.Array, targets: jax.Array, where: Any, *, axes: tuple[int, ...]
) -> jax.Array:
    dtype, x = masked(logits, where)
    t = targets.astype(x.dtype)
    t = t if where is None else jnp.where(mask(where, t), t, 0)
    allowed = x != -jnp.inf
    at_target = op.omega(t, axes, where=allowed)
    y = op.argmax(x, axes)
    x, t, allowed = (_like(y, array) for array in (x, t, allowed))
    top = jnp.max(x, axis=axes, keepdims=True)
    offset = _offset(op, top)
    linear = jnp.sum(jnp.where(y == t, 0, (x - offset) * (y - t)), axis=axes)  # inf where t > 0 and x = -inf
    linear += offset.squeeze(axes) * _excess(y, t, axes)
    value = linear - (op.omega(y, axes, where=allowed) - at_target)
    definition = op.max(x, axes) + at_target - jnp.sum(jnp.where(allowed, x, 0) * t, axis=axes)
    return _loss(value, definition, jnp.any(allowed, axes)).astype(dtype)


@partial(compiled, static_argnames="axis")
def against_labels(op: Operator, logits: jax.Array, labels: jax.Array, where: Any, *, axis: int) -> jax.Array:
    """The loss against one-hot targets, which are never made: the compiler compares each position with the label.

    Several passes over a large vocabulary are what this costs, so nothing is masked twice: -inf says what is deleted.
    """
    dtype, x = masked(logits, where)
    labels = labels if labels.dtype.itemsize > 4 else labels.astype(jnp.int32)
    hit = jax.lax.broadcasted_iota(labels.dtype, x.shape, x.ndim + axis) == jnp.expand_dims(labels, axis)
    support_only = all(isinstance(atom, Base) and not atom.counts_zeros for atom in op.omega.atoms())
    if support_only:  # then e_k is a slice of the one number 1
        allowed, at_label = None, op.omega(jnp.ones_like(jnp.max(x, axis, keepdims=True)), axis)
    else:
        allowed = x != -jnp.inf
        at_label = op.omega(hit.astype(x.dtype), axis, where=allowed)
    y = op.argmax(x, axis)
    x, hit = _like(y, x), _like(y, hit)
    top = jnp.max(x, axis, keepdims=True)
    offset = _offset(op, top)
    index = jnp.expand_dims(labels, axis)
    index = index.reshape((1,) * (y.ndim - index.ndim) + index.shape)
    of_label = jnp.take_along_axis(x, index, axis).squeeze(axis)  # -inf for a class that is deleted: an infinite loss
    # A maximum makes -inf finite, and its weight makes it 0. (XLA adds up what comes from a maximum as it goes, but
    # stores what comes from a select.)
    below = jnp.maximum(x - offset, jnp.finfo(x.dtype).min)
    linear = jnp.sum(below * y, axis) - (of_label - offset.squeeze(axis))
    value = linear - (op.omega(y, axis, where=allowed) - at_label)
    definition = op.max(x, axis) + at_label - jnp.sum(jnp.where(hit & (x != -jnp.inf), x, 0), axis)
    some = jnp.any(x != -jnp.inf, axis)
    known = (labels >= 0) & (labels < logits.shape[axis])
    return jnp.where(known | ~some, _loss(value, definition, some), jnp.nan).astype(dtype)


def _like(y: jax.Array, array: jax.Array) -> jax.Array:
    """An array of the scores' shape in that of the weights, which have the batch axes of the hyper-parameters too."""
    return jnp.broadcast_to(array.reshape((1,) * (y.ndim - array.ndim) + array.shape), y.shape)


def _offset(op: Operator, top: jax.Array) -> jax.Array:
    """What is taken from all scores of a slice where y and t have the same sum: it spares <x, y - t> its rounding.

    Over another domain, such as the box, the scores count as they are.
    """
    return jnp.where(jnp.isfinite(top) & op.over.shift_invariant, top, 0)


def _excess(y: jax.Array, t: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """By how much the sum of the weights exceeds that of the targets, if by more than their rounding: where the targets
    are not quite points of the domain, as while the k of a top-k is learned, the definition still holds."""
    excess = jnp.sum(y, axis=axes) - jnp.sum(t, axis=axes)
    rounding = math.prod(y.shape[a] for a in axes) * eps(y) * jnp.sum(jnp.abs(y), axis=axes)
    return jnp.where(jnp.abs(excess) > rounding, excess, 0)


def _loss(value: jax.Array, definition: jax.Array, some: jax.Array) -> jax.Array:
    """The value with the derivatives of the definition; zero where nothing is allowed."""
    return jax.lax.stop_gradient(jnp.where(some, value, 0)) + _derivative_of(jnp.where(some, definition, 0))


@jax.custom_jvp
def _derivative_of(definition: jax.Array) -> jax.Array:
    """Zero, with the derivatives of its argument, whose value is then never computed."""
    return jnp.zeros_like(definition)


@_derivative_of.defjvp
def _derivative_of_jvp(primals: Any, tangents: Any) -> Any:
    return jnp.zeros_like(primals[0]), tangents[0]
