"""Unconstrained parametrizations of bounded hyper-parameters, so that no optimizer step can leave their domain."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._arrays import floating


def bounded(raw: jax.typing.ArrayLike, lower: float, upper: float | None = None) -> jax.Array:
    r"""Maps any real number into the open interval from `lower` to `upper`.

    $$\mathrm{lower} + (\mathrm{upper} - \mathrm{lower}) \, \sigma(\mathrm{raw}), \qquad
      \mathrm{lower} + \log(1 + e^{\mathrm{raw}}) \ \text{without upper}$$

    Let the optimizer train `raw` and pass the result on: alpha of `entmax` from (1, 2), p of `pnormmax` from (1, 2),
    gamma and lam from (0, infinity).

    Args:
      raw: unconstrained values, any shape, floating.
      lower: lower bound, a Python number.
      upper: upper bound, a Python number, or None for no upper bound.

    Returns:
      Values of the shape and dtype of `raw`, strictly between the bounds even where rounding would reach them.

    Raises:
      ValueError: `lower` is not below `upper`.
      TypeError: `raw` is not floating.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> raw = jnp.zeros((2, 1, 1))  # one for each head: alpha = 1.5 to begin with
      >>> sm.entmax(jnp.zeros((2, 3, 4)), alpha=sm.bounded(raw, 1, 2)).shape
      (2, 3, 4)

    Reference:
      Correia, Niculae and Martins, "Adaptively Sparse Transformers", 2019, who learn alpha of each head in this form.
    """
    raw = floating("raw", raw)
    low, high = _inside(raw.dtype, lower, upper)
    if upper is None:
        return jnp.maximum(lower + jax.nn.softplus(raw), low)
    return jnp.clip(lower + (upper - lower) * jax.nn.sigmoid(raw), low, high)


def unbounded(value: jax.typing.ArrayLike, lower: float, upper: float | None = None) -> jax.Array:
    r"""The inverse of `bounded`: the `raw` that gives `value`, to start training from a known value.

    $$\log \frac{\mathrm{value} - \mathrm{lower}}{\mathrm{upper} - \mathrm{value}}, \qquad
      \log(e^{\mathrm{value} - \mathrm{lower}} - 1) \ \text{without upper}$$

    Args:
      value: values strictly between the bounds, any shape, floating.
      lower: lower bound, a Python number.
      upper: upper bound, a Python number, or None for no upper bound.

    Returns:
      Values of the shape and dtype of `value`.

    Raises:
      ValueError: `lower` is not below `upper`, or a value is not strictly between them (checked when concrete).
      TypeError: `value` is not floating.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> raw = sm.unbounded(jnp.array([1.25, 1.5]), 1, 2)
      >>> bool(jnp.allclose(sm.bounded(raw, 1, 2), jnp.array([1.25, 1.5])))
      True

    Reference:
      Correia, Niculae and Martins, "Adaptively Sparse Transformers", 2019.
    """
    value = floating("value", value)
    # A Python number has a weak type, which an optimizer's first step takes away: the next would be compiled anew.
    value = value.astype(value.dtype)
    _inside(value.dtype, lower, upper)
    if not isinstance(value, Tracer):
        top = math.inf if upper is None else upper
        if not np.all((np.asarray(value) > lower) & (np.asarray(value) < top)):
            raise ValueError(f"value={value} must lie strictly between lower={lower} and upper={top}: move it inside")
    above = value - lower
    if upper is None:
        return above + jnp.log(-jnp.expm1(-above))  # log(exp(above) - 1), without overflow
    return jnp.log(above) - jnp.log(upper - value)


def _inside(dtype: jnp.dtype, lower: float, upper: float | None) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest number of the dtype between the bounds."""
    if upper is not None and not lower < upper:
        raise ValueError(f"lower={lower} must be below upper={upper}: exchange them")
    infinity = jnp.asarray(jnp.inf, dtype)
    low = jnp.nextafter(jnp.asarray(lower, dtype), infinity)
    # Next to zero lie subnormal numbers, which processors flush to zero.
    low = jnp.where(jnp.abs(low) < jnp.finfo(dtype).tiny, jnp.finfo(dtype).tiny, low)
    high = infinity if upper is None else jnp.nextafter(jnp.asarray(upper, dtype), -infinity)
    return low, high
