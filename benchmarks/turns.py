"""On an accelerator: processes that compile side by side, and then have the device to themselves, one after another.

Compiling is most of the time, and much of it is Python, which threads do not share. Times that are taken beside other
work are worth nothing: nobody measures until everybody has compiled.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

Rows = list[dict[str, Any]]
Work = tuple[Callable[..., Callable[[], Rows]], tuple[Any, ...]]
"""A function of a module and its arguments: it compiles, and returns what measures."""

# Seconds that a process may be late, that it may measure, and in which it has to end.
LATE, TURN, LEAVING = 15.0, 60.0, 5.0


def shares(sizes: int, peers: bool = True) -> int:
    """How many processes to give to our operators at each of so many sizes, one more being the peers'."""
    return max(1, len(os.sched_getaffinity(0)) // sizes - peers)


def is_late(until: float) -> bool:
    """Whether to leave out what is not compiled yet; `until` is a time of `time.monotonic`, which processes share."""
    return time.monotonic() > until


def measured(works: Sequence[Work], until: float) -> Iterator[Rows]:
    """The rows of each work, in its turn."""
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    workers = []
    for prepare, args in works:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, prepare, args))
        process.start()
        there.close()
        workers.append((process, here, args))
    try:
        ready = []
        for process, pipe, args in workers:
            if _received(pipe, until + LATE) is None:
                print(f"left out, not ready: {args}", file=sys.stderr)
                process.kill()
            else:
                ready.append((pipe, args))
        print(f"ready after {time.monotonic() - started:.0f} s", file=sys.stderr)
        for pipe, args in ready:
            pipe.send("measure")
            rows = _received(pipe, time.monotonic() + TURN)
            if rows is None:
                print(f"left out, did not measure: {args}", file=sys.stderr)
            yield rows or []
    finally:
        for _, pipe, _ in workers:
            pipe.close()
        for process, *_ in workers:
            process.join(LEAVING)
            process.kill()


def _received(pipe: Connection, deadline: float) -> Any:
    """What comes through the pipe in time, or None, also where its process is gone."""
    try:
        return pipe.recv() if pipe.poll(max(0.0, deadline - time.monotonic())) else None
    except EOFError:
        return None


def _work(pipe: Connection, prepare: Callable[..., Callable[[], Rows]], args: tuple[Any, ...]) -> None:
    try:
        measure = prepare(*args)
        pipe.send("ready")
        pipe.recv()
        pipe.send(measure())
        pipe.recv()  # leaving the device would disturb those that measure now
    except EOFError:
        pass
    except Exception:
        traceback.print_exc()
