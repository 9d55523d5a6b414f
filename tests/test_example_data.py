"""The data of the examples: loaders and their errors, words and batches, built-in corpora, positions that count."""

import gzip
import json

import numpy as np
import pytest
from example_modules import MARKS, TASKS, corpora, data, entailment, metrics, summarization

pytestmark = MARKS


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
    assert data.load_parallel(tmp_path, summarization.SUFFIXES).train == [data.Example(("long", "text"), ("text",))]


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


# ---------------------------------------------------------------- positions that count


def test_positions_that_a_summary_keeps():
    a, b, c, x = "abcx"
    kept = summarization.kept_positions
    assert kept((a, b, a, c), (a, c)) == (frozenset({0, 2}), frozenset({3}))
    assert kept((a, b, a, c), (b, a)) == (frozenset({1}), frozenset({2}))  # the first a is before b
    assert kept((a, b), (b, a)) is None
    assert kept((a, b), (x,)) is None


def test_gold_positions():
    examples = [data.Example(("a", "b", "c"), ("x", "y"), gold=(frozenset({0, 2}), frozenset()))]
    gold = metrics.gold_positions(examples, np.array([0, -1]), (2, 3, 2))
    assert gold.sum() == 1 and gold[0, 0, 0]  # position 2 is beyond the batch, the filler has nothing


def test_explanations_go_with_the_test_pairs(tmp_path):
    pairs = [data.Example(("a", "dog"), ("x",), "neutral")]
    assert entailment.explained(tmp_path, pairs) == pairs
    path = write(tmp_path / "test_explanations.tsv.gz", "the dog is a dog\tdogs bark\n")
    assert entailment.explained(tmp_path, pairs)[0].gold == (frozenset({1}),)
    write(path, "one\ntwo\n")
    with pytest.raises(data.DataError, match="expected a line for each of the 1 test pairs, found 2"):
        entailment.explained(tmp_path, pairs)
