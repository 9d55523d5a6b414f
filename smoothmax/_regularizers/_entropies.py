"""The bases that one threshold solves: Shannon, SquaredL2, Tsallis and SquaredPNorm.

For each, `y_i = increasing(x_i - tau)` with tau such that the weights add up to one. The Jacobian on the support is
`J = diag(s) - s s' / sum(s)` for a curvature `s`, except for the squared p-norm, whose inverse Hessian has one more
rank. Only the support matters to a derivative: off it `y` is replaced by 1 before a logarithm or a negative power
sees it, so that no 0 * inf arises in any order of differentiation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .._solvers import (
    diagonal_product,
    on_support,
    p_norm_weights,
    softmax_weights,
    sparsemax_weights,
    support_power,
    tsallis_weights,
)
from ._regularizer import Base, Domain, Parameter, guarded, parameter, regularizer

AT_LEAST_ONE = Domain(lambda v: (v >= 1) & (v < jnp.inf), "at least 1 and finite")
ONE_TO_TWO = Domain(lambda v: (v > 1) & (v <= 2), "greater than 1 and at most 2")


@regularizer
class Shannon(Base):
    r"""Shannon's negative entropy, $\Omega(y) = \sum_i y_i \log y_i$: the gradient mapping is softmax.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.Shannon()(jnp.array([0.5, 0.5, 0.0])):.3f}")  # -log 2
      -0.693
      >>> print(sm.conjugate(sm.Shannon())(jnp.zeros(4)))
      [0.25 0.25 0.25 0.25]

    Reference:
      Shannon, "A Mathematical Theory of Communication", 1948.
    """

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return _total(y * jnp.log(on_support(y)))

    def solve(self, z: jax.Array) -> jax.Array:
        return softmax_weights(z)

    def gradient(self, y: jax.Array) -> jax.Array:
        return jnp.log(on_support(y))

    def product(self, y: jax.Array, v: jax.Array) -> jax.Array:
        return diagonal_product(y, v)


@regularizer
class SquaredL2(Base):
    r"""Half the squared Euclidean norm, $\Omega(y) = \frac12 \sum_i y_i^2$: the gradient mapping is sparsemax.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(sm.SquaredL2()(jnp.array([0.5, 0.5, 0.0])))
      0.25
      >>> print(sm.conjugate(sm.SquaredL2())(jnp.array([1.0, 0.5, -1.0])))
      [0.75 0.25 0.  ]

    Reference:
      Martins and Astudillo, "From Softmax to Sparsemax", 2016.
    """

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return _total(y * y) / 2

    def solve(self, z: jax.Array) -> jax.Array:
        return sparsemax_weights(z)

    def gradient(self, y: jax.Array) -> jax.Array:
        return y

    def product(self, y: jax.Array, v: jax.Array) -> jax.Array:
        return diagonal_product(jnp.sign(y), v)


@regularizer
class Tsallis(Base):
    r"""Tsallis' negative entropy, $\Omega(y) = \frac{\sum_i y_i^\alpha - 1}{\alpha(\alpha - 1)}$: entmax.

    `Tsallis(1)` is `Shannon`, its limit; `Tsallis(2)` is `SquaredL2` less 1/2.

    Attributes:
      alpha: at least 1; greater is sparser. An array has size 1 along the axis of the slices.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> heads = sm.Tsallis(jnp.array([1.0, 1.5, 2.0])[:, None])  # one alpha a row
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.conjugate(heads)(jnp.array([[1.0, 0.5, -1.0]])))
      [[0.574 0.348 0.078]
       [0.674 0.326 0.   ]
       [0.75  0.25  0.   ]]

    Reference:
      Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models", 2019.
    """

    alpha: Parameter = parameter(AT_LEAST_ONE)

    # y^(alpha - 1) is written through the deformed logarithm (y^(alpha - 1) - 1) / (alpha - 1), which is log y at
    # alpha = 1. On the simplex sum y^alpha - 1 = sum y (y^(alpha - 1) - 1), so the value has that form too.

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        alpha = guarded(self.alpha, AT_LEAST_ONE)
        return _total(y * _deformed_log(on_support(y), alpha)) / alpha

    def solve(self, z: jax.Array) -> jax.Array:
        return tsallis_weights(z, guarded(self.alpha, AT_LEAST_ONE))

    def gradient(self, y: jax.Array) -> jax.Array:
        return _deformed_log(on_support(y), guarded(self.alpha, AT_LEAST_ONE))

    def product(self, y: jax.Array, v: jax.Array) -> jax.Array:
        alpha = guarded(self.alpha, AT_LEAST_ONE)
        return diagonal_product(support_power(y, 2 - alpha), v)


@regularizer
class SquaredPNorm(Base):
    r"""Half the squared p-norm, $\Omega(y) = \frac12 \lVert y \rVert_p^2$.

    Attributes:
      p: greater than 1 and at most 2, where it is `SquaredL2`. An array has size 1 along the axis of the slices.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> with jnp.printoptions(precision=3, suppress=True):
      ...     print(sm.conjugate(sm.SquaredPNorm(1.5))(jnp.array([1.0, 0.5, -1.0])))
      [0.847 0.153 0.   ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """

    p: Parameter = parameter(ONE_TO_TWO)

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        norm = self._norm(y, guarded(self.p, ONE_TO_TWO))
        return jnp.where(jnp.any(y != 0, axis=-1, keepdims=True), norm**2 / 2, 0)

    def solve(self, z: jax.Array) -> jax.Array:
        return p_norm_weights(z, guarded(self.p, ONE_TO_TWO))

    def gradient(self, y: jax.Array) -> jax.Array:
        p = guarded(self.p, ONE_TO_TWO)
        return self._norm(y, p) ** (2 - p) * support_power(y, p - 1)

    def product(self, y: jax.Array, v: jax.Array) -> jax.Array:
        # With n = norm_p(y), the inverse of the Hessian on the support is
        #     K = (n^(p-2) diag(y^(2-p)) - (2-p) n^-2 y y') / (p - 1),
        # and J = K - K 1 1' K / (1' K 1) keeps the weights on the simplex.
        p = guarded(self.p, ONE_TO_TWO)
        n = self._norm(y, p)
        s = n ** (p - 2) * support_power(y, 2 - p)
        rank_one = (2 - p) / n**2 * y
        k_v = s * v - rank_one * _total(y * v)
        k_1 = s - rank_one * _total(y)
        total = _total(k_1)
        return (k_v - k_1 * (_total(k_v) / jnp.where(total == 0, 1, total))) / (p - 1)

    @staticmethod
    def _norm(y: jax.Array, p: jax.Array) -> jax.Array:
        # A slice without an allowed position has norm 0, which the negative powers above must not see.
        total = _total(support_power(y, p))
        return jnp.where(total == 0, 1, total) ** (1 / p)


def _total(v: jax.Array) -> jax.Array:
    return jnp.sum(v, axis=-1, keepdims=True)


def _deformed_log(y: jax.Array, alpha: jax.Array) -> jax.Array:
    """(y^(alpha - 1) - 1) / (alpha - 1), smooth through alpha = 1 with all its derivatives."""
    log = jnp.log(y)
    return log * _relative_expm1((alpha - 1) * log)


def _relative_expm1(u: jax.Array) -> jax.Array:
    """expm1(u) / u. Near 0 by its Taylor polynomial, whose derivatives are exact where those of the ratio cancel."""
    near = jnp.abs(u) < 1
    small, large = jnp.where(near, u, 0), jnp.where(near, 1, u)
    terms = 20 if u.dtype == jnp.float64 else 12  # the last one is below the rounding of the first
    series = jnp.ones_like(u)
    for k in range(terms, 1, -1):
        series = 1 + small / k * series
    return jnp.where(near, series, jnp.expm1(large) / large)
