"""The sparse algebra against plain matrices, and gradients against differences."""

import numpy as np
import pytest

from vlm_probe.analysis.mixed_effects import blocked_cholesky
from vlm_probe.analysis.mixed_effects.blocked_cholesky import Layout
from vlm_probe.analysis.mixed_effects.glmm import GeneralizedMixedModel
from vlm_probe.analysis.mixed_effects.lmm import LinearMixedModel
from vlm_probe.analysis.mixed_effects.model_matrix import DistinctRows
from vlm_probe.analysis.mixed_effects.optimise import differentiate
from vlm_probe.analysis.mixed_effects.response import BINOMIAL, POISSON
from vlm_probe.analysis.mixed_effects.terms import RandomTerm


def term(name, codes, slope=None, correlated=True):
    values = np.column_stack([np.ones(len(codes)), *([slope] if slope is not None else [])])
    k = values.shape[1]
    free = tuple((i, j) for j in range(k) for i in range(j, k) if correlated or i == j)
    names = ("Intercept", "x")[:k]
    return RandomTerm((name,), names, codes, tuple(range(codes.max() + 1)), values, np.ones(k), free)


def crossed_terms(rng, n=400):
    a, b, x = rng.integers(0, 60, n), rng.integers(0, 30, n), rng.normal(size=n)
    within = np.unique(np.column_stack([a, b % 3]), axis=0, return_inverse=True)[1]
    # Levels of "items" 0..59 occur with six "runs" each, and with the "runs by tests" of one test in four.
    item = np.repeat(np.arange(60), 6)
    run, item = np.r_[np.tile(np.arange(6), 60), b[:40] % 6], np.r_[item, a[:40]]
    run_by_test = run * 4 + item % 4
    return x, {
        "nested": (term("a", a), term("a:c", within)),
        "nested beside others": (term("a", a), term("a:c", within, x), term("b", b), term("d", b // 5, x)),
        "nested slopes": (term("a", a, x), term("a:c", within), term("b", b, x, correlated=False)),
        "patterns": (term("item", item), term("run", run), term("run:test", run_by_test)),
        "patterns and slopes": (term("item", item, x), term("run:test", run_by_test), term("run", run, x)),
        "one": (term("a", a),),
        "crossed": (term("a", a), term("b", b)),
        "slopes": (term("a", a, x), term("b", b), term("c", b // 5, x, correlated=False)),
        "small slopes": (term("a", a), term("b", b, x)),
    }


CASES = [
    "patterns",
    "patterns and slopes",
    "one",
    "crossed",
    "slopes",
    "small slopes",
    "nested",
    "nested beside others",
    "nested slopes",
]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_factorisation(monkeypatch, case, sparse):
    monkeypatch.setattr(blocked_cholesky, "NESTED_FROM", 10)
    monkeypatch.setattr(blocked_cholesky, "SPARSE_BELOW", 2.0 if sparse else 0.0)
    monkeypatch.setattr(blocked_cholesky, "CHUNK", 100)
    rng = np.random.default_rng(0)
    _, cases = crossed_terms(rng)
    layout = Layout(cases[case])
    assert (layout.nesting is not None) == case.startswith("nested")
    if case.startswith("patterns"):
        assert layout.sparse == (sparse or case == "patterns") and len(layout.patterns) == 4 * layout.sparse
    weights = rng.random(400)
    factors = [np.tril(rng.normal(size=(t.k, t.k))) for t in layout.terms]
    z, scale = np.zeros((400, layout.size)), np.zeros((layout.size, layout.size))
    for t, start, factor in zip(layout.terms, layout.offsets, factors, strict=False):
        for i in range(t.k):
            z[np.arange(400), start + t.codes * t.k + i] = t.values[:, i]
        scale[start : start + t.size, start : start + t.size] = np.kron(np.eye(t.q), factor)
    h = scale.T @ z.T @ (weights[:, None] * z) @ scale + np.eye(layout.size)
    inverse = np.linalg.inv(h)

    cross = layout.crossproducts(weights)
    found = cross.factorise(factors)
    np.testing.assert_allclose(cross.matrix.toarray(), z.T @ (weights[:, None] * z), atol=1e-10)
    assert found.log_determinant == pytest.approx(np.linalg.slogdet(h)[1])
    right = rng.normal(size=(layout.size, 3))
    np.testing.assert_allclose(found.solve(right), inverse @ right, atol=1e-10)
    np.testing.assert_allclose(found.solve(right[:, 0]), inverse @ right[:, 0], atol=1e-10)
    np.testing.assert_allclose(
        found.leverages(factors), np.einsum("na,ab,nb->n", z @ scale, inverse, z @ scale), atol=1e-10
    )
    for t, start, blocks in zip(layout.terms, layout.offsets, found.inverse_diagonal, strict=False):
        for level in range(t.q):
            own = slice(start + level * t.k, start + (level + 1) * t.k)
            np.testing.assert_allclose(blocks[level], inverse[own, own], atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["reml", "ml", "binomial", "poisson"])
def test_gradients(monkeypatch, case, kind):
    monkeypatch.setattr(blocked_cholesky, "NESTED_FROM", 10)
    rng = np.random.default_rng(1)
    x, cases = crossed_terms(rng)
    terms, design = cases[case], np.column_stack([np.ones(400), x])
    if kind in ("reml", "ml"):
        weights = rng.uniform(0.5, 2, 400)
        model = LinearMixedModel(rng.normal(size=400) + x, design, terms, weights, reml=kind == "reml")
        size = sum(len(t.free) for t in terms)
    else:
        family = BINOMIAL if kind == "binomial" else POISSON
        trials = rng.integers(1, 4, 400).astype(float) if kind == "binomial" else np.ones(400)
        y = rng.binomial(trials.astype(int), 0.6).astype(float)
        model = GeneralizedMixedModel(family, y, trials, DistinctRows.of(design), terms, 0.1 * x, np.array([0.0, 0.3]))
        size = sum(len(t.free) for t in terms) + 2
    at = rng.uniform(0.3, 0.9, size)
    gradient = model.objective(at)[1]
    step = 1e-5
    for place, direction in enumerate(np.eye(size)):
        difference = (model.objective(at + step * direction)[0] - model.objective(at - step * direction)[0]) / (
            2 * step
        )
        assert gradient[place] == pytest.approx(difference, rel=2e-4, abs=5e-4)


@pytest.mark.parametrize("family", [BINOMIAL, POISSON])
@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("nodes", [1, 2, 9])
def test_gradients_by_quadrature(family, slope, factor, nodes):
    rng = np.random.default_rng(3)
    a, x = rng.integers(0, 60, 400), rng.normal(size=400)
    own = RandomTerm(("a",), ("x" if slope else "Intercept",), a, tuple(range(60)), (x if slope else np.ones(400))[:, None],
                     np.ones(1), ((0, 0),))  # fmt: skip
    design = DistinctRows.of(np.column_stack([np.ones(400), x > 0 if factor else x]))
    assert design.is_plain != factor
    trials = rng.integers(1, 4, 400).astype(float) if family is BINOMIAL else np.ones(400)
    y = rng.binomial(trials.astype(int), 0.6).astype(float)
    model = GeneralizedMixedModel(family, y, trials, design, (own,), 0.1 * x, np.array([0.0, 0.3]), nodes)
    at, step = np.array([0.9, 0.3, 0.4]), 1e-5
    gradient = model.objective(at)[1]
    for place, direction in enumerate(np.eye(3)):
        ends = [model.objective(at + sign * step * direction)[0] for sign in (1, -1)]
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-4, abs=5e-4)


def test_distinct_rows_multiply_as_all_rows_do():
    rng = np.random.default_rng(2)
    for matrix in (rng.integers(0, 2, (300, 4)).astype(float), rng.normal(size=(300, 4)), np.ones((300, 1))):
        rows, v, w = DistinctRows.of(matrix), rng.normal(size=300), rng.random(300)
        assert len(rows.rows) <= (16 if len(np.unique(matrix)) == 2 else 300)
        b = rng.normal(size=matrix.shape[1])
        np.testing.assert_allclose(rows.times(b), matrix @ b, atol=1e-12)
        np.testing.assert_allclose(rows.transposed_times(v), matrix.T @ v, atol=1e-12)
        np.testing.assert_allclose(rows.gram(w), matrix.T @ (w[:, None] * matrix), atol=1e-10)
        q, r = rows.orthonormal()
        np.testing.assert_allclose(q.times(r @ b), matrix @ b, atol=1e-10)
        np.testing.assert_allclose(q.gram(np.ones(300)), np.eye(matrix.shape[1]), atol=1e-10)


def test_second_derivatives_are_right_where_the_curvature_was_guessed_too_low():
    def objective(x):
        return float(50 * x @ x + 2000 * (x**4).sum()), 100 * x + 8000 * x**3

    found = differentiate(objective, np.zeros(2), np.arange(2), np.diag([0.01, 90.0]))
    np.testing.assert_allclose(found, np.diag([100.0, 100.0]), rtol=1e-3, atol=1e-9)
