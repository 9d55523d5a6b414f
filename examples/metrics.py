"""Scores of the tasks, and figures that say what attention looks like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .data import Example

# Two weights count as one value when they differ by less than this share of the larger one.
SAME = 1e-5


def accuracy(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean([p == a for p, a in zip(predictions, answers, strict=True)]))}


def bleu(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float | str]:
    """Corpus BLEU of sacrebleu on the words as they are: the text is tokenized already."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score([" ".join(p) for p in predictions], [[" ".join(r) for r in references]])
    return {"bleu": score.score, "signature": str(metric.get_signature())}


class _Blanks:
    """rouge-score's own tokenizer would drop every sign that is not a letter or digit."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def rouge(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean recall and F1 of ROUGE-1, ROUGE-2 and ROUGE-L, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), tokenizer=_Blanks())
    scores = [scorer.score(" ".join(r), " ".join(p)) for p, r in zip(predictions, references, strict=True)]
    means = {}
    for kind in kinds:
        means[f"{kind}_recall"] = 100 * float(np.mean([score[kind].recall for score in scores]))
        means[f"{kind}_f1"] = 100 * float(np.mean([score[kind].fmeasure for score in scores]))
    return means


def gold_positions(examples: Sequence[Example], indices: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Gold as an array (B, T, S) of booleans; rows without gold are all False."""
    gold = np.zeros(shape, bool)
    for row, index in enumerate(indices):
        if index >= 0 and examples[index].gold is not None:
            for t, positions in enumerate(examples[index].gold[: shape[1]]):
                inside = [s for s in positions if s < shape[2]]
                gold[row, t, inside] = True
    return gold


class AttentionFigures:
    """Means over rows of attention, collected batch by batch.

    support          positions with a weight above zero
    runs             maximal stretches of neighbours with weights above zero
    segments         maximal stretches of neighbours that share one weight above zero
    segment_length   support / segments
    entropy          in nats
    source_length    positions there were to attend to
    alignment_error  share of the weight outside the gold positions, over rows with gold
    peak_error       share of the largest weight's positions that are not gold, over rows with gold
    """

    def __init__(self):
        self._sums = dict.fromkeys(("support", "runs", "segments", "entropy", "source_length"), 0.0)
        self._errors = {"alignment_error": 0.0, "peak_error": 0.0}
        self.rows = self.rows_with_gold = 0

    def add(self, weights: np.ndarray, rows: np.ndarray, lengths: np.ndarray, gold: np.ndarray | None = None):
        """`weights` (B, T, S), `rows` (B, T) the rows that count, `lengths` (B,) of the sources."""
        lengths = np.broadcast_to(np.asarray(lengths)[:, None], rows.shape)[rows]
        weights = np.asarray(weights, np.float64)[rows]  # (rows, S)
        positive = weights > 0
        both = positive[:, 1:] & positive[:, :-1]
        left, right = weights[:, :-1], weights[:, 1:]
        fused = both & (np.abs(left - right) <= SAME * np.maximum(left, right))
        self._sums["support"] += positive.sum()
        self._sums["runs"] += positive.sum() - both.sum()
        self._sums["segments"] += positive.sum() - fused.sum()
        self._sums["entropy"] -= (weights * np.log(np.where(positive, weights, 1.0))).sum()
        self._sums["source_length"] += lengths.sum()
        self.rows += len(weights)
        if gold is not None:
            gold = gold[rows]
            known = gold.any(axis=1)
            weights, gold = weights[known], gold[known]
            peak = weights >= weights.max(axis=1, keepdims=True, initial=0.0) * (1 - SAME)
            self._errors["alignment_error"] += (1 - (weights * gold).sum(axis=1)).sum()
            self._errors["peak_error"] += (1 - (peak & gold).sum(axis=1) / peak.sum(axis=1)).sum()
            self.rows_with_gold += len(weights)

    def means(self) -> dict[str, float | int]:
        if not self.rows:
            raise ValueError("no row of attention was added")
        means = {name: float(total / self.rows) for name, total in self._sums.items()}
        means["segment_length"] = means["support"] / max(means["segments"], 1e-9)
        if self.rows_with_gold:
            means |= {name: float(total / self.rows_with_gold) for name, total in self._errors.items()}
        return means | {"rows": self.rows, "rows_with_gold": self.rows_with_gold}
