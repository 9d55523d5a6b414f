"""What the backward pass keeps, and how temporary memory grows."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import FAMILIES, REPRESENTATIVES

N, WIDTH = 6, 40


def full_size(pull):
    return [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) >= N * WIDTH]


@cases.each(FAMILIES)
@pytest.mark.parametrize("method", ["weights", "value"])
def test_residuals_are_the_weights_and_integers(case, method):
    """Differentiating in scores and in all hyper-parameters keeps one float array of full size, the weights,
    which attention stores anyway, and of integers what the solver found (segments, sort order, what a mask deleted).
    The value over a domain with hyper-parameters keeps the scores for them too."""
    params = {k: jnp.asarray(p, float) for k, p in case.params(WIDTH).items()}
    x = jnp.asarray(cases.scores(N, WIDTH))
    keep = functools.partial(jax.vjp, getattr(case.family, method))
    numbers = method == "weights" and case in REPRESENTATIVES  # for the others shapes will do: nothing is compiled
    out, pull = keep(x, params) if numbers else jax.eval_shape(keep, x, params)
    large = full_size(pull)
    floats = [leaf for leaf in large if jnp.issubdtype(leaf.dtype, jnp.floating)]
    scores = method == "value" and bool(jax.tree.leaves(case.family.op(params, WIDTH).over))
    assert len(floats) <= 1 + scores, [(leaf.shape, leaf.dtype) for leaf in floats]
    if numbers and floats:
        np.testing.assert_array_equal(np.sort(floats[0].ravel()), np.sort(out.ravel()))
    others = [leaf for leaf in large if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.size <= N * WIDTH and leaf.dtype.itemsize <= 4 for leaf in others)
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


@cases.each(REPRESENTATIVES)
def test_memory_is_linear_in_the_width(case, n=4, d=8192):
    """Forward and backward, compiled: few arrays of the size of the scores, and nothing that grows faster."""

    def both(params, x, v):
        y, pull = jax.vjp(case.family.weights, x, params)
        return y, pull(v)

    params = {k: jnp.asarray(p, jnp.float32) for k, p in case.params(d).items()}
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    taken = jax.jit(both).lower(params, x, x).compile().memory_analysis().temp_size_in_bytes
    arrays = taken / (4 * x.size)
    assert arrays <= MOST_ARRAYS, f"{arrays:.1f} arrays of the size of the scores"
