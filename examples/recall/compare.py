"""Several mappings, tasks and seeds: a table and a plot, made again after each run. Finished runs are kept.

python -m examples.recall.compare --tasks recall copy --seeds 0 1 2
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import tyro

from ..running import write_text
from .options import Options, Task
from .pictures import save_curves
from .train import run

VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"mapping": "softmax"},
    "softmax-scaled": {"mapping": "softmax", "length_scaled": True},
    "entmax": {"mapping": "entmax"},
    "entmax-learned": {"mapping": "entmax", "learn_alpha": True},
    "entmax-scaled": {"mapping": "entmax", "length_scaled": True},
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Train every variant on every task with every seed."""

    tasks: tuple[Task, ...] = ("recall",)
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Of softmax, softmax-scaled, entmax, entmax-learned, entmax-scaled."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1500
    rate: float = 3e-3
    examples: int = 64
    out: pathlib.Path = pathlib.Path("runs/recall")

    def __post_init__(self) -> None:
        for variant in self.variants:
            if variant not in VARIANTS:
                raise ValueError(f"variants must be of {', '.join(VARIANTS)}, got {variant}: choose from these")


def table(runs: list[dict[str, Any]], measure: str) -> str:
    """Means over the seeds in per cent, with the least and the greatest."""
    lengths = [test["length"] for test in runs[0]["tests"]]
    lines = ["| task | mapping | seeds | " + " | ".join(map(str, lengths)) + " |", "|" + " --- |" * (3 + len(lengths))]
    for task, name in dict.fromkeys((one["task"], one["name"]) for one in runs):
        group = [one["tests"] for one in runs if (one["task"], one["name"]) == (task, name)]
        values = 100 * np.array([[test[measure] for test in tests] for tests in group])
        cells = (f"{v.mean():.0f} ({v.min():.0f} to {v.max():.0f})" for v in values.T)
        lines.append(f"| {task} | {name} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    try:
        chosen = tyro.cli(Comparison, prog="python -m examples.recall.compare", args=arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    shared = {"steps": chosen.steps, "rate": chosen.rate, "examples": chosen.examples}
    for task in chosen.tasks:
        for seed in chosen.seeds:  # the first seed of every variant first
            for variant in chosen.variants:
                folder = chosen.out / task / f"{variant}-{seed}"
                run(Options(task=task, seed=seed, out=folder, **shared, **VARIANTS[variant]))
                jax.clear_caches()  # their programs would not all find room in one process
                write(chosen.out)
    print((chosen.out / "table.md").read_text())


def write(out: pathlib.Path) -> None:
    """The table, the plots and the raw numbers of all finished runs below a folder."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("*/*/metrics.json"))]
    words = {"exact": "All answers of a sequence right", "answers": "Right answers"}
    parts = (f"{title}, in per cent\n\n{table(runs, measure)}" for measure, title in words.items())
    write_text(out / "table.md", "\n".join(parts))
    write_text(out / "runs.json", "[\n" + ",\n".join(json.dumps(one) for one in runs) + "\n]\n")
    for measure in words:
        save_curves(out / f"{measure}.png", runs, measure)


if __name__ == "__main__":
    main()
