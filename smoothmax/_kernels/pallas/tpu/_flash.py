"""Flash attention for sparse mappings on TPUs: alpha-entmax, 1 < alpha <= 2, and its derivatives; no scores are stored.

    output = sum_s y_ts v_s,      y_t = argmax over the simplex of  <z_t, y> - sum (y^alpha - y) / (alpha (alpha - 1))

for the scores z_ts = scale q_t k_s + bias_ts, recomputed block by block as often as they are needed.

**Forward.** With b = alpha - 1, y = m v^(1/b) for v = max(1 + b (z - top) / m^b, 0), or, where b > 0.4, u^(1/b) for
u = max(b (z - top) + e, 0), e = m^b in two parts, as in `shared/_equations.py`, which explains Newton's method too. It
starts from the lowest threshold, top - 1/b, and only ever raises it. So a block of keys whose largest score is below
the threshold of every query has no weight, then and for good: its keys are not read again. What is kept for the
backward pass is top, the threshold and the logarithm of what the weights sum to, four numbers a query, and a mark for
each block of queries and keys: whether there is a weight in it.

**Backward.** With s = y^(2 - alpha) on the support, and dP_ts = <dO_t, v_s>,

    dZ = s (dP - delta),   delta = sum s dP / sum s,      dQ = scale dZ K,   dK = scale dZ^T Q,   dV = Y^T dO,
    d alpha = - sum dZ (L e^L - e^L + 1) / b^2,           L = b log y,

on the blocks with a weight alone. One kernel goes along the keys, for delta, dQ and d alpha, one along the queries.

**Layout.** Keys are rows and queries are columns of a block, so that what belongs to a query is a row of 128 numbers.
The keys and values of a head lie in the chip's vector memory as a whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import greatest
from ..shared._flash import Head, entropy_change, newton
from ..shared._machines import LARGEST_LOG, LEAST, LOWEST, MAX_PASSES, SMALL_STEP, expm1, low_power, solved, two_parts
from ..shared._slices import flag
from ._flash_blocks import Plan, block_scores, has_weight, stretch

# Rows of the array that holds what is kept of a query: its largest score, its threshold, and log of the sum of the
# weights. The backward pass has delta and the shares of d alpha and d scale in an array of that form. Eight rows fill a
# tile.
TOP, LEVEL, REST, LOG_SUM = 0, 1, 2, 3
DELTA, ALPHA_BAR, SCALE_BAR = 0, 1, 2
STATISTICS = 8


class Threshold(NamedTuple):
    """The threshold of each query of a block, below its largest score; rows.

    Attributes:
      level: log m; where b > 0.4, e.
      rest: what rounding e left over, or 0.
    """

    level: jax.Array
    rest: jax.Array


def weights(head: Head, z: jax.Array, top: jax.Array, at: Threshold) -> jax.Array:
    """log of the weight: LOWEST off the support."""

    def of_u():
        u = _distance(head, z, top, at)
        return jnp.where(u > 0, jnp.log(jnp.maximum(u, LEAST)) / head.b, LOWEST)

    def of_v():
        w = head.b * (z - top) * jnp.exp(jnp.minimum(-head.b * at.level, LARGEST_LOG))
        return jnp.where(w > -1, at.level + jnp.log1p(jnp.where(w > -1, w, 0.0)) / head.b, LOWEST)

    return lax.cond(low_power(head.b), of_u, of_v)


def _distance(head: Head, z: jax.Array, top: jax.Array, at: Threshold) -> jax.Array:
    """How far scores lie above the threshold, where b > 0.4."""
    return (head.b * (z - top) + at.level) + at.rest


def _powers(head: Head, at: Threshold, log_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights, and the weights over v, or over u."""
    on = log_y > LOWEST / 2
    log_v = head.b * (log_y - jnp.where(low_power(head.b), 0.0, at.level))
    return jnp.where(on, jnp.exp(log_y), 0.0), jnp.where(on, jnp.exp(log_y - log_v), 0.0)


# --- Forward -----------------------------------------------------------------------------------------------


def _moved(
    head: Head, at: Threshold, last_step: jax.Array, total: jax.Array, low: jax.Array
) -> tuple[Threshold, jax.Array, jax.Array]:
    """The next threshold, the step to it, and 1 where that is not the last; from the sums of y and of y / v."""
    log_sum = jnp.log(total)
    step = jnp.maximum(expm1(-head.b * log_sum) * total / low, -0.999 * jnp.where(low_power(head.b), at.level, 1.0))

    def of_e():
        last = solved(head.b * jnp.abs(log_sum), step, last_step)
        return Threshold(*two_parts(at.level, at.rest + step)), step, flag(~last)

    def of_log_m():
        change = jnp.log1p(step) / head.b
        return Threshold(at.level + change, at.rest), change, flag(jnp.abs(change) > SMALL_STEP)

    return lax.cond(low_power(head.b), of_e, of_log_m)


def forward(plan: Plan, head: Head, q_ref, k_ref, v_ref, o_ref, kept_ref, blocks_ref, tops_ref, i: Any) -> None:
    """One block of queries against all keys. `tops_ref` is scratch: the largest score of each query in each block."""
    start, end = plan.key_blocks(i, head.key_length)
    q, row = q_ref[...], jnp.zeros((1, plan.rows), jnp.float32)

    def scores(j):
        return block_scores(plan, head, _product(k_ref[stretch(j, plan.columns), :], q, 1, 1), i, j)

    def tops(j, top):
        here = greatest(scores(j), 0)
        tops_ref[j] = here
        return jnp.maximum(top, here)

    top = lax.fori_loop(start, end, tops, row + LOWEST)
    empty = top <= LOWEST / 2

    def above(j, at):
        """Whether any query has a weight in the block, at that threshold."""
        reach = jnp.where(low_power(head.b), at.level, jnp.exp(head.b * at.level))
        u = _distance(head, tops_ref[j], top, Threshold(reach, at.rest))
        return jnp.sum(flag(~((u <= 0) | empty))) > 0  # NaN too

    def sums(at):
        def add(j, carry):
            def some():
                powers = _powers(head, at, weights(head, scores(j), top, at))
                return tuple(c + jnp.sum(u, axis=0, keepdims=True) for c, u in zip(carry, powers, strict=True))

            return lax.cond(above(j, at), some, lambda: carry)

        total, low = lax.fori_loop(start, end, add, (row, row))
        return jnp.where(empty, 1.0, total), jnp.where(empty, 1.0, low)

    def one_pass(state, active):
        old, last_step = state
        new, step, moves = _moved(head, old, last_step, *sums(old))
        return (Threshold(*(jnp.where(active > 0, *pair) for pair in zip(new, old, strict=True))), step), moves

    lowest = Threshold(row + jnp.where(low_power(head.b), 1.0, 0.0), row)
    (at, _), active = newton(one_pass, (lowest, row), flag(~empty), MAX_PASSES)
    log_sum = jnp.where(active > 0, jnp.nan, jnp.log(sums(at)[0]))  # what did not arrive is no answer

    block = lax.broadcasted_iota(jnp.int32, blocks_ref.shape, 1)

    def average(j, carry):
        def some():
            log_y = weights(head, scores(j), top, at)
            y = jnp.where((log_y > LOWEST / 2) & ~empty, jnp.exp(log_y - log_sum), 0.0)
            y = jnp.where(top < jnp.inf, y, jnp.nan)
            output, bits = carry
            v = v_ref[stretch(j, plan.columns), :]
            return output + _product(y.astype(v.dtype), v, 0, 0), jnp.where(block == j, 1, bits)

        return lax.cond(above(j, at), some, lambda: carry)

    nothing = jnp.zeros(o_ref.shape, jnp.float32), jnp.zeros(blocks_ref.shape, jnp.int32)
    output, blocks_ref[...] = lax.fori_loop(start, end, average, nothing)
    o_ref[...] = output.astype(o_ref.dtype)
    kept_ref[...] = _rows(kept_ref.shape, {TOP: top, LEVEL: at.level, REST: at.rest, LOG_SUM: log_sum})


# --- Backward ----------------------------------------------------------------------------------------------


def _solved(head: Head, kept: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of a block, s = y^(2 - alpha), and log y; 0 off the support."""
    top, level, rest, log_sum = (_row(kept, r) for r in (TOP, LEVEL, REST, LOG_SUM))
    log_y = weights(head, z, top, Threshold(level, rest))
    on = (log_y > LOWEST / 2) & (top > LOWEST / 2)
    log_y = log_y - log_sum
    y, s = (jnp.where(on, jnp.exp(power * log_y), 0.0) for power in (1.0, 1 - head.b))
    good = top < jnp.inf
    return jnp.where(good, y, jnp.nan), jnp.where(good, s, jnp.nan), log_y


def backward_queries(plan, head, q_ref, k_ref, v_ref, do_ref, kept_ref, blocks_ref, dq_ref, rows_ref, dz_ref, i):
    """dQ, delta and d alpha of one block of queries; dZ too where there is a bias for each query."""
    start, end = plan.key_blocks(i, head.key_length)
    q, do, kept, bits = q_ref[...], do_ref[...], kept_ref[...], blocks_ref[...]
    row = jnp.zeros((1, plan.rows), jnp.float32)

    def block(j):
        k, v = k_ref[stretch(j, plan.columns), :], v_ref[stretch(j, plan.columns), :]
        products = _product(k, q, 1, 1)
        _, s, log_y = _solved(head, kept, block_scores(plan, head, products, i, j))
        return k, products, s, log_y, _product(v, do, 1, 1)

    def deltas(j, carry):
        def some():
            _, _, s, _, dp = block(j)
            return tuple(c + jnp.sum(u, axis=0, keepdims=True) for c, u in zip(carry, (s * dp, s), strict=True))

        return lax.cond(has_weight(bits, j), some, lambda: carry)

    moment, mass = lax.fori_loop(start, end, deltas, (row, row))
    delta = moment / jnp.where(mass == 0, 1.0, mass)
    if dz_ref is not None:
        dz_ref[...] = jnp.zeros(dz_ref.shape, dz_ref.dtype)

    def gradients(j, carry):
        def some():
            k, products, s, log_y, dp = block(j)
            dz = s * (dp - delta)
            if dz_ref is not None:
                dz_ref[stretch(j, plan.columns), :] = dz.astype(dz_ref.dtype)
            dq, *rows = carry
            changes = -jnp.where(s > 0, dz * entropy_change(head.b, log_y), 0.0), dz * products
            rows = (row + jnp.sum(change, axis=0, keepdims=True) for row, change in zip(rows, changes, strict=True))
            return dq + _product(dz.astype(k.dtype), k, 0, 0), *rows

        return lax.cond(has_weight(bits, j), some, lambda: carry)

    nothing = jnp.zeros(dq_ref.shape, jnp.float32), row, row
    dq, alpha_bar, scale_bar = lax.fori_loop(start, end, gradients, nothing)
    dq_ref[...] = (dq * head.scale).astype(dq_ref.dtype)
    rows_ref[...] = _rows(rows_ref.shape, {DELTA: delta, ALPHA_BAR: alpha_bar, SCALE_BAR: scale_bar})


def backward_keys(plan, head, q_ref, k_ref, v_ref, do_ref, kept_ref, rows_ref, blocks_ref, dk_ref, dv_ref, dz_ref, j):
    """dK and dV of one block of keys; the sum of dZ over the queries too where there is a bias for each key."""
    k, v = k_ref[...], v_ref[...]

    def add(i, carry):
        def some():
            here = stretch(i, plan.rows)
            q, do = q_ref[here, :], do_ref[here, :]
            y, s, _ = _solved(head, kept_ref[:, here], block_scores(plan, head, _product(k, q, 1, 1), i, j))
            dz = s * (_product(v, do, 1, 1) - _row(rows_ref[:, here], DELTA))
            dk, dv, dz_sum = carry
            return (
                dk + _product(dz.astype(q.dtype), q, 1, 0),
                dv + _product(y.astype(do.dtype), do, 1, 0),
                dz_sum + jnp.sum(dz, axis=1, keepdims=True),
            )

        return lax.cond(has_weight(blocks_ref[i], j), some, lambda: carry)

    start, end = plan.query_blocks(j)
    nothing = (
        *(jnp.zeros(ref.shape, jnp.float32) for ref in (dk_ref, dv_ref)),
        jnp.zeros((plan.columns, 1), jnp.float32),
    )
    dk, dv, dz_sum = lax.fori_loop(start, end, add, nothing)
    dk_ref[...] = (dk * head.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
    if dz_ref is not None:
        dz_ref[...] = dz_sum


# --- Pieces ------------------------------------------------------------------------------------------------


def _product(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=jnp.float32)


def _row(array: jax.Array, r: int) -> jax.Array:
    return array[r : r + 1, :]


def _rows(shape: tuple[int, ...], rows: dict[int, jax.Array]) -> jax.Array:
    """An array whose rows are the given ones, and zeros."""
    index = lax.broadcasted_iota(jnp.int32, shape, 0)
    array = jnp.zeros(shape, jnp.float32)
    for r, row in rows.items():
        array = jnp.where(index == r, row, array)
    return array
