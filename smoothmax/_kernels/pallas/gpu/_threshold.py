"""Weights that one threshold a slice determines, also between bounds and with a given sum, for GPUs: a slice is read
once and solved on the chip.

A warp, 32 threads, solves a slice in its registers; a wider one is solved by a warpgroup, 128 threads, in registers or
shared memory. A sum along a slice is one over each thread's numbers, over the threads of a warp, and over the warps.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..shared._capped_equations import capped
from ..shared._equations import Weights, tsallis_weights
from ..shared._machines import LEAST, Machine, same
from ..shared._p_norm_equations import p_norm_weights
from ..shared._served import Served
from ..shared._slices import refuses_slices, solver
from . import _mosaic, _wide
from ._mosaic import mosaic

# The widest slice: three of them fit into shared memory at a time.
_WIDEST = 16384
# With bounds and a given sum a pass makes more numbers of each position, and slices lie in registers.
_WIDEST_CAPPED = 2048
# The widest slice that lies within a warp.
_BY_WARPS = 1024
# How many neighbouring numbers a thread loads at a time.
_VECTORS = (4, 2, 1)


def _run(weights: Weights, rows: jax.Array, others: list[jax.Array], interpret: Any, whole: bool = False) -> jax.Array:
    """`(n, d)` scores and `(n, 1 or d)` parameters to `(n, d)` weights."""
    n, d = rows.shape
    form = _form(d, bool(interpret), _BY_WARPS if not whole else _BY_WARPS // 2)
    more = -d % form.piece

    def padded(a, value):
        return jnp.pad(a, ((0, 0), (0, more)), constant_values=value) if more else a

    others = [padded(a, 0.0) if a.shape[-1] > 1 else a[:, 0] for a in others]
    rows = padded(rows, -jnp.inf)
    run = partial(_mosaic.run, interpret=interpret, barriers=False)
    if d > _BY_WARPS and not whole:
        rows = rows.reshape(n, -1, form.piece)
        place = mosaic.SMEM(rows.shape[1:], rows.dtype)
        kernel = partial(_wide_kernel, weights=weights, layout=form.layout)
        [y] = run(kernel, n, [rows, *others], (rows.dtype,), scratch=(place,))
        y = y.reshape(n, -1)
    else:
        kernel = partial(_kernel, weights=weights, form=form._replace(piece=d + more) if whole else form, slices=n)
        [y] = run(kernel, -(-n // form.slices), [rows, *others], (rows.dtype,))
    return y[:, :d] if more else y


class _Form(NamedTuple):
    """How slices lie in the threads of a warpgroup.

    Attributes:
      slices: how many it solves at a time: one, or one in each of its four warps.
      piece: how many numbers of a slice are one array.
      layout: where they lie in registers; None in an interpreter.
    """

    slices: int
    piece: int
    layout: Any


def _form(d: int, interpret: bool, widest: int) -> _Form:
    by_warps = d <= widest
    threads = _mosaic.WARP if by_warps else _mosaic.THREADS
    # Each thread loads four neighbouring numbers at a time, if that leaves no more of a slice empty than fewer do.
    width = next(w for w in _VECTORS if -d % (w * threads) == -d % threads or w == 1)
    layout = None if interpret else _mosaic.layout(width, by_warps)
    return _Form(_mosaic.THREADS // threads if layout else 1, width * threads, layout)


def _kernel(i, *refs, weights, form, slices):
    *inputs, y_ref = refs
    row = i if form.slices == 1 else jnp.minimum(i * form.slices + _mosaic.warp(), slices - 1)
    pieces = [pl.ds(start, form.piece) for start in range(0, y_ref.shape[-1], form.piece)]

    def load(ref):
        if len(ref.shape) == 1:
            return ref[row]
        loaded = tuple(_mosaic.load(ref, (row, piece), form.layout) for piece in pieces)
        return loaded[0] if len(pieces) == 1 else loaded

    made = weights(*map(load, inputs), machine=_MACHINE)
    for piece, y in zip(pieces, made if len(pieces) > 1 else [made], strict=True):
        y_ref[row, piece] = y


def _wide_kernel(row, *refs, weights, layout):
    x_ref, *others, y_ref, place = refs
    machine = _wide.machine(place, layout, _log1p, _log1p_down)
    made = weights(_wide.fetch(place, x_ref, row, layout), *(ref[row] for ref in others), machine=machine)
    _wide.store(made, place, y_ref, row)


def _made(function, slices):
    """What a function of positions makes of each piece of slices."""
    if not isinstance(slices[0], tuple):
        return [function(*slices)]
    return [function(*at) for at in zip(*slices, strict=True)]


def _each(function, *slices):
    made = _made(function, slices)
    if len(made) == 1:
        return made[0]
    return tuple(zip(*made, strict=True)) if isinstance(made[0], tuple) else tuple(made)


def _sums(function, *slices):
    return tuple(jnp.sum(v) for v in reduce(lambda a, b: tuple(map(jnp.add, a, b)), _made(function, slices)))


def _most(function, *slices):
    return jnp.max(reduce(jnp.maximum, _made(function, slices)))


def _chosen(z, *cases):
    """A slice by the solver whose condition holds for it; zeros if there is none."""
    if not cases:
        return _each(lambda z: z - z, z)  # laid out as weights, as the compiler wants it of all branches
    (wanted, solve), *others = cases
    # In this order: the compiler goes twice through what is done where a condition is false.
    return lax.cond(~wanted, lambda: _chosen(z, *others), solve)


def _log1p(x: jax.Array) -> jax.Array:
    """log(1 + x), large where x = -1, which the compiler for GPU kernels has no operation for."""
    v, lost = _one_plus(x)
    return jnp.log(v) + lost / v


def _log1p_down(x: jax.Array) -> jax.Array:
    """The same for -1 <= x <= 0: below -1/2 nothing is lost, and above, 1 - x is as good as 1 / (1 + x)."""
    v, lost = _one_plus(x)
    return jnp.log(v) + lost * (1 - x)


def _one_plus(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 + x, and what its rounding loses. The bound is there for XLA too, which would take 1 + x - 1 for x."""
    v = jnp.maximum(1 + x, LEAST)
    return v, x - (v - 1)


# A slice is an array or a tuple of several, its pieces, and a column is a scalar.
_MACHINE = Machine(
    each=_each,
    sums=_sums,
    most=_most,
    over_slices=same,
    chosen=_chosen,
    log1p=_log1p,
    log1p_down=_log1p_down,
    kept=same,
)


def _served(weights: Weights, kernel: str, widest: int, whole: bool = False) -> Served:
    """By a kernel of that name for slices of up to `widest` positions."""
    return Served(
        solver(weights, partial(_run, whole=whole)),
        refuses=lambda x, *_: refuses_slices(x, kernel, 1, widest, "on the chip") or _mosaic.missing(),
        # Wider slices were solved on a device, but not timed by themselves.
        pays=lambda x, *_: x.shape[-1] <= _BY_WARPS,
    )


KERNELS = {
    "threshold": _served(tsallis_weights, "threshold", _WIDEST),
    "p_norm": _served(p_norm_weights, "threshold", _WIDEST),
    "capped": _served(capped, "capped", _WIDEST_CAPPED, whole=True),
}
