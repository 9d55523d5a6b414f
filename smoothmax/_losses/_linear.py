"""The loss of a linear layer over a large vocabulary, a few tokens at a time.

The logits of all tokens are the largest array of a language model: 2,048 tokens by 32,768 words are 256 MB, and a loss
with its gradient holds two or three such. Here a loop takes a chunk of tokens, multiplies, reduces to losses and to
gradients, and forgets the logits.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._arrays import as_array, compute_dtype, floating, no_cotangent, varying_like
from .._cache import compiled
from .._conjugate import Operator
from .._parameters import Spec, index
from .._slices import mask
from ._fenchel_young import Omega, against_labels, check_labels, operator_for_labels

# Logits held at a time where the caller does not say. Products of this size keep all cores busy, and 16 MB of float32
# are small beside the parameters of any layer that needs chunks.
_LOGITS_AT_A_TIME = 2**22


def linear_fenchel_young_loss(
    hidden: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    omega: Omega,
    *,
    bias: jax.typing.ArrayLike | None = None,
    where: jax.typing.ArrayLike | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    r"""The Fenchel-Young loss of a linear layer's logits, which are never held as a whole.

    $$L_\Omega(x, e_k) = \max_\Omega(x) + \Omega(e_k) - x_k, \qquad x = W^\top h + b$$

    It equals `fenchel_young_loss_with_integer_labels(hidden @ kernel + bias, labels, omega, where=where)`, value and
    derivatives. The gradient is quickest where all tokens have the same weight, as in a mean or a sum: so take padding
    out by `where`, not by a factor. Shapes are written with H features and V words; `...` stands for any batch axes,
    such as (B, T).

    Args:
      hidden: features `h`, `(..., H)`, of a floating dtype.
      kernel: weights `W`, `(H, V)`, of a floating dtype. Products of half precision are accumulated in float32.
      labels: integers from 0 to V - 1, of shape `(...)`.
      omega: the regularizer, a function of y, or an operator made from either by `conjugate`, as in
        `fenchel_young_loss_with_integer_labels`. Its hyper-parameters are the same for all tokens. An operator for
        forward mode allows it here too; in reverse mode it then keeps the logits.
      bias: `b`, `(V,)`, or None.
      where: boolean mask that broadcasts to the logits `(..., V)`: `(V,)` takes words out of the problem, `(..., 1)`
        whole tokens, whose loss is then zero.
      chunk_size: tokens at a time; None for about four million logits at a time. Fewer cost less memory, and time where
        the products get too small.

    Returns:
      Losses `(...)` in the dtype of `hidden @ kernel`. A label out of range gives NaN where it is traced.

    Raises:
      TypeError: an array has an unusable dtype, or `chunk_size` is no integer.
      ValueError: shapes do not fit together, a label is out of range, or `chunk_size` is below 1.

    Example:
      >>> import jax, jax.numpy as jnp, smoothmax as sm
      >>> hidden, kernel = jax.random.normal(jax.random.key(0), (6, 4)), jax.random.normal(jax.random.key(1), (4, 9))
      >>> labels = jnp.array([0, 3, 8, 2, 2, 5])
      >>> loss = sm.linear_fenchel_young_loss(hidden, kernel, labels, sm.SquaredL2(), chunk_size=2)
      >>> whole = sm.fenchel_young_loss_with_integer_labels(hidden @ kernel, labels, sm.SquaredL2())
      >>> print(loss.shape, jnp.allclose(loss, whole, atol=1e-5))
      (6,) True

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020, for the losses; Wijmans et al., "Cut
      Your Losses in Large-Vocabulary Language Models", 2025, for cross-entropy without the logits.
    """
    hidden, kernel, labels = floating("hidden", hidden), floating("kernel", kernel), check_labels(labels)
    bias = None if bias is None else floating("bias", bias)
    _check_shapes(hidden, kernel, labels, bias)
    tokens, words = math.prod(labels.shape), kernel.shape[1]
    if where is not None:
        where = jnp.asarray(as_array("where", where))
        jax.eval_shape(mask, where, jax.ShapeDtypeStruct((*labels.shape, words), hidden.dtype))
    _check_range(labels, words, where)
    op = _for_all_tokens(operator_for_labels(omega))
    return _in_chunks(op, hidden, kernel, labels, bias, where, chunks=_chunks(tokens, words, chunk_size))


# --- The arguments -------------------------------------------------------------------------------------------


def _check_shapes(hidden: jax.Array, kernel: jax.Array, labels: jax.Array, bias: jax.Array | None) -> None:
    if kernel.ndim != 2 or kernel.shape[1] == 0:
        raise ValueError(
            f"kernel must have shape (H, V), V at least 1, got {kernel.shape}: give one column for each word"
        )
    if hidden.ndim == 0 or hidden.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"hidden of shape {hidden.shape} does not fit kernel of shape {kernel.shape}: its last axis must have "
            f"{kernel.shape[0]} features, the first axis of kernel; transpose a kernel that is (V, H)"
        )
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels of shape {labels.shape} must have the shape of hidden {hidden.shape} without its last axis, "
            f"{hidden.shape[:-1]}: give one word for each token"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"bias of shape {bias.shape} must have shape {kernel.shape[1:]}: give one number for each word"
        )


def _check_range(labels: jax.Array, words: int, where: jax.Array | None) -> None:
    """Labels whose values are known, those of tokens that are masked as a whole excepted."""
    if any(isinstance(a, Tracer) or not a.is_fully_addressable for a in (labels, where) if a is not None):
        return
    known = np.asarray(labels)
    wrong = (known < 0) | (known >= words)
    if wrong.any() and where is not None:
        some = np.asarray(where).any(axis=-1) if where.ndim else np.asarray(where)
        wrong &= np.broadcast_to(some, wrong.shape)
    if wrong.any():
        raise ValueError(
            f"labels must be from 0 to {words - 1}, got {known[wrong][0]}: take padding out with "
            "where=(labels >= 0)[..., None]"
        )


def _for_all_tokens(op: Operator) -> Operator:
    """The operator with hyper-parameters that are scalars or run along the words: they are the same for all tokens."""

    def visit(name: str, value: Any, spec: Spec) -> Any:
        shape = jnp.shape(value)
        if any(n > 1 for n in shape[:-1]):
            raise ValueError(
                f"{name} of shape {shape} differs by token, got one value for all or one a word: map the loss over the "
                "values with jax.vmap"
            )
        return jnp.reshape(value, shape[-1:]) if len(shape) > 1 else value

    return dataclasses.replace(op, omega=op.omega.map_parameters(visit), over=op.over.map_parameters(visit))


def _chunks(tokens: int, words: int, chunk_size: int | None) -> int:
    """The number of chunks: one that divides the tokens, unless it would be more than twice as many as needed."""
    if chunk_size is None:
        size = max(1, _LOGITS_AT_A_TIME // words)
    else:
        try:
            size = index(chunk_size)
        except TypeError:
            raise TypeError(
                f"chunk_size must be an integer or None, got {chunk_size!r}: give the number of tokens at a time"
            ) from None
        if size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {size}: leave it out for a size that suits")
    least = max(1, -(-tokens // size))
    return next((n for n in range(least, 2 * least) if tokens % n == 0), least)


# --- The chunks ----------------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """What is differentiated and the same for all tokens."""

    op: Operator
    kernel: jax.Array  # (H, V)
    bias: jax.Array | None  # (V,)


class _Tokens(NamedTuple):
    """What differs by token: arrays of leading axes (chunks, C), or (C,) for one chunk."""

    features: jax.Array  # (..., H)
    labels: jax.Array  # (...)
    where: jax.Array | None  # (..., 1 or V)
    counts: jax.Array  # (...), False for what fills up the last chunk and for tokens that are masked as a whole


@partial(compiled, static_argnames="chunks")
def _in_chunks(
    op: Operator,
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None,
    where: jax.Array | None,
    *,
    chunks: int,
) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(hidden.dtype, kernel.dtype)
    compute = compute_dtype(dtype)

    def shared(leaf: Any) -> jax.Array:
        """What all chunks see. Its gradient is a sum over them: in float32 at least, and over the devices of a
        `shard_map` only once, after the last chunk."""
        leaf = jnp.asarray(leaf)
        leaf = leaf.astype(compute) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return varying_like(leaf, hidden, labels)

    # A chunk takes its tokens at a stride, so that where tokens are sharded, each device has a share of every chunk.
    size = -(-labels.size // chunks)
    of_tokens, of_words = _split_mask(where, labels.shape)
    features = hidden.astype(dtype).reshape(labels.size, hidden.shape[-1])
    counts = jnp.ones(labels.size, bool) if of_tokens is None else jnp.any(of_tokens, axis=-1)
    tokens = _Tokens(features, labels.reshape(-1), of_tokens, varying_like(counts, hidden, labels))
    tokens = jax.tree.map(lambda a: _strided(a, size, chunks), tokens)
    layer = jax.tree.map(shared, _Layer(op, kernel, bias))
    values = (_each if op.forward else _map)(layer, of_words, tokens)
    return jnp.swapaxes(values, 0, 1).reshape(-1)[: labels.size].reshape(labels.shape).astype(dtype)


def _split_mask(where: jax.Array | None, batch: tuple[int, ...]) -> tuple[jax.Array | None, jax.Array | None]:
    """A mask that differs by token, `(tokens, 1 or V)`, or one that all share, `(1, 1 or V)`; the other is None."""
    if where is None:
        return None, None
    where = where.reshape((1,) * (1 + len(batch) - where.ndim) + where.shape)
    if all(n == 1 for n in where.shape[:-1]):
        return None, where.reshape(1, -1)
    return jnp.broadcast_to(where, (*batch, where.shape[-1])).reshape(math.prod(batch), where.shape[-1]), None


def _strided(array: jax.Array, size: int, chunks: int) -> jax.Array:
    """`(tokens, ...)` to `(chunks, size, ...)`, the last tokens filled up with zeros."""
    array = jnp.pad(array, [(0, size * chunks - len(array))] + [(0, 0)] * (array.ndim - 1))
    return jnp.swapaxes(array.reshape(size, chunks, *array.shape[1:]), 0, 1)


def _losses(layer: _Layer, of_words: jax.Array | None, tokens: _Tokens) -> jax.Array:
    """The losses of one chunk of C tokens, `(C,)`."""
    h, where = tokens.features, of_words if tokens.where is None else tokens.where
    x = jnp.dot(h, layer.kernel.astype(h.dtype), preferred_element_type=layer.kernel.dtype)
    x = x if layer.bias is None else x + jnp.broadcast_to(layer.bias, x.shape)
    return against_labels(layer.op, x, tokens.labels, where, axis=-1)


# The gradient of a sum over the tokens is made in the forward pass, while the logits are at hand: that of the features
# token by token, that of the layer added up. If the cotangents of all tokens turn out to be the same, as under a mean,
# it has only to be scaled; if they differ, the backward pass multiplies again.


def _each(layer: _Layer, of_words: jax.Array | None, tokens: _Tokens) -> jax.Array:
    """The losses of all chunks, `(chunks, C)`."""
    return jax.lax.map(lambda chunk: _losses(layer, of_words, chunk), tokens)


_map = jax.custom_vjp(_each)


def _map_fwd(layer: _Layer, of_words: jax.Array | None, tokens: _Tokens) -> Any:
    def step(sums: _Layer, chunk: _Tokens) -> tuple[_Layer, Any]:
        def call(layer: _Layer, h: jax.Array) -> jax.Array:
            return _losses(layer, of_words, chunk._replace(features=h))

        losses, pull = jax.vjp(call, layer, chunk.features)
        by_layer, by_features = pull(chunk.counts.astype(losses.dtype))
        return _add(sums, by_layer), (losses, by_features)

    sums, (losses, by_features) = jax.lax.scan(step, _zeros(layer, tokens), tokens)
    return losses, (layer, of_words, tokens, sums, by_features)


def _map_bwd(residuals: Any, cotangents: jax.Array) -> Any:
    layer, of_words, tokens, sums, by_features = residuals
    cotangents = jnp.where(tokens.counts, cotangents, 0)
    most = jnp.max(cotangents, where=tokens.counts, initial=-jnp.inf)
    most = jnp.where(jnp.any(tokens.counts), most, 0)
    same = jnp.all((cotangents == most) | ~tokens.counts)  # a NaN is not

    def scaled() -> _Layer:
        # Numbers that are equal may still move apart: so the derivatives are not those of the maximum.
        zeros = _zeros_that_move(layer, of_words, tokens, cotangents)
        return jax.tree.map(lambda z, leaf: z + jax.lax.stop_gradient(most.astype(leaf.dtype) * leaf), zeros, sums)

    by_layer = jax.lax.cond(same, scaled, lambda: _by_layer(layer, of_words, tokens, cotangents))
    by_features = cotangents[..., None].astype(by_features.dtype) * by_features
    none: Any = None  # labels and masks have no cotangents
    return jax.tree.map(_cotangent, by_layer), None, _Tokens(by_features, none, none, none)


def _by_layer(layer: _Layer, of_words: Any, tokens: _Tokens, cotangents: jax.Array) -> _Layer:
    """The gradient of the layer for these cotangents of the losses."""

    def step(sums: _Layer, chunk: tuple[_Tokens, jax.Array]) -> tuple[_Layer, None]:
        _, pull = jax.vjp(lambda layer: _losses(layer, of_words, chunk[0]), layer)
        return _add(sums, *pull(chunk[1])), None

    return jax.lax.scan(step, _zeros(layer, tokens), (tokens, cotangents))[0]


@jax.custom_vjp
def _zeros_that_move(layer: _Layer, of_words: Any, tokens: _Tokens, cotangents: jax.Array) -> _Layer:
    """Zeros with the derivatives of `_by_layer`."""
    return _zeros(layer, tokens)


_zeros_that_move.defvjp(
    lambda *arguments: (_zeros_that_move(*arguments), arguments),
    lambda arguments, bars: jax.vjp(_by_layer, *arguments)[1](bars),
)


def _zeros(layer: _Layer, tokens: _Tokens) -> _Layer:
    return jax.tree.map(lambda leaf: varying_like(jnp.zeros_like(leaf), leaf, tokens), layer)


def _add(sums: _Layer, by_layer: _Layer) -> _Layer:
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, sums, by_layer)


def _cotangent(total: jax.Array) -> Any:
    """Integers among the parameters of a user's function have no derivative."""
    return total if jnp.issubdtype(total.dtype, jnp.floating) else no_cotangent(total)


_map.defvjp(_map_fwd, _map_bwd)
