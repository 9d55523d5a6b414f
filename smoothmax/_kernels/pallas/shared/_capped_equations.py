"""The equations of weights with bounds and a given sum, as the kernels of every machine solve them.

    y_i = clip(psi(z_i - tau), 0, u_i),    sum y = k;    `_solvers/_capped.py` says what is searched, and why so

With b = alpha - 1, psi(w) is the power `(1 + b w)^(1/b)`, `exp(w)` at b = 0, and the sigmoid at b = -1, which stands
for Fermi-Dirac. At b = 1 it is w itself: the 1 would cost digits of small weights.

The search ends at the root or at two neighbouring floats around it. At a root what the sum lacks is shared out by the
rates of the weights. Between neighbours the weights of both are mixed: above alpha = 2 the sum jumps there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import between, eps
from ._machines import LEAST, Machine, expm1, least_of, same
from ._slices import flag

# Five to nine passes are the rule. After so many, halvings are of the floats in the bracket, not of its length.
_MAX_PASSES, _PATIENCE = 160, 24
# The first bracket is widened by so many roundings.
_MARGIN = 8
# A threshold this far from the largest score is searched again, centred at the score next to it.
_FAR = 8.0
# The least b: nearer to 0 the power is the exponential, to rounding.
_LEAST_B = 1e-7
# As good as infinite for a score or a threshold, and for a rate.
_LARGEST, _LARGEST_RATE = 1e30, 1e18
# The least sum whose weights are cut in two, and the bits of a float's exponent.
_LEAST_TOTAL, _EXPONENT = 1e-30, 0x7F800000
# The largest number below 1, where Fermi-Dirac's slope ends.
_BELOW_ONE = 1 - 2.0**-24
# How far rounding may lift the share above 1.
_ROUNDING = 1e-5
# A sum further from what it should be, relative to it, is a solution that was not reached.
_REPAIRABLE = 1e-4


class _Problem(NamedTuple):
    """Slices and columns, one number a slice."""

    z: jax.Array  # the scores about a centre, over gamma; 0 where the bound is 0
    upper: jax.Array  # the bounds, lowered to what is possible; 0 at deleted positions
    b: jax.Array
    total: jax.Array
    share: jax.Array  # the sum over that of the bounds


class _Search(NamedTuple):
    """The state of the loop; columns. What is yes or no is 1 or 0."""

    passes: jax.Array  # a scalar
    tau: jax.Array  # the threshold to be tried next; the root, where it was found
    low: jax.Array  # a threshold at which the sum is too large, by `over`
    over: jax.Array  # -1 where that was not tried
    high: jax.Array  # one at which it is too small, by `under`
    under: jax.Array  # 1 where that was not tried
    excess: jax.Array  # the sum of the last pass, less what it should be
    active: jax.Array  # a finished slice must not depend on the others
    found: jax.Array
    going: jax.Array  # the sum of `active`, a scalar


_COLUMNS = [name for name in _Search._fields if name not in ("passes", "going")]


def capped(
    x: jax.Array,
    gamma: jax.Array,
    alpha: jax.Array,
    total: jax.Array,
    upper: jax.Array,
    *,
    machine: Machine,
) -> jax.Array:
    """Scores, columns of hyper-parameters, and bounds, one a slice or one a position, to weights."""
    known = (alpha == 0) | ((alpha >= 1) & (alpha < jnp.inf))
    good = known & (gamma > 0) & (gamma < jnp.inf) & (total >= 0) & (total < jnp.inf)
    top = machine.most(same, jnp.where(x < jnp.inf, x, -jnp.inf))
    bad = ~good | (machine.most(same, flag(~(x < jnp.inf))) > 0)
    empty = top == -jnp.inf
    spoiled = machine.most(same, flag(~((upper >= 0) & (x < jnp.inf)))) > 0
    top, gamma = jnp.where(empty, 0.0, top), jnp.where(good, gamma, 1.0)
    problem = _problem(x, top, gamma, jnp.where(good, alpha - 1, 1.0), jnp.where(good, total, 0.0), upper, machine)

    wanted = flag(~(bad | empty | spoiled) & (problem.share > 0) & (problem.share < 1))
    y, arrived = _solved(problem, x, top, gamma, wanted, machine)
    y = jnp.where(wanted > 0, y, jnp.where(problem.share >= 1, problem.upper, 0.0))
    full = problem.share <= 1 + _ROUNDING
    y = jnp.where(~spoiled & full & ((arrived > 0) | ~(wanted > 0)), y, jnp.nan)
    return jnp.where(bad, jnp.nan, jnp.where(empty, 0.0, y))


def _problem(
    x: jax.Array,
    top: jax.Array,
    gamma: jax.Array,
    b: jax.Array,
    total: jax.Array,
    upper: jax.Array,
    machine: Machine,
) -> _Problem:
    """Scores about the largest one, and bounds that the weights can reach: those of the others are at least 0."""
    most = jnp.where(b < 0, jnp.minimum(total, 1.0), total)
    upper = jnp.where(x > -jnp.inf, jnp.minimum(upper, most), 0.0)
    room = machine.total(same, upper)
    share = jnp.where((room > 0) | (total == 0), _ratio(total, room), jnp.inf)
    return _Problem(_about(top, x, gamma, upper), upper, b, total, share)


def _about(centre: jax.Array, x: jax.Array, gamma: jax.Array, upper: jax.Array) -> jax.Array:
    z = (jnp.where(upper > 0, x, centre) - centre) / gamma
    return jnp.clip(z, -_LARGEST, _LARGEST)


def _solved(
    problem: _Problem, x: jax.Array, top: jax.Array, gamma: jax.Array, wanted: jax.Array, machine: Machine
) -> tuple[jax.Array, jax.Array]:
    """The weights of the slices that are wanted, and whether they add up."""
    s = _search(problem, None, wanted, machine)
    far = flag((wanted > 0) & (jnp.abs(s.tau) > _FAR))
    z, s = lax.cond(
        machine.over_slices(far) > 0,
        lambda: _searched_again(problem, x, top, gamma, far, s, machine),
        lambda: (problem.z, s),
    )
    problem = problem._replace(z=z)

    y, rate = _weights(problem, s.tau, machine)
    y = jnp.clip(y + rate * _ratio(_lack(problem, y, machine), machine.total(same, rate)), 0.0, problem.upper)
    straddled = flag((wanted > 0) & ~(s.active > 0) & ~(s.found > 0) & (s.over >= 0) & (s.under <= 0))

    def mixed():
        """The mixture of the weights at both ends of the bracket that has the right sum, where nothing else has."""
        more, less = (_weights(problem, tau, machine)[0] for tau in (s.low, s.high))
        under, over = _lack(problem, less, machine), -_lack(problem, more, machine)
        part = jnp.clip(_ratio(under, under + over), 0.0, 1.0)
        return jnp.where(straddled > 0, less + part * (more - less), y)

    y = lax.cond(machine.over_slices(straddled) > 0, mixed, lambda: y)
    near = jnp.abs(machine.total(same, y) - problem.total) <= _REPAIRABLE * problem.total
    return y, flag(near & (s.found + straddled > 0))


def _searched_again(
    problem: _Problem,
    x: jax.Array,
    top: jax.Array,
    gamma: jax.Array,
    far: jax.Array,
    s: _Search,
    machine: Machine,
) -> tuple[jax.Array, _Search]:
    """Slices whose threshold is far below the top, where scores are coarse: about the score next to it."""
    usable = problem.upper > 0
    distance = jnp.where(usable, jnp.abs(problem.z - s.tau), jnp.inf)
    centre = machine.most(same, jnp.where(usable & (distance == -machine.most(same, -distance)), x, -jnp.inf))
    centre = jnp.where(far > 0, centre, top)
    z = _about(centre, x, gamma, problem.upper)
    again = _search(problem._replace(z=z), s.tau - (centre - top) / gamma, far, machine)
    return z, _chosen(far, again, s)


def _search(problem: _Problem, start: jax.Array | None, wanted: jax.Array, machine: Machine) -> _Search:
    """The threshold, or two neighbouring floats around it, for the slices that are wanted."""
    usable = problem.upper > 0
    # Where each position has the share of its bound that all of them have together.
    points = problem.z - _slope(problem.share * problem.upper, problem.b, machine)
    low, high = (side * least_of(lambda _, usable: usable, machine, side * points, usable) for side in (1, -1))
    if start is None:
        # Where all positions are free and phi is a square, the root itself.
        start = _ratio(machine.total(same, jnp.where(usable, points, 0.0)), machine.total(same, flag(usable)))
    low, high = (v + side * _MARGIN * eps(start) * (1 + jnp.abs(v)) for v, side in ((low, -1), (high, 1)))
    low, high, start = (jnp.where(wanted > 0, v, 0.0) for v in (low, high, jnp.clip(start, low, high)))
    none, one = jnp.zeros_like(start), jnp.ones_like(start)
    s = _Search(jnp.int32(0), start, low, -one, high, one, _LARGEST * one, wanted, none, machine.over_slices(wanted))
    return lax.while_loop(
        lambda s: (s.going > 0) & (s.passes < _MAX_PASSES), lambda s: _one_pass(problem, s, machine), s
    )


def _one_pass(problem: _Problem, s: _Search, machine: Machine) -> _Search:
    y, rate = _weights(problem, s.tau, machine)
    excess = -_lack(problem, y, machine)
    low, over = (jnp.where(excess >= 0, new, old) for new, old in ((s.tau, s.low), (excess, s.over)))
    high, under = (jnp.where(excess <= 0, new, old) for new, old in ((s.tau, s.high), (excess, s.under)))

    rate = machine.total(same, rate)
    newton = s.tau + jnp.where(rate > 0, _ratio(excess, rate), jnp.inf)
    middle = jnp.where(s.passes < _PATIENCE, low + (high - low) / 2, between(low, high))
    slow = 2 * jnp.abs(excess) > jnp.abs(s.excess)
    tau = jnp.where((newton > low) & (newton < high) & ~slow, newton, middle)

    # A sum that is right to rounding, or to noise that does not shrink any more, has its threshold; if few weights are
    # free, what is left over must be little to each, as far as floats resolve the threshold.
    resolved = jnp.maximum(rate * jnp.maximum(jnp.abs(s.tau) / 4, 1.0), 1.0)
    few = jnp.maximum(machine.most(same, problem.upper), 1.0) * resolved
    found = jnp.abs(excess) <= jnp.where(slow, 8.0, 4.0) * eps(y) * jnp.minimum(problem.total, few)
    tau = jnp.where(found, s.tau, tau)
    active = flag(~found & (low < middle) & (middle < high))
    new = _Search(s.passes + 1, tau, low, over, high, under, excess, active, flag(found), s.going)
    new = _chosen(s.active, new, s)
    return new._replace(going=machine.over_slices(new.active))


def _lack(problem: _Problem, y: jax.Array, machine: Machine) -> jax.Array:
    """What a sum near `total` lacks, where rounding of the sum would be too much for the few weights that are free.

    Weights are cut into multiples of a power of two, of which sums this large are exact, and small remainders.
    """
    bits = lax.bitcast_convert_type(jnp.maximum(problem.total, _LEAST_TOTAL), jnp.int32)
    unit = lax.bitcast_convert_type(bits & jnp.int32(_EXPONENT), jnp.float32) * jnp.float32(2.0**-22)
    coarse = (y / unit).astype(jnp.int32).astype(jnp.float32) * unit
    return (problem.total - machine.total(same, coarse)) - machine.total(same, y - coarse)


def _chosen(wanted: jax.Array, new: _Search, old: _Search) -> _Search:
    """The new columns for the slices that are wanted, the old ones for the others; the new scalars."""
    columns = {name: jnp.where(wanted > 0, getattr(new, name), getattr(old, name)) for name in _COLUMNS}
    return new._replace(**columns)


def _weights(problem: _Problem, tau: jax.Array, machine: Machine) -> tuple[jax.Array, jax.Array]:
    """The weights, and how fast each follows its score: 0 at the bounds."""
    w, b = problem.z - tau, problem.b
    sigmoid, linear = b < 0, b == 1
    power = jnp.where(sigmoid, 1.0, jnp.maximum(b, _LEAST_B))
    s = power * jnp.minimum(w, _LARGEST)
    on = s > -1
    s = jnp.where(on, s, 0.0)
    e = jnp.exp(jnp.where(sigmoid, -jnp.abs(w), machine.log1p(s) / power))
    half = 1 / (1 + e)
    y = jnp.where(sigmoid, jnp.where(w < 0, e * half, half), jnp.where(on, e, 0.0))
    y = jnp.where(linear, w, y)
    rate = jnp.where(sigmoid, e * half * half, jnp.where(linear, 1.0, e / (1 + s)))
    free = (y > 0) & (y < problem.upper)
    return jnp.clip(y, 0.0, problem.upper), jnp.where(free, jnp.minimum(rate, _LARGEST_RATE), 0.0)


def _slope(y: jax.Array, b: jax.Array, machine: Machine) -> jax.Array:
    """The inverse of psi."""
    power = jnp.where(b < 0, 1.0, jnp.maximum(b, _LEAST_B))
    log_y = jnp.log(jnp.maximum(y, LEAST))
    slope = jnp.where(b < 0, log_y - machine.log1p(-jnp.minimum(y, _BELOW_ONE)), expm1(power * log_y) / power)
    return jnp.where(b == 1, y, jnp.minimum(slope, _LARGEST))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 unless b > 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
