"""What cases are made of. An entropy, a penalty or a domain is one entry here and one oracle in `oracles`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import smoothmax as sm

from .tolerances import FUNCTION64, PROMISE64

Params = dict[str, Any]
Values = dict[str, Any]  # numbers, or functions of the length of a slice for what depends on it


# --- Hyper-parameters ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What tests may set a hyper-parameter to.

    Attributes:
      draw: any value in its range, from a random generator and a shape: () or one a position.
      bad: numbers outside its range. One with a value a position gets them as its first entry.
      strength: whether it scales with the scores: s times the scores and s times all strengths is the same problem.
    """

    draw: Callable[[np.random.Generator, tuple[int, ...]], Any]
    bad: tuple[float, ...]
    strength: bool = False


def _strength(low, high):
    return lambda rng, shape: rng.choice([0.0, 10 ** rng.uniform(low, high)])


HYPER = {
    "gamma": Hyper(lambda rng, _: 10 ** rng.uniform(-1, 1), (0.0, -1.0, np.nan, np.inf), strength=True),
    "beta": Hyper(lambda rng, _: 10 ** rng.uniform(-2, 0.5), (), strength=True),
    "alpha": Hyper(
        lambda rng, _: rng.choice([1.0, 2.0, 1 + 10 ** rng.uniform(-6, 0), rng.uniform(1, 2), 10 ** rng.uniform(0, 2)]),
        (0.5, 0.0, -2.0, np.nan),
    ),
    "p": Hyper(lambda rng, _: rng.choice([2.0, 1 + 10 ** rng.uniform(-3, 0)]), (1.0, 0.5, 2.5, np.nan)),
    "tv": Hyper(_strength(-2, 1), (-0.1, np.nan)),
    "oscar": Hyper(_strength(-3, 0), (-0.1, np.nan)),
    "owl": Hyper(_strength(-2, 1), (-0.1, np.nan)),
    "edges": Hyper(lambda rng, shape: rng.uniform(0, 1, shape) * rng.integers(0, 2, shape), (-0.1, np.nan)),
    "weights": Hyper(
        lambda rng, shape: np.sort(rng.integers(-3, 4, shape) / 4 if rng.uniform() < 0.5 else rng.normal(size=shape))[
            ::-1
        ],
        (-9.0, np.nan),  # below the second one
    ),
    "total": Hyper(lambda rng, _: rng.choice([1.0, 2.0, rng.uniform(0.1, 5)]), (-1.0, 99.0, np.nan)),
    "lower": Hyper(lambda rng, shape: rng.choice([0.0, 0.1]) * rng.uniform(size=shape), (2.0, np.nan)),
    "upper": Hyper(lambda rng, shape: rng.choice([1.0, rng.uniform(0.2, 1.5)]) * np.ones(shape), (-0.1, np.nan)),
    "vertex": Hyper(
        lambda rng, shape: rng.integers(-2, 3, shape) * 1.0 if rng.uniform() < 0.5 else rng.normal(size=shape),
        (np.nan,),
    ),
}


# --- Bases ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Base:
    """An entropy, or a function of the user's own.

    Attributes:
      make: from hyper-parameters to the regularizer.
      values: settings of its hyper-parameters, from the id of the case; the first one stands for all in dear laws.
      domains: those that it is defined over; the first one is its home.
      penalties: whether it takes penalties.
      sparse: whether weights reach zero.
      rowwise: whether hyper-parameters may have one value a slice without `vmap` (plain functions see one slice).
      tol: promised accuracy in float64.
      structured: what differs from the first setting where there are penalties (strengths multiply them too).
    """

    make: Callable[[Params], Any]
    values: dict[str, Values]
    domains: tuple[str, ...] = ("simplex", "capped", "box")
    penalties: bool = True
    sparse: bool = True
    rowwise: bool = True
    tol: float = PROMISE64
    structured: Values = dataclasses.field(default_factory=dict)


def cubic(t):
    return t**2 / 2 + t**3 / 3


def cubic_rise(v):
    """The t at which the derivative t + t^2 of `cubic` is v."""
    return 2 * v / (1 + np.sqrt(1 + 4 * v))


def coupled(y, params):
    """gamma/2 |y|^2 + beta |y|^4: not separable."""
    square = jnp.sum(y**2)
    return params["gamma"] * square / 2 + params["beta"] * square**2


def one_of(functions):
    """Of what they take and an index after the first of it: a solver is compiled once for all of the functions."""
    functions = tuple(functions)  # of which a program is kept: a list might change
    return lambda y, which, *more: jax.lax.switch(which, functions, y, *more)


BASES = {
    "shannon": Base(
        lambda p: sm.Shannon(),
        {f"softmax-gamma{g}": {"gamma": g} for g in (1.0, 0.5, 2.0)},
        sparse=False,
        structured={"gamma": 2.0},
    ),
    "l2": Base(
        lambda p: sm.SquaredL2(),
        {f"sparsemax-gamma{g}": {"gamma": g} for g in (1.0, 0.5, 2.0)},
        domains=("simplex", "capped", "box", "permutahedron", "ranks"),
    ),
    "tsallis": Base(
        lambda p: sm.Tsallis(p["alpha"]),
        {f"entmax{a}": {"alpha": a, "gamma": 1.0} for a in (1.5, 1.0, 1.0001, 1.2, 1.7, 2.0, 2.5, 4.0)}
        | {
            "entmax1.5-gamma0.5": {"alpha": 1.5, "gamma": 0.5},
            "entmax1.2-gamma2.0": {"alpha": 1.2, "gamma": 2.0},
        },
    ),
    "pnorm": Base(
        lambda p: sm.SquaredPNorm(p["p"]),
        {f"pnormmax{p}": {"p": p, "gamma": 1.0} for p in (1.5, 1 + 2**-10, 1.1, 2.0)}
        | {"pnormmax1.5-gamma2.0": {"p": 1.5, "gamma": 2.0}, "pnormmax1.1-gamma0.5": {"p": 1.1, "gamma": 0.5}},
        domains=("simplex",),
        structured={"gamma": 0.5},
    ),
    "cubic": Base(lambda p: sm.separable(cubic), {"separable-cubic": {"gamma": 0.7}}),
    "fermi": Base(
        lambda p: sm.FermiDirac(), {"fermi": {"gamma": 1.0}}, domains=("capped", "box", "simplex"), sparse=False
    ),
    "coupled": Base(
        lambda p: coupled,
        {"function-coupled": {"gamma": 0.6, "beta": 0.2}},
        domains=("simplex",),
        penalties=False,
        rowwise=False,
        tol=FUNCTION64,
    ),
}


# --- Penalties -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty.

    Attributes:
      make: from hyper-parameters to the penalty, its strength included.
      values: one setting of its hyper-parameters, at which some positions are fused and some are not.
      chain: whether weights depend on positions, not only on scores.
      base: the one with which it stands alone.
    """

    make: Callable[[Params], Any]
    values: Values
    chain: bool = False
    base: str = "l2"


def edges(d):
    """Unequal positive edge weights."""
    return 0.25 + 0.2 * np.cos(2.0 * np.arange(d - 1))


def owl(d):
    """Strictly decreasing, of both signs, the steps shrinking with the length so that no length ties all."""
    return 1.5 / np.sqrt(1 + np.arange(d)) - 0.4


PENALTIES = {
    "tv": Penalty(lambda p: p["tv"] * sm.TotalVariation(), {"tv": 0.2}, True),
    "edges": Penalty(lambda p: p["tv"] * sm.TotalVariation(p["edges"]), {"tv": 0.8, "edges": edges}, True, "pnorm"),
    "oscar": Penalty(lambda p: p["oscar"] * sm.Oscar(), {"oscar": lambda d: min(0.05, 0.4 / d)}),
    "owl": Penalty(lambda p: p["owl"] * sm.OWL(p["weights"]), {"owl": 0.7, "weights": owl}, base="shannon"),
}


# --- Domains -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Domain:
    """What the weights may be.

    Attributes:
      make: from hyper-parameters and the length of a slice to the domain, None for the simplex.
      values: settings of its hyper-parameters, from a suffix of the case's id; the first one stands for all.
      sums: what the weights of n positions add up to, from hyper-parameters and n; None where nothing is asked.
      shifts: whether scores x + c give the same weights as x.
      penalties: whether a base with penalties can be solved over it.
      problem: what the oracle is told beside the hyper-parameters, from the length of the slice.
    """

    make: Callable[[Params, int], Any]
    values: dict[str, Values]
    sums: Callable[[Params, int], Any] | None
    shifts: bool = True
    penalties: bool = True
    problem: Callable[[int], dict[str, Any]] = lambda d: {}


def bounds(d):
    """Unequal upper bounds."""
    return 0.55 + 0.3 * np.sin(3.0 * np.arange(d))


def vertex(d):
    """Unequal, in no order, of both signs."""
    return 1.2 * np.cos(2.0 * np.arange(d)) + 0.3


DOMAINS = {
    "simplex": Domain(lambda p, d: None, {"": {}}, lambda p, n: 1),
    "capped": Domain(
        lambda p, d: sm.CappedSimplex(p["total"], p["upper"]) if "upper" in p else sm.CappedSimplex(p["total"]),
        {
            "": {"total": lambda d: min(2.7, 0.6 * d)},
            "-upper": {"total": lambda d: min(1.5, 0.4 * d), "upper": 0.6},
            "-bounds": {"total": lambda d: min(1.1, 0.2 * d), "upper": bounds},
        },
        lambda p, n: p["total"],
        problem=lambda d: {"over": "capped"},
    ),
    "box": Domain(
        lambda p, d: sm.Box(**{k: p[k] for k in ("lower", "upper") if k in p}),
        {"": {}, "-within": {"lower": 0.05, "upper": 0.8}, "-bounds": {"lower": 0.05, "upper": bounds}},
        None,
        shifts=False,
        problem=lambda d: {"over": "box"},
    ),
    "permutahedron": Domain(
        lambda p, d: sm.Permutahedron(p["vertex"]),
        {"": {"vertex": vertex}},
        lambda p, n: p["vertex"][:n].sum(),
        penalties=False,
        problem=lambda d: {"over": "permutahedron"},
    ),
    "ranks": Domain(
        lambda p, d: sm.Permutahedron(np.arange(1.0, d + 1)),
        {"": {}},
        lambda p, n: n * (n + 1) / 2,
        penalties=False,
        problem=lambda d: {"over": "permutahedron", "vertex": np.arange(1.0, d + 1)},
    ),
}

assert set(oracles.PENALTIES) <= set(HYPER) and set(oracles.DOMAIN) - {"over"} <= set(HYPER)
