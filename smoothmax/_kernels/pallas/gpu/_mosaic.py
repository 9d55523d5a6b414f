"""How a kernel is run on GPUs: Pallas's Mosaic GPU, which compiles for Hopper.

One warpgroup, 128 threads, does a step of the grid. Arrays stay in the GPU's main memory, and a kernel loads what it
needs from there into registers.

The kernels are compiled for H100, run in an interpreter, and were run on an H200. What `jnp.where` makes of integers
has no sign in Mosaic: whether it is less than something, or negative, is answered as if it had none, and the
interpreter does not show it. Kernels ask such numbers only whether they are equal.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import varying_like

THREADS, WARP = 128, 32
_AXIS = "smoothmax_step"
# In JAX 0.9 these kernels do not compile: it lacks operations, and slices of some lengths.
_SINCE = (0, 10)


class _WhenUsed:
    """Pallas for GPUs, loaded when something of it is first used: not every machine can."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("jax.experimental.pallas.mosaic_gpu"), name)


mosaic: Any = _WhenUsed()


def run(
    kernel: Callable[..., None],
    steps: int,
    arrays: list[jax.Array],
    results: tuple[Any, ...],
    interpret: Any,
    *,
    barriers: bool = True,
    scratch: tuple[Any, ...] = (),
) -> list[jax.Array]:
    """Runs `kernel(step, *references)` for every step: to the arrays, the results, and the scratch.

    Args:
      results: forms, or dtypes: the shape is then that of the first array.
      barriers: whether the threads wait for each other before and after anything is written. Without it a kernel calls
        `barrier` between what one thread writes and another one reads, or the other way round.
      scratch: places that a step has to itself.
    """
    first = arrays[0]
    call = mosaic.kernel(
        lambda *refs: kernel(lax.axis_index(_AXIS), *refs),
        out_type=[r if isinstance(r, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(first.shape, r) for r in results],
        scratch_types=scratch,
        grid=(steps,),
        grid_names=(_AXIS,),
        compiler_params=mosaic.CompilerParams(
            lowering_semantics=mosaic.LoweringSemantics.Lane, unsafe_no_auto_barriers=not barriers
        ),
        interpret=interpret,
    )
    out = call(*(varying_like(a, first) for a in arrays))
    return [varying_like(a, first) for a in out]  # Mosaic GPU forgets over which mesh axes they differ


def barrier(interpret: Any) -> None:
    """Each thread waits for the others of its step, and then sees what they wrote to the memory they share.

    Pallas's own, `commit_smem`, has fences besides for copies that the hardware does by itself; there are none here.
    """
    if interpret:  # there a step is one thread
        return
    wait = importlib.import_module("jax.experimental.mosaic.gpu").warpgroup_barrier
    mosaic.inline_mgpu()(lambda _: wait())()


def layout(width: int, by_warps: bool) -> Any:
    """How an array of one dimension lies in registers: `width` neighbouring numbers in each thread, once in every warp,
    or once in the warpgroup."""
    if by_warps:
        tiles, warps = ((WARP * width,), (width,)), (mosaic.Replicated(THREADS // WARP),)
    else:
        tiles, warps = ((THREADS * width,), (WARP * width,), (width,)), (-3,)
    return mosaic.Layout.TILED(mosaic.Tiling(tiles), warps, (-2,), -1)


def load(ref: Any, index: tuple[Any, ...], layout: Any) -> jax.Array:
    """An array from memory, laid out so; anyhow if that is None."""
    if layout is None:
        return ref[index]
    load = mosaic.load
    if "idx" in (parameters := inspect.signature(load).parameters) and parameters["idx"].default is inspect._empty:
        return load(ref, index, layout=layout, optimized=False)  # before JAX 0.11
    return load(ref.at[index], layout=layout, optimized=False)


def warp() -> jax.Array:
    """Which warp of the warpgroup this thread is in.

    A scalar that differs from warp to warp: what depends on it must not make warps wait for each other.
    """
    dialect = importlib.import_module("jax.experimental.mosaic.gpu")

    @mosaic.inline_mgpu(return_type=mosaic.ShapeDtypeStruct((), jnp.int32, layout=mosaic.Layout.WG_SPLAT(())))
    def index(_):
        value = dialect.utils.warp_idx()
        return dialect.FragmentedArray.splat(value, (), is_signed=True)

    return index()


def missing() -> str | None:
    """Why this JAX cannot serve, or None."""
    if jax.__version_info__ < _SINCE:
        return f"its kernels for GPUs need JAX {'.'.join(map(str, _SINCE))} or later, and this is {jax.__version__}"
    try:
        importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    except ImportError as error:
        return f"this JAX cannot load Pallas for GPUs ({error})"
    return None
