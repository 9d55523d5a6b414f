"""Weights that one threshold a slice determines, for TPUs: a block of slices is read once and solved where it lies.

With the largest score moved to 0, z = (x - top) / gamma, and b = alpha - 1 or p - 1, the weights are powers of

    v_i = max(1 + s b z_i / e, 0),       s = 1 (Tsallis) or 1 / b (p-norm),

which is 1 for the largest score and 0 off the support; the unknown is e, the distance from the largest score to the
threshold. Powers are taken as `exp(log1p(s b z / e) / b)`: near v = 1, a logarithm of v itself would cost the digits
that a small b needs.

**Tsallis, alpha <= 2.** y_i = m v_i^(1/b) with m = e^(1/b), the largest weight. The norm `(sum y)^b` is a convex and
nearly linear function of e, so Newton's method from e = 1 descends to the root of `sum y = 1` without overshooting. It
is written for log m: as b falls to 0, e is 1 to rounding, and a step becomes a logsumexp.

**Tsallis, alpha > 2.** v^(1/b) has infinite slope at v = 0, and a threshold cannot be stored precisely enough to say
what a position next to it weighs. What can be: the least score c of the support and the weight w there. Halving log m
leaves a handful of candidates for c; from the lowest up, the first one at which the others do not sum to more than 1 is
c; and `sum (w^b + b (z - c))^(1/b) = 1` is convex in w, for Newton's method from the right.

**p-norm.** y = v^(1/b) / sum v^(1/b), and e solves `e S_r S_(r+1)^((1-r)/(1+r)) = 1` for r = 1/b and S_k = sum v^k.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..._arrays import total, varying_like
from ._batching import over_slices
from ._tiles import LANES, MEMORY_LIMIT, SUBLANES, VECTOR_MEMORY, as_rows, flag, loop, result

# Arrays of a block that a pass may hold at once, a generous count.
_ARRAYS = 16
# Numbers in a block of slices, where one slice is not more already: the code is as long as a block has registers.
_BLOCK = 2**16
# Newton's passes; five to ten are the rule.
_MAX_PASSES = 64
# A step of log m below which the next one, of second order, is rounding.
_SMALL_STEP = 1e-4
# The least b: y differs from its limit b -> 0 by less than b z^2 y / 2, a third of float32's rounding here.
_LEAST_B = 1e-7
# In place of -inf: outside of every support, and safe to compute with.
_LOWEST = -1e30
# Halvings of log m: what is left of the bracket is rounding.
_HALVINGS = 30
# Positions this close to the threshold, relative to e, are candidates for the support.
_NEAR = 1e-5
# The least weight that is told from 0, and a step of a weight that is rounding.
_LEAST_WEIGHT, _SMALL_WEIGHT = 1e-37, 1e-7
# log 1/e that is as good as infinite: all but the largest scores are off the support.
_LARGEST_LOG = 60.0
# Normalising repairs rounding and no more: a sum further from 1 is a solution that was not reached.
_REPAIRABLE = 1e-3


def refuses_tsallis_weights(x: Any, gamma: Any, power: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    if x.dtype != jnp.float32:
        return f"its threshold kernel computes in float32, not {x.dtype}"
    widest = VECTOR_MEMORY // (_ARRAYS * SUBLANES * 4)
    if not 1 <= x.shape[-1] <= widest:
        return (
            f"its threshold kernel holds slices of 1 to {widest} positions in the chip's memory, not of {x.shape[-1]}"
        )
    if x.size == 0:
        return "there are no slices"
    return None


refuses_p_norm_weights = refuses_tsallis_weights


def tsallis_weights(x: jax.Array, gamma: Any, alpha: Any, *, interpret: Any = False) -> jax.Array:
    """Tsallis weights of float32 slices `(*batch, d)`, any alpha >= 1; as `_solvers.tsallis_weights`."""
    return _call(_tsallis, x, gamma, alpha, interpret)


def p_norm_weights(x: jax.Array, gamma: Any, p: Any, *, interpret: Any = False) -> jax.Array:
    """p-norm weights of float32 slices `(*batch, d)`, 1 < p <= 2; as `_solvers.p_norm_weights`."""
    return _call(_p_norm, x, gamma, p, interpret)


def _call(equation: Callable[..., jax.Array], x: jax.Array, gamma: Any, power: Any, interpret: Any) -> jax.Array:
    def solve(x, gamma, power):
        *batch, d = x.shape
        columns = [as_rows(a, tuple(batch), x.dtype) for a in (gamma, power)]
        return _run(equation, x.reshape(-1, d), columns, interpret).reshape(x.shape)

    gamma, power = jnp.asarray(gamma, x.dtype), jnp.asarray(power, x.dtype)
    shape = jnp.broadcast_shapes(x.shape, gamma.shape, power.shape)
    return over_slices(solve)(jnp.broadcast_to(varying_like(x, gamma, power), shape), gamma, power)


def _run(equation: Callable[..., jax.Array], rows: jax.Array, columns: list[jax.Array], interpret: Any) -> jax.Array:
    """Runs a kernel on all blocks of slices: `(n, d)` scores and `(n, 1)` hyper-parameters to `(n, d)` weights."""
    n, d = rows.shape
    width = pl.cdiv(d, LANES) * LANES
    block = min(max(_BLOCK // width // SUBLANES, 1), pl.cdiv(n, SUBLANES)) * SUBLANES
    more = pl.cdiv(n, block) * block - n
    rows = jnp.pad(rows, ((0, more), (0, width - d)), constant_values=-jnp.inf)
    columns = [varying_like(jnp.pad(a, ((0, more), (0, 0)), constant_values=2.0), rows) for a in columns]
    across, column = (pl.BlockSpec((block, k), lambda i: (i, 0)) for k in (width, 1))
    y = pl.pallas_call(
        partial(_kernel, equation=equation),
        grid=(rows.shape[0] // block,),
        in_specs=[across, column, column],
        out_specs=across,
        out_shape=result(rows.shape, rows.dtype, rows),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=MEMORY_LIMIT),
        interpret=interpret,
    )(rows, *columns)
    return y[:n, :d]


def _kernel(x_ref, gamma_ref, power_ref, y_ref, *, equation):
    x, gamma, power = x_ref[...], gamma_ref[...], power_ref[...]
    good = x < jnp.inf
    bad = (_most(flag(~good)) > 0) | ~((gamma > 0) & (power >= 1))
    top = _most(jnp.where(good, x, -jnp.inf))
    empty = top == -jnp.inf
    gamma, b = jnp.where(bad, 1.0, gamma), jnp.where(bad, 1.0, jnp.maximum(power - 1, _LEAST_B))
    # A slice that has no answer is solved as one of equal scores, at once.
    z = jnp.where(good & (x > -jnp.inf), (x - jnp.where(empty, 0.0, top)) / gamma, _LOWEST)
    z = jnp.where(bad | empty, 0.0, z)
    y = equation(z, b)
    sum_y = total(y)
    y = jnp.where(jnp.abs(sum_y - 1) <= _REPAIRABLE, y / sum_y, jnp.nan)
    y_ref[...] = jnp.where(bad, jnp.nan, jnp.where(empty, 0.0, y))


# --- Tsallis -----------------------------------------------------------------------------------------------


class _Newton(NamedTuple):
    """The state of a Newton iteration; columns, one number a slice."""

    passes: jax.Array  # a scalar
    at: jax.Array  # the unknown
    active: jax.Array  # 1 where it still moves, else 0: a finished slice must not depend on the others
    going: jax.Array  # the sum of `active`, a scalar


def _newton(start: jax.Array, step: Callable[[jax.Array], tuple[jax.Array, jax.Array]], wanted, most: int) -> jax.Array:
    """Iterates `step`, from the unknown to its next value and whether that is the last, where wanted."""

    def one_pass(state):
        at, last = step(state.at)
        active = jnp.where(last, 0.0, state.active)
        return _Newton(state.passes + 1, jnp.where(state.active > 0, at, state.at), active, jnp.sum(active))

    active = jnp.where(wanted, jnp.ones_like(start), 0.0)
    state = _Newton(jnp.int32(0), start, active, jnp.sum(active))
    return lax.while_loop(lambda s: (s.going > 0) & (s.passes < most), one_pass, state).at


def _tsallis(z: jax.Array, b: jax.Array) -> jax.Array:
    """y with sum 1, up to rounding."""
    concave = b > 1
    convex = _convex(z, jnp.minimum(b, 1.0), ~concave)

    def both():
        return jnp.where(concave, _concave(z, jnp.where(concave, b, 2.0), concave), convex)

    return lax.cond(jnp.sum(flag(concave)) > 0, both, lambda: convex)


def _powers(z: jax.Array, b: jax.Array, log_m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """v and the weights `m v^(1/b)`."""
    w = b * z * jnp.exp(jnp.minimum(-b * log_m, _LARGEST_LOG))
    on = w > -1
    w = jnp.where(on, w, 0.0)
    return jnp.where(on, 1 + w, 0.0), jnp.where(on, jnp.exp(log_m + jnp.log1p(w) / b), 0.0)


def _convex(z: jax.Array, b: jax.Array, wanted: jax.Array) -> jax.Array:
    def step(log_m):
        v, y = _powers(z, b, log_m)
        sum_y = total(y)
        low = total(jnp.where(v > 0, y / jnp.where(v > 0, v, 1.0), 0.0))
        # e' / e - 1, where the tangent of the norm meets 1.
        change = _expm1(-b * jnp.log(sum_y)) * sum_y / low
        change = jnp.log1p(jnp.maximum(change, -0.999)) / b
        return log_m + change, jnp.abs(change) <= _SMALL_STEP

    _, y = _powers(z, b, _newton(jnp.zeros_like(b), step, wanted, _MAX_PASSES))
    return y


def _concave(z: jax.Array, b: jax.Array, wanted: jax.Array) -> jax.Array:
    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = total(_powers(z, b, middle)[1]) > 1
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    least = -jnp.log(total(flag(z > _LOWEST)))
    _, log_m = loop(_HALVINGS, halve, (least, jnp.zeros_like(b)))
    candidates = b * z * jnp.exp(jnp.minimum(-b * log_m, _LARGEST_LOG)) > -1 - _NEAR

    def others(c, e):
        """Whether a position is above c, and what it weighs if c weighs e^(1/b)."""
        above = z > c
        u = jnp.where(above, e + b * (z - c), 1.0)
        return above, jnp.where(above, jnp.exp(jnp.log(u) / b), 0.0)

    def next_score(c):
        """The least score above c, where those above c sum to more than 1 by themselves."""
        above, y = others(c, 0.0)
        last = total(y) <= 1
        return jnp.where(last, c, _least(z, above)), last

    c = _newton(_least(z, candidates), next_score, wanted, z.shape[-1])
    ties = total(flag(z == c))

    def step(w):
        above, y = others(c, jnp.exp(b * jnp.log(w)))
        ratio = jnp.exp((b - 1) * (jnp.log(w) - jnp.log(jnp.where(above, y, 1.0))))
        slope = ties + total(jnp.where(above, ratio, 0.0))
        next_w = jnp.maximum(w - (total(y) + ties * w - 1) / slope, _LEAST_WEIGHT)
        return next_w, jnp.abs(next_w - w) <= _SMALL_WEIGHT

    w = _newton(1 / ties, step, wanted, _MAX_PASSES)
    _, y = others(c, jnp.exp(b * jnp.log(w)))
    return jnp.where(z == c, w, y)


# --- p-norm ------------------------------------------------------------------------------------------------


def _p_norm(z: jax.Array, b: jax.Array) -> jax.Array:
    r = 1 / b

    def powers(log_e):
        w = z * jnp.exp(jnp.minimum(-log_e, _LARGEST_LOG))
        on = w > -1
        w = jnp.where(on, w, 0.0)
        return jnp.where(on, 1 + w, 0.0), jnp.where(on, jnp.exp(jnp.log1p(w) * r), 0.0)

    def step(log_e):
        v, mid = powers(log_e)
        low = total(jnp.where(v > 0, mid / jnp.where(v > 0, v, 1.0), 0.0))
        high, mid = total(mid * v), total(mid)
        exponent = (1 - r) / (1 + r)
        log_f = log_e + jnp.log(mid) + exponent * jnp.log(high)
        slope = 1 + r * (low / mid - 1) + exponent * (1 + r) * (mid / high - 1)
        change = _expm1(-log_f) / slope
        change = jnp.log1p(jnp.maximum(change, -0.999))
        return log_e + change, jnp.abs(change) <= _SMALL_STEP * jnp.minimum(b, 1.0)

    _, y = powers(_newton(jnp.zeros_like(b), step, b > 0, _MAX_PASSES))
    return y / total(y)


# --- Pieces ------------------------------------------------------------------------------------------------


def _most(v: jax.Array) -> jax.Array:
    return jnp.max(v, axis=-1, keepdims=True)


def _least(v: jax.Array, where: jax.Array) -> jax.Array:
    return -_most(jnp.where(where, -v, _LOWEST))


def _expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, which the compiler for TPU kernels has no operation for."""
    t = jnp.tanh(x / 2)
    return jnp.where(x < 1, 2 * t / (1 - jnp.where(x < 1, t, 0.0)), jnp.exp(x) - 1)
