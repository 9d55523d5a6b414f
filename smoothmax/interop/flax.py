"""Any mapping in the attention layers of Flax, Linen and NNX alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._layers import attend, missing

try:
    from flax import nnx
    from flax.linen.dtypes import promote_dtype
except ImportError as error:
    raise missing("flax", error) from error

Einsum = Callable[..., jax.Array]


def attention_fn(mapping: Callable[..., jax.Array], *, block_size: int | None = None) -> Callable[..., jax.Array]:
    r"""An `attention_fn=` for Flax whose weights come from `mapping`.

    $$\mathrm{Attention}(Q, K, V) = \Pi_\Omega(Q K^\top / \sqrt{H} + \mathrm{bias}) \, V$$

    The result takes the place of `flax.linen.dot_product_attention` in `flax.linen.MultiHeadDotProductAttention`,
    `MultiHeadAttention` and `SelfAttention`, and of `flax.nnx.dot_product_attention` in `flax.nnx.MultiHeadAttention`.
    Dropout, sown weights, `is_causal`, `num_kv_heads` and decoding work as before, parameters and checkpoints stay as
    they are, and with `mapping=softmax` so do the numbers. Two things differ: a query that may see no key gets zeros
    (in Flax, the mean value), and the mapping is always computed in float32 at least.

    Args:
      mapping: called as `mapping(scores, axis=-1, where=mask)` with scores `(B, N, T, S)`: B batch (all batch axes in
        one), N heads, T query length, S key length.
      block_size: if given, compute this many queries at a time, as in `smoothmax.dot_product_attention`. Not together
        with dropout or sown weights, which need the whole matrix.

    Returns:
      A function of query `(*batch, T, N, H)`, key and value `(*batch, S, K, H)` and the options by name that either
      Flax passes. Its output is `(*batch, T, N, H)`.

    Raises:
      ValueError: from the function, when shapes do not fit, or `block_size` meets dropout or sown weights.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, smoothmax as sm
      >>> from smoothmax.interop.flax import attention_fn
      >>> layer = nn.MultiHeadAttention(num_heads=2, attention_fn=attention_fn(sm.sparsemax))
      >>> x = jnp.ones((1, 3, 4), jnp.float32)
      >>> layer.init_with_output(jax.random.key(0), x)[0].shape
      (1, 3, 4)

    Reference:
      The attention layers of Flax, https://flax.readthedocs.io.
    """

    # Each option by its name: Linen leaves out, without a word, whatever the signature does not name.
    def attention(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        force_fp32_for_softmax: bool = False,
        qk_attn_weights_einsum: Einsum | None = None,
        attn_weights_value_einsum: Einsum | None = None,
        is_causal: bool = False,
    ) -> jax.Array:
        query, key, value = promote_dtype(query, key, value, dtype=dtype)
        drops = not deterministic and dropout_rate > 0.0
        if block_size is not None and (drops or module is not None):
            raise ValueError(
                f"block_size={block_size} never holds the whole weight matrix, which dropout and sown weights need: "
                "leave out block_size, or set dropout_rate=0 and sow_weights=False"
            )
        output, weights = attend(
            query,
            key,
            value,
            bias,
            mask,
            mapping=mapping,
            is_causal=is_causal,
            block_size=block_size,
            change_weights=_dropout(dropout_rng, dropout_rate, broadcast_dropout) if drops else None,
            precision=precision,
            products=_products(qk_attn_weights_einsum, attn_weights_value_einsum, precision),
            return_weights=module is not None,
        )
        if module is not None and weights is not None:
            collection = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
            sown = weights if force_fp32_for_softmax else weights.astype(query.dtype)
            module.sow(collection, "attention_weights", sown)
        return output

    return attention


def _products(by_keys: Einsum | None, by_values: Einsum | None, precision: Any) -> tuple[Einsum, Einsum] | None:
    """The two products of attention by the einsums that Flax passes; None where it passes none."""
    if by_keys is None and by_values is None:
        return None
    if by_keys is None or by_values is None:
        raise ValueError("qk_attn_weights_einsum and attn_weights_value_einsum replace both products: pass both")
    if precision is not None:
        raise ValueError(f"precision={precision} has no effect on products given as einsums: leave it out")
    return (
        lambda query, key: by_keys("...qhd,...khd->...hqk", query, key),
        lambda weights, value: by_values("...hqk,...khd->...qhd", weights, value),
    )


def _dropout(rng: jax.Array | None, rate: float, broadcast: bool) -> Callable[[jax.Array], jax.Array]:
    """Dropout of weights as Flax has it."""
    if rng is None:
        raise ValueError(f"dropout_rate={rate} needs a dropout_rng: pass one, or deterministic=True")

    def drop(weights: jax.Array) -> jax.Array:
        if rate >= 1:
            return jnp.zeros_like(weights)
        # Drawn in the shapes that Flax draws, so that the same key drops the same weights.
        shape = (1,) * (weights.ndim - 2) + weights.shape[-2:] if broadcast else weights.shape
        kept = jax.random.bernoulli(rng, 1.0 - rate, shape)
        return jnp.where(kept, weights / (1.0 - rate), jnp.zeros((), weights.dtype))

    return drop
