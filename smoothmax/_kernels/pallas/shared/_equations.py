"""The equations of weights that one threshold a slice determines, as the kernels of every machine solve them.

With the largest score moved to 0, z = (x - top) / gamma, and b = alpha - 1 or p - 1, the weights are powers of

    v_i = max(1 + s b z_i / e, 0),       s = 1 (Tsallis) or 1 / b (p-norm),

which is 1 for the largest score and 0 off the support; the unknown is e, the distance from the largest score to the
threshold. Powers are taken as `exp(log1p(s b z / e) / b)`: near v = 1, a logarithm of v itself would cost the digits
that a small b needs.

**Tsallis, alpha <= 2.** y_i = m v_i^(1/b) with m = e^(1/b), the largest weight. The norm `(sum y)^b` is a convex and
nearly linear function of e, so Newton's method from e = 1 descends to the root of `sum y = 1` without overshooting. It
is written for log m: as b falls to 0, e is 1 to rounding, and a step becomes a logsumexp.

**b = 0**, to rounding: the exponential.

**b > 0.4.** There v falls to 0 so fast that thousands of small weights may lie within the rounding of v: what is
computed instead is u = s b z + e itself, with e in two parts, so that u is exact next to 0; and y = u^(1/b), where
b = 1 and b = 1/2 need no logarithm.

**Tsallis, alpha > 2.** v^(1/b) has infinite slope at v = 0, and a threshold cannot be stored precisely enough to say
what a position next to it weighs. What can be: the least score c of the support and the weight w there. Halving log m
leaves a handful of candidates for c; from the lowest up, the first one at which the others do not sum to more than 1 is
c; and `sum (w^b + b (z - c))^(1/b) = 1` is convex in w, for Newton's method from the right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._machines import (
    LARGEST_LOG,
    LEAST,
    LOWEST,
    MAX_PASSES,
    SMALL_STEP,
    Machine,
    arrived,
    expm1,
    iterate,
    least_of,
    low_power,
    same,
    solved,
    two_parts,
)
from ._slices import flag, loop

# The least b: y differs from its limit b -> 0 by less than b z^2 y / 2, a third of float32's rounding here.
_LEAST_B = 1e-7
# Candidates for the least score of a support: as many as a slice may have.
_COUNT = 2**30
# Halvings of log m: what is left of the bracket is rounding.
_HALVINGS = 30
# Positions this close to the threshold, relative to e, are candidates for the support.
_NEAR = 1e-5
# A step of a weight that is rounding.
_SMALL_WEIGHT = 1e-7
# Normalising repairs rounding and no more: a sum further from 1 is a solution that was not reached.
_REPAIRABLE = 1e-3

Equation = Callable[[Any, jax.Array, jax.Array, Machine], Any]
# Scores, parameters, and the machine by its name, to weights.
Weights = Callable[..., Any]


def weights(x: Any, gamma: jax.Array, power: jax.Array, *, equation: Equation, machine: Machine) -> Any:
    """Scores and columns of hyper-parameters to weights: `equation` on slices for which it has an answer."""
    top = machine.most(lambda x: jnp.where(x < jnp.inf, x, jnp.inf), x)  # NaN counts as inf
    bad = (top == jnp.inf) | ~((gamma > 0) & (power >= 1))
    empty = top == -jnp.inf
    sound = ~(bad | empty)
    # Within these bounds a top score stays 0, and -inf is -inf.
    scale = jnp.where(bad, 1.0, jnp.clip(1 / gamma, LEAST, 1 / LEAST))
    b, top = jnp.where(bad, 1.0, jnp.maximum(power - 1, _LEAST_B)), jnp.where(sound, top, 0.0)
    z = machine.kept(machine.each(lambda x: jnp.maximum((x - top) * scale, LOWEST), x))
    y = equation(z, b, sound, machine)
    sum_y = machine.total(same, y)
    factor = jnp.where(~bad & (jnp.abs(sum_y - 1) <= _REPAIRABLE), 1 / sum_y, jnp.nan)
    factor = jnp.where(empty, 0.0, factor)
    return machine.each(lambda y: y * factor, y)


# --- Tsallis -----------------------------------------------------------------------------------------------


def tsallis(z: Any, b: jax.Array, sound: jax.Array, machine: Machine) -> Any:
    """y with sum 1, up to rounding, where sound."""

    def equation(b, low, mid):
        log_f = jnp.log(mid)
        return log_f, -expm1(-b * log_f) * mid / low

    limit, concave = b <= _LEAST_B, b > 1
    convex = sound & ~limit & ~low_power(b)

    def scaled():
        return machine.each(lambda z: b * z, z)

    return machine.chosen(
        z,
        (sound & limit, lambda: _exponential(z, machine)),
        (convex, lambda: _convex(z, jnp.minimum(b, 1.0), convex, machine)),
        *low_powers(scaled, b, sound & low_power(b) & ~concave, 2, equation, machine),
        (sound & concave, lambda: _concave(z, jnp.where(concave, b, 2.0), sound & concave, machine)),
    )


def _exponential(z: Any, machine: Machine) -> Any:
    y = machine.each(jnp.exp, z)
    scale = 1 / machine.total(same, y)
    return machine.each(lambda y: y * scale, y)


# --- b > 0.4 -----------------------------------------------------------------------------------------------


class _Threshold(NamedTuple):
    """The distance e from the largest score to the threshold, and the last step of it; columns.

    Attributes:
      whole, rest: their sum is e; what rounding leaves over counts as often as there are weights next to it.
      step: by which e was diminished.
    """

    whole: jax.Array
    rest: jax.Array
    step: jax.Array


def low_powers(
    scores: Callable[[], Any],
    b: jax.Array,
    wanted: jax.Array,
    moments: int,
    equation: Callable[..., tuple[jax.Array, jax.Array]],
    machine: Machine,
) -> list[tuple[jax.Array, Callable[[], Any]]]:
    """u^(1/b) for u = z + e, in cases for `Machine.chosen`.

    The equation for e leads from b and the first `moments` sums of u^(r-1), u^r, u^(r+1) to log F and the step of
    Newton's method.
    """

    def general(u):
        low = jnp.where(u > 0, jnp.exp((1 / b - 1) * jnp.log(jnp.maximum(u, LEAST))), 0.0)
        return low, low * u

    powers = {1.0: lambda u: (flag(u > 0), u), 0.5: lambda u: (u, u * u)}
    cases = [(wanted & (b == at), power) for at, power in powers.items()]
    others = wanted & (b != 1.0) & (b != 0.5)
    return [
        (mine, partial(_low_power, scores, b, mine, power, moments, equation, machine))
        for mine, power in (*cases, (others, general))
    ]


def _low_power(
    scores: Callable[[], Any],
    b: jax.Array,
    wanted: jax.Array,
    power: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    moments: int,
    equation: Callable[..., tuple[jax.Array, jax.Array]],
    machine: Machine,
) -> Any:
    z = scores()

    def terms(at, z):
        u = jnp.maximum((z + at.whole) + at.rest, 0.0)
        low, y = power(u)
        return low, y, y * u

    def newton(terms, *slices):
        """What is left of the equation, and Newton's step; dividing by the sum repairs the rest but for about b."""
        log_f, step = equation(b, *machine.sums(lambda *at: terms(*at)[:moments], *slices))
        return b * jnp.abs(log_f), step

    def move(at):
        residual, step = newton(partial(terms, at), z)
        step = jnp.minimum(step, 0.999 * at.whole)
        return _Threshold(*two_parts(at.whole, at.rest - step), step), solved(residual, step, at.step)

    start = _Threshold(jnp.ones_like(b), jnp.zeros_like(b), jnp.zeros_like(b))
    at = iterate(start, move, wanted, MAX_PASSES, machine)
    low, y, high = machine.each(partial(terms, at), z)
    residual, step = newton(lambda *at: at, low, y, high)
    return arrived(y, low, residual, -step / b, machine)


# --- b <= 0.4 ----------------------------------------------------------------------------------------------


def _convex(z: Any, b: jax.Array, wanted: jax.Array, machine: Machine) -> Any:
    def terms(log_m, z):
        """The derivative of the weights by log m, and the weights."""
        w, v = _shares(z, b, log_m)
        low = jnp.where(v > 0, jnp.exp(log_m + (1 / b - 1) * machine.log1p_down(w)), 0.0)
        return low, low * v

    def newton(low, mid):
        # e' / e - 1, where the tangent of the norm meets 1.
        change = expm1(-b * jnp.log(mid)) * mid / low
        return machine.log1p(jnp.maximum(change, -0.999)) / b

    def step(log_m):
        change = newton(*machine.sums(partial(terms, log_m), z))
        return log_m + change, jnp.abs(change) <= SMALL_STEP

    log_m = iterate(jnp.zeros_like(b), step, wanted, MAX_PASSES, machine)
    low, y = machine.each(partial(terms, log_m), z)
    rest = newton(*machine.sums(lambda *at: at, low, y))
    return arrived(y, low, rest, rest, machine)


def _shares(z: jax.Array, b: jax.Array, log_m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """v - 1 and v at a position."""
    w = jnp.maximum(z * (b * jnp.exp(jnp.minimum(-b * log_m, LARGEST_LOG))), -1.0)
    return w, 1 + w


# --- b > 1 -------------------------------------------------------------------------------------------------


def _concave(z: Any, b: jax.Array, wanted: jax.Array, machine: Machine) -> Any:
    def weight(log_m, z):
        w, v = _shares(z, b, log_m)
        return jnp.where(v > 0, jnp.exp(log_m + machine.log1p_down(w) / b), 0.0)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = machine.total(partial(weight, middle), z) > 1
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    least = -jnp.log(machine.total(lambda z: flag(z > LOWEST), z))
    _, log_m = loop(_HALVINGS, halve, (least, jnp.zeros_like(b)))
    scale = b * jnp.exp(jnp.minimum(-b * log_m, LARGEST_LOG))

    def others(c, e, z):
        """Whether a position is above c, and what it weighs if c weighs e^(1/b)."""
        above = z > c
        u = jnp.where(above, e + b * (z - c), 1.0)
        return above, jnp.where(above, jnp.exp(jnp.log(u) / b), 0.0)

    def next_score(c):
        """The least score above c, where those above c sum to more than 1 by themselves."""
        last = machine.total(lambda z: others(c, 0.0, z)[1], z) <= 1
        return jnp.where(last, c, least_of(lambda z: z > c, machine, z)), last

    # From the least candidate for the support on.
    c = iterate(least_of(lambda z: z * scale > -1 - _NEAR, machine, z), next_score, wanted, _COUNT, machine)
    ties = machine.total(lambda z: flag(z == c), z)

    def step(w):
        def terms(z):
            above, y = others(c, jnp.exp(b * jnp.log(w)), z)
            ratio = jnp.exp((b - 1) * (jnp.log(w) - jnp.log(jnp.where(above, y, 1.0))))
            return y, jnp.where(above, ratio, 0.0)

        sum_y, slope = machine.sums(terms, z)
        next_w = jnp.maximum(w - (sum_y + ties * w - 1) / (ties + slope), LEAST)
        return next_w, jnp.abs(next_w - w) <= _SMALL_WEIGHT

    w = iterate(1 / ties, step, wanted, MAX_PASSES, machine)
    return machine.each(lambda z: jnp.where(z == c, w, others(c, jnp.exp(b * jnp.log(w)), z)[1]), z)


# Of scores, gamma and alpha >= 1.
tsallis_weights: Weights = partial(weights, equation=tsallis)
