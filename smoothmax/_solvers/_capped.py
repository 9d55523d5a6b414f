"""The capped simplex: weights with bounds and a given sum, for an entropy that sums one function over the coordinates.

    argmax over y of  <x, y> - gamma sum_i phi(y_i)    subject to   0 <= y_i <= u_i,  sum_i y_i = k

The solution is ``y_i = clip(psi(z_i - tau), 0, u_i)`` with z = x / gamma, psi the inverse of phi' and tau such that
the weights add up to k. No weight exceeds k or what psi attains, so the bounds are lowered to these first; let f be k
over the sum of the bounds. At ``tau_i = z_i - phi'(f u_i)`` position i has the share f of its bound. So all have at
least that share at the least tau_i, and at most that share at the greatest: the root lies between the two.

**Steps.** Newton's method in this bracket; the sum is piecewise smooth, and for SquaredL2 piecewise linear, so that a
step on unchanged sets of zeros and of full positions is exact. Where Newton's step leaves the bracket, or the last
one did not halve the residual, the next one goes to the middle: in the end to the middle of all floats of the
bracket, which so comes down to two neighbours within as many halvings as a float has bits, whatever its scale.

**The mixture.** A sum of concave powers (alpha > 2) is so steep that no float is its root. Then the loop ends at two
neighbours, of weights that add up to more and to less than k, and the solution is the mixture of the two that adds up
to k: it differs only in the weights of positions that rounding puts on the threshold, and ties get the same. Its
objective is off by less than the distance of two floats.

**Two centres.** Scores are resolved next to their largest, but the threshold may be far below: at k = 3, behind two
scores of 1e4. So slices whose threshold is far are solved again, centred at the score next to it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from .._arrays import between, eps, safe_ratio, total, varying_like
from ._scores import Solved, answered, centred, stored, sum_noise

# Five to nine passes are the rule. Newton's steps alternate with halvings, of which 32 or 64 meet two neighbours.
MAX_PASSES = 160
# After so many passes the middle is that of the floats: halving numbers would not end where scales differ by much.
PATIENCE = 24
# The first bracket is widened by so many roundings: psi(phi'(y)) is y to some eighty, since XLA's log1p loses digits.
MARGIN = 128
# A threshold this far from 0 costs more digits than the last centring gave: three bits.
FAR = 8
# A sum this many roundings above that of the bounds still is theirs.
REPAIRABLE = 4


class Entropy(Protocol):
    """phi and its derivatives, position by position; hyper-parameters broadcast with slices `(*batch, d)`.

    Attributes:
      kernel_alpha: the alpha under which the kernels know this entropy, or None if they do not.
    """

    kernel_alpha: Any

    def inverse(self, u: jax.Array) -> jax.Array:
        """psi(u), the inverse of phi'; anything up to 0 where u is below phi'(0)."""
        ...

    def slope(self, y: jax.Array) -> jax.Array:
        """phi'(y)."""
        ...

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        """1 / phi''(y); 0 where phi'' is infinite."""
        ...


def capped_weights(
    entropy: Entropy,
    x: jax.Array,
    gamma: jax.Array,
    size: jax.Array,
    upper: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """argmax of <x, y> - gamma sum phi(y_i) over 0 <= y <= upper, sum y = size.

    Args:
      entropy: phi.
      x: scores `(*batch, d)`, float32 or float64, at any offset; -inf deletes a position.
      gamma: greater than 0, of the dtype of `x`: `()`, or `(*batch or ones, 1)`.
      size: the sum, at least 0, as `gamma`.
      upper: the bounds, at least 0, +inf allowed: `()`, or `(*batch or ones, 1 or d)`.
      implementation: None for the best one, or its name in the table of `_kernels`.

    Returns:
      The weights `(*batch, d)`, exactly 0 or `upper` at a bound. Zeros for a slice of -inf; NaN for one with NaN or
      +inf or a NaN hyper-parameter, for one whose bounds add up to less than `size`, and for one whose loop did not
      arrive.
    """

    if entropy.kernel_alpha is None:
        reference = partial(_capped_weights, entropy)
        return _kernels.run("capped, any entropy", implementation, reference, x, gamma, size, upper)

    # An entropy that kernels know has no hyper-parameter but alpha, which the reference gets from its arguments.
    form = jax.tree.structure(entropy)

    def known(x: jax.Array, gamma: jax.Array, alpha: jax.Array, size: jax.Array, upper: jax.Array) -> jax.Array:
        return _capped_weights(form.unflatten([alpha] * form.num_leaves), x, gamma, size, upper)

    alpha = jnp.asarray(entropy.kernel_alpha, x.dtype)
    return _kernels.run("capped", implementation, known, x, gamma, alpha, size, upper)


class _Bounds(NamedTuple):
    """What the weights have to keep.

    Attributes:
      upper: `(*batch, d)`: the bounds, lowered to what is possible; 0 at deleted positions.
      most: `(*batch, 1)`: the greatest of them, and 1 at least.
      size: `(*batch, 1)`: the sum.
      share: `(*batch, 1)`: the sum over that of the bounds.
    """

    upper: jax.Array
    most: jax.Array
    size: jax.Array
    share: jax.Array


class _State(NamedTuple):
    """The loop. Except for the first `(*batch, 1)`.

    Attributes:
      passes: int32 `()`: how many there were.
      tau: the threshold to be tried next; the root, where it was found.
      low: a threshold at which the sum is not too small, by `over`; +inf where that was not tried.
      over: the sum at `low` less what it should be.
      high: one at which it is not too large, by `under`; -inf where that was not tried.
      under: the sum at `high` less what it should be.
      excess: the sum of the last pass, less what it should be.
      rate: how fast that sum falls as tau rises.
      active: the slices that have not arrived.
      found: whether tau is the root.
    """

    passes: jax.Array
    tau: jax.Array
    low: jax.Array
    over: jax.Array
    high: jax.Array
    under: jax.Array
    excess: jax.Array
    rate: jax.Array
    active: jax.Array
    found: jax.Array


def _capped_weights(entropy: Entropy, x: jax.Array, gamma: jax.Array, size: jax.Array, upper: jax.Array) -> jax.Array:
    upper = upper.reshape((1,) * x.ndim) if upper.ndim == 0 else upper
    x = jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, upper.shape))
    scores = centred(x, gamma, size, varying_like(jnp.zeros((), x.dtype), upper))
    bounds = _bounds(entropy, scores.z, size, jnp.broadcast_to(upper, scores.z.shape))
    spoiled = jnp.any(jnp.isnan(upper) | (upper < 0), axis=-1, keepdims=True) | (size < 0) | jnp.isnan(bounds.share)
    scores = scores._replace(bad=scores.bad | spoiled)

    z = jnp.where(bounds.upper > 0, scores.z, 0) / gamma
    wanted = ~(scores.bad | scores.empty) & (bounds.share > 0) & (bounds.share < 1)
    s = _search(entropy, z, bounds, wanted, None)
    far = wanted & ~s.active & (jnp.abs(s.tau) > FAR)
    z, s = lax.cond(
        jnp.any(far), lambda: _searched_again(entropy, x, z, gamma, bounds, far, scores.top, s), lambda: (z, s)
    )

    # One root has only the rounding of its sum to repair: by a step of Newton's, to first order.
    y = _weights(entropy, z, bounds, s.tau)
    y = jnp.clip(y - _rates(entropy, bounds, y) * safe_ratio(_excess(bounds, y), s.rate), 0, bounds.upper)
    straddled = wanted & ~s.found
    y = lax.cond(jnp.any(straddled), lambda: jnp.where(straddled, _mixed(entropy, z, bounds, s), y), lambda: y)
    # At a share of 0 or 1 nothing is free.
    y = jnp.where(wanted, y, jnp.where(bounds.share >= 1, bounds.upper, 0))
    full = bounds.share <= 1 + REPAIRABLE * sum_noise(z)
    tried = s.found | (jnp.isfinite(s.over) & jnp.isfinite(s.under))
    return answered(Solved(y, full & ~s.active & (tried | ~wanted)), scores)


def _bounds(entropy: Entropy, z: jax.Array, size: jax.Array, upper: jax.Array) -> _Bounds:
    """Bounds that the weights can reach: those of the others are at least 0, and psi may be bounded too."""
    # Large enough for any weight, and small enough for an inverse to multiply it.
    most = entropy.inverse(jnp.full((), float(jnp.finfo(z.dtype).max) ** 0.5, z.dtype))
    upper = jnp.where(z == -jnp.inf, 0, jnp.minimum(upper, jnp.minimum(size, most)))
    size = jnp.broadcast_to(size, (*z.shape[:-1], 1))
    room = total(upper)
    share = jnp.where(room == 0, jnp.where(size > 0, jnp.inf, 0), safe_ratio(size, room))
    return _Bounds(upper, jnp.maximum(jnp.max(upper, axis=-1, keepdims=True), 1), size, share)


def _searched_again(
    entropy: Entropy,
    x: jax.Array,
    z: jax.Array,
    gamma: jax.Array,
    bounds: _Bounds,
    far: jax.Array,
    top: jax.Array,
    s: _State,
) -> tuple[jax.Array, _State]:
    """Slices whose threshold is far from the largest score, centred at the score next to it, and their search."""
    usable = bounds.upper > 0
    distance = jnp.where(usable, jnp.abs(z - s.tau), jnp.inf)
    nearest = distance == jnp.min(distance, axis=-1, keepdims=True)
    centre = jnp.max(jnp.where(nearest & usable, x, -jnp.inf), axis=-1, keepdims=True)
    centre = jnp.where(far, centre, top)
    z = jnp.where(far & usable, (x - centre) / gamma, z)
    again = _search(entropy, z, bounds, far, s.tau - (centre - top) / gamma)
    return z, _chosen(far, again, s)


def _search(entropy: Entropy, z: jax.Array, bounds: _Bounds, wanted: jax.Array, start: jax.Array | None) -> _State:
    """The threshold, or two neighbouring floats around it, for the slices that are wanted."""
    usable = bounds.upper > 0
    point = z - entropy.slope(jnp.where(usable, bounds.share * bounds.upper, bounds.share))
    low = jnp.min(jnp.where(usable, point, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(usable, point, -jnp.inf), axis=-1, keepdims=True)
    if start is None:
        # Where all positions are free and phi is a square, the root itself.
        start = total(jnp.where(usable, point, 0)) / total(usable.astype(z.dtype))
    # The bracket is rounded, as scores are and slopes of the order of one.
    low, high = low - MARGIN * eps(z) * (1 + jnp.abs(low)), high + MARGIN * eps(z) * (1 + jnp.abs(high))
    low, high, start = (jnp.where(wanted, v, 0) for v in (low, high, jnp.clip(start, low, high)))
    unknown = jnp.full_like(start, jnp.inf)
    none = jnp.zeros_like(wanted)
    s = _State(jnp.int32(0), start, low, unknown, high, -unknown, unknown, jnp.zeros_like(start), wanted, none)
    s = jax.tree.map(lambda leaf: varying_like(leaf, z, bounds) if leaf.ndim else leaf, s)
    return lax.while_loop(
        lambda s: (s.passes < MAX_PASSES) & jnp.any(s.active), lambda s: _one_pass(entropy, z, bounds, s), s
    )


def _one_pass(entropy: Entropy, z: jax.Array, bounds: _Bounds, s: _State) -> _State:
    y = stored(_weights(entropy, z, bounds, s.tau))
    excess, rate = total(y) - bounds.size, total(_rates(entropy, bounds, y))
    low, over = (jnp.where(excess >= 0, new, old) for new, old in ((s.tau, s.low), (excess, s.over)))
    high, under = (jnp.where(excess <= 0, new, old) for new, old in ((s.tau, s.high), (excess, s.under)))

    newton = s.tau + excess / rate
    middle = jnp.where(s.passes < PATIENCE, (low + high) / 2, between(low, high))
    slow = 2 * jnp.abs(excess) > jnp.abs(s.excess)
    tau = jnp.where((newton > low) & (newton < high) & ~slow, newton, middle)

    # A sum that is right to rounding has its threshold, or to noise that does not shrink any more; if few weights are
    # free, what is left over must be little to each, as far as floats resolve the threshold.
    few = bounds.most * jnp.maximum(rate * jnp.maximum(jnp.abs(s.tau) / 4, 1), 1)
    noise = jnp.maximum(2 * bounds.size, jnp.where(slow, 8, 4) * jnp.minimum(bounds.size, few))
    found = jnp.abs(excess) <= noise * eps(z)
    tau = jnp.where(found, s.tau, tau)
    neighbours = ~((low < middle) & (middle < high))
    active = ~found & ~neighbours
    return _chosen(s.active, _State(s.passes + 1, tau, low, over, high, under, excess, rate, active, found), s)


def _excess(bounds: _Bounds, y: jax.Array) -> jax.Array:
    """The sum less what it should be. Weights near their bounds are summed as what they lack: the sum of many bounds is
    exact most often, that of many weights is rounded by more than the few that are free can take."""
    near = jnp.where(2 * y > bounds.upper, bounds.upper, 0)
    return total(y - near) + (total(near) - bounds.size)


def _chosen(wanted: jax.Array, new: _State, old: _State) -> _State:
    """The new state for the slices that are wanted, the old one for the others."""
    return jax.tree.map(lambda new, old: jnp.where(wanted, new, old) if new.ndim else new, new, old)


def _mixed(entropy: Entropy, z: jax.Array, bounds: _Bounds, s: _State) -> jax.Array:
    """The mixture of the weights at both ends of the bracket that has the right sum."""
    more, less = _weights(entropy, z, bounds, s.low), _weights(entropy, z, bounds, s.high)
    return less + safe_ratio(-s.under, s.over - s.under) * (more - less)


def _weights(entropy: Entropy, z: jax.Array, bounds: _Bounds, tau: jax.Array) -> jax.Array:
    return jnp.clip(entropy.inverse(z - tau), 0, bounds.upper)


def _rates(entropy: Entropy, bounds: _Bounds, y: jax.Array) -> jax.Array:
    """How fast each weight follows its score: 0 at the bounds, and never so fast that a sum overflows."""
    most = float(jnp.finfo(y.dtype).max) ** 0.5
    return jnp.where((y > 0) & (y < bounds.upper), jnp.minimum(entropy.inverse_curvature(y), most), 0)
