"""Attention as `on_device.py` runs it: by its kernels, with all gradients, against float64 by plain JAX on a CPU."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import smoothmax as sm

BATCH, QUERIES, KEYS, HEADS, KEY_HEADS = 2, 300, 520, 4, 2  # no whole blocks
# Of the norm. Weights and gradients are rounded to bfloat16, 2^-9, a few times.
TOLERANCE = 1e-2
# The gradient of a number for a head or for all is a sum of terms of both signs, which cancel.
SUMS = 0.1
NAMES = "output", "query", "key", "value", "bias", "alpha", "gamma", "scale"

_SOME = np.random.default_rng(0)
_OF_KEYS = {"bias": (BATCH, 1, 1, KEYS), "mask": _SOME.uniform(size=(1, 1, 1, KEYS)) < 0.8}
_OF_PAIRS = {"bias": (1, HEADS, QUERIES, KEYS), "mask": _SOME.uniform(size=(BATCH, 1, QUERIES, KEYS)) < 0.6}
_LENGTHS = {"query_seq_lengths": np.int32([300, 171]), "key_value_seq_lengths": np.int32([199, 520])}
# Each way to the weights (alpha 1, 1.5, 2 and others, one a head), each rule of visibility, both sizes of heads, scores
# of few weights and of many.
RUNS = (
    ("dense", (1.0, 1.5, 2.0, 1.3), 64, 0.05, {}),
    ("sparse", (1.0, 1.5, 2.0, 1.3), 64, 2.0, {}),
    ("causal", (1.1, 1.5, 2.0, 1.8), 64, 1.0, {"is_causal": True}),
    ("wide heads", (1.0, 1.5, 2.0, 1.3), 128, 1.0, {"is_causal": True}),
    ("window", (1.0, 1.5, 2.0, 1.3), 64, 1.0, {"local_window_size": (90, 70)}),
    ("lengths", (1.0, 1.5, 2.0, 1.3), 64, 1.0, _LENGTHS),
    ("one bias a key", (1.0, 1.5, 2.0, 1.3), 64, 1.0, _OF_KEYS),
    ("one bias a pair", (1.0, 1.5, 2.0, 1.3), 64, 1.0, _OF_PAIRS),
    ("wide heads, one bias a pair", (1.0, 1.5, 2.0, 1.3), 128, 1.0, {**_OF_PAIRS, **_LENGTHS}),
)


@dataclasses.dataclass(frozen=True)
class Attention:
    """An entry of RUNS by an implementation, with its number."""

    number: int
    implementation: str | None

    def __str__(self) -> str:
        return f"attention, {RUNS[self.number][0]}, {self.implementation}"


def everything() -> list[Attention]:
    return [Attention(i, implementation) for i in range(len(RUNS)) for implementation in ("pallas", None)]


def tried(run: Attention) -> tuple[str, list[str]]:
    """The errors of the output and of all gradients, and which are too large."""
    *_, options = RUNS[run.number]
    *operands, bar = _operands(run.number)
    got = _pulled(run.implementation, options)(*operands, bar)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        double = [None if a is None else np.asarray(a, np.float64) for a in (*operands, bar)]
        expected = _pulled("xla", options)(*double)
    said, problems = [], []
    for name, mine, wanted, operand in zip(NAMES, got, expected, (bar, *operands), strict=True):
        if wanted is None:
            continue
        mine, wanted = np.asarray(mine, np.float64), np.asarray(wanted, np.float64)
        error = np.linalg.norm(mine - wanted) / np.linalg.norm(wanted)
        said.append(f"{name} {error:.1e}")
        if not error <= (TOLERANCE if np.size(operand) > HEADS else SUMS):
            problems.append(f"{name}: off by {error:.1e} of its norm")
    return ", ".join(said), problems


def _operands(number: int) -> tuple[Any, ...]:
    """Query, key, value, bias, alpha, gamma, scale, and what the output is pulled back from."""
    _, alphas, size, spread, options = RUNS[number]
    rng = np.random.default_rng(number)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    q = normal(BATCH, QUERIES, HEADS, size)
    k, v = (normal(BATCH, KEYS, KEY_HEADS, size) for _ in range(2))
    bias = normal(*options["bias"]).astype(jnp.float32) if "bias" in options else None
    alpha, gamma = (np.float32(a).reshape(HEADS, 1, 1) for a in (alphas, (0.7, 1.0, 1.3, 0.9)))
    return q, k, v, bias, alpha, gamma, np.float32(spread / size**0.5), normal(BATCH, QUERIES, HEADS, size)


def _pulled(implementation: str | None, options: dict[str, Any]) -> Any:
    """Output and gradients, compiled."""
    rules = {name: value for name, value in options.items() if name != "bias"}

    def attend(q, k, v, bias, alpha, gamma, scale):
        mapping = partial(sm.entmax, alpha=alpha, gamma=gamma)
        return sm.dot_product_attention(
            q, k, v, bias, mapping=mapping, scale=scale, implementation=implementation, **rules
        )

    def call(*args):
        *operands, bar = args
        with jax.default_matmul_precision("highest"):  # for plain JAX
            output, pull = jax.vjp(attend, *operands)
            return output, *pull(bar)

    return jax.jit(call)
