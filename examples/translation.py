"""Machine translation with global attention over the source."""

from __future__ import annotations

from .cli import main
from .data import load_parallel
from .metrics import bleu, bleu_counts, bleu_of_counts
from .options import TranslationSettings
from .sequences import SequenceTask


class Translation(SequenceTask):
    """Translation: a bidirectional recurrent encoder and a decoder with global attention."""

    name = "translation"
    headline = "bleu"
    settings = TranslationSettings
    total = staticmethod(bleu_of_counts)

    def load(self, folder, settings):
        return load_parallel(folder, [settings.languages])

    def score(self, predictions, examples):
        return bleu(predictions, [e.target for e in examples])

    def outcomes(self, predictions, examples):
        return bleu_counts(predictions, [e.target for e in examples])


TASK = Translation()

if __name__ == "__main__":
    main(TASK)
