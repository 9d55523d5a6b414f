"""Peers written in Triton: a kernel compiles and tries a dozen configurations when it is first called."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import Any

MODULES = "adasplash.triton_entmax_v2", "adasplash.adasplash_v2"


def kernels() -> list[Any]:
    """The kernels of those modules that are loaded."""
    if "triton" not in sys.modules:
        return []
    from triton.runtime import Autotuner  # pyright: ignore[reportMissingImports]

    modules = [vars(sys.modules[name]) for name in MODULES if name in sys.modules]
    return [kernel for names in modules for kernel in names.values() if isinstance(kernel, Autotuner)]


def load(module: str) -> Any:
    """The module, whose kernels shall not try for long."""
    loaded: Any = importlib.import_module(module)
    from triton.testing import do_bench  # pyright: ignore[reportMissingImports]

    for kernel in kernels():
        kernel.do_bench = functools.partial(do_bench, warmup=5, rep=20)
    return loaded


def forget() -> None:
    """What they found beside other work they find again when next called."""
    for kernel in kernels():
        kernel.cache.clear()


def compiled(run: Callable[[], Any], processes: int, until: float) -> None:
    """Lets processes compile a share of the configurations each, which Triton then finds on disk.

    To be called before the device is touched: a process is forked.
    """

    def share(k: int) -> None:
        for kernel in kernels():
            kernel.configs = kernel.configs[k::processes] or kernel.configs[:1]
        run()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=share, args=(k,)) for k in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
