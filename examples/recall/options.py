"""The options of a run, typed: the command line and its help are made from them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

Task = Literal["recall", "copy", "reverse", "sort"]
Mapping = Literal["softmax", "sparsemax", "entmax", "pnormmax", "fusedmax", "oscarmax"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Train on sequences of up to --length tokens, test on up to 32 times as many."""

    task: Task = "recall"
    """recall: pairs of key and value, then every key again, whose value is the answer; copy, reverse, sort: distinct
    symbols, then the same in that order."""
    mapping: Mapping = "softmax"
    """How scores become attention weights."""
    alpha: float = 1.5
    """Of entmax."""
    learn_alpha: bool = False
    """Train alpha of entmax, one a head, between 1 and 2, from --alpha on."""
    length_scaled: bool = False
    """Multiply scores by base + slope * log(n), n the keys in sight; both trained, one a head."""
    seed: int = 0
    steps: int = 1500
    """Budget."""
    length: int = 64
    """Most tokens of a training sequence."""
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Test lengths, as multiples of --length."""
    examples: int = 64
    """Test sequences of each length; from the fourth multiple on half as many each time, but at least 8."""
    batch: int = 32
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    rate: float = 3e-3
    """Peak learning rate of Adam."""
    out: pathlib.Path | None = None
    """Where metrics, pictures and the checkpoint go; default runs/recall/TASK/NAME-SEED."""

    def __post_init__(self) -> None:
        for name in ("steps", "examples", "batch", "hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}: choose a greater number")
        if min(self.multiples) < 1:
            raise ValueError(f"multiples must be at least 1, got {self.multiples}: choose greater numbers")
        if self.length < 8:
            raise ValueError(
                f"length must be at least 8, got {self.length}: choose more, as a sequence needs a few symbols"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, got {self.hidden} and {self.heads}: change one")
        if self.learn_alpha and self.mapping != "entmax":
            raise ValueError(f"learn_alpha needs the mapping entmax, got {self.mapping}: leave it out")
        if self.learn_alpha and not 1 < self.alpha < 2:
            raise ValueError(
                f"alpha must lie between 1 and 2 to be learned, got {self.alpha}: choose 1.5 to start with"
            )

    @property
    def name(self) -> str:
        """What tables and plots call the mapping."""
        alpha = "" if self.mapping != "entmax" else "(learned alpha)" if self.learn_alpha else f"({self.alpha:g})"
        return f"{self.mapping}{alpha}{', length-scaled' if self.length_scaled else ''}"

    @property
    def folder(self) -> pathlib.Path:
        word = "".join(c if c.isalnum() or c == "." else "-" for c in self.name.replace(", ", "-")).strip("-")
        return self.out or pathlib.Path("runs/recall") / self.task / f"{word}-{self.seed}"

    def decisive(self) -> dict:
        """All that decides the trained parameters."""
        left_out = ("out", "multiples", "examples")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
