"""`soft_sort`, which is no mapping from each score to its own weight, and the descending order of `soft_rank`.

The ascending order of `soft_rank` is one of the cases that all laws run over, and so is the domain of both.
"""

import contextlib
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import B, D, pulled, refuse
from cases.tolerances import DIFFERENCE, PROMISE, PROMISE64, PULLED, PULLED_TWICE, SOLVED, STEP, SUMS
from jax.sharding import NamedSharding, PartitionSpec

import smoothmax as sm
from smoothmax import _kernels

FUNCTIONS = {"soft_sort": (sm.soft_sort, oracles.soft_sort), "soft_rank": (sm.soft_rank, oracles.soft_rank)}
GAMMAS = np.geomspace(1e-3, 1e3, B)  # from hard to the mean
pytestmark = pytest.mark.xdist_group("sorting")  # most tests ask one of the programs of `everything`
SERVING = [name for name in ("xla", "native") if name in _kernels.names()]


def expected(oracle, x, gamma, where=None, **order):
    """The oracle's answer for each row, what is not allowed deleted."""
    x, gamma = np.asarray(x, float), np.broadcast_to(gamma, len(x))
    allowed = (x != -np.inf) & (True if where is None else where)
    y = np.zeros(x.shape)
    for to, row, keep, strength in zip(y, x, allowed, gamma, strict=True):
        if keep.any():
            to[keep] = oracle(row[keep], strength, **order)
    return y


def forward(name, descending, implementation):
    return jax.jit(functools.partial(FUNCTIONS[name][0], descending=descending, implementation=implementation))


@functools.cache
def everything(name, descending):
    """Compiled: the answer, and the pull-back of v to scores and strengths."""
    function = functools.partial(FUNCTIONS[name][0], descending=descending, implementation="xla")

    def pulled(x, gamma, where, v):
        y, pull = jax.vjp(lambda x, gamma: function(x, gamma=gamma, where=where), x, gamma)
        return y, *pull(v)

    return jax.jit(pulled)


def run(name, descending, x, gamma=GAMMAS, where=None, v=None):
    x = np.asarray(x)
    where = np.ones(x.shape, bool) if where is None else where
    v = np.zeros(x.shape) if v is None else v
    gamma = np.broadcast_to(gamma, len(x))[:, None]
    results = everything(name, descending)(x, gamma.astype(x.dtype), where, v.astype(x.dtype))
    return map(np.asarray, results)


@pytest.mark.parametrize("implementation", SERVING)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_oracle(name, descending, dtype, implementation):
    x = cases.scores(dtype=dtype)
    x[::5] = np.round(x[::5])  # ties
    if dtype == np.float64 and implementation == "xla":  # as the other tests have it
        y, *_ = run(name, descending, x)
    else:
        y = np.asarray(forward(name, descending, implementation)(x, gamma=GAMMAS[:, None].astype(dtype)))
    assert y.dtype == dtype
    size = np.abs(np.array([*x.ravel(), D]) if name == "soft_rank" else x).max()
    # a pool's mean is that of scores, and of ranks over gamma, which cancels where gamma is small
    tol = PROMISE[dtype] * size
    np.testing.assert_allclose(y, expected(FUNCTIONS[name][1], x, GAMMAS, descending=descending), rtol=0, atol=tol)
    if name == "soft_sort":
        assert (np.diff(y) * (-1 if descending else 1) >= -tol).all()
        np.testing.assert_allclose(y.sum(-1), x.sum(-1), rtol=0, atol=D * tol)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_masks_delete(name, descending):
    """What is hidden may hold anything; a score of -inf is as good as a mask."""
    x, where = cases.scores(seed=1), cases.holes(seed=1)
    where[4] = False
    answer = expected(FUNCTIONS[name][1], x, GAMMAS, where, descending=descending)
    v = np.random.default_rng(2).normal(size=x.shape)
    clean = None
    for junk in (0.0, np.nan, np.inf, -np.inf, 1e300):
        results = [*run(name, descending, np.where(where, x, junk), where=where, v=v)]
        np.testing.assert_allclose(results[0], answer, rtol=0, atol=PROMISE64 * D)
        assert (results[0][~where] == 0).all() and (results[1][~where] == 0).all()
        clean = clean or results
        for a, b in zip(results, clean, strict=True):
            np.testing.assert_array_equal(a, b)
    y, *_ = run(name, descending, np.where(where, x, -np.inf))
    np.testing.assert_array_equal(y, clean[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_finite_stays_in_its_slice(name, descending, bad):
    x, v = cases.scores(seed=3), np.random.default_rng(3).normal(size=(B, D))
    clean = [*run(name, descending, x, v=v)]
    x[[0, 7], [1, 5]] = bad
    x[7, 0] = -np.inf
    sound = ~np.isin(np.arange(B), [0, 7])
    spoiled = [*run(name, descending, x, v=v)]
    for a, b in zip(spoiled, clean, strict=True):
        np.testing.assert_array_equal(a[sound], b[sound])
    assert np.isnan(spoiled[0][0]).all() and np.isnan(spoiled[0][7, 1:]).all()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_oracle(name, descending):
    """Of scores with holes and of strengths, away from where pools join or split."""
    oracle = functools.partial(expected, FUNCTIONS[name][1], descending=descending)
    rng = np.random.default_rng(4)
    x, v, t = rng.normal(size=(3, B, D))
    where, gamma = cases.holes(seed=4), np.geomspace(0.05, 2, B)
    _, x_bar, gamma_bar = run(name, descending, x, gamma, where, v)
    along = oracle(x + STEP * t, gamma, where) - oracle(x - STEP * t, gamma, where)
    np.testing.assert_allclose((x_bar * t).sum(-1), (along * v).sum(-1) / (2 * STEP), rtol=0, atol=40 * DIFFERENCE)
    along = oracle(x, gamma * (1 + STEP), where) - oracle(x, gamma * (1 - STEP), where)
    slope = (along * v).sum(-1) / (2 * STEP * gamma)
    np.testing.assert_allclose(gamma_bar[:, 0], slope, rtol=1e-6, atol=40 * DIFFERENCE)
    assert np.abs(slope).max() > 0.1, "no pool was tested"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_order_and_one_strength_a_slice_by_vmap(name):
    """Linear in the scores and in 1 / gamma while pools stay: the only second derivatives are those of 1 / gamma."""
    rng = np.random.default_rng(5)
    x, u = rng.normal(size=(2, B, D))
    gamma = np.geomspace(0.1, 1, B)
    function = FUNCTIONS[name][0]

    def slope(x, gamma, u):
        y, pull = jax.vjp(lambda gamma: function(x, gamma=gamma), gamma)
        return pull(u)[0], y

    slopes = jax.jit(jax.vmap(jax.value_and_grad(slope, (0, 1), has_aux=True)))
    (once, y), twice = jax.tree.map(np.asarray, slopes(x, gamma, u))
    np.testing.assert_allclose(y, expected(FUNCTIONS[name][1], x, gamma), rtol=0, atol=PROMISE64)
    _, x_bar, along = run(name, False, x, gamma, v=u)
    np.testing.assert_allclose(once, along[:, 0], rtol=0, atol=PULLED_TWICE)
    np.testing.assert_allclose(twice[1], -2 * once / gamma, rtol=0, atol=100 * PULLED_TWICE)  # over gamma twice
    # d/dx of the slope in gamma: of ranks, which are x / gamma less means, that of y over gamma; of sorted scores gamma
    # moves what comes of the places alone
    moved = np.zeros(x.shape) if name == "soft_sort" else -x_bar / gamma[:, None]
    np.testing.assert_allclose(twice[0], moved, rtol=0, atol=100 * PULLED_TWICE)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (2, 0), None])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_axis_and_one_strength_a_slice(name, axis):
    from test_axis import flatten

    rng = np.random.default_rng(6)
    x, where = rng.normal(size=(3, 4, 5)), rng.uniform(size=(3, 4, 5)) < 0.8
    along = (0, 1, 2) if axis is None else tuple(a % 3 for a in np.atleast_1d(axis))
    gamma = rng.uniform(0.1, 2, size=[1 if a in along else n for a, n in enumerate(x.shape)])
    rows, back, _ = flatten(x, axis)
    mask, _, _ = flatten(where, axis)
    function, oracle = FUNCTIONS[name]
    y = function(x, axis, where=where, gamma=gamma)
    np.testing.assert_allclose(y, back(expected(oracle, rows, gamma.ravel(), mask)), rtol=0, atol=PROMISE64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strengths_add_batch_axes(name):
    function, oracle = FUNCTIONS[name]
    x, gamma = np.random.default_rng(10).normal(size=D), np.array([0.1, 1.0, 10.0])
    y = function(x, gamma=gamma[:, None])
    np.testing.assert_allclose(y, expected(oracle, np.tile(x, (3, 1)), gamma), rtol=0, atol=PROMISE64)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_computed_in_float32(name, dtype):
    function, oracle = FUNCTIONS[name]
    x = jnp.asarray(cases.scores(seed=7), dtype)
    y = function(x, gamma=0.5, descending=True)
    exact = expected(oracle, x, 0.5, descending=True)
    assert y.dtype == dtype
    np.testing.assert_array_less(np.abs(np.asarray(y, float) - exact), 0.51 * float(jnp.finfo(dtype).eps) * 16)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_and_no_slices(name):
    np.testing.assert_array_equal(FUNCTIONS[name][0](np.array([3, 1, 2])), FUNCTIONS[name][0](np.array([3.0, 1, 2])))
    assert FUNCTIONS[name][0](np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("d", [1, 3001])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_narrow_and_wide(name, d):
    function, oracle = FUNCTIONS[name]
    x = np.random.default_rng(d).normal(size=(3, d)) * np.array([[1e-3], [1], [30]])
    y = function(x, gamma=2.0)
    exact = expected(oracle, x, 2.0)
    np.testing.assert_allclose(y, exact, rtol=0, atol=PROMISE64 * np.abs(exact).max())


def test_a_small_strength_sorts_and_a_great_one_averages():
    x = cases.scores(seed=8)
    apart = np.abs(np.diff(np.sort(x))).min()
    np.testing.assert_allclose(sm.soft_sort(x, gamma=apart / 8), np.sort(x), rtol=0, atol=SUMS * 10)
    np.testing.assert_allclose(
        sm.soft_sort(x, gamma=1e9), np.repeat(x.mean(-1, keepdims=True), D, -1), rtol=0, atol=1e-8
    )
    # The greatest strength that still sorts is the least gap: neighbours begin to pool one by one.
    ranks = np.argsort(np.argsort(x)) + 1.0
    np.testing.assert_allclose(sm.soft_rank(x, gamma=apart / 8), ranks, rtol=0, atol=SOLVED * D)
    np.testing.assert_allclose(
        sm.soft_rank(x, gamma=apart / 8, descending=True), D + 1 - ranks, rtol=0, atol=SOLVED * D
    )


@pytest.mark.parametrize("in_use", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sharded(name, in_use, mesh):
    """As the compiler divides it; and on explicit axes, whose results are divided as the scores are."""
    function, x, bar = FUNCTIONS[name][0], cases.scores(8, 6, seed=9), np.tile(np.arange(6.0), (8, 1))
    alone, [x_bar] = pulled(function, bar)(x)
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices")))
    y = jax.jit(function)(cut)
    assert len(y.sharding.device_set) == 8
    np.testing.assert_allclose(y, alone, rtol=0, atol=SOLVED)
    by_shards = jax.shard_map(function, mesh=mesh, in_specs=cut.sharding.spec, out_specs=cut.sharding.spec)
    np.testing.assert_allclose(jax.jit(by_shards)(x), alone, rtol=0, atol=SOLVED)
    explicit = jax.make_mesh((4, 2), ("batch", "keys"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    for spec in (PartitionSpec("batch", None), PartitionSpec("batch", "keys")):
        placed = [jax.device_put(a, NamedSharding(explicit, spec)) for a in (x, bar)]
        with jax.set_mesh(explicit) if in_use else contextlib.nullcontext():
            y, pull = jax.vjp(function, placed[0])
            assert jax.typeof(y).sharding.spec == spec
            [placed_bar] = pull(placed[1])
        np.testing.assert_allclose(y, alone, rtol=0, atol=SOLVED)
        np.testing.assert_allclose(placed_bar, x_bar, rtol=0, atol=PULLED)


@pytest.mark.parametrize("options, error, words", [
    ({"descending": 1}, TypeError, ["descending", "1", "True or False"]),
    ({"descending": None}, TypeError, ["descending", "None"]),
    ({"gamma": 0.0}, ValueError, ["gamma", "0.0"]),
    ({"gamma": -1.0}, ValueError, ["gamma", "-1.0"]),
    ({"axis": 2}, ValueError, ["axis", "2", "(2, 3)"]),
    ({"where": np.ones(3)}, TypeError, ["where", "float64"]),
    ({"implementation": "cuda"}, ValueError, ["implementation", "'cuda'", "xla"]),
])  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_named(name, options, error, words):
    refuse(lambda: FUNCTIONS[name][0](np.ones((2, 3)), **options), *words, error=error)


@pytest.mark.parametrize("implementation", SERVING)
def test_ranks_of_thousands_in_one_pool(implementation):
    """Their sum is beyond the whole numbers that float32 holds."""
    x = np.random.default_rng(88).normal(size=(2, 12_000)).astype(np.float32)
    ranks = jax.jit(functools.partial(sm.soft_rank, implementation=implementation))
    np.testing.assert_allclose(ranks(x), ranks(x.astype(float)), rtol=0, atol=PROMISE[np.float32] * x.shape[1])
