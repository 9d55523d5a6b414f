"""The named mappings from scores to probabilities, and the max operators whose gradients they are."""

from __future__ import annotations

import jax

from ._conjugate import conjugate
from ._regularizers import Oscar, Parameter, Shannon, SquaredL2, SquaredPNorm, TotalVariation, Tsallis
from ._slices import Axis


def softmax(x, axis: Axis = -1, *, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * Shannon()).argmax(x, axis, where=where)


def softmax_value(x, axis: Axis = -1, *, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * Shannon()).max(x, axis, where=where)


def sparsemax(x, axis: Axis = -1, *, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * SquaredL2()).argmax(x, axis, where=where)


def sparsemax_value(x, axis: Axis = -1, *, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * SquaredL2()).max(x, axis, where=where)


def entmax(x, axis: Axis = -1, *, alpha: Parameter = 1.5, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * Tsallis(alpha)).argmax(x, axis, where=where)


def entmax_value(x, axis: Axis = -1, *, alpha: Parameter = 1.5, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * Tsallis(alpha)).max(x, axis, where=where)


def pnormmax(x, axis: Axis = -1, *, p: Parameter = 1.5, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * SquaredPNorm(p)).argmax(x, axis, where=where)


def pnormmax_value(x, axis: Axis = -1, *, p: Parameter = 1.5, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * SquaredPNorm(p)).max(x, axis, where=where)


def fusedmax(x, axis: Axis = -1, *, lam: Parameter = 0.1, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * (SquaredL2() + lam * TotalVariation())).argmax(x, axis, where=where)


def fusedmax_value(x, axis: Axis = -1, *, lam: Parameter = 0.1, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * (SquaredL2() + lam * TotalVariation())).max(x, axis, where=where)


def oscarmax(x, axis: Axis = -1, *, lam: Parameter = 0.01, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * (SquaredL2() + lam * Oscar())).argmax(x, axis, where=where)


def oscarmax_value(x, axis: Axis = -1, *, lam: Parameter = 0.01, where=None, gamma: Parameter = 1.0) -> jax.Array:
    return conjugate(gamma * (SquaredL2() + lam * Oscar())).max(x, axis, where=where)
