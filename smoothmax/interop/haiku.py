"""Any mapping in the attention layer of Haiku."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .._operators import softmax
from ._layers import attend, missing

try:
    import haiku as hk
except ImportError as error:
    raise missing("dm-haiku", error) from error


class MultiHeadAttention(hk.MultiHeadAttention):
    r"""`hk.MultiHeadAttention` whose weights come from `mapping`.

    $$\mathrm{Attention}(Q, K, V) = \Pi_\Omega(Q K^\top / \sqrt{H}) \, V$$

    Constructor, call and parameters (hence checkpoints) are those of `hk.MultiHeadAttention`, and so is its default
    name; with `mapping=softmax` so are the numbers, except that a query that may see no key gets zeros from the
    attention (in Haiku, the mean value) and that the mapping is computed in float32 at least.

    Args:
      *args: as of `hk.MultiHeadAttention`: num_heads, key_size.
      mapping: called as `mapping(scores, axis=-1, where=mask)` with scores `(B, N, T, S)`: B batch (all batch axes in
        one), N heads, T query length, S key length. For a learned hyper-parameter, get it with `hk.get_parameter` and
        pass for example `functools.partial(sm.entmax, alpha=sm.bounded(raw, 1, 2))`.
      block_size: if given, compute this many queries at a time, as in `smoothmax.dot_product_attention`.
      **kwargs: as of `hk.MultiHeadAttention`: w_init, with_bias, b_init, value_size, model_size, name.

    Raises:
      ValueError: when called, if mask or inputs do not fit together.

    Example:
      >>> import haiku as hk, jax, jax.numpy as jnp, smoothmax as sm
      >>> from smoothmax.interop.haiku import MultiHeadAttention
      >>> def model(x):
      ...     layer = MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(), mapping=sm.sparsemax)
      ...     return layer(x, x, x)
      >>> x = jnp.ones((1, 3, 8), jnp.float32)
      >>> params = hk.transform(model).init(jax.random.key(0), x)
      >>> sorted(params)[0]
      'multi_head_attention/key'

    Reference:
      `hk.MultiHeadAttention`, https://dm-haiku.readthedocs.io.
    """

    def __init__(
        self,
        *args: Any,
        mapping: Callable[..., jax.Array] = softmax,
        block_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.mapping = mapping
        self.block_size = block_size

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Attends from `query` to `key` and `value`.

        Args:
          query: embeddings `(*batch, T, D)`.
          key: embeddings `(*batch, S, D)`.
          value: embeddings `(*batch, S, D)`.
          mask: True (or not zero) where a query may see a key; `(*batch, N, T, S)`, each axis of that size or 1.

        Returns:
          Embeddings `(*batch, T, model_size)`.
        """
        if mask is not None and mask.ndim != query.ndim + 1:
            raise ValueError(
                f"mask of shape {mask.shape} must have one axis more than query of shape {query.shape}, for the heads: "
                "insert it, for example with mask[:, None]"
            )
        options = {"w_init": self.w_init, "with_bias": self.with_bias, "b_init": self.b_init}

        def project(embeddings: jax.Array, head_size: int, name: str) -> jax.Array:
            # The names decide the parameters, and are those of the base class.
            heads = hk.Linear(self.num_heads * head_size, **options, name=name)(embeddings)
            return heads.reshape(*embeddings.shape[:-1], self.num_heads, head_size)

        attention, _ = attend(
            project(query, self.key_size, "query"),
            project(key, self.key_size, "key"),
            project(value, self.value_size, "value"),
            mask=mask,
            mapping=self.mapping,
            block_size=self.block_size,
        )
        attention = attention.reshape(*query.shape[:-1], self.num_heads * self.value_size)
        return hk.Linear(self.model_size, **options)(attention)
