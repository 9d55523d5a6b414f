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

    def theirs(*qkv):
        # JAX 0.8 forgets a window that comes without any other mask.
        everything = {"mask": np.ones((1, 1, T, S), bool)}
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(*qkv, **(everything | options))

    both = jax.jit(lambda *qkv: (ours(*qkv, return_weights=True), theirs(*qkv)))
    (output, weights), expected = jax.tree.map(np.asarray, both(*qkv))
    seen = visible(options)
    alive = seen.any(-1).swapaxes(1, 2)[..., None]
    np.testing.assert_allclose(output, np.where(alive, expected, 0), atol=2e-5)
    assert not weights[~seen].any()
    assert output.dtype == f32 and output.shape == (B, T, N, H) and weights.shape == (B, N, T, S)
    if names in [(), ("bias",), ("scale",), ("key_value_seq_lengths",)]:  # no dead row: gradients too
        gradients = lambda attention: jax.grad(lambda *qkv: jnp.sum(attention(*qkv) ** 2), (0, 1, 2))
        both = jax.jit(lambda *qkv: (gradients(ours)(*qkv), gradients(theirs)(*qkv)))
        for a, b in zip(*both(*qkv), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_key_heads_serve_consecutive_query_heads(key_heads):
    q, k, v = normal(0, B, T, N, H), normal(1, B, S, key_heads, H), normal(2, B, S, key_heads, H)
    repeated = [np.repeat(a, N // key_heads, axis=2) for a in (k, v)]
    both = jax.jit(lambda qkv, of_all: (dot_product_attention(*qkv), dot_product_attention(*of_all)))
    output, expected = both((q, k, v), (q, *repeated))
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_without_batch_axis(qkv):
    @jax.jit
    def attentions(q, k, v, mask, length):
        batch = dot_product_attention(q, k, v, mask=mask, return_weights=True)
        q, k, v = q[0], k[0], v[0]
        alone = dot_product_attention(q, k, v, mask=mask[0], return_weights=True)
        shorter = dot_product_attention(q, k, v, key_value_seq_lengths=length)
        return alone, batch, shorter, dot_product_attention(q, k[:4], v[:4])

    results = attentions(*qkv, OPTIONS["mask"], np.array([4]))
    (output, weights), (expected, expected_weights), shorter, expected_shorter = results
    assert output.shape == (T, N, H) and weights.shape == (N, T, S)
    np.testing.assert_allclose(output, np.asarray(expected)[0], atol=1e-6)
    np.testing.assert_allclose(weights, np.asarray(expected_weights)[0], atol=1e-6)
    np.testing.assert_allclose(shorter, expected_shorter, atol=1e-6)


@pytest.mark.parametrize("shape", [(S,), (T, 1), (T, S), (N, 1, S), (1, N, T, 1), (B, 1, 1, S)])
def test_mask_and_bias_broadcast_from_any_shape(qkv, shape):
    mask = np.random.default_rng(5).uniform(size=shape) < 0.6
    given = {"mask": mask}, {"bias": normal(6, *shape)}
    full = [{name: np.broadcast_to(array, (B, N, T, S)) for name, array in options.items()} for options in given]
    attend = jax.jit(lambda qkv, several: [dot_product_attention(*qkv, **options) for options in several])
    outputs = attend(qkv, (*given, *full))
    for i in range(2):
        np.testing.assert_allclose(outputs[i], outputs[i + 2], atol=1e-6)


@pytest.mark.parametrize("name", MAPPINGS)
def test_each_mapping_gets_the_scores_and_the_mask(qkv, name):
    q, k, v = qkv
    mapping = MAPPINGS[name]
    options = {"mask": OPTIONS["mask"], "is_causal": True}
    seen = visible(options)
    repeated, v = (np.repeat(a, N // K, axis=2) for a in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, repeated) / np.sqrt(np.float32(H))
    attend = partial(dot_product_attention, mapping=mapping, **options, return_weights=True)
    both = jax.jit(lambda qkv, scores: (attend(*qkv), mapping(scores, where=seen)))
    (output, weights), expected = jax.tree.map(np.asarray, both(qkv, scores))
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
    masked_k = pad_k | (np.arange(S) >= 6)[None, :, None, None] & (np.arange(B) == 1)[:, None, None, None]

    def loss(q, k, v, **options):
        return jnp.sum(dot_product_attention(q, k, v, mapping=sm.sparsemax, block_size=block_size, **options) ** 2)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    key_mask = {"mask": ~masked_k[:, None, None, :, 0, 0]}
    both = {"mask": ~(masked_k & ~pad_k)[:, None, None, :, 0, 0], **lengths}
    for options, bad_q, bad_k in ((lengths, pad_q, pad_k), (key_mask, False, masked_k), (both, pad_q, masked_k)):
        dirty = np.where(bad_q, f32(np.nan), q), np.where(bad_k, f32(np.inf), k), np.where(bad_k, f32(np.nan), v)
        clean = grad(*qkv, **options)
        for a, b in zip(*map(jax.tree.leaves, (clean, grad(*dirty, **options))), strict=True):
            np.testing.assert_array_equal(a, b)


def test_dtypes(qkv):
    """Scores and mapping in float32 for the small dtypes, in float64 for float64; the output in the input's."""
    seen = []

    def spy(scores, axis=-1, *, where=None):
        seen.append(scores.dtype)
        return sm.softmax(scores, axis, where=where)

    tolerances = {jnp.bfloat16: 2e-2, jnp.float16: 2e-3, f32: 1e-6, jnp.float64: 0}
    low = {dtype: [a.astype(dtype) for a in qkv] for dtype in tolerances}
    bias = OPTIONS["bias"].astype(jnp.bfloat16)  # a bias of another dtype does not lower the scores' dtype

    @jax.jit
    def attentions(several, bias):
        half, _, single, double = several
        of_dtypes = [dot_product_attention(*a, mapping=spy, return_weights=True) for a in several]
        grads = jax.grad(lambda *a: jnp.sum(dot_product_attention(*a)), (0, 1, 2))(*half)
        return dot_product_attention(*double), of_dtypes, grads, dot_product_attention(*single, bias=bias)

    exact, of_dtypes, grads, biased = attentions(list(low.values()), bias)
    assert len(seen) == len(tolerances)
    for (dtype, tolerance), (output, weights), of_scores in zip(tolerances.items(), of_dtypes, seen, strict=True):
        compute = jnp.float64 if dtype == jnp.float64 else f32
        assert output.dtype == dtype and weights.dtype == compute and of_scores == compute
        np.testing.assert_allclose(np.asarray(output, float), exact, atol=tolerance)
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    assert biased.dtype == f32


def test_values_may_have_another_head_size(qkv):
    q, k, v = qkv
    wide = np.concatenate([v, 2 * v], axis=-1)

    @jax.jit
    def attentions(q, k, v, wide):
        attend = partial(dot_product_attention, q, k)
        return attend(v), attend(wide), attend(wide, block_size=4)

    expected, *outputs = attentions(q, k, v, wide)
    for output in outputs:
        np.testing.assert_allclose(np.asarray(output)[..., H:], 2 * np.asarray(expected), atol=1e-5)


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
    attend = partial(dot_product_attention, mapping=sm.sparsemax, is_causal=True)
    expected = attend(*qkv)
    mapped, in_blocks = jax.jit(lambda *qkv: (jax.vmap(attend)(*qkv), attend(*qkv, block_size=4)))(*qkv)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    np.testing.assert_allclose(in_blocks, expected, atol=1e-6)


def test_block_size_may_be_any_integer(qkv):
    attend = partial(dot_product_attention, mapping=sm.sparsemax)
    of_numpy, of_python = (jax.make_jaxpr(partial(attend, block_size=size))(*qkv) for size in (np.int64(4), 4))
    assert str(of_numpy) == str(of_python)


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
    expected = jax.jit(partial(dot_product_attention, mapping=sm.sparsemax))(*arrays)
    np.testing.assert_allclose(exported.call(*arrays), expected, atol=1e-6)


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
    attend = partial(dot_product_attention, block_size=block_size)
    by_name = partial(attend, mapping=mapping, implementation="xla")
    by_name, expected = jax.jit(lambda *qkv: (by_name(*qkv), attend(*qkv)))(*qkv)
    np.testing.assert_allclose(by_name, 2 * np.asarray(expected), atol=1e-5)


def test_the_implementation_of_an_operator_and_a_named_mapping(qkv):
    for mapping in (sm.sparsemax, sm.conjugate(sm.SquaredL2()), partial(sm.entmax, alpha=2.0)):
        attend = partial(dot_product_attention, mapping=mapping)
        both = jax.jit(lambda *qkv, attend=attend: (attend(*qkv, implementation="xla"), attend(*qkv)))
        np.testing.assert_allclose(*both(*qkv), atol=1e-6)
        with pytest.raises(ValueError, match="implementation"):
            attend(*qkv, implementation="cudnn")


# --- Bad input: each error names the argument, what it got and what to do -------------------------------------


@pytest.mark.parametrize("dtype", [jnp.uint32, jnp.int64, jnp.int8])
def test_lengths_of_any_integer_type(qkv, dtype):
    """A length beyond all keys is that of all keys, also where 32 bits cannot hold it."""
    attend = jax.jit(dot_product_attention)
    expected = attend(*qkv, key_value_seq_lengths=np.array([S, 3]))
    most = np.array([jnp.iinfo(dtype).max, 3], dtype)
    np.testing.assert_array_equal(attend(*qkv, key_value_seq_lengths=most), expected)


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (ValueError, {"query": np.zeros((T, H))}, ["query", "(7, 8)", "(B, T, N, H)"]),
        (ValueError, {"key": np.zeros((S, K, H), f32)}, ["key", "(9, 2, 8)", "(2, 7, 4, 8)", "batch axis"]),
        (ValueError, {"key": np.zeros((3, S, K, H), f32)}, ["key", "(3, 9, 2, 8)", "(2, 7, 4, 8)", "batch"]),
        (ValueError, {"key": np.zeros((B, S, K, 5), f32)}, ["key", "(2, 9, 2, 5)", "(2, 7, 4, 8)", "head size"]),
        (ValueError, {"value": np.zeros((B, 8, K, H), f32)}, ["value", "(2, 8, 2, 8)", "(2, 9, 2, 8)"]),
        (ValueError, {"query": np.zeros((B, T, 3, H), f32)}, ["query", "(2, 7, 3, 8)", "(2, 9, 2, 8)", "multiple"]),
        (TypeError, {"key": np.zeros((B, S, K, H), jnp.float64)}, ["key", "float64", "float32", "cast"]),
        (TypeError, {"query": np.zeros((B, T, N, H), jnp.int32)}, ["query", "int32", "cast"]),
        (TypeError, {"mask": np.ones((T, S), f32)}, ["mask", "float32", "boolean", "mask != 0"]),
        (ValueError, {"mask": np.ones((B, S), bool)}, ["mask", "(2, 9)", "(2, 4, 7, 9)", "mask[:, None, None, :]"]),
        (ValueError, {"mask": np.ones((1, B, N, T, S), bool)}, ["mask", "(1, 2, 4, 7, 9)", "(2, 4, 7, 9)"]),
        (ValueError, {"bias": np.zeros((B, K, T, S), f32)}, ["bias", "(2, 2, 7, 9)", "(2, 4, 7, 9)"]),
        (TypeError, {"bias": np.ones((T, S), bool)}, ["bias", "booleans", "mask"]),
        (TypeError, {"bias": np.ones((T, S), complex)}, ["bias", "complex128", "real part"]),
        (TypeError, {"is_causal": "no"}, ["is_causal", "'no'", "True or False"]),
        (ValueError, {"scale": np.ones((N,), f32)}, ["scale", "(4,)", "scalar"]),
        (ValueError, {"scale": np.nan}, ["scale", "nan", "finite"]),
        (TypeError, {"scale": "a"}, ["scale", "'a'", "real number"]),
        (TypeError, {"scale": 1j}, ["scale", "1j", "real number"]),
        (TypeError, {"query": None}, ["query", "None", "array"]),
        (TypeError, {"value": [[1.0, 2.0], [3.0]]}, ["value", "[[1.0, 2.0], [3.0]]", "array"]),
        (TypeError, {"bias": "a"}, ["bias", "'a'", "array"]),
        (TypeError, {"mask": {}}, ["mask", "{}", "array"]),
        (TypeError, {"key_value_seq_lengths": "a"}, ["key_value_seq_lengths", "'a'", "array"]),
        (TypeError, {"return_weights": 1}, ["return_weights", "1", "True or False"]),
        (TypeError, {"skip_zeros": "no"}, ["skip_zeros", "'no'", "True or False"]),
        (ValueError, {"query_seq_lengths": np.ones((3,), jnp.int32)}, ["query_seq_lengths", "(3,)", "(2,)"]),
        (TypeError, {"key_value_seq_lengths": np.ones((B,), f32)}, ["key_value_seq_lengths", "float32", "integer"]),
        (TypeError, {"local_window_size": (1, 2, 3)}, ["local_window_size", "(1, 2, 3)", "pair"]),
        (TypeError, {"local_window_size": 1.5}, ["local_window_size", "1.5"]),
        (ValueError, {"block_size": 0}, ["block_size", "0", "at least 1"]),
        (TypeError, {"block_size": 2.5}, ["block_size", "2.5"]),
        (ValueError, {"block_size": 2, "return_weights": True}, ["block_size", "return_weights", "leave out"]),
        (TypeError, {"block_size": True}, ["block_size", "True", "such as 128"]),
        (ValueError, {"return_residual": True}, ["return_residual", "True", "softmax_value"]),
        (ValueError, {"key": np.zeros((B, 0, K, H), f32), "value": np.zeros((B, 0, K, H), f32)},
         ["key", "(2, 0, 2, 8)", "S = 0", "pad"]),
        (ValueError, {"query": np.zeros((B, T, N, 0), f32), "key": np.zeros((B, S, K, 0), f32)},
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
