"""The loop for weights that are convex powers of the distance to a threshold: alpha <= 2, and every p-norm.

`_threshold.py` states the problems and the equation F(tau) = 1 in the sums `low`, `mid` and `high`.

**A step.** Suppose F were a power of the distance to some end point, ``F = ((end - tau) / c)^k``. With
``slope = -d log F / d tau`` the root would be exactly ``tau + phi(log F, 1 / k) / slope``, where
``phi(x, c) = (1 - exp(-c x)) / c``. Two choices of k matter:

* k = r is Newton's method on a norm of u: a convex, nearly linear function of tau, so the step never overshoots and
  converges quadratically; on an unchanged support it is exact for sparsemax. A p-norm's F is of first degree in u and
  nearly linear, too, but not convex: k = 1.
* Far from the root, positions leave the support on the way and F falls as a higher power. ``high`` is (up to a factor)
  the integral of ``mid`` over all larger thresholds, and ``low`` its derivative; the three together reveal k. This
  saves up to half of the passes over the data. As b falls to 0, k grows without bound and one step is the logsumexp.

**A pass** computes one power; the others follow by multiplication. Sparsemax (r = 1) and 1.5-entmax (r = 2) need none,
so these are chosen at run time, when the whole of alpha has that value: alpha may be traced, one trace serves all.

**p next to 1.** All scores with weight lie within some b of the largest, and log F is of that order too. Its parts are
summed up so that no larger ones cancel: what u lacks of the largest u, instead of u.

**Small weights.** Where thousands of scores lie next to the threshold, its rounding counts as often: it is kept in two
parts, and the search ends when what the last step leaves over is rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._arrays import eps, tiny, total, varying_like
from ._power import power
from ._scores import Solved, phi, positive, stored, sum_noise

# Three to six passes are the rule; no data was found that takes more than twenty.
MAX_PASSES = 64
# log F down to which the exponent k is estimated from the sums.
FAR = 0.2
# A normalisation repairs rounding: what the last step leaves over, of second order, and what summing adds.
REPAIRABLE = 1e-3
# b below which the equation of a p-norm, and all that moves its root, is of the order of b: summed up so that it stays.
SMALL = 1 / 32
# In place of -inf: so low that a position stays out of every support, and safe to compute with.
LOWEST = {"float32": 1e30, "float64": 1e100}


class Sums(NamedTuple):
    """Sums of u^(r-1), u^r and u^(r+1) along the slice, `(*batch, 1)`; or the summands, `(*batch, d)`."""

    low: jax.Array
    mid: jax.Array
    high: jax.Array


class Residual(NamedTuple):
    """The equation log F(tau) = 0 at some tau. Each `(*batch, 1)`.

    Attributes:
      log_f: what has to become 0.
      slope: -d log F / d tau.
      inverse_exponent: 1 / k for the k that the sums reveal.
    """

    log_f: jax.Array
    slope: jax.Array
    inverse_exponent: jax.Array


class Equation(NamedTuple):
    """One of the two problems, as functions of b.

    Attributes:
      scale: what scores are multiplied with.
      equal: d equal scores have the threshold -d^-equal.
      newton: 1 / k for Newton's method on a norm.
      residual: from b, the sums and the threshold, in two parts, to the equation.
      sums_to_one: whether u^r are the weights already, and dividing by their sum repairs only its rounding.
    """

    scale: Callable[[jax.Array], jax.Array]
    equal: Callable[[jax.Array], jax.Array]
    newton: Callable[[jax.Array], jax.Array]
    residual: Callable[[jax.Array, Sums, jax.Array, jax.Array], Residual]
    sums_to_one: bool


class Powers(NamedTuple):
    """How the powers of u are computed.

    Attributes:
      summands: from x, tau, the rest of it and r, with u = x - tau - rest, to the three powers.
      dear: whether a power costs so much that the last one is kept, and the last step taken to first order in it.
    """

    summands: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Sums]
    dear: bool


class _State(NamedTuple):
    """The loop. Except for the first and the last: `(*batch, 1)`.

    Attributes:
      passes: int32 `()`: how many there were.
      tau: the threshold of the last pass.
      rest: what rounding left over of it.
      step: what the last pass wants it moved by.
      active: the slices that have not arrived.
      far: the slices whose steps still use the exponent that the sums reveal.
      low_power: `(*batch, d)`: u^(r-1) of the last pass, or None where powers are cheap.
    """

    passes: jax.Array
    tau: jax.Array
    rest: jax.Array
    step: jax.Array
    active: jax.Array
    far: jax.Array
    low_power: jax.Array | None


def convex_weights(z: jax.Array, wanted: jax.Array, b: jax.Array, equation: Equation, powers: Powers) -> Solved:
    """y = u^r / sum u^r for u = max(scale z - tau, 0), tau the root of the equation.

    Args:
      z: `(*batch, d)`, at most 0, and 0 somewhere.
      wanted: bool `(*batch, 1)`: the slices to solve; the others arrive nowhere.
      b: 0 < b <= 1, `()` or `(*batch or ones, 1)`.
    """
    # The maximum changes nothing, but keeps product and subtraction from becoming one operation: that would round in
    # another way than the loop has, which reads x from memory.
    x, r = jnp.maximum(equation.scale(b) * z, -LOWEST[z.dtype.name]), 1 / b
    equal = -jnp.exp(-equation.equal(b) * jnp.log(jnp.asarray(z.shape[-1], z.dtype))) * (1 - 8 * eps(z))
    newton = equation.newton(b)
    # What is left of log F moves tau by `newton` times as much. Weights add up after a division, which repairs all but
    # differences of that size; and the last step is taken in them to first order, for which it must be small beside b.
    share = newton * jnp.maximum(1, eps(z) ** 0.5 * newton / b)
    # A step may lead up to d scores out of the support: so short, it takes little weight with them. (A convex equation
    # of smooth powers is slowed down by such scores before.)
    slows_down = equation.sums_to_one & (b <= 0.5)
    few = jnp.where(slows_down, 1, (8 * eps(z) / z.shape[-1]) ** b)

    def moved(s: _State) -> tuple[jax.Array, jax.Array]:
        """The next threshold in two parts: what rounding leaves over counts as often as there are weights next to it.

        A finished slice stays where it is: its weights must not depend on the other slices.
        """
        aim = s.tau + (s.rest + s.step)
        tau = jnp.clip(aim, -1, equal)
        rest = jnp.where(tau == aim, (s.tau - tau) + (s.rest + s.step), 0)
        return jnp.where(s.active, tau, s.tau), jnp.where(s.active, rest, s.rest)

    def one_pass(s: _State) -> _State:
        tau, rest = moved(s)
        summands = powers.summands(x, tau, rest, r)
        log_f, slope, inverse_exponent = equation.residual(b, Sums(*(total(v) for v in summands)), tau, rest)
        # Once F has been close to 1 or below it, Newton's method alone: it cannot be thrown to and fro.
        far = s.far & (log_f > FAR)
        step = phi(log_f, jnp.where(far, inverse_exponent, newton)) / slope
        arrives = _arrives(s, tau, step, log_f, b, share, few)
        low_power = summands.low if powers.dear else None
        return _State(s.passes + 1, tau, rest, step, s.active & ~arrives, far, low_power)

    wanted = varying_like(wanted, z, b)
    start = varying_like(jnp.full_like(z[..., :1], -1), wanted)
    nothing = jnp.zeros_like(start)
    low_power = varying_like(jnp.zeros_like(x), x) if powers.dear else None
    s = _State(jnp.int32(0), start, nothing, nothing, wanted, wanted, low_power)
    s = lax.while_loop(lambda s: (s.passes < MAX_PASSES) & jnp.any(s.active), one_pass, s)
    # The last step: exactly where powers are cheap, to first order in the stored power where they are not.
    if s.low_power is None:
        y = powers.summands(x, *moved(s._replace(active=wanted)), r).mid
    else:
        y = s.low_power * positive(positive((x - s.tau) - s.rest) - r * s.step)
    size = total(y)
    # Dividing by the sum is a move of the threshold by b log size, which for small b is nothing, however coarse the
    # sum.
    repairable = b * jnp.abs(jnp.log(size)) <= REPAIRABLE if equation.sums_to_one else size > 0
    arrived = wanted & ~s.active & repairable
    return Solved(y / jnp.where(size > 0, size, 1), arrived)


def _arrives(
    s: _State, tau: jax.Array, step: jax.Array, log_f: jax.Array, b: jax.Array, share: jax.Array, few: jax.Array
) -> jax.Array:
    """Whether the step from tau is the last; `s` is the state before, `few` how long it may be."""
    rounding = 8 * eps(tau)
    residual = share * jnp.abs(log_f)
    # The next residual is about this one times the square of the ratio of the last two steps, if both are Newton's.
    ratio = jnp.minimum(jnp.abs(step) / jnp.maximum(jnp.abs(s.step), tiny(tau)), 1)
    leaves = residual * jnp.where(s.far, 1, ratio) ** 2
    # A step leaves an error of second order in the weights, of order r in weights close to 0.
    little = jnp.abs(step) <= -4 * eps(tau) ** 0.5 * b * tau
    # The sums are rounded: a residual this small whose step does not shrink any more is nothing but noise.
    stalled = (residual < sum_noise(tau)) & (2 * jnp.abs(step) > jnp.abs(s.step))
    near = (leaves <= rounding) & little & (jnp.abs(step) <= few) | (residual <= rounding / 2) | stalled
    # For small b all of this may hold far from the root: a step of b takes the weights away, to first order.
    return near & (jnp.abs(step) <= b / 4)


# The two equations.


def _tsallis_residual(b: jax.Array, sums: Sums, tau: jax.Array, rest: jax.Array) -> Residual:
    return Residual(jnp.log(sums.mid), sums.low / (b * sums.mid), _inverse_exponent(b, sums))


def _p_norm_residual(b: jax.Array, sums: Sums, tau: jax.Array, rest: jax.Array) -> Residual:
    r = 1 / b
    low, mid, high = sums
    # For small b, u is close to its largest value, and `high` holds what they lack of it.
    top, log_top = -(tau + rest), jnp.log1p(-((1 + tau) + rest))
    lack = high / (top * mid)
    high = jnp.where(b < SMALL, top * mid * (1 - lack), high)
    near = log_top - jnp.log1p(-lack) + 2 * b / (1 + b) * (jnp.log(high) - (1 + r) * log_top)
    log_f = jnp.where(b < SMALL, near, jnp.log(mid) + (1 - r) / (1 + r) * jnp.log(high))
    spread = low / mid * (high / mid) - 1
    slope = mid / high * (1 + r * jnp.where(spread > 4 * sum_noise(tau), spread, 0))
    # mid falls with exponent k and high with k + 1, hence F with exponent 1 + 2 (k - r) / (1 + r).
    inverse_k = _inverse_exponent(b, Sums(low, mid, high))
    return Residual(log_f, slope, inverse_k * (1 + r) / (2 + inverse_k * (1 - r)))


def _inverse_exponent(b: jax.Array, sums: Sums) -> jax.Array:
    """1 / k such that ``mid ~ (end - tau)^k``; then low * high / ((1 + b) mid^2) = k / (k + 1)."""
    return (1 + b) * sums.mid / sums.low * (sums.mid / sums.high) - 1


TSALLIS = Equation(
    scale=lambda b: b, equal=lambda b: b, newton=lambda b: b, residual=_tsallis_residual, sums_to_one=True
)
P_NORM = Equation(
    scale=jnp.ones_like,
    equal=lambda b: 2 * b / (1 + b),
    newton=jnp.ones_like,
    residual=_p_norm_residual,
    sums_to_one=False,
)


# The powers of u.


def _first_powers(x: jax.Array, tau: jax.Array, rest: jax.Array, r: jax.Array) -> Sums:
    u = stored(positive((x - tau) - rest))
    return Sums(jnp.sign(u), u, u * u)


def _second_powers(x: jax.Array, tau: jax.Array, rest: jax.Array, r: jax.Array) -> Sums:
    u = positive((x - tau) - rest)
    u, again = stored((u, u))
    return Sums(u, u * u, again * again * again)


def _any_powers(x: jax.Array, tau: jax.Array, rest: jax.Array, r: jax.Array) -> Sums:
    u = (x - tau) - rest
    # For small b, u is close to 1 and r multiplies the error of rounding it; the power gets that error back.
    # (Where u is less than half of the largest u, the subtraction was exact.)
    error = (x - (u + tau)) - rest
    low = jnp.sign(positive(u)) * power(jnp.maximum(u, tiny(u)), r - 1, error / jnp.maximum(u, -tau / 2))
    low, u = stored((low, positive(u)))
    return Sums(low, low * u, low * u * u)


def _norm_powers(x: jax.Array, tau: jax.Array, rest: jax.Array, r: jax.Array) -> Sums:
    low, mid, high = _any_powers(x, tau, rest, r)
    return Sums(low, mid, jnp.where(r > 1 / SMALL, mid * -x, high))


FIRST_POWER = Powers(_first_powers, dear=False)  # r = 1
SECOND_POWER = Powers(_second_powers, dear=False)  # r = 2
ANY_POWER = Powers(_any_powers, dear=True)
NORM_POWER = Powers(_norm_powers, dear=True)  # for p-norms
