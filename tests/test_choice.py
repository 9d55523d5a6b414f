"""A function by the platform of the program: only the one that is needed is traced, and each platform gets its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothmax as sm
from smoothmax import _kernels
from smoothmax._kernels._choice import by_platform

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def traced():
    """The platforms whose function was traced, and the choice among one for CPUs, one for TPUs and one for others."""
    seen = []

    def noted(name, function):
        def call(tree):
            seen.append(name)
            return function(tree["x"], tree["shift"])

        return call

    functions = {
        "cpu": noted("cpu", lambda x, shift: (x + shift, jnp.int32(1))),
        "tpu": noted("tpu", lambda x, shift: (jnp.sin(x) - shift, jnp.int32(2))),
        "default": noted("default", lambda x, shift: (jnp.cos(x) * shift, jnp.int32(3))),
    }
    choose = lambda x, shift, here=("cpu",): by_platform(functions, here, {"x": x, "shift": shift})
    return seen, choose


def lowered(function, platform):
    return jax.jit(function).trace(X, X).lower(lowering_platforms=(platform,)).as_text()


def test_only_what_is_needed_is_traced(traced):
    seen, choose = traced
    jax.make_jaxpr(choose)(X, X)
    assert seen == ["cpu"]
    jax.jit(choose)(X, X)
    assert set(seen) == {"cpu"}
    text = lowered(choose, "cuda")
    assert ".cosine" in text and ".sine " not in text and set(seen) == {"cpu", "default"}
    assert ".sine " in lowered(choose, "tpu")


@pytest.mark.parametrize("here", [("cpu",), ("cuda", "rocm")])
def test_the_results_are_those_of_the_platform(traced, here):
    """Wherever the devices in use are, a program for a CPU holds its function."""
    _, choose = traced
    place = lambda x, shift: choose(x, shift, here)
    for function in (jax.jit(place), place):
        results = function(X, X)
        equal(results, (X + X, 1))
    with jax.disable_jit():
        equal(place(X, X), (X + X, 1))
    equal(jax.jit(jax.vmap(place, (0, None)))(X, X[0]), (X + X[0], np.ones(3)))
    equal(jax.jit(jax.vmap(jax.vmap(place, (0, None)), (None, 0)))(X[:, :2], X[:2, 1:3])[0].shape, (2, 3, 2))
    scanned = jax.jit(lambda x: jax.lax.scan(lambda sum, row: (place(sum, row)[0], None), x[0] * 0, x)[0])
    np.testing.assert_allclose(scanned(X), X.sum(0), rtol=0, atol=1e-6)
    remembered = jax.jit(jax.checkpoint(place))
    equal(remembered(X, X), (X + X, 1))


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_other_platforms_are_batched_too(traced):
    _, choose = traced
    text = lowered(jax.vmap(jax.vmap(choose, (0, None)), (None, 0)), "tpu")
    assert ".sine " in text and ".cosine" not in text and "tensor<3x3x4xf32>" in text


def test_one_exported_program_for_several_platforms(traced):
    _, choose = traced
    exported = jax.export.export(jax.jit(choose), platforms=["cpu", "tpu", "cuda"])(X, X)
    module = exported.mlir_module()
    assert ".sine " in module and ".cosine" in module
    equal(exported.call(X, X), (X + X, 1))


def test_a_program_keeps_its_precision():
    """Where numbers of 64 bits are there for a while, another function may be traced when they no longer are."""
    with jax.enable_x64(False):
        with jax.enable_x64(True):
            program = jax.jit(sm.sparsemax).trace(X.astype(np.float64))
        assert "tensor<3x4xf64>" in program.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("other", [lambda x: [x, x], lambda x: (x, x[0]), lambda x: (x, x.astype(np.int32))])
def test_functions_that_return_another_form_are_refused(other):
    functions = {"cpu": lambda x: (x, x), "default": other}
    choose = lambda x: by_platform(functions, ("cpu",), x)
    jax.jit(choose)(X)
    with pytest.raises(TypeError, match=r"must return the same"):
        jax.jit(choose).trace(X).lower(lowering_platforms=("cuda",))


def test_a_named_implementation_is_refused_when_the_program_is_for_another_platform():
    if not _kernels.TABLE["native"]:
        pytest.skip("the compiled kernels are not there")
    program = jax.jit(lambda x: sm.sparsemax(x, implementation="native")).trace(X)
    with pytest.raises(NotImplementedError, match="cannot serve on the platform 'tpu'"):
        program.lower(lowering_platforms=("tpu",))


def capped(x):
    return sm.conjugate(sm.Tsallis(1.5 + 0 * x[0, 0]), sm.CappedSimplex(2.0)).argmax(x)


def attended(x):
    query = x.reshape(1, 3, 2, 2)
    heads = partial(sm.entmax, alpha=1.5 + 0 * x[0, :2, None, None])
    return sm.dot_product_attention(query, query, query, mapping=heads)


@pytest.mark.usefixtures("of_this_test")
@pytest.mark.parametrize("mapping", [sm.sparsemax, sm.entmax, sm.pnormmax, sm.oscarmax, sm.soft_rank, capped, attended])
def test_programs_for_other_platforms(mapping):
    """They hold no kernel for CPUs; and nothing of a trace is kept for them but the program: the functions of other
    platforms refer to no value of it, and are traced when it is over."""
    with jax.checking_leaks():
        program = jax.jit(jax.value_and_grad(lambda x: jnp.sum(mapping(x) ** 2))).trace(X)
    text = program.lower(lowering_platforms=("rocm",)).as_text()
    assert "smoothmax" not in text and "custom_call" not in text.replace("custom_call @Sharding", "")
