"""Checked reading of a YAML file: every slip is one line that names the key, and what was probably meant."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlm_probe.stimuli.errors import ProbeError, did_you_mean, is_text, reading
from vlm_probe.stimuli.ranges import AMOUNT, SEED, Range


class StudyError(ProbeError, ValueError):
    """A study cannot be read, frozen or run; the message names the key, cell or file and ends with the fix."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error; by default, the second would silently win."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """As its parent's, except for what no file name and no table takes."""
        found = super().construct_scalar(node)
        if isinstance(found, str) and (not is_text(found) or "\0" in found):
            raise yaml.constructor.ConstructorError(
                None, None, "a zero byte or half of a surrogate pair in a text", node.start_mark
            )
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As its parent's."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Mapping | list):
                continue  # the parent refuses it
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        StudyError: If it cannot be read, is no YAML, or names a key twice.
    """
    with reading(path, StudyError, "give a YAML file as `docs/study.md` describes it"):
        try:
            found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark is not None else ""
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            raise StudyError(f"{path}{where}: {problem}") from error
        return found


class Fields:
    """A mapping of a YAML file, read key by key; every reader raises StudyError, with the place, for what is not of its kind.

    Args:
        data: What stands there.
        where: Place of it, such as `paper/study.yaml: tests`.
        known: The keys that it may have.

    Raises:
        StudyError: If it is no mapping, or has another key.
    """

    def __init__(self, data: Any, where: str, known: Collection[str]) -> None:
        if not isinstance(data, Mapping):
            raise StudyError(f"{where} must be a mapping with some of the keys {', '.join(known)}, got {_shown(data)}")
        for key in data:
            if str(key) not in known:
                raise StudyError(f"{_at(where, str(key))}: unknown key; {did_you_mean(str(key), sorted(known))}")
        self.data = {str(key): value for key, value in data.items()}
        self.where = where

    def at(self, key: str) -> str:
        """The place of a key, for messages."""
        return _at(self.where, key)

    def has(self, key: str) -> bool:
        """Whether the key is there, with a value."""
        return self.data.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it stands there.

        Raises:
            StudyError: If there is none.
        """
        if not self.has(key):
            raise StudyError(f"{self.where}: {key} is missing")
        return self.data[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A text; numbers are no texts, since YAML would change how they are written.

        Args:
            key: The key.
            default: What goes where there is none; None if there must be one.
        """
        value = self.get(key) if default is None else self.data.get(key, default)
        if not isinstance(value, str):
            raise StudyError(f"{self.at(key)} must be a text, got {_shown(value)}")
        return value

    def whole(self, key: str, default: int | None = None, allowed: Range = AMOUNT) -> int:
        """A whole number.

        Args:
            key: The key.
            default: What goes where there is none; None if there must be one.
            allowed: What it may be.
        """
        value = self.get(key) if default is None else self.data.get(key, default)
        if not allowed.holds(value):
            raise StudyError(f"{self.at(key)} must be {allowed}, got {_shown(value)}")
        return int(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number between two others.

        Args:
            key: The key.
            default: What goes where there is none.
            low, high: What it must lie between.
        """
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise StudyError(f"{self.at(key)} must be a number between {low:g} and {high:g}, got {_shown(value)}")
        return float(value)

    def texts(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of texts, each once; a single one may stand without brackets.

        Args:
            key: The key.
            default: What goes where there is none; None if there must be one.
        """
        value = self.get(key) if default is None else self.data.get(key, list(default))
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise StudyError(f"{self.at(key)} must be a list of texts, such as [one, two], got {_shown(value)}")
        if not listed and (default is None or len(default)):
            raise StudyError(f"{self.at(key)} is empty: name at least one, or leave out what it belongs to")
        return _once(listed, self.at(key))

    def wholes(self, key: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of seeds, each once.

        Args:
            key: The key.
            default: What goes where there is none; None if there must be one.
        """
        value = self.get(key) if default is None else self.data.get(key, list(default))
        if not isinstance(value, list) or not all(map(SEED.holds, value)):
            raise StudyError(f"{self.at(key)} must be a list of whole numbers, such as [0, 1, 2], got {_shown(value)}")
        if not value:
            raise StudyError(f"{self.at(key)} is empty: name at least one")
        return _once(value, self.at(key))

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping with keys of your own; empty where there is none."""
        value = self.data.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise StudyError(f"{self.at(key)} must be a mapping (name: value), got {_shown(value)}")
        return {str(name): item for name, item in value.items()}


def one_of(value: str, known: Collection[str], where: str, what: str) -> str:
    """The value, if it is one of those.

    Args:
        value: What was given.
        known: What there is.
        where: Its place in the file, for the message.
        what: What such a value is called.

    Raises:
        StudyError: If it is none, with the closest ones.
    """
    if value not in known:
        raise StudyError(f"{where}: unknown {what} {value!r}; {did_you_mean(value, sorted(known))}")
    return value


def _once(values: Sequence[Any], where: str) -> tuple[Any, ...]:
    for value in values:
        if list(values).count(value) > 1:
            raise StudyError(f"{where} names {value!r} twice: leave one out")
    return tuple(values)


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def _shown(value: Any) -> str:
    # Of bounded length from the start: a few lines of YAML can stand for a text that fills the memory.
    text = "nothing" if value is None else reprlib.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
