"""How far two numbers may lie apart, named after what moves them: for numbers of order one, else times their size.

A tolerance that only one test has stands there, with its reason.
"""

import numpy as np

# What docs/accuracy.md promises of weights.
PROMISE64, PROMISE32 = 1e-10, 3e-6
PROMISE = {np.float32: PROMISE32, np.float64: PROMISE64}
# Above alpha = 2 weights are infinitely steep where a position enters: there the optimal value is promised.
OBJECTIVE = {np.float32: 2e-6, np.float64: 1e-10}
# Of a plain function, too: it is solved up to a gap in its value, and its weights are as exact as the root of that.
FUNCTION64, FUNCTION32 = 1e-6, 1e-3

# Rounding in float64, each time by 1e-16 at most.
ULPS = 1e-15  # one operation or a few
SUMS = 1e-14  # some ten terms, and weights with little between them and such a sum
SOLVED = 1e-13  # a solution and its value by two programs: roots of such sums, divided by slopes
PULLED = 1e-12  # products with its Jacobian
PULLED_TWICE = 1e-11  # derivatives of those, and their sums over slices
LONG_ULPS = 1e-18  # a few operations in long double, each rounded by 5e-20

# Central differences in float64 at this step: their rounding is 1e-16 / STEP for each of the slices that are summed.
STEP, DIFFERENCE = 1e-6, 1e-7

# An interior-point method that ends at a gap of 1e-10: up to 2e-9 in the value and 5e-6 in the weights were seen.
CONIC_VALUE, CONIC = 5e-9, 3e-5
