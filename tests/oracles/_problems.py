"""Problems put together: prox, then base, over a domain; Omega and values from their definitions; deletion."""

import itertools

import numpy as np

from ._entropies import base_value, box, capped, coupled, entropy_residual, shannon, squared_l2, squared_pnorm
from ._penalties import oscar_weights, owl_prox, total_variation_prox
from ._permutahedron import permutahedron, permutahedron_residual
from ._roots import LD, derivative

DOMAIN = ("over", "total", "lower", "upper", "vertex")
PENALTIES = ("tv", "edges", "oscar", "owl", "weights")


def proxed(x, *, gamma=1.0, tv=None, edges=None, oscar=None, owl=None, weights=None, **_):
    """x after the proxes of all penalties: total variation first, then what depends on ranks."""
    x, gamma = np.asarray(x, LD), LD(gamma)
    if tv is not None or edges is not None:
        strength = LD(1 if tv is None else tv) * np.asarray(1 if edges is None else edges, LD)
        x = total_variation_prox(x, gamma * strength)
    sorted_weights = np.zeros(len(x), LD)
    if oscar is not None:
        sorted_weights = sorted_weights + LD(oscar) * oscar_weights(len(x))
    if weights is not None:
        sorted_weights = sorted_weights + LD(1 if owl is None else owl) * np.asarray(weights, LD)
    return owl_prox(x, gamma * sorted_weights) if sorted_weights.any() else x


def argmax(x, *, base, gamma=1.0, alpha=None, p=None, beta=None, over="simplex", total=1.0, lower=0.0, upper=1.0,
           vertex=None, **penalties):  # fmt: skip
    """The gradient mapping of one slice, in long double; NaN where the domain is empty."""
    x = proxed(x, gamma=gamma, **penalties)
    if over == "permutahedron":
        assert base == "l2" and not penalties
        return permutahedron(x, vertex, gamma)
    if over == "box":
        assert base != "pnorm"
        return box(x, base=base, alpha=alpha, gamma=gamma, lower=lower, upper=upper)
    if over == "capped":
        return capped(x, base=base, alpha=alpha, gamma=gamma, total=total, upper=upper)
    assert over == "simplex"
    if base == "shannon":
        return shannon(x, gamma)
    if base == "l2":
        return squared_l2(x, gamma)
    if base == "pnorm":
        return squared_pnorm(x, p, gamma)
    if base == "coupled":
        return coupled(x, gamma, beta)
    return capped(x, base=base, alpha=alpha, gamma=gamma, total=1)


def omega(y, *, base, gamma=1.0, alpha=None, p=None, beta=None, tv=None, edges=None, oscar=None, owl=None,
          weights=None, **domain):  # fmt: skip
    """Omega(y), from the definitions; Oscar by its double loop. It does not depend on the domain."""
    assert set(domain) <= set(DOMAIN), domain
    y = np.asarray(y, LD)
    if base == "coupled":
        square = (y**2).sum()
        return LD(gamma) * square / 2 + LD(beta) * square**2
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


def solution(x, **problem):
    """The gradient mapping and the maximum."""
    y = argmax(x, **problem)
    return y, (np.asarray(x, LD) * y).sum() - omega(y, **problem)


def value(x, **problem):
    return solution(x, **problem)[1]


def residual(y, x, **problem):
    """Violation of the optimality conditions of y, given the proxes, which have residuals of their own."""
    x = proxed(x, **problem)
    problem = {k: v for k, v in problem.items() if k not in PENALTIES}
    if problem.get("over") == "permutahedron":
        return permutahedron_residual(y, x, problem["vertex"], problem.get("gamma", 1.0))
    return entropy_residual(y, x, **problem)


# --- Deletion ---------------------------------------------------------------------------------------------------


def delete(problem, keep):
    """The problem that remains after really deleting positions: an edge across deleted positions has the smallest
    weight that it replaces; OWL and the permutahedron keep their first n weights; bounds go with their positions; the
    total of a capped simplex stays."""
    problem = dict(problem)
    keep = np.asarray(keep, bool)
    left = np.nonzero(keep)[0]
    if problem.get("edges") is not None:
        edges = np.asarray(problem["edges"])
        problem["edges"] = np.array([edges[i:j].min() for i, j in itertools.pairwise(left)], edges.dtype)
    for name in ("weights", "vertex"):
        if problem.get(name) is not None:
            problem[name] = np.asarray(problem[name])[: len(left)]
    for name in ("lower", "upper"):
        if np.ndim(problem.get(name)) == 1:
            problem[name] = np.asarray(problem[name])[keep]
    return problem


def masked(x, where=None, **problem):
    """`solution` of one slice with a mask, by deletion: zeros where deleted, -inf where nothing is left."""
    x = np.asarray(x)
    keep = np.ones(len(x), bool) if where is None else np.asarray(where, bool)
    y, value = np.zeros(len(x), LD), -LD(np.inf)
    if keep.any():
        y[keep], value = solution(x[keep], **delete(problem, keep))
    return y, value


def infeasible(d, *, over="simplex", base="l2", total=1.0, lower=0.0, upper=1.0, **_):
    """Whether the domain of d positions is empty."""
    if over == "capped":
        bounds = np.minimum(upper, 1) if base == "fermi" else np.asarray(upper)
        return not (total >= 0 and np.all(bounds >= 0) and np.broadcast_to(bounds, (d,)).sum() >= total)
    return over == "box" and bool(np.any(np.asarray(lower) > upper))


def rows(x, where=None, **problem):
    """`masked` for the rows of a 2-d array, stacked; per-row hyper-parameters are not needed here."""
    x = np.asarray(x)
    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    y, value = zip(*(masked(r, w, **problem) for r, w in zip(x, where, strict=True)), strict=True)
    return np.stack(y), np.stack(value)


# --- Derivatives ------------------------------------------------------------------------------------------------

# Where the range of a hyper-parameter ends, differences must lean inwards.
_ENDS = {("alpha", 1.0): "right", ("p", 2.0): "left"}


def differences(function, problem, name):
    """d function(**problem) / d problem[name], by differences; stacked on the last axis where that is a vector."""
    at = problem[name]
    if np.ndim(at) == 0:
        side = _ENDS.get((name, float(at)), "central")
        return derivative(lambda t: function(**problem | {name: t}), at, side=side)

    def entry(k):
        replaced = lambda t: np.where(np.arange(len(at)) == k, t, np.asarray(at, LD))
        return derivative(lambda t: function(**problem | {name: replaced(t)}), at[k])

    return np.stack([entry(k) for k in range(len(at))], -1)
