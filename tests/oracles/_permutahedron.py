"""The permutahedron: the convex hull of all permutations of a vector."""

import numpy as np

from ._penalties import isotonic
from ._roots import LD, SUM_TOLERANCE


def permutahedron(x, vertex, gamma=1.0):
    """argmax <x, y> - gamma / 2 |y|^2 over the hull of the permutations of `vertex`: the projection of x / gamma.

    With z = x / gamma in decreasing order and the vertex too, y = z - v for the non-increasing v nearest to z - vertex
    (Negrinho and Martins 2014; Lim and Wright 2016).
    """
    z, w = np.asarray(x, LD) / LD(gamma), np.sort(np.asarray(vertex, LD))[::-1]
    order = np.argsort(-z, kind="stable")
    y = np.empty(len(z), LD)
    y[order] = z[order] - isotonic(z[order] - w)
    # z - (z - w) rounds like z
    scale = max(1, np.abs(z).max(initial=0), np.abs(w).max(initial=0))
    assert abs(y.sum() - w.sum()) <= SUM_TOLERANCE * scale * max(1, len(z) / 100), (y.sum(), w.sum())
    return y


def permutahedron_residual(y, x, vertex, gamma=1.0):
    """Violation of the optimality conditions: y is majorized by the vertex, and no vertex lies further in the
    direction of z - y than y does. The best vertex has the order of z - y."""
    y, z, w = np.asarray(y, LD), np.asarray(x, LD) / LD(gamma), np.sort(np.asarray(vertex, LD))[::-1]
    excess = np.cumsum(np.sort(y)[::-1]) - np.cumsum(w)
    direction = z - y
    return max(excess.max(), abs(excess[-1]), (np.sort(direction)[::-1] * w).sum() - (direction * y).sum())


def soft_rank(x, gamma=1.0, descending=False):
    """Ranks from 1, for the smallest score (for the largest if descending)."""
    x = np.asarray(x, LD)
    return permutahedron(-x if descending else x, np.arange(1, len(x) + 1), gamma)


def soft_sort(x, gamma=1.0, descending=False):
    """The scores in ascending order (descending)."""
    ranks = np.arange(1, len(x) + 1)
    return permutahedron(ranks[::-1] if descending else ranks, x, gamma)
