"""The bases over simplex, capped simplex and box: y_i = clip(psi(x_i / gamma - tau), 0, upper_i).

psi is the inverse of phi', for Omega = sum phi(y_i). Where phi'(0) is finite, psi leaves zero there: it is written as
`rise(v)`, the weight at the height v above that point. Tsallis' phi(t) is (t^alpha - t) / (alpha (alpha - 1)) on every
domain; where sum y = 1 that is the textbook's (sum y^alpha - 1) / (alpha (alpha - 1)).
"""

import numpy as np

from ._roots import EPS, LD, SUM_TOLERANCE, TINY, bisect, settle


def checked(y, total):
    """y, after asserting that it adds up."""
    assert abs(y.sum() - total) <= SUM_TOLERANCE * max(1, abs(total)), (y.sum(), total)
    return y


# --- Over the simplex ---------------------------------------------------------------------------------------


def shannon(x, gamma=1.0):
    x = np.asarray(x, LD)
    e = np.exp((x - x.max()) / LD(gamma))
    return checked(e / e.sum(), 1)


def squared_l2(x, gamma=1.0):
    """Projection onto the simplex by sorting (Held, Wolfe and Crowder 1974)."""
    x = np.asarray(x, LD)
    z = (x - x.max()) / LD(gamma)
    s = np.sort(z)[::-1]
    taus = (np.cumsum(s) - 1) / np.arange(1, len(z) + 1)
    support = np.nonzero(s > taus)[0][-1]
    return checked(np.maximum(z - taus[support], 0), 1)


def tsallis(x, alpha, gamma=1.0):
    """((alpha - 1) (x / gamma - tau))^(1 / (alpha - 1)) on the support."""
    return capped(x, base="tsallis", alpha=alpha, gamma=gamma, total=1)


def squared_pnorm(x, p, gamma=1.0):
    """Bisection on tau, from sum z^(q-1) ||z||_q^(2-q) = gamma with z = [x - tau]+."""
    q = LD(p) / (LD(p) - 1)
    x = np.asarray(x, LD)
    z = (x - x.max()) / LD(gamma)

    def total(tau):
        m = -tau  # the largest z: the left side is homogeneous of degree 1, and does not overflow at q = 1001
        r = np.maximum(z - tau, 0) / m
        powers = r ** (q - 1)
        return m * powers.sum() * (powers * r).sum() ** ((2 - q) / q)

    tau = bisect(lambda t: total(t) - 1, -1, -(LD(len(z)) ** (-2 / q)) / 2)
    # q - 1 is up to 1000, and raising to it magnifies the last bit as often; that of tau is in each weight
    assert abs(total(tau) - 1) <= (10 * q + len(z)) * EPS, total(tau)
    r = np.maximum(z - tau, 0)
    r = (r / r.max()) ** (q - 1)
    return checked(r / r.sum(), 1)


def coupled(x, gamma, beta):
    """Omega = gamma / 2 |y|^2 + beta |y|^4, not separable. Given s = |y|^2 its solution is sparsemax at the strength
    gamma + 4 beta s, and the sum of its squares decreases in s."""
    solve = lambda s: squared_l2(x, LD(gamma) + 4 * LD(beta) * s)
    return solve(bisect(lambda s: (solve(s) ** 2).sum() - s, 0, 1))


def separable(x, rise, *, kink=True):
    """argmax of <x, y> - sum phi(y_i): `rise` solves phi'(t) = phi'(0) + v for t, or is the inverse of phi' itself
    where phi'(0) is infinite (`kink=False`)."""
    return checked(_filled(np.asarray(x, LD), LD(1), rise, kink, LD(1), np.ones(len(x), LD)), 1)


# --- Over the capped simplex and the box ---------------------------------------------------------------------


def capped(x, *, base, total, upper=1.0, gamma=1.0, alpha=None):
    """0 <= y <= upper (one bound, or one a position), sum y = total; NaN where nothing is feasible."""
    x, total = np.asarray(x, LD), LD(total)
    rise, kink = _rise(base, alpha)
    upper = np.broadcast_to(np.asarray(upper, LD), x.shape)
    if base == "fermi":  # (1 - y) log(1 - y) ends at 1
        upper = np.minimum(upper, 1)
    if not (total >= 0 and (upper >= 0).all() and upper.sum() >= total):
        return np.full(len(x), np.nan, LD)
    if total in (0, upper.sum()):
        return upper.copy() if total else np.zeros(len(x), LD)
    if kink or total != 1 or (upper < 1).any() or base != "shannon":
        return checked(_filled(x, LD(gamma), rise, kink, total, upper), total)
    return shannon(x, gamma)


def box(x, *, base, lower=0.0, upper=1.0, gamma=1.0, alpha=None):
    """lower <= y <= upper, each position on its own; NaN where a lower bound is above an upper one."""
    z = np.asarray(x, LD) / LD(gamma)
    lower, upper = (np.broadcast_to(np.asarray(bound, LD), z.shape) for bound in (lower, upper))
    if not (lower <= upper).all():
        return np.full(len(z), np.nan, LD)
    if base == "l2":
        inverse = z
    else:
        # rise starts where phi' does: at phi'(0) = -1 / (alpha (alpha - 1)), and log t + 1 is log t from 1 on
        rise, kink = _rise(base, alpha)
        start = -1 / (LD(alpha) * (LD(alpha) - 1)) if base == "tsallis" and kink else LD(not kink and base != "fermi")
        with np.errstate(over="ignore"):  # a weight that large is at its bound
            inverse = rise(np.maximum(z - start, 0) if kink else z - start)
    return np.clip(inverse, lower, upper)


def _rise(base, alpha=None):
    """(weight at a height, whether it leaves zero at height zero)."""
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        return np.exp, False
    if base == "fermi":
        return lambda v: np.exp(np.minimum(v, 0)) / (1 + np.exp(-np.abs(v))), False
    if base == "l2":
        return lambda v: v, True
    if base == "tsallis":
        a = LD(alpha) - 1
        return lambda v: (a * v) ** (1 / a), True
    if base == "cubic":
        return lambda v: 2 * v / (1 + np.sqrt(1 + 4 * v)), True
    raise ValueError(f"base={base} has no weight of one score")


@np.errstate(over="ignore")  # a weight that large is at its bound
def _filled(x, gamma, rise, kink, total, upper):
    """min(rise((x - x_k) / gamma + e), upper) that adds up to total, 0 < total < sum of upper.

    The threshold is measured from a score next to it, x_k, where floating point is dense: e may be 1e-300. `kink`:
    rise leaves zero at zero, and x_k is the least score of the support.
    """

    def weights(e, level):
        v = (x - level) / gamma + e
        return np.minimum(rise(np.maximum(v, 0) if kink else v), upper)

    levels = np.unique(x)[::-1]
    first, last = -1, len(levels)  # filled to levels[first] there is too little, to levels[last] enough
    while last - first > 1:
        middle = (first + last) // 2
        if weights(LD(0), levels[middle]).sum() < total:
            first = middle
        else:
            last = middle
    if first < 0 or last == len(levels):  # beyond all scores (above them only if there is no kink)
        level, step = levels[max(first, 0)], LD(-1 if first < 0 else 1)
        while (weights(step, level).sum() < total) == (step > 0):
            step = 2 * step
        ends = (step, LD(0)) if step < 0 else (LD(0), step)
    else:
        gap = (levels[first] - levels[last]) / gamma
        level, ends = levels[first], (LD(0), gap)
        if not kink and weights(gap / 2, level).sum() < total:  # nearer to the other score
            level, ends = levels[last], (-gap / 2, LD(0))
    low = TINY if kink else ends[0]
    return settle(lambda e: weights(e, level), low, ends[1], total)


# --- Values, gradients, certificates --------------------------------------------------------------------------


def base_value(y, *, base, alpha=None, p=None):
    y = np.asarray(y, LD)
    on = y[y > 0]
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        return (on * np.log(on)).sum()
    if base == "l2":
        return (y * y).sum() / 2
    if base == "cubic":
        return (y * y / 2 + y**3 / 3).sum()
    if base == "tsallis":
        a = LD(alpha)
        # sum (y^a - y) / (a (a-1)), without cancellation. Written with the 1 of the definition in place of
        # sum y, the rounding of sum y itself would count 1 / (a - 1) times.
        return (on * np.expm1((a - 1) * np.log(on)) / (a - 1)).sum() / a
    if base == "pnorm":
        p = LD(p)
        return (on**p).sum() ** (2 / p) / 2
    if base == "fermi":
        off = (1 - y)[y < 1]
        return (on * np.log(on)).sum() + (off * np.log(off)).sum()
    raise ValueError(base)


def base_gradient(y, *, base, alpha=None, p=None):
    """grad of the base. Where it is infinite, the rounding of y says how large it is at least."""
    y = np.asarray(y, LD)
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        return np.log(np.maximum(y, TINY)) + 1
    if base == "fermi":
        return np.log(np.maximum(y, TINY)) - np.log(np.maximum(1 - y, EPS / 2))
    if base == "l2":
        return y
    if base == "cubic":
        return y + y * y
    if base == "tsallis":
        a = LD(alpha) - 1
        return y**a / a - 1 / (a * LD(alpha))
    if base == "pnorm":
        return (y ** LD(p)).sum() ** (2 / LD(p) - 1) * y ** (LD(p) - 1)
    raise ValueError(base)


def entropy_residual(y, x, *, base, gamma=1.0, alpha=None, p=None, over="simplex", total=1.0, lower=0.0, upper=None):
    """Violation of the optimality conditions, a scale-free check of the roots: x - gamma grad is tau where y is free,
    at most tau at the lower bound, at least tau at the upper one; y within the bounds; sum y = total. Over the box
    tau is 0 and no sum is asked for."""
    y, x = np.asarray(y, LD), np.asarray(x, LD)
    top = {"simplex": np.inf, "capped": 1.0, "box": 1.0}[over] if upper is None else upper
    lower, upper = (np.broadcast_to(np.asarray(bound, LD), y.shape) for bound in (lower, top))
    feasible = max(np.maximum(lower - y, 0).max(), np.maximum(y - upper, 0).max())
    g = x - LD(gamma) * base_gradient(y, base=base, alpha=alpha, p=p)
    at_lower, at_upper = y <= lower, y >= upper
    free = ~at_lower & ~at_upper
    if over == "box":
        tau, sums = LD(0), LD(0)
    else:
        firm = np.where(y <= 0.5, y, -y) if base == "fermi" else y  # where rounding of y moves g least
        tau = g[free][np.argmax(firm[free])] if free.any() else None
        sums = abs(y.sum() - (1 if over == "simplex" else total))
    if tau is None:  # any tau between those at the upper bound and those at the lower one
        between = g[at_lower & ~at_upper].max(initial=-np.inf) - g[at_upper & ~at_lower].min(initial=np.inf)
        return max(feasible, sums, between, LD(0))
    # log(1 - y) is as inexact as y is near 1
    slack = 4 * LD(gamma) * EPS / np.maximum(1 - y, EPS) if base == "fermi" else LD(0)
    inside = np.maximum(np.abs(g - tau) - slack, 0)[free].max(initial=0)
    below = np.maximum(g[at_lower & ~at_upper] - tau, 0).max(initial=0)
    above = np.maximum(tau - g[at_upper & ~at_lower], 0).max(initial=0)
    return max(inside, below, above, feasible, sums)
