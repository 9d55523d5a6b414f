"""One query against a cache of keys: the numbers of the parallel form, from one compilation for all lengths."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal

import smoothmax as sm

B, T, N, K, H = 2, 6, 4, 2, 8
LAYER32 = 5e-6  # float32 rounds by 6e-8: scores and outputs are sums in another order, and a layer projects both
MAPPINGS = {
    "softmax": sm.softmax,
    "sparsemax": sm.sparsemax,
    "fusedmax": sm.fusedmax,
    "length scaled": sm.length_scaled(partial(sm.entmax, alpha=1.5), base=0.5, slope=0.7),
}


@pytest.fixture(autouse=True)
def traces():
    yield
    chex.clear_trace_counter()


@functools.cache
def attention(name):
    """Outputs and weights, compiled: of all queries, and of one with a cache that is full up to a length."""
    attend = partial(sm.dot_product_attention, mapping=MAPPINGS[name], return_weights=True)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(query, key, value, lengths):
        return attend(query, key, value, key_value_seq_lengths=lengths)

    return jax.jit(partial(attend, is_causal=True)), step


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("beyond", [0.0, np.nan], ids=["zeros", "nan"])
def test_the_weights_of_the_parallel_form(name, beyond):
    """Each batch element has its own length, and the cache may hold anything beyond it."""
    q, k, v = normal(0, B, T, N, H), normal(1, B, T, K, H), normal(2, B, T, K, H)
    parallel, step = attention(name)
    output, weights = map(np.asarray, parallel(q, k, v))
    for t in range(T):
        position = np.array([t, (t + 2) % T])
        there = (np.arange(T)[None, :] <= position[:, None])[:, :, None, None]
        cache = (np.where(there, a, beyond) for a in (k, v))
        one, one_weights = map(np.asarray, step(q[np.arange(B), position][:, None], *cache, position + 1))
        # Scores of one query are summed in another order than those of all: a few roundings of scores of order one.
        np.testing.assert_allclose(one[:, 0], output[np.arange(B), position], rtol=0, atol=2e-6)
        np.testing.assert_allclose(one_weights[:, :, 0], weights[np.arange(B), :, position], rtol=0, atol=2e-6)
        assert not one_weights[0, :, 0, t + 1 :].any()


def test_gradients_do_not_see_what_lies_beyond():
    q, k, v = normal(0, B, 1, N, H), normal(1, B, T, K, H), normal(2, B, T, K, H)
    lengths = np.array([2, 5])
    beyond = (np.arange(T)[None, :] >= lengths[:, None])[:, :, None, None]

    @jax.jit
    def grads(q, k, v):
        loss = lambda *a: jnp.sum(
            sm.dot_product_attention(*a, mapping=sm.sparsemax, key_value_seq_lengths=lengths) ** 2
        )
        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    clean, dirty = grads(q, k, v), grads(q, np.where(beyond, np.inf, k), np.where(beyond, np.nan, v))
    chex.assert_tree_all_finite(dirty)
    chex.assert_trees_all_equal(clean, dirty)
    assert not np.where(beyond, clean[1][1], 0).any()


_steps = partial(jax.tree.map, lambda a: a[None])
AROUND = {
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "checkpoint of vmap": lambda f: jax.checkpoint(jax.vmap(f)),
    "vmap of checkpoint": lambda f: jax.vmap(jax.checkpoint(f)),
    "scan around vmap": lambda f: lambda *a: jax.lax.scan(lambda _, x: (None, jax.vmap(f)(*x)), None, _steps(a))[1][0],
}


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd], ids=["reverse", "forward"])
def test_lengths_are_mapped_inside_of_other_transforms(derivative):
    q, k, v = (normal(i, 3, *shape, dtype=float) for i, shape in enumerate([(1, N, H), *2 * [(T, K, H)]]))
    lengths = np.array([1, 2, 6])
    mapping = sm.forward_mode(sm.sparsemax)

    def one(q, k, v, length):
        attend = partial(sm.dot_product_attention, mapping=mapping)
        return attend(q[None], k[None], v[None], key_value_seq_lengths=length[None])[0]

    mapped = {name: around(one) for name, around in AROUND.items()} | {"vmap alone": jax.vmap(one)}

    @jax.jit
    def derivatives(q, k, v):
        total = lambda f: lambda k: jnp.sum(f(q, k, v, lengths) ** 2)
        return {name: derivative(total(f))(k) for name, f in mapped.items()}

    totals = derivatives(q, k, v)
    for name in AROUND:
        np.testing.assert_allclose(totals[name], totals["vmap alone"], rtol=0, atol=1e-12, err_msg=name)


# --- In the layers of Flax --------------------------------------------------------------------------------------


@pytest.fixture
def as_users_run_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", ["sparsemax", "length scaled"])
def test_linen_compiles_once_for_all_lengths(as_users_run_it, name):
    nn = pytest.importorskip("flax.linen")
    from smoothmax.interop.flax import attention_fn

    x = normal(3, B, T, H)
    layer = partial(nn.MultiHeadDotProductAttention, num_heads=N, attention_fn=attention_fn(MAPPINGS[name]))
    decoder = layer(decode=True)
    params, cache = jax.jit(lambda key: (layer().init(key, x), decoder.init(key, x)["cache"]))(jax.random.key(0))

    @jax.jit
    @chex.assert_max_traces(1)
    def step(cache, x):
        return decoder.apply({**params, "cache": cache}, x, mutable=["cache"])

    outputs = []
    for t in range(T):
        output, changed = step(cache, x[:, t : t + 1])
        cache = changed["cache"]
        outputs.append(output)
    parallel = jax.jit(layer().apply)(params, x, mask=nn.make_causal_mask(x[..., 0]))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), parallel, rtol=0, atol=LAYER32)


@pytest.mark.parametrize("name", ["sparsemax", "length scaled"])
def test_nnx_compiles_once_for_all_lengths(as_users_run_it, name):
    nnx = pytest.importorskip("flax.nnx")
    from smoothmax.interop.flax import attention_fn

    x = normal(3, B, T, H)
    f = attention_fn(MAPPINGS[name])

    @nnx.jit
    def made():
        layer = nnx.MultiHeadAttention(N, H, num_kv_heads=K, decode=False, attention_fn=f, rngs=nnx.Rngs(0))
        output = layer(x, is_causal=True)
        layer.init_cache(x.shape)
        return layer, output

    layer, parallel = made()

    @nnx.jit
    @chex.assert_max_traces(1)
    def step(layer, x):
        return layer(x, decode=True)

    outputs = [step(layer, x[:, t : t + 1]) for t in range(T)]
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), parallel, rtol=0, atol=LAYER32)
