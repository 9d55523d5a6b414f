"""Weights that one threshold a slice determines, also between bounds and with a given sum, for TPUs: a block of slices
is read once and solved where it lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...._arrays import total, varying_like
from ..shared._capped_equations import capped
from ..shared._equations import Weights, tsallis_weights
from ..shared._machines import Machine, same
from ..shared._p_norm_equations import p_norm_weights
from ..shared._served import Served
from ..shared._slices import flag, refuses_slices, solver
from ._tiles import LANES, MEMORY_LIMIT, SUBLANES, VECTOR_MEMORY, result

# Arrays of a block that a pass may hold at once, a generous count.
_ARRAYS = 16
# With bounds and a given sum: 21 were counted where each position has its own bound.
_CAPPED_ARRAYS = 24
# Numbers in a block of slices, where one slice is not more already: the code is as long as a block has registers.
_BLOCK = 2**16


def _chosen(z: jax.Array, *cases: tuple[jax.Array, Callable[[], jax.Array]]) -> jax.Array:
    """Each slice of a block by the solver whose condition holds for it; a solver that no slice needs does not run."""
    y = jnp.zeros_like(z)
    for wanted, solve in cases:

        def chosen(y=y, wanted=wanted, solve=solve):
            return jnp.where(wanted, solve(), y)

        y = lax.cond(jnp.sum(flag(wanted)) > 0, chosen, lambda y=y: y)
    return y


# A block of slices is one array.
_MACHINE = Machine(
    each=lambda function, *slices: function(*slices),
    sums=lambda function, *slices: tuple(total(v) for v in function(*slices)),
    most=lambda function, *slices: jnp.max(function(*slices), axis=-1, keepdims=True),
    over_slices=jnp.sum,
    chosen=_chosen,
    log1p=jnp.log1p,
    log1p_down=jnp.log1p,
    kept=same,
)


def _run(weights: Weights, rows: jax.Array, others: list[jax.Array], interpret: Any) -> jax.Array:
    """Runs a kernel on all blocks of slices: `(n, d)` scores and `(n, 1 or d)` parameters to `(n, d)` weights."""
    n, d = rows.shape
    width = pl.cdiv(d, LANES) * LANES
    block = min(max(_BLOCK // width // SUBLANES, 1), pl.cdiv(n, SUBLANES)) * SUBLANES
    more = pl.cdiv(n, block) * block - n

    def padded(a, value):
        return jnp.pad(a, ((0, more), (0, width - d if a.shape[-1] > 1 else 0)), constant_values=value)

    rows = jnp.pad(rows, ((0, more), (0, width - d)), constant_values=-jnp.inf)
    others = [varying_like(padded(a, 2.0), rows) for a in others]
    across = pl.BlockSpec((block, width), lambda i: (i, 0))
    y = pl.pallas_call(
        partial(_kernel, weights=weights),
        grid=(rows.shape[0] // block,),
        in_specs=[across, *(pl.BlockSpec((block, a.shape[-1]), lambda i: (i, 0)) for a in others)],
        out_specs=across,
        out_shape=result(rows.shape, rows.dtype, rows),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=MEMORY_LIMIT),
        interpret=interpret,
    )(rows, *others)
    return y[:n, :d]


def _kernel(*refs, weights):
    *inputs, y_ref = refs
    y_ref[...] = weights(*(ref[...] for ref in inputs), machine=_MACHINE)


def _served(weights: Weights, kernel: str, arrays: int) -> Served:
    """By a kernel of that name which holds so many arrays of a block."""
    widest = VECTOR_MEMORY // (arrays * SUBLANES * 4)
    return Served(
        solver(weights, _run),
        refuses=lambda x, *_: refuses_slices(x, kernel, 1, widest, "in the chip's memory"),
    )


KERNELS = {
    "threshold": _served(tsallis_weights, "threshold", _ARRAYS),
    "p_norm": _served(p_norm_weights, "threshold", _ARRAYS),
    "capped": _served(capped, "capped", _CAPPED_ARRAYS),
}
