"""One query against a cache of keys, of which so many are there: ours against `jax.nn.dot_product_attention`.

python -m benchmarks.decoding --cache 2048,16384
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import smoothmax as sm

from .timing import interleaved, waiting

BATCH, HEADS, HEAD = 1, 8, 64
MAPPINGS = {"softmax": sm.softmax, "sparsemax": sm.sparsemax, "entmax 1.5": sm.entmax, "fusedmax": sm.fusedmax}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=str(__doc__).splitlines()[0])
    parser.add_argument("--cache", default="2048,16384", help="comma-separated lengths of the cache")
    parser.add_argument("--samples", type=int, default=15)
    args = parser.parse_args()
    attends: dict[str, Any] = {"jax.nn": jax.nn.dot_product_attention}
    attends |= {name: partial(sm.dot_product_attention, mapping=mapping) for name, mapping in MAPPINGS.items()}
    print(f"| cache | length | {' | '.join(attends)} | jax.nn, ms |")
    print("|" + "---|" * (len(attends) + 3))
    for size in map(int, args.cache.split(",")):
        seeds, lengths = jax.random.split(jax.random.key(0), 3), (1, size, size)
        qkv = [jax.random.normal(seed, (BATCH, n, HEADS, HEAD)) for seed, n in zip(seeds, lengths, strict=True)]
        programs = [
            jax.jit(lambda q, k, v, n, attend=attend: attend(q, k, v, key_value_seq_lengths=n))
            for attend in attends.values()
        ]
        for length in (size // 8, size):
            operands = (*qkv, jnp.full(BATCH, length, jnp.int32))
            calls = [waiting(program, *operands) for program in programs]
            timings = interleaved(calls, args.samples)
            cells = [f"{timing.ratio:.2f}" for timing in timings] + [f"{1e3 * timings[0].seconds:.2f}"]
            print(f"| {size} | {length} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
