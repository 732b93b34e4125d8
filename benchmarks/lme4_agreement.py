"""Agreement with lme4, lmerTest and emmeans on the classic data sets and on simulated trials.

    python benchmarks/lme4_agreement.py [--markdown] [--json] [MODEL...]

Needs Rscript with lme4, lmerTest and emmeans. Every model is fitted by lme4 as it does by default and with tight tolerances;
the fit with the higher log-likelihood is the reference, since lme4's default stopping leaves estimates up to some
thousandths of a standard error off.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import hard_data
from vlm_probe.analysis import FitResult, fit

MODELS: dict[str, dict[str, Any]] = {
    "sleepstudy": {"formula": "Reaction ~ Days + (Days | Subject)"},
    "sleepstudy_ml": {"formula": "Reaction ~ Days + (Days | Subject)", "reml": False},
    "sleepstudy_uncorrelated": {"formula": "Reaction ~ Days + (Days || Subject)"},
    "penicillin": {"formula": "diameter ~ 1 + (1 | plate) + (1 | sample)"},
    "pastes": {"formula": "strength ~ 1 + (1 | batch/cask)"},
    "insteval": {"formula": "y ~ service + studage + (1 | s) + (1 | d) + (1 | dept:service)", "factors": True},
    "trials_linear": {"formula": "rt ~ method*shift + margin + (1 | run) + (1 + margin | item)"},
    "cbpp": {
        "formula": "cbind(incidence, size - incidence) ~ period + (1 | herd)",
        "family": "binomial",
        "factors": True,
    },
    "verbagg": {"formula": "r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)", "family": "binomial"},
    "grouseticks": {
        "formula": "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | INDEX) + (1 | LOCATION)",
        "family": "poisson",
        "factors": True,
    },
    "hard_factors": {"formula": "resp ~ A*B*C + (1 | subj) + (1 | item)", "family": "binomial"},
    "hard_slope": {"formula": "resp ~ A + B + log(m) + (1 | subj) + (1 + log(m) | item)", "family": "binomial"},
    "hard_nested": {"formula": "y ~ t*cond + (1 + t | lab/p)"},
    "hard_weights": {"formula": "y ~ t + cond + (1 | lab) + (t || lab:p)", "weights": "w"},
    "hard_counts": {
        "formula": "cbind(k, N - k) ~ poly(x, 2) + offset(log(e)) + (1 | site) + (1 | year)",
        "family": "binomial",
    },
    "hard_shares": {"formula": "k/N ~ x + I(x^2) + factor(year) + (1 | site)", "family": "binomial", "weights": "N"},
    "hard_poisson": {"formula": "events ~ x + offset(log(e)) + (1 | site) + (1 | obs)", "family": "poisson"},
    "visits_laplace": {"formula": "y ~ trt*month + (1 | id)", "family": "binomial"},
    "visits_5": {"formula": "y ~ trt*month + (1 | id)", "family": "binomial", "nAGQ": 5},
    "visits_15": {"formula": "y ~ trt*month + (1 | id)", "family": "binomial", "nAGQ": 15},
    "visits_slope": {"formula": "y ~ trt + (0 + dose | id)", "family": "binomial", "nAGQ": 11},
    "visits_counts": {"formula": "cbind(k, N - k) ~ month + (1 | id)", "family": "binomial", "nAGQ": 9},
    "visits_events": {"formula": "events ~ month + trt + (1 | id)", "family": "poisson", "nAGQ": 9},
    "trials_logistic": {
        "formula": "correct ~ method*shift + margin + (1 | run) + (1 | run:family) + (1 + margin | item)",
        "family": "binomial",
    },
}
FACTORS = {"insteval": ["service", "studage"], "cbpp": ["period"], "grouseticks": ["YEAR"]}
ORDER = {"btype": ["curse", "scold", "shout"], "situ": ["other", "self"]}


def simulate_trials(seed: int = 11) -> pd.DataFrame:
    """Trials of three methods, five runs each, under three shifts, with item slopes of the margin and a response time."""
    rng = np.random.default_rng(seed)
    n_items = 120
    intercept, slope = rng.normal(0, 0.8, n_items), rng.normal(0, 0.6, n_items)
    margin = rng.uniform(-0.7, 0.7, n_items)
    rows = []
    for m, method in enumerate(("none", "sft", "ppo")):
        for replicate in range(5):
            run, family = rng.normal(0, 0.5), rng.normal(0, 0.4, 2)
            for s, shift in enumerate(("none", "camera", "light")):
                item = rng.choice(n_items, 60, replace=False)
                predictor = 0.2 + 0.4 * m - 0.25 * s + 0.15 * m * (s == 1) + run + family[item % 2]
                predictor += intercept[item] + 1.5 * (1 + slope[item]) * margin[item]
                rows.append(
                    pd.DataFrame(
                        {
                            "correct": (rng.random(60) < expit(predictor)).astype(int),
                            "rt": np.round(predictor + rng.normal(0, 1, 60), 6),
                            "method": method,
                            "shift": shift,
                            "run": f"{method}-{replicate}",
                            "family": np.where(item % 2, "towers", "balance"),
                            "item": item,
                            "margin": np.round(margin[item], 6),
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def read(folder: Path, name: str) -> pd.DataFrame:
    """The data of a model, with the same order of levels as in R."""
    data = pd.read_csv(folder / f"{name}-data.csv")
    for column in FACTORS.get(name, []):
        data[column] = pd.Categorical(data[column].astype(str))
    if name.startswith("trials_"):
        data["method"] = pd.Categorical(data["method"], ["none", "sft", "ppo"])
        data["shift"] = pd.Categorical(data["shift"], ["none", "camera", "light"])
    return data


def compare(folder: Path, name: str) -> dict[str, float]:
    """One model: how far our numbers are from lme4's."""
    settings = {key: value for key, value in MODELS[name].items() if key != "factors"}
    by_quadrature = "nAGQ" in settings
    data = read(folder, name)
    start = time.process_time()
    with warnings.catch_warnings(action="ignore"):
        ours = fit(settings.pop("formula"), data, **settings)
    seconds = time.process_time() - start
    reference = pd.read_csv(folder / f"{name}-fit.csv").iloc[0]
    fixed = pd.read_csv(folder / f"{name}-fixed.csv", index_col="term")
    table = ours.coefficients.rename(index=as_in_r).loc[fixed.index]
    # lme4's log-likelihoods by quadrature are relative to those of saturated models, which are 0 for single answers only.
    is_relative = by_quadrature and (ours.family == "poisson" or ours.design.trials.max() > 1)
    gain = float("nan") if is_relative else ours.log_likelihood - float(reference["log_likelihood"])
    row = {
        "rows": ours.n_rows,
        "fixed_se": float((np.abs(table["estimate"] - fixed["estimate"]) / fixed["se"]).max()),
        "se_percent": float(100 * np.abs(table["se"] / fixed["se"] - 1).max()),
        "sd_percent": _variance_components(ours, pd.read_csv(folder / f"{name}-random.csv")),
        "log_likelihood": ours.log_likelihood,
        "log_likelihood_gain": gain,
        "default_se": float((np.abs(fixed["default"] - fixed["estimate"]) / fixed["se"]).max()),
        "aic": float("nan") if is_relative else abs(ours.aic - float(reference["aic"])),
        "bic": float("nan") if is_relative else abs(ours.bic - float(reference["bic"])),
        "df": float(np.abs(table["df"] - fixed["df"]).max()) if fixed["df"].notna().all() else float("nan"),
        "modes": _modes(ours, folder / f"{name}-modes.csv"),
        "means": _means(ours, folder / f"{name}-means.csv"),
        "seconds": seconds,
        "lme4_seconds": float(reference["seconds"]),
    }
    return row


def as_in_r(term: str) -> str:
    """The name of a coefficient in R."""
    term = re.sub(r"poly\(x, 2\)\[(\d)\]", r"poly(x, 2)\1", term).replace(" ** ", "^")
    term = re.sub(r"^year\[T", "factor(year)[T", term)
    return term.replace("[T.", "").replace("]", "").replace("Intercept", "(Intercept)")


def _variance_components(ours: FitResult, reference: pd.DataFrame) -> float:
    """Largest difference of a standard deviation (percent), or of a correlation (hundredths)."""
    worst = 0.0
    groups = {name.replace("(Intercept)", "Intercept") for name in reference["grp"]}
    for group in groups:
        for _, row in reference[reference["grp"] == group].iterrows():
            first, second = (str(row[c]).replace("(Intercept)", "Intercept") for c in ("var1", "var2"))
            mine = ours.variance_components
            # lme4 numbers terms of the same group: Subject, Subject.1; and writes nested ones from the inside out.
            known = [own for own in mine["group"].unique() if _same(own, group)]
            mine = mine[mine["group"].isin(known)]
            if row["grp"] == "Residual":
                worst = max(worst, abs(100 * (ours.sigma / row["sdcor"] - 1)))
            elif second == "nan":
                sd = float(mine.loc[mine["name"] == first, "sd"].iloc[0])
                worst = max(worst, abs(100 * (sd / row["sdcor"] - 1)) if row["sdcor"] > 1e-4 else 100 * sd)
            else:
                correlation = float(mine.loc[mine["name"] == second, "correlation"].iloc[0])
                worst = max(worst, 100 * abs(correlation - row["sdcor"]))
    return worst


def _same(ours: str, theirs: str) -> bool:
    base = re.sub(r"\.\d+$", "", theirs)
    return sorted(ours.split(":")) == sorted(re.split("[:.]", base))


def _modes(ours: FitResult, path: Path) -> float:
    """Largest difference of a conditional mode or its standard deviation, in units of that standard deviation."""
    reference = pd.read_csv(path)
    if "condsd" not in reference:
        return float("nan")
    reference = reference.assign(
        group=[
            ":".join(sorted(g.rpartition(".")[0].split(":") if g[-2:-1] == "." else g.split(":")))
            for g in reference["grpvar"]
        ],
        name=reference["term"].str.replace("(Intercept)", "Intercept", regex=False),
        level=[":".join(sorted(str(level).split(":"))) for level in reference["grp"]],
    ).set_index(["group", "name", "level"])
    mine = ours.random_effects
    mine = mine.assign(
        group=[":".join(sorted(g.split(":"))) for g in mine["group"]],
        level=[":".join(sorted(str(level).removesuffix(".0").split(":"))) for level in mine["level"]],
    ).set_index(["group", "name", "level"])
    both = mine.join(reference[["condval", "condsd"]], how="inner")
    if len(both) != len(mine):
        raise ValueError(f"{ours.formula}: {len(mine)} modes, of which {len(both)} have a namesake in lme4")
    both = both[both["condsd"] > 1e-4]
    off = np.maximum(np.abs(both["mode"] - both["condval"]), np.abs(both["sd"] - both["condsd"])) / both["condsd"]
    return float(off.max())


def _means(ours: FitResult, path: Path) -> float:
    """Largest difference of an estimated marginal mean or its standard error, in standard errors."""
    if not path.is_file():
        return float("nan")
    reference = pd.read_csv(path)
    names = [name for name in reference.columns if name in ours.design.matrix.factors]
    mine = ours.emmeans(names)
    for table in (reference, mine):
        table[names] = table[names].astype(str)
    both = mine.merge(reference, on=names)
    values = np.maximum(np.abs(both["estimate"] - both["emmean"]), np.abs(both["se"] - both["SE"])) / both["SE"]
    return float(values.max())


def references(folder: Path, names: list[str]) -> None:
    """Let R fit the models."""
    simulate_trials().to_csv(folder / "trials.csv", index=False)
    for name in hard_data.HARD:
        hard_data.simulate(name).to_csv(folder / f"{name}.csv", index=False)
    subprocess.run(
        ["Rscript", str(ROOT / "benchmarks" / "lme4_reference.R"), str(folder), *names], check=True, stdout=sys.stderr
    )


def markdown(table: pd.DataFrame) -> str:
    """The table of the documentation."""
    heads = {
        "rows": ("rows", "{:,.0f}"),
        "fixed_se": ("fixed effects (SE)", "{:.4f}"),
        "default_se": ("lme4's default (SE)", "{:.4f}"),
        "se_percent": ("SE (%)", "{:.2f}"),
        "sd_percent": ("SD, r (%)", "{:.2f}"),
        "log_likelihood": ("log-likelihood", "{:.4f}"),
        "log_likelihood_gain": ("ours - lme4's", "{:+.5f}"),
        "df": ("df", "{:.3f}"),
        "modes": ("modes (SD)", "{:.4f}"),
        "means": ("means (SE)", "{:.4f}"),
    }
    lines = ["| model | " + " | ".join(head for head, _ in heads.values()) + " |", "|---|" + "---|" * len(heads)]
    for name, row in table.iterrows():
        cells = ["" if pd.isna(row[key]) else form.format(row[key]) for key, (_, form) in heads.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Agreement with lme4.")
    parser.add_argument("models", nargs="*", default=[], help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="where R's results are already")
    arguments = parser.parse_args()
    names = arguments.models or list(MODELS)
    if arguments.folder is None and shutil.which("Rscript") is None:
        sys.exit("Rscript is not there: install R with lme4, lmerTest and emmeans")
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        if arguments.folder is None:
            references(folder, names)
        table = pd.DataFrame({name: compare(folder, name) for name in names}).T
    if arguments.json:
        print(json.dumps(table.astype(object).where(table.notna(), None).to_dict("index")))
    else:
        print(markdown(table) if arguments.markdown else table.T.to_string())


if __name__ == "__main__":
    main()
