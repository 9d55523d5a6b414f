"""Slow, independent answers in NumPy: no JAX, and nothing from smoothmax.

A *problem* is one slice of scores together with keyword hyper-parameters:

    maximise over y in the simplex   <x, y> - Omega(y),
    Omega = gamma * (base + tv * TotalVariation(edges) + oscar * Oscar() + owl * OWL(weights))

`base` is "shannon", "l2", "tsallis" (with `alpha`) or "pnorm" (with `p`). Everything is computed in
long double (64-bit mantissa on x86), roots by bisection down to the last bit, proxes by textbook
algorithms whose optimality conditions are functions of this file too (`*_residual`), so that each
answer comes with a certificate. Masks really delete entries (`along`, `delete`).
"""

import itertools
import math
import warnings

import numpy as np

LD = np.longdouble


# ---------------------------------------------------------------------------------------------
# Entropies
# ---------------------------------------------------------------------------------------------


def bisect(decreasing, low, high):
    """Root of a decreasing function, until no number lies between the two ends."""
    low, high = LD(low), LD(high)
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return middle
        if decreasing(middle) > 0:
            low = middle
        else:
            high = middle


def shannon(x, gamma=1.0):
    z = np.asarray(x, LD) / LD(gamma)
    e = np.exp(z - z.max())
    return e / e.sum()


def squared_l2(x, gamma=1.0):
    """Projection onto the simplex by sorting (Held, Wolfe and Crowder 1974)."""
    z = np.asarray(x, LD) / LD(gamma)
    s = np.sort(z)[::-1]
    k = np.arange(1, len(z) + 1)
    taus = (np.cumsum(s) - 1) / k
    support = np.nonzero(s > taus)[0][-1]
    return np.maximum(z - taus[support], 0)


def tsallis(x, alpha, gamma=1.0):
    """Bisection on the threshold, in the published form (z - tau)^(1/(alpha-1))."""
    if alpha == 1:
        return shannon(x, gamma)
    a = LD(alpha) - 1
    z = a * (np.asarray(x, LD) / LD(gamma))
    z = z - z.max()
    weights = lambda tau: np.maximum(z - tau, 0) ** (1 / a)
    # The largest weight lies between 1/d and 1.
    tau = bisect(lambda t: weights(t).sum() - 1, -1, -((LD(1) / len(z)) ** a))
    return weights(tau)


def squared_pnorm(x, p, gamma=1.0):
    """Bisection on tau, from sum z^(q-1) ||z||_q^(2-q) = gamma with z = [x - tau]+."""
    q = LD(p) / (LD(p) - 1)
    z = np.asarray(x, LD) / LD(gamma)
    z = z - z.max()

    def total(tau):
        r = np.maximum(z - tau, 0)
        m = r.max()  # the left side is homogeneous of degree 1: no overflow at q = 101
        return m * ((r / m) ** (q - 1)).sum() * ((r / m) ** q).sum() ** ((2 - q) / q)

    tau = bisect(lambda t: total(t) - 1, -1, -(LD(len(z)) ** (-2 / q)) / 2)
    r = np.maximum(z - tau, 0)
    r = (r / r.max()) ** (q - 1)
    return r / r.sum()


def separable(x, derivative, low=0.0):
    """argmax of <x, y> - sum phi(y_i): nested bisection on phi'(y_i) = x_i - tau."""
    x = np.asarray(x, LD)

    def inverse(u):  # phi' is increasing; y in [0, 1]
        lo, hi = np.zeros_like(u), np.ones_like(u)
        for _ in range(80):
            mid = (lo + hi) / 2
            below = derivative(mid) < u
            lo, hi = np.where(below, mid, lo), np.where(below, hi, mid)
        return np.where(u <= derivative(np.zeros_like(u) + LD(low)), 0, (lo + hi) / 2)

    one = np.ones(1, LD)
    top = x.max() - derivative(one)[0]
    bottom = x.max() - derivative(one / len(x))[0]
    low_tau, high_tau = top - 1, bottom + 1
    for _ in range(90):
        mid = (low_tau + high_tau) / 2
        if inverse(x - mid).sum() > 1:
            low_tau = mid
        else:
            high_tau = mid
    return inverse(x - (low_tau + high_tau) / 2)


# ---------------------------------------------------------------------------------------------
# Proxes of the structured penalties
# ---------------------------------------------------------------------------------------------


def total_variation_prox(x, edges):
    """argmin 1/2 |y - x|^2 + sum edges_i |y_{i+1} - y_i|, by dynamic programming (Johnson 2013).

    The derivative of the cost of everything left of position i, as a function of y_i, is piecewise
    linear and increasing; it is kept as its breakpoints (b, v), with slope 1 beyond both ends.
    """
    x = np.asarray(x, LD)
    d = len(x)
    edges = np.broadcast_to(np.asarray(edges, LD), (max(d - 1, 0),))

    def root(b, v, target):
        if target <= v[0]:
            return b[0] - (v[0] - target)
        if target >= v[-1]:
            return b[-1] + (target - v[-1])
        k = int(np.searchsorted(v, target))
        if v[k] == v[k - 1]:
            return b[k]
        return b[k - 1] + (b[k] - b[k - 1]) * (target - v[k - 1]) / (v[k] - v[k - 1])

    b, v = np.array([x[0]]), np.zeros(1, LD)
    ends = []
    for i in range(d - 1):
        low, high = root(b, v, -edges[i]), root(b, v, edges[i])
        ends.append((low, high))
        inside = (b > low) & (b < high)
        b = np.concatenate([[low], b[inside], [high]])
        v = np.concatenate([[-edges[i]], v[inside], [edges[i]]])
        v = v + (b - x[i + 1])
    y = np.empty(d, LD)
    y[-1] = root(b, v, LD(0))
    for i in range(d - 2, -1, -1):
        y[i] = min(max(y[i + 1], ends[i][0]), ends[i][1])
    return y


def total_variation_residual(y, x, edges):
    """Largest violation of the optimality conditions: u = cumsum(x - y) is a dual certificate."""
    x, y = np.asarray(x, LD), np.asarray(y, LD)
    edges = np.broadcast_to(np.asarray(edges, LD), (max(len(x) - 1, 0),))
    u = np.cumsum(y - x)
    end, u = abs(u[-1]), u[:-1]
    jump = np.diff(y)
    feasible = np.maximum(np.abs(u) - edges, 0).max(initial=0)
    # where y jumps, u sits at the end that the sign of the jump demands
    gap = np.where(np.abs(jump) > 1e-15, np.abs(u - edges * np.sign(jump)), 0).max(initial=0)
    return max(end, feasible, gap)


def isotonic(x, weights=None):
    """argmin sum w (y - x)^2 with y non-increasing, by pool-adjacent-violators."""
    x = np.asarray(x, LD)
    weights = np.ones(len(x), LD) if weights is None else np.asarray(weights, LD)
    blocks = []  # (mean, weight, count)
    for value, weight in zip(x, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] <= blocks[-1][0]:
            (m1, w1, c1), (m2, w2, c2) = blocks[-2:]
            blocks[-2:] = [((m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, c1 + c2)]
    return np.concatenate([np.full(c, m, LD) for m, _, c in blocks])


def owl_prox(x, weights):
    """argmin 1/2 |y - x|^2 + sum_k weights_k y_(k), y_(1) the largest: sort, subtract, pool, unsort."""
    x = np.asarray(x, LD)
    order = np.argsort(-x, kind="stable")
    y = np.empty(len(x), LD)
    y[order] = isotonic(x[order] - np.asarray(weights, LD))
    return y


def owl_residual(y, x, weights):
    """Violation of `x - y in the subdifferential of OWL at y`: within each group of ties, x - y is
    majorized by the group's weights."""
    x, y, w = np.asarray(x, LD), np.asarray(y, LD), np.asarray(weights, LD)
    order = np.argsort(-y, kind="stable")
    y, v = y[order], (x - y)[order]
    worst = LD(0)
    for group in np.split(np.arange(len(y)), np.nonzero(np.abs(np.diff(y)) > 1e-14)[0] + 1):
        ours, theirs = np.cumsum(np.sort(v[group])[::-1]), np.cumsum(w[group])
        worst = max(worst, (ours - theirs).max(), abs(ours[-1] - theirs[-1]))
    return worst


# ---------------------------------------------------------------------------------------------
# Problems: composition, Omega, value, deletion
# ---------------------------------------------------------------------------------------------


def oscar_weights(d):
    """Sorting y in decreasing order, y_(k) is the larger of d - k pairs."""
    return np.arange(d - 1, -1, -1).astype(LD)


def argmax(x, *, base, gamma=1.0, alpha=None, p=None, tv=None, edges=None, oscar=None, owl=None, weights=None):
    """The gradient mapping of one slice, in long double."""
    x = np.asarray(x, LD)
    gamma = LD(gamma)
    if tv is not None or edges is not None:
        strength = LD(1 if tv is None else tv) * np.asarray(1 if edges is None else edges, LD)
        x = total_variation_prox(x, gamma * strength)
    sorted_weights = np.zeros(len(x), LD)
    if oscar is not None:
        sorted_weights = sorted_weights + LD(oscar) * oscar_weights(len(x))
    if weights is not None:
        sorted_weights = sorted_weights + LD(1 if owl is None else owl) * np.asarray(weights, LD)
    if sorted_weights.any():
        x = owl_prox(x, gamma * sorted_weights)
    if base == "shannon":
        return shannon(x, gamma)
    if base == "l2":
        return squared_l2(x, gamma)
    if base == "tsallis":
        return tsallis(x, alpha, gamma)
    if base == "pnorm":
        return squared_pnorm(x, p, gamma)
    raise ValueError(base)


def base_value(y, *, base, alpha=None, p=None):
    y = np.asarray(y, LD)
    on = y[y > 0]
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        return (on * np.log(on)).sum()
    if base == "l2":
        return (y * y).sum() / 2
    if base == "tsallis":
        a = LD(alpha)
        # sum (y^a - y) / (a (a-1)), without cancellation. Written with the 1 of the definition in place of
        # sum y, the rounding of sum y itself would count 1 / (a - 1) times.
        return (on * np.expm1((a - 1) * np.log(on)) / (a - 1)).sum() / a
    if base == "pnorm":
        p = LD(p)
        return (on**p).sum() ** (2 / p) / 2
    raise ValueError(base)


def omega(y, *, base, gamma=1.0, alpha=None, p=None, tv=None, edges=None, oscar=None, owl=None, weights=None):
    """Omega(y), from the definitions; Oscar by its double loop."""
    y = np.asarray(y, LD)
    total = base_value(y, base=base, alpha=alpha, p=p)
    if tv is not None or edges is not None:
        strength = LD(1 if tv is None else tv) * np.asarray(1 if edges is None else edges, LD)
        total = total + (strength * np.abs(np.diff(y))).sum()
    if oscar is not None:
        if len(y) <= 16:
            pairs = sum((max(y[i], y[j]) for i, j in itertools.combinations(range(len(y)), 2)), LD(0))
        else:
            pairs = (oscar_weights(len(y)) * np.sort(y)[::-1]).sum()
        total = total + LD(oscar) * pairs
    if weights is not None:
        total = total + LD(1 if owl is None else owl) * (np.asarray(weights, LD) * np.sort(y)[::-1]).sum()
    return LD(gamma) * total


def value(x, **problem):
    y = argmax(x, **problem)
    return (np.asarray(x, LD) * y).sum() - omega(y, **problem)


def base_gradient(y, *, base, alpha=None, p=None):
    """grad of the base on its support (at y = 0: the limit from inside)."""
    y = np.asarray(y, LD)
    with np.errstate(divide="ignore"):
        if base == "shannon" or (base == "tsallis" and alpha == 1):
            return np.log(y) + 1
        if base == "l2":
            return y
        if base == "tsallis":
            return y ** (LD(alpha) - 1) / (LD(alpha) - 1)
        if base == "pnorm":
            return (y ** LD(p)).sum() ** (2 / LD(p) - 1) * y ** (LD(p) - 1)
    raise ValueError(base)


def entropy_residual(y, x, *, base, gamma=1.0, alpha=None, p=None):
    """Violation of the optimality conditions on the simplex, a scale-free check of the roots:
    x - gamma grad = tau on the support, at most tau off it; y >= 0; sum y = 1."""
    y, x = np.asarray(y, LD), np.asarray(x, LD)
    g = x - LD(gamma) * base_gradient(y, base=base, alpha=alpha, p=p)
    on = y > 0
    tau = g[np.argmax(y)]
    inside = np.abs(g - tau)[on].max(initial=0)
    outside = np.maximum(g[~on] - tau, 0).max(initial=0)
    return max(inside, outside, -y.min(), abs(y.sum() - 1))


def delete(problem, keep):
    """The problem that remains after really deleting positions: an edge across deleted positions has
    the smallest weight that it replaces, OWL keeps its first n weights."""
    problem = dict(problem)
    keep = np.asarray(keep, bool)
    left = np.nonzero(keep)[0]
    if problem.get("edges") is not None:
        edges = np.asarray(problem["edges"])
        problem["edges"] = np.array([edges[i:j].min() for i, j in itertools.pairwise(left)], edges.dtype)
    if problem.get("weights") is not None:
        problem["weights"] = np.asarray(problem["weights"])[: len(left)]
    return problem


def masked_argmax(x, where=None, **problem):
    """One slice with a mask, by deletion; zeros where deleted."""
    x = np.asarray(x)
    keep = np.ones(len(x), bool) if where is None else np.asarray(where, bool)
    y = np.zeros(len(x), LD)
    if keep.any():
        y[keep] = argmax(x[keep], **delete(problem, keep))
    return y


def masked_value(x, where=None, **problem):
    x = np.asarray(x)
    keep = np.ones(len(x), bool) if where is None else np.asarray(where, bool)
    return value(x[keep], **delete(problem, keep)) if keep.any() else -LD(np.inf)


def rows(function, x, where=None, **problem):
    """A per-slice oracle over the rows of a 2-d array; per-row hyper-parameters are not needed here."""
    x = np.asarray(x)
    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    return np.stack([function(r, w, **problem) for r, w in zip(x, where, strict=True)])


# ---------------------------------------------------------------------------------------------
# Finite differences of the oracle
# ---------------------------------------------------------------------------------------------


def derivative(function, at, h=1e-5, side="central"):
    """Derivative of a long double function of one number: fourth-order differences.

    Truncation h^4 f^(5)/30 is about 1e-20 and rounding 1e-19/h about 1e-14 for central ones. At the
    end of a domain (alpha = 1, p = 2) `side` is "right" or "left", five points, h = 2e-4.
    """
    at = LD(at)
    if side == "central":
        h = LD(h)
        return (8 * (function(at + h) - function(at - h)) - (function(at + 2 * h) - function(at - 2 * h))) / (12 * h)
    h = LD(2e-4) * (1 if side == "right" else -1)
    f = [function(at + k * h) for k in range(5)]
    return (-25 * f[0] + 48 * f[1] - 36 * f[2] + 16 * f[3] - 3 * f[4]) / (12 * h)


# ---------------------------------------------------------------------------------------------
# A conic solver, straight from the definition
# ---------------------------------------------------------------------------------------------


def conic(x, *, base, gamma=1.0, alpha=None, p=None, tv=None, edges=None, oscar=None, owl=None, weights=None):
    """(y, value) of max <x, y> - Omega(y) on the simplex, by cvxpy and Clarabel.

    The composition theorem, proxes and thresholds play no part here. Its own accuracy is that of an
    interior-point method: measured here, 1e-9 in the value and 1e-5 in y.
    """
    import cvxpy as cp

    x = np.asarray(x, float)
    d = len(x)
    y = cp.Variable(d)
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        penalty = -cp.sum(cp.entr(y))
    elif base == "l2":
        penalty = cp.sum_squares(y) / 2
    elif base == "tsallis":
        penalty = (cp.sum(cp.power(y, alpha, approx=False)) - 1) / (alpha * (alpha - 1))
    elif base == "pnorm":
        penalty = cp.square(cp.pnorm(y, p, approx=False)) / 2
    else:
        raise ValueError(base)
    if tv is not None or edges is not None:
        strength = (1 if tv is None else tv) * np.broadcast_to(np.asarray(1.0 if edges is None else edges), (d - 1,))
        penalty = penalty + strength @ cp.abs(cp.diff(y))
    if oscar is not None:
        penalty = penalty + oscar * cp.sum([cp.maximum(y[i], y[j]) for i, j in itertools.combinations(range(d), 2)])
    if weights is not None:
        # sum_k w_k y_(k) = sum_k (w_k - w_{k+1}) * (sum of the k largest)
        steps = np.asarray(weights, float) - np.append(np.asarray(weights, float)[1:], 0.0)
        penalty = penalty + (1 if owl is None else owl) * sum(
            s * cp.sum_largest(y, k + 1) for k, s in enumerate(steps) if k + 1 < d and s != 0
        )
        penalty = penalty + (1 if owl is None else owl) * steps[-1] * cp.sum(y)
    return conic_maximum(x, y, gamma * penalty)


def conic_maximum(x, y, penalty):
    """max <x, y> - penalty on the simplex, for a cvxpy expression `penalty` of the variable `y`."""
    import cvxpy as cp

    problem = cp.Problem(cp.Maximize(np.asarray(x, float) @ y - penalty), [y >= 0, cp.sum(y) == 1])
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")  # "may be inaccurate": the callers' tolerances say what they need
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(problem.status)
    # the solver's own optimum: problem.value is NaN when some y is -1e-12 under a power
    return np.asarray(y.value), float(problem.solution.opt_val)


def quadratic(x, matrix, linear):
    """argmax <x, y> - 1/2 y'Ay - b'y on the simplex by trying every support (small d), exactly."""
    x, a, b = np.asarray(x, float), np.asarray(matrix, float), np.asarray(linear, float)
    d = len(x)
    best, best_value = None, -math.inf
    for size in range(1, d + 1):
        for support in map(list, itertools.combinations(range(d), size)):
            kkt = np.zeros((size + 1, size + 1))
            kkt[:size, :size] = a[np.ix_(support, support)]
            kkt[:size, size] = kkt[size, :size] = 1
            solution = np.linalg.solve(kkt, np.append((x - b)[support], 1.0))
            if (solution[:size] < 0).any():
                continue
            y = np.zeros(d)
            y[support] = solution[:size]
            found = x @ y - y @ a @ y / 2 - b @ y
            if found > best_value:
                best, best_value = y, found
    return best, best_value
