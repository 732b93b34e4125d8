"""The declarations of columns: what they let pass, in rows of logs and in cells of tables, and what they say otherwise."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from vlm_probe.probes.columns import COLUMNS, LOG, TABLE, Column, check_row

NAMED = {column.name: column for column in COLUMNS}


def test_every_column_is_declared_once_and_has_a_place() -> None:
    assert len(NAMED) == len(COLUMNS)
    assert {column.name for column in (*LOG, *TABLE)} == set(NAMED)
    assert set(LOG) == {column for column in COLUMNS if column.log is not None} and len(set(LOG)) == len(LOG)
    for column in COLUMNS:
        assert column.meaning and column.allowed
        assert not column.required or column.table
        if column.default is not None:
            assert column.read(None) == column.default
        if column.table in ("number", "whole") and column.name != "margin":
            assert column.range is not None, column.name


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("seed", "7", 7),
        ("seed", "7.0", 7),
        ("seed", 7.0, 7),
        ("seed", np.int8(7), 7),
        ("seed", Decimal(7), 7),
        ("seed", " 7 ", 7),
        ("seed", None, 0),
        ("seed", "", 0),
        ("margin", "-1e-3", -0.001),
        ("margin", np.float32(0.5), 0.5),
        ("margin", 1, 1.0),
        ("margin", None, None),
        ("correct", True, 1),
        ("correct", np.bool_(False), 0),
        ("correct", "TRUE", 1),
        ("correct", "0.0", 0),
        ("item_id", 1, "1"),
        ("item_id", 1.0, "1"),  # of a column of whole numbers in which one is missing
        ("item_id", "01", "01"),
        ("item_id", np.str_("a"), "a"),
        ("answer", -5, "-5"),
        ("status", None, "ok"),
        ("model", "", ""),
    ],
)
def test_cells_are_read(name: str, given: Any, expected: Any) -> None:
    found = NAMED[name].read(given)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("seed", 0.5, "a whole number from 0 to"),
        ("seed", "12345678901234567890123", "a whole number from 0 to"),
        ("seed", 10**5000, "a whole number from 0 to"),
        ("seed", "1_000", "a whole number from 0 to"),
        ("seed", "٣", "a whole number from 0 to"),
        ("seed", True, "a whole number from 0 to"),
        ("seed", math.inf, "a whole number from 0 to"),
        ("seed", [1], "a whole number from 0 to"),
        ("attempt", 0, "a whole number from 1 to"),
        ("polarity", 7, "0 or 1"),
        ("margin", "inf", "a finite number"),
        ("margin", "1e400", "a finite number"),
        ("margin", math.nan, "a finite number"),
        ("margin", "wide", "a finite number"),
        ("margin", Decimal("NaN"), "a finite number"),
        ("confidence", 1.5, "a number from 0 to 1"),
        ("reward", -1e-9, "a number from 0 to 1"),
        ("correct", 2, "0 or 1"),
        ("correct", "yes", "0 or 1"),
        ("correct", [1], "0 or 1"),
        ("status", "fine", "one of ok, empty"),
        ("transfer", "far", "one of within, shifted"),
        ("run", "", "is empty"),
        ("run", "  ", "is empty"),
        ("item_id", None, "is empty"),
        ("item_id", ["a"], "a text"),
        ("item_id", np.array(["a"]), "a text"),
        ("item_id", b"a", "a text"),
        ("item_id", {"a": 1}, "a text"),
        ("item_id", "x\ud83d", "a text"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode() if not isinstance(value, int) else "number",
)
def test_cells_out_of_range_are_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        NAMED[name].read(given)
    assert "\n" not in str(told.value) and len(str(told.value)) < 200


def test_values_that_json_writes_as_plain_ones_are_allowed() -> None:
    check_row({"reward": np.float64(0.5), "answer": (1, 2), "logprobs": [np.float64(-1.0)], "status": np.str_("ok")})
    with pytest.raises(ValueError, match="reward must be a number from 0 to 1"):
        check_row({"reward": np.float64(1.5)})


WRONG: dict[str | None, tuple[Any, ...]] = {
    "text": (1, True, ["a"], {"a": 1}),
    "number": ("1", True, [1.0], math.nan, math.inf, -math.inf),
    "whole": ("1", True, 1.0, 10**30, -(10**30)),
    "truth": (0, 1, "true", 2, [True]),
    "answer": (0.5, True, {"a": 1}),
    "texts": ("a", [1], {"a": 1}, ["a", None]),
    "numbers": (1, ["a"], [None], [True]),
    "object": ([], "a", 1),
}


@pytest.mark.parametrize("column", LOG, ids=lambda column: column.name)
def test_every_column_of_a_log_has_a_kind_and_a_range(column: Column) -> None:
    values = list(WRONG[column.log])
    values += [None, ""] if column.needed else []
    values += ["fine"] if column.choices else []
    if column.range is not None and column.log in ("number", "whole"):
        values += [column.range.least - 1, *([column.range.most + 1] if math.isfinite(column.range.most) else [])]
    for value in values:
        with pytest.raises(ValueError, match=f"^{column.name} must be") as told:
            check_row({column.name: value})
        assert "\n" not in str(told.value)
    if not column.needed:
        check_row({column.name: None})
    check_row({f"{column.name}_of_a_later_version": values[0]})
