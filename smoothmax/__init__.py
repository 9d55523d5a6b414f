"""Regularized max operators for JAX: sparse, structured and learnable mappings from scores to weights."""

from ._attention import dot_product_attention as dot_product_attention
from ._bounded import bounded as bounded
from ._bounded import unbounded as unbounded
from ._conjugate import Operator as Operator
from ._conjugate import conjugate as conjugate
from ._conjugate import forward_mode as forward_mode
from ._domains import Box as Box
from ._domains import CappedSimplex as CappedSimplex
from ._domains import Permutahedron as Permutahedron
from ._domains import Simplex as Simplex
from ._losses import fenchel_young_loss as fenchel_young_loss
from ._losses import fenchel_young_loss_with_integer_labels as fenchel_young_loss_with_integer_labels
from ._losses import linear_fenchel_young_loss as linear_fenchel_young_loss
from ._operators import entmax as entmax
from ._operators import fusedmax as fusedmax
from ._operators import oscarmax as oscarmax
from ._operators import pnormmax as pnormmax
from ._operators import softmax as softmax
from ._operators import sparsemax as sparsemax
from ._regularizers import OWL as OWL
from ._regularizers import FermiDirac as FermiDirac
from ._regularizers import Oscar as Oscar
from ._regularizers import Regularizer as Regularizer
from ._regularizers import Shannon as Shannon
from ._regularizers import SquaredL2 as SquaredL2
from ._regularizers import SquaredPNorm as SquaredPNorm
from ._regularizers import TotalVariation as TotalVariation
from ._regularizers import Tsallis as Tsallis
from ._regularizers import separable as separable
from ._scaling import length_scaled as length_scaled
from ._selections import soft_rank as soft_rank
from ._selections import soft_sort as soft_sort
from ._selections import soft_topk as soft_topk
from ._values import entmax_value as entmax_value
from ._values import fusedmax_value as fusedmax_value
from ._values import oscarmax_value as oscarmax_value
from ._values import pnormmax_value as pnormmax_value
from ._values import softmax_value as softmax_value
from ._values import sparsemax_value as sparsemax_value

__version__ = "0.2.0"
