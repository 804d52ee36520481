"""Bound the cost of integer vectors under a sum of discrete Gaussian shares by the Gaussian mechanism.

The mechanism. k silos add independent shares X_1, ..., X_k to integer vectors; each entry of a share is an independent discrete
Gaussian of parameter s. Of the sum, the adversary sees everything. One record moves it by an integer vector w with
|w|_2 <= sensitivity. Write S for the noise of one entry, sigma = s sqrt(k), Phi for the normal distribution function.

Theorem. For s >= 4 and k <= 10^4 the mechanism is mu-GDP with mu = sensitivity * (1 + sigma^-2) / sigma: its pair of output
distributions is dominated by that of the Gaussian mechanism with noise multiplier 1 / mu. A pair that dominates takes the
mechanism's place under adaptive composition and under Poisson sampling (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorems 10
and 11), so every accountant that bounds the (sampled) Gaussian mechanism bounds this one; under replace-one without sampling only
(`normal_form`). Only the L2 norm of w enters.

Proof.

1. From vectors to a shift by one. T(P, Q) is the trade-off function of Dong, Roth and Su 2019 (arXiv 1905.02383), G_mu that of
   N(0, 1) and N(mu, 1). If T(P, Q) >= G_a and T(Q, R) >= G_b, a test of P that errs with probability p has power at most 1 - G_a(p)
   at Q, so it errs at R with probability at least G_b(1 - G_a(p)) = G_{a+b}(p). Thus T(S, S + 1) >= G_c gives T(S, S + j) >= G_{jc}
   for whole j > 0, and for j < 0 since S is symmetric. Independent entries compose to G with c |w|_2 (the same paper, section 3).

2. From a shift by one to quantiles. S is log-concave, since the discrete Gaussian is and convolution keeps it (Hoggar 1974). So
   the likelihood ratio of S + 1 and S is monotone, the optimal tests are thresholds, and T(S, S + 1) is the piecewise linear
   function through (1 - F(t), F(t - 1)), F being the distribution function of S. G_c is convex: it lies below its chords, so it
   suffices that G_c <= T at these points. With z(t) = Phi^-1(F(t)) that is z(t) - z(t - 1) <= c, for all t.

3. One discrete Gaussian of parameter sigma >= 4: z(t + 1) - z(t) <= (1 + .82 sigma^-2) / sigma. By symmetry z(-1 - t) = -z(t), so
   that t = -1 and t >= 0 are enough. P[S = 0] <= 1 / (sigma sqrt(2 pi)), because the sum of exp(-x^2 / (2 sigma^2)) over the integers is
   at least the integral (Poisson summation); with Phi(y) - 1/2 >= (y - y^3 / 6) / sqrt(2 pi) this gives
   z(0) - z(-1) = 2 z(0) <= (1 + sigma^-2 / 12) / sigma.
   For t >= 0 let y_t = (t + 1/2) / sigma, m(x) the mass that N(0, sigma^2) has on [x - 1/2, x + 1/2], and r(x) = P[S = x] / m(x). Then
   1 / r(x) is a constant times g(x), the integral of cosh(x u / sigma^2) exp(-u^2 / (2 sigma^2)) over |u| <= 1/2. It grows with |x|, and
   (log g)' <= min(x / (4 sigma^4), 1 / (2 sigma^2)) for x >= 0, from |u| <= 1/2 and sinh a <= min(a, 1) cosh a.
   Let rho(t) = P[S > t] / (1 - Phi(y_t)), the mean of r over x > t under m. It falls with t, and is at most 1 for t >= 0: the mean of r
   over all x is 1, and r(0) is its largest value. So z(t) >= y_t. The function L = -log(1 - Phi) is convex with slope h, the hazard
   rate, which grows, h(y) >= y. With delta = z(t + 1) - z(t), convexity gives
     L(y_t + delta) - L(y_t) <= L(z(t) + delta) - L(z(t)) = L(y_{t+1}) - L(y_t) + log(rho(t) / rho(t + 1)),
   and the tangent at y_{t+1} gives delta - 1/sigma <= log(rho(t) / rho(t + 1)) / h(y_{t+1}). Write x = t + 1, a = y_{t+1} and W for the share
   m(x) / (1 - Phi(y_t)) = 1 - exp(L(y_t) - L(a)) <= h(a) / sigma. Since rho(t) = W r(x) + (1 - W) rho(t + 1),
     log(rho(t) / rho(t + 1)) <= W (r(x) / rho(t + 1) - 1), so delta - 1/sigma <= (r(x) / rho(t + 1) - 1) / sigma.
   By Jensen r(x) / rho(t + 1) <= E g(X') / g(x), with X' of probabilities proportional to m beyond x.
   (i) a <= sigma. X' <= sigma Z + 1/2 for Z normal given Z >= a, and x = sigma a - 1/2, so log g(X') - log g(x) <= (X'^2 - x^2) / (8 sigma^4) <=
   (Z^2 - a^2) / (8 sigma^2) + (Z + a) / (8 sigma^3). Z + a = 2 a + (Z - a), 2 a <= 2 sigma, and Z - a <= (Z^2 - a^2) sigma / 3 since a >= 1.5 / sigma. So
   E g(X') / g(x) <= exp(1 / (4 sigma^2)) E exp((Z^2 - a^2) / (6 sigma^2)) <= exp(1 / (4 sigma^2)) / (1 - 1 / (3 sigma^2)) <= 1 + .6 sigma^-2. The second
   step: E exp(b (Z^2 - a^2)) = M(q a) / (q M(a)) <= q^-2 with q^2 = 1 - 2 b and Mills' ratio M, since a M(a) grows.
   (ii) a >= sigma. X' - x - 1 is stochastically below a geometric variable with P[>= j] = exp(-a j / sigma) <= exp(-j), since
   (1 - Phi(a + j / sigma)) / (1 - Phi(a)) <= exp(-h(a) j / sigma). With b = 1 / (2 sigma^2), E g(X') / g(x) <= E exp(b (X' - x)) <=
   1 + (exp(b) - 1) / (1 - exp(b - 1)) <= 1 + .82 sigma^-2.

4. The sum of shares. Let W_j be discrete Gaussian of parameter s sqrt(j). P[W_j + X = x] is exp(-x^2 / (2 s^2 (j + 1))) times a sum of
   exp(-(i - x j / (j + 1))^2 / (2 v)) over the integers i, v = s^2 j / (j + 1) >= 8, and a constant. By Poisson summation that sum is within a factor
   1 +- e of its mean, e = 2 sum_i exp(-2 pi^2 v i^2) < 6e-69. So W_j + X has the probabilities of W_{j+1} up to a factor (1 + e) / (1 - e)
   either way, and by induction (a factor survives convolution) S those of W_k up to exp(+-tau), tau < 1.3e-64 for k <= 10^4. (So do
   Kairouz et al. 2021, arXiv 2102.06387, with another constant.) The tails of S have the same factor, so z(t) moves by at
   most tau / h(0) < 1.26 tau for t >= 0, and an increment by 2.6 tau. That is far below the .18 sigma^-3 that the theorem has left for
   sigma <= 2^47, the largest that is admitted. QED.
"""

from __future__ import annotations

import math

SMALLEST_SIGMA = 4.0
"""Smallest parameter of one share for which the bound is proven."""
LARGEST_SIGMA = 2.0**40
MOST_SHARES = 10_000
LARGEST_SENSITIVITY = 2.0**100
_ROUND_OFF = 1e-14  # relative, of the few operations below


def check_shares(sigma: float, shares: int, sensitivity: float) -> None:
    """Check the parameters of a sum of shares; ValueError names the one out of range."""
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ValueError(
            f"Expected {SMALLEST_SIGMA:g} <= sigma <= 2^40 of one share, got sigma={sigma}"
        )
    if isinstance(shares, bool) or shares != int(shares) or not 1 <= shares <= MOST_SHARES:
        raise ValueError(
            f"Expected a whole number of shares from 1 to {MOST_SHARES}, got shares={shares}"
        )
    if not 1 <= sensitivity <= LARGEST_SENSITIVITY:
        raise ValueError(
            f"Expected 1 <= sensitivity <= 2^100 of integers, got sensitivity={sensitivity}"
        )


def noise_multiplier(sigma: float, shares: int, sensitivity: float) -> float:
    """Return the noise multiplier of the Gaussian mechanism that dominates; the module has the proof.

    Args:
      sigma: Parameter of one share of discrete Gaussian noise on integers, from 4 to 2^40.
      shares: Number of shares in the sum that the adversary does not know, 1 to 10^4.
      sensitivity: L2 norm by which one record moves the integer vector at most, 1 to 2^100.

    Raises:
      ValueError: A parameter is out of range.
    """
    check_shares(sigma, shares, sensitivity)
    total = sigma * math.sqrt(shares)
    return total / (sensitivity * (1 + total**-2)) * (1 - _ROUND_OFF)
