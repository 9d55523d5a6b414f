"""The mappings at one shape and dtype, ours and the peers'."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from . import tuning, turns
from .subjects import PROBLEMS, Subject, baseline, checked, ours, peers, reference
from .timing import accelerated, interleaved

Row = dict[str, Any]
Cell = tuple[tuple[int, ...], str]
"""A shape and a dtype."""


def measured(grid: list[Cell], args: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of the table: one after another here, in processes of their own on an accelerator."""
    if not accelerated():
        for shape, dtype in tqdm(grid, unit="row"):
            yield prepare(shape, dtype, _subjects(args, None), args)()
        return
    alone = args.no_peers or args.scaling
    n = turns.shares(len(grid), not alone)
    parts = [(k, n) for k in range(n if alone else n + 1)]
    yield from turns.measured([(_part, (*cell, args, part)) for cell in grid for part in parts], args.until)


def _part(shape: tuple[int, ...], dtype: str, args: argparse.Namespace, part: tuple[int, int]) -> Any:
    return prepare(shape, dtype, _subjects(args, part), args)


def _subjects(args: argparse.Namespace, part: tuple[int, int] | None) -> list[Subject]:
    """The baseline and the subjects asked for: all of them, the k-th of n shares of ours, or (k = n) the peers."""
    k, n = part or (0, 1)
    problems = [] if k == n else list(PROBLEMS)[k::n]
    found = list(ours(problems, args.implementations.split(",")))
    if k == n or (part is None and not (args.no_peers or args.scaling)):
        try:
            found.extend(peers())
        except Exception as problem:  # those before one that cannot be loaded stay
            if not accelerated():
                raise
            print(f"left out: a peer and those after it: {type(problem).__name__}: {problem}", file=sys.stderr)
    return [baseline(), *(s for s in found if args.only in s.name)]


def prepare(
    shape: tuple[int, ...], dtype: str, subjects: list[Subject], args: argparse.Namespace
) -> Callable[[], list[Row]]:
    """Compiles and checks the subjects; what it returns measures them, and gives a row for each and kind of pass."""
    rng = np.random.default_rng(args.seed)
    scores, cotangent = rng.normal(size=shape), rng.normal(size=shape)
    expected = functools.cache(lambda problem: reference(problem, scores, cotangent, dtype))
    prepared = []
    for subject in subjects:
        if accelerated() and turns.is_late(args.until):
            print(f"left out: {subject.name}: no time to compile it in {dtype} at {shape}", file=sys.stderr)
            continue
        if subject.widest is not None and shape[-1] > subject.widest:
            continue
        found = checked(subject, scores, cotangent, dtype, expected)
        if isinstance(found, str):
            tqdm.write(f"left out: {found}", file=sys.stderr)
        else:
            prepared.append((subject, *found))

    def measure() -> list[Row]:
        tuning.forget()
        rows = []
        for which, kind in enumerate(("forward", "forward+backward")):
            timings = interleaved([calls[which].run for _, calls, _ in prepared], args.samples, args.calls)
            for (subject, calls, compile_seconds), timing in zip(prepared, timings, strict=True):
                compiled = calls[which].compiled
                memory = compiled.memory_analysis().temp_size_in_bytes if compiled is not None else None
                rows.append(
                    {
                        "subject": subject.name,
                        "problem": subject.problem,
                        "ours": subject.ours,
                        "shape": list(shape),
                        "dtype": dtype,
                        "kind": kind,
                        **vars(timing),
                        "temporary_bytes": memory,
                        "compile_seconds": compile_seconds if compiled is not None else None,
                    }
                )
        return rows

    return measure
