"""What every long run needs: to stop when asked, and files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.json"
SAVE_EVERY = 60.0  # seconds


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """A list that fills on Ctrl-C or SIGTERM: the loop ends after the step at hand. A second one ends at once.

    Python's own handler raises wherever it is, and what calls back from inside of JAX loses the exception: so handlers
    are set before a model is built, not only while it learns.
    """
    asked: list[int] = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: no handlers, no Ctrl-C either
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write what then takes the place of `path`: half a file never replaces a whole one."""
    part = path.with_name(path.name + ".part")
    yield part
    os.replace(part, path)


def save_arrays(path: pathlib.Path, arrays: dict[str, Any], header: dict[str, str]) -> None:
    """Arrays and words in safetensors' plain form."""
    with whole(path) as part:
        safetensors.numpy.save_file(arrays, part, metadata=header)


def load_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}): delete it to start anew") from None


def write_text(path: pathlib.Path, text: str) -> None:
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
