"""The long-context example: its tasks by hand, runs that go on, a comparison, and what is refused."""

import json
import signal

import numpy as np
import pytest
from cases import refuse

from examples.recall import compare, options, tasks, train

# Flax's own code promotes dtypes. The library that draws is imported by one worker.
pytestmark = [pytest.mark.usefixtures("no_x64"), pytest.mark.xdist_group("examples")]
TINY = {"steps": 4, "length": 16, "multiples": (1, 2), "examples": 2, "batch": 2, "hidden": 8, "heads": 2, "layers": 1}


@pytest.mark.parametrize("task", ["copy", "reverse", "sort"])
def test_a_rewriting_task_by_hand(task):
    batch = tasks.draw(task, np.random.default_rng(0), 3, 12, vary=False)
    for inputs, targets, asked in zip(*batch, strict=True):
        given, answers = inputs[1:6], targets[asked]
        assert inputs[0] == tasks.BEGIN and inputs[6] == tasks.TURN and len(set(given)) == 5
        expected = {"copy": given, "reverse": given[::-1], "sort": np.sort(given)}[task]
        np.testing.assert_array_equal(answers, expected)
        np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(6, 11))  # from TURN on


def test_recall_by_hand():
    batch = tasks.draw("recall", np.random.default_rng(0), 3, 16, vary=False)
    for inputs, targets, asked in zip(*batch, strict=True):
        memory = dict(zip(inputs[:8:2], inputs[1:8:2], strict=True))
        assert len(memory) == 4 and asked.sum() == 4
        assert sorted(inputs[asked]) == sorted(memory)
        assert [memory[key] for key in inputs[asked]] == list(targets[asked])


def test_lengths_vary_and_the_rest_is_padding_that_nobody_asks():
    batch = tasks.draw("copy", np.random.default_rng(0), 32, 20, vary=True)
    lengths = (batch.targets != tasks.PAD).sum(axis=1)
    assert len(set(lengths)) > 3 and lengths.max() <= 20
    assert not (batch.asked & (batch.targets == tasks.PAD)).any() and batch.asked.any(axis=1).all()
    with pytest.raises(ValueError, match=r"length must be at most 2050 for the task copy, got 4096"):
        tasks.draw("copy", np.random.default_rng(0), 1, 4096, vary=False)


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    chosen = options.Options(mapping="entmax", learn_alpha=True, out=tmp_path / "whole", **TINY)
    whole = train.run(chosen)
    assert np.shape(whole["learned"]["alpha"]) == (1, 2) and whole["learned"]["alpha"] != [[1.5, 1.5]]
    assert [test["length"] for test in whole["tests"]] == [16, 32]
    assert {path.name for path in chosen.folder.iterdir()} == {
        "attention.png",
        "checkpoint.safetensors",
        "metrics.json",
    }

    draw, drawn = tasks.draw, []

    def interrupting(*arguments, **keywords):
        drawn.append(None)
        if len(drawn) == 2:  # at the first step the rate is 0
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments, **keywords)

    again = options.Options(mapping="entmax", learn_alpha=True, out=tmp_path / "parts", **TINY)
    monkeypatch.setattr(tasks, "draw", interrupting)
    with pytest.raises(SystemExit, match="stopped at step 2"):
        train.run(again)
    parts = train.run(again)
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}

    (again.folder / "metrics.json").unlink()
    other = options.Options(mapping="softmax", out=tmp_path / "parts", **TINY)
    with pytest.raises(SystemExit, match="mapping=entmax, now softmax"):
        train.run(other)


def test_a_comparison_makes_a_table_and_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(compare.jax, "clear_caches", lambda: None)  # there is room for two short runs
    monkeypatch.setattr(compare, "Options", lambda **given: options.Options(**{**TINY, **given, "steps": 2}))
    arguments = ["--tasks", "recall", "--variants", "softmax", "entmax-scaled", "--seeds", "0", "--out", str(tmp_path)]
    compare.main([*arguments, "--examples", "2"])
    table = (tmp_path / "table.md").read_text()
    assert "| recall | entmax(1.5), length-scaled | 1 |" in table and "| recall | softmax | 1 |" in table
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [np.shape(one["learned"].get("slope", [])) for one in runs] == [(1, 2), (0,)]
    assert (tmp_path / "exact.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, ["steps", "0"]),
        ({"length": 4}, ["length", "4"]),
        ({"heads": 3}, ["hidden", "heads", "3"]),
        ({"learn_alpha": True}, ["learn_alpha", "softmax"]),
        ({"learn_alpha": True, "mapping": "entmax", "alpha": 2.0}, ["alpha", "2.0"]),
    ],
)
def test_bad_options_are_named(given, words):
    refuse(lambda: options.Options(**given), *words, error=ValueError)
