"""The sizes with which the documentation's commands are executed: as small as they can be and still do the whole thing."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_probe.probes.cli import app

ITEMS = 12
"""Items of a standard set."""

SMALL: dict[tuple[str, ...], dict[str, str]] = {
    ("run",): {"--limit": "4", "--jobs": "1"},
    ("stimuli", "make"): {"-n": "48", "--size": "64", "--jobs": "1"},
    ("stimuli", "check"): {},
    ("train",): {
        "--budget": "samples=16",
        "--items": "24",
        "--size": "64",
        "--rollout": "8",
        "--batch": "8",
        "--jobs": "1",
    },
    ("decode",): {"--permutations": "2", "--directions": "2", "--limit": "48", "--layers": "1,2", "--jobs": "1"},
    ("power",): {"--runs": "3,4", "--items": "20,30", "--simulations": "100"},
    ("report",): {"--motions": "1", "--size": "64"},
}
"""What replaces the stated sizes, or is added where none is stated."""

ALIASES = {"-n": {"-n", "--n"}}


def small(arguments: Sequence[str]) -> list[str]:
    """A command line of `probe` with the sizes that are used here."""
    commands, _, _ = app.parse_commands(list(arguments))
    sizes = SMALL.get(tuple(commands), {})
    replaced = set().union(*(ALIASES.get(option, {option}) for option in sizes))
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in replaced:
            next(words)
        else:
            kept.append(word)
    return [*kept, *(word for option in sizes.items() for word in option)]
