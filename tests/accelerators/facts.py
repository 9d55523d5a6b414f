"""What a compiled program holds, read from its text and its memory plan."""

from __future__ import annotations

import collections
import re
from typing import Any, NamedTuple

import cases

# What NVIDIA's assembler says of a kernel.
_SPILLED = re.compile(r"(\d+) bytes spill (?:stores|loads)")
# What Pallas leaves in a program: Mosaic's call on a TPU, Mosaic GPU's on a GPU.
_KERNEL = re.compile(r'custom_call_target="(?:tpu_custom_call|mosaic_gpu\w*)"')


class Facts(NamedTuple):
    """What a compiled program holds.

    Attributes:
      sorts: how many sorts.
      loops: how many loops; a step of each is a kernel launch at least on a GPU.
      kernels: how many Pallas kernels.
      spilled: bytes of registers that Pallas kernels move to memory and back, on a GPU.
      sent: for each kind of collective the shapes that go over the wire, as `f32[8,8]`.
      temporary: bytes beside the arguments and the results, on one chip.
      memory: all bytes, on one chip.
    """

    sorts: int
    loops: int
    kernels: int
    spilled: int
    sent: dict[str, set[str]]
    temporary: int
    memory: int


def read(program: Any, printed: str) -> Facts:
    """The facts of a program that `targets.compiled` made, and of what it printed."""
    text, plan = program.as_text(), program.memory_analysis()
    sent = collections.defaultdict(set)
    for kind, shapes in cases.sent(text):
        sent[kind] |= set(shapes)
    return Facts(
        sorts=len(re.findall(r"\bsort\(", text)),
        loops=text.count(" while("),
        kernels=len(_KERNEL.findall(text)),
        spilled=sum(map(int, _SPILLED.findall(printed))),
        sent=dict(sent),
        temporary=plan.temp_size_in_bytes,
        memory=plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes,
    )
