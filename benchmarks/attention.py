"""Attention at growing lengths: blocked and not, against `jax.nn.dot_product_attention`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

import smoothmax as sm

from .timing import interleaved, waiting

HEAD, BLOCK = 64, 256
TILE = 128  # keys of a block that may be empty
WHOLE_LIMIT = 8192  # beyond it the scores of one head alone fill a GiB in the backward pass
LENGTHS = "512,1024,2048,4096,8192,16384"


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


def empty(mapping: Any, query: jax.Array, key: jax.Array, block_size: int) -> tuple[float, float]:
    """The share of zeros among the weights below the diagonal, and of blocks of them that hold nothing else."""
    length = query.shape[1]

    @jax.jit
    def held(query: jax.Array, key: jax.Array, first: Any) -> tuple[jax.Array, jax.Array]:
        """The number of weights of a block of queries, and which tiles of keys have some."""
        some = lax.dynamic_slice_in_dim(query, first, block_size, 1)
        scores = jnp.einsum("btnh,bsnh->bnts", some, key, preferred_element_type=jnp.float32) / math.sqrt(key.shape[-1])
        weights = mapping(scores, where=first + jnp.arange(block_size)[:, None] >= jnp.arange(length)) > 0
        tiles = weights.reshape(*weights.shape[:2], block_size, -1, TILE)
        return jnp.sum(weights), jnp.any(tiles, axis=(2, 4))

    weights, tiles, all_tiles = 0, 0, 0
    for first in range(0, length, block_size):
        here, some = held(query, key, first)
        seen = np.asarray(some)[..., : -(-(first + block_size) // TILE)]  # tiles at or below the diagonal
        weights += int(here)
        tiles += int((~seen).sum())
        all_tiles += seen.size
    visible = query.shape[0] * query.shape[2] * length * (length + 1) // 2
    return 1 - weights / visible, tiles / all_tiles
