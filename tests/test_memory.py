"""What the backward pass keeps, and how temporary memory grows."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES, PIECES

N, WIDTH = 6, 40


@cases.each(FAMILIES)
@pytest.mark.parametrize("method", ["weights", "value"])
def test_residuals_are_the_weights_and_integers(case, method):
    """Differentiating in scores and in all hyper-parameters keeps one float array of full size, the weights,
    which attention stores anyway, and of integers what the solver found (segments, sort order, what a mask deleted).
    The value over a domain with hyper-parameters keeps the scores for them too."""
    params = case.arrays(WIDTH)
    keep = functools.partial(jax.vjp, getattr(case.family, method))
    out, *kept = jax.make_jaxpr(keep)(cases.scores(N, WIDTH), params).jaxpr.outvars
    large = [variable for variable in kept if variable.aval.size >= N * WIDTH]
    floats = [variable for variable in large if jnp.issubdtype(variable.aval.dtype, jnp.floating)]
    if method == "weights":  # not a copy of them
        assert floats in ([], [out]), floats
    else:
        scores = bool(jax.tree.leaves(case.family.op(params, WIDTH).over))
        assert len(floats) <= 1 + scores, [variable.aval for variable in floats]
    others = [variable.aval for variable in large if variable not in floats]
    assert all(aval.size <= N * WIDTH and aval.dtype.itemsize <= 4 for aval in others)
    penalties = case.family.penalties
    # Segments; or groups, which are segments of a sort order.
    integers = 3 if len(penalties) > 1 else 2 if penalties else 0
    match case.family.domain:
        case "box":  # a weight of 0 does not tell that a position is deleted
            integers += 1
        case "capped":  # nor does it here; and at a vertex, who would move first
            integers += 1
        case "permutahedron" | "ranks":  # neither does it here: order, pools, mask, and the rank of each of the weights
            integers += 4
        case _:  # phi(0) counts once for each allowed position: the value of a function keeps the mask
            integers += case.family.base in ("cubic", "coupled") and method == "value"
    assert len(others) <= integers, others


# Arrays of the size of the scores that forward and backward may take together. The plain function takes 47, ranks 30,
# the others less than 24; the square of the width would be 2,048.
MOST_ARRAYS = 64


@cases.each(PIECES)
def test_memory_is_linear_in_the_width(case, n=4, d=8192):
    """Forward and backward, compiled: few arrays of the size of the scores, and nothing that grows faster."""

    def both(params, x, v):
        y, pull = jax.vjp(case.family.weights, x, params)
        return y, pull(v)

    params = {k: np.asarray(p, np.float32) for k, p in case.params(d).items()}
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    taken = jax.jit(both).lower(params, x, x).compile().memory_analysis().temp_size_in_bytes
    arrays = taken / (4 * x.size)
    assert arrays <= MOST_ARRAYS, f"{arrays:.1f} arrays of the size of the scores"
