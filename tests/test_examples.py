"""The examples: loaders and their errors, built-in corpora, figures by hand, exact resumption, a few steps."""

import gzip
import itertools
import json
import os
import pathlib
import signal
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("flax")
for needed in ("optax", "sacrebleu", "rouge_score", "tqdm", "matplotlib", "safetensors", "tyro"):
    pytest.importorskip(needed)

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
# The libraries that the examples stand on import with warnings of their own.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from examples import cli, compare, corpora, data, entailment, mappings, metrics, options, report, train
    from examples.entailment import TASK as ENTAILMENT
    from examples.summarization import SUFFIXES, kept_positions
    from examples.summarization import TASK as SUMMARIZATION
    from examples.translation import TASK as TRANSLATION

pytestmark = [
    pytest.mark.usefixtures("no_x64"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.xdist_group("examples"),  # libraries that score and draw take seconds to import: in one worker
]
TASKS = {task.name: task for task in (ENTAILMENT, TRANSLATION, SUMMARIZATION)}
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


# ---------------------------------------------------------------- loaders


def write(path, text):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def test_entailment_from_tabs_and_json(tmp_path):
    write(tmp_path / "train.tsv.gz", "entailment\ta dog runs\ta dog moves\n-\tx\ty\n")
    record = {"gold_label": "neutral", "sentence1": "A dog isn't here.", "sentence2": "It's gone!", "pairID": 3}
    write(tmp_path / "snli_1.0_dev.jsonl", json.dumps(record) + "\n")
    write(tmp_path / "test.tsv", "contradiction\ta\tb\n")
    corpus = data.load_entailment(tmp_path)
    assert corpus.train == [data.Example(("a", "dog", "runs"), ("a", "dog", "moves"), "entailment")]
    assert corpus.valid[0].source == ("a", "dog", "is", "n't", "here", ".")
    assert corpus.valid[0].target == ("it", "'s", "gone", "!")
    assert corpus.test[0].label == "contradiction"


def test_parallel_files_under_public_names(tmp_path):
    for part in ("train", "val", "test2016"):
        write(tmp_path / f"{part}.en.gz", "a dog\na cat\n")
        write(tmp_path / f"{part}.de", "ein hund\neine katze\n")
    corpus = data.load_parallel(tmp_path, [("en", "de")])
    assert corpus.test[1] == data.Example(("a", "cat"), ("eine", "katze"))
    for part in ("train", "valid", "test"):
        write(tmp_path / f"{part}.article.txt", "long text\n")
        write(tmp_path / f"{part}.title.txt", "text\n")
    assert data.load_parallel(tmp_path, SUFFIXES).train == [data.Example(("long", "text"), ("text",))]


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        (
            "train.tsv",
            "entailment\tonly a premise",
            r"train\.tsv, line 2: expected label<TAB>premise<TAB>hypothesis, found 2",
        ),
        ("train.tsv", "maybe\ta\tb", r"train\.tsv, line 2: expected a label among entailment.*found 'maybe'"),
        ("train.tsv", "neutral\t\tb", r"train\.tsv, line 2: expected a premise and a hypothesis"),
        ("train.jsonl", '{"gold_label": ', r"train\.jsonl, line 2: expected a JSON object, found"),
        ("train.jsonl", '{"gold_label": "neutral"}', r"train\.jsonl, line 2: expected a JSON object with the texts"),
    ],
)
def test_malformed_pairs(tmp_path, name, line, expected):
    good = {"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}
    first = json.dumps(good) if name.endswith("jsonl") else "neutral\ta\tb"
    path = write(tmp_path / name, f"{first}\n{line}\n")
    with pytest.raises(data.DataError, match=expected):
        data.read_entailment(path)


def test_missing_and_uneven_files(tmp_path):
    with pytest.raises(data.DataError, match="nowhere: expected a folder"):
        data.load_parallel(tmp_path / "nowhere", [("en", "de")])
    with pytest.raises(data.DataError, match=r"expected train\.en and train\.de .*found none"):
        data.load_parallel(tmp_path, [("en", "de")])
    source = write(tmp_path / "train.en", "one\ntwo\n")
    with pytest.raises(data.DataError, match=r"train\.de: expected this file .* to go with .*train\.en"):
        data.load_parallel(tmp_path, [("en", "de")])
    target = write(tmp_path / "train.de", "eins\n")
    with pytest.raises(
        data.DataError, match=r"train\.de, line 2: expected a line to go with line 2 of .*train\.en, found the end"
    ):
        data.read_parallel(source, target)
    write(target, "eins\n\n")
    with pytest.raises(data.DataError, match=r"train\.de, line 2: expected a sentence, found an empty line"):
        data.read_parallel(source, target)
    (tmp_path / "train.fr").write_bytes(b"ok\n\xff\xfe\n")
    with pytest.raises(data.DataError, match=r"train\.fr, after line \d: expected UTF-8"):
        data.read_parallel(source, tmp_path / "train.fr")
    (tmp_path / "train.cs.gz").write_bytes(gzip.compress(b"jedna\ndva\n")[:-8])
    with pytest.raises(data.DataError, match=r"train\.cs\.gz, after line \d: expected a complete gzip"):
        data.read_parallel(source, tmp_path / "train.cs.gz")


def test_command_line_errors_name_the_remedy(tmp_path, capsys):
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
        (["--steps", "1", *TINY, "--out", str(write(tmp_path / "file", ""))], "File exists"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(TRANSLATION, ["--out", str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err


def test_a_newcomer_reads_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(ENTAILMENT, ["--help"])
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


# ---------------------------------------------------------------- words and batches


def test_vocabulary_is_by_frequency_then_alphabet():
    words = data.Vocabulary.build([["b", "a", "c"], ["c", "<unk>"]], size=6)
    assert words.words == (*data.SPECIALS, "c", "a")
    assert words.encode(["c", "b", "<pad>"]) == [4, data.UNKNOWN, data.PAD]


def test_batches_hold_every_example_once():
    examples = [data.Example(("a",) * n, ("b",) * (n // 2 + 1)) for n in range(1, 24)]
    shapes = data.bucket_shapes(examples, 3, longest=(20, 20), margin=2)
    assert shapes[-1] == (20, 14)
    batches = data.Batches(examples, lambda e: ([4] * len(e.source), [5] * (len(e.target) + 2), 0), shapes, 4)
    for pieces in (batches.in_order(), map(batches.take, batches.shuffled(0, 1))):
        pieces = list(pieces)
        seen = sorted(i for piece in pieces for i in piece.indices if i >= 0)
        assert seen == list(range(23))
        assert len(pieces) == len(batches)
        for piece in pieces:
            assert piece.arrays["source"].shape[0] == 4
            assert piece.arrays["source"].shape[1] in {source for source, _ in shapes}
            assert np.array_equal(piece.arrays["weight"], piece.indices >= 0)
            lengths = (piece.arrays["source"] != data.PAD).sum(axis=1)
            assert all(n == min(i + 1, 20) for n, i in zip(lengths, piece.indices, strict=True) if i >= 0)
    orders = [[rows.tolist() for _, rows in batches.shuffled(*key)] for key in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert orders[0] == orders[1] != orders[2] and orders[0] != orders[3]


# ---------------------------------------------------------------- built-in corpora


@pytest.mark.parametrize("name", TASKS)
def test_corpora_repeat_and_keep_their_parts_apart(name):
    first, again = corpora.corpus(name, train=60, valid=20, test=20), corpora.corpus(name, train=60, valid=20, test=20)
    assert first == again
    parts = [first.train, first.valid, first.test]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert len({(e.source, e.target) for part in parts for e in part}) == 100
    for example in first.train:
        assert len(example.gold) == (1 if name == "entailment" else len(example.target))
        assert all(0 <= s < len(example.source) for positions in example.gold for s in positions)


def test_gold_of_entailment_decides_the_label():
    for example in corpora.corpus("entailment", train=200, valid=1, test=1).train:
        being = next(word for word in example.target if word in corpora._BEINGS)
        doing = next(word for word in example.target if word in corpora._DOINGS)
        clause = [example.source[s] for s in sorted(example.gold[0])]
        if example.label == "neutral":
            assert being not in example.source and not clause
        else:
            assert being in clause
            assert (doing in clause) == (example.label == "entailment")


def test_gold_of_translation_and_summary_is_what_the_words_render():
    def rendered(example, word):
        return [
            " ".join(example.source[s] for s in sorted(g))
            for w, g in zip(example.target, example.gold, strict=True)
            if w == word
        ]

    translated = corpora.corpus("translation", train=400, valid=1, test=1).train
    assert {r for e in translated for r in rendered(e, "bahnhof")} == {"train station"}
    assert {r for e in translated for r in rendered(e, "fotografiert")} == {"is taking a picture of"}
    assert {r for e in translated for r in rendered(e, "auf")} == {"is picking up"}
    assert {r for e in translated for r in rendered(e, "den")} <= {f"the {n}" for n in ("dog", "tree", "train station")}
    summarized = corpora.corpus("summarization", train=400, valid=1, test=1).train
    assert {r for e in summarized for r in rendered(e, "delays")} == {"has put off"}
    assert {r for e in summarized for r in rendered(e, "french")} == {"of france"}
    for example in summarized:  # every gold is one segment
        assert all(max(g) - min(g) == len(g) - 1 for g in example.gold)


# ---------------------------------------------------------------- figures by hand


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


def test_gold_positions():
    examples = [data.Example(("a", "b", "c"), ("x", "y"), gold=(frozenset({0, 2}), frozenset()))]
    gold = metrics.gold_positions(examples, np.array([0, -1]), (2, 3, 2))
    assert gold.sum() == 1 and gold[0, 0, 0]  # position 2 is beyond the batch, the filler has nothing


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


def test_outputs_and_checkpoint(tmp_path, small_corpora):
    import safetensors

    arguments = ["--mapping", "entmax:alpha~1.5,gamma=0.7", "--model", "decomposable", "--steps", "3"]
    result = run(ENTAILMENT, tmp_path, *arguments)
    assert {"attention-1.png", "metrics.json", "predictions.txt", "checkpoint.safetensors"} <= {
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
        run(ENTAILMENT, tmp_path, *arguments)
    with pytest.raises(data.DataError, match=r"was made with rate = 0\.003, now it is 0\.1"):
        run(ENTAILMENT, tmp_path, *arguments, "--resume", "--rate", "0.1")
    (tmp_path / "checkpoint.safetensors").write_bytes(stored[:200])
    with pytest.raises(ValueError, match=r"is no whole checkpoint .* delete it"):
        run(ENTAILMENT, tmp_path, *arguments, "--resume")


def test_resumed_run_equals_uninterrupted_run(tmp_path, small_corpora, monkeypatch):
    """With dropout, two buckets, a stop at the end of a smaller budget, and interruptions before the first step and in
    the second epoch."""
    task, common = ENTAILMENT, ["--mapping", "sparsemax", "--dropout", "0.2", "--buckets", "2", "--rate", "0.02"]
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


def _progress(folder):
    import safetensors

    with safetensors.safe_open(folder / train.CHECKPOINT, framework="numpy") as file:
        return file.metadata()["progress"]


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


def test_outcomes_survive_packing_and_give_the_scores():
    numbers = np.array([[0, 3], [1, 65535]])
    assert np.array_equal(cli.unpacked(cli.packed(numbers)), numbers)
    said = [["the", "cat", "sat", "on", "the", "mat"], ["a", "dog", "ran", "to", "the", "man"]]
    meant = [["the", "cat", "sat", "on", "a", "mat", "today"], ["a", "dog", "ran", "to", "the", "old", "man"]]
    for task in (TRANSLATION, SUMMARIZATION):
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


def test_positions_that_a_summary_keeps():
    a, b, c, x = "abcx"
    assert kept_positions((a, b, a, c), (a, c)) == (frozenset({0, 2}), frozenset({3}))
    assert kept_positions((a, b, a, c), (b, a)) == (frozenset({1}), frozenset({2}))  # the first a is before b
    assert kept_positions((a, b), (b, a)) is None
    assert kept_positions((a, b), (x,)) is None


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


def test_explanations_go_with_the_test_pairs(tmp_path):
    pairs = [data.Example(("a", "dog"), ("x",), "neutral")]
    assert entailment.explained(tmp_path, pairs) == pairs
    path = write(tmp_path / "test_explanations.tsv.gz", "the dog is a dog\tdogs bark\n")
    assert entailment.explained(tmp_path, pairs)[0].gold == (frozenset({1}),)
    write(path, "one\ntwo\n")
    with pytest.raises(data.DataError, match="expected a line for each of the 1 test pairs, found 2"):
        entailment.explained(tmp_path, pairs)


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
