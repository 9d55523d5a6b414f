"""The native library: its line in the table and in the report, and what goes wrong when it is built or loaded."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from smoothmax import __main__ as main
from smoothmax import _kernels
from smoothmax._kernels import native
from smoothmax._kernels.native import _calls, _library

pytestmark = [
    pytest.mark.skipif(native.LIBRARY.reason is not None, reason=str(native.LIBRARY.reason)),
    pytest.mark.xdist_group("native"),
]


def test_the_table():
    assert set(_kernels.TABLE["native"]) >= {"threshold", "p_norm", "capped", "chain", "ranks", "segment_mean"}
    [kernel] = _kernels.TABLE["native"]["threshold"]
    assert kernel.refuses(jnp.zeros(3, jnp.float32)) is None
    assert kernel.refuses(jnp.zeros(3, jnp.bfloat16)) == "it computes in float32 and float64, not in bfloat16"


def test_report():
    line = next(line for line in main.report().splitlines() if line.startswith("native"))
    assert "available (cpu; XLA FFI 0." in line


def test_another_version_is_noticed(monkeypatch):
    monkeypatch.setattr(_library, "_version_here", lambda: (0, 0))
    library = _library.load(_calls.HANDLERS)
    assert library.reason is not None and "this jaxlib has 0.0: reinstall smoothmax" in library.reason


def test_a_missing_library_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "FILE", tmp_path / "none.so")
    monkeypatch.setattr(_library, "RECORD", tmp_path / "build.json")
    assert "it was not built when smoothmax was installed" in str(_library.load(_calls.HANDLERS).reason)
    (tmp_path / "build.json").write_text(json.dumps({"built": False, "because": "no C++ compiler was found"}))
    assert _library.load(_calls.HANDLERS).reason == "it was not built: no C++ compiler was found"
    monkeypatch.setattr(_library, "FILE", tmp_path / "bad.so")
    (tmp_path / "bad.so").write_text("no library")
    assert "cannot be loaded" in str(_library.load(_calls.HANDLERS).reason)


@pytest.mark.parametrize("environment", [{"CXX": "false"}, {"CXX": "no-such-compiler"}, {"SMOOTHMAX_NATIVE": "0"}])
def test_the_build_succeeds_without_a_compiler(environment, tmp_path):
    pytest.importorskip("hatchling")
    root = os.path.dirname(os.path.dirname(__file__))
    code = (
        "import sys, pathlib, hatch_build\n"
        "print(hatch_build.compile_library(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))"
    )
    arguments = [sys.executable, "-c", code, f"{root}/{'smoothmax/_kernels/native/src'}", str(tmp_path)]
    out = subprocess.run(
        arguments, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert "built=False" in out.stdout
