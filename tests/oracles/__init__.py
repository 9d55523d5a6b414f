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

from ._conic import conic as conic
from ._conic import conic_maximum as conic_maximum
from ._conic import quadratic as quadratic
from ._entropies import (
    base_gradient as base_gradient,
)
from ._entropies import (
    base_value as base_value,
)
from ._entropies import (
    box as box,
)
from ._entropies import (
    capped as capped,
)
from ._entropies import (
    entropy_residual as entropy_residual,
)
from ._entropies import (
    separable as separable,
)
from ._entropies import (
    shannon as shannon,
)
from ._entropies import (
    squared_l2 as squared_l2,
)
from ._entropies import (
    squared_pnorm as squared_pnorm,
)
from ._entropies import (
    tsallis as tsallis,
)
from ._penalties import (
    isotonic as isotonic,
)
from ._penalties import (
    oscar_weights as oscar_weights,
)
from ._penalties import (
    owl_prox as owl_prox,
)
from ._penalties import (
    owl_residual as owl_residual,
)
from ._penalties import (
    total_variation_prox as total_variation_prox,
)
from ._penalties import (
    total_variation_residual as total_variation_residual,
)
from ._permutahedron import (
    permutahedron as permutahedron,
)
from ._permutahedron import (
    permutahedron_residual as permutahedron_residual,
)
from ._permutahedron import (
    soft_rank as soft_rank,
)
from ._permutahedron import (
    soft_sort as soft_sort,
)
from ._problems import (
    argmax as argmax,
)
from ._problems import (
    delete as delete,
)
from ._problems import (
    differences as differences,
)
from ._problems import (
    infeasible as infeasible,
)
from ._problems import (
    masked_argmax as masked_argmax,
)
from ._problems import (
    masked_value as masked_value,
)
from ._problems import (
    omega as omega,
)
from ._problems import (
    residual as residual,
)
from ._problems import (
    rows as rows,
)
from ._problems import (
    value as value,
)
from ._roots import LD as LD
from ._roots import bisect as bisect
from ._roots import derivative as derivative
