"""One run, from the command line to its files: training, evaluation, outputs."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import pathlib
import platform
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tyro

from . import corpora, train
from .data import PAD, Batches, Corpus, DataError, Example, bucket_shapes
from .mappings import Mapping
from .metrics import AttentionFigures, gold_positions
from .model import learned_values
from .options import Run, Settings, complete
from .pictures import save_heatmaps
from .running import CHECKPOINT, METRICS, stoppable, write_text
from .task import Answers, Network, Task

PICTURES = 6


def main(task: Task, arguments: Sequence[str] | None = None):
    """`python -m examples.TASK`: exit status 0 when done, 130 when interrupted, 2 for what the user can mend."""
    kind: Any = Run[task.settings]
    first = f"A first run: python -m examples.{task.name} --mapping sparsemax --out runs/first"
    one = command_line(
        kind, f"python -m examples.{task.name}", "\n\n".join((str(task.__doc__), first, usual(task))), arguments
    )
    if mended(lambda: run(task, one), "add --resume to go on") is None:
        raise SystemExit(130)


def command_line(kind, program: str, description: str, arguments: Sequence[str] | None):
    """The options from the arguments; --help is made from the dataclass."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)
    return tyro.cli(kind, prog=program, description=description, args=arguments, config=config)


def usual(task: Task) -> str:
    """What the options that are None stand for, in words."""
    sides = {"on the built-in corpus": task.built_in, "with --data": task.real}
    said = (f"{side} {', '.join(f'{key} {value}' for key, value in values.items())}" for side, values in sides.items())
    return f"What None stands for: {'; '.join(said)}."


def mended(action: Callable, stopped: str):
    """What `action` returns; what the user can mend is said in one line."""
    try:
        return action()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # outside the training loop, which saves by itself
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(130) from None


# ---------------------------------------------------------------- the run


def run(task: Task, one: Run) -> dict | None:
    """Trains, evaluates and writes the folder of `one`; what it measured, or None when interrupted."""
    settings = completed(task, one.settings)
    mapping = Mapping.parse(one.mapping)
    out = one.out or pathlib.Path("runs") / f"{task.name}-{mapping.name}"
    corpus = load(task, settings)
    network = task.build(corpus, mapping, settings)
    shapes = bucket_shapes(corpus.train, settings.buckets or 1, settings.limits(), task.margin)
    batches = Batches(corpus.train, network.encode, shapes, settings.batch)
    valid, test = (Batches(part, network.encode, shapes, 4 * settings.batch) for part in (corpus.valid, corpus.test))

    sizes = f"{len(corpus.train)} / {len(corpus.valid)} / {len(corpus.test)} examples"
    print(f"{task.name} on {corpus.name}: {sizes}, mapping {mapping}, seed {one.seed}, into {out}", flush=True)
    with stoppable() as asked:
        training = prepare(network, settings, mapping, one, out, batches, valid)
        finished = training.fit(asked)
    if not finished:
        print(f"stopped at step {training.progress.step}, saved in {out}: add --resume to go on")
        return None

    progress, params = training.progress, training.arrays["best"]
    metrics = {
        "task": task.name,
        "mapping": str(mapping),
        "seed": one.seed,
        "data": {"name": corpus.name if settings.data is None else settings.data.name, "train": len(corpus.train)}
        | {"valid": len(corpus.valid), "test": len(corpus.test), "shapes": shapes},
        "settings": json.loads(json.dumps(settings.decisive())),
        "budget": settings.budget(),
        "evaluation": settings.evaluation(),
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "best_valid_loss": progress.best_loss,
        "valid_losses": [round(epoch["valid_loss"], 4) for epoch in progress.history],
        "seconds_per_epoch": seconds_per_epoch(progress),
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "learned": learned_values(params, mapping),
        "versions": versions(),
    }
    if corpus.test:
        answers = task.answer(network, params, test, corpus.test, settings)
        attention = attention_figures(network, settings, params, test, corpus.test)
        attention |= task.explain(answers, corpus.test)
        metrics |= {
            "score": task.score(answers.predictions, corpus.test),
            "attention": {} if mapping.name == "none" else attention,
            "outcomes": packed(task.outcomes(answers.predictions, corpus.test)),
        }
        write_answers(task, out, answers, corpus.test, str(mapping))
    write_text(out / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    print(summary(metrics))
    return metrics


def completed(task: Task, settings: Settings):
    return complete(settings, task.real if settings.data else task.built_in)


def load(task: Task, settings: Settings) -> Corpus:
    """The corpus, as much of it as the settings ask for."""
    corpus = task.load(settings.data, settings) if settings.data else corpora.corpus(task.name)
    source, target = settings.limits()
    fitting = [e for e in corpus.train if len(e.source) <= source and len(e.target) <= target]
    if not fitting:
        raise DataError(
            f"{corpus.name}: expected a training example of at most {source} and {target} words (--longest, "
            "--longest-target), found none"
        )
    return Corpus(
        corpus.name,
        fitting[: settings.train_size],
        corpus.valid[: settings.valid_size],
        corpus.test[: settings.test_size],
    )


def prepare(network: Network, settings, mapping, one: Run, out: pathlib.Path, batches, valid) -> train.Training:
    """The training from its start, or from the checkpoint in `out`."""
    decisive = settings.decisive() | {"mapping": str(mapping), "seed": one.seed}
    before = (out / CHECKPOINT).exists()
    if before and not one.resume:
        raise ValueError(f"{out} holds a run: add --resume to go on with it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    arrays = train.start(network.model, settings.rate, next(batches.in_order()).arrays, one.seed)
    progress = train.Progress()
    if before:
        arrays, progress = train.load_checkpoint(out, arrays, decisive)

    def save():
        train.save_checkpoint(out, arrays, progress, decisive)

    return train.Training(network.model, settings, one.seed, arrays, progress, batches, valid, save)


def seconds_per_epoch(progress: train.Progress) -> float | None:
    """The median; the first epoch, which compiles, counts only where it is the only one."""
    seconds = [epoch["seconds"] for epoch in progress.history]
    return float(np.median(seconds[1:] or seconds)) if seconds else None


def attention_figures(network: Network, settings, params: dict, batches: Batches, examples: list[Example]) -> dict:
    """Over the test part; a decoder reads the reference, so that all mappings are asked about the same words."""
    forward, figures = train.compile_forward(network.model, settings.loss), AttentionFigures()
    for batch in batches.in_order():
        _, _, weights, rows, _ = forward(params, batch.arrays)
        gold = gold_positions(examples, batch.indices, weights.shape)
        figures.add(np.asarray(weights), np.asarray(rows), (batch.arrays["source"] != PAD).sum(axis=1), gold)
    return figures.means()


def packed(numbers: np.ndarray) -> dict:
    """Small whole numbers as a short text; `unpacked` reads it."""
    text = base64.b85encode(zlib.compress(numbers.astype("<u2").tobytes(), 9)).decode()
    return {"shape": list(numbers.shape), "numbers": text}


def unpacked(outcomes: dict) -> np.ndarray:
    raw = zlib.decompress(base64.b85decode(outcomes["numbers"]))
    return np.frombuffer(raw, "<u2").reshape(outcomes["shape"])


def versions() -> dict:
    names = ("smoothmax", "jax", "flax", "optax", "sacrebleu", "rouge-score", "numpy")
    found = {"python": platform.python_version(), "backend": jax.default_backend()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


# ---------------------------------------------------------------- outputs


def write_answers(task: Task, out: pathlib.Path, answers: Answers, examples: list[Example], title: str):
    """The predictions, and the attention over a handful of test examples, the same ones for every mapping."""
    lines = (task.line(p, e) + "\n" for p, e in zip(answers.predictions, examples, strict=True))
    write_text(out / "predictions.txt", "".join(lines))
    fitting = [i for i, e in enumerate(examples) if 4 <= len(e.source) <= 30]
    shown = []
    for number, index in enumerate(fitting[:: max(len(fitting) // PICTURES, 1)][:PICTURES], 1):
        weights, example = answers.attention[index], examples[index]
        rows = task.rows(answers.predictions[index], example, len(weights))
        source = list(example.source[: weights.shape[1]])
        if rows:
            save_heatmaps(out / f"attention-{number}.png", source, [("", rows, weights)], title)
        shown.append({"index": index, "source": source, "rows": rows, "weights": weights.tolist()})
    write_text(out / "attention.json", json.dumps(shown, ensure_ascii=False))


def summary(metrics: dict) -> str:
    wanted = ("support", "segments", "entropy", "alignment_error", "explained")
    parts = {
        "score": {key: value for key, value in metrics.get("score", {}).items() if isinstance(value, float)},
        "attention": {key: value for key, value in metrics.get("attention", {}).items() if key in wanted},
        "learned": metrics["learned"],
        "validation": {"loss": metrics["best_valid_loss"], "seconds per epoch": metrics["seconds_per_epoch"] or 0.0},
    }
    return "\n".join(
        f"{name:<10} " + ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in part.items())
        for name, part in parts.items()
        if part
    )
