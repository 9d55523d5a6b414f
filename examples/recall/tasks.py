"""Sequences with known answers, made as they are needed.

Every task is one sequence, read from left to right: what is given, then what is asked. The answer to a position is the
next token, so a sequence whose answers are all right is what the model would have written by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SYMBOLS = 1024  # as many distinct ones as the longest test needs, 2,048 tokens
VALUES = 64  # of associative recall
PAD, BEGIN, TURN = SYMBOLS + VALUES, SYMBOLS + VALUES + 1, SYMBOLS + VALUES + 2
VOCABULARY = SYMBOLS + VALUES + 3


class Batch(NamedTuple):
    """`inputs[b, t]` is read, `targets[b, t]` comes next, and `asked[b, t]` says whether that is an answer."""

    inputs: np.ndarray  # int32 (B, L)
    targets: np.ndarray  # int32 (B, L)
    asked: np.ndarray  # bool (B, L)


def symbols_in(task: str, length: int) -> int:
    """Keys of associative recall, or symbols of the other tasks, in a sequence of that many tokens."""
    return length // 4 if task == "recall" else (length - 2) // 2


def longest(task: str) -> int:
    """The most tokens for which there are enough distinct symbols."""
    return 4 * SYMBOLS if task == "recall" else 2 * SYMBOLS + 2


def draw(task: str, rng: np.random.Generator, batch: int, length: int, *, vary: bool) -> Batch:
    """Sequences of `length` tokens, or with `vary` of any number up to it, filled up with PAD."""
    if length > longest(task):
        raise ValueError(f"length must be at most {longest(task)} for the task {task}, got {length}: test shorter ones")
    tokens, answers = np.full((batch, length + 1), PAD, np.int32), np.zeros((batch, length + 1), bool)
    most = symbols_in(task, length)
    for b in range(batch):
        n = int(rng.integers(2, most + 1)) if vary else most
        sequence, first, step = (_recall if task == "recall" else _rewrite)(task, rng, n)
        tokens[b, : len(sequence)] = sequence
        answers[b, first : len(sequence) : step] = True
    return Batch(tokens[:, :-1], tokens[:, 1:], answers[:, 1:])


def _recall(task: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, int, int]:
    """key value key value ... and then all keys in another order, each with its value."""
    keys, values = rng.choice(SYMBOLS, n, replace=False), SYMBOLS + rng.integers(0, VALUES, n)
    order = rng.permutation(n)
    pairs = np.stack([keys, values], axis=1)
    return np.concatenate([pairs, pairs[order]]).ravel(), 2 * n + 1, 2


def _rewrite(task: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, int, int]:
    """BEGIN, distinct symbols, TURN, and the symbols again in the order that is asked for."""
    given = rng.choice(SYMBOLS, n, replace=False)
    asked = {"copy": given, "reverse": given[::-1], "sort": np.sort(given)}[task]
    return np.concatenate([[BEGIN], given, [TURN], asked]), n + 2, 1
