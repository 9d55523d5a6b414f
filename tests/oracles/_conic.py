"""The same problems by a conic solver, straight from their definitions: no prox, no threshold, no composition."""

import itertools
import math
import warnings

import numpy as np


def conic(x, *, over="simplex", total=1.0, lower=0.0, upper=1.0, vertex=None, gamma=1.0, **regularizer):
    """(y, value) of max <x, y> - Omega(y) over a domain, by cvxpy and Clarabel.

    Its own accuracy is that of an interior-point method: measured here, 1e-9 in the value and 1e-5 in y.
    """
    import cvxpy as cp

    y = cp.Variable(len(x))
    if over == "simplex":
        constraints = [y >= 0, cp.sum(y) == 1]
    elif over == "capped":
        constraints = [y >= 0, y <= upper, cp.sum(y) == total]
    elif over == "box":
        constraints = [y >= lower, y <= upper]
    else:
        w = np.sort(np.asarray(vertex, float))[::-1]
        constraints = [cp.sum_largest(y, k) <= w[:k].sum() for k in range(1, len(w))] + [cp.sum(y) == w.sum()]
    return conic_maximum(x, y, gamma * _expression(y, **regularizer), constraints)


def _expression(y, *, base, alpha=None, p=None, tv=None, edges=None, oscar=None, owl=None, weights=None):
    """base + penalties, as a cvxpy expression of the variable y."""
    import cvxpy as cp

    d = y.size
    if base == "shannon" or (base == "tsallis" and alpha == 1):
        result = -cp.sum(cp.entr(y))
    elif base == "l2":
        result = cp.sum_squares(y) / 2
    elif base == "tsallis":
        result = (cp.sum(cp.power(y, alpha, approx=False)) - cp.sum(y)) / (alpha * (alpha - 1))
    elif base == "pnorm":
        result = cp.square(cp.pnorm(y, p, approx=False)) / 2
    elif base == "fermi":
        result = -cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))
    else:
        raise ValueError(base)
    if tv is not None or edges is not None:
        strength = (1 if tv is None else tv) * np.broadcast_to(np.asarray(1.0 if edges is None else edges), (d - 1,))
        result = result + strength @ cp.abs(cp.diff(y))
    if oscar is not None:
        result = result + oscar * cp.sum([cp.maximum(y[i], y[j]) for i, j in itertools.combinations(range(d), 2)])
    if weights is not None:
        # sum_k w_k y_(k) = sum_k (w_k - w_{k+1}) * (sum of the k largest)
        steps = np.asarray(weights, float) - np.append(np.asarray(weights, float)[1:], 0.0)
        largest = sum(s * cp.sum_largest(y, k + 1) for k, s in enumerate(steps) if k + 1 < d and s != 0)
        result = result + (1 if owl is None else owl) * (largest + steps[-1] * cp.sum(y))
    return result


def conic_maximum(x, y, penalty, constraints=None):
    """max <x, y> - penalty for a cvxpy expression `penalty` of the variable `y`, on the simplex unless told."""
    import cvxpy as cp

    constraints = [y >= 0, cp.sum(y) == 1] if constraints is None else constraints
    problem = cp.Problem(cp.Maximize(np.asarray(x, float) @ y - penalty), constraints)
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
