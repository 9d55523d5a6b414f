"""An operator multiplied out, and everything that its derivative rule asks of it.

    maximise over y in D   <x, y> - gamma (base(y) + sum of penalties(y))

**Solving** follows one theorem. The subdifferential of a penalty R depends only on the order and the ties of the
coordinates, and a base recovers y from the scores by one increasing function of every coordinate, cut off at bounds
that are the same for all of them, which changes neither; so the optimality conditions of the two parts separate, and

    Pi_{base + R, D}(x) = Pi_{base, D}(prox_R(x)).

What the proxes and the domain found, segments, groups and order, is handed on to the derivatives as integers. Off the
ties, J is the Jacobian of the base over the domain after an averaging over every segment and group; nothing is guessed
again from the values.

**What moves y.** The scores and hyper-parameters of the regularizer move it through J; those of the domain move it
directly: `respond` is y written as a function of them, with everything held that stays as it is (which positions are
free, the curvature there).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._arrays import total
from ._domains import Domain
from ._parameters import tree_class
from ._regularizers import Base, Penalty, Regularizer, Terms


class Found(NamedTuple):
    """What the solvers found beside the weights, as pytrees of integers.

    Attributes:
      penalties: one entry for each kind of penalty, in the order of their proxes.
      domain: what the domain needs for its derivatives.
    """

    penalties: tuple[Any, ...]
    domain: Any


@tree_class
class Problem:
    """`gamma * (base + penalties)` over a domain, on slices `(*batch, d)`; its leaves are placed hyper-parameters.

    Attributes:
      gamma: strength of the base.
      base: a strictly convex regularizer.
      penalties: the terms of each kind, with their strengths, gamma multiplied in.
      domain: where y may lie.
      implementation: by which kernels to solve, or None for the best; part of the structure.
    """

    gamma: jax.Array
    base: Base
    penalties: tuple[Terms, ...]
    domain: Domain
    implementation: str | None = dataclasses.field(metadata={"static": True})

    @property
    def functions(self) -> tuple[Any, ...]:
        """Those of the user's own, by which programs are told apart."""
        return self.base.functions

    def solve(self, x: jax.Array) -> tuple[jax.Array, Found]:
        """The weights for scores with -inf at deleted positions, and what was found."""
        found = []
        # A prox moves with its scores, and the rounding of what it adds up grows with them: so it sees them centred.
        top = jnp.max(x, axis=-1, keepdims=True)
        top = jnp.where(jnp.isinf(top), 0, top)
        if self.penalties:
            x = self._raised(x - top)
        for terms in self.penalties:
            x, ties = _kind(terms).prox(terms, x, self.implementation)
            found.append(ties)
        if self.penalties and not self.domain.shift_invariant:
            x = x + top
        y, at_domain = self.domain.solve(self.base, x, self.gamma, self.implementation)
        return y, Found(tuple(found), at_domain)

    def _raised(self, x: jax.Array) -> jax.Array:
        """Scores with the greatest at 0, and those without a chance of any weight no lower than that takes: a sum or a
        mean with one of -1e9 would lose all digits of the others."""
        reach = self.domain.reach(self.base, x.dtype)
        if reach is None:
            return x
        lowest = 1.1 * self.gamma * reach  # a tenth more than it takes, for rounding
        for terms in self.penalties:
            spread = _kind(terms).spread(terms, x)
            if spread is None:
                return x
            lowest += spread
        return jnp.where(x == -jnp.inf, x, jnp.maximum(x, -lowest))

    def attained(self, x: jax.Array, y: jax.Array, found: Found) -> jax.Array:
        """<x, y> - Omega(y) as `(*batch, 1)`, -inf for a slice without an allowed position."""
        value = self.domain.linear(x, y) - self.value(y, self.allowed(x), found)
        return jnp.where(jnp.all(x == -jnp.inf, axis=-1, keepdims=True), -jnp.inf, value)

    def allowed(self, x: jax.Array) -> jax.Array | None:
        """The positions that are not deleted, if the value needs them and `Domain.active` does not tell."""
        return x != -jnp.inf if self.base.counts_zeros and not self.domain.knows_deleted else None

    def value(self, y: jax.Array, allowed: jax.Array | None, found: Found) -> jax.Array:
        """Omega(y) at a solution, as `(*batch, 1)`. A penalty has the value <g, y> for each of its subgradients g."""
        value = self.gamma * self.base.value(y, self.domain.active(y, found.domain) if allowed is None else allowed)
        if self.penalties:
            value += total(self._subgradient(found, y) * self._averaged(found, y, y))
        return value

    def gradient(self, y: jax.Array, found: Found) -> jax.Array:
        """A subgradient of Omega at a solution; anything finite where a position has no weight."""
        g = self.gamma * self.base.gradient(y)
        if not self.penalties:
            return g
        # Deleted positions hold the penalties' share alone: a product that meets it is not 0 there.
        return jnp.where(self.domain.active(y, found.domain), g, 0) + self._subgradient(found, y)

    # The product with J, in reverse mode and, its transpose, in forward mode.

    def pull(self, y: jax.Array, found: Found, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """J v for reverse mode: as it moves scores, and as it moves hyper-parameters of the regularizer, which leave
        all ties. At a deleted position it holds the mean of the segment around it: see `active`."""
        product = self.domain.product(self.base, y, found.domain, v, self.gamma, self.implementation)
        return self._averaged(found, y, product), self._averaged(self._tied(found, y), y, product)

    def push(self, y: jax.Array, found: Found, x_dot: jax.Array, g_dot: jax.Array) -> jax.Array:
        """J (x_dot - g_dot) for forward mode, by plain JAX: these are tangents, and a program that JAX transposes holds
        no kernels."""
        v = self.gather(y, found, self.active(y, found, x_dot)) - self.gather(y, self._tied(found, y), g_dot)
        return self.domain.product(self.base, y, found.domain, v, self.gamma, "xla")

    def active(self, y: jax.Array, found: Found, v: jax.Array) -> jax.Array:
        """`v` at the positions that take part, 0 elsewhere. Without penalties a product is 0 there by itself."""
        return jnp.where(self.domain.active(y, found.domain), v, 0) if self.penalties else v

    # What the hyper-parameters of the domain move.

    def pull_domain(self, y: jax.Array, found: Found, v: jax.Array) -> Domain:
        """< dy/dk, v > for each hyper-parameter k of the domain, in the form of the domain."""
        if not jax.tree.leaves(self.domain):
            return self.domain
        return self.domain.pull(self.base, y, found.domain, v, self.implementation)

    def push_domain(self, y: jax.Array, found: Found, domain_dot: Domain) -> jax.Array:
        """What a tangent of the domain moves `y` by."""
        if not jax.tree.leaves(self.domain):
            return jnp.zeros_like(y)
        respond = lambda domain: domain.respond(self.base, y, found.domain)  # noqa: E731
        return jax.jvp(respond, (self.domain,), (domain_dot,))[1]

    def _subgradient(self, found: Found, y: jax.Array) -> jax.Array:
        pairs = zip(self.penalties, found.penalties, strict=True)
        g = [_kind(terms).subgradient(terms, ties, y) for terms, ties in pairs]
        return sum(g[1:], start=g[0])

    def _tied(self, found: Found, y: jax.Array) -> Found:
        """What was found, with all equal coordinates tied that a hyper-parameter cannot move apart."""
        pairs = zip(self.penalties, found.penalties, strict=True)
        tied = (_kind(terms).tied(terms, ties, y, self.domain.active(y, found.domain)) for terms, ties in pairs)
        return found._replace(penalties=tuple(tied))

    def _averaged(self, found: Found, y: jax.Array, v: jax.Array) -> jax.Array:
        """Averages over what was tied, the last kind first. A step of a chain may fall beside a deleted position, and
        its share of a subgradient then stands there: so the mean of a segment is spread to its deleted positions too.
        """
        for terms, ties in reversed([*zip(self.penalties, found.penalties, strict=True)]):
            v = _kind(terms).average(ties, self.domain.active(y, found.domain), v, self.implementation)
        return v

    def gather(self, y: jax.Array, found: Found, v: jax.Array) -> jax.Array:
        """The transpose of `_averaged`: what `v` has at deleted positions counts for their segment. JAX 0.8 can
        transpose a scan again only if the scan came out of `vjp`."""
        if not self.penalties:
            return v
        _, transpose = jax.vjp(lambda u: self._averaged(found, y, u), jnp.zeros_like(v))
        return transpose(v)[0]


def multiply_out(omega: Regularizer, domain: Domain, dtype: Any, implementation: str | None) -> Problem:
    """Sorts the terms of an expression that has a base, its hyper-parameters placed, into a `Problem`."""
    terms = list(omega.terms())
    [(gamma, base)] = [(strength, atom) for strength, atom in terms if isinstance(atom, Base)]
    kinds: dict[type[Penalty], list[Any]] = {}
    for strength, atom in terms:
        if isinstance(atom, Penalty):
            kinds.setdefault(atom.kind, []).append((jnp.asarray(strength, dtype), atom))
    penalties = tuple(tuple(kinds[kind]) for kind in sorted(kinds, key=lambda kind: kind.order))
    domain.check_placed(bool(penalties))
    return Problem(jnp.asarray(gamma, dtype), base, penalties, domain, implementation)


def _kind(terms: Terms) -> type[Penalty]:
    return terms[0][1].kind
