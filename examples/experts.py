"""A mixture-of-experts layer whose router is a soft top-k: `python -m examples.experts`.

Each token goes to the experts that `soft_topk` gives a weight: exactly zero for most of them, a sum of k, and a
gradient for the scores, the temperature and k itself. A hard top-k has no gradient for its choice, and a softmax sends
every token to every expert. The task has a known answer: tokens come from a few groups, and each group has a linear map
of its own.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tqdm import tqdm

import smoothmax as sm


@dataclasses.dataclass(frozen=True)
class Options:
    """A mixture of linear experts learns which of them a token needs."""

    experts: int = 8
    """Experts of the layer."""
    groups: int = 4
    """Groups of tokens, each with a linear map of its own."""
    width: int = 16
    """Size of a token."""
    k: float = 2.0
    """Experts a token at the start; learned from there."""
    cost: float = 0.02
    """Price of one expert a token, by which k is learned."""
    steps: int = 400
    """Training steps."""
    rate: float = 0.01
    """Learning rate of Adam."""
    seed: int = 0
    """Of the data and the parameters."""


class Experts(nnx.Module):
    """y = sum_e gate_e(x) (x W_e), gates by a soft top-k of the router's scores."""

    def __init__(self, width: int, experts: int, k: float, *, rngs: nnx.Rngs):
        self.router = nnx.Linear(width, experts, rngs=rngs)
        self.weights = nnx.Param(jax.random.normal(rngs.params(), (experts, width, width)) / width**0.5)
        self.raw_k = nnx.Param(sm.unbounded(jnp.full((), k, jnp.float32), 1.0, float(experts)))
        self.raw_gamma = nnx.Param(sm.unbounded(jnp.ones((), jnp.float32), 0.0))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs `(tokens, width)` and gates `(tokens, experts)`, of sum k."""
        k = sm.bounded(self.raw_k[...], 1.0, float(self.weights.shape[0]))
        gates = sm.soft_topk(self.router(x), k, gamma=sm.bounded(self.raw_gamma[...], 0.0))
        return jnp.einsum("te,td,edh->th", gates, x, self.weights[...]), gates


def tokens(options: Options, key: jax.Array, count: int = 256) -> tuple[jax.Array, jax.Array]:
    """Tokens `(count, width)` near the centre of their group, and what the map of the group makes of them."""
    maps, centres = (
        jax.random.normal(jax.random.key(options.seed + i), shape)
        for i, shape in enumerate(((options.groups, options.width, options.width), (options.groups, options.width)))
    )
    group_key, noise_key = jax.random.split(key)
    group = jax.random.randint(group_key, (count,), 0, options.groups)
    x = centres[group] + 0.5 * jax.random.normal(noise_key, (count, options.width))
    return x, jnp.einsum("td,tdh->th", x, maps[group] / options.width**0.5)


@nnx.jit(static_argnames="options")
def step(model: Experts, optimizer: nnx.Optimizer, key: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
    """One step; the error, and the mean number of experts with a weight."""

    def loss(model: Experts) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x, wanted = tokens(options, key)
        y, gates = model(x)
        error = jnp.mean((y - wanted) ** 2)
        return error + options.cost * jnp.mean(gates.sum(-1)), (error, jnp.mean((gates > 0).sum(-1)))

    (_, figures), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    return figures


def train(options: Options) -> dict[str, float]:
    """Trains the layer; the first and the last error, the experts a token uses, and what k became."""
    model = Experts(options.width, options.experts, options.k, rngs=nnx.Rngs(options.seed))
    optimizer = nnx.Optimizer(model, optax.adam(options.rate), wrt=nnx.Param)
    keys = jax.random.split(jax.random.key(options.seed + 100), options.steps)
    history = [step(model, optimizer, key, options) for key in tqdm(keys, unit="step")]
    k = sm.bounded(model.raw_k[...], 1.0, float(options.experts))
    error, used = history[-1]
    return {"first_error": float(history[0][0]), "error": float(error), "experts_used": float(used), "k": float(k)}


if __name__ == "__main__":
    import tyro

    print(", ".join(f"{name} {value:.3f}" for name, value in train(tyro.cli(Options)).items()))
