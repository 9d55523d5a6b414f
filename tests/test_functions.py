"""Convex functions that the user writes: `conjugate(fun, params=...)` and `separable(phi, params)`.

Each compilation of the general solver takes seconds, so a test asks several questions of one compiled function.
"""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import cubic, cubic_rise, one_of
from cases.tolerances import PULLED, SOLVED, SUMS, ULPS
from jax.scipy.special import xlogy

import smoothmax as sm

RNG = np.random.default_rng(7)
X = RNG.normal(size=(6, 7))
COTANGENT = RNG.normal(size=X.shape)
A = RNG.normal(size=(3, 7))
QUOTIENT = 1e-8  # of differences with a step of 1e-5: a solution's rounding over it, and its square times slopes
FLAT, FLAT_VALUE = 1e-4, 1e-7  # the conic solver's weights and value where a fourth power vanishes


def half_square(y):
    return jnp.sum(y**2) / 2


def quadratic(y, a):
    return jnp.sum(y**2) / 2 + 0.3 * jnp.sum((a @ y) ** 2)


def entropy_and_quartic(y, p):
    return p["rate"] * jnp.sum(y * jnp.log(y)) + jnp.sum((p["a"] @ y) ** 4)


def cosh(t, rate):
    return jnp.cosh(rate * t)


def logarithmic_rise(v):
    """The t at which the derivative t + log t + 1 of t^2 / 2 + t log t is v, by Newton's method."""
    t = np.exp(np.minimum(v - 1, 0))
    for _ in range(10):
        t *= (v - np.log(t)) / (1 + t)
    return t


def product(curvature, v):
    """The Jacobian of the weights of a separable function times v, from phi''(y): infinite off the support."""
    s = 1 / curvature
    return s * (v - (s * v).sum(-1, keepdims=True) / s.sum(-1, keepdims=True))


def rows(function, x):
    return np.stack([np.asarray(function(row), float) for row in np.asarray(x, float)])


def differences(function, at, h=1e-5):
    """Central differences of a scalar function of one array, within QUOTIENT."""
    at = np.asarray(at, float)
    steps = h * np.eye(at.size).reshape(-1, *at.shape)
    return np.reshape([(function(at + step) - function(at - step)) / (2 * h) for step in steps], at.shape)


# --- Values against other ways to compute them --------------------------------------------------------------

CLOSED = {  # what is not separable comes last
    "l2": (half_square, lambda t: t**2 / 2, lambda r: oracles.squared_l2(r, 1)),
    "shannon": (lambda y: jnp.sum(y * jnp.log(y)), lambda t: xlogy(t, t), lambda r: oracles.shannon(r, 1)),
    "tsallis": (lambda y: jnp.sum(y**1.5) / 0.75, lambda t: t**1.5 / 0.75, lambda r: oracles.tsallis(r, 1.5, 1)),
    "pnorm": (lambda y: jnp.sum(y**1.5) ** (4 / 3) / 2, None, lambda r: oracles.squared_pnorm(r, 1.5, 1)),
}


def test_closed_forms():
    x = np.concatenate([scale * RNG.normal(size=(4, 20)) for scale in (1e-3, 1.0, 10.0, 1e4)])
    functions, phis = (tuple(filter(None, column)) for column in list(zip(*CLOSED.values(), strict=True))[:2])

    @jax.jit
    def solve(x, which):
        """Under one of the functions: each solver is compiled once for all of them."""
        coordinatewise = sm.conjugate(sm.separable(one_of(phis), which))
        return sm.conjugate(one_of(functions), params=which)(x), coordinatewise(x)

    for which, (name, (_, phi, oracle)) in enumerate(CLOSED.items()):
        expected = rows(oracle, x)
        for y in solve(x, which)[: 2 if phi else 1]:
            y = np.asarray(y)
            np.testing.assert_allclose(y, expected, rtol=0, atol=SOLVED, err_msg=name)
            np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=SUMS, err_msg=name)
            if name == "l2":
                assert ((y > 0) == (expected > 0)).all()


@pytest.mark.parametrize("omega", [half_square, sm.separable(lambda t: t * jnp.log(t))], ids=["fun", "separable"])
def test_wide(omega):
    x = RNG.normal(size=(2, 10_000))
    oracle = oracles.squared_l2 if omega is half_square else oracles.shannon
    np.testing.assert_allclose(sm.conjugate(omega).argmax(x), rows(lambda r: oracle(r, 1), x), atol=PULLED)


def test_against_exhaustive_search_and_conic_solver():
    op = sm.conjugate(quadratic, params=A)
    hessian = np.eye(7) + 0.6 * A.T @ A
    expected = rows(lambda r: oracles.quadratic(r, hessian, np.zeros(7))[0], X)
    np.testing.assert_allclose(op.argmax(X), expected, atol=SOLVED)

    op = sm.conjugate(entropy_and_quartic, params={"rate": 0.5, "a": A})
    y, value = map(np.asarray, jax.jit(lambda x: (op.argmax(x), op.max(x)))(X))
    for i, row in enumerate(X):
        v = cp.Variable(7)
        found, optimum = oracles.conic_maximum(row, v, -0.5 * cp.sum(cp.entr(v)) + cp.sum(cp.power(A @ v, 4)))
        np.testing.assert_allclose(y[i], found, rtol=0, atol=FLAT)
        np.testing.assert_allclose(value[i], optimum, rtol=0, atol=FLAT_VALUE)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-3), (jnp.float64, 1e-9)])  # slopes round by 1e4 eps
def test_steep_functions_are_solved_as_far_as_rounding_allows(dtype, atol):
    """Slopes of 1e4 next to slopes of one: their rounding hides the optimum, and must not be taken for a failure."""
    places = np.arange(9.0)
    x = RNG.normal(size=(5, 9)) / 2

    def near(y, strength):
        return jnp.sum(y**2) / 2 + strength * (jnp.vdot(y, jnp.asarray(places, y.dtype)) - 4) ** 2

    for strength in (1.0, 10.0, 100.0):
        hessian, linear = np.eye(9) + 2 * strength * np.outer(places, places), -8 * strength * places
        expected = rows(lambda r, h=hessian, c=linear: oracles.quadratic(r, h, c)[0], x.astype(dtype))
        y = sm.conjugate(near, params=jnp.asarray(strength, dtype)).argmax(jnp.asarray(x, dtype))
        np.testing.assert_allclose(y, expected, rtol=0, atol=atol)


def test_strength_and_value():
    plain, scaled = sm.conjugate(half_square), sm.conjugate(2.0 * sm.separable(lambda t: t**2 / 2))
    *values, omega = jax.jit(lambda x: (plain.max(x), scaled.max(x), sm.separable(cosh, 2.0)(jnp.full(4, 0.25))))(X)
    for value, gamma in zip(values, (1.0, 2.0), strict=True):
        expected = [float(oracles.value(row, base="l2", gamma=gamma)) for row in X]
        np.testing.assert_allclose(value, expected, rtol=0, atol=SUMS)
    np.testing.assert_allclose(omega, 4 * np.cosh(0.5), rtol=0, atol=SUMS)


# --- Derivatives --------------------------------------------------------------------------------------------


def either(y, params):
    """`quadratic` or `entropy_and_quartic`, of all their numbers in a row: the solver is compiled once for both."""
    numbers, which = params
    rate, a = numbers[0], numbers[1:].reshape(3, 7)
    functions = (lambda: quadratic(y, a), lambda: entropy_and_quartic(y, {"rate": rate, "a": a}))
    return jax.lax.switch(which, functions)


def of_either(p, which):
    return sm.conjugate(either, params=(p, which))


def separable(p, _=0):
    return sm.conjugate(1.5 * sm.separable(cosh, p))


def with_penalty(p, _=0):
    return sm.conjugate(sm.separable(cosh, p[0]) + p[1] * sm.TotalVariation())


CASES = {
    "sparse": (of_either, np.array([0.7, *A.ravel()]), 0),
    "entropy": (of_either, np.array([0.7, *A.ravel()]), 1),
    "separable": (separable, 2.0, 0),
    "penalty": (with_penalty, np.array([2.0, 0.1]), 0),
}


@functools.cache
def twice_reversed(make):
    """Compiled: a loss of the weights and its gradients, and the parameters' gradient of the sum of sines of one."""

    def sine(x, p, which):
        loss = lambda x, p: jnp.sum(COTANGENT * make(p, which).argmax(x))
        loss, gradients = jax.value_and_grad(loss, (0, 1))(x, p)
        return jnp.sum(jnp.sin(gradients[0])), (loss, gradients)

    return jax.jit(jax.value_and_grad(sine, 1, has_aux=True))


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    make, p, which = CASES[name]
    run = functools.partial(twice_reversed(make), which=which)
    (_, (_, (gx, gp))), second = run(X, p)
    np.testing.assert_allclose(gx, differences(lambda x: run(x, p)[0][1][0], X), atol=QUOTIENT)
    np.testing.assert_allclose(gp, differences(lambda p: run(X, p)[0][1][0], p), atol=QUOTIENT)
    np.testing.assert_allclose(second, differences(lambda p: run(X, p)[0][0], p), atol=QUOTIENT)


@pytest.mark.parametrize(
    ("make", "p"), [(lambda a: sm.conjugate(quadratic, params=a), A), (separable, 2.0)], ids=["sparse", "separable"]
)
def test_forward_mode(make, p):
    of_reverse = jax.jacrev(lambda x, p: make(p).argmax(x), (0, 1))
    of_forward = jax.jacfwd(lambda x, p: sm.forward_mode(make(p)).argmax(x), (0, 1))
    reverse, forward = jax.jit(lambda *args: (of_reverse(*args), of_forward(*args)))(X[0], p)
    np.testing.assert_allclose(forward[0], reverse[0], rtol=0, atol=SOLVED)
    np.testing.assert_allclose(forward[1], reverse[1], rtol=0, atol=SOLVED)
    np.testing.assert_allclose(reverse[0], reverse[0].T, rtol=0, atol=SOLVED)


def test_vmap_over_params():
    grad = jax.grad(lambda p: sm.conjugate(entropy_and_quartic, params=p).max(X[0]))
    params = {"rate": np.array([0.4, 0.9]), "a": np.stack([A, 2 * A])}
    together, alone = jax.jit(jax.vmap(grad))(params), jax.jit(grad)
    for i in range(2):
        expected = alone(jax.tree.map(lambda leaf: leaf[i], params))
        jax.tree.map(lambda t, a: np.testing.assert_allclose(t[i], a, atol=SOLVED), together, expected)


def test_gradient_where_the_function_is_flat_is_nan():
    gradient = jax.jit(jax.grad(lambda x: sm.conjugate(lambda y: 0 * jnp.sum(y)).argmax(x)[0]))
    assert np.isnan(gradient(np.zeros(4))).all()


# --- Masks, non-finite scores, dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "omega", [lambda y: jnp.linalg.norm(y) + jnp.sum(y * jnp.log(y)), sm.separable(lambda t: t**3)]
)
def test_masks_and_nonfinite_rows(omega):
    op = sm.conjugate(omega)
    where = np.ones(X.shape, bool)
    where[0, [1, 4]] = False
    where[1] = False
    x = np.where(where, X, np.nan)
    x[2, 3], x[3, 0], x[4, 2], x[4, 6] = np.nan, np.inf, -np.inf, -np.inf

    @jax.jit
    def answers(x):
        y, pull = jax.vjp(lambda x: op.argmax(x, where=where), x)
        return y, op.max(x, where=where), *pull(COTANGENT)

    y, value, gradient = map(np.asarray, answers(x))
    assert np.isnan(y[2:4]).all() and np.isnan(value[2:4]).all() and np.isnan(gradient[2:4]).all()
    assert (y[1] == 0).all() and value[1] == -np.inf and (gradient[1] == 0).all()
    sound, left = [0, 4], where & (x != -np.inf)
    assert (y[sound][~left[sound]] == 0).all() and (gradient[sound][~left[sound]] == 0).all()
    expected, expected_value = jax.jit(lambda x: (op.argmax(x), op.max(x)))(np.stack([x[i, left[i]] for i in sound]))
    np.testing.assert_allclose(y[sound][left[sound]], np.ravel(expected), atol=SUMS)
    np.testing.assert_allclose(value[sound], expected_value, atol=SOLVED)


@pytest.mark.parametrize(
    "omega", [lambda y: jnp.sum(y**2 / 2 + xlogy(y, y)), sm.separable(lambda t: t**2 / 2 + xlogy(t, t))]
)
def test_float32(no_x64, omega):
    x32, op = X.astype(np.float32), sm.conjugate(omega)

    @jax.jit
    def answers(x):
        y, pull = jax.vjp(op.argmax, x)
        return y, *pull(jnp.zeros_like(y).at[:, 0].set(1))

    y, gradient = answers(x32)
    assert y.dtype == gradient.dtype == jnp.float32
    assert jax.eval_shape(op.argmax, jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)).dtype == jnp.bfloat16
    expected = rows(lambda r: oracles.separable(r, logarithmic_rise, kink=False), x32)
    jacobian = product(1 + 1 / expected, np.eye(7)[0])
    np.testing.assert_allclose(y, expected, rtol=0, atol=5e-7)  # float32 rounds by 6e-8
    np.testing.assert_allclose(gradient, jacobian, rtol=0, atol=5e-6)  # and products of seven terms follow


def test_shift_and_ties():
    op = sm.conjugate(half_square)
    y = op.argmax(np.array([1.0, 1.0, 0.9, 1.0]) + 1e8)
    np.testing.assert_allclose(y, [0.275, 0.275, 0.175, 0.275], rtol=0, atol=1e-7)  # floats at 1e8 lie 1.5e-8 apart
    np.testing.assert_array_equal(op.argmax(np.zeros(4)), 0.25)
    np.testing.assert_array_equal(op.argmax(np.ones(1)), 1)


# --- Never a wrong answer that looks right ------------------------------------------------------------------


def not_convex(y, k):
    """-1e-4 |y|^2, a wave and a saddle, chosen by k: one compilation for all."""
    wave = jnp.sum(jnp.sin(8 * y))
    saddle = 3 * y[0] * y[1] + jnp.sum(y**2) / 2
    return -1e-4 * k[0] * jnp.sum(y**2) + k[1] * wave + k[2] * saddle


def not_convex_phi(t, k):
    bump = t**2 / 2 + 0.05 * jnp.exp(-(((t - 0.5) / 0.01) ** 2))
    return -1e-4 * k[0] * t**2 + k[1] * jnp.sin(8 * t) + k[2] * bump


@pytest.mark.parametrize("k", [0, 1, 2])
def test_functions_that_are_not_convex_give_nan(k):
    assert np.isnan(sm.conjugate(not_convex, params=np.eye(3)[k]).argmax(X)).all()
    assert np.isnan(sm.conjugate(sm.separable(not_convex_phi), params=np.eye(3)[k]).argmax(X)).all()


@pytest.mark.parametrize(
    "fun",
    [lambda y: jnp.sum(jnp.round(10 * y)), lambda y: jnp.where(y[0] > 0.05, jnp.inf, 1.0) + jnp.sum(y**2)],
    ids=["step", "infinite"],
)
def test_functions_that_are_not_smooth_or_not_finite_give_nan(fun):
    assert np.isnan(sm.conjugate(fun).argmax(X)).all()


@pytest.mark.parametrize("result", [lambda y: y, lambda y: None, lambda y: jnp.sum(y > 0)])
def test_results_that_are_no_real_scalars_are_refused(result):
    with pytest.raises(TypeError, match=r"fun=.* must map one distribution of shape \(7,\) to a real scalar, got"):
        sm.conjugate(result).argmax(X)
    with pytest.raises(TypeError, match=r"phi=.* must map one coordinate of shape"):
        sm.conjugate(sm.separable(lambda t, w: w * t**2, jnp.ones(7))).argmax(X)


def test_refused_expressions():
    fun = sm.conjugate(half_square).omega
    with pytest.raises(ValueError, match="does not take penalties, got Oscar"):
        fun + 0.1 * sm.Oscar()
    with pytest.raises(TypeError, match="phi must be a function"):
        sm.separable(2.0)
    with pytest.raises(ValueError, match="params belong to a plain function"):
        sm.conjugate(sm.SquaredL2(), params=1.0)


@pytest.mark.parametrize("omega", [sm.separable(cubic), lambda y: jnp.sum(cubic(y))], ids=["phi", "fun"])
def test_exports_with_a_symbolic_length(omega):
    (d,) = jax.export.symbolic_shape("d")
    op, x = sm.conjugate(omega), X[:3]
    function = jax.jit(lambda x: (op.argmax(x), op.max(x), jax.grad(lambda x: jnp.sum(op.argmax(x) ** 2))(x)))
    program = jax.export.export(function)(jax.ShapeDtypeStruct((3, d), np.float64))
    y = rows(lambda r: oracles.separable(r, cubic_rise), x)
    curvature = np.where(y > 0, 1 + 2 * y, np.inf)
    expected = y, (x * y - cubic(y)).sum(-1), product(curvature, 2 * y)
    for got, exact in zip(program.call(x), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=SOLVED)


def test_scores_whose_difference_overflows():
    """Of a finite slope: the lowest have no weight, and the others are as if they were not there."""
    op = sm.conjugate(sm.separable(lambda t: t**2 / 2 + t**4 / 4))
    run = jax.jit(lambda x: (op.argmax(x), jax.grad(lambda x: op.argmax(x)[0])(x)))
    scores = lambda lowest: np.array([3e38, lowest, 3e38, 1e38, 0.0], np.float32)
    y, gradient = run(scores(-3e38))
    np.testing.assert_array_equal(y, [0.5, 0, 0.5, 0, 0])
    np.testing.assert_allclose(gradient, run(scores(-np.inf))[1], rtol=0, atol=ULPS)
    for bad in (np.nan, np.inf):
        assert np.isnan(run(scores(bad))[0]).all()


# --- Penalties on a separable function ----------------------------------------------------------------------


def test_penalties_compose():
    omega = 0.5 * (sm.separable(lambda t, b: t**2 / 2 + b * t**4, 1.5) + 0.1 * sm.TotalVariation() + 0.02 * sm.Oscar())
    y = np.asarray(sm.conjugate(omega).argmax(X))
    for i, row in enumerate(X):
        v = cp.Variable(7)
        oscar = sum(cp.maximum(v[j], v[k]) for j in range(7) for k in range(j))
        base = cp.sum_squares(v) / 2 + 1.5 * cp.sum(cp.power(v, 4))
        found, _ = oracles.conic_maximum(row, v, 0.5 * (base + 0.1 * cp.norm1(cp.diff(v)) + 0.02 * oscar))
        np.testing.assert_allclose(y[i], found, rtol=0, atol=FLAT)


def test_products_keep_all_digits_on_accelerators():
    """Where nothing is said, a GPU multiplies float32 with 10 bits and a TPU with 7: a certificate would refuse all,
    and no solver could follow the slopes of a quadratic form."""

    def pulled(x, form, bar):
        op = lambda form: sm.conjugate(lambda y, form: y @ form @ y, params=form)
        y, pull = jax.vjp(lambda x, form: op(form).argmax(x), x, form)
        return y, pull(bar)

    x, form = (jax.ShapeDtypeStruct((n, 5), jnp.float32) for n in (3, 5))
    text = jax.jit(pulled).lower(x, form, x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 10
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
