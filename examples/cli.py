"""One run from the command line to its files: options, training, evaluation, outputs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Sequence

import jax
import numpy as np

from . import corpora, train
from .data import BEGIN, END, PAD, Batches, Corpus, DataError, Example, Vocabulary, bucket_shapes
from .decode import predict
from .metrics import AttentionFigures, gold_positions
from .model import MAPPINGS, Choice, Translator, learned_values
from .pictures import save_heatmaps

METRICS = "metrics.json"
PICTURES = 6
PARTS_LEFT_OUT_OF_SETTINGS = ("steps", "epochs", "out", "resume", "beam", "test_size")


class Task:
    """What a task adds to the shared run. Subclasses set the names and fill in the methods."""

    name: str
    headline: str  # the score that tables show
    steps: int  # budget on the built-in corpus
    hidden: int = 64  # size there
    margin: int = 0  # marks around the target

    def add_options(self, parser: argparse.ArgumentParser): ...

    def load(self, folder: pathlib.Path, options) -> Corpus:
        raise NotImplementedError

    def build(self, corpus: Corpus, choice: Choice, options):
        """The model, and the function that turns an example into numbers (source, target, label)."""
        raise NotImplementedError

    def predict(self, run: Run, examples: list[Example], batches: Batches):
        """Predictions and attention (T, S) for each example."""
        raise NotImplementedError

    def score(self, predictions: list, examples: list[Example]) -> dict:
        raise NotImplementedError

    def line(self, prediction, example: Example) -> str:
        """One line of predictions.txt."""
        raise NotImplementedError

    def rows(self, prediction, example: Example) -> list[str]:
        """The labels of the rows of attention."""
        raise NotImplementedError


class SequenceTask(Task):
    """What translation and summarization share: words in, words out."""

    margin = 2
    shared = False

    def build(self, corpus, choice, options):
        size = options.vocabulary
        source = Vocabulary.build(
            [e.source for e in corpus.train] + [e.target for e in corpus.train if self.shared], size
        )
        self.vocabulary = source if self.shared else Vocabulary.build([e.target for e in corpus.train], size)
        model = Translator(len(source), len(self.vocabulary), options.hidden, choice, options.dropout, self.shared)

        def encode(example):
            return source.encode(example.source), [BEGIN, *self.vocabulary.encode(example.target), END], 0

        return model, encode

    def predict(self, run, examples, batches):
        return predict(run.model, run.params, batches, examples, self.vocabulary, run.options.beam)

    def line(self, prediction, example):
        return " ".join(prediction)

    def rows(self, prediction, example):
        return list(prediction)


@dataclasses.dataclass
class Run:
    options: argparse.Namespace
    model: object
    params: dict


# ---------------------------------------------------------------- options


def parser(task: Task, compare: bool = False) -> argparse.ArgumentParser:
    """The options of one run; a comparison has lists of mappings and seeds in place of one."""
    program = f"python -m examples.compare {task.name}" if compare else f"python -m examples.{task.name}"
    result = argparse.ArgumentParser(
        prog=program, description=type(task).__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    if compare:
        add("--mappings", nargs="+", default=list(MAPPINGS), metavar="NAME[:KEY=VALUE,...]", help="default: all six")
        add("--seeds", nargs="+", type=int, default=[0], metavar="N")
    else:
        add("--mapping", choices=list(MAPPINGS), default="softmax", help="how scores become attention weights")
        for key, help_ in (
            ("gamma", "strength of the regularizer"),
            ("alpha", "of entmax, from 1 (softmax) on; 2 is sparsemax"),
            ("p", "of pnormmax, above 1 and at most 2"),
            ("lam", "strength of the penalty of fusedmax and oscarmax"),
        ):
            add(f"--{key}", type=float, metavar="X", help=help_)
        add(
            "--learn",
            nargs="*",
            metavar="KEY",
            choices=("gamma", "alpha", "p", "lam"),
            help="train these hyper-parameters too; alone: the mapping's own",
        )
        add("--seed", type=int, default=0, metavar="N")
        add("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    add(
        "--data",
        type=pathlib.Path,
        metavar="DIR",
        help="folder with train, valid and test; without it the built-in corpus",
    )
    add(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help=f"default: runs/{task.name}{'-comparison' if compare else '-MAPPING'}",
    )
    add("--steps", type=int, metavar="N", help=f"budget; default {task.steps} on the built-in corpus")
    add("--epochs", type=int, metavar="N", help="budget; default 10 with --data")
    add(
        "--hidden",
        type=int,
        metavar="N",
        help=f"hidden size; default {task.hidden} on the built-in corpus, 128 with --data",
    )
    add("--vocabulary", type=int, default=4000, metavar="N", help="words of a vocabulary (4000)")
    add("--batch", type=int, default=64, metavar="N", help="examples in a step (64)")
    add(
        "--rate",
        type=float,
        metavar="X",
        help="learning rate of Adam; default 0.003 on the built-in corpus, 0.002 with --data",
    )
    add("--dropout", type=float, metavar="X", help="default 0 on the built-in corpus, 0.2 with --data")
    add(
        "--buckets",
        type=int,
        metavar="N",
        help="length groups, each compiled once; default 1 on the built-in corpus, 5 with --data",
    )
    add(
        "--longest",
        type=int,
        default=50,
        metavar="N",
        help="longer training examples are left out, longer inputs cut (50)",
    )
    add("--valid-size", type=int, default=2000, metavar="N", help="use the first N validation examples (2000)")
    add("--test-size", type=int, metavar="N", help="use the first N test examples; default all")
    if task.margin:
        add("--beam", type=int, default=1, metavar="N", help="width of the beam search; 1 is greedy (1)")
    task.add_options(result)
    return result


def complete(task: Task, options: argparse.Namespace) -> argparse.Namespace:
    """Fills in the defaults that depend on the data, and checks the values."""
    real = options.data is not None
    defaults = {
        "hidden": 128 if real else task.hidden,
        "rate": 0.002 if real else 0.003,
        "dropout": 0.2 if real else 0.0,
        "buckets": 5 if real else 1,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.steps is None and options.epochs is None:
        options.steps, options.epochs = (None, 10) if real else (task.steps, None)
    for name in ("steps", "epochs", "hidden", "batch", "buckets", "longest", "valid_size", "test_size", "beam"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} needs a number of at least 1, given {value}")
    if options.hidden % 2:
        raise ValueError(
            f"--hidden needs an even number, half for each direction of the encoder, given {options.hidden}"
        )
    if options.out is None:
        options.out = pathlib.Path("runs") / f"{task.name}-{options.mapping}"
    return options


def main(task: Task, arguments: Sequence[str] | None = None):
    """`python -m examples.TASK`: exit status 0 when done, 130 when interrupted, 2 for what the user can mend."""
    try:
        metrics = run(task, parser(task).parse_args(arguments))
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # outside the training loop, which saves by itself
        print("stopped: add --resume to go on", file=sys.stderr)
        raise SystemExit(130) from None
    if metrics is None:
        raise SystemExit(130)


# ---------------------------------------------------------------- the run


def run(task: Task, options: argparse.Namespace) -> dict | None:
    """Trains, evaluates and writes `options.out`; None when interrupted."""
    options = complete(task, options)
    choice = choice_of(options)
    corpus = task.load(options.data, options) if options.data else corpora.corpus(task.name)
    fitting = [e for e in corpus.train if len(e.source) <= options.longest and len(e.target) <= options.longest]
    if not fitting:
        raise DataError(
            f"{corpus.name}: expected a training example of at most {options.longest} words (--longest), found none"
        )
    corpus = dataclasses.replace(
        corpus, train=fitting, valid=corpus.valid[: options.valid_size], test=corpus.test[: options.test_size]
    )

    model, encode = task.build(corpus, choice, options)
    shapes = bucket_shapes(fitting, options.buckets, options.longest, task.margin)
    batches = Batches(fitting, encode, shapes, options.batch)
    valid, test = (Batches(part, encode, shapes, 4 * options.batch) for part in (corpus.valid, corpus.test))

    out = options.out
    settings = run_settings(task, options, choice)
    arrays = train.start(model, options.rate, next(batches.in_order()).arrays, options.seed)
    progress = train.Progress()
    if (out / train.CHECKPOINT).exists():
        if not options.resume:
            raise ValueError(f"{out} holds a run: add --resume to go on with it, or choose another --out")
        arrays, progress = train.load_checkpoint(out, arrays, settings)
    out.mkdir(parents=True, exist_ok=True)
    sizes = f"{len(fitting)} / {len(corpus.valid)} / {len(corpus.test)} examples"
    print(f"{task.name} on {corpus.name}: {sizes}, mapping {describe(choice)}, into {out}")

    finished = train.fit(
        model, arrays, progress, batches, valid,
        rate=options.rate, seed=options.seed, steps=options.steps, epochs=options.epochs,
        save=lambda: train.save_checkpoint(out, arrays, progress, settings),
    )  # fmt: skip
    if not finished:
        print(f"stopped at step {progress.step}, saved in {out}: add --resume to go on")
        return None

    current = Run(options, model, arrays["best"])
    predictions, attention = task.predict(current, corpus.test, test)
    metrics = {
        "task": task.name,
        "headline": task.headline,
        "score": task.score(predictions, corpus.test),
        "attention": attention_figures(model, current.params, test, corpus.test),
        "mapping": {"name": choice.name, **dict(choice.values), "learned": learned_values(current.params, choice)},
        "training": {
            "steps": progress.step,
            "epochs": progress.step / len(batches),
            "best_epoch": progress.best_epoch,
            "best_valid_loss": progress.best_loss,
            "seconds_per_epoch": seconds_per_epoch(progress, len(batches)),
            "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(arrays["params"]))),
            "history": progress.history,
        },
        "data": {
            "name": corpus.name, "train": len(fitting), "valid": len(corpus.valid), "test": len(corpus.test),
            "shapes": shapes,
        },
        "settings": settings,
        "budget": budget_of(options),
        "evaluation": evaluation_of(options),
        "seed": options.seed,
        "versions": versions(),
    }  # fmt: skip
    if options.data is None:
        metrics["score"]["attainable"] = 100.0
    write_predictions(task, out, predictions, corpus.test)
    shown = show_examples(task, out, predictions, attention, corpus.test, describe(choice))
    write_text(out / "attention.json", json.dumps(shown, ensure_ascii=False))
    write_text(out / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    print(summary(metrics))
    if shown:
        print(f"pictures   {out / 'attention-1.png'} to {len(shown)}")
    return metrics


def choice_of(options: argparse.Namespace) -> Choice:
    given = {key: getattr(options, key) for key in ("gamma", "alpha", "p", "lam")}
    return Choice.make(options.mapping, given, options.learn)


def budget_of(options: argparse.Namespace) -> dict:
    return {"steps": options.steps, "epochs": options.epochs}


def evaluation_of(options: argparse.Namespace) -> dict:
    return {"beam": getattr(options, "beam", None), "test_size": options.test_size}


def run_settings(task: Task, options: argparse.Namespace, choice: Choice) -> dict:
    """All that decides the numbers of a run, except its budget."""
    settings = {key: value for key, value in vars(options).items() if key not in PARTS_LEFT_OUT_OF_SETTINGS}
    settings |= {
        "task": task.name,
        "data": str(options.data) if options.data else None,
        **dict(choice.values),
        "learn": list(choice.learn),
    }
    return json.loads(json.dumps(settings))


def describe(choice: Choice) -> str:
    values = (f"{key}={value:g}{' learned' if key in choice.learn else ''}" for key, value in choice.values)
    return f"{choice.name}({', '.join(values)})"


def seconds_per_epoch(progress: train.Progress, batches: int) -> float | None:
    """Without compilation: the mean of the later steps, times the steps of an epoch."""
    steps, seconds = (
        (sum(column) for column in zip(*progress.durations.values(), strict=True)) if progress.durations else (0, 0.0)
    )
    return seconds / steps * batches if steps else None


def attention_figures(model, params, batches: Batches, examples: list[Example]) -> dict:
    """Over the test part; a decoder reads the reference, so that all mappings are asked about the same words."""
    forward, figures = train.compile_forward(model), AttentionFigures()
    for batch in batches.in_order():
        _, _, weights, rows, _ = forward(params, batch.arrays)
        gold = gold_positions(examples, batch.indices, weights.shape)
        figures.add(np.asarray(weights), np.asarray(rows), (batch.arrays["source"] != PAD).sum(axis=1), gold)
    return figures.means()


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


def write_text(path: pathlib.Path, text: str):
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_predictions(task: Task, out: pathlib.Path, predictions: list, examples: list[Example]):
    lines = (task.line(p, e) + "\n" for p, e in zip(predictions, examples, strict=True))
    write_text(out / "predictions.txt", "".join(lines))


def show_examples(task: Task, out: pathlib.Path, predictions, attention, examples, title: str) -> list[dict]:
    """Draws a handful of test examples, the same ones for every mapping, and returns what was drawn."""
    fitting = [i for i, e in enumerate(examples) if 4 <= len(e.source) <= 30]
    chosen = fitting[:: max(len(fitting) // PICTURES, 1)][:PICTURES]
    shown = []
    for number, index in enumerate(chosen, 1):
        weights, example = attention[index], examples[index]
        rows = task.rows(predictions[index], example)
        source = list(example.source[: weights.shape[1]])
        if len(rows):
            save_heatmaps(out / f"attention-{number}.png", source, [("", rows, weights)], title)
        shown.append({"index": index, "source": source, "rows": rows, "weights": weights.tolist()})
    return shown


def summary(metrics: dict) -> str:
    score = {key: value for key, value in metrics["score"].items() if isinstance(value, float) and key != "attainable"}
    figures = {
        key: metrics["attention"][key]
        for key in ("support", "segments", "entropy", "alignment_error")
        if key in metrics["attention"]
    }
    seconds = metrics["training"]["seconds_per_epoch"]
    parts = [
        ", ".join(f"{re.sub('_', ' ', key)} {value:.2f}" for key, value in part.items()) for part in (score, figures)
    ]
    timing = "" if seconds is None else f"\ntime       {seconds:.1f} s per epoch"
    return f"score      {parts[0]}\nattention  {parts[1]}{timing}"
