"""The transfer matrix: every training on every test, against the untrained model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from vlm_probe.analysis.figures.heatmap import heatmap
from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.labels import file_part, joined, span, training_name, with_test
from vlm_probe.analysis.levels import TRANSFER
from vlm_probe.analysis.material import Material
from vlm_probe.analysis.section import Figure, Section, Unanswerable, some_columns
from vlm_probe.analysis.transfer import transfer_matrix

CELL = ("model", "method", "train_tasks", "regime", "test_task", "shift", "shift_level", "transfer")
RATES = (
    "rate",
    "estimated_rate",
    "estimated_rate_low",
    "estimated_rate_high",
    "interval",
    "difference",
    "difference_low",
    "difference_high",
    "df",
    "p",
    "p_holm",
    "p_equivalence",
    "verdict",
    "n_runs",
    "n_trials",
)
OF_MODEL = {f"estimate{end}": f"estimated_rate{end}" for end in ("", "_low", "_high")}
SIZES = ("odds_ratio", "odds_low", "odds_high", "interval", "h", "best_shortcut", "p_shortcut", "p_shortcut_holm")


def section(material: Material) -> Section:
    """The transfer matrix. Raises Unanswerable if nothing was trained."""
    plain, settings = material.plain, material.settings
    if plain.empty or set(plain["method"].astype(str)) == {"none"}:
        raise Unanswerable(
            "no run is of a trained model: train one (`probe train`), and run it with `probe run --adapter DIR` beside the base"
        )
    found = transfer_matrix(plain, material.baselines(), settings.bound, settings.alpha)
    table = found.table
    trained = table[table["method"].astype(str) != "none"]
    figures = tuple(_figure(table[table["model"] == model], settings.alpha) for model in dict.fromkeys(table["model"]))
    return Section(
        "transfer",
        "Transfer",
        "What does each training change, on the trained task and beyond it?",
        tuple(_answer(trained, settings.alpha)),
        {
            # A rate here, where `estimate` in all other tables is on the scale of log odds.
            "matrix": some_columns(replace(found, table=table.rename(columns=OF_MODEL)), [*CELL, *RATES], found.title),
            "sizes": some_columns(
                found, [*CELL, *SIZES], "The same: odds ratios, effect sizes, and the best shortcut rule"
            ),
        },
        figures,
    )


def _answer(trained: pd.DataFrame, alpha: float) -> list[str]:
    lines = []
    for level in TRANSFER:
        own = trained[trained["transfer"].astype(str) == level]
        known = own[own["p_holm"].notna()]
        if own.empty:
            continue
        better = int(((known["p_holm"] < alpha) & (known["difference"] > 0)).sum())
        worse = int(((known["p_holm"] < alpha) & (known["difference"] < 0)).sum())
        same = int(own["verdict"].isin(["equivalent", "trivial"]).sum())
        lines.append(
            f"{level}: of {len(own)} cells, {better} are better than the untrained model and {worse} worse (Holm, p < {alpha:g});"
            f" {same} are equivalent to it; {len(own) - len(known)} could not be compared."
        )
    return lines


def _figure(table: pd.DataFrame, alpha: float) -> Figure:
    model = str(table["model"].iloc[0])
    names = zip(table["method"], table["train_tasks"], table["regime"], strict=True)
    cells = with_test(table).assign(
        training=[training_name(*name) for name in names],
        reliable=(table["p_holm"] < alpha).to_numpy(bool),
        within=(table["transfer"].astype(str) == "within").to_numpy(bool),
    )
    # Tests in one order for all trainings; trainings in the order of the table, which is that of the runs.
    tests = sorted(set(cells["test"]))
    first = cells.sort_values("test", key=lambda names: names.map(tests.index), kind="stable")
    trainings = list(dict.fromkeys(sorted(cells["training"], key=lambda name: _place(cells, name))))
    first = first.sort_values("training", key=lambda names: names.map(trainings.index), kind="stable")
    shown = first[["training", "test", "rate", "difference", "reliable", "within"]].reset_index(drop=True)
    runs = f"{span(table['n_runs'])} runs a cell, {int(table['n_trials'].sum())} trials"
    caption = (
        f"Transfer matrix of {model}: success rate of every training (rows) on every test (columns); colour: difference from the"
        " untrained model, estimated by a mixed-effects model per test; bold: the difference is told from 0"
        f" (t between runs, Holm, p < {alpha:g}); framed: the trained task itself; grey: no difference known. {runs}."
    )
    return Figure(joined("transfer", file_part(model)), caption, partial(heatmap, shown))


def _place(cells: pd.DataFrame, training: str) -> tuple[int, str]:
    """Where a training stands: by its method, then by its name."""
    method = str(cells.loc[cells["training"] == training, "method"].iloc[0])
    return (METHODS.index(method) if method in METHODS else len(METHODS)), training
