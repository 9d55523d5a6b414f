"""The Pallas kernels for slices, interpreted on a CPU: laws that those for TPUs and those for GPUs both keep.

That they compile is for `tests/accelerators`, and what they compute on a GPU for `on_device.py` there. On a TPU nothing
was run.
"""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machines import EACH, each, kernels, on_cpu, scores, solved_by, take

import smoothmax as sm

f32 = jnp.float32

SHAPES = {"tpu": (2, 7, 9), "gpu": (2, 3, 6)}


@pytest.mark.parametrize("machine", EACH)
def test_means_of_segments(machine):
    rng, shape = np.random.default_rng(3), SHAPES[machine]
    v, weight = rng.normal(size=shape).astype(np.float32), rng.integers(0, 2, shape).astype(np.float32)
    jumps = rng.integers(-1, 2, shape).astype(np.int8)
    if machine == "tpu":
        jumps[..., -1] = 0
    mean = solved_by(machine)("segment_mean", v, jumps, weight)
    np.testing.assert_allclose(mean, on_cpu["segment_mean"](v, jumps, weight), rtol=0, atol=1e-6)


@pytest.mark.parametrize("machine", EACH)
def test_vmap_is_more_slices(machine):
    d, seed = {"tpu": (8, 0), "gpu": (5, 3)}[machine]
    x, alphas = scores(6, d, seed).reshape(3, 2, d), np.array([1.5, 2.0, 3.0], np.float32)
    mapped = jax.jit(jax.vmap(kernels(machine)["threshold"].call, (0, None, 0)))(x, f32(1), alphas)
    np.testing.assert_array_equal(mapped, solved_by(machine)("threshold", x, 1.0, alphas[:, None, None]))


# --- The public way in -------------------------------------------------------------------------------------

KERNELS_OF = {
    "softmax": {"threshold"},
    "sparsemax": {"threshold"},
    "entmax": {"threshold"},
    "pnormmax": {"p_norm"},
    "fusedmax": {"chain", "segment_mean", "threshold"},
    "oscarmax": {"chain", "segment_mean", "threshold"},
    "soft_rank": {"chain", "segment_mean"},
    "soft_topk": {"capped"},
}
NAMED = {
    "tpu": ("entmax", "pnormmax", "fusedmax", "oscarmax", "soft_rank", "soft_topk"),
    "gpu": ("softmax", "sparsemax", "entmax", "pnormmax", "fusedmax", "oscarmax", "soft_rank"),
}


@pytest.mark.parametrize(("machine", "name"), each(NAMED))
def test_named_functions_by_the_kernels(machine, name, monkeypatch):
    """Weights and a gradient, in scores and strength, as the best that serves a CPU has them."""
    called = set()

    def noting(problem, kernel):
        return dataclasses.replace(kernel, call=lambda *args: called.add(problem) or kernel.call(*args))

    take(monkeypatch, {p: noting(p, kernel) for p, kernel in kernels(machine).items()})
    shape = {"tpu": (6, 8), "gpu": (4, 7)}[machine]
    x, bar = (scores(*shape, seed) for seed in (0, 1))
    where = cases.holes(*shape)

    def pulled(implementation):
        more = {"k": 2} if name == "soft_topk" else {}
        function = functools.partial(getattr(sm, name), where=where, implementation=implementation, **more)
        y, pull = jax.vjp(lambda x, gamma: function(x, gamma=gamma), x, f32(0.5))
        return y, pull(bar)

    by_kernels, expected = jax.jit(lambda: pulled("pallas"))(), jax.jit(lambda: pulled(None))()
    for a, b in zip(jax.tree.leaves(by_kernels), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1, np.abs(b).max()))
    assert called == KERNELS_OF[name]
