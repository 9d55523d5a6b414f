"""Machine translation with global attention over the source."""

from __future__ import annotations

from .cli import SequenceTask, main
from .data import load_parallel
from .metrics import bleu


class Translation(SequenceTask):
    """Translation: a bidirectional recurrent encoder and a decoder with global attention."""

    name = "translation"
    headline = "bleu"
    steps = 400

    def add_options(self, parser):
        parser.add_argument(
            "--languages", nargs=2, default=["en", "de"], metavar=("FROM", "TO"), help="suffixes of the files (en de)"
        )

    def load(self, folder, options):
        return load_parallel(folder, [tuple(options.languages)])

    def score(self, predictions, examples):
        return bleu(predictions, [e.target for e in examples])


TASK = Translation()

if __name__ == "__main__":
    main(TASK)
