"""Kernels for TPUs and GPUs, written in Pallas: `implementation="pallas"`.

jit cannot divide such a kernel among devices, and `custom_partitioning`, which would tell it how, is not there on TPUs.
So it is taken by default where nothing has to be divided: in a process with one device, and inside `jax.shard_map`.

Those for GPUs are written for Hopper and were run on one: on other chips they are never taken by default.

Pallas is loaded when a kernel is first called, not with the library.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import Any

import jax

from .. import Kernel, Solver, device_kind, register, target

# problem -> (file, function); the file for GPUs has the same name after "_gpu". A file says by `refuses_...` what it
# does not serve, and may say by `pays_...` what it is worth being taken for where nobody asked for it.
_PROBLEMS = {
    "threshold": ("_threshold", "tsallis_weights"),
    "p_norm": ("_threshold", "p_norm_weights"),
    "capped": ("_capped", "capped_weights"),
    "chain": ("_chain", "chain_prox"),
    "segment_mean": ("_chain", "segment_mean"),
    "attention": ("_attention", "attention"),
    "attention_bars": ("_attention", "attention_bars"),
}

# What NVIDIA calls chips of compute capability 9.0, alone, in parts and beside a CPU. By its name a chip is known where
# there is none, too: in a mesh for which a program is only compiled.
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")


def kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What the table holds under "pallas" for TPUs: problem -> kernel.

    Args:
      interpret: False for TPUs. Otherwise what `pallas_call` takes under that name, and the kernels are then for CPUs:
        so the tests know the numbers without a TPU.
    """
    return _entries("", "tpu", lambda: target() == "tpu", interpret)


def gpu_kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What the table holds under "pallas" for GPUs: problem -> kernel; arguments as of `kernels`."""
    return _entries("_gpu", "cuda", lambda: _HOPPER.search(device_kind()) is not None, interpret)


def _entries(prefix: str, platform: str, known: Callable[[], bool], interpret: Any) -> dict[str, Kernel]:
    """The kernels in files with that prefix; where nobody names one it is taken if `known` finds its chips there."""

    def default(file: str, name: str) -> Callable[..., bool]:
        def wanted(x: Any, *args: Any, **static: Any) -> bool:
            if not (known() and _undivided()):
                return False  # before Pallas is loaded
            lengths_known = all(isinstance(n, int) for n in x.shape)  # in a program to be exported they need not be
            return lengths_known and getattr(_load(file), f"pays_{name}", lambda *_, **__: True)(x, *args, **static)

        return wanted

    platforms = ("cpu",) if interpret else (platform,)
    places = {problem: (prefix + file, name) for problem, (file, name) in _PROBLEMS.items()}
    return {
        problem: Kernel(_call(*place, interpret), platforms, _refuses(*place), default(*place))
        for problem, place in places.items()
    }


def _call(file: str, name: str, interpret: Any) -> Solver:
    return lambda *args, **static: getattr(_load(file), name)(*args, interpret=interpret, **static)


def _refuses(file: str, name: str) -> Solver:
    return lambda *args, **static: getattr(_load(file), f"refuses_{name}")(*args, **static)


def _load(file: str) -> Any:
    return importlib.import_module(f".{file}", __name__)


def _undivided() -> bool:
    """Whether no array of the program is divided by jit."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 if mesh.empty else mesh.size == 1 or mesh.are_all_axes_manual


_on_gpus = gpu_kernels()
for _problem, _kernel in kernels().items():
    register("pallas", _problem, dataclasses.replace(_kernel, elsewhere=_on_gpus.get(_problem)))
