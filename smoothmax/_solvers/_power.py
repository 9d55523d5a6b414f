"""Powers of numbers between 0 and 1, which are most of what an entropy costs.

    u^c = 2^(c log2 u)

**On a CPU in float32**, a logarithm and an exponential of our own take about half the time of the library's and are as
accurate: there are no special values to tell apart, and in base 2 the exponent of a float is the whole part of its
logarithm, so both come down to one polynomial each.

    u = 2^k m,  1/sqrt(2) <= m < sqrt(2):     log2 u = k + (m - 1) P(m - 1)
    t = n + f,  |f| <= 1/2:                   2^t = 2^n Q(f)

P and Q interpolate at the Chebyshev points of their intervals. Elsewhere the library's functions serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._scores import first_true

# Coefficients by rising degree. The errors, 1.5e-8 of log2 and 2.6e-9 of the power, are below float32's rounding.
_P = (
    1.442695004,
    -0.7213474682,
    0.4809107535,
    -0.3606932681,
    0.2879032609,
    -0.2391698814,
    0.2160782255,
    -0.2058618805,
    0.1231096846,
)
_Q = (1, 0.6931472067, 0.2402265092, 0.05550327227, 0.009618056679, 0.001340042818, 0.0001546144468)
_LOG2_E = 1.4426950408889634
_BITS_OF_SQRT_HALF = 0x3F3504F3


def power(u: jax.Array, c: jax.Array, error: jax.Array | float = 0.0) -> jax.Array:
    """u^c for u > 0 that is no subnormal number, and any c; NaN where u or c is. 0 where the result is below 1e-37.

    `error` is what is missing from u, relative to it: (u (1 + error))^c to first order.
    """

    def by_library(u: jax.Array, c: jax.Array, error: jax.Array | float) -> jax.Array:
        return jnp.exp(c * (jnp.log(u) + error))

    if u.dtype != jnp.float32:
        return by_library(u, c, error)
    return lax.platform_dependent(u, c, jnp.asarray(error, u.dtype), cpu=_by_polynomials, default=by_library)


def _by_polynomials(u: jax.Array, c: jax.Array, error: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(u, jnp.int32)
    k = (bits - _BITS_OF_SQRT_HALF) & ~0x7FFFFF  # the exponent, where float32 keeps it
    f = lax.bitcast_convert_type(bits - k, jnp.float32) - 1
    # 0 u is there for a NaN, which the bits would hide.
    log2 = k.astype(jnp.float32) * 2.0**-23 + (f * _polynomial(_P, f) + error * _LOG2_E + 0 * u)
    t = jnp.clip(c * log2, -126, 127)
    n = jnp.round(t)
    scale = lax.bitcast_convert_type((n.astype(jnp.int32) + 127) << 23, jnp.float32)
    return jnp.where(t == -126, jnp.zeros_like(t), scale * _polynomial(_Q, t - n))


def rough_power(u: jax.Array, c: jax.Array) -> jax.Array:
    """u^c, at most 7 % off, for u > 0 and 0 < c < 1: read as an integer, a float's bits nearly follow its logarithm."""
    integer = jnp.int32 if u.dtype == jnp.float32 else jnp.int64
    one = lax.bitcast_convert_type(jnp.ones((), u.dtype), integer).astype(u.dtype)
    log = lax.bitcast_convert_type(u, integer).astype(u.dtype) - one
    return lax.bitcast_convert_type((c * log + one).astype(integer), u.dtype)


@jax.custom_jvp
def support_power(y: jax.Array, exponent: jax.Array) -> jax.Array:
    """y^exponent on the support of y and 0 off it, for y >= 0; exponents 0 and 1/2 cost no power."""
    on = jnp.sign(y) + jnp.zeros_like(exponent)
    return first_true(
        (jnp.all(exponent == 0), lambda: on),
        (jnp.all(exponent == 0.5), lambda: jnp.sqrt(y) * on),
        otherwise=lambda: power(on_support(y), exponent) * on,
    )


@support_power.defjvp
def _support_power_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Not the derivative of the form chosen at run time: that form is blind to the exponent, and sqrt has a pole at 0.
    (y, exponent), (y_dot, exponent_dot) = primals, tangents
    value = support_power(y, exponent)
    slope = exponent * support_power(y, exponent - 1)
    return value, slope * y_dot + value * jnp.log(on_support(y)) * exponent_dot


def on_support(y: jax.Array) -> jax.Array:
    """y with ones for its zeros, safe for a logarithm or a negative power."""
    return jnp.where(y == 0, jnp.ones_like(y), y)


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result
