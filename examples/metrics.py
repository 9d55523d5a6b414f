"""Scores of the tasks, and figures that say what attention looks like."""

from __future__ import annotations

import collections
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


def bleu_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU is made of, by sentence: n-grams found, n-grams said (n = 1 to 4), and the length of the reference."""
    rows = []
    for said, reference in zip(predictions, references, strict=True):
        found, spoken = [], []
        for n in range(1, 5):
            ours, theirs = (collections.Counter(zip(*(s[k:] for k in range(n)))) for s in (said, reference))  # noqa: B905
            found.append((ours & theirs).total())
            spoken.append(ours.total())
        rows.append([*found, *spoken, len(reference)])
    return np.array(rows, int)


def bleu_of_counts(means: np.ndarray) -> np.ndarray:
    """Corpus BLEU from sums or means of `bleu_counts` (..., 9)."""
    found, spoken, length = means[..., :4], means[..., 4:8], means[..., 8]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(found / spoken).mean(axis=-1))
        brevity = np.exp(np.minimum(1 - length / spoken[..., 0], 0))
    return np.nan_to_num(100 * brevity * precision)


class _Blanks:
    """rouge-score's own tokenizer would drop every sign that is not a letter or digit."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def rouge(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean recall and F1 of ROUGE-1, ROUGE-2 and ROUGE-L, without stemming."""
    means = {}
    for kind in ("rouge1", "rouge2", "rougeL"):
        scores = _rouge(kind, predictions, references)
        means[f"{kind}_recall"] = 100 * float(np.mean([score.recall for score in scores]))
        means[f"{kind}_f1"] = 100 * float(np.mean([score.fmeasure for score in scores]))
    return means


def rouge_l(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The F1 of ROUGE-L of each sentence, from 0 to 1."""
    return np.array([score.fmeasure for score in _rouge("rougeL", predictions, references)])


def _rouge(kind: str, predictions, references) -> list:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], tokenizer=_Blanks())
    return [scorer.score(" ".join(r), " ".join(p))[kind] for p, r in zip(predictions, references, strict=True)]


def gold_positions(examples: Sequence[Example], indices: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Gold as an array (B, T, S) of booleans; rows without gold are all False, a single set stands for all rows."""
    gold = np.zeros(shape, bool)
    for row, index in enumerate(indices):
        sets = examples[index].gold if index >= 0 else None
        if sets is not None:
            for t, positions in enumerate(sets[: shape[1]] if len(sets) > 1 else sets * shape[1]):
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
    gold_share       share of the source that is gold, over rows with gold: what chance gives
    alignment_error  share of the weight outside the gold positions, over rows with gold
    peak_error       share of the largest weight's positions that are not gold, over rows with gold
    """

    def __init__(self):
        self._sums = dict.fromkeys(("support", "runs", "segments", "entropy", "source_length"), 0.0)
        self._errors = {"alignment_error": 0.0, "peak_error": 0.0, "gold_share": 0.0}
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
            weights, gold, lengths = weights[known], gold[known], lengths[known]
            peak = weights >= weights.max(axis=1, keepdims=True, initial=0.0) * (1 - SAME)
            self._errors["alignment_error"] += (1 - (weights * gold).sum(axis=1)).sum()
            self._errors["peak_error"] += (1 - (peak & gold).sum(axis=1) / peak.sum(axis=1)).sum()
            self._errors["gold_share"] += (gold.sum(axis=1) / lengths).sum()
            self.rows_with_gold += len(weights)

    def means(self) -> dict[str, float | int]:
        if not self.rows:
            raise ValueError("no row of attention was added")
        means = {name: float(total / self.rows) for name, total in self._sums.items()}
        means["segment_length"] = means["support"] / max(means["segments"], 1e-9)
        if self.rows_with_gold:
            means |= {name: float(total / self.rows_with_gold) for name, total in self._errors.items()}
        return means | {"rows": self.rows, "rows_with_gold": self.rows_with_gold}
