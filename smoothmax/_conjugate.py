"""The Fenchel-conjugate builder: from a regularizer and a domain to the max operator and its gradient mapping.

    max_{Omega, D}(x) = max over y in D of <x, y> - Omega(y)
    Pi_{Omega, D}(x)  = the y that attains it = grad max_{Omega, D}(x)

How they are differentiated is in `_rules.py`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from . import _kernels, _rules
from ._arrays import as_array, by_partitioner
from ._cache import SameFunction, compiled
from ._domains import Domain, Simplex
from ._parameters import as_floats, tree_class
from ._problem import Problem, multiply_out
from ._regularizers import Base, Function, Regularizer
from ._slices import Axis, Layout, normal_axes, to_slices


# Compiled once for a shape, a dtype and a structure of the terms: the hyper-parameters are operands.
@functools.partial(compiled, static_argnames="axis")
def _run_argmax(op: Operator, x: Any, where: Any, *, axis: Axis) -> jax.Array:
    problem, slices, layout = _posed(op, x, axis, where)
    y, _ = (_rules.argmax_forward if op.forward else _rules.argmax)(problem, slices)
    return layout.weights(y)


@functools.partial(compiled, static_argnames="axis")
def _run_max(op: Operator, x: Any, where: Any, *, axis: Axis) -> jax.Array:
    problem, slices, layout = _posed(op, x, axis, where)
    return layout.values((_rules.max_forward if op.forward else _rules.max_)(problem, slices))


def _posed(op: Operator, x: Any, axis: Axis, where: Any) -> tuple[Problem, jax.Array, Layout]:
    """The operator as a problem on slices."""
    slices, (omega, over), layout = to_slices(x, axis, where, op.omega, op.over)
    return multiply_out(omega, over, slices.dtype, op.implementation), slices, layout


@tree_class
class Operator:
    r"""The max operator of a regularizer over a domain and its gradient mapping, as made by `conjugate`.

    A pytree whose leaves are the hyper-parameters of `omega` and `over`: it can be an argument of a jitted function, be
    differentiated, and be built inside one from traced values.

    Attributes:
      omega: the regularizer.
      over: the domain.
      implementation: by which kernels it is solved; None for the best that serves.
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
    over: Domain = dataclasses.field(default_factory=Simplex)
    implementation: str | None = dataclasses.field(default=None, metadata={"static": True})
    forward: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        check_expression(self.omega)
        self.over.check_base(self.omega)
        _kernels.check(self.implementation)

    @property
    def functions(self) -> tuple[SameFunction, ...]:
        """The functions of the user's own in it, by which programs are told apart."""
        return tuple(function for atom in self.omega.atoms() for function in atom.functions)

    def max(self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None) -> jax.Array:
        r"""The regularized max, $\max_{y \in D} \langle x, y \rangle - \Omega(y)$, for each slice.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one slice over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Values in the dtype of `x`, of its shape (broadcast with the hyper-parameters) without `axis`; -inf for a
          slice with nothing allowed.
        """
        return self._run(_run_max, x, axis, where, reduces=True)

    def argmax(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """The weights that attain `max`: the gradient of `max`, and the mapping from scores to weights.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one slice over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Weights in the dtype of `x` and in its shape, broadcast with the hyper-parameters: in the domain, or zero
          where nothing is allowed.
        """
        return self._run(_run_argmax, x, axis, where, reduces=False)

    def __call__(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """`argmax`: an operator can stand wherever `jax.nn.softmax` can."""
        return self.argmax(x, axis, where=where)

    def _run(self, run: Callable[..., jax.Array], x: Any, axis: Axis, where: Any, *, reduces: bool) -> jax.Array:
        """Runs one of the two, after what only known values can tell."""
        x, where = as_array("x", x), None if where is None else as_array("where", where)
        axes = normal_axes(axis, x.shape)  # raises where jit would, of a list, with a word of its own
        self.over.check_room(x.shape, axes)
        program = functools.partial(run, axis=axis)
        without = axes if reduces else ()
        return by_partitioner(program, x, without)(as_floats(_as_asked(self)), x, where)


def check_expression(omega: Regularizer) -> None:
    """Raises if an expression has no base."""
    if not any(isinstance(atom, Base) for atom in omega.atoms()):
        raise ValueError(
            f"omega={omega!r} is a penalty alone, which does not single out one distribution: add it to a base, for "
            f"example sm.SquaredL2() + {omega!r}"
        )


def conjugate(
    omega: Regularizer | Operator | Callable[..., jax.Array],
    over: Domain | None = None,
    *,
    params: Any = None,
    implementation: str | None = None,
) -> Operator:
    r"""Builds the regularized max and its gradient mapping from a regularizer or a convex function, over a domain.

    $$\max_{\Omega, D}(x) = \max_{y \in D} \langle x, y \rangle - \Omega(y), \qquad
      \Pi_{\Omega, D}(x) = \nabla \max_{\Omega, D}(x)$$

    Args:
      omega: a regularizer with a base, such as `2.0 * (Tsallis(1.5) + 0.1 * TotalVariation())`; or a differentiable,
        strictly convex function that takes one distribution `(d,)` and returns a scalar.
      over: the domain: `Simplex()` (the default), `CappedSimplex(k)`, `Box()` or `Permutahedron(weights)`.
      params: for a function, a pytree of its hyper-parameters; it is then called as `omega(y, params)`, and gradients
        reach them. A Python integer becomes a float, so that it has one: give an index as an array. A value that the
        function merely closes over is a constant. Write the function once, outside of loops, and pass what varies as
        params: a program is compiled for each function.
      implementation: how to solve: "xla", which serves everything, "native" (compiled kernels for CPUs), "pallas"
        (kernels for TPUs and Hopper GPUs), or None for the best that serves the platform, the dtype and the operator.

    Returns:
      An `Operator` with the pure functions `max` and `argmax`.

    Raises:
      TypeError: `omega` is neither a regularizer nor a function, or `over` is not a domain.
      ValueError: `omega` is a penalty without a base, or `params` come with a regularizer that has its own; the domain
        cannot serve the regularizer; there is no such implementation.
      NotImplementedError: from the functions, when the named implementation cannot serve.

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
        if over is not None or params is not None or implementation is not None:
            given = {"over": over, "params": params, "implementation": implementation}
            named = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
            raise ValueError(
                f"omega is an operator already, got {named} beside it: give them to the conjugate that made it"
            )
        return _as_asked(omega)
    if over is not None and not isinstance(over, Domain):
        raise TypeError(f"over must be a domain such as smoothmax.Simplex(), got {over!r}: make one, or leave it out")
    return Operator(_regularizer(omega, params), over or Simplex(), implementation, _FORWARD.get())


F = TypeVar("F", bound=Callable[..., Any])
_MAPPINGS: list[Callable[..., Any]] = []


def mapping(function: F) -> F:
    """Enters a public mapping, or its value, into the list of those that no one may mistake for a regularizer."""
    _MAPPINGS.append(function)
    return function


def _regularizer(omega: Any, params: Any) -> Regularizer:
    if isinstance(omega, Regularizer):
        return omega if params is None else omega.with_params(params)
    if isinstance(omega, type):
        raise TypeError(
            f"omega must be a regularizer, got the class {omega!r}: make one of it, as in {omega.__name__}()"
        )
    if not callable(omega) or isinstance(omega, Domain):
        raise TypeError(
            f"omega must be a regularizer or a function of y, got {omega!r}: see smoothmax.Shannon and its kin"
        )
    if any(omega is known for known in _MAPPINGS):
        raise TypeError(
            f"omega must be a regularizer or a function of y, got the mapping {omega!r}, which belongs to one: call it "
            "with scores, or give its regularizer"
        )
    function: Any = omega
    return Function(function, params)


# --- Forward mode for whole functions -------------------------------------------------------------------------

_FORWARD: contextvars.ContextVar[bool] = contextvars.ContextVar("forward", default=False)


@contextlib.contextmanager
def _forward() -> Iterator[None]:
    token = _FORWARD.set(True)
    try:
        yield
    finally:
        _FORWARD.reset(token)


def _as_asked(op: Operator) -> Operator:
    """The operator, in forward mode where that is asked of all operators."""
    return dataclasses.replace(op, forward=True) if _FORWARD.get() and not op.forward else op


def forward_mode(f: Any) -> Any:
    """The same operator or mapping for forward-mode differentiation: `jax.jvp`, `jacfwd`, `hessian`, `linearize`.

    `jax.custom_vjp`, by which an operator is defined, shuts out forward mode. Here the same product J v is a
    `jax.custom_jvp` rule, which allows both modes in any order. In reverse mode it keeps what the definition keeps, and
    the scores in case of a value.

    Args:
      f: an operator made by `conjugate`; or a function of scores that uses mappings of this library, such as
        `smoothmax.sparsemax` or a `functools.partial` of it. A function that was jitted before may have been traced in
        reverse mode already: jit the result instead.

    Returns:
      An operator, or a function of the same arguments, with the same values.

    Raises:
      TypeError: `f` is neither.

    Example:
      >>> import jax, jax.numpy as jnp, smoothmax as sm
      >>> x = jnp.array([0.5, 0.2, -0.1])
      >>> with jnp.printoptions(precision=3):
      ...     print(jax.jacfwd(sm.forward_mode(sm.sparsemax))(x))
      [[ 0.667 -0.333 -0.333]
       [-0.333  0.667 -0.333]
       [-0.333 -0.333  0.667]]
      >>> print(jax.hessian(sm.forward_mode(sm.conjugate(sm.SquaredL2())).max)(x).shape)
      (3, 3)

    Reference:
      Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", 2020, for the Hessian of the max.
    """
    if isinstance(f, Operator):
        return dataclasses.replace(f, forward=True)
    if isinstance(f, (Regularizer, Domain, type)) or not callable(f):
        raise TypeError(f"f must be an operator or a mapping of scores, got {f!r}: pass conjugate(omega), not omega")

    @functools.wraps(f)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _forward():
            return f(*args, **kwargs)

    return forward
