"""A small transformer without positions: its attention finds by content alone, so that length is all that changes.

Each token also sees the one before it, which takes the place of a first layer that would have to find it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

import smoothmax as sm
from smoothmax.interop.flax import attention_fn

from .options import Options
from .tasks import VOCABULARY


class Attention(nnx.Module):
    """`nnx.MultiHeadAttention` with a mapping whose own numbers are parameters, one a head."""

    def __init__(self, options: Options, rngs: nnx.Rngs):
        heads, self.options = options.heads, options
        self.layer = nnx.MultiHeadAttention(heads, options.hidden, decode=False, use_bias=False, rngs=rngs)
        if options.learn_alpha:
            self.alpha = nnx.Param(sm.unbounded(jnp.full((heads, 1, 1), options.alpha, jnp.float32), 1.0, 2.0))
        if options.length_scaled:  # the factor is 1 at the greatest length of training
            self.base = nnx.Param(jnp.full((heads, 1, 1), 0.5, jnp.float32))
            self.slope = nnx.Param(jnp.full((heads, 1, 1), 0.5 / math.log(options.length), jnp.float32))

    def mapping(self) -> Callable[..., jax.Array]:
        options = self.options
        mapping: Callable[..., jax.Array] = getattr(sm, options.mapping)
        if options.mapping == "entmax":
            alpha = sm.bounded(self.alpha[...], 1.0, 2.0) if options.learn_alpha else options.alpha
            mapping = functools.partial(sm.entmax, alpha=alpha)
        if options.length_scaled:
            mapping = sm.length_scaled(mapping, base=self.base[...], slope=self.slope[...])
        return mapping

    def __call__(self, x: jax.Array, block_size: int | None, sow_weights: bool) -> jax.Array:
        # Made here, of this call's parameters: a function made with the module would keep the first ones.
        self.layer.attention_fn = attention_fn(self.mapping(), block_size=block_size)
        return self.layer(x, is_causal=True, sow_weights=sow_weights)


class Block(nnx.Module):
    def __init__(self, options: Options, rngs: nnx.Rngs):
        width = options.hidden
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = Attention(options, rngs)
        self.up, self.down = nnx.Linear(width, 2 * width, rngs=rngs), nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, block_size: int | None, sow_weights: bool) -> jax.Array:
        x = x + self.attention(self.norms[0](x), block_size, sow_weights)
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """Tokens (B, L) to features (B, L, H), which the kernel turns into scores of the next token."""

    def __init__(self, options: Options):
        rngs, width = nnx.Rngs(options.seed), options.hidden
        self.embed = nnx.Embed(
            VOCABULARY, width, embedding_init=nnx.initializers.normal(1 / math.sqrt(width)), rngs=rngs
        )
        self.before = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.blocks = nnx.List([Block(options, rngs) for _ in range(options.layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array, *, block_size: int | None = None, sow_weights: bool = False) -> jax.Array:
        x = self.embedded(tokens)
        for block in self.blocks:
            x = block(x, block_size, sow_weights)
        return self.norm(x)

    def embedded(self, tokens: jax.Array) -> jax.Array:
        """What the first block sees: each token with the one before it."""
        words = self.embed(tokens)
        return words + jnp.pad(self.before(words), ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def kernel(self) -> jax.Array:
        """The scores of a token are products with its embedding, `(H, V)`."""
        return self.embed.embedding[...].T
