"""What the examples report: scores and figures of attention by hand, and what chance makes of them."""

import numpy as np
import pytest
from example_modules import MARKS, TASKS, cli, data, entailment, metrics, report

pytestmark = MARKS


def test_attention_figures_by_hand():
    weights = np.array([[[0.25, 0.25, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    rows = np.array([[True, True, False]])
    gold = np.array([[[True, True, False, False], [False] * 4, [True] * 4]])
    figures = metrics.AttentionFigures()
    figures.add(weights, rows, np.array([4]), gold)
    means = figures.means()
    assert means["support"] == (3 + 1) / 2
    assert means["runs"] == (2 + 1) / 2
    assert means["segments"] == (2 + 1) / 2  # [0.25 0.25] and [0.5]; [1]
    assert means["segment_length"] == 4 / 3
    assert means["entropy"] == pytest.approx((0.5 * np.log(4) + 0.5 * np.log(2)) / 2)
    assert means["source_length"] == 4
    assert means["alignment_error"] == 0.5  # only the first row has gold and counts
    assert means["peak_error"] == 1.0
    assert (means["rows"], means["rows_with_gold"]) == (2, 1)


def test_small_softmax_weights_are_segments_of_their_own():
    figures = metrics.AttentionFigures()
    figures.add(np.array([[[1e-12, 2e-12, 1.0]]]), np.array([[True]]), np.array([3]))
    assert figures.means()["segments"] == 3
    assert "alignment_error" not in figures.means()


def test_task_scores_by_hand():
    assert metrics.accuracy(["a", "b", "c", "a"], ["a", "b", "b", "b"]) == {"accuracy": 50.0}
    scores = metrics.rouge([["the", "##", "cat"]], [["the", "##", "dog", "sat"]])
    assert scores["rouge1_recall"] == pytest.approx(50.0)
    assert scores["rouge1_f1"] == pytest.approx(100 * 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert scores["rouge2_recall"] == pytest.approx(100 / 3)
    assert scores["rougeL_f1"] == scores["rouge1_f1"]
    sentence = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    assert metrics.bleu([sentence], [sentence])["bleu"] == pytest.approx(100.0)
    changed = [*sentence[:-1], "x"]  # 9 of 10 words, 8 of 9 pairs, 7 of 8 triples and 6 of 7 quadruples are right
    expected = 100 * (9 / 10 * 8 / 9 * 7 / 8 * 6 / 7) ** 0.25
    assert metrics.bleu([changed], [sentence])["bleu"] == pytest.approx(expected)


def test_outcomes_survive_packing_and_give_the_scores():
    numbers = np.array([[0, 3], [1, 65535]])
    assert np.array_equal(cli.unpacked(cli.packed(numbers)), numbers)
    said = [["the", "cat", "sat", "on", "the", "mat"], ["a", "dog", "ran", "to", "the", "man"]]
    meant = [["the", "cat", "sat", "on", "a", "mat", "today"], ["a", "dog", "ran", "to", "the", "old", "man"]]
    for task in (TASKS["translation"], TASKS["summarization"]):
        examples = [data.Example((), tuple(reference)) for reference in meant]
        total = task.total(task.outcomes(said, examples).mean(axis=0))
        assert total == pytest.approx(task.score(said, examples)[task.headline], abs=0.05)  # it is rounded to 0.1


def test_bootstrap_finds_a_difference_and_no_other():
    draw = np.random.default_rng(0)

    def runs(share, seeds):
        outcomes = [cli.packed(draw.random((2000, 1)) < share) for _ in range(seeds)]
        return [{"task": "entailment", "outcomes": outcome} for outcome in outcomes]

    scores = report.resampled({"a": runs(0.6, 4), "b": runs(0.6, 4), "c": runs(0.7, 4)}, count=500)
    assert scores["a"].shape == (500,)
    assert abs((scores["a"] - scores["b"]).mean()) < 2
    assert np.quantile(scores["c"] - scores["a"], 0.01) > 5
    alone = report.resampled({"a": runs(0.6, 1)}, count=500)["a"]  # one seed: the deviation of a binomial share
    assert alone.std() == pytest.approx(100 * np.sqrt(0.6 * 0.4 / 2000), rel=0.1)  # 500 draws: 3%


def test_share_of_attention_that_people_explain():
    premise, hypothesis = ("a", "dog", "runs", "in", "snow"), ("the", "dog", "is", "moving")
    gold = entailment.named_positions(premise, ["the", "dog", "runs", "in"])
    assert gold == {1, 2}  # without function words
    example = data.Example(premise, hypothesis, "entailment", (gold,))
    weights = np.zeros((4, 5))
    weights[0, 0] = 1.0  # a row of a function word does not count
    weights[1, 1] = 1.0
    weights[3] = [0.5, 0.0, 0.25, 0.0, 0.25]
    share, base = entailment.explained_share(weights, example)
    assert share == pytest.approx((1 + 0.25) / (1 + 0.5)) and base == pytest.approx(2 / 3)
    single, _ = entailment.explained_share(weights[3:], example)
    assert single == pytest.approx(0.5)
