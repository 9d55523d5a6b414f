"""The bases that one threshold solves: Shannon, SquaredL2, Tsallis, FermiDirac and SquaredPNorm.

For each, `y_i = increasing(x_i - tau)` with tau such that the weights add up to one. The Jacobian over the simplex is
`J = diag(s) - s s' / sum(s)` on the support for a curvature `s`, except for the squared p-norm, whose inverse Hessian
has one more rank. Only the support matters to a derivative: off it `y` is replaced by 1 before a logarithm or a
negative power sees it, so that no 0 * inf arises in any order of differentiation.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._arrays import eps, total
from .._parameters import Parameter, Range, parameter, placed, tree_class
from .._solvers import (
    on_support,
    p_norm,
    p_norm_product,
    p_norm_weights,
    softmax_weights,
    sparsemax_weights,
    support_power,
    threshold_product,
    tsallis_weights,
)
from ._regularizer import Base, Entropy

AT_LEAST_ONE = Range(lambda v: (v >= 1) & (v < jnp.inf), "at least 1 and finite")
ONE_TO_TWO = Range(lambda v: (v > 1) & (v <= 2), "greater than 1 and at most 2")


@tree_class
class Shannon(Entropy):
    r"""Shannon's negative entropy, $\Omega(y) = \sum_i y_i \log y_i$: the gradient mapping is softmax.

    Over a box it is exp(x - 1), cut off at the bounds.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(f"{sm.Shannon()(jnp.array([0.5, 0.5, 0.0])):.3f}")  # -log 2
      -0.693
      >>> print(sm.conjugate(sm.Shannon())(jnp.zeros(4)))
      [0.25 0.25 0.25 0.25]

    Reference:
      Shannon, "A Mathematical Theory of Communication", 1948.
    """

    kernel_alpha = 1.0

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return total(y * jnp.log(on_support(y)))

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return softmax_weights(x, gamma, implementation=implementation)

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return threshold_product(y, v, self.kernel_alpha, 1 / gamma, implementation=implementation)

    def inverse(self, u: jax.Array) -> jax.Array:
        return jnp.exp(u - 1)

    def slope(self, y: jax.Array) -> jax.Array:
        return jnp.log(on_support(y)) + 1

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        return y


@tree_class
class SquaredL2(Entropy):
    r"""Half the squared Euclidean norm, $\Omega(y) = \frac12 \sum_i y_i^2$: the gradient mapping is sparsemax.

    Over any domain it is the Euclidean projection of the scores.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> print(sm.SquaredL2()(jnp.array([0.5, 0.5, 0.0])))
      0.25
      >>> print(sm.conjugate(sm.SquaredL2())(jnp.array([1.0, 0.5, -1.0])))
      [0.75 0.25 0.  ]

    Reference:
      Martins and Astudillo, "From Softmax to Sparsemax", 2016.
    """

    kernel_alpha = 2.0
    weights_between = (-math.inf, math.inf)

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return total(y * y) / 2

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return sparsemax_weights(x, gamma, implementation=implementation)

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return threshold_product(y, v, self.kernel_alpha, 1 / gamma, implementation=implementation)

    def inverse(self, u: jax.Array) -> jax.Array:
        return u

    def slope(self, y: jax.Array) -> jax.Array:
        return y

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        return jnp.ones_like(y)


@tree_class
class Tsallis(Entropy):
    r"""Tsallis' negative entropy: entmax.

    $$\Omega(y) = \frac{\sum_i (y_i^\alpha - y_i)}{\alpha (\alpha - 1)}, \qquad
      \text{which is} \; \frac{\sum_i y_i^\alpha - 1}{\alpha (\alpha - 1)} \; \text{where} \; \sum_i y_i = 1$$

    `Tsallis(1)` is `Shannon`, its limit; `Tsallis(2)` is `SquaredL2` less half the sum of `y`. Over a box it is
    `(1 + (alpha - 1)(x - 1 / alpha))^(1 / (alpha - 1))`, cut off at the bounds.

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
    # alpha = 1: phi(y) = y deformed_log(y) / alpha and phi'(y) = deformed_log(y) + 1 / alpha.

    @property
    def kernel_alpha(self) -> jax.Array:
        return placed(self.alpha)

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return total(y * _deformed_log(on_support(y), self.kernel_alpha)) / self.kernel_alpha

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return tsallis_weights(x, gamma, self.kernel_alpha, implementation=implementation)

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return threshold_product(y, v, self.kernel_alpha, 1 / gamma, implementation=implementation)

    def inverse(self, u: jax.Array) -> jax.Array:
        return _deformed_exp(u - 1 / self.kernel_alpha, self.kernel_alpha)

    def slope(self, y: jax.Array) -> jax.Array:
        alpha = self.kernel_alpha
        at_zero = -1 / jnp.where(alpha > 1, alpha - 1, jnp.inf)  # at alpha = 1 it is infinite
        return jnp.where(y == 0, at_zero, _deformed_log(on_support(y), alpha)) + 1 / alpha

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        return support_power(y, 2 - self.kernel_alpha)


@tree_class
class FermiDirac(Entropy):
    r"""The entropy of independent choices, $\Omega(y) = \sum_i y_i \log y_i + (1 - y_i) \log (1 - y_i)$.

    Over a box from 0 to 1 the gradient mapping is the sigmoid; over `CappedSimplex(k)` it is a smooth top-k, in which
    no position is ever quite in or quite out. Weights lie between 0 and 1.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([2.0, 0.0, -1.0])
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.conjugate(sm.FermiDirac(), over=sm.Box())(x))
      ...     print(sm.conjugate(sm.FermiDirac(), over=sm.CappedSimplex(2))(x))
      [0.881 0.5   0.269]
      [0.933 0.655 0.411]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020.
    """

    kernel_alpha = 0.0  # the number by which kernels know it
    weights_between = (0.0, 1.0)

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        return total(y * jnp.log(on_support(y)) + (1 - y) * jnp.log1p(-jnp.where(y < 1, y, 0)))

    def inverse(self, u: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(u)

    def slope(self, y: jax.Array) -> jax.Array:
        inside = jnp.where((y > 0) & (y < 1), y, 0.5)
        return jnp.log(inside) - jnp.log1p(-inside)

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        return y * (1 - y)


@tree_class
class SquaredPNorm(Base):
    r"""Half the squared p-norm, $\Omega(y) = \frac12 \lVert y \rVert_p^2$; over the simplex only.

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
        return jnp.where(jnp.any(y != 0, axis=-1, keepdims=True), self._norm(y) ** 2 / 2, 0)

    def reach(self, dtype: Any) -> float:
        return 1.0  # the greatest weight is a power of at most 1

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return p_norm_weights(x, gamma, placed(self.p), implementation=implementation)

    def gradient(self, y: jax.Array) -> jax.Array:
        return self._norm(y) ** (2 - self.p) * support_power(y, placed(self.p) - 1)

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return p_norm_product(y, v, placed(self.p), 1 / gamma, implementation=implementation)

    def _norm(self, y: jax.Array) -> jax.Array:
        return p_norm(y, placed(self.p))


def _deformed_log(y: jax.Array, alpha: jax.Array) -> jax.Array:
    """(y^(alpha - 1) - 1) / (alpha - 1), smooth through alpha = 1 with all its derivatives."""
    log = jnp.log(y)
    return log * _relative_expm1((alpha - 1) * log)


def _deformed_exp(u: jax.Array, alpha: jax.Array) -> jax.Array:
    """The inverse of `_deformed_log`, (1 + (alpha - 1) u)^(1 / (alpha - 1)), exp(u) at alpha = 1; 0 below its range."""
    u = jnp.minimum(u, float(jnp.finfo(u.dtype).max) / jnp.maximum(alpha, 2))  # so that t is a number
    t = (alpha - 1) * u
    inside = ~(t <= -1)  # NaN goes through
    t, u = jnp.where(inside, t, 0), jnp.where(inside, u, 0)
    # log1p(t) / t is 1 - t / 2 next to 0, to rounding.
    near = jnp.abs(t) < eps(u) ** 0.5
    ratio = jnp.where(near, 1 - t / 2, jnp.log1p(t) / jnp.where(near, 1, t))
    return jnp.where(inside, jnp.exp(u * ratio), 0)


def _relative_expm1(u: jax.Array) -> jax.Array:
    """expm1(u) / u. Near 0 by its Taylor polynomial, whose derivatives are exact where those of the ratio cancel."""
    near = jnp.abs(u) < 1
    small, large = jnp.where(near, u, 0), jnp.where(near, 1, u)
    terms = 20 if u.dtype == jnp.float64 else 12  # the last one is below the rounding of the first
    series = jnp.ones_like(u)
    for k in range(terms, 1, -1):
        series = 1 + small / k * series
    return jnp.where(near, series, jnp.expm1(large) / large)
