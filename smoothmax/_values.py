"""The max operators whose gradients the named mappings are: `sparsemax_value` is the value, `sparsemax` its gradient.

Arguments, shapes, dtypes and errors are those of the mappings: see the head of `_operators.py`.
"""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from . import _expressions
from ._conjugate import conjugate, mapping
from ._parameters import Parameter
from ._regularizers import Regularizer
from ._slices import Axis


def _value(
    omega: Regularizer, x: ArrayLike, axis: Axis, where: ArrayLike | None, implementation: str | None
) -> jax.Array:
    return conjugate(omega, implementation=implementation).max(x, axis, where=where)


@mapping
def softmax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of Shannon's negative entropy: `gamma * logsumexp(x / gamma)`.

    $$\max_{y \in \triangle} \langle x, y \rangle - \gamma \sum_i y_i \log y_i$$

    Its gradient in `x` is `softmax`.

    Args:
      x, axis, where, gamma, implementation: as for `softmax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.softmax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      1.713

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _value(_expressions.softmax(gamma), x, axis, where, implementation)


@mapping
def sparsemax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of the squared Euclidean norm.

    $$\max_{y \in \triangle} \langle x, y \rangle - \frac{\gamma}{2} \sum_i y_i^2$$

    Its gradient in `x` is `sparsemax`.

    Args:
      x, axis, where, gamma, implementation: as for `sparsemax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.sparsemax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      0.702

    Reference:
      Martins and Astudillo, "From Softmax to Sparsemax", 2016.
    """
    return _value(_expressions.sparsemax(gamma), x, axis, where, implementation)


@mapping
def entmax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    alpha: Parameter = 1.5,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of Tsallis' negative entropy.

    $$\max_{y \in \triangle} \langle x, y \rangle - \gamma \frac{\sum_i y_i^\alpha - 1}{\alpha (\alpha - 1)}$$

    Its gradient in `x` is `entmax`.

    Args:
      x, axis, alpha, where, gamma, implementation: as for `entmax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.entmax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      1.342

    Reference:
      Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models", 2019.
    """
    return _value(_expressions.entmax(alpha, gamma), x, axis, where, implementation)


@mapping
def pnormmax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    p: Parameter = 1.5,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of the squared p-norm.

    $$\max_{y \in \triangle} \langle x, y \rangle - \frac{\gamma}{2} \lVert y \rVert_p^2$$

    Its gradient in `x` is `pnormmax`.

    Args:
      x, axis, p, where, gamma, implementation: as for `pnormmax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.pnormmax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      0.639

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _value(_expressions.pnormmax(p, gamma), x, axis, where, implementation)


@mapping
def fusedmax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    lam: Parameter = 0.1,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of the squared norm with total variation.

    $$\max_{y \in \triangle} \langle x, y \rangle
      - \gamma \Bigl( \frac12 \sum_i y_i^2 + \lambda \sum_i \lvert y_{i+1} - y_i \rvert \Bigr)$$

    Its gradient in `x` is `fusedmax`.

    Args:
      x, axis, lam, where, gamma, implementation: as for `fusedmax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.fusedmax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      0.650

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _value(_expressions.fusedmax(lam, gamma), x, axis, where, implementation)


@mapping
def oscarmax_value(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    lam: Parameter = 0.01,
    where: ArrayLike | None = None,
    gamma: Parameter = 1.0,
    implementation: str | None = None,
) -> jax.Array:
    r"""The regularized max of the squared norm with pairwise maxima.

    $$\max_{y \in \triangle} \langle x, y \rangle
      - \gamma \Bigl( \frac12 \sum_i y_i^2 + \lambda \sum_{i<j} \max(y_i, y_j) \Bigr)$$

    Its gradient in `x` is `oscarmax`.

    Args:
      x, axis, lam, where, gamma, implementation: as for `oscarmax`.

    Returns:
      Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.oscarmax_value(jnp.array([1.0, 0.9, -1.0])):.3f}")
      0.687

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    return _value(_expressions.oscarmax(lam, gamma), x, axis, where, implementation)
