"""The Fenchel-conjugate builder: from a regularizer to its max operator and its gradient mapping.

    max_Omega(x) = max over y in the simplex of <x, y> - Omega(y)
    Pi_Omega(x)  = the y that attains it = grad max_Omega(x)

The two `jax.custom_vjp` rules below are the only ones in the library; every operator is differentiated by them. Let
J be the Jacobian of Pi in x. It is the Hessian of max_Omega, hence symmetric, so J y_bar serves reverse and forward
mode alike. A hyper-parameter theta enters the optimality condition x - grad Omega_theta(y) = tau 1 just as x does,
with the opposite sign, so its derivative goes through the same product:

    x_bar     = J y_bar
    theta_bar = - < d/dtheta grad Omega_theta(y), J y_bar >        (implicit function theorem)

For max_Omega the envelope theorem gives x_bar = y and theta_bar = - d/dtheta Omega_theta(y).

Each forward rule calls the differentiated function itself, and each backward rule is ordinary JAX in the weights it
saved: so the rules can be differentiated again, to any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _regularizers as regularizers
from ._regularizers import Base, Found, Function, Regularizer, Separable
from ._slices import Axis, to_slices

# --- Reverse mode: the definition --------------------------------------------------------------------------


@jax.custom_vjp
def _argmax(omega: Regularizer, x: jax.Array) -> tuple[jax.Array, Found]:
    return regularizers.solve(omega, x)


def _argmax_fwd(omega: Regularizer, x: jax.Array) -> Any:
    y, found = _argmax(omega, x)
    return (y, found), (omega, y, found)


def _argmax_bwd(residuals: Any, cotangents: Any) -> Any:
    omega, y, found = residuals
    product = regularizers.pull(omega, y, found, cotangents[0])
    _, theta_vjp = jax.vjp(lambda o: regularizers.gradient(o, y, found), omega)
    return *theta_vjp(-product), jnp.where(y == 0, 0, product)


_argmax.defvjp(_argmax_fwd, _argmax_bwd)


@jax.custom_vjp
def _max(omega: Regularizer, x: jax.Array) -> jax.Array:
    return _attained(omega, x, *_argmax(omega, x))


def _max_fwd(omega: Regularizer, x: jax.Array) -> Any:
    y, found = _argmax(omega, x)
    return _attained(omega, x, y, found), (omega, y, regularizers.allowed_positions(omega, x), found)


def _max_bwd(residuals: Any, cotangent: jax.Array) -> Any:
    omega, y, allowed, found = residuals
    _, theta_vjp = jax.vjp(lambda o: regularizers.value(o, y, allowed, found), omega)
    return *theta_vjp(-cotangent), cotangent * y


_max.defvjp(_max_fwd, _max_bwd)


def _attained(omega: Regularizer, x: jax.Array, y: jax.Array, found: Found) -> jax.Array:
    """<x, y> - Omega(y), -inf for a slice without an allowed position. The greatest score is taken out of the sum."""
    top = jnp.max(x, axis=-1, keepdims=True)
    below = jnp.where(y == 0, 0, jnp.where(y == 0, 0, x) - jnp.where(top == -jnp.inf, 0, top))
    attained = jnp.sum(below * y, axis=-1, keepdims=True) - regularizers.value(
        omega, y, regularizers.allowed_positions(omega, x), found
    )
    return top + attained


# --- Forward mode: the same products, for jvp, jacfwd, hessian and linearize ---------------------------------


@jax.custom_jvp
def _argmax_forward(omega: Regularizer, x: jax.Array) -> tuple[jax.Array, Found]:
    return regularizers.solve(omega, x)


@_argmax_forward.defjvp
def _argmax_jvp(primals: Any, tangents: Any) -> Any:
    (omega, x), (omega_dot, x_dot) = primals, tangents
    y, found = _argmax_forward(omega, x)
    _, g_dot = jax.jvp(lambda o: regularizers.gradient(o, y, found), (omega,), (omega_dot,))
    y_dot = regularizers.push(omega, y, found, jnp.where(x == -jnp.inf, 0, x_dot) - g_dot)
    integers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), found)
    return (y, found), (y_dot, integers)


@jax.custom_jvp
def _max_forward(omega: Regularizer, x: jax.Array) -> jax.Array:
    return _attained(omega, x, *_argmax_forward(omega, x))


@_max_forward.defjvp
def _max_jvp(primals: Any, tangents: Any) -> Any:
    (omega, x), (omega_dot, x_dot) = primals, tangents
    y, found = _argmax_forward(omega, x)
    allowed = regularizers.allowed_positions(omega, x)
    _, value_dot = jax.jvp(lambda o: regularizers.value(o, y, allowed, found), (omega,), (omega_dot,))
    dot = jnp.sum(jnp.where(x == -jnp.inf, 0, x_dot) * y, axis=-1, keepdims=True) - value_dot
    return _attained(omega, x, y, found), dot


# --- The pair of functions -----------------------------------------------------------------------------------


# Compiled once for a shape, a dtype and a structure of omega: the hyper-parameters are operands.
@partial(jax.jit, static_argnames=("axis", "forward"))
def _run_argmax(omega: Regularizer, x: Any, where: Any, *, axis: Axis, forward: bool) -> jax.Array:
    slices, omega, layout = to_slices(x, axis, where, omega)
    y, _ = (_argmax_forward if forward else _argmax)(omega, slices)
    return layout.weights(y)


@partial(jax.jit, static_argnames=("axis", "forward"))
def _run_max(omega: Regularizer, x: Any, where: Any, *, axis: Axis, forward: bool) -> jax.Array:
    slices, omega, layout = to_slices(x, axis, where, omega)
    return layout.values((_max_forward if forward else _max)(omega, slices))


@partial(jax.tree_util.register_dataclass, data_fields=["omega"], meta_fields=["forward"])
@dataclasses.dataclass(frozen=True)
class Operator:
    r"""The max operator of a regularizer and its gradient mapping, as made by `conjugate`.

    A pytree whose leaves are the hyper-parameters of `omega`: it can be an argument of a jitted function, be
    differentiated, and be built inside one from traced values.

    Attributes:
      omega: the regularizer.
      forward: whether it is differentiated by `jax.custom_jvp` instead of `jax.custom_vjp`; see `forward_mode`.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> op = sm.conjugate(sm.SquaredL2())
      >>> x = jnp.array([1.0, 0.5, -1.0])
      >>> print(op.max(x), op.argmax(x), op(x))  # calling it is argmax
      0.5625 [0.75 0.25 0.  ] [0.75 0.25 0.  ]

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """

    omega: Regularizer
    forward: bool = False

    def max(self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None) -> jax.Array:
        r"""The regularized max, $\max_{y \in \triangle} \langle x, y \rangle - \Omega(y)$, for each slice.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one simplex over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Values in the dtype of `x`, of its shape without `axis`; -inf for a slice with nothing allowed.
        """
        return _run_max(_as_floats(self.omega), x, where, axis=axis, forward=self.forward)

    def argmax(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """The distribution that attains `max`: the gradient of `max`, and the mapping to probabilities.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one simplex over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Weights in the dtype and shape of `x`; each slice sums to one, or is zero where nothing is allowed.
        """
        return _run_argmax(_as_floats(self.omega), x, where, axis=axis, forward=self.forward)

    def __call__(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """`argmax`: an operator can stand wherever `jax.nn.softmax` can."""
        return self.argmax(x, axis, where=where)


def _as_floats(omega: Regularizer) -> Regularizer:
    """Lets alpha=2 and alpha=2.0 share one compilation, and both have a gradient."""
    return jax.tree.map(lambda leaf: float(leaf) if isinstance(leaf, int) else leaf, omega)


def conjugate(omega: Regularizer | Operator | Callable[..., jax.Array], *, params: Any = None) -> Operator:
    r"""Builds the regularized max and its gradient mapping from a regularizer or a convex function.

    $$\max_\Omega(x) = \max_{y \in \triangle} \langle x, y \rangle - \Omega(y), \qquad
      \Pi_\Omega(x) = \nabla \max_\Omega(x)$$

    Args:
      omega: a regularizer with a base, such as `2.0 * (Tsallis(1.5) + 0.1 * TotalVariation())`; or a differentiable,
        strictly convex function that takes one distribution `(d,)` and returns a scalar.
      params: for a function, a pytree of its hyper-parameters; it is then called as `omega(y, params)`, and gradients
        reach them. A value that the function merely closes over is a constant.

    Returns:
      An `Operator` with the pure functions `max` and `argmax`.

    Raises:
      TypeError: `omega` is neither a regularizer nor a function.
      ValueError: `omega` is a penalty without a base, or `params` come with a regularizer that has its own.

    Example:
      >>> import jax.numpy as jnp, smoothmax as sm
      >>> op = sm.conjugate(sm.Tsallis(1.5) + 0.2 * sm.TotalVariation())
      >>> x = jnp.array([1.0, 1.1, -0.5, 0.3])
      >>> with jnp.printoptions(precision=3):
      ...     print(op.argmax(x), f"{op.max(x):.3f}")
      [0.457 0.457 0.023 0.063] 1.356

    Reference:
      Niculae and Blondel, "A Regularized Framework for Sparse and Structured Neural Attention", 2017.
    """
    if isinstance(omega, Operator):
        return omega
    if not isinstance(omega, Regularizer):
        if not callable(omega):
            raise TypeError(
                f"omega must be a regularizer or a function of y, got {omega!r}: see smoothmax.Shannon and its kin"
            )
        omega = Function(omega, params)
    elif params is not None:
        if not isinstance(omega, Separable):
            raise ValueError(
                f"params belong to a plain function, got params={params!r} with {omega!r}, whose hyper-parameters are "
                "its own fields: set them there"
            )
        omega = Separable(omega.phi, params)
    bases = [atom for atom in omega.atoms() if isinstance(atom, Base)]
    if not bases:
        raise ValueError(
            f"omega={omega!r} is a penalty alone, which does not single out one distribution: add it to a base, for "
            f"example sm.SquaredL2() + {omega!r}"
        )
    return Operator(omega)


def forward_mode(op: Operator) -> Operator:
    """The same operator for forward-mode differentiation: `jax.jvp`, `jacfwd`, `hessian`, `linearize`.

    `jax.custom_vjp`, by which an operator is defined, shuts out forward mode. Here the same product J v is a
    `jax.custom_jvp` rule, which allows both modes in any order; the price is more to store in reverse mode.

    Args:
      op: an operator made by `conjugate`.

    Returns:
      An operator with the same values.

    Raises:
      TypeError: `op` is not an operator.

    Example:
      >>> import jax, jax.numpy as jnp, smoothmax as sm
      >>> op = sm.forward_mode(sm.conjugate(sm.SquaredL2()))
      >>> print(jax.hessian(op.max)(jnp.array([0.5, 0.2, -1.0])))
      [[ 0.5 -0.5  0. ]
       [-0.5  0.5  0. ]
       [-0.  -0.   0. ]]

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020, for the Hessian of max_Omega.
    """
    if not isinstance(op, Operator):
        raise TypeError(f"op must be made by smoothmax.conjugate, got {op!r}: pass conjugate(omega), not omega")
    return dataclasses.replace(op, forward=True)
