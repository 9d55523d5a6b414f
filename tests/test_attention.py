"""`dot_product_attention` against `jax.nn.dot_product_attention`, and what it promises beyond it."""

import itertools
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal, refuse

import smoothmax as sm
from smoothmax._attention import dot_product_attention

B, T, S, N, K, H = 2, 7, 9, 4, 2, 8
f32 = jnp.float32


@pytest.fixture(scope="module")
def qkv():
    return normal(0, B, T, N, H), normal(1, B, S, K, H), normal(2, B, S, K, H)


MASK = np.random.default_rng(4).uniform(size=(B, 1, T, S)) < 0.7
MASK[:, :, 2] = False
OPTIONS = {
    "bias": normal(3, 1, N, T, S),
    "mask": MASK,
    "scale": 0.3,
    "is_causal": True,
    "query_seq_lengths": np.array([5, 7], np.int32),
    "key_value_seq_lengths": np.array([4, 9], np.int32),
    "local_window_size": (3, 1),
}
PAIRS = [c for r in (0, 1, 2) for c in itertools.combinations(OPTIONS, r)]

MAPPINGS = {name: getattr(sm, name) for name in cases.DISTRIBUTIONS} | {
    "partial": partial(sm.entmax, alpha=1.4),
    "conjugate": sm.conjugate(0.5 * (sm.Tsallis(1.7) + 0.1 * sm.TotalVariation())),
}


def visible(options):
    """Which keys each query may see, written once more, position by position, for (B, N, T, S)."""
    seen = np.ones((B, N, T, S), bool)
    for b, n, t, s in np.ndindex(*seen.shape):
        left, right = options.get("local_window_size", (S, S))
        seen[b, n, t, s] = (
            (not options.get("is_causal") or s <= t)
            and t < options.get("query_seq_lengths", [T] * B)[b]
            and s < options.get("key_value_seq_lengths", [S] * B)[b]
            and t - left <= s <= t + right
        )
    return seen & np.broadcast_to(options.get("mask", True), seen.shape)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_softmax_is_jax_nn_on_each_option_and_pair(qkv, names):
    options = {name: OPTIONS[name] for name in names}
    ours = partial(dot_product_attention, **options)
    # JAX 0.8 forgets a window that comes without any other mask.
    everything = {"mask": np.ones((1, 1, T, S), bool)}
    theirs = partial(jax.nn.dot_product_attention, **(everything | options))
    output, weights = map(np.asarray, jax.jit(partial(ours, return_weights=True))(*qkv))
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(theirs)(*qkv)
    seen = visible(options)
    alive = seen.any(-1).swapaxes(1, 2)[..., None]
    np.testing.assert_allclose(output, np.where(alive, expected, 0), atol=2e-5)
    assert not weights[~seen].any()
    assert output.dtype == f32 and output.shape == (B, T, N, H) and weights.shape == (B, N, T, S)
    if names in [(), ("bias",), ("scale",), ("key_value_seq_lengths",)]:  # no dead row: gradients too
        gradients = lambda attention: jax.jit(jax.grad(lambda *qkv: jnp.sum(attention(*qkv) ** 2), (0, 1, 2)))(*qkv)
        with jax.numpy_dtype_promotion("standard"):
            expected = gradients(theirs)
        for a, b in zip(gradients(ours), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_key_heads_serve_consecutive_query_heads(key_heads):
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, key_heads, H), normal(2, B, S, key_heads, H)
    repeated = [np.repeat(a, N // key_heads, axis=2) for a in (k, v)]
    np.testing.assert_allclose(dot_product_attention(q, k, v), dot_product_attention(q, *repeated), atol=1e-6)


def test_without_batch_axis(qkv):
    q, k, v = (a[0] for a in qkv)
    mask = OPTIONS["mask"][0]
    output, weights = dot_product_attention(q, k, v, mask=mask, return_weights=True)
    expected, expected_weights = map(np.asarray, dot_product_attention(*qkv, mask=OPTIONS["mask"], return_weights=True))
    assert output.shape == (T, N, H) and weights.shape == (N, T, S)
    np.testing.assert_allclose(output, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights[0], atol=1e-6)
    lengths = {"key_value_seq_lengths": jnp.array([4])}
    expected = dot_product_attention(q, k[:4], v[:4])
    np.testing.assert_allclose(dot_product_attention(q, k, v, **lengths), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(S,), (T, 1), (T, S), (N, 1, S), (1, N, T, 1), (B, 1, 1, S)])
def test_mask_and_bias_broadcast_from_any_shape(qkv, shape):
    mask = np.random.default_rng(5).uniform(size=shape) < 0.6
    full = np.broadcast_to(mask, (B, N, T, S))
    np.testing.assert_allclose(
        dot_product_attention(*qkv, mask=mask), dot_product_attention(*qkv, mask=full), atol=1e-6
    )
    bias = normal(6, *shape)
    full = np.broadcast_to(bias, (B, N, T, S))
    np.testing.assert_allclose(
        dot_product_attention(*qkv, bias=bias), dot_product_attention(*qkv, bias=full), atol=1e-6
    )


@pytest.mark.parametrize("name", MAPPINGS)
def test_each_mapping_gets_the_scores_and_the_mask(qkv, name):
    q, k, v = qkv
    mapping = MAPPINGS[name]
    options = {"mask": OPTIONS["mask"], "is_causal": True}
    output, weights = map(np.asarray, dot_product_attention(q, k, v, mapping=mapping, **options, return_weights=True))
    seen = visible(options)
    k, v = (np.repeat(a, N // K, axis=2) for a in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(np.float32(H))
    expected = mapping(scores, where=seen)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(output, np.einsum("bnts,bsnh->btnh", expected, v), atol=1e-5)
    assert not weights[~seen].any()


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "fusedmax"])
def test_queries_that_see_nothing_give_zeros_and_zero_gradients(qkv, name, block_size):
    mask = OPTIONS["mask"]
    attend = partial(dot_product_attention, mask=mask, mapping=MAPPINGS[name], block_size=block_size)
    loss = jax.jit(jax.value_and_grad(lambda q, k, v: (lambda o: (jnp.sum(o**2), o))(attend(q, k, v)), (0, 1, 2), True))
    (_, output), grads = jax.tree.map(np.asarray, loss(*qkv))
    assert not output[:, 2].any() and output[:, 3].all()
    assert not grads[0][:, 2].any()
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("block_size", [None, 4])
def test_padding_may_hold_anything(qkv, block_size):
    """Rows past either length, and keys that no query may see, have no influence on values or gradients."""
    lengths = {k: OPTIONS[k] for k in ("query_seq_lengths", "key_value_seq_lengths")}
    q, k, v = qkv
    pad_q = np.arange(T)[None, :, None, None] >= lengths["query_seq_lengths"][:, None, None, None]
    pad_k = np.arange(S)[None, :, None, None] >= lengths["key_value_seq_lengths"][:, None, None, None]
    dirty = np.where(pad_q, np.nan, q), np.where(pad_k, np.inf, k), np.where(pad_k, np.nan, v)

    def loss(q, k, v, **options):
        return jnp.sum(dot_product_attention(q, k, v, mapping=sm.sparsemax, block_size=block_size, **options) ** 2)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    clean = grad(*qkv, **lengths)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(grad(*dirty, **lengths)), strict=True):
        np.testing.assert_array_equal(a, b)
    key_mask = {"mask": ~pad_k[:, None, None, :, 0, 0]}
    dirty_keys = (q, *dirty[1:])
    for a, b in zip(
        jax.tree.leaves(grad(*qkv, **key_mask)), jax.tree.leaves(grad(*dirty_keys, **key_mask)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_dtypes(qkv):
    """Scores and mapping in float32 for the small dtypes, in float64 for float64; the output in the input's."""
    seen = []

    def spy(scores, axis=-1, *, where=None):
        seen.append(scores.dtype)
        return sm.softmax(scores, axis, where=where)

    exact = dot_product_attention(*(a.astype(jnp.float64) for a in qkv))
    for dtype, tolerance in [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3), (f32, 1e-6), (jnp.float64, 0)]:
        low = [a.astype(dtype) for a in qkv]
        output, weights = dot_product_attention(*low, mapping=spy, return_weights=True)
        compute = jnp.float64 if dtype == jnp.float64 else f32
        assert output.dtype == dtype and weights.dtype == compute and seen[-1] == compute
        np.testing.assert_allclose(np.asarray(output, float), exact, atol=tolerance)
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(dot_product_attention(*a)), (0, 1, 2)))(
        *(a.astype(jnp.bfloat16) for a in qkv)
    )
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    bias = OPTIONS["bias"].astype(jnp.bfloat16)  # a bias of another dtype does not lower the scores' dtype
    assert dot_product_attention(*qkv, bias=bias).dtype == f32


def test_values_may_have_another_head_size(qkv):
    q, k, v = qkv
    wide = np.concatenate([v, 2 * v], axis=-1)
    expected = 2 * np.asarray(dot_product_attention(q, k, v))
    for block_size in (None, 4):
        output = np.asarray(dot_product_attention(q, k, wide, block_size=block_size))
        np.testing.assert_allclose(output[..., H:], expected, atol=1e-5)


def test_hyper_parameters_for_each_head_have_gradients(qkv):
    qkv = [a.astype(jnp.float64) for a in qkv]

    @jax.jit
    def loss(alpha):
        mapping = partial(sm.entmax, alpha=alpha[:, None, None])
        return jnp.sum(dot_product_attention(*qkv, mapping=mapping, is_causal=True) ** 2)

    alpha, direction = np.linspace(1.2, 1.8, N), normal(8, N, dtype=np.float64)
    grad = np.asarray(jax.jit(jax.grad(loss))(alpha))
    assert np.abs(grad).min() > 1e-3
    difference = (loss(alpha + 1e-5 * direction) - loss(alpha - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(np.vdot(grad, direction), difference, rtol=1e-5)


def test_vmap_and_jit_agree_with_a_loop(qkv):
    q, k, v = qkv
    attend = partial(dot_product_attention, mapping=sm.sparsemax, is_causal=True)
    expected = attend(q, k, v)
    np.testing.assert_allclose(jax.jit(jax.vmap(attend))(q, k, v), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(partial(attend, block_size=4))(q, k, v), expected, atol=1e-6)


def test_block_size_may_be_any_integer(qkv):
    attend = partial(dot_product_attention, *qkv, mapping=sm.sparsemax)
    np.testing.assert_array_equal(attend(block_size=np.int64(4)), attend(block_size=4))


@pytest.mark.parametrize("block_size", [None, 3])
def test_with_symbolic_lengths(block_size):
    """An exported program serves every length; in blocks the number of queries must be known."""
    t, s = jax.export.symbolic_shape("t, s")
    q, k, v = (jax.ShapeDtypeStruct((1, n, N, H), f32) for n in (t, s, s))
    attend = jax.jit(partial(dot_product_attention, mapping=sm.sparsemax, block_size=block_size))
    if block_size is not None:
        with pytest.raises(ValueError, match=r"block_size must be None .* got block_size=3 for query .*\(1, t, 4, 8\)"):
            jax.export.export(attend)(q, k, v)
        q = jax.ShapeDtypeStruct((1, T, N, H), f32)
    exported = jax.export.export(attend)(q, k, v)
    arrays = normal(0, 1, T, N, H), normal(1, 1, S, N, H), normal(2, 1, S, N, H)
    np.testing.assert_allclose(exported.call(*arrays), dot_product_attention(*arrays, mapping=sm.sparsemax), atol=1e-6)


# --- The implementation is handed to the mapping ----------------------------------------------------------------


def spy(scores, axis=-1, *, where=None, alpha=1.0, implementation=None):
    """A mapping that tells by its scale which implementation it was asked for."""
    return {None: 1.0, "xla": 2.0, "native": 4.0}[implementation] * alpha * sm.softmax(scores, axis, where=where)


@pytest.mark.parametrize(
    "mapping",
    [
        spy,
        partial(spy, implementation="native"),
        partial(spy, alpha=1.0),
        jax.tree_util.Partial(spy, alpha=1.0),
        sm.length_scaled(spy),
        sm.length_scaled(partial(spy, alpha=1.0)),
    ],
    ids=["function", "with its own", "partial", "jax partial", "length scaled", "length scaled partial"],
)
@pytest.mark.parametrize("block_size", [None, 4])
def test_the_implementation_is_handed_to_the_mapping(qkv, mapping, block_size):
    attend = partial(dot_product_attention, *qkv, block_size=block_size)
    np.testing.assert_allclose(attend(mapping=mapping, implementation="xla"), 2 * np.asarray(attend()), atol=1e-5)


def test_the_implementation_of_an_operator_and_a_named_mapping(qkv):
    attend = partial(dot_product_attention, *qkv)
    for mapping in (sm.sparsemax, sm.conjugate(sm.SquaredL2()), partial(sm.entmax, alpha=2.0)):
        expected = attend(mapping=mapping)
        np.testing.assert_allclose(attend(mapping=mapping, implementation="xla"), expected, atol=1e-6)
        with pytest.raises(ValueError, match="implementation"):
            attend(mapping=mapping, implementation="cudnn")


# --- Bad input: each error names the argument, what it got and what to do -------------------------------------


@pytest.mark.parametrize("dtype", [jnp.uint32, jnp.int64, jnp.int8])
def test_lengths_of_any_integer_type(qkv, dtype):
    """A length beyond all keys is that of all keys, also where 32 bits cannot hold it."""
    most = jnp.array([jnp.iinfo(dtype).max, 3], dtype)
    expected = dot_product_attention(*qkv, key_value_seq_lengths=jnp.array([S, 3]))
    np.testing.assert_array_equal(dot_product_attention(*qkv, key_value_seq_lengths=most), expected)


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (ValueError, {"query": jnp.zeros((T, H))}, ["query", "(7, 8)", "(B, T, N, H)"]),
        (ValueError, {"key": jnp.zeros((S, K, H), f32)}, ["key", "(9, 2, 8)", "(2, 7, 4, 8)", "batch axis"]),
        (ValueError, {"key": jnp.zeros((3, S, K, H), f32)}, ["key", "(3, 9, 2, 8)", "(2, 7, 4, 8)", "batch"]),
        (ValueError, {"key": jnp.zeros((B, S, K, 5), f32)}, ["key", "(2, 9, 2, 5)", "(2, 7, 4, 8)", "head size"]),
        (ValueError, {"value": jnp.zeros((B, 8, K, H), f32)}, ["value", "(2, 8, 2, 8)", "(2, 9, 2, 8)"]),
        (ValueError, {"query": jnp.zeros((B, T, 3, H), f32)}, ["query", "(2, 7, 3, 8)", "(2, 9, 2, 8)", "multiple"]),
        (TypeError, {"key": jnp.zeros((B, S, K, H), jnp.float64)}, ["key", "float64", "float32", "cast"]),
        (TypeError, {"query": jnp.zeros((B, T, N, H), jnp.int32)}, ["query", "int32", "cast"]),
        (TypeError, {"mask": jnp.ones((T, S), f32)}, ["mask", "float32", "boolean", "mask != 0"]),
        (ValueError, {"mask": jnp.ones((B, S), bool)}, ["mask", "(2, 9)", "(2, 4, 7, 9)", "mask[:, None, None, :]"]),
        (ValueError, {"mask": jnp.ones((1, B, N, T, S), bool)}, ["mask", "(1, 2, 4, 7, 9)", "(2, 4, 7, 9)"]),
        (ValueError, {"bias": jnp.zeros((B, K, T, S), f32)}, ["bias", "(2, 2, 7, 9)", "(2, 4, 7, 9)"]),
        (TypeError, {"bias": jnp.ones((T, S), bool)}, ["bias", "booleans", "mask"]),
        (TypeError, {"bias": jnp.ones((T, S), complex)}, ["bias", "complex128", "real part"]),
        (TypeError, {"is_causal": "no"}, ["is_causal", "'no'", "True or False"]),
        (ValueError, {"scale": jnp.ones((N,), f32)}, ["scale", "(4,)", "scalar"]),
        (ValueError, {"query_seq_lengths": jnp.ones((3,), jnp.int32)}, ["query_seq_lengths", "(3,)", "(2,)"]),
        (TypeError, {"key_value_seq_lengths": jnp.ones((B,), f32)}, ["key_value_seq_lengths", "float32", "integer"]),
        (TypeError, {"local_window_size": (1, 2, 3)}, ["local_window_size", "(1, 2, 3)", "pair"]),
        (TypeError, {"local_window_size": 1.5}, ["local_window_size", "1.5"]),
        (ValueError, {"block_size": 0}, ["block_size", "0", "at least 1"]),
        (TypeError, {"block_size": 2.5}, ["block_size", "2.5"]),
        (ValueError, {"block_size": 2, "return_weights": True}, ["block_size", "return_weights", "leave out"]),
        (TypeError, {"block_size": True}, ["block_size", "True", "such as 128"]),
        (ValueError, {"return_residual": True}, ["return_residual", "True", "softmax_value"]),
        (ValueError, {"key": jnp.zeros((B, 0, K, H), f32), "value": jnp.zeros((B, 0, K, H), f32)},
         ["key", "(2, 0, 2, 8)", "S = 0", "pad"]),
        (ValueError, {"query": jnp.zeros((B, T, N, 0), f32), "key": jnp.zeros((B, S, K, 0), f32)},
         ["key", "head size", "(2, 9, 2, 0)", "at least 1"]),
        (TypeError, {"local_window_size": True}, ["local_window_size", "True"]),
        (TypeError, {"mapping": lambda x, axis, where: x, "implementation": "xla"},
         ["implementation", "'xla'", "lambda", "leave it out"]),
        (ValueError, {"mapping": sm.softmax_value}, ["mapping", "(2, 4, 7)", "(2, 4, 7, 9)", "value twin"]),
        (TypeError, {"mapping": 1.5}, ["mapping", "1.5", "callable"]),
    ],
)  # fmt: skip
def test_bad_input(qkv, error, change, words):
    arguments = dict(zip(("query", "key", "value"), qkv, strict=True)) | change
    refuse(lambda: dot_product_attention(**arguments), *words, error=error)
