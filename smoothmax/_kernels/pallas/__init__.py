"""Kernels for TPUs and GPUs, written in Pallas: `implementation="pallas"`.

jit cannot divide such a kernel among devices, and `custom_partitioning`, which would tell it how, is not there on TPUs.
So it is taken by default where nothing has to be divided: in a process with one device, and inside `jax.shard_map`.

Those for GPUs are written for Hopper and were run on one: on other chips they are never taken by default.

Pallas is loaded when a kernel is first called, not with the library.

| folder | what it holds |
|---|---|
| `tpu`, `gpu` | the kernels of one kind of machine; neither knows the other |
| `shared` | the equations and sweeps that are the same in both, and what is alike around them |
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import jax

from .. import Kernel, device_kind, register, target
from .shared._served import Served

# problem -> the file, in each machine's folder, whose `KERNELS` serves it.
_FILES = {
    "threshold": "_threshold",
    "p_norm": "_threshold",
    "capped": "_threshold",
    "chain": "_chain",
    "segment_mean": "_chain",
    "attention": "_attention",
    "attention_bars": "_attention",
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
    return _entries("tpu", "tpu", lambda: target() == "tpu", interpret)


def gpu_kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What the table holds under "pallas" for GPUs: problem -> kernel; arguments as of `kernels`."""
    return _entries("gpu", "cuda", lambda: _HOPPER.search(device_kind()) is not None, interpret)


def _entries(machine: str, platform: str, known: Callable[[], bool], interpret: Any) -> dict[str, Kernel]:
    """The kernels in that folder; where nobody names one it is taken if `known` finds its chips there."""

    def entry(problem: str, file: str) -> Kernel:
        def served() -> Served:
            return importlib.import_module(f".{machine}.{file}", __name__).KERNELS[problem]

        def wanted(x: Any, *args: Any, **static: Any) -> bool:
            if not (known() and _undivided()):
                return False  # before Pallas is loaded
            lengths_known = all(isinstance(n, int) for n in x.shape)  # in a program to be exported they need not be
            return lengths_known and served().pays(x, *args, **static)

        return Kernel(
            lambda *args, **static: served().call(*args, interpret=interpret, **static),
            ("cpu",) if interpret else (platform,),
            lambda *args, **static: served().refuses(*args, **static),
            wanted,
        )

    return {problem: entry(problem, file) for problem, file in _FILES.items()}


def _undivided() -> bool:
    """Whether no array of the program is divided by jit."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 if mesh.empty else mesh.size == 1 or mesh.are_all_axes_manual


for _problem, _kernel in (*kernels().items(), *gpu_kernels().items()):
    register("pallas", _problem, _kernel)
