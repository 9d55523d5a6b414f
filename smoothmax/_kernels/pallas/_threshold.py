"""Weights that one threshold a slice determines, for TPUs: a block of slices is read once and solved where it lies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..._arrays import total, varying_like
from . import _equations, _p_norm_equations
from ._batching import weights_of_slices
from ._equations import Equation, Weights
from ._machines import Machine, same
from ._tiles import LANES, MEMORY_LIMIT, SUBLANES, VECTOR_MEMORY, flag, result

# Arrays of a block that a pass may hold at once, a generous count.
_ARRAYS = 16
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
MACHINE = Machine(
    lambda function, *slices: function(*slices),
    lambda function, *slices: tuple(total(v) for v in function(*slices)),
    lambda function, *slices: jnp.max(function(*slices), axis=-1, keepdims=True),
    jnp.sum,
    _chosen,
    jnp.log1p,
    jnp.log1p,
    same,
)


def refuses_tsallis_weights(x: Any, gamma: Any, power: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    return refuses(x, _ARRAYS)


def refuses(x: Any, arrays: int) -> str | None:
    """Why a kernel that holds so many arrays of a block cannot serve, or None."""
    if x.dtype != jnp.float32:
        return f"its threshold kernel computes in float32, not {x.dtype}"
    widest = VECTOR_MEMORY // (arrays * SUBLANES * 4)
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
    return _call(_p_norm_equations.p_norm, x, gamma, p, interpret)


def _call(equation: Equation, x: jax.Array, gamma: Any, power: Any, interpret: Any) -> jax.Array:
    return by_slices(partial(_equations.weights, equation=equation), x, (gamma, power), interpret)


def by_slices(weights: Weights, x: jax.Array, parameters: tuple[Any, ...], interpret: Any) -> jax.Array:
    """`weights` of blocks of slices `(*batch, d)`; a parameter is one number, one a slice, or one a position."""
    return weights_of_slices(partial(_run, weights, interpret=interpret), x, parameters)


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
    y_ref[...] = weights(*(ref[...] for ref in inputs), machine=MACHINE)
