"""Weights of the entropies that one threshold per slice solves: Tsallis entropies and squared p-norms.

The problems

    argmax over y in the simplex of  <z, y> - (sum y^alpha - 1) / (alpha (alpha - 1))       (Tsallis, alpha >= 1)
    argmax over y in the simplex of  <z, y> - norm_p(y)^2 / 2                               (p-norm, 1 < p <= 2)

have solutions of one form. With ``b = alpha - 1`` or ``p - 1``, ``r = 1 / b`` and ``u = max(scale * z - tau, 0)``,

    y = u^r / sum u^r,        scale = b (Tsallis) or 1 (p-norm);

only the equation for the threshold differs. In the sums ``low``, ``mid``, ``high`` of u^(r-1), u^r, u^(r+1) it reads

    F(tau) = mid = 1   (Tsallis),        F(tau) = mid * high^((1 - r) / (1 + r)) = 1   (p-norm).

F falls as tau rises. With the largest score moved to 0 the largest u is -tau, and the root lies between -1 and the
threshold of d equal scores.

**A step.** Suppose F were a power of the distance to some end point, ``F = ((end - tau) / c)^k``. With
``slope = -d log F / d tau`` the root would be exactly ``tau + phi(log F, 1 / k) / slope``, where
``phi(x, c) = (1 - exp(-c x)) / c``. Two choices of k matter:

* k = r (p-norm: k = 1) is Newton's method on a norm of u: a convex, nearly linear function of tau, so the step never
  overshoots and converges quadratically; on an unchanged support it is exact for sparsemax.
* Far from the root, positions leave the support on the way and F falls as a higher power. ``high`` is (up to a factor)
  the integral of ``mid`` over all larger thresholds, and ``low`` its derivative; the three together reveal k. This
  saves up to half of the passes over the data. As b falls to 0, k grows without bound and one step is the logsumexp.

For alpha > 2 the powers are concave, with infinite slope where a position enters, and the loop is another one
(`_concave_weights`).

**A pass** computes one power; the others follow by multiplication. Sparsemax (r = 1) and 1.5-entmax (r = 2) need none,
so these are chosen at run time, when the whole of alpha has that value: alpha may be traced, one trace serves all.

Only reductions touch the last axis, so it may be sharded. Deleted positions (score -inf) have u = 0 everywhere; a NaN
or +inf turns every sum of its slice into NaN, which no comparison counts as unfinished.
"""

import jax.numpy as jnp
from jax import lax

from ._power import first_true, power, rough_power

# Three to six passes are the rule; the bound only matters for data built to be slow.
_MAX_PASSES = 64
# The relative error of `rough_power`, rounded up.
_ROUGH = 0.07
# log F down to which the exponent k is estimated from the sums.
_FAR = 0.2


def tsallis_weights(z, alpha):
    """argmax over the simplex of <z, y> - (sum y^alpha - 1) / (alpha (alpha - 1)).

    Args:
      z: scores, shape (..., d), float32 or float64; -inf deletes a position.
      alpha: at least 1, of z's dtype; a scalar or of shape (..., 1) with the rank of z.

    Returns:
      The weights, in the shape of z. A slice of -inf gives zeros; NaN or +inf in a slice, or a NaN alpha, gives NaN.
    """
    b = alpha - 1
    z, zero = _below_top(z, b)

    def solve(powers):
        # b = 0 (softmax) among other values of b: the smallest positive b is the same to rounding.
        positive = jnp.maximum(b, _eps(z))
        return _convex_weights(z, zero, positive, positive, _tsallis_equation, powers)

    def general():
        convex = lax.cond(jnp.all(b > 1), lambda: jnp.zeros_like(z) + zero, lambda: solve(_any_power))
        return lax.cond(jnp.any(b > 1), lambda: jnp.where(b > 1, _concave_weights(z, zero, b), convex), lambda: convex)

    return first_true(
        (jnp.all(b == 1), lambda: solve(_first_power)),
        (jnp.all(b == 0.5), lambda: solve(_second_power)),
        (jnp.all(b == 0), lambda: _normalize(jnp.exp(z) + zero)),
        otherwise=general,
    )


def p_norm_weights(z, p):
    """argmax over the simplex of <z, y> - norm_p(y)^2 / 2, for 1 < p <= 2; arguments as `tsallis_weights`."""
    b = p - 1
    z, zero = _below_top(z, b)

    def solve(powers):
        return _convex_weights(z, zero, b, jnp.ones_like(b), _p_norm_equation, powers)

    return first_true(
        (jnp.all(b == 1), lambda: solve(_first_power)),
        (jnp.all(b == 0.5), lambda: solve(_second_power)),
        otherwise=lambda: solve(_any_power),
    )


def softmax_weights(z):
    """`tsallis_weights` at alpha = 1."""
    z, zero = _below_top(z, jnp.zeros((), z.dtype))
    return _normalize(jnp.exp(z) + zero)


def sparsemax_weights(z):
    """`tsallis_weights` at alpha = 2, and `p_norm_weights` at p = 2."""
    one = jnp.ones((), z.dtype)
    z, zero = _below_top(z, one)
    return _convex_weights(z, zero, one, one, _tsallis_equation, _first_power)


# The loop for convex powers: alpha <= 2, and every p.


def _convex_weights(z, zero, b, scale, equation, powers):
    """y = u^r / sum u^r for u = max(scale z - tau, 0), with the `equation` that F(tau) = 1 is and the `powers` of u."""
    r = 1 / b
    log_d = jnp.log(jnp.asarray(z.shape[-1], z.dtype))
    equal = -jnp.exp(-(b if equation is _tsallis_equation else 2 * b / (1 + b)) * log_d)
    # A step leaves a relative error of second order in the weights, of order r in weights close to 0: see the end.
    enough = 4 * _eps(z) ** jnp.maximum(b, 0.5)
    # The sums are rounded: a residual this small whose step does not shrink any more is nothing but noise.
    noise = _eps(z) * (16 + z.shape[-1] / 64)

    def forward(tau, step):
        return jnp.clip(tau + step, jnp.full_like(equal, -1), equal)

    def one_pass(state):
        passes, tau, step, active, far, _ = state
        # A finished slice stays where it is: its weights must not depend on the other slices.
        tau = jnp.where(active, forward(tau, step), tau)
        low_power, summands = powers(scale * z, tau, r)
        low, mid, high = (_total(v) for v in summands)
        log_f, slope, inverse_k, inverse_norm = equation(b, low, mid, high)
        # Once F has been close to 1 or below it, Newton's method alone: it cannot be thrown to and fro.
        far = far & (log_f > _FAR)
        new_step = _phi(log_f, jnp.where(far, inverse_k, inverse_norm)) / slope
        new_step = jnp.where(mid == 0, zero, new_step)
        stalled = (jnp.abs(log_f) < noise) & (2 * jnp.abs(new_step) > jnp.abs(step))
        active = active & (r * jnp.abs(new_step) > -enough * tau) & ~stalled
        return passes + 1, tau, new_step, active, far, low_power

    start = zero - 1
    convex = (start < 0) & (b <= 1)  # a NaN makes it false
    state = (0, start, zero, convex, convex, jnp.zeros_like(z) + zero if powers is _any_power else ())
    _, tau, step, _, _, low_power = lax.while_loop(_unfinished, one_pass, state)
    # The last step: exactly where powers are cheap, to first order in the stored power where they are not.
    if powers is _any_power:
        y = low_power * _positive(_positive(scale * z - tau) - r * step)
    else:
        _, (_, y, _) = powers(scale * z, forward(tau, step), r)
    return _normalize(y)


def _unfinished(state):
    passes, active = state[0], state[3]
    return (passes < _MAX_PASSES) & jnp.any(active)


# log F, -d log F / d tau, and 1 / k: as the sums tell it, and for Newton's method on a norm.


def _tsallis_equation(b, low, mid, high):
    return jnp.log(mid), low / (b * mid), _inverse_exponent(b, low, mid, high), b


def _p_norm_equation(b, low, mid, high):
    r = 1 / b
    log_f = jnp.log(mid) + (1 - r) / (1 + r) * jnp.log(high)
    slope = r * low / mid + (1 - r) * mid / high
    # mid falls with exponent k and high with k + 1, hence F with exponent 1 + 2 (k - r) / (1 + r).
    inverse_k = _inverse_exponent(b, low, mid, high)
    inverse_k = inverse_k * (1 + r) / (2 + inverse_k * (1 - r))
    return log_f, slope, inverse_k, jnp.ones_like(b)


def _inverse_exponent(b, low, mid, high):
    """1 / k such that ``mid ~ (end - tau)^k``; then low * high / ((1 + b) mid^2) = k / (k + 1)."""
    return (1 + b) * mid / low * (mid / high) - 1


def _phi(x, c):
    """(1 - exp(-c x)) / c, continuous at c = 0."""
    return jnp.where(c == 0, x, -jnp.expm1(-c * x) / jnp.where(c == 0, jnp.ones_like(c), c))


# u^(r-1), u^r and u^(r+1), and the first of them again where it is dear enough to be kept.


def _first_power(x, tau, r):
    u = _stored(_positive(x - tau))
    return (), (jnp.sign(u), u, u * u)


def _second_power(x, tau, r):
    u, again = _stored((_positive(x - tau),) * 2)
    return (), (u, u * u, again * again * again)


def _any_power(x, tau, r):
    u = x - tau
    # For small b, u is close to 1 and r multiplies the error of rounding it; the power gets that error back.
    # (Where u is less than half of the largest u, the subtraction was exact.)
    error = x - (u + tau)
    low_power = jnp.sign(_positive(u)) * power(jnp.maximum(u, _tiny(u)), r - 1, error / jnp.maximum(u, -tau / 2))
    low_power, u = _stored((low_power, _positive(u)))
    return low_power, (low_power, low_power * u, low_power * u * u)


# The loop for concave powers: alpha > 2.


def _concave_weights(z, zero, b):
    """Tsallis weights for b = alpha - 1 > 1, where u^r has infinite slope at 0.

    A position close to the threshold makes the sum of powers steep, and a threshold cannot even be stored precisely
    enough to say what such a position weighs. What can be: the smallest score c of the support and the weight w there.
    The weights are ``(b (z - c) + w^b)^r``, convex in w with slopes between 0 and 1, so Newton's method on w is
    well-behaved, and where it asks for a negative w, position c leaves the support. The state holds c and e = w^b, a
    threshold at c - e / b; e <= 0 puts the threshold above c, and the next pass then finds the next larger c.

    The search for the support is what takes passes, and it needs no precision: ten halvings of the bracket
    r d^-b <= -tau <= r, on a logarithmic scale, with a power that is off by a few percent and costs next to nothing.
    """
    wanted = b > 1
    b = jnp.where(wanted, b, jnp.full_like(b, 2))
    r = 1 / b
    log_d = jnp.log(jnp.asarray(z.shape[-1], z.dtype))
    noise = _eps(z) * (16 + z.shape[-1] / 64)

    def threshold(digits):
        """From -r at 0 to the threshold of d equal scores at 1."""
        return -r * jnp.exp(-b * log_d * digits)

    def halve(k, digits):
        more = digits + 2.0 ** -(k + 1)
        u = b * (z - threshold(more))
        rough_mid = _total(jnp.where(u > 0, rough_power(u, r), jnp.zeros_like(u)))
        return jnp.where(rough_mid > 1 + _ROUGH, more, digits)

    def support(c, e):
        lowest = jnp.min(jnp.where(b * (z - c) > -e, z, jnp.zeros_like(z)), axis=-1, keepdims=True)
        return lowest, e + b * (lowest - c)

    def powers(c, e):
        """u, and its power r - 1 above c; and that power at c, where u = e."""
        x = b * (z - c)
        u = jnp.where(x < 0, jnp.zeros_like(x), x + e)
        # A position that rounding cannot tell from c counts as c: its power may be too large to be added to others.
        low_power = jnp.where(u > e, power(u, r - 1), jnp.zeros_like(u))
        return *_stored((u, low_power)), jnp.exp((r - 1) * jnp.log(e))

    def one_pass(state):
        passes, c, e, active, below, above, last = state
        next_c, next_e = support(c, e)
        c, e = jnp.where(active, next_c, c), jnp.where(active, next_e, e)
        u, low_power, power_at_c = powers(c, e)
        low, mid = _total(low_power), _total(low_power * u)
        ties = _total((u == e).astype(u.dtype))
        excess = mid + ties * power_at_c * e - 1
        tau = c - r * e
        below = jnp.where(excess > 0, jnp.maximum(below, tau), below)
        above = jnp.where(excess < 0, jnp.minimum(above, tau), above)
        # Newton's step for the weight at c ...
        w = power_at_c * e - excess / (low / power_at_c + ties)
        # ... or, without c, a step for the threshold, up to c at least.
        jump = tau - c + mid / low * _phi(jnp.log(mid), b)
        jump = _positive(jnp.where(mid > 1, jump, zero))
        next_e = jnp.where(w > 0, jnp.exp(b * jnp.log(_positive(w))), -b * jump)
        # Both can overshoot to a place with other positions in the support, and back; half of the way then.
        middle = (below + above) / 2
        target = c - r * next_e
        too_low = (excess < 0) & (target < middle)
        too_high = (excess > 0) & (target >= above)
        far = (jnp.abs(excess) > 1e-3) | (passes > 16)
        next_e = jnp.where(far & (too_low | too_high), b * (c - middle), next_e)
        stalled = (jnp.abs(excess) < noise) & (2 * jnp.abs(excess) > jnp.abs(last))
        moving = active & (jnp.abs(excess) > 4 * _eps(z)) & ~stalled
        # From this side Newton's steps keep c and do not overshoot; what one leaves over is at most this.
        left_over = (b - 1) * (power_at_c * e - w) ** 2 / (2 * w)
        arrives = (excess > 0) & (w > 0) & (left_over <= 4 * _eps(z))
        return passes + 1, c, jnp.where(moving, next_e, e), moving & ~arrives, below, above, excess

    below = threshold(lax.fori_loop(0, 10, halve, zero))
    state = (0, zero, -b * below, wanted & (zero == 0), below, threshold(zero + 1), zero + 1)
    _, c, e, *_ = lax.while_loop(_unfinished, one_pass, state)
    u, low_power, power_at_c = powers(c, e)
    return _normalize(u * jnp.where(u == e, power_at_c, low_power))


# The product with the Jacobian.


def diagonal_product(s, v):
    """J v = s (v - <s, v> / sum s), the Jacobian of weights whose inverse Hessian on the support is the diagonal s."""
    total = _total(s)
    return s * (v - _total(s * v) / jnp.where(total == 0, jnp.ones_like(total), total))


# Pieces.


def _below_top(z, b):
    """Scores minus their maximum, and one zero per slice (NaN where the slice or b is).

    A deleted score becomes a number so low that it stays out of every support, yet safe to compute with.
    """
    z = jnp.broadcast_to(z, jnp.broadcast_shapes(z.shape, b.shape))
    top = jnp.max(z, axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)
    lowest = 1e30 if z.dtype == jnp.float32 else 1e100
    return jnp.maximum(z - top, -lowest), 0 * top + 0 * b


def _normalize(y):
    total = _total(y)
    return y / jnp.where(total == 0, jnp.ones_like(total), total)


def _total(v):
    return jnp.sum(v, axis=-1, keepdims=True)


def _positive(v):
    return jnp.maximum(v, 0)


def _stored(values):
    """The values themselves, written to memory on CPU, where several sums over one expression vectorize only then."""
    return lax.platform_dependent(values, cpu=lax.optimization_barrier, default=lambda same: same)


def _eps(z):
    return float(jnp.finfo(z.dtype).eps)


def _tiny(z):
    return float(jnp.finfo(z.dtype).tiny)
