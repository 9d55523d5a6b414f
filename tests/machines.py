"""The Pallas kernels of both kinds of machines, interpreted on a CPU: what the tests of them share.

A law that both keep takes `machine`, "tpu" or "gpu", from `EACH`, and stands in `test_pallas.py` or
`test_pallas_attention.py`; what one of them alone has to keep stands in the files with its name. In JAX's interpreter
of a GPU memory starts as NaN.
"""

import dataclasses
import functools
import importlib
from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import normal, per_head

import smoothmax as sm
from smoothmax import _kernels, _solvers
from smoothmax._kernels import pallas
from smoothmax._kernels.pallas import gpu, tpu

f32 = jnp.float32


def _gpu_interpreter():
    return importlib.import_module("jax._src.pallas.mosaic_gpu.interpret.params")


def _missing():
    """Why this JAX has no kernels for GPUs, or None."""
    try:
        _gpu_interpreter()
    except ImportError as error:
        return str(error)
    return importlib.import_module(f"{gpu.__name__}._mosaic").missing()


MISSING = _missing()
on_gpus = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
EACH = ("tpu", pytest.param("gpu", marks=on_gpus))


def each(of_machine):
    """For `parametrize`: each machine with each of what it is given for it."""
    marks = {"tpu": (), "gpu": on_gpus}
    return [
        pytest.param(m, one, marks=marks[m], id=f"{m}-{one}") for m, several in of_machine.items() for one in several
    ]


@functools.cache
def kernels(machine):
    """Its kernels, in an interpreter: problem -> kernel."""
    if machine == "tpu":
        return pallas.kernels(interpret=True)
    return pallas.gpu_kernels(_gpu_interpreter().InterpretGPUParams(uninitialized_memory="nan"))


def take(monkeypatch, of_problems):
    """These kernels are "pallas" until the test ends: problem -> kernel."""
    monkeypatch.setitem(_kernels.TABLE, "pallas", {problem: (kernel,) for problem, kernel in of_problems.items()})


@functools.cache
def solved_by(machine):
    return cases.solved_by(kernels(machine))


# --- Slices ------------------------------------------------------------------------------------------------

# The solvers with which kernels are compared, by the best that serves a CPU.
on_cpu = {solver: jax.jit(getattr(_solvers, solver)) for solver in ("chain_prox", "segment_mean")}

BASES = {"threshold": ("tsallis", "alpha"), "p_norm": ("pnorm", "p")}


def scores(n, d=8, seed=0):
    return cases.scores(n, d, seed, np.float32)


def spoil(x):
    """NaN in one slice, inf in another, deleted positions in a third, nothing left in a fourth."""
    x = x.copy()
    x[0, 3], x[1, 1], x[2, :3], x[3] = np.nan, np.inf, -np.inf, -np.inf
    return x


def weights_of_the_oracle(problem, x, gamma, powers):
    """The weights of rows of scores, of which some may be deleted, by a column of alphas or ps."""
    base, name = BASES[problem]
    weights = np.zeros(x.shape)
    for row, power, to in zip(x, powers[:, 0], weights, strict=True):
        kept = row > -np.inf
        to[kept] = oracles.argmax(row[kept].astype(float), base=base, gamma=gamma, **{name: float(power)})
    return weights


def capped_weights_of_the_oracle(x, gamma, alpha, total, upper):
    """The same with bounds, one a slice or one a position, by columns of alphas and sums."""
    bases = {0.0: {"base": "fermi"}, 1.0: {"base": "shannon"}, 2.0: {"base": "l2"}}
    weights = np.zeros(x.shape)
    for row, power, size, bound, to in zip(x, alpha[:, 0], total[:, 0], upper, weights, strict=True):
        kept = row > -np.inf
        bound = np.broadcast_to(bound, row.shape)[kept].astype(float)
        size = min(float(size), bound.sum())  # float32 rounded it
        problem = bases.get(float(power), {"base": "tsallis", "alpha": float(power)})
        to[kept] = oracles.capped(row[kept].astype(float), total=size, upper=bound, gamma=gamma, **problem)
    return weights


# --- Attention ---------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """B batch, T queries, S keys, N query heads, K key heads, H head size, V that of the values."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    V: int


def draw(seed, *shape):
    # Of a size that makes weights of a few keys, so that some blocks have none.
    return 1.5 * normal(seed, *shape)


def _seen(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape) < 0.6


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of these sizes; two query heads share a key head, and no length is whole blocks.

    Attributes:
      cases: a mapping, its hyper-parameters, a bias, and options.
    """

    sizes: Sizes
    cases: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any]]]

    def of(self, case, implementation):
        """Attention as a function of (query, key, value, bias, hyper-parameters, scale), and arguments."""
        mapping, params, bias, options = self.cases[case]
        bias = None if bias is None else bias.copy()

        def attend(q, k, v, bias, params, scale):
            of_params = functools.partial(mapping, **params)
            return sm.dot_product_attention(
                q, k, v, bias, mapping=of_params, scale=scale, implementation=implementation, **options
            )

        return attend, (*self.qkv(), bias, params, f32(0.6))

    def plain(self, case):
        """The same function in plain JAX, its mapping solved by the best that serves a CPU."""
        return self.of(case, None)[0]

    def qkv(self):
        B, T, S, N, K, H, V = self.sizes
        return draw(0, B, T, N, H), draw(1, B, S, K, H), draw(2, B, S, K, V)

    def bar(self):
        """A cotangent of the output."""
        B, T, _, N, *_, V = self.sizes
        return draw(9, B, T, N, V)

    def assert_close(self, results, expected, within):
        cases.assert_close(results, expected, within, heads=self.sizes.N)


def _tpu_attention():
    B, T, S, N, *_ = sizes = Sizes(B=2, T=20, S=37, N=4, K=2, H=8, V=6)
    lengths = {"query_seq_lengths": np.int32([20, 7]), "key_value_seq_lengths": np.int32([37, 3])}
    of_cases = {
        "one alpha and gamma a head, window": (
            sm.entmax,
            {"alpha": per_head(1.05, 1.5, 1.9, 2.0), "gamma": per_head(0.7, 1.0, 1.3, 2.0)},
            None,
            {"local_window_size": (5, 3)},
        ),
        "sparsemax, causal, lengths": (sm.sparsemax, {"gamma": f32(0.8)}, None, {"is_causal": True, **lengths}),
        "softmax, window, causal": (sm.softmax, {}, None, {"is_causal": True, "local_window_size": 9}),
        "mask and bias": (
            sm.entmax,
            {"alpha": f32(1.5), "gamma": f32(0.5)},
            draw(5, 1, N, T, S),
            {"mask": _seen(4, B, 1, T, S)},
        ),
        "bias of keys and a gamma a head": (
            sm.entmax,
            {"alpha": f32(1.3), "gamma": per_head(0.5, 1.0, 1.5, 2.0)},
            draw(7, B, 1, 1, S),
            {"mask": _seen(6, B, 1, 1, S), "is_causal": True},
        ),
        "bias for all heads, in blocks": (sm.entmax, {"alpha": f32(1.7)}, draw(7, T, S), {"block_size": 8}),
    }
    return Attention(sizes, of_cases)


def _gpu_attention():
    B, T, S, N, *_ = sizes = Sizes(B=1, T=12, S=27, N=2, K=1, H=8, V=6)
    lengths = {"query_seq_lengths": np.int32([11]), "key_value_seq_lengths": np.int32([19])}
    # Each of the ways to its weights once.
    of_cases = {
        "alphas of 1 and 1.5, a gamma a head, window, a bias a pair, a mask for all queries": (
            sm.entmax,
            {"alpha": per_head(1.0, 1.5), "gamma": per_head(0.7, 1.3)},
            draw(3, 1, N, T, S),
            {"local_window_size": (5, 3), "mask": np.arange(S) % 5 != 2},
        ),
        "alphas of 2 and 1.3, causal, lengths, a bias a key, a mask a pair": (
            sm.entmax,
            {"alpha": per_head(2.0, 1.3), "gamma": f32(0.8)},
            draw(4, B, 1, 1, S),
            {"is_causal": True, "mask": (normal(5, 1, 1, T, S) > -1) & (np.arange(S) != 2), **lengths},
        ),
    }
    return Attention(sizes, of_cases)


ATTENTION = {"tpu": _tpu_attention(), "gpu": _gpu_attention()}
# Blocks are small here, so that there are several. (file, name) -> number, beside what stands there.
_SMALL = {
    "tpu": {"_attention_layout": {"ROWS": 8, "COLUMNS": 16}},
    "gpu": {
        "_attention_layout": {"ROWS": 8, "COLUMNS": 16, "FEWER": 8, "TILE": 8},
        "_flash": {"NEAR": 1e-4},
    },
}


def interpret_attention(machine, monkeypatch):
    """ "pallas" is that machine's kernels until the test ends, with small blocks.

    Those for GPUs take float32 then, so that one sees more than the rounding of bfloat16. The interpreter has the
    products in plain JAX: those of the matrix unit are for a GPU.
    """
    folder = {"tpu": tpu, "gpu": gpu}[machine]
    for file, numbers in _SMALL[machine].items():
        for name, number in numbers.items():
            monkeypatch.setattr(importlib.import_module(f"{folder.__name__}.{file}"), name, number)
    table = kernels(machine)
    if machine == "gpu":
        table = {problem: dataclasses.replace(k, refuses=lambda *_, **__: None) for problem, k in table.items()}
    take(monkeypatch, table)
