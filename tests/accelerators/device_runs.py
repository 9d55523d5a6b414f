"""What `on_device.py` runs on an accelerator, and what is expected of it: float64, by plain JAX on a CPU."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
from cases.tolerances import FUNCTION32, PROMISE32

# Slices of each width: more than a block of them, and few where they are wide.
ROWS = {1: 24, 5: 150, 50: 130, 131: 40, 300: 24, 1024: 24}
# Ways to come to a program: hyper-parameters one a slice or one for all, and what may stand around it.
SLICES, SHARED, HALF, VMAP, SHARD_MAP, SCAN = "slices", "shared", "bfloat16", "vmap", "shard_map", "scan"
AROUND = VMAP, SHARD_MAP, SCAN  # these have the numbers of SLICES
# (implementation, width, way). Without a name the kernels are taken where they serve.
RUNS = (
    *(("pallas", width, SLICES) for width in (1, 5, 131, 1024)),
    *((None, width, SLICES) for width in (50, 300)),
    *((None, 50, way) for way in (SHARED, HALF, *AROUND)),
    *(("xla", width, SLICES) for width in (5, 131)),
)
WIDEST_FUNCTION = 131  # of a user's, which is solved by a matrix of that width
# A change of gamma and of the scores, relative to the largest. A slice in which something changes then by more than the
# tolerance has a score next to a border, so that rounding decides, and is not compared.
NUDGE = 1e-6

Results = list[np.ndarray]  # weights, value, gradient in scores, those in hyper-parameters by name; float64


@dataclasses.dataclass(frozen=True)
class Run:
    """A case by an implementation, at a width, in one of the ways above."""

    id: str
    implementation: str | None
    width: int
    way: str

    @property
    def key(self) -> str:
        """What the expected numbers go by: they are the same for all implementations."""
        return f"{self.id} {self.width} {SLICES if self.way in AROUND else self.way}"

    @property
    def tolerances(self) -> tuple[float, float, float, float]:
        """Of weights, value, gradient in scores and in a hyper-parameter, for numbers of order one, else times the
        largest of the slice. The value is a sum along the slice; the last one too, and ranks count in it."""
        if self.way == HALF:
            return 2**-8, 2**-8, 2**-7, 2**-7  # the result is rounded; a gradient is made of such weights
        promise = FUNCTION32 if cases.BY_ID[self.id].plain else PROMISE32
        return promise, 10 * promise, 10 * promise, 100 * promise

    @property
    def exceptions(self) -> float:
        """The share of slices whose gradients may be others: in float32 no segment is split for a force that is a
        rounding of the scores, and among many positions some are that small."""
        return 1 / 8 if self.width > 300 and cases.BY_ID[self.id].family.penalties else 0.0

    def __str__(self) -> str:
        return f"{self.id}, width {self.width}, {self.way}, {self.implementation}"


def everything() -> Iterator[Run]:
    """All runs, those first that take long to compile."""
    for implementation, width, way in sorted(RUNS, key=lambda run: -run[1]):
        for case in sorted(cases.REPRESENTATIVES, key=lambda case: -len(case.family.penalties)):
            if case.family.rowwise or (width <= WIDEST_FUNCTION and way != SHARED):
                yield Run(case.id, implementation, width, way)


def arguments(run: Run) -> tuple[Any, ...]:
    """Hyper-parameters, scores, mask, and what weights and value are pulled back from."""
    case, d = cases.BY_ID[run.id], run.width
    n = 12 if run.way == SHARED else ROWS[d]  # a gradient that is a sum over slices asks each of them to be steady
    rng = np.random.default_rng(d)
    x = cases.scores(n, d, seed=d)
    x[1::4] = np.round(x[1::4])  # ties
    where = rng.uniform(size=x.shape) < 0.7
    where[::2] = True
    where[:, : case.least] = True
    x[2::4, case.least :: 3] = -np.inf  # deleted
    v, c = rng.normal(size=x.shape), rng.normal(size=n)
    params = {name: np.asarray(value, np.float32) for name, value in case.params(d).items()}
    if run.way != SHARED:
        tail = () if not case.family.rowwise else (1,)
        params = {name: np.broadcast_to(a, (n, *(a.shape or tail))).copy() for name, a in params.items()}
    if run.way not in (SHARED, HALF):  # what is for its slice alone
        x[-1, 0], x[-2, -1], x[-3], where[-4], params["gamma"][-5] = np.nan, np.inf, -np.inf, False, -1
    dtype = jnp.bfloat16 if run.way == HALF else np.float32
    return params, x.astype(dtype), where, v.astype(dtype), c.astype(dtype)


def solved(run: Run, implementation: str | None, args: tuple[Any, ...], way: str) -> Results:
    """The results of the case's one program, with what stands around it in this way."""
    (y, value), (bars, x_bar) = _program(run.id, implementation, way)(*args)
    return [np.asarray(a, np.float64) for a in (y, value, x_bar, *(bars[name] for name in sorted(bars)))]


@functools.cache
def _program(id: str, implementation: str | None, way: str) -> Callable[..., Any]:
    family = dataclasses.replace(cases.BY_ID[id].family, implementation=implementation)
    return jax.jit(functools.partial(_around, way, cases.everything(family)))


def _around(way: str, function: Callable[..., Any], *args: Any) -> Any:
    if way == SHARD_MAP:
        mesh = jax.make_mesh((1,), ("devices",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
        spec = jax.sharding.PartitionSpec("devices")
        return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)(*args)
    if way not in (VMAP, SCAN):
        return function(*args)
    if way == VMAP:
        mapped = jax.vmap(function)
    else:
        mapped = lambda *args: jax.lax.map(lambda half: jax.checkpoint(function)(*half), args)
    halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), args)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), mapped(*halves))


# --- What is expected --------------------------------------------------------------------------------------


def expected(run: Run) -> tuple[Results, Results]:
    """The results in float64, and by how much each number moves when gamma and the scores do."""
    params, x, *others = jax.tree.map(lambda a: a if a.dtype == bool else a.astype(np.float64), arguments(run))
    size = np.max(abs(x), -1, keepdims=True, initial=0, where=np.isfinite(x))

    def at(nudge):
        moved = np.where(np.isfinite(x), x + nudge * size * np.cos(1e4 * x), x)  # what is tied stays so
        return solved(run, "xla", ({**params, "gamma": params["gamma"] * (1 + nudge)}, moved, *others), SLICES)

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), np.errstate(invalid="ignore"):
        low, middle, high = at(-NUDGE), at(0.0), at(NUDGE)
        return middle, [np.fmax(abs(a - b), abs(c - b)) for a, b, c in zip(low, middle, high, strict=True)]


def stored(run: Run) -> dict[str, np.ndarray]:
    """The same as entries of a file."""
    flat = [np.concatenate([a.ravel() for a in part]) for part in expected(run)]
    return {run.key: np.stack(flat).astype(np.float32), f"{run.key} of": np.asarray(_checksum(run))}


def loaded(run: Run, path: str, like: Results) -> tuple[Results, Results]:
    """What `stored` put into a file, for results of the shapes of `like`."""
    with np.load(path) as file:
        if run.key not in file or file[f"{run.key} of"] != _checksum(run):
            raise ValueError(f"{path} does not hold what is expected of these arguments: write it again")
        parts = file[run.key].astype(np.float64)
    ends = np.cumsum([a.size for a in like])[:-1]
    middle, moved = ([a.reshape(b.shape) for a, b in zip(np.split(part, ends), like, strict=True)] for part in parts)
    return middle, moved


def _checksum(run: Run) -> int:
    leaves = jax.tree.leaves(arguments(run))
    return zlib.crc32(b"".join(np.ascontiguousarray(a.astype(np.float32)).tobytes() for a in leaves))
