"""Sharded arrays: 8 devices give the numbers of one, and no device gathers the scores."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
from cases.tolerances import PULLED, PULLED_TWICE, SOLVED
from jax.sharding import NamedSharding, PartitionSpec

N, WIDTH = 16, 64
REPRESENTATIVES = [case for case in cases.REPRESENTATIVES if case.family.rowwise]
SORTED = [case for case in REPRESENTATIVES if case.family.penalties or case.family.domain == "permutahedron"]
THRESHOLD = [case for case in REPRESENTATIVES if case not in SORTED]


@functools.cache
def program(family):
    def both(params, x, where, v):
        def outputs(params, x):
            return family.weights(x, params, -1, where), family.value(x, params, -1, where)

        out, pull = jax.vjp(outputs, params, x)
        return out, pull((v, jnp.ones(x.shape[:-1], x.dtype)))

    return jax.jit(both)


def arguments(case):
    params = {k: jnp.asarray(p, float) for k, p in case.params(WIDTH).items()}
    where = cases.holes(N, WIDTH)
    where[3] = False
    return params, cases.scores(N, WIDTH, seed=100), where, np.random.default_rng(101).normal(size=(N, WIDTH))


def check(case, mesh, spec, gathers_allowed):
    params, *arrays = arguments(case)
    alone = program(case.family)(params, *arrays)
    sharded = [jax.device_put(a, NamedSharding(mesh, spec)) for a in arrays]
    compiled = program(case.family).lower(params, *sharded).compile()
    (y, value), (bars, x_bar) = compiled(params, *sharded)
    assert len(y.sharding.device_set) == 8
    (y1, value1), (bars1, x_bar1) = alone
    np.testing.assert_allclose(y, y1, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(value, value1, rtol=SOLVED, atol=SOLVED)
    np.testing.assert_allclose(x_bar, x_bar1, rtol=0, atol=PULLED)
    chex.assert_trees_all_close(bars, bars1, rtol=1e-10, atol=PULLED_TWICE)  # sums over slices, which cancel
    if not gathers_allowed:
        text = compiled.as_text()
        for word in ("all-gather", "all-to-all", "collective-permute"):
            assert word not in text, next(line for line in text.splitlines() if word in line)


@cases.each(REPRESENTATIVES)
def test_batch_axis_over_devices(case, mesh):
    check(case, mesh, PartitionSpec("devices", None), gathers_allowed=False)


@cases.each(THRESHOLD)
def test_key_axis_over_devices_needs_only_all_reduces(case, mesh):
    check(case, mesh, PartitionSpec(None, "devices"), gathers_allowed=False)


@cases.each(SORTED[:2])
def test_key_axis_over_devices_gives_the_same_numbers(case, mesh):
    """Chains and sorts may move the scores, but must not change the answer."""
    check(case, mesh, PartitionSpec(None, "devices"), gathers_allowed=True)


def test_the_word_search_would_find_a_gather(mesh):
    x = jax.device_put(np.ones((N, WIDTH)), NamedSharding(mesh, PartitionSpec(None, "devices")))
    whole = jax.jit(lambda x: 2 * x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    assert "all-gather" in whole.lower(x).compile().as_text()
