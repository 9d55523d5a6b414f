"""What is kept of compiled programs: functions by what they are, and a bounded number of programs.

JAX keeps a compiled program for each function object that it has seen. A function that is written anew for each call,
`for ...: conjugate(lambda y: ...)(x)`, would be compiled and kept each time, until the process runs out of memory maps.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

# Operators whose programs are kept. A program takes some 200 of the 65,530 memory maps that Linux grants a process.
MOST_PROGRAMS = 64
# Pieces of code whose names are remembered: to find them takes a tenth of a millisecond.
MOST_CODES = 256

_PLAIN = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis))
_LIBRARIES = ("jax", "jaxlib", "numpy", "math", "builtins", "smoothmax")
_OPAQUE = {"IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"}  # what such code does, it may do differently the next time


class SameFunction:
    """A function that equals another of the same code, if all that the two refer to is the same and cannot change.

    Such a function is a constant of a program. Functions that refer to anything else (a list, an object with fields, a
    NumPy array) are equal only if they are one. What a name refers to may change too, until the function is called: an
    object compares what was there when it was made, and `as_it_is` makes one of now.
    """

    __slots__ = ("_key", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        try:
            self._key = ("code", _key_of_function(function, ()))
        except (_CanChange, ValueError):  # an empty cell is a ValueError
            self._key = ("identity", function)

    @property
    def constant(self) -> bool:
        """Whether nothing that it refers to can change, or be known in one trace alone."""
        return self._key[0] == "code"

    @property
    def traced(self) -> bool:
        """Whether it refers to a value of a trace that is going on."""
        try:
            return not self.constant and _holds_tracer(self.function)
        except ValueError:  # an empty cell
            return False

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameFunction) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.function)

    def __reduce__(self) -> Any:
        return SameFunction, (self.function,)


def as_it_is(constant: Any) -> Any:
    """A constant of a program as it is now: a function's names may refer to other things than when it was given."""
    return SameFunction(constant.function) if isinstance(constant, SameFunction) else constant


class _CanChange(Exception):
    """Something that a function refers to may change between two calls."""


class _Is:
    """A key that equals that of the same object alone, and keeps it alive."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def _key_of_function(function: Any, within: tuple[Any, ...]) -> Any:
    if not isinstance(function, types.FunctionType) or any(function.__code__ is code for code in within):
        raise _CanChange
    within = (*within, function.__code__)
    named = [
        function.__globals__[name] if name in function.__globals__ else vars(builtins).get(name)
        for name in _global_names(function.__code__)
    ]
    return function.__code__, tuple(_key_of_value(value, within) for value in (*_held(function), *named))


def _held(function: types.FunctionType) -> tuple[Any, ...]:
    """What a function refers to by itself, not by a name of its module; a ValueError if a cell is still empty."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    keyword, attributes = sorted((function.__kwdefaults__ or {}).items()), sorted(vars(function).items())
    return (*cells, *(function.__defaults__ or ()), *keyword, *attributes)


@functools.lru_cache(maxsize=MOST_CODES)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    names: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in _OPAQUE:
            raise _CanChange
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_global_names(constant))
    return tuple(sorted(names))


def _key_of_value(value: Any, within: tuple[Any, ...]) -> Any:
    if type(value) in _PLAIN:
        return type(value), repr(value)  # 0.0 and -0.0, 1 and True are not the same
    if type(value) is tuple:
        return tuple, tuple(_key_of_value(item, within) for item in value)
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        return _Is(value)
    return _Is(value) if _of_a_library(value) else _key_of_function(value, within)


def _of_a_library(value: Any) -> bool:
    """Whether it is a module, a class or a function of a library, known there by its name: not an object made there."""
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if not isinstance(home, str) or home.partition(".")[0] not in _LIBRARIES:
        return False
    if isinstance(value, (types.ModuleType, type)):
        return True
    return callable(value) and getattr(sys.modules.get(home), getattr(value, "__name__", ""), None) is value


def _holds_tracer(value: Any, depth: int = 4) -> bool:
    """Whether a value of a trace is in a function, or in what it refers to: containers and objects with fields."""
    if isinstance(value, Tracer):
        return True
    if depth == 0 or type(value) in _PLAIN or _of_a_library(value):
        return False
    if isinstance(value, types.FunctionType):
        inner = _held(value)
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    else:
        leaves = jax.tree.leaves(value)
        inner = leaves if not any(leaf is value for leaf in leaves) else [*getattr(value, "__dict__", {}).values()]
    return any(_holds_tracer(item, depth - 1) for item in inner)


def bounded_jit(function: Callable[..., Any], most: int = MOST_PROGRAMS, **options: Any) -> Callable[..., Any]:
    """`jax.jit`, which forgets all programs of the operator that was not used for longest.

    Args:
      function: its first argument is a pytree; one operator is one structure of it.
      most: operators whose programs are kept.
      **options: as for `jax.jit`.
    """

    @functools.lru_cache(maxsize=most)
    def programs(structure: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def of_its_own(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return jax.jit(of_its_own, **options)

    @functools.wraps(function)
    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        return programs(jax.tree.structure(first))(first, *args, **kwargs)

    return call


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` for a function of an operator, or of anything else with `functions`: those that the user wrote.

    There is no end of such functions, so of their programs a bounded number is kept. One that refers to a value of a
    trace that is going on is run within that trace: JAX cannot differentiate a program that closes over such a value.
    """
    program, of_functions = jax.jit(function, **options), bounded_jit(function, **options)

    @functools.wraps(function)
    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        functions = first.functions
        if any(f.traced for f in functions):
            return function(first, *args, **kwargs)
        return (of_functions if functions else program)(first, *args, **kwargs)

    return call
