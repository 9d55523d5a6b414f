"""Fenchel-Young losses: values against the definition in NumPy, zero at the minimum, gradients, training."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from cases import D, refuse
from cases.tolerances import DIFFERENCE, SOLVED, STEP, ULPS

import smoothmax as sm

LABELLED = [case for case in cases.REPRESENTATIVES if case.family.domain in ("simplex", "box")]  # labels are points

X = np.random.default_rng(0).normal(size=(6, D)) * np.geomspace(0.1, 5, 6)[:, None]
T = np.random.default_rng(1).dirichlet(np.full(D, 0.5), size=6)
LABELS = np.array([0, 3, 6, 2, 2, 5])
ALL = np.ones(D, bool)


def _op(case):
    return case.family.op(case.params(D), D)


def _targets(case):
    """Points of the domain."""
    return case.expected(X[::-1], params=case.params(D))[0]


def _defined(x, t, problem):
    """max_Omega(x) + Omega(t) - <x, t>, with the maximum from its own definition."""
    return float(oracles.value(x, **problem) + oracles.omega(t, **problem) - (x * t).sum())


@functools.cache
def _compiled(case, labelled):
    op = _op(case)
    by_label = lambda x, where: sm.fenchel_young_loss_with_integer_labels(x, LABELS, op, where=where)

    def losses(x, t, where):
        by_target = lambda x: sm.fenchel_young_loss(x, t, op, where=where)
        values, pull = jax.vjp(lambda x: [by_target(x), *([by_label(x, where)] if labelled else [])], x)
        return [(value, *pull([jnp.full_like(v, v is value) for v in values])) for value in values]

    return jax.jit(losses)


def _losses(case, x, t, where=ALL):
    """The losses against targets and the gradient of their sum for the scores; in float64, where labels are points of
    the domain, the same against LABELS. All laws about a case and a dtype ask one program."""
    return _compiled(case, case in LABELLED and x.dtype == float)(x, t, where)


@cases.each(cases.REPRESENTATIVES)
def test_value_is_the_definition(case):
    targets = _targets(case)
    expected = [_defined(x, t, case.problem(D)) for x, t in zip(X, targets, strict=True)]
    [(value, _), *_] = _losses(case, X, targets)
    np.testing.assert_allclose(value, expected, rtol=SOLVED, atol=case.tol)  # ranks have losses of a hundred
    assert (np.asarray(value) > 0).all()


@cases.each(LABELLED)
def test_value_of_a_label_is_the_definition(case):
    expected = [_defined(x, t, case.problem(D)) for x, t in zip(X, np.eye(D)[LABELS], strict=True)]
    _, (value, _) = _losses(case, X, T)
    np.testing.assert_allclose(value, expected, rtol=0, atol=case.tol)


@cases.each(cases.REPRESENTATIVES)
def test_zero_at_the_minimum(case):
    """Whatever the size of the scores. Optimised, two programs may round weights and Omega differently, by a few ulps
    of what is summed; else the loss is exactly zero: its terms are alike, at any width of floats."""
    for dtype in (np.float32, np.float64):
        for shift in (0.0, 1e4):
            x = (X + shift).astype(dtype)
            # The mapped program of a plain function rounds in its own way; the gradient at targets of 0 is the weights.
            weights = _losses(case, x, 0 * x)[0][1] if case.plain else cases.run(case, x, dtype=dtype).y
            [(value, gradient), *_] = _losses(case, x, weights)
            ulps = 8 * float(jnp.finfo(dtype).eps) * max(1, np.abs(weights).sum(-1).max()) if cases.OPTIMISED else 0
            np.testing.assert_allclose(value, 0, rtol=0, atol=ulps)
            np.testing.assert_allclose(gradient, 0, rtol=0, atol=ulps)


@cases.each(cases.REPRESENTATIVES)
def test_gradient_is_weights_minus_targets(case):
    targets = _targets(case)
    [(_, gradient), *_] = _losses(case, X, targets)
    # No difference of terms: weights below one, which two programs may round differently in their last bits.
    np.testing.assert_allclose(gradient, cases.run(case, X).y - targets, rtol=0, atol=ULPS)


def test_gradients_of_hyper_parameters_and_targets_by_finite_differences():
    def total(theta, t):
        omega = theta[0] * (sm.Tsallis(theta[1]) + theta[2] * sm.TotalVariation())
        return sm.fenchel_young_loss(X, t, omega).sum()

    theta, t = np.array([0.7, 1.4, 0.1]), T
    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    total = lambda theta, t: float(run(theta, t)[0])
    _, (by_theta, by_t) = run(theta, t)
    for i, step in enumerate(STEP * np.eye(3)):
        difference = (total(theta + step, t) - total(theta - step, t)) / (2 * STEP)
        assert float(by_theta[i]) == pytest.approx(difference, rel=0, abs=DIFFERENCE)
    direction = np.zeros_like(T)
    direction[0, :2] = 1, -1  # along the simplex
    difference = (total(theta, t + STEP * direction) - total(theta, t - STEP * direction)) / (2 * STEP)
    assert (np.asarray(by_t) * direction).sum() == pytest.approx(difference, rel=0, abs=DIFFERENCE)


@pytest.mark.parametrize("penalty", [None, sm.TotalVariation()])
def test_gradients_of_hyper_parameters_are_those_of_one_hot_targets(penalty):
    """With a base that is not zero at a label, as entropies are."""

    def total(theta, loss, targets):
        base = sm.SquaredPNorm(theta[1])
        omega = base if penalty is None else base + theta[2] * penalty
        return loss(X, targets, theta[0] * omega).sum()

    @jax.jit
    def gradients(theta):
        by_label = jax.grad(total)(theta, sm.fenchel_young_loss_with_integer_labels, LABELS)
        return by_label, jax.grad(total)(theta, sm.fenchel_young_loss, np.eye(D)[LABELS])

    np.testing.assert_allclose(*gradients(np.array([0.7, 1.4, 0.1])), rtol=SOLVED)


def test_hessian_is_the_jacobian_of_the_weights():
    x, t = X[2], T[2]
    jacobian = jax.jit(jax.jacrev(sm.softmax))(x)
    op = sm.forward_mode(sm.conjugate(sm.Shannon()))
    reverse = jax.jacrev(jax.grad(lambda x: sm.fenchel_young_loss(x, t, sm.Shannon())))
    forward = jax.hessian(lambda x: sm.fenchel_young_loss(x, t, op))
    for hessian in (reverse, forward):
        np.testing.assert_allclose(jax.jit(hessian)(x), jacobian, rtol=0, atol=SOLVED)


def test_equals_optax_where_they_coincide():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on promotion
        cross_entropy = jax.jit(optax.softmax_cross_entropy_with_integer_labels)(X, LABELS)
        to_distributions = jax.jit(optax.softmax_cross_entropy)(X, T)
        sparsemax = jax.jit(optax.losses.multiclass_sparsemax_loss)(X, LABELS)
    entropy = -(T * np.log(T)).sum(-1)
    ours = sm.fenchel_young_loss_with_integer_labels
    np.testing.assert_allclose(ours(X, LABELS, sm.Shannon()), cross_entropy, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(ours(X, LABELS, sm.SquaredL2()), sparsemax, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(
        sm.fenchel_young_loss(X, T, sm.Shannon()), to_distributions - entropy, rtol=0, atol=SOLVED
    )


@cases.each(LABELLED)
def test_impossible_classes_leave_the_rest_alone(case):
    """A score of -inf for a class that is not the target; a mask says the same, whatever the class holds."""
    keep = np.isin(np.arange(D), [1, 4], invert=True)
    problem, onehot = oracles.delete(case.problem(D), keep), np.eye(D)[LABELS]
    expected = [_defined(x, t, problem) for x, t in zip(X[:, keep], onehot[:, keep], strict=True)]
    lowest, junk = (np.where(keep, X, hidden) for hidden in (-np.inf, np.nan))
    for x, t, where in ((lowest, onehot, ALL), (junk, np.where(keep, onehot, np.nan), keep)):
        for value, gradient in _losses(case, x, t, where):
            np.testing.assert_allclose(value, expected, rtol=0, atol=case.tol)
            assert np.isfinite(gradient).all()
            assert (np.asarray(gradient)[:, ~keep] == 0).all()


def test_a_target_that_cannot_be_has_infinite_loss():
    x = np.array([0.0, -np.inf, 1.0])
    assert sm.fenchel_young_loss_with_integer_labels(x, 1, sm.SquaredL2()) == np.inf
    assert sm.fenchel_young_loss(x, np.array([0.5, 0.5, 0.0]), sm.SquaredL2()) == np.inf
    assert sm.fenchel_young_loss_with_integer_labels(x, 2, sm.SquaredL2(), where=np.array([1, 1, 0]) == 1) == np.inf
    assert np.isnan(sm.fenchel_young_loss_with_integer_labels(x, 3, sm.SquaredL2()))
    assert np.isnan(sm.fenchel_young_loss_with_integer_labels(x, -1, sm.SquaredL2()))
    assert np.isnan(sm.fenchel_young_loss_with_integer_labels(x, np.uint8(255), sm.SquaredL2()))


@pytest.mark.parametrize("id", ["softmax-gamma1.0", "pnormmax1.5", "l2+tv", "l2+oscar"])
def test_what_a_mask_hides_is_never_looked_at(id):
    """Under `jax_debug_nans` every result of an eager call is searched, those kept for the backward pass among them."""
    omega = _op(cases.BY_ID[id])
    keep = np.arange(D) % 3 != 1
    junk = np.where(keep, X, np.nan)
    with jax.debug_nans(True):
        for loss in (
            lambda x: sm.fenchel_young_loss_with_integer_labels(x, LABELS, omega, where=keep),
            lambda x: sm.fenchel_young_loss(x, np.where(keep, T, np.nan), omega, where=keep),
        ):
            value, pull = jax.vjp(loss, junk)
            [gradient] = pull(np.ones(6))
            assert np.isfinite(value).all() and (np.asarray(gradient)[:, ~keep] == 0).all()


@pytest.mark.parametrize("omega", [sm.SquaredL2(), sm.separable(cases.cubic)], ids=["l2", "cubic"])
def test_a_slice_of_nan_has_no_loss_in_large_batches(omega):
    """XLA's CPU code for maxima of large arrays forgets NaN: such a slice must not pass for an empty one."""
    x = np.tile(X, (100, 1))
    x[2] = np.nan
    labels, targets = np.tile(LABELS, 100), np.tile(T, (100, 1))
    losses = jax.jit(lambda x: (sm.fenchel_young_loss(x, targets, omega),
                                sm.fenchel_young_loss_with_integer_labels(x, labels, omega)))  # fmt: skip
    for loss in losses(x):
        np.testing.assert_array_equal(np.isnan(loss), np.arange(len(x)) == 2)


def test_fully_masked_slice_is_zero_with_zero_gradient():
    where = np.zeros((6, 1), bool)
    value, pull = jax.vjp(lambda x: sm.fenchel_young_loss(x, T, sm.SquaredL2(), where=where), X)
    [gradient] = pull(np.ones(6))
    assert (np.asarray(value) == 0).all() and (np.asarray(gradient) == 0).all()
    padding = np.full(6, -1)  # no label
    assert (np.asarray(sm.fenchel_young_loss_with_integer_labels(X, padding, sm.SquaredL2(), where=where)) == 0).all()


# --- Other domains -----------------------------------------------------------------------------------------

CHOICE = np.array([[1, 0, 1, 1, 0, 0, 0, 0]] * 6, float)
OVER = {
    "k of d": (sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(3.0)), CHOICE),
    "smooth k of d": (sm.conjugate(sm.FermiDirac(), over=sm.CappedSimplex(3.0)), CHOICE),
    "fused k of d": (sm.conjugate(sm.SquaredL2() + 0.2 * sm.TotalVariation(), over=sm.CappedSimplex(3.0)), CHOICE),
    "any subset": (sm.conjugate(sm.SquaredL2(), over=sm.Box()), CHOICE),
    "any subset, sigmoid": (sm.conjugate(sm.FermiDirac(), over=sm.Box()), CHOICE),
    "order": (
        sm.conjugate(sm.SquaredL2(), over=sm.Permutahedron(np.arange(float(D)))),
        np.argsort(T, axis=1).astype(float),
    ),
}


@pytest.mark.parametrize("name", OVER)
def test_over_another_domain(name):
    """The definition, from the operator; exactly zero at the weights; the gradient; a label where there is one."""
    op, t = OVER[name]
    definition = lambda x: op.max(x) + op.omega(t) - jnp.sum(x * t, -1)
    gradient = jax.grad(lambda x: jnp.sum(sm.fenchel_young_loss(x, t, op)))
    losses, weights = (np.asarray(a) for a in (sm.fenchel_young_loss(X, t, op), op(X)))
    defined, gradient = jax.jit(lambda x: (definition(x), gradient(x)))(X)
    np.testing.assert_allclose(losses, defined, rtol=0, atol=SOLVED)
    assert (losses > 0).all()
    np.testing.assert_array_equal(sm.fenchel_young_loss(X, weights, op), np.zeros(6))
    np.testing.assert_allclose(gradient, weights - t, rtol=0, atol=ULPS)
    if op.over.has_vertices:
        got = sm.fenchel_young_loss_with_integer_labels(X, LABELS, op)
        np.testing.assert_allclose(got, sm.fenchel_young_loss(X, np.eye(D)[LABELS], op), rtol=0, atol=SOLVED)


def test_sigmoid_cross_entropy_is_the_loss_of_the_box():
    with jax.numpy_dtype_promotion("standard"):
        expected = np.asarray(jax.jit(optax.sigmoid_binary_cross_entropy)(X, CHOICE)).sum(-1)
    op = sm.conjugate(sm.FermiDirac(), over=sm.Box())
    np.testing.assert_allclose(sm.fenchel_young_loss(X, CHOICE, op), expected, rtol=0, atol=SOLVED)


def test_the_number_of_choices_is_learned():
    """d/dk of the loss by finite differences: the domain's hyper-parameters have gradients too."""

    @jax.jit
    @jax.value_and_grad
    def loss(k):
        return sm.fenchel_young_loss(X, CHOICE, sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(k))).sum()

    difference = (float(loss(3.0 + STEP)[0]) - float(loss(3.0 - STEP)[0])) / (2 * STEP)
    assert float(loss(3.0)[1]) == pytest.approx(difference, rel=0, abs=DIFFERENCE)


@pytest.mark.parametrize("axis", [0, np.int64(1), -2, (0, 1), None])
def test_axis(axis):
    x, t = X[:4, :3], T[:4, :3]
    t = t / t.sum((0, 1) if axis is None else axis, keepdims=True)
    defined = lambda x, t: _defined(x, t, {"base": "tsallis", "alpha": 1.5})
    losses = lambda x, t: sm.fenchel_young_loss(x, t, sm.Tsallis(1.5), axis)
    if axis is None or isinstance(axis, tuple):
        np.testing.assert_allclose(losses(x, t), defined(x.ravel(), t.ravel()), rtol=0, atol=SOLVED)
        return
    slices = np.moveaxis(x, axis, -1)
    expected = [*map(defined, slices, np.moveaxis(t, axis, -1))]
    np.testing.assert_allclose(losses(x, t), expected, rtol=0, atol=SOLVED)
    labels = -1 - np.arange(len(slices)) % x.shape[axis] + x.shape[axis]  # the last class among them
    expected = [*map(defined, slices, np.eye(x.shape[axis])[labels])]
    got = sm.fenchel_young_loss_with_integer_labels(x, labels, sm.Tsallis(1.5), axis)
    np.testing.assert_allclose(got, expected, rtol=0, atol=SOLVED)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_that_of_the_logits(dtype):
    loss = sm.fenchel_young_loss(jnp.asarray(X, dtype), T, sm.SquaredL2())
    assert loss.dtype == dtype
    rounded = np.asarray(jnp.asarray(X, dtype), float)
    expected = np.asarray(sm.fenchel_young_loss(rounded, T, sm.SquaredL2()))
    # rounded once; a loss is a sum of seven terms in float32
    np.testing.assert_allclose(np.asarray(loss, float), expected, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-6)


@pytest.mark.parametrize("call, words", [
    (lambda: sm.fenchel_young_loss(X, T[:, :3], sm.Shannon()), ["targets", "(6, 3)", "(6, 8)"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, T[:, 0], sm.Shannon()), ["labels", "float64"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS[:2], sm.Shannon()), ["labels", "(2,)", "(6,)"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, sm.Shannon(), axis=2), ["axis=2", "(6, 8)"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, sm.Shannon(), axis=(0, 1)), ["axis", "(0, 1)"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, sm.Shannon(), axis=True), ["axis", "True"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, sm.Shannon(), axis=np.array(0.5)), ["axis", "0.5"]),
    (lambda: sm.fenchel_young_loss(X, T, sm.Shannon(), axis=4), ["axis=4", "logits of shape (6, 8)"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, OVER["k of d"][0]), ["CappedSimplex", "one-hot"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, LABELS, OVER["order"][0]), ["Permutahedron", "one-hot"]),
    (lambda: sm.fenchel_young_loss(X, T, sm.conjugate(sm.SquaredL2(), over=sm.CappedSimplex(9.0))), ["total", "9.0"]),
    (lambda: sm.fenchel_young_loss(X, T, sm.Shannon(), axis=[0, 1]), ["axis", "[0, 1]"]),
    (lambda: sm.fenchel_young_loss(X > 0, T, sm.Shannon()), ["bool"]),
    (lambda: sm.fenchel_young_loss(None, T, sm.Shannon()), ["logits", "None", "array"]),
    (lambda: sm.fenchel_young_loss(X, "a", sm.Shannon()), ["targets", "'a'", "array"]),
    (lambda: sm.fenchel_young_loss_with_integer_labels(X, None, sm.Shannon()), ["labels", "None", "array"]),
    (lambda: sm.fenchel_young_loss(X, T * 1j, sm.Shannon()), ["targets", "complex128"]),
    (lambda: sm.fenchel_young_loss(X, T, sm.Oscar()), ["Oscar()", "base"]),
    (lambda: sm.fenchel_young_loss(X, T, sm.Shannon(), where=np.ones((6, D))), ["where", "boolean"]),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    refuse(call, *words, error=(ValueError, TypeError))


# --- Training ----------------------------------------------------------------------------------------------


def _train(loss, inputs, targets, steps=200):
    """A linear model trained by optax; the mean loss before and after, and the parameters."""
    params = {"w": jnp.zeros((inputs.shape[1], 4)), "b": jnp.zeros((1, 4))}
    optimizer = optax.adam(0.1)

    @jax.jit
    def step(params, state):
        mean = lambda p: loss(inputs @ p["w"] + p["b"], targets).mean()
        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        for _ in range(steps):
            params, state, value = step(params, state)
            values.append(float(value))
    return values[0], values[-1], params


@pytest.mark.parametrize("omega", [sm.Shannon(), sm.SquaredL2(), sm.Tsallis(1.5)], ids=repr)
def test_training_a_classifier(omega):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    inputs = np.eye(4)[labels] @ rng.normal(size=(4, 5)) * 3 + rng.normal(size=(120, 5))
    loss = lambda x, t: sm.fenchel_young_loss_with_integer_labels(x, t, omega)
    first, last, params = _train(loss, jnp.asarray(inputs), jnp.asarray(labels))
    predicted = np.argmax(inputs @ params["w"] + params["b"], -1)
    assert last < 0.1 * first
    assert (predicted == labels).mean() > 0.97


def test_training_label_proportions_finds_the_zeros():
    """Several labels a sample: the sparse loss learns exact zeros where softmax cannot."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(120, 5))
    targets = np.asarray(sm.sparsemax(inputs @ rng.normal(size=(5, 4))))
    loss = lambda x, t: sm.fenchel_young_loss(x, t, sm.SquaredL2())
    first, last, params = _train(loss, jnp.asarray(inputs), jnp.asarray(targets), steps=400)
    learned = np.asarray(sm.sparsemax(inputs @ params["w"] + params["b"]))
    assert last < 1e-3 * first
    assert ((learned > 0) == (targets > 0)).mean() > 0.97
