"""Dot-product attention over any gradient mapping, whole or in query blocks.

The call has two layers. The public function checks its arguments and writes every kind of mask as
a rule on positions (`Visibility`). One core, `_attend_core`, then turns queries, keys and a mask into
weights and an output. The unblocked form calls the core once on all queries; the blocked form calls
the same core once for each block of queries, on the keys that the block can see, and recomputes the
block in the backward pass instead of keeping its scores.
"""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ._operators import softmax

# A causal call in blocks is cut into this many stretches of queries; each stretch sees a static
# prefix of the keys, so that most of the upper triangle is never computed. n stretches do
# (n + 1) / 2n of the work, and each is compiled on its own: four keep 5/8 of the work.
_CAUSAL_STRETCHES = 4


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    mapping: Callable[..., jax.Array] = softmax,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    block_size: int | None = None,
    return_weights: bool = False,
) -> Any:
    r"""Attention whose weights come from any regularized max.

    For each batch element and head, with the mapping $\Pi_\Omega$ along the keys:

    $$\mathrm{Attention}(Q, K, V) = \Pi_\Omega(\mathrm{scale} \cdot Q K^\top + \mathrm{bias}) \, V$$

    The arguments are those of `jax.nn.dot_product_attention`, and with `mapping=softmax` so is the result, with one
    exception: a query that may see no key gets zeros and passes zero gradients, where `jax.nn` returns the mean value.

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
      return_weights: also return the weights.

    Returns:
      The output `(B, T, N, H)` or `(T, N, H)` in the dtype of `query`; with `return_weights` a pair of it and the
      weights `(B, N, T, S)` or `(N, T, S)`. Scores, mapping and weights are float32 for float16 and bfloat16.

    Raises:
      ValueError: shapes do not fit together, heads do not divide, `block_size` is below 1 or comes together with
        `return_weights`, or the mapping returns another shape.
      TypeError: an argument has an unusable dtype, such as a mask that is not boolean.

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
    query, key, value = _check_inputs(query, key, value)
    has_batch = query.ndim == 4
    if not has_batch:
        query, key, value = query[None], key[None], value[None]
    batch, rows, heads, head_size = query.shape
    columns = key.shape[1]

    scores_shape = (batch, heads, rows, columns)
    if bias is not None:
        bias = _check_against_scores("bias", jnp.asarray(bias), scores_shape)
        if bias.dtype == jnp.bool_:
            raise TypeError("bias is boolean; pass a boolean array as `mask`, or a number to add.")
    if mask is not None:
        mask = _check_against_scores("mask", jnp.asarray(mask), scores_shape)
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"mask has dtype {mask.dtype} but must be boolean, True where a query may attend. "
                "Write `mask != 0` for a 0/1 mask, or pass an additive one as `bias`."
            )
    if scale is None:
        scale = 1.0 / math.sqrt(head_size)
    elif jnp.ndim(scale) != 0:
        raise ValueError(
            f"scale has shape {jnp.shape(scale)} but must be a scalar; multiply `query` by an "
            "array of scales and pass scale=1.0."
        )
    if not callable(mapping):
        raise TypeError(f"mapping is {mapping!r} but must be callable, such as smoothmax.sparsemax.")
    if block_size is not None:
        if not isinstance(block_size, int):
            raise TypeError(f"block_size is {block_size!r} but must be a Python integer, or None.")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size} but must be at least 1, or None.")
        if return_weights:
            raise ValueError(
                "return_weights=True asks for the whole weight matrix, which block_size exists to "
                "avoid; leave out one of return_weights and block_size."
            )

    visibility = Visibility(
        mask,
        is_causal,
        _check_window(local_window_size),
        _check_lengths("query_seq_lengths", query_seq_lengths, batch, has_batch),
        _check_lengths("key_value_seq_lengths", key_value_seq_lengths, batch, has_batch),
    )
    query, key, value = _clear_padding(query, key, value, visibility)
    output, weights = attend(query, key, value, bias, visibility, mapping=mapping, scale=scale, block_size=block_size)
    results = (output, weights) if return_weights else output
    return results if has_batch else jax.tree.map(lambda array: array[0], results)


class Visibility(NamedTuple):
    """Which keys each query may see. Only `mask` is stored as a matrix; the rest are rules."""

    mask: jax.Array | None = None  # boolean, four axes, each of size 1 or that of the scores
    is_causal: bool = False
    window: tuple[int, int] | None = None
    query_lengths: jax.Array | None = None
    key_lengths: jax.Array | None = None

    def block(self, first_row: ArrayLike, rows: int, first_column: ArrayLike, columns: int) -> jax.Array | None:
        """The mask of one block of the score matrix, or None where everything is visible."""
        t = (first_row + jnp.arange(rows, dtype=jnp.int32))[None, None, :, None]
        s = (first_column + jnp.arange(columns, dtype=jnp.int32))[None, None, None, :]
        parts = []
        if self.mask is not None:
            mask = _slice_unless_broadcast(self.mask, 2, first_row, rows)
            parts.append(_slice_unless_broadcast(mask, 3, first_column, columns))
        if self.is_causal:
            parts.append(s <= t)
        if self.window is not None:
            left, right = self.window
            parts.append((t - left <= s) & (s <= t + right))
        if self.query_lengths is not None:
            parts.append(t < self.query_lengths[:, None, None, None])
        if self.key_lengths is not None:
            parts.append(s < self.key_lengths[:, None, None, None])
        return reduce(jnp.logical_and, parts) if parts else None


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
    *,
    mapping: Callable[..., jax.Array],
    scale: ArrayLike,
    block_size: int | None = None,
    precision: Any = None,
    products: tuple[Callable[..., jax.Array], Callable[..., jax.Array]] | None = None,
    change_weights: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention on checked arrays with a batch axis: output, and weights if not in blocks.

    The adapters for other frameworks call this too. What they add to the public function is the `precision` of the
    two matrix products, or other functions in their place, and `change_weights`, by which they drop weights.
    """
    if products is None:
        products = partial(query_key_products, precision=precision), partial(weighted_values, precision=precision)
    core = partial(_attend_core, mapping=mapping, scale=scale, products=products, change_weights=change_weights)
    if block_size is None or query.shape[1] == 0:
        return core(query, key, value, bias, visibility.block(0, query.shape[1], 0, key.shape[1]))
    in_blocks = partial(_attend_in_blocks, core, visibility=visibility, block_size=block_size)
    # The blocks are recomputed one by one, inside. Out here nothing is computed twice: this only
    # keeps JAX from storing what is the same in each block, such as constants of the mapping that
    # were broadcast to the scores' shape.
    return jax.checkpoint(in_blocks, prevent_cse=False)(query, key, value, bias), None


def _attend_core(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    where: jax.Array | None,
    *,
    mapping: Callable[..., jax.Array],
    scale: ArrayLike,
    products: tuple[Callable[..., jax.Array], Callable[..., jax.Array]],
    change_weights: Callable[[jax.Array], jax.Array] | None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of `(B, T, N, H)` queries over `(B, S, K, H)` keys: output and weights."""
    score, average = products
    dtype = _compute_dtype(query.dtype)
    scores = score(query, key).astype(dtype) * jnp.asarray(scale, dtype)
    if bias is not None:
        scores = scores + bias.astype(dtype)
    weights = mapping(scores, axis=-1, where=where)
    if jnp.shape(weights) != scores.shape:
        raise ValueError(
            f"mapping returned shape {jnp.shape(weights)} for scores of shape {scores.shape}: it must give one weight "
            "for each score. Pass a mapping such as smoothmax.sparsemax, not its value twin, and let hyper-parameters "
            "broadcast to the scores, for example in shape (heads, 1, 1)"
        )
    applied = weights if change_weights is None else change_weights(weights)
    return average(applied.astype(value.dtype), value).astype(query.dtype), weights


# Grouped heads: heads are split by the key head that serves them, so that no key or value is repeated in memory. The
# mapping sees all heads on one axis again, which is what a hyper-parameter for each head broadcasts to.


def query_key_products(query: jax.Array, key: jax.Array, *, precision: Any = None) -> jax.Array:
    """Products of `(B, T, N, H)` queries and `(B, S, K, H)` keys: `(B, N, T, S)`, at least float32."""
    batch, rows, heads, head_size = query.shape
    columns, key_heads = key.shape[1:3]
    query = query.reshape(batch, rows, key_heads, heads // key_heads, head_size)
    dtype = _compute_dtype(query.dtype)
    products = jnp.einsum("btkgh,bskh->bkgts", query, key, precision=precision, preferred_element_type=dtype)
    return products.reshape(batch, heads, rows, columns)


def weighted_values(weights: jax.Array, value: jax.Array, *, precision: Any = None) -> jax.Array:
    """Sums of `(B, S, K, H)` values with `(B, N, T, S)` weights: `(B, T, N, H)`."""
    batch, heads, rows, columns = weights.shape
    key_heads, head_size = value.shape[2:]
    weights = weights.reshape(batch, key_heads, heads // key_heads, rows, columns)
    return jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=precision).reshape(batch, rows, heads, head_size)


def _compute_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Scores and mapping are computed in float32 at least."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def _clear_padding(
    query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Write zeros over positions that no one may look at.

    The mapping gives them weight zero already, but zero times a NaN left in a padded buffer is
    NaN, in the output and in the gradients. Clearing the padding costs nothing next to the scores.
    """
    rows, columns = query.shape[1], key.shape[1]
    if visibility.query_lengths is not None:
        t = jnp.arange(rows, dtype=jnp.int32)[None, :]
        real = (t < visibility.query_lengths[:, None])[:, :, None, None]
        query = jnp.where(real, query, jnp.zeros((), query.dtype))
    real_keys = []
    if visibility.key_lengths is not None:
        s = jnp.arange(columns, dtype=jnp.int32)[None, :]
        real_keys.append(s < visibility.key_lengths[:, None])
    mask = visibility.mask
    if mask is not None and mask.shape[1:3] == (1, 1):  # the same keys are out for every query
        real_keys.append(mask[:, 0, 0, :])
    for real in real_keys:
        real = real[:, :, None, None]
        key = jnp.where(real, key, jnp.zeros((), key.dtype))
        value = jnp.where(real, value, jnp.zeros((), value.dtype))
    return query, key, value


# --- Blocks of queries ---------------------------------------------------------------------------


class _Stretch(NamedTuple):
    """Consecutive blocks of queries that are computed by one loop."""

    first_row: int
    blocks: int
    rows: int  # in each block
    columns: int  # length of the key prefix that the stretch can see


def _stretches(rows: int, columns: int, block_size: int, is_causal: bool) -> list[_Stretch]:
    """Cover all queries: full blocks in stretches of about equal length, then the rest."""
    full = rows // block_size
    count = _CAUSAL_STRETCHES if is_causal else 1
    bounds = [full * i // count for i in range(count + 1)]
    pieces = [(a * block_size, b - a, block_size) for a, b in pairwise(bounds) if a < b]
    if rows % block_size:
        pieces.append((full * block_size, 1, rows % block_size))
    return [
        _Stretch(first, n, size, min(columns, first + n * size) if is_causal else columns) for first, n, size in pieces
    ]


def _attend_in_blocks(
    core: Callable[..., tuple[jax.Array, jax.Array]],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
    block_size: int,
) -> jax.Array:
    """The output of `core`, computed `block_size` queries at a time."""
    window = visibility.window
    if window is not None and visibility.is_causal:
        window = (window[0], min(window[1], 0))
    # A window bounds what a block sees from both sides, which makes the causal prefixes needless.
    causal_prefixes = visibility.is_causal and window is None
    outputs = []
    for stretch in _stretches(query.shape[1], key.shape[1], block_size, causal_prefixes):
        rows = slice(stretch.first_row, stretch.first_row + stretch.blocks * stretch.rows)
        outputs.append(
            _attend_stretch(
                core,
                query[:, rows],
                key[:, : stretch.columns],
                value[:, : stretch.columns],
                bias if bias is None or bias.shape[2] == 1 else bias[:, :, rows],
                visibility,
                window,
                stretch,
            )
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _attend_stretch(
    core: Callable[..., tuple[jax.Array, jax.Array]],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    visibility: Visibility,
    window: tuple[int, int] | None,
    stretch: _Stretch,
) -> jax.Array:
    """One loop over the blocks of a stretch; `query` and `bias` hold the rows of the stretch.

    `jax.checkpoint` makes the backward pass recompute a block from its queries, so that what the
    loop stores is what it was given, and no row of scores outlives its block. Whatever is closed
    over (keys, values, hyper-parameters of the mapping) gets its gradient summed over the blocks.
    """
    rows, columns = stretch.rows, stretch.columns
    left, width = 0, columns
    if window is not None:
        left, width = window[0], max(1, min(columns, rows + sum(window)))

    def attend_block(block: tuple[ArrayLike, jax.Array, jax.Array | None]) -> jax.Array:
        first_row, query, bias = block
        # A window lets the block see `first_row - left` to `first_row + rows - 1 + right`, moved
        # inwards at the ends; the mask below takes out what the move brings in.
        column = 0 if width == columns else jnp.clip(first_row - left, 0, columns - width)
        output, _ = core(
            query,
            _slice_unless_broadcast(key, 1, column, width),
            _slice_unless_broadcast(value, 1, column, width),
            None if bias is None else _slice_unless_broadcast(bias, 3, column, width),
            visibility.block(first_row, rows, column, width),
        )
        return output

    # The barriers of `prevent_cse` cost memory and speed, and inside a loop they are not needed.
    attend_block = jax.checkpoint(attend_block, prevent_cse=stretch.blocks == 1)
    if stretch.blocks == 1:
        return attend_block((stretch.first_row, query, bias))

    # Queries, and a bias that differs by query, enter the loop cut into blocks: their gradients
    # leave it the same way, where slices of a closed-over array would each have one of full size.
    first_rows = stretch.first_row + rows * jnp.arange(stretch.blocks, dtype=jnp.int32)
    queries = _cut(query, 1, stretch.blocks)
    if bias is None or bias.shape[2] == 1:
        outputs = jax.lax.map(lambda b: attend_block((*b, bias)), (first_rows, queries))
    else:
        outputs = jax.lax.map(attend_block, (first_rows, queries, _cut(bias, 2, stretch.blocks)))
    outputs = jnp.moveaxis(outputs, 0, 1)
    return outputs.reshape(*query.shape[:3], value.shape[-1])


def _cut(array: jax.Array, axis: int, pieces: int) -> jax.Array:
    """Cut an axis into equal pieces and put the axis that counts them first."""
    shape = array.shape
    cut = array.reshape(*shape[:axis], pieces, shape[axis] // pieces, *shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 0)


def _slice_unless_broadcast(array: jax.Array, axis: int, start: ArrayLike, size: int) -> jax.Array:
    """`array[start : start + size]` along an axis, or the array where the axis broadcasts."""
    length = array.shape[axis]
    if length == 1 or (length == size and isinstance(start, int)):
        return array
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


# --- Checks of the arguments ---------------------------------------------------------------------


def _check_inputs(query: ArrayLike, key: ArrayLike, value: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    if query.ndim not in (3, 4):
        raise ValueError(
            f"query has shape {query.shape} but must have shape (B, T, N, H) or (T, N, H); add or "
            "merge axes, or use jax.vmap over further batch axes."
        )
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise TypeError(f"query has dtype {query.dtype} but must be floating; cast it first.")
    for name, array in (("key", key), ("value", value)):
        if array.ndim != query.ndim:
            raise ValueError(
                f"{name} has shape {array.shape} but query has shape {query.shape}; give both a batch axis, or neither."
            )
        if array.dtype != query.dtype:
            raise TypeError(
                f"{name} has dtype {array.dtype} but query has dtype {query.dtype}; cast them to one dtype."
            )
        if array.shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{name} has shape {array.shape} but query has shape {query.shape}; their batch "
                "axes (the first) must be equal. Broadcast or repeat one of them."
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key has shape {key.shape} but query has shape {query.shape}; their head sizes (the "
            "last axis) must be equal. Project both to one size."
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value has shape {value.shape} but key has shape {key.shape}; all but their last "
            "axes must be equal. Give each key one value."
        )
    heads, key_heads = query.shape[-2], key.shape[-2]
    if key_heads == 0 or heads % key_heads:
        raise ValueError(
            f"query has shape {query.shape} and key has shape {key.shape}: {heads} query heads do "
            f"not divide among {key_heads} key heads. Make the number of query heads a multiple "
            "of the number of key heads; the layout is (batch, length, heads, head size)."
        )
    return query, key, value


def _check_against_scores(name: str, array: jax.Array, scores_shape: tuple[int, int, int, int]) -> jax.Array:
    """The array with four axes, each of size 1 or that of the scores."""
    shape = (1,) * (4 - array.ndim) + array.shape
    if len(shape) > 4 or any(a not in (1, b) for a, b in zip(shape, scores_shape, strict=True)):
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast against the scores' shape "
            f"(B, N, T, S) = {scores_shape}. Insert axes of size 1, for example "
            f"{name}[:, None, None, :] for one of shape (B, S)."
        )
    return array.reshape(shape)


def _check_lengths(name: str, lengths: ArrayLike | None, batch: int, has_batch: bool) -> jax.Array | None:
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {lengths.dtype} but must hold integers; cast it.")
    if lengths.shape != (batch,):
        batch_is = f"the batch size is {batch}" if has_batch else "query has no batch axis"
        raise ValueError(
            f"{name} has shape {lengths.shape} but must have shape ({batch},), because {batch_is}; "
            "give one length for each batch element."
        )
    return lengths.astype(jnp.int32)


def _check_window(window: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if window is None:
        return None
    try:
        left, right = (window, window) if not isinstance(window, tuple | list) else window
        return operator.index(left), operator.index(right)
    except (TypeError, ValueError):
        raise TypeError(
            f"local_window_size is {window!r} but must be an integer or a pair of integers "
            "(left, right), known when the function is traced."
        ) from None
