"""The named mappings from scores to probabilities; `_values.py` has the max operators whose gradients they are.

Each name is short for an expression: `entmax(x, alpha=1.3, gamma=2.0)` is
`conjugate(2.0 * Tsallis(1.3)).argmax(x)`, and `entmax_value` the same with `max`. What holds for all of them:

* scores may have any real dtype; half precision is computed in float32, and results have the dtype of the scores
  (integers become floats);
* `axis` is an int, a tuple (one distribution over the flattened axes) or None (over the whole array);
* `where=False` deletes a position, as a score of -inf does: weight and gradient are zero there whatever it holds, and
  the rest is as if it were absent. A slice with nothing allowed has zero weights and the value -inf;
* `gamma`, `alpha`, `p` and `lam` may be numbers, traced values or arrays that broadcast with the scores and have size 1
  along `axis`, such as alpha of shape `(heads, 1, 1)` for scores `(batch, heads, queries, keys)`; all have gradients;
* `implementation` says how to solve, as for `conjugate`; None takes the best that serves;
* a `ValueError` says when `axis` is out of range or empty, `where` does not broadcast, or a hyper-parameter whose value
  is known lies outside its range (one that is traced gives NaN); a `TypeError` when `x` is complex or boolean, or
  `where` is not boolean; a `NotImplementedError` when a named implementation cannot serve.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
from jax.typing import ArrayLike

from . import _expressions
from ._conjugate import Operator, conjugate, mapping
from ._parameters import Parameter
from ._regularizers import Regularizer
from ._slices import Axis


def _weights(
    omega: Regularizer, x: ArrayLike, axis: Axis, where: ArrayLike | None, implementation: str | None
) -> jax.Array:
    return conjugate(omega, implementation=implementation).argmax(x, axis, where=where)


@mapping
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""Softmax: the gradient mapping of Shannon's negative entropy.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle - \gamma \sum_i y_i \log y_i$$

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; the temperature.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.softmax(jnp.array([1.0, 0.9, -1.0])))
      [0.49  0.444 0.066]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _weights(_expressions.softmax(gamma), x, axis, where, implementation)


@mapping
def sparsemax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""Sparsemax: the Euclidean projection of `x / gamma` onto the simplex.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle - \frac{\gamma}{2} \sum_i y_i^2$$

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; greater is denser.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.sparsemax(jnp.array([1.0, 0.9, -1.0])))
      [0.55 0.45 0.  ]

    Reference:
      Martins and Astudillo, "From Softmax to Sparsemax", 2016.
    """
    return _weights(_expressions.sparsemax(gamma), x, axis, where, implementation)


@mapping
def entmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    alpha: Parameter = 1.5,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""Entmax: from softmax to sparsemax and beyond, by one number.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle - \gamma \frac{\sum_i y_i^\alpha - 1}{\alpha (\alpha - 1)}$$

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      alpha: at least 1: softmax at 1, sparsemax at 2, sparser beyond.
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; greater is denser.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `alpha` and `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis`, `alpha` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.entmax(jnp.array([1.0, 0.9, -1.0])))
      [0.535 0.465 0.   ]

    Reference:
      Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models", 2019.
    """
    return _weights(_expressions.entmax(alpha, gamma), x, axis, where, implementation)


@mapping
def pnormmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    p: Parameter = 1.5,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The gradient mapping of the squared p-norm: sparse, and smoother than sparsemax.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle - \frac{\gamma}{2} \lVert y \rVert_p^2$$

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      p: greater than 1, at most 2 (sparsemax).
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; greater is denser.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `p` and `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis`, `p` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.pnormmax(jnp.array([1.0, 0.9, -1.0])))
      [0.579 0.421 0.   ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _weights(_expressions.pnormmax(p, gamma), x, axis, where, implementation)


@mapping
def fusedmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    lam: Parameter = 0.1,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""Fusedmax: sparse weights, equal within contiguous segments.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle
      - \gamma \Bigl( \frac12 \sum_i y_i^2 + \lambda \sum_i \lvert y_{i+1} - y_i \rvert \Bigr)$$

    The order of the positions along `axis` matters; the neighbours of a deleted position become neighbours.

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      lam: strength of the total variation, zero (sparsemax) or positive.
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; it scales both terms.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `lam` and `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis`, `lam` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.fusedmax(jnp.array([1.0, 0.9, -1.0])))
      [0.5 0.5 0. ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _weights(_expressions.fusedmax(lam, gamma), x, axis, where, implementation)


@mapping
def oscarmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    lam: Parameter = 0.01,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""Oscarmax: sparse weights, equal within groups of positions wherever they stand.

    $$\arg\max_{y \in \triangle} \langle x, y \rangle
      - \gamma \Bigl( \frac12 \sum_i y_i^2 + \lambda \sum_{i<j} \max(y_i, y_j) \Bigr)$$

    Args:
      x: scores.
      axis: the axis or axes of the distribution.
      lam: strength of the pairwise maxima, zero (sparsemax) or positive.
      where: boolean mask that broadcasts to `x`; False deletes a position.
      gamma: strength of the regularizer, positive; it scales both terms.
      implementation: None | "xla" | "native" | "pallas".

    Returns:
      Weights in the dtype of `x` and in its shape, broadcast with `lam` and `gamma`: non-negative, of sum one along
      `axis`.

    Raises:
      ValueError: `axis`, `lam` or `gamma` is out of range, or a shape does not broadcast.
      TypeError: `x` is complex or boolean, or `where` is not boolean.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.oscarmax(jnp.array([1.0, 0.9, -1.0])))
      [0.545 0.455 0.   ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _weights(_expressions.oscarmax(lam, gamma), x, axis, where, implementation)


_NAMED = (
    (softmax, _expressions.softmax),
    (sparsemax, _expressions.sparsemax),
    (entmax, _expressions.entmax),
    (pnormmax, _expressions.pnormmax),
    (fusedmax, _expressions.fusedmax),
    (oscarmax, _expressions.oscarmax),
)


def operator_of(mapping: Any) -> Operator | None:
    """The operator that a named mapping, with or without hyper-parameters, is short for; None for another function."""
    given: dict[str, Any] = {}
    while isinstance(mapping, functools.partial) and not mapping.args:
        given, mapping = {**mapping.keywords, **given}, mapping.func
    if isinstance(mapping, Operator):
        return None if given else conjugate(mapping)
    implementation = given.pop("implementation", None)
    for named, expression in _NAMED:
        if mapping is not named:
            continue
        takes = inspect.signature(expression).parameters
        if given.keys() <= takes.keys():
            defaults = inspect.signature(named).parameters
            parameters = {name: given.get(name, defaults[name].default) for name in takes}
            return conjugate(expression(**parameters), implementation=implementation)
    return None
