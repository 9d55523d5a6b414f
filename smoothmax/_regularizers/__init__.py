"""The nouns of the library: entropies, penalties, their algebra, and plain convex functions."""

from ._composite import Found as Found
from ._composite import allowed_positions as allowed_positions
from ._composite import gradient as gradient
from ._composite import pull as pull
from ._composite import push as push
from ._composite import solve as solve
from ._composite import value as value
from ._entropies import Shannon as Shannon
from ._entropies import SquaredL2 as SquaredL2
from ._entropies import SquaredPNorm as SquaredPNorm
from ._entropies import Tsallis as Tsallis
from ._functions import Function as Function
from ._functions import Separable as Separable
from ._functions import separable as separable
from ._penalties import OWL as OWL
from ._penalties import Oscar as Oscar
from ._penalties import TotalVariation as TotalVariation
from ._regularizer import Base as Base
from ._regularizer import Parameter as Parameter
from ._regularizer import Penalty as Penalty
from ._regularizer import Regularizer as Regularizer
