"""Kernels for TPUs and, by name only, for GPUs, written in Pallas: `implementation="pallas"`.

jit cannot divide such a kernel among devices, and `custom_partitioning`, which would tell it how, is not there on TPUs.
So it is taken by default where nothing has to be divided: in a process with one device, and inside `jax.shard_map`.

Those for GPUs were compiled for H100, run in an interpreter and on an H200: they are never taken by default.

Pallas is loaded when a kernel is first called, not with the library.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax

from .. import Kernel, Solver, register, target

# problem -> (file, function); the file says by `refuses_...` what it does not serve, and may say by `pays_...` what it
# is worth being taken for where nobody asked for it.
_PROBLEMS = {
    "threshold": ("_threshold", "tsallis_weights"),
    "p_norm": ("_threshold", "p_norm_weights"),
    "capped": ("_capped", "capped_weights"),
    "chain": ("_chain", "chain_prox"),
    "segment_mean": ("_chain", "segment_mean"),
    "attention": ("_attention", "attention"),
    "attention_bars": ("_attention", "attention_bars"),
}
_ON_GPUS = {
    "threshold": ("_gpu_threshold", "tsallis_weights"),
    "p_norm": ("_gpu_threshold", "p_norm_weights"),
    "capped": ("_gpu_capped", "capped_weights"),
    "chain": ("_gpu_chain", "chain_prox"),
    "segment_mean": ("_gpu_chain", "segment_mean"),
}


def kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What the table holds under "pallas" for TPUs: problem -> kernel.

    Args:
      interpret: False for TPUs. Otherwise what `pallas_call` takes under that name, and the kernels are then for CPUs:
        so the tests know the numbers without a TPU.
    """

    def default(file: str, name: str) -> Callable[..., bool]:
        def wanted(*args: Any, **static: Any) -> bool:
            return _undivided() and getattr(_load(file), f"pays_{name}", lambda *_, **__: True)(*args, **static)

        return wanted

    platforms = ("cpu",) if interpret else ("tpu",)
    return {
        problem: Kernel(_call(*place, interpret), platforms, _refuses(*place), default(*place))
        for problem, place in _PROBLEMS.items()
    }


def gpu_kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What the table holds under "pallas" for GPUs: problem -> kernel; arguments as of `kernels`."""
    platforms = ("cpu",) if interpret else ("cuda",)
    return {
        problem: Kernel(_call(*place, interpret), platforms, _refuses(*place), default=False)
        for problem, place in _ON_GPUS.items()
    }


def _call(file: str, name: str, interpret: Any) -> Solver:
    return lambda *args, **static: getattr(_load(file), name)(*args, interpret=interpret, **static)


def _refuses(file: str, name: str) -> Solver:
    return lambda *args, **static: getattr(_load(file), f"refuses_{name}")(*args, **static)


def _load(file: str) -> Any:
    return importlib.import_module(f".{file}", __name__)


def _undivided() -> bool:
    """Whether this is a program for a TPU and its arrays are not divided by jit."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = jax.device_count() == 1 if mesh.empty else mesh.size == 1 or mesh.are_all_axes_manual
    return alone and target() == "tpu"


_on_gpus = gpu_kernels()
for _problem, _kernel in kernels().items():
    register("pallas", _problem, dataclasses.replace(_kernel, elsewhere=_on_gpus.get(_problem)))
