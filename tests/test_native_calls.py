"""The native kernels as JAX calls them: over devices, under transforms, with hyper-parameters that rows share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothmax._kernels import native
from smoothmax._kernels.native import _calls

pytestmark = [
    pytest.mark.skipif(native.LIBRARY.reason is not None, reason=str(native.LIBRARY.reason)),
    pytest.mark.xdist_group("native"),
]
P = jax.sharding.PartitionSpec


def scores(seed, d, rows=3):
    return np.random.default_rng(seed).normal(size=(rows, d)).astype(np.float32)


def test_eight_devices_at_once(mesh):
    """More handlers than threads: each must come to its end without the others."""
    x = jnp.asarray(scores(0, 512, rows=800))
    cut = jax.device_put(x, jax.NamedSharding(mesh, P("devices")))
    chain = jax.jit(lambda x: _calls.call("chain", x, 0.1, 0.1))
    for _ in range(5):
        t, jumps = chain(cut)
    np.testing.assert_array_equal(t, chain(x)[0])
    assert jumps.sharding.spec == P("devices") == t.sharding.spec


@pytest.mark.parametrize("spec", [P("devices"), P(None, "devices"), P(None, None, "devices")])
@pytest.mark.parametrize("mapped", [False, True])
def test_sharded_scores_stay_where_they_are(mesh, spec, mapped):
    x = scores(0, 16, rows=64).reshape(8, 8, 16)
    cut = jax.device_put(x, jax.NamedSharding(mesh, spec))

    def f(x):
        return _calls.call("threshold", x, 1.0, 1.5), *_calls.call("chain", x, 0.1, 0.2)

    f = jax.jit(jax.vmap(f) if mapped else f)
    np.testing.assert_array_equal(f(cut)[0], f(x)[0])
    # Slices that are cut over devices are put together, and nothing else is.
    assert ("all-gather" in f.lower(cut).compile().as_text()) == (spec == P(None, None, "devices"))


def test_shard_map(mesh):
    x = scores(0, 16, rows=8)

    def f(x, alpha):
        return _calls.call("threshold", x, 1.0, alpha), *_calls.call("chain", x, 0.1, alpha)

    alpha = jnp.float32(1.3)
    mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")))
    jax.tree.map(np.testing.assert_array_equal, mapped(x, alpha), jax.jit(f)(x, alpha))


def test_vmap_scan_remat():
    x = scores(0, 12, rows=6).reshape(3, 2, 12)
    alpha = np.array([1.2, 1.5, 2.0], np.float32)
    f = jax.jit(lambda x, alpha: _calls.call("threshold", x, 1.0, alpha))
    expected = np.stack([f(row, a) for row, a in zip(x, alpha, strict=True)])
    scanned = jax.jit(lambda *operands: jax.lax.map(lambda v: jax.checkpoint(f)(*v), operands))
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(x, alpha), expected)
    np.testing.assert_array_equal(scanned(x, alpha), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, in_axes=(1, None), out_axes=1))(x, alpha[0]), f(x, alpha[0]))
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(f, in_axes=(None, 0)))(x[0], alpha), np.stack([f(x[0], a) for a in alpha])
    )


def shared_by_all(x, gamma, alpha, weights):
    """The kernels that take hyper-parameters, with one value each and with one for each position."""
    y = _calls.call("threshold", x, gamma, alpha)
    return (
        y,
        _calls.call("threshold_product", y, x, alpha, gamma),
        _calls.call("p_norm", x, gamma, alpha),
        _calls.call("p_norm_product", y, x, alpha, gamma),
        _calls.call("capped", x, gamma, alpha, gamma, jnp.abs(weights)),
        *_calls.call("chain", x, gamma, jnp.abs(weights[..., 1:])),
        *_calls.call("ranks", x, weights),
        *_calls.call("permutahedron", x, gamma, weights),
    )


@pytest.mark.parametrize("rows", [(), (1,), (2,)], ids=str)
def test_on_one_device_all_rows_share_one_row_of_hyper_parameters(monkeypatch, rows):
    x = scores(0, 11, rows=6).reshape(3, 2, 11)[:, : rows[0] if rows else 1]
    x = x if rows else x[:, 0]
    weights = -np.sort(scores(1, 11))
    weights = weights.reshape(3, *(1,) * len(rows), 11)
    operands = [x, np.float32([0.5, 1, 2]), np.float32([1.2, 1.5, 2]), weights]

    def solved(*operands):
        """With some of them mapped over."""
        for mapped in ((), (0,), (0, 1), (0, 3), (1, 2, 3), (3,)):
            f = jax.vmap(shared_by_all, [0 if i in mapped else None for i in range(4)]) if mapped else shared_by_all
            yield f(*(v if i in mapped else v[1] for i, v in enumerate(operands)))

    expected = jax.jit(lambda *operands: list(solved(*operands)))(*operands)
    monkeypatch.setattr(_calls, "_one_device", lambda: True)
    shared = jax.jit(lambda *operands: list(solved(*operands)))(*operands)
    jax.tree.map(np.testing.assert_array_equal, shared, expected)


@pytest.mark.parametrize("one_device", [True, False])
def test_hyper_parameters_are_repeated_only_where_a_partitioner_cuts(monkeypatch, one_device):
    monkeypatch.setattr(_calls, "_one_device", lambda: one_device)
    solve = jax.jit(jax.vmap(lambda x: _calls.call("threshold", x, 1.0, 1.5)))
    text = solve.lower(jnp.zeros((3, 4, 5), jnp.float32)).as_text()
    assert ("(tensor<3x4x5xf32>, tensor<1x1x1xf32>, tensor<1x1x1xf32>)" in text) == one_device
    assert ("(tensor<3x4x5xf32>, tensor<3x4x1xf32>, tensor<3x4x1xf32>)" in text) != one_device


def test_no_rows_and_no_scores():
    for shape in ((0, 5), (3, 0), (2, 0, 4)):
        assert jax.jit(lambda x: _calls.call("threshold", x, 1.0, 1.5))(jnp.zeros(shape)).shape == shape
