"""What the equations of one threshold a slice are made of: machines, Newton's method, powers and small steps.

Columns, one number a slice, are arrays; a slice, or a block of slices, is what a `Machine` makes of it. What is done at
each position is written as a function of that position, so that a machine may go along a slice piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Newton's passes; five to ten are the rule.
MAX_PASSES = 64
# What is left of an equation when it is solved, and what may be nothing but the rounding of sums.
_SOLVED, NOISE = 5e-7, 3e-6
# A step of log m below which the next one, of second order, is rounding.
SMALL_STEP = 1e-4
# In place of -inf: outside of every support, and safe to compute with.
LOWEST = -1e30
# The least number that is told from 0.
LEAST = 1e-37
# log 1/e that is as good as infinite: all but the largest scores are off the support.
LARGEST_LOG = 60.0


class Machine(NamedTuple):
    """What kinds of machines do differently. A column is one number a slice."""

    each: Callable[..., Any]  # a function of positions, and slices, to the slice or the tuple of slices it makes
    sums: Callable[..., Any]  # a function of positions that makes a tuple, and slices, to the columns of the sums
    most: Callable[..., Any]  # a function of positions, and slices, to the column of its largest value
    over_slices: Callable[[jax.Array], jax.Array]  # a column to its sum, a scalar
    chosen: Callable[..., Any]  # scores and pairs of a column and a solver to weights: by the solver where it is true
    log1p: Callable[[jax.Array], jax.Array]
    log1p_down: Callable[[jax.Array], jax.Array]  # for numbers from -1, where it may be large only, to 0
    kept: Callable[[Any], Any]  # a slice to the same one, where it is better computed now than where it is used

    def total(self, function: Callable[..., jax.Array], *slices: Any) -> jax.Array:
        """The column of the sums of one function of positions."""
        [total] = self.sums(lambda *at: (function(*at),), *slices)
        return total


class _Newton(NamedTuple):
    """The state of a Newton iteration; columns, one number a slice."""

    passes: jax.Array  # a scalar
    at: Any  # the unknown, a column or several
    active: jax.Array  # 1 where it still moves, else 0: a finished slice must not depend on the others
    going: jax.Array  # the sum of `active`, a scalar


def arrived(y: Any, low: Any, rest: jax.Array, by: jax.Array, machine: Machine) -> Any:
    """The weights after the last step, `by` times `low`, which is taken in them, to first order: what rounding the
    unknown leaves over counts as often as there are weights. NaN if that step is no small one."""
    by = jnp.where(jnp.abs(rest) <= SMALL_STEP, by, jnp.nan)
    return machine.each(lambda y, low: jnp.maximum(y + by * low, 0.0), y, low)


def iterate(
    start: Any,
    step: Callable[[Any], tuple[Any, jax.Array]],
    wanted: jax.Array,
    most: int,
    machine: Machine,
) -> Any:
    """Iterates `step`, from the unknown to its next value and whether that is the last, where wanted."""

    def one_pass(state):
        at, last = step(state.at)
        at = jax.tree.map(lambda new, old: jnp.where(state.active > 0, new, old), at, state.at)
        active = jnp.where(last, 0.0, state.active)
        return _Newton(state.passes + 1, at, active, machine.over_slices(active))

    active = jnp.where(wanted, jnp.ones_like(jax.tree.leaves(start)[0]), 0.0)
    state = _Newton(jnp.int32(0), start, active, machine.over_slices(active))
    return lax.while_loop(lambda s: (s.going > 0) & (s.passes < most), one_pass, state).at


def same(at: jax.Array) -> jax.Array:
    return at


def low_power(b: Any) -> Any:
    """Whether u is computed rather than v."""
    return b > 0.4


def two_parts(whole: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Their sum, and what rounding it leaves over."""
    rounded = whole + rest
    return rounded, (whole - rounded) + rest


def solved(residual: jax.Array, step: jax.Array, last_step: jax.Array) -> jax.Array:
    """Whether what is left of an equation is nothing, or nothing but the rounding of sums."""
    return (residual <= _SOLVED) | ((residual < NOISE) & (2 * jnp.abs(step) > jnp.abs(last_step)))


def least_of(where: Callable[..., jax.Array], machine: Machine, *slices: Any) -> jax.Array:
    """The column of the least numbers of the first slice, where a condition on the slices holds."""
    return -machine.most(lambda *at: jnp.where(where(*at), -at[0], LOWEST), *slices)


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, which the compilers for kernels have no operation for."""
    t = jnp.tanh(x / 2)
    return jnp.where(x < 1, 2 * t / (1 - jnp.where(x < 1, t, 0.0)), jnp.exp(x) - 1)
