"""Flash attention for sparse mappings on TPUs: alpha-entmax, 1 < alpha <= 2, and its derivatives; no scores are stored.

    output = sum_s y_ts v_s,      y_t = argmax over the simplex of  <z_t, y> - sum (y^alpha - y) / (alpha (alpha - 1))

for the scores z_ts = scale q_t k_s + bias_ts, recomputed block by block as often as they are needed.

**Forward.** With b = alpha - 1, y = m v^(1/b) for v = max(1 + b (z - top) / m^b, 0), as in `_threshold.py`, where
Newton's method for log m is explained too. It starts from the lowest threshold, top - 1/b, and only ever raises it. So
a block of keys whose largest score is below the threshold of every query has no weight, then and for good: its keys
are not read again. What is kept for the backward pass is top, log m and the logarithm of what the weights sum to, three
numbers a query, and a mark for each block of queries and keys: whether there is a weight in it.

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
from jax.experimental import pallas as pl

from ..._arrays import greatest
from ._tiles import flag, loop_over

# In place of -inf: outside of every support, and safe to compute with.
LOWEST = -1e30
# As in `_threshold.py`.
MAX_PASSES, SMALL_STEP, LARGEST_LOG = 64, 1e-4, 60.0
# |b log y| below which d alpha is computed by its series, since the closed form cancels.
SMALL_LOG = 0.05
# Rows of the array that holds what is kept of a query: its largest score, log m, and log of the sum of the weights. The
# backward pass has delta and the shares of d alpha and d scale in an array of that form. Eight rows fill a tile.
TOP, LOG_M, LOG_SUM = 0, 1, 2
DELTA, ALPHA_BAR, SCALE_BAR = 0, 1, 2
STATISTICS = 8


class Plan(NamedTuple):
    """What is static about a call.

    Attributes:
      queries, keys: how many there are, padding to whole blocks included.
      rows, columns: how many queries and keys a block has.
      buffers: how many blocks of whole length lie in memory at a time, 1 or 2.
      is_causal, window: the rules of visibility.
      has_bias, has_mask: whether there are such arrays.
    """

    queries: int
    keys: int
    rows: int
    columns: int
    buffers: int
    is_causal: bool
    window: tuple[int, int] | None
    has_bias: bool
    has_mask: bool

    def key_blocks(self, i: Any, length: Any) -> tuple[Any, Any]:
        """The first of the key blocks that query block i may see, and the first after them."""
        first, last = i * self.rows, (i + 1) * self.rows - 1
        start, end = jnp.int32(0), _blocks(length, self.columns)
        if self.is_causal:
            end = jnp.minimum(end, last // self.columns + 1)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - left, 0) // self.columns)
            end = jnp.minimum(end, jnp.maximum(last + right, -1) // self.columns + 1)
        return start, jnp.maximum(start, end)

    def query_blocks(self, j: Any) -> tuple[Any, Any]:
        """The first of the query blocks that may see key block j, and the first after them."""
        first, last = j * self.columns, (j + 1) * self.columns - 1
        start, end = jnp.int32(0), jnp.int32(self.queries // self.rows)
        if self.is_causal:
            start = jnp.maximum(start, first // self.rows)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - right, 0) // self.rows)
            end = jnp.minimum(end, jnp.maximum(last + left, -1) // self.rows + 1)
        return jnp.minimum(start, end), end


class Head(NamedTuple):
    """What a kernel reads beside queries, keys and values: scalars, and references to optional arrays."""

    b: Any  # alpha - 1
    scale: Any
    query_length: Any
    key_length: Any
    bias: Any  # None, or a reference to keys x queries, or keys x 1
    mask: Any  # None, or a reference to keys x queries, keys x 1, 1 x queries or 1 x 1


def block_scores(plan: Plan, head: Head, products: jax.Array, i: Any, j: Any) -> jax.Array:
    """Scores of one block, keys x queries in float32, from the products; LOWEST where a query may not see the key."""
    z = products * head.scale
    t = i * plan.rows + lax.broadcasted_iota(jnp.int32, z.shape, 1)
    s = j * plan.columns + lax.broadcasted_iota(jnp.int32, z.shape, 0)
    seen = (s < head.key_length) & (t < head.query_length)
    if plan.is_causal:
        seen &= s <= t
    if plan.window is not None:
        seen &= (s >= t - plan.window[0]) & (s <= t + plan.window[1])
    if head.mask is not None:
        seen &= _part(head.mask, plan, i, j).astype(jnp.int32) != 0
    if head.bias is not None:
        z += _part(head.bias, plan, i, j).astype(jnp.float32)
    return jnp.where(seen, z, LOWEST)


def _part(ref: Any, plan: Plan, i: Any, j: Any) -> jax.Array:
    """The block of an array that holds all keys, all queries, one block of either, or one number for all."""
    height, width = ref.shape
    rows = pl.ds(pl.multiple_of(j * plan.columns, plan.columns), plan.columns) if height > plan.columns else slice(None)
    columns = pl.ds(pl.multiple_of(i * plan.rows, plan.rows), plan.rows) if width > plan.rows else slice(None)
    return ref[rows, columns]


def weights(head: Head, z: jax.Array, top: jax.Array, log_m: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the support is, log1p(v - 1), and log of the weight."""
    w = head.b * (z - top) * jnp.exp(jnp.minimum(-head.b * log_m, LARGEST_LOG))
    on = w > -1
    log_v = jnp.log1p(jnp.where(on, w, 0.0))
    return on, log_v, log_m + log_v / head.b


# --- Forward -----------------------------------------------------------------------------------------------


class _Newton(NamedTuple):
    """The state of the loop; rows of one number a query."""

    passes: Any  # a scalar
    log_m: jax.Array
    active: jax.Array  # 1 where it still moves, else 0
    going: Any  # the sum of `active`, a scalar


def forward(plan: Plan, head: Head, q_ref, k_ref, v_ref, o_ref, kept_ref, blocks_ref, tops_ref, i: Any) -> None:
    """One block of queries against all keys. `tops_ref` is scratch: the largest score of each query in each block."""
    start, end = plan.key_blocks(i, head.key_length)
    q, row = q_ref[...], jnp.zeros((1, plan.rows), jnp.float32)

    def keys(j):
        return pl.ds(pl.multiple_of(j * plan.columns, plan.columns), plan.columns)

    def scores(j):
        return block_scores(plan, head, _product(k_ref[keys(j), :], q, 1, 1), i, j)

    def tops(j, top):
        here = greatest(scores(j), 0)
        tops_ref[j] = here
        return jnp.maximum(top, here)

    top = loop_over(start, end, tops, row + LOWEST)
    empty = top <= LOWEST / 2

    def above(j, log_m):
        """Whether any query has a weight in the block, at the thresholds that belong to m."""
        below = head.b * (tops_ref[j] - top) <= -jnp.exp(head.b * log_m)
        return jnp.sum(flag(~(below | empty))) > 0

    def sums(log_m):
        def add(j, carry):
            def some():
                on, log_v, log_y = weights(head, scores(j), top, log_m)
                y, low = jnp.where(on, jnp.exp(log_y), 0.0), jnp.where(on, jnp.exp(log_y - log_v), 0.0)
                return tuple(c + jnp.sum(u, axis=0, keepdims=True) for c, u in zip(carry, (y, low), strict=True))

            return lax.cond(above(j, log_m), some, lambda: carry)

        total, low = loop_over(start, end, add, (row, row))
        return jnp.where(empty, 1.0, total), jnp.where(empty, 1.0, low)

    def one_pass(state):
        total, low = sums(state.log_m)
        change = expm1(-head.b * jnp.log(total)) * total / low
        change = jnp.log1p(jnp.maximum(change, -0.999)) / head.b
        log_m = jnp.where(state.active > 0, state.log_m + change, state.log_m)
        active = jnp.where(jnp.abs(change) > SMALL_STEP, state.active, 0.0)
        return _Newton(state.passes + 1, log_m, active, jnp.sum(active))

    state = _Newton(jnp.int32(0), row, flag(~empty), jnp.sum(flag(~empty)))
    log_m = lax.while_loop(lambda s: (s.going > 0) & (s.passes < MAX_PASSES), one_pass, state).log_m
    log_sum = jnp.log(sums(log_m)[0])

    block = lax.broadcasted_iota(jnp.int32, blocks_ref.shape, 1)

    def average(j, carry):
        def some():
            on, _, log_y = weights(head, scores(j), top, log_m)
            y = jnp.where(on & ~empty, jnp.exp(log_y - log_sum), 0.0)
            y = jnp.where(top < jnp.inf, y, jnp.nan)
            output, bits = carry
            v = v_ref[keys(j), :]
            return output + _product(y.astype(v.dtype), v, 0, 0), jnp.where(block == j, 1, bits)

        return lax.cond(above(j, log_m), some, lambda: carry)

    nothing = jnp.zeros(o_ref.shape, jnp.float32), jnp.zeros(blocks_ref.shape, jnp.int32)
    output, blocks_ref[...] = loop_over(start, end, average, nothing)
    o_ref[...] = output.astype(o_ref.dtype)
    kept_ref[...] = _rows(kept_ref.shape, {TOP: top, LOG_M: log_m, LOG_SUM: log_sum})


# --- Backward ----------------------------------------------------------------------------------------------


def _solved(head: Head, kept: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights of a block, s = y^(2 - alpha), and log y; 0 off the support."""
    top, log_m, log_sum = (_row(kept, r) for r in (TOP, LOG_M, LOG_SUM))
    on, _, log_y = weights(head, z, top, log_m)
    on &= top > LOWEST / 2
    log_y = log_y - log_sum
    y, s = (jnp.where(on, jnp.exp(power * log_y), 0.0) for power in (1.0, 1 - head.b))
    good = top < jnp.inf
    return jnp.where(good, y, jnp.nan), jnp.where(good, s, jnp.nan), log_y


def backward_queries(plan, head, q_ref, k_ref, v_ref, do_ref, kept_ref, blocks_ref, dq_ref, rows_ref, dz_ref, i):
    """dQ, delta and d alpha of one block of queries; dZ too where there is a bias for each query."""
    start, end = plan.key_blocks(i, head.key_length)
    q, do, kept, bits = q_ref[...], do_ref[...], kept_ref[...], blocks_ref[...]
    row = jnp.zeros((1, plan.rows), jnp.float32)

    def keys(j):
        return pl.ds(pl.multiple_of(j * plan.columns, plan.columns), plan.columns)

    def block(j):
        k, v = k_ref[keys(j), :], v_ref[keys(j), :]
        products = _product(k, q, 1, 1)
        _, s, log_y = _solved(head, kept, block_scores(plan, head, products, i, j))
        return k, products, s, log_y, _product(v, do, 1, 1)

    def deltas(j, carry):
        def some():
            _, _, s, _, dp = block(j)
            return tuple(c + jnp.sum(u, axis=0, keepdims=True) for c, u in zip(carry, (s * dp, s), strict=True))

        return lax.cond(has_weight(bits, j), some, lambda: carry)

    moment, mass = loop_over(start, end, deltas, (row, row))
    delta = moment / jnp.where(mass == 0, 1.0, mass)
    if dz_ref is not None:
        dz_ref[...] = jnp.zeros(dz_ref.shape, dz_ref.dtype)

    def gradients(j, carry):
        def some():
            k, products, s, log_y, dp = block(j)
            dz = s * (dp - delta)
            if dz_ref is not None:
                dz_ref[keys(j), :] = dz.astype(dz_ref.dtype)
            dq, *rows = carry
            changes = -jnp.where(s > 0, dz * _entropy_change(head.b, log_y), 0.0), dz * products
            rows = (row + jnp.sum(change, axis=0, keepdims=True) for row, change in zip(rows, changes, strict=True))
            return dq + _product(dz.astype(k.dtype), k, 0, 0), *rows

        return lax.cond(has_weight(bits, j), some, lambda: carry)

    nothing = jnp.zeros(dq_ref.shape, jnp.float32), row, row
    dq, alpha_bar, scale_bar = loop_over(start, end, gradients, nothing)
    dq_ref[...] = (dq * head.scale).astype(dq_ref.dtype)
    rows_ref[...] = _rows(rows_ref.shape, {DELTA: delta, ALPHA_BAR: alpha_bar, SCALE_BAR: scale_bar})


def backward_keys(plan, head, q_ref, k_ref, v_ref, do_ref, kept_ref, rows_ref, blocks_ref, dk_ref, dv_ref, dz_ref, j):
    """dK and dV of one block of keys; the sum of dZ over the queries too where there is a bias for each key."""
    k, v = k_ref[...], v_ref[...]

    def add(i, carry):
        def some():
            here = pl.ds(pl.multiple_of(i * plan.rows, plan.rows), plan.rows)
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
    dk, dv, dz_sum = loop_over(start, end, add, nothing)
    dk_ref[...] = (dk * head.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
    if dz_ref is not None:
        dz_ref[...] = dz_sum


# --- Pieces ------------------------------------------------------------------------------------------------


def has_weight(bits: jax.Array, j: Any) -> Any:
    """Whether key block j is marked in a row of marks."""
    block = lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    return jnp.sum(flag((block == j) & (bits != 0))) > 0


def expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, which the compiler for TPU kernels has no operation for."""
    t = jnp.tanh(x / 2)
    return jnp.where(x < 1, 2 * t / (1 - jnp.where(x < 1, t, 0.0)), jnp.exp(x) - 1)


def _entropy_change(b: Any, log_y: jax.Array) -> jax.Array:
    """d/d alpha of phi'(y), but for a constant: (L e^L - e^L + 1) / b^2 with L = b log y."""
    x = b * log_y
    series = log_y**2 * (1 / 2 + x * (1 / 3 + x * (1 / 8 + x * (1 / 30 + x / 144))))
    return jnp.where(jnp.abs(x) < SMALL_LOG, series, (x * jnp.exp(x) - (jnp.exp(x) - 1)) / b**2)


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


def _blocks(n: Any, size: int) -> Any:
    return (n + (size - 1)) // size
