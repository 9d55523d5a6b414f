"""The attention that users call: arguments, checks, batch axes. The adapters for other frameworks call it too."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
from jax.typing import ArrayLike

from .. import _kernels
from .._operators import softmax
from .._scaling import check_mapping
from ._blocks import attend_in_blocks, check_block_size
from ._checks import as_arrays, check_arrays, check_flags, check_scale, flat_scores
from ._core import Mapping, Products, attend, query_key_products, weighted_values, with_implementation
from ._kernel import attend_by_kernel
from ._visibility import Visibility, check_causal, check_lengths, check_window, clear, clearing
from ._zeros import check_skips, skipping_products


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = ...,
    mask: ArrayLike | None = ...,
    *,
    mapping: Mapping = ...,
    scale: ArrayLike | None = ...,
    is_causal: bool = ...,
    query_seq_lengths: ArrayLike | None = ...,
    key_value_seq_lengths: ArrayLike | None = ...,
    local_window_size: int | tuple[int, int] | None = ...,
    block_size: int | None = ...,
    skip_zeros: bool = ...,
    implementation: str | None = ...,
    return_weights: Literal[False] = ...,
) -> jax.Array: ...


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = ...,
    mask: ArrayLike | None = ...,
    *,
    mapping: Mapping = ...,
    scale: ArrayLike | None = ...,
    is_causal: bool = ...,
    query_seq_lengths: ArrayLike | None = ...,
    key_value_seq_lengths: ArrayLike | None = ...,
    local_window_size: int | tuple[int, int] | None = ...,
    block_size: int | None = ...,
    skip_zeros: bool = ...,
    implementation: str | None = ...,
    return_weights: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    mapping: Mapping = softmax,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    block_size: int | None = None,
    skip_zeros: bool = False,
    implementation: str | None = None,
    return_weights: bool = False,
    return_residual: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attention whose weights come from any regularized max.

    For each batch element and head, with the mapping $\Pi_\Omega$ along the keys:

    $$\mathrm{Attention}(Q, K, V) = \Pi_\Omega(\mathrm{scale} \cdot Q K^\top + \mathrm{bias}) \, V$$

    The arguments are those of `jax.nn.dot_product_attention`, and with `mapping=softmax` so is the result, with one
    exception: a query that may see no key gets zeros and passes zero gradients, where `jax.nn` returns the mean value.
    `return_residual` alone is refused: it asks for a number that only softmax has.

    Shapes are written with B batch, T query length, S key length, N query heads, K key heads (N is a multiple of K)
    and H head size. B may be absent from query, key and value. Key head k serves the query heads from k * N / K up to
    (k + 1) * N / K (grouped-query attention).

    Args:
      query: queries `(B, T, N, H)` or `(T, N, H)`, any floating dtype.
      key: keys `(B, S, K, H)` or `(S, K, H)`, in the dtype of `query`.
      value: values `(B, S, K, H)` or `(S, K, H)`, in the dtype of `query`. Their head size may differ from that of the
        keys, and is then the output's.
      bias: added to the scaled scores; broadcasts to `(B, N, T, S)`, where axes missing on the left have size 1.
      mask: boolean, True where a query may see a key; broadcasts as `bias` does. A weight at False is exactly zero.
        Keys and values that are not finite are left out by a mask that is the same for all queries and heads, of shape
        `(B, 1, 1, S)`, and by lengths; by another one they meet a weight of zero, and the product is NaN.
      mapping: turns scores into weights. It is called as `mapping(scores, axis=-1, where=mask)` with scores
        `(B, N, T, S)` and returns weights of that shape, zero where the mask is False. Every mapping of this library
        will do, and so will `functools.partial(sm.entmax, alpha=alpha)` and `sm.conjugate(omega)`: hyper-parameters
        may be traced, have gradients, and may differ by head, in shape `(N, 1, 1)`.
      scale: factor on the scores, a scalar; 1 / sqrt(H) if None.
      is_causal: query t sees the keys s <= t only.
      query_seq_lengths: number of real queries of each batch element, integers `(B,)`; outputs past it are zero.
      key_value_seq_lengths: number of real keys of each batch element, integers `(B,)`. Padding past either length has
        no influence, whatever it holds, NaN included.
      local_window_size: `(left, right)`, or one integer for both: query t sees the keys t - left <= s <= t + right.
      block_size: compute this many queries at a time, and recompute each block in the backward pass, so that neither
        pass ever holds more rows of scores than that; 128 or 256 is a good size. With `is_causal` or
        `local_window_size`, most keys out of reach are not even read. T need not be a multiple. Hyper-parameters of
        the mapping must not vary along T then. Shard batch or heads with it, not the keys, which are sliced.
      skip_zeros: leave out blocks of keys whose weights are all zero, exactly, in the product with the values and in
        the backward pass; with `block_size`, on CPUs, for mappings of this library onto the simplex. It pays when most
        of these blocks are empty. Shard batch or heads by `jax.shard_map` with it; there is no forward mode.
      implementation: None | "xla" | "native" | "pallas". "pallas" are kernels for TPUs, and in bfloat16 for
        Hopper GPUs, that do all of it and store no score, for softmax, sparsemax and entmax with alpha from 1 to 2 (a
        traced one above gives NaN). The others are by what the mapping is solved, as for the mappings of this library,
        and take the place of the mapping's own. None leaves the mapping as it is, and takes the kernels where they
        serve; on GPUs not with arrays as mask and bias.
      return_weights: also return the weights `(B, N, T, S)`.
      return_residual: refused when True. The logsumexp is softmax's; get it as `softmax_value` of the scores, and what
        belongs to another mapping as its value twin, such as `sparsemax_value`.

    Returns:
      The output `(B, T, N, H)` or `(T, N, H)` in the dtype of `query`; with `return_weights` a pair of it and the
      weights `(B, N, T, S)` or `(N, T, S)`. Scores, mapping and weights are float32 for float16 and bfloat16.

    Raises:
      ValueError: shapes do not fit together, heads do not divide, there are no keys, `block_size` is below 1 or comes
        together with `return_weights` or a symbolic length, `return_residual` is asked for, or the mapping returns
        another shape.
      TypeError: an argument has an unusable type or dtype, such as a mask that is not boolean; or `implementation` or
        `skip_zeros` is given and the mapping does not allow for it.
      NotImplementedError: the named implementation cannot serve.

    Example:
      >>> import jax, jax.numpy as jnp, smoothmax as sm
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 8, 16), jnp.float32)
      >>> output, weights = sm.dot_product_attention(
      ...     x, x, x, mapping=sm.sparsemax, is_causal=True, return_weights=True
      ... )
      >>> output.shape, weights.shape
      ((2, 4, 8, 16), (2, 8, 4, 4))
      >>> bool(jnp.allclose(weights.sum(-1), 1, atol=1e-6))
      True

    Reference:
      Vaswani et al., "Attention Is All You Need", 2017; for the mappings, Niculae and Blondel, "A Regularized
      Framework for Sparse and Structured Neural Attention", 2017; for grouped heads, Ainslie et al., "GQA", 2023.
    """
    query, key, value = as_arrays(query=query, key=key, value=value)
    check_flags(return_weights=return_weights, skip_zeros=skip_zeros)
    if query.ndim not in (3, 4):
        raise ValueError(
            f"query must have shape (B, T, N, H) or (T, N, H), got {query.shape}: add or merge axes, or use jax.vmap "
            "over further batch axes"
        )
    if return_residual:
        raise ValueError(
            "return_residual must be False, got True: the logsumexp of the scores belongs to softmax alone. Compute "
            "the scores and take smoothmax.softmax_value of them, or the value twin of another mapping"
        )
    if return_weights and block_size is not None:
        raise ValueError(
            f"return_weights must be False together with block_size, got block_size={block_size}: it asks for the "
            "whole weight matrix, which block_size exists to avoid; leave out one of the two"
        )
    if skip_zeros:
        check_skips(mapping, block_size)
    _kernels.check(implementation)
    whole = "attention" in _kernels.TABLE.get(implementation or "", {})
    batch = query.shape[:-3]
    rules = Visibility(
        mask=None,
        is_causal=check_causal(is_causal),
        window=check_window(local_window_size),
        query_lengths=check_lengths("query_seq_lengths", query_seq_lengths, batch),
        key_lengths=check_lengths("key_value_seq_lengths", key_value_seq_lengths, batch),
    )
    output, weights = attend_batched(
        query,
        key,
        value,
        bias,
        mask,
        mapping=mapping if whole else with_implementation(mapping, implementation),
        scale=scale,
        rules=rules,
        block_size=block_size,
        products=skipping_products() if skip_zeros else None,
        return_weights=return_weights,
        implementation=implementation if whole else None,
    )
    return output if weights is None or not return_weights else (output, weights)


_NO_RULES = Visibility()
# For up to so many queries a product with the keys or values is bound by reading them, beyond by arithmetic.
_FEW_QUERIES = 8


def attend_batched(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    mapping: Mapping,
    scale: ArrayLike | None = None,
    rules: Visibility = _NO_RULES,
    block_size: int | None = None,
    precision: Any = None,
    products: Products | None = None,
    change_weights: Callable[[jax.Array], jax.Array] | None = None,
    return_weights: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`dot_product_attention` with any number of batch axes, and with what the layers of other frameworks add to it.

    Args:
      query: `(*batch, T, N, H)`.
      key: `(*batch, S, K, H)`.
      value: `(*batch, S, K, H)`, or of another head size.
      bias: broadcasts to the scores `(*batch, N, T, S)`.
      mask: boolean, broadcasts to the scores.
      mapping: turns scores into weights.
      scale: factor on the scores; 1 / sqrt(H) if None.
      rules: what else is visible; its mask is not looked at.
      block_size: compute this many queries at a time.
      precision: of both matrix products.
      products: functions in the place of `query_key_products` and `weighted_values`.
      change_weights: applied to weights `(*batch, N, T, S)` before they meet the values; by it weights are dropped.
      return_weights: whether the weights are looked at.
      implementation: the name of a kernel for all of it, or None for one where it serves.

    Returns:
      Output `(*batch, T, N, H)` and weights `(*batch, N, T, S)`, or None in the place of weights with `block_size` or
      where a kernel did without them.
    """
    check_arrays(query, key, value)
    leading = query.shape[:-3]
    (rows, heads, _), columns = query.shape[-3:], key.shape[-3]
    scores_shape = (*(leading or (1,)), heads, rows, columns)  # without a batch axis, one of size 1
    bias = flat_scores("bias", bias, scores_shape)
    visibility = rules._replace(mask=flat_scores("mask", mask, scores_shape))
    block_size = check_block_size(block_size, query, key, visibility)
    query, key, value = (a.reshape(math.prod(leading), *a.shape[-3:]) for a in (query, key, value))

    def change_flat(weights: jax.Array) -> jax.Array:
        assert change_weights is not None
        return change_weights(weights.reshape(*leading, *weights.shape[1:])).reshape(weights.shape)

    check_mapping(mapping)
    scale = check_scale(scale, query)
    no_kernel = _no_kernel(return_weights, change_weights, precision, products)
    if implementation is not None and no_kernel is not None:
        raise _kernels.refuse(implementation, no_kernel)
    if products is None:
        products = partial(query_key_products, precision=precision), partial(weighted_values, precision=precision)
    query, real_keys = clear(query, visibility.real_queries(rows)), visibility.real_keys(columns)
    few = block_size is None and isinstance(rows, int) and rows <= _FEW_QUERIES
    if few and implementation is None:
        products = clearing(products[0], real_keys), clearing(products[1], real_keys)
    else:
        key, value = clear(key, real_keys), clear(value, real_keys)
        if no_kernel is None:
            how = implementation, mapping, scale, products, block_size
            output = attend_by_kernel(*how, query, key, value, bias, visibility)
            if output is not None:
                return output.reshape(*leading, *output.shape[1:]), None
    core = partial(
        attend,
        mapping=mapping,
        scale=scale,
        products=products,
        change_weights=None if change_weights is None else change_flat,
    )
    if block_size is None:
        output, weights = core(query, key, value, bias, visibility.block(0, rows, 0, columns))
        weights = weights.reshape(*leading, *weights.shape[1:])
    else:
        output, weights = attend_in_blocks(core, query, key, value, bias, visibility, block_size), None
    return output.reshape(*leading, *output.shape[1:]), weights


def _no_kernel(return_weights: bool, change_weights: Any, precision: Any, products: Products | None) -> str | None:
    """Why a kernel for all of it cannot serve, or None."""
    if return_weights:
        return "it never has the weights that return_weights asks for"
    if change_weights is not None:
        return "it cannot change weights, as dropout does"
    if precision is not None or products not in (None, skipping_products()):
        return "it has products of its own, and others are asked for, or their precision"
    return None
