"""Losses of a large vocabulary without its logits, beside optax's cross entropy of whole logits.

    python -m benchmarks.linear_loss                # 2,048 tokens, 256 features, 32,768 words

The loss and its gradients for features and kernel, in turn; ratios are to optax.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import optax

import smoothmax as sm

from .timing import interleaved, waiting

OMEGAS = {"Shannon": sm.Shannon(), "Tsallis 1.5": sm.Tsallis(1.5), "SquaredL2": sm.SquaredL2()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear_loss", description=str(__doc__).splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--words", type=int, default=32768)
    parser.add_argument("--chunks", default="none", help="comma-separated chunk sizes; none: the default")
    parser.add_argument("--samples", type=int, default=7)
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (args.tokens, args.features))
    kernel = jax.random.normal(keys[1], (args.features, args.words)) / 16
    labels = jax.random.randint(keys[2], (args.tokens,), 0, args.words)

    def compiled(loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
        return (
            jax.jit(jax.value_and_grad(lambda h, w: loss(h, w).mean(), argnums=(0, 1))).lower(hidden, kernel).compile()
        )

    programs = {"optax": compiled(lambda h, w: optax.softmax_cross_entropy_with_integer_labels(h @ w, labels))}
    for name, omega in OMEGAS.items():
        for word in args.chunks.split(","):
            size = None if word == "none" else int(word)
            programs[f"{name}, chunk_size={size}"] = compiled(
                lambda h, w, omega=omega, size=size: sm.linear_fenchel_young_loss(h, w, labels, omega, chunk_size=size)
            )
    calls = [waiting(program, hidden, kernel) for program in programs.values()]
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs.values()]
    print("| loss | times optax | seconds | temporary MiB | times optax |\n|---|---|---|---|---|")
    for name, timing, size in zip(programs, interleaved(calls, args.samples), memory, strict=True):
        print(f"| {name} | {timing.ratio:.2f} | {timing.seconds:.2f} | {size / 2**20:.0f} | {size / memory[0]:.2f} |")


if __name__ == "__main__":
    main()
