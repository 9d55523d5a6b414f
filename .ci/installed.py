"""What an installed wheel must be able to do, with nothing but its dependencies."""

import importlib.metadata

import jax
import jax.numpy as jnp

import smoothmax as sm

assert sm.__version__ == importlib.metadata.version("smoothmax")
x = jnp.array([[1.0, 1.2, 0.9, -0.5], [0.3, -2.0, 0.4, 0.0]])
for mapping in (sm.softmax, sm.sparsemax, sm.entmax, sm.pnormmax, sm.fusedmax, sm.oscarmax):
    native, plain = mapping(x, implementation="native"), mapping(x, implementation="xla")
    assert jnp.allclose(native, plain, atol=1e-6) and jnp.allclose(native.sum(-1), 1), mapping


def loss(x, alpha):
    return jnp.sum(sm.entmax(x, alpha=alpha) ** 2)


# A gradient for the scores, and one for a hyper-parameter against a finite difference.
x_bar, alpha_bar = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, 1.5)
assert jnp.allclose(x_bar.sum(-1), 0, atol=1e-6)
assert abs(alpha_bar - (loss(x, 1.51) - loss(x, 1.49)) / 0.02) < 1e-3

q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 8))  # batch, length, heads, head size


def attend(q):
    return sm.dot_product_attention(q, k, v, mapping=sm.sparsemax, is_causal=True)


assert jnp.allclose(attend(q)[:, 0], v[:, 0], atol=1e-6)  # the first query sees the first key alone
assert jnp.isfinite(jax.grad(lambda q: jnp.sum(attend(q) ** 2))(q)).all()

assert jnp.allclose(sm.soft_topk(x, 2).sum(-1), 2, atol=1e-6)
print(sm.__version__, "installed and working")
