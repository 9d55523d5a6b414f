"""Compilations and traces counted: hyper-parameters are operands, whatever the route."""

import contextlib

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.tolerances import SUMS

import smoothmax as sm


@contextlib.contextmanager
def compilations():
    """Counts compilations by XLA through jax.monitoring."""
    count = []
    counting = True

    def listen(event, duration, **_):  # JAX 0.8 cannot take it back: it stays, and does nothing
        if counting and event.endswith("backend_compile_duration"):
            count.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        counting = False


def test_the_counter_counts():
    with compilations() as count:
        jax.jit(lambda x: x * 3 + 41)(jnp.ones(3))
    assert count


@pytest.mark.parametrize("key", cases.NAMED, ids=lambda key: cases.NAMED[key].name)
def test_eager_calls_compile_once_whatever_the_hyper_parameters(key):
    named, names = cases.NAMED[key], key[-1]
    x, where = cases.scores(5, 7), cases.holes(5, 7)
    rng = np.random.default_rng(0)
    drawn = [{name: float(cases.HYPER[name].draw(rng, ())) for name in names} for _ in range(4)]
    for suffix in ("", "_value") if named.has_value else ("",):
        named(x, where=where, suffix=suffix, **drawn[0])
        with compilations() as count:
            for params in drawn:
                named(x, where=where, suffix=suffix, **params)
        assert not count


def test_plain_functions_compile_once():
    x, half_square = cases.scores(5, 7), lambda y, g: g * jnp.sum(y**2) / 2
    sm.conjugate(half_square, params=0.5)(x)
    with compilations() as count:
        for g in (0.5, 0.7, 0.9):
            sm.conjugate(half_square, params=g)(x)
    assert not count


def test_eager_calls_compile_to_little():
    """A first call is a handful of programs, not one for each primitive."""
    x = cases.scores(5, 9)
    with compilations() as count:
        sm.fusedmax(x, lam=0.1)
    assert 1 <= len(count) <= 4


def test_eager_gradients_compile_once_for_three_values():
    x = cases.scores(5, 7)
    gradient = lambda alpha: jax.grad(lambda x: jnp.sum(sm.entmax(x, alpha=alpha) ** 2))(x)
    gradient(1.5)
    with compilations() as count:
        for alpha in (1.5, 1.3, 1.7):
            gradient(alpha)
    assert not count


def test_the_builder_compiles_once_for_three_values():
    x = cases.scores(5, 7)
    build = lambda alpha, lam: sm.conjugate(sm.Tsallis(alpha) + lam * sm.TotalVariation())
    build(1.5, 0.1).argmax(x), build(1.5, 0.1).max(x)
    with compilations() as count:
        for alpha, lam in ((1.5, 0.1), (1.3, 0.2), (1.7, 0.3)):
            build(alpha, lam).argmax(x), build(alpha, lam).max(x)
    assert not count


def test_an_operator_is_a_pytree_argument_traced_once():
    """A NamedTuple of fresh closures would trace at each call."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(op, x):
        return op.argmax(x) + op(x)

    x = cases.scores(5, 7)
    for alpha in (1.5, 1.3, 1.7):
        got = apply(sm.conjugate(2.0 * sm.Tsallis(alpha)), x)
        np.testing.assert_allclose(got, 2 * sm.entmax(x, alpha=alpha, gamma=2.0), rtol=0, atol=SUMS)


def test_a_regularizer_is_a_pytree_argument_traced_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(omega, x):
        return sm.conjugate(omega).max(x)

    for alpha, lam in ((1.5, 0.1), (1.3, 0.2), (1.7, 0.0)):
        apply(2.0 * (sm.Tsallis(alpha) + lam * sm.Oscar()), jnp.ones((2, 3)))


def test_the_trace_counter_counts():
    apply = jax.jit(chex.assert_max_traces(lambda x: x + 1, n=1))
    apply(jnp.ones(3))
    with pytest.raises(AssertionError):
        apply(jnp.ones(4))


def test_leaves_are_the_hyper_parameters():
    omega = 2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation())
    assert sorted(jax.tree.leaves(omega)) == [0.1, 1.5, 2.0]
    assert sorted(jax.tree.leaves(sm.conjugate(omega))) == [0.1, 1.5, 2.0]
    doubled = jax.tree.map(lambda leaf: leaf * 1.0, sm.conjugate(omega))
    np.testing.assert_allclose(doubled(jnp.arange(4.0)), sm.conjugate(omega)(jnp.arange(4.0)), rtol=0, atol=SUMS)


def test_an_operator_of_python_numbers_is_static():
    """Equal operators hash equally, so a static argument does not trace again."""
    build = lambda: sm.conjugate(2.0 * (sm.Tsallis(1.5) + 0.1 * sm.TotalVariation()))
    assert hash(build()) == hash(build()) and build() == build()
    assert build() != sm.conjugate(2.0 * (sm.Tsallis(1.6) + 0.1 * sm.TotalVariation()))
    apply = jax.jit(chex.assert_max_traces(lambda x, op: op(x), n=1), static_argnums=1)
    for _ in range(3):
        apply(jnp.ones(4), build())


def test_an_operator_is_a_field_of_a_flax_module():
    nn = pytest.importorskip("flax.linen")

    class Gate(nn.Module):
        op: sm.Operator = sm.conjugate(sm.SquaredL2())

        @nn.compact
        def __call__(self, x):
            return self.op(x)

    x = cases.scores(2)
    gate = Gate(sm.conjugate(sm.Tsallis(1.5)))
    hash(gate)
    np.testing.assert_allclose(gate.apply({}, x), sm.entmax(x), rtol=0, atol=SUMS)
    np.testing.assert_allclose(Gate().apply({}, x), sm.sparsemax(x), rtol=0, atol=SUMS)


def test_frozen():
    omega = sm.Tsallis(1.5)
    with pytest.raises(AttributeError):
        omega.alpha = 2.0
