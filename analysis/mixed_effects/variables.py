"""The names of columns in formulas: which columns a part of a formula takes, and what else it may call."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.mixed_effects.errors import FitError

NUMBERS_AS_NAMES = r"\bC\(\s*`?([\w.]+)`?\s*\)"
"""`C(x)`, which says that the numbers of a column are names."""


def context() -> dict[str, Any]:
    """What formulas may call beside formulaic's own functions."""
    from formulaic.transforms import C

    found = {name: getattr(np, name) for name in ("sqrt", "log2", "log1p", "abs", "sin", "cos")}
    # formulaic's C under a name that no column has, for a column may be called C.
    return found | {"np": np, "_factor": C}


def variables_of(part: str) -> list[str]:
    """The columns that the right-hand side of a formula takes, sorted.

    Raises:
        FitError: If it is no right-hand side.
    """
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        factors = {factor for term in Formula(part) for factor in term.factors}
        names = set().union(*(_names(str(factor.expr), factor.eval_method.value) for factor in factors))
    except (FormulaicError, SyntaxError) as error:
        raise FitError(f"{part!r} is not the right-hand side of a formula ({error})") from error
    return sorted(names)


def _names(expression: str, kind: str) -> set[str]:
    """Names of the columns in one factor: a column, or a Python expression of columns."""
    if kind == "literal":
        return set()
    if kind == "lookup":
        return {expression}
    quoted = re.findall(r"`([^`]+)`", expression)
    tree = ast.parse(re.sub(r"`[^`]+`", "0", expression), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return {*quoted, *(names - called - {"np"})}


def require(data: pd.DataFrame, names: Sequence[str], formula: str) -> None:
    """Raise FitError if the table lacks a column that the formula takes."""
    for name in names:
        if name not in data.columns:
            near = difflib.get_close_matches(name, [str(column) for column in data.columns], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f": it has {', '.join(map(str, data.columns))}"
            raise FitError(f"{formula!r} needs the column {name!r}, which the data do not have{hint}")


def quoted(name: str) -> str:
    """A name or an expression as formulaic takes it: names that are no Python names stand between backticks."""
    return name if not name or name.isidentifier() or not _is_odd_name(name) else f"`{name}`"


def _is_odd_name(text: str) -> bool:
    """Whether this is the name of a column that is no Python name, rather than an expression."""
    return not any(mark in text for mark in "()[]+*/-`") and not text.replace(".", "").isdigit()
