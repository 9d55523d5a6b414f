"""Sentence summarization with global attention over the sentence."""

from __future__ import annotations

from .cli import SequenceTask, main
from .data import load_parallel
from .metrics import rouge

# The sentence-compression layout, then Gigaword's.
SUFFIXES = (
    ("source", "target"),
    ("src", "tgt"),
    ("article.txt", "title.txt"),
    ("article.filter.txt", "title.filter.txt"),
)


class Summarization(SequenceTask):
    """Summarization: a bidirectional recurrent encoder and a decoder with global attention, one vocabulary."""

    name = "summarization"
    headline = "rougeL_f1"
    steps = 400
    shared = True

    def load(self, folder, options):
        return load_parallel(folder, SUFFIXES)

    def score(self, predictions, examples):
        return rouge(predictions, [e.target for e in examples])


TASK = Summarization()

if __name__ == "__main__":
    main(TASK)
