"""Sorting along the last axis, and the prox of a penalty on the sorted values.

A penalty that weighs the ranks, the largest weight for the largest value (OSCAR, OWL):

    minimise over t   1/2 sum_i (t_i - x_i)^2 + sum_k weights_k t_(k),    t_(1) >= t_(2) >= ...

The solution keeps the order of x, hence: sort, subtract the weights, take the non-increasing
regression (a chain problem), unsort.

**Sorting.** XLA sorts on the CPU by calling a comparison function; a network of compare-exchanges
is plain vector code there and 5 to 20 times faster. Accelerators have good sorts of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from .._arrays import eps
from ._chain import FALL, isotonic
from ._scores import centred

_Permute = Callable[[jax.Array, jax.Array], jax.Array]

# Above this width the network's log^2(d)/2 stages take too long to compile.
WIDEST_NETWORK = 1024
# A pool that moves its values by no more than this many roundings of the largest one moves nothing.
UNMOVED = 4


def sorted_prox(
    x: jax.Array, weights: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The prox of sum_k weights_k t_(k).

    Args:
      x: `(*batch, d)`, float32 or float64, at any offset; -inf marks a deleted position.
      weights: `(*batch or ones, d)` for the ranks, non-increasing over the allowed ones.
      implementation: None for the best one, or its name in the table of `_kernels`.

    Returns:
      t `(*batch, d)` in the order of x, -inf at deleted positions; the sort order, int32; and jumps, int8, of the
      regression in sorted order: nonzero where it falls behind a rank, 0 within a group. A slice with NaN or +inf, or
      with NaN among its weights, gives NaN.
    """
    # An implementation that has no kernel for the whole may have one for the chain in it.
    reference = functools.partial(_sorted_prox, implementation=implementation)
    return _kernels.run("ranks", implementation, reference, x, weights, optional=True)


def _sorted_prox(
    x: jax.Array, weights: jax.Array, implementation: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # The largest is taken off before the weights are, which a large offset would swallow.
    scores = centred(x)
    values, order = sort_descending(scores.z)
    weights = jnp.broadcast_to(weights, values.shape)
    z = values - weights
    t, jumps = isotonic(z, implementation=implementation)
    # Equal scores under equal weights are equal too, but not held together: where nothing else pooled
    # them, each moves with its own score.
    size = jnp.max(jnp.where(z > -jnp.inf, jnp.abs(z), 0), -1, keepdims=True)
    unmoved = jnp.abs(t - z) <= UNMOVED * eps(z) * size
    tied = (values[..., 1:] == values[..., :-1]) & (weights[..., 1:] == weights[..., :-1])
    inner = jnp.where(tied & unmoved[..., 1:], jnp.int8(FALL), jumps[..., :-1])
    bad = scores.bad | jnp.isnan(weights).any(-1, keepdims=True)
    t = jnp.where(bad, jnp.nan, t + scores.top)
    return put_back(t, order), order, jnp.concatenate([inner, jumps[..., -1:]], -1)


def sort_ranked(x: jax.Array, *, implementation: str | None = None) -> tuple[jax.Array, jax.Array]:
    """The values `(*batch, d)` from the largest to the smallest, -inf last, and the int32 rank of each, from 0."""
    return _kernels.run("sort", implementation, _sort_ranked, x, optional=True)


def _sort_ranked(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, order = sort_descending(x)
    return values, put_back(lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1), order)


def sort_descending(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values `(*batch, d)` from the largest to the smallest, -inf last, and the int32 positions they came from."""
    d = x.shape[-1]
    # A length that is only a symbol (`jax.export`) has no network.
    if not isinstance(d, int) or d > WIDEST_NETWORK:
        return _by_xla(x)
    return lax.platform_dependent(x, cpu=_network, default=_by_xla)


def _by_xla(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    position = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    key, order = lax.sort((-x, position), num_keys=1, is_stable=False)
    return -key, order


def _network(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bitonic merge sort, positions carried along; NaN is never exchanged, so any input ends."""
    key, d = _padded(x), x.shape[-1]
    position = lax.broadcasted_iota(jnp.int32, key.shape, 0)
    size = 1
    while size < key.shape[0]:
        half = size
        while half:
            key, position = _exchange(key, position, half, mirror=half == size)
            half //= 2
        size *= 2
    return jnp.moveaxis(key[:d], 0, -1), jnp.moveaxis(position[:d], 0, -1)


def _exchange(key: jax.Array, position: jax.Array, half: int, mirror: bool) -> tuple[jax.Array, jax.Array]:
    """One stage: in blocks of twice `half`, puts the larger of each pair first.

    The first stage of a merge compares mirror images: both halves are sorted downwards.
    """
    n, batch = key.shape[0], key.shape[1:]
    flip = slice(None, None, -1 if mirror else 1)
    blocks = (n // (2 * half), 2, half, *batch)
    key, position = key.reshape(blocks), position.reshape(blocks)
    a, b = key[:, 0], key[:, 1, flip]
    i, j = position[:, 0], position[:, 1, flip]
    swap = b > a

    def join(u: jax.Array, v: jax.Array) -> jax.Array:
        first, second = jnp.where(swap, v, u), jnp.where(swap, u, v)
        return jnp.stack([first, second[:, flip]], 1).reshape(n, *batch)

    return join(a, b), join(i, j)


def _padded(x: jax.Array) -> jax.Array:
    """The slice axis first, lengthened with -inf to a power of two."""
    d = x.shape[-1]
    n = 1 << (d - 1).bit_length()
    x = jnp.moveaxis(x, -1, 0)
    return jnp.concatenate([x, jnp.full((n - d, *x.shape[1:]), -jnp.inf, x.dtype)]) if n > d else x


# --- Permutations ------------------------------------------------------------------------------------------


def take(v: jax.Array, order: jax.Array) -> jax.Array:
    """v `(*batch, d)` in sorted order; `order` is a permutation of each slice."""
    return _permuted(v, order, _gather, _scatter, _sorted_by_rank, _sorted_back)


def put_back(v: jax.Array, order: jax.Array) -> jax.Array:
    """v `(*batch, d)` in the original order: the inverse of `take`."""
    return _permuted(v, order, _scatter, _gather, _sorted_back, _sorted_by_rank)


def _permuted(
    v: jax.Array, order: jax.Array, there: _Permute, back: _Permute, there_on_tpu: _Permute, back_on_tpu: _Permute
) -> jax.Array:
    """`there(v, order)`, whose inverse is `back`.

    A TPU gathers number by number: 61 times the bytes of two sorts for 1,024 slices of 1,024. A sort has no transpose,
    so JAX is told it: that of a permutation is its inverse. Solving a linear system is how it can be told.
    """
    plain, there, back = back, _by_platform(there, there_on_tpu), _by_platform(back, back_on_tpu)
    if not jnp.issubdtype(v.dtype, jnp.inexact):
        return there(v, order)
    order |= 0  # a result of logic, of which JAX knows that no derivative comes from it
    solve, transpose_solve = (lambda _, v: there(v, order)), (lambda _, v: back(v, order))
    return lax.custom_linear_solve(lambda v: plain(v, order), v, solve, transpose_solve)


def _by_platform(default: _Permute, tpu: _Permute) -> _Permute:
    return lambda v, order: lax.platform_dependent(v, order, tpu=tpu, default=default)


def _gather(v: jax.Array, order: jax.Array) -> jax.Array:
    return jnp.take_along_axis(v, order, -1, mode="promise_in_bounds")


def _scatter(v: jax.Array, order: jax.Array) -> jax.Array:
    def put(v: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.zeros_like(v).at[order].set(v, unique_indices=True, mode="promise_in_bounds")

    for _ in range(order.ndim - 1):
        put = jax.vmap(put)
    return put(v, order)


def _sorted_back(v: jax.Array, order: jax.Array) -> jax.Array:
    return lax.sort((order, v), num_keys=1, is_stable=False)[1]


def _sorted_by_rank(v: jax.Array, order: jax.Array) -> jax.Array:
    rank = _sorted_back(lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1), order)
    return _sorted_back(v, rank)
