"""Sorting along the last axis, and the prox of a penalty on the sorted values.

Weights that go to ranks, the largest weight to the largest value (OSCAR, OWL):

    minimise over t   1/2 sum_i (t_i - x_i)^2 + sum_k weights_k t_(k),    t_(1) >= t_(2) >= ...

The solution keeps the order of x, hence: sort, subtract the weights, non-increasing isotonic regression
(a chain problem), unsort.
"""

import jax.numpy as jnp

from ._chain import chain_prox


def sort_descending(x):
    """The values from the largest to the smallest, -inf last, and int32 positions they came from."""
    order = jnp.argsort(-x, axis=-1).astype(jnp.int32)
    return take(x, order), order


def take(v, order):
    """v in sorted order."""
    return jnp.take_along_axis(v, order, -1)


def put_back(v, order):
    """The inverse of `take`."""
    return jnp.take_along_axis(v, jnp.argsort(order, -1), -1)


def sorted_prox(x, weights):
    """The prox of sum_k weights_k t_(k), for non-increasing weights (..., d) of the ranks.

    Returns t in the order of x, the sort order, and the jumps of the isotonic regression in sorted order.
    """
    values, order = sort_descending(x)
    t, jumps = chain_prox(values - weights, jnp.inf, 0)
    return put_back(t, order), order, jumps
