"""Tables for papers: Markdown, LaTeX with booktabs, and CSV, with numbers written as the APA asks for.

Quantities that cannot exceed 1 have no leading zero; p-values have three decimals and end at "< .001"; an estimate's
interval stands in one column. The CSV has all digits.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.result import P_VALUES
from vlm_probe.stimuli.plain_csv import write_csv

Format = Callable[[Any], str]

# What columns are called in print, and how their numbers are written; all others keep their name, and numbers get two decimals.
HEADERS = {
    "run": "Run",
    "model": "Model",
    "method": "Method",
    "train_tasks": "Trained on",
    "test_task": "Tested on",
    "test_family": "Family",
    "transfer": "Transfer",
    "shift": "Shift",
    "shift_level": "Level",
    "regime": "Regime",
    "contrast": "Contrast",
    "term": "Term",
    "group": "Group",
    "name": "Effect",
    "manner": "Manner",
    "estimate": "b",
    "se": "SE",
    "df": "df",
    "statistic": "t",
    "p": "p",
    "p_holm": "p (Holm)",
    "p_means": "p (runs and items)",
    "p_runs": "p (runs, these items)",
    "about": "About",
    "p_difference": "p (difference)",
    "p_equivalence": "p (equivalence)",
    "odds_ratio": "OR",
    "b": "b",
    "h": "h",
    "difference": "Difference",
    "rate": "Rate",
    "p_baseline": "p (best baseline)",
    "p_baseline_holm": "p (best baseline, Holm)",
    "best_baseline": "Best baseline",
    "test_set": "Set",
    "source": "Source",
    "target": "Target",
    "measure": "By",
    "signed": "Signed score",
    "signed_difference": "Difference (signed)",
    "p_each": "p (each run)",
    "p_equivalence_holm": "p (equivalence, Holm)",
    "ruled_out": "Ruled out",
    "information": "V",
    "ratio": "Ratio",
    "invalid": "Invalid",
    "bf01_bic": "BF₀₁ (BIC)",
    "sd": "SD",
    "correlation": "r",
    "accuracy": "Accuracy",
    "chance": "Chance",
    "d_prime": "d′",
    "criterion": "c",
    "threshold": "Threshold",
    "slope": "Slope",
    "bias": "Bias",
    "lapse": "Lapse",
    "margin_bin": "Margin",
    "n_runs": "Runs",
    "n_trials": "Trials",
    "n_items": "Items",
    "n_levels": "Levels",
    "n": "n",
    "bf01": "BF₀₁",
    "verdict": "Verdict",
    "interval": "Interval",
}
PROPORTIONS = re.compile(
    r"accuracy|probability|proportion|rate|share|chance|constant|shortcut|lapse|kappa|^r$|correlation|r_squared|success|ceiling"
    r"|_right$|invalid|baseline$|ruled_out$|information|^same_answer$|^net$|^adjusted$|^where_|^p_at|^area|^final$|confidence|calibration_error|brier"
)
DEGREES = re.compile(r"^df(_|$)|_df$")
MINUS, EMPTY = "−", "–"

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "²": r"$^2$",
    "′": r"$'$",
    "₀": r"$_0$",
    "₁": r"$_1$",
    "χ": r"$\chi$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "Δ": r"$\Delta$",
    "“": "``",
    "”": "''",
    "’": "'",
}


def number(value: float, digits: int = 2) -> str:
    """A number with two decimals, three where two would hide it, and a true minus.

    Args:
        value: The number; nan becomes a dash.
        digits: Decimals of numbers from .095 to 100.
    """
    if value is None or math.isnan(value):
        return EMPTY
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if 0 < abs(value) < 0.095:
        digits += 1
    if abs(value) >= 1e5:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{1 if abs(value) >= 100 else digits}f}"
    return _minus(text) if float(text) else text.lstrip("-")


def proportion(value: float, digits: int = 3) -> str:
    """A quantity that cannot exceed 1, without a leading zero."""
    if value is None or math.isnan(value):
        return EMPTY
    text = f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("-")
    return _minus(re.sub(r"^(-?)0\.", r"\1.", text))


def p_value(p: float) -> str:
    """A p-value: three decimals, "< .001" below them."""
    if p is None or math.isnan(p):
        return EMPTY
    return "< .001" if p < 0.001 else proportion(p)


def degrees(df: float) -> str:
    """Degrees of freedom; without an end, the statistic is a z."""
    if df is None or math.isnan(df):
        return EMPTY
    return "∞" if math.isinf(df) else f"{df:.0f}" if float(df).is_integer() else f"{df:.1f}"


def interval(low: float, high: float, form: Format = number) -> str:
    """An interval in square brackets."""
    return EMPTY if math.isnan(low) or math.isnan(high) else f"[{form(low)}, {form(high)}]"


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is printed: all cells text, limits of an interval in one column, headers as `HEADERS` has them.

    A column pair `X_low`, `X_high` (or `ci_low`, `ci_high`, which belong to `estimate`) becomes one interval.
    """
    columns: dict[str, list[str]] = {}
    limits = {name.removesuffix("_low") for name in table.columns if name.endswith("_low")}
    limits = {stem for stem in limits if f"{stem}_high" in table.columns}
    for name in map(str, table.columns):
        stem = name.removesuffix("_low").removesuffix("_high")
        if stem in limits and name.endswith("_high"):
            continue
        if stem in limits and name.endswith("_low"):
            form = _form(_owner(stem, list(table.columns)))
            pairs = zip(table[name].astype(float), table[f"{stem}_high"].astype(float), strict=True)
            owner = header_of(_owner(stem, list(table.columns)))
            header = "95 % CI" if "95 % CI" not in columns else f"95 % CI, {owner}"
            columns[header] = [interval(low, high, form) for low, high in pairs]
        else:
            columns[header_of(name)] = [_cell(name, value) for value in table[name]]
    return pd.DataFrame(columns)


def concise(table: pd.DataFrame) -> pd.DataFrame:
    """The table without columns that say nothing here: shifts where nothing is shifted, regimes where none is special."""
    idle = [name for name in ("regime",) if name in table and set(table[name].astype(str)) <= {""}]
    if "shift" in table and set(table["shift"].astype(str)) == {"none"}:
        idle += [name for name in ("shift", "shift_level") if name in table]
    return table.drop(columns=idle)


def markdown(table: pd.DataFrame) -> str:
    """A table for Markdown, numbers to the right."""
    table = concise(table)
    text = printed(table)
    if text.empty:
        return "(no rows)\n"
    rows = [[_pipe(cell) for cell in row] for row in [list(text.columns), *text.to_numpy().tolist()]]
    right = _numeric(table, text)
    widths = [max(len(row[i]) for row in rows) for i in range(len(text.columns))]
    rule = ["-" * (max(w, 3) - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    lines = [rows[0], rule, *rows[1:]]
    form = [
        " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) for row in lines
    ]
    return "".join(f"| {line} |\n" for line in form)


def latex(table: pd.DataFrame, caption: str, label: str, notes: Sequence[str] = ()) -> str:
    """A table for LaTeX; needs `\\usepackage{booktabs}`.

    Args:
        table: The table.
        caption: What it shows, as plain text.
        label: For `\\ref`.
        notes: Below the table, as plain text.
    """
    table = concise(table)
    text = printed(table)
    align = "".join("r" if right else "l" for right in _numeric(table, text))
    head = " & ".join(escape(str(name)) for name in text.columns)
    body = [" & ".join(escape(str(cell)) for cell in row) + r" \\" for row in text.to_numpy().tolist()]
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\footnotesize",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\raggedright\emph{Note.} " + escape(" ".join(notes))] if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv(table: pd.DataFrame) -> str:
    """A table as CSV with all digits that mean anything."""
    columns = [_cells(table.iloc[:, place]) for place in range(table.shape[1])]
    return write_csv([str(name) for name in table.columns], zip(*columns, strict=True))


def _cells(values: pd.Series) -> list[Any]:
    if pd.api.types.is_float_dtype(values.dtype):
        return ["" if pd.isna(value) else f"{value:.10g}" for value in values]
    return [None if missing else value for value, missing in zip(values.tolist(), values.isna(), strict=True)]


def escape(text: str) -> str:
    """Plain text for LaTeX; letters that it does not have become their nearest ASCII."""
    found = []
    for character in text:
        if character in _LATEX:
            found.append(_LATEX[character])
        elif ord(character) < 128:
            found.append(character)
        else:
            plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            found.append("".join(_LATEX.get(c, c) for c in plain) or "?")
    return "".join(found)


def header_of(name: str) -> str:
    """A column's name in print."""
    return HEADERS.get(name, name.replace("_", " "))


def _form(name: str) -> Format:
    if P_VALUES.search(name):
        return p_value
    if DEGREES.search(name):
        return degrees
    return proportion if PROPORTIONS.search(name) else number


def _owner(stem: str, columns: list[str]) -> str:
    """The column whose interval it is: of the same name, or the estimate before it."""
    if stem in columns:
        return stem
    before = columns[: columns.index(f"{stem}_low")]
    matching = [name for name in before if name.startswith(stem)]
    return matching[-1] if matching else "estimate" if "estimate" in columns else (before[-1] if before else stem)


def _cell(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value)):
        return EMPTY
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return _minus(f"{value}") if abs(int(value)) < 10_000 else _minus(f"{value:,}")
    if isinstance(value, float | np.floating):
        return _form(name)(float(value))
    return str(value) if str(value) else EMPTY


def _numeric(table: pd.DataFrame, text: pd.DataFrame) -> list[bool]:
    numbers = {header_of(str(n)) for n in table.columns if pd.api.types.is_numeric_dtype(table[n])}
    return [name in numbers or str(name).startswith("95 % CI") for name in text.columns]


def _minus(text: str) -> str:
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def _pipe(cell: Any) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")
