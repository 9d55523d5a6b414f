"""Flash attention for sparse mappings, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

That is for both kinds of machines. Blocks are small here, so that there are several; `machines.py` has the sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import pulled
from machines import ATTENTION, each, interpret_attention

from smoothmax._kernels.pallas.gpu import _flash_blocks
from smoothmax._kernels.pallas.shared._flash import Blocks, Head, seen

pytestmark = pytest.mark.usefixtures("no_x64")

WINDOWS = (None, (0, 0), (1, 1), (0, 9), (9, 0), (5, 3), (40, 1), (1, 40))
RULES = [(is_causal, window) for is_causal in (False, True) for window in WINDOWS]
QUERIES, KEYS = 48, 64


@pytest.mark.parametrize(("machine", "case"), each({machine: a.cases for machine, a in ATTENTION.items()}))
def test_output_and_gradients_are_those_of_the_plain_form(machine, case, monkeypatch):
    interpret_attention(machine, monkeypatch)
    attention = ATTENTION[machine]
    by_kernels, args = attention.of(case, "pallas")
    bar = attention.bar()
    # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
    attention.assert_close(pulled(by_kernels, bar)(*args), pulled(attention.plain(case), bar)(*args), 2e-5)


@pytest.mark.parametrize(("rows", "columns"), [(8, 16), (16, 8)])
@pytest.mark.parametrize(("is_causal", "window"), RULES)
def test_blocks_that_are_walked_over_are_those_with_something_to_see(rows, columns, is_causal, window):
    """By the rules, or by the length of the keys; both walks meet the same blocks."""
    blocks = Blocks(QUERIES, KEYS, rows, columns, is_causal, window)
    pairs = np.asarray(seen(blocks, Head(None, None, QUERIES, KEYS), *np.indices((QUERIES, KEYS))))
    some = pairs.reshape(QUERIES // rows, rows, KEYS // columns, columns).any((1, 3))
    of_queries, of_keys = (np.arange(n, dtype=np.int32) for n in some.shape)

    def assert_walked(wanted, start, end):
        start, end = (np.broadcast_to(border, len(wanted))[:, None] for border in (start, end))
        place = np.arange(wanted.shape[1])
        np.testing.assert_array_equal((start <= place) & (place < end), wanted)

    for length in (KEYS, 39, 1, 0):
        assert_walked(some & (of_keys * columns < length), *blocks.key_blocks(of_queries, length))
    assert_walked(some.T, *blocks.query_blocks(of_keys))


@pytest.mark.parametrize(("is_causal", "window"), RULES)
def test_a_block_that_is_seen_whole_needs_no_rules(is_causal, window):
    """On GPUs rules are looked at only where a block needs them: every block, wherever it lies, is as they say."""
    plan = _flash_blocks.Plan(QUERIES, KEYS, 8, 16, is_causal, window, interpreted=True)
    z = jnp.ones((8, 16), jnp.float32)

    @jax.jit
    @jax.vmap
    def seen_of(first_query, first_key, query_length, key_length):
        head = Head(None, jnp.float32(1), query_length, key_length)
        t, s = np.indices(z.shape, np.int32)
        by_block = [_flash_blocks.scores(plan, head, z, first_query, first_key, 0)]
        by_block += [_flash_blocks.scores(plan, head, z.T, first_query, first_key, 1).T]
        return jnp.stack(by_block) == 1, seen(plan, head, first_query + t, first_key + s)

    starts = np.meshgrid(np.arange(0, 40, 3), np.arange(0, 48, 3), (48, 23), (64, 30))
    by_block, by_rules = seen_of(*(np.int32(s).ravel() for s in starts))
    assert 0 < by_rules.mean() < 1
    np.testing.assert_array_equal(by_block, np.stack([by_rules] * 2, 1))
