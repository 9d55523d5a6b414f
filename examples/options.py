"""The options of a run and of a comparison, typed: the command line, the checks and the help are made from them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Generic, Literal, TypeVar

from tyro.conf import OmitArgPrefixes

# Stand for the regularizer of a Fenchel-Young loss; that of softmax is the cross-entropy.
Loss = Literal["softmax", "sparsemax", "entmax"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the runs of a comparison share. None is filled in by `complete`, since it depends on the data."""

    data: pathlib.Path | None = None
    """Folder with train, valid and test; without it a small built-in corpus is used."""
    epochs: int | None = None
    """Times through the training part. The least validation loss is what counts, so too many do no harm."""
    steps: int | None = None
    """Budget in steps instead of epochs."""
    batch: int = 64
    """Examples in a step."""
    hidden: int | None = None
    """Size of words and states."""
    rate: float | None = None
    """Learning rate of Adam."""
    dropout: float | None = None
    """Share of the activations that training drops."""
    loss: Loss = "softmax"
    """Fenchel-Young loss of the answers; that of softmax is the cross-entropy."""
    vocabulary: int | None = None
    """Words of a vocabulary; the rest is unknown."""
    buckets: int | None = None
    """Groups of sentences of like length, each compiled once."""
    longest: int = 50
    """Longer training examples are left out, longer inputs cut."""
    longest_target: int | None = None
    """The same for the target (hypothesis, translation, summary); as the source if not given."""
    train_size: int | None = None
    """Use the first N training examples only."""
    valid_size: int = 2000
    """Use the first N validation examples."""
    test_size: int | None = None
    """Use the first N test examples; 0 leaves the test out."""

    def limits(self) -> tuple[int, int]:
        """Most words of a source and of a target."""
        return self.longest, self.longest_target or self.longest

    def decisive(self) -> dict:
        """All that decides the trained parameters, except the budget; the folder of the data by its name alone."""
        values = dataclasses.asdict(self) | {"data": self.data.name if self.data else None}
        for name in ("steps", "epochs", "test_size", "beam"):
            values.pop(name, None)
        return values

    def budget(self) -> dict:
        return {"steps": self.steps, "epochs": self.epochs}

    def evaluation(self) -> dict:
        return {"test_size": self.test_size, "beam": getattr(self, "beam", None)}


@dataclasses.dataclass(frozen=True)
class EntailmentSettings(Settings):
    model: Literal["decomposable", "paper"] | None = None
    """decomposable: each word attends to the other sentence, both ways; paper: one attention over the premise. The
    default is decomposable with --data; the built-in corpus needs the order of words, which only paper sees."""


@dataclasses.dataclass(frozen=True)
class SequenceSettings(Settings):
    beam: int = 1
    """Width of the beam search; 1 is greedy."""


@dataclasses.dataclass(frozen=True)
class TranslationSettings(SequenceSettings):
    languages: tuple[str, str] = ("en", "de")
    """From, to: the suffixes of the files."""


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True)
class Run(Generic[S]):
    """One run."""

    settings: OmitArgPrefixes[S]
    mapping: str = "softmax"
    """How scores become attention weights: softmax, sparsemax, entmax, pnormmax, fusedmax or oscarmax; or none and
    uniform, which switch attention off. Hyper-parameters follow a colon: fusedmax:lam=0.3,gamma=0.5. With ~ they are
    learned from there: entmax:alpha~1.3."""
    seed: int = 0
    """Decides the first parameters, the order of the examples and dropout."""
    out: pathlib.Path | None = None
    """Folder for the results; runs/TASK-MAPPING by default."""
    resume: bool = False
    """Go on from the checkpoint in the folder, if there is one."""


@dataclasses.dataclass(frozen=True)
class Comparison(Generic[S]):
    """Several mappings."""

    settings: OmitArgPrefixes[S]
    mappings: tuple[str, ...] = ()
    """As the --mapping of one run. By default each of the six once, and none; with --search the grid of compare.py."""
    seeds: tuple[int, ...] = (0,)
    """One run of each mapping for each seed."""
    search: bool = False
    """Of the mappings with the same name, test only the one with the least validation loss (first seed)."""
    jobs: int = 1
    """Runs side by side."""
    out: pathlib.Path | None = None
    """Folder for the runs, the tables and the picture; runs/TASK-comparison by default."""
    results: pathlib.Path | None = None
    """File for the raw figures of all runs, a line each; runs that it holds are not made again. OUT/runs.jsonl by
    default."""


def complete(settings: S, defaults: dict) -> S:
    """Fills in the values that are None, and checks them all."""
    if settings.steps is not None or settings.epochs is not None:
        defaults = {key: value for key, value in defaults.items() if key not in ("steps", "epochs")}
    missing = {key: value for key, value in defaults.items() if getattr(settings, key) is None}
    settings = dataclasses.replace(settings, **missing)
    counts = (
        "steps",
        "epochs",
        "hidden",
        "batch",
        "buckets",
        "longest",
        "longest_target",
        "vocabulary",
        "train_size",
        "valid_size",
        "beam",
    )
    for name in counts:
        value = getattr(settings, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} needs a number of at least 1, given {value}")
    if settings.rate is not None and not 0 < settings.rate < float("inf"):
        raise ValueError(f"--rate needs a positive number, given {settings.rate}")
    if settings.dropout is not None and not 0 <= settings.dropout < 1:
        raise ValueError(f"--dropout needs a number from 0 to below 1, given {settings.dropout}")
    if settings.test_size is not None and settings.test_size < 0:
        raise ValueError(f"--test-size needs a number of at least 0, given {settings.test_size}")
    if settings.hidden is not None and settings.hidden % 2:
        raise ValueError(
            f"--hidden needs an even number, half for each direction of the encoder, given {settings.hidden}"
        )
    return settings
