"""Flash attention as the kernels of every machine do it: which blocks of queries and keys are walked over, what is seen
of each, the search for thresholds, and the derivative by alpha."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# |b log y| below which d alpha is computed by its series, since the closed form cancels.
_SMALL_LOG = 0.05


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What is static about a call, on every machine.

    Attributes:
      queries, keys: how many there are, padding to whole blocks included.
      rows, columns: how many queries and keys a block has.
      is_causal, window: the rules of visibility.
    """

    queries: int
    keys: int
    rows: int
    columns: int
    is_causal: bool
    window: tuple[int, int] | None

    def key_blocks(self, i: Any, length: Any) -> tuple[Any, Any]:
        """The first of the key blocks that query block i may see, and the first after them."""
        first, last = i * self.rows, (i + 1) * self.rows - 1
        start, end = jnp.int32(0), (length + (self.columns - 1)) // self.columns
        if self.is_causal:
            end = jnp.minimum(end, last // self.columns + 1)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - left, 0) // self.columns)
            end = jnp.minimum(end, jnp.maximum(last + right, -1) // self.columns + 1)
        return start, jnp.maximum(start, end)

    def query_blocks(self, j: Any) -> tuple[Any, Any]:
        """The first of the query blocks that may see key block j, and the first after them."""
        first, last = j * self.columns, (j + 1) * self.columns - 1
        start, end = jnp.int32(0), jnp.int32(self.queries // self.rows)
        if self.is_causal:
            start = jnp.maximum(start, first // self.rows)
        if self.window is not None:
            left, right = self.window
            start = jnp.maximum(start, jnp.maximum(first - right, 0) // self.rows)
            end = jnp.minimum(end, jnp.maximum(last + left, -1) // self.rows + 1)
        return jnp.minimum(start, end), end


class Head(NamedTuple):
    """What a kernel reads beside queries, keys and values: scalars, and references to optional arrays."""

    b: Any  # alpha - 1
    scale: Any
    query_length: Any
    key_length: Any
    bias: Any = None  # or a reference to one number for each key and query, or for each key
    mask: Any = None  # or a reference of that kind


def seen(blocks: Blocks, head: Head, t: jax.Array, s: jax.Array) -> jax.Array:
    """Whether query t may see key s, as lengths and rules have it; a mask may forbid more."""
    visible = (s < head.key_length) & (t < head.query_length)
    if blocks.is_causal:
        visible &= s <= t
    if blocks.window is not None:
        visible &= (s >= t - blocks.window[0]) & (s <= t + blocks.window[1])
    return visible


class _Search(NamedTuple):
    """The state of the search; one number a query, but for the two scalars."""

    passes: jax.Array  # a scalar
    at: Any
    active: jax.Array  # 1 where it still moves, else 0: a query must not depend on the others of its block
    going: jax.Array  # the sum of `active`, a scalar


def newton(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]], start: Any, wanted: jax.Array, most: int
) -> tuple[Any, jax.Array]:
    """Iterates `step(at, active)`, which leads to the next unknown, and to 1 where it goes on from there, else 0.

    Returns:
      The last unknown, and 1 where it has not arrived.
    """

    def one_pass(s):
        at, moves = step(s.at, s.active)
        active = s.active * moves
        return _Search(s.passes + 1, at, active, jnp.sum(active))

    state = _Search(jnp.int32(0), start, wanted, jnp.sum(wanted))
    last = lax.while_loop(lambda s: (s.going > 0) & (s.passes < most), one_pass, state)
    return last.at, last.active


def entropy_change(b: Any, log_y: jax.Array) -> jax.Array:
    """d/d alpha of phi'(y), but for a constant: (L e^L - e^L + 1) / b^2 with L = b log y."""
    x = b * log_y
    series = log_y**2 * (1 / 2 + x * (1 / 3 + x * (1 / 8 + x * (1 / 30 + x / 144))))
    return jnp.where(jnp.abs(x) < _SMALL_LOG, series, (x * jnp.exp(x) - (jnp.exp(x) - 1)) / b**2)
