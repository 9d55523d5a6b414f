"""Arrays sharded over 8 devices: the same numbers, and no more communication than the mathematics needs."""

import collections
import pathlib
import re
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normal
from jax.sharding import NamedSharding, PartitionSpec

import smoothmax as sm
from smoothmax._attention import dot_product_attention

B, T, S, N, H = 8, 2, 16, 8, 4
THRESHOLD = {"softmax": sm.softmax, "sparsemax": sm.sparsemax, "entmax": sm.entmax, "pnormmax": sm.pnormmax}
STRUCTURED = {"fusedmax": sm.fusedmax, "oscarmax": sm.oscarmax}

FLAG = {"all-reduce": {"pred[]"}}  # whether some device still iterates


def place(mesh, array, axis):
    """The array cut along one axis."""
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names[0])))


def run(function, *arrays):
    """Results, and what the compiled program sends: for each kind of collective the shapes, as `f32[8,8]`."""
    compiled = jax.jit(function).lower(*arrays).compile()
    kinds = collections.defaultdict(set)
    for kind, shapes in cases.sent(compiled.as_text()):
        kinds[kind] |= set(shapes)
    return compiled(*arrays), dict(kinds)


def same(a, b, atol=2e-6):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, atol=atol)


def weights_and_gradient(mapping):
    factor = normal(9, B, N, S)

    def function(x):
        y, vjp = jax.vjp(mapping, x)
        return y, vjp(factor)[0]

    return function


@pytest.mark.parametrize("name", THRESHOLD | STRUCTURED)
def test_mappings(mesh, name):
    """Over batch and heads nothing is sent. Along the slices a threshold in plain JAX sends sums and maxima:
    all-reduces. A kernel takes whole slices, which the compiler brings together for it."""
    mapping = (THRESHOLD | STRUCTURED)[name]
    function = weights_and_gradient(mapping)
    scores = normal(0, B, N, S)
    expected = jax.jit(function)(scores)
    over_both = jax.make_mesh((4, 2), ("batch", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    result, sent = run(function, jax.device_put(scores, NamedSharding(over_both, PartitionSpec("batch", "heads"))))
    same(result, expected)
    assert sent in ({}, FLAG)
    # the reference and a kernel are two programs, which round differently: a few ulp of a steep slope
    same(run(function, place(mesh, scores, 2))[0], expected, atol=1e-5)
    result, sent = run(weights_and_gradient(partial(mapping, implementation="xla")), place(mesh, scores, 2))
    same(result, expected, atol=1e-5)
    if name in THRESHOLD:
        assert sent == {"all-reduce": {f"f32[{B},{N}]"}}  # one number a slice


SHARDED_AXES = {"batch": (0, 0, 0), "heads": (2, 2, 2), "keys": (None, 1, 1)}


@pytest.mark.parametrize("over", SHARDED_AXES)
@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
def test_attention(mesh, name, over):
    mapping = THRESHOLD[name]
    arrays = normal(1, B, T, N, H), normal(2, B, S, N, H), normal(3, B, S, N, H)

    def function(q, k, v):
        implementation = "xla" if over == "keys" else None  # a kernel would have the scores brought together
        attend = partial(dot_product_attention, mapping=mapping, is_causal=True, implementation=implementation)
        loss = lambda *qkv: jnp.sum(attend(*qkv) ** 2)
        return attend(q, k, v), jax.grad(loss, (0, 1, 2))(q, k, v)

    replicated = NamedSharding(mesh, PartitionSpec())
    placed = [
        jax.device_put(a, replicated) if i is None else place(mesh, a, i)
        for a, i in zip(arrays, SHARDED_AXES[over], strict=True)
    ]
    result, sent = run(function, *placed)
    same(result, jax.jit(function)(*arrays), atol=1e-5)
    assert sent.keys() <= {"all-reduce"}
    if over != "keys":
        assert sent in ({}, FLAG)
    else:
        output, gradients = result
        assert output.sharding.is_fully_replicated
        assert not gradients[1].sharding.is_fully_replicated  # each device keeps the gradient of its own keys


@pytest.mark.parametrize("over", ["batch", "heads"])
def test_attention_in_blocks(mesh, over):
    arrays = [normal(i, B, 6, N, H) for i in range(3)]
    attend = partial(dot_product_attention, mapping=sm.sparsemax, is_causal=True, block_size=2)
    result, sent = run(attend, *(place(mesh, a, SHARDED_AXES[over][0]) for a in arrays))
    same(result, jax.jit(partial(attend, block_size=None))(*arrays))
    assert sent in ({}, FLAG)


def test_shard_map_over_the_batch(mesh):
    scores = normal(0, B, N, S)
    spec = PartitionSpec(mesh.axis_names[0])
    mapped = jax.jit(jax.shard_map(sm.sparsemax, mesh=mesh, in_specs=spec, out_specs=spec))
    same(mapped(place(mesh, scores, 0)), sm.sparsemax(scores))


def test_the_page_on_distribution_runs():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "distribution.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5 and "jax.distributed.initialize()" in blocks[0]  # which needs more than one process
    exec("\n".join(blocks[1:]), {})
