"""The one table of implementations: which problem is solved by which kernel, where, and what it serves.

A solver in plain JAX is the reference, called "xla": it serves every platform, every dtype and every order of
derivative. A kernel solves the same problem, with the same arguments and results, on one platform. To add one, write a
file beside this one and enter it with `register`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from ._choice import by_platform

Solver = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One implementation of one problem.

    Attributes:
      call: takes what the reference takes and returns what it returns, and refers to no value of a trace beside.
      platforms: where it runs: "cpu", "cuda", "rocm", "tpu".
      refuses: from the arguments to the reason why it cannot serve them, or None. Only shapes and dtypes are looked at.
      default: whether it is taken where the caller names no implementation; or a function of the arguments that tells.
    """

    call: Solver
    platforms: tuple[str, ...]
    refuses: Callable[..., str | None] = lambda *_, **__: None
    default: bool | Callable[..., bool] = True


# implementation -> problem -> its kernels, each for other platforms
TABLE: dict[str, dict[str, tuple[Kernel, ...]]] = {}


def register(implementation: str, problem: str, kernel: Kernel) -> None:
    """Enters a kernel, in place of what ran on its platforms. Programs traced before keep what they have."""
    problems = TABLE.setdefault(implementation, {})
    others = (k for k in problems.get(problem, ()) if not set(k.platforms) & set(kernel.platforms))
    problems[problem] = (*others, kernel)


def names() -> tuple[str, ...]:
    """What `implementation` may be, beside None."""
    return ("xla", *TABLE)


def check(implementation: str | None) -> None:
    """Raises if there is no implementation of that name."""
    if implementation is not None and implementation not in names():
        raise ValueError(
            f"implementation must be None or one of {', '.join(map(repr, names()))}, got {implementation!r}: "
            "leave it out for the best that serves"
        )


def device_kind() -> str:
    """What the devices call themselves for which programs are traced: those of the mesh in use, or the default ones."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return (jax.devices()[0] if device is None else device).device_kind


def target() -> str:
    """The platform of those devices."""
    kind = device_kind()
    return "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"


def _offers(kernel: Kernel, *args: Any, **static: Any) -> bool:
    wanted = kernel.default(*args, **static) if callable(kernel.default) else kernel.default
    return wanted and kernel.refuses(*args, **static) is None


def here(kernels: tuple[Kernel, ...]) -> Kernel | None:
    """The one of them that runs where the program will."""
    return next((k for k in kernels if set(_aliases()) & set(k.platforms)), None)


def _aliases() -> tuple[str, ...]:
    """What kernels call the platform of those devices."""
    return {"gpu": ("cuda", "rocm")}.get(target(), (target(),))


def refuse(implementation: str, reason: str) -> NotImplementedError:
    """The error of a named implementation that cannot serve."""
    return NotImplementedError(
        f"implementation={implementation!r} cannot serve here: {reason}. Use implementation='xla', which serves "
        "everything, or None, which takes the best that serves"
    )


def serving(
    problem: str, implementation: str | None, *args: Any, optional: bool = False, **static: Any
) -> dict[str, Solver]:
    """The kernels that serve, one for each platform that has one; the arguments are those of `run`. `static` is what
    kernels are told beside the arrays."""
    if implementation == "xla":
        return {}
    if implementation is None:
        offered = {}
        for problems in TABLE.values():
            for kernel in problems.get(problem, ()):
                if _offers(kernel, *args, **static):
                    offered |= dict.fromkeys(kernel.platforms, partial(kernel.call, **static))
        return offered
    kernels = TABLE[implementation].get(problem, ())
    if not kernels:
        reason = f"it has no kernel for the problem {problem!r}"
    elif (kernel := here(kernels)) is None:
        platforms = [p for k in kernels for p in k.platforms]
        reason = f"it runs on {' and '.join(platforms)}, and this program is for {target()}"
    elif (reason := kernel.refuses(*args, **static)) is None:
        return dict.fromkeys(kernel.platforms, partial(kernel.call, **static))
    if optional:
        return {}
    raise refuse(implementation, reason)


def run(problem: str, implementation: str | None, reference: Solver, *args: Any, optional: bool = False) -> Any:
    """Solves a problem by the named implementation, or by the best that serves each platform.

    Args:
      problem: its name in the table.
      implementation: "xla", a name in the table, or None.
      reference: the solver in plain JAX.
      *args: its arguments, arrays.
      optional: whether a named implementation that lacks this problem may leave it to the reference. So it is with the
        products of the backward pass: an implementation has to solve, and may multiply.

    Raises:
      NotImplementedError: the named implementation cannot serve.
    """
    return choose(serving(problem, implementation, *args, optional=optional), implementation, reference, args)


def choose(kernels: dict[str, Solver], implementation: str | None, reference: Solver, args: tuple[Any, ...]) -> Any:
    """The kernel of the platform for which the program is compiled in the end, or the reference where there is none."""
    if not kernels:
        return reference(*args)
    others = {"default": reference} if implementation is None else {}
    return by_platform(kernels | others, _aliases(), *args)


# The implementations; each enters its kernels.
from . import native as native  # noqa: E402
from . import pallas as pallas  # noqa: E402
