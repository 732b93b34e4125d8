"""How a fit is printed, and how it is written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.mixed_effects.fitted import FittedModel
from vlm_probe.analysis.mixed_effects.inference import coefficient_table

NAMES = {
    "satterthwaite": "Satterthwaite",
    "between-within": "between-within",
    "residual": "residual",
    "asymptotic": "infinite (z)",
}


def to_text(result: FittedModel) -> str:
    """The table that a paper would show, with what its note has to say."""
    table = coefficient_table(result)
    finite = np.isfinite(table["df"])
    head = "t" if finite.all() else "z" if not finite.any() else "t/z"
    ratio = {"binomial": "odds ratio", "poisson": "rate ratio"}.get(result.family)
    columns = ["", "b", "SE", "95 % CI", "df", head, "p", *([ratio] if ratio else [])]
    rows = []
    for term, row in table.iterrows():
        cells = [
            str(term),
            f"{row['estimate']:.3f}",
            f"{row['se']:.3f}",
            f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
            f"{row['df']:.1f}" if np.isfinite(row["df"]) else "inf",
            f"{row['statistic']:.2f}",
            p_value(row["p"]),
        ]
        if ratio:
            cells.append(f"{row[ratio.replace(' ', '_')]:.3g}")
        rows.append(cells)
    lines = [title(result), result.formula, "", *_aligned([columns, *rows])]
    if len(result.variance_components):
        random = [["random effects", "", "SD", "r"]]
        for group, name, sd, correlation in result.variance_components.itertuples(index=False, name=None):
            known = "" if np.isnan(correlation) else f"{correlation:.2f}"
            random.append([group, name, f"{sd:.3f}", known])
        lines += ["", *_aligned(random, left=2)]
    lines += ["", *notes(result)]
    return "\n".join(lines)


def title(result: FittedModel) -> str:
    """What kind of model it is, in words."""
    kind = {"gaussian": "Linear", "binomial": "Logistic", "poisson": "Poisson"}[result.family]
    mixed = " mixed-effects" if result.design.terms else ""
    if result.family == "gaussian":
        how = ("restricted maximum likelihood" if result.reml else "maximum likelihood") if mixed else "least squares"
    else:
        integral = (
            "Laplace approximation"
            if result.n_nodes == 1
            else f"adaptive Gauss-Hermite quadrature, {result.n_nodes} nodes"
        )
        how = f"maximum likelihood, {integral}" if mixed else "maximum likelihood"
    return f"{kind}{mixed} model ({how})"


def notes(result: FittedModel) -> list[str]:
    """What belongs under the table."""
    groups = "; ".join(f"{name} {count}" for name, count in result.n_groups.items())
    r2 = result.r_squared
    r2_text = (
        f"R2 marginal {r2['marginal']:.3f}, conditional {r2['conditional']:.3f}"
        if groups
        else f"R2 {r2['marginal']:.3f}"
    )
    success = result.design.success
    lines = [
        *([f"{result.design.formula.response_name} = {success} counts as success"] if success else []),
        f"n = {result.n_rows:,} rows"
        + (f"; levels: {groups}" if groups else "")
        + (f"; {result.n_dropped:,} rows left out" if result.n_dropped else ""),
        f"log-likelihood {result.log_likelihood:.3f}{' (restricted)' if result.reml else ''}, AIC {result.aic:.1f}, BIC {result.bic:.1f}; {r2_text}",
        f"Wald intervals and tests, degrees of freedom: {NAMES[result.df_method]}",
        f"{result.optimizer}; {'converged' if result.converged else 'NOT CONVERGED'}",
    ]
    if result.design.matrix.factors:
        lines.insert(-1, f"coding of factors: {result.contrasts if isinstance(result.contrasts, str) else 'planned'}")
    return lines + [f"warning: {warning}" for warning in result.warnings]


def p_value(p: float) -> str:
    """A p value as APA style wants it."""
    return "" if np.isnan(p) else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def to_dict(result: FittedModel) -> dict[str, Any]:
    """All numbers of a fit as plain data; what is not finite is None."""
    return {
        "formula": result.formula,
        "family": result.family,
        "link": result.design.family.link,
        "success": result.design.success or None,
        "reml": result.reml,
        "contrasts": result.contrasts if isinstance(result.contrasts, str) else _plain(dict(result.contrasts)),
        "n_rows": result.n_rows,
        "n_dropped": result.n_dropped,
        "dropped": result.dropped,
        "n_groups": result.n_groups,
        "coefficients": records(coefficient_table(result).reset_index()),
        "variance_components": records(result.variance_components),
        "df_method": result.df_method,
        "interval": "Wald, 95 %",
        "log_likelihood": result.log_likelihood,
        "aic": result.aic,
        "bic": result.bic,
        "r_squared": result.r_squared,
        "optimizer": result.optimizer,
        "converged": result.converged,
        "singular": result.singular,
        "prior_sd": result.prior_sd,
        "nAGQ": result.n_nodes,
        "warnings": list(result.warnings),
    }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain data."""
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.floating, float)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
