"""What is maximised against: entropies, penalties, their algebra, and plain convex functions."""

from ._entropies import FermiDirac as FermiDirac
from ._entropies import Shannon as Shannon
from ._entropies import SquaredL2 as SquaredL2
from ._entropies import SquaredPNorm as SquaredPNorm
from ._entropies import Tsallis as Tsallis
from ._functions import Function as Function
from ._functions import separable as separable
from ._penalties import OWL as OWL
from ._penalties import Oscar as Oscar
from ._penalties import TotalVariation as TotalVariation
from ._penalties import count as count
from ._penalties import ranks as ranks
from ._penalties import serving as serving
from ._regularizer import Base as Base
from ._regularizer import Entropy as Entropy
from ._regularizer import Penalty as Penalty
from ._regularizer import Regularizer as Regularizer
from ._regularizer import Terms as Terms
