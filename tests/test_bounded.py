"""`bounded` and its inverse: nothing leaves the interval, and what comes in comes back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import normal
from cases.tolerances import SOLVED, ULPS

import smoothmax as sm
from smoothmax._bounded import bounded, unbounded


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(("lower", "upper"), [(1, 2), (1.0, None), (0, None), (-3.0, 100.0)])
def test_strictly_inside_for_any_real(dtype, lower, upper):
    raw = np.array([-np.inf, -1e4, -20.0, -1.0, 0.0, 1.0, 20.0, 1e4], dtype)

    @jax.jit
    def inside(raw):
        value, pull = jax.vjp(lambda raw: bounded(raw, lower, upper), raw)
        return value, *pull(jnp.ones_like(value))

    value, slopes = map(np.asarray, inside(raw))
    assert value.dtype == dtype and value.shape == raw.shape
    assert (value > lower).all() and (value[:-1] <= value[1:]).all()
    if upper is not None:
        assert (np.asarray(inside(-raw)[0]) < upper).all()
    assert np.isfinite(slopes[1:].astype(float)).all()


@pytest.mark.parametrize(("lower", "upper"), [(1, 2), (0.0, None)])
def test_unbounded_is_the_inverse(lower, upper):
    there_and_back = jax.jit(lambda raw: unbounded(bounded(raw, lower, upper), lower, upper))
    raw = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(there_and_back(raw), raw, rtol=0, atol=SOLVED)
    if upper is None:
        assert there_and_back(np.full(11, 800.0))[0] == 800.0
    else:
        np.testing.assert_allclose(jax.jit(lambda v: unbounded(v, lower, upper))(1.5), 0, rtol=0, atol=ULPS)


def test_bad_input():
    with pytest.raises(ValueError, match=r"lower=2 must be below upper=1"):
        bounded(jnp.zeros(2), 2, 1)
    with pytest.raises(ValueError, match=r"value=.*strictly between lower=1 and upper=2"):
        unbounded(jnp.array([1.5, 2.0]), 1, 2)
    with pytest.raises(TypeError, match=r"raw must be floating, got dtype int64"):
        bounded(jnp.array([1, 2]), 1, 2)


def test_a_step_of_training_compiles_once():
    """Python numbers have a weak type, and what optax updates has none."""
    chex.clear_trace_counter()
    loss = lambda raw: jnp.sum(sm.entmax(np.arange(3.0), alpha=bounded(raw, 1, 2)) ** 2)
    step = jax.jit(chex.assert_max_traces(lambda raw: optax.apply_updates(raw, jax.grad(loss)(raw)), n=1))
    assert np.isfinite(step(step(unbounded(1.5, 1, 2))))


def test_huge_steps_do_not_leave_the_domain_of_alpha():
    """Plain gradient descent with a step that would throw alpha itself far out of [1, 2]."""
    x = normal(0, 3, 8, dtype=float)

    @jax.jit
    def step(raw):
        loss = lambda raw: jnp.sum(sm.entmax(x, alpha=bounded(raw, 1, 2)) ** 2)
        raw = raw - 1e3 * jax.grad(loss)(raw)
        return raw, bounded(raw, 1, 2)

    raw = np.zeros((3, 1))
    for _ in range(5):
        raw, alpha = map(np.asarray, step(raw))
        assert np.isfinite(raw).all() and ((alpha > 1) & (alpha < 2)).all()
