"""Products with Jacobians, which are differentiated again and again.

A kernel computes a product but not its derivatives; these come from the form in plain JAX, in both modes and to every
order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from .._arrays import safe_ratio, total, varying_like
from ._power import support_power


def product(problem: str, implementation: str | None, reference: Callable[..., jax.Array], *args: Any) -> jax.Array:
    """`_kernels.run` for a product: differentiable, and left to the reference by an implementation that lacks it."""
    if implementation == "xla" or not any(problem in kernels for kernels in _kernels.TABLE.values()):
        return reference(*args)
    return _by_kernel(problem, implementation, reference, *args)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _by_kernel(problem: str, implementation: str | None, reference: Callable[..., jax.Array], *args: Any) -> jax.Array:
    return _kernels.run(problem, implementation, reference, *args, optional=True)


@_by_kernel.defjvp
def _by_kernel_jvp(
    problem: str, implementation: str | None, reference: Callable[..., jax.Array], primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    return _by_kernel(problem, implementation, reference, *primals), jax.jvp(reference, primals, tangents)[1]


def diagonal_product(s: jax.Array, v: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """J v = s (v - <s, v> / sum s), the Jacobian of weights whose inverse Hessian on the support is the diagonal s.

    Args:
      s: `(*batch, d)`, at least 0, and 0 off the support.
      v: `(*batch, d)`.
    """
    return product("diagonal_product", implementation, _diagonal_product, s, v)


def threshold_product(
    y: jax.Array, v: jax.Array, alpha: jax.Array | float, scale: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """scale * J v at the Tsallis weights `y`, `(*batch, d)`; alpha and scale are `()` or `(*batch or ones, 1)`.

    For an alpha of 1.0 or 2.0 that is known when the program is made, no power is computed.
    """
    reference = _KNOWN.get(alpha, _threshold_product) if isinstance(alpha, float) else _threshold_product
    return product("threshold_product", implementation, reference, y, v, jnp.asarray(alpha, y.dtype), scale)


def p_norm_product(
    y: jax.Array, v: jax.Array, p: jax.Array, scale: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """scale * J v at the weights `y` of the squared p-norm; arguments as for `threshold_product`.

    With n = norm_p(y), the inverse of the Hessian on the support is

        K = (n^(p-2) diag(y^(2-p)) - (2-p) n^-2 y y') / (p - 1),

    and J = K - K 1 1' K / (1' K 1) keeps the weights on the simplex.
    """
    return product("p_norm_product", implementation, _p_norm_product, y, v, p, scale)


def p_norm(y: jax.Array, p: jax.Array) -> jax.Array:
    """norm_p(y) as `(*batch, 1)`; 1 for a slice of zeros, where it stands under a fraction."""
    power = total(support_power(y, p))
    return jnp.where(power == 0, 1, power) ** (1 / p)


def _p_norm_product(y: jax.Array, v: jax.Array, p: jax.Array, scale: jax.Array) -> jax.Array:
    n = p_norm(y, p)
    s = n ** (p - 2) * support_power(y, 2 - p)
    rank_one = (2 - p) / n**2 * y
    k_v = s * v - rank_one * total(y * v)
    k_1 = s - rank_one * total(y)
    return scale * (k_v - k_1 * safe_ratio(total(k_v), total(k_1))) / (p - 1)


def _diagonal_product(s: jax.Array, v: jax.Array) -> jax.Array:
    return s * (v - safe_ratio(total(s * v), total(s)))


def finite_rates(s: jax.Array) -> jax.Array:
    """How fast weights follow their scores: no faster than leaves sums of products with v finite."""
    return jnp.minimum(s, float(jnp.finfo(s.dtype).max) / 2**27)


def power_product(s: jax.Array, v: jax.Array, alpha: jax.Array) -> jax.Array:
    """`diagonal_product` for s that is y^(2 - alpha) or 0.

    Beyond alpha = 2 these slopes have no bound, and one may be by far the greatest. Then the mean is v there, but for
    what counts: so v is measured from there.
    """
    if alpha.ndim == 0:  # one for all: the flag is at hand on every device
        none = varying_like(jnp.zeros_like(total(s)), v)
        origin = lax.cond(alpha > 2, lambda: _at_greatest(s, v), lambda: varying_like(none, s))
    else:
        origin = jnp.where(alpha > 2, _at_greatest(s, v), 0)
    return _diagonal_product(s, v - origin)


def _at_greatest(s: jax.Array, v: jax.Array) -> jax.Array:
    """The mean of v over the positions where s is greatest."""
    greatest = (s == jnp.max(s, axis=-1, keepdims=True)).astype(v.dtype)
    return safe_ratio(total(greatest * v), total(greatest))


def _threshold_product(y: jax.Array, v: jax.Array, alpha: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * power_product(finite_rates(support_power(y, 2 - alpha)), v, alpha)


_KNOWN = {
    1.0: lambda y, v, alpha, scale: scale * _diagonal_product(y, v),
    2.0: lambda y, v, alpha, scale: scale * _diagonal_product(jnp.sign(y), v),
}
