"""What R writes in formulas is understood or refused by its name, in one line."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import quietly
from vlm_probe.analysis import FitError


@pytest.mark.parametrize(
    ("as_in_r", "as_here"),
    [
        ("rt ~ (method + margin)^2", "rt ~ method*margin"),
        ("rt ~ I(margin^2) + (I(margin^2) || run)", "rt ~ I(margin**2) + (I(margin**2) || run)"),
        ("rt ~ as.factor(item) + (0 + factor(lap) || run)", "rt ~ C(item) + (0 + C(lap) || run)"),
        ("rt ~ poly(margin, 2, raw = TRUE)", "rt ~ margin + I(margin**2)"),
        ("rt ~ poly(margin, degree = 2)", "rt ~ margin + I(margin**2)"),
        ("rt ~ bs(margin, df = 4, intercept = FALSE)", "rt ~ bs(margin, df=4)"),
        ("rt ~ bs(margin, knots = c(-.2, .2))", "rt ~ bs(margin, knots=[-0.2, 0.2])"),
        ("rt ~ ns(margin, 1)", "rt ~ margin"),
        ("rt ~ log(margin + 2, base = 2)", "rt ~ log2(margin + 2)"),
        ("rt ~ ifelse(margin > 0, 1L, 0L)", "rt ~ I(margin > 0)"),
        ("rt ~ I(lap %% 2) + I(lap %/% 2)", "rt ~ np.mod(lap, 2) + np.floor_divide(lap, 2)"),
        ("rt ~ I(as.numeric(lap) == 2)", "rt ~ I(lap == 2)"),
        ('rt ~ I(method == "ppo")', "rt ~ I(method == 'ppo')"),
        ("rt ~ method/margin", "rt ~ method + method:margin"),
        ("rt ~ pmax(margin, 0) + abs(margin)", "rt ~ np.maximum(margin, 0) + np.abs(margin)"),
        ("sqrt(rt^2 + 1) ~ scale(margin)", "np.sqrt(rt**2 + 1) ~ center(margin)"),
        ("rt ~ 0 + method + (1 | run/lap)", "rt ~ method - 1 + (1 | run) + (1 | run:lap)"),
    ],
)
def test_spellings_of_r_are_understood(trials, as_in_r, as_here):
    table = trials.assign(lap=np.arange(len(trials)) % 4)
    theirs, ours = quietly(as_in_r, table), quietly(as_here, table)
    np.testing.assert_allclose(theirs.predict(), ours.predict(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(theirs.predict(table.iloc[40:44]), theirs.predict()[40:44], rtol=1e-8)


# What R 4.2's splines::ns gives for x = c(1:9, 20): rows 1, 2, 6 and 10, and x = 0 and 25 by predict().
NATURAL = {
    "ns(x, df = 3)": [
        [0, 0, 0],
        [-0.1098516931, 0.251576494, -0.138800824],
        [0.0255976099, 0.621485134, -0.337141223],
        [-0.1642969984, 0.366508689, 0.797788310],
        [0.115538440, -0.257739597, 0.142201157],
        [-0.697472354, 0.402053712, 1.295418641],
    ],
    "0 + ns(x, df = 3, intercept = TRUE)": [
        [-0.397612009, 0.586184446, -0.332462820],
        [-0.239869334, 0.553641960, -0.313656756],
        [0.275000333, 0.440315945, -0.206147175],
        [-0.157067620, 0.367799709, 0.791397180],
    ],
}
NATURAL["ns(x, knots = c(4, 7))"] = NATURAL["ns(x, df = 3)"]


def test_labels_are_as_they_were_written(trials):
    found = quietly(
        "rt ~ factor(lap) + I(margin^2) + as.numeric(item) + (1 | run)", trials.assign(lap=np.arange(750) % 3)
    )
    assert list(found.coefficients.index) == ["Intercept", "lap[T.1]", "lap[T.2]", "I(margin ** 2)", "as.numeric(item)"]


def test_a_number_may_be_a_factor_in_one_part_and_a_number_in_another(trials):
    table = trials.assign(lap=np.arange(750) % 4)
    found = quietly("rt ~ lap + (0 + factor(lap) || run)", table)
    assert list(found.coefficients.index) == ["Intercept", "lap"]
    assert list(found.variance_components["name"])[:4] == ["lap[0]", "lap[1]", "lap[2]", "lap[3]"]
    np.testing.assert_allclose(found.predict(table.iloc[:9]), found.predict()[:9], rtol=1e-9)


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("rt ~ s(margin)", r"s\(\) is not supported"),
        ("rt ~ margin + (1 | gr(run))", r"gr\(\) is not supported"),
        ("rt ~ cut(margin, 3)", r"cut\(\) is not supported"),
        ("rt ~ relevel(method, 'sft')", r"relevel\(\) is not supported.*contrasts="),
        ("rt ~ bs(margin, Boundary.knots = c(-1, 1))", "the argument Boundary.knots is not supported"),
        ("rt ~ interaction(method, run)", r"interaction\(\) is not supported.*write a:b"),
        ("rt ~ I(margin - mean(margin))", r"mean\(\) is not supported"),
        ("rt ~ np.mean(margin)", r"np.mean\(\) is not supported"),
        ("rt ~ lag(margin)", r"lag\(\) is not supported"),
        ("rt ~ __import__('os')", r"__import__\(\) is not supported"),
        ("rt ~ margin.std()", r"margin.std\(\) is not supported"),
        ("rt ~ factor(method, levels = c('none', 'sft'))", r"factor\(\) takes a column alone.*Categorical"),
        ("rt ~ C(method, Sum)", r"C\(\) takes a column alone.*contrasts="),
        ("rt ~ .", "'.' for all other columns is not supported"),
        ("rt ~ d$margin", "named alone"),
        ("rt ~ margin == 2", r"'==' is not supported outside calls; write the expression inside I\(\)"),
        ("rt ~ margin %in% method", "'%in%' is not supported"),
        ("rt ~ I(margin > 0 & margin < 1)", "'&' is not supported in calls"),
        ("rt ~ margin[1]", r"'\[' is not supported"),
        ("rt ~ {margin}", "'{' is not supported"),
        ("rt ~ margin method", "no operator stands before 'method'"),
        ("rt ~ signed margin", "needs the column 'signed'|no operator stands before"),
        ("rt ~ TRUE", "needs the column 'TRUE'"),
        ("rt ~ margin + (1 | run + item)", "is no column to group by"),
        ("rt ~ margin + (1 | item^2)", "is no column to group by"),
        (
            "rt ~ poly(margin, 2, simple = TRUE)",
            "'poly.margin, 2, simple = True.' cannot be evaluated.*unexpected keyword",
        ),
        ("rt ~ poly(method, 2)", "cannot be evaluated"),
        ("rank(rt) ~ margin", r"rank\(\) is not supported"),
        ("rt ~ margin ~ method", "is not a formula"),
        ("rt ~ offset(log(method))", "cannot be evaluated"),
    ],
)
def test_what_is_not_known_is_refused_by_name_in_one_line(trials, formula, told):
    with pytest.raises(FitError, match=told) as caught:
        quietly(formula, trials)
    text = str(caught.value)
    assert "\n" not in text and "ǂ" not in text and "\x1b" not in text and "⧛" not in text


@pytest.mark.parametrize("part", NATURAL)
def test_natural_splines_are_those_of_r(part):
    x = np.r_[np.arange(1, 10.0), 20]
    table = pd.DataFrame({"x": x, "y": np.cos(x)})
    fitted = quietly(f"y ~ {part}", table)
    design = fitted.design.matrix.full(pd.DataFrame({"x": [*x[[0, 1, 5, 9]], 0, 25]}))[:, -3:]
    np.testing.assert_allclose(design[: len(NATURAL[part])], NATURAL[part], atol=1e-8)
    beyond = fitted.predict(pd.DataFrame({"x": [21.0, 22, 23, 0, -1, -2]}))
    np.testing.assert_allclose([np.diff(beyond[:3], 2), np.diff(beyond[3:], 2)], 0, atol=1e-9)  # straight
