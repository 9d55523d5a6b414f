"""Functions whose Hessian overflows, vanishes, or is lost in rounding: right or NaN, and an answer where one exists.

norm_p(y) = (sum y^p)^(1/p):   y ~ (x - tau)+^(1/(p-1)),  tau from norm_q((x - tau)+) = 1,  1/p + 1/q = 1
sum y^k:                       y = ((x - tau)+ / k)^(1/(k-1)),  tau from sum y = 1
"""

import copy
import functools
import gc
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import one_of
from cases.tolerances import PROMISE64, SOLVED, STEP, ULPS

import smoothmax as sm
from smoothmax._cache import SameFunction, bounded_jit

LD = np.longdouble
RNG = np.random.default_rng(21)
X = np.concatenate([scale * RNG.normal(size=(60, 6)) for scale in (0.1, 1.0, 5.0)])
WIDE = np.concatenate([scale * RNG.normal(size=(4, 256)) for scale in (0.1, 1.0, 5.0)])


def norm(p):
    return lambda y: jnp.sum(jnp.abs(y) ** p) ** (1 / p)


def power_sum(k):
    return lambda y: jnp.sum(y**k)


def bisected(excess, low, high):
    """The root of a falling function, one for each row, in 200 halvings: more than a long double has bits."""
    for _ in range(200):
        middle = low + (high - low) / 2
        above = excess(middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low, high


def norm_weights(x, p):
    z = x - x.max(-1, keepdims=True)
    q = LD(p) / (LD(p) - 1)
    low = np.full_like(z[:, :1], -1.001)
    tau, _ = bisected(lambda t: (np.maximum(z - t, 0) ** q).sum(-1, keepdims=True) - 1, low, 0 * low)
    y = np.maximum(z - tau, 0) ** (1 / (LD(p) - 1))
    return y / y.sum(-1, keepdims=True)


def power_sum_weights(x, k):
    z = x - x.max(-1, keepdims=True)
    low = np.full_like(z[:, :1], -1.001 * k)

    def weights(tau):
        return (np.maximum(z - tau, 0) / k) ** (1 / (LD(k) - 1))

    # Next to a score the sum jumps from one long double to the next: the weights between them add up to one.
    above, below = map(weights, bisected(lambda t: weights(t).sum(-1, keepdims=True) - 1, low, 0 * low))
    missing, jump = 1 - below.sum(-1, keepdims=True), (above - below).sum(-1, keepdims=True)
    return below + np.where(jump == 0, 0, missing / np.where(jump == 0, 1, jump)) * (above - below)


CASES = {f"norm{p}": (norm(p), norm_weights, p) for p in (1.5, 2, 3, 5, 10, 20, 40)}
CASES |= {f"sum{k}": (power_sum(k), power_sum_weights, k) for k in (2, 3, 4, 6, 8, 12)}


def worth(x, y, name, p):
    powers = (y**p).sum(-1)
    return (x * y).sum(-1) - (powers ** (1 / LD(p)) if name.startswith("norm") else powers)


@functools.partial(jax.jit, static_argnums=0)
def solve(names, which, x):
    """The weights under one of the functions: the solver is compiled once for all of them."""
    return sm.conjugate(one_of(CASES[name][0] for name in names), params=which).argmax(x)


def check(names, name, x, dtype, atol, may_be_nan=False):
    _, oracle, p = CASES[name]
    x = x.astype(dtype)
    y = np.asarray(solve(names, names.index(name), x)).astype(LD)
    solved = ~np.isnan(y).any(-1)
    assert solved.all() or may_be_nan
    x, y = x[solved].astype(LD), y[solved]
    expected = oracle(x, p)
    np.testing.assert_allclose(expected.sum(-1).astype(float), 1, rtol=0, atol=ULPS)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(y.sum(-1).astype(float), 1, rtol=0, atol=8 * eps)  # they were divided by a rounded sum
    y /= y.sum(-1, keepdims=True)
    short = worth(x, expected, name, p) - worth(x, y, name, p)
    assert len(short) == 0 or short.max() <= atol


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    # The gap that the certificate allows is eps^0.75, 2e-12, of the spread of the slopes.
    check(tuple(CASES), name, X, np.float64, PROMISE64)


NARROW = ("norm3", "norm10", "norm40", "sum6", "sum12")


@pytest.mark.parametrize("name", NARROW)
def test_float32(no_x64, name):
    # The same gap in float32 is 6e-6 of the spread, at most about 20.
    check(NARROW, name, X, np.float32, 1e-4)


BROAD = ("norm10", "norm40", "sum12")


@pytest.mark.parametrize("name", BROAD)
def test_wide(name):
    check(BROAD, name, WIDE, np.float64, PROMISE64)


def test_wide_float32(no_x64):
    # 256^-40 underflows: next to equal weights the function is 0 in float32, and its slope NaN.
    check(("norm40",), "norm40", WIDE, np.float32, 1e-4, may_be_nan=True)


def test_gradients_where_the_hessian_overflows(no_x64):
    x = X[60:70].astype(np.float32)
    bar = RNG.normal(size=x.shape)
    op = sm.conjugate(norm(40))
    gradient = jax.jit(lambda x: jax.vjp(op.argmax, x)[1](jnp.asarray(bar, x.dtype))[0])(x)
    h, expected = STEP, np.zeros(x.shape)
    for i, e in enumerate(np.eye(6) * h):
        difference = norm_weights(x.astype(LD) + e, 40) - norm_weights(x.astype(LD) - e, 40)
        expected[:, i] = (difference * bar).sum(-1) / (2 * h)
    # Difference quotients stand in for the Hessian: (39 h)^2 / 6 of it is their error, 2e-4 at h = eps^0.45.
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-4)


def test_shift_and_masks():
    op = sm.conjugate(power_sum(6))
    solve = jax.jit(lambda x, where: op.argmax(x, where=where))
    x, where, full = X[:6], RNG.random((6, 6)) > 0.3, np.ones((6, 6), bool)
    where[:, 0] = True
    np.testing.assert_allclose(solve(x + 1e6, full), solve((x + 1e6) - 1e6, full), rtol=0, atol=SOLVED)
    y = np.asarray(solve(np.where(where, x, np.nan), where))
    for i in range(6):
        np.testing.assert_allclose(
            y[i, where[i]], power_sum_weights(x[i : i + 1, where[i]].astype(LD), 6)[0], rtol=0, atol=SOLVED
        )
        assert (y[i, ~where[i]] == 0).all()


# --- Separable functions over other domains ------------------------------------------------------------------


@pytest.mark.parametrize(("size", "upper"), [(3, 1.0), (1, 0.4), (2, 5.0)])
def test_separable_over_the_capped_simplex(size, upper):
    x = X[60:120]
    over = sm.CappedSimplex(size, upper)
    y = sm.conjugate(sm.separable(lambda t: t**2 / 2), over).argmax(x)
    expected = [oracles.capped(row, base="l2", total=size, upper=upper).astype(float) for row in x]
    np.testing.assert_allclose(y, expected, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(np.sum(y, -1), size, rtol=0, atol=SOLVED)


def test_separable_over_the_box():
    x = X[60:120]
    for upper in (0.7, 1.0, 3.0):
        y = sm.conjugate(sm.separable(lambda t: t * jnp.log(t)), sm.Box(0.1, upper)).argmax(x)
        np.testing.assert_allclose(y, np.clip(np.exp(x - 1), 0.1, upper), rtol=0, atol=SOLVED)


def test_separable_with_bounds_that_cannot_be_met_is_nan():
    f = jax.jit(lambda k: sm.conjugate(sm.separable(lambda t: t**2), sm.CappedSimplex(k, 0.5)).argmax(X[:2]))
    assert np.isnan(f(3.1)).all() and (np.asarray(f(0.0)) == 0).all()
    np.testing.assert_array_equal(f(3.0), 0.5)


# --- What is kept ---------------------------------------------------------------------------------------------


def sparsemax(gamma):
    return oracles.squared_l2(X[0], gamma).astype(float)


def test_functions_are_the_same_if_their_code_and_constants_are():
    def make(rate):
        return SameFunction(lambda y: jnp.sum(y**2) * rate)

    assert make(2.0) == make(2.0) and hash(make(2.0)) == hash(make(2.0))
    assert make(2.0) != make(3.0) and make(0.0) != make(-0.0) and make(1) != make(True)
    assert make(X[0, 0]) != make(X[0, 0])  # what NumPy holds may change
    assert make([1.0]) != make([1.0])

    def by_keyword(rate):
        def function(y, *, rate=rate):
            return jnp.sum(y**2) * rate

        return SameFunction(function)

    assert by_keyword(2.0) == by_keyword(2.0) != by_keyword(3.0)
    array = jnp.ones(3)
    assert make(array) == make(array) and make(array) != make(jnp.ones(3))


def test_a_global_that_changes_is_seen():
    space = {"jnp": jnp, "rate": 1.0}
    results = []
    for rate in (1.0, 4.0):
        space["rate"] = rate
        results.append(sm.conjugate(sm.separable(eval("lambda t: rate * t**2 / 2", space))).argmax(X[0]))
    np.testing.assert_allclose(results[0], sparsemax(1.0), rtol=0, atol=SOLVED)
    np.testing.assert_allclose(results[1], sparsemax(4.0), rtol=0, atol=SOLVED)


def test_a_number_that_changes_before_the_first_call_is_seen():
    """Late binding, as Python has it: all operators have the last rate, whose program is not that of the first."""

    def build(rates):
        return [sm.conjugate(sm.separable(lambda t: rate * t**2 / 2)) for rate in rates]

    for run in (lambda op: op.argmax(X[0]), jax.jit(lambda op: op.argmax(X[0]))):
        for rates in ([1.0, 4.0], [1.0], [4.0, 1.0]):
            for op in build(rates):
                np.testing.assert_allclose(run(op), sparsemax(rates[-1]), rtol=0, atol=SOLVED)


def test_an_object_that_changes_is_seen():
    """What a library made of a user's values is not the library's: it may change as they do."""

    class Rate:
        rate = 1.0

        def __call__(self, z, axis=-1, where=None):
            return self.rate * z

    held, named, called = [1.0], half_square, Rate()
    named.rate = 1.0
    partial, scaled = jax.tree_util.Partial(lambda held, t: held[0] * t**2 / 2, held), sm.length_scaled(called)
    functions = (
        lambda: sm.separable(lambda t: partial(t)),
        lambda: sm.separable(lambda t: named.rate * named(t)),
        lambda: sm.conjugate(lambda y: jnp.sum(scaled(y) * y) / 2).omega,
    )
    for rate in (1.0, 4.0):
        held[0] = named.rate = called.rate = rate
        for make in functions:
            np.testing.assert_allclose(sm.conjugate(make())(X[0]), sparsemax(rate), rtol=0, atol=SOLVED)
    del named.rate


def test_what_libraries_offer_cannot_change():
    function = SameFunction(lambda y: jnp.sum(jax.nn.relu(y) * np.exp(1.0) + math.sqrt(2) * sm.sparsemax(y)))
    assert function.constant and not function.traced


@pytest.mark.parametrize(
    "make",
    [
        lambda w: sm.conjugate(lambda y: jnp.sum(w * y**2) / 2),
        lambda w: sm.conjugate(sm.separable(lambda t: w * t**2 / 2)),
    ],
    ids=["fun", "separable"],
)
def test_a_function_may_refer_to_values_of_a_trace(make):
    """They are constants: scores have their gradient, in every order of tracing and differentiating."""
    f = lambda z, w: jnp.sum(make(w).max(z) + make(w)(z)[0] ** 2)
    loss = lambda z, w: sm.fenchel_young_loss_with_integer_labels(z, 0, make(w))
    ways = {
        "grad": jax.grad(f),
        "vmap": lambda z, w: jax.vmap(jax.grad(f), (None, 0))(z, w[None])[0],
        "checkpoint": lambda z, w: jax.grad(jax.checkpoint(lambda z: f(z, w)))(z),
        "forward": jax.jacfwd(sm.forward_mode(f)),
        "loss": jax.grad(loss),
    }
    run = jax.jit(lambda z, w: {name: way(z, w) for name, way in ways.items()})
    z, first = X[0], np.eye(len(X[0]))[0]
    for w in (1.0, 2.0):
        y = oracles.squared_l2(z, w).astype(float)
        s = (y > 0) / w
        expected = dict.fromkeys(ways, y + 2 * y[0] * s[0] * (first - s / s.sum())) | {"loss": y - first}
        for name, got in run(z, jnp.asarray(w)).items():
            np.testing.assert_allclose(got, expected[name], rtol=0, atol=SOLVED, err_msg=name)


def half_square(t):
    return t**2 / 2


def test_operators_of_functions_are_copied_and_pickled():
    for made in (sm.conjugate(sm.separable(half_square)), sm.conjugate(lambda y: jnp.sum(half_square(y)))):
        twin = copy.deepcopy(made)
        assert twin == made and jax.tree.structure(twin) == jax.tree.structure(made)
        np.testing.assert_array_equal(twin.argmax(X[0]), made.argmax(X[0]))
    made = sm.conjugate(sm.separable(half_square))
    assert pickle.loads(pickle.dumps(made)) == made


def maps():
    with open("/proc/self/maps") as lines:
        return sum(1 for _ in lines)


def test_four_hundred_fresh_functions_are_one_program():
    def call():
        return sm.conjugate(sm.separable(lambda t: t**2 + t)).argmax(X[0])

    call()
    before = maps()
    for _ in range(400):
        call()
    assert maps() <= before + 20


@pytest.mark.usefixtures("of_this_test")
def test_programs_are_forgotten():
    run = bounded_jit(lambda tree, x: x * len(tree) + 1, most=2)
    kept = []
    for n in range(1, 13):
        run((1.0,) * n, jnp.ones(3))
        gc.collect()
        kept.append(maps())
    assert max(kept[6:]) <= max(kept[:6]) + 4
