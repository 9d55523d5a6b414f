"""`python -m smoothmax`: what is installed, and which implementations can serve, for a glance and for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform

import jax

import smoothmax

from ._kernels import TABLE, here, target


def report() -> str:
    """Versions, and each implementation: available, or why not."""
    versions = {
        "smoothmax": smoothmax.__version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()})),
    }
    lines = [f"{name:<10} {value}" for name, value in versions.items()]
    lines += ["", f"{'xla':<10} available (the reference: every platform)"]
    lines += [f"{name:<10} {_status(name)}" for name in TABLE]
    return "\n".join(lines)


def _status(name: str) -> str:
    if name == "native":
        from ._kernels.native import LIBRARY

        if LIBRARY.reason is not None:
            return f"not available: {LIBRARY.reason}; all runs on xla"
        return f"available (cpu; {LIBRARY.description})"
    problems = TABLE[name].values()
    platforms = " and ".join(sorted({p for kernels in problems for kernel in kernels for p in kernel.platforms}))
    if not any(map(here, problems)):
        return f"not available: it runs on {platforms}, and this machine has {target()}"
    return f"available ({platforms})"


if __name__ == "__main__":
    print(report())
