"""The equations of weights that one threshold a slice determines, as the kernels of every machine solve them.

A value is a block of slices on a TPU and one slice on a GPU; a `Machine` says how to go along it.

With the largest score moved to 0, z = (x - top) / gamma, and b = alpha - 1 or p - 1, the weights are powers of

    v_i = max(1 + s b z_i / e, 0),       s = 1 (Tsallis) or 1 / b (p-norm),

which is 1 for the largest score and 0 off the support; the unknown is e, the distance from the largest score to the
threshold. Powers are taken as `exp(log1p(s b z / e) / b)`: near v = 1, a logarithm of v itself would cost the digits
that a small b needs.

**Tsallis, alpha <= 2.** y_i = m v_i^(1/b) with m = e^(1/b), the largest weight. The norm `(sum y)^b` is a convex and
nearly linear function of e, so Newton's method from e = 1 descends to the root of `sum y = 1` without overshooting. It
is written for log m: as b falls to 0, e is 1 to rounding, and a step becomes a logsumexp.

**b > 0.4.** There v falls to 0 so fast that thousands of small weights may lie within the rounding of v: what is
computed instead is u = s b z + e itself, with e in two parts, so that u is exact next to 0; and y = u^(1/b).

**Tsallis, alpha > 2.** v^(1/b) has infinite slope at v = 0, and a threshold cannot be stored precisely enough to say
what a position next to it weighs. What can be: the least score c of the support and the weight w there. Halving log m
leaves a handful of candidates for c; from the lowest up, the first one at which the others do not sum to more than 1 is
c; and `sum (w^b + b (z - c))^(1/b) = 1` is convex in w, for Newton's method from the right.

**p-norm.** y = v^(1/b) / sum v^(1/b), and e solves `e S_r S_(r+1)^((1-r)/(1+r)) = 1` for r = 1/b and S_k = sum v^k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._tiles import flag, loop

# Newton's passes; five to ten are the rule.
MAX_PASSES = 64
# What is left of an equation when it is solved, and what may be nothing but the rounding of sums.
_SOLVED, _NOISE = 5e-7, 3e-6
# A step of log m below which the next one, of second order, is rounding.
SMALL_STEP = 1e-4
# The least b: y differs from its limit b -> 0 by less than b z^2 y / 2, a third of float32's rounding here.
_LEAST_B = 1e-7
# In place of -inf: outside of every support, and safe to compute with.
_LOWEST = -1e30
# Halvings of log m: what is left of the bracket is rounding.
_HALVINGS = 30
# Positions this close to the threshold, relative to e, are candidates for the support.
_NEAR = 1e-5
# The least number that is told from 0; a step of a weight that is rounding.
LEAST, _SMALL_WEIGHT = 1e-37, 1e-7
# log 1/e that is as good as infinite: all but the largest scores are off the support.
LARGEST_LOG = 60.0
# Normalising repairs rounding and no more: a sum further from 1 is a solution that was not reached.
_REPAIRABLE = 1e-3


class Machine(NamedTuple):
    """What kinds of machines do differently. A column is one number a slice."""

    total: Callable[[jax.Array], jax.Array]  # slices to the column of their sums
    most: Callable[[jax.Array], jax.Array]  # slices to the column of their largest numbers
    over_slices: Callable[[jax.Array], jax.Array]  # a column to its sum, a scalar
    log1p: Callable[[jax.Array], jax.Array]


Equation = Callable[[jax.Array, jax.Array, Machine], jax.Array]
# Scores, parameters, and the machine by its name, to weights.
Weights = Callable[..., jax.Array]


def weights(x: jax.Array, gamma: jax.Array, power: jax.Array, *, equation: Equation, machine: Machine) -> jax.Array:
    """Scores and columns of hyper-parameters to weights: `equation` on slices for which it has an answer."""
    good = x < jnp.inf
    bad = (machine.most(flag(~good)) > 0) | ~((gamma > 0) & (power >= 1))
    top = machine.most(jnp.where(good, x, -jnp.inf))
    empty = top == -jnp.inf
    gamma, b = jnp.where(bad, 1.0, gamma), jnp.where(bad, 1.0, jnp.maximum(power - 1, _LEAST_B))
    # A slice that has no answer is solved as one of equal scores, at once.
    z = jnp.where(good & (x > -jnp.inf), (x - jnp.where(empty, 0.0, top)) / gamma, _LOWEST)
    z = jnp.where(bad | empty, 0.0, z)
    y = equation(z, b, machine)
    sum_y = machine.total(y)
    y = jnp.where(jnp.abs(sum_y - 1) <= _REPAIRABLE, y / sum_y, jnp.nan)
    return jnp.where(bad, jnp.nan, jnp.where(empty, 0.0, y))


# --- Tsallis -----------------------------------------------------------------------------------------------


class _Newton(NamedTuple):
    """The state of a Newton iteration; columns, one number a slice."""

    passes: jax.Array  # a scalar
    at: Any  # the unknown, a column or several
    active: jax.Array  # 1 where it still moves, else 0: a finished slice must not depend on the others
    going: jax.Array  # the sum of `active`, a scalar


def _arrived(y: jax.Array, rest: jax.Array) -> jax.Array:
    """The weights after the last step, which is taken in them, to first order: what rounding the unknown leaves over
    counts as often as there are weights. NaN if that step is no small one."""
    return jnp.where(jnp.abs(rest) <= SMALL_STEP, jnp.maximum(y, 0.0), jnp.nan)


def _newton(
    start: Any,
    step: Callable[[Any], tuple[Any, jax.Array]],
    wanted: jax.Array,
    most: int,
    machine: Machine,
) -> Any:
    """Iterates `step`, from the unknown to its next value and whether that is the last, where wanted."""

    def one_pass(state):
        at, last = step(state.at)
        at = jax.tree.map(lambda new, old: jnp.where(state.active > 0, new, old), at, state.at)
        active = jnp.where(last, 0.0, state.active)
        return _Newton(state.passes + 1, at, active, machine.over_slices(active))

    active = jnp.where(wanted, jnp.ones_like(jax.tree.leaves(start)[0]), 0.0)
    state = _Newton(jnp.int32(0), start, active, machine.over_slices(active))
    return lax.while_loop(lambda s: (s.going > 0) & (s.passes < most), one_pass, state).at


def tsallis(z: jax.Array, b: jax.Array, machine: Machine) -> jax.Array:
    """y with sum 1, up to rounding."""

    def equation(b, low, mid, _):
        log_f = jnp.log(mid)
        return log_f, -expm1(-b * log_f) * mid / low

    convex, concave = ~low_power(b), b > 1
    return _chosen(
        z,
        machine,
        (convex, lambda: _convex(z, jnp.minimum(b, 1.0), convex, machine)),
        (~convex & ~concave, lambda: _low_powers(b * z, b, ~convex & ~concave, equation, machine)),
        (concave, lambda: _concave(z, jnp.where(concave, b, 2.0), concave, machine)),
    )


def _chosen(z: jax.Array, machine: Machine, *cases: tuple[jax.Array, Callable[[], jax.Array]]) -> jax.Array:
    """Each slice by the solver whose condition holds for it; a solver that no slice asks for does not run."""
    y = z - z  # zeros, laid out as the weights are: compilers for GPU kernels want that of both branches
    for wanted, solve in cases:

        def chosen(y=y, wanted=wanted, solve=solve):
            return jnp.where(wanted, solve(), y)

        y = lax.cond(machine.over_slices(flag(wanted)) > 0, chosen, lambda y=y: y)
    return y


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


def _low_powers(
    z: jax.Array,
    b: jax.Array,
    wanted: jax.Array,
    equation: Callable[..., tuple[jax.Array, jax.Array]],
    machine: Machine,
) -> jax.Array:
    """u^(1/b) for u = z + e.

    The equation for e leads from b and the sums of u^(r-1), u^r, u^(r+1) to log F and the step of Newton's method.
    """
    r = 1 / b

    def newton(at):
        u = (z + at.whole) + at.rest
        on, u = u > 0, jnp.maximum(u, LEAST)
        y = jnp.where(on, jnp.where(b == 1, u, jnp.exp(r * jnp.log(u))), 0.0)
        low = y / u
        log_f, step = equation(b, *(machine.total(v) for v in (low, y, y * u)))
        # Dividing by the sum repairs what is left over, but for a share of about b.
        return y, low, b * jnp.abs(log_f), step

    def move(at):
        _, _, residual, step = newton(at)
        step = jnp.minimum(step, 0.999 * at.whole)
        return _Threshold(*two_parts(at.whole, at.rest - step), step), solved(residual, step, at.step)

    start = _Threshold(jnp.ones_like(b), jnp.zeros_like(b), jnp.zeros_like(b))
    y, low, residual, step = newton(_newton(start, move, wanted, MAX_PASSES, machine))
    return _arrived(y - r * step * low, residual)


def _powers(z: jax.Array, b: jax.Array, log_m: jax.Array, machine: Machine) -> tuple[jax.Array, jax.Array]:
    """v and the weights `m v^(1/b)`."""
    w = b * z * jnp.exp(jnp.minimum(-b * log_m, LARGEST_LOG))
    on = w > -1
    w = jnp.where(on, w, 0.0)
    return jnp.where(on, 1 + w, 0.0), jnp.where(on, jnp.exp(log_m + machine.log1p(w) / b), 0.0)


def _convex(z: jax.Array, b: jax.Array, wanted: jax.Array, machine: Machine) -> jax.Array:
    def newton(log_m):
        """The weights, their derivative by log m, and Newton's step."""
        v, y = _powers(z, b, log_m, machine)
        sum_y = machine.total(y)
        low = jnp.where(v > 0, y / jnp.where(v > 0, v, 1.0), 0.0)
        # e' / e - 1, where the tangent of the norm meets 1.
        change = expm1(-b * jnp.log(sum_y)) * sum_y / machine.total(low)
        return y, low, machine.log1p(jnp.maximum(change, -0.999)) / b

    def step(log_m):
        _, _, change = newton(log_m)
        return log_m + change, jnp.abs(change) <= SMALL_STEP

    y, low, rest = newton(_newton(jnp.zeros_like(b), step, wanted, MAX_PASSES, machine))
    return _arrived(y + rest * low, rest)


def _concave(z: jax.Array, b: jax.Array, wanted: jax.Array, machine: Machine) -> jax.Array:
    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = machine.total(_powers(z, b, middle, machine)[1]) > 1
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    least = -jnp.log(machine.total(flag(z > _LOWEST)))
    _, log_m = loop(_HALVINGS, halve, (least, jnp.zeros_like(b)))
    candidates = b * z * jnp.exp(jnp.minimum(-b * log_m, LARGEST_LOG)) > -1 - _NEAR

    def others(c, e):
        """Whether a position is above c, and what it weighs if c weighs e^(1/b)."""
        above = z > c
        u = jnp.where(above, e + b * (z - c), 1.0)
        return above, jnp.where(above, jnp.exp(jnp.log(u) / b), 0.0)

    def next_score(c):
        """The least score above c, where those above c sum to more than 1 by themselves."""
        above, y = others(c, 0.0)
        last = machine.total(y) <= 1
        return jnp.where(last, c, least_of(z, above, machine)), last

    c = _newton(least_of(z, candidates, machine), next_score, wanted, z.shape[-1], machine)
    ties = machine.total(flag(z == c))

    def step(w):
        above, y = others(c, jnp.exp(b * jnp.log(w)))
        ratio = jnp.exp((b - 1) * (jnp.log(w) - jnp.log(jnp.where(above, y, 1.0))))
        slope = ties + machine.total(jnp.where(above, ratio, 0.0))
        next_w = jnp.maximum(w - (machine.total(y) + ties * w - 1) / slope, LEAST)
        return next_w, jnp.abs(next_w - w) <= _SMALL_WEIGHT

    w = _newton(1 / ties, step, wanted, MAX_PASSES, machine)
    _, y = others(c, jnp.exp(b * jnp.log(w)))
    return jnp.where(z == c, w, y)


# --- p-norm ------------------------------------------------------------------------------------------------


def p_norm(z: jax.Array, b: jax.Array, machine: Machine) -> jax.Array:
    """y with sum 1, up to rounding."""

    def equation(b, low, mid, high):
        r = 1 / b
        log_f = jnp.log(mid) + (1 - r) / (1 + r) * jnp.log(high)
        return log_f, -expm1(-log_f) / (r * low / mid + (1 - r) * mid / high)

    convex = ~low_power(b)
    y = _chosen(
        z,
        machine,
        (convex, lambda: _high_powers(z, b, convex, machine)),
        (~convex, lambda: _low_powers(z, b, ~convex, equation, machine)),
    )
    return y / machine.total(y)


def _high_powers(z: jax.Array, b: jax.Array, wanted: jax.Array, machine: Machine) -> jax.Array:
    r = 1 / b

    def newton(log_e):
        """u^(1/b), its derivative by log e, and Newton's step."""
        w = z * jnp.exp(jnp.minimum(-log_e, LARGEST_LOG))
        on = w > -1
        w = jnp.where(on, w, 0.0)
        v, y = jnp.where(on, 1 + w, 0.0), jnp.where(on, jnp.exp(machine.log1p(w) * r), 0.0)
        low = jnp.where(v > 0, y / jnp.where(v > 0, v, 1.0), 0.0)
        derivative = r * low * (1 - v)
        mid = machine.total(y)
        # S_(r+1) is close to S_r for small b, and the equation of the order of b: so what it lacks is summed.
        lack = machine.total(y * -w) / mid
        high = mid * (1 - lack)
        log_f = log_e - machine.log1p(-lack) + 2 * b / (1 + b) * jnp.log(high)
        spread = machine.total(low) / mid * (1 - lack) - 1
        slope = (1 + r * jnp.where(spread > _NOISE, spread, 0.0)) / (1 - lack)
        change = expm1(-log_f) / slope
        return y, derivative, machine.log1p(jnp.maximum(change, -0.999))

    def step(log_e):
        _, _, change = newton(log_e)
        return log_e + change, jnp.abs(change) <= SMALL_STEP * b

    y, derivative, rest = newton(_newton(jnp.zeros_like(b), step, wanted, MAX_PASSES, machine))
    return _arrived(y + rest * derivative, rest)


# --- Pieces ------------------------------------------------------------------------------------------------


def low_power(b: Any) -> Any:
    """Whether u is computed rather than v."""
    return b > 0.4


def two_parts(whole: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Their sum, and what rounding it leaves over."""
    rounded = whole + rest
    return rounded, (whole - rounded) + rest


def solved(residual: jax.Array, step: jax.Array, last_step: jax.Array) -> jax.Array:
    """Whether what is left of an equation is nothing, or nothing but the rounding of sums."""
    return (residual <= _SOLVED) | ((residual < _NOISE) & (2 * jnp.abs(step) > jnp.abs(last_step)))


def least_of(v: jax.Array, where: jax.Array, machine: Machine) -> jax.Array:
    return -machine.most(jnp.where(where, -v, _LOWEST))


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, which the compilers for kernels have no operation for."""
    t = jnp.tanh(x / 2)
    return jnp.where(x < 1, 2 * t / (1 - jnp.where(x < 1, t, 0.0)), jnp.exp(x) - 1)
