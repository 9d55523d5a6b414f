"""Convex functions that the user writes: any function of y, or a sum of one function over the coordinates.

Everything here is plain JAX in y and params, so that the rules of the conjugate differentiate through it to any order.
A function may have an infinite slope at 0, as an entropy has, or be written as y log y, which is NaN there: it is
evaluated a `least` weight above y. For all but the smallest weights that is y.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arrays import eps, total
from .._cache import SameFunction
from .._parameters import tree_class
from .._solvers import (
    conjugate_gradients,
    hessian_product,
    interior_point,
    least,
    separable_inverse,
    separable_weights,
)
from ._regularizer import Base, Entropy

# The residual that the product with the Jacobian may leave, in eps: what rounding leaves anyway.
_EXACT = 16


@tree_class
class Function(Base):
    """A function of one distribution `(d,)`, made by `conjugate`; a deleted position has weight 0 in it."""

    fun: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    params: Any = None

    composes = False
    counts_zeros = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fun", _comparable("fun", self.fun))

    @property
    def functions(self) -> tuple[SameFunction, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.fun,)  # pyright: ignore[reportReturnType]

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        some = jnp.any(allowed, axis=-1, keepdims=True)
        return jnp.where(some, self._values(y), 0)

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return interior_point(self._values, self._gradient(x), x, gamma)

    def gradient(self, y: jax.Array) -> jax.Array:
        return jnp.where(y == 0, 0, self._gradient(y)(y))

    def product(self, y: jax.Array, v: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        # u = J v and a multiplier t solve  H u + t 1 = v, sum u = 0  on the support, and u = 0 off it: a symmetric
        # system in (u, t), kept in one array because JAX can only transpose the solution of a system as a whole.
        # Its last right-hand side is 0, here and in all derivatives.
        face = y != 0
        _, hessian = hessian_product(self._gradient(y), y)

        def on_face(u: jax.Array) -> jax.Array:
            return jnp.where(face, hessian(jnp.where(face, u, 0)), 0)

        def system(pair: jax.Array) -> jax.Array:
            u, t = pair[..., :-1], pair[..., -1:]
            return jnp.concatenate([jnp.where(face, on_face(u) + t, u), total(jnp.where(face, u, 0))], axis=-1)

        def solve(_: Any, rhs: jax.Array) -> jax.Array:
            b = jnp.where(face, rhs[..., :-1], 0)
            u, t, solved, _ = conjugate_gradients(on_face, b, face, tolerance=_EXACT * eps(y))
            return jnp.where(solved, jnp.concatenate([u, t], axis=-1), jnp.nan)

        rhs = jnp.concatenate([jnp.where(face, v, 0), jnp.zeros_like(y[..., :1])], axis=-1)
        return jax.lax.custom_linear_solve(system, rhs, solve, symmetric=True)[..., :-1] / gamma

    def _of_one(self, like: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return _checked("fun", self.fun, self.params, "one distribution", like.dtype)

    def _values(self, y: jax.Array) -> jax.Array:
        return _over_batch(self._of_one(y), y.ndim - 1)(_inside(y))[..., None]

    def _gradient(self, like: jax.Array) -> Callable[[jax.Array], jax.Array]:
        gradient = _over_batch(jax.grad(self._of_one(like)), like.ndim - 1)
        return lambda y: gradient(_inside(y))


@tree_class
class Separable(Entropy):
    r"""The sum of one function over the coordinates, $\Omega(y) = \sum_i \phi(y_i)$; made by `separable`."""

    phi: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    params: Any = None

    counts_zeros = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", _comparable("phi", self.phi))

    @property
    def functions(self) -> tuple[SameFunction, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.phi,)  # pyright: ignore[reportReturnType]

    def value(self, y: jax.Array, allowed: jax.Array) -> jax.Array:
        values = _over_batch(self._of_one(y), y.ndim)(jnp.where(allowed, _off_ends(y), 0.5))
        return total(jnp.where(allowed, values, 0))

    def solve(self, x: jax.Array, gamma: jax.Array, implementation: str | None) -> jax.Array:
        return separable_weights(self._slopes, x, gamma)

    def solve_capped(
        self, x: jax.Array, gamma: jax.Array, size: jax.Array, upper: jax.Array, implementation: str | None
    ) -> jax.Array:
        return separable_weights(self._slopes, x, gamma, size, upper)

    def solve_box(self, u: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
        return separable_inverse(self._slopes, u, lower, upper)

    def inverse(self, u: jax.Array) -> jax.Array:
        return separable_inverse(self._slopes, u)

    def slope(self, y: jax.Array) -> jax.Array:
        return self._slope(_off_ends(y))

    def inverse_curvature(self, y: jax.Array) -> jax.Array:
        return jnp.where(y == 0, 0, 1 / self._curvature(_off_ends(y)))

    def with_params(self, params: Any) -> Separable:
        return Separable(self.phi, params)

    def _of_one(self, like: jax.Array) -> Callable[[jax.Array], jax.Array]:
        # phi sees one coordinate: so it cannot tell them apart, without which penalties would not compose.
        return _checked("phi", self.phi, self.params, "one coordinate", like.dtype)

    def _slopes(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._slope(t), self._curvature(t)

    def _slope(self, t: jax.Array) -> jax.Array:
        return _over_batch(jax.grad(self._of_one(t)), t.ndim)(t)

    def _curvature(self, t: jax.Array) -> jax.Array:
        return _over_batch(jax.grad(jax.grad(self._of_one(t))), t.ndim)(t)


def separable(phi: Callable[..., jax.Array], params: Any = None) -> Separable:
    r"""The regularizer that adds up one function over the coordinates.

    $$\Omega(y) = \sum_i \phi(y_i), \qquad y_i = (\phi')^{-1}(x_i - \tau)$$

    One threshold solves it, as it does the entropies, and penalties may be added; any domain will do. Write `phi` once,
    outside of loops, and pass what varies as `params`: each new function is compiled anew.

    Args:
      phi: twice differentiable and strictly convex on (0, 1], with finite values on [0, 1]; its slope at 0 may be
        -inf. It is called as `phi(t)` or, with `params`, as `phi(t, params)`, on one coordinate, a scalar.
      params: a pytree of hyper-parameters, which gradients reach; what `phi` merely closes over is a constant.

    Returns:
      A regularizer, for `conjugate` and for sums with penalties. If `phi` turns out not to be convex, weights are NaN.

    Raises:
      TypeError: `phi` is not a function.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> cosh = sm.separable(lambda t, rate: jnp.cosh(rate * t), params=2.0)
      >>> with jnp.printoptions(precision=3):
      ...     print(sm.conjugate(cosh).argmax(jnp.array([1.0, 0.4, -2.0])))
      [0.549 0.451 0.   ]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020, section 4.
    """
    if not callable(phi):
        raise TypeError(f"phi must be a function of one coordinate, got {phi!r}: for example lambda t: t**2 / 2")
    return Separable(phi, params)


def _off_ends(y: jax.Array) -> jax.Array:
    """y, off 0 and 1, where the slope of an entropy may be infinite."""
    below = 1 - eps(y)
    return jnp.where((y > below) & (y <= 1), below, jnp.maximum(y, least(y)))


def _inside(y: jax.Array) -> jax.Array:
    """y, off the boundary. A slice without an allowed position becomes ones: a norm has no gradient at 0."""
    return jnp.where(jnp.any(y != 0, axis=-1, keepdims=True), y, 1) + least(y)


def _over_batch(function: Callable[[jax.Array], jax.Array], axes: int) -> Callable[[jax.Array], jax.Array]:
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def _checked(
    name: str, function: Callable[..., Any], params: Any, task: str, dtype: Any
) -> Callable[[jax.Array], jax.Array]:
    """The user's function of one argument, its params and its result in the dtype of the computation.

    Products with a matrix keep all their digits: those of fewer that TPUs and GPUs take have slopes that no solver can
    follow.
    """

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf).astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    arguments = () if params is None else (jax.tree.map(cast, params),)

    def call(argument: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            result = function(argument, *arguments)
        _check_result(name, function, result, task, argument)
        return jnp.asarray(result).astype(dtype)

    return call


def _comparable(name: str, function: Any) -> SameFunction:
    try:
        hash(function)
    except TypeError:
        raise TypeError(
            f"{name}={function!r} cannot be hashed, so JAX cannot compile for it: wrap it in a function and pass what "
            "it holds as params"
        ) from None
    return function if isinstance(function, SameFunction) else SameFunction(function)


def _check_result(name: str, function: Any, result: Any, task: str, argument: jax.Array) -> None:
    is_array = isinstance(result, (jax.Array, np.ndarray, np.generic, float, int))
    if not is_array or jnp.shape(result) != () or not jnp.issubdtype(jnp.result_type(result), jnp.floating):
        got = f"shape {jnp.shape(result)} and dtype {jnp.result_type(result)}" if is_array else repr(result)
        raise TypeError(
            f"{name}={function!r} must map {task} of shape {argument.shape} to a real scalar, got {got}: for example "
            "add up what it returns"
        )
