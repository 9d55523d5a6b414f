"""`length_scaled` against NumPy: scores times (base + slope * log(n)^power), with n counted slice by slice."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import normal, refuse
from cases.tolerances import DIFFERENCE, PULLED, STEP, SUMS, ULPS

import smoothmax as sm

f64 = jnp.float64
X = normal(0, 2, 3, 7, dtype=f64)
WHERE = np.random.default_rng(1).uniform(size=X.shape) < 0.6
WHERE[0, :2] = False
WHERE[0, 1, 3] = True
NUMBERS = {"base": 0.7, "slope": 0.4, "power": 1.3}


def by_hand(mapping, x, where=None, *, base=1.0, slope=0.0, power=1.0, axis=-1):
    """Each slice on its own, with what is not allowed taken out."""
    x, axis = np.moveaxis(np.asarray(x, np.float64), axis, -1), -1
    where = np.ones(x.shape, bool) if where is None else np.moveaxis(np.broadcast_to(where, x.shape), axis, -1)
    out = np.zeros(x.shape)
    base, slope, power = (np.broadcast_to(np.asarray(p), (*x.shape[:-1], 1)) for p in (base, slope, power))
    for index in np.ndindex(*x.shape[:-1]):
        allowed = where[index] & (x[index] != -np.inf)
        n = allowed.sum()
        if n:
            factor = base[index][0] + slope[index][0] * np.log(n) ** power[index][0]
            out[index][allowed] = mapping(factor * x[index][allowed])
    return out


def softmax_by_hand(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sparsemax_by_hand(x):
    return oracles.tsallis(x, 2.0)


MAPPINGS = [(sm.softmax, softmax_by_hand), (sm.sparsemax, sparsemax_by_hand)]
MINUS_INFINITY = X.copy()
MINUS_INFINITY[1, 0, :4] = MINUS_INFINITY[1, 1, 1:] = -np.inf  # n = 3 and n = 1


@jax.jit
def applied(scaled, x, where):
    return scaled(x, where=where)


@pytest.mark.parametrize(("mapping", "expected"), MAPPINGS, ids=["softmax", "sparsemax"])
@pytest.mark.parametrize(("x", "where"), [(X, None), (X, WHERE), (MINUS_INFINITY, None), (MINUS_INFINITY, WHERE)])
def test_scores_are_scaled_by_the_number_of_allowed_positions(mapping, expected, x, where):
    result = applied(sm.length_scaled(mapping, **NUMBERS), x, where)
    np.testing.assert_allclose(result, by_hand(expected, x, where, **NUMBERS), rtol=0, atol=SUMS)


def test_what_is_not_allowed_may_hold_anything():
    scaled = lambda numbers, x: sm.length_scaled(sm.sparsemax, **numbers)(x, where=WHERE)
    grad = jax.grad(lambda numbers, x: jnp.sum(scaled(numbers, x) ** 2), (0, 1))
    weights_and_grads = jax.jit(lambda x: (scaled(NUMBERS, x), grad(NUMBERS, x)))
    clean = weights_and_grads(X)
    for filling in (np.nan, np.inf, -np.inf, 1e30):
        chex.assert_trees_all_equal(weights_and_grads(np.where(WHERE, X, filling)), clean)


@pytest.mark.parametrize("axis", [0, 1, -2, (0, 2), (-1, 1), None])
def test_any_axis(axis):
    scaled = sm.length_scaled(sm.sparsemax, **NUMBERS)
    axes = tuple(range(3)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(a % 3 for a in axes)
    rest = tuple(i for i in range(3) if i not in axes)
    order = rest + tuple(sorted(axes))
    flat = lambda a: a.transpose(order).reshape(*(a.shape[i] for i in rest), -1)
    result = flat(jax.jit(lambda x: scaled(x, axis, where=WHERE))(X))
    np.testing.assert_allclose(result, by_hand(sparsemax_by_hand, flat(X), flat(WHERE), **NUMBERS), rtol=0, atol=SUMS)


def test_short_slices_are_safe():
    """With one allowed position, or none, log(n) is 0 or -inf: values and gradients stay finite."""
    x = X[0]
    where = np.arange(7)[None, :] < np.array([0, 1, 2])[:, None]

    def loss(numbers, x):
        weights = sm.length_scaled(sm.sparsemax, **numbers)(x, where=where)
        return jnp.sum(weights * np.cos(np.arange(7.0))[None, :]), weights

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    for power in (0.0, 0.5, 1.0, 2.0):
        numbers = {"base": 1.0, "slope": 0.1, "power": power}
        (_, weights), grads = jax.tree.map(np.asarray, value_and_grad(numbers, x))
        chex.assert_tree_all_finite(grads)
        assert not weights[0].any() and weights[1, 0] == 1 and not weights[1, 1:].any()
        np.testing.assert_allclose(weights[2].sum(), 1, rtol=0, atol=ULPS)
        assert not grads[1][:2].any()
    # A power of zero is a factor that does not depend on the length, at any length.
    box = lambda x, axis=-1, *, where=None: x
    scaled = sm.length_scaled(box, base=1.0, slope=2.0, power=0.0)
    np.testing.assert_array_equal(scaled(jnp.ones((1,), f64)), 3.0)


@pytest.mark.parametrize("name", ["softmax", "entmax", "fusedmax", "oscarmax", "pnormmax"])
def test_gradients_by_finite_differences(name):
    mapping = getattr(sm, name)
    theta = {
        "x": X,
        "base": np.array([[0.8], [1.0], [1.2]]),
        "slope": np.array([[0.1], [0.2], [-0.1]]),
        "power": np.array([[0.5], [1.0], [1.5]]),
    }
    factor = np.sin(np.arange(X.size, dtype=float)).reshape(X.shape)

    @jax.jit
    @jax.value_and_grad
    def with_gradient(theta):
        numbers = {name: theta[name] for name in NUMBERS}
        return jnp.sum(factor * sm.length_scaled(mapping, **numbers)(theta["x"], where=WHERE))

    grads = jax.tree.map(np.asarray, with_gradient(theta)[1])
    for name, value in theta.items():
        direction = normal(7, *value.shape, dtype=f64)
        ahead, behind = (with_gradient(theta | {name: value + s * STEP * direction})[0] for s in (1, -1))
        assert np.abs(grads[name]).max() > 1e-3
        np.testing.assert_allclose(np.vdot(grads[name], direction), (ahead - behind) / (2 * STEP), atol=DIFFERENCE)


def test_one_factor_a_head_in_attention_whole_and_in_blocks():
    q, k, v = (normal(i, 2, 6, 3, 4, dtype=f64) for i in range(3))
    numbers = {"base": np.array([0.8, 1.0, 1.2]).reshape(3, 1, 1), "slope": 0.5, "power": 1.5}
    attend = partial(sm.dot_product_attention, q, k, v, is_causal=True, key_value_seq_lengths=np.array([4, 6]))

    def loss(numbers, block_size):
        return jnp.sum(attend(mapping=sm.length_scaled(sm.sparsemax, **numbers), block_size=block_size) ** 2)

    _, weights = jax.jit(lambda: attend(mapping=sm.length_scaled(sm.sparsemax, **numbers), return_weights=True))()
    scores = np.einsum("btnh,bsnh->bnts", q, k) / 2
    t, s = np.arange(6)[:, None], np.arange(6)[None, :]
    where = ((s <= t) & (s < np.array([4, 6])[:, None, None]))[:, None]
    np.testing.assert_allclose(weights, by_hand(sparsemax_by_hand, scores, where, **numbers), rtol=0, atol=SUMS)
    whole, blocked = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(numbers, size) for size in (None, 2))
    chex.assert_trees_all_close(whole, blocked, atol=PULLED)


def test_it_is_a_pytree_whose_numbers_are_its_leaves():
    scaled = sm.length_scaled(sm.conjugate(sm.Tsallis(1.5)), base=1, slope=jnp.array(0.5))
    assert {0.5, 1.0, 1.5} <= set(map(float, jax.tree.leaves(scaled)))
    assert len(jax.tree.leaves(sm.length_scaled(sm.sparsemax))) == 3
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(scaled)]
    assert {".base", ".slope", ".power"} < set(names) and any(name.startswith(".mapping") for name in names)

    @jax.jit
    @partial(chex.assert_max_traces, n=1)
    def gradient(scaled, x):
        return jax.grad(lambda scaled: jnp.sum(scaled(x) ** 2))(scaled)

    for alpha in (1.3, 1.7):
        scaled = sm.length_scaled(sm.conjugate(sm.Tsallis(alpha)), slope=alpha / 20)
        grads = jax.tree.leaves(gradient(scaled, X))
        assert all(jnp.isfinite(g) for g in grads) and sum(bool(g != 0) for g in grads) >= 3
    chex.clear_trace_counter()


def test_transforms_and_dtypes():
    scaled = sm.length_scaled(sm.sparsemax, **NUMBERS)
    expected = applied(scaled, X, WHERE)
    mapped = jax.jit(jax.vmap(lambda x, w: scaled(x, where=w)))
    chex.assert_trees_all_close(mapped(X, WHERE), expected, rtol=0, atol=SUMS)
    chex.assert_trees_all_close(scaled(X, where=WHERE), expected, rtol=0, atol=SUMS)  # eagerly
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        low = (X / 4).astype(dtype)  # not all one-hot, which no rounding shows in
        result, expected = (np.asarray(applied(scaled, x, None)) for x in (low, low.astype(f64)))
        assert result.dtype == dtype
        np.testing.assert_allclose(result.astype(float), expected, rtol=0, atol=float(jnp.finfo(dtype).eps))
        assert (result > 0).sum() > 6
    # 300 cannot be counted in bfloat16
    long = np.eye(1, 301, dtype=jnp.bfloat16)[0]
    box = lambda x, axis=-1, *, where=None: x
    factor = np.asarray(jax.jit(sm.length_scaled(box, base=0.0, slope=1.0))(long), float)[0]
    np.testing.assert_allclose(factor, np.log(301), rtol=float(jnp.finfo(jnp.bfloat16).eps) / 2)  # rounded once
    assert jnp.issubdtype(jax.eval_shape(scaled, np.array([3, 1, 2])).dtype, jnp.floating)


@pytest.mark.parametrize(
    ("error", "build", "words"),
    [
        (TypeError, lambda: sm.length_scaled(1.5), ["mapping", "1.5", "sparsemax"]),
        (TypeError, lambda: sm.length_scaled(sm.softmax, base="a"), ["base", "'a'", "real number"]),
        (TypeError, lambda: sm.length_scaled(sm.softmax, slope=True), ["slope", "True"]),
        (TypeError, lambda: sm.length_scaled(sm.softmax, power=1j), ["power", "1j"]),
        (TypeError, lambda: sm.length_scaled(sm.softmax)(X > 0), ["x", "bool"]),
        (ValueError, lambda: sm.length_scaled(sm.softmax, base=jnp.inf), ["base", "inf", "finite"]),
        (ValueError, lambda: sm.length_scaled(sm.softmax, base=jnp.ones(3))(X), ["base", "(3,)", "(2, 3, 1)"]),
        (ValueError, lambda: sm.length_scaled(sm.softmax, slope=jnp.ones((7,)))(X), ["slope", "(7,)", "(2, 3, 1)"]),
    ],
)  # fmt: skip
def test_bad_input(error, build, words):
    refuse(build, *words, error=error)
