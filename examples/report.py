"""Tables from the figures of finished runs: `python -m examples.report FILE...` makes them again.

A table of scores and attention, one of the differences with their chance, and one of what the search saw.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys

import numpy as np

from .cli import unpacked
from .mappings import MAPPINGS, OFF, Mapping
from .task import Task, task_of

COLUMNS = (
    "support", "segments", "segment_length", "entropy", "alignment_error", "peak_error", "gold_share", "explained",
    "explained_by_chance",
)  # fmt: skip
AGAINST = ("softmax", "sparsemax")
RESAMPLES = 4000
_CHUNK = 250  # resamples held in memory at a time


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(paths: list[str]):
    for path in paths:
        print(text(read(pathlib.Path(path))))


def text(records: list[dict]) -> str:
    """All tables in Markdown: those of one task, data and set of settings together."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(json.dumps([record[k] for k in ("task", "settings", "budget")]), []).append(record)
    return "\n".join(_section(sorted(group, key=_order)) for group in groups.values())


def _order(record: dict):
    names = [*OFF, *MAPPINGS]
    return names.index(Mapping.parse(record["mapping"]).name), record["mapping"], record["seed"]


def _section(records: list[dict]) -> str:
    one = records[0]
    budget = ", ".join(f"{value} {key}" for key, value in one["budget"].items() if value is not None)
    data = f"{one['data']['train']} / {one['data']['valid']} examples to train and validate"
    parts = [f"## {one['task']} on {one['data']['name']}", f"{data}; {budget} a run."]
    tested: dict[str, list[dict]] = {}
    for record in records:
        if "score" in record:
            tested.setdefault(record["mapping"], []).append(record)
    if tested:
        parts.append(_scores(tested))
    if len(tested) > 1:
        parts.append(_differences(tested))
    parts.append(_validation(records))
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scores(tested: dict[str, list[dict]]) -> str:
    """Means over the seeds, with the standard deviation of the scores."""
    task = _task(tested)
    columns = [c for c in COLUMNS if any(c in r["attention"] for runs in tested.values() for r in runs)]
    rows = []
    for name, runs in tested.items():
        scores = [run["score"][task.headline] for run in runs]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        off = Mapping.parse(name).name == "none"
        figures = [
            f"{statistics.fmean(run['attention'][c] for run in runs):.2f}"
            if not off and all(c in run["attention"] for run in runs)
            else ""
            for c in columns
        ]
        rows.append([name, str(len(runs)), f"{statistics.fmean(scores):.2f}{spread}", *figures])
    return _table(["mapping", "seeds", task.headline, *(c.replace("_", " ") for c in columns)], rows)


def _task(tested: dict[str, list[dict]]) -> Task:
    return task_of(next(iter(tested.values()))[0]["task"])


# ---------------------------------------------------------------- differences


def _differences(tested: dict[str, list[dict]]) -> str:
    """Each mapping against softmax and against sparsemax, of those with all seeds: one says nothing of the spread."""
    seeds = max(len(runs) for runs in tested.values())
    tested = {name: runs for name, runs in tested.items() if len(runs) == seeds}
    names = {Mapping.parse(name).name: name for name in tested}
    against = [names[name] for name in AGAINST if name in names]
    scores = resampled(tested)
    rows = []
    for name in tested:
        cells = [name]
        for other in against:
            cells += _cells(scores[name] - scores[other]) if name != other else ["", ""]
        rows.append(cells)
    head = ["mapping"]
    for other in against:
        head += [f"minus {other} (95 %)", "p"]
    return _table(head, rows)


def _cells(differences: np.ndarray) -> list[str]:
    low, high = np.quantile(differences, [0.025, 0.975])
    p = 2 * min((differences <= 0).mean(), (differences >= 0).mean())
    return [f"{differences.mean():+.2f} ({low:+.2f} to {high:+.2f})", f"{min(p, 1.0):.3f}" if p > 0.001 else "< 0.001"]


def resampled(tested: dict[str, list[dict]], count: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Scores (count,) of each mapping over resamples of the test examples and of its seeds.

    A bootstrap: the same examples for all mappings in a resample, so that differences are paired; seeds drawn anew
    for each mapping, since two trainings with one seed have little in common.
    """
    total = _task(tested).total
    outcomes = {name: np.stack([unpacked(run["outcomes"]) for run in runs]) for name, runs in tested.items()}
    examples = {array.shape[1] for array in outcomes.values()}
    if len(examples) > 1:
        raise ValueError(f"runs with different numbers of test examples cannot be compared: {sorted(examples)}")
    size, draw = examples.pop(), np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in outcomes}
    for start in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - start)
        weights = draw.multinomial(size, np.full(size, 1 / size), size=rows).astype(np.float32) / size
        for name, array in outcomes.items():
            runs = np.stack([total(weights @ run.astype(np.float32)) for run in array])  # (seeds, rows)
            seeds = draw.integers(len(array), size=(len(array), rows))
            parts[name].append(np.take_along_axis(runs, seeds, axis=0).mean(axis=0))
    return {name: np.concatenate(part) for name, part in parts.items()}


# ---------------------------------------------------------------- validation


def _validation(records: list[dict]) -> str:
    """What the choice was made from, and where learned hyper-parameters went."""
    rows = []
    for record in records:
        losses, learned = record["valid_losses"], record["learned"]
        rows.append(
            [
                record["mapping"],
                str(record["seed"]),
                f"{record['best_valid_loss']:.4f}",
                f"{record['best_epoch']} of {len(losses)}",
                ", ".join(f"{key} {value:.3f}" for key, value in learned.items()),
            ]
        )
    return _table(["mapping", "seed", "validation loss", "at epoch", "learned"], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
