"""Masking equals deletion: whatever the masked positions hold, wherever they are."""

import dataclasses
import itertools

import cases
import chex
import jax
import numpy as np
import pytest
from cases import CASES, B, D
from cases.tolerances import PULLED, PULLED_TWICE, SUMS

BY_POSITION = {"lower", "upper"}  # hyper-parameters that may have one value a position, deleted with it


def cotangents(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, D)), rng.normal(size=B)


def assert_same(a, b, keep=slice(None)):
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[keep], dataclasses.asdict(r)) for r in (a, b)))


@cases.each()
def test_masking_equals_deletion(case):
    x, where = cases.scores(seed=10), cases.holes(least=case.least)
    y, value = case.expected(x, where)
    result = cases.run(case, x, where)
    np.testing.assert_allclose(result.y, y, rtol=0, atol=case.tol)
    np.testing.assert_allclose(result.value, value, rtol=0, atol=case.tol * max(np.abs(x).max(), np.abs(value).max()))
    assert (result.y[~where] == 0).all()
    sums = case.sums(where)
    if sums is not None:
        np.testing.assert_allclose(result.y.sum(-1), sums, rtol=0, atol=SUMS * max(1, np.abs(y).max()))
    inner = ~where[:, 1:-1] & where[:, :-2] & where[:, 2:]
    assert inner.any(), "no hole inside a slice was tested"


@cases.each()
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_masked_positions_may_hold_anything(case, junk):
    x, where = cases.scores(seed=11), cases.holes(least=case.least)
    v, c = cotangents()
    clean = cases.run(case, np.where(where, x, 0.0), where, v, c)
    dirty = cases.run(case, np.where(where, x, junk), where, v, c)
    assert_same(clean, dirty)
    assert (dirty.x_bar[~where] == 0).all()
    assert np.isfinite(dirty.x_bar).all()
    assert all(np.isfinite(bar).all() for bar in dirty.bars.values())


@cases.each()
def test_cotangents_of_masked_positions_do_not_matter(case):
    x, where = cases.scores(seed=12), cases.holes(least=case.least)
    v, c = cotangents()
    one = cases.run(case, x, where, np.where(where, v, 0.0), c)
    other = cases.run(case, x, where, np.where(where, v, 1e6), c)
    np.testing.assert_allclose(other.x_bar, one.x_bar, rtol=0, atol=PULLED * max(1, np.abs(one.x_bar).max()))
    for name in one.bars:
        np.testing.assert_allclose(
            other.bars[name], one.bars[name], rtol=0, atol=PULLED * max(1, np.abs(one.bars[name]).max())
        )


@cases.each()
def test_minus_infinity_is_a_masked_position(case):
    x, where = cases.scores(seed=13), cases.holes(least=case.least)
    v, c = cotangents()
    assert_same(cases.run(case, x, where, v, c), cases.run(case, np.where(where, x, -np.inf), None, v, c))


@cases.each()
def test_fully_masked_slices(case):
    """Zeros, zero gradients, value -inf; their neighbours in the batch do not notice."""
    x, where = cases.scores(seed=14), cases.holes(least=case.least)
    v, c = cotangents()
    alone = cases.run(case, x, where, v, c)
    empty = np.zeros(B, bool)
    empty[[1, 7, B - 1]] = True
    for result in (
        cases.run(case, np.where(empty[:, None], np.nan, x), where & ~empty[:, None], v, c),
        cases.run(case, np.where(where & ~empty[:, None], x, -np.inf), None, v, c),
    ):
        assert (result.y[empty] == 0).all()
        assert (result.value[empty] == -np.inf).all()
        assert (result.x_bar[empty] == 0).all()
        for name, bar in result.bars.items():
            assert (bar[empty] == 0).all(), name
        assert_same(result, alone, ~empty)


@cases.each(case for case in CASES if case.least > 1)
def test_what_is_left_may_be_too_little(case):
    """A slice with fewer positions than its sum needs is NaN, and no other slice notices."""
    x, where = cases.scores(seed=16), cases.holes(least=case.least)
    v, c = cotangents()
    clean = cases.run(case, x, where, v, c)
    few = np.zeros(B, bool)
    few[[2, 20]] = True
    where[few] = np.arange(D) == 3
    result = cases.run(case, x, where, v, c)
    assert np.isnan(result.y[few, 3]).all() and np.isnan(result.value[few]).all()
    assert_same(result, clean, ~few)


@cases.each()
def test_gradients_equal_those_after_deletion(case):
    """Positions 2, 3 and 5 deleted from an 8-wide slice, against a mask that leaves the other order of
    holes: the same scores, moved to other positions with the same neighbours, give the same gradients."""
    keep_a, keep_b = np.array([0, 1, 4, 6, 7]), np.array([0, 2, 3, 4, 7])
    n = 12
    rng = np.random.default_rng(15)
    rows, v, c = rng.normal(size=(n, 5)), rng.normal(size=(n, 5)), rng.normal(size=n)

    def placed(keep):
        x, cotangent, where = np.full((n, D), np.nan), np.zeros((n, D)), np.zeros((n, D), bool)
        x[:, keep], cotangent[:, keep], where[:, keep] = rows, v, True
        params = case.params()
        if "edges" in params:  # the smallest weight of a gap is what the gap weighs: 1 everywhere else
            params["edges"] = np.ones(D - 1)
            for k, (i, j) in enumerate(itertools.pairwise(keep)):
                params["edges"][i] = 0.1 * (k + 1)
                params["edges"][i + 1 : j] = 2.0
        for name in BY_POSITION & set(params):
            if np.ndim(params[name]):
                params[name] = np.ones(D)
                params[name][keep] = 0.3 + 0.1 * np.arange(5)
        result = cases.run(case, x, where, cotangent, c, params)
        return result.y[:, keep], result.value, result.x_bar[:, keep], result.bars

    tol = 1e-4 if case.plain else PULLED  # the Hessian of a plain function magnifies what its weights are off
    y_a, value_a, x_bar_a, bars_a = placed(keep_a)
    y_b, value_b, x_bar_b, bars_b = placed(keep_b)
    np.testing.assert_allclose(y_a, y_b, rtol=0, atol=tol)
    np.testing.assert_allclose(value_a, value_b, rtol=0, atol=tol)
    np.testing.assert_allclose(x_bar_a, x_bar_b, rtol=0, atol=tol * max(1, np.abs(x_bar_a).max()))
    for name in BY_POSITION & {name for name, bar in bars_a.items() if bar.shape == (n, D)}:
        bars_a[name], bars_b[name] = bars_a[name][:, keep_a], bars_b[name][:, keep_b]
    for name in set(bars_a) - {"edges"}:
        np.testing.assert_allclose(
            bars_a[name], bars_b[name], rtol=0, atol=tol * max(1, np.abs(bars_a[name]).max()), err_msg=name
        )
    if "edges" in bars_a:
        np.testing.assert_allclose(bars_a["edges"][:, keep_a[:-1]], bars_b["edges"][:, keep_b[:-1]], atol=PULLED_TWICE)
