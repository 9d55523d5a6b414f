"""The attention mapping as one word: a name, and its hyper-parameters where the defaults will not do.

    softmax    entmax:alpha=1.3    fusedmax:lam=0.3,gamma=0.5    entmax:alpha~1.3

`=` keeps a value as it is, `~` learns it from there. Two words switch attention off, to measure what it adds: `none`
attends to nothing, `uniform` to all positions alike.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

import smoothmax as sm

# Every mapping with its hyper-parameters and their defaults.
MAPPINGS = {
    "softmax": {"gamma": 1.0},
    "sparsemax": {"gamma": 1.0},
    "entmax": {"alpha": 1.5, "gamma": 1.0},
    "pnormmax": {"p": 1.5, "gamma": 1.0},
    "fusedmax": {"lam": 0.1, "gamma": 1.0},
    "oscarmax": {"lam": 0.01, "gamma": 1.0},
}
OFF = ("none", "uniform")

# The range in which a hyper-parameter is learned.
BOUNDS = {"gamma": (0.02, 5.0), "alpha": (1.0, 2.5), "p": (1.05, 2.0), "lam": (0.0, 2.0)}

_NUMBER = r"\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?"


@dataclasses.dataclass(frozen=True)
class Mapping:
    """A mapping by name with its hyper-parameters; those named in `learned` are trained from these values."""

    name: str
    values: tuple[tuple[str, float], ...] = ()
    learned: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mapping:
        """From the word of the command line.

        Example:
          >>> Mapping.parse("entmax:alpha~1.3")
          Mapping(name='entmax', values=(('alpha', 1.3), ('gamma', 1.0)), learned=('alpha',))
        """
        name, _, rest = text.partition(":")
        if name not in MAPPINGS and name not in OFF:
            raise ValueError(f"{name!r} is not a mapping: use one of {', '.join((*MAPPINGS, *OFF))}")
        own, given, learned = MAPPINGS.get(name, {}), {}, []
        for part in filter(None, rest.split(",")):
            match = re.fullmatch(rf"(\w+)([=~])({_NUMBER})", part)
            if not match:
                raise ValueError(
                    f"{text!r} has the part {part!r}: write KEY=NUMBER, or KEY~NUMBER to learn it from there"
                )
            key, sign, value = match[1], match[2], float(match[3])
            if key not in own:
                raise ValueError(f"{name} has no {key}: it takes {' and '.join(own) or 'nothing'}")
            low, high = BOUNDS[key]
            if sign == "~" and not low < value < high:
                raise ValueError(f"{part} must start between {low:g} and {high:g} to be learned: change the number")
            given[key] = value
            learned += [key] if sign == "~" else []
        values = own | given
        if name in MAPPINGS:
            getattr(sm, name)(jnp.zeros(2), **values)  # which says what is out of range, while the values are known
        return cls(name, tuple(values.items()), tuple(learned))

    def __str__(self) -> str:
        """The word again, without what is the default of every mapping."""
        parts = [
            f"{key}{'~' if key in self.learned else '='}{_shortest(value)}"
            for key, value in self.values
            if key in self.learned or (key, value) != ("gamma", 1.0)
        ]
        return ":".join([self.name, ",".join(parts)] if parts else [self.name])

    def starts(self) -> dict[str, jax.Array]:
        """Every hyper-parameter as a number of its own; on the whole line where it is learned."""
        return {
            key: sm.unbounded(jnp.float32(value), *BOUNDS[key]) if key in self.learned else jnp.float32(value)
            for key, value in self.values
        }

    def hyperparameters(self, numbers: dict) -> dict[str, jax.Array]:
        """From the numbers that started as `starts` to what the mapping takes."""
        return {
            key: sm.bounded(numbers[key], *BOUNDS[key]) if key in self.learned else jax.lax.stop_gradient(numbers[key])
            for key, _ in self.values
        }

    def function(self, numbers: dict) -> Callable[..., jax.Array]:
        """From scores to weights, as the library's attention calls it: `(scores, axis=, where=)`."""
        if self.name == "none":
            return lambda scores, axis, where: jnp.zeros_like(scores)
        if self.name == "uniform":
            return lambda scores, axis, where: where / jnp.maximum(where.sum(axis, keepdims=True), 1) + 0 * scores
        return functools.partial(getattr(sm, self.name), **self.hyperparameters(numbers))


def _shortest(value: float) -> str:
    """The number in few digits, but in all that it has."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
