"""What translation and summarization share: words in, words out."""

from __future__ import annotations

from .data import BEGIN, END, Vocabulary
from .decode import predict
from .model import Translator
from .options import SequenceSettings
from .task import Answers, Network, Task


class SequenceTask(Task):
    settings = SequenceSettings
    built_in = Task.built_in | {"steps": 400}
    real = Task.real | {"epochs": 10}
    margin = 2
    shared = False  # one vocabulary for both sides

    def build(self, corpus, mapping, settings):
        sources, targets = [e.source for e in corpus.train], [e.target for e in corpus.train]
        source = Vocabulary.build(sources + targets * self.shared, settings.vocabulary)
        target = source if self.shared else Vocabulary.build(targets, settings.vocabulary)
        model = Translator(len(source), len(target), settings.hidden, mapping, settings.dropout, self.shared)

        def encode(example):
            return source.encode(example.source), [BEGIN, *target.encode(example.target), END], 0

        return Network(model, encode, target)

    def answer(self, network, params, batches, examples, settings):
        return Answers(*predict(network.model, params, batches, examples, network.words, settings.beam))

    def line(self, prediction, example):
        return " ".join(prediction)

    def rows(self, prediction, example, count):
        return list(prediction)
