"""Threads of a GPU that share a slice: how each one learns what the others hold.

A block has 128 threads, `count` neighbouring ones for each slice. An array of 128 numbers is one number a thread. What
is to be known elsewhere is written to a board in shared memory and read from there.

One barrier an exchange is enough: the board has two sides, and exchanges take turns. Who reads a side has passed the
barrier after it was written, and who writes to it again has passed the one of the exchange in between, at which no
thread arrives before it has read. A loop ends on the side it began with. All threads of a block do all exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from . import _mosaic

Numbers = Sequence[jax.Array]
Both = Callable[[Numbers, Numbers], Numbers]

# Two sides; rows, for that many numbers a thread; the threads, and half as many places before and behind them, which
# are read but never used.
ROWS, _MARGIN = 3, _mosaic.THREADS // 2
BOARD = (2, ROWS, _mosaic.THREADS + 2 * _MARGIN)


class Threads:
    """The threads of a block.

    Attributes:
      count: how many share a slice, a power of two.
      place: which of them each one is.
    """

    def __init__(self, count: int, place: jax.Array, board: Any, barrier: Callable[[], None]):
        self.count, self.place, self.barrier = count, place, barrier
        self._board, self._side = board, 0

    def loop_body(self, body: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A body that leaves the board as it found it: the program of a loop knows one side to begin with."""

        def balanced(state: Any) -> Any:
            side = self._side
            state = body(state)
            if self._side != side:
                self.barrier()
                self._side = side
            return state

        return balanced

    def neighbour(self, by: int, numbers: Numbers, nothing: Numbers) -> list[jax.Array]:
        """What the thread `by` places before holds, or behind if it is negative; `nothing` beyond the slice."""
        if self.count <= abs(by):
            return list(nothing)
        there = self.place >= by if by > 0 else self.place < self.count + by
        [found] = self._read(numbers, (by,))
        return [jnp.where(there, a, b) for a, b in zip(found, nothing, strict=True)]

    def before(self, numbers: Numbers, both: Both, nothing: Numbers, sign: int = 1) -> Numbers:
        """All numbers of the threads before, taken together by `both(earlier, later)`, which is associative."""
        numbers, by = self.neighbour(sign, numbers, nothing), 1
        while by < self.count:
            numbers, by = both(self.neighbour(sign * by, numbers, nothing), numbers), 2 * by
        return numbers

    def behind(self, numbers: Numbers, both: Both, nothing: Numbers) -> Numbers:
        """All numbers of the threads behind, by `both(later, earlier)`."""
        return self.before(numbers, both, nothing, sign=-1)

    def all(self, numbers: Numbers, both: Both) -> Numbers:
        """All numbers of a slice taken together, the same bits in each of its threads; `both` commutes."""
        by = 1
        while by < self.count:
            before, behind = self._read(numbers, (by, -by))
            odd = (self.place & by) != 0
            numbers = both(numbers, [jnp.where(odd, a, b) for a, b in zip(before, behind, strict=True)])
            by *= 2
        return numbers

    def _read(self, numbers: Numbers, shifts: Sequence[int]) -> list[list[jax.Array]]:
        side, self._side = self._side, 1 - self._side
        rows = range(len(numbers))
        for row, number in enumerate(numbers):
            self._board[side, row, pl.ds(_MARGIN, _mosaic.THREADS)] = number
        self.barrier()
        return [[self._board[side, row, pl.ds(_MARGIN - by, _mosaic.THREADS)] for row in rows] for by in shifts]
