"""A regularizer multiplied out, and everything that its conjugate asks of it.

    Omega(y) = gamma base(y) + sum_i e_i |y_{i+1} - y_i| + sum_k w_k y_(k)

Solving follows one theorem. The subdifferential of a penalty R depends only on the order and the ties of the
coordinates, and a base recovers y from the scores by one increasing function of every coordinate, which changes
neither; so the optimality conditions of the two parts separate, and

    Pi_{base + R}(x) = Pi_base(prox_R(x)).

The chain penalty goes first: the prox of the rank penalty keeps the order of the coordinates and only adds ties, so
prox_{chain + ranks}(x) = prox_ranks(prox_chain(x)).

What the proxes found, the segments and the groups, is handed on to the derivatives as integers. Off the ties, J is the
Jacobian of the base after an averaging over every segment and group; nothing is guessed again from the values.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._solvers import chain_prox, put_back, segment_mean, sorted_prox, take
from ._penalties import ChainPenalty, RankPenalty
from ._regularizer import Base, Parameter, Regularizer


class Found(NamedTuple):
    """What the solvers found beside the weights; None where a kind of penalty is absent.

    Attributes:
      jumps: int8 `(..., d)`: 0 where i and i+1 share a segment, else the sign of the step from i to i+1.
      order: int32 `(..., d)`: the positions by decreasing score.
      ties: int8 `(..., d)`: as `jumps`, for the groups, in that order.
      kept: int32 `(..., 1)`: the number of positions that are not deleted.
    """

    jumps: jax.Array | None = None
    order: jax.Array | None = None
    ties: jax.Array | None = None
    kept: jax.Array | None = None


class Composite(NamedTuple):
    gamma: Parameter
    base: Base
    chain: list[tuple[Parameter, ChainPenalty]]
    ranks: list[tuple[Parameter, RankPenalty]]

    def border_weights(self) -> jax.Array:
        weights = (jnp.asarray(strength * penalty.border_weights()) for strength, penalty in self.chain)
        return functools.reduce(jnp.add, weights)

    def rank_weights(self, kept: jax.Array, d: int, dtype: jnp.dtype) -> jax.Array:
        weights = (strength * penalty.rank_weights(kept, d, dtype) for strength, penalty in self.ranks)
        return functools.reduce(jnp.add, weights)


def multiply_out(omega: Regularizer) -> Composite:
    """Sorts the terms of an expression that has a base into a `Composite`."""
    terms = list(omega.terms())
    [(gamma, base)] = [(strength, atom) for strength, atom in terms if isinstance(atom, Base)]
    chain = [(strength, atom) for strength, atom in terms if isinstance(atom, ChainPenalty)]
    ranks = [(strength, atom) for strength, atom in terms if isinstance(atom, RankPenalty)]
    return Composite(gamma, base, chain, ranks)


def solve(omega: Regularizer, x: jax.Array) -> tuple[jax.Array, Found]:
    """Pi_Omega(x) on slices `(*batch, d)` with -inf at deleted positions, and what the proxes found."""
    parts = multiply_out(omega)
    jumps = order = ties = kept = None
    # Weights do not depend on an offset of the scores, but a division by gamma and the sums of a prox would round it.
    top = jnp.max(x, axis=-1, keepdims=True)
    x = x - jnp.where(jnp.isinf(top), 0, top)
    if parts.chain:
        weights = parts.border_weights()
        x, jumps = chain_prox(_spoiled(x, weights), weights, weights)
    if parts.ranks:
        kept = jnp.sum(x > -jnp.inf, axis=-1, keepdims=True, dtype=jnp.int32)
        weights = parts.rank_weights(kept, x.shape[-1], x.dtype)
        x, order, ties = sorted_prox(_spoiled(x, weights), weights)
    return parts.base.solve(x / parts.gamma), Found(jumps, order, ties, kept)


def _spoiled(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Scores that are NaN where a weight is: a prox only compares with its weights, which would hide it."""
    bad = jnp.isnan(weights)
    return jnp.where(bad.any(axis=-1, keepdims=True) if bad.ndim else bad, jnp.nan, x)


def allowed_positions(omega: Regularizer, x: jax.Array) -> jax.Array | None:
    """The positions that are not deleted, if the value of the base needs more than the support to know them."""
    return x != -jnp.inf if multiply_out(omega).base.counts_zeros else None


def value(omega: Regularizer, y: jax.Array, allowed: jax.Array | None, found: Found) -> jax.Array:
    """Omega(y) at a solution, as `(*batch, 1)`. A penalty has the value <g, y> for each of its subgradients g."""
    parts = multiply_out(omega)
    total = parts.gamma * parts.base.value(y, y != 0 if allowed is None else allowed)
    if parts.chain or parts.ranks:
        total += jnp.sum(_subgradient(parts, found, y) * _spread(found, y, y), axis=-1, keepdims=True)
    return total


def gradient(omega: Regularizer, y: jax.Array, found: Found) -> jax.Array:
    """A subgradient of Omega at a solution, on the support and up to a constant."""
    parts = multiply_out(omega)
    g = parts.gamma * parts.base.gradient(y)
    if parts.chain or parts.ranks:
        g += _subgradient(parts, found, y)
    return g


def pull(omega: Regularizer, y: jax.Array, found: Found, v: jax.Array) -> jax.Array:
    """J v for reverse mode. At a deleted position it holds the mean of the segment around it, see `_spread`."""
    parts = multiply_out(omega)
    return _spread(found, y, parts.base.product(y, v) / parts.gamma)


def push(omega: Regularizer, y: jax.Array, found: Found, v: jax.Array) -> jax.Array:
    """J v for forward mode, the transpose of `pull`."""
    parts = multiply_out(omega)
    return parts.base.product(y, _gather(found, y, v)) / parts.gamma


def _subgradient(parts: Composite, found: Found, y: jax.Array) -> jax.Array:
    """A subgradient of the penalties, given the order and the ties that the proxes found."""
    g = jnp.zeros_like(y)
    if found.jumps is not None:
        # Where the chain steps up from i to i+1, e_i (y_{i+1} - y_i) adds to the slope at i+1 and takes from it at i.
        slope = parts.border_weights() * found.jumps[..., :-1].astype(y.dtype)
        none = jnp.zeros_like(y[..., :1])
        g += jnp.concatenate([none, slope], axis=-1) - jnp.concatenate([slope, none], axis=-1)
    if found.order is not None and found.kept is not None:
        weights = parts.rank_weights(found.kept, y.shape[-1], y.dtype)
        g += put_back(jnp.broadcast_to(weights, y.shape), found.order)
    return g


# Averaging over segments and groups. Weights count the support only. A step of the chain may fall beside a deleted
# position, and its share of a subgradient then stands there: so in reverse mode the mean of a segment is spread to its
# deleted positions too, and in forward mode it is gathered from them. Groups neither take from them nor give to them.


def _spread(found: Found, y: jax.Array, v: jax.Array) -> jax.Array:
    return _over_segments(found, y, _over_groups(found, y, v))


def _gather(found: Found, y: jax.Array, v: jax.Array) -> jax.Array:
    """The transpose of `_spread`. JAX 0.8 can transpose a scan again only if the scan came out of `vjp`."""
    _, transpose = jax.vjp(lambda u: _spread(found, y, u), jnp.zeros_like(v))
    return transpose(v)[0]


def _over_segments(found: Found, y: jax.Array, v: jax.Array) -> jax.Array:
    if found.jumps is None:
        return v
    return segment_mean(v, found.jumps, (y != 0).astype(y.dtype))


def _over_groups(found: Found, y: jax.Array, v: jax.Array) -> jax.Array:
    if found.order is None or found.ties is None:
        return v
    support = (y != 0).astype(y.dtype)
    mean = segment_mean(take(v * support, found.order), found.ties, take(support, found.order))
    return put_back(mean, found.order) * support
