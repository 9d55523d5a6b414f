"""Runs every representative case on the accelerator of this machine, and compares with float64 on its CPU.

    python tests/accelerators/on_device.py                      # everything
    python tests/accelerators/on_device.py --write FILE         # what is expected: on any machine
    python tests/accelerators/on_device.py --references FILE    # and then: where time on the device is dear

The cases are those of `tests/cases`: a new one is run without another entry. Compared are weights, value, and the
gradients in scores and hyper-parameters: by the kernels by name, by what is taken without a name, and in plain JAX.
Attention is compared with its gradients, by name and without.
"""

from __future__ import annotations

import argparse
import concurrent.futures.process
import multiprocessing
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device

import device_attention
import jax
import numpy as np
from device_attention import Attention
from device_runs import Results, Run, arguments, everything, expected, loaded, solved, stored

NOT_SERVED = "not served"


def tried(run: Run | Attention, path: str | None) -> tuple[str, list[str]]:
    """What to say of a run, and what is wrong with it."""
    try:
        if isinstance(run, Attention):
            return device_attention.tried(run)
        results = solved(run, run.implementation, arguments(run), run.way)
    except NotImplementedError as error:
        if run.implementation is None:
            raise
        return f"{NOT_SERVED}: {str(error).partition(': ')[2].partition('. Use ')[0]}", []
    return compared(run, results, *(expected(run) if path is None else loaded(run, path, results)))


def compared(run: Run, results: Results, middle: Results, moved: Results) -> tuple[str, list[str]]:
    """The largest errors, and what is wrong: numbers too far off, or not finite where they should be."""
    errors, problems, slices, left_out = [], [], 0, 0
    names = ["weights", "value", "gradient in scores", "gradient in a hyper-parameter"]
    of = [0, 1, 2, *[3] * (len(results) - 3)]
    spoiled = np.asarray(np.isnan(middle[0]).all(-1))
    for i, *arrays in zip(of, results, middle, moved, strict=True):
        name, tolerance = names[i], run.tolerances[i]
        got, wanted, by = (a.reshape(len(a) if a.ndim else 1, -1) for a in arrays)
        if i == 3 and len(got) == len(spoiled):  # which of these are NaN, if the weights are, nobody asks
            got, wanted = (np.where(spoiled[:, None], np.nan, a) for a in (got, wanted))
        finite = np.isfinite(wanted)
        kinds = [np.where(np.isnan(a), 2, np.where(np.isinf(a), np.sign(a), 0)) for a in (got, wanted)]
        if (elsewhere := (kinds[0] != kinds[1]).any(-1)).any():
            problems.append(f"{name}: NaN or inf where it should not be, or none, {_which(elsewhere)}")
        largest = lambda a, finite=finite: np.max(np.where(finite, abs(a), 0), -1, initial=0)
        scale = np.maximum(1, largest(wanted))
        steady = largest(by) <= tolerance * scale
        with np.errstate(invalid="ignore"):  # inf - inf
            off = np.where(steady, largest(got - wanted) / scale, 0)
        errors.append(f"{off.max():.0e}")
        if (off > tolerance).sum() > (run.exceptions * len(off) if i > 1 else 0):
            problems.append(f"{name}: off by {off.max():.1e}, {_which(~(off <= tolerance))}")
        slices, left_out = slices + len(steady), left_out + int((~steady).sum())
    if left_out > slices // 4:
        problems.append(f"compares {slices - left_out} of {slices} alone")
    return f"{' '.join(errors)}; {left_out} of {slices} next to a border", problems


def _which(rows: np.ndarray) -> str:
    return f"in slices {np.flatnonzero(rows)[:8].tolist()} of {len(rows)}"


# --- Processes, since compiling is nearly all of it --------------------------------------------------------


def in_processes(function: Callable[..., Any], runs: list[Any], workers: int, *args: Any) -> Iterator[Any]:
    """(run, result or exception, seconds) as they come."""
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_timed, function, run, *args): run for run in runs}
        for future in concurrent.futures.as_completed(futures):
            try:
                yield futures[future], *future.result()
            except concurrent.futures.process.BrokenProcessPool as error:  # by a crash in one of them
                yield futures[future], str(error), 0.0


def _timed(function: Callable[..., Any], run: Any, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        result = function(run, *args)
    except Exception as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {str(error)[:500]}"
    return result, time.perf_counter() - start


def write(path: str, runs: list[Run], workers: int) -> int:
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # for processes to come: quicker
    distinct = list({run.key: run for run in runs}.values())
    entries = {}
    for run, result, seconds in in_processes(stored, distinct, workers):
        if isinstance(result, str):
            print(f"FAILED: {run.key}: {result}")
            return 1
        print(f"{run.key} ({seconds:.1f} s)", flush=True)
        entries |= result
    np.savez_compressed(path, **entries)
    return 0


def check(runs: list[Run | Attention], workers: int, path: str | None) -> int:
    passed = failed = not_served = 0
    for run, result, seconds in in_processes(tried, runs, workers, path):
        said, problems = ("", [result]) if isinstance(result, str) else result
        print(f"{run}: {said} ({seconds:.1f} s)", flush=True)
        for problem in problems:
            print(f"  FAILED: {problem}", flush=True)
        not_served += said.startswith(NOT_SERVED)
        passed, failed = passed + (not problems), failed + bool(problems)
    print(f"{passed - not_served} passed, {not_served} not served by name, {failed} failed")
    return int(failed > 0 or passed == not_served)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="compute what is expected, store it there, and end")
    parser.add_argument("--references", metavar="FILE", help="what is expected, from --write")
    parser.add_argument("--only", default="", help="runs with this in their name")
    parser.add_argument("--workers", type=int, help="processes (default: one a core, and one for a TPU)")
    parser.add_argument("--anywhere", action="store_true", help="on a CPU too, to try this program")
    options = parser.parse_args()
    start = time.perf_counter()
    platform = "cpu" if options.write else jax.default_backend()
    if platform == "cpu" and not (options.write or options.anywhere):
        print(f"FAILED: there is no accelerator here; JAX {jax.__version__} sees {jax.devices()}")
        return 1
    runs = [run for run in (*everything(), *device_attention.everything()) if options.only in str(run)]
    workers = options.workers or (1 if platform == "tpu" else len(os.sched_getaffinity(0)))
    if options.write:
        return write(options.write, [run for run in runs if isinstance(run, Run)], workers)
    failed = check(runs, workers, options.references)
    device = jax.devices()[0].device_kind
    print(f"on {device}, JAX {jax.__version__}, {workers} processes, {time.perf_counter() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
