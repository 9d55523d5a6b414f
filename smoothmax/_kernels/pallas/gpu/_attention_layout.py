"""How the arguments of attention on GPUs are laid out, in blocks, and how its kernels are run on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...._arrays import varying_like
from ..shared._attention import Rules, lengths_of, scalars_of, whole
from ..shared._flash import Head
from ._flash_blocks import Plan, Staged, stretch
from ._mosaic import mosaic

# Queries of a block, and keys of one: where values are averaged, and elsewhere, or with wide heads, where registers are
# dear: with 128 for each of its threads a multiprocessor has four blocks at a time, and one waits while others compute.
ROWS, COLUMNS, FEWER = 64, 128, 64
# Numbers of a row of a tile in shared memory, as the matrix unit wants it. Wider heads would need more registers.
TILE, WIDEST = 64, 128
# Marks of blocks are read together: so many in a line, and by so many, since 128 threads copy them; 256 lines at most.
LINE, LINES, MOST = 4, 32, 1024


class Arrays(NamedTuple):
    """The arguments as the kernels take them."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    b: jax.Array  # (B, N): alpha - 1
    scale: jax.Array  # (B, N)
    bias: jax.Array | None  # float32, (B or 1, N or 1, T or 1, S)


class How(NamedTuple):
    """What is static about a call."""

    is_causal: bool
    window: tuple[int, int] | None
    interpret: Any


def arrays_of(query: Any, key: Any, value: Any, bias: Any, scale: Any, alpha: Any, gamma: Any) -> Arrays:
    b, scale = (jnp.broadcast_to(a, query.shape[:3:2]) for a in scalars_of(scale, alpha, gamma, query.shape[2]))
    bias = None if bias is None else _pairs(bias.astype(jnp.float32) / gamma, query, key)
    return Arrays(filled(query, ROWS), filled(key, COLUMNS), filled(value, COLUMNS), b, scale, bias)


def rules_of(query: Any, key: Any, mask: Any, query_lengths: Any, key_lengths: Any) -> Rules:
    """The mask in bfloat16: 1 where a query may see a key, else 0."""
    mask = None if mask is None else _pairs(mask.astype(jnp.bfloat16), query, key)
    return Rules(mask, *lengths_of(query, key, query_lengths, key_lengths))


def _pairs(array: jax.Array, query: Any, key: Any) -> jax.Array:
    """`(B, N, T, S)`, or 1 for each of them but S, filled up with zeros to whole blocks."""
    more = 0 if array.shape[2] == 1 else -query.shape[1] % ROWS
    array = jnp.broadcast_to(array, (*array.shape[:3], key.shape[1]))
    return jnp.pad(array, ((0, 0), (0, 0), (0, more), (0, -key.shape[1] % COLUMNS)))


def filled(array: jax.Array, block: int) -> jax.Array:
    """`(B, length, heads, size)`, filled up with zeros to whole blocks and tiles."""
    more = whole(array.shape[1], block) - array.shape[1], whole(array.shape[3], TILE) - array.shape[3]
    return jnp.pad(array, ((0, 0), (0, more[0]), (0, 0), (0, more[1])))


def columns_of(arrays: Arrays, rules: Rules) -> int:
    """Keys of a block where values are averaged. A bias or a mask takes registers too."""
    narrow = max(arrays.q.shape[3], arrays.v.shape[3]) <= TILE and arrays.bias is None and rules.mask is None
    return COLUMNS if narrow else FEWER


class Place(NamedTuple):
    """Where in the arrays a step of the grid works."""

    plan: Plan
    batch: Any
    head: Any
    key_head: Any
    block: Any

    def queries(self, ref: Any, i: Any = None) -> Any:
        """A block of queries `(rows, size)` of an array `(B, T, N, size)`; the step's own, or the given one."""
        return ref.at[self.batch, self._rows(i), self.head]

    def keys(self, ref: Any, j: Any = None, of_queries: bool = False) -> Any:
        """A block of keys; of an array with a head for each query head where told."""
        return ref.at[self.batch, self._columns(j), self.head if of_queries else self.key_head]

    def columns(self, ref: Any, i: Any = None) -> Any:
        """A block of queries of an array `(B, N, ..., T)`."""
        return ref.at[(self.batch, self.head, *[slice(None)] * (len(ref.shape) - 3), self._rows(i))]

    def lines(self, ref: Any) -> Any:
        """The lines of marks of the step's own block."""
        return ref.at[self.batch, self.head, self.block]

    def each(self, refs: Any) -> Any:
        """The step's own block of queries of results of either kind."""
        return (self.queries(ref) if len(ref.shape) == 4 else self.columns(ref) for ref in refs)

    def each_of_keys(self, refs: Any) -> Any:
        """Its block of keys of results `(B, S, N, size)` and `(B, N, S)`."""
        here = self._columns()
        return (
            self.keys(ref, of_queries=True) if len(ref.shape) == 4 else ref.at[self.batch, self.head, here]
            for ref in refs
        )

    def _rows(self, i: Any) -> Any:
        return stretch(self.block if i is None else i, self.plan.rows)

    def _columns(self, j: Any = None) -> Any:
        return stretch(self.block if j is None else j, self.plan.columns)


def run(
    how: How,
    body: Callable[..., None],
    arrays: Arrays,
    rules: Rules,
    more: tuple[jax.Array, ...],
    columns: int,
    along_keys: bool,
    out: tuple[tuple[tuple[int, ...], Any], ...],
    staged: dict[str, Staged],
) -> list[jax.Array]:
    """Runs `body(head, place, here, q, k, v, *more, *out)` for each batch element, query head and block of queries or,
    unless it goes `along_keys`, block of keys: with references to main memory, and in `here` by name to what is
    `staged` in shared memory."""
    (batch, queries, heads, _), (_, keys, key_heads, _) = arrays.q.shape, arrays.k.shape
    plan = Plan(queries, keys, ROWS, columns, how.is_causal, how.window, bool(how.interpret))
    blocks = queries // ROWS if along_keys else keys // columns

    def turned(array):
        """Blocks of keys want one number for each query and key the other way round."""
        return array if along_keys or array.shape[2] == 1 else jnp.swapaxes(array, 2, 3)

    optional = {"bias": arrays.bias, "mask": rules.mask}
    pairs = {name: turned(array) for name, array in optional.items() if array is not None}

    copied = {name: one.arrived for name, one in staged.items() if one.arrived is not None}
    scratch = *(one.place for one in staged.values()), *copied.values()

    def kernel(b, scale, query_length, key_length, *refs):
        element, n, block = (lax.axis_index(name) for name in ("batch", "head", "block"))
        if along_keys and how.is_causal:
            block = blocks - 1 - block  # those with the most keys first

        def part(ref):
            """The step's batch element, which may share it with the ones beside it, and head."""
            return ref.at[element // (batch // ref.shape[0]), n if ref.shape[1] > 1 else 0]

        parts = {name: part(ref) for name, ref in zip(pairs, refs, strict=False)}
        head = Head(b[element, n], scale[element, n], query_length[element], key_length[element], **parts)
        at, main = Place(plan, element, n, n // (heads // key_heads), block), len(refs) - len(scratch)
        places, arrived = refs[main : main + len(staged)], dict(zip(copied, refs[main + len(staged) :], strict=True))
        here = {name: Staged(ref, arrived.get(name)) for name, ref in zip(staged, places, strict=True)}
        body(head, at, here, *refs[len(pairs) : main])

    call = mosaic.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(*form) for form in out],
        scratch_types=scratch,
        grid=(heads, blocks, batch),
        grid_names=("head", "block", "batch"),
        compiler_params=mosaic.CompilerParams(approx_math=True, lowering_semantics=mosaic.LoweringSemantics.Lane),
        interpret=how.interpret,
    )
    lengths = rules.query_lengths, rules.key_lengths
    results = call(arrays.b, arrays.scale, *lengths, *pairs.values(), arrays.q, arrays.k, arrays.v, *more)
    return [varying_like(a, arrays.q) for a in results]  # Mosaic GPU forgets over which mesh axes they differ


def tiles(dtype: Any, *shape: int) -> Any:
    """Shared memory for a matrix, or several, laid out for the matrix unit."""
    layout = mosaic.TilingTransform((8, TILE)), mosaic.SwizzleTransform(TILE * jnp.dtype(dtype).itemsize)
    return mosaic.SMEM(shape, dtype, transforms=layout)


def once(dtype: Any, rows: int, size: int) -> Staged:
    """A matrix that is copied once."""
    return Staged(tiles(dtype, rows, size), mosaic.Barrier(num_barriers=1))


def in_turn(dtype: Any, rows: int, size: int) -> Staged:
    """Two places for matrices that are copied in turn."""
    return Staged(tiles(dtype, 2, rows, size), mosaic.Barrier(num_barriers=2))


def lines_here(lines: jax.Array) -> Staged:
    """The lines of marks of one block."""
    return Staged(mosaic.SMEM(lines.shape[3:], jnp.int32), mosaic.Barrier(num_barriers=1))


def fetch(*copies: tuple[Any, Staged]) -> None:
    """Copies from main memory to shared memory, and waits for them."""
    for source, here in copies:
        mosaic.copy_gmem_to_smem(source, here.place, here.arrived)
    for _, here in copies:
        mosaic.barrier_wait(here.arrived)


def lines_of(marks: jax.Array) -> jax.Array:
    """Marks `(B, N, m, n)` in lines, `(B, N, m, n / 4, 4)`."""
    *shape, n = marks.shape
    return jnp.pad(marks, ((0, 0), (0, 0), (0, 0), (0, -n % LINES))).reshape(*shape, -1, LINE)


def marked(lines: Staged) -> Callable[[Any], Any]:
    """Whether a block is marked."""
    return lambda j: lines.place[j // LINE, j % LINE] > 0
