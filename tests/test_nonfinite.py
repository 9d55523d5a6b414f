"""NaN or +inf in an allowed position gives NaN for that slice alone, and every loop still ends."""

import cases
import numpy as np
import pytest
from cases import B, D
from cases.tolerances import SUMS


@cases.each()
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.nan])
def test_nan_stays_in_its_slice(case, bad):
    x = cases.scores(seed=30)
    rng = np.random.default_rng(1)
    v, c = rng.normal(size=(B, D)), rng.normal(size=B)
    clean = cases.run(case, x, None, v, c)
    spoiled = np.zeros(B, bool)
    x = x.copy()
    for row, columns in ((0, [0]), (5, [D - 1]), (17, [2, 3]), (30, range(D)), (B - 1, [4])):
        x[row, list(columns)] = bad
        spoiled[row] = True
    x[17, 5] = -np.inf  # a masked position beside a bad one
    x[5, 0] = -np.inf
    result = cases.run(case, x, None, v, c)
    allowed = x[spoiled] != -np.inf
    assert np.isnan(result.y[spoiled][allowed]).all()
    assert np.isnan(result.value[spoiled]).all()
    np.testing.assert_array_equal(result.y[~spoiled], clean.y[~spoiled])
    np.testing.assert_array_equal(result.value[~spoiled], clean.value[~spoiled])
    np.testing.assert_array_equal(result.x_bar[~spoiled], clean.x_bar[~spoiled])
    for name in clean.bars:
        np.testing.assert_array_equal(result.bars[name][~spoiled], clean.bars[name][~spoiled], err_msg=name)


@cases.each(cases.FAMILIES)
def test_a_batch_of_nothing_but_nan_ends(case):
    for bad in (np.nan, np.inf):
        result = cases.run(case, np.full((B, D), bad), None, np.ones((B, D)), np.ones(B))
        assert np.isnan(result.y).all() and np.isnan(result.value).all()


@cases.each(cases.REPRESENTATIVES)
def test_nan_in_float32_and_wide(case):
    x = cases.scores(4, 257, dtype=np.float32)
    x[2, 100] = np.nan
    y, value = cases.forward(case.family)(case.params(257), x, None)
    assert y.dtype == value.dtype == np.float32
    assert np.isnan(y[2]).all() and np.isnan(value[2])
    assert np.isfinite(np.asarray(y)[[0, 1, 3]]).all() and np.isfinite(np.asarray(value)[[0, 1, 3]]).all()


@cases.each()
def test_finite_extremes_stay_finite(case):
    """Scores of 1e300 and -1e300 are numbers: weights come out, not NaN."""
    x = cases.scores(3, seed=31)
    x[0, 2], x[1, 5], x[2, :2] = 1e300, -1e300, (1e300, -1e300)
    if case.plain:
        x = np.clip(x, -1e30, 1e30)
    result = cases.run(case, x)
    assert np.isfinite(result.y).all()
    sums = case.sums(np.ones(x.shape, bool))
    if sums is not None:
        np.testing.assert_allclose(result.y.sum(-1), sums, rtol=0, atol=100 * SUMS * max(1, np.abs(result.y).max()))
    if not case.has_chain:
        assert (result.y[0, 2], result.y[1, 5]) == (result.y[0].max(), result.y[1].min())
