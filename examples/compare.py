"""Several mappings on one task with the same budget and seeds: a table and a picture.

    python -m examples.compare translation --mappings softmax sparsemax fusedmax:lam=0.3 --seeds 0 1 --out runs/compare

Stop it and call it again: finished runs are kept, an unfinished one goes on, and further mappings
or seeds add to the table. A mapping can carry its hyper-parameters, and `learn`: entmax:alpha=1.3,learn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from . import cli
from .data import DataError
from .model import MAPPINGS
from .pictures import save_heatmaps

TASKS = ("entailment", "translation", "summarization")
COLUMNS = ("support", "runs", "segments", "segment_length", "entropy", "alignment_error")


def parse_mapping(text: str) -> dict:
    """`name:key=value,...,learn` as the options of one run."""
    name, _, rest = text.partition(":")
    if name not in MAPPINGS:
        raise ValueError(f"{name!r} is not a mapping: use one of {', '.join(MAPPINGS)}")
    options = {"mapping": name, "gamma": None, "alpha": None, "p": None, "lam": None, "learn": None}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if part == "learn":
            options["learn"] = []
        elif key in ("gamma", "alpha", "p", "lam") and re.fullmatch(r"\d*\.?\d+(e-?\d+)?", value):
            options[key] = float(value)
        else:
            raise ValueError(f"{text!r}: expected KEY=NUMBER or learn after the colon, found {part!r}")
    return options


def main(arguments: Sequence[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = argparse.ArgumentParser(
        prog="python -m examples.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first.add_argument("task", choices=TASKS, help="add --help after it for all options")
    task_name = first.parse_args(arguments[:1]).task
    task = importlib.import_module(f"{__package__}.{task_name}").TASK
    options = cli.parser(task, compare=True).parse_args(arguments[1:])
    if options.out is None:
        options.out = pathlib.Path("runs") / f"{task.name}-comparison"
    try:
        compare(task, options)
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # outside the training loop, which saves by itself
        raise SystemExit(130) from None


def compare(task: cli.Task, options: argparse.Namespace):
    """Runs what is missing, seed by seed, and writes the table after each run."""
    wanted = {text: parse_mapping(text) for text in options.mappings}  # all errors before any training
    for seed in options.seeds:
        for text, mapping in wanted.items():
            out = options.out / re.sub(r"[^\w.=-]+", "-", text) / f"seed-{seed}"
            shared = {key: value for key, value in vars(options).items() if key not in ("mappings", "seeds")}
            one = cli.complete(
                task, argparse.Namespace(**shared | mapping | {"seed": seed, "out": out, "resume": True})
            )
            if not is_finished(task, one) and cli.run(task, one) is None:
                print("the same command goes on from here", file=sys.stderr)
                raise SystemExit(130)
            write_table(options.out)


def is_finished(task: cli.Task, options: argparse.Namespace) -> bool:
    """Whether `options.out` holds the results of just this run."""
    path = options.out / cli.METRICS
    if not path.exists():
        return False
    metrics = json.loads(path.read_text(encoding="utf-8"))
    settings = cli.run_settings(task, options, cli.choice_of(options))
    same = metrics["settings"] == settings
    if not same:
        differing = [key for key, value in settings.items() if metrics["settings"].get(key) != value]
        raise DataError(f"{path} was made with other values of {', '.join(differing)}: use the same, or another --out")
    return metrics["budget"] == cli.budget_of(options) and metrics["evaluation"] == cli.evaluation_of(options)


def write_table(out: pathlib.Path):
    """The table and the picture of all finished runs below `out`."""
    finished: dict[str, list[dict]] = {}
    shown: dict[str, list[dict]] = {}
    for path in sorted(out.glob(f"*/seed-*/{cli.METRICS}")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        name = label(metrics["mapping"])
        finished.setdefault(name, []).append(metrics)
        shown.setdefault(name, json.loads((path.parent / "attention.json").read_text(encoding="utf-8")))
    order = sorted(finished, key=lambda name: (list(MAPPINGS).index(name.split("(")[0]), name))
    cli.write_text(out / "table.md", table({name: finished[name] for name in order}))
    write_picture(out, {name: shown[name] for name in order})


def label(mapping: dict) -> str:
    """The mapping with the hyper-parameters that set it apart."""
    learned = mapping["learned"]
    own = next(iter(MAPPINGS[mapping["name"]]))
    parts = [
        f"{key}={mapping[key]:g}"
        for key in ("alpha", "p", "lam", "gamma")
        if key in mapping and (key != "gamma" or mapping[key] != 1.0)
    ]
    parts = [part for part in parts if part.split("=")[0] not in learned] + [f"{key} learned" for key in learned]
    return mapping["name"] + (f"({', '.join(parts)})" if parts and (own != "gamma" or parts) else "")


def table(finished: dict[str, list[dict]]) -> str:
    """Markdown: a row for each mapping, means over its seeds, with the standard deviation of the scores."""
    one = next(iter(finished.values()))[0]
    headline = one["headline"]
    columns = [
        column for column in COLUMNS if any(column in m["attention"] for runs in finished.values() for m in runs)
    ]
    head = ["mapping", "seeds", headline, *(column.replace("_", " ") for column in columns), "s / epoch", "x softmax"]
    lines = [" | ".join(head), " | ".join(["---"] + ["---:"] * (len(head) - 1))]

    def seconds(runs):
        known = [m["training"]["seconds_per_epoch"] for m in runs if m["training"]["seconds_per_epoch"] is not None]
        return statistics.median(known) if known else None

    softmax = next((seconds(runs) for name, runs in finished.items() if name == "softmax"), None)
    for name, runs in finished.items():
        scores = [m["score"][headline] for m in runs]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        cells = [name, str(len(runs)), f"{statistics.fmean(scores):.2f}{spread}"]
        for column in columns:
            values = [m["attention"][column] for m in runs if column in m["attention"]]
            cells.append(f"{statistics.fmean(values):.2f}" if values else "")
        time = seconds(runs)
        cells.append("" if time is None else f"{time:.2f}")
        cells.append("" if time is None or not softmax else f"{time / softmax:.2f}")
        lines.append(" | ".join(cells))
    body = "\n".join(f"| {line} |" for line in lines)
    budget = ", ".join(f"{value} {key}" for key, value in one["budget"].items() if value is not None)
    settings = one["settings"]
    gold = ", alignment error is the weight outside the gold positions" if "alignment_error" in columns else ""
    return (
        f"# {one['task']} on {one['data']['name']}\n\n{body}\n\n"
        f"Budget of each run: {budget}; batches of {settings['batch']}, hidden size {settings['hidden']}. "
        "Scores are of the test part, with the standard deviation over seeds. Attention figures are means over "
        "its rows: support counts weights above zero, runs are stretches of them, segments are stretches of one "
        f"shared weight{gold}.\n"
    )


def write_picture(out: pathlib.Path, shown: dict[str, list[dict]]):
    """One example that all runs drew, a panel for each mapping."""
    common = set.intersection(*({one["index"] for one in examples if one["rows"]} for examples in shown.values()))
    if not common:
        return
    first = next(one for one in next(iter(shown.values())) if one["index"] in common)
    same = {name: next(one for one in examples if one["index"] == first["index"]) for name, examples in shown.items()}
    single = all(len(one["rows"]) == 1 for one in same.values())
    panels = []
    for name, one in same.items():
        rows, title = one["rows"], name
        if single:  # one row each: the mapping is the row's label, with what it made of the hypothesis
            answer = re.search(r"\(([^()]*)\)$", rows[0].replace("\n", " "))
            rows, title = [f"{name}{f': {answer[1]}' if answer else ''}"], ""
        panels.append((title, rows, np.array(one["weights"])))
    title = re.sub(r"\s*\([^()]*\)$", "", first["rows"][0].replace("\n", " ")) if single else ""
    save_heatmaps(out / "comparison.png", first["source"], panels, title)


if __name__ == "__main__":
    main()
