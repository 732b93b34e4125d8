"""Generalised linear mixed models (logistic, Poisson) by maximum likelihood: Laplace approximation, or adaptive quadrature.

The random effects are integrated out by a normal approximation at their conditional mode (Breslow & Clayton, 1993;
Bates et al., 2015), which Newton's method finds for every value of the parameters. Variance parameters and fixed
effects are estimated together, with the gradient of the approximated log-likelihood in closed form: it takes into
account that the mode moves with the parameters.

For one effect of one grouping factor, the integral over each level's effect u can be taken by Gauss-Hermite quadrature with nodes
around the mode (Liu & Pierce, 1994, Biometrika 81:624-629), of which the Laplace approximation is the case of one node:

    integral of exp h(u) du  =  s sum_k w_k exp(x_k^2) sqrt(2) exp h(u* + sqrt(2) s x_k),   s = (-h''(u*))^(-1/2)
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import logsumexp

from vlm_probe.analysis.mixed_effects.blocked_cholesky import CrossProducts, Factorisation, Layout
from vlm_probe.analysis.mixed_effects.fitted import Solution, in_data_units
from vlm_probe.analysis.mixed_effects.lmm import FLOOR, expected_curvature
from vlm_probe.analysis.mixed_effects.model_matrix import DistinctRows
from vlm_probe.analysis.mixed_effects.optimise import (
    NEARLY_ZERO,
    ZERO,
    Counter,
    Found,
    Optimum,
    descend,
    polish,
    search,
    unpolished,
)
from vlm_probe.analysis.mixed_effects.response import Family, Moments
from vlm_probe.analysis.mixed_effects.terms import RandomTerm, diagonal_mask, split

Array = NDArray[Any]

MODE_TOLERANCE = 1e-7
"""Squared Newton decrement at which one more step, which squares it, ends the search for the mode."""
HELD_ACCURACY, HELD_STEPS = 1e-8, 100
"""Squared Newton decrement at which a search for fixed effects at given variances ends, and its steps at most."""
START = 0.5
"""Standard deviation of every random effect at the first start."""


@dataclass(frozen=True)
class _Mode:
    """The conditional mode at one value of the parameters."""

    factors: list[Array]
    u: Array
    predictor: Array
    moments: Moments
    cross: CrossProducts
    factorisation: Factorisation
    value: float  # Laplace approximation of the log-likelihood


@dataclass(frozen=True)
class _Nodes:
    """What adaptive quadrature needs of its nodes."""

    at: Array  # the random effects there, (q, K)
    share: Array  # of each in the integral of its level, (q, K)
    pull: Array  # h', (q, K)
    residuals: Array  # y - mean, (K, n)
    value: float  # the log-likelihood without its constant


class _Climb:
    """The way to the mode of the random effects; their log-density is concave, so that halved steps cannot miss it.

    Args:
        model: Responses, layout and family.
        factors: The factor `L` (k, k) of every term.
        fixed: The linear predictor of the fixed effects, (n,).
        u: Where to begin, (size,).
    """

    def __init__(self, model: GeneralizedMixedModel, factors: list[Array], fixed: Array, u: Array) -> None:
        self._model, self._factors, self.u = model, factors, u
        self.predictor = fixed + self._expand(u)
        self.moments = model.family.moments(model.y, model.trials, self.predictor)
        self.density = self.moments.log_likelihood - 0.5 * float(u @ u)

    def _expand(self, u: Array) -> Array:
        layout = self._model.layout
        return layout.expand(layout.scale(self._factors, u))

    def _gradient(self) -> Array:
        layout = self._model.layout
        residual = layout.project(self._model.y - self.moments.mean)
        return layout.scale(self._factors, residual, transpose=True) - self.u

    def _move(self, step: Array) -> None:
        """Take a step, halved until the density rises."""
        model, along, length = self._model, self._expand(step), 1.0
        while True:
            u, predictor = self.u + length * step, self.predictor + length * along
            moments = model.family.moments(model.y, model.trials, predictor)
            density = moments.log_likelihood - 0.5 * float(u @ u)
            if density >= self.density - 1e-9 * (1 + abs(self.density)) or length < 1e-6:
                break
            length /= 2
        self.u, self.predictor, self.moments, self.density = u, predictor, moments, density

    def with_one(self, factorisation: Factorisation) -> None:
        """Steps with a factorisation from nearby, which cost a fraction of Newton's, as long as each brings the mode much nearer."""
        before = np.inf
        while True:
            gradient = self._gradient()
            step = factorisation.solve(gradient)
            decrement = float(gradient @ step)
            if not decrement < before / 50:
                return
            before = decrement
            self._move(step)
            if decrement < MODE_TOLERANCE**2:
                return

    def by_newton(self) -> tuple[Factorisation, CrossProducts]:
        """Newton's method; the factorisation at the mode, and the crossproducts that it was made of."""
        close = False
        for _ in range(100):
            cross = self._model.layout.crossproducts(self.moments.weight)
            factorisation = cross.factorise(self._factors)
            if close:
                break
            gradient = self._gradient()
            step = factorisation.solve(gradient)
            decrement = float(gradient @ step)
            if decrement < MODE_TOLERANCE**2:
                break
            close = decrement < MODE_TOLERANCE
            self._move(step)
        return factorisation, cross


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
        n_nodes: Nodes of the quadrature; 1 for the Laplace approximation, and for more than one effect.
    """

    def __init__(
        self,
        family: Family,
        y: Array,
        trials: Array,
        x: DistinctRows,
        terms: tuple[RandomTerm, ...],
        offset: Array,
        precision: Array,
        n_nodes: int = 1,
    ) -> None:
        self.family, self.y, self.trials, self.offset = family, y, trials, offset
        self.n, self.p = len(y), x.rows.shape[1]
        self._lay_out(terms)
        q, r = x.orthonormal()
        self._q, self._r = replace(q, rows=q.rows * np.sqrt(self.n)), r / np.sqrt(self.n)
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        self._prior = to_beta.T @ (precision[:, None] * to_beta)
        self._constant = family.constant(y, trials)
        nodes, weights = np.polynomial.hermite.hermgauss(n_nodes)
        self._nodes, self._log_weights = nodes, np.log(weights) + nodes**2 - 0.5 * np.log(np.pi)

    def _lay_out(self, terms: tuple[RandomTerm, ...]) -> None:
        self.layout = Layout(terms)
        self._u = np.zeros(self.layout.size)
        self._last: Factorisation | None = None
        self._diagonal = diagonal_mask(self.layout.terms)
        self._d = len(self._diagonal)

    def _factors(self, theta: Array) -> list[Array]:
        factors = split(self.layout.terms, theta)
        for factor in factors:
            diagonal = np.diag(factor)
            np.fill_diagonal(factor, np.where(np.abs(diagonal) < FLOOR, np.copysign(FLOOR, diagonal), diagonal))
        return factors

    def _mode(self, parameters: Array) -> _Mode:
        """The conditional mode: first steps with the last factorisation, while they lead there fast, then Newton's method."""
        factors = self._factors(parameters[: self._d])
        climb = _Climb(self, factors, self.offset + self._q.times(parameters[self._d :]), self._u)
        # Worth it where a factorisation costs more than a look at the rows.
        if self._last is not None and self.layout.rest**2 > self.n:
            climb.with_one(self._last)
        factorisation, cross = climb.by_newton()
        self._u, self._last = climb.u, factorisation  # the next search begins here
        value = climb.density - 0.5 * factorisation.log_determinant
        return _Mode(factors, climb.u, climb.predictor, climb.moments, cross, factorisation, value)

    def objective(self, parameters: Array) -> tuple[float, Array]:
        """Minus the approximated log-likelihood at (theta, gamma), where `X beta = Q gamma`, and its gradient."""
        before = self._u
        try:
            mode = self._mode(parameters)
        except np.linalg.LinAlgError:
            self._u, self._last = before, None
            return np.inf, np.zeros_like(parameters)
        if not np.isfinite(mode.value):
            self._u, self._last = np.zeros_like(before), None
            return np.inf, np.zeros_like(parameters)
        gamma = parameters[self._d :]
        pull = self._prior @ gamma
        value, gradient = self._integral(mode)
        gradient[self._d :] -= pull
        return 0.5 * float(gamma @ pull) - value - self._constant, -gradient

    def _integral(self, mode: _Mode) -> tuple[float, Array]:
        """The log-likelihood without its constant, and its gradient."""
        return (mode.value, self._gradient(mode)) if len(self._nodes) == 1 else self._quadrature(mode)

    def _quadrature(self, mode: _Mode) -> tuple[float, Array]:
        """The same by adaptive quadrature, for one effect of one grouping factor.

        With shares pi_k of the nodes u_k = u* + sqrt(2) s x_k in the integral of a level,

            d log I = sum_k pi_k (dh(u_k) + h'(u_k) (du* + sqrt(2) x_k ds)) + d log s,

        where du* follows from h'(u*) = 0, and ds from s^-2 = -h''(u*).
        """
        (term,), theta = self.layout.terms, float(mode.factors[0][0, 0])
        z, u, weight, slope = term.values[:, 0], mode.u, mode.moments.weight, mode.moments.weight_slope
        of = term.codes
        z_w_z, z_slope_z2 = term.sums(weight * z**2), term.sums(slope * z**3)
        bend = 1 + theta**2 * z_w_z  # -h''(u*)
        nodes = self._at_nodes(term, theta, mode, bend**-0.5)
        pull = nodes.share * nodes.pull
        # What the integral gains per unit of s^-2, and of u* with s^-2 following.
        by_bend = -0.5 * (1 + (pull * np.sqrt(2) * self._nodes).sum(1) * bend**-0.5) / bend
        by_mode = pull.sum(1) + by_bend * theta**3 * z_slope_z2
        rows = np.einsum("nk,kn->n", nodes.share[of], nodes.residuals)
        rows += (by_bend * theta**2)[of] * slope * z**2 - (by_mode * theta / bend)[of] * weight * z
        mode_slope = (term.sums((self.y - mode.moments.mean) * z) - theta * u * z_w_z) / bend
        of_theta = np.einsum("kn,nk,n->", nodes.residuals, (nodes.share * nodes.at)[of], z, optimize=True)
        of_theta += (by_bend * (2 * theta * z_w_z + theta**2 * u * z_slope_z2) + by_mode * mode_slope).sum()
        return nodes.value, np.concatenate([[of_theta], self._q.transposed_times(rows)])

    def _at_nodes(self, term: RandomTerm, theta: float, mode: _Mode, s: Array) -> _Nodes:
        """The integrands at the nodes, for widths `s` (q,)."""
        z = term.values[:, 0]
        at = mode.u[:, None] + np.sqrt(2) * s[:, None] * self._nodes
        fixed = mode.predictor - theta * z * mode.u[term.codes]
        residuals = np.empty((len(self._nodes), self.n))
        log_density, pull = np.empty_like(at), np.empty_like(at)
        for k in range(len(self._nodes)):
            predictor = fixed + theta * z * at[term.codes, k]
            residuals[k] = self.y - self.family.moments(self.y, self.trials, predictor).mean
            density = self.family.log_density(self.y, self.trials, predictor)
            log_density[:, k] = term.sums(density) - at[:, k] ** 2 / 2
            pull[:, k] = theta * term.sums(residuals[k] * z) - at[:, k]
        terms = self._log_weights + log_density
        total = logsumexp(terms, axis=1, keepdims=True)
        return _Nodes(at, np.exp(terms - total), pull, residuals, float(total.sum() + np.log(s).sum()))

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
            theta.append(full[term.at])
        return np.concatenate([*theta, self._q.transposed_times(effective)])

    def _curvature(self, parameters: Array) -> Array:
        """Approximate information about the parameters: about variances one by one, about fixed effects jointly."""
        mode = self._mode(parameters)
        matrix = np.zeros((len(parameters), len(parameters)))
        matrix[: self._d, : self._d] = expected_curvature(self.layout, mode.factors, mode.factorisation)
        matrix[self._d :, self._d :] = self._information(mode)
        return matrix

    def _information(self, mode: _Mode) -> Array:
        """Information about the fixed effects at given variances, (p, p)."""
        products = self.layout.project_rows(self._q, mode.moments.weight)
        scaled = self.layout.scale(mode.factors, products, transpose=True)
        return self._q.gram(mode.moments.weight) - scaled.T @ mode.factorisation.solve(scaled) + self._prior

    def _start(self) -> Array:
        """Fixed effects without random ones, and standard deviations of `START`."""
        gamma, _ = fixed_only(
            self.family, self.y, self.trials, self._q, self.offset, self._prior + 1e-6 * np.eye(self.p)
        )
        return np.concatenate([np.where(self._diagonal, START, 0.0), gamma])

    def fit(self, *, derivatives: bool = True) -> Solution:
        """Find the optimum.

        Args:
            derivatives: Whether to take second derivatives, of which standard errors follow; without, they are those at the variances
                that were estimated, as if those were known.
        """
        diagonal = np.concatenate([self._diagonal, np.zeros(self.p, bool)])
        found = search(self.objective, self._start(), self._curvature, diagonal)
        if not derivatives:
            return self._solution(unpolished(self.objective, found, self._curvature))
        return self._solution(self._polished(found))

    def completed(self, solution: Solution) -> Solution:
        """A solution without second derivatives, with them."""
        x = np.concatenate([solution.theta, self._r @ solution.beta])
        diagonal = np.concatenate([self._diagonal, np.zeros(self.p, bool)])
        found = Found(x, diagonal & (np.abs(x) < ZERO), solution.evaluations, solution.starts)
        return self._solution(self._polished(found))

    def _polished(self, found: Found) -> Optimum:
        """The optimum; where all variances of a term are 0, without the term, which would only cost time."""
        owner = np.repeat(np.arange(len(self.layout.terms)), [len(term.free) for term in self.layout.terms])
        needed = [place for place in range(len(self.layout.terms)) if not _is_null(found.x[: self._d][owner == place])]
        if not needed or len(needed) == len(self.layout.terms):
            return polish(self.objective, found, self._curvature, exact=False)
        smaller = copy(self)
        smaller._lay_out(tuple(self.layout.terms[place] for place in needed))
        kept = np.concatenate([np.isin(owner, needed), np.ones(self.p, bool)])
        inner = polish(
            smaller.objective,
            replace(found, x=found.x[kept], fixed=found.fixed[kept]),
            smaller._curvature,
            exact=False,
        )
        x, hessian = np.zeros(len(found.x)), np.zeros((len(found.x), len(found.x)))
        x[kept], hessian[np.ix_(kept, kept)] = inner.x, inner.hessian
        return replace(inner, x=x, hessian=hessian, fixed=found.fixed | ~kept)

    def restricted(self, theta: Array, weights: Array, held: Array | None) -> Callable[[Array], tuple[float, float]]:
        """The largest log-likelihood, less the prior's penalty, among fixed effects with the same `weights @ beta`.

        Args:
            theta: Variance parameters.
            weights: Of the combination that is held, (p,).
            held: If the variances are held as well, the covariance of the fixed effects at them, (p, p); None if variances are estimated
                again, beginning with `theta`.

        Returns:
            From fixed effects (p,), which say what value is held and where to begin, to that log-likelihood, and how fast it rises
            with the value.
        """
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        weights = to_beta.T @ weights
        if held is not None:
            return self._held(theta, weights, self._r @ held @ self._r.T)
        within = scipy.linalg.null_space(weights[None])
        # A variance of 0 is a stationary point, which a search would not leave.
        theta = np.where(self._diagonal & (np.abs(theta) < NEARLY_ZERO), 0.1, theta)
        basis = scipy.linalg.block_diag(np.eye(self._d), within)

        def best(beta: Array) -> tuple[float, float]:
            start = np.concatenate([theta, self._r @ beta])

            def along(moved: Array) -> tuple[float, Array]:
                value, gradient = self.objective(start + basis @ moved)
                return value, basis.T @ gradient

            curvature = basis.T @ self._curvature(start) @ basis
            moved, _ = descend(Counter(along), np.zeros(basis.shape[1]), curvature)
            value, gradient = self.objective(start + basis @ moved)
            return -value, -float(gradient[self._d :] @ weights) / float(weights @ weights)

        return best

    def _held(self, theta: Array, weights: Array, inverse: Array) -> Callable[[Array], tuple[float, float]]:
        """`restricted` at given variance parameters: quasi-Newton steps (BFGS) among fixed effects with the same `weights @ gamma`.

        What is learnt of the second derivatives, and how the other fixed effects give way, serves the search at the next value.
        """
        moved = np.zeros(self.p)  # from the straight path, at the last value

        def best(beta: Array) -> tuple[float, float]:
            nonlocal moved, inverse
            straight = self._r @ beta
            at = straight + moved
            value, gradient = self.objective(np.concatenate([theta, at]))
            slope = gradient[self._d :]
            for _ in range(HELD_STEPS):
                pull = inverse @ weights
                step = inverse @ slope
                step -= pull * (weights @ step) / (weights @ pull)
                if slope @ step < HELD_ACCURACY:
                    break
                other, value, its_slope = self._along(theta, at, step, value)
                inverse = _renewed(inverse, other - at, its_slope - slope)
                at, slope = other, its_slope
            moved = at - straight
            return -value, -float(slope @ weights) / float(weights @ weights)

        return best

    def _along(self, theta: Array, at: Array, step: Array, value: float) -> tuple[Array, float, Array]:
        """Fixed effects after a step, which is halved until it leads down; the value there, and its derivatives by fixed effects."""
        length = 1.0
        while True:
            other = at - length * step
            its_value, gradient = self.objective(np.concatenate([theta, other]))
            if its_value <= value + 1e-9 * (1 + abs(value)) or length < 1e-3:
                return other, its_value, gradient[self._d :]
            length /= 2

    def _covariances(self, optimum: Optimum, mode: _Mode) -> tuple[Array, Array]:
        """Covariances of the fixed effects: with the uncertainty of the variances that are not 0, and without."""
        free = np.flatnonzero(~optimum.fixed)
        hessian = optimum.hessian[np.ix_(free, free)]
        try:
            np.linalg.cholesky(hessian)
        except np.linalg.LinAlgError:  # no optimum, which the result says; at given variances, then
            inverse = np.linalg.inv(self._information(mode))
            return inverse, inverse
        return np.linalg.inv(hessian)[-self.p :, -self.p :], np.linalg.inv(hessian[-self.p :, -self.p :])

    def _solution(self, optimum: Optimum) -> Solution:
        mode = self._mode(np.where(optimum.fixed, 0.0, optimum.x))
        to_beta = scipy.linalg.solve_triangular(self._r, np.eye(self.p))
        covariance, held = (to_beta @ found @ to_beta.T for found in self._covariances(optimum, mode))
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
            covariance,
            held,
            *in_units,
            sigma=1.0,
            log_likelihood=self._integral(mode)[0] + self._constant,
            derivatives=np.zeros((0, self.p, self.p)),
            parameter_covariance=np.zeros((0, 0)),
            n_variance_parameters=self._d,
            converged=optimum.converged,
            distance=optimum.distance,
            evaluations=optimum.evaluations,
            starts=optimum.starts,
            optimizer="BFGS with analytic gradients, then Newton",
        )


def _renewed(inverse: Array, step: Array, change: Array) -> Array:
    """Inverse second derivatives after a step along which the gradient changed so (BFGS)."""
    curvature = float(step @ change)
    if curvature <= 1e-12 * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return inverse
    moved = inverse @ change
    crossed = np.outer(step, moved) / curvature
    return np.asarray(
        inverse - crossed - crossed.T + (1 + change @ moved / curvature) / curvature * np.outer(step, step)
    )


def _is_null(entries: Array) -> bool:
    """Whether a factor `L` with these entries says that nothing varies."""
    return bool((np.abs(entries) < ZERO).all())


def fixed_only(
    family: Family,
    y: Array,
    trials: Array,
    x: DistinctRows,
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
    p = x.rows.shape[1]
    beta = np.zeros(p) if start is None else start
    basis = np.eye(p) if within is None else within

    def at(beta: Array) -> tuple[Moments, float]:
        moments = family.moments(y, trials, offset + x.times(beta))
        return moments, moments.log_likelihood - 0.5 * float(beta @ prior @ beta)

    moments, value = at(beta)
    for _ in range(50):
        if not basis.shape[1]:
            break
        information = basis.T @ (x.gram(moments.weight) + prior) @ basis
        gradient = basis.T @ (x.transposed_times(y - moments.mean) - prior @ beta)
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
    return beta, x.gram(moments.weight) + prior
