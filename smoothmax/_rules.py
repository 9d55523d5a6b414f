"""The derivative rules of every operator.

Every operator is differentiated by the two `jax.custom_vjp` of this file, `argmax` and `max_`; attention and the linear
loss have more of their own, for kernels and for chunks. Let J be the Jacobian of Pi in x. It is the Hessian of the max,
hence symmetric, so J y_bar serves reverse and forward mode alike. A hyper-parameter theta of Omega enters the
optimality condition just as x does, with the opposite sign, so its derivative goes through the same product; one of the
domain moves y directly (`respond`):

    x_bar     = J y_bar
    theta_bar = - < d/dtheta grad Omega_theta(y), J y_bar >        (implicit function theorem)
    k_bar     = < dy/dk, y_bar >

For the max the envelope theorem gives x_bar = y, theta_bar = - d/dtheta Omega_theta(y), and
k_bar = < dy/dk, x - grad Omega(y) >.

Each forward rule calls the differentiated function itself, and each backward rule is ordinary JAX in the weights it
saved: so the rules can be differentiated again, to any order. None of them knows a regularizer, a domain or a kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._arrays import no_cotangent
from ._cache import compiled
from ._problem import Found, Problem

_solve_traced = compiled(Problem.solve)


def _solve(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    """Traced once for the weights, the value and all their rules, which takes half of the time to trace them;
    but for a function of the user's own that refers to what may change, or be known in one trace alone."""
    if not all(function.constant for function in problem.functions):
        return problem.solve(x)
    # JAX traces a rule with an empty mesh where there was none before, and takes that for another context.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _solve_traced(problem, x)


# --- Reverse mode: the definition --------------------------------------------------------------------------


def _kept(arguments: Any) -> Any:
    """Arguments to be kept for the backward rule. JAX notes the places of those that it sees again, and miscounts them
    where a gradient inside of `scan` is differentiated again (seen with 0.10 and 0.12): so it gets to see others."""

    def another(a: jax.Array) -> jax.Array:
        if a.dtype == bool:
            return a | False
        return a if jnp.issubdtype(a.dtype, jax.dtypes.extended) else a * 1  # keys know no product

    return jax.tree.map(another, arguments)


@jax.custom_vjp
def argmax(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    return _solve(problem, x)


def _argmax_fwd(problem: Problem, x: jax.Array) -> Any:
    y, found = argmax(problem, x)
    return (y, found), (_kept(problem), y, found)


def _argmax_bwd(residuals: Any, cotangents: Any) -> Any:
    problem, y, found = residuals
    product, of_theta = problem.pull(y, found, cotangents[0])
    _, theta_vjp = jax.vjp(lambda p: p.gradient(y, found), problem)
    [bar] = theta_vjp(-of_theta)
    bar = dataclasses.replace(bar, domain=problem.pull_domain(y, found, cotangents[0]))
    return bar, problem.active(y, found, product)


argmax.defvjp(_argmax_fwd, _argmax_bwd)


@jax.custom_vjp
def max_(problem: Problem, x: jax.Array) -> jax.Array:
    return problem.attained(x, *argmax(problem, x))


def _max_fwd(problem: Problem, x: jax.Array) -> Any:
    y, found = argmax(problem, x)
    scores = x if jax.tree.leaves(problem.domain) else None  # all that needs them is the bar of the domain
    # Differentiated by its own rule, and not through a kernel. XLA merges the two solutions.
    return max_(problem, x), (*_kept((problem, scores)), y, problem.allowed(x), found)


def _max_bwd(residuals: Any, cotangent: jax.Array) -> Any:
    problem, scores, y, allowed, found = residuals
    _, theta_vjp = jax.vjp(lambda p: p.value(y, allowed, found), problem)
    [bar] = theta_vjp(-cotangent)
    if scores is not None:
        v = problem.gather(y, found, cotangent * _steepness(problem, scores, y, found))
        bar = dataclasses.replace(bar, domain=problem.pull_domain(y, found, v))
    return bar, cotangent * y


max_.defvjp(_max_fwd, _max_bwd)


def _steepness(problem: Problem, x: jax.Array, y: jax.Array, found: Found) -> jax.Array:
    """x - grad Omega(y): how fast <x, y> - Omega(y) grows with each weight."""
    return jnp.where(x == -jnp.inf, 0, x) - problem.gradient(y, found)


# --- Forward mode: the same products, for jvp, jacfwd, hessian and linearize ---------------------------------


def _linear(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a linear map keeps for its transpose are its arguments, not what it makes of them on the way."""
    return jax.checkpoint(function, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]


@jax.custom_jvp
def argmax_forward(problem: Problem, x: jax.Array) -> tuple[jax.Array, Found]:
    return _solve(problem, x)


@argmax_forward.defjvp
def _argmax_jvp(primals: Any, tangents: Any) -> Any:
    y, found = argmax_forward(*primals)

    def push(problem: Problem, y: jax.Array, found: Found, problem_dot: Problem, x_dot: jax.Array) -> jax.Array:
        _, g_dot = jax.jvp(lambda p: p.gradient(y, found), (problem,), (problem_dot,))
        moved = problem.push_domain(y, found, problem_dot.domain)
        return problem.push(y, found, x_dot, g_dot) + moved

    y_dot = _linear(push)(primals[0], y, found, *tangents)
    return (y, found), (y_dot, jax.tree.map(no_cotangent, found))


@jax.custom_jvp
def max_forward(problem: Problem, x: jax.Array) -> jax.Array:
    return problem.attained(x, *argmax_forward(problem, x))


@max_forward.defjvp
def _max_jvp(primals: Any, tangents: Any) -> Any:
    problem, x = primals
    y, found = argmax_forward(problem, x)

    def push(problem: Problem, x: jax.Array, y: jax.Array, found: Found, problem_dot: Problem, x_dot: jax.Array) -> Any:
        allowed = problem.allowed(x)
        _, value_dot = jax.jvp(lambda p: p.value(y, allowed, found), (problem,), (problem_dot,))
        moved = problem.push_domain(y, found, problem_dot.domain)
        steepness = _steepness(problem, x, y, found)
        dot = jnp.where(x == -jnp.inf, 0, x_dot) * y + problem.gather(y, found, steepness) * moved
        return jnp.sum(dot, axis=-1, keepdims=True) - value_dot

    return problem.attained(x, y, found), _linear(push)(problem, x, y, found, *tangents)
