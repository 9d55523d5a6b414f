"""Bad input: a message that names the argument, the value and the remedy; NaN where values are traced."""

import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import refuse

import smoothmax as sm

X = np.ones((3, 4))
each_function = cases.each_named(values=True)


@each_function
def test_scores_and_axis(function):
    refuse(lambda: function(X, axis=2), "axis", "2", "(3, 4)", error=ValueError)
    refuse(lambda: function(X, axis=-3), "axis", "-3", error=ValueError)
    refuse(lambda: function(X, axis=(0, 5)), "axis", "5", error=ValueError)
    refuse(lambda: function(X, axis=(0, -2)), "axis", "(0, -2)", error=ValueError)
    refuse(lambda: function(X, axis=()), "axis", "()", error=ValueError)
    refuse(lambda: function(X, axis=[0, 1]), "axis", "[0, 1]", "axis=(0, 1)", error=TypeError)
    refuse(lambda: function(np.zeros((3, 0))), "(3, 0)", error=ValueError)
    refuse(lambda: function(np.zeros((0, 3)), axis=0), "(0, 3)", error=ValueError)
    refuse(lambda: function(1.0), "x", error=ValueError)
    refuse(lambda: function(jnp.float32(1.0)), "x", error=ValueError)
    refuse(lambda: function(X.astype(complex)), "x", "complex")
    refuse(lambda: function(X > 0), "x", "bool")
    for bad in (None, "a", [[1.0, 2.0], [3.0]], {}):
        refuse(lambda: function(bad), "x must be an array", str(bad), error=TypeError)


@each_function
def test_masks(function):
    refuse(lambda: function(X, where=np.ones(3, bool)), "where", "(3,)", "(3, 4)", error=ValueError)
    refuse(lambda: function(X, where=np.ones((2, 3, 4), bool)), "where", "(2, 3, 4)", error=ValueError)
    refuse(lambda: function(X, where=np.ones((3, 4))), "where", "float64")
    refuse(lambda: function(X, where="a"), "where must be an array", "'a'", error=TypeError)
    refuse(lambda: function(X, where=np.ones((3, 4), int)), "where", "int64")


@each_function
@pytest.mark.parametrize(
    "gamma", [0, 0.0, -1.0, np.nan, np.inf, np.array([[1.0], [0.0], [2.0]]), jnp.asarray(-0.5)], ids=str
)
def test_gamma(function, gamma):
    refuse(lambda: function(X, gamma=gamma), "gamma", "positive", error=ValueError)
    if np.ndim(gamma) == 0:
        refuse(lambda: function(X, gamma=gamma), str(gamma))


NO_NUMBERS = (None, "2", 1j, True, {"a": 1.0}, ["a"], object())


@each_function
def test_gamma_is_a_number(function):
    for bad in NO_NUMBERS:
        refuse(lambda: function(X, gamma=bad), "gamma", repr(bad), error=TypeError)
    for bad in (np.array("a"), np.array([1j]), np.array([True])):
        refuse(lambda: function(X, gamma=bad), "gamma", str(bad.dtype), error=TypeError)
    np.testing.assert_array_equal(function(X, gamma=[[2], [2], [2]]), function(X, gamma=np.full((3, 1), 2.0)))


@pytest.mark.parametrize("key", cases.NAMED, ids=lambda key: cases.NAMED[key].name)
def test_hyper_parameters(key):
    """Each of them alone, a number or one row of an array."""
    named, names = cases.NAMED[key], key[-1]
    good = {name: float(cases.HYPER[name].draw(np.random.default_rng(0), ())) for name in names}
    for suffix, name in itertools.product(("", "_value") if named.has_value else ("",), names):
        word = named.arguments.get(name, name)
        for bad in NO_NUMBERS:
            refuse(lambda: named(X, suffix=suffix, **good | {name: bad}), word, repr(bad), error=TypeError)
        for bad in cases.HYPER[name].bad:
            refuse(lambda: named(X, suffix=suffix, **good | {name: bad}), word, str(bad), error=ValueError)
            for array in (np.array, jnp.array):
                row = array([[good[name]], [good[name]], [bad]])
                refuse(lambda: named(X, suffix=suffix, **good | {name: row}), word, error=ValueError)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: sm.Tsallis(0.5), ("alpha", "0.5")),
        (lambda: sm.SquaredPNorm(1.0), ("p", "1.0")),
        (lambda: sm.SquaredPNorm(3.0), ("p", "3.0")),
        (lambda: 0.0 * sm.Shannon(), ("gamma", "0.0")),
        (lambda: -1.0 * sm.SquaredL2(), ("gamma", "-1.0")),
        (lambda: sm.SquaredL2() + -0.5 * sm.TotalVariation(), ("lam", "-0.5")),
        (lambda: sm.TotalVariation(np.array([0.1, -0.2])), ("weights", "-0.2")),
        (lambda: sm.OWL(np.array([0.1, 0.2])), ("weights", "0.2")),
        (lambda: sm.OWL([0.1, 0.2]), ("weights",)),
        (lambda: sm.OWL(0.3), ("weights", "0.3")),
    ],
)
def test_regularizers_check_when_they_are_made(build, words):
    refuse(build, *words)


def test_the_algebra_refuses_what_has_no_solution():
    refuse(lambda: sm.conjugate(sm.Shannon() + sm.SquaredL2()), "Shannon", "SquaredL2")
    refuse(lambda: sm.conjugate(2.0 * sm.Tsallis(1.5) + 0.1 * sm.TotalVariation() + sm.Shannon()), "Tsallis", "Shannon")
    refuse(lambda: sm.conjugate(sm.TotalVariation()), "TotalVariation")
    refuse(lambda: sm.conjugate(0.1 * sm.Oscar()), "Oscar")
    refuse(lambda: sm.conjugate(0.1 * sm.Oscar() + sm.TotalVariation()), "Oscar")
    refuse(lambda: sm.conjugate("sparsemax"), "sparsemax")
    refuse(lambda: sm.conjugate(1.5), "1.5")
    refuse(lambda: sm.conjugate(None), "None")
    for wrong in (lambda: sm.Shannon() + 1.0, lambda: sm.Shannon() * sm.SquaredL2(), lambda: sm.Shannon() * "2"):
        with pytest.raises((TypeError, ValueError)):
            wrong()


def test_shapes_of_hyper_parameters():
    refuse(lambda: sm.entmax(X, alpha=np.full(4, 1.5)), "alpha", "(4,)", "(3, 4)")
    refuse(lambda: sm.entmax(X, alpha=np.full((2, 1), 1.5)), "alpha", "(2, 1)", "(3, 4)")
    refuse(lambda: sm.sparsemax(X, gamma=np.ones((3, 4))), "gamma", "(3, 4)")
    refuse(lambda: sm.fusedmax(X, lam=np.ones(3)), "lam", "(3,)")
    op = sm.conjugate(sm.SquaredL2() + sm.TotalVariation(np.ones(4)))
    refuse(lambda: op.argmax(X), "weights", "(4,)", "3")
    op = sm.conjugate(sm.SquaredL2() + sm.OWL(np.ones(3)))
    refuse(lambda: op.max(X), "weights", "(3,)", "4")


def test_errors_are_the_same_under_jit():
    """Shapes and static arguments are known while tracing; only values are not."""
    refuse(lambda: jax.jit(lambda x: sm.sparsemax(x, 7))(X), "axis", "7")
    refuse(lambda: jax.jit(lambda x: sm.sparsemax(x, where=jnp.ones(3, bool)))(X), "where", "(3,)")
    refuse(lambda: jax.jit(lambda x: sm.entmax(x, alpha=0.5))(X), "alpha", "0.5")
    refuse(lambda: jax.vmap(lambda x: sm.sparsemax(x, 1))(X), "axis", "1")


BAD = {name: hyper.bad for name, hyper in cases.HYPER.items() if hyper.bad}


@cases.each(case for case in cases.FAMILIES if case.family.rowwise)
def test_traced_values_out_of_range_give_nan(case):
    """Not a plausible number: in the rows concerned, and only in them, for weights and values. What has a value a
    position is wrong in its first one."""
    x = cases.scores(cases.ROWS, seed=110)
    for name in sorted(set(BAD) & set(case.values)):
        params = {k: p.copy() for k, p in cases.spread_params(case, case.params()).items()}
        params[name][: len(BAD[name]), 0] = BAD[name]
        outputs, _ = cases.everything(case.family)(
            params, x, np.ones(x.shape, bool), np.zeros_like(x), np.zeros(len(x))
        )
        y, value = map(np.asarray, outputs)
        bad = np.arange(len(x)) < len(BAD[name])
        assert np.isnan(y[bad]).all(), (name, y[bad])
        assert np.isnan(value[bad]).all(), (name, value[bad])
        assert np.isfinite(y[~bad]).all() and np.isfinite(value[~bad]).all()


def test_misspelt_and_positional_arguments():
    """`where`, gamma and the hyper-parameter are keyword-only; nothing is accepted and ignored."""
    with pytest.raises(TypeError):
        sm.entmax(X, -1, 1.5)
    with pytest.raises(TypeError):
        sm.sparsemax(X, alpha=1.5)
    with pytest.raises(TypeError):
        sm.sparsemax(X, mask=X > 0)
