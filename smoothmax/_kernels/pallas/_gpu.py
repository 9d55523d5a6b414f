"""How a kernel is run on GPUs: Pallas's Mosaic GPU, which compiles for Hopper.

One warpgroup, 128 threads, does a step of the grid. Arrays stay in the GPU's main memory, and a kernel loads what it
needs from there into registers.

The kernels were compiled for H100 and run in an interpreter, never on a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..._arrays import varying_like

THREADS = 128
_AXIS = "smoothmax_step"
# In JAX 0.9 these kernels do not compile: it lacks operations, and slices of some lengths.
_SINCE = (0, 10)


class _WhenUsed:
    """Pallas for GPUs, loaded when something of it is first used: not every machine can."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("jax.experimental.pallas.mosaic_gpu"), name)


mosaic: Any = _WhenUsed()


def run(
    kernel: Callable[..., None], steps: int, arrays: list[jax.Array], dtypes: tuple[Any, ...], interpret: Any
) -> list[jax.Array]:
    """Runs `kernel(step, *references)` for every step; the results have the first array's shape, and the dtypes."""
    first = arrays[0]
    call = mosaic.kernel(
        lambda *refs: kernel(lax.axis_index(_AXIS), *refs),
        out_type=[jax.ShapeDtypeStruct(first.shape, dtype) for dtype in dtypes],
        grid=(steps,),
        grid_names=(_AXIS,),
        compiler_params=mosaic.CompilerParams(lowering_semantics=mosaic.LoweringSemantics.Lane),
        interpret=interpret,
    )
    out = call(*(varying_like(a, first) for a in arrays))
    return [varying_like(a, first) for a in out]  # Mosaic GPU forgets over which mesh axes they differ


def missing() -> str | None:
    """Why this JAX cannot serve, or None."""
    if jax.__version_info__ < _SINCE:
        return f"its kernels for GPUs need JAX {'.'.join(map(str, _SINCE))} or later, and this is {jax.__version__}"
    try:
        importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    except ImportError as error:
        return f"this JAX cannot load Pallas for GPUs ({error})"
    return None
