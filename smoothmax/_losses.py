r"""Fenchel-Young losses: the loss that belongs to each regularizer.

$$L_\Omega(x, t) = \max_\Omega(x) + \Omega(t) - \langle x, t \rangle \;\ge\; 0$$

It is convex in the scores, its gradient is `Pi_Omega(x) - t`, and it is zero exactly where `Pi_Omega(x) = t`. Softmax
gives cross-entropy, sparsemax the sparsemax loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ._conjugate import Operator, conjugate
from ._regularizers import Regularizer
from ._slices import Axis, dtypes, mask, normal_axes


def fenchel_young_loss(
    logits: jax.typing.ArrayLike,
    targets: jax.typing.ArrayLike,
    omega: Regularizer | Operator | Callable[..., jax.Array],
    axis: Axis = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The Fenchel-Young loss of scores against a target distribution, unreduced.

    $$L_\Omega(x, t) = \max_\Omega(x) + \Omega(t) - \langle x, t \rangle$$

    Args:
      logits: scores `x`.
      targets: distributions `t` along `axis`, in the shape of `logits`: non-negative, of sum one.
      omega: the regularizer, or an operator made from it by `conjugate`.
      axis: the axis of the classes; a tuple or None for one distribution over several axes.
      where: boolean mask that broadcasts to `logits`: False takes a class out of the problem.

    Returns:
      Losses in the dtype of `logits`, of its shape without `axis`. Never negative beyond rounding; zero exactly when
      the weights equal the targets; infinite when a target is positive where the score is -inf; zero for a slice with
      nothing allowed.

    Raises:
      ValueError: `targets` do not have the shape of `logits`.

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
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets of shape {targets.shape} must have the shape of logits, {logits.shape}: one probability for each "
            "class; for labels use fenchel_young_loss_with_integer_labels"
        )
    op = conjugate(omega)
    return _loss(op, logits, targets, where, axis=axis)


def fenchel_young_loss_with_integer_labels(
    logits: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    omega: Regularizer | Operator | Callable[..., jax.Array],
    axis: int = -1,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    r"""The Fenchel-Young loss against one true class a slice, unreduced.

    $$L_\Omega(x, e_k) = \max_\Omega(x) + \Omega(e_k) - x_k$$

    Args:
      logits: scores `x`.
      labels: integers `k` from 0 to the number of classes less one, in the shape of `logits` without `axis`.
      omega: the regularizer, or an operator made from it by `conjugate`.
      axis: the axis of the classes.
      where: boolean mask that broadcasts to `logits`: False takes a class out of the problem.

    Returns:
      Losses in the dtype of `logits`, in the shape of `labels`; NaN for a label out of range.

    Raises:
      TypeError: `labels` are not integers, or `axis` is not one.
      ValueError: `labels` do not have the shape of `logits` without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.fenchel_young_loss_with_integer_labels(x, jnp.array([0, 2]), sm.SquaredL2()))
      [0.    0.243]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}: for distributions use fenchel_young_loss")
    if not isinstance(axis, int):
        raise TypeError(f"axis must be one integer, got {axis!r}: a label counts along a single axis")
    [along] = normal_axes(axis, logits)
    classes, expected = logits.shape[along], logits.shape[:along] + logits.shape[along + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"labels of shape {labels.shape} must have the shape of logits {logits.shape} without axis {axis}, "
            f"{expected}: one class for each slice"
        )
    targets = jax.nn.one_hot(labels, classes, axis=axis, dtype=jnp.result_type(float))
    loss = _loss(conjugate(omega), logits, targets, where, axis=axis)
    return jnp.where((labels >= 0) & (labels < classes), loss, jnp.nan)


@partial(jax.jit, static_argnames="axis")
def _loss(op: Operator, logits: jax.Array, targets: jax.Array, where: Any, *, axis: Axis) -> jax.Array:
    dtype, compute = dtypes(logits)
    x, t = logits.astype(compute), targets.astype(compute)
    allowed = x != -jnp.inf  # a class whose score is -inf is out of the problem, as a masked one is
    if where is not None:
        where = mask(where, x)
        t, allowed = jnp.where(where, t, 0), allowed & where

    # The value is written as a difference of like terms, so that it is exactly zero where y = t: the sum of all three
    # terms would leave their rounding. XLA solves once for `argmax` and `max`.
    y = op.argmax(x, axis, where=allowed)
    top = jnp.max(x, axis=axis, keepdims=True, where=allowed, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0)
    linear = jnp.sum(jnp.where(y == t, 0, (x - top) * (y - t)), axis=axis)
    at_target = op.omega(t, axis, where=allowed)
    value = linear - (op.omega(y, axis, where=allowed) - at_target)

    # The derivatives, of every order, are those of the definition, which adds nothing to the value.
    scores = jnp.where((x == -jnp.inf) | (t == 0), 0, x)
    attained = op.max(x, axis, where=allowed)
    terms = jnp.where(attained == -jnp.inf, 0, attained) + at_target
    definition = terms - jnp.sum(scores * t, axis=axis)
    return (jax.lax.stop_gradient(value) + (definition - jax.lax.stop_gradient(definition))).astype(dtype)
