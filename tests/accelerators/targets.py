"""Machines that are not there: what XLA needs to know to compile for them.

Import this before JAX does anything: the environment decides which compilers come up.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    # libtpu asks the machine which TPU it sits on, unless it is told.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # The CUDA plugin would look for a card and its libraries.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # What NVIDIA's assembler says about a Pallas kernel goes to standard output.
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

_H100 = pathlib.Path(__file__).with_name("h100.txtpb").read_text()
_GIGABYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of machine with four chips.

    Attributes:
      name: what it is called here.
      platform: what JAX calls its kind: "tpu" or "cuda".
      topology: arguments that describe the chips and how they are connected.
      memory: bytes of one chip.
    """

    name: str
    platform: str
    topology: dict[str, str]
    memory: int

    def mesh(self, chips: int) -> Mesh:
        """The first of its chips along one axis, "devices"."""
        devices = topologies.get_topology_desc(platform=self.platform, **self.topology).devices
        return Mesh(np.array(devices[:chips]), ("devices",), axis_types=(AxisType.Auto,))


def _tpu(name: str, chips: str, gigabytes: int) -> Target:
    return Target(name, "tpu", {"topology_name": f"{name}:{chips}"}, gigabytes * _GIGABYTE)


TARGETS = {
    target.name: target
    for target in (
        _tpu("v5e", "2x2", 16),
        _tpu("v5p", "2x2x1", 95),
        _tpu("v6e", "2x2", 32),
        Target("h100", "cuda", {"target_config": _H100, "topology": "1x1x4"}, 79 * _GIGABYTE),
    )
}


def compiled(function, arguments, mesh: Mesh, target: Target, may_spill: bool):
    """The program for the mesh, and what the assembler printed. The abstract mesh tells kernels the chips' kind."""
    options = {"xla_gpu_fail_ptx_compilation_on_register_spilling": not may_spill}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function).lower(*arguments)
        return _and_printed(lambda: lowered.compile(options if target.platform == "cuda" else None))


def _and_printed(call):
    """The result, and what was printed meanwhile; compilers do not print through Python."""
    sys.stdout.flush()
    shown = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            result = call()
        finally:
            os.dup2(shown, 1)
            os.close(shown)
        file.seek(0)
        return result, file.read().decode(errors="replace")
