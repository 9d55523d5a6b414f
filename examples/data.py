"""From files to arrays: examples, loaders, vocabulary, batches of few distinct shapes."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")

# The names under which public corpora store their three parts.
PARTS = {
    "train": ("train",),
    "valid": ("valid", "val", "dev", "validation"),
    "test": ("test", "test2016", "test_2016_flickr", "test_2016"),
}
LABELS = ("entailment", "neutral", "contradiction")


class DataError(ValueError):
    """A file that is missing or not in the expected form; the message names file, line and expectation."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One source with its target (summary, translation or hypothesis).

    `gold` holds, for each row of attention, the source positions that the row should attend to; an
    empty set says that nothing is known of that row. Rows are target words; a single set stands for
    all rows, or for the one query of a whole hypothesis.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    label: str = ""
    gold: tuple[frozenset[int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    name: str
    train: list[Example]
    valid: list[Example]
    test: list[Example]


# ---------------------------------------------------------------- files


def read_lines(path: pathlib.Path) -> Iterator[str]:
    """Lines of a plain or gzipped UTF-8 file, without their ends."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (the errors below name it)
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {number}: expected UTF-8 text ({error.reason})") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}, after line {number}: expected a complete gzip file ({error})") from error


def find_file(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """The first of `names`, plain or with .gz, that exists in `folder`."""
    names = tuple(names)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with the data")
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{folder}: expected one of {', '.join(names)}, plain or with .gz, found none of them")


def tokenize(text: str) -> tuple[str, ...]:
    """Lower-case words, with clitics and punctuation apart, for raw text."""
    text = re.sub(r"n't\b", " n't", text.lower())
    return tuple(re.findall(r"n't|'(?:s|re|ve|ll|m|d)\b|\w+(?:-\w+)*|[^\w\s]", text))


def read_parallel(source: pathlib.Path, target: pathlib.Path) -> list[Example]:
    """Line i of `source` goes with line i of `target`; words are separated by blanks."""
    examples = []
    for number, lines in enumerate(itertools.zip_longest(read_lines(source), read_lines(target)), 1):
        for path, other, line in ((source, target, lines[0]), (target, source, lines[1])):
            place = f"{path}, line {number}"
            if line is None:
                raise DataError(f"{place}: expected a line to go with line {number} of {other}, found the end")
            if not line.split():
                raise DataError(f"{place}: expected a sentence, found an empty line")
        examples.append(Example(tuple(lines[0].split()), tuple(lines[1].split())))
    return examples


def read_entailment(path: pathlib.Path) -> list[Example]:
    """Pairs from `label<TAB>premise<TAB>hypothesis` lines or from SNLI's jsonl; pairs labelled "-" are left out."""
    parse = _json_pair if ".jsonl" in path.suffixes else _tabbed_pair
    examples = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        label, premise, hypothesis = parse(line, f"{path}, line {number}")
        if label == "-":
            continue
        if label not in LABELS:
            raise DataError(f"{path}, line {number}: expected a label among {', '.join(LABELS)} or -, found {label!r}")
        if not premise or not hypothesis:
            raise DataError(f"{path}, line {number}: expected a premise and a hypothesis, found an empty one")
        examples.append(Example(premise, hypothesis, label))
    return examples


def _tabbed_pair(line: str, place: str):
    fields = line.split("\t")
    if len(fields) != 3:
        raise DataError(f"{place}: expected label<TAB>premise<TAB>hypothesis, found {len(fields)} field(s)")
    label, premise, hypothesis = fields
    return label, tuple(premise.split()), tuple(hypothesis.split())


def _json_pair(line: str, place: str):
    wanted = "gold_label", "sentence1", "sentence2"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: expected a JSON object, found {error.msg} at character {error.pos + 1}") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in wanted):
        raise DataError(f"{place}: expected a JSON object with the texts {', '.join(wanted)}")
    label, premise, hypothesis = (record[key] for key in wanted)
    return label, tokenize(premise), tokenize(hypothesis)


def load_entailment(folder: pathlib.Path) -> Corpus:
    """train/valid/test as .tsv, .txt or .jsonl, also under SNLI's own names (snli_1.0_train.jsonl)."""

    def part(stems):
        names = [
            f"{prefix}{stem}{ending}" for stem in stems for prefix in ("", "snli_1.0_") for ending in (".tsv", ".jsonl")
        ]
        return read_entailment(find_file(folder, names))

    return _corpus(folder, part)


def load_parallel(folder: pathlib.Path, sides: Sequence[tuple[str, str]]) -> Corpus:
    """train/valid/test as two files each, told apart by the suffixes of the first pair in `sides` that is there."""

    def part(stems):
        tried = []
        for stem in stems:
            for pair in sides:
                names = [f"{stem}.{suffix}" for suffix in pair]
                found = []
                for name in names:
                    try:
                        found.append(find_file(folder, [name]))
                    except DataError:
                        if not folder.is_dir():
                            raise
                if len(found) == 2:
                    return read_parallel(*found)
                if found:
                    missing = names[1] if found[0].name.startswith(names[0]) else names[0]
                    raise DataError(f"{folder / missing}: expected this file (plain or with .gz) to go with {found[0]}")
                tried.append(" and ".join(names))
        raise DataError(f"{folder}: expected {', or '.join(tried)} (plain or with .gz), found none of them")

    return _corpus(folder, part)


def _corpus(folder: pathlib.Path, part: Callable) -> Corpus:
    parts = {name: part(stems) for name, stems in PARTS.items()}
    for name, examples in parts.items():
        if not examples:
            raise DataError(f"{folder}: expected at least one example in {name}, found none")
    return Corpus(name=str(folder), **parts)


# ---------------------------------------------------------------- words


class Vocabulary:
    """The most frequent words, numbered after the special ones."""

    def __init__(self, words: Iterable[str]):
        self.words = (*SPECIALS, *words)
        self._numbers = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], size: int) -> Vocabulary:
        counts = collections.Counter(word for sentence in sentences for word in sentence)
        for special in SPECIALS:
            counts.pop(special, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[: max(size - len(SPECIALS), 0)])

    def __len__(self):
        return len(self.words)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [self._numbers.get(word, UNKNOWN) for word in sentence]


# ---------------------------------------------------------------- batches


def bucket_shapes(
    examples: Sequence[Example], count: int, longest: tuple[int, int], margin: int
) -> list[tuple[int, int]]:
    """At most `count` shapes (source length, target length): each one is compiled once.

    An example is as long as the longer of its sides, each side measured by its mean. The boundaries
    are quantiles of that length, closer together towards the long end, where room is dear.
    `margin` is the room for the marks of beginning and end on the target side.
    """
    lengths = np.array([(min(len(e.source), longest[0]), min(len(e.target), longest[1]) + margin) for e in examples])
    relative = (lengths / lengths.mean(axis=0)).max(axis=1)
    shares = 1 - (1 - np.arange(1, count + 1) / count) ** 2
    edges = np.quantile(relative, shares, method="higher")
    shapes = [tuple(lengths[relative <= edge].max(axis=0).tolist()) for edge in edges]
    return list(dict.fromkeys(shapes))


@dataclasses.dataclass(frozen=True)
class Batch:
    """`arrays` has one shape for each bucket; `indices` tells which examples are in it, -1 for a filler."""

    arrays: dict[str, np.ndarray]
    indices: np.ndarray


class Batches:
    """Examples as arrays, grouped by length. `encode` turns an example into (source, target, label) numbers."""

    def __init__(self, examples: Sequence[Example], encode: Callable, shapes: Sequence[tuple[int, int]], size: int):
        self.size = size
        self.shapes = list(shapes)
        members = [[] for _ in shapes]
        encoded = []
        for index, example in enumerate(examples):
            source, target, label = encode(example)
            encoded.append((source, target, label))
            fits = (b for b, (s, t) in enumerate(shapes) if len(source) <= s and len(target) <= t)
            members[next(fits, len(shapes) - 1)].append(index)
        self._buckets = []
        for (source_length, target_length), indices in zip(self.shapes, members, strict=True):
            # The last row is the filler that completes a batch: it weighs nothing.
            source = np.full((len(indices) + 1, source_length), PAD, np.int32)
            target = np.full((len(indices) + 1, target_length), PAD, np.int32)
            label = np.zeros(len(indices) + 1, np.int32)
            weight = np.append(np.ones(len(indices), np.float32), np.float32(0))
            source[-1, 0] = target[-1, 0] = UNKNOWN
            for row, index in enumerate(indices):
                words, answer, label[row] = encoded[index]
                source[row, : len(words)] = words[:source_length]
                target[row, : len(answer)] = answer[:target_length]
            arrays = {"source": source, "target": target, "label": label, "weight": weight}
            self._buckets.append((arrays, np.append(np.array(indices, np.int64), -1)))

    def __len__(self):
        return sum(-(-(len(indices) - 1) // self.size) for _, indices in self._buckets)

    def in_order(self) -> Iterator[Batch]:
        return (self._batch(*piece) for piece in self._pieces(None))

    def shuffled(self, seed: int, epoch: int) -> Sequence[tuple[int, np.ndarray]]:
        """The pieces of one epoch, a function of seed and epoch alone; `take` turns one into a batch."""
        random = np.random.default_rng((seed, epoch))
        pieces = self._pieces(random)
        return [pieces[i] for i in random.permutation(len(pieces))]

    def take(self, piece: tuple[int, np.ndarray]) -> Batch:
        return self._batch(*piece)

    def _pieces(self, random):
        pieces = []
        for bucket, (_, indices) in enumerate(self._buckets):
            count = len(indices) - 1
            rows = np.arange(count) if random is None else random.permutation(count)
            pieces += [(bucket, rows[start : start + self.size]) for start in range(0, count, self.size)]
        return pieces

    def _batch(self, bucket, rows):
        arrays, indices = self._buckets[bucket]
        rows = np.append(rows, np.full(self.size - len(rows), len(indices) - 1, np.int64))
        return Batch({name: array[rows] for name, array in arrays.items()}, indices[rows])
