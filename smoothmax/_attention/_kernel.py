"""Attention as one problem of the table of kernels, which never stores a score.

A kernel serves the mappings that one threshold solves: entmax with alpha from 1 to 2, at any gamma. It has a forward
part, which hands on what it found, and a backward part that takes it ("attention", "attention_bars"). The rule that
connects the two is here. Its derivatives of higher order are those of the form in plain JAX.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from .. import _kernels
from .._arrays import no_cotangent, varying_like
from .._conjugate import conjugate
from .._domains import Simplex
from .._operators import operator_of
from .._parameters import known
from .._regularizers import Shannon, SquaredL2, Tsallis
from ._blocks import attend_in_blocks
from ._core import Mapping, Products, attend
from ._visibility import Visibility

_OF_ITS_OWN = (
    "a mapping that takes an implementation may have its own, as in functools.partial(smoothmax.fusedmax, "
    "implementation='pallas')"
)
# Queries of a block where a traced alpha turns out to be above 2, which plain JAX solves.
_BLOCK = 128


class Operands(NamedTuple):
    """What a derivative is taken of: the first arguments of a kernel for attention."""

    query: jax.Array  # (B, T, N, H)
    key: jax.Array  # (B, S, K, H)
    value: jax.Array  # (B, S, K, H), or of another head size
    bias: jax.Array | None  # four axes, each of size 1 or that of the scores (B, N, T, S)
    scale: jax.Array  # ()
    alpha: jax.Array  # () or (N, 1, 1)
    gamma: jax.Array  # () or (N, 1, 1)


class Rules(NamedTuple):
    """The further arguments of a kernel: arrays that have no derivative."""

    mask: jax.Array | None
    query_lengths: jax.Array | None
    key_lengths: jax.Array | None


class Way(NamedTuple):
    """What is static about a call."""

    implementation: str | None
    base: type  # Shannon, SquaredL2 or Tsallis, as the mapping has it
    guarded: bool  # whether alpha may turn out to be above 2, which plain JAX solves then
    products: Products
    block_size: int | None
    is_causal: bool
    window: tuple[int, int] | None

    def serving(self, problem: str, *args: Any) -> dict[str, _kernels.Solver]:
        """The kernels that serve."""
        static = {"is_causal": self.is_causal, "window": self.window}
        return _kernels.serving(problem, self.implementation, *args, **static)

    def run(self, problem: str, reference: _kernels.Solver, alpha: jax.Array, *args: Any) -> Any:
        """Solves by a kernel, or by the reference on other platforms and at an alpha that no kernel serves."""
        kernels = self.serving(problem, *args)
        if not self.guarded:
            return _kernels.choose(kernels, self.implementation, partial(reference, self), args)
        fallback = partial(reference, self._replace(block_size=self.block_size or _BLOCK))

        def guarded(kernel: _kernels.Solver) -> _kernels.Solver:
            return lambda within, *args: lax.cond(within, kernel, fallback, *args)

        kernels = {platform: guarded(kernel) for platform, kernel in kernels.items()}
        plain = lambda _, *args: reference(self, *args)  # noqa: E731
        return _kernels.choose(kernels, self.implementation, plain, (jnp.all(alpha <= 2), *args))


class _Entmax(NamedTuple):
    """A mapping as the kernels know it."""

    base: type  # Shannon, SquaredL2 or Tsallis
    alpha: jax.Array  # () or (N, 1, 1)
    gamma: jax.Array  # () or (N, 1, 1)
    is_known: bool  # whether alpha is known to be at most 2


def attend_by_kernel(
    implementation: str | None,
    mapping: Mapping,
    scale: ArrayLike,
    products: Products,
    block_size: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
) -> jax.Array | None:
    """The output `(B, T, N, H)`, or None where no kernel serves.

    Raises:
      NotImplementedError: the named implementation cannot serve.
    """
    rules = Rules(visibility.mask, visibility.query_lengths, visibility.key_lengths)
    static = {"is_causal": visibility.is_causal, "window": visibility.window}
    arrays = query, key, value, bias
    if not _kernels.serving("attention", implementation, *arrays, scale, None, None, *rules, **static):
        return None
    found = _entmax_of(mapping, query.shape[2])
    if isinstance(found, str):
        if implementation is not None:
            raise _kernels.refuse(implementation, found)
        return None
    operands = Operands(*arrays, jnp.asarray(scale, jnp.float32), found.alpha, found.gamma)
    guarded = implementation is None and not found.is_known
    way = Way(implementation, found.base, guarded, products, block_size, **static)
    # What devices share under `jax.shard_map` has a gradient that is a sum over them.
    operands, rules = jax.tree.map(lambda a: varying_like(a, operands, rules), (operands, rules))
    attended: Any = _attend(way, operands, rules)
    return attended[0]


# --- The mapping -------------------------------------------------------------------------------------------


def _entmax_of(mapping: Mapping, heads: int) -> _Entmax | str:
    """Alpha and gamma of a mapping, scalars or of shape `(heads, 1, 1)`; or why no kernel for attention knows it."""
    op = operator_of(mapping)
    if op is None:
        return f"its attention knows the named mappings and operators, not mapping={mapping!r}; {_OF_ITS_OWN}"
    if op.implementation is not None:
        return f"the mapping asks for an implementation of its own, {op.implementation!r}; leave one of them out"
    if op.forward:
        return "its attention has no forward mode"
    terms = list(op.omega.terms())
    (gamma, base), *penalties = terms
    if type(op.over) is not Simplex or penalties or type(base) not in (Shannon, SquaredL2, Tsallis):
        return (
            f"its attention knows Shannon, SquaredL2 and Tsallis over the simplex, not {op.omega!r} over {op.over!r}; "
            f"{_OF_ITS_OWN}"
        )
    alpha: Any = base.alpha if isinstance(base, Tsallis) else getattr(base, "kernel_alpha", None)
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if jnp.size(value) != 1 and (1,) * (4 - jnp.ndim(value)) + jnp.shape(value) != (1, heads, 1, 1):
            return (
                f"its attention takes one {name}, or one a head in shape ({heads}, 1, 1), not shape {jnp.shape(value)}"
            )
    is_known = known(alpha)
    if is_known and np.any(np.asarray(alpha) > 2):
        return f"its attention takes alpha from 1 to 2, not {alpha}"
    shapes = (() if jnp.size(value) == 1 else (heads, 1, 1) for value in (alpha, gamma))
    alpha, gamma = (jnp.asarray(v, jnp.float32).reshape(shape) for v, shape in zip((alpha, gamma), shapes, strict=True))
    return _Entmax(type(base), alpha, gamma, is_known)


# --- The rule ----------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(way: Way, operands: Operands, rules: Rules) -> tuple[jax.Array, Any]:
    """The output, and what the kernel's backward part needs."""
    like = jax.eval_shape(next(iter(way.serving("attention", *operands, *rules).values())), *operands, *rules)[1]

    def reference(way: Way, *args: Any) -> tuple[jax.Array, Any]:
        return _plain(way, *args), _zeros(like, args)

    return way.run("attention", reference, operands.alpha, *operands, *rules)


def _attend_fwd(way: Way, operands: Operands, rules: Rules) -> Any:
    found: Any = _attend(way, operands, rules)
    output, kept = found
    return (output, kept), (operands, rules, kept)


def _attend_bwd(way: Way, residuals: Any, bars: Any) -> Any:
    operands, rules, kept = residuals
    return _bars(way, operands, rules, kept, bars[0]), _no_bars(rules)


_attend.defvjp(_attend_fwd, _attend_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bars(way: Way, operands: Operands, rules: Rules, kept: Any, output_bar: jax.Array) -> Operands:
    """The cotangents of the operands."""

    def reference(way: Way, *args: Any) -> Any:
        operands, rules, output_bar = Operands(*args[:7]), Rules(*args[7:10]), args[11]
        return tuple(_plain_bars(way, operands, rules, output_bar))

    return Operands(*way.run("attention_bars", reference, operands.alpha, *operands, *rules, kept, output_bar))


def _bars_fwd(way: Way, operands: Operands, rules: Rules, kept: Any, output_bar: jax.Array) -> Any:
    return _bars(way, operands, rules, kept, output_bar), (operands, rules, kept, output_bar)


def _bars_bwd(way: Way, residuals: Any, bars: Operands) -> Any:
    operands, rules, kept, output_bar = residuals
    _, pull = jax.vjp(lambda operands, bar: _plain_bars(way, operands, rules, bar), operands, output_bar)
    operands_bar, output_bar_bar = pull(bars)
    return operands_bar, _no_bars(rules), _no_bars(kept), output_bar_bar


_bars.defvjp(_bars_fwd, _bars_bwd)


def _plain(way: Way, *args: Any) -> jax.Array:
    """The output in plain JAX."""
    *operands, alpha, gamma, mask, query_lengths, key_lengths = args
    query, key, value, bias, scale = operands
    base = Tsallis(alpha) if way.base is Tsallis else way.base()
    core = partial(attend, mapping=conjugate(gamma * base), scale=scale, products=way.products)
    visibility = Visibility(mask, way.is_causal, way.window, query_lengths, key_lengths)
    if way.block_size is None:
        return core(query, key, value, bias, visibility.block(0, query.shape[1], 0, key.shape[1]))[0]
    return attend_in_blocks(core, query, key, value, bias, visibility, way.block_size)


def _plain_bars(way: Way, operands: Operands, rules: Rules, output_bar: jax.Array) -> Operands:
    return jax.vjp(lambda operands: _plain(way, *operands, *rules), operands)[1](output_bar)[0]


def _zeros(like: Any, others: Any) -> Any:
    return jax.tree.map(lambda a: varying_like(jnp.zeros(a.shape, a.dtype), others), like)


def _no_bars(tree: Any) -> Any:
    """The cotangents of what has no derivative."""
    return jax.tree.map(lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.inexact) else no_cotangent(a), tree)
