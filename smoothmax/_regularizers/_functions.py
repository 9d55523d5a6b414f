"""Convex functions that the user writes: any function of y, or a sum of one function over the coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._regularizer import Base, regularizer
import dataclasses

@regularizer
class Function(Base):
    fun: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    params: Any = None
    composes = False


@regularizer
class Separable(Base):
    phi: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})
    params: Any = None

def separable(phi, params=None):
    return Separable(phi, params)
