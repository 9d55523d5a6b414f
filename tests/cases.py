"""The list of operators. Each law in the other files runs over it: an operator added here is under all of them.

A case is a problem of `oracles.py`, hyper-parameters included, together with the ways to reach it in smoothmax:
the named function where there is one, and `conjugate(omega)`. Cases that differ only in the values of their
hyper-parameters are one *family*: values are operands, so a family compiles once for a shape and dtype, and
`run` puts the rows of every law through that one compiled function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import smoothmax as sm

B, D = 48, 8  # the shape in which laws about small slices share their compilations

NAMED = {
    ("shannon",): ("softmax", {}),
    ("l2",): ("sparsemax", {}),
    ("tsallis", "alpha"): ("entmax", {"alpha": "alpha"}),
    ("pnorm", "p"): ("pnormmax", {"p": "p"}),
    ("l2", "tv"): ("fusedmax", {"tv": "lam"}),
    ("l2", "oscar"): ("oscarmax", {"oscar": "lam"}),
}


# --- Functions that come without a closed form -------------------------------------------------------------


def cubic(t):
    return t**2 / 2 + t**3 / 3


def coupled(y, params):
    """gamma/2 |y|^2 + beta |y|^4: not separable."""
    square = jnp.sum(y**2)
    return params["gamma"] * square / 2 + params["beta"] * square**2


def cubic_rise(v):
    """The t at which the derivative t + t^2 of `cubic` is v."""
    return 2 * v / (1 + np.sqrt(1 + 4 * v))


def cubic_argmax(x, gamma):
    return oracles.separable(x, lambda v: cubic_rise(v / oracles.LD(gamma)))


def coupled_argmax(x, gamma, beta):
    """Given s = |y|^2 it is sparsemax at strength gamma + 4 beta s; that sum of squares decreases in s."""
    solve = lambda s: oracles.squared_l2(x, oracles.LD(gamma) + 4 * oracles.LD(beta) * s)
    return solve(oracles.bisect(lambda s: (solve(s) ** 2).sum() - s, 0, 1))


# --- Cases -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Family:
    """What is static about a case: base and names of its hyper-parameters."""

    base: str
    names: tuple[str, ...]

    @property
    def rowwise(self) -> bool:
        """Whether hyper-parameters may have one value a slice without `vmap` (plain functions see one slice)."""
        return self.base != "coupled"

    def omega(self, params):
        """The regularizer from a dict of hyper-parameters (or, for a plain function, what `conjugate` takes)."""
        if self.base == "cubic":
            return params["gamma"] * sm.separable(cubic)
        base = {
            "shannon": lambda: sm.Shannon(),
            "l2": lambda: sm.SquaredL2(),
            "tsallis": lambda: sm.Tsallis(params["alpha"]),
            "pnorm": lambda: sm.SquaredPNorm(params["p"]),
        }[self.base]()
        if "edges" in params:
            total_variation = sm.TotalVariation(params["edges"])
            base = base + (params["tv"] * total_variation if "tv" in params else total_variation)
        elif "tv" in params:
            base = base + params["tv"] * sm.TotalVariation()
        if "oscar" in params:
            base = base + params["oscar"] * sm.Oscar()
        if "weights" in params:
            owl = sm.OWL(params["weights"])
            base = base + (params["owl"] * owl if "owl" in params else owl)
        return params["gamma"] * base if "gamma" in params else base

    def op(self, params):
        if self.base == "coupled":
            return sm.conjugate(coupled, params=params)
        return sm.conjugate(self.omega(params))

    @property
    def named(self) -> tuple[str, dict[str, str]] | None:
        return NAMED.get((self.base, *(n for n in self.names if n != "gamma")))

    def _call(self, suffix, method, x, params, axis, where):
        if self.named is None:
            return getattr(self.op(params), method)(x, axis, where=where)
        name, renamed = self.named
        return getattr(sm, name + suffix)(x, axis, where=where, **{renamed.get(k, k): v for k, v in params.items()})

    def weights(self, x, params, axis=-1, where=None):
        return self._call("", "argmax", x, params, axis, where)

    def value(self, x, params, axis=-1, where=None):
        return self._call("_value", "max", x, params, axis, where)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    id: str
    family: Family
    values: dict[str, Any]  # hyper-parameters; callables of the length for those that run along the slice

    def params(self, d=D) -> dict[str, Any]:
        return {k: v(d) if callable(v) else v for k, v in self.values.items()}

    def problem(self, d=D) -> dict[str, Any]:
        return (
            self.params(d) if self.family.base in ("cubic", "coupled") else {"base": self.family.base, **self.params(d)}
        )

    @property
    def has_chain(self) -> bool:
        """Whether weights depend on positions, not only on scores."""
        return "tv" in self.values or "edges" in self.values

    @property
    def tol(self) -> float:
        """Promised accuracy in float64: 1e-10; the iterative solver for plain functions promises 1e-6."""
        return 1e-6 if self.family.base == "coupled" else 1e-10

    @property
    def alpha(self) -> float:
        return self.values.get("alpha", 1.0)

    def oracle(self, x, **problem):
        if self.family.base == "cubic":
            return cubic_argmax(x, **problem)
        if self.family.base == "coupled":
            return coupled_argmax(x, **problem)
        return oracles.argmax(x, **problem)

    def oracle_omega(self, y, **problem):
        if self.family.base == "cubic":
            return oracles.LD(problem["gamma"]) * (y**2 / 2 + y**3 / 3).sum()
        if self.family.base == "coupled":
            square = (y**2).sum()
            return oracles.LD(problem["gamma"]) * square / 2 + oracles.LD(problem["beta"]) * square**2
        return oracles.omega(y, **problem)

    def oracle_value(self, x, **problem):
        y = self.oracle(x, **problem)
        return (np.asarray(x, oracles.LD) * y).sum() - self.oracle_omega(y, **problem)

    def expected(self, x, where=None, params=None):
        """Oracle weights and values of the rows of `x`, masked positions (and scores of -inf) deleted."""
        x = np.asarray(x)
        keep = np.ones(x.shape, bool) if where is None else np.array(np.broadcast_to(where, x.shape))
        keep &= np.where(keep, x, 0) != -np.inf
        base = {} if self.family.base in ("cubic", "coupled") else {"base": self.family.base}
        problem = base | (self.params(x.shape[-1]) if params is None else params)
        y, value = np.zeros(x.shape, oracles.LD), np.full(x.shape[0], -np.inf, oracles.LD)
        for i, (row, k) in enumerate(zip(x, keep, strict=True)):
            if k.any():
                left = oracles.delete(problem, k)
                y[i, k] = self.oracle(row[k], **left)
                value[i] = (np.asarray(row[k], oracles.LD) * y[i, k]).sum() - self.oracle_omega(y[i, k], **left)
        return y.astype(float), value.astype(float)


def edges(d):
    """Unequal positive edge weights."""
    return 0.25 + 0.2 * np.cos(2.0 * np.arange(d - 1))


def owl(d):
    """Strictly decreasing, of both signs, the steps shrinking with the length so that no length ties all."""
    return 1.5 / np.sqrt(1 + np.arange(d)) - 0.4


def _case(id, base, **values) -> Case:
    return Case(id, Family(base, tuple(values)), values)


def _cases():
    for gamma in (1.0, 0.5, 2.0):
        yield _case(f"softmax-gamma{gamma}", "shannon", gamma=gamma)
        yield _case(f"sparsemax-gamma{gamma}", "l2", gamma=gamma)
    for alpha in (1.5, 1.0, 1.0001, 1.2, 1.7, 2.0, 2.5, 4.0):
        yield _case(f"entmax{alpha}", "tsallis", alpha=alpha, gamma=1.0)
    yield _case("entmax1.5-gamma0.5", "tsallis", alpha=1.5, gamma=0.5)
    yield _case("entmax1.2-gamma2.0", "tsallis", alpha=1.2, gamma=2.0)
    for p in (1.5, 1.1, 2.0):
        yield _case(f"pnormmax{p}", "pnorm", p=p, gamma=1.0)
    yield _case("pnormmax1.5-gamma2.0", "pnorm", p=1.5, gamma=2.0)
    yield _case("pnormmax1.1-gamma0.5", "pnorm", p=1.1, gamma=0.5)
    bases = {
        "shannon": {"gamma": 2.0},
        "l2": {"gamma": 1.0},
        "tsallis": {"alpha": 1.5, "gamma": 1.0},
        "pnorm": {"p": 1.5, "gamma": 0.5},
    }
    penalties = {
        "tv": {"tv": 0.2},
        "edges": {"tv": 0.8, "edges": edges},
        "oscar": {"oscar": 0.05},
        "owl": {"owl": 0.7, "weights": owl},
        "tv+oscar": {"tv": 0.15, "oscar": 0.04},
    }
    for base, values in bases.items():
        for penalty, strengths in penalties.items():
            yield _case(f"{base}+{penalty}", base, **values, **strengths)
    yield _case("separable-cubic", "cubic", gamma=0.7)
    yield _case("function-coupled", "coupled", gamma=0.6, beta=0.2)


CASES = tuple(_cases())
BY_ID = {case.id: case for case in CASES}

# One case a family, for laws in which the hyper-parameters' values do not matter but compilation costs.
FAMILIES = tuple({case.family: case for case in reversed(CASES)}.values())[::-1]

# One case for each piece of code (a root, a chain, a sort, both, each kind of function): for the dearest laws.
REPRESENTATIVES = tuple(
    BY_ID[id]
    for id in (
        "softmax-gamma1.0",
        "sparsemax-gamma1.0",
        "entmax1.5",
        "pnormmax1.5",
        "l2+tv",
        "l2+oscar",
        "tsallis+edges",
        "pnorm+owl",
        "shannon+tv+oscar",
        "separable-cubic",
        "function-coupled",
    )
)


def each(cases=CASES) -> Callable:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


# --- Running -----------------------------------------------------------------------------------------------


@functools.cache
def forward(family: Family):
    """Compiled (weights, values) along the last axis, hyper-parameters as operands."""
    return jax.jit(lambda params, x, where: (family.weights(x, params, -1, where), family.value(x, params, -1, where)))


@functools.cache
def _everything(family: Family):
    """Compiled weights, values and one pull-back of both, for (B, D) scores and one hyper-parameter a row."""

    def both(params, x, where):
        return family.weights(x, params, -1, where), family.value(x, params, -1, where)

    def pulled(params, x, where, v, c):
        outputs, pull = jax.vjp(lambda params, x: both(params, x, where), params, x)
        return outputs, pull((v, c))

    return jax.jit(pulled if family.rowwise else jax.vmap(pulled))


@dataclasses.dataclass(frozen=True)
class Result:
    y: np.ndarray  # (n, D)
    value: np.ndarray  # (n,)
    x_bar: np.ndarray  # (n, D): J v + c y
    bars: dict[str, np.ndarray]  # gradients of hyper-parameters, (n,) or (n, its length)


def run(case: Case, x, where=None, v=None, c=None, params=None) -> Result:
    """Weights, values and the pull-back of (v, c) for up to B rows of D float64 scores."""
    x = np.asarray(x, float)
    n = len(x)
    assert n <= B and x.shape[1] == D

    def spread(rows, shape):  # (n, ...) or None to (B, ...), zeros in the rows to spare
        full = np.zeros((B, *shape))
        full[:n] = 0.0 if rows is None else rows
        return full

    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    where = np.concatenate([where, np.ones((B - n, D), bool)])
    params = case.params() if params is None else params
    if case.family.rowwise:
        shaped = {k: np.broadcast_to(np.asarray(p, float), (B, max(np.size(p), 1))) for k, p in params.items()}
    else:
        shaped = {k: np.broadcast_to(np.asarray(p, float), (B,)) for k, p in params.items()}
    (y, value), (bars, x_bar) = _everything(case.family)(shaped, spread(x, (D,)), where, spread(v, (D,)), spread(c, ()))
    bars = {k: np.asarray(b)[:n].reshape(n, *np.shape(params[k])) for k, b in bars.items()}
    return Result(np.asarray(y)[:n], np.asarray(value)[:n], np.asarray(x_bar)[:n], bars)


def jacobians(case: Case, x, where=None) -> np.ndarray:
    """(n, D, D): row i of each is the pull-back of the unit vector e_i, for n <= 6 slices."""
    x = np.asarray(x, float)
    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    v = np.tile(np.eye(D), (len(x), 1))
    result = run(case, np.repeat(x, D, axis=0), np.repeat(where, D, axis=0), v)
    return result.x_bar.reshape(len(x), D, D)


def scores(n=B, d=D, seed=0, dtype=float) -> np.ndarray:
    """Rows of growing spread, 1e-4 to 6: dense supports first (at alpha = 4 only the very first), then sparse ones."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.geomspace(1e-4, 6, n)[:, None]).astype(dtype)


def holes(n=B, d=D, seed=0) -> np.ndarray:
    """Random masks with holes inside; every row keeps at least one position, and row 0 keeps exactly one."""
    rng = np.random.default_rng(seed + 1000)
    where = rng.uniform(size=(n, d)) < 0.6
    where[np.arange(n), rng.integers(0, d, size=n)] = True
    where[0] = np.arange(d) == d // 2
    return where
