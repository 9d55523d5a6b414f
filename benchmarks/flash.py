"""Causal attention of many heads in bfloat16 on an accelerator, where kernels that store no score compete.

Two kinds of inputs: dense ones, and ones whose weights are zero in most blocks of keys.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import smoothmax as sm

from . import tuning, turns
from .attention import BLOCK, TILE, empty
from .subjects import ALPHA, to_numpy
from .timing import Waiting, interleaved

LENGTHS, WHOLE_LIMIT = "4096,16384", 4096  # beyond it whole scores fill tens of GiB
HEADS, TOKENS = 16, 8192  # of a batch, unless one sequence is longer
CODE, ALLOWED = 32, 0.3  # kinds of keys, and the share of them that a block of queries looks at
QUERIES = 64  # of a block that may be empty, and as many are checked
INPUTS = ("dense", "empty")
TOLERANCE = 2e-2  # relative, of outputs and of the queries' gradients
ADASPLASH, PROCESSES, MARGIN = "adasplash", 3, 25.0  # seconds for what follows its compilation

MAPPINGS: dict[str, Callable[..., jax.Array]] = {
    "softmax": sm.softmax,
    "sparsemax": sm.sparsemax,
    "entmax 1.5": sm.entmax,
    f"entmax {ALPHA}": functools.partial(sm.entmax, alpha=ALPHA),
}
IN_BLOCKS = "sparsemax", "entmax 1.5"  # those that are measured in plain JAX, too


class Size(NamedTuple):
    batch: int
    length: int
    heads: int
    head: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of queries, keys and values."""
        return self.batch, self.length, self.heads, self.head


@dataclass(frozen=True)
class Programs:
    """Forward `(q, k, v) -> out`, and forward plus backward `(q, k, v, do) -> (out, dq, ...)`."""

    forward: Callable[..., Any]
    both: Callable[..., Any]
    place: Callable[[jax.Array], Any] = lambda a: a  # an operand as the programs take it
    result: Callable[[Any], Any] = lambda a: a  # and a result as JAX has it, `(B, T, N, H)`
    wait: Callable[[Any], Any] = jax.block_until_ready
    temporary_bytes: int | None = None  # of forward plus backward


@dataclass(frozen=True)
class Subject:
    name: str
    mapping: str
    prepare: Callable[[Size], Programs]


def measured(args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows, from processes of their own for some of the subjects at each size."""
    sizes = [
        Size(max(1, TOKENS // length), length, HEADS, head)
        for length in map(int, args.lengths.split(","))
        for head in map(int, args.head_sizes.split(","))
    ]
    peers = not args.no_peers and importlib.util.find_spec(ADASPLASH) is not None
    n = turns.shares(len(sizes), peers)
    works = [(prepare, (size, (k, n), args)) for size in sizes for k in range(n + peers)]
    yield from turns.measured(works, args.until)


def prepare(size: Size, part: tuple[int, int], args: argparse.Namespace) -> Callable[[], list[dict[str, Any]]]:
    """Compiles and checks the baseline with the k-th of n shares of the subjects, or (k = n) with the peers."""
    k, n = part
    if k == n:  # before JAX touches the device: processes are forked
        tuning.load(tuning.MODULES[1])
        tuning.compiled(functools.partial(_tried, size), PROCESSES, args.until - MARGIN)
    base, *others = ours(size)
    programs = [(base, base.prepare(size))]
    for subject in (s for s in (peers() if k == n else others[k::n]) if args.only in s.name):
        if turns.is_late(args.until):
            _left_out(subject, size, "no time to compile it")
            continue
        try:
            programs.append((subject, subject.prepare(size)))
        except Exception as problem:
            _left_out(subject, size, f"{type(problem).__name__}: {str(problem)[:200]}")
    prepared = []
    for kind in INPUTS:
        inputs, good = data(size, kind == "empty", args.seed), []
        for subject, program in programs:
            try:
                placed = [program.place(a) for a in inputs]
                out, dq, *_ = program.both(*placed)
                error = wrong(subject.mapping, inputs, program.result(out), program.result(dq))
                share = _empty(subject.mapping, inputs)
            except Exception as problem:
                if subject is base:
                    raise
                _left_out(subject, size, f"{type(problem).__name__}: {str(problem)[:200]}")
                continue
            if error <= TOLERANCE or subject is base:
                good.append((subject, program, placed, error, share))
            else:
                _left_out(subject, size, f"off by {error:.1e} with {kind} inputs")
        prepared.append((kind, good))

    def measure() -> list[dict[str, Any]]:
        tuning.forget()
        rows = []
        for inputs, good in prepared:
            for kind in ("forward", "forward+backward"):
                calls = [_call(program, placed, kind) for _, program, placed, *_ in good]
                for (subject, program, _, error, share), timing in zip(
                    good, interleaved(calls, args.samples), strict=True
                ):
                    rows.append(
                        {
                            "subject": subject.name,
                            **size._asdict(),
                            "inputs": inputs,
                            "kind": kind,
                            **vars(timing),
                            "temporary_bytes": program.temporary_bytes,
                            "empty_blocks": share,
                            "error": error,
                        }
                    )
        return rows

    return measure


def _left_out(subject: Subject, size: Size, reason: str) -> None:
    print(f"left out: {subject.name} at {size}: {reason}", file=sys.stderr)


def _call(program: Programs, placed: list[Any], kind: str) -> Waiting:
    if kind == "forward":
        return Waiting(lambda: program.forward(*placed[:3]), program.wait)
    return Waiting(lambda: program.both(*placed), program.wait)


_of_jax_nn: Any = jax.nn.dot_product_attention


# --- What is measured --------------------------------------------------------------------------------------


def ours(size: Size) -> Iterator[Subject]:
    """JAX's own attention, of which the first is the baseline, and ours."""
    fastest = {"gpu": "cudnn"}.get(jax.default_backend(), "xla")
    whole = ["xla"] if fastest != "xla" and size.length <= WHOLE_LIMIT else []
    for name in [fastest, *whole]:
        attend = functools.partial(_of_jax_nn, is_causal=True, implementation=name)
        yield Subject(f"jax.nn, {name}", "softmax", functools.partial(of_jax, attend))
    for implementation, block, names in (("pallas", None, MAPPINGS), ("xla", BLOCK, IN_BLOCKS)):
        for name in names:
            attend = functools.partial(
                sm.dot_product_attention,
                mapping=MAPPINGS[name],
                is_causal=True,
                block_size=block,
                implementation=implementation,
            )
            yield Subject(f"smoothmax {name}, {implementation}", name, functools.partial(of_jax, attend))


def peers() -> Iterator[Subject]:
    """adasplash's second version, which is for causal entmax with alpha = 1.5."""
    yield Subject("adasplash entmax 1.5", "entmax 1.5", of_adasplash)


def of_jax(attend: Callable[..., jax.Array], size: Size) -> Programs:
    """Compiles a JAX function."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> Any:
        out, vjp = jax.vjp(attend, q, k, v)
        return out, *vjp(do)

    a = jax.ShapeDtypeStruct(size.shape, jnp.bfloat16)
    forward = jax.jit(lambda q, k, v: attend(q, k, v)).lower(a, a, a).compile()
    backward = jax.jit(both).lower(a, a, a, a).compile()
    memory: Any = backward.memory_analysis()
    return Programs(forward, backward, temporary_bytes=memory.temp_size_in_bytes)


def of_adasplash(_: Size) -> Programs:
    """PyTorch's arrays are `(B, N, T, H)`."""
    import torch
    from adasplash import adasplash  # pyright: ignore[reportMissingImports]

    def place(array: jax.Array) -> Any:
        heads_first = np.asarray(array, np.float32).swapaxes(1, 2)
        return torch.tensor(heads_first, dtype=torch.bfloat16, device="cuda").contiguous().requires_grad_()

    def forward(q: Any, k: Any, v: Any) -> Any:
        with torch.no_grad():
            return adasplash(q, k, v, alpha=1.5, is_causal=True)

    def both(q: Any, k: Any, v: Any, do: Any) -> Any:
        out = adasplash(q, k, v, alpha=1.5, is_causal=True)
        return out, *torch.autograd.grad(out, (q, k, v), do)

    return Programs(forward, both, place, lambda a: a.swapaxes(1, 2), lambda _: torch.cuda.synchronize())


def _tried(size: Size) -> None:
    """Calls adasplash once, so that it compiles; JAX is not touched."""
    import torch

    program = of_adasplash(size)
    shape = size.batch, size.heads, size.length, size.head
    program.both(*(torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(4)))


# --- Inputs and checks -------------------------------------------------------------------------------------


def data(size: Size, sparse: bool, seed: int) -> list[jax.Array]:
    """Queries, keys, values and the output's cotangent.

    Where `sparse`, every tile of keys has a code of its own, until they repeat, and the queries of a block score high
    with a few codes, chosen at random, and low with the others.
    """
    keys = jax.random.split(jax.random.key(seed), 5)
    q, k, v, do = (jax.random.normal(key, size.shape) for key in keys[:4])
    if sparse:
        tiles = np.arange(size.length) // TILE
        code = 8.0 * jax.nn.one_hot(tiles % CODE, CODE)
        looked_at = jax.random.uniform(keys[4], (tiles[-1] + 1, CODE)) < ALLOWED
        k = k.at[..., :CODE].set(code[None, :, None])
        q = q.at[..., :CODE].set(jnp.where(looked_at, 8.0, -8.0)[tiles][None, :, None])
    return [a.astype(jnp.bfloat16) for a in (q, k, v, do)]


def wrong(mapping: str, inputs: list[jax.Array], out: Any, dq: Any) -> float:
    """The error of the last queries' output and gradient in one head, relative to those in float64 on the CPU."""
    last = (0, slice(-QUERIES, None), 0)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        q, k, v, do = (jnp.asarray(to_numpy(a[0, :, 0])) for a in inputs)

        def attend(q: jax.Array) -> jax.Array:
            visible = len(k) - QUERIES + jnp.arange(QUERIES)[:, None] >= jnp.arange(len(k))
            scores = q @ k.T / math.sqrt(k.shape[-1])
            return MAPPINGS[mapping](scores, where=visible, implementation="xla") @ v

        expected, vjp = jax.vjp(attend, q[-QUERIES:])
        pairs = (out, expected), (dq, vjp(do[-QUERIES:])[0])
        return max(float(np.linalg.norm(to_numpy(a[last]) - b) / np.linalg.norm(b)) for a, b in pairs)


def _empty(mapping: str, inputs: list[jax.Array]) -> float:
    """The share of empty blocks in one head."""
    q, k = (a[:1, :, :1].astype(jnp.float32) for a in inputs[:2])
    return empty(functools.partial(MAPPINGS[mapping], implementation="xla"), q, k, QUERIES)[1]
