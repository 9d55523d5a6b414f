"""Attention at growing lengths: blocked and not, against `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import smoothmax as sm

from .timing import interleaved, waiting

HEAD, BLOCK = 64, 256
WHOLE_LIMIT = 8192  # beyond it the scores of one head alone fill a GiB in the backward pass


def measure(lengths: list[int], samples: int, seed: int) -> list[dict[str, Any]]:
    """Forward plus backward of one causal head, for the mappings that long sequences are used with."""
    rows = []
    for length in tqdm(lengths, unit="length"):
        keys = jax.random.split(jax.random.key(seed), 3)
        q, k, v = (jax.random.normal(key, (1, length, 1, HEAD)) for key in keys)
        subjects: list[tuple[str, int | None, Any]] = []
        if length <= WHOLE_LIMIT:
            subjects.append(("jax.nn", None, jax.nn.dot_product_attention))
        for name, mapping in (("softmax", sm.softmax), ("sparsemax", sm.sparsemax), ("entmax 1.5", sm.entmax)):
            for block in (None, BLOCK):
                if block is not None or length <= WHOLE_LIMIT:
                    subjects.append((name, block, _ours(mapping, block)))
        compiled = [with_gradient(attend, q, k, v) for _, _, attend in subjects]
        calls = [waiting(program, q, k, v) for program in compiled]
        for (name, block, _), program, timing in zip(subjects, compiled, interleaved(calls, samples), strict=True):
            rows.append(
                {
                    "subject": name,
                    "length": length,
                    "block_size": block,
                    "seconds": timing.seconds,
                    "ratio": timing.ratio if length <= WHOLE_LIMIT else None,
                    "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
                }
            )
    return rows


def _ours(mapping: Any, block: int | None) -> Any:
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, is_causal: bool) -> jax.Array:
        return sm.dot_product_attention(q, k, v, mapping=mapping, is_causal=is_causal, block_size=block)

    return attend


def with_gradient(attend: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    """The compiled program of causal attention, forward plus backward."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(attend(q, k, v, is_causal=True) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
