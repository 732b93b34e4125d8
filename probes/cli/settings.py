"""Where options come from: command line, PROBE_* variables, --config file, [tool.probe] of pyproject.toml, preset, default.

A TOML file holds options at its top level, or in a table named after the command, which wins:

    model = "tiny"
    [stimuli.make]
    size = 336
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, Token

from vlm_probe.probes.cli.errors import UsageError, check_texts
from vlm_probe.probes.options import OUTPUT
from vlm_probe.stimuli.errors import ProbeError, did_you_mean, reading
from vlm_probe.stimuli.ranges import IMAGE_SIZE, PROCESSES

if TYPE_CHECKING:
    from vlm_probe.stimuli.output import OutputFolder


def _image_size(type_: Any, value: int) -> None:
    """Refuse a size that no image can have; 0 leaves it to the renderer."""
    if value:
        IMAGE_SIZE(type_, value)


Config = Annotated[
    Path | None, Parameter(name="--config", group=OUTPUT, help="TOML file with values for these options.")
]
Json = Annotated[
    bool, Parameter(name="--json", group=OUTPUT, negative=(), help="Print one JSON object on stdout instead of text.")
]
Overwrite = Annotated[bool, Parameter(name="--overwrite", negative=(), help="Replace a file that is there already.")]
Jobs = Annotated[
    int | None, Parameter(group=OUTPUT, validator=PROCESSES, help="Processes for stimuli and reference observers.")
]

ImageSize = Annotated[
    int, Parameter(validator=_image_size, help="Edge of the square images, pixels; 0 = 224, or 448 with `raycast`.")
]
RendererName = Annotated[
    Literal["", "engine", "raycast", "photoreal"],
    Parameter(
        help="What draws the images: `engine` (the default), `raycast` (exact edges, soft shadows, materials), or"
        " `photoreal` (path tracing, seconds per image)."
    ),
]

SETTINGS = "config.toml"
"""What a run or a training run writes into its folder: its options, from which the same command can be given again."""

Source = Callable[[App, tuple[str, ...], ArgumentCollection], None]

OTHER_VARIABLES = ("PROBE_DEBUG", "PROBE_CACHE", "PROBE_API_KEY")
"""Variables that are no options: tracebacks for every error, the folder for cached sets and reference runs, a key."""


@dataclass(frozen=True)
class Sources:
    """The sources of values next to the command line, for cyclopts, which asks them in this order.

    Attributes:
        program: The whole command line, so that an option of another command is not taken for a slip.
    """

    program: Callable[[], App]

    def __iter__(self) -> Iterator[Source]:
        return iter((self.environment, self.config_file, self.pyproject, self.preset))

    def environment(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill options from variables: PROBE_RUN_SEED for one command, PROBE_SEED for every one that has --seed.

        Args:
            app: The command's app.
            commands: Names of the command and its groups.
            arguments: Those of the command; values are added to those that have none.

        Raises:
            CycloptsError: If a variable is nearly, but not quite, called like an option.
        """
        for name, argument in _options(arguments).items():
            for variable in (_variable((*commands, name)), _variable((name,))):
                # An empty variable counts as unset, as it does for most Unix tools.
                if not argument.tokens and os.environ.get(variable):
                    check_texts({variable: os.environ[variable]})
                    argument.append(Token(keyword=variable, value=os.environ[variable], source="the environment"))
        given = [name for name in os.environ if name.startswith("PROBE_") and name not in OTHER_VARIABLES]
        if not given:
            return
        import difflib

        paths = every_option(self.program())
        known = {_variable(path) for path in paths} | {_variable(path[-1:]) for path in paths} | set(OTHER_VARIABLES)
        for name in given:
            # Only a near miss is an error: other programs may well use the prefix, too.
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8) if name not in known else []
            if close:
                raise _mistake(f"unknown variable {name}: did you mean {close[0]}?", commands)

    def config_file(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill options from the file that --config (or PROBE_CONFIG) names.

        Args:
            app: The command's app.
            commands: Names of the command and its groups.
            arguments: Those of the command; values are added to those that have none.

        Raises:
            UsageError: If the file cannot be read, or is not TOML.
            CycloptsError: If it has a key that is no option.
        """
        config = _options(arguments).get("config")
        if config is None or not config.tokens:
            return
        path = Path(config.tokens[-1].value).expanduser()
        data = _read(path)
        _fill(every_option(self.program()), commands, arguments, data, str(path), shared=False)

    def pyproject(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill options from [tool.probe] in the pyproject.toml of the working directory.

        Args:
            app: The command's app.
            commands: Names of the command and its groups.
            arguments: Those of the command; values are added to those that have none.

        Raises:
            UsageError: If the file is not TOML.
            CycloptsError: If the table has a key that is no option.
        """
        path = Path("pyproject.toml")
        if not path.is_file() or not os.access(path, os.R_OK):
            return
        tool = _read(path).get("tool", {})
        data = tool.get("probe", {}) if isinstance(tool, dict) else {}
        if data:
            paths = every_option(self.program())
            _fill(paths, commands, arguments, data, f"[tool.probe] of {path}", shared=True)

    def preset(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill options of `probe train` from its preset; the embedded model has one of its own.

        Args:
            app: The command's app.
            commands: Names of the command and its groups.
            arguments: Those of the command; values are added to those that have none.

        Raises:
            TrainingError: If there is no such preset.
        """
        if commands != ("train",):
            return
        from vlm_probe.finetune.config import read_preset
        from vlm_probe.probes.models.catalog import lookup

        options = _options(arguments)
        given = {name: options[name].tokens[-1].value for name in ("preset", "model", "method") if options[name].tokens}
        is_embedded = False
        with suppress(ProbeError):  # a model that there is not is told where it is looked for
            is_embedded = "model" in given and lookup(given["model"]).kind == "embedded"
        preset = given.get("preset", "tiny" if is_embedded else "")
        table = read_preset(preset, given.get("method", "")) if preset else {}
        _fill([], (), arguments, table, f"the preset {preset}", shared=False)


def save(folder: OutputFolder, command: str, values: dict[str, Any]) -> None:
    """Write the options of a command into its folder, as a TOML file that --config reads.

    Args:
        folder: Of its results.
        command: Of `probe`.
        values: Its options; those without a value are left out.
    """
    head = f"# Made by `probe {command}`; `probe {command} --config` with this file gives the same command again.\n"
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
    folder.write(SETTINGS, head + "".join(lines))


def listed(text: str) -> list[str]:
    """The parts of an option that takes several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. Raises UsageError if it cannot be read, or is not TOML."""
    import tomllib

    with reading(path, UsageError, "give a TOML file in UTF-8"):
        return tomllib.loads(path.read_text(encoding="utf-8"))


def _fill(
    every: list[tuple[str, ...]],
    commands: tuple[str, ...],
    arguments: ArgumentCollection,
    data: Any,
    source: str,
    *,
    shared: bool,
) -> None:
    """Fill options that have no value yet from a TOML table, the command's own table first.

    A `shared` table is read by every command, so that options of other commands are no mistakes in it.
    """

    options = {name: argument for name, argument in _options(arguments).items() if name != "config"}
    tables = {path[:depth] for path in every for depth in range(1, len(path))}
    for at, table in reversed(_levels(data, commands, source)):
        for key, value in table.items():
            name = key.replace("_", "-")
            if isinstance(value, dict) and (*at, key) in tables:
                continue
            if name in options:
                if not options[name].tokens:
                    for index, text in enumerate(_texts(value, key, source, commands)):
                        options[name].append(Token(keyword=key, value=text, source=source, index=index))
            elif not (shared and at != commands and any(path[-1] == name for path in every)):
                known = sorted({*options, *(path[-1] for path in tables if path[:-1] == at)})
                raise _mistake(f"unknown key {key!r} in {source}: {did_you_mean(name, known)}", commands)


def _levels(data: Any, commands: tuple[str, ...], source: str) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """The tables that a command reads with their places: the top level, then its group's, then its own."""
    levels = []
    for depth in range(len(commands) + 1):
        if not isinstance(data, dict):
            raise _mistake(f"{source} must be a table, not a value", commands)
        levels.append((commands[:depth], data))
        following = data.get(commands[depth]) if depth < len(commands) else None
        # `stimuli = "towers"` at the top level is the option of `run`, not the table of `probe stimuli`.
        if not isinstance(following, dict):
            break
        data = following
    return levels


def _texts(value: Any, key: str, source: str, commands: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, dict):
        raise _mistake(f"{key!r} in {source} must be a value, not a table", commands)
    for item in value if isinstance(value, list) else [value]:
        check_texts({f"{key!r} in {source}": str(item)})
        yield str(item).lower() if isinstance(item, bool) else str(item)


def _options(arguments: ArgumentCollection) -> dict[str, Any]:
    """Option name without dashes -> argument."""
    return {
        name.removeprefix("--"): argument for argument in arguments for name in argument.names if name.startswith("--")
    }


def every_option(app: App, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """(command, ..., option) for every option below an app."""
    found: list[tuple[str, ...]] = []
    if app.default_command is not None:
        found += [(*path, name) for name in _options(app.assemble_argument_collection(parse_docstring=False))]
    for name in app:
        if not name.startswith("-"):
            found += every_option(app[name], (*path, name))
    return found


def _mistake(message: str, commands: tuple[str, ...]) -> CycloptsError:
    return CycloptsError(msg=message, command_chain=commands)


def _variable(path: tuple[str, ...]) -> str:
    return "_".join(("probe", *path)).upper().replace("-", "_")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    from vlm_probe.stimuli.plain_json import dumps

    # A basic string: what JSON escapes, TOML escapes alike, except for the delete character.
    return dumps(str(value)).replace("\x7f", "\\u007f")
