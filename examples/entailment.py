"""Textual entailment: does the premise entail the hypothesis, contradict it, or neither?"""

from __future__ import annotations

import numpy as np

from . import train
from .cli import Task, main
from .data import LABELS, Vocabulary, load_entailment
from .metrics import accuracy
from .model import Classifier
from .pictures import wrapped


class Entailment(Task):
    """Textual entailment: recurrent encoders of premise and hypothesis, attention over the premise."""

    name = "entailment"
    headline = "accuracy"
    steps = 1500

    def load(self, folder, options):
        return load_entailment(folder)

    def build(self, corpus, choice, options):
        words = Vocabulary.build([side for e in corpus.train for side in (e.source, e.target)], options.vocabulary)
        model = Classifier(len(words), options.hidden, choice, options.dropout)
        return model, lambda e: (words.encode(e.source), words.encode(e.target), LABELS.index(e.label))

    def predict(self, run, examples, batches):
        forward = train.compile_forward(run.model)
        predictions: list = [None] * len(examples)
        attention: list = [None] * len(examples)
        for batch in batches.in_order():
            *_, weights, _, logits = forward(run.params, batch.arrays)
            for row, (index, choice) in enumerate(zip(batch.indices, np.asarray(logits).argmax(axis=1), strict=True)):
                if index >= 0:
                    predictions[index] = LABELS[choice]
                    attention[index] = np.asarray(weights[row, :, : len(examples[index].source)])
        return predictions, attention

    def score(self, predictions, examples):
        return accuracy(predictions, [e.label for e in examples])

    def line(self, prediction, example):
        return "\t".join((prediction, example.label, " ".join(example.source), " ".join(example.target)))

    def rows(self, prediction, example):
        return [wrapped([*example.target, f"({prediction})"])]


TASK = Entailment()

if __name__ == "__main__":
    main(TASK)
