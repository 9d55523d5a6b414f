"""What is timed: our operators and whichever peers are installed, each as a function of one array of scores.

A subject is prepared for one input and gives two calls without arguments, forward and forward plus backward, each of
which returns when its result is there. Every subject also names the problem it solves, so that its weights can be
checked against our operator in float64 before anything is timed.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import smoothmax as sm

from . import tuning
from .timing import Waiting, accelerated, waiting

ALPHA, LARGE_ALPHA, P, FUSED_LAM, OSCAR_LAM, K = 1.3, 3.0, 1.5, 0.1, 0.01, 5
# Seconds of one pass, here and on an accelerator, and bytes of its temporary memory, that are still measured.
LONGEST, LONGEST_THERE, LARGEST = 5.0, 0.5, 2**32
CHECKED = 256  # slices that are checked of what an accelerator computes

# By name, functions of scores and of the implementation.
PROBLEMS: dict[str, Callable[..., jax.Array]] = {
    "softmax": sm.softmax,
    "sparsemax": sm.sparsemax,
    "entmax 1.5": functools.partial(sm.entmax, alpha=1.5),
    f"entmax {ALPHA}": functools.partial(sm.entmax, alpha=ALPHA),
    f"entmax {LARGE_ALPHA}": functools.partial(sm.entmax, alpha=LARGE_ALPHA),
    f"pnormmax {P}": functools.partial(sm.pnormmax, p=P),
    "fusedmax": functools.partial(sm.fusedmax, lam=FUSED_LAM),
    "oscarmax": functools.partial(sm.oscarmax, lam=OSCAR_LAM),
    f"soft_topk {K}": functools.partial(sm.soft_topk, k=K),
    "soft_rank": sm.soft_rank,
    "soft_sort": sm.soft_sort,
}
# In plain JAX they take a step for each position, and on an accelerator each step is a program of its own.
CHAINS, WIDEST_CHAIN = ("fusedmax", "oscarmax", "soft_rank", "soft_sort"), 256


@dataclass(frozen=True)
class Call:
    """One prepared computation. `compiled` is XLA's program, where there is one."""

    run: Waiting
    compiled: Any = None


@dataclass(frozen=True)
class Subject:
    name: str
    problem: str
    prepare: Callable[[np.ndarray, np.ndarray, str], tuple[Call, Call]]
    """From scores, a cotangent and a dtype name to the calls (forward, forward plus backward)."""

    ours: bool = False
    widest: int | None = None
    """Wider slices would take it too long."""


def of_jax(mapping: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray, np.ndarray, str], tuple[Call, Call]]:
    """Prepares a JAX function: the whole computation compiled ahead of time."""

    def prepare(scores: np.ndarray, cotangent: np.ndarray, dtype: str) -> tuple[Call, Call]:
        x, w = jnp.asarray(scores, dtype), jnp.asarray(cotangent, dtype)

        def both(x: jax.Array, w: jax.Array) -> Any:
            y, vjp = jax.vjp(mapping, x)
            return y, *vjp(w)

        forward = jax.jit(lambda x: mapping(x)).lower(x).compile()
        backward = jax.jit(both).lower(x, w).compile()
        return (
            Call(waiting(forward, x), forward),
            Call(waiting(backward, x, w), backward),
        )

    return prepare


def of_torch(mapping: Callable[[Any], Any]) -> Callable[[np.ndarray, np.ndarray, str], tuple[Call, Call]]:
    """Prepares a PyTorch function of a tensor."""
    import torch

    device = "cuda" if accelerated() else "cpu"

    def wait(_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def prepare(scores: np.ndarray, cotangent: np.ndarray, dtype: str) -> tuple[Call, Call]:
        x = torch.tensor(scores, dtype=getattr(torch, dtype), device=device, requires_grad=True)
        w = torch.tensor(cotangent, dtype=getattr(torch, dtype), device=device)

        def forward() -> Any:
            with torch.no_grad():
                return mapping(x)

        def both() -> Any:
            y = mapping(x)
            return y, *torch.autograd.grad(y, x, w)

        return Call(Waiting(forward, wait)), Call(Waiting(both, wait))

    return prepare


def baseline() -> Subject:
    return Subject("jax.nn.softmax", "softmax", of_jax(jax.nn.softmax))


def ours(problems: Iterable[str], implementations: Sequence[str]) -> Iterator[Subject]:
    for problem in problems:
        for name in implementations:
            prepare = of_jax(functools.partial(PROBLEMS[problem], implementation=name))
            widest = WIDEST_CHAIN if accelerated() and name == "xla" and problem in CHAINS else None
            yield Subject(f"smoothmax {problem}, {name}", problem, prepare, ours=True, widest=widest)


def peers() -> Iterator[Subject]:
    """Other libraries' functions for the same problems, as far as they can be imported."""
    has_torch = torch_serves()
    if has_torch:
        yield from _torch()
    if has_torch and _installed("entmax"):
        yield from _entmax()
    if has_torch and accelerated() and _installed("adasplash"):
        yield from _adasplash()
    if _installed("jaxopt"):
        yield from _jaxopt()
    if _installed("softjax"):
        yield from _softjax()
    if has_torch and _installed("torchsort"):
        yield from _torchsort()
    if has_torch and _installed("torchsparseattn"):
        yield from _torchsparseattn()


def _torch() -> Iterator[Subject]:
    import torch

    yield Subject("torch.softmax", "softmax", of_torch(lambda x: torch.softmax(x, -1)))


def _entmax() -> Iterator[Subject]:
    import entmax

    for name, problem, mapping in (
        ("sparsemax (sort)", "sparsemax", lambda x: entmax.sparsemax(x, -1)),
        ("sparsemax (top 50)", "sparsemax", lambda x: entmax.sparsemax(x, -1, k=min(50, x.shape[-1]))),
        ("sparsemax (bisection)", "sparsemax", lambda x: entmax.sparsemax_bisect(x, -1)),
        ("entmax15 (sort)", "entmax 1.5", lambda x: entmax.entmax15(x, -1)),
        ("entmax15 (top 50)", "entmax 1.5", lambda x: entmax.entmax15(x, -1, k=min(50, x.shape[-1]))),
        *(
            (f"entmax {a} (bisection)", f"entmax {a}", lambda x, a=a: entmax.entmax_bisect(x, a, -1))
            for a in (ALPHA, LARGE_ALPHA)
        ),
    ):
        yield Subject(f"PyTorch entmax {name}", problem, of_torch(mapping))
    budget = of_torch(lambda x: entmax.budget_bisect(x, K, dim=-1))
    yield Subject("PyTorch entmax budget (bisection)", f"soft_topk {K}", budget)


def _adasplash() -> Iterator[Subject]:
    adasplash = tuning.load(tuning.MODULES[0])

    for problem, options in (
        ("sparsemax", {"alpha": 2.0}),
        ("entmax 1.5", {"alpha": 1.5}),
        ("sparsemax", {"alpha": 2.0, "n_iter": 8}),
        ("entmax 1.5", {"alpha": 1.5, "n_iter": 8}),
        (f"entmax {ALPHA}", {"alpha": ALPHA}),
    ):
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        mapping = of_torch(lambda x, options=options: adasplash.triton_entmax(x, **options))
        yield Subject(f"adasplash triton_entmax({name})", problem, mapping)


def _jaxopt() -> Iterator[Subject]:
    from jaxopt.projection import (  # pyright: ignore[reportMissingImports]
        projection_box_section,
        projection_simplex,
    )

    yield Subject("jaxopt projection_simplex", "sparsemax", of_jax(jax.vmap(lambda x: projection_simplex(x))))

    def section(x: jax.Array) -> jax.Array:
        return projection_box_section(x, (0.0, 1.0, jnp.ones_like(x), float(K)))

    yield Subject("jaxopt projection_box_section", f"soft_topk {K}", of_jax(jax.vmap(section)))
    # Without numba one call at (64, 50) takes a second; with it the host is called.
    if _installed("numba") and not accelerated():
        isotonic = _jaxopt_isotonic()

        def jaxopt_oscarmax(x: jax.Array) -> jax.Array:
            return projection_simplex(_sorted_prox(isotonic, x, OSCAR_LAM))

        yield Subject("jaxopt isotonic, projection_simplex", "oscarmax", of_jax(jax.vmap(jaxopt_oscarmax)))
        yield Subject("jaxopt isotonic", "soft_rank", of_jax(jax.vmap(functools.partial(_soft_rank, isotonic))))


def _jaxopt_isotonic() -> Callable[[jax.Array], jax.Array]:
    """jaxopt's non-increasing regression of one slice, which calls compiled code on the host."""
    isotonic: Any = importlib.import_module("jaxopt._src.isotonic")
    pool = isotonic._isotonic_l2_pav_numba
    # Callbacks are handed JAX arrays now, which numba does not know: without this every call raises.
    isotonic._isotonic_l2_pav_numba = lambda y: pool(np.asarray(y))
    return functools.partial(isotonic.isotonic_l2_pav, increasing=False)


def _sorted_prox(isotonic: Callable[[jax.Array], jax.Array], x: jax.Array, lam: float) -> jax.Array:
    """The prox of OSCAR for one slice."""
    order = jnp.argsort(x, descending=True)
    t = isotonic(x[order] - lam * jnp.arange(x.size - 1, -1, -1, dtype=x.dtype))
    return jnp.zeros_like(x).at[order].set(t, unique_indices=True)


def _soft_rank(isotonic: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The ranks of one slice: its projection onto the permutahedron of 1, ..., d."""
    order = jnp.argsort(x, descending=True)
    scores = x[order]
    y = scores - isotonic(scores - jnp.arange(x.size, 0, -1, dtype=x.dtype))
    return jnp.zeros_like(x).at[order].set(y, unique_indices=True)


def _softjax() -> Iterator[Subject]:
    softjax: Any = importlib.import_module("softjax")
    # Its regularizers are scaled by `softness`, and Tsallis's for alpha is ours where that is 1 / (alpha - 1).
    for problem, mode, softness in (("sparsemax", "c0", 1.0), ("entmax 1.5", "c1", 2.0)):
        options = {"axis": -1, "mode": mode, "softness": softness, "standardize": False}
        yield Subject(f"softjax argmax {mode}", problem, of_jax(lambda x, o=options: softjax.argmax(x, **o)))


def _torchsort() -> Iterator[Subject]:
    torchsort: Any = importlib.import_module("torchsort")
    for problem in ("soft_rank", "soft_sort"):
        yield Subject(f"torchsort {problem}", problem, of_torch(getattr(torchsort, problem)))


def _torchsparseattn() -> Iterator[Subject]:
    torchsparseattn: Any = importlib.import_module("torchsparseattn")
    sparsemax: Any = importlib.import_module("torchsparseattn.sparsemax")
    project = _row_by_row(sparsemax.SparsemaxFunction())
    fused = _row_by_row(torchsparseattn.FusedProxFunction(FUSED_LAM))
    oscar = _row_by_row(torchsparseattn.OscarProxFunction(0, OSCAR_LAM))
    yield Subject("torchsparseattn fusedmax", "fusedmax", of_torch(lambda x: project(fused(x))))

    def oscarmax(x: Any) -> Any:
        # It ranks absolute values, so its weights are those of the problem only if all scores have one sign.
        lift = OSCAR_LAM * x.shape[-1] + 1 - x.detach().amin(-1, keepdim=True)
        return project(oscar(x + lift))

    yield Subject("torchsparseattn oscarmax, scores lifted", "oscarmax", of_torch(oscarmax))


def _row_by_row(function: Any) -> Callable[[Any], Any]:
    """The numerics of a torchsparseattn function, called as it calls them: its autograd is no longer run by PyTorch."""
    import torch

    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = torch.stack([function.project(row) for row in x])
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            [w], [y] = grad_outputs, ctx.saved_tensors
            return torch.stack([function.project_jv(*row) for row in zip(w, y, strict=True)])

    return Rows.apply


def reference(problem: str, scores: np.ndarray, cotangent: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights and gradient, of all slices or of some on an accelerator, by our operator in float64 on the CPU."""
    rows = slice(CHECKED if accelerated() else None)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        # The scores as a subject sees them: for alpha > 2 weights near zero magnify the rounding of a score.
        rounded = jnp.asarray(scores[rows], dtype).astype(jnp.float64)
        y, vjp = jax.vjp(functools.partial(PROBLEMS[problem], implementation="xla"), rounded)
        return np.asarray(y), np.asarray(vjp(jnp.asarray(cotangent[rows], jnp.float64))[0])


def checked(
    subject: Subject,
    scores: np.ndarray,
    cotangent: np.ndarray,
    dtype: str,
    expected: Callable[[str], tuple[np.ndarray, np.ndarray]],
) -> tuple[tuple[Call, Call], float] | str:
    """Its calls and the seconds to prepare them if the subject solves its problem, else what is wrong.

    A subject may also refuse the shape or dtype, or take too long or too much memory to be measured.
    """
    where = f"in {dtype} at {scores.shape}"
    try:
        start = time.perf_counter()
        forward, both = calls = subject.prepare(scores, cotangent, dtype)
        compiling = time.perf_counter() - start
        needs = 0 if both.compiled is None else both.compiled.memory_analysis().temp_size_in_bytes
        if needs > LARGEST:
            return f"{subject.name}: sets {needs / 2**30:.0f} GiB aside {where}"
        weights = forward.run()
        if accelerated():
            both.run()  # Triton compiles in a first call
        start = time.perf_counter()
        results = weights, *both.run()
        taken = time.perf_counter() - start
    except Exception as error:
        if subject.ours and not accelerated():
            raise
        return f"{subject.name}: {type(error).__name__} {where}: {str(error)[:200]}"
    if taken > (LONGEST_THERE if accelerated() else LONGEST):
        return f"{subject.name}: one pass takes {taken:.1f} s {where}"
    wanted = expected(subject.problem)
    tolerance = {"float32": 1e-4, "bfloat16": 3e-2}[dtype] * max(1, np.abs(wanted[0]).max())
    for name, result, right in zip(("forward", "weights", "gradient"), results, (wanted[0], *wanted), strict=True):
        # A score near a threshold may change sides by its rounding: judge the gradient by its mean error.
        gap = np.abs(to_numpy(result[: len(right)]) - right)
        error = gap.mean() if name == "gradient" else gap.max()
        if not error <= tolerance:
            return f"{subject.name}: {name} off by {error:.1e} {where}"
    return calls, compiling


def torch_serves() -> bool:
    """Whether PyTorch is installed and runs where JAX does."""
    if not _installed("torch"):
        return False
    import torch

    return not accelerated() or (jax.default_backend() == "gpu" and torch.cuda.is_available())


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def to_numpy(array: Any) -> np.ndarray:
    """A result of JAX or PyTorch in float64."""
    if hasattr(array, "detach"):
        array = array.detach().float().cpu().numpy()
    return np.asarray(array, np.float64)
