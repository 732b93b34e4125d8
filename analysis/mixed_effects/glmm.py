"""Generalised linear mixed models (logistic, Poisson) by maximum likelihood with the Laplace approximation.

The random effects are integrated out by a normal approximation at their conditional mode (Breslow & Clayton, 1993;
Bates et al., 2015), which Newton's method finds for every value of the parameters. Variance parameters and fixed
effects are estimated together, with the gradient of the approximated log-likelihood in closed form: it takes into
account that the mode moves with the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.elimination import CrossProducts, Factorisation, Layout
from vlm_probe.analysis.mixed_effects.families import Family, Moments
from vlm_probe.analysis.mixed_effects.lmm import FLOOR, expected_curvature
from vlm_probe.analysis.mixed_effects.optimise import NEARLY_ZERO, Counter, Optimum, descend, minimise
from vlm_probe.analysis.mixed_effects.solution import Solution, in_data_units
from vlm_probe.analysis.mixed_effects.terms import RandomTerm, diagonal_mask, split

Array = NDArray[Any]

MODE_TOLERANCE = 1e-7
"""Squared Newton decrement at which one more step, which squares it, ends the search for the mode."""
START = 0.5
"""Standard deviation of every random effect at the first start."""


@dataclass(frozen=True)
class _Mode:
    """The conditional mode at one value of the parameters."""

    factors: list[Array]
    u: Array
    moments: Moments
    cross: CrossProducts
    factorisation: Factorisation
    value: float  # Laplace approximation of the log-likelihood


class GeneralizedMixedModel:
    """A generalised linear mixed model, ready to be fitted.

    Args:
        family: Binomial or Poisson.
        y: Responses (counts of successes, or counts), (n,).
        trials: Numbers of trials, (n,).
        x: Fixed-effect design of full column rank, (n, p).
        terms: Random-effect terms, at least one.
        offset: Known part of the linear predictor, (n,).
        precision: Prior precision of each fixed effect, (p,); zeros for maximum likelihood.
    """

    def __init__(
        self,
        family: Family,
        y: Array,
        trials: Array,
        x: Array,
        terms: tuple[RandomTerm, ...],
        offset: Array,
        precision: Array,
    ) -> None:
        self.family, self.y, self.trials, self.offset = family, y, trials, offset
        self.n, self.p = x.shape
        self.layout = Layout(terms)
        q, r = np.linalg.qr(x)
        self._q, self._r = q * np.sqrt(self.n), r / np.sqrt(self.n)
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        self._prior = to_beta.T @ (precision[:, None] * to_beta)
        self._constant = family.constant(y, trials)
        self._u = np.zeros(self.layout.size)
        self._diagonal = diagonal_mask(self.layout.terms)
        self._d = len(self._diagonal)

    def _factors(self, theta: Array) -> list[Array]:
        factors = split(self.layout.terms, theta)
        for factor in factors:
            diagonal = np.diag(factor)
            np.fill_diagonal(factor, np.where(np.abs(diagonal) < FLOOR, np.copysign(FLOOR, diagonal), diagonal))
        return factors

    def _mode(self, parameters: Array) -> _Mode:
        """Newton's method with halved steps; the log-density is concave, so that it cannot miss the mode."""
        factors = self._factors(parameters[: self._d])
        fixed = self.offset + self._q @ parameters[self._d :]
        u = self._u
        predictor = fixed + self.layout.expand(self.layout.scale(factors, u))
        moments = self.family.moments(self.y, self.trials, predictor)
        density = moments.log_likelihood - 0.5 * float(u @ u)
        close = False
        for _ in range(100):
            cross = self.layout.crossproducts(moments.weight)
            factorisation = cross.factorise(factors)
            if close:
                break
            residual = self.layout.project(self.y - moments.mean)
            gradient = self.layout.scale(factors, residual, transpose=True) - u
            step = factorisation.solve(gradient)
            decrement = float(gradient @ step)
            if decrement < MODE_TOLERANCE**2:
                break
            close = decrement < MODE_TOLERANCE
            along = self.layout.expand(self.layout.scale(factors, step))
            length = 1.0
            while True:
                ahead = self.family.moments(self.y, self.trials, predictor + length * along)
                moved = u + length * step
                there = ahead.log_likelihood - 0.5 * float(moved @ moved)
                if there >= density - 1e-9 * (1 + abs(density)) or length < 1e-6:
                    break
                length /= 2
            u, predictor, moments, density = moved, predictor + length * along, ahead, there
        self._u = u  # the next search begins here
        return _Mode(factors, u, moments, cross, factorisation, density - 0.5 * factorisation.log_determinant)

    def objective(self, parameters: Array) -> tuple[float, Array]:
        """Minus the approximated log-likelihood at (theta, gamma), where `X beta = Q gamma`, and its gradient."""
        before = self._u
        try:
            mode = self._mode(parameters)
        except np.linalg.LinAlgError:
            self._u = before
            return np.inf, np.zeros_like(parameters)
        if not np.isfinite(mode.value):
            self._u = np.zeros_like(before)
            return np.inf, np.zeros_like(parameters)
        gamma = parameters[self._d :]
        pull = self._prior @ gamma
        gradient = -self._gradient(mode)
        gradient[self._d :] += pull
        return -mode.value - self._constant + 0.5 * float(gamma @ pull), gradient

    def _gradient(self, mode: _Mode) -> Array:
        layout, factors, moments = self.layout, mode.factors, mode.moments
        residual = self.y - moments.mean
        # Half the derivative of log|H| with respect to each row's linear predictor, and what follows for the mode.
        half = 0.5 * moments.weight_slope * mode.factorisation.leverages(factors)
        moved = mode.factorisation.solve(layout.scale(factors, layout.project(half), transpose=True))
        effective = residual - half + moments.weight * layout.expand(layout.scale(factors, moved))
        products = layout.parts(layout.project(effective))
        of_residual = layout.parts(layout.project(residual))
        theta = []
        for term, factor, block, u, shift, product, plain in zip(
            layout.terms,
            factors,
            mode.factorisation.inverse_diagonal,
            layout.parts(mode.u),
            layout.parts(moved),
            products,
            of_residual,
            strict=True,
        ):
            of_h = scipy.linalg.solve_triangular(factor.T, term.q * np.eye(term.k) - block.sum(axis=0))
            full = product.T @ u - of_h - plain.T @ shift
            theta.append(full[term.rows, term.columns])
        return np.concatenate([*theta, self._q.T @ effective])

    def _curvature(self, parameters: Array) -> Array:
        """Approximate information about the parameters: about variances one by one, about fixed effects jointly."""
        mode = self._mode(parameters)
        matrix = np.zeros((len(parameters), len(parameters)))
        matrix[: self._d, : self._d] = expected_curvature(self.layout, mode.factors, mode.factorisation)
        matrix[self._d :, self._d :] = self._information(mode)
        return matrix

    def _information(self, mode: _Mode) -> Array:
        """Information about the fixed effects at given variances, (p, p)."""
        weighted = mode.moments.weight[:, None] * self._q
        products = np.column_stack([self.layout.project(column) for column in weighted.T])
        scaled = self.layout.scale(mode.factors, products, transpose=True)
        return self._q.T @ weighted - scaled.T @ mode.factorisation.solve(scaled) + self._prior

    def _start(self) -> Array:
        """Fixed effects without random ones, and standard deviations of `START`."""
        gamma, _ = fixed_only(
            self.family, self.y, self.trials, self._q, self.offset, self._prior + 1e-6 * np.eye(self.p)
        )
        return np.concatenate([np.where(self._diagonal, START, 0.0), gamma])

    def fit(self) -> Solution:
        """Find the optimum, and what inference about it needs."""
        diagonal = np.concatenate([self._diagonal, np.zeros(self.p, bool)])
        optimum = minimise(self.objective, self._start(), self._curvature, diagonal)
        return self._solution(optimum)

    def restricted(self, theta: Array, beta: Array, weights: Array, *, free: bool) -> float:
        """The largest log-likelihood, less the prior's penalty, among fixed effects with the same `weights @ beta`.

        Args:
            theta: Variance parameters.
            beta: Fixed effects to begin with, (p,); they say which value `weights @ beta` is to have.
            weights: Of the combination that is held, (p,).
            free: Whether the variance parameters are estimated anew, beginning with `theta`, or held as well.
        """
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        within = scipy.linalg.null_space((to_beta.T @ weights)[None])
        if free:  # a variance of 0 is a stationary point, which a search would not leave
            theta = np.where(self._diagonal & (np.abs(theta) < NEARLY_ZERO), 0.1, theta)
        start = np.concatenate([theta, self._r @ beta])
        basis = scipy.linalg.block_diag(np.eye(self._d) if free else np.zeros((self._d, 0)), within)

        def along(moved: Array) -> tuple[float, Array]:
            value, gradient = self.objective(start + basis @ moved)
            return value, basis.T @ gradient

        curvature = basis.T @ self._curvature(start) @ basis
        return -descend(Counter(along), np.zeros(basis.shape[1]), curvature)[1]

    def _covariance(self, optimum: Optimum, mode: _Mode) -> Array:
        """Covariance of the fixed effects, with the uncertainty of the variances that are not 0."""
        free = np.flatnonzero(~optimum.fixed)
        hessian = optimum.hessian[np.ix_(free, free)]
        try:
            np.linalg.cholesky(hessian)
        except np.linalg.LinAlgError:  # no optimum, which the result says; at given variances, then
            return np.linalg.inv(self._information(mode))
        return np.linalg.inv(hessian)[-self.p :, -self.p :]

    def _solution(self, optimum: Optimum) -> Solution:
        mode = self._mode(np.where(optimum.fixed, 0.0, optimum.x))
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        covariance = self._covariance(optimum, mode)
        factors = [np.where(np.abs(factor) <= FLOOR, 0.0, factor) for factor in mode.factors]
        blocks = [
            factor @ block @ factor.T
            for factor, block in zip(mode.factors, mode.factorisation.inverse_diagonal, strict=True)
        ]
        modes = self.layout.parts(self.layout.scale(mode.factors, mode.u))
        in_units = in_data_units(self.layout.terms, factors, modes, blocks, 1.0)
        return Solution(
            self.layout.terms,
            to_beta @ optimum.x[self._d :],
            to_beta @ covariance @ to_beta.T,
            *in_units,
            sigma=1.0,
            log_likelihood=mode.value + self._constant,
            derivatives=np.zeros((0, self.p, self.p)),
            parameter_covariance=np.zeros((0, 0)),
            n_variance_parameters=self._d,
            converged=optimum.converged,
            distance=optimum.distance,
            evaluations=optimum.evaluations,
            starts=optimum.starts,
            optimizer="BFGS with analytic gradients, then Newton",
        )


def fixed_only(
    family: Family,
    y: Array,
    trials: Array,
    x: Array,
    offset: Array,
    prior: Array,
    start: Array | None = None,
    within: Array | None = None,
) -> tuple[Array, Array]:
    """Coefficients of a generalised linear model without random effects, by Newton's method, and their information.

    Args:
        family: Binomial or Poisson.
        y, trials, offset: As in `GeneralizedMixedModel`.
        x: Design, (n, p).
        prior: Prior precision matrix of the coefficients, (p, p).
        start: Where to begin, (p,); None for zeros.
        within: Directions (p, k) in which they may move from there; None for all.
    """
    beta = np.zeros(x.shape[1]) if start is None else start
    basis = np.eye(x.shape[1]) if within is None else within

    def at(beta: Array) -> tuple[Moments, float]:
        moments = family.moments(y, trials, offset + x @ beta)
        return moments, moments.log_likelihood - 0.5 * float(beta @ prior @ beta)

    moments, value = at(beta)
    for _ in range(50):
        if not basis.shape[1]:
            break
        information = basis.T @ (x.T @ (moments.weight[:, None] * x) + prior) @ basis
        gradient = basis.T @ (x.T @ (y - moments.mean) - prior @ beta)
        inner = scipy.linalg.solve(information, gradient, assume_a="pos")
        step = basis @ inner
        if gradient @ inner < 1e-10:
            break
        length = 1.0
        while True:
            ahead, there = at(beta + length * step)
            if there >= value - 1e-9 * (1 + abs(value)) or length < 1e-6:
                break
            length /= 2
        beta, moments, value = beta + length * step, ahead, there
    return beta, x.T @ (moments.weight[:, None] * x) + prior
