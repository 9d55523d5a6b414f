"""A program to compile, and the laws that what comes out may be held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from facts import Facts
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile and the laws of what comes out.

    Attributes:
      name: for the report.
      function: what is jitted.
      arguments: from the chips to the shapes of its arguments, with their shardings.
      law: from the facts to sentences about what is wrong.
      chips: how many it runs on.
      fits: whether it fits into a chip's memory; the one that does not checks that this is noticed.
      may_spill: whether registers may spill to memory on a GPU.
    """

    name: str
    function: Callable[..., Any]
    arguments: Callable[[Mesh], tuple[Any, ...]]
    law: Callable[[Facts], Iterator[str]]
    chips: int = 1
    fits: bool = True
    may_spill: bool = False


def array(mesh: Mesh, *shape: int, axis: int | None = None, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """What stands for an array: cut over the chips along one axis, or whole on each."""
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "devices")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def bytes_of(*shape: int) -> int:
    return 4 * int(np.prod(shape))


def alone(facts: Facts) -> Iterator[str]:
    if facts.sent:
        yield f"sends {facts.sent} on one chip"


def sorts_only_where(facts: Facts, expected: bool) -> Iterator[str]:
    if bool(facts.sorts) != expected:
        yield f"holds {facts.sorts} sorts, but should hold {'one' if expected else 'none'}"


def only_kernels(facts: Facts, kernels: int) -> Iterator[str]:
    if (facts.kernels, facts.loops) != (kernels, 0):
        yield f"holds {facts.kernels} kernels and {facts.loops} loops, not {kernels} and none"


def no_spills(facts: Facts) -> Iterator[str]:
    if facts.spilled:
        yield f"spills {facts.spilled} bytes of registers"


def within(temporary: float, bound: float, what: str) -> Iterator[str]:
    if temporary > bound:
        yield f"takes {temporary:,.0f} bytes of temporary memory, more than {what} ({bound:,.0f})"
