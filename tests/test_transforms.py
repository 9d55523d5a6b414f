"""jit, vmap over scores and hyper-parameters, scan, remat, shard_map: alone and inside one another."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from cases import FAMILIES, PIECES, REPRESENTATIVES, D
from cases.tolerances import DIFFERENCE, FUNCTION64, PROMISE64, PULLED, PULLED_TWICE, SOLVED, SUMS

import smoothmax as sm


class Variants(chex.TestCase):
    """Eagerly and under jit, NumPy arrays and arrays on a device: the oracle's answer each time."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    @parameterized.named_parameters((named.name, key) for key, named in cases.NAMED.items())
    def test_named_functions(self, key):
        case = next(case for case in cases.CASES if case.family.named is cases.NAMED[key])
        x, params = cases.scores(6, seed=89), case.params()
        got = self.variant(lambda x: case.family.weights(x, params))(x)
        np.testing.assert_allclose(got, case.expected(x)[0], rtol=0, atol=case.tol)


def program(function, *args):
    """What a call runs, as text: one jitted program and nothing beside it."""
    (call,) = jax.make_jaxpr(function)(*args).eqns
    return str(call.params["jaxpr"])


@cases.each([case for case in FAMILIES if case.family.named or case in REPRESENTATIVES])
def test_named_function_and_builder_agree(case):
    """Called eagerly, hyper-parameters as Python numbers, each route runs the program that all laws about numbers go
    through, where hyper-parameters are traced."""
    x, params = cases.scores(seed=5), case.params()
    op = case.family.op(params, D)
    assert program(op, x) == program(op.argmax, x)
    for function, built in ((case.family.weights, op.argmax), (case.family.value, op.max)):
        named = program(lambda x, function=function: function(x, params), x)
        assert named == program(function, x, params)
        if case.family.domain == "ranks" and built == op.argmax:  # soft_rank has a program of its own
            np.testing.assert_allclose(built(x), case.expected(x)[0], rtol=0, atol=case.tol)
        else:
            assert named == program(built, x)


@cases.each(PIECES)
def test_scan_of_remat_of_vmap_differentiated(case):
    """One compilation for the lot: gradients through a scan over rematerialised, vmapped slices, with
    hyper-parameters that are traced arrays (array-valued nondiff_argnums would break here)."""
    x = cases.scores(12, seed=90)
    v = np.random.default_rng(91).normal(size=x.shape)
    params = case.arrays()

    @jax.jit
    def loss_and_gradients(params, x, v):
        def loss(params, x):
            @jax.checkpoint
            def body(carry, row):
                x, v = row
                y = jax.vmap(lambda x: case.family.weights(x, params))(x)
                return carry + jnp.sum(y * v), y

            return jax.lax.scan(body, jnp.zeros(()), (x.reshape(3, 4, D), v.reshape(3, 4, D)))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (loss, y), (bars, x_bar) = loss_and_gradients(params, x, v)
    expected = cases.run(case, x, v=v)
    # Two compilations of a root differ by their rounding; those of a plain function by what its solver promises.
    tol = {"coupled": FUNCTION64, "cubic": PROMISE64}.get(case.family.base, PULLED_TWICE)
    np.testing.assert_allclose(y.reshape(12, D), expected.y, rtol=0, atol=tol)
    np.testing.assert_allclose(loss, (v * expected.y).sum(), rtol=0, atol=tol * 10)
    np.testing.assert_allclose(x_bar, expected.x_bar, rtol=0, atol=tol * max(1, np.abs(expected.x_bar).max()))
    sums = {k: bar.sum(0) for k, bar in expected.bars.items()}
    chex.assert_trees_all_close(bars, sums, rtol=tol * 10, atol=tol * 10)


@cases.each(PIECES)
def test_vmap_over_scores_and_hyper_parameters(case, n=6):
    """All hyper-parameters differ from slice to slice; each slice is its own problem of the oracle."""
    rng = np.random.default_rng(92)
    x = cases.scores(n, seed=92)
    params = case.drawn(rng, n)

    @jax.jit
    def mapped(params, x):
        return jax.vmap(case.family.weights)(x, params), jax.vmap(lambda p: case.family.weights(x[3], p))(params)

    both, shared = mapped(params, x)
    for i in range(n):
        one = {k: p[i] for k, p in params.items()}
        np.testing.assert_allclose(both[i], case.expected(x[i : i + 1], params=one)[0][0], rtol=0, atol=case.tol)
        np.testing.assert_allclose(shared[i], case.expected(x[3:4], params=one)[0][0], rtol=0, atol=case.tol)
        if case.family.rowwise:  # hyper-parameters that broadcast against the batch say the same
            row = cases.run(case, x[i : i + 1], params=one)
            np.testing.assert_allclose(both[i], row.y[0], rtol=0, atol=SOLVED)


@cases.each(cases.BY_ID[id] for id in ("entmax1.5", "pnorm+edges", "l2+oscar"))
def test_vmap_over_masks_and_other_axes(case):
    x, where = cases.scores(6, seed=93), cases.holes(6, seed=93)
    params = case.params()
    got = jax.jit(jax.vmap(lambda x, w: case.family.weights(x, params, where=w), in_axes=1, out_axes=1))(x.T, where.T)
    np.testing.assert_allclose(got.T, cases.run(case, x, where).y, rtol=0, atol=SOLVED)


@cases.each([cases.BY_ID["entmax1.5"]])
def test_one_alpha_per_head(case):
    """alpha of shape (heads, 1, 1) against scores (batch, heads, T, S), and its gradient has that shape."""
    rng = np.random.default_rng(94)
    x, v = rng.normal(size=(2, 2, 3, 4, D))
    alpha = np.array([1.0, 1.5, 2.0]).reshape(3, 1, 1)

    @jax.jit
    def pulled(x, alpha, v):
        y, pull = jax.vjp(lambda x, alpha: sm.entmax(x, alpha=alpha), x, alpha)
        return y, *pull(v)

    y, x_bar, alpha_bar = map(np.asarray, pulled(x, alpha, v))
    assert y.shape == x.shape and alpha_bar.shape == (3, 1, 1)
    for head in range(3):
        rows, cotangents = x[:, head].reshape(-1, D), v[:, head].reshape(-1, D)
        result = cases.run(case, rows, v=cotangents, params={"alpha": alpha[head].item(), "gamma": 1.0})
        np.testing.assert_allclose(y[:, head].reshape(-1, D), result.y, atol=SOLVED)
        np.testing.assert_allclose(x_bar[:, head].reshape(-1, D), result.x_bar, atol=PULLED)
        np.testing.assert_allclose(alpha_bar[head].item(), result.bars["alpha"].sum(), atol=PULLED_TWICE)


def test_an_operator_built_inside_a_traced_function_from_a_traced_alpha():
    x = cases.scores(4, seed=95)

    @jax.jit
    def loss(alpha, lam):
        op = sm.conjugate(2.0 * (sm.Tsallis(1.0 + alpha**2) + jnp.exp(lam) * sm.TotalVariation()))
        return jnp.sum(op.max(x) ** 2)

    gradient = jax.jit(jax.grad(loss, (0, 1)))(0.7, -2.0)
    h = 1e-5
    for k, (a, b) in enumerate(((h, 0), (0, h))):
        difference = (loss(0.7 + a, -2.0 + b) - loss(0.7 - a, -2.0 - b)) / (2 * h)
        np.testing.assert_allclose(gradient[k], difference, rtol=DIFFERENCE)


@cases.each(cases.BY_ID[id] for id in ("entmax1.5", "pnorm+edges", "l2+oscar"))
def test_shard_map(case, mesh):
    x = cases.scores(16, seed=96)
    v = np.random.default_rng(97).normal(size=x.shape)
    params = case.arrays()
    spec = jax.sharding.PartitionSpec("devices")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), spec, spec), out_specs=(spec, spec)
    )
    def sharded(params, x, v):
        y, pull = jax.vjp(lambda x: case.family.weights(x, params), x)
        return y, pull(v)[0]

    y, x_bar = jax.jit(sharded)(params, x, v)
    expected = cases.run(case, x, v=v)
    np.testing.assert_allclose(y, expected.y, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(x_bar, expected.x_bar, rtol=0, atol=PULLED)


FAMILIES_OF_ONE_NUMBER = {
    "entmax": lambda x, t: sm.entmax(x, alpha=1 + t),
    "oscarmax": lambda x, t: sm.oscarmax(x, lam=t),
    "separable": lambda x, t: sm.conjugate(sm.separable(lambda y, t: y * jnp.log(y) + t * y**2, t))(x),
    "function": lambda x, t: sm.conjugate(lambda y, t: jnp.sum(y * jnp.log(y) + t * y**2), params=t)(x),
}


@pytest.mark.parametrize("name", FAMILIES_OF_ONE_NUMBER)
def test_shard_map_of_hyper_parameters_alone(name, mesh):
    """Each device has its own hyper-parameter, and all share the scores: a derivative with respect to something
    shared is a sum over the devices, which must not get into a device's own weights."""
    mapping = FAMILIES_OF_ONE_NUMBER[name]
    x = cases.scores(16, seed=99)[:4]
    v = np.random.default_rng(100).normal(size=x.shape)
    numbers = np.linspace(0.2, 1.5, mesh.size)
    own, shared = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()

    def weights_and_pullback(t, x, v):
        y, pull = jax.vjp(lambda t, x: mapping(x, t[0]), t, x)
        return y, *pull(v + 0 * y)  # each device has a cotangent of its own, as it has weights

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(own, shared, shared), out_specs=(own, own, shared))
    def sharded(t, x, v):
        y, t_bar, x_bar = weights_and_pullback(t, x, v)
        return y[None], t_bar, x_bar

    y, t_bar, x_bar = jax.jit(sharded)(numbers, x, v)
    compiled = jax.jit(weights_and_pullback)
    alone = zip(*(compiled(t[None], x, v) for t in numbers), strict=True)
    expected_y, expected_t_bar, expected_x_bar = map(np.stack, alone)
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=PULLED)  # general solutions, some of them
    np.testing.assert_allclose(t_bar, expected_t_bar[:, 0], rtol=0, atol=100 * PULLED)
    np.testing.assert_allclose(x_bar, expected_x_bar.sum(0), rtol=0, atol=100 * PULLED)


def test_reverse_mode_inside_while_loop_and_cond():
    """The solver's own loops are no obstacle, nor are the user's."""
    x = cases.scores(12, seed=98)  # the first and the last rows are uniform and one-hot: flat

    @jax.jit
    def climb(x):
        step = lambda i, x: x + 0.1 * jax.grad(lambda x: jnp.sum(sm.fusedmax(x) ** 2))(x)
        top = jax.lax.fori_loop(0, 3, step, x)
        return sm.fusedmax(x), jax.lax.cond(top[0, 0] > 1e9, sm.sparsemax, sm.fusedmax, top)

    before, y = map(np.asarray, climb(x))
    np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=SUMS)
    assert np.sum(y**2) > np.sum(before**2)
