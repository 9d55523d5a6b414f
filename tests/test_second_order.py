"""Reverse over reverse, and forward_mode: jvp, jacfwd, linearize, in any order with reverse mode, all agreeing."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import PIECES, REPRESENTATIVES, D
from cases.tolerances import DIFFERENCE, FUNCTION64, PULLED_TWICE, SOLVED, STEP, SUMS

import smoothmax as sm


def slices(n=3, seed=70):
    return np.random.default_rng(seed).normal(size=(n, D)) * np.geomspace(0.3, 2, n)[:, None]


def second_difference(function, h=2e-4):
    """d^2 function(s, t) / ds dt at 0: products of fourth-order differences; truncation 1e-15, rounding 1e-11."""
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    total = sum(
        a * b * function(i * oracles.LD(h), j * oracles.LD(h)) for i, a in weights.items() for j, b in weights.items()
    )
    return total / oracles.LD(h) ** 2


@functools.cache
def reverse_over_reverse(family):
    """Gradient of <w, x-gradient of <u, Pi>> for hyper-parameters, one a slice, and scores. At PIECES that of
    <t, gradients of the max for hyper-parameters> is added: with w = 0 or t = 0 one program gives either."""
    with_max = any(family == case.family for case in PIECES)

    def outer(params, x, u, w, t):
        x_bar = jax.grad(lambda x: jnp.sum(u * family.weights(x, params)))(x)
        total = jnp.sum(w * x_bar)
        if with_max:
            bars = jax.grad(lambda params: jnp.sum(family.value(x, params)))(params)
            total += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, t, bars)))
        return total

    gradient = jax.grad(outer, (0, 1))
    return jax.jit(gradient if family.rowwise else jax.vmap(gradient))


def own_params(case, n):
    """One of each hyper-parameter for each of n slices."""
    return {k: rows[:n] for k, rows in cases.spread_params(case, case.params()).items()}


def twice_reversed(case, x, u, w, t=None, params=None):
    params = own_params(case, len(x)) if params is None else params
    t = jax.tree.map(np.zeros_like, params) if t is None else t
    return jax.tree.map(np.asarray, reverse_over_reverse(case.family)(params, x, u, w, t))


@cases.each(REPRESENTATIVES)
def test_grad_of_grad(case):
    x = slices()
    rng = np.random.default_rng(71)
    u, w, t = rng.normal(size=(3, *x.shape))
    problem = case.problem()
    bars, x_bar = twice_reversed(case, x, u, w)
    # differences at h = 2e-4 divide what J is off twice; a plain function has second derivatives at weights off by 1e-6
    tol = {"rtol": 1e-3, "atol": 1e-3} if case.plain else {"rtol": 1e-6, "atol": 1e-8}
    for i, row in enumerate(x.astype(oracles.LD)):
        expected = second_difference(lambda a, b: (u[i] * case.oracle(row + a * w[i] + b * t[i], **problem)).sum())
        np.testing.assert_allclose(np.sum(x_bar[i] * t[i]), float(expected), **tol)
        for name, at in problem.items():
            if name not in case.values:
                continue
            change = np.linspace(0.5, 1, np.size(at)).reshape(np.shape(at))
            moved = lambda b: problem | {name: np.asarray(at, oracles.LD) + b * change}
            expected = second_difference(lambda a, b: (u[i] * case.oracle(row + a * w[i], **moved(b))).sum())
            np.testing.assert_allclose(
                np.sum(bars[name][i].reshape(change.shape) * change), float(expected), err_msg=name, **tol
            )


@cases.each(cases.BY_ID[id] for id in ("softmax-gamma1.0", "entmax1.5", "fermi+tv+oscar/capped"))
def test_grad_of_grad_in_what_slices_share(case):
    """The sum over the slices of what each has in a hyper-parameter of its own."""
    x = slices()
    u, w = np.random.default_rng(76).normal(size=(2, *x.shape))
    shared, _ = twice_reversed(case, x, u, w, params=case.arrays())
    bars, _ = twice_reversed(case, x, u, w)
    for name, bar in shared.items():
        expected = bars[name].sum(0).reshape(np.shape(bar))
        np.testing.assert_allclose(bar, expected, rtol=PULLED_TWICE, atol=PULLED_TWICE, err_msg=name)


@cases.each(PIECES)
def test_gradients_of_the_value_move_as_the_weights_do(case):
    """The max has one second derivative by a hyper-parameter and a score, whichever of them comes first."""
    x = slices()
    params = own_params(case, len(x))
    rng = np.random.default_rng(77)
    v, t = rng.normal(size=x.shape), {k: rng.normal(size=rows.shape) for k, rows in params.items()}
    _, x_bar = twice_reversed(case, x, 0 * x, 0 * x, t)
    moved = cases.run(case, x, v=v).bars
    expected = sum((t[k].reshape(len(x), -1) * moved[k].reshape(len(x), -1)).sum(-1) for k in params)
    tol = {"rtol": 1e-3, "atol": 1e-3} if case.plain else {"rtol": PULLED_TWICE, "atol": PULLED_TWICE}
    np.testing.assert_allclose((v * x_bar).sum(-1), expected, **tol)


@cases.each(cases.BY_ID[id] for id in ("entmax1.5", "pnormmax1.5", "fermi/capped", "l2+tv", "l2+tv-native"))
def test_grad_of_grad_through_scan(case):
    """By the chain rule from the derivatives of one step: of a loop JAX splits the rules in its own way."""
    x, params, start = slices(), own_params(case, 3), np.linspace(0, 0.7, D)[None]

    @jax.jit
    def in_scan(params, x):
        def step(x, _):
            value = case.family.value(x, params)[:, None]
            return case.family.weights(x, params) + 0.1 * x * value + start, None

        slope = jax.grad(lambda x: jnp.sum(jax.lax.scan(step, x, length=2)[0][:, 0]))
        return jax.grad(lambda x: jnp.sum(jnp.sin(slope(x))))(x)

    def dot(a, b):
        return (a * b).sum(-1, keepdims=True)

    def derivatives(x, v, w):
        """Of one step with the Jacobian S: the step, S'v, S w, and the gradient of <w, S'v> for x."""
        result, jacobian_w = cases.run(case, x, v=v), cases.run(case, x, v=w).x_bar
        y, value = result.y, result.value[:, None]
        pulled = result.x_bar + 0.1 * (value * v + y * dot(x, v))
        pushed = jacobian_w + 0.1 * (value * w + x * dot(y, w))
        bent = twice_reversed(case, x, v, w)[1] + 0.1 * (y * dot(v, w) + jacobian_w * dot(x, v) + v * dot(y, w))
        return y + 0.1 * x * value + start, pulled, pushed, bent

    unit, zero = np.tile(np.eye(D)[0], (3, 1)), np.zeros((3, D))
    second = derivatives(x, zero, zero)[0]
    bar = derivatives(second, unit, zero)[1]  # of the first number after both steps, for x between them
    slope = derivatives(x, bar, zero)[1]
    _, _, pushed, bent = derivatives(x, bar, np.cos(slope))
    bent_later = derivatives(second, unit, pushed)[3]
    expected = bent + derivatives(x, bent_later, zero)[1]
    got = in_scan(params, x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=PULLED_TWICE)
    assert np.abs(got).max() > 1e-3


def forward_products(params, x, moves, t, family):
    """The products of forward mode, of weights and of values, along moves of hyper-parameters and t of scores."""

    def both(params, x):
        op = sm.forward_mode(family.op(params, D))
        return op.argmax(x), op.max(x)

    return jax.jvp(both, (params, x), (moves, t))[1]


def check_pushed(case, push):
    """Forward mode against reverse mode, whose products are checked elsewhere."""
    x = slices()
    rng = np.random.default_rng(72)
    t, params = rng.normal(size=x.shape), case.arrays()
    moves = {k: rng.normal(size=p.shape) for k, p in params.items()}
    y_dot, value_dot = push(params, x, jax.tree.map(np.zeros_like, moves), t)
    result = cases.run(case, x)
    tol = {"rtol": 0, "atol": 100 * FUNCTION64} if case.plain else {"rtol": PULLED_TWICE, "atol": PULLED_TWICE}
    np.testing.assert_allclose(y_dot, np.einsum("nij,nj->ni", cases.jacobians(case, x), t), **tol)
    np.testing.assert_allclose(value_dot, (result.y * t).sum(-1), **tol)
    # <v, directional derivative> = <pull-back of v, direction>, slice by slice
    y_dot, value_dot = push(params, x, moves, t)
    v = rng.normal(size=x.shape)
    pulled = cases.run(case, x, v=v)
    along = sum((pulled.bars[k] * np.asarray(m)).reshape(len(x), -1).sum(1) for k, m in moves.items())
    np.testing.assert_allclose((v * y_dot).sum(-1), along + (pulled.x_bar * t).sum(-1), **tol)
    pulled = cases.run(case, x, c=np.ones(len(x)))
    along = sum((pulled.bars[k] * np.asarray(m)).reshape(len(x), -1).sum(1) for k, m in moves.items())
    np.testing.assert_allclose(value_dot, along + (pulled.x_bar * t).sum(-1), **tol)


@cases.each(case for case in REPRESENTATIVES if case not in PIECES)
def test_forward_mode_agrees_with_reverse_mode(case):
    """At PIECES, too, in the program of the next law."""
    check_pushed(case, jax.jit(functools.partial(forward_products, family=case.family)))


@cases.each(PIECES)
def test_orders_and_modes_agree_and_mix(case):
    """The law above. And second derivatives along (w, t) of <u, Pi>: of four ways, reverse over reverse was checked,
    and the others agree. The first ones that come with them are products with the Jacobian, as are second ones of the
    max."""
    x = slices()
    u, w, t = np.random.default_rng(73).normal(size=(3, *x.shape))

    @jax.jit
    def mixed(params, x, moves, u, w, t):
        op = sm.forward_mode(case.family.op(params, D))
        of_both = jax.grad(lambda x: jnp.sum(u * op.argmax(x)) + jnp.sum(op.max(x)))
        gradients, forward_reverse = jax.jvp(of_both, (x,), (t,))
        along, pull = jax.vjp(lambda x: jax.linearize(op, x)[1](t), x)
        jacobian, moved = jax.jvp(jax.jacfwd(op.argmax), (x,), (w,))
        first = {"gradients": gradients, "along": along, "jacobian": jacobian}
        first["pushed"] = forward_products(params, x, moves, t, case.family)
        return first, (forward_reverse, pull(u)[0], moved)

    check_pushed(case, lambda params, x, moves, t: mixed(params, x, moves, u, w, t)[0]["pushed"])
    params = case.arrays()
    first, second = jax.tree.map(np.asarray, mixed(params, x, jax.tree.map(np.zeros_like, params), u, w, t))
    forward_reverse, reverse_forward, forward_forward = second
    result, jacobian = cases.run(case, x), cases.jacobians(case, x)
    jacobian_t = np.einsum("nij,nj->ni", jacobian, t)
    expected = np.sum(twice_reversed(case, x, u, w)[1] * t, -1)
    # no differences here: rounding, times slopes of slopes
    tol = {"rtol": 1e-3, "atol": 1e-3} if case.plain else {"rtol": 1e-9, "atol": 1e-10}
    np.testing.assert_allclose((w * (forward_reverse - jacobian_t)).sum(-1), expected, **tol)  # less what the max has
    np.testing.assert_allclose((w * reverse_forward).sum(-1), expected, **tol)
    np.testing.assert_allclose(np.einsum("ni,nimj,mj->n", u, forward_forward, t), expected, **tol)
    tol = {"rtol": 0, "atol": 100 * FUNCTION64} if case.plain else {"rtol": PULLED_TWICE, "atol": PULLED_TWICE}
    # each slice by its own scores alone
    np.testing.assert_allclose(first["jacobian"], np.einsum("nij,nm->nimj", jacobian, np.eye(len(x))), **tol)
    np.testing.assert_allclose(first["gradients"], np.einsum("nij,ni->nj", jacobian, u) + result.y, **tol)
    np.testing.assert_allclose(first["along"], jacobian_t, **tol)


@cases.each(cases.BY_ID[id] for id in ("entmax1.5", "function-coupled", "fermi+tv+oscar/capped"))
def test_forward_mode_of_vmapped_slices(case):
    x, params = slices(), case.arrays()
    jacobian = jax.jit(lambda params, x: jax.vmap(jax.jacfwd(sm.forward_mode(case.family.op(params, D)).argmax))(x))
    tol = 100 * FUNCTION64 if case.plain else PULLED_TWICE
    np.testing.assert_allclose(jacobian(params, x), cases.jacobians(case, x), rtol=tol, atol=tol)


@cases.each(other for case in PIECES for other in cases.CASES if other.id == f"{case.id}-native")
def test_kernels_are_transposed_in_forward_mode(case):
    """Reverse mode of forward mode transposes the products, and the Hessian differentiates what came of that."""
    x = slices()
    rng = np.random.default_rng(75)
    v, t = rng.normal(size=(2, *x.shape))

    @jax.jit
    def pulled(params, x, v, t):
        def gradients(x):
            loss = lambda params, x: jnp.sum(v * sm.forward_mode(case.family.op(params, D)).argmax(x))
            return jax.grad(loss, (0, 1))(params, x)

        return jax.jvp(gradients, (x,), (t,))

    params = case.arrays()
    (bars, x_bar), second = pulled(params, x, v, t)
    expected = cases.run(case, x, v=v)
    np.testing.assert_allclose(x_bar, expected.x_bar, rtol=0, atol=PULLED_TWICE)
    for name, bar in expected.bars.items():
        np.testing.assert_allclose(bars[name], bar.sum(0), rtol=0, atol=PULLED_TWICE)
    plus, minus = (pulled(params, x + s * STEP * t, v, t)[0] for s in (1, -1))
    difference = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * STEP), plus, minus)
    chex.assert_trees_all_close(second, difference, rtol=1e-6, atol=100 * DIFFERENCE)  # slopes of up to a hundred


@cases.each([cases.BY_ID["entmax1.5"]])
def test_forward_mode_keeps_axis_mask_and_guarantees(case):
    op = sm.forward_mode(sm.conjugate(sm.Tsallis(1.5)))
    x, where = cases.scores(4, seed=74), cases.holes(4)
    where[3] = False
    x = np.where(where, x, np.nan)
    rising = np.tile(np.arange(8.0), (4, 1))

    @jax.jit
    def pushed(x, where, t):
        along = lambda method, t: jax.jvp(lambda x: method(x, 0, where=where), (x,), (t,))
        return along(op.argmax, t), along(op.max, jnp.ones_like(t))

    (y, y_tangent), (value, value_tangent) = jax.tree.map(np.asarray, pushed(x.T, where.T, rising.T))
    result = cases.run(case, x, where, rising)
    np.testing.assert_allclose(y.T, result.y, rtol=0, atol=SUMS)
    np.testing.assert_allclose(y_tangent.T, result.x_bar, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(value, result.value, rtol=0, atol=SOLVED)
    np.testing.assert_allclose(value_tangent, [1, 1, 1, 0], rtol=0, atol=SOLVED)


def test_forward_mode_reaches_operators_that_were_made_before():
    x, op = slices(1)[0], sm.conjugate(sm.SquaredL2())
    functions = {
        "max": jax.jacrev(sm.forward_mode(op.max)),  # whose jacfwd is jax.hessian
        "argmax": sm.forward_mode(lambda x: op(x)),
        "scaled": sm.forward_mode(sm.length_scaled(op)),
        "loss": jax.grad(sm.forward_mode(lambda x: sm.fenchel_young_loss_with_integer_labels(x, 0, op))),
    }

    @jax.jit
    def jacobians(x):
        return jax.jacrev(sm.sparsemax)(x), {name: jax.jacfwd(function)(x) for name, function in functions.items()}

    expected, got = jacobians(x)
    for name, jacobian in got.items():
        np.testing.assert_allclose(jacobian, expected, rtol=0, atol=SUMS, err_msg=name)


def test_without_forward_mode_jax_says_no():
    """`jax.custom_vjp` is the definition: forward mode needs the wrapper, and JAX's error says custom_vjp."""
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(sm.sparsemax, (jnp.ones(3),), (jnp.ones(3),))
