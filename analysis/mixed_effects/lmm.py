"""Linear mixed models by maximum likelihood (ML) or restricted maximum likelihood (REML).

The deviance is profiled over fixed effects and residual variance, as in Bates, Maechler, Bolker & Walker (2015,
Journal of Statistical Software 67(1)), with its gradient in closed form. All products with the data are taken once, so
that an evaluation costs the same for any number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from vlm_probe.analysis.mixed_effects.blocked_cholesky import Factorisation, Layout
from vlm_probe.analysis.mixed_effects.fitted import Solution, in_data_units
from vlm_probe.analysis.mixed_effects.optimise import Optimum, polish, search, unpolished
from vlm_probe.analysis.mixed_effects.terms import RandomTerm, diagonal_mask, split

Array = NDArray[Any]

FLOOR = 1e-5
"""Diagonal entries of `L` are kept this far from 0, where the gradient's closed form divides by them."""


@dataclass(frozen=True)
class _State:
    """Everything at one value of the variance parameters; matrices of effects are (size, ...)."""

    factorisation: Factorisation
    factors: list[Array]
    solved: Array  # C = H^-1 L'Z'X
    residual_products: Array  # Z'(y - X beta - Z L u)
    design_products: Array  # G = Z'V^-1 X
    information: Array  # M = X'V^-1 X, upper Cholesky factor
    beta: Array
    u: Array
    penalised: float  # r^2


class LinearMixedModel:
    """A linear mixed model, ready to be fitted.

    Args:
        y: Responses, (n,).
        x: Fixed-effect design of full column rank, (n, p).
        terms: Random-effect terms, at least one.
        weights: Weights of the rows, (n,): the residual variance of a row is `sigma^2 / weight`.
        reml: Whether to restrict the likelihood.
    """

    def __init__(self, y: Array, x: Array, terms: tuple[RandomTerm, ...], weights: Array, *, reml: bool) -> None:
        self.reml = reml
        self.n, self.p = x.shape
        self.layout = Layout(terms)
        root = np.sqrt(weights)
        self._weight_constant = float(np.log(weights).sum())
        # Orthonormal columns and residuals in place of responses: no digits are lost to scales and means.
        self._q, self._r = np.linalg.qr(x * root[:, None])
        self._ols = self._q.T @ (y * root)
        residual = y * root - self._q @ self._ols
        residual -= self._q @ (self._q.T @ residual)
        both = np.column_stack([self._q, residual]) * root[:, None]
        self._products = np.column_stack([self.layout.project(column) for column in both.T])
        self._square = float(residual @ residual)
        self._cross = self.layout.crossproducts(weights)
        self.df = self.n - self.p if reml else self.n

    def _state(self, theta: Array) -> _State:
        factors = split(self.layout.terms, theta)
        for factor in factors:
            diagonal = np.diag(factor)
            np.fill_diagonal(factor, np.where(np.abs(diagonal) < FLOOR, np.copysign(FLOOR, diagonal), diagonal))
        factorisation = self._cross.factorise(factors)
        p = self.p
        scaled = self.layout.scale(factors, self._products, transpose=True)
        solved = factorisation.solve(scaled)
        reduced = scaled.T @ solved
        information = scipy.linalg.cholesky(np.eye(p) - reduced[:p, :p])
        beta = scipy.linalg.cho_solve((information, False), -reduced[:p, p])
        u = solved[:, p] - solved[:, :p] @ beta
        penalised = self._square - float(reduced[p, p]) + float(beta @ reduced[:p, p])
        products = self._products - self._cross.matrix @ self.layout.scale(factors, solved)
        design, response = products[:, :p], products[:, p]
        return _State(
            factorisation, factors, solved[:, :p], response - design @ beta, design, information, beta, u, penalised
        )

    def _log_determinants(self, state: _State) -> float:
        value = state.factorisation.log_determinant
        if self.reml:
            # The orthonormal design has lost the determinant of its triangular factor.
            value += 2 * float(np.log(np.abs(np.diag(state.information) * np.diag(self._r))).sum())
        return value

    def _gradients(self, state: _State) -> tuple[Array, Array]:
        """Gradients of the log-determinants, and of the penalised residual sum of squares."""
        determinant, square = [], []
        parts = [self.layout.parts(a) for a in (state.residual_products, state.u, state.design_products, state.solved)]
        inverse = scipy.linalg.cho_solve((state.information, False), np.eye(self.p))
        for term, factor, block, residual, u, design, solved in zip(
            self.layout.terms, state.factors, state.factorisation.inverse_diagonal, *parts, strict=True
        ):
            of_h = scipy.linalg.solve_triangular(factor.T, term.q * np.eye(term.k) - block.sum(axis=0))
            if self.reml:
                of_h = of_h - np.einsum("lap,pr,lbr->ab", design, inverse, solved, optimize=True)
            of_square = residual.T @ u
            determinant.append(2 * of_h[term.at])
            square.append(-2 * of_square[term.at])
        return np.concatenate(determinant), np.concatenate(square)

    def objective(self, theta: Array) -> tuple[float, Array]:
        """Minus the profiled (restricted) log-likelihood, and its gradient."""
        try:
            state = self._state(theta)
        except np.linalg.LinAlgError:
            return np.inf, np.zeros_like(theta)
        if state.penalised <= 0:
            return np.inf, np.zeros_like(theta)
        deviance = self._log_determinants(state) - self._weight_constant
        deviance += self.df * (1 + np.log(2 * np.pi * state.penalised / self.df))
        determinant, square = self._gradients(state)
        return deviance / 2, (determinant + self.df * square / state.penalised) / 2

    def _curvature(self, theta: Array) -> Array:
        """Expected information about the variance parameters, without what they share."""
        state = self._state(theta)
        return expected_curvature(self.layout, state.factors, state.factorisation)

    def fit(self, *, derivatives: bool = True, start: Array | None = None) -> Solution:
        """Find the optimum.

        Args:
            derivatives: Whether to take the second derivatives that degrees of freedom need.
            start: Variance parameters to begin with, (d,).
        """
        diagonal = diagonal_mask(self.layout.terms)
        theta = (
            np.where(diagonal, 1.0, 0.0) if start is None else np.where(diagonal & (np.abs(start) < 0.1), 0.1, start)
        )
        found = search(self.objective, theta, self._curvature, diagonal)
        if not derivatives:
            return self._solution(unpolished(self.objective, found, self._curvature))
        return self._solution(polish(self.objective, found, self._curvature, exact=True))

    def _solution(self, optimum: Optimum) -> Solution:
        state = self._state(np.where(optimum.fixed, 0.0, optimum.x))
        variance = state.penalised / self.df
        sigma = float(np.sqrt(variance))
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        inverse = scipy.linalg.cho_solve((state.information, False), np.eye(self.p))
        derivatives, parameter_covariance = self._variance_of_variances(optimum, state, variance)
        factors = [np.where(np.abs(factor) <= FLOOR, 0.0, factor) for factor in state.factors]
        blocks = [
            variance * factor @ block @ factor.T
            for factor, block in zip(state.factors, state.factorisation.inverse_diagonal, strict=True)
        ]
        modes = self.layout.parts(self.layout.scale(state.factors, state.u))
        in_units = in_data_units(self.layout.terms, factors, modes, blocks, sigma)
        covariance = variance * to_beta @ inverse @ to_beta.T
        return Solution(
            self.layout.terms,
            to_beta @ (self._ols + state.beta),
            covariance,
            covariance,
            *in_units,
            sigma=sigma,
            log_likelihood=-optimum.value,
            derivatives=to_beta @ derivatives @ to_beta.T,
            parameter_covariance=parameter_covariance,
            n_variance_parameters=len(optimum.x) + 1,
            converged=optimum.converged,
            distance=optimum.distance,
            evaluations=optimum.evaluations,
            starts=optimum.starts,
            optimizer="BFGS with analytic gradients, then Newton",
        )

    def _variance_of_variances(self, optimum: Optimum, state: _State, variance: float) -> tuple[Array, Array]:
        """Derivatives of the covariance of the fixed effects, and the covariance of (theta, log sigma).

        From the deviance that is not profiled over sigma, `log|H| + log|M| + df log(2 pi sigma^2) + r^2 / sigma^2`, as
        in Kuznetsova, Brockhoff & Christensen (2017, Journal of Statistical Software 82(13)).
        """
        inverse = scipy.linalg.cho_solve((state.information, False), np.eye(self.p))
        free = np.flatnonzero(~optimum.fixed)
        derivatives = []
        parts = [self.layout.parts(a) for a in (state.design_products, state.solved)]
        for term, design, solved in zip(self.layout.terms, *parts, strict=True):
            for i, j in term.free:
                half = inverse @ (design[:, i].T @ solved[:, j]) @ inverse
                derivatives.append(variance * (half + half.T))
        stacked = np.array([derivatives[place] for place in free] + [2 * variance * inverse])

        _, square = self._gradients(state)
        d = len(free)
        hessian = np.empty((d + 1, d + 1))
        # The Hessian of the profiled deviance lacks what profiling over sigma took away (Schur complement).
        cross = -2 * square[free] / variance
        corner = 4.0 * self.df
        hessian[:d, :d] = 2 * optimum.hessian[np.ix_(free, free)] + np.outer(cross, cross) / corner
        hessian[:d, d] = hessian[d, :d] = cross
        hessian[d, d] = corner
        # A deviance is twice a log-likelihood.
        return stacked, 2 * np.linalg.pinv(hessian, hermitian=True)


def expected_curvature(layout: Layout, factors: list[Array], factorisation: Factorisation) -> Array:
    """Expected information about each variance parameter, without what they share: a diagonal matrix.

    Args:
        layout: Where the blocks are.
        factors: The factor `L` (k, k) of every term.
        factorisation: Of `H` at these factors.
    """
    values = []
    for term, factor, block in zip(layout.terms, factors, factorisation.inverse_diagonal, strict=True):
        scale = np.maximum(np.sqrt((factor**2).sum(axis=1)), FLOOR)
        known = 1 - np.einsum("laa->la", block)
        for i, j in term.free:
            total = float((known[:, i] * known[:, j]).sum()) * (2 if i == j else 1)
            values.append(max(total, 1e-3) / scale[i] ** 2)
    return np.diag(values)
