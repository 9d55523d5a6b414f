"""Kernels for CPUs in C++, called through XLA's foreign function interface: `implementation="native"`."""

from functools import partial

from .. import Kernel, register
from . import _calls
from ._library import Library, load

LIBRARY: Library = load(_calls.HANDLERS)


def _refuses(*args):
    return LIBRARY.reason or _calls.refuses(*args)


for _problem in _calls.HANDLERS:
    register("native", _problem, Kernel(partial(_calls.call, _problem), ("cpu",), _refuses))
