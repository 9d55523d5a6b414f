"""Compiles the native kernels when smoothmax is installed or a wheel is made; without a compiler, all else goes on.

SMOOTHMAX_NATIVE=0 leaves them out (a pure wheel), 1 makes a failure an error; CXX names the compiler.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "smoothmax/_kernels/native"
LIBRARY = "libsmoothmax.dylib" if sys.platform == "darwin" else "libsmoothmax.so"
RECORD = "build.json"
# A newer runtime takes what was built with older headers, so these are the oldest that smoothmax supports. A Python for
# which there are none has newer runtimes only.
HEADERS = ["jaxlib==0.8.0; python_version < '3.15'", "jaxlib; python_version >= '3.15'"]

FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# Each instruction set is a copy of the kernels; the best is chosen when they run. Others have the baseline alone.
_V3 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt"]  # `best` in bindings.cc asks for the same
_V4 = [*_V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
INSTRUCTION_SETS = {"x86_64_v3": _V3, "x86_64_v4": _V4} if platform.machine().lower() in ("x86_64", "amd64") else {}


class Outcome(NamedTuple):
    """What came of the build.

    Attributes:
      built: whether there is a library.
      because: why not, or with what, as a sentence without its full stop.
    """

    built: bool
    because: str


class NativeBuildHook(BuildHookInterface):
    """Puts the library and a record of its making into the wheel, or into the tree of an editable install."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        wanted = self.target_name == "wheel" and _unwanted() is None  # nothing is compiled for a source archive
        return HEADERS if wanted and importlib.util.find_spec("jaxlib") is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        package, self._folder = pathlib.Path(self.root) / PACKAGE, tempfile.mkdtemp()
        folder = pathlib.Path(self._folder)
        outcome = compile_library(package / "src", folder)
        if not outcome.built and os.environ.get("SMOOTHMAX_NATIVE") == "1":
            raise RuntimeError(f"SMOOTHMAX_NATIVE=1, but the native kernels were not built: {outcome.because}")
        (folder / RECORD).write_text(json.dumps(outcome._asdict()))
        print(
            f"smoothmax: native kernels {'built with' if outcome.built else 'not built:'} {outcome.because}",
            file=sys.stderr,
        )
        made = [RECORD, LIBRARY] if outcome.built else [RECORD]
        if version == "editable":
            (package / LIBRARY).unlink(missing_ok=True)
            for name in made:
                shutil.copy(folder / name, package / name)
            return
        build_data["force_include"] |= {str(folder / name): f"{PACKAGE}/{name}" for name in made}
        if outcome.built:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            shutil.rmtree(self._folder, ignore_errors=True)


def compile_library(sources: pathlib.Path, folder: pathlib.Path, flags: tuple[str, ...] = ()) -> Outcome:
    """Compiles and links in `folder`, where the library will be."""
    unwanted, include = _unwanted(), _include()
    if unwanted is not None:
        return Outcome(False, unwanted)
    if include is None:
        return Outcome(
            False,
            "jaxlib's headers are not there; install jaxlib, or leave build isolation on, and reinstall smoothmax",
        )
    compiler = str(_compiler())
    known = [f"-DSMOOTHMAX_{name.upper()}" for name in INSTRUCTION_SETS]
    jobs = {"bindings.o": ["bindings.cc", "-O2", "-isystem", str(include), *known], "baseline.o": ["kernels.cc"]}
    for name, instructions in INSTRUCTION_SETS.items():
        jobs[f"{name}.o"] = ["kernels.cc", *instructions, f"-DSMOOTHMAX_TARGET={name}"]

    def run(*arguments: str) -> None:
        subprocess.run([compiler, *FLAGS, *flags, *arguments], cwd=sources, check=True, capture_output=True, text=True)

    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(lambda job: run("-c", *job[1], "-o", str(folder / job[0])), jobs.items()))
        run("-shared", *(str(folder / name) for name in jobs), "-o", str(folder / LIBRARY), "-pthread")
    except subprocess.CalledProcessError as error:
        lines = (
            [line for line in error.stderr.splitlines() if "error" in line]
            or error.stderr.splitlines()
            or ["no message"]
        )
        return Outcome(False, f"{compiler} failed ({lines[0].strip()})")
    return Outcome(True, _version(compiler))


def _unwanted() -> str | None:
    """Why there is nothing to compile, or None."""
    if os.environ.get("SMOOTHMAX_NATIVE") == "0":
        return "SMOOTHMAX_NATIVE=0 was set when smoothmax was installed"
    if sys.platform not in ("linux", "darwin"):
        return f"there is no build for {sys.platform}"
    if _compiler() is None:
        return "no C++ compiler was found when smoothmax was installed; install g++ or clang++ and reinstall smoothmax"
    return None


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    names = [named] if named else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def _include() -> pathlib.Path | None:
    """jaxlib's headers, found without importing it."""
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        include = pathlib.Path(place) / "include"
        if (include / "xla" / "ffi" / "api" / "ffi.h").exists():
            return include
    return None


def _version(compiler: str) -> str:
    lines = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else compiler
