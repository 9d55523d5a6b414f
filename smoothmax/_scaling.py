"""Scores scaled by the length of their slice, for attention that stays as sharp on long sequences as on short ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ._arrays import as_array
from ._parameters import FINITE, Parameter, as_floats, checked
from ._slices import Axis, masked, normal_axes


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class LengthScaled:
    """A mapping after scores * (base + slope * log(n)^power); see `length_scaled`, which checks what it is made of.

    A pytree: `base`, `slope`, `power` and the leaves of `mapping`, if it is a pytree itself, can be trained.
    """

    mapping: Callable[..., jax.Array]
    base: Parameter = 1.0
    slope: Parameter = 0.0
    power: Parameter = 1.0

    def __call__(self, x: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None) -> jax.Array:
        """The weights of `mapping` at the scaled scores, in the dtype of `x`."""
        x = jnp.asarray(as_array("x", x))
        axes = normal_axes(axis, x.shape)
        dtype, scores = masked(x, where)
        allowed = scores != -jnp.inf
        factor = self._factor(jnp.sum(allowed, axis=axes, keepdims=True, dtype=jnp.int32), scores.dtype)
        # -inf times anything must be zero in the gradient of the factor.
        scaled = jnp.where(allowed, jnp.where(allowed, scores, 0) * factor, -jnp.inf)
        return self.mapping(scaled, axis, where=where).astype(dtype)

    def _factor(self, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """base + slope * log(count)^power for counts that have size 1 along the slices; base for a count of 0 or 1."""
        base, slope, power = (
            _place(name, value, count.shape, dtype)
            for name, value in (("base", self.base), ("slope", self.slope), ("power", self.power))
        )
        several = count > 1
        # log(1) = 0, whose power has no derivative by the exponent (and none by the base below 1).
        log = jnp.log(jnp.where(several, count, 2).astype(dtype))
        return base + slope * jnp.where(several, log**power, jnp.where(power == 0, 1, 0).astype(dtype))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        # A function is not a leaf that JAX could trace: it belongs to the structure.
        static = jax.tree_util.all_leaves([self.mapping])
        children = (None if static else self.mapping, self.base, self.slope, self.power)
        names = (field.name for field in dataclasses.fields(self))
        keyed = tuple(zip(map(jax.tree_util.GetAttrKey, names), children, strict=True))
        return keyed, self.mapping if static else None

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> LengthScaled:
        mapping, *parameters = children
        return cls(mapping if static is None else static, *parameters)


def _place(name: str, value: Parameter, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A hyper-parameter with as many axes as the scores; `shape` is theirs with size 1 along the slices."""
    value = jnp.asarray(value).astype(dtype)
    placed = (1,) * (len(shape) - value.ndim) + value.shape
    # Where the scores have size 1, the slices among it, so must the hyper-parameter.
    if len(placed) > len(shape) or any(a not in (1, b) for a, b in zip(placed, shape, strict=True)):
        raise ValueError(
            f"{name} must broadcast to shape {shape}, one value for each slice of the scores, got shape {value.shape}: "
            f"insert axes of size 1, for example {name}[:, None, None] for one value a head"
        )
    return value.reshape(placed)


def check_mapping(mapping: Any) -> None:
    if not callable(mapping):
        raise TypeError(f"mapping must be callable, got {mapping!r}: pass one such as smoothmax.sparsemax")


def length_scaled(
    mapping: Callable[..., jax.Array], *, base: Parameter = 1.0, slope: Parameter = 0.0, power: Parameter = 1.0
) -> LengthScaled:
    r"""The mapping after its scores were multiplied by a factor that grows with the length of the slice.

    $$x \mapsto \Pi_\Omega\big((\mathrm{base} + \mathrm{slope} \cdot (\log n)^{\mathrm{power}}) \, x\big)$$

    Here n is the number of allowed positions of the slice: those where the mask is True and the score is not -inf. As
    a sequence grows, the differences between bounded scores stay as they are, so that softmax spreads its weight over
    ever more positions, and the support of a sparse mapping grows too. A factor that grows with log n works against
    both, so that what was learned at one length may hold at another. All three numbers can be learned.

    Args:
      mapping: any mapping that is called as `mapping(scores, axis, where=mask)`: one of this library, a
        `functools.partial` of one, an `Operator`.
      base: the whole factor where slope is 0, and at n = 1 for a positive power.
      slope: how much the factor grows with the length.
      power: the exponent of log n. Like base and slope a number, a traced value, or an array that broadcasts with the
        scores and has size 1 along the slices, such as shape `(heads, 1, 1)` in attention.

    Returns:
      A mapping, called as `f(x, axis=-1, *, where=None)`: weights in the shape and dtype of `x`. It is a frozen
      dataclass and a pytree whose leaves are base, slope, power and those of `mapping`, if it is a pytree such as an
      `Operator`: it can be an argument of a jitted function or a field of a module, and be differentiated.

    Raises:
      TypeError: `mapping` is not callable, or a number is none.
      ValueError: when called, if a number has a shape that does not broadcast to one value a slice.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> mapping = sm.length_scaled(sm.sparsemax, base=0.5, slope=0.5)
      >>> x = jnp.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
      >>> with jnp.printoptions(precision=3):
      ...     print(mapping(x)[:2], mapping(x[:2]))  # sharper where there is more to choose from
      [0.885 0.115] [0.712 0.288]

    Reference:
      Vasylenko, Pitorro, Martins and Treviso, "Long-Context Generalization with Sparse Attention", 2025.
    """
    check_mapping(mapping)
    numbers = [checked(name, v, FINITE) for name, v in (("base", base), ("slope", slope), ("power", power))]
    return LengthScaled(mapping, *as_floats(numbers))
