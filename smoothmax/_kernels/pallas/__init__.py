"""Kernels for TPUs, written in Pallas; entered into the table as "pallas".

A kernel cannot be divided among devices by jit: it is taken inside `jax.shard_map`, and where there is one device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import Kernel
from . import _chain, _threshold


def kernels(interpret: Any = False) -> dict[str, Kernel]:
    """What `TABLE["pallas"]` holds: problem -> kernel.

    Args:
      interpret: False for TPUs. Otherwise what `pallas_call` takes under that name, and the kernels are then for CPUs:
        so the tests know the numbers without a TPU.
    """
    platforms = ("cpu",) if interpret else ("tpu",)

    def kernel(call, refuses):
        return Kernel(partial(call, interpret=interpret), platforms, refuses)

    return {
        "threshold": kernel(_threshold.tsallis_weights, _threshold.refuses),
        "p_norm": kernel(_threshold.p_norm_weights, _threshold.refuses),
        "chain": kernel(_chain.chain_prox, _chain.refuses_chain),
        "segment_mean": kernel(_chain.segment_mean, _chain.refuses_segment_mean),
    }
