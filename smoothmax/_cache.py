"""What is kept of compiled programs: functions by what they are, and a bounded number of programs.

JAX keeps a compiled program for each function object that it has seen. A function that is written anew for each call,
`for ...: conjugate(lambda y: ...)(x)`, would be compiled and kept each time, until the process runs out of memory maps.
"""

from __future__ import annotations

import builtins
import dis
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer

# Operators whose programs are kept. A program takes some 200 of the 65,530 memory maps that Linux grants a process.
MOST_PROGRAMS = 64

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
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    named = [
        function.__globals__[name] if name in function.__globals__ else vars(builtins).get(name)
        for name in _global_names(function.__code__)
    ]
    keyword = sorted((function.__kwdefaults__ or {}).items())
    values = (*held, *named, *(function.__defaults__ or ()), *keyword)
    return function.__code__, tuple(_key_of_value(value, within) for value in values)


@functools.lru_cache(maxsize=MOST_PROGRAMS)
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
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    named = isinstance(value, (types.ModuleType, type)) or callable(value)
    if named and isinstance(home, str) and home.partition(".")[0] in _LIBRARIES and not hasattr(value, "__self__"):
        return _Is(value)
    return _key_of_function(value, within)


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
