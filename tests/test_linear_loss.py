"""The loss of a linear layer in chunks: the numbers of the whole, less memory, and no collective too many."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from cases import refuse, sent
from cases.tolerances import PULLED, PULLED_TWICE
from jax.sharding import NamedSharding, PartitionSpec

import smoothmax as sm

N, H, V = 24, 5, 16
OMEGAS = {
    "shannon": lambda theta: theta * sm.Shannon(),
    "l2": lambda theta: theta * sm.SquaredL2(),
    "tsallis": lambda theta: sm.Tsallis(1 + 0.5 * theta),
    "pnorm": lambda theta: sm.SquaredPNorm(1 + 0.5 * theta),
    "fused": lambda theta: sm.SquaredL2() + 0.2 * theta * sm.TotalVariation(),
    "oscar": lambda theta: sm.SquaredL2() + 0.05 * theta * sm.Oscar(),
    "separable": lambda theta: sm.separable(lambda t, p: p["a"] * t**3 / 3 + t ** p["two"] / 2, {"a": theta, "two": 2}),
    "box": lambda theta: sm.conjugate(theta * sm.FermiDirac(), over=sm.Box()),
}


def draw():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(4, N // 4, H)), 2 * rng.normal(size=(H, V)), rng.normal(size=V)
    labels = rng.integers(0, V, size=(4, N // 4))
    return arrays, labels, rng.uniform(1, 2, size=labels.shape)


def whole(hidden, kernel, labels, omega, bias=None, where=None):
    logits = hidden @ kernel if bias is None else hidden @ kernel + jnp.broadcast_to(bias, (*labels.shape, V))
    return sm.fenchel_young_loss_with_integer_labels(logits, labels, omega, where=where)


def by_definition(hidden, kernel, labels, base):
    """Losses, and the gradients of their sum for features and kernel, without JAX."""
    logits, onehot = hidden @ kernel, np.eye(V)[labels]
    y, value = (a.astype(float) for a in oracles.rows(logits, np.ones(logits.shape, bool), base=base))
    losses = value + float(oracles.omega(np.eye(V)[0], base=base)) - (logits * onehot).sum(-1)
    return losses, ((y - onehot) @ kernel.T, hidden.T @ (y - onehot))


def in_chunks_and_whole(compute, chunk_size, *arrays):
    """What is computed from the loss in chunks, and from that of the whole logits, by one program."""
    in_chunks = functools.partial(sm.linear_fenchel_young_loss, chunk_size=chunk_size)
    return jax.jit(lambda *arrays: (compute(in_chunks, *arrays), compute(whole, *arrays)))(*arrays)


def same(a, b, atol):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=atol)


# --- The numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OMEGAS)
def test_values_and_all_gradients_are_those_of_the_whole(name):
    (hidden, kernel, bias), labels, factor = draw()

    def compute(loss, *arrays):
        def total(theta, hidden, kernel, bias):
            value = loss(hidden, kernel, labels, OMEGAS[name](theta), bias=bias)
            return jnp.sum(factor * value), value

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*arrays)

    same(*in_chunks_and_whole(compute, 7, 0.9, hidden, kernel, bias), atol=PULLED_TWICE)


def test_tokens_of_different_weight():
    """The gradient is made before the weights are known: equal ones scale it, others have it computed again."""
    (hidden, kernel, bias), labels, factor = draw()
    where = np.random.default_rng(1).uniform(size=(4, N // 4, 1)) < 0.6

    @jax.jit
    def gradients(factor):
        def compute(loss, *arrays):
            def total(theta, h, k, b):
                return jnp.sum(factor * loss(h, k, labels, OMEGAS["l2"](theta), bias=b, where=where))

            return jax.grad(total, argnums=(0, 1, 2, 3))(*arrays)

        return in_chunks_and_whole(compute, 5, 0.9, hidden, kernel, bias)

    for weights in (np.full_like(factor, 0.3), factor, np.zeros_like(factor), np.where(where[..., 0], 0.3, 7.0)):
        same(*gradients(weights), atol=PULLED_TWICE)


NOTHING = {"all masked": (N // 4, False), "no tokens": (0, True)}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_counts(name):
    tokens, kept = NOTHING[name]
    (hidden, kernel, _), labels, _ = draw()
    where = np.full((tokens, 1), kept)
    loss = lambda h, k: sm.linear_fenchel_young_loss(h, k, labels[0, :tokens], sm.SquaredL2(), where=where).sum()
    gradients = jax.jit(jax.grad(loss, (0, 1)))(hidden[0, :tokens], kernel)
    same(gradients, (np.zeros((tokens, H)), np.zeros((H, V))), atol=0)


@pytest.mark.parametrize("cotangent", [np.nan, np.inf])
def test_a_cotangent_of_a_masked_token_has_no_influence(cotangent):
    (hidden, kernel, _), labels, _ = draw()
    where = np.ones((4, N // 4, 1), bool)
    where[1] = False
    loss = lambda h, k: sm.linear_fenchel_young_loss(h, k, labels, sm.SquaredL2(), where=where, chunk_size=5)
    pull = jax.jit(lambda bar: jax.vjp(loss, hidden, kernel)[1](bar))
    same(pull(np.where(where[..., 0], 1.0, cotangent)), pull(np.ones(labels.shape)), atol=0)


def test_one_cotangent_of_nan_among_many_equal_ones():
    tokens = 5000  # XLA's CPU code for the maximum of so many forgets NaN
    hidden, kernel = np.ones((tokens, 2)), np.random.default_rng(5).normal(size=(2, 3))
    labels = np.zeros(tokens, int)
    loss = lambda kernel: sm.linear_fenchel_young_loss(hidden, kernel, labels, sm.SquaredL2())
    pull = jax.jit(lambda bar: jax.vjp(loss, kernel)[1](bar)[0])
    assert np.isfinite(pull(np.ones(tokens))).all()
    assert np.isnan(pull(np.where(np.arange(tokens) == 7, np.nan, 1.0))).all()


@pytest.mark.parametrize("chunk_size", [1, 7, np.int64(12), 24, 1000, None])
def test_every_chunk_size_gives_the_same(chunk_size):
    (hidden, kernel, _), labels, _ = draw()
    loss = sm.linear_fenchel_young_loss(hidden, kernel, labels, sm.SquaredL2(), chunk_size=chunk_size)
    expected, _ = by_definition(hidden.reshape(N, H), kernel, labels.ravel(), "l2")
    np.testing.assert_allclose(loss, expected.reshape(labels.shape), rtol=0, atol=PULLED)


def test_tokens_that_do_not_fill_the_last_chunk():
    """What fills it up has no part in any gradient."""
    (hidden, kernel, bias), labels, _ = draw()
    labels = labels.ravel()[: N - 1]

    def gradients(loss, *arrays):
        of_all = lambda hidden, kernel, bias: jnp.sum(loss(hidden, kernel, labels, sm.SquaredL2(), bias=bias))
        return jax.grad(of_all, (0, 1, 2))(*arrays)

    same(*in_chunks_and_whole(gradients, 7, hidden.reshape(N, H)[: N - 1], kernel, bias), PULLED)


@pytest.mark.parametrize("shape", [(V,), (N // 4, 1), (4, N // 4, V)])
def test_masks_of_words_of_tokens_and_of_both(shape):
    (hidden, kernel, _), labels, _ = draw()
    where = np.random.default_rng(0).uniform(size=shape) < 0.7
    total = lambda loss, h: _finite_sum(loss(h, kernel, labels, sm.SquaredL2(), where=where))
    compute = lambda loss, h: jax.value_and_grad(functools.partial(total, loss))(h)
    same(*in_chunks_and_whole(compute, 5, hidden), atol=PULLED)


def _finite_sum(losses):
    """A masked label has an infinite loss."""
    return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0))


def test_padding_has_no_loss_and_no_gradient():
    (hidden, kernel, _), labels, _ = draw()
    labels[1] = -1
    where = (labels >= 0)[..., None]
    loss = lambda h: sm.linear_fenchel_young_loss(h, kernel, labels, sm.SquaredL2(), where=where, chunk_size=5)
    losses, pull = jax.vjp(loss, hidden)
    assert (np.asarray(losses)[1] == 0).all() and (np.asarray(losses)[0] > 0).all()
    assert (np.asarray(*pull(np.ones(labels.shape)))[1] == 0).all()


@pytest.mark.parametrize("name", ["shannon", "l2", "separable"])
def test_second_derivatives(name):
    """The weights of the tokens are equal, and yet each moves the gradient by the share of its own token; by itself,
    and in a scan."""
    (hidden, kernel, bias), labels, factor = draw()
    arrays = 0.9, hidden, kernel, bias, np.full_like(factor, 0.5)

    def square(loss, *arrays):
        """The squares of all first derivatives, themselves sums over tokens."""

        def total(theta, h, k, b, factor):
            return jnp.sum(factor * loss(h, k, labels, OMEGAS[name](theta), bias=b))

        gradients = jax.grad(total, argnums=(0, 1, 2, 3))(*arrays)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))

    def in_a_scan(loss, *arrays):
        step = lambda sum_, _: (sum_ + square(loss, *arrays), None)
        return jax.lax.scan(step, 0.0, None, length=1)[0]

    chunked = functools.partial(sm.linear_fenchel_young_loss, chunk_size=7)
    unrolled, scanned, expected = (
        jax.jit(jax.grad(functools.partial(form, loss), argnums=(0, 1, 2, 3, 4)))(*arrays)
        for form, loss in ((square, chunked), (in_a_scan, chunked), (square, whole))
    )
    same(unrolled, expected, atol=1e-9)
    same(scanned, expected, atol=1e-9)


def test_vmap_over_kernels_and_a_hyper_parameter():
    (hidden, kernel, _), labels, _ = draw()
    kernels, thetas = np.stack([kernel, -kernel]), np.array([0.5, 2.0])
    total = lambda loss, k, theta: (loss(hidden, k, labels, OMEGAS["l2"](theta)) ** 2).sum()
    compute = lambda loss, *arrays: jax.vmap(jax.value_and_grad(functools.partial(total, loss), (0, 1)))(*arrays)
    # sums of 24 squares of losses, of up to a hundred
    same(*in_chunks_and_whole(compute, 8, kernels, thetas), atol=1e-10)


def test_forward_mode():
    (hidden, kernel, _), labels, _ = draw()
    op = sm.forward_mode(sm.conjugate(sm.SquaredL2()))
    push = lambda loss, k: jax.jvp(lambda k: loss(hidden, k, labels, op), (k,), (jnp.ones_like(k),))
    same(*in_chunks_and_whole(push, 8, kernel), atol=PULLED)


def test_half_precision_is_accumulated_in_float32():
    """The gradient of the kernel sums 4,096 equal terms of 2^-9: bfloat16 would stop at the first 256 of them."""
    hidden, kernel = np.ones((4096, 1), jnp.bfloat16), np.zeros((1, 2), jnp.bfloat16)
    labels = np.zeros(4096, int)
    loss = lambda h, k: sm.linear_fenchel_young_loss(h, k, labels, sm.Shannon(), chunk_size=1)
    losses, pull = jax.vjp(functools.partial(loss, hidden), kernel)
    assert losses.dtype == jnp.bfloat16
    [gradient] = pull(np.full(4096, 1 / 256, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient, float), [[-8.0, 8.0]])
    assert jax.eval_shape(loss, hidden, kernel.astype(np.float32)).dtype == jnp.float32


# --- Memory ------------------------------------------------------------------------------------------------


def test_memory_is_a_quarter_of_the_cross_entropy():
    """2,048 tokens, 256 features, 32,768 words, gradients included, compiled and not run."""
    hidden = jax.ShapeDtypeStruct((2048, 256), jnp.float32)
    kernel = jax.ShapeDtypeStruct((256, 32768), jnp.float32)
    labels = jax.ShapeDtypeStruct((2048,), jnp.int32)

    def temporary(loss):
        compiled = jax.jit(jax.value_and_grad(lambda h, k, t: loss(h, k, t).mean(), (0, 1)))
        return compiled.lower(hidden, kernel, labels).compile().memory_analysis().temp_size_in_bytes

    dense = temporary(lambda h, k, t: optax.softmax_cross_entropy_with_integer_labels(h @ k, t))
    ours = {
        "softmax": lambda h, k, t: sm.linear_fenchel_young_loss(h, k, t, sm.Shannon()),
        "entmax": lambda h, k, t: sm.linear_fenchel_young_loss(h, k, t, sm.Tsallis(1.5)),
        "weighted": lambda h, k, t: h[:, 0] * sm.linear_fenchel_young_loss(h, k, t, sm.SquaredL2()),
    }
    for name, loss in ours.items():
        share = temporary(loss) / dense
        assert share <= 1 / 4, f"{name}: {share:.2f} of the cross-entropy's"


def test_labels_cost_no_array_of_the_size_of_the_logits():
    """The weights, and one array that the value of the regularizer is summed from."""
    logits, labels = jax.ShapeDtypeStruct((64, 32768), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)

    def temporary(loss):
        compiled = jax.jit(jax.value_and_grad(lambda x, k: loss(x, k, sm.Shannon()).mean())).lower(logits, labels)
        return compiled.compile().memory_analysis().temp_size_in_bytes / (4 * 64 * 32768)

    assert temporary(sm.fenchel_young_loss_with_integer_labels) <= 2.1


# --- Devices -----------------------------------------------------------------------------------------------

SHARDED = {
    "tokens": (PartitionSpec("devices"), PartitionSpec()),
    "words": (PartitionSpec(), PartitionSpec(None, "devices")),
}


@pytest.mark.parametrize("split", SHARDED)
@pytest.mark.parametrize("base", ["shannon", "l2"])
def test_sharded_under_jit(mesh, split, base):
    """Sharded words need all-reduces of one number a token alone, and one of the features' gradient; sharded tokens
    the kernel's gradient. Neither the logits nor the kernel are gathered: for words by XLA's form, since a compiled
    kernel solves whole rows."""
    omega = sm.conjugate(OMEGAS[base](1.0), implementation="xla" if split == "words" else None)
    of_tokens, of_words = SHARDED[split]
    rng = np.random.default_rng(1)
    hidden, kernel = rng.normal(size=(32, H)), rng.normal(size=(H, V))
    labels = rng.integers(0, V, size=32)
    step = jax.jit(
        jax.value_and_grad(
            lambda h, k, t: sm.linear_fenchel_young_loss(h, k, t, omega, chunk_size=16).mean(), argnums=(0, 1)
        )
    )
    arrays = [
        jax.device_put(a, NamedSharding(mesh, spec))
        for a, spec in ((hidden, of_tokens), (kernel, of_words), (labels, of_tokens))
    ]
    compiled = step.lower(*arrays).compile()
    losses, gradients = by_definition(hidden, kernel, labels, base)
    same(compiled(*arrays), (losses.mean(), [bar / 32 for bar in gradients]), atol=PULLED)
    collectives = sent(compiled.as_text())
    assert collectives, "nothing was sharded"
    whole_logits = re.compile(rf"\[(32|16),{V}\]")
    for kind, shapes in collectives:
        assert kind == "all-reduce" and not any(map(whole_logits.search, shapes)), collectives


def test_inside_shard_map(mesh):
    """Each device has its tokens; the kernel's gradient is one sum, after the last chunk."""
    rng = np.random.default_rng(1)
    hidden, kernel, labels = rng.normal(size=(32, H)), rng.normal(size=(H, V)), rng.integers(0, V, size=32)
    loss = lambda h, k, t: sm.linear_fenchel_young_loss(h, k, t, sm.SquaredL2(), chunk_size=2)
    split = PartitionSpec("devices")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(split, PartitionSpec(), split), out_specs=(split, PartitionSpec())
    )
    def step(h, k, t):
        return jax.grad(lambda h, k: loss(h, k, t).sum(), argnums=(0, 1))(h, k)

    compiled = jax.jit(step).lower(hidden, kernel, labels).compile()
    same(compiled(hidden, kernel, labels), by_definition(hidden, kernel, labels, "l2")[1], atol=PULLED)
    assert sent(compiled.as_text()) == [("all-reduce", [f"f64[{H},{V}]"])]


# --- Errors ------------------------------------------------------------------------------------------------

HIDDEN, KERNEL, LABELS = np.ones((6, H)), np.ones((H, V)), np.arange(6)
WRONG = [
    ({"labels": LABELS + 12}, ValueError, ["labels", "15", "16", "where"]),
    ({"labels": LABELS - 1}, ValueError, ["labels", "-1"]),
    ({"labels": LABELS[:5]}, ValueError, ["labels", "(5,)", "(6, 5)"]),
    ({"labels": LABELS * 1.0}, TypeError, ["labels", "float64"]),
    ({"hidden": HIDDEN[:, 1:]}, ValueError, ["hidden", "(6, 4)", "kernel", "(5, 16)"]),
    ({"hidden": HIDDEN.astype(int)}, TypeError, ["hidden", "int64"]),
    ({"kernel": KERNEL[0]}, ValueError, ["kernel", "(16,)"]),
    ({"bias": np.ones(5)}, ValueError, ["bias", "(5,)", "(16,)"]),
    ({"bias": np.ones(V, int)}, TypeError, ["bias", "int64"]),
    ({"where": np.ones((6, V))}, TypeError, ["where", "float64"]),
    ({"where": np.ones((5, V), bool)}, ValueError, ["where", "(5, 16)"]),
    ({"chunk_size": 0}, ValueError, ["chunk_size", "0"]),
    ({"chunk_size": True}, TypeError, ["chunk_size", "True"]),
    ({"chunk_size": 2.0}, TypeError, ["chunk_size", "2.0"]),
    ({"chunk_size": np.array(2.5)}, TypeError, ["chunk_size", "2.5"]),
    ({"omega": sm.Tsallis(np.full((6, 1), 1.5))}, ValueError, ["alpha", "(6, 1)", "vmap"]),
    ({"omega": sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(2.0))}, ValueError, ["CappedSimplex", "one-hot"]),
    ({"omega": 3}, TypeError, ["omega", "3"]),
]


@pytest.mark.parametrize(("change", "kind", "words"), WRONG)
def test_bad_input_is_named(change, kind, words):
    arguments = {"hidden": HIDDEN, "kernel": KERNEL, "labels": LABELS, "omega": sm.Shannon()} | change
    refuse(lambda: sm.linear_fenchel_young_loss(**arguments), *words, error=kind)


def test_a_traced_label_out_of_range_is_nan():
    loss = jax.jit(lambda labels: sm.linear_fenchel_young_loss(HIDDEN, KERNEL, labels, sm.Shannon()))(LABELS + 12)
    np.testing.assert_array_equal(np.isnan(loss), LABELS + 12 >= V)
