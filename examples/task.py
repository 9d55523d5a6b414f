"""What a task adds to a run: its data, its network, its answers and their score."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .data import Batches, Corpus, Example, Vocabulary
from .mappings import Mapping
from .options import Settings


class Network(NamedTuple):
    model: Any  # a flax module of model.py
    encode: Callable[[Example], tuple]  # an example as numbers: source, target, label
    words: Vocabulary  # of the target


class Answers(NamedTuple):
    """What the network says to each test example."""

    predictions: list  # a label, or words
    attention: list[np.ndarray]  # (T, S) each


class Task:
    """Subclasses set the names and fill in the methods."""

    name: ClassVar[str]
    headline: ClassVar[str]  # the score that tables show
    settings: ClassVar[type[Settings]]
    built_in: ClassVar[dict] = {"hidden": 64, "rate": 0.003, "dropout": 0.0, "buckets": 1, "vocabulary": 4000}
    real: ClassVar[dict] = {"hidden": 128, "rate": 0.002, "dropout": 0.2, "buckets": 5, "vocabulary": 4000}
    margin: ClassVar[int] = 0  # marks around the target

    def load(self, folder: pathlib.Path, settings) -> Corpus:
        raise NotImplementedError

    def build(self, corpus: Corpus, mapping: Mapping, settings) -> Network:
        raise NotImplementedError

    def answer(self, network: Network, params: dict, batches: Batches, examples: list[Example], settings) -> Answers:
        raise NotImplementedError

    def score(self, predictions: list, examples: list[Example]) -> Any:
        raise NotImplementedError

    def outcomes(self, predictions: list, examples: list[Example]) -> np.ndarray:
        """Small whole numbers (examples, k) from whose means `total` makes the headline score."""
        raise NotImplementedError

    @staticmethod
    def total(means: np.ndarray) -> np.ndarray:
        """(..., k) -> (...)."""
        raise NotImplementedError

    def explain(self, answers: Answers, examples: list[Example]) -> dict[str, float]:
        """Further figures of the attention."""
        return {}

    def line(self, prediction, example: Example) -> str:
        """One line of predictions.txt."""
        raise NotImplementedError

    def rows(self, prediction, example: Example, count: int) -> list[str]:
        """The labels of the `count` rows of attention."""
        raise NotImplementedError


def task_of(name: str) -> Task:
    """The task of that name: the one of the file that bears it."""
    return importlib.import_module(f"{__package__}.{name}").TASK
