"""Minimal pairs scored as wholes, and success adjusted for shortcut rules."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pandas as pd

from vlm_probe.analysis.contrasts import REINFORCEMENT
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.minimal_pairs import pairs
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import MissingData, Section
from vlm_probe.analysis.selection import CELL, cells
from vlm_probe.analysis.shortcut_rules import adjusted_success, cue_reliance, item_rules, reliance_by_method
from vlm_probe.stimuli.errors import InvalidInput


def section(material: ReportData) -> Section:
    """Pairs and rules. Raises Unanswerable if no pair was asked as a whole."""
    plain = material.plain
    if plain.empty or plain["pair_id"].isna().all():
        raise MissingData("no item has a foil partner: use sets of `probe stimuli make`, and whole ones")
    scored = pairs(plain, by=CELL)
    results = {"pairs": scored}
    table = scored.table
    used = table[table["net_low"] > 0]
    answer = [
        f"More pairs have both members right than neither, beyond chance, in {len(used)} of {len(table)} cells: there the answers"
        " follow what differs between the members, which is the physics alone."
    ]
    adjusted = _adjusted(material)
    if adjusted is None:
        answer.append(
            "The stimulus sets are not where the runs found them, or have no scenes, so that shortcut rules cannot be adjusted for."
        )
    else:
        results["adjusted"] = adjusted
        worst = adjusted.table.loc[adjusted.table["rule"] != "all rules"]
        above = worst.groupby([c for c in CELL if c in worst], observed=True)["adjusted_low"].min()
        answer.append(
            f"Success stays above one half whichever single rule is adjusted for in {int((above > 0.5).sum())} of {len(above)}"
            " cells with two answers (95 % intervals)."
        )
    relied = _reliance(material)
    if relied is not None:
        results["reliance"] = relied
        methods = reliance_by_method(relied, REINFORCEMENT)
        if len(methods.table):
            results["reliance_rl_sft"] = methods
            told = methods.table[(methods.table["p"] < material.settings.alpha) & (methods.table["cue"] != "margin")]
            answer.append(
                f"After RL, answers follow a shortcut cue more or less than after SFT in {len(told)} of"
                f" {int((methods.table['cue'] != 'margin').sum())} comparisons (p < {material.settings.alpha:g}, not corrected)."
            )
    return Section(
        "pairs",
        "Minimal pairs and shortcuts",
        "Is it the physics that decides, or something that goes with it?",
        tuple(answer),
        results,
    )


def _reliance(material: ReportData) -> Result | None:
    """Weights of margin and cues in the answers to judgements, of the sets that are still there; None if none can be told."""
    judged = material.plain[material.plain["signal"].notna()]
    found = []
    for (code,), own in cells(judged, ["stimuli"]):
        stimuli = material.sets.get(str(code))
        rules = item_rules(stimuli.path) if stimuli is not None else pd.DataFrame(columns=["item_id"])
        if rules.shape[1] < 2:
            continue
        with suppress(InvalidInput):  # whose margin does not say which answer is right
            found.append(cue_reliance(own, rules, by=CELL))
    if not found:
        return None
    return replace(found[0], table=pd.concat([one.table for one in found], ignore_index=True))


def _adjusted(material: ReportData) -> Result | None:
    """Success adjusted for the rules of the sets that are still there; None if none is, or none has rules."""
    judged = material.plain[material.plain["signal"].notna()]
    parts: list[pd.DataFrame] = []
    hows: list[str] = []
    notes: list[str] = []
    for (code,), own in cells(judged, ["stimuli"]):
        stimuli = material.sets.get(str(code))
        if stimuli is None:
            continue
        rules = item_rules(stimuli.path)
        if rules.shape[1] < 2:
            continue
        found = adjusted_success(own, rules, by=CELL)
        if len(found.table):
            parts.append(found.table)
            hows.append(found.how)
            notes += found.notes
    if not parts:
        return None
    return Result(
        title="Success on judgements, adjusted for shortcut rules, with 95 % intervals",
        table=pd.concat(parts, ignore_index=True),
        how=hows[0]
        if len(set(hows)) == 1
        else f"{hows[0]} of the first set, and likewise for the {len(hows) - 1} others",
        notes=tuple(dict.fromkeys(notes)),
    )
