"""Blocked attention that skips tiles of zeros: how many are empty in trained attention, and when it pays.

    python -m examples.recall --task recall --mapping entmax --steps 500
    python -m benchmarks.zeros runs/recall/recall/entmax-1.5-0      # queries, keys and values of that model
    python -m benchmarks.zeros                                      # queries that look at a chosen share of the tiles

Forward plus backward, in turn with the same call without `skip_zeros` and with `jax.nn.dot_product_attention`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import smoothmax as sm

from .attention import HEAD, TILE, WHOLE_LIMIT, empty, with_gradient
from .timing import interleaved, waiting


def trained(folder: Path, lengths: list[int]) -> Iterator[tuple[str, Callable[..., jax.Array], list[jax.Array]]]:
    """Name, mapping, and queries, keys and values `(1, L, heads, head size)` of each layer of a finished run."""
    from flax import nnx

    from examples.recall import tasks, train
    from examples.recall.model import Transformer
    from examples.recall.options import Options

    metrics = json.loads((folder / train.METRICS).read_text())
    fields = Options.__dataclass_fields__
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in metrics.items() if k in fields}
    options = Options(**{**chosen, "out": folder})
    graph, params = nnx.split(Transformer(options))
    fresh = train.State(params, train.optimizer(options).init(params), 0, 0.0)
    model = nnx.merge(graph, train.restored(options, fresh).params)
    for length in lengths:
        # Beyond the longest sequence there is, several follow each other.
        piece = min(length, tasks.longest(options.task))
        draws = [
            tasks.draw(options.task, np.random.default_rng(i), 1, piece, vary=False) for i in range(length // piece)
        ]
        x = model.embedded(jnp.concatenate([jnp.asarray(draw.inputs) for draw in draws], axis=1))
        for i, block in enumerate(model.blocks):
            normed, layer = block.norms[0](x), block.attention.layer
            arrays = [project(normed) for project in (layer.query, layer.key, layer.value)]
            yield f"layer {i + 1} of {options.name}, {length}", block.attention.mapping(), arrays
            x = block(x, 256, False)


def made(lengths: list[int]) -> Iterator[tuple[str, Callable[..., jax.Array], list[jax.Array]]]:
    """Queries of a block look at one tile of keys in `kinds`, at random: the share of empty tiles is known."""
    rng = np.random.default_rng(0)
    for length in lengths:
        for kinds in (1, 2, 3, 5, 10, 20):
            noise = [0.1 * rng.normal(size=(1, length, 1, HEAD)) for _ in range(3)]
            codes = [np.repeat(rng.integers(0, kinds, -(-length // n)), n)[:length] for n in (256, TILE)]
            for array, code in zip(noise, codes, strict=False):  # a match adds 8 to a score
                array[0, np.arange(length), 0, code] += 8.0
            yield f"one tile in {kinds}, {length}", sm.sparsemax, [jnp.asarray(a, jnp.float32) for a in noise]


def measure(mapping: Callable[..., jax.Array], arrays: list[jax.Array], block_size: int, samples: int) -> list[Any]:
    """Timings of ours with and without the zeros, and of JAX's attention; the first one is what it must beat."""
    ours = partial(sm.dot_product_attention, mapping=mapping, block_size=block_size)
    attends: list[Any] = [ours, partial(ours, skip_zeros=True)]
    if arrays[0].shape[1] <= WHOLE_LIMIT:
        attends.append(jax.nn.dot_product_attention)
    return interleaved([waiting(with_gradient(attend, *arrays), *arrays) for attend in attends], samples)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zeros", description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run of examples.recall")
    parser.add_argument("--lengths", default="2048,4096,8192,16384")
    parser.add_argument("--blocks", default="64,256", help="queries in a block")
    parser.add_argument("--samples", type=int, default=5)
    args = parser.parse_args()
    lengths = [int(n) for n in args.lengths.split(",")]
    print("| attention | queries in a block | zeros | empty tiles | skipping, times blocked | jax.nn, times blocked |")
    print("|---|---|---|---|---|---|")
    for name, mapping, arrays in trained(args.run, lengths) if args.run else made(lengths):
        for block_size in map(int, args.blocks.split(",")):
            zeros, tiles = empty(mapping, arrays[0], arrays[1], block_size)
            ratios = [f"{timing.ratio:.2f}" for timing in measure(mapping, arrays, block_size, args.samples)[1:]]
            cells = [name, str(block_size), f"{zeros:.1%}", f"{tiles:.1%}", *ratios, *["-"] * (2 - len(ratios))]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
