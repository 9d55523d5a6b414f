"""The cases that follow from the parts, and the ways to reach each of them in smoothmax."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import smoothmax as sm
from smoothmax import _kernels

from ._parts import BASES, DOMAINS, HYPER, PENALTIES, Base, Domain, Params, Values


@dataclasses.dataclass(frozen=True)
class Named:
    """A named function: what its arguments are called, from the names of hyper-parameters, and their defaults."""

    name: str
    arguments: dict[str, str]
    defaults: Values  # beside gamma = 1; empty where an argument must be given

    def __call__(self, *args, suffix="", **params):
        return getattr(sm, self.name + suffix)(*args, **{self.arguments.get(k, k): v for k, v in params.items()})

    @property
    def has_value(self) -> bool:
        return hasattr(sm, self.name + "_value")


# (base, penalties, domain, names of hyper-parameters) -> its named function
NAMED = {
    ("shannon", (), "simplex", ("gamma",)): Named("softmax", {}, {}),
    ("l2", (), "simplex", ("gamma",)): Named("sparsemax", {}, {}),
    ("tsallis", (), "simplex", ("alpha", "gamma")): Named("entmax", {}, {"alpha": 1.5}),
    ("pnorm", (), "simplex", ("gamma", "p")): Named("pnormmax", {}, {"p": 1.5}),
    ("l2", ("tv",), "simplex", ("gamma", "tv")): Named("fusedmax", {"tv": "lam"}, {"tv": 0.1}),
    ("l2", ("oscar",), "simplex", ("gamma", "oscar")): Named("oscarmax", {"oscar": "lam"}, {"oscar": 0.01}),
    ("l2", (), "capped", ("gamma", "total")): Named("soft_topk", {"total": "k"}, {}),
    ("l2", (), "ranks", ("gamma",)): Named("soft_rank", {}, {}),
}


# Named functions that give distributions and need no argument beside the scores, with what the oracle is then told.
DISTRIBUTIONS = {
    named.name: {"base": base} | named.defaults for (base, _, domain, _), named in NAMED.items() if domain == "simplex"
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What is static about a case: its parts, the names of its hyper-parameters and its implementation."""

    base: str
    penalties: tuple[str, ...]
    domain: str
    names: tuple[str, ...]
    implementation: str = "xla"

    @property
    def parts(self) -> tuple[Base, Domain]:
        return BASES[self.base], DOMAINS[self.domain]

    @property
    def rowwise(self) -> bool:
        return BASES[self.base].rowwise

    @property
    def named(self) -> Named | None:
        return NAMED.get((self.base, self.penalties, self.domain, tuple(sorted(self.names))))

    def omega(self, params: Params) -> Any:
        """The regularizer from a dict of hyper-parameters (or, for a plain function, what `conjugate` takes)."""
        omega = BASES[self.base].make(params)
        if not self.rowwise:
            return omega
        for penalty in self.penalties:
            omega = omega + PENALTIES[penalty].make(params)
        return params["gamma"] * omega

    def op(self, params: Params, d: int) -> sm.Operator:
        """The operator for slices of length d."""
        domain = DOMAINS[self.domain].make(params, d)
        options = {} if self.rowwise else {"params": params}
        return sm.conjugate(self.omega(params), domain, implementation=self.implementation, **options)

    def weights(self, x, params, axis=-1, where=None):
        return self._call("", "argmax", x, params, axis, where)

    def value(self, x, params, axis=-1, where=None):
        return self._call("_value", "max", x, params, axis, where)

    def _call(self, suffix, method, x, params, axis, where):
        if self.named is None or (suffix and not self.named.has_value):
            axes = range(np.ndim(x)) if axis is None else np.atleast_1d(axis)
            d = math.prod(np.shape(x)[a] for a in axes)
            return getattr(self.op(params, d), method)(x, axis, where=where)
        options = {"axis": axis, "where": where, "suffix": suffix, "implementation": self.implementation}
        return self.named(x, **options, **params)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem with values of its hyper-parameters, its oracle, and what holds for it."""

    id: str
    family: Family
    values: Values

    def params(self, d: int = 8) -> Params:
        return {k: v(d) if callable(v) else v for k, v in self.values.items()}

    def arrays(self, d: int = 8) -> dict[str, np.ndarray]:
        """Hyper-parameters as operands, one of each for all slices."""
        return {k: np.asarray(v, float) for k, v in self.params(d).items()}

    def problem(self, d: int = 8) -> dict[str, Any]:
        """Keywords of the oracle."""
        return self.static(d) | self.params(d)

    def static(self, d: int = 8) -> dict[str, Any]:
        """Those that are no hyper-parameters."""
        return {"base": self.family.base} | DOMAINS[self.family.domain].problem(d)

    def drawn(self, rng: np.random.Generator, n: int, d: int = 8) -> Params:
        """Any hyper-parameters in their ranges, one a row."""
        return {k: np.array([HYPER[k].draw(rng, np.shape(v)) for _ in range(n)]) for k, v in self.params(d).items()}

    # What holds for it, from its parts.

    @property
    def has_chain(self) -> bool:
        """Whether weights depend on positions, not only on scores."""
        return any(PENALTIES[p].chain for p in self.family.penalties) or np.ndim(self.params().get("upper", 0)) > 0

    @property
    def tol(self) -> float:
        """Promised accuracy in float64."""
        return BASES[self.family.base].tol

    @property
    def plain(self) -> bool:
        """Whether it is a plain function, which is solved up to a gap."""
        return not self.family.rowwise

    @property
    def alpha(self) -> float:
        return self.values.get("alpha", 1.0)

    @property
    def sparse(self) -> bool:
        """Whether weights of zero are to be seen at moderate scores."""
        slow = self.family.base == "tsallis" and self.alpha < 1.1
        pooled = DOMAINS[self.family.domain].problem(1).get("over") == "permutahedron"
        return BASES[self.family.base].sparse and not slow and not pooled and "lower" not in self.values

    @property
    def shifts(self) -> bool:
        """Whether x + c gives the same weights."""
        return DOMAINS[self.family.domain].shifts

    @property
    def least(self) -> int:
        """The number of positions that have to be allowed for the domain to have an inside."""
        params = self.params()
        if self.family.domain != "capped":
            return 1
        room = np.cumsum(np.sort(np.broadcast_to(params.get("upper", 1.0), (8,))))
        return int(np.argmax(room > params["total"])) + 1

    def sums(self, where, params: Params | None = None):
        """What the weights of each row of a mask add up to; None where nothing is asked."""
        sums = DOMAINS[self.family.domain].sums
        params = self.params(where.shape[-1]) if params is None else params
        return sums and np.array([float(sums(params, n)) if n else 0.0 for n in where.sum(-1)])

    # Oracle

    def oracle(self, x, **problem):
        return oracles.argmax(x, **problem)

    def oracle_omega(self, y, **problem):
        return oracles.omega(y, **problem)

    def expected(self, x, where=None, params=None):
        """Oracle weights and values of the rows of `x`, masked positions (and scores of -inf) deleted."""
        x = np.asarray(x)
        keep = np.ones(x.shape, bool) if where is None else np.array(np.broadcast_to(where, x.shape))
        keep &= np.where(keep, x, 0) != -np.inf
        d = x.shape[-1]
        problem = self.static(d) | (self.params(d) if params is None else params)
        y, value = oracles.rows(x, keep, **problem)
        return y.astype(float), value.astype(float)

    def attained(self, x, y, where, params) -> float:
        """<x, y> - Omega(y) for one slice of scores and any weights, from the definition."""
        problem = oracles.delete(self.static(len(x)) | params, where)
        return float((oracles.LD(1) * x[where] * y[where]).sum() - oracles.omega(y[where], **problem))


# --- The list ------------------------------------------------------------------------------------------------


def _case(base, penalties=(), domain="simplex", setting=None, id=None):
    """A case from its parts; `setting` is the suffix of the domain's values, the first one if left out."""
    part, over = BASES[base], DOMAINS[domain]
    setting = next(iter(over.values)) if setting is None else setting
    values = next(iter(part.values.values())) if id is None else part.values[id]
    if penalties:
        values = values | part.structured
    for extra in (*(PENALTIES[p].values for p in penalties), over.values[setting]):
        values = values | extra
    if id is None:
        id = "+".join((base, *penalties)) + ("" if domain == "simplex" else f"/{domain}{setting}")
    return Case(id, Family(base, penalties, domain, tuple(values)), values)


CHAINS = tuple(name for name, penalty in PENALTIES.items() if penalty.chain)
RANKED = tuple(name for name, penalty in PENALTIES.items() if not penalty.chain)
BOTH = (CHAINS[0], RANKED[0])


def _served(domain):
    return [name for name, part in BASES.items() if domain in part.domains]


def _cases():
    """Every setting of every base; every penalty alone; every base with a chain and a rank penalty; every base over
    every domain that it serves; every setting of every domain; every penalty over every domain, with bases in turn."""
    for base, part in BASES.items():
        for id in part.values:
            yield _case(base, id=id)
    for name, penalty in PENALTIES.items():
        yield _case(penalty.base, (name,))
    pairs = itertools.cycle(itertools.product(CHAINS, RANKED))
    for base in (name for name, part in BASES.items() if part.penalties):
        yield _case(base, next(pairs))
    for domain, over in DOMAINS.items():
        if domain == "simplex":
            continue
        for base in _served(domain):
            yield _case(base, (), domain)
        for setting in list(over.values)[1:]:
            yield _case("l2", (), domain, setting)
        if over.penalties:
            for base, penalty in zip(itertools.cycle(_served(domain)), PENALTIES, strict=False):
                yield _case(base, (penalty,), domain)
            yield _case(_served(domain)[-1], BOTH, domain)


def _representatives():
    """One case for each piece of code: every base at home, every penalty alone, both kinds of penalty together, every
    domain without penalties and with one, the capped simplex with both kinds."""
    for base, part in BASES.items():
        yield next(iter(part.values)) if part.domains[0] == "simplex" else f"{base}/{part.domains[0]}"
    for name, penalty in PENALTIES.items():
        yield f"{penalty.base}+{name}"
    yield "+".join(("shannon", *BOTH))
    for domain, over in DOMAINS.items():
        if domain not in ("simplex", "ranks"):
            yield f"l2/{domain}"
            if over.penalties:
                both = "+".join((_served(domain)[-1], *BOTH))
                yield f"{both if domain == 'capped' else 'l2+edges'}/{domain}"


@contextlib.contextmanager
def asked():
    """The problems of the table of kernels that a program asks to be solved while it is traced."""
    problems, run = set(), _kernels.run

    def noting(problem, *args, **options):
        problems.add(problem)
        return run(problem, *args, **options)

    with mock.patch.object(_kernels, "run", noting):
        yield problems


def _serves(case: Case) -> bool:
    """Whether its implementation takes this case on this machine, and is asked for anything in it."""
    try:
        with asked() as problems:
            jax.eval_shape(lambda x: case.family.weights(x, case.params()), jnp.zeros((2, 8)))
    except NotImplementedError:
        return False
    return bool(problems)


def _elsewhere(case: Case):
    """The case on every other implementation that serves it on this machine."""
    for implementation in _kernels.names()[1:]:
        family = dataclasses.replace(case.family, implementation=implementation)
        other = Case(f"{case.id}-{implementation}", family, case.values)
        if _serves(other):
            yield other


_XLA = {case.id: case for case in _cases()}

# For the dearest laws, and for every other implementation.
REPRESENTATIVES = tuple(_XLA[id] for id in _representatives())


def _parts(case: Case) -> set[Any]:
    """What a case is made of: a base, alone or not, a domain, penalties, and of how many kinds."""
    family = case.family
    kinds, simplex = len({PENALTIES[name].chain for name in family.penalties}), family.domain == "simplex"
    alone = {(family.base, "alone")} if simplex and not kinds else set()
    return alone | {family.base, family.domain, *family.penalties, kinds, (simplex, kinds > 0)}


def _pieces():
    """The representatives without those of which every part stands in another one too, the largest looked at first."""
    kept = list(REPRESENTATIVES)
    for case in sorted(REPRESENTATIVES, key=lambda case: -len(case.family.penalties)):
        others = [other for other in kept if other is not case]
        if _parts(case) <= set().union(*map(_parts, others)):
            kept = others
    return kept


# For laws about what is done to a program, which meets each part alike whatever stands beside it.
PIECES = tuple(_pieces())

CASES = (*_XLA.values(), *(other for case in REPRESENTATIVES for other in _elsewhere(case)))
BY_ID = {case.id: case for case in CASES}

# One case a family, for laws in which the hyper-parameters' values do not matter but compilation costs.
FAMILIES = tuple({case.family: case for case in reversed(CASES)}.values())[::-1]


def each(cases=CASES) -> Callable:
    """A law runs over these cases."""
    cases = tuple(cases)
    assert cases, "a law without a case"
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def each_named(values=False) -> Callable:
    """A law runs over the named functions, with what they have to be given, and their value twins if asked."""
    functions = {}
    for (base, penalties, domain, names), named in NAMED.items():
        case = next(c for c in CASES if c.family == Family(base, penalties, domain, c.family.names)
                    and tuple(sorted(c.family.names)) == names)  # fmt: skip
        given = {named.arguments.get(k, k): v for k, v in case.params().items() if k not in ("gamma", *named.defaults)}
        for suffix in ("", "_value") if values and named.has_value else ("",):
            functions[named.name + suffix] = functools.partial(getattr(sm, named.name + suffix), **given)
    return pytest.mark.parametrize("function", functions.values(), ids=functions)
