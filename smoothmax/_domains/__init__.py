"""Where the weights may lie: one file a domain."""

from ._box import Box as Box
from ._capped_simplex import CappedSimplex as CappedSimplex
from ._domain import Domain as Domain
from ._permutahedron import Permutahedron as Permutahedron
from ._permutahedron import Ranks as Ranks
from ._permutahedron import Sorted as Sorted
from ._simplex import Simplex as Simplex
