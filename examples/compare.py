"""Several mappings on one task: the same budget and seeds, tables with tests of the differences, a picture.

    python -m examples.compare translation --mappings softmax sparsemax fusedmax:lam=0.3 --seeds 0 1 --out runs/compare
    python -m examples.compare entailment --data DATA --search --seeds 0 1 2 3 4 --jobs 2 --out runs/entailment

Stop it and call it again: finished runs are kept, an unfinished one goes on, and further mappings or seeds add to the
tables. With --search the mappings are a grid: of those with the same name, the one with the least validation loss is
chosen with the first seed; only the chosen ones run with all seeds and see the test part.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from . import cli, report
from .mappings import MAPPINGS, Mapping
from .options import Comparison, Run
from .pictures import save_heatmaps
from .running import write_text
from .task import Task, task_of

TASKS = ("entailment", "translation", "summarization")
# What --search chooses from: gamma, the mapping's own hyper-parameter, and that one learned.
GRID = (
    "none", "uniform",
    "softmax:gamma=0.3", "softmax", "softmax:gamma=3",
    "sparsemax:gamma=0.3", "sparsemax", "sparsemax:gamma=3",
    "entmax:alpha=1.2", "entmax:alpha=1.5", "entmax:alpha=1.8", "entmax:alpha~1.5",
    "pnormmax:p=1.2", "pnormmax:p=1.5", "pnormmax:p~1.5",
    "fusedmax:lam=0.01", "fusedmax:lam=0.1", "fusedmax:lam=0.3", "fusedmax:lam~0.1",
    "oscarmax:lam=0.001", "oscarmax:lam=0.01", "oscarmax:lam=0.1", "oscarmax:lam~0.01",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] not in TASKS:
        print(f"{__doc__}\nusage: python -m examples.compare {{{','.join(TASKS)}}} [--help] [OPTIONS]")
        raise SystemExit(0 if arguments in (["--help"], ["-h"]) else 2)
    task = task_of(arguments[0])
    kind: Any = Comparison[task.settings]
    comparison = cli.command_line(
        kind, f"python -m examples.compare {task.name}", f"{__doc__}\n{cli.usual(task)}", arguments[1:]
    )
    cli.mended(lambda: compare(task, comparison), "the same command goes on from here")


def compare(task: Task, comparison: Comparison):
    """Runs what is missing, and writes tables and picture, also when interrupted."""
    out = comparison.out or pathlib.Path("runs") / f"{task.name}-comparison"
    words = comparison.mappings or (GRID if comparison.search else ("none", *MAPPINGS))
    mappings = list(dict.fromkeys(str(Mapping.parse(word)) for word in words))  # all errors before any training
    settings = cli.completed(task, comparison.settings)
    store = Store(comparison.results or out / "runs.jsonl", out)

    def runs(names: Iterable[str], seeds: Iterable[int], settings) -> list[Run]:
        return [
            Run(settings, name, seed, out / folder(name) / f"seed-{seed}", resume=True)
            for seed in seeds
            for name in names
        ]

    try:
        if comparison.search:
            untested = runs(mappings, comparison.seeds[:1], dataclasses.replace(settings, test_size=0))
            store.complete(task, untested, comparison.jobs)
            mappings = choose([found for run in untested if (found := store.find(task, run)) is not None])
            print(f"chosen: {', '.join(mappings)}", flush=True)
        store.complete(task, runs(mappings, comparison.seeds, settings), comparison.jobs)
    finally:
        store.write_tables()


def choose(records: list[dict]) -> list[str]:
    """Of each name, the mapping with the least validation loss."""
    best: dict[str, dict] = {}
    for record in records:
        name = Mapping.parse(record["mapping"]).name
        if name not in best or record["best_valid_loss"] < best[name]["best_valid_loss"]:
            best[name] = record
    return [record["mapping"] for record in best.values()]


def folder(mapping: str) -> str:
    return re.sub(r"[^\w.=~-]+", "-", mapping)


# ---------------------------------------------------------------- what is done, and what is not


class Store:
    """The figures of all finished runs: a file with a line of JSON for each, from which the tables are made."""

    def __init__(self, path: pathlib.Path, out: pathlib.Path):
        self.path, self.out = path, out

    @property
    def records(self) -> list[dict]:
        """From the file each time: another comparison may add to it meanwhile."""
        return report.read(self.path) if self.path.exists() else []

    def find(self, task: Task, run: Run) -> dict | None:
        """The record of just this run; the test may have been used, where `run` leaves it out."""
        for record in self.records:
            known = record["task"], record["mapping"], record["seed"], record["settings"], record["budget"]
            settings = json.loads(json.dumps(run.settings.decisive()))
            tested = record["evaluation"] == run.settings.evaluation() or run.settings.test_size == 0
            if tested and known == (task.name, run.mapping, run.seed, settings, run.settings.budget()):
                return record
        return None

    def add(self, record: dict):
        same = ("task", "mapping", "seed", "settings", "budget")
        records = [*(other for other in self.records if any(other[key] != record[key] for key in same)), record]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = sorted(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.path, "".join(lines))

    def write_tables(self):
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "table.md", report.text(self.records))
        write_picture(self.out)

    def complete(self, task: Task, runs: list[Run], jobs: int):
        """Makes the runs that are missing, `jobs` of them side by side."""
        missing = [run for run in runs if self.find(task, run) is None]
        if jobs == 1 or len(missing) < 2:
            for run in missing:
                if self.find(task, run) is None:
                    self._note(run_one(task.name, run))
            return
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
            for done in concurrent.futures.as_completed([pool.submit(run_one, task.name, run) for run in missing]):
                if done.exception() or done.result() is None:
                    pool.shutdown(wait=False, cancel_futures=True)
                self._note(done.result())

    def _note(self, metrics: dict | None):
        if metrics is None:  # interrupted, and saved
            raise KeyboardInterrupt
        self.add(metrics)


def run_one(task: str, run: Run) -> dict | None:
    """A run, of a task that is looked up by its name: another process may be told it."""
    try:
        return cli.run(task_of(task), run)
    finally:
        jax.clear_caches()  # Linux has no room in one process for the programs of fifteen runs


# ---------------------------------------------------------------- the picture


def write_picture(out: pathlib.Path):
    """One test example that all runs drew, a panel for each mapping."""
    shown = {
        path.parent.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(out.glob("*/seed-*/attention.json"))
    }
    drawn = [{one["index"] for one in examples if one["rows"]} for examples in shown.values()]
    common = sorted(set.intersection(*drawn)) if drawn else []
    if not common:
        return
    same = {name: next(one for one in shown[name] if one["index"] == common[0]) for name in shown}
    first = next(iter(same.values()))
    title, panels = "", [(name, one["rows"], np.array(one["weights"])) for name, one in same.items()]
    if len(first["rows"]) == 1:  # one row each: the mapping is its label, with what it made of the hypothesis
        said = {name: one["rows"][0].replace("\n", " ").rpartition(" ") for name, one in same.items()}
        title = said[next(iter(said))][0]
        panels = [("", [f"{name} {said[name][2]}"], np.array(one["weights"])) for name, one in same.items()]
    save_heatmaps(out / "comparison.png", first["source"], panels, title)


if __name__ == "__main__":
    main()
