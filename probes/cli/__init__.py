"""The command line. Importing it, and `probe --help`, costs no import of torch, a simulator, pandas or numpy.

Exit codes: 0 success, 1 failure, 2 usage, 3 finished with failed trials, 130 interrupted. Results go to stdout, logs
and progress to stderr. Every command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Group

from vlm_probe.probes.cli import settings
from vlm_probe.probes.cli.console import discard, prepare_streams
from vlm_probe.probes.cli.errors import (
    FAILURE,
    INTERRUPTED,
    SUCCESS,
    USAGE,
    as_line,
    check_texts,
    expected,
    names_nothing,
    usage_line,
)
from vlm_probe.probes.cli.errors import report as tell_error
from vlm_probe.probes.cli.help import FLAGS, show_help


def _version() -> str:
    # Imported here because it is a fifth of what `probe --help` costs.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vlm-probe")
    except PackageNotFoundError:
        return "unknown (not installed)"


EPILOGUE = (
    "Every option can also be set by a variable (PROBE_MODEL=tiny), a TOML file (--config FILE) or [tool.probe] in"
    " pyproject.toml; what comes first in this list wins, and the command line wins over all of them. `probe --install-completion`"
    " completes commands and options in the shell."
)
app: App = App(
    name="probe",
    help="Test the intuitive physics of vision-language models.",
    version_flags=(),
    help_flags=(),  # see `help.py`
    config=tuple(settings.Sources(lambda: app)),
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "Start": {
        "doctor": ("doctor:doctor", "Say what is installed, what is missing, and whether a model runs here."),
        "models": ("models:models", "List the models that have a short name."),
    },
    "Stimuli": {
        "stimuli": ("stimuli:app", "Make, list, show, check, audit, import and export stimulus sets."),
        "check": ("check:check", "Check a task of your own against the contract of all tasks."),
    },
    "Ask": {
        "run": ("run:run", "Run a model on a stimulus set; print the summary, write trials and figure."),
        "ask": ("ask:ask", "Ask a model one question about an image of your own."),
        "score": ("score:score", "Score the replies of a run again, without a model."),
        "decode": ("decode:decode", "Decode physical quantities from hidden states."),
    },
    "Train": {
        "train": ("train:train", "Train a model with LoRA: SFT, PPO, GRPO or RLOO."),
        "adapters": ("adapters:app", "List, show, verify and merge adapters."),
        "pretrain": ("pretrain:pretrain", "Pretrain the embedded model `tiny` again."),
    },
    "Analyse": {
        "analyze": ("analyze:analyze", "Analyse runs: statistics, figures, tables and a report."),
        "report": ("report:report", "Write runs as one HTML page to explore."),
        "view": ("report:view", "Show that page on this machine while runs go on."),
        "trials": ("trials:app", "Write the trials of runs as one table for R and other programs."),
        "power": ("power:power", "Simulate the power of a planned contrast."),
    },
    "Publish": {
        "study": ("study:app", "Plan, register, run and pack a whole study from one file."),
        "paper": ("paper:paper", "Build a paper from a study: figures, tables, numbers and PDF."),
    },
}
"""Group -> command -> where it is, below this package, and what it does. A command's module is imported when it is used."""
for number, (title, commands) in enumerate(COMMANDS.items()):
    group = Group(title, sort_key=number)
    for name, (place, purpose) in commands.items():
        app.command(f"vlm_probe.probes.cli.{place}", name=name, help=purpose, group=group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: What to parse instead of `sys.argv[1:]`.

    Raises:
        SystemExit: Always.
    """
    debug = os.environ.get("PROBE_DEBUG", "") not in ("", "0")
    prepare_streams()
    # Processes that a command starts must not import the user's analysis.py or random.py from the working directory.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given or set(FLAGS) & set(given):
            show_help(app, given, _purposes(), EPILOGUE)
            sys.exit(SUCCESS)
        if given == ["--version"]:
            sys.stdout.write(f"{_version()}\n")
            sys.exit(SUCCESS)
        check_texts({f"argument {number}": text for number, text in enumerate(given, 1)})
        check_texts({"the working folder": _here(), "PROBE_CACHE": os.environ.get("PROBE_CACHE", "")})
        if "--install-completion" in given:  # registered only then, because the code for it is not small
            app.register_install_completion_command(help="Install completion for the shell that this runs in.")
        code = app(
            given,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else SUCCESS)
    except CycloptsError as error:
        tell_error(usage_line(error, given, lambda: settings.every_option(app)))
        sys.exit(USAGE)
    except KeyboardInterrupt:
        tell_error("interrupted; what was finished is kept, and the same command goes on from there")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has gone; there is nobody to tell.
        discard(sys.stdout)
        discard(sys.stderr)
        sys.exit(FAILURE)
    except Exception as error:
        if debug or not expected(error):
            raise
        tell_error(as_line(error))
        try:
            sys.stdout.flush()
        except OSError:  # it was stdout that is full
            discard(sys.stdout)
        sys.exit(USAGE if names_nothing(error) else FAILURE)


def _purposes() -> dict[str, list[tuple[str, str]]]:
    """Group -> its commands and what they do."""
    return {title: [(name, purpose) for name, (_, purpose) in commands.items()] for title, commands in COMMANDS.items()}


def _here() -> str:
    """The working directory, which is part of what is written down; empty if it was removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""
