"""How a file of kernels says which problems it solves: by a table of these, `KERNELS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Served(NamedTuple):
    """A problem that a kernel solves; all three take its arguments."""

    call: Callable[..., Any]
    refuses: Callable[..., str | None]  # why it cannot serve them
    pays: Callable[..., bool] = lambda *_, **__: True  # whether it is worth being taken where nobody asked for it
