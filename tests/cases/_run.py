"""One compiled program a family, through which every law goes; scores and masks to go through it."""

import dataclasses
import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from smoothmax import _solvers

from ._list import REPRESENTATIVES, Case, Family

B, D = 48, 8  # the shape in which laws about small slices share their compilations
WIDE = 3001  # and the width of wide ones

# Whether programs are compiled as users compile: conftest.py tells XLA not to optimise, unless told otherwise.
OPTIMISED = "xla_backend_optimization_level=0" not in os.environ.get("XLA_FLAGS", "")
# Then `run` repeats its slices until there are so many that XLA makes the code of large arrays.
ROWS = 640 if OPTIMISED else B


@functools.cache
def forward(family: Family):
    """Compiled (weights, values) along the last axis, hyper-parameters as operands."""
    return jax.jit(lambda params, x, where: (family.weights(x, params, -1, where), family.value(x, params, -1, where)))


@functools.cache
def everything(family: Family):
    """Compiled weights, values and one pull-back of both, for (n, D) scores and one hyper-parameter a row."""

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


def spread_params(case: Case, params, dtype=float):
    """Hyper-parameters, one of each or, as `Case.drawn` gives them, one a row, for ROWS rows: each (ROWS, 1), or (ROWS,
    its length); (ROWS,) for plain functions."""
    spread = {}
    for name, one in case.params(D).items():
        rows = np.asarray(params[name], dtype)
        rows = rows if rows.ndim > np.ndim(one) else rows[None]
        shape = (np.size(one),) if case.family.rowwise else ()
        spread[name] = np.resize(rows.reshape(len(rows), *shape), (ROWS, *shape))
    return spread


def run(case: Case, x, where=None, v=None, c=None, params=None, dtype=float) -> Result:
    """Weights, values and the pull-back of (v, c) for up to B rows of D scores, all in one dtype; hyper-parameters as
    `spread_params` takes them."""
    x = np.asarray(x, dtype)
    n = len(x)
    assert n <= B and x.shape[1] == D

    def spread(rows, shape, dtype=dtype):
        """(n, ...) or one number to (ROWS, ...)."""
        return np.resize(np.broadcast_to(np.asarray(rows, dtype), (n, *shape)), (ROWS, *shape))

    where = spread(True if where is None else where, (D,), bool)
    v, c = (0.0 if rows is None else rows for rows in (v, c))
    params = case.params(D) if params is None else params
    (y, value), (bars, x_bar) = everything(case.family)(
        spread_params(case, params, dtype), spread(x, (D,)), where, spread(v, (D,)), spread(c, ())
    )
    bars = {k: np.asarray(bars[k])[:n].reshape(n, *np.shape(one)) for k, one in case.params(D).items()}
    return Result(np.asarray(y)[:n], np.asarray(value)[:n], np.asarray(x_bar)[:n], bars)


def in_float32(case: Case, x, params=None) -> tuple[np.ndarray, np.ndarray]:
    """Weights and values of up to B slices in float32, by the one program that other laws about the family need too."""
    if any(case.family == other.family for other in REPRESENTATIVES):  # laws about pull-backs run over these
        result = run(case, x, params=params, dtype=np.float32)
        return result.y, result.value
    return forward(case.family)(case.params() if params is None else params, np.asarray(x, np.float32), None)


def jacobians(case: Case, x, where=None) -> np.ndarray:
    """(n, D, D): row i of each is the pull-back of the unit vector e_i, for n <= 6 slices."""
    x = np.asarray(x, float)
    where = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    v = np.tile(np.eye(D), (len(x), 1))
    result = run(case, np.repeat(x, D, axis=0), np.repeat(where, D, axis=0), v)
    return result.x_bar.reshape(len(x), D, D)


# The solvers in plain JAX, with which kernels are compared: compiled, since one by one their operations compile longer.
reference = {
    solver: jax.jit(functools.partial(getattr(_solvers, solver), implementation="xla"))
    for solver in ("chain_prox", "sorted_prox", "threshold_product", "p_norm_product", "segment_mean")
}


def solved_by(kernels):
    """From a problem and its arguments to the results of its kernel as NumPy arrays; each is compiled once for a shape.
    Float arguments become float32, as the kernels for accelerators take them."""
    compiled = {problem: jax.jit(kernel.call) for problem, kernel in kernels.items()}

    def solve(problem, *args):
        args = [a if jnp.issubdtype(jnp.result_type(a), jnp.integer) else jnp.asarray(a, jnp.float32) for a in args]
        assert kernels[problem].refuses(*args) is None
        return jax.tree.map(np.asarray, compiled[problem](*args))

    return solve


def scores(n=B, d=D, seed=0, dtype=float) -> np.ndarray:
    """Rows of growing spread, 1e-4 to 6: dense supports first (at alpha = 4 only the very first), then sparse ones."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * np.geomspace(1e-4, 6, n)[:, None]).astype(dtype)


def next_to_the_border(case, params, d, n=24) -> np.ndarray:
    """Scores whose weights are a few large ones and many small ones, with a share of 1e-6 to almost all of the sum.

    With the large scores at 0 the others are the slope of Omega along their share. Rounding spreads half of the rows,
    and in a third of them some lie just off the support.
    """
    rng = np.random.default_rng(8)
    large, total = case.least, params.get("total", 1.0)

    def omega(share):
        y = np.full(d, oracles.LD(share) / (d - large))
        y[:large] = (total - oracles.LD(share)) / large
        return oracles.omega(y, **case.static(d) | params)

    shares = np.geomspace(1e-6, 0.97, n)
    slopes = [(omega(m * 1.0001) - omega(m * 0.9999)) / (2e-4 * m) for m in shares]
    x = np.tile(np.array(slopes, float)[:, None], d)
    x[::2] *= 1 + rng.choice([1e-7, 1e-6, 1e-5, 1e-3], (n // 2, 1)) * rng.normal(size=(n // 2, d))
    x[::3] -= rng.choice([0, 1], x[::3].shape, p=[0.8, 0.2]) * 10 ** rng.uniform(-8, -2, x[::3].shape)
    x[:, :large] = 0
    return x[:, rng.permutation(d)].astype(np.float32)


def normal(seed, *shape, dtype=np.float32) -> np.ndarray:
    """Normal numbers, drawn and held by NumPy: JAX compiles a program for whatever is done to each shape."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def holes(n=B, d=D, seed=0, least=1) -> np.ndarray:
    """Random masks with holes inside; every row keeps at least `least` positions, and row 0 keeps exactly as many."""
    rng = np.random.default_rng(seed + 1000)
    where = rng.uniform(size=(n, d)) < 0.6
    for row in where:
        row[rng.permutation(d)[:least]] = True
    where[0] = np.isin(np.arange(d), (d // 2 + 2 * np.arange(least)) % d if least <= 4 else np.arange(least))
    return where


_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def sent(program: str):
    """What a compiled program, as text, sends between devices: the kind of each collective, and its shapes, as
    `f32[8,8]`."""
    return [(kind, re.findall(r"\w+\[[\d,]*\]", shapes)) for shapes, kind in _COLLECTIVE.findall(program)]
