"""The equation of p-norm weights, as the kernels of every machine solve it.

y = v^(1/b) / sum v^(1/b), as `_equations.py` says, and e solves `e S_r S_(r+1)^((1-r)/(1+r)) = 1` for r = 1/b and
S_k = sum v^k.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ._equations import Weights, low_powers, weights
from ._machines import LARGEST_LOG, MAX_PASSES, NOISE, SMALL_STEP, Machine, arrived, expm1, iterate, low_power, same


def p_norm(z: Any, b: jax.Array, sound: jax.Array, machine: Machine) -> Any:
    """y with sum 1, up to rounding, where sound."""

    def equation(b, low, mid, high):
        r = 1 / b
        log_f = jnp.log(mid) + (1 - r) / (1 + r) * jnp.log(high)
        return log_f, -expm1(-log_f) / (r * low / mid + (1 - r) * mid / high)

    convex = sound & ~low_power(b)
    y = machine.chosen(
        z,
        (convex, lambda: _high_powers(z, b, convex, machine)),
        *low_powers(lambda: z, b, sound & low_power(b), 3, equation, machine),
    )
    scale = jnp.where(sound, 1 / machine.total(same, y), 0.0)
    return machine.each(lambda y: y * scale, y)


def _high_powers(z: Any, b: jax.Array, wanted: jax.Array, machine: Machine) -> Any:
    r = 1 / b

    def terms(log_e, z):
        """The derivative of u^(1/b) by log e, u^(1/b) itself, what u lacks of it, and u^(1/b - 1)."""
        w = jnp.maximum(z * jnp.exp(jnp.minimum(-log_e, LARGEST_LOG)), -1.0)
        low = jnp.where(w > -1, jnp.exp((r - 1) * machine.log1p_down(w)), 0.0)
        y = low * (1 + w)
        return r * low * -w, y, y * -w, low

    def newton(log_e, mid, lack, low):
        # S_(r+1) is close to S_r for small b, and the equation of the order of b: so what it lacks is summed.
        lack = lack / mid
        high = mid * (1 - lack)
        log_f = log_e - machine.log1p(-lack) + 2 * b / (1 + b) * jnp.log(high)
        spread = low / mid * (1 - lack) - 1
        slope = (1 + r * jnp.where(spread > NOISE, spread, 0.0)) / (1 - lack)
        return machine.log1p(jnp.maximum(expm1(-log_f) / slope, -0.999))

    def step(log_e):
        change = newton(log_e, *machine.sums(lambda z: terms(log_e, z)[1:], z))
        return log_e + change, jnp.abs(change) <= SMALL_STEP * b

    log_e = iterate(jnp.zeros_like(b), step, wanted, MAX_PASSES, machine)
    derivative, *others = machine.each(partial(terms, log_e), z)
    rest = newton(log_e, *machine.sums(lambda *at: at, *others))
    return arrived(others[0], derivative, rest, rest, machine)


# Of scores, gamma and 1 < p <= 2.
p_norm_weights: Weights = partial(weights, equation=p_norm)
