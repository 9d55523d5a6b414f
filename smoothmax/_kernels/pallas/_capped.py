"""Weights with bounds and a given sum, for TPUs: a block of slices is read once and solved where it lies."""

from __future__ import annotations

from typing import Any

import jax

from . import _capped_equations
from ._threshold import by_slices, refuses

# As there; 21 were counted where each position has its own bound.
_ARRAYS = 24


def refuses_capped_weights(x: Any, gamma: Any, alpha: Any, total: Any, upper: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    return refuses(x, _ARRAYS)


def capped_weights(
    x: jax.Array, gamma: Any, alpha: Any, total: Any, upper: Any, *, interpret: Any = False
) -> jax.Array:
    """Weights of float32 slices `(*batch, d)` for Tsallis' entropy, alpha >= 1, or Fermi-Dirac's, whose alpha is 0.

    The other arguments and the result are those of `_solvers.capped_weights`.
    """
    return by_slices(_capped_equations.capped, x, (gamma, alpha, total, upper), interpret)
