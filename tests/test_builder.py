"""conjugate(fun), conjugate(fun, params=tree), conjugate(separable(phi)): any convex function."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import D
from cases.tolerances import CONIC, CONIC_VALUE, DIFFERENCE, FUNCTION64, PROMISE64, STEP, SUMS

import smoothmax as sm

X = cases.scores(8, seed=140)
RNG = np.random.default_rng(141)
FACTOR = RNG.normal(size=(D, D))
MATRIX = FACTOR @ FACTOR.T / D + 0.3 * np.eye(D)
LINEAR = RNG.normal(size=D)
WEIGHTS = np.linspace(0.5, 2, D)
GAP = 1e-9  # where the certificate lets values of a plain function lie


def quadratic(y, params):
    matrix, linear = params
    return y @ (matrix @ y) / 2 + linear @ y


CLOSED_FORMS = {  # plain function of y and a number, the number, the problem that it equals
    "l2": (lambda y, _: jnp.sum(y**2) / 2, 0.0, {"base": "l2"}),
    "l2-strength": (lambda y, g: g * jnp.sum(y**2) / 2, 0.7, {"base": "l2", "gamma": 0.7}),
    "tsallis2.0": (lambda y, a: (jnp.sum(y**a) - 1) / (a * (a - 1)), 2.0, {"base": "tsallis", "alpha": 2.0}),
    "shannon": (lambda y, _: jnp.sum(jax.scipy.special.xlogy(y, y)), 0.0, {"base": "shannon"}),
    "pnorm2.0": (lambda y, _: jnp.dot(y, y) / 2, 0.0, {"base": "pnorm", "p": 2.0}),
}


@jax.jit
def closed_forms(x, which, number):
    function = cases.one_of(function for function, _, _ in CLOSED_FORMS.values())
    op = sm.conjugate(lambda y, params: function(y, *params), params=(which, number))
    return op.argmax(x), op.max(x)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_generic_path_gives_the_closed_forms(name):
    """The generic path on 1/2 sum y^2 is sparsemax to 1e-6 in float64; the value, by its certificate, closer."""
    _, number, problem = CLOSED_FORMS[name]
    y, value = map(np.asarray, closed_forms(X, [*CLOSED_FORMS].index(name), number))
    expected, best = oracles.rows(X, np.ones(X.shape, bool), **problem)
    np.testing.assert_allclose(y, expected.astype(float), rtol=0, atol=FUNCTION64)
    np.testing.assert_allclose(value, best.astype(float), rtol=0, atol=GAP)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=0, atol=SUMS)
    assert (y >= 0).all()


@functools.cache
def quadratic_gradients():
    def loss(params, x, v):
        op = sm.conjugate(quadratic, params=params)
        return jnp.sum(op.argmax(x) * v), (op.argmax(x), op.max(x))

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def test_a_quadratic_form_and_its_gradients():
    """Not separable, not symmetric under permutations: against an exact active-set solution, and its
    derivatives in scores, matrix and linear term."""
    v = RNG.normal(size=X.shape)
    params = (jnp.asarray(MATRIX), jnp.asarray(LINEAR))
    (_, (y, value)), ((matrix_bar, linear_bar), x_bar) = quadratic_gradients()(params, X, v)
    exact = lambda x, matrix, linear: oracles.quadratic(x, matrix, linear)
    for i, row in enumerate(X):
        expected, best = exact(row, MATRIX, LINEAR)
        np.testing.assert_allclose(y[i], expected, rtol=0, atol=FUNCTION64)
        np.testing.assert_allclose(value[i], best, rtol=0, atol=GAP)
    h = 1e-5  # the solution is piecewise linear in x and in the linear term: central differences are exact;
    # its Jacobian is taken at weights that are off by FUNCTION64
    total = lambda matrix, linear, x: sum((exact(r, matrix, linear)[0] * w).sum() for r, w in zip(x, v, strict=True))
    t = RNG.normal(size=X.shape)
    along = (total(MATRIX, LINEAR, X + h * t) - total(MATRIX, LINEAR, X - h * t)) / (2 * h)
    np.testing.assert_allclose((x_bar * t).sum(), along, rtol=10 * FUNCTION64)
    t = RNG.normal(size=D)
    along = (total(MATRIX, LINEAR + h * t, X) - total(MATRIX, LINEAR - h * t, X)) / (2 * h)
    np.testing.assert_allclose((linear_bar * t).sum(), along, rtol=10 * FUNCTION64)
    t = RNG.normal(size=(D, D))
    t = t + t.T
    along = (total(MATRIX + h * t, LINEAR, X) - total(MATRIX - h * t, LINEAR, X)) / (2 * h)
    np.testing.assert_allclose((matrix_bar * t).sum(), along, rtol=10 * FUNCTION64)


def conic(y, name):
    """The functions of CONIC_CASES as expressions of the conic solver."""
    import cvxpy as cp

    return {
        "quartic": lambda: cp.sum_squares(y) / 4 + cp.sum(cp.power(y, 4, approx=False)),
        "logsumexp": lambda: cp.log_sum_exp(3 * y) + cp.sum(cp.multiply(WEIGHTS, cp.square(y))) / 2,
        "smooth-chain": lambda: cp.sum_squares(y) / 2 + cp.sum_squares(cp.diff(y)),
        "relative-entropy": lambda: cp.sum(cp.rel_entr(y, WEIGHTS)),
    }[name]()


CONIC_CASES = {
    "quartic": lambda y: jnp.sum(y**2) / 4 + jnp.sum(y**4),
    "logsumexp": lambda y: jax.nn.logsumexp(3 * y) + jnp.sum(jnp.linspace(0.5, 2, D) * y**2) / 2,
    "smooth-chain": lambda y: jnp.sum(y**2) / 2 + jnp.sum((y[1:] - y[:-1]) ** 2),
    "relative-entropy": lambda y: jnp.sum(jax.scipy.special.xlogy(y, y / jnp.linspace(0.5, 2, D))),
}


@jax.jit
def conic_answers(x, which):
    """Weights, values and Jacobians: each slice D times, for one row of its Jacobian each."""
    op = sm.conjugate(cases.one_of(CONIC_CASES.values()), params=which)
    y, pull = jax.vjp(op.argmax, jnp.repeat(x, D, axis=0))
    [rows] = pull(np.tile(np.eye(D), (len(x), 1)))
    return y[::D], op.max(x), rows.reshape(len(x), D, D)


@pytest.mark.parametrize("name", CONIC_CASES)
def test_plain_functions_against_the_conic_solver(name):
    import cvxpy as cp

    x, which = X[[1, 4, 7]], [*CONIC_CASES].index(name)
    solve = lambda x: map(np.asarray, conic_answers(x, which))
    y, value, jacobian = solve(x)
    for i, row in enumerate(x):
        variable = cp.Variable(D)
        expected, best = oracles.conic_maximum(row, variable, conic(variable, name))
        # less sure of weights than CONIC is: a quartic is flat where it vanishes
        np.testing.assert_allclose(value[i], best, rtol=0, atol=CONIC_VALUE)
        np.testing.assert_allclose(y[i], expected, rtol=0, atol=5e-5)
    h, t = 1e-4, RNG.normal(size=x.shape)
    (ahead, *_), (behind, *_) = solve(x + h * t), solve(x - h * t)
    difference = (ahead - behind) / (2 * h)
    # a difference where a weight enters or leaves within h is off by a share of it
    np.testing.assert_allclose(np.einsum("nij,nj->ni", jacobian, t), difference, rtol=0, atol=1e-3)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), rtol=0, atol=FUNCTION64)


def quartic_inverse(v):
    """The real root of 4 t^3 + t / 5 = v, by hyperbolic functions: 4 sinh(u)^3 + 3 sinh(u) = sinh(3 u)."""
    return np.sinh(np.arcsinh(v * 15 * np.sqrt(15)) / 3) / np.sqrt(15 * np.ones_like(v))


# phi, and the t at which phi' is v above phi'(0); for the entropy, whose phi'(0) is infinite, the inverse of phi'.
SEPARABLE = {
    "square": (lambda t: t**2 / 2, lambda v: v),
    "cubic": (cases.cubic, cases.cubic_rise),
    "cosh": (jnp.cosh, np.arcsinh),
    "entropy": (lambda t: jax.scipy.special.xlogy(t, t), lambda v: np.exp(v - 1)),
    "exponential": (lambda t: jnp.exp(2 * t), lambda v: np.log1p(v / 2) / 2),
    "quartic": (lambda t: t**4 + 0.1 * t**2, quartic_inverse),
}


@jax.jit
def separable_answers(x, where, v, which):
    """Weights, values and the pull-back of v."""
    phis = [phi for phi, _ in SEPARABLE.values()]
    op = sm.conjugate(sm.separable(cases.one_of(phis), which))
    y, pull = jax.vjp(lambda x: op.argmax(x, where=where), x)
    return y, op.max(x, where=where), *pull(v)


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_functions(name):
    phi, rise = SEPARABLE[name]
    where = cases.holes(8, seed=142)
    where[6] = False
    answers = separable_answers(X, where, np.tile(WEIGHTS**3, (8, 1)), [*SEPARABLE].index(name))
    y, value, x_bar = map(np.asarray, answers)
    for i, (row, keep) in enumerate(zip(X, where, strict=True)):
        if not keep.any():
            assert (y[i] == 0).all() and value[i] == -np.inf and (x_bar[i] == 0).all()
            continue
        solve = lambda r: oracles.separable(r, rise, kink=name != "entropy").astype(float)
        expected = np.zeros(D)
        expected[keep] = solve(row[keep])
        np.testing.assert_allclose(y[i][keep], expected[keep], rtol=0, atol=PROMISE64)
        defined = row @ expected - np.sum(phi(expected), where=keep)
        np.testing.assert_allclose(value[i], defined, rtol=0, atol=PROMISE64)
        h, bar = STEP, np.zeros(D)
        for j in np.nonzero(keep)[0]:
            t = (np.arange(D) == j)[keep]
            bar[j] = (solve(row[keep] + h * t) - solve(row[keep] - h * t)) @ WEIGHTS[keep] ** 3 / (2 * h)
        np.testing.assert_allclose(x_bar[i], bar, rtol=0, atol=10 * DIFFERENCE)  # cotangents of up to 8


def test_separable_joins_the_algebra():
    """gamma * (separable + lam * TotalVariation): an increasing map of scores - tau, so the composition holds."""
    import cvxpy as cp

    op = sm.conjugate(0.7 * (sm.separable(cases.cubic) + 0.3 * sm.TotalVariation() + 0.1 * sm.Oscar()))
    y, value = jax.jit(lambda x: (op.argmax(x), op.max(x)))(X[:4])
    for i, row in enumerate(X[:4]):
        v = cp.Variable(D)
        pairs = cp.sum([cp.maximum(v[a], v[b]) for a in range(D) for b in range(a)])
        penalty = (
            cp.sum_squares(v) / 2 + cp.sum(cp.power(v, 3, approx=False)) / 3 + 0.3 * cp.norm1(cp.diff(v)) + 0.1 * pairs
        )
        expected, best = oracles.conic_maximum(row, v, 0.7 * penalty)
        np.testing.assert_allclose(y[i], expected, rtol=0, atol=CONIC)
        np.testing.assert_allclose(value[i], best, atol=CONIC_VALUE)


WRONG = {
    "concave": lambda y: -jnp.sum(y**2),
    "saddle": lambda y: jnp.sum(y**2) / 2 - 2 * jnp.sum(y[:2] ** 2),
    "oscillating": lambda y: jnp.sum(jnp.sin(20 * y)),
    "undefined": lambda y: jnp.sum(jnp.log(y - 0.5)),
    "nan": lambda y: jnp.sum(y**2) * jnp.nan,
    "infinite-at-zero": lambda y: jnp.sum(1 / y),
}


@jax.jit
def wrong_answers(x, which):
    op = sm.conjugate(cases.one_of(WRONG.values()), params=which)
    return op.argmax(x), op.max(x)


wrong_worth = jax.jit(jax.vmap(cases.one_of(WRONG.values()), (0, None)))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_convex_and_finite_is_never_a_plausible_answer(name):
    """NaN; or, where the function happens to behave, a point that really is the maximum."""
    x = X[[2, 5]]
    y, value = map(np.asarray, wrong_answers(x, [*WRONG].index(name)))
    candidates = np.concatenate(
        [
            np.eye(D),
            np.random.default_rng(0).dirichlet(np.full(D, 0.4), 4000),
            np.random.default_rng(1).dirichlet(np.full(D, 5.0), 4000),
        ]
    )
    worth = wrong_worth(candidates, [*WRONG].index(name))
    for i, row in enumerate(x):
        if np.isnan(y[i]).any():
            assert np.isnan(y[i]).all()
            continue
        objective = candidates @ row - np.asarray(worth)
        objective = objective[np.isfinite(objective)]
        assert len(objective) and np.isfinite(value[i]) and value[i] >= objective.max() - FUNCTION64, (
            "a wrong answer that looks right"
        )


def test_functions_must_return_a_number():
    for fun in (lambda y: y**2, lambda y: (jnp.sum(y), jnp.sum(y)), lambda y: jnp.sum(y) * 1j, lambda y: None):
        with pytest.raises((TypeError, ValueError)) as caught:
            sm.conjugate(fun).argmax(X)
        assert len(str(caught.value)) > 20


def test_a_params_tree_is_a_tree():
    tree = {"scale": 0.5, "linear": [LINEAR]}
    fun = lambda y, tree: tree["scale"] * jnp.sum(y**2) / 2 + y @ tree["linear"][0]

    def total(tree):
        op = sm.conjugate(fun, params=tree)
        return jnp.sum(op.max(X)), op(X)

    gradient, y = jax.jit(jax.grad(total, has_aux=True))(tree)
    y = np.asarray(y)
    expected = [oracles.squared_l2(row, 0.5).astype(float) for row in X - LINEAR]
    np.testing.assert_allclose(y, expected, rtol=0, atol=FUNCTION64)
    # sums over slices
    np.testing.assert_allclose(gradient["scale"], -(y**2).sum() / 2, rtol=0, atol=10 * FUNCTION64)
    np.testing.assert_allclose(gradient["linear"][0], -y.sum(0), rtol=0, atol=10 * FUNCTION64)


def test_params_that_are_no_numbers():
    """Flags, indices and keys reach the rules as they are: bit by bit, `~1` is no `~True`."""
    x = np.array([0.3, 0.2, 0.1])
    params = {"heavy": np.array([True, False, True]), "which": np.array([0, 1, 0]), "key": jax.random.key(0)}

    def function(y, p):
        factor = jnp.where(~p["heavy"], 2.0, 1.0) * jnp.array([1.0, 3.0])[p["which"] ^ 0]
        return p["w"] * jnp.sum(factor * y**2) / 2 + 0 * jax.random.normal(p["key"])

    op = lambda params, w: sm.conjugate(function, params={**params, "w": w})
    value = lambda params, w: op(params, w).max(x)
    run = jax.jit(lambda *args: (*jax.value_and_grad(value, 1)(*args), jax.jacrev(op(*args))(x)))
    _, slope, jacobian = run(params, 1.0)
    s = 1 / np.array([1.0, 6.0, 1.0])
    np.testing.assert_allclose(jacobian, np.diag(s) - np.outer(s, s) / s.sum(), atol=FUNCTION64)
    difference = (float(run(params, 1 + 1e-4)[0]) - float(run(params, 1 - 1e-4)[0])) / 2e-4
    np.testing.assert_allclose(slope, difference, atol=FUNCTION64)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_of_an_operator_is_an_operator(sign):
    """Whose hyper-parameters are derivatives, and need not be in any range."""
    op = sm.conjugate(sm.FermiDirac(), over=sm.Box(0.1, 0.9))
    bar = jax.grad(lambda op: sign * jnp.sum(op(jnp.array([3.0, 4.0, -9.0, -8.0, -7.0]))))(op)
    assert isinstance(bar, sm.Operator)
    np.testing.assert_array_equal([bar.over.lower, bar.over.upper], [3 * sign, 2 * sign])
    assert jax.tree.map(lambda leaf: leaf, op) == op


def test_memory_of_the_generic_path_holds_no_square_matrix(d=4096):
    op = sm.conjugate(lambda y: jnp.sum(y**2) / 2 + 0.1 * jnp.sum(y**2) ** 2)
    f = jax.jit(lambda x, v: jax.vjp(op.argmax, x)[1](v))
    x = jax.ShapeDtypeStruct((d,), jnp.float32)
    assert f.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 100 * d * 4
