"""Interim fronts, until the solvers take offset and gamma themselves."""

import jax
import jax.numpy as jnp

from . import _chain, _sorting, _threshold
from ._power import support_power


def _z(x, gamma):
    top = jnp.max(x, axis=-1, keepdims=True)
    return (x - jnp.where(jnp.isinf(top), 0, top)) / gamma


def softmax_weights(x, gamma, *, implementation=None):
    return _threshold.softmax_weights(_z(x, gamma))


def sparsemax_weights(x, gamma, *, implementation=None):
    return _threshold.sparsemax_weights(_z(x, gamma))


def tsallis_weights(x, gamma, alpha, *, implementation=None):
    return _threshold.tsallis_weights(_z(x, gamma), alpha)


def p_norm_weights(x, gamma, p, *, implementation=None):
    return _threshold.p_norm_weights(_z(x, gamma), p)


def chain_prox(x, up, down, *, implementation=None):
    return _chain.chain_prox(x, up, down)


def sorted_prox(x, weights, *, implementation=None):
    return _sorting.sorted_prox(x, weights)


def isotonic(v, *, implementation=None):
    return _chain.chain_prox(v, jnp.inf, 0.0)


def segment_mean(v, jumps, weight, *, implementation=None):
    return _chain.segment_mean(v, jumps, weight)


def diagonal_product(s, v, *, implementation=None):
    return _threshold.diagonal_product(s, v)


def threshold_product(y, v, alpha, scale, *, implementation=None):
    return scale * diagonal_product(support_power(y, 2 - alpha), v)


def capped_weights(entropy, x, gamma, total, upper, *, implementation=None):
    lo, hi = jnp.full_like(x[..., :1], -1e4), jnp.full_like(x[..., :1], 1e4)
    allowed = x != -jnp.inf
    z = jnp.where(allowed, _z(x, gamma), -1e30)
    weights = lambda tau: jnp.where(allowed, jnp.clip(entropy.inverse(z - tau), 0, upper), 0)

    def halve(_, bracket):
        lo, hi = bracket
        mid = (lo + hi) / 2
        more = jnp.sum(weights(mid), -1, keepdims=True) > total
        return jnp.where(more, mid, lo), jnp.where(more, hi, mid)

    lo, hi = jax.lax.fori_loop(0, 100, halve, (lo, hi))
    return weights((lo + hi) / 2)
