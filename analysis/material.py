"""What a report is about: which of the trials answer which kind of question, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_probe.analysis.frame import Trials
from vlm_probe.analysis.registration import Registration
from vlm_probe.analysis.selection import TEST, plain_trials, present, with_sets
from vlm_probe.analysis.sets import find_sets
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.ranges import SEED, Range, check_ranges, ranged, whole
from vlm_probe.stimuli.tasks import UnknownTask, get_task

if TYPE_CHECKING:
    from vlm_probe.analysis.source_target import Transfer


@dataclass(frozen=True)
class Settings:
    """What a reader can change about a report.

    Attributes:
        seed: Of everything random (bootstrap samples).
        bound: The smallest difference between success rates that would matter, for tests of equivalence.
        alpha: Level of tests.
        resamples: Bootstrap samples.
        criterion: Success rate at which a task counts as learned.

    Raises:
        OutOfRange: If a number is outside its range.
    """

    seed: int = ranged(0, SEED)
    bound: float = ranged(0.1, Range(above=0, below=0.5))
    alpha: float = ranged(0.05, Range(above=0, below=1))
    resamples: int = ranged(500, whole(2, 1_000_000))
    criterion: float = ranged(0.6, Range(above=0, most=1))

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ReportData:
    """The trials of a report, by what they can say.

    Attributes:
        trials: Everything that was read.
        models: Trials of models on physics tasks, with one readout, in every manner.
        plain: Those of them that were asked in the plain manner, first attempts only.
        observers: Plain trials of observers, on the same tasks.
        grounding: Plain trials of models on questions about what is in the image.
        options: Plain trials whose option probabilities were logged, whatever the readout of the others.
        choices: What was left aside, and why, in sentences.
        settings: What a reader can change.
        registration: What was planned beforehand, if anything was.
    """

    trials: Trials
    models: pd.DataFrame
    plain: pd.DataFrame
    observers: pd.DataFrame
    grounding: pd.DataFrame
    options: pd.DataFrame
    choices: tuple[str, ...]
    settings: Settings
    registration: Registration | None = None

    @cached_property
    def sets(self) -> dict[str, StimulusSet]:
        """The stimulus sets that are still there, by the first digits of their hash."""
        return find_sets(self.trials)

    @cached_property
    def transfer(self) -> Transfer:
        """The contrasts of sources and targets; raises InvalidInput if nothing was trained."""
        from vlm_probe.analysis.source_target import transfer_contrasts

        settings = self.settings
        return transfer_contrasts(self.plain, self.baselines(), settings.bound, settings.alpha, settings.seed)

    def baselines(self) -> pd.DataFrame:
        """What needs no physics, by test: chance, the best constant answer, the best rule of the audit, and the best of the three, named."""
        sets: dict[str, Mapping[str, Any]] = {}
        for source in self.trials.sources:
            if source.baselines:
                sets.setdefault(source.stimuli[:12], source.baselines)
        rows = []
        tested = self.plain[[*present(self.plain, TEST), "stimuli"]].drop_duplicates()
        for test in tested.sort_values(list(tested.columns)).to_dict("records"):
            found = sets.get(str(test["stimuli"]))
            if found is None:
                continue
            rules = dict(found.get("shortcuts") or {})
            best = max(sorted(rules), key=lambda name: rules[name], default=None)
            constant = found.get("constant") or {}
            answer = None if constant.get("answer") is None else str(constant["answer"])
            named = {
                "chance": found.get("chance"),
                f"always {answer}": constant.get("score"),
                **({} if best is None else {best: rules[best]}),
            }
            known = {name: float(score) for name, score in named.items() if score is not None}
            bar = max(known, key=lambda name: known[name], default=None)
            rows.append(
                test
                | {
                    "chance": found.get("chance"),
                    "constant": constant.get("score"),
                    "constant_answer": answer,
                    "best_shortcut": None if best is None else rules[best],
                    "shortcut": best,
                    "best_baseline": None if bar is None else known[bar],
                    "baseline": bar,
                    "stimuli": str(test["stimuli"]),
                }
            )
        return pd.DataFrame(rows)


def select(trials: Trials, settings: Settings, registration: Registration | None = None) -> ReportData:
    """Sort trials by what they can say.

    Plain trials of physics tasks are what the report compares; control conditions, worked examples, further attempts and
    grounding questions have sections of their own. Where replies and option probabilities were both read, replies count, since
    they are what a user gets; a trial is never counted with both.

    Args:
        trials: Everything that was read.
        settings: What a reader can change.
        registration: What was planned beforehand, if anything was.
    """
    table = with_sets(trials.table)
    choices: list[str] = _pooled(table)
    kind = table["test_task"].map(kind_of).astype(object)
    plain = pd.Series(table.index.isin(plain_trials(table).index), index=table.index)
    observer = table["observer"] == 1
    physics = kind != "grounding"
    readouts = list(table.loc[~observer & physics, "readout"].unique())
    readout = "generate" if "generate" in readouts or not readouts else str(readouts[0])
    if len(readouts) > 1:
        aside = int((~observer & physics & (table["readout"] != readout)).sum())
        choices.append(
            f"Replies were read in some runs and option probabilities in others: success is that of the readout"
            f" “{readout}”; the other {aside} trials serve calibration only."
        )
    same = table["readout"] == readout
    models = table[~observer & physics & same]
    left = len(models) - int((~observer & physics & same & plain).sum())
    if left:
        choices.append(
            f"{left} trials in control conditions, with worked examples, or of later attempts are compared with the plain"
            " ones in a section of their own and enter no other."
        )
    seen = int((~observer & ~physics).sum())
    if seen:
        choices.append(
            f"{seen} trials of grounding questions are reported as perception, and enter no test of physics."
        )
    watched = table[observer & physics & plain]
    if len(watched):
        choices.append(f"{len(watched)} trials of observers are reference lines, and enter no model.")
    return ReportData(
        trials=trials,
        models=_tight(models),
        plain=_tight(table[~observer & physics & same & plain]),
        observers=_tight(watched),
        grounding=_tight(table[~observer & ~physics & plain]),
        options=_tight(table[~observer & physics & plain & (table["readout"] == "options")]),
        choices=tuple(choices),
        settings=settings,
        registration=registration,
    )


def _pooled(table: pd.DataFrame) -> list[str]:
    """Tests that were asked with several stimulus sets, and how far apart success on them is."""
    if "test_set" not in table:
        return []
    several = table[table["test_set"] != ""]
    found = []
    for test, own in several.groupby("test_task", observed=True):
        rates = ", ".join(f"{name} {rate:.3f}" for name, rate in own.groupby("test_set")["success"].mean().items())
        found.append(
            f"{test} was asked with several stimulus sets, which are tests of their own (mean success: {rates})."
        )
    return found


@lru_cache(maxsize=512)
def kind_of(task: str) -> str:
    """ "judgement", "action" or "grounding"; a task that is not registered (imported sets) is a judgement."""
    try:
        return get_task(task).kind
    except UnknownTask:
        return "judgement"


def _tight(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with levels that occur in them only."""
    table = table.reset_index(drop=True)
    for name in table.columns:
        if isinstance(table[name].dtype, pd.CategoricalDtype):
            table[name] = table[name].cat.remove_unused_categories()
    return table
