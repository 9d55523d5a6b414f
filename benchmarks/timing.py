"""Interleaved timing: the machine drifts, so all subjects of a row are measured in turn, many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# Seconds that one sample lasts at least, so that the clock and the dispatch do not count: here, and on an accelerator,
# where a first call, of which no other hides the way there and back, seems longer than it is.
SAMPLE, SAMPLE_THERE = 2e-3, 1e-2


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the middle half of the samples; `ratio` likewise, sample by sample."""

    seconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Waiting:
    """A call that returns when its result is there."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready

    def __call__(self) -> Any:
        result = self.start()
        self.wait(result)
        return result

    def repeat(self, times: int) -> None:
        """Calls that follow each other; on an accelerator they queue, and the last one is waited for."""
        queues = accelerated()
        for left in range(times - 1, -1, -1):
            result = self.start()
            if not (queues and left):
                self.wait(result)


def accelerated() -> bool:
    """Whether programs run on something else than the CPU."""
    return jax.default_backend() != "cpu"


def waiting(program: Callable[..., Any], *operands: Any) -> Waiting:
    """A call of a program that returns when its result is there."""
    return Waiting(lambda: program(*operands))


def interleaved(calls: Sequence[Waiting], samples: int, least: int = 1) -> list[Timing]:
    """Times the calls in turn, each at least so often in a row; ratios are to the first one in the same turn.

    Where one call fills a turn, it finds in the caches what others left there; with many in a row, as in a training
    loop, its own arrays, and memory that was mapped already.
    """
    loops = [max(_loops(call), least) for call in calls]
    taken = np.empty((samples, len(calls)))
    for turn in range(samples):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call.repeat(loops[i])
            taken[turn, i] = (time.perf_counter() - start) / loops[i]
    ratios = taken / taken[:, :1]
    return [
        Timing(*np.percentile(taken[:, i], (50, 25, 75)), *np.percentile(ratios[:, i], (50, 25, 75)))
        for i in range(len(calls))
    ]


def _loops(call: Waiting) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, int((SAMPLE_THERE if accelerated() else SAMPLE) / max(time.perf_counter() - start, 1e-7)))
