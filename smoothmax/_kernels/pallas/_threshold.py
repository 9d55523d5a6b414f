"""Weights that one threshold a slice determines, for TPUs: a block of slices is read once and solved where it lies."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..._arrays import total, varying_like
from . import _equations
from ._batching import over_slices
from ._equations import Equation, Machine
from ._tiles import LANES, MEMORY_LIMIT, SUBLANES, VECTOR_MEMORY, as_rows, result

# Arrays of a block that a pass may hold at once, a generous count.
_ARRAYS = 16
# Numbers in a block of slices, where one slice is not more already: the code is as long as a block has registers.
_BLOCK = 2**16
_MACHINE = Machine(total, lambda v: jnp.max(v, axis=-1, keepdims=True), jnp.sum, jnp.log1p)


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
    return _call(_equations.tsallis, x, gamma, alpha, interpret)


def p_norm_weights(x: jax.Array, gamma: Any, p: Any, *, interpret: Any = False) -> jax.Array:
    """p-norm weights of float32 slices `(*batch, d)`, 1 < p <= 2; as `_solvers.p_norm_weights`."""
    return _call(_equations.p_norm, x, gamma, p, interpret)


def _call(equation: Equation, x: jax.Array, gamma: Any, power: Any, interpret: Any) -> jax.Array:
    def solve(x, gamma, power):
        *batch, d = x.shape
        columns = [as_rows(a, tuple(batch), x.dtype) for a in (gamma, power)]
        return _run(equation, x.reshape(-1, d), columns, interpret).reshape(x.shape)

    gamma, power = jnp.asarray(gamma, x.dtype), jnp.asarray(power, x.dtype)
    shape = jnp.broadcast_shapes(x.shape, gamma.shape, power.shape)
    return over_slices(solve)(jnp.broadcast_to(varying_like(x, gamma, power), shape), gamma, power)


def _run(equation: Equation, rows: jax.Array, columns: list[jax.Array], interpret: Any) -> jax.Array:
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
    y_ref[...] = _equations.weights(x_ref[...], gamma_ref[...], power_ref[...], equation, _MACHINE)
