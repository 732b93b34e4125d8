"""Programs that are no Python packages: what each is for, and the line that installs it where it is missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """Something beside Python that a part of this project calls.

    Attributes:
        name: What a reader knows it as.
        commands: All of which it takes.
        purpose: What cannot be done without it.
        install: On Debian or Ubuntu, as root; for what no package manager of one's own gives, what to do instead.
    """

    name: str
    commands: tuple[str, ...]
    purpose: str
    install: str

    @property
    def missing(self) -> list[str]:
        """Commands that are not there."""
        return [command for command in self.commands if shutil.which(command) is None]

    @property
    def place(self) -> str:
        """Where the first of its commands is; empty if there is none."""
        return shutil.which(self.commands[0]) or ""


def programs() -> tuple[Program, ...]:
    """All of them; nothing that a run, a training or an analysis takes is among them."""
    from vlm_probe.paper import tex

    return (Program("TeX", tex.PROGRAMS, "the PDF of `probe paper`", tex.INSTALL), *OTHERS)


OTHERS = (
    Program(
        "Slurm",
        ("sbatch", "squeue", "scontrol"),
        "studies on a cluster (`probe study run --executor slurm`)",
        "give the command on a node of the cluster that has sbatch",
    ),
    Program(
        "Slurm of one node",
        ("munged", "slurmctld", "slurmd"),
        "the tests of Slurm (`make test-slow`)",
        "apt-get install slurm-wlm munge",
    ),
    Program(
        "Chromium",
        ("chromium", "chromedriver"),
        "the tests of pages (`make test-slow`)",
        "apt-get install chromium chromium-driver",
    ),
    Program(
        "R",
        ("Rscript",),
        "the comparisons with lme4 as it runs (`make test`, benchmarks)",
        "apt-get install r-cran-lme4 r-cran-lmertest r-cran-emmeans",
    ),
)
