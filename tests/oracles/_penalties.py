"""Proxes of the structured penalties, and their certificates."""

import numpy as np

from ._roots import LD


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


def oscar_weights(d):
    """Sorting y in decreasing order, y_(k) is the larger of d - k pairs."""
    return np.arange(d - 1, -1, -1).astype(LD)
