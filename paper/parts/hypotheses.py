"""The findings of the reference study next to what came out here, with intervals, and whether the two agree."""

from __future__ import annotations

from typing import Any

from vlm_probe.analysis.tables import proportion
from vlm_probe.analysis.transfer_verdicts import chosen
from vlm_probe.paper.latex import Rows, in_math, table
from vlm_probe.paper.names import LEVELS, contrast_sides, side_name
from vlm_probe.paper.numbers import Numbers, interval
from vlm_probe.paper.part import Part
from vlm_probe.paper.parts.decoding import decodable
from vlm_probe.paper.study_results import Study
from vlm_probe.paper.verdicts import AGREEMENTS, does_not_transfer, improves, no_advantage, together, verdict

CLAIMS = (
    ("within", "Training raises success on the trained task, with or without interaction (there: to near ceiling)"),
    ("cross-task", "What is learned on one task does not carry over reliably to others on the same kind of scenes"),
    (
        "shifted",
        "Nor does it to pictures that look different (there: photographs; here: rendered, but shifted)",
    ),
    ("cross-family", "(Not asked there.) Nor to other families of physics"),
    ("zero-shot", "(Not asked there.) Nor to questions that are never trained on"),
)
"""Level of transfer, and the finding in our words."""
INTERACTION = "Learning by interaction carries over no better than learning from answers"
DECODABLE = "Physical quantities can be decoded from the activations of trained models, whether or not answers use them"
FASTER = "Further training on a second task is faster than from the base model"
NOT_RUN, NOT_TESTED = "(not run)", "(not tested here)"
FAR = ("cross-task", "cross-family", "zero-shot")


def part(study: Study) -> Part:
    """The table of findings. Raises Unanswerable if nothing was trained."""
    numbers, rows = Numbers(), []
    records = study.contrasts_over_all
    alpha = study.settings.alpha
    for level, claim in CLAIMS:
        own = [r for r in records if r["transfer"] == level and str(r["contrast"]).endswith("base")]
        if not own:
            numbers.verdict(f"hypothesis.{level}", "open", AGREEMENTS)
            rows.append([claim, NOT_RUN, "open"])
            continue
        words = [_word(row, alpha) for row in own]
        agreement = (improves if level == "within" else does_not_transfer)(words)
        if agreement == "agrees" and level in FAR and _hidden(study, (level,)):
            agreement = "partly"
        numbers.verdict(f"hypothesis.{level}", agreement, AGREEMENTS)
        for word in ("higher", "lower", "undecided"):
            numbers.count(f"hypothesis.{level}.{word}", words.count(word))
        numbers.count(f"hypothesis.{level}.same", words.count("equivalent") + words.count("trivial"))
        rows.append([claim, _shown(own, study), agreement])
    far = [_word(r, alpha) for r in records if r["transfer"] in FAR and str(r["contrast"]).endswith("base")]
    overall = does_not_transfer(far)
    numbers.verdict(
        "hypothesis.far", "partly" if overall in ("agrees", "open") and _hidden(study, FAR) else overall, AGREEMENTS
    )
    versus = [r for r in records if r["transfer"] in FAR and str(r["contrast"]).startswith("RL")]
    shown = r"\newline ".join(f"{LEVELS[r['transfer']]}: {_number(r)} {_word(r, alpha)}" for r in versus)
    overall = together([no_advantage(_word(row, alpha)) for row in versus])
    numbers.verdict("hypothesis.interaction", overall, AGREEMENTS)
    rows.append([INTERACTION, shown or NOT_RUN, overall])
    told = decodable(study)
    agreement = "open" if told is None else "agrees" if all(told) else "partly" if any(told) else "contradicts"
    numbers.verdict("hypothesis.decoding", agreement, AGREEMENTS)
    shown = (
        ""
        if told is None
        else f"{sum(told)} of {len(told)} (quantity and training) above chance where the answer is read"
    )
    rows.append([DECODABLE, shown or NOT_RUN, agreement])
    rows.append([FASTER, NOT_TESTED, "open"])
    header = ["Finding of the reference study, in our words", "Here: difference in success rate, verdict", "Agreement"]
    return Part(
        numbers,
        tables={"hypotheses": table(r"p{0.34\textwidth}p{0.46\textwidth}l", header, [Rows("", rows)], spaced=True)},
    )


def _hidden(study: Study, levels: tuple[str, ...]) -> bool:
    """Whether some source raised or reversed some target of these levels, which a mean over tests does not show."""
    found = study.material.transfer
    return any(row["transfer"] in levels for word in ("higher", "reversed") for row in chosen(found, word))


def _shown(own: list[dict[str, Any]], study: Study) -> str:
    parts = []
    for row in own:
        left, _ = contrast_sides(str(row["contrast"]), study.methods)
        parts.append(f"{side_name(left)}: {_number(row)} {_word(row, study.settings.alpha)}")
    return r"\newline ".join(parts)


def _number(row: dict[str, Any]) -> str:
    if row["difference"] != row["difference"]:
        return "--"
    return f"{in_math(proportion(row['difference'], 2))} {interval(row['difference_low'], row['difference_high'])}"


def _word(row: dict[str, Any], alpha: float) -> str:
    return verdict(row["difference"], row["p_holm"], row["p_equivalence"], alpha)
