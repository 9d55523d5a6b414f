"""Roots enclosed to the last bit of a long double, and derivatives by differences."""

import itertools

import numpy as np

LD = np.longdouble
EPS, TINY = np.finfo(LD).eps, np.finfo(LD).tiny

# An answer may miss its sum by this, relative to it: a sum of 10,000 long doubles rounds by less.
SUM_TOLERANCE = 1e-15


def bisect(decreasing, low, high):
    """Root of a decreasing function between two ends, where it is zero or no number is left between them.

    By secants, and every fourth time by halves. An end that stays where it is counts half in the next secant, which so
    lands beyond the root: both ends close in on it (the Illinois method).
    """
    low, high = LD(low), LD(high)
    above, below, last = decreasing(low), -decreasing(high), 0
    if above <= 0:
        return low
    for step in itertools.count():
        middle = low + (high - low) * (above / (above + below) if step % 4 else LD(0.5))
        if not low < middle < high:
            middle = low + (high - low) / 2
            if not low < middle < high:
                return middle
        value = decreasing(middle)
        if value == 0:
            return middle
        if value > 0:
            low, above, below = middle, value, below / 2 if last > 0 else below
        else:
            high, below, above = middle, -value, above / 2 if last < 0 else above
        last = value


def settle(weights, low, high, total):
    """The `weights(e)` that add up to `total`; all of them increase with e, which `low` and `high` enclose.

    As they move one way together, what the sum misses bounds what they all miss. The bracket shrinks as in `bisect`
    until the sum is right to the last bits or no number lies between the ends: a threshold next to a score cannot be
    stored, but the two that enclose it can, and the answer lies between theirs.
    """
    low, high = LD(low), LD(high)
    y_low, y_high = weights(low), weights(high)
    below, above = total - y_low.sum(), y_high.sum() - total
    assert below >= 0 and above >= 0, "the bracket does not enclose the root"
    of_low, of_high, last = below, above, 0  # what each end counts in the next secant
    for step in itertools.count():
        if min(below, above) <= 4 * EPS * total:
            return y_low if below < above else y_high
        middle = low + (high - low) * (of_low / (of_low + of_high)) if step % 4 else _halfway(low, high)
        if not low < middle < high:
            middle = _halfway(low, high)
            if not low < middle < high:
                return y_low + below / (below + above) * (y_high - y_low)
        y = weights(middle)
        missing = total - y.sum()
        if missing > 0:
            low, y_low, below, of_low, of_high = middle, y, missing, missing, of_high / 2 if last > 0 else of_high
        else:
            high, y_high, above, of_high, of_low = middle, y, -missing, -missing, of_low / 2 if last < 0 else of_low
        last = missing


def _halfway(low, high):
    """Between the ends: by their logarithms where the magnitudes are far apart."""
    if low > 0 and high > 4 * low:
        return np.exp((np.log(low) + np.log(high)) / 2)
    return low + (high - low) / 2


def derivative(function, at, h=1e-5, side="central"):
    """Derivative of a long double function of one number: fourth-order differences.

    Truncation h^4 f^(5)/30 is about 1e-20 and rounding 1e-19/h about 1e-14 for central ones. At the
    end of a domain (alpha = 1, p = 2) `side` is "right" or "left", five points, h = 2e-4.
    """
    at = LD(at)
    if side == "central":
        h = LD(h)
        return (8 * (function(at + h) - function(at - h)) - (function(at + 2 * h) - function(at - 2 * h))) / (12 * h)
    h = LD(2e-4) * (1 if side == "right" else -1)
    f = [function(at + k * h) for k in range(5)]
    return (-25 * f[0] + 48 * f[1] - 36 * f[2] + 16 * f[3] - 3 * f[4]) / (12 * h)
