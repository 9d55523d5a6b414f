"""Textual entailment: does the premise entail the hypothesis, contradict it, or neither?"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from . import train
from .cli import main
from .data import LABELS, PARTS, Corpus, DataError, Example, Vocabulary, find_file, load_entailment, read_lines
from .metrics import accuracy
from .model import Decomposable, SingleAttention
from .options import EntailmentSettings
from .pictures import wrapped
from .task import Answers, Network, Task

# Words that say little by themselves; what people point at is measured without them.
_FUNCTION_WORDS = r"""
a an the this that these those some any each both all no not n't and or but nor so if while as than then because
of in on at by to from with for into onto over under near up down out off through across about around behind
between during after before along above below against is are was were be been being am has have had having do
does did doing will would can could may might must shall should he she it they we you i him her them us me his
hers its their theirs our your my who whom whose which what where when why how there here 's 're 've 'll 'd 'm
other another . , ; : ! ? " ' ( ) - -- `` ''
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


class Entailment(Task):
    """Textual entailment: does the premise entail the hypothesis, contradict it, or neither?"""

    name = "entailment"
    headline = "accuracy"
    settings = EntailmentSettings
    built_in = Task.built_in | {"steps": 1500, "model": "paper"}
    real = Task.real | {"epochs": 8, "model": "decomposable", "dropout": 0.3, "buckets": 3}

    def load(self, folder, settings):
        corpus = load_entailment(folder)
        return Corpus(corpus.name, corpus.train, corpus.valid, explained(folder, corpus.test))

    def build(self, corpus, mapping, settings):
        words = Vocabulary.build([side for e in corpus.train for side in (e.source, e.target)], settings.vocabulary)
        kind = {"decomposable": Decomposable, "paper": SingleAttention}[settings.model]
        model = kind(len(words), settings.hidden, mapping, settings.dropout)
        return Network(model, lambda e: (words.encode(e.source), words.encode(e.target), LABELS.index(e.label)), words)

    def answer(self, network, params, batches, examples, settings):
        forward = train.compile_forward(network.model, settings.loss)
        predictions: list = [None] * len(examples)
        attention: list = [None] * len(examples)
        for batch in batches.in_order():
            *_, weights, rows, logits = map(np.asarray, forward(params, batch.arrays))
            for row, index in enumerate(batch.indices):
                if index >= 0:
                    predictions[index] = LABELS[logits[row].argmax()]
                    attention[index] = weights[row, rows[row], : len(examples[index].source)]
        return Answers(predictions, attention)

    def score(self, predictions, examples):
        return accuracy(predictions, [e.label for e in examples])

    def outcomes(self, predictions, examples):
        return np.array([[p == e.label] for p, e in zip(predictions, examples, strict=True)], int)

    @staticmethod
    def total(means):
        return 100 * means[..., 0]

    def explain(self, answers, examples):
        """Attention among the premise's content words: the share on those that people named, and what chance gives.

        Rows are the content words of the hypothesis, or the one row of the whole hypothesis.
        """
        shares = [explained_share(w, e) for w, e in zip(answers.attention, examples, strict=True) if e.gold]
        shares = [share for share in shares if share is not None]
        if not shares:
            return {}
        share, base = np.mean(shares, axis=0)
        return {"explained": float(share), "explained_by_chance": float(base)}

    def line(self, prediction, example):
        return "\t".join((prediction, example.label, " ".join(example.source), " ".join(example.target)))

    def rows(self, prediction, example, count):
        return [wrapped([*example.target, f"({prediction})"])] if count == 1 else list(example.target[:count])


def explained(folder: pathlib.Path, examples: list[Example]) -> list[Example]:
    """The test pairs with the premise words that people's explanations name, where the folder has explanations.

    `test_explanations.tsv` holds a line for each pair: sentences in which people say why, separated by tabs.
    """
    try:
        path = find_file(folder, [f"{stem}_explanations.tsv" for stem in PARTS["test"]])
    except DataError:
        return examples
    lines = list(read_lines(path))
    if len(lines) != len(examples):
        raise DataError(f"{path}: expected a line for each of the {len(examples)} test pairs, found {len(lines)}")
    return [
        dataclasses.replace(example, gold=(named_positions(example.source, line.split()),))
        for example, line in zip(examples, lines, strict=True)
    ]


def named_positions(premise: tuple[str, ...], words: list[str]) -> frozenset[int]:
    """Where the premise has a content word that is among `words`."""
    named = set(words) - FUNCTION_WORDS
    return frozenset(s for s, word in enumerate(premise) if word in named)


def explained_share(weights: np.ndarray, example: Example) -> tuple[float, float] | None:
    """Of the weight (T, S) on content words, the share on the named ones; and their share of the content words."""
    assert example.gold is not None
    content = np.array([word not in FUNCTION_WORDS for word in example.source[: weights.shape[1]]])
    named = np.isin(np.arange(weights.shape[1]), list(example.gold[0]))
    if len(weights) > 1:
        asking = np.array([word not in FUNCTION_WORDS for word in example.target[: len(weights)]])
        weights = weights[asking]
    total = (weights @ content).sum()
    if not 0 < named.sum() < content.sum() or total == 0:
        return None
    return float((weights @ named).sum() / total), float(named.sum() / content.sum())


TASK = Entailment()

if __name__ == "__main__":
    main(TASK)
