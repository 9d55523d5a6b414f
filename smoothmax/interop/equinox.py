"""Any mapping in the attention layer of Equinox."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from .._operators import softmax
from ._layers import attend, missing

try:
    import equinox as eqx
except ImportError as error:
    raise missing("equinox", error) from error


class MultiheadAttention(eqx.nn.MultiheadAttention):
    r"""`equinox.nn.MultiheadAttention` whose weights come from `mapping`.

    $$\mathrm{Attention}(Q, K, V) = \Pi_\Omega(Q K^\top / \sqrt{H}) \, V$$

    Constructor, call and parameters are those of `equinox.nn.MultiheadAttention`; `from_layer` takes over the
    parameters of an existing layer. With `mapping=softmax` so are the numbers, except that a query that may see no key
    gets zeros from the attention (in Equinox, the mean value).

    Args:
      *args: as of `equinox.nn.MultiheadAttention`: num_heads, query_size and others.
      mapping: called as `mapping(scores, axis=-1, where=mask)` with scores `(1, N, T, S)`: N heads, T query length,
        S key length. It is a field like any other: the arrays in `sm.conjugate(sm.Tsallis(alpha))`, or in an
        `equinox.Module` that is called in this form, are trained with the model.
      **kwargs: as of `equinox.nn.MultiheadAttention`: dropout_p, use_query_bias, key and others.

    Raises:
      ValueError: when called, if mask or inputs do not fit together.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp, smoothmax as sm
      >>> from smoothmax.interop.equinox import MultiheadAttention
      >>> trained = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(0))
      >>> layer = MultiheadAttention.from_layer(trained, mapping=sm.sparsemax)
      >>> x = jnp.ones((3, 4))
      >>> layer(x, x, x).shape
      (3, 4)

    Reference:
      `equinox.nn.MultiheadAttention`, https://docs.kidger.site/equinox.
    """

    mapping: Callable[..., jax.Array]

    def __init__(self, *args: Any, mapping: Callable[..., jax.Array] = softmax, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mapping = mapping

    @classmethod
    def from_layer(
        cls, layer: eqx.nn.MultiheadAttention, *, mapping: Callable[..., jax.Array] = softmax
    ) -> MultiheadAttention:
        """The layer with the same parameters and sizes, and another mapping.

        Args:
          layer: any `equinox.nn.MultiheadAttention`, this class included.
          mapping: as of the class.

        Returns:
          A new layer; put it in the place of the old one with `equinox.tree_at`.
        """
        new = object.__new__(cls)
        for field in dataclasses.fields(eqx.nn.MultiheadAttention):
            object.__setattr__(new, field.name, getattr(layer, field.name))
        object.__setattr__(new, "mapping", mapping)
        return new

    def __call__(
        self,
        query: jax.Array,
        key_: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        inference: bool | None = None,
        deterministic: bool | None = None,
        process_heads: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None,
    ) -> jax.Array:
        """Attends from `query` to `key_` and `value`.

        Args:
          query: embeddings `(T, query_size)`.
          key_: embeddings `(S, key_size)`.
          value: embeddings `(S, value_size)`.
          mask: True where a query may see a key, `(T, S)` or `(N, T, S)`.
          key: for dropout.
          inference: as of `equinox.nn.Dropout`.
          deterministic: the name that Equinox gave to `inference` before, and still takes.
          process_heads: takes and returns the projected `(T, N, H)` queries, keys and values, for example to rotate
            them.

        Returns:
          Embeddings `(T, output_size)`.
        """
        inference = inference if deterministic is None else deterministic

        def project(projection: eqx.nn.Linear, embeddings: jax.Array) -> jax.Array:
            projected = jax.vmap(projection)(embeddings)
            return projected.reshape(len(projected), self.num_heads, projected.shape[-1] // self.num_heads)

        heads = project(self.query_proj, query), project(self.key_proj, key_), project(self.value_proj, value)
        if process_heads is not None:
            processed = process_heads(*heads)
            shapes, expected = [h.shape for h in processed], [h.shape for h in heads]
            if shapes != expected:
                raise ValueError(f"process_heads returned shapes {shapes} for {expected}: it must keep them")
            heads = processed

        def drop(weights: jax.Array) -> jax.Array:
            if key is None:
                return self.dropout(weights, inference=inference)
            # One key for each head, as in the base class, so that the same key drops the same weights.
            keys = jax.random.split(key, self.num_heads)
            return jax.vmap(lambda w, k: self.dropout(w, key=k, inference=inference))(weights, keys)

        attention, _ = attend(*heads, mask=mask, mapping=self.mapping, change_weights=drop)
        return jax.vmap(self.output_proj)(jax.lax.collapse(attention, 1))
