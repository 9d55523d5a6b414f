"""The library's own powers, against NumPy's in float64."""

import jax
import numpy as np
import pytest

from smoothmax._solvers._power import power, rough_power

EXPONENTS = [-1.0, -0.999, -0.5, -1e-3, 0.0, 0.1, 0.5, 1.0, 3.0, 9.0, 1e3, 1e6]


def numbers(dtype, count=20_000):
    """Between the smallest normal number and 1: of every magnitude, and close to 1."""
    rng = np.random.default_rng(0)
    lowest = np.log(float(np.finfo(dtype).tiny))
    spread, close = np.exp(rng.uniform(lowest + 0.1, 0, count)), 1 - np.exp(rng.uniform(-16, 0, count))
    edges = [1.0, 0.5, np.sqrt(0.5), np.nextafter(np.sqrt(0.5), 0), np.finfo(dtype).tiny]
    return np.concatenate([spread, close, edges]).astype(dtype)


compiled, compiled_rough = jax.jit(power), jax.jit(rough_power)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power(dtype, exponent):
    u = numbers(dtype)
    info = np.finfo(dtype)
    exponent = float(dtype(exponent))
    logarithm = exponent * np.log(u.astype(np.longdouble))
    got = np.asarray(compiled(u, dtype(exponent)))
    assert got.dtype == dtype
    inside = (logarithm > np.log(info.tiny) + 1) & (logarithm < np.log(info.max) - 1)
    # The logarithm is rounded in its last operations, which the exponential magnifies; then the result is.
    error = np.abs(got[inside] / np.exp(logarithm[inside]) - 1)
    assert (error <= 2 * info.eps * (1 + np.abs(logarithm[inside]))).all()
    assert (got[logarithm < np.log(info.tiny) - 1] == 0).all()


def test_what_is_missing_from_the_base_is_given_back():
    exact, exponent = 1 - 1e-7 / 3, 1e5
    u = np.float32(exact)
    error = np.float32((exact - float(u)) / exact)
    assert abs(float(compiled(u, np.float32(exponent))) / exact**exponent - 1) > 1e-4
    assert abs(float(compiled(u, np.float32(exponent), error)) / exact**exponent - 1) < 1e-7  # float32 rounds by 6e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(dtype):
    one, nan = dtype(1), dtype(np.nan)
    assert np.isnan(compiled(nan, one / 2)) and np.isnan(compiled(one, nan)) and np.isnan(compiled(one, one, nan))


@pytest.mark.parametrize("exponent", [1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rough_power_is_a_few_percent_off(dtype, exponent):
    u = numbers(dtype)
    got = np.asarray(compiled_rough(u, dtype(exponent)))
    ratio = got / u.astype(np.longdouble) ** exponent
    assert ratio.min() > 0.93 and ratio.max() < 1.07
    assert ratio.max() > 1.001, "an exact power would be no test of the bound"
