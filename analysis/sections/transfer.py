"""The transfer matrix: every training run on every test, against the untrained model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from vlm_probe.analysis.figures.heatmap import heatmap
from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.labels import file_part, joined, span, training_name, with_test
from vlm_probe.analysis.levels import TRANSFER
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.section import Figure, MissingData, Section, some_columns
from vlm_probe.analysis.source_target import Transfer
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.tables import number
from vlm_probe.analysis.transfer import transfer_matrix
from vlm_probe.analysis.transfer_verdicts import ALL, LEARNING, before_correction, chosen, finding

CELL = ("model", "method", "train_tasks", "regime", "test_task", "shift", "shift_level", "test_set", "transfer")
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
SIZES = ("odds_ratio", "odds_low", "odds_high", "interval", "h", "best_baseline", "p_baseline", "p_baseline_holm")
SOURCES = ("model", "source", "method", "target", "transfer", "verdict", "measure", "n_runs", "n_learned")
SUCCESS = (
    *(
        "rate",
        "untrained",
        "difference",
        "difference_low",
        "difference_high",
        "df",
        "p",
        "p_holm",
        "p_equivalence",
        "p_equivalence_holm",
    ),
    *(
        "ruled_out",
        "difference_learned",
        "p_learned",
        "invalid",
        "invalid_untrained",
        "difference_valid",
        "p_valid",
        "best_baseline",
        "baseline",
    ),
    *("control_difference", "control_low", "control_high", "control_p"),
)
SIGNED = (
    *("signed", "signed_low", "signed_high", "p_reversed", "p_reversed_holm", "signed_untrained", "signed_difference"),
    *(
        "signed_difference_low",
        "signed_difference_high",
        "signed_df",
        "signed_p",
        "signed_p_holm",
        "signed_p_equivalence",
    ),
    *(
        "signed_ruled_out",
        "information",
        "information_untrained",
        "d_prime",
        "d_prime_untrained",
        "correlation",
        "correlation_untrained",
    ),
    *("direction_accuracy", "direction_accuracy_untrained"),
)


def section(material: ReportData) -> Section:
    """The transfer matrix. Raises Unanswerable if nothing was trained."""
    plain, settings = material.plain, material.settings
    if plain.empty or set(plain["method"].astype(str)) == {"none"}:
        raise MissingData(
            "no run is of a trained model: train one (`probe train`), and run it with `probe run --adapter DIR` beside the base"
        )
    found = transfer_matrix(plain, material.baselines(), settings.bound, settings.alpha)
    table = found.table
    trained = table[table["method"].astype(str) != "none"]
    directed = material.transfer
    models = list(dict.fromkeys(table["model"]))
    figures = (
        *(signed_figure(directed.table[directed.table["model"] == str(model)], settings.alpha) for model in models),
        *(_figure(table[table["model"] == model], settings.alpha) for model in models),
    )
    return Section(
        "transfer",
        "Transfer",
        "What does each training change, on the trained task and beyond it?",
        (*_directed(directed, settings.alpha), *_answer(trained, settings.alpha)),
        {
            "sources": some_columns(directed, [*SOURCES, *SUCCESS], directed.title),
            "signed": some_columns(
                directed,
                [*SOURCES, *SIGNED],
                "The same: signed score, below 0 where answers are reversed, and information",
            ),
            "ratios": replace(
                directed,
                table=directed.ratios,
                title="Transfer ratio: gain on the target / gain on the source, with 95 % Fieller intervals (empty: unbounded)",
            ),
            "learned": replace(
                directed,
                table=directed.runs,
                title="Whether every run is better than the untrained model on its own source",
            ),
            **({} if directed.measures is None else {"measures": directed.measures}),
            # A rate here, where `estimate` in all other tables is on the scale of log odds.
            "matrix": some_columns(replace(found, table=table.rename(columns=OF_MODEL)), [*CELL, *RATES], found.title),
            "sizes": some_columns(
                found, [*CELL, *SIZES], "The same: odds ratios, effect sizes, and the best baseline without physics"
            ),
        },
        figures,
    )


def _directed(found: Transfer, alpha: float) -> list[str]:
    """Which transfers there are, by verdict."""
    lines = []
    words = {"reversed": "Reversed transfer", "higher": "Positive transfer", "lower": "Loss"}
    for verdict, title in words.items():
        own = chosen(found, verdict)
        if own:
            lines.append(f"{title} (Holm, p < {alpha:g}): {'; '.join(map(finding, own))}.")
    early = before_correction(found, alpha)
    if early:
        lines.append(
            f"Told from the untrained model before correction for all contrasts, and not after it: {'; '.join(map(finding, early))}."
        )
    table = found.table[(found.table["method"] == ALL) & ~found.table["transfer"].isin(LEARNING)]
    same = table[table["verdict"] == "equivalent"]
    if len(same):
        pairs = "; ".join(
            f"{row['source']} → {row['target']} ({number(row['ruled_out'])})" for row in same.to_dict("records")
        )
        lines.append(
            f"Equivalent, with the smallest true difference in success that there was 80 % power to rule out: {pairs}."
        )
    limited = table[table["verdict"] == "uninformative"]
    if len(limited):
        named = dict.fromkeys(f"{row['target']} ({row['measure']})" for row in limited.to_dict("records"))
        lines.append(f"Uninformative: {', '.join(named)}.")
    lines.append(
        f"Inconclusive: {int((table['verdict'] == 'inconclusive').sum())} of {len(table)} contrasts of sources and targets."
    )
    return lines


def _lines(source: str) -> str:
    """A source over several lines, two tasks each."""
    tasks = source.split("+")
    return "\n+ ".join(" + ".join(tasks[i : i + 2]) for i in range(0, len(tasks), 2))


def signed_figure(table: pd.DataFrame, alpha: float) -> Figure:
    """The matrix of sources and targets, by the sign of what the answers say."""
    own = table[table["method"] == ALL]
    cells = pd.DataFrame(
        {
            "training": own["source"].map(_lines),
            "test": own["target"],
            "rate": own["signed"],
            "difference": own["signed"],
            "reliable": own["verdict"].isin(["higher", "lower", "reversed"]),
            "within": own["transfer"] == "within",
        }
    )
    base = own.drop_duplicates("target")
    untrained = pd.DataFrame(
        {
            "training": name_of("none"),
            "test": base["target"],
            "rate": base.get("signed_untrained"),
            "difference": base.get("signed_untrained"),
        }
    ).assign(reliable=False, within=False)
    model = str(own["model"].iloc[0])
    caption = (
        f"What training on a source (rows) makes the answers of {model} to a target (columns) say about the truth: signed score, the hit rate minus the"
        " false-alarm rate of the side of the truth (1: always right, 0: no information, -1: always reversed), mean over methods and runs."
        f" Bold: higher, lower or reversed (see the table; Holm, p < {alpha:g}); framed: the source itself. {span(own['n_runs'])} runs a source."
    )
    shown = pd.concat([untrained, cells]).reset_index(drop=True)
    return Figure(
        joined("signed", file_part(model)), caption, partial(heatmap, shown, label="Signed score (below 0: reversed)")
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
    # Tests in one order for all training runs; training runs in the order of the table, which is that of the runs.
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
