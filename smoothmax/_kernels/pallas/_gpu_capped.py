"""Weights with bounds and a given sum, for GPUs: a slice is read once and solved in registers."""

from __future__ import annotations

from typing import Any

import jax

from . import _capped_equations
from ._gpu_threshold import by_slices, pays_tsallis_weights, refuses

# As there; with bounds, a pass makes more numbers of each position.
_WIDEST = 2048


def refuses_capped_weights(x: Any, gamma: Any, alpha: Any, total: Any, upper: Any) -> str | None:
    """Why the kernel cannot serve, or None."""
    return refuses(x, _WIDEST)


pays_capped_weights = pays_tsallis_weights


def capped_weights(
    x: jax.Array, gamma: Any, alpha: Any, total: Any, upper: Any, *, interpret: Any = False
) -> jax.Array:
    """Weights of float32 slices `(*batch, d)` for Tsallis' entropy, alpha >= 1, or Fermi-Dirac's, whose alpha is 0.

    The other arguments and the result are those of `_solvers.capped_weights`.
    """
    return by_slices(_capped_equations.capped, x, (gamma, alpha, total, upper), interpret, whole=True)
