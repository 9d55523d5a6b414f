"""Models with the adapters in them: one layer of an existing one changed in one line, and alpha learned a head."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import normal

import smoothmax as sm
from smoothmax._bounded import bounded

pytest.importorskip("flax")
hk = pytest.importorskip("haiku")
eqx = pytest.importorskip("equinox")
import flax.linen as nn
from flax import nnx

import smoothmax.interop.equinox as smoothmax_equinox
import smoothmax.interop.haiku as smoothmax_haiku
from smoothmax.interop.flax import attention_fn

N, D = 4, 8
X = normal(0, 2, 5, D)
f32 = jnp.float32


@pytest.fixture(autouse=True)
def promotion_as_users_run_it():
    """The frameworks themselves promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class LinenModel(nn.Module):
    attention: object = nn.dot_product_attention

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadAttention(num_heads=N, attention_fn=self.attention)(x)
        return nn.Dense(1)(x)[..., 0]


class LearnedLinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        raw = self.param("alpha", nn.initializers.zeros, (N, 1, 1))
        mapping = partial(sm.entmax, alpha=bounded(raw, 1, 2))
        return LinenModel(attention_fn(mapping))(x)


def haiku_model(x, mapping=None):
    layer = hk.MultiHeadAttention if mapping is None else partial(smoothmax_haiku.MultiHeadAttention, mapping=mapping)
    x = x + layer(N, D // N, w_init=hk.initializers.VarianceScaling())(x, x, x)
    return hk.Linear(1)(x)[..., 0]


def learned_haiku_model(x):
    raw = hk.get_parameter("alpha", (N, 1, 1), init=jnp.zeros)
    return haiku_model(x, partial(sm.entmax, alpha=bounded(raw, 1, 2)))


class EquinoxModel(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    out: eqx.nn.Linear

    def __init__(self):
        self.attention = eqx.nn.MultiheadAttention(N, D, dtype=f32, key=jax.random.key(0))
        self.out = eqx.nn.Linear(D, 1, dtype=f32, key=jax.random.key(1))

    def __call__(self, x):
        one = lambda x: jax.vmap(self.out)(x + self.attention(x, x, x))[..., 0]
        return jax.vmap(one)(x)


class LearnedEntmax(eqx.Module):
    raw: jax.Array

    def __call__(self, scores, axis=-1, *, where=None):
        return sm.entmax(scores, axis, alpha=bounded(self.raw, 1, 2), where=where)


def change_equinox(model, mapping):
    changed = smoothmax_equinox.MultiheadAttention.from_layer(model.attention, mapping=mapping)
    return eqx.tree_at(lambda m: m.attention, model, changed)


def test_one_layer_of_an_existing_model_becomes_sparse():
    """Parameters stay as they are, so a checkpoint of the softmax model is one of the sparse model."""

    def compare(before, softmax, sparsemax):
        np.testing.assert_allclose(softmax, before, atol=1e-5)  # sums of 16 terms of order one, in another order
        assert np.abs(np.asarray(sparsemax) - np.asarray(before)).max() > 1e-3

    models = LinenModel(), LinenModel(attention_fn(sm.softmax)), LinenModel(attention_fn(sm.sparsemax))
    params = jax.jit(LinenModel().init)(jax.random.key(0), X)
    compare(*jax.jit(lambda params: [model.apply(params, X) for model in models])(params))

    forward = hk.without_apply_rng(hk.transform(haiku_model))
    params = jax.jit(forward.init)(jax.random.key(0), X)
    mappings = None, sm.softmax, sm.sparsemax
    compare(*jax.jit(lambda params: [forward.apply(params, X, mapping) for mapping in mappings])(params))

    model = EquinoxModel()
    models = model, change_equinox(model, sm.softmax), change_equinox(model, sm.sparsemax)
    compare(*eqx.filter_jit(lambda models: [model(X) for model in models])(models))


def learned(framework):
    """Parameters, a forward function of them, and where alpha sits, for each framework."""
    if framework == "linen":
        model = LearnedLinenModel()
        return jax.jit(model.init)(jax.random.key(0), X), model.apply, lambda p: p["params"]["alpha"]
    if framework == "haiku":
        model = hk.without_apply_rng(hk.transform(learned_haiku_model))
        return jax.jit(model.init)(jax.random.key(0), X), model.apply, lambda p: p["~"]["alpha"]
    model = change_equinox(EquinoxModel(), LearnedEntmax(jnp.zeros((N, 1, 1), f32)))
    params, static = eqx.partition(model, eqx.is_array)
    return params, lambda p, x: eqx.combine(p, static)(x), lambda p: p.attention.mapping.raw


@pytest.mark.parametrize("framework", ["linen", "haiku", "equinox"])
def test_alpha_is_learned_for_each_head(framework):
    params, forward, alpha = learned(framework)
    target = np.sin(3 * X[..., 0])
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((forward(p, X) - target) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = jax.jit(optimizer.init)(params), []
    for _ in range(10):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    moved = np.asarray(alpha(params)).ravel()
    assert (np.abs(moved) > 1e-3).all() and len(set(moved.tolist())) == N


def test_a_parameter_of_nnx_is_taken_as_its_array():
    class Sharp(nnx.Module):
        def __init__(self):
            self.alpha, self.gamma, self.k = nnx.Param(f32(1.3)), nnx.Param(f32(0.7)), nnx.Param(f32(2))

        def __call__(self, x):
            return sm.entmax(x, alpha=self.alpha, gamma=self.gamma) + sm.soft_topk(x, self.k)

    def of_arrays(alpha, gamma, k):
        return jnp.sum((sm.entmax(X, alpha=alpha, gamma=gamma) + sm.soft_topk(X, k)) ** 2)

    model = Sharp()
    gradient = nnx.jit(nnx.grad(lambda model: jnp.sum(model(X) ** 2)))(model)
    expected = jax.jit(jax.grad(of_arrays, (0, 1, 2)))(f32(1.3), f32(0.7), f32(2))
    np.testing.assert_allclose([gradient[name][...] for name in ("alpha", "gamma", "k")], expected, rtol=1e-5)
