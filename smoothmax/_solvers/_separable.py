"""The capped simplex, and the box, for a sum of one function over the coordinates, phi convex:

    minimise over y   gamma sum_i phi(y_i) - <x, y>    subject to   0 <= y_i <= u_i,  sum_i y_i = k

The simplex is k = 1, u = 1. Below, x is x / gamma, and u is at most k, which no weight exceeds.

**Threshold.** y_i = psi(x_i - tau), where psi is the inverse of phi', cut off at 0 and u_i, and tau makes the weights
add up to k. Their sum falls with tau. The root lies above each tau at which enough weights to make up k are at their
bound, and below max x - phi'(k / d), where none exceeds k / d.

**Steps.** Newton's method on tau and all y_i together: one pass over the coordinates for each step, and two or three
steps once close. tau follows from the greatest free weight, tau + phi'(y_i) = x_i: the sum of the weights is linear in
it for an entropy as for a square, in tau only for the square.

**Safety.** Each y_i is exact for some threshold, tau_i = x_i - phi'(y_i). So weights that add up to k or more bound
the root from below by min tau_i, and others from above by max tau_i, however wrong they are for tau itself. tau moves
only when the y_i are close enough to judge it, and where Newton's step leaves the bracket or progress is slow, to the
middle, where it then waits until the bracket has shrunk. Meanwhile each y_i closes in on psi(x_i - tau) in a bracket of
its own, halved on a logarithmic scale, since an entropy has weights of every magnitude. The ends `least` and
(1 - eps) u_i stand for 0 and u_i, where phi' may be infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._arrays import between, eps, total, varying_like
from ._scores import over_gamma

Slopes = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

# What stands for 0, as a power of eps: three derivatives of a logarithm there are still finite in float32.
_LEAST = 1.75
# Points at which phi is looked at before the first step, on a logarithmic and on a linear scale each.
_GRID = 64
# Steps. 4 to 12 are usual; halving two brackets at once to the last bit takes some hundreds.
_STEPS = 500
# The rounding of x - tau - phi'(y), in eps of x and tau, and of the phi' of neighbours on the grid.
_ROUNDING, _GRID_ROUNDING = 4, 64
# A step below this part of sqrt(eps) of every weight is the last: the error that it leaves is about its square, over
# the distance to where the slope may be infinite.
_LAST_STEP = 0.25
# How often the weights are made to add up in the end.
_REPAIRS = 3
# What the sum of the weights may be off in the end, as a power of eps: far above rounding, far below an error.
_SLACK = 0.75


class _Problem(NamedTuple):
    slopes: Slopes  # t -> (phi'(t), phi''(t))
    x: jax.Array  # scores with the greatest at 0; 0 at deleted positions
    allowed: jax.Array  # positions that may have weight
    size: jax.Array  # k, the sum of the weights
    upper: jax.Array  # u, at most k
    least: jax.Array  # stands for 0
    most: jax.Array  # stands for u
    bottom: jax.Array  # phi' at `least`
    top: jax.Array  # phi' at `most`


class _State(NamedTuple):
    steps: jax.Array  # taken so far
    tau: jax.Array
    low: jax.Array  # bracket of the root
    high: jax.Array
    y: jax.Array  # weights on their way to psi(x - tau)
    small: jax.Array  # bracket of each psi(x - tau)
    large: jax.Array
    last: jax.Array  # error of the sum at the last move of tau by Newton's method; infinite after one to the middle
    moving: jax.Array  # slices that have not arrived


class _View(NamedTuple):
    """What one pass over the coordinates tells."""

    inside: jax.Array  # positions that tau does not cut off
    noise: jax.Array  # the rounding of gap
    gap: jax.Array  # tau_i - tau, the threshold for which y_i is exact less the present one; 0 where cut off
    rate: jax.Array  # 1 / phi'', how fast a weight follows its gap; 0 where cut off
    excess: jax.Array  # by how much the weights would exceed k after Newton's step for each of them
    low: jax.Array
    high: jax.Array


def least(like: jax.Array) -> float:
    """The weight at which a function is evaluated instead of 0."""
    return eps(like) ** _LEAST


def separable_weights(
    slopes: Slopes,
    x: jax.Array,
    gamma: jax.Array | float = 1.0,
    size: jax.Array | float = 1.0,
    upper: jax.Array | float = 1.0,
) -> jax.Array:
    """The solution for each slice along the last axis.

    Args:
      slopes: elementwise function, t -> (phi'(t), phi''(t)), for 0 < t < u.
      x: scores `(*batch, d)`, -inf at deleted positions.
      gamma: strength of phi, positive: `()` or `(*batch or ones, 1)`.
      size: k, the sum of the weights, in the same shapes.
      upper: u, the bounds, in the same shapes or `(*batch or ones, d)`.

    Returns:
      y `(*batch, d)`: zeros for a slice without an allowed position or with k = 0; NaN where the slice holds NaN or
      +inf, where no weights within the bounds add up to k, where phi is not convex, and where the solution was not
      reached.
    """
    problem, start = _begin(slopes, x, gamma, jnp.asarray(size, x.dtype), jnp.asarray(upper, x.dtype))
    end = lax.while_loop(lambda s: (s.steps < _STEPS) & jnp.any(s.moving), lambda s: _step(problem, s), start)
    y, solved = _finish(problem, end)
    nothing = ~jnp.any(x != -jnp.inf, -1, keepdims=True)
    zero = nothing | ((problem.size == 0) & ~jnp.any(jnp.isnan(x) | (x == jnp.inf), -1, keepdims=True))
    return jnp.where(zero, 0, jnp.where(start.moving & solved, y, jnp.nan))


def _begin(
    slopes: Slopes, x: jax.Array, gamma: jax.Array | float, size: jax.Array, upper: jax.Array
) -> tuple[_Problem, _State]:
    """The problem with its scores centred, and the state to start from: the weights at a lower bound of tau."""
    kept = x != -jnp.inf
    z, broken = over_gamma(x, kept, gamma)
    upper = jnp.minimum(upper, size)
    allowed = kept & (upper > 0)
    count = jnp.maximum(total(allowed.astype(x.dtype)), 1)
    room = total(jnp.where(allowed, upper, 0))
    feasible = room >= (1 - eps(x) ** _SLACK) * size

    reach, grid, slope, rises = _survey(slopes, varying_like(upper, x))
    below = 1 - eps(x)
    most = below * jnp.where(upper > 0, upper, reach)
    bottom = slope[..., :1] if upper.ndim else slope[0]
    problem = _Problem(slopes, z, allowed, size, upper, least(x) * reach, most, bottom, slopes(most)[0])

    low = _lower_bound(problem)
    high = (
        jnp.max(jnp.where(allowed, z, -jnp.inf), -1, keepdims=True)
        - slopes(jnp.minimum(size / count, below * reach))[0]
    )
    usable = ~broken & jnp.any(allowed, -1, keepdims=True) & feasible & rises & jnp.isfinite(low) & jnp.isfinite(high)
    low, high = jnp.where(usable, low, 0), jnp.where(usable, high, 0)
    y = jnp.clip(_read(z - low, slope, grid), problem.least, most)
    zeros = jnp.zeros_like(y)
    start = _State(
        jnp.int32(0), low, low, high, y, zeros + problem.least, zeros + most, jnp.full_like(low, jnp.inf), usable
    )
    return problem, start


def _survey(slopes: Slopes, upper: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The greatest bound; points up to it; phi' there; and whether it rises."""
    reach = jnp.max(upper, -1, keepdims=True) if upper.ndim else upper
    reach = jnp.where(reach > 0, reach, 1)
    grid = np.union1d(np.geomspace(least(upper), 0.5, _GRID), np.linspace(1 / _GRID, 1 - eps(upper), _GRID))
    grid = reach * jnp.asarray(grid, upper.dtype).reshape((1,) * (upper.ndim - 1) + (-1,))
    slope, curvature = slopes(grid)
    before, after = slope[..., :-1], slope[..., 1:]
    noise = _GRID_ROUNDING * eps(upper) * jnp.maximum(jnp.abs(before), jnp.abs(after))
    bent = curvature[..., 1:] >= -_GRID_ROUNDING * eps(upper) * jnp.abs(after)
    rises = jnp.all(((after - before >= -noise) & bent) | ~jnp.isfinite(after), -1, keepdims=bool(upper.ndim))
    return reach, grid, slope, rises


def _read(u: jax.Array, slope: jax.Array, grid: jax.Array) -> jax.Array:
    """A first guess at psi(u), read off the grid."""
    read = jnp.interp if grid.ndim == 1 else jnp.vectorize(jnp.interp, signature="(n),(m),(m)->(n)")
    return jnp.exp(read(u, slope, jnp.log(grid)))


def _lower_bound(p: _Problem) -> jax.Array:
    """A threshold below the root: the greatest, or nearly, at which enough weights to make up k are at their bound."""
    turn = p.x - p.top  # below this threshold a weight is at its bound
    greatest = jnp.max(jnp.where(p.allowed, turn, -jnp.inf), -1, keepdims=True)

    def search() -> jax.Array:
        def enough(tau: jax.Array) -> jax.Array:
            return total(jnp.where(p.allowed & (turn >= tau), p.upper, 0)) >= p.size

        def halve(_, bounds):
            low, high = bounds
            middle = between(low, high)
            return jnp.where(enough(middle), middle, low), jnp.where(enough(middle), high, middle)

        least_turn = jnp.min(jnp.where(p.allowed, turn, jnp.inf), -1, keepdims=True)
        # As many halvings as a float has bits meet two neighbours, however far apart the scores are.
        low, _ = lax.fori_loop(0, jnp.finfo(turn.dtype).bits, halve, (least_turn, greatest))
        return jnp.where(enough(greatest), greatest, low)

    # Over the simplex one weight is enough, and the search need not run.
    return lax.cond(jnp.all(p.upper == p.size), lambda: greatest, search)


def _step(p: _Problem, s: _State) -> _State:
    """One step of Newton's method, for tau where the weights are close enough to judge it, and for each weight."""
    view = _look(p, s)
    shift = view.excess / _or_one(total(view.rate))
    whole = jnp.where(view.inside, s.y + view.rate * (view.gap - shift), 0)
    arrived = _arrived(p, s, view, shift)
    tau, shift, last = _move(p, s, view, shift, whole)

    small = jnp.where(tau > s.tau, p.least, jnp.where(view.gap > view.noise, s.y, s.small))
    large = jnp.where(tau < s.tau, p.most, jnp.where(view.gap < -view.noise, s.y, s.large))
    y = jnp.where(view.inside, _follow(s.y, view.rate * (view.gap - shift), small, large), s.y)
    ends = jnp.where(p.allowed & (p.x - s.tau > p.top), p.most, jnp.clip(whole, p.least, p.most))
    y = jnp.where(arrived, ends, y)
    # Slices that have arrived stay, so that none depends on the others.
    y, tau = jnp.where(s.moving, y, s.y), jnp.where(s.moving, tau, s.tau)
    return _State(s.steps + 1, tau, view.low, view.high, y, small, large, last, s.moving & ~arrived)


def _look(p: _Problem, s: _State) -> _View:
    slope, curvature = p.slopes(s.y)
    u = p.x - s.tau
    # Weights that tau cuts off, to 0 or to their bound, are exact.
    inside = p.allowed & (u > p.bottom) & (u <= p.top)
    gap = jnp.where(inside, u - slope, 0)
    rate = jnp.where(inside, 1 / curvature, 0)
    noise = _ROUNDING * eps(u) * (jnp.abs(p.x) + jnp.abs(s.tau))
    exact = jnp.all(jnp.abs(gap) <= noise, -1, keepdims=True)

    # y_i is exact for tau + gap_i.
    excess = total(jnp.where(inside, s.y, jnp.where(p.allowed & (u > p.top), p.upper, 0))) - p.size
    below = jnp.where(exact, s.tau, s.tau + jnp.min(gap - noise, -1, keepdims=True))
    above = jnp.where(exact, s.tau, s.tau + jnp.max(gap + noise, -1, keepdims=True))
    low = jnp.where(excess >= 0, jnp.maximum(s.low, below), s.low)
    high = jnp.where(excess <= 0, jnp.minimum(s.high, above), s.high)
    return _View(inside, noise, gap, rate, excess + total(rate * gap), low, high)


def _arrived(p: _Problem, s: _State, view: _View, shift: jax.Array) -> jax.Array:
    """Whether Newton's step for the whole system, after which the weights add up to k, is the last.

    It is where it is below sqrt(eps), since the next would be rounding, or where y_i and tau fit but for the rounding
    of x - tau. Where all weights are cut off, no step changes them.
    """
    error = jnp.maximum(jnp.abs(view.gap), jnp.abs(shift))
    little = _is_last(view.rate * error, s.y, p.most)
    fits = jnp.all(little | (error <= view.noise) | ~view.inside, -1, keepdims=True)
    free = jnp.any(view.inside, -1, keepdims=True)
    return fits & (free | (jnp.abs(view.excess) <= eps(shift) ** _SLACK * p.size))


def _move(
    p: _Problem, s: _State, view: _View, shift: jax.Array, whole: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next tau, how far that is, and the error of the sum that the next move has to halve."""
    # Towards the greatest weight that the whole step gives; the rounding of its slope is no match for a small step.
    first = jnp.max(jnp.where(view.inside, p.x, -jnp.inf), -1, keepdims=True)
    greatest = jnp.clip(
        jnp.max(whole, -1, keepdims=True), p.least, jnp.max(p.most, -1, keepdims=True) if p.most.ndim else p.most
    )
    tau = jnp.minimum(first - p.slopes(greatest)[0], view.high)
    tau = jnp.where(jnp.abs(shift) <= eps(shift) ** 0.5 * jnp.abs(s.tau), s.tau + shift, tau)
    size = jnp.abs(view.excess)
    newton = (tau >= view.low) & (tau <= view.high) & (size <= s.last / 2) & jnp.any(view.inside, -1, keepdims=True)
    tau = jnp.where(newton, tau, (view.low + view.high) / 2)

    # tau moves once the error of the sum is more than twice that of the weights; from the middle of its bracket, only
    # once that has shrunk.
    lack = total(jnp.where(jnp.abs(view.gap) > view.noise, jnp.abs(view.rate * view.gap), 0))
    halved = jnp.minimum(s.tau - view.low, view.high - s.tau) <= (view.high - view.low) / 4
    go = ((s.last < jnp.inf) | halved) & (lack <= size / 2)
    last = jnp.where(go, jnp.where(newton, size, jnp.inf), s.last)
    return jnp.where(go, tau, s.tau), jnp.where(go, jnp.where(newton, shift, tau - s.tau), 0), last


def _follow(y: jax.Array, change: jax.Array, small: jax.Array, large: jax.Array) -> jax.Array:
    """Newton's step for a weight, in y or else in log y, or else to the middle of its bracket."""
    line, curve = y + change, y * jnp.exp(change / y)
    middle = jnp.sqrt(small) * jnp.sqrt(large)
    following = jnp.where((curve > small) & (curve < large), curve, middle)
    return jnp.where((line > small) & (line < large), line, following)


def _is_last(change: jax.Array, y: jax.Array, most: jax.Array) -> jax.Array:
    """Whether no step is worth taking after one of this size; one of the size of rounding always is the last."""
    small = _LAST_STEP * eps(y) ** 0.5 * jnp.sqrt(jnp.maximum(1 - y / most, 0))
    return change <= jnp.maximum(small, 2 * eps(y)) * y


def _finish(p: _Problem, end: _State) -> tuple[jax.Array, jax.Array]:
    """The weights with 0 and u at their ends, and whether they are a solution."""
    y = jnp.where(end.y >= p.most, p.upper, end.y)
    y = jnp.where(p.allowed & (end.y > p.least), y, 0)
    free = (y > 0) & (y < p.upper)
    _, curvature = p.slopes(jnp.where(free, jnp.minimum(y, p.most), p.most))
    # Where the last step led beyond an end, the other weights take up the difference, which may lead more there.
    for _ in range(_REPAIRS):
        rate = jnp.where((y > 0) & (y < p.upper), 1 / curvature, 0)
        y = jnp.clip(y - rate * ((total(y) - p.size) / _or_one(total(rate))), 0, p.upper)
    convex = jnp.all(~free | (curvature > 0), -1, keepdims=True)
    # Scores as far apart as 1e300 leave tau no float in its bracket: weights are then as near as it lets them.
    reached = ~end.moving | (end.high - end.low <= _ROUNDING * eps(y) * (jnp.abs(end.low) + jnp.abs(end.high)))
    return y, reached & convex & (jnp.abs(total(y) - p.size) <= eps(y) ** _SLACK * p.size)


def separable_inverse(
    slopes: Slopes, u: jax.Array, lower: jax.Array | float = 0.0, upper: jax.Array | float = jnp.inf
) -> jax.Array:
    """psi(u) = argmax over y of u y - phi(y), cut off at the bounds, position by position.

    Args:
      slopes: as for `separable_weights`.
      u: `(*batch, d)`.
      lower: `()`, `(*batch or ones, 1)` or `(*batch or ones, d)`; below 0, where phi need not exist, 0 counts.
      upper: in the same shapes; may be infinite.

    Returns:
      In the shape of `u`; NaN where `u` is NaN or the solution was not reached, and where phi is not convex.
    """
    lower, upper = (varying_like(jnp.asarray(bound, u.dtype), u) for bound in (lower, upper))
    cap = jnp.clip(upper, 0, 1 / eps(u))  # beyond it, no weight is told from its neighbours' sum
    reach, grid, slope, rises = _survey(slopes, cap)
    smallest, most = least(u) * jnp.minimum(reach, 1), (1 - eps(u)) * jnp.where(cap > 0, cap, reach)
    zeros = jnp.zeros_like(u)
    bottom, top = slopes(zeros + smallest)[0], slopes(zeros + most)[0]
    top = jnp.where(jnp.isnan(top), jnp.inf, top)
    inside = (u > bottom) & (u < top)

    guess = jnp.clip(
        _read(jnp.where(inside, u, bottom), jnp.where(jnp.isfinite(slope), slope, jnp.inf), grid), smallest, most
    )
    guess = jnp.where(jnp.isfinite(guess), guess, smallest)
    start = _Search(jnp.int32(0), guess, zeros + smallest, zeros + most, inside & rises)
    end = lax.while_loop(lambda s: (s.steps < _STEPS) & jnp.any(s.moving), lambda s: _invert(slopes, u, most, s), start)
    y = jnp.where(u >= top, jnp.where(jnp.isinf(upper), jnp.nan, upper), jnp.where(u <= bottom, 0, end.y))
    solved = ~end.moving & rises & ~jnp.isnan(u) & ~jnp.isnan(bottom)
    return jnp.where(solved, jnp.clip(y, lower, upper), jnp.nan)


class _Search(NamedTuple):
    steps: jax.Array  # taken so far
    y: jax.Array  # on its way to psi(u)
    small: jax.Array  # bracket of psi(u)
    large: jax.Array
    moving: jax.Array  # positions that have not arrived


def _invert(slopes: Slopes, u: jax.Array, most: jax.Array, s: _Search) -> _Search:
    """One step of Newton's method for phi'(y) = u; a slope that overflows is too great."""
    slope, curvature = slopes(s.y)
    gap = jnp.where(jnp.isfinite(slope), u - slope, -jnp.inf)
    noise = _ROUNDING * eps(u) * (jnp.abs(u) + jnp.abs(slope))
    small, large = jnp.where(gap > noise, s.y, s.small), jnp.where(gap < -noise, s.y, s.large)
    change = jnp.where(jnp.isfinite(gap), gap / curvature, 0)
    done = jnp.isfinite(gap) & (_is_last(jnp.abs(change), s.y, most) | (jnp.abs(gap) <= noise)) & (curvature > 0)
    y = jnp.where(done, jnp.clip(s.y + change, small, large), _follow(s.y, change, small, large))
    return _Search(s.steps + 1, jnp.where(s.moving, y, s.y), small, large, s.moving & ~done)


def _or_one(v: jax.Array) -> jax.Array:
    return jnp.where(v > 0, v, 1)
