"""Flash attention for sparse mappings on GPUs: alpha-entmax, 1 <= alpha <= 2, and its derivatives; no scores stored.

    output = sum_s y_ts v_s,      y_t = argmax over the simplex of  <z_t, y> - sum (y^alpha - y) / (alpha (alpha - 1))

for the scores z_ts = scale q_t k_s, recomputed block by block as often as they are needed. With b = alpha - 1 and a
threshold tau_t a query,

    y = u^(1/b),     u = max(1 + b (z - tau), 0),     sum y = 1;        b = 0:  y = exp(z - tau).

**Forward.** Newton's method for the norm (sum y)^b, which is convex in tau and nearly linear, starts below the root and
never leaves that side. Its first steps are taken while the keys are read for the first time: a norm lies above its
tangent, so what the tangent makes of the keys that were read and the sums of the block at hand bound the whole from
below, and a step for the bound stays below the root too. It takes one to three passes more. A block of keys whose
largest score is too low for every query of a block has no weight, then and for good: it is not read again. The last
pass averages values twice, by y and by s = y^(2 - alpha).

**Backward.** With dP_ts = <dO_t, v_s>, and the average of the values by s, which gives delta without a pass of its own,

    dZ = s (dP - delta),   delta = sum s dP / sum s,      dQ = scale dZ K,   dK = scale dZ^T Q,   dV = Y^T dO,
    d alpha = - sum dZ (L e^L - e^L + 1) / b^2,           L = b log y,

on the blocks with a weight alone: one kernel goes along the keys, one along the queries, and one, which a program that
asks for neither leaves out, gives d alpha and d scale.

**Layout.** 64 queries are a block, which 128 threads take on; products are those of Hopper's matrix unit, and what
belongs to a query is a column. While a block is computed, the next one is fetched; a multiprocessor has three or four
such groups of threads at a time, and does arithmetic for one while another waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ._flash import entropy_change
from ._flash_blocks import LOWEST
from ._gpu import mosaic
from ._gpu_flash_blocks import Head, Plan, Stream, added, along, every, filled, product, read, scores
from ._tiles import flag, loop, loop_over

# Newton's passes over the keys; one to four are the rule.
MAX_PASSES = 32
# Logarithms of what the weights sum to: next to 0, so that what a step leaves, of second order, will do; and what will
# do, since it is divided by, beside the rounding of weights to bfloat16.
NEAR, SOLVED = 0.05, 4e-3
# b = alpha - 1 below which entmax is softmax, up to a share of b, and the logarithm of its weights is taken as that.
_SMALL_B = 1e-4
_TINY = 1e-30
# Rows of the array that tells a backward pass of a query: its threshold, and delta.
TAU, DELTA = 0, 1
STATISTICS = 2


# --- Weights -----------------------------------------------------------------------------------------------


def weights(b: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y and s = y^(1 - b), from x = z - tau. Without a power where alpha is 1.5 or 2."""

    def of_two():
        u = 1 + x
        return jnp.maximum(u, 0.0), flag(u > 0)

    def of_one_and_a_half():
        u = jnp.maximum(1 + 0.5 * x, 0.0)
        return u * u, u

    def of_one():
        y = jnp.exp(x)
        return y, y

    def of_others():
        log_y = log_weights(b, x)
        return jnp.exp(log_y), jnp.exp((1 - b) * log_y)

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


class Results(NamedTuple):
    """References to what is kept of a block of queries."""

    output: Any  # the values' averages by y, and by s
    centre: Any
    tau: Any
    marks: Any  # 1 for each block of keys with a weight


class _Search(NamedTuple):
    """The state of the loops over the keys; columns but for the passes, the sum of `active`, and the averages."""

    passes: Any
    tau: jax.Array
    active: jax.Array  # 1 where the threshold still moves, else 0: a query must not depend on the others of its block
    going: Any
    averages: Any

    def moved(self, b: Any, total: Sums, empty: jax.Array) -> tuple[_Search, jax.Array]:
        """A step for the active queries, from their sums; and how far the logarithms of these are from 0."""
        total = Sums(jnp.where(empty, 1.0, total.y), jnp.where(empty, 1.0, total.s))
        tau = jnp.where(self.active > 0, self.tau + total.step(b), self.tau)
        return self._replace(passes=self.passes + 1, tau=tau), jnp.abs(jnp.log(total.y))

    def on(self, active: jax.Array) -> _Search:
        return self._replace(active=active, going=jnp.sum(active))


class Scratch(NamedTuple):
    """Shared memory for a block of queries: something for each block of keys."""

    tops: Any  # the largest score of each query
    wanted: Any  # 1 where some query has a weight, else 0


def forward(plan: Plan, head: Head, i: Any, q: Any, keys: Stream, both: Stream, scratch: Scratch, out: Results) -> None:
    """One block of queries against all keys."""
    b, rows, columns = head.b, plan.rows, plan.columns
    start, end = plan.key_blocks(i, head.key_length)
    column, wanted = filled(plan, (rows,)), scratch.wanted
    nothing = Sums(column, column)

    def weights_of(j, k, tau):
        z = scores(plan, head, product(plan, q, k, transpose=True), i * rows, j * columns, 0)
        return weights(b, z - along(tau, z.shape))

    top, tau = _first_pass(plan, head, i, q, keys, scratch)
    empty = ~(top > LOWEST / 2) & (top == top)

    def look(tau):
        """Marks the blocks in which some query has a weight at that threshold: those that were marked, or less."""

        def at(j, _):
            def mark():
                reach = jnp.where(empty, LOWEST, read(plan, scratch.tops.at[j]) - tau)
                wanted[j] = (jnp.sum(flag(b * reach > -1)) > 0).astype(jnp.int32)

            pl.when(wanted[j] > 0)(mark)
            return 0

        loop_over(start, end, at, 0)

    def marked(j):
        return wanted[j] > 0

    def one_pass(state):
        def add(j, refs, carry):
            y, s = weights_of(j, refs[0], state.tau)
            return Sums(carry.y + jnp.sum(y, axis=1), carry.s + jnp.sum(s, axis=1))

        look(state.tau)
        state, error = state.moved(b, keys.loop(start, end, marked, add, nothing), empty)
        return state.on(state.active * flag(error > NEAR))

    def average(state):
        near = lax.while_loop(lambda s: (s.going > 0) & (s.passes < MAX_PASSES), one_pass, state._replace(averages=()))

        def add(j, refs, carry):
            total, by_y, by_s = carry
            k, v = refs
            y, s = weights_of(j, k, near.tau)
            total = Sums(total.y + jnp.sum(y, axis=1), total.s + jnp.sum(s, axis=1))
            return total, added(plan, by_y, y.astype(v.dtype), v), added(plan, by_s, s.astype(v.dtype), v)

        look(near.tau)
        averages = both.loop(start, end, marked, add, (nothing, zeros, zeros))
        error = jnp.abs(jnp.log(jnp.where(empty, 1.0, averages[0].y)))
        # A query that is not near has had its passes; one that a step brought less near than it should goes on.
        again = near.on(jnp.maximum(near.active, moving * flag(error > SOLVED)))
        return again.moved(b, averages[0], empty)[0]._replace(averages=(*averages, near.tau))

    zeros, moving = filled(plan, (rows, out.output.shape[1])), flag(~empty & (top < jnp.inf))
    state = _Search(jnp.int32(0), tau, moving, jnp.float32(1), (nothing, zeros, zeros, tau))
    last = lax.while_loop(lambda s: (s.going > 0) & (s.passes < MAX_PASSES), average, state)
    total, by_y, by_s, tau = last.averages

    def copy(j, _):
        out.marks[j] = jnp.where((j >= start) & (j < end), wanted[j], 0)
        return 0

    loop(plan.keys // columns, copy, 0)
    # What did not arrive is no answer.
    sound = (top < jnp.inf) & (last.active == 0)
    for ref, mass, values in ((out.output, total.y, by_y), (out.centre, total.s, by_s)):
        per_query = jnp.where(sound, 1 / jnp.where(empty, 1.0, mass), jnp.nan)
        ref[...] = (values * along(per_query, values.shape)).astype(ref.dtype)
    # Where the weights sum to 1: the last step, which was not taken, leaves no more than its square.
    out.tau[...] = jnp.where(sound, jnp.where(empty, tau, tau + total.step(b)), jnp.nan)


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
        y, s = (jnp.sum(a, axis=1) for a in weights(b, z - along(raised, z.shape)))
        total = total.moved(b, raised - tau)
        total = Sums(total.y + y, total.s + s)
        step = jnp.where(total.y > 1, Sums(jnp.maximum(total.y, 1.0), jnp.maximum(total.s, _TINY)).step(b), 0.0)
        return top, raised + step, total.moved(b, step)

    column = filled(plan, (plan.rows,))
    top, tau, _ = keys.loop(*start_end, every, add, (column + LOWEST, column, Sums(column, column)))
    mosaic.commit_smem()
    return top, tau


# --- Backward ----------------------------------------------------------------------------------------------


def backward_queries(plan: Plan, head: Head, i: Any, q: Any, do: Any, both: Stream, kept: Any, marked: Any, dq: Any):
    """dQ of one block of queries."""
    tau, delta = (read(plan, kept.at[r]) for r in (TAU, DELTA))

    def add(j, refs, total):
        k, v = refs
        z = scores(plan, head, product(plan, q, k, transpose=True), i * plan.rows, j * plan.columns, 0)
        s = weights(head.b, z - along(tau, z.shape))[1]
        dz = s * (product(plan, do, v, transpose=True) - along(delta, z.shape))
        return added(plan, total, dz.astype(k.dtype), k)

    total = both.loop(*plan.key_blocks(i, head.key_length), marked, add, filled(plan, dq.shape))
    dq[...] = (total * head.scale).astype(dq.dtype)


def backward_scalars(plan: Plan, head: Head, i: Any, q: Any, do: Any, both: Stream, kept: Any, marked: Any, *out: Any):
    """The shares of one block of queries in d alpha and d scale."""
    tau, delta = (read(plan, kept.at[r]) for r in (TAU, DELTA))

    def add(j, refs, bars):
        k, v = refs
        products = product(plan, q, k, transpose=True)
        x = scores(plan, head, products, i * plan.rows, j * plan.columns, 0) - along(tau, products.shape)
        s = weights(head.b, x)[1]
        dz = s * (product(plan, do, v, transpose=True) - along(delta, x.shape))
        change = jnp.where(s > 0, dz * entropy_change(head.b, log_weights(head.b, x)), 0.0)
        alpha_bar, scale_bar = bars
        return alpha_bar - jnp.sum(change, axis=1), scale_bar + jnp.sum(dz * products, axis=1)

    nothing = filled(plan, (plan.rows,))
    bars = both.loop(*plan.key_blocks(i, head.key_length), marked, add, (nothing, nothing))
    for ref, bar in zip(out, bars, strict=True):
        ref[...] = bar


def backward_keys(plan: Plan, head: Head, j: Any, k: Any, v: Any, queries: Stream, marked: Any, dk: Any, dv: Any):
    """dK and dV of one block of keys."""

    def add(i, refs, totals):
        q, do, kept = refs
        z = scores(plan, head, product(plan, k, q, transpose=True), i * plan.rows, j * plan.columns, 1)
        tau, delta = (along(read(plan, kept.at[r], 1), z.shape, 1) for r in (TAU, DELTA))
        y, s = weights(head.b, z - tau)
        dv = added(plan, totals[1], y.astype(do.dtype), do)
        dz = s * (product(plan, v, do, transpose=True) - delta)
        return added(plan, totals[0], dz.astype(q.dtype), q), dv

    nothing = tuple(filled(plan, ref.shape) for ref in (dk, dv))
    totals = queries.loop(*plan.query_blocks(j), marked, add, nothing)
    dk[...] = totals[0] * head.scale
    dv[...] = totals[1]
