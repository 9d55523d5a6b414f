"""Kernels for CPUs in C++, called through XLA's foreign function interface: `implementation="native"`."""

from .. import Kernel, register
from . import _calls
from ._library import PROBLEMS, Library, load

LIBRARY: Library = load()


def _refuses(*args):
    return LIBRARY.reason or _calls.refuses(*args)


for _problem in PROBLEMS:
    register("native", _problem, Kernel(getattr(_calls, _problem), ("cpu",), _refuses))
