"""What it takes to add a base, a penalty, a domain or a kernel: classes to derive from, and a table.

Each of the three choices of an operator can grow without touching the other two, and none needs a derivative rule of
its own. The documentation shows one of each.
"""

from ._domains import Domain as Domain
from ._kernels import Kernel as Kernel
from ._kernels import register as register
from ._parameters import NON_NEGATIVE as NON_NEGATIVE
from ._parameters import POSITIVE as POSITIVE
from ._parameters import Range as Range
from ._parameters import parameter as parameter
from ._parameters import tree_class as tree_class
from ._regularizers import Base as Base
from ._regularizers import Entropy as Entropy
from ._regularizers import Penalty as Penalty
