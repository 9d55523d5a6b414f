"""Weights of the entropies that one threshold per slice solves: Tsallis entropies and squared p-norms.

The problems, for scores x and z = x / gamma,

    argmax over y in the simplex of  <z, y> - (sum y^alpha - 1) / (alpha (alpha - 1))       (Tsallis, alpha >= 1)
    argmax over y in the simplex of  <z, y> - norm_p(y)^2 / 2                               (p-norm, 1 < p <= 2)

have solutions of one form. With ``b = alpha - 1`` or ``p - 1``, ``r = 1 / b`` and ``u = max(scale * z - tau, 0)``,

    y = u^r / sum u^r,        scale = b (Tsallis) or 1 (p-norm);

only the equation for the threshold differs. In the sums ``low``, ``mid``, ``high`` of u^(r-1), u^r, u^(r+1) it reads

    F(tau) = mid = 1   (Tsallis),        F(tau) = mid * high^((1 - r) / (1 + r)) = 1   (p-norm).

F falls as tau rises. With the largest score moved to 0 the largest u is -tau, and the root lies between -1 and the
threshold of d equal scores.

For alpha <= 2, and for every p, the powers are convex: `_convex.py`. For alpha > 2 they are concave, with infinite
slope where a position enters: `_concave.py`.

Only reductions touch the last axis, so it may be sharded. Deleted positions have u = 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .. import _kernels
from .._arrays import eps, total, varying_like
from ._concave import concave_weights
from ._convex import ANY_POWER, FIRST_POWER, LOWEST, NORM_POWER, P_NORM, SECOND_POWER, TSALLIS, Powers, convex_weights
from ._scores import Scores, Solved, answered, centred, first_true


def softmax_weights(x: jax.Array, gamma: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """`tsallis_weights` at alpha = 1."""
    return _kernels.run("threshold", implementation, _softmax, x, gamma, jnp.ones((), x.dtype))


def sparsemax_weights(x: jax.Array, gamma: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """`tsallis_weights` at alpha = 2, and `p_norm_weights` at p = 2."""
    return _kernels.run("threshold", implementation, _sparsemax, x, gamma, jnp.full((), 2, x.dtype))


def tsallis_weights(
    x: jax.Array, gamma: jax.Array, alpha: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """argmax over the simplex of <x, y> - gamma (sum y^alpha - 1) / (alpha (alpha - 1)).

    Args:
      x: scores `(*batch, d)`, float32 or float64, at any offset; -inf deletes a position.
      gamma: greater than 0, of the dtype of `x`: `()`, or `(*batch or ones, 1)`.
      alpha: at least 1, as `gamma`.
      implementation: None for the best one, or its name in the table of `_kernels`.

    Returns:
      The weights `(*batch, d)`: zeros for a slice of -inf, NaN for one with NaN or +inf or a NaN hyper-parameter, and
      for one whose loop did not arrive.
    """
    return _kernels.run("threshold", implementation, _tsallis, x, gamma, alpha)


def p_norm_weights(x: jax.Array, gamma: jax.Array, p: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """argmax over the simplex of <x, y> - gamma norm_p(y)^2 / 2, for 1 < p <= 2; arguments as `tsallis_weights`."""
    return _kernels.run("p_norm", implementation, _p_norm, x, gamma, p)


# The solvers in plain JAX.


def _softmax(x: jax.Array, gamma: jax.Array, alpha: jax.Array) -> jax.Array:
    scores, z = _scaled(x, gamma, alpha)
    return answered(_exponential_weights(z), scores)


def _sparsemax(x: jax.Array, gamma: jax.Array, alpha: jax.Array) -> jax.Array:
    scores, z = _scaled(x, gamma, alpha)
    one = jnp.ones((), z.dtype)
    return answered(convex_weights(z, _solvable(scores), one, TSALLIS, FIRST_POWER), scores)


def _tsallis(x: jax.Array, gamma: jax.Array, alpha: jax.Array) -> jax.Array:
    scores, z = _scaled(x, gamma, alpha)
    b = alpha - 1
    soft = b < eps(z)
    convex, concave = ~soft & (b <= 1), b > 1

    def solve(powers: Powers) -> Solved:
        return convex_weights(z, _solvable(scores) & convex, jnp.where(convex, b, 1), TSALLIS, powers)

    def unsolved() -> Solved:
        return jax.tree.map(
            lambda v: varying_like(v, z, b), Solved(jnp.zeros_like(z), jnp.zeros_like(scores.bad | concave))
        )

    solved = first_true(
        (jnp.all(b == 1), lambda: solve(FIRST_POWER)),
        (jnp.all(b == 0.5), lambda: solve(SECOND_POWER)),
        (jnp.any(convex), lambda: solve(ANY_POWER)),
        otherwise=unsolved,
    )
    solved = _replaced(solved, soft, lambda: _exponential_weights(z))
    solved = _replaced(solved, concave, lambda: concave_weights(z, _solvable(scores) & concave, b))
    return answered(solved, scores)


def _p_norm(x: jax.Array, gamma: jax.Array, p: jax.Array) -> jax.Array:
    scores, z = _scaled(x, gamma, p)
    b = p - 1

    def solve(powers: Powers) -> Solved:
        return convex_weights(z, _solvable(scores) & (b <= 1), b, P_NORM, powers)

    solved = first_true(
        (jnp.all(b == 1), lambda: solve(FIRST_POWER)),
        (jnp.all(b == 0.5), lambda: solve(SECOND_POWER)),
        otherwise=lambda: solve(NORM_POWER),
    )
    return answered(solved, scores)


def _scaled(x: jax.Array, gamma: jax.Array, parameter: jax.Array) -> tuple[Scores, jax.Array]:
    """The scores at the door, and over gamma, with numbers in place of -inf."""
    scores = centred(x, gamma, parameter)
    return scores, jnp.maximum(scores.z / gamma, -LOWEST[x.dtype.name])


def _replaced(solved: Solved, where: jax.Array, solve: Callable[[], Solved]) -> Solved:
    """Some slices solved in another way, which is looked into only if there are such."""

    def replaced() -> Solved:
        return jax.tree.map(lambda new, old: jnp.where(where, new, old), solve(), solved)

    return lax.cond(jnp.any(where), replaced, lambda: solved)


def _solvable(scores: Scores) -> jax.Array:
    return ~(scores.bad | scores.empty)


def _exponential_weights(z: jax.Array) -> Solved:
    e = jnp.exp(z)
    size = total(e)
    return Solved(e / size, size >= 1)
