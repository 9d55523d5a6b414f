"""Slices too wide for registers: they lie in shared memory, and a pass goes along them piece by piece.

A slice is here what makes its pieces: nothing is computed before a pass asks for a number, and nothing is stored but
what `Machine.kept` and `Machine.chosen` store, in the place of the scores. So a thread needs few registers, many slices
are solved at a time, and one waits while others compute. Each thread loads only what it stored itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ..shared._machines import Machine, same
from . import _mosaic
from ._mosaic import mosaic

# Pieces that are fetched from the GPU's main memory at a time, and pieces that a pass takes at a time.
_FETCHED, _TOGETHER = 8, 2


class Pieces:
    """A slice. `make` leads from the number of a piece, and what was made of this piece already, to its array."""

    def __init__(self, make: Callable[[Any, dict[Pieces, Any]], Any]):
        self._make = make

    def at(self, i: Any, made: dict[Pieces, Any]) -> Any:
        if self not in made:
            made[self] = self._make(i, made)
        return made[self]


def machine(place: Any, layout: Any, log1p: Callable[..., jax.Array], log1p_down: Callable[..., jax.Array]) -> Machine:
    """For slices that lie in `place`, `(pieces, numbers)` of shared memory."""
    full = partial(_full, shape=place.shape[1:], layout=layout)

    def sums(function, *slices):
        def add(i, carry):
            return tuple(map(jnp.add, carry, _made(function, slices, i)))

        columns = len(jax.eval_shape(function, *[jax.ShapeDtypeStruct(place.shape[1:], jnp.float32)] * len(slices)))
        return tuple(map(jnp.sum, _along(place, add, (full(0.0),) * columns)))

    def most(function, *slices):
        return jnp.max(_along(place, lambda i, v: jnp.maximum(v, _made(function, slices, i)), full(-jnp.inf)))

    def keep(make):
        pieces = make()

        def store(i, carry):
            place[i] = pieces.at(i, {})
            return carry

        _along(place, store, ())

    def kept(pieces):
        keep(lambda: pieces)
        return stored(place, layout)

    def chosen(z, *cases):
        none = jnp.bool_(True)
        for wanted, solve in cases:
            pl.when(wanted)(partial(keep, solve))
            none = none & ~wanted
        pl.when(none)(partial(keep, lambda: Pieces(lambda i, _: full(0.0))))
        return stored(place, layout)

    return Machine(
        each=partial(_each, place),
        sums=sums,
        most=most,
        over_slices=same,
        chosen=chosen,
        log1p=log1p,
        log1p_down=log1p_down,
        kept=kept,
    )


def fetch(place: Any, ref: Any, row: Any, layout: Any) -> Pieces:
    """A slice `(pieces, numbers)` of the GPU's main memory, brought into shared memory."""
    pieces = place.shape[0]

    def some(start, count):
        arrays = [_mosaic.load(ref, (row, start + i), layout) for i in range(count)]
        for i, array in enumerate(arrays):
            place[start + i] = array

    whole = pieces // _FETCHED * _FETCHED

    def group(i, carry):
        some(i * _FETCHED, _FETCHED)
        return carry

    lax.fori_loop(0, pieces // _FETCHED, group, ())
    some(whole, pieces - whole)
    return stored(place, layout)


def stored(place: Any, layout: Any) -> Pieces:
    return Pieces(lambda i, _: _mosaic.load(place, (i,), layout))


def store(pieces: Pieces, place: Any, ref: Any, row: Any) -> None:
    """A slice to the GPU's main memory."""

    def one(i, carry):
        ref[row, i] = pieces.at(i, {})
        return carry

    _along(place, one, ())


def _made(function, slices, i):
    made = {}
    return function(*(pieces.at(i, made) for pieces in slices))


def _along(place, step, carry):
    pieces = place.shape[0]
    return lax.fori_loop(0, pieces, step, carry, unroll=_TOGETHER if pieces % _TOGETHER == 0 else 1)


def _each(place, function, *slices):
    both = Pieces(lambda i, made: function(*(pieces.at(i, made) for pieces in slices)))
    form = jax.eval_shape(function, *[jax.ShapeDtypeStruct(place.shape[1:], jnp.float32)] * len(slices))
    if not isinstance(form, tuple):
        return both
    return tuple(Pieces(lambda i, made, k=k: both.at(i, made)[k]) for k in range(len(form)))


def _full(value: float, shape: tuple[int, ...], layout: Any) -> jax.Array:
    full = jnp.full(shape, value, jnp.float32)
    return full if layout is None else mosaic.layout_cast(full, layout)
