"""Attention as `on_device.py` runs it: by its kernels, with all gradients, against float64 by plain JAX on a CPU."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import normal, per_head, pulled

import smoothmax as sm

BATCH, QUERIES, KEYS, HEADS, KEY_HEADS = 2, 300, 520, 4, 2  # no whole blocks
# Of the norm. Weights and gradients are rounded to bfloat16, 2^-9, a few times.
TOLERANCE = 1e-2
# The gradient of a number for a head or for all is a sum of terms of both signs, which cancel.
SUMS = 0.1
NAMES = "output", "query", "key", "value", "bias", "alpha", "gamma", "scale"


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """One call of attention.

    Attributes:
      name: what is special about it.
      rules: options of `dot_product_attention`.
      bias: the shape of a bias.
      size: of the heads.
      spread: of the scores: where it is small all weights count, where it is large few.
      alphas: one a head: each way to the weights is among them.
      implementation: as for `dot_product_attention`.
    """

    name: str
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    bias: tuple[int, ...] | None = None
    size: int = 64
    spread: float = 1.0
    alphas: tuple[float, ...] = (1.0, 1.5, 2.0, 1.3)
    implementation: str | None = None

    def __str__(self) -> str:
        return f"attention, {self.name}, {self.implementation}"


_SOME = np.random.default_rng(0)
_MASK_OF_KEYS = {"mask": _SOME.uniform(size=(1, 1, 1, KEYS)) < 0.8}
_MASK_OF_PAIRS = {"mask": _SOME.uniform(size=(BATCH, 1, QUERIES, KEYS)) < 0.6}
_LENGTHS = {"query_seq_lengths": np.int32([300, 171]), "key_value_seq_lengths": np.int32([199, 520])}
_PAIRS = 1, HEADS, QUERIES, KEYS
# Each rule of visibility, each kind of bias and mask, both sizes of heads.
RUNS = (
    Attention("dense", spread=0.05),
    Attention("sparse", spread=2.0),
    Attention("causal", {"is_causal": True}, alphas=(1.1, 1.5, 2.0, 1.8)),
    Attention("wide heads", {"is_causal": True}, size=128),
    Attention("window", {"local_window_size": (90, 70)}),
    Attention("lengths", _LENGTHS),
    Attention("one bias a key", _MASK_OF_KEYS, (BATCH, 1, 1, KEYS)),
    Attention("one bias a pair", _MASK_OF_PAIRS, _PAIRS),
    Attention("wide heads, one bias a pair", {**_MASK_OF_PAIRS, **_LENGTHS}, _PAIRS, size=128),
)


def everything() -> list[Attention]:
    return [dataclasses.replace(run, implementation=name) for run in RUNS for name in ("pallas", None)]


def tried(run: Attention) -> tuple[str, list[str]]:
    """The errors of the output and of all gradients, and which are too large."""
    operands, bar = _operands(run)
    got = _pulled(run, run.implementation, operands, bar)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        operands, bar = jax.tree.map(lambda a: np.asarray(a, np.float64), (operands, bar))
        expected = _pulled(run, "xla", operands, bar)
    said, problems = [], []
    for name, mine, wanted in zip(NAMES, got, expected, strict=True):
        if wanted is None:
            continue
        mine, wanted = np.asarray(mine, np.float64), np.asarray(wanted, np.float64)
        error = np.linalg.norm(mine - wanted) / np.linalg.norm(wanted)
        said.append(f"{name} {error:.1e}")
        if not error <= (TOLERANCE if wanted.size > HEADS else SUMS):
            problems.append(f"{name}: off by {error:.1e} of its norm")
    return ", ".join(said), problems


def _operands(run: Attention) -> tuple[tuple[Any, ...], Any]:
    """Query, key, value, bias, alpha, gamma, scale; and what the output is pulled back from."""
    bf16 = partial(normal, dtype=jnp.bfloat16)
    q, bar = (bf16(seed, BATCH, QUERIES, HEADS, run.size) for seed in (0, 1))
    k, v = (bf16(seed, BATCH, KEYS, KEY_HEADS, run.size) for seed in (2, 3))
    bias = None if run.bias is None else normal(4, *run.bias)
    scale = np.float32(run.spread / run.size**0.5)
    return (q, k, v, bias, per_head(*run.alphas), per_head(0.7, 1.0, 1.3, 0.9), scale), bar


def _pulled(run: Attention, implementation: str | None, operands: tuple[Any, ...], bar: Any) -> tuple[Any, ...]:
    """Output and gradients, by one compiled program."""

    def attend(q, k, v, bias, alpha, gamma, scale):
        mapping = partial(sm.entmax, alpha=alpha, gamma=gamma)
        return sm.dot_product_attention(
            q, k, v, bias, mapping=mapping, scale=scale, implementation=implementation, **run.rules
        )

    output, bars = pulled(attend, bar)(*operands)
    return output, *bars
