"""Regularized max operators for JAX: mappings from scores to probabilities that are sparse, structured and learnable."""

from ._conjugate import Operator as Operator
from ._conjugate import conjugate as conjugate
from ._conjugate import forward_mode as forward_mode
from ._losses import fenchel_young_loss as fenchel_young_loss
from ._losses import fenchel_young_loss_with_integer_labels as fenchel_young_loss_with_integer_labels
from ._operators import entmax as entmax
from ._operators import entmax_value as entmax_value
from ._operators import fusedmax as fusedmax
from ._operators import fusedmax_value as fusedmax_value
from ._operators import oscarmax as oscarmax
from ._operators import oscarmax_value as oscarmax_value
from ._operators import pnormmax as pnormmax
from ._operators import pnormmax_value as pnormmax_value
from ._operators import softmax as softmax
from ._operators import softmax_value as softmax_value
from ._operators import sparsemax as sparsemax
from ._operators import sparsemax_value as sparsemax_value
from ._regularizers import OWL as OWL
from ._regularizers import Oscar as Oscar
from ._regularizers import Regularizer as Regularizer
from ._regularizers import Shannon as Shannon
from ._regularizers import SquaredL2 as SquaredL2
from ._regularizers import SquaredPNorm as SquaredPNorm
from ._regularizers import TotalVariation as TotalVariation
from ._regularizers import Tsallis as Tsallis
from ._regularizers import separable as separable
