"""Sharded arrays: 8 devices give the numbers of one, and no device gathers the scores."""

import contextlib
import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import PULLED, PULLED_TWICE, SOLVED
from jax.sharding import NamedSharding, PartitionSpec

B, D = cases.B, cases.D
REPRESENTATIVES = [case for case in cases.REPRESENTATIVES if case.family.rowwise]
SORTED = [case for case in REPRESENTATIVES if case.family.penalties or case.family.domain == "permutahedron"]
THRESHOLD = [case for case in REPRESENTATIVES if case not in SORTED]


def check(case, mesh, spec, gathers_allowed):
    where = cases.holes(least=case.least)
    where[3] = False
    x, rng = cases.scores(seed=100), np.random.default_rng(101)
    v, c = rng.normal(size=x.shape), rng.normal(size=B)
    alone = cases.run(case, x, where, v, c)
    params = {k: jnp.asarray(p, float) for k, p in case.params(D).items()}  # one for all slices
    put = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
    arguments = (*(put(a, *spec) for a in (x, where, v)), put(c, spec[0]))
    compiled = cases.everything(case.family).lower(params, *arguments).compile()
    (y, value), (bars, x_bar) = compiled(params, *arguments)
    assert len(y.sharding.device_set) == 8
    np.testing.assert_allclose(y, alone.y, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(value, alone.value, rtol=SOLVED, atol=SOLVED)
    np.testing.assert_allclose(x_bar, alone.x_bar, rtol=0, atol=PULLED)
    bars1 = {k: bar.sum(0) for k, bar in alone.bars.items()}
    chex.assert_trees_all_close(bars, bars1, rtol=1e-10, atol=PULLED_TWICE)  # sums over slices, which cancel
    if not gathers_allowed:
        text = compiled.as_text()
        for word in ("all-gather", "all-to-all", "collective-permute"):
            assert word not in text, next(line for line in text.splitlines() if word in line)


@cases.each(case for case in cases.PIECES if case in SORTED)
def test_batch_axis_over_devices(case, mesh):
    check(case, mesh, PartitionSpec("devices", None), gathers_allowed=False)


@cases.each(THRESHOLD)
def test_both_axes_over_devices_need_only_all_reduces(case):
    """Of batch and keys in one program: a gather of either would be in it."""
    mesh = jax.make_mesh((4, 2), ("batch", "keys"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    check(case, mesh, PartitionSpec("batch", "keys"), gathers_allowed=False)


@cases.each(case for case in SORTED if len(case.family.penalties) > 1 and case.family.domain == "simplex")
def test_key_axis_over_devices_gives_the_same_numbers(case, mesh):
    """Chains and sorts may move the scores, but must not change the answer."""
    check(case, mesh, PartitionSpec(None, "devices"), gathers_allowed=True)


X = cases.scores(8, 6, seed=102)


@functools.cache
def on_one_device(function):
    """Results of X, a cotangent, and its pull-back."""
    v = np.random.default_rng(103).normal(size=jax.eval_shape(function, X).shape)
    y, [x_bar] = cases.pulled(function, v)(X)
    return y, v, x_bar


@cases.each_named(values=True)
@pytest.mark.parametrize("in_use", [True, False])
def test_explicit_axes(function, in_use):
    """As `jax.make_mesh` makes them, with the mesh in use or known from the array alone; compiled, and not."""
    mesh = jax.make_mesh((4, 2), ("batch", "keys"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    expected, v, x_bar = on_one_device(function)
    specs = PartitionSpec("batch", None), PartitionSpec("batch", "keys")
    cuts = [jax.device_put(X, NamedSharding(mesh, spec)) for spec in specs]
    with jax.set_mesh(mesh) if in_use else contextlib.nullcontext():
        compiled = jax.jit(lambda *cuts: [function(cut) for cut in cuts])(*cuts)
        for spec, cut, by_jit in zip(specs, cuts, compiled, strict=True):
            y, pull = jax.vjp(function, cut)
            assert jax.typeof(y).sharding.spec == PartitionSpec(*spec[: y.ndim])
            [pulled] = pull(jax.device_put(v, NamedSharding(mesh, PartitionSpec(*spec[: y.ndim]))))
            assert jax.typeof(pulled).sharding.spec == spec
            np.testing.assert_allclose(y, expected, rtol=SOLVED, atol=SOLVED)
            np.testing.assert_allclose(pulled, x_bar, rtol=0, atol=PULLED)
            np.testing.assert_allclose(by_jit, expected, rtol=SOLVED, atol=SOLVED)


def test_the_word_search_would_find_a_gather(mesh):
    x = jax.device_put(np.ones((B, D)), NamedSharding(mesh, PartitionSpec(None, "devices")))
    whole = jax.jit(lambda x: 2 * x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    assert "all-gather" in whole.lower(x).compile().as_text()
