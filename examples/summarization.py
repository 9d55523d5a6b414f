"""Sentence summarization with global attention over the sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from .cli import main
from .data import Corpus, load_parallel
from .metrics import rouge, rouge_l
from .sequences import SequenceTask

# The sentence-compression layout, then Gigaword's.
SUFFIXES = (
    ("source", "target"),
    ("src", "tgt"),
    ("article.txt", "title.txt"),
    ("article.filter.txt", "title.filter.txt"),
)
_SCALE = 1000  # ROUGE-L as a whole number of thousandths


class Summarization(SequenceTask):
    """Summarization: a bidirectional recurrent encoder and a decoder with global attention, one vocabulary."""

    name = "summarization"
    headline = "rougeL_f1"
    shared = True

    def load(self, folder, settings):
        corpus = load_parallel(folder, SUFFIXES)
        test = [dataclasses.replace(e, gold=kept_positions(e.source, e.target)) for e in corpus.test]
        return Corpus(corpus.name, corpus.train, corpus.valid, test)

    def score(self, predictions, examples):
        return rouge(predictions, [e.target for e in examples])

    def outcomes(self, predictions, examples):
        return np.round(_SCALE * rouge_l(predictions, [e.target for e in examples])).astype(int)[:, None]

    @staticmethod
    def total(means):
        return 100 / _SCALE * means[..., 0]


def kept_positions(source: Sequence[str], target: Sequence[str]) -> tuple[frozenset[int], ...] | None:
    """Where each word of a summary stands in its source, if the summary deletes words and does nothing else.

    Position s is right for word t if some way to delete words keeps s as word t: the source has that word at s, and s
    lies between the earliest and the latest place that word t can take. None if no deletion gives the summary.
    """
    earliest, latest = _earliest(source, target), _earliest(source[::-1], target[::-1])
    if earliest is None or latest is None:
        return None
    latest = [len(source) - 1 - place for place in reversed(latest)]
    return tuple(
        frozenset(s for s in range(first, last + 1) if source[s] == word)
        for word, first, last in zip(target, earliest, latest, strict=True)
    )


def _earliest(source, target) -> list[int] | None:
    places, start = [], 0
    for word in target:
        place = next((s for s in range(start, len(source)) if source[s] == word), None)
        if place is None:
            return None
        places.append(place)
        start = place + 1
    return places


TASK = Summarization()

if __name__ == "__main__":
    main(TASK)
