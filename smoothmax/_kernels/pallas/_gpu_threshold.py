"""Weights that one threshold a slice determines, for GPUs: a slice is read once and solved in registers.

One warpgroup, 128 threads, solves one slice, and each thread holds every 128th number of it, or pair of numbers. A
sum along the slice is one over each thread's numbers, over the threads of a warp, and over the four warps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import _equations, _gpu
from ._batching import weights_of_slices
from ._equations import Equation, Machine, Weights

# The widest slice whose numbers, and what a pass makes of them, stay in registers: up to 255 for each thread.
_WIDEST = 4096


def refuses_tsallis_weights(x: Any, gamma: Any, power: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    return refuses(x, _WIDEST)


def refuses(x: Any, widest: int) -> str | None:
    """Why a kernel for slices of up to `widest` positions cannot serve, or None."""
    if x.dtype != jnp.float32:
        return f"its threshold kernel computes in float32, not {x.dtype}"
    if not 1 <= x.shape[-1] <= widest:
        return f"its threshold kernel holds slices of 1 to {widest} positions in registers, not of {x.shape[-1]}"
    if x.size == 0:
        return "there are no slices"
    return _gpu.missing()


refuses_p_norm_weights = refuses_tsallis_weights


def tsallis_weights(x: jax.Array, gamma: Any, alpha: Any, *, interpret: Any = False) -> jax.Array:
    """Tsallis weights of float32 slices `(*batch, d)`, any alpha >= 1; as `_solvers.tsallis_weights`."""
    return _call(_equations.tsallis, x, gamma, alpha, interpret)


def p_norm_weights(x: jax.Array, gamma: Any, p: Any, *, interpret: Any = False) -> jax.Array:
    """p-norm weights of float32 slices `(*batch, d)`, 1 < p <= 2; as `_solvers.p_norm_weights`."""
    return _call(_equations.p_norm, x, gamma, p, interpret)


def _call(equation: Equation, x: jax.Array, gamma: Any, power: Any, interpret: Any) -> jax.Array:
    return by_slices(partial(_equations.weights, equation=equation), x, (gamma, power), interpret)


def by_slices(weights: Weights, x: jax.Array, parameters: tuple[Any, ...], interpret: Any) -> jax.Array:
    """`weights` of slices `(*batch, d)`; a parameter is one number, one a slice, or one a position."""
    return weights_of_slices(partial(_run, weights, interpret=interpret), x, parameters)


def _run(weights: Weights, rows: jax.Array, others: list[jax.Array], interpret: Any) -> jax.Array:
    """`(n, d)` scores and `(n, 1 or d)` parameters to `(n, d)` weights, one step of the grid a slice."""
    n, d = rows.shape

    def padded(a, value):
        return jnp.pad(a, ((0, 0), (0, -d % _gpu.THREADS)), constant_values=value)

    others = [padded(a, 0.0) if a.shape[-1] > 1 else a[:, 0] for a in others]
    inputs = [padded(rows, -jnp.inf), *others]
    [y] = _gpu.run(partial(_kernel, weights=weights), n, inputs, (rows.dtype,), interpret)
    return y[:, :d]


def _kernel(i, *refs, weights):
    *inputs, y_ref = refs
    y_ref[i] = weights(*(ref[i] for ref in inputs), machine=_MACHINE)


def _log1p(x: jax.Array) -> jax.Array:
    """log(1 + x), which the compiler for GPU kernels has no operation for; near 0, the series of 2 artanh x/(2 + x)."""
    near = jnp.abs(x) < 0.25
    t = jnp.where(near, x, 0.0)
    t = t / (2 + t)
    square = t * t
    series = 1 / 11
    for odd in (9, 7, 5, 3, 1):
        series = 1 / odd + square * series
    return jnp.where(near, 2 * t * series, jnp.log(jnp.where(near, 1.0, 1 + x)))


# A slice is one axis, and a column is a scalar.
_MACHINE = Machine(jnp.sum, jnp.max, lambda column: column, _log1p)
