"""x + c gives the same weights, up to the rounding of x + c itself."""

import cases
import numpy as np
import pytest
from cases.tolerances import FUNCTION32, FUNCTION64, PULLED, PULLED_TWICE, SOLVED


@cases.each(case for case in cases.CASES if case.shifts)
@pytest.mark.parametrize("c", [1e8, -1e8, 12345.0])
def test_shift(case, c):
    """On a grid of 2^-20 the sum x + c is exact, so nothing may be lost: a solver that works with x + c and
    not with differences errs by 1e-8."""
    grid = 2.0**-20
    x = np.round(cases.scores(seed=20) / grid) * grid
    assert ((x + c) - c == x).all()
    rng = np.random.default_rng(0)
    v = rng.normal(size=x.shape)
    # exactly invariant up to a few ulp; the iterative solver for functions within its own stopping rule
    tol = 2 * FUNCTION64 if case.plain else SOLVED
    for where in (None, cases.holes(least=case.least)):
        allowed = np.ones(x.shape, bool) if where is None else where
        here, there = cases.run(case, x, where, v), cases.run(case, x + c, where, v)
        np.testing.assert_allclose(there.y, here.y, rtol=0, atol=tol * max(1, np.abs(here.y).max()))
        # half an ulp each: every weight, every c y_i, three levels of a sum of eight, and the addition of the value
        expected = here.value + c * case.sums(allowed)
        rounding = 3 * np.finfo(float).eps * abs(c) * np.abs(here.y).sum(-1)
        assert (np.abs(there.value - expected) <= tol + rounding).all()
        if not case.plain:
            np.testing.assert_allclose(there.x_bar, here.x_bar, rtol=0, atol=PULLED * max(1, np.abs(here.x_bar).max()))
            for name, bar in here.bars.items():
                np.testing.assert_allclose(
                    there.bars[name], bar, rtol=0, atol=PULLED_TWICE * max(1, np.abs(bar).max()), err_msg=name
                )


@cases.each(case for case in cases.CASES if case.shifts)
def test_shift_in_float32(case, c=1e6):
    x = np.round(cases.scores(seed=21) * 8).astype(np.float32) / np.float32(8)
    assert ((x + np.float32(c)) - np.float32(c) == x).all()
    here, there = cases.in_float32(case, x), cases.in_float32(case, x + np.float32(c))
    size, tol = max(1, np.abs(here[0]).max()), FUNCTION32 if case.plain else 1e-6  # float32 rounds by 6e-8
    np.testing.assert_allclose(there[0], here[0], rtol=0, atol=tol * size)
    expected = np.asarray(here[1], float) + c * case.sums(np.ones(x.shape, bool))
    np.testing.assert_allclose(there[1], expected, rtol=3e-7, atol=1e-6 * size)  # two ulp, as above
