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

from ._flash import entropy_change
from ._flash_blocks import LOWEST
from ._gpu import mosaic
from ._gpu_flash_blocks import Head, Plan, Stream, added, along, every, filled, product, read, scores
from ._gpu_threshold import _log1p
from ._tiles import flag, loop

# Newton's passes over the keys; one to three are the rule. A step of the threshold after which the next one, of second
# order, is rounding beside that of the weights to bfloat16; the last pass divides by what the weights sum to.
MAX_PASSES, SMALL_STEP = 32, 1e-3
# b = alpha - 1 below which entmax is softmax, up to a share of b, and the logarithm of its weights is taken as that.
_SMALL_B = 1e-4
_TINY = 1e-30
# Rows of the array that holds what is kept of a query, and what a backward pass is told of it: its threshold, what
# makes weights y and s of those at the threshold, since y sums to 1 up to rounding only, and delta.
TAU, OF_Y, OF_S, DELTA = 0, 1, 2, 3
STATISTICS = 4


# --- Weights -----------------------------------------------------------------------------------------------


def weights(b: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y and s = y^(1 - b), from x = z - tau. Without a power where alpha is 1.5 or 2."""

    def of_two():
        u = 1 + x
        return jnp.maximum(u, 0.0), flag(u > 0)

    def of_one_and_a_half():
        u = jnp.maximum(1 + 0.5 * x, 0.0)
        return u * u, u

    def of_others():
        log_y = log_weights(b, x)
        return jnp.exp(log_y), jnp.exp((1 - b) * log_y)

    return lax.cond(b == 1, of_two, lambda: lax.cond(b == 0.5, of_one_and_a_half, of_others))


def log_weights(b: Any, x: jax.Array) -> jax.Array:
    """log y, LOWEST off the support."""

    def of_b():
        w = b * x
        on = w > -1
        return jnp.where(on, _log1p(jnp.where(on, w, 0.0)) / b, LOWEST)

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
    mass: Any  # what the weights sum to
    marks: Any  # 1 for each block of keys with a weight


class _Newton(NamedTuple):
    """The state of the loop; columns but for the passes and the sum of `active`."""

    passes: Any
    tau: jax.Array
    active: jax.Array  # 1 where it still moves, else 0
    going: Any


def forward(plan: Plan, head: Head, i: Any, q: Any, keys: Stream, both: Stream, tops: Any, out: Any) -> None:
    """One block of queries against all keys. `tops` is scratch: the largest score of each query in each block."""
    b, rows, columns = head.b, plan.rows, plan.columns
    start, end = plan.key_blocks(i, head.key_length)

    def unmarked(j, _):
        out.marks[j] = jnp.int32(0)
        return 0

    loop(plan.keys // columns, unmarked, 0)

    def block_scores(j, k):
        return scores(plan, head, product(plan, q, k, transpose=True), i * rows, j * columns, 0)

    def sums(z, tau):
        y, s = weights(b, z - along(tau, z.shape))
        return Sums(jnp.sum(y, axis=1), jnp.sum(s, axis=1))

    def first_steps(j, refs, carry):
        top, tau, total = carry
        z = block_scores(j, refs[0])
        here = jnp.max(z, axis=1)
        tops[j - start] = here
        # No threshold is below the largest score. A query that has seen no key yet has no sums.
        tau = jnp.where(top > LOWEST / 2, tau, here)
        top = jnp.maximum(top, here)
        raised = jnp.where(top > LOWEST / 2, jnp.maximum(tau, top), 0.0)
        total = Sums(*(old + new for old, new in zip(total.moved(b, raised - tau), sums(z, raised), strict=True)))
        step = jnp.where(total.y > 1, Sums(jnp.maximum(total.y, 1.0), jnp.maximum(total.s, _TINY)).step(b), 0.0)
        return top, raised + step, total.moved(b, step)

    column = filled(plan, (rows,))
    nothing = Sums(column, column)
    top, tau, _ = keys.loop(start, end, every, first_steps, (column + LOWEST, column, nothing))
    empty = ~(top > LOWEST / 2) & (top == top)
    mosaic.commit_smem()

    def above(tau):
        """Whether any query has a weight in a block, at that threshold."""
        return lambda j: jnp.sum(flag((b * (read(plan, tops.at[j - start]) - tau) > -1) & ~empty)) > 0

    def one_pass(state):
        def add(j, refs, carry):
            new = sums(block_scores(j, refs[0]), state.tau)
            return Sums(carry.y + new.y, carry.s + new.s)

        total = keys.loop(start, end, above(state.tau), add, nothing)
        step = Sums(jnp.where(empty, 1.0, total.y), jnp.where(empty, 1.0, total.s)).step(b)
        tau = jnp.where(state.active > 0, state.tau + step, state.tau)
        active = state.active * flag(jnp.abs(step) > SMALL_STEP)
        return _Newton(state.passes + 1, tau, active, jnp.sum(active))

    moving = flag(~empty & (top < jnp.inf))
    state = _Newton(jnp.int32(0), tau, moving, jnp.sum(moving))
    last = lax.while_loop(lambda s: (s.going > 0) & (s.passes < MAX_PASSES), one_pass, state)
    tau = last.tau

    def average(j, refs, carry):
        total, by_y, by_s = carry
        k, v = refs
        z = block_scores(j, k)
        y, s = weights(b, z - along(tau, z.shape))
        out.marks[j] = jnp.int32(1)
        total = Sums(total.y + jnp.sum(y, axis=1), total.s + jnp.sum(s, axis=1))
        return total, added(plan, by_y, y.astype(v.dtype), v), added(plan, by_s, s.astype(v.dtype), v)

    zeros = filled(plan, (rows, out.output.shape[1]))
    total, by_y, by_s = both.loop(start, end, above(tau), average, (nothing, zeros, zeros))
    # What did not arrive is no answer.
    sound = (top < jnp.inf) & (last.active == 0)
    for ref, mass, values in ((out.output, total.y, by_y), (out.centre, total.s, by_s)):
        per_query = jnp.where(sound, 1 / jnp.where(empty, 1.0, mass), jnp.nan)
        ref[...] = (values * along(per_query, values.shape)).astype(ref.dtype)
    out.tau[...] = tau
    out.mass[...] = jnp.where(sound, jnp.where(empty, 1.0, total.y), jnp.nan)


# --- Backward ----------------------------------------------------------------------------------------------


def backward_queries(plan: Plan, head: Head, i: Any, q: Any, do: Any, both: Stream, kept: Any, marked: Any, dq: Any):
    """dQ of one block of queries."""
    tau, of_s, delta = (read(plan, kept.at[r]) for r in (TAU, OF_S, DELTA))

    def add(j, refs, total):
        k, v = refs
        z = scores(plan, head, product(plan, q, k, transpose=True), i * plan.rows, j * plan.columns, 0)
        s = weights(head.b, z - along(tau, z.shape))[1]
        dz = s * (product(plan, do, v, transpose=True) - along(delta, z.shape))
        return added(plan, total, dz.astype(k.dtype), k)

    total = both.loop(*plan.key_blocks(i, head.key_length), marked, add, filled(plan, dq.shape))
    dq[...] = (total * along(of_s * head.scale, total.shape)).astype(dq.dtype)


def backward_scalars(plan: Plan, head: Head, i: Any, q: Any, do: Any, both: Stream, kept: Any, marked: Any, *out: Any):
    """The shares of one block of queries in d alpha and d scale."""
    tau, of_y, of_s, delta = (read(plan, kept.at[r]) for r in (TAU, OF_Y, OF_S, DELTA))
    log_sum = jnp.log(of_y)

    def add(j, refs, bars):
        k, v = refs
        products = product(plan, q, k, transpose=True)
        x = scores(plan, head, products, i * plan.rows, j * plan.columns, 0) - along(tau, products.shape)
        s = weights(head.b, x)[1]
        dz = s * (product(plan, do, v, transpose=True) - along(delta, x.shape))
        log_y = log_weights(head.b, x) + along(log_sum, x.shape)
        change = jnp.where(s > 0, dz * entropy_change(head.b, log_y), 0.0)
        alpha_bar, scale_bar = bars
        return alpha_bar - jnp.sum(change, axis=1), scale_bar + jnp.sum(dz * products, axis=1)

    nothing = filled(plan, (plan.rows,))
    bars = both.loop(*plan.key_blocks(i, head.key_length), marked, add, (nothing, nothing))
    for ref, bar in zip(out, bars, strict=True):
        ref[...] = of_s * bar


def backward_keys(plan: Plan, head: Head, j: Any, k: Any, v: Any, queries: Stream, marked: Any, dk: Any, dv: Any):
    """dK and dV of one block of keys."""

    def add(i, refs, totals):
        q, do, kept = refs
        z = scores(plan, head, product(plan, k, q, transpose=True), i * plan.rows, j * plan.columns, 1)
        tau, of_y, of_s, delta = (along(read(plan, kept.at[r], 1), z.shape, 1) for r in (TAU, OF_Y, OF_S, DELTA))
        y, s = weights(head.b, z - tau)
        dv = added(plan, totals[1], (of_y * y).astype(do.dtype), do)
        dz = of_s * s * (product(plan, v, do, transpose=True) - delta)
        return added(plan, totals[0], dz.astype(q.dtype), q), dv

    nothing = tuple(filled(plan, ref.shape) for ref in (dk, dv))
    totals = queries.loop(*plan.query_blocks(j), marked, add, nothing)
    dk[...] = totals[0] * head.scale
    dv[...] = totals[1]
