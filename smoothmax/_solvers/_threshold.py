"""Weights of the threshold entropies (first, plain version)."""

import jax
import jax.numpy as jnp
from jax import lax


def _shift(z):
    top = jnp.max(z, axis=-1, keepdims=True)
    return z - jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)


def _total(v):
    return jnp.sum(v, axis=-1, keepdims=True)


def _solve(evaluate, low, high, steps, bisect=None):
    tol = 4 * jnp.finfo(low.dtype).eps

    def body(state):
        k, low, high, mu, _ = state
        residual, step = evaluate(mu)
        low = jnp.where(residual > 0, mu, low)
        high = jnp.where(residual < 0, mu, high)
        new = mu + step
        inside = (new >= low) & (new <= high)
        if bisect is not None:
            inside = inside & ~(bisect & (k % 2 == 1))
        new = jnp.where(inside, new, (low + high) / 2)
        new = jnp.where(residual == 0, mu, new)
        live = jnp.abs(new - mu) > tol * (1 + jnp.abs(mu))
        if bisect is not None:
            live = jnp.where(bisect, high - low > tol * jnp.abs(low), live)
        return k + 1, low, high, new, jnp.any(live)

    def go_on(state):
        return (state[0] < steps) & state[-1]

    # + 0 * low keeps NaN in the rows that had it
    return lax.while_loop(go_on, body, (0, low, high, low, jnp.asarray(True)))[3]


def tsallis_weights(z, alpha):
    z = _shift(z)
    b = alpha - 1
    safe = jnp.where(b == 0, jnp.ones_like(b), b)
    top = jnp.max(z, axis=-1, keepdims=True)
    low = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top) + 0 * alpha
    d = jnp.asarray(z.shape[-1], z.dtype)
    high = low + jnp.where(b == 0, jnp.log(d), -jnp.expm1(-b * jnp.log(d)) / safe) * (1 + 1e-5)

    def power(mu):
        x = jnp.maximum(b * (z - mu), -jnp.ones_like(low))
        y = jnp.where(b == 0, jnp.exp(z - mu), jnp.exp(jnp.log1p(x) / safe))
        return jnp.where(z == -jnp.inf, jnp.zeros_like(y), y), 1 + x

    def evaluate(mu):
        y, u = power(mu)
        total = _total(y)
        slope = _total(jnp.where(y > 0, y / u, jnp.zeros_like(y)))
        log_total = jnp.log(total)
        gain = jnp.where(b == 0, log_total, -jnp.expm1(-b * log_total) / safe)
        return total - 1, total * gain / slope

    y, _ = power(_solve(evaluate, low, high, 120, b > 1))
    total = _total(y)
    return y / jnp.where(total == 0, jnp.ones_like(total), total)


def p_norm_weights(z, p):
    z = _shift(z)
    q = p / (p - 1)
    top = jnp.max(z, axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top) + 0 * p
    d = jnp.asarray(z.shape[-1], z.dtype)
    low, high = top - 1, top - d ** (-2 / q) * (1 - 1e-5)

    def powers(tau):
        u = jnp.maximum(z - tau, jnp.zeros_like(tau))
        w = jnp.where(u > 0, jnp.exp((q - 2) * jnp.log(jnp.where(u > 0, u, jnp.ones_like(u)))), jnp.zeros_like(u))
        return jnp.where(jnp.isnan(u), u, w), u

    def evaluate(tau):
        w, u = powers(tau)
        s0, s1, s2 = _total(w), _total(w * u), _total(w * u * u)
        h = s1 * jnp.exp((2 - q) / q * jnp.log(s2))
        return h - 1, (h - 1) / (h * ((q - 1) * s0 / s1 + (2 - q) * s1 / s2))

    w, u = powers(_solve(evaluate, low, high, 100))
    y = w * u
    total = _total(y)
    return y / jnp.where(total == 0, jnp.ones_like(total), total)


def diagonal_product(s, v):
    """J v = s (v - <s, v> / sum s)."""
    total = _total(s)
    mean = _total(s * v) / jnp.where(total == 0, jnp.ones_like(total), total)
    return s * (v - mean)
