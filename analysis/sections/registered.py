"""The registered contrasts: what was planned before anything was trained, tested as it was planned."""

from __future__ import annotations

from vlm_probe.analysis.material import Material
from vlm_probe.analysis.registration import registered_contrasts
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.section import Section, Unanswerable, some_columns
from vlm_probe.analysis.sections.contrasts import MEANS, MODEL, SIZE, sentences

CELL = ["model", "training", "transfer", "contrast"]


def section(material: Material) -> Section:
    """The registered contrasts. Raises Unanswerable if nothing was trained."""
    registration, plain = material.registration, material.plain
    assert registration is not None
    if plain.empty or plain["transfer"].isna().all():
        raise Unanswerable("nothing that was registered has been trained and tested: `probe study run` does it")
    found = registered_contrasts(plain, registration, material.settings.alpha)
    results: dict[str, Result] = {
        "tests": some_columns(found, [*CELL, *MODEL, "n_tests", "n_runs"], found.title),
        "sizes": some_columns(
            found, [*CELL, *SIZE], "Effect sizes of the registered contrasts, and evidence for no difference"
        ),
        "run_means": some_columns(
            found,
            [*CELL, *MEANS],
            "The registered contrasts tested on means: over runs and items, and over runs on these items",
        ),
    }
    lines = [f"Registered on {registration.registered}, SHA-256 {registration.sha256[:16]}."]
    for training in dict.fromkeys(found.table["training"]):
        own = found.table[found.table["training"] == training]
        lines += [f"{training}: {line}" for line in sentences(own)]
    return Section(
        "registered",
        "Registered contrasts",
        "What was planned before anything was trained: does training help within its task, and does anything carry over?",
        tuple(lines),
        results,
    )
