"""Measures every operator and the peers that are installed, in one run, and writes a table.

    python -m benchmarks --out runs/benchmarks            # everything
    python -m benchmarks --shapes 4096x128 --samples 20   # one row, more carefully
    python -m benchmarks --attention                      # attention at growing lengths
    python -m benchmarks --scaling                        # how our operators grow with width and batch, drawn

On an accelerator other shapes are the default, and rows are compiled side by side (`turns.py`).

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

from . import attention, flash, mappings, report
from .timing import accelerated

SHAPES = "64x50,1024x64,4096x128,2048x512,256x4096,32x32768"
SHAPES_THERE = "1024x64,4096x128,16384x512,8192x4096"  # on an accelerator
SCALING = "256x32,256x128,256x512,256x2048,256x8192,16x128,64x128,1024x128,4096x128"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure smoothmax side by side.")
    there = accelerated()
    implementations, samples = ("pallas,xla", 7) if there else ("native,xla", 15)
    all_shapes = SHAPES_THERE if there else SHAPES
    parser.add_argument("--shapes", help=f"comma-separated ROWSxWIDTH (default {all_shapes})")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated (default float32,bfloat16)")
    parser.add_argument(
        "--samples", type=int, default=samples, help=f"turns in which every subject is timed (default {samples})"
    )
    parser.add_argument("--calls", type=int, default=1, help="calls in a row that make a turn, at least (default 1)")
    parser.add_argument(
        "--implementations", default=implementations, help=f"comma-separated (default {implementations})"
    )
    parser.add_argument("--only", default="", help="measure only subjects whose name has this in it, and softmax")
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    parser.add_argument("--attention", action="store_true", help="measure attention instead of the mappings")
    parser.add_argument("--scaling", action="store_true", help="measure and draw growth with width and batch")
    lengths = flash.LENGTHS if there else attention.LENGTHS
    parser.add_argument("--lengths", default=lengths, help=f"lengths for --attention (default {lengths})")
    parser.add_argument("--head-sizes", default="64,128", help="for --attention on an accelerator (default 64,128)")
    parser.add_argument(
        "--patience", type=float, default=90.0, help="seconds to compile on an accelerator (default 90)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for table, picture, numbers")
    args = parser.parse_args()
    args.until = time.monotonic() + args.patience
    args.out.mkdir(parents=True, exist_ok=True)

    name = "attention" if args.attention else "scaling" if args.scaling else "mappings"
    about = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    rows: list[dict[str, Any]] = []
    if not args.attention:
        shapes = args.shapes or (SCALING if args.scaling else all_shapes)
        grid = [
            (tuple(int(n) for n in shape.split("x")), dtype)
            for dtype in (["float32"] if args.scaling else args.dtypes.split(","))
            for shape in shapes.split(",")
        ]
        found, table = mappings.measured(grid, args), report.table
    elif there:
        found, table = flash.measured(args), report.flash_table
    else:
        found = [attention.measure([int(n) for n in args.lengths.split(",")], args.samples, args.seed)]
        table = report.attention_table
    for more in found:
        rows += more
        (args.out / f"{name}.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    (args.out / f"{name}.md").write_text(table(rows))
    if args.scaling:
        report.picture(rows, args.out / "scaling.png")
    print(" ".join(f"{k}: {v}." for k, v in about.items()), "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
