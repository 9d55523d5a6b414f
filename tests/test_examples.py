"""The examples as they are run: the command line and its errors, a few steps, exact resumption, comparisons."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
from example_modules import MARKS, TASKS, cli, compare, corpora, data, mappings, options, report, train

pytestmark = MARKS
TINY = ["--hidden", "8", "--batch", "8", "--valid-size", "8", "--test-size", "8"]


@pytest.fixture
def small_corpora(monkeypatch):
    """Built-in corpora of 40 training examples, and one heatmap a run."""
    full = corpora.corpus
    monkeypatch.setattr(cli, "PICTURES", 1)
    monkeypatch.setattr(corpora, "corpus", lambda name: full(name, train=40, valid=8, test=8))


def run(task, out, *arguments):
    one = cli.command_line(options.Run[task.settings], "test", "", [*TINY, "--out", str(out), *arguments])
    return cli.run(task, one)


def lasting(result):
    """All of metrics.json except what a clock wrote."""
    result = json.loads(json.dumps(result))
    del result["seconds_per_epoch"], result["budget"]
    return result


def test_command_line_errors_name_the_remedy(tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, expected in (
        (["--mapping", "softmax:alpha=2"], "softmax has no alpha: it takes gamma"),
        (["--mapping", "softplus"], "'softplus' is not a mapping: use one of softmax, sparsemax"),
        (["--mapping", "entmax:alpha"], "write KEY=NUMBER, or KEY~NUMBER to learn it"),
        (["--mapping", "entmax:alpha~3"], "must start between 1 and 2.5 to be learned"),
        (["--mapping", "entmax:alpha=0.5"], "alpha of Tsallis must be at least 1"),
        (["--mapping", "pnormmax:p=1"], "p of SquaredPNorm must be greater than 1"),
        (["--mapping", "softmax:gamma=0"], "must be positive"),
        (["--hidden", "7"], "--hidden needs an even number"),
        (["--rate", "nan"], "--rate needs a positive number, given nan"),
        (["--dropout", "1"], "--dropout needs a number from 0 to below 1"),
        (["--data", str(tmp_path)], "expected train.en and train.de"),
        (["--steps", "1", *TINY, "--out", str(tmp_path / "file")], "File exists"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(TASKS["translation"], ["--out", str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err


def test_a_newcomer_reads_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(TASKS["entailment"], ["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for wanted in (
        "python -m examples.entailment --mapping sparsemax",
        "fusedmax:lam=0.3",
        "hidden 64",
        "--model {None,decomposable,paper}",
    ):
        assert wanted in said


# ---------------------------------------------------------------- mappings


def test_a_mapping_is_one_word():
    for word in ("softmax", "none", "softmax:gamma=0.5", "entmax:alpha=1.3", "fusedmax:lam~0.2,gamma=2"):
        assert str(mappings.Mapping.parse(word)) == word
    assert str(mappings.Mapping.parse("fusedmax:lam=0.12345678")) == "fusedmax:lam=0.12345678"
    assert str(mappings.Mapping.parse("entmax")) == "entmax:alpha=1.5"  # what sets it apart is always said
    assert str(mappings.Mapping.parse("softmax:gamma=1")) == "softmax"
    learned = mappings.Mapping.parse("entmax:alpha~1.3,gamma=2")
    assert learned.learned == ("alpha",)
    values = learned.hyperparameters(learned.starts())
    assert {key: round(float(value), 5) for key, value in values.items()} == {"alpha": 1.3, "gamma": 2.0}


def test_attention_off_sees_nothing_or_everything_alike():
    scores, where = np.ones((1, 2, 3), np.float32), np.array([[[True, True, False]]])
    weights = {name: mappings.Mapping.parse(name).function({})(scores, axis=-1, where=where) for name in mappings.OFF}
    assert not np.any(weights["none"])
    assert np.array_equal(weights["uniform"], np.broadcast_to([0.5, 0.5, 0.0], (1, 2, 3)))


# ---------------------------------------------------------------- runs


# Compilation is what these tests wait for, so by default each mapping runs on one task and each task with a mapping;
# with SMOOTHMAX_ALL_EXAMPLES=1 they are crossed. Softmax, fusedmax and sparsemax also run in the tests below.
CROSSED = [(name, mapping) for name in TASKS for mapping in mappings.MAPPINGS]
FEW = [("summarization", "oscarmax"), ("translation", "pnormmax")]


@pytest.mark.parametrize(("name", "mapping"), CROSSED if os.environ.get("SMOOTHMAX_ALL_EXAMPLES") else FEW)
def test_a_few_steps(tmp_path, small_corpora, name, mapping):
    own = next(iter(mappings.MAPPINGS[mapping]))
    word = f"{mapping}:{own}~{mappings.MAPPINGS[mapping][own]}" if name == "summarization" else mapping
    beam = ["--beam", "2", "--loss", "sparsemax"] if name == "summarization" else []
    result = run(TASKS[name], tmp_path, "--mapping", word, "--steps", "2", *beam)
    figures = result["attention"]
    assert np.isfinite(result["score"][TASKS[name].headline])
    assert 1 <= figures["support"] <= figures["source_length"]
    assert figures["runs"] <= figures["segments"] <= figures["support"]
    assert len((tmp_path / "predictions.txt").read_text().splitlines()) == 8
    assert json.loads((tmp_path / "metrics.json").read_text())["mapping"].startswith(mapping)
    assert list(result["learned"]) == ([own] if name == "summarization" else [])


def test_outputs_and_checkpoint(tmp_path, small_corpora, monkeypatch):
    import safetensors

    monkeypatch.setattr(cli, "PICTURES", 2)
    arguments = ["--mapping", "entmax:alpha~1.5,gamma=0.7", "--model", "decomposable", "--steps", "3"]
    result = run(TASKS["entailment"], tmp_path, *arguments)
    assert {"attention-1.png", "attention-2.png", "metrics.json", "predictions.txt", "checkpoint.safetensors"} <= {
        p.name for p in tmp_path.iterdir()
    }
    for one in json.loads((tmp_path / "attention.json").read_text()):
        assert np.shape(one["weights"]) == (len(one["rows"]), len(one["source"]))
    assert set(result["learned"]) == {"alpha"} and result["learned"]["alpha"] != 1.5
    # The format holds plain arrays: a length, a JSON header, numbers. Nothing in it can run.
    stored = (tmp_path / "checkpoint.safetensors").read_bytes()
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} <= {"F32", "I32"}
    with safetensors.safe_open(tmp_path / "checkpoint.safetensors", framework="numpy") as file:
        names = set(file.keys())
    assert any(name.startswith("params/") for name in names) and any(name.startswith("optimizer/") for name in names)
    params = {name: value for name, value in _stored(tmp_path).items() if name.startswith("params/")}
    assert [value for name, value in params.items() if name.endswith("gamma")] == [np.float32(0.7)]
    with pytest.raises(ValueError, match="add --resume to go on"):
        run(TASKS["entailment"], tmp_path, *arguments)
    with pytest.raises(data.DataError, match=r"was made with rate = 0\.003, now it is 0\.1"):
        run(TASKS["entailment"], tmp_path, *arguments, "--resume", "--rate", "0.1")
    (tmp_path / "checkpoint.safetensors").write_bytes(stored[:200])
    with pytest.raises(ValueError, match=r"is no whole checkpoint .* delete it"):
        run(TASKS["entailment"], tmp_path, *arguments, "--resume")


def test_resumed_run_equals_uninterrupted_run(tmp_path, small_corpora, monkeypatch):
    """With dropout, two buckets, a stop at the end of a smaller budget, and interruptions before the first step and in
    the second epoch."""
    task, common = (
        TASKS["entailment"],
        ["--mapping", "sparsemax", "--dropout", "0.2", "--buckets", "2", "--rate", "0.02"],
    )
    whole = run(task, tmp_path / "whole", *common, "--steps", "13")

    parts = tmp_path / "parts"

    def stopped_at(step, place, name, call, *arguments):
        """A run during which Ctrl-C is pressed when a function is called for that time."""
        function, calls = getattr(place, name), itertools.count(1)

        def pressing(*args, **options):
            if next(calls) == call:
                signal.raise_signal(signal.SIGINT)
            return function(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(place, name, pressing)
            assert run(task, parts, *common, *arguments) is None
        assert json.loads(_progress(parts))["step"] == step

    stopped_at(0, cli, "prepare", 1, "--steps", "3")
    assert run(task, parts, *common, "--steps", "3", "--resume") is not None  # ends inside the first epoch
    stopped_at(8, data.Batches, "take", 5, "--steps", "13", "--resume")
    resumed = run(task, parts, *common, "--steps", "13", "--resume")

    assert lasting(resumed) == lasting(whole)
    assert (parts / "predictions.txt").read_text() == (tmp_path / "whole" / "predictions.txt").read_text()
    assert _tensors(parts) == _tensors(tmp_path / "whole")
    assert _losses(parts) == _losses(tmp_path / "whole")


def _progress(folder):
    import safetensors

    with safetensors.safe_open(folder / train.CHECKPOINT, framework="numpy") as file:
        return file.metadata()["progress"]


def _losses(folder):
    return [(epoch["train_loss"], epoch["valid_loss"]) for epoch in json.loads(_progress(folder))["history"]]


def _tensors(folder):
    return {name: array.tobytes() for name, array in _stored(folder).items()}


def _stored(folder):
    import safetensors.numpy

    return safetensors.numpy.load_file(folder / train.CHECKPOINT)


def test_comparison_chooses_grows_and_keeps_finished_runs(tmp_path, small_corpora, monkeypatch):
    words = ["none", "softmax", "softmax:gamma=0.3", "fusedmax:lam~0.3"]
    arguments = ["entailment", *TINY, "--model", "decomposable", "--steps", "2", "--search"]
    arguments += ["--out", str(tmp_path), "--mappings", *words]
    made, one_run = [], cli.run
    monkeypatch.setattr(compare.jax, "clear_caches", lambda: None)  # there is room for ten short runs
    monkeypatch.setattr(
        cli, "run", lambda task, run: made.append((run.mapping, run.seed, run.settings.test_size)) or one_run(task, run)
    )
    compare.main(arguments)
    records = report.read(tmp_path / "runs.jsonl")
    assert len(records) == 4  # the grid on the validation part; the chosen ones then saw the test part
    assert made[:4] == [(word, 0, 0) for word in words]
    chosen = [record["mapping"] for record in records if "score" in record]
    losses = {record["mapping"]: record["best_valid_loss"] for record in records}
    assert set(chosen) == {"none", "fusedmax:lam~0.3", min("softmax", "softmax:gamma=0.3", key=losses.__getitem__)}
    assert made[4:] == [(word, 0, 8) for word in words if word in chosen]
    table = (tmp_path / "table.md").read_text()
    assert "| none | 1 |" in table and "minus softmax" in table
    assert (tmp_path / "comparison.png").stat().st_size > 1000

    made.clear()
    compare.main([*arguments, "--seeds", "0", "1"])
    assert made == [(word, 1, 8) for word in words if word in chosen]
    assert "| none | 2 |" in (tmp_path / "table.md").read_text()
    made.clear()  # the file alone is enough: elsewhere, without the folders of the runs, nothing is made again
    elsewhere = [str(tmp_path / "elsewhere") if a == str(tmp_path) else a for a in arguments]
    compare.main([*elsewhere, "--results", str(tmp_path / "runs.jsonl"), "--seeds", "0", "1"])
    assert not made
    with pytest.raises(SystemExit):
        compare.main(["entailment", "--mappings", "softmax:lam=1", "--out", str(tmp_path)])


def test_no_step_waits_for_its_loss(small_corpora, monkeypatch):
    """The loss of a step is an array that the next step takes; it is fetched at the end of an epoch."""
    monkeypatch.setattr(train, "SAVE_EVERY", float("inf"))
    fetched = []
    monkeypatch.setattr(
        train, "compile_step", lambda *_: lambda params, state, total, *__: (params, state, _Lazy(fetched))
    )
    batches = data.Batches([data.Example(("a",), ("b",))] * 6, lambda _: ([4], [4], 0), [(1, 1)], 2)
    training = train.Training(
        None,
        options.Settings(rate=0.1),
        0,
        {"params": {}, "optimizer": {}},
        train.Progress(),
        batches,
        batches,
        lambda: None,
    )
    training._steps(batches.shuffled(0, 0), float("inf"), [], _Bar())
    assert training.progress.step == 3 and len(fetched) == 1


class _Lazy:
    def __init__(self, fetched):
        self.fetched = fetched

    def __float__(self):
        self.fetched.append(self)
        return 1.0


class _Bar:
    def update(self): ...
