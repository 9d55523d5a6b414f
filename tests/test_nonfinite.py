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
@pytest.mark.parametrize("d, dtype", [(D, np.float32), (cases.WIDE, np.float64)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_float32_and_in_wide_slices(case, bad, d, dtype):
    """Compilers make other code for large arrays, of which some forgets NaN: see `greatest` in `_arrays`."""
    x = cases.scores(4, d, dtype=dtype)
    for columns in ([0], [d // 3], [d - 1], range(d)):
        spoiled = x.copy()
        spoiled[2, list(columns)] = bad
        got = cases.in_float32(case, spoiled) if d == D else cases.forward(case.family)(case.params(d), spoiled, None)
        for result in map(np.asarray, got):
            assert result.dtype == dtype
            assert np.isnan(result[2]).all()
            assert np.isfinite(result[[0, 1, 3]]).all()


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
