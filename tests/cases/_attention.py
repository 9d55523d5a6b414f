"""What the tests of attention's kernels share, and those of kernels for chips that are not there."""

import jax
import jax.numpy as jnp
import numpy as np


def per_head(*values):
    return jnp.asarray(values, jnp.float32)[:, None, None]


def pulled(function, bar):
    """The function with its pull-back of `bar`, compiled."""

    def call(*args):
        output, pull = jax.vjp(function, *args)
        return output, pull(bar)

    return jax.jit(call)


def assert_close(results, expected, within, heads):
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        # What belongs to a head or to all is a sum of thousands of numbers of either sign; plain JAX rounds it more.
        terms = 5 if b.size <= heads else 1
        np.testing.assert_allclose(a, b, rtol=0, atol=within * terms * max(1, np.abs(b).max()))


def program_for(kind, chips=1):
    """Inside, programs are traced for so many chips of a kind."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((chips,), ("devices",), axis_types=auto, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)
