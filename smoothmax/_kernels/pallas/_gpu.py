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
from jax.experimental import pallas as pl

from ..._arrays import varying_like
from ._tiles import result

THREADS = 128
# In JAX 0.9 these kernels do not compile: it lacks operations, and slices of some lengths.
_SINCE = (0, 10)


def run(
    kernel: Callable[..., None], steps: int, arrays: list[jax.Array], dtypes: tuple[Any, ...], interpret: Any
) -> list[jax.Array]:
    """Runs a kernel on a grid of steps; the results have the shape of the first array, and the dtypes."""
    mosaic = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    whole = pl.BlockSpec(memory_space=mosaic.GMEM)
    first = arrays[0]
    return pl.pallas_call(
        kernel,
        grid=(steps,),
        in_specs=[whole] * len(arrays),
        out_specs=[whole] * len(dtypes),
        out_shape=[result(first.shape, dtype, first) for dtype in dtypes],
        compiler_params=mosaic.CompilerParams(),
        interpret=interpret,
    )(*(varying_like(a, first) for a in arrays))


def missing() -> str | None:
    """Why this JAX cannot serve, or None."""
    if jax.__version_info__ < _SINCE:
        return f"its kernels for GPUs need JAX {'.'.join(map(str, _SINCE))} or later, and this is {jax.__version__}"
    try:
        importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    except ImportError as error:
        return f"this JAX cannot load Pallas for GPUs ({error})"
    return None
