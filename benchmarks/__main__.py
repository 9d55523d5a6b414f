"""Measures every operator and the peers that are installed, in one run, and writes a table.

    python -m benchmarks --out runs/benchmarks            # everything
    python -m benchmarks --shapes 4096x128 --samples 20   # one row, more carefully
    python -m benchmarks --attention                      # attention at growing lengths
    python -m benchmarks --scaling                        # how our operators grow with width and batch, drawn

Ratios come first: a ratio to `jax.nn.softmax` in the same run means more than a time on a machine that drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from . import attention, report
from .subjects import Subject, baseline, check, ours, peers
from .timing import interleaved

SHAPES = "64x50,1024x64,4096x128,2048x512,256x4096,32x32768"
SCALING = "256x32,256x128,256x512,256x2048,256x8192,16x128,64x128,1024x128,4096x128"


def measure(
    shape: tuple[int, ...], dtype: str, subjects: list[Subject], samples: int, seed: int
) -> list[dict[str, Any]]:
    """One row of the table: all subjects at one shape and dtype."""
    rng = np.random.default_rng(seed)
    scores, cotangent = rng.normal(size=shape), rng.normal(size=shape)
    prepared, seconds = [], []
    for subject in subjects:
        problem = check(subject, scores, cotangent, dtype)
        if problem is not None:
            tqdm.write(f"left out: {problem}", file=sys.stderr)
            continue
        start = time.perf_counter()
        prepared.append((subject, subject.prepare(scores, cotangent, dtype)))
        seconds.append(time.perf_counter() - start)
    rows = []
    for which, kind in enumerate(("forward", "forward+backward")):
        timings = interleaved([calls[which].run for _, calls in prepared], samples)
        for (subject, calls), compile_seconds, timing in zip(prepared, seconds, timings, strict=True):
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure smoothmax side by side.")
    parser.add_argument("--shapes", help=f"comma-separated ROWSxWIDTH (default {SHAPES})")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated (default float32,bfloat16)")
    parser.add_argument("--samples", type=int, default=15, help="turns in which every subject is timed (default 15)")
    parser.add_argument("--implementations", default="native,xla", help="comma-separated (default native,xla)")
    parser.add_argument("--only", default="", help="measure only subjects whose name has this in it, and softmax")
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    parser.add_argument("--attention", action="store_true", help="measure attention instead of the mappings")
    parser.add_argument("--scaling", action="store_true", help="measure and draw growth with width and batch")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384", help="lengths for --attention")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for table, picture, numbers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    if args.attention:
        lengths = [int(n) for n in args.lengths.split(",")]
        rows = attention.measure(lengths, args.samples, args.seed)
        table = report.attention_table(rows)
        name = "attention"
    else:
        alone = args.no_peers or args.scaling
        subjects = [baseline(), *ours(args.implementations.split(",")), *([] if alone else peers())]
        subjects = [s for s in subjects if args.only in s.name or s.name == subjects[0].name]
        shapes = args.shapes or (SCALING if args.scaling else SHAPES)
        grid = [
            (tuple(int(n) for n in shape.split("x")), dtype)
            for dtype in (["float32"] if args.scaling else args.dtypes.split(","))
            for shape in shapes.split(",")
        ]
        rows = []
        for shape, dtype in tqdm(grid, unit="row"):
            rows += measure(shape, dtype, subjects, args.samples, args.seed)
        table = report.table(rows)
        if args.scaling:
            report.picture(rows, args.out / "scaling.png")
        name = "scaling" if args.scaling else "mappings"

    about = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    (args.out / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    (args.out / f"{name}.md").write_text(table)
    print(" ".join(f"{k}: {v}." for k, v in about.items()), "\n")
    print(table)


main()
