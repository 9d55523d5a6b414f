"""The compiled library: where it is, whether it suits this JAX, and why not if it does not."""

from __future__ import annotations

import ctypes
import json
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

import jax

_HERE = pathlib.Path(__file__).parent
FILE = _HERE / ("libsmoothmax.dylib" if sys.platform == "darwin" else "libsmoothmax.so")
# What the build wrote about itself: {"built": bool, "because": a sentence}.
RECORD = _HERE / "build.json"

DTYPES = ("float32", "float64")


class Library(NamedTuple):
    """What came of loading it.

    Attributes:
      reason: why it cannot serve, as a sentence without its full stop; None where it can.
      description: how it was built and what it uses, for bug reports.
    """

    reason: str | None
    description: str


def target(problem: str, dtype: str) -> str:
    """The name of a handler, in the library and for XLA."""
    return f"smoothmax_{problem}_{dtype}"


def load(problems: Iterable[str]) -> Library:
    """Loads the library and registers its handlers, if there is one that suits."""
    if not FILE.exists():
        return Library(_why_missing(), "not built")
    try:
        library = ctypes.CDLL(str(FILE))
        version = library.smoothmax_ffi_major(), library.smoothmax_ffi_minor()
        library.smoothmax_instruction_set.restype = ctypes.c_char_p
        instructions = library.smoothmax_instruction_set().decode()
        handlers = {target(p, d): getattr(library, target(p, d)) for p in problems for d in DTYPES}
    except (OSError, AttributeError) as error:
        return Library(f"{FILE.name} cannot be loaded ({error}): reinstall smoothmax", "not loaded")
    reason = _unsuitable(version, _version_here())
    if reason is None:
        for name, handler in handlers.items():
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
            jax.ffi.register_ffi_target_as_batch_partitionable(name)
    return Library(reason, f"XLA FFI {version[0]}.{version[1]}, instruction set {instructions}")


def _why_missing() -> str:
    again = "install a C++ compiler and reinstall smoothmax"
    try:
        return f"it was not built: {json.loads(RECORD.read_text())['because']}"
    except (OSError, ValueError, KeyError):
        return f"it was not built when smoothmax was installed: {again}"


def _version_here() -> tuple[int, int] | None:
    """The version of XLA's FFI in this jaxlib, which its header tells; None where there is no header."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text()
    except OSError:
        return None
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return None if None in found else (int(found[0][1]), int(found[1][1]))  # type: ignore[index]


def _unsuitable(built: tuple[int, int], here: tuple[int, int] | None) -> str | None:
    """XLA takes what was built for its own major version and a minor version not above its own."""
    if here is None or (built[0] == here[0] and built[1] <= here[1]):
        return None
    return (
        f"it was built for XLA FFI {built[0]}.{built[1]}, and this jaxlib has {here[0]}.{here[1]}: reinstall smoothmax"
        ", which builds for the oldest jaxlib that it supports"
    )
