"""Slow, independent answers in NumPy: no JAX, and nothing from smoothmax.

A *problem* is one slice of scores together with keyword hyper-parameters:

    maximise over y in a domain   <x, y> - Omega(y),
    Omega = gamma * (base + tv * TotalVariation(edges) + oscar * Oscar() + owl * OWL(weights))

| keyword | values |
|---|---|
| `base` | "shannon", "l2", "tsallis" (with `alpha`), "pnorm" (with `p`), "fermi" |
| `over` | "simplex" (the default), "capped" (`total`, `upper`), "box" (`lower`, `upper`), "permutahedron" (`vertex`) |

Everything is computed in long double (64-bit mantissa on x86): roots are enclosed until no number lies between the
ends, proxes are textbook algorithms. Each answer asserts its own sum before it is given away, and its optimality
conditions are functions of this package too (`*_residual`): a certificate. Masks really delete entries (`delete`).

| file | what it holds |
|---|---|
| `_roots` | enclosing a root, differences for derivatives |
| `_entropies` | the bases over simplex, capped simplex and box, and their certificates |
| `_penalties` | the proxes of the structured penalties |
| `_permutahedron` | projection, soft ranks, soft sort |
| `_problems` | problems put together: argmax, Omega, value, deletion |
| `_conic` | the same problems by a conic solver, straight from their definitions |
"""

from ._conic import conic, conic_maximum, quadratic
from ._entropies import (
    base_gradient,
    base_value,
    box,
    capped,
    coupled,
    entropy_residual,
    separable,
    shannon,
    squared_l2,
    squared_pnorm,
    tsallis,
)
from ._penalties import isotonic, oscar_weights, owl_prox, owl_residual, total_variation_prox, total_variation_residual
from ._permutahedron import permutahedron, permutahedron_residual, soft_rank, soft_sort
from ._problems import (
    DOMAIN,
    PENALTIES,
    argmax,
    delete,
    differences,
    infeasible,
    masked,
    omega,
    residual,
    rows,
    solution,
    value,
)
from ._roots import LD, bisect, derivative

__all__ = [
    "DOMAIN",
    "LD",
    "PENALTIES",
    "argmax",
    "base_gradient",
    "base_value",
    "bisect",
    "box",
    "capped",
    "conic",
    "conic_maximum",
    "coupled",
    "delete",
    "derivative",
    "differences",
    "entropy_residual",
    "infeasible",
    "isotonic",
    "masked",
    "omega",
    "oscar_weights",
    "owl_prox",
    "owl_residual",
    "permutahedron",
    "permutahedron_residual",
    "quadratic",
    "residual",
    "rows",
    "separable",
    "shannon",
    "soft_rank",
    "soft_sort",
    "solution",
    "squared_l2",
    "squared_pnorm",
    "total_variation_prox",
    "total_variation_residual",
    "tsallis",
    "value",
]
