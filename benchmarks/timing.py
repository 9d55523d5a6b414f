"""Interleaved timing: the machine drifts, so all subjects of a row are measured in turn, many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

SAMPLE = 2e-3  # seconds that one sample lasts at least, so that the clock and the dispatch do not count


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median and the middle half of the samples; `ratio` likewise, sample by sample."""

    seconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def waiting(program: Callable[..., Any], *operands: Any) -> Callable[[], Any]:
    """A call of a program that returns when its result is there."""
    return lambda: jax.block_until_ready(program(*operands))


def interleaved(calls: Sequence[Callable[[], Any]], samples: int) -> list[Timing]:
    """Times the calls in turn; ratios are to the first one in the same turn."""
    loops = [_loops(call) for call in calls]
    taken = np.empty((samples, len(calls)))
    for turn in range(samples):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(loops[i]):
                call()
            taken[turn, i] = (time.perf_counter() - start) / loops[i]
    ratios = taken / taken[:, :1]
    return [
        Timing(*np.percentile(taken[:, i], (50, 25, 75)), *np.percentile(ratios[:, i], (50, 25, 75)))
        for i in range(len(calls))
    ]


def _loops(call: Callable[[], Any]) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, int(SAMPLE / max(time.perf_counter() - start, 1e-7)))
