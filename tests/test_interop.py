"""The adapters against the frameworks' own layers, with the same parameters."""

import importlib
import inspect
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal

import smoothmax as sm

flax = pytest.importorskip("flax")
hk = pytest.importorskip("haiku")
eqx = pytest.importorskip("equinox")
import flax.linen as nn
from flax import nnx

import smoothmax.interop.equinox as smoothmax_equinox
import smoothmax.interop.haiku as smoothmax_haiku
from smoothmax.interop.flax import attention_fn

B, T, S, N, D = 2, 5, 6, 4, 8
f32 = jnp.float32


@pytest.fixture(autouse=True)
def promotion_as_users_run_it():
    """The frameworks themselves promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


X, Y = normal(0, B, T, D), normal(1, B, S, D)
MASK = np.random.default_rng(2).uniform(size=(B, 1, T, S)) < 0.7
MASK[..., 0] = True


def close(a, b):
    """Float32 rounds by 6e-8: layers of sums of 16 terms of order one, in another order."""
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


# --- Flax Linen -----------------------------------------------------------------------------------------------


def linen(attention=None, **options):
    options = {"num_heads": N, "qkv_features": 16, **options}
    return nn.MultiHeadDotProductAttention(**options, **({} if attention is None else {"attention_fn": attention}))


LINEN_PARAMS = jax.jit(linen().init)(jax.random.key(3), X)


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        ({}, {}),
        ({}, {"mask": MASK}),
        ({}, {"mask": MASK.astype(f32)}),
        ({"normalize_qk": False, "precision": "highest"}, {}),
        ({"dropout_rate": 0.4, "deterministic": False}, {"mask": MASK, "dropout_rng": jax.random.key(4)}),
        (
            {"dropout_rate": 0.4, "deterministic": False, "broadcast_dropout": False},
            {"dropout_rng": jax.random.key(4), "sow_weights": True},
        ),
        ({"dropout_rate": 0.4, "deterministic": True}, {"mask": MASK, "sow_weights": True}),
        (
            {
                "qk_attn_weights_einsum_cls": lambda: jnp.einsum,
                "attn_weights_value_einsum_cls": lambda: jnp.einsum,
            },
            {"mask": MASK},
        ),
    ],
)
def test_linen(layer, call):
    sown = {"mutable": ["intermediates"]}
    layers = [linen(f, **layer) for f in (attention_fn(sm.softmax), None)]
    ours, theirs = jax.jit(lambda params: [one.apply(params, X, Y, **call, **sown) for one in layers])(LINEN_PARAMS)
    assert bool(ours[1]) == call.get("sow_weights", False)
    close(ours, theirs)


@pytest.mark.parametrize("batch", [(2, 3), ()])
def test_linen_without_and_with_several_batch_axes(batch):
    x, mask = normal(5, *batch, T, D), np.broadcast_to(np.tri(T, dtype=bool), (*batch, 1, T, T))
    layers = [linen(f) for f in (attention_fn(sm.softmax), None)]
    close(*jax.jit(lambda params: [layer.apply(params, x, mask=mask) for layer in layers])(LINEN_PARAMS))


def test_linen_low_precision():
    layers = [linen(f, dtype=jnp.bfloat16) for f in (attention_fn(sm.softmax), None)]
    outputs = jax.jit(lambda params: [layer.apply(params, X) for layer in layers])(LINEN_PARAMS)
    assert outputs[0].dtype == outputs[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(o, float) for o in outputs), atol=3e-2)  # bfloat16 rounds by 4e-3, often


def decode_linen(f):
    """The outputs of single tokens, and of all of them under a causal mask."""
    layer = linen(f, decode=True)

    @jax.jit
    def decode(params):
        cache, outputs = layer.init(jax.random.key(0), X)["cache"], []
        for t in range(T):
            output, updated = layer.apply({**params, "cache": cache}, X[:, t : t + 1], mutable=["cache"])
            cache = updated["cache"]
            outputs.append(output)
        return jnp.concatenate(outputs, axis=1), linen(f).apply(params, X, mask=np.tri(T, dtype=bool)[None, None])

    return decode(LINEN_PARAMS)


def test_linen_decodes_token_by_token():
    close(decode_linen(attention_fn(sm.softmax)), decode_linen(None))
    close(*decode_linen(attention_fn(sm.sparsemax)))


def test_dropout_of_all_weights_has_zero_gradients():
    attend = attention_fn(sm.sparsemax)
    q, k = normal(0, B, T, N, D), normal(1, B, S, N, D)
    drop = lambda q: jnp.sum(attend(q, k, k, dropout_rate=1.0, dropout_rng=jax.random.key(0)))
    dropped, gradient = jax.jit(jax.value_and_grad(drop))(q)
    assert not np.any(dropped) and not np.any(gradient)


def test_masked_queries_get_zeros_in_linen():
    mask = MASK.copy()
    mask[:, :, 1] = False
    output = jax.jit(linen(attention_fn(sm.sparsemax)).apply)(LINEN_PARAMS, X, Y, mask=mask)
    close(np.asarray(output)[:, 1], np.broadcast_to(LINEN_PARAMS["params"]["out"]["bias"], (B, D)))


def test_linen_in_blocks():
    layers = [linen(attention_fn(sm.sparsemax, block_size=size)) for size in (2, None)]
    close(*jax.jit(lambda params: [layer.apply(params, X, Y, mask=MASK) for layer in layers])(LINEN_PARAMS))
    with pytest.raises(ValueError, match=r"block_size=2 .* sow_weights=False"):
        layers[0].apply(LINEN_PARAMS, X, sow_weights=True)


# --- Flax NNX -------------------------------------------------------------------------------------------------


# Flax 0.12.0, the newest for JAX 0.8.0, has neither in NNX.
needs_grouped_heads = pytest.mark.skipif(
    "num_kv_heads" not in inspect.signature(nnx.MultiHeadAttention.__init__).parameters,
    reason="this Flax has no num_kv_heads and is_causal in NNX",
)


def nnx_layer(attention=None, **options):
    options = {"num_heads": N, "in_features": D, "qkv_features": 16, "decode": False, "rngs": nnx.Rngs(0), **options}
    return nnx.MultiHeadAttention(**options, **({} if attention is None else {"attention_fn": attention}))


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")  # what sow_weights does in Flax 0.12
@pytest.mark.parametrize(
    ("layer", "call"),
    [
        ({}, {"mask": MASK}),
        pytest.param({}, {"is_causal": True}, marks=needs_grouped_heads),
        *(
            pytest.param({"num_kv_heads": 2} | layer, call, marks=needs_grouped_heads)
            for layer, call in (
                ({}, {"mask": MASK.astype(f32), "is_causal": False}),
                ({}, {"mask": MASK, "is_causal": True}),
                ({}, {"sow_weights": True, "is_causal": True}),
                ({"dropout_rate": 0.4, "deterministic": False}, {"sow_weights": True}),
            )
        ),
        ({"dropout_rate": 0.4, "deterministic": False, "broadcast_dropout": False}, {"mask": MASK}),
        ({"dtype": f32, "precision": "highest"}, {}),
    ],
)
def test_nnx(layer, call):
    def run(module):
        output = module(X, Y, **call)
        sown = nnx.pop(module, nnx.Intermediate) if call.get("sow_weights") else None
        return output, sown and sown["attention_weights"].get_value()

    modules = [nnx_layer(f, **layer) for f in (attention_fn(sm.softmax), None)]
    close(*nnx.jit(lambda modules: [run(module) for module in modules])(modules))


@needs_grouped_heads
@pytest.mark.parametrize("num_kv_heads", [N, 2])
def test_nnx_decodes_token_by_token(num_kv_heads):
    def decode(f):
        module = nnx_layer(f, num_kv_heads=num_kv_heads)
        module.init_cache(X.shape)
        step = nnx.jit(partial(nnx.MultiHeadAttention.__call__, decode=True))
        return np.concatenate([step(module, X[:, t : t + 1]) for t in range(T)], axis=1)

    close(decode(attention_fn(sm.softmax)), decode(None))
    sparse = attention_fn(sm.sparsemax)
    whole = nnx.jit(partial(nnx.MultiHeadAttention.__call__, is_causal=True))
    close(decode(sparse), whole(nnx_layer(sparse, num_kv_heads=num_kv_heads), X))


# --- Haiku ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "inputs", "mask"),
    [
        ({}, (X, Y, Y), None),
        ({"value_size": 3, "model_size": 7, "with_bias": False}, (X, Y, Y), MASK),
        ({}, (X[0], Y[0], Y[0]), MASK[0].astype(f32)),
        ({}, (X[None], Y[None], Y[None]), MASK[None]),
    ],
)
def test_haiku(options, inputs, mask):
    def transformed(layer):
        init = hk.initializers.VarianceScaling()
        return hk.without_apply_rng(hk.transform(lambda q, k, v, m: layer(N, 4, w_init=init, **options)(q, k, v, m)))

    ours, theirs = transformed(smoothmax_haiku.MultiHeadAttention), transformed(hk.MultiHeadAttention)
    init = jax.jit(lambda key: [layer.init(key, *inputs, mask) for layer in (ours, theirs)])
    our_params, params = init(jax.random.key(6))
    close(our_params, params)
    assert jax.tree.structure(our_params) == jax.tree.structure(params)
    close(*jax.jit(lambda params: [layer.apply(params, *inputs, mask) for layer in (ours, theirs)])(params))


# --- Equinox --------------------------------------------------------------------------------------------------


def rotate(q, k, v):
    return q[..., ::-1], k[..., ::-1], 2 * v


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {}),
        ({"use_query_bias": True, "use_output_bias": True, "vo_size": 3, "output_size": 5}, {"mask": MASK[0, 0]}),
        ({}, {"mask": MASK[0] & ((np.arange(N)[:, None, None] != 1) | (np.arange(S) < 3))}),
        ({"dropout_p": 0.4}, {"key": jax.random.key(8)}),
        ({"dropout_p": 0.4}, {"inference": True, "mask": MASK[0, 0]}),
        ({"dropout_p": 0.4}, {"inference": True, "key": jax.random.key(8)}),
        ({}, {"process_heads": rotate}),
    ],
)
def test_equinox(options, call):
    theirs = eqx.nn.MultiheadAttention(N, D, **options, dtype=f32, key=jax.random.key(7))
    ours = smoothmax_equinox.MultiheadAttention(N, D, **options, dtype=f32, key=jax.random.key(7))
    close(eqx.filter(ours, eqx.is_array), eqx.filter(theirs, eqx.is_array))
    layers = theirs, ours, smoothmax_equinox.MultiheadAttention.from_layer(theirs)
    expected, *outputs = eqx.filter_jit(lambda layers: [layer(X[0], Y[0], Y[0], **call) for layer in layers])(layers)
    for output in outputs:
        close(output, expected)


def test_equinox_needs_a_key_to_drop():
    layer = smoothmax_equinox.MultiheadAttention(N, D, dropout_p=0.4, key=jax.random.key(7))
    with pytest.raises(RuntimeError, match="key"):
        jax.eval_shape(lambda x: layer(x, x, x), X[0])


# --- Without the frameworks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("adapter", "framework"), [("flax", "flax"), ("haiku", "haiku"), ("equinox", "equinox")])
def test_a_missing_framework_names_the_extra(monkeypatch, adapter, framework):
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"smoothmax.interop.{adapter}")
    with pytest.raises(ImportError, match=r"pip install 'smoothmax\[interop\]'"):
        importlib.import_module(f"smoothmax.interop.{adapter}")


def test_bad_input():
    f = attention_fn(sm.softmax)
    q, k = normal(0, B, T, N, D), normal(1, B, S, N, D)
    cases = [
        ((q, k, k[:, 1:]), {}, r"value must have the shape of key, \(2, 6, 4, 8\), .* got \(2, 5, 4, 8\)"),
        ((q, k[:1], k[:1]), {}, r"key must have the batch axes of query, of shape \(2, 5, 4, 8\), got shape \(1, 6"),
        (
            (q, k[:, :, :3], k[:, :, :3]),
            {},
            r"query must have a multiple of the 3 heads of key, of shape \(2, 6, 3, 8\), got 4",
        ),
        ((q, k, k), {"mask": MASK[:, 0]}, r"mask must broadcast to .* \(2, 4, 5, 6\), got shape \(2, 5, 6\)"),
        ((q, k, k), {"dropout_rate": 0.5}, r"dropout_rate=0.5 needs a dropout_rng"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            f(*arguments, **options)
    with pytest.raises(ValueError, match=r"mask of shape .* insert it"):
        hk.testing.transform_and_run(
            lambda: smoothmax_haiku.MultiHeadAttention(2, 4, w_init=jnp.zeros)(X, Y, Y, MASK[:, 0])
        )()
