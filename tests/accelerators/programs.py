"""The programs that are compiled, and what each of them may hold.

The operators come from the list in `cases`: one that is added there is compiled here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attention
import cases
import jax
import jax.numpy as jnp
import numpy as np
from facts import Facts
from jax.sharding import Mesh, PartitionSpec
from laws import Program, alone, array, bytes_of, no_spills, only_kernels, sorts_only_where, within
from targets import Target

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas.gpu import _mosaic

# Slices of an operator's program, and their width. Where several penalties come together, something is sorted, or a
# function is differentiated, a smaller one, which compiles several times sooner. A program quadratic in it breaks the
# bound below.
SLICES, NARROW, WIDE = 64, 256, 1024
# Temporary arrays of the size of the scores that a program may take. The plain function (interior point) and the
# compositions of chain and sort take the most.
MOST_ARRAYS = 40
# And what a compiler takes for itself, whatever the size: the scratch of a loop, the halves of a sort.
FIXED = 8 * 2**20


def everything(target: Target) -> Iterator[Program]:
    """All programs for a kind of machine."""
    platform = target.platform
    for case in cases.REPRESENTATIVES:
        # The list is that of the reference; here each platform takes what serves it best.
        case = dataclasses.replace(case, family=dataclasses.replace(case.family, implementation=None))
        yield from _operator(case, platform)
        # A loss for each base, and one of all pieces together: the others are made of the same ones.
        if case.family.domain == "simplex" and len(case.family.penalties) != 1:
            yield _loss(case, platform)
    yield from attention.everything(platform)
    yield from _kernels_alone(target) if platform == "tpu" else _gpu_kernels_alone()
    yield from _controls()


def _like(array: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, dtype, sharding=array.sharding)


# --- Operators and losses ----------------------------------------------------------------------------------


def _operator(case: cases.Case, platform: str) -> Iterator[Program]:
    """Weights, and their gradient in scores and hyper-parameters."""
    asked = set()
    several = len(case.family.penalties) > 1
    width = NARROW if several or _sorts(case) or case.family.base == "coupled" else WIDE

    def function(params, x, where, bar):
        y, pull = jax.vjp(lambda params, x: case.family.weights(x, params, -1, where), params, x)
        return y, pull(bar)

    def arguments(mesh):
        x = array(mesh, SLICES, width)
        return _params(mesh, case, width), x, _like(x, jnp.bool_), x

    def law(facts):
        yield from _of_slices(case, platform, asked, width, facts)
        if facts.kernels and facts.loops:
            yield f"holds {facts.loops} loops beside the kernels, and nothing is left to search for"

    yield Program(f"{case.id}, width {width}", _noting(asked, function), arguments, law, may_spill=_may_spill(case))


def _loss(case: cases.Case, platform: str) -> Program:
    """The Fenchel-Young loss of integer labels, which is made of the operator's value, with its gradient."""
    asked = set()

    def function(params, x, labels):
        def loss(params, x):
            return jnp.sum(sm.fenchel_young_loss_with_integer_labels(x, labels, case.family.op(params, NARROW)))

        return jax.value_and_grad(loss, (0, 1))(params, x)

    def arguments(mesh):
        return _params(mesh, case, NARROW), array(mesh, SLICES, NARROW), array(mesh, SLICES, dtype=jnp.int32)

    law = partial(_of_slices, case, platform, asked, NARROW)
    return Program(f"loss of {case.id}", _noting(asked, function), arguments, law, may_spill=_may_spill(case))


def _params(mesh: Mesh, case: cases.Case, width: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: array(mesh, *np.shape(value)) for name, value in case.params(width).items()}


def _noting(problems: set[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; while it is traced, the problems that it asks to be solved are noted."""

    def noting(*args):
        with cases.asked() as asked:
            result = function(*args)
        problems.update(asked)
        return result

    return noting


def _of_slices(case: cases.Case, platform: str, asked: set[str], width: int, facts: Facts) -> Iterator[str]:
    """The laws of a program on slices, on one chip."""
    yield from alone(facts)
    yield from sorts_only_where(facts, _sorts(case))
    most = FIXED + MOST_ARRAYS * bytes_of(SLICES, width)
    yield from within(facts.temporary, most, f"{MOST_ARRAYS} arrays of scores and {FIXED:,} bytes")
    offers = {p: kernels for p, kernels in _kernels.TABLE["pallas"].items() if p in asked}
    served = {p for p, kernels in offers.items() if any(platform in k.platforms for k in kernels)}
    if facts.kernels < len(served):
        yield f"holds {facts.kernels} kernels, but {', '.join(sorted(served))} are served by one each"
    if not served and facts.kernels:
        yield f"holds {facts.kernels} kernels, but none serves it"


def _may_spill(case: cases.Case) -> bool:
    """XLA puts all sums over a slice into one kernel with half of a GPU's registers for each of its threads. Those of
    powers, of a function's derivatives, of several penalties and of gathered ranks do not always fit."""
    several = len(case.family.penalties) > 1 or case.family.domain == "permutahedron"
    return case.family.base not in ("shannon", "l2") or several


def _sorts(case: cases.Case) -> bool:
    """Whether the ranks of the scores are asked for, which nothing but a sort can find."""
    ranked = any(not cases.PENALTIES[name].chain for name in case.family.penalties)
    return ranked or cases.DOMAINS[case.family.domain].problem(1).get("over") == "permutahedron"


# --- Kernels by themselves, at their largest ---------------------------------------------------------------


def _kernels_alone(target: Target) -> Iterator[Program]:
    def law(kernels, most, what, facts):
        yield from alone(facts)
        yield from only_kernels(facts, kernels)
        yield from within(facts.temporary, most, what)

    table = pallas.kernels()
    # Refused beyond: the width that the kernel says it holds.
    wide = re.search(r"of 2 to (\d+) positions", table["chain"].refuses(*_spec((1, 1)), *_spec((), ())) or "")
    assert wide is not None
    widest, slices = int(wide[1]), 2 * SLICES
    chain = lambda mesh: (array(mesh, slices, widest), array(mesh), array(mesh))
    # Slices are filled up to 1,024 and laid out for the kernel, and its two results back again.
    arrays = partial(law, 1, 4 * bytes_of(1024, widest), "4 arrays of 1,024 slices")
    yield Program(f"kernel: chain, width {widest}", table["chain"].call, chain, arrays)
    # From 8,192 on eight slices are a block, and the code is as long as they are: the longest is compiled for one chip.
    width = 2**15 if target.name == "v5e" else 2**14
    threshold = lambda mesh: (array(mesh, SLICES, width), array(mesh), array(mesh, SLICES, 1))
    arrays = partial(law, 1, 4 * bytes_of(SLICES, width), "4 arrays of scores")
    yield Program(f"kernel: threshold, width {width}", table["threshold"].call, threshold, arrays)
    capped = lambda mesh: (*threshold(mesh), array(mesh), array(mesh, SLICES, width))
    arrays = partial(law, 1, 5 * bytes_of(SLICES, width), "5 arrays of scores")
    yield Program(f"kernel: capped, width {width}", table["capped"].call, capped, arrays)


def _gpu_kernels_alone() -> Iterator[Program]:
    """Those for GPUs, at their largest, where they need the most registers, and at a width that has to be filled up."""

    def law(kernels, facts):
        yield from alone(facts)
        yield from only_kernels(facts, kernels)
        yield from no_spills(facts)
        yield from within(facts.temporary, 16 * bytes_of(SLICES, WIDE), "16 arrays of scores")

    table = pallas.gpu_kernels()
    widest = re.search(r"of 1 to (\d+) positions", table["threshold"].refuses(*_spec((1, 10**6), (), ())) or "")
    assert widest is not None
    rows_of = lambda mesh, width: (array(mesh, 8, width), array(mesh), array(mesh, 8, 1))
    for problem in ("threshold", "p_norm"):
        for width in (NARROW - 1, int(widest[1])):
            rows = lambda mesh, width=width: rows_of(mesh, width)
            yield Program(f"kernel: {problem}, width {width}", table[problem].call, rows, partial(law, 1))
    widest = re.search(r"of 1 to (\d+) positions", table["capped"].refuses(*_spec((1, 10**6), (), (), (), ())) or "")
    assert widest is not None
    for width, bounds in ((NARROW - 1, 1), (int(widest[1]), int(widest[1]))):
        rows = lambda mesh, width=width, bounds=bounds: (*rows_of(mesh, width), array(mesh), array(mesh, 8, bounds))
        yield Program(f"kernel: capped, width {width}, {bounds} bounds", table["capped"].call, rows, partial(law, 1))
    chain = lambda mesh: (array(mesh, 2 * SLICES, WIDE), array(mesh), array(mesh, 1, WIDE - 1))
    yield Program(f"kernel: chain, width {WIDE}", table["chain"].call, chain, partial(law, 1))

    def by_name(x, bar):
        y, pull = jax.vjp(partial(sm.fusedmax, implementation="pallas"), x)
        return y, pull(bar)

    scores = lambda mesh: (array(mesh, SLICES, NARROW),) * 2
    yield Program("kernel: fusedmax by name, with its gradient", by_name, scores, partial(law, 3))

    def on_four_chips(x):
        by_name = partial(sm.sparsemax, implementation="pallas")
        return jax.grad(lambda x: jnp.sum(jax.shard_map(by_name, in_specs=batch, out_specs=batch)(x) ** 2))(x)

    batch = PartitionSpec("devices")
    divided = lambda mesh: (array(mesh, SLICES, NARROW, axis=0),)
    yield Program("kernel: sparsemax by name, by shard_map", on_four_chips, divided, partial(law, 1), chips=4)
    whole = lambda mesh: (array(mesh, 2**16),)
    yield Program("control: spilled registers", _too_long_for_registers, whole, partial(_broken, no_spills))


def _too_long_for_registers(x: jax.Array) -> jax.Array:
    def kernel(step, x_ref, y_ref):
        x = x_ref[...]
        y_ref[...] = x - jnp.max(x)

    return _mosaic.run(kernel, 1, [x], (x.dtype,), interpret=False)[0]


def _spec(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


# --- Controls: programs that break each law, so that a law that cannot be broken is noticed --------------------


def _broken(law: Callable[[Facts], Iterator[str]], facts: Facts) -> Iterator[str]:
    if not list(law(facts)):
        yield "breaks the law, and the check did not see it"


def _controls() -> Iterator[Program]:
    def rows(mesh):
        return (array(mesh, SLICES, WIDE, axis=0 if mesh.size > 1 else None),)

    def gather(x):
        return x - jnp.sum(x @ x.T)

    few = lambda mesh: (array(mesh, SLICES, NARROW),)
    yield Program("control: a sort", jnp.sort, few, partial(_broken, lambda f: sorts_only_where(f, False)))
    yield Program("control: a collective", gather, rows, partial(_broken, alone), chips=4)
    whole = lambda mesh: (array(mesh, 2**18, 64),)
    large = lambda x: jnp.linalg.norm(jnp.cumsum(x @ x.T, axis=0), axis=1)
    yield Program("control: too large", large, whole, lambda _: iter(()), fits=False)
