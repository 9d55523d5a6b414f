"""The Fenchel-conjugate builder: from a regularizer and a domain to the max operator and its gradient mapping.

    max_{Omega, D}(x) = max over y in D of <x, y> - Omega(y)
    Pi_{Omega, D}(x)  = the y that attains it = grad max_{Omega, D}(x)

The two `jax.custom_vjp` rules below are the only ones in the library; every operator is differentiated by them. Let
J be the Jacobian of Pi in x. It is the Hessian of the max, hence symmetric, so J y_bar serves reverse and forward
mode alike. A hyper-parameter theta of Omega enters the optimality condition just as x does, with the opposite sign, so
its derivative goes through the same product; one of the domain moves y directly (`respond`):

    x_bar     = J y_bar
    theta_bar = - < d/dtheta grad Omega_theta(y), J y_bar >        (implicit function theorem)
    k_bar     = < dy/dk, y_bar >

For the max the envelope theorem gives x_bar = y, theta_bar = - d/dtheta Omega_theta(y), and
k_bar = < dy/dk, x - grad Omega(y) >.

Each forward rule calls the differentiated function itself, and each backward rule is ordinary JAX in the weights it
saved: so the rules can be differentiated again, to any order. None of them knows a regularizer, a domain or a kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from . import _kernels
from ._arrays import by_partitioner
from ._cache import bounded_jit
from ._domains import Domain, Simplex
from ._parameters import as_floats
from ._problem import Found, Problem, multiply_out
from ._regularizers import Base, Function, Regularizer
from ._slices import Axis, normal_axes, to_slices

_solve_traced = jax.jit(Problem.solve)


def _solve(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    """Traced once for the weights, the value and all their rules, which takes half of the time to trace them. What a
    function of the user's own refers to may be known in one trace alone."""
    if problem.base.of_a_function:
        return problem.solve(x)
    # JAX traces a rule with an empty mesh where there was none before, and takes that for another context.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _solve_traced(problem, x)


# --- Reverse mode: the definition --------------------------------------------------------------------------


@jax.custom_vjp
def _argmax(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    return _solve(problem, x)


def _argmax_fwd(problem: Problem, x: jax.Array) -> Any:
    y, found = _argmax(problem, x)
    return (y, found), (problem, y, found)


def _argmax_bwd(residuals: Any, cotangents: Any) -> Any:
    problem, y, found = residuals
    product = problem.pull(y, found, cotangents[0])
    _, theta_vjp = jax.vjp(lambda p: p.gradient(y, found), problem)
    [bar] = theta_vjp(-product)
    bar = dataclasses.replace(bar, domain=problem.pull_domain(y, found, cotangents[0]))
    return bar, problem.active(y, found, product)


_argmax.defvjp(_argmax_fwd, _argmax_bwd)


@jax.custom_vjp
def _max(problem: Problem, x: jax.Array) -> jax.Array:
    return problem.attained(x, *_argmax(problem, x))


def _max_fwd(problem: Problem, x: jax.Array) -> Any:
    y, found = _argmax(problem, x)
    scores = x if jax.tree.leaves(problem.domain) else None  # all that needs them is the bar of the domain
    return problem.attained(x, y, found), (problem, y, problem.allowed(x), found, scores)


def _max_bwd(residuals: Any, cotangent: jax.Array) -> Any:
    problem, y, allowed, found, scores = residuals
    _, theta_vjp = jax.vjp(lambda p: p.value(y, allowed, found), problem)
    [bar] = theta_vjp(-cotangent)
    if scores is not None:
        steepness = jnp.where(scores == -jnp.inf, 0, scores) - problem.gradient(y, found)
        v = problem.gather(y, found, cotangent * steepness)
        bar = dataclasses.replace(bar, domain=problem.pull_domain(y, found, v))
    return bar, cotangent * y


_max.defvjp(_max_fwd, _max_bwd)


# --- Forward mode: the same products, for jvp, jacfwd, hessian and linearize ---------------------------------


def _linear(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a linear map keeps for its transpose are its arguments, not what it makes of them on the way."""
    return jax.checkpoint(function, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]


@jax.custom_jvp
def _argmax_forward(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    return _solve(problem, x)


@_argmax_forward.defjvp
def _argmax_jvp(primals: Any, tangents: Any) -> Any:
    y, found = _argmax_forward(*primals)

    def push(problem: Problem, y: jax.Array, found: Found, problem_dot: Problem, x_dot: jax.Array) -> jax.Array:
        _, g_dot = jax.jvp(lambda p: p.gradient(y, found), (problem,), (problem_dot,))
        moved = problem.push_domain(y, found, problem_dot.domain)
        return problem.push(y, found, problem.active(y, found, x_dot) - g_dot) + moved

    y_dot = _linear(push)(primals[0], y, found, *tangents)
    integers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), found)
    return (y, found), (y_dot, integers)


@jax.custom_jvp
def _max_forward(problem: Problem, x: jax.Array) -> jax.Array:
    return problem.attained(x, *_argmax_forward(problem, x))


@_max_forward.defjvp
def _max_jvp(primals: Any, tangents: Any) -> Any:
    problem, x = primals
    y, found = _argmax_forward(problem, x)

    def push(problem: Problem, x: jax.Array, y: jax.Array, found: Found, problem_dot: Problem, x_dot: jax.Array) -> Any:
        allowed = problem.allowed(x)
        _, value_dot = jax.jvp(lambda p: p.value(y, allowed, found), (problem,), (problem_dot,))
        moved = problem.push_domain(y, found, problem_dot.domain)
        deleted = x == -jnp.inf
        steepness = jnp.where(deleted, 0, x) - problem.gradient(y, found)
        dot = jnp.where(deleted, 0, x_dot) * y + problem.gather(y, found, steepness) * moved
        return jnp.sum(dot, axis=-1, keepdims=True) - value_dot

    return problem.attained(x, y, found), _linear(push)(problem, x, y, found, *tangents)


# --- The pair of functions -----------------------------------------------------------------------------------


def _run_argmax(op: Operator, x: Any, where: Any, *, axis: Axis) -> jax.Array:
    slices, (omega, over), layout = to_slices(x, axis, where, op.omega, op.over)
    problem = multiply_out(omega, over, slices.dtype, op.implementation)
    y, _ = (_argmax_forward if op.forward else _argmax)(problem, slices)
    return layout.weights(y)


def _run_max(op: Operator, x: Any, where: Any, *, axis: Axis) -> jax.Array:
    slices, (omega, over), layout = to_slices(x, axis, where, op.omega, op.over)
    problem = multiply_out(omega, over, slices.dtype, op.implementation)
    return layout.values((_max_forward if op.forward else _max)(problem, slices))


# Compiled once for a shape, a dtype and a structure of the terms: the hyper-parameters are operands. A function of the
# user's own is part of the structure, and there is no end of those: of their programs a bounded number is kept.
_RUN = {run: jax.jit(run, static_argnames=("axis",)) for run in (_run_argmax, _run_max)}
_RUN_FUNCTION = {run: bounded_jit(run, static_argnames=("axis",)) for run in (_run_argmax, _run_max)}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["omega", "over"], meta_fields=["implementation", "forward"]
)
@dataclasses.dataclass(frozen=True)
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
    implementation: str | None = None
    forward: bool = False

    def __post_init__(self) -> None:
        # JAX also builds operators of placeholders; only what a user gives can be wrong.
        if isinstance(self.omega, Regularizer) and isinstance(self.over, Domain):
            check_expression(self.omega)
            self.over.check_base(self.omega)
            _kernels.check(self.implementation)

    def max(self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None) -> jax.Array:
        r"""The regularized max, $\max_{y \in D} \langle x, y \rangle - \Omega(y)$, for each slice.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one slice over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Values in the dtype of `x`, of its shape without `axis`; -inf for a slice with nothing allowed.
        """
        return self._run(_run_max, x, axis, where)

    def argmax(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """The weights that attain `max`: the gradient of `max`, and the mapping from scores to weights.

        Args:
          x: scores, any real dtype; integers become floats.
          axis: the slices: an int, a tuple (one slice over the flattened axes) or None (over all).
          where: boolean mask that broadcasts to `x`: False deletes a position, as a score of -inf does.

        Returns:
          Weights in the dtype and shape of `x`, in the domain, or zero where nothing is allowed.
        """
        return self._run(_run_argmax, x, axis, where)

    def __call__(
        self, x: jax.typing.ArrayLike, axis: Axis = -1, *, where: jax.typing.ArrayLike | None = None
    ) -> jax.Array:
        """`argmax`: an operator can stand wherever `jax.nn.softmax` can."""
        return self.argmax(x, axis, where=where)

    def _run(self, run: Callable[..., jax.Array], x: Any, axis: Axis, where: Any) -> jax.Array:
        """Runs the compiled function, after what only known values can tell."""
        shape = jnp.shape(x)
        axes = normal_axes(axis, shape)  # raises where jit would, of a list, with a word of its own
        self.over.check_length(math.prod(shape[a] for a in axes))
        of_a_function = any(atom.of_a_function for atom in self.omega.atoms())
        compiled = functools.partial((_RUN_FUNCTION if of_a_function else _RUN)[run], axis=axis)
        return by_partitioner(compiled, x, () if run is _run_argmax else axes)(as_floats(self), x, where)


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
        reach them. A value that the function merely closes over is a constant. Write the function once, outside of
        loops, and pass what varies as params: a program is compiled for each function.
      implementation: how to solve: "xla", which serves everything, "native" (compiled kernels for CPUs), "pallas"
        (kernels for TPUs and, by name only, for GPUs), or None for the best that serves the platform, the dtype and
        the operator.

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
        return omega
    if over is not None and not isinstance(over, Domain):
        raise TypeError(f"over must be a domain such as smoothmax.Simplex(), got {over!r}: make one, or leave it out")
    return Operator(_regularizer(omega, params), over or Simplex(), implementation, _FORWARD.get())


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

F = TypeVar("F", bound=Callable[..., Any])
_FORWARD: contextvars.ContextVar[bool] = contextvars.ContextVar("forward", default=False)
_MAPPINGS: list[Callable[..., Any]] = []


def mapping(function: F) -> F:
    """Enters a public mapping, or its value, into the list of those that no one may mistake for a regularizer."""
    _MAPPINGS.append(function)
    return function


@contextlib.contextmanager
def _forward() -> Iterator[None]:
    token = _FORWARD.set(True)
    try:
        yield
    finally:
        _FORWARD.reset(token)


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
      >>> x = jnp.array([0.5, 0.2, -1.0])
      >>> print(jax.jacfwd(sm.forward_mode(sm.sparsemax))(x))
      [[ 0.5 -0.5  0. ]
       [-0.5  0.5  0. ]
       [ 0.   0.   0. ]]
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
