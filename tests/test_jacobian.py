"""J is the Hessian of max: symmetric, positive semi-definite, J 1 = 0, zero off the support."""

import cases
import numpy as np
from cases.tolerances import FUNCTION64, PULLED, SOLVED


@cases.each()
def test_jacobian_laws(case):
    x = cases.scores(6, seed=52)
    where = cases.holes(6, seed=52, least=case.least)
    where[0] = True
    tol = FUNCTION64 if case.plain else PULLED
    largest = 0.0
    for mask in (None, where):
        y = cases.run(case, x, mask).y
        for i, (weights, jacobian) in enumerate(zip(y, cases.jacobians(case, x, mask), strict=True)):
            # entries are of size y^(2 - alpha) / gamma: beyond alpha = 2 large where y is small
            size = max(1, np.abs(jacobian).max())
            assert np.isfinite(jacobian).all()
            np.testing.assert_allclose(jacobian, jacobian.T, rtol=0, atol=tol * size)
            if case.shifts:
                np.testing.assert_allclose(jacobian.sum(1), 0, rtol=0, atol=tol * size)
            assert np.linalg.eigvalsh((jacobian + jacobian.T) / 2).min() >= -tol * size
            # an entropy without zeros has them by underflow alone, so there only masks are looked at
            off = weights == 0 if case.sparse else ~(np.ones(len(weights), bool) if mask is None else mask[i])
            assert (jacobian[off] == 0).all() and (jacobian[:, off] == 0).all()
            largest = max(largest, np.abs(jacobian).max())
    assert largest > 0.01, "Jacobians of zeros would satisfy all of this"


@cases.each(case for case in cases.CASES if case.family.penalties)
def test_segments_move_together(case):
    """Rows of J within one fused segment are equal."""
    x = cases.scores(6, seed=51)
    bound = case.params().get("upper", 1.0 if case.family.domain in ("capped", "box") else np.inf)
    found = 0
    for weights, jacobian in zip(cases.run(case, x).y, cases.jacobians(case, x), strict=True):
        for i in range(len(weights) - 1):
            if weights[i] > 0 and weights[i] == weights[i + 1]:
                found += 1
                np.testing.assert_allclose(jacobian[i], jacobian[i + 1], rtol=0, atol=SOLVED)
                stuck = weights[i] == bound or (weights == weights[i]).sum() == (weights > 0).sum()
                assert np.abs(jacobian[i]).max() > 0 or stuck
    assert found, "no fused segment was tested"
