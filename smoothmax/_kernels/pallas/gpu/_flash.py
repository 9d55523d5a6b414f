"""Flash attention for sparse mappings on GPUs: alpha-entmax, 1 <= alpha <= 2, and its derivatives; no scores stored.

    output = sum_s y_ts v_s,      y_t = argmax over the simplex of  <z_t, y> - sum (y^alpha - y) / (alpha (alpha - 1))

for the scores z_ts = scale q_t k_s + bias_ts, recomputed block by block as often as they are needed. With b = alpha - 1
and a threshold tau_t a query,

    y = u^(1/b),     u = max(1 + b (z - tau), 0),     sum y = 1;        b = 0:  y = exp(z - tau).

**Forward.** Newton's method for the norm (sum y)^b, which is convex in tau and nearly linear, starts below the root and
never leaves that side. Its first steps are taken while the keys are read for the first time: a norm lies above its
tangent, so what the tangent makes of the keys that were read and the sums of the block at hand bound the whole from
below, and a step for the bound stays below the root too. It takes one to four passes more. A block of keys whose
largest score is too low for every query of a block has no weight, then and for good: it is not read again. A second
kernel, which needs other registers, averages the values twice, by y and by s = y^(2 - alpha).

**Backward.** With dP_ts = <dO_t, v_s>, and the average of the values by s, which gives delta without a pass of its own,

    dZ = s (dP - delta),   delta = sum s dP / sum s,      dQ = scale dZ K,   dK = scale dZ^T Q,   dV = Y^T dO,
    d alpha = - sum dZ (L e^L - e^L + 1) / b^2,           L = b log y,

on the blocks with a weight alone: one kernel goes along the keys, one along the queries. Two more, which a program that
does not ask for them leaves out, give d alpha and d scale, and the bias its dZ.

**Layout.** 64 queries are a block, which 128 threads take on; products are those of Hopper's matrix unit, and what
belongs to a query is a column. While a block is computed, the next one is fetched; a multiprocessor has two to four
such groups of threads at a time, and does arithmetic for one while another waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..shared._flash import Head, entropy_change, newton
from ..shared._machines import LOWEST
from ..shared._slices import flag, loop
from ._flash_blocks import Plan, Stream, added, along, every, filled, product, read, scores, stretch
from ._mosaic import mosaic

# Newton's passes over the keys; one to four are the rule.
MAX_PASSES = 32
# The logarithm of what the weights sum to from which a last step is taken. It leaves less, of second order as a rule;
# and the weights are divided by their sum.
NEAR = 0.01
# b = alpha - 1 below which entmax is softmax, up to a share of b, and the logarithm of its weights is taken as that.
_SMALL_B = 1e-4
_TINY = 1e-30
# Rows of the array that tells a backward pass of a query: its threshold, and delta.
TAU, DELTA = 0, 1
STATISTICS = 2


# --- Weights -----------------------------------------------------------------------------------------------


def weights(b: Any, x: jax.Array, use: Callable[[jax.Array, jax.Array], Any] = lambda y, s: (y, s)) -> Any:
    """`use(y, s)`, with s = y^(1 - b), from x = z - tau. Without a power where alpha is 1.5 or 2.

    What is made of a block's weights is made where they are: what comes out of a condition takes registers.
    """

    def of_two():
        u = 1 + x
        return use(jnp.maximum(u, 0.0), flag(u > 0))

    def of_one_and_a_half():
        u = jnp.maximum(1 + 0.5 * x, 0.0)
        return use(u * u, u)

    def of_one():
        y = jnp.exp(x)
        return use(y, y)

    def of_others():
        log_y = log_weights(b, x)
        return use(jnp.exp(log_y), jnp.exp((1 - b) * log_y))

    def of_powers():
        return lax.cond(b > _SMALL_B, of_others, of_one)

    return lax.cond(b == 1, of_two, lambda: lax.cond(b == 0.5, of_one_and_a_half, of_powers))


def log_weights(b: Any, x: jax.Array) -> jax.Array:
    """log y, LOWEST off the support. The rounding of u, divided by b, is still small beside that of y to bfloat16."""

    def of_b():
        u = 1 + b * x
        return jnp.where(u > 0, jnp.log(jnp.maximum(u, _TINY)) / b, LOWEST)

    return lax.cond(b > _SMALL_B, of_b, lambda: x)


class Sums(NamedTuple):
    """Of the weights of each query at its threshold; columns."""

    y: jax.Array
    s: jax.Array

    @classmethod
    def of(cls, y: jax.Array, s: jax.Array) -> Sums:
        return cls(jnp.sum(y, axis=1), jnp.sum(s, axis=1))

    def plus(self, other: Sums) -> Sums:
        return Sums(self.y + other.y, self.s + other.s)

    def moved(self, b: Any, step: jax.Array) -> Sums:
        """A lower bound of the sums when the threshold rises by `step`: what the tangent of their norm says."""
        y, s = weights(b, -step * self.s / jnp.maximum(self.y, _TINY))
        return Sums(self.y * y, self.s * s)

    def step(self, b: Any) -> jax.Array:
        """Newton's step of the threshold."""
        x = b * jnp.log(self.y)
        t = jnp.tanh(x / 2)  # 1 - exp(-x) is 2 t / (1 + t)
        return 2 * t / ((1 + t) * b) * self.y / self.s


# --- Forward -----------------------------------------------------------------------------------------------


class Scratch(NamedTuple):
    """Shared memory for a block of queries: something for each block of keys."""

    tops: Any  # the largest score of each query
    wanted: Any  # 1 where some query has a weight, else 0


def search(plan: Plan, head: Head, i: Any, q: Any, keys: Stream, scratch: Scratch, tau_ref: Any, marks: Any) -> None:
    """The thresholds of one block of queries, next to the root, and 1 for each block of keys with a weight."""
    b, start, end = head.b, *plan.key_blocks(i, head.key_length)
    top, tau = _first_pass(plan, head, i, q, keys, scratch)
    empty = ~(top > LOWEST / 2) & (top == top)
    column = filled(plan, (plan.rows,))

    def look(tau):
        """Marks the blocks in which some query has a weight at that threshold: those that were marked, or less."""

        def at(j, _):
            def mark():
                reach = jnp.where(empty, LOWEST, read(plan, scratch.tops.at[j]) - tau)
                scratch.wanted[j] = (jnp.sum(flag(b * reach > -1)) > 0).astype(jnp.int32)

            pl.when(scratch.wanted[j] > 0)(mark)
            return 0

        lax.fori_loop(start, end, at, 0)

    def one_pass(tau, active):
        def add(j, refs, total):
            z = scores(plan, head, product(plan, q, refs[0], transpose=True), i * plan.rows, j * plan.columns, 0)
            return total.plus(weights(b, z - along(tau, z.shape), Sums.of))

        look(tau)
        total = keys.loop(start, end, lambda j: scratch.wanted[j] > 0, add, Sums(column, column))
        total = Sums(*(jnp.where(empty, 1.0, n) for n in total))
        next_tau = jnp.where(active > 0, tau + total.step(b), tau)
        return next_tau, flag(jnp.abs(jnp.log(total.y)) > NEAR)

    tau, active = newton(one_pass, tau, flag(~empty & (top < jnp.inf)), MAX_PASSES)
    look(tau)
    # What did not arrive is no answer.
    tau_ref[...] = jnp.where((top < jnp.inf) & (active == 0), tau, jnp.nan)

    def copy(j, _):
        marks[j] = jnp.where((j >= start) & (j < end), scratch.wanted[j], 0)
        return 0

    loop(plan.keys // plan.columns, copy, 0)


def _first_pass(plan: Plan, head: Head, i: Any, q: Any, keys: Stream, scratch: Scratch) -> tuple[jax.Array, jax.Array]:
    """The largest score of each query, and a threshold that is not above the root."""
    b, start_end = head.b, plan.key_blocks(i, head.key_length)

    def add(j, refs, carry):
        top, tau, total = carry
        z = scores(plan, head, product(plan, q, refs[0], transpose=True), i * plan.rows, j * plan.columns, 0)
        here = jnp.max(z, axis=1)
        scratch.tops[j] = here
        scratch.wanted[j] = jnp.int32(1)
        # No threshold is below the largest score. A query that has seen no key yet has no sums.
        tau = jnp.where(top > LOWEST / 2, tau, here)
        top = jnp.maximum(top, here)
        raised = jnp.where(top > LOWEST / 2, jnp.maximum(tau, top), 0.0)
        total = total.moved(b, raised - tau).plus(weights(b, z - along(raised, z.shape), Sums.of))
        step = jnp.where(total.y > 1, Sums(jnp.maximum(total.y, 1.0), jnp.maximum(total.s, _TINY)).step(b), 0.0)
        return top, raised + step, total.moved(b, step)

    column = filled(plan, (plan.rows,))
    top, tau, _ = keys.loop(*start_end, every, add, (column + LOWEST, column, Sums(column, column)))
    mosaic.commit_smem()
    return top, tau


def average(plan: Plan, head: Head, i: Any, q: Any, both: Stream, tau_ref: Any, marked: Any, *out: Any) -> None:
    """The averages of the values by y and by s, for one block of queries; and the thresholds where y sums to 1."""
    output, centre, polished = out
    tau, column = read(plan, tau_ref), filled(plan, (plan.rows,))

    def add(j, refs, carry):
        total, by_y, by_s = carry
        k, v = refs
        z = scores(plan, head, product(plan, q, k, transpose=True), i * plan.rows, j * plan.columns, 0)
        new, y, s = weights(
            head.b,
            z - along(tau, z.shape),
            lambda y, s: (Sums.of(y, s), y.astype(v.dtype), s.astype(v.dtype)),
        )
        return total.plus(new), *added(plan, (by_y, y, v), (by_s, s, v))

    zeros = filled(plan, output.shape)
    nothing = Sums(column, column), zeros, zeros
    total, *averages = both.loop(*plan.key_blocks(i, head.key_length), marked, add, nothing)
    empty = total.y == 0
    total = Sums(*(jnp.where(empty, 1.0, n) for n in total))
    for ref, mass, values in zip((output, centre), total, averages, strict=True):
        per_query = jnp.where(tau == tau, 1 / mass, jnp.nan)
        ref[...] = values * along(per_query, values.shape)
    # One step more, which was not taken, leaves of the sum no more than its square.
    polished[...] = jnp.where(empty, tau, tau + total.step(head.b))


# --- Backward ----------------------------------------------------------------------------------------------


class Queries(NamedTuple):
    """One block of queries on the way back, and the keys that it goes along."""

    plan: Plan
    head: Head
    i: Any
    q: Any
    do: Any
    both: Stream
    kept: Any
    marked: Any

    def loop(self, add: Callable[..., Any], carry: Any) -> Any:
        """`add(j, k, carry, products, x, dz)` for each block of keys with a weight; x = z - tau."""
        plan, head, q, do = self.plan, self.head, self.q, self.do
        tau, delta = (read(plan, self.kept.at[r]) for r in (TAU, DELTA))

        def body(j, refs, carry):
            k, v = refs
            products = product(plan, q, k, transpose=True)
            x = scores(plan, head, products, self.i * plan.rows, j * plan.columns, 0) - along(tau, products.shape)
            s = weights(head.b, x, lambda _, s: s)
            dz = s * (product(plan, do, v, transpose=True) - along(delta, x.shape))
            return add(j, k, carry, products, x, dz)

        return self.both.loop(*plan.key_blocks(self.i, head.key_length), self.marked, body, carry)


def backward_queries(here: Queries, dq: Any) -> None:
    """dQ of one block of queries."""

    def add(j, k, total, products, x, dz):
        return added(here.plan, (total, dz.astype(k.dtype), k))[0]

    dq[...] = here.loop(add, filled(here.plan, dq.shape)) * here.head.scale


def backward_scalars(here: Queries, *out: Any) -> None:
    """The shares of one block of queries in d alpha and d scale."""
    b = here.head.b

    def add(j, k, bars, products, x, dz):
        change = jnp.where(dz == 0, 0.0, dz * entropy_change(b, log_weights(b, x)))
        alpha_bar, scale_bar = bars
        return alpha_bar - jnp.sum(change, axis=1), scale_bar + jnp.sum(dz * products, axis=1)

    nothing = filled(here.plan, (here.plan.rows,))
    for ref, bar in zip(out, here.loop(add, (nothing, nothing)), strict=True):
        ref[...] = bar


def backward_pair_bias(here: Queries, out: Any) -> None:
    """dZ of one block of queries and all keys."""
    plan = here.plan

    def part(j):
        return out.at[:, stretch(j, plan.columns)]

    def clear(j, _):
        def zeros():
            part(j)[...] = filled(plan, (plan.rows, plan.columns))

        pl.when(~here.marked(j))(zeros)
        return 0

    def add(j, k, carry, products, x, dz):
        part(j)[...] = dz
        return carry

    loop(plan.keys // plan.columns, clear, 0)
    here.loop(add, 0)


class Keys(NamedTuple):
    """One block of keys on the way back, and the queries that it goes along."""

    plan: Plan
    head: Head
    j: Any
    k: Any
    v: Any
    queries: Stream
    marked: Any

    def loop(self, add: Callable[..., Any], carry: Any) -> Any:
        """`add(q, do, carry, y, dz)` for each block of queries with a weight; dz is called for its numbers."""
        plan, head, k, v = self.plan, self.head, self.k, self.v

        def body(i, refs, carry):
            q, do, kept = refs
            z = scores(plan, head, product(plan, k, q, transpose=True), i * plan.rows, self.j * plan.columns, 1)
            tau, delta = (along(read(plan, kept.at[r], 1), z.shape, 1) for r in (TAU, DELTA))
            y, s = weights(head.b, z - tau, lambda y, s: (y.astype(do.dtype), s))
            return add(q, do, carry, y, lambda: s * (product(plan, v, do, transpose=True) - delta))

        return self.queries.loop(*plan.query_blocks(self.j), self.marked, body, carry)


def backward_keys(here: Keys, dk: Any, dv: Any) -> None:
    """dK and dV of one block of keys."""
    plan = here.plan

    def add(q, do, totals, y, dz):
        [dv] = added(plan, (totals[1], y, do))  # by itself: y leaves its registers
        return added(plan, (totals[0], dz().astype(q.dtype), q))[0], dv

    totals = here.loop(add, tuple(filled(plan, ref.shape) for ref in (dk, dv)))
    dk[...] = totals[0] * here.head.scale
    dv[...] = totals[1]


def backward_key_bias(here: Keys, out: Any) -> None:
    """The sum of dZ over the queries, for one block of keys."""
    out[...] = here.loop(lambda q, do, total, y, dz: total + jnp.sum(dz(), axis=1), filled(here.plan, out.shape))
