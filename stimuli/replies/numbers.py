"""Reading one or two whole numbers: quantities with sign, unit and direction, and sentences that state one as the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlm_probe.stimuli.replies.cleaning import Entry
from vlm_probe.stimuli.replies.words import CLAUSE_MARKS, REASONS, Token, Tokens, Wording, is_dash, texts, words_of

if TYPE_CHECKING:
    from vlm_probe.stimuli.question import Status

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
    " thirty forty fifty sixty seventy eighty ninety"
)
_NUMBER_WORDS = dict(zip(_WORDS.split(), (*range(20), *range(20, 100, 10)), strict=True))
_NOT_AFTER_WORDS = words_of("hundred thousand million dozen half quarter quarters third thirds point of")
_BEFORE_ONE = words_of("is are only exactly just see count : = -> minus negative about by")
"""Words after which "one" is a number."""
_DETERMINERS = words_of(
    "the this that which each every any no another other first last red green blue yellow purple orange grey gray"
)
"""Words after which "one" is a pronoun."""

_UNITS = {
    "cm": words_of("cm cms centimeter centimeters centimetre centimetres"),
    "degrees": words_of("degrees degree deg degs °"),
}
"""The units of the toolkit's questions, and how they are written."""
_FOREIGN = words_of(
    "mm millimeter millimeters millimetre millimetres m meter meters metre metres km dm inch inches in ft feet foot px pixel pixels % percent rad radian"
    " radians kg g n units unit s seconds minute minutes widths cm² cm2 th st nd rd"
).union(*_UNITS.values())
"""Units, of which one that was not asked for makes a number no answer."""
_DIRECTIONS = {
    word + ending: (axis, sign)
    for word, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, 1), ("down", 1, -1))
    for ending in ("", "ward", "wards")
}
_AXES = dict.fromkeys(words_of("x δx dx horizontal horizontally"), 0) | dict.fromkeys(
    words_of("y δy dy vertical vertically height"), 1
)
_ADVERBS = {"horizontally": 0, "sideways": 0, "vertically": 1}
_PURPOSES = words_of(
    "keep make let get stabilize stabilise balance prevent ensure restore avoid have be hold support achieve reach stop"
)
"""Verbs after which "to" names a purpose, and no end of a range."""
_LIMITS = words_of("up at min max minimum maximum least most between from over under above below ± < > ≤ ≥ ~")
"""Words that make the number after them a limit, or the one before."""
_SIGNS = {"minus": -1, "negative": -1, "plus": 1, "positive": 1}
_APPROXIMATELY = words_of("about approximately approx around roughly ~ all exactly only just precisely by of total at")

_COUNTED = words_of(
    "block blocks object objects ball balls box boxes thing things item items cube cubes piece pieces cylinder cylinders wedge wedges post posts load loads"
    " coloured colored red green blue yellow purple orange different distinct visible shape shapes shaped bodies step steps time"
)
"""What is counted, where the question asks for a bare number."""
_AFTER_COUNT = _COUNTED | words_of(
    "in on the a floor ground table tower stack plank total will would touch touches touching fall falls end ends up lie lies rest rests are is be land lands"
    " left visible shown here it directly altogether present standing resting lying come down contact with after collapse have fallen remain remains of them"
    " stacked top each other"
)
_BEFORE_COUNT = _COUNTED | words_of(
    "there are is i can see count counted counting we exactly only just a total of the picture image shows contains consists has have in scene tower number"
    " will touch touching floor on ground be end up after equals : = that this altogether overall all would and you me them seem seems to"
)
_COUNT_VERBS = words_of("are is be see count counted shows contains consists has have : =")
_VERBS = words_of(
    "move shift push slide place put position turn rotate aim shoot launch lift displace set nudge adjust pull fire"
)
_PARTICIPLES = words_of(
    "moved shifted pushed slid placed put positioned turned rotated aimed shot launched lifted displaced set nudged adjusted pulled fired stand be go"
)
_MODALS = words_of("must should needs need would will i'd i'll has have")
_QUANTITIES = words_of(
    "shift move movement displacement distance offset position angle direction translation place placement number count total amount value x δx dx δ θ theta"
    " degrees rotation estimate"
)
_KEYS = _QUANTITIES | _AXES.keys() | _DIRECTIONS.keys() | {"blocks", "objects", "balls"}
"""Words in the keys of JSON objects that hold the answer."""
_BEFORE_QUANTITY = _QUANTITIES | words_of(
    "the a an required needed necessary optimal correct ideal best right final total launch shot horizontal sideways of for top block post counterweight ball"
    " my our is are be must should would will : = so its this it opinion equals by that at red green blue yellow purple orange box object middle centre center"
    " new in approximately whole blocks balls objects coloured cm centimeters centimetres delta estimated ~"
)
_LINKS = words_of("is : = be equals of at by")
_BEFORE_MOVE = (
    _VERBS
    | _PARTICIPLES
    | _MODALS
    | words_of(
        "the top block post counterweight box object ball cylinder shot load red green blue yellow purple orange black it this that to be by at an a angle distance"
        " of i i'd i'll we you please only its middle centre center so opinion then upper its in order misplaced"
    )
)
_BEFORE_VERB = words_of("so opinion please then only to in order")
_BEFORE_DIRECTION = _BEFORE_MOVE | words_of("direction side : = towards toward")
_FROM_HERE = words_of("its the current original present initial position place location")
_LONGEST = 30
"""A number that comes later in its sentence is not what the sentence states."""
_LARGEST = 1e12

Numbers = tuple[float, ...]


class Quantity(NamedTuple):
    """A number with its sign; the axis that it is said to be along, or None; and the place after it."""

    value: float
    axis: int | None
    end: int


class NumberReader:
    """Reads one or two numbers.

    Args:
        ranges: One (low, high) or two of them.
        unit: The unit of the question; empty for bare numbers.
        wording: Of the prompt.
    """

    loose = True
    polar = False
    _SIMPLE = re.compile(r"[+-]?[0-9]{1,6}")

    def __init__(self, ranges: Sequence[tuple[int, int]], unit: str, wording: Wording) -> None:
        self.wording = wording
        self._ranges, self._count = ranges, len(ranges)
        named = unit.lower()
        known = next((names for names in _UNITS.values() if named in names), None)
        self._units = known or frozenset({named, named + "s"} if named else set())
        self._foreign = _FOREIGN - self._units - (frozenset() if named else {"in"})
        self._counting = not named

    def exact(self, text: str) -> Numbers | None:
        """The number of a text that is one number and nothing else."""
        return (float(text),) if self._count == 1 and self._SIMPLE.fullmatch(text) else None

    def legal(self, said: Numbers) -> tuple[int | tuple[int, int] | None, Status]:
        """The whole number or numbers, if each is within its range."""
        if any(abs(number) > _LARGEST for number in said):
            return None, "out_of_range"
        if any(number != int(number) for number in said):
            return None, "not_whole"
        values = tuple(int(number) for number in said)
        if any(not low <= value <= high for value, (low, high) in zip(values, self._ranges, strict=True)):
            return None, "out_of_range"
        return (values[0], "ok") if len(values) == 1 else ((values[0], values[1]), "ok")

    def prepared(self, tokens: list[Token]) -> list[Token]:
        """The tokens, with the two numbers of a pair in one sentence where they stand on two lines."""
        if self._count == 1:
            return tokens
        found: list[Token] = []
        numbers = 0  # of the line so far: one that holds a pair is not joined with the next
        for i, token in enumerate(tokens):
            joins = numbers == 1 and self._between_numbers(tokens, i)
            numbers = 0 if token.kind == "line" and not joins else numbers + self.mentions([token])
            if not joins:
                found.append(token)
            elif found[-1].text != ",":
                found.append(Token(",", "mark", False))
        return found

    def entries(self, entries: Sequence[Entry], answers: Sequence[Entry]) -> str | None:
        """The answer of a JSON object as text, with its unit and the direction that another entry names."""
        about = answers or [
            entry for entry in entries if set(entry.key.split()) & _KEYS and entry.value not in _DIRECTIONS
        ]
        if len(about) not in {1, 1 if answers else self._count}:
            return None
        unit = next((entry.value for entry in entries if entry.key in ("unit", "units")), "")
        directions = [entry.value for entry in entries if entry.value in _DIRECTIONS]
        return " ".join((", ".join(map(self._entry, about)), unit, *directions))

    def mentions(self, tokens: Tokens) -> bool:
        """Whether any number is mentioned."""
        return any(
            token.kind == "number"
            or (token.text in _NUMBER_WORDS and (token.text != "one" or i == 0 or tokens[i - 1].text in _BEFORE_ONE))
            for i, token in enumerate(tokens)
        )

    def rivals(self, said: Numbers, tokens: Tokens) -> bool:
        """Whether another number may be mentioned."""
        return self.mentions(tokens)

    def lists_parts(self, tokens: Tokens, i: int) -> bool:
        """Whether the parts of an answer begin at a token: "three blocks: one red, two green"."""
        if not self._counting or tokens[i].text not in (":", "("):
            return False
        first = _number(tokens, i + 1)
        return first is not None and bool(_COUNTED.intersection(texts(tokens, first[1], 1)))

    def opposes(self, said: Numbers, tokens: Tokens) -> bool:
        """Whether words deny a number: by a direction against its sign ("Move it left. 5 cm"), or by a limit ("5, up to 7")."""
        if self.mentions(tokens):
            return self._counting or bool(_LIMITS.intersection(texts(tokens, 0, 1)))
        if tokens and all(token.text in _LIMITS - {"up", "over", "under"} for token in tokens):
            return True  # 5, at least
        if not all(token.text in _BEFORE_DIRECTION or token.text in _DIRECTIONS for token in tokens):
            return False
        named = [_DIRECTIONS[token.text] for token in tokens if token.text in _DIRECTIONS]
        return any(axis < self._count and said[axis] * self._along(axis, sign) < 0 for axis, sign in named)

    def head(self, tokens: Tokens, i: int) -> tuple[Numbers, int] | None:
        """The number or the pair that begins at a token, and the place after it."""
        begin = i
        while i < min(len(tokens), begin + 3) and tokens[i].text in ("(", "[", "{"):
            i += 1
        brackets = i - begin
        found = self._single(tokens, i) if self._count == 1 else self._pair(tokens, i)
        if found is None:
            return None
        numbers, end = found
        for _ in range(brackets):
            if end >= len(tokens) or tokens[end].text not in (")", "]", "}"):
                return None
            end += 1
        if brackets and end < len(tokens) and tokens[end].text in self._units:
            end += 1
        return numbers, end

    def closes(self, tokens: Tokens, i: int) -> bool:
        """Whether an answer may end before a token: at punctuation that no further number follows, or where a reason begins."""
        if i == len(tokens):
            return True
        text = tokens[i].text
        if text in ("-", "–") and (i + 1 == len(tokens) or tokens[i + 1].kind != "word"):
            return False
        if (text in (",", ":", "(") or is_dash(tokens, i)) and self._continues(tokens, i + 1):
            return self.lists_parts(tokens, i) or (text == "(" and self._foreign_aside(tokens, i))
        if text == "to":
            return bool(_PURPOSES.intersection(texts(tokens, i + 1, 1)))
        if text in ("is", "are") and texts(tokens, i + 1, 1) in (["needed"], ["required"], ["necessary"]):
            return True
        closing = text in CLAUSE_MARKS - {"->", "=>", "["} or text in REASONS or text == "than"
        return closing or tokens[i].kind == "line" or is_dash(tokens, i)

    def states(self, tokens: Tokens, i: int) -> tuple[Numbers, int] | None:
        """The answer that a sentence from a token on states, and where that statement ends.

        Something must make the number an answer (the shift is, move it by, there are), and every word must be in one of the tables.
        """
        for k in range(i, min(len(tokens), i + _LONGEST)):
            found = self.head(tokens, k) if self._may_begin(tokens, k) else None
            if found is None:
                if tokens[k].kind in ("number", "line"):
                    return None
                continue
            numbers, end = found
            before = texts(tokens, i, k - i)
            after = self._end_of_count(tokens, end) if self._counting else end
            if (
                "floor" in self.wording.asked
                and set(before) & _COUNT_VERBS - {":", "="}
                and "floor" not in texts(tokens, i, after - i)
            ):
                return None  # how many there are is not how many touch the floor
            if not before and (not self._counting or (after == end and end < len(tokens))):
                return None
            if before and before[-1] in _COUNTED and tokens[end - 1].kind == "number" and not self._counting:
                return None  # move block 5
            directed = tokens[end - 1].text in _DIRECTIONS
            return (numbers, after) if self._leads(before, directed) else None
        return None

    def _leads(self, before: list[str], directed: bool) -> bool:
        """Whether the words before a number make it the answer."""
        while before and before[-1] in _APPROXIMATELY:
            before = before[:-1]
        words = set(before)
        if self._counting and words <= _BEFORE_COUNT and (not words or words & _COUNT_VERBS):
            return True
        if before in (["it", "is"], ["it's"]):
            return not directed  # "it is 5 cm to the left" describes
        linked = before and (before[-1] in _LINKS or (before[-1] in _QUANTITIES and len(before[-1]) > 2))
        if linked and words <= _BEFORE_QUANTITY and words & _QUANTITIES:
            return True
        if "is" in words and words & self.wording.asked & {"shifted", "displaced"} and words - {"is"} <= _BEFORE_MOVE:
            return True
        if not words or not words <= _BEFORE_MOVE:
            return False
        if words & _MODALS and words & (_PARTICIPLES | _VERBS):
            return not words & {"has", "have"} or "to" in words  # "has to be moved", but not "has moved"
        return next((word for word in before if word not in _BEFORE_VERB), "") in _VERBS

    def _end_of_count(self, tokens: Tokens, i: int) -> int:
        """The place after what is said of the things counted."""
        while i < len(tokens) and tokens[i].text in _AFTER_COUNT:
            i += 1
        return i

    def _between_numbers(self, tokens: Tokens, i: int) -> bool:
        """Whether a line's end or a semicolon stands between two quantities."""
        if i == 0 or i + 1 == len(tokens) or (tokens[i].kind != "line" and tokens[i].text != ";"):
            return False
        before = tokens[i - 1 - (tokens[i - 1].text == "," and i > 1)]
        ends = (
            before.kind == "number"
            or before.text in self._units
            or before.text in _DIRECTIONS
            or before.text in _NUMBER_WORDS
        )
        return ends and self._may_begin(tokens, i + 1)

    def _entry(self, entry: Entry) -> str:
        """An entry as text: its axis, its value, and the unit that its key ends with."""
        words = entry.key.split()
        axis = next((f"{word}: " for word in words if word in _AXES or word in _DIRECTIONS), "")
        bare = entry.value.lstrip("+-").replace(".", "").isdigit()
        unit = words[-1] if len(words) > 1 and bare and words[-1] in self._foreign | self._units else ""
        return f"{axis}{entry.value} {unit}"

    def _may_begin(self, tokens: Tokens, k: int) -> bool:
        """Whether a quantity may begin at a token."""
        text = tokens[k].text
        if text in ("to", "towards", "toward"):
            return any(word in _DIRECTIONS for word in texts(tokens, k + 1, 2))
        marks = text in ("-", "−", "–", "+", "~", "(", "[") or text in _SIGNS
        return marks or tokens[k].kind == "number" or text in _NUMBER_WORDS or text in _DIRECTIONS or text in _AXES

    def _continues(self, tokens: Tokens, i: int) -> bool:
        """Whether a further number begins at a token: 5, 6; x = 5, y = 3; 8 - 5."""
        i = _skip_approximately(tokens, i)
        _, place = _sign(tokens, i)
        return (
            _number(tokens, place) is not None
            or self._quantity(tokens, i) is not None
            or texts(tokens, i + 1, 1) == ["="]
        )

    def _foreign_aside(self, tokens: Tokens, i: int) -> bool:
        """Whether brackets hold the same length in other words: (2 inches), (5 cm to the left)."""
        end = next((k for k in range(i, min(len(tokens), i + 8)) if tokens[k].text == ")"), 0)
        return end > 0 and (tokens[end - 1].text in self._foreign or self.head(tokens, i + 1) is not None)

    def _single(self, tokens: Tokens, i: int) -> tuple[Numbers, int] | None:
        found = self._quantity(tokens, i)
        if found is None or found.axis == 1:
            return None
        if found.axis is None and texts(tokens, found.end, 1) == [","]:
            place = self._direction(tokens, found.end + 1)
            if place is not None and (place.end == len(tokens) or tokens[place.end].text in CLAUSE_MARKS):
                directed = self._directed(found, place, signed=False)
                return None if directed is None else ((directed.value,), directed.end)
        return (found.value,), found.end

    def _pair(self, tokens: Tokens, i: int) -> tuple[Numbers, int] | None:
        first = self._quantity(tokens, i)
        if first is None:
            return None
        k = first.end
        k += texts(tokens, k, 1) in ([","], [";"], ["\n"])
        while texts(tokens, k, 1) in (["and"], ["&"], ["then"]):
            k += 1
        second = self._quantity(tokens, k)
        if second is None or (k == first.end and (tokens[k].glued or tokens[k].text in _SIGNS)):
            return None
        axes = (first.axis, second.axis)
        if axes in ((None, None), (0, 1), (None, 1), (0, None)):
            return (first.value, second.value), second.end
        return ((second.value, first.value), second.end) if axes == (1, 0) else None

    def _quantity(self, tokens: Tokens, i: int) -> Quantity | None:
        """A number with everything that belongs to it: `about -5 cm`, `left by 5`, `5 cm to the left`, `x = -5`."""
        i = _skip_approximately(tokens, i)
        axis, sign, i = self._leading_axis(tokens, i)
        own, i = _sign(tokens, _skip_approximately(tokens, i))
        number = _number(tokens, i)
        end = self._end_of_unit(tokens, number[1]) if number is not None else None
        if number is None or end is None:
            return None
        value = -number[0] if own < 0 else number[0]
        if axis is not None:
            return self._on_axis(value, axis, sign, signed=own != 0, end=end)
        adverb = tokens[end].text if end < len(tokens) else ""
        if adverb in _ADVERBS:
            return Quantity(value, _ADVERBS[adverb], end + 1)
        place = self._direction(tokens, end)
        if place is None:
            return Quantity(value, None, end)
        return self._directed(Quantity(value, None, end), place, signed=own != 0)

    def _on_axis(self, value: float, axis: int, sign: int, signed: bool, end: int) -> Quantity | None:
        """A number after its axis: `left: 5` and `left: -5` are the same place, and `right: -5` names the axis."""
        if sign and not self._along(axis, sign):
            return None
        if self._along(axis, sign) < 0:
            return Quantity(-abs(value), axis, end) if value <= 0 or not signed else None
        return Quantity(value, axis, end)

    def _directed(self, found: Quantity, place: Direction, signed: bool) -> Quantity | None:
        """A number before its direction; None if its sign denies it."""
        sign = self._along(place.axis, place.sign)
        if sign == 0 or (sign > 0 and found.value < 0) or (sign < 0 and found.value > 0 and signed):
            return None
        return Quantity(sign * abs(found.value), place.axis, place.end)

    def _along(self, axis: int, sign: int) -> int:
        """The sign of a direction in this question; 0 if it is not known."""
        return sign * self.wording.right if axis == 0 else sign

    def _leading_axis(self, tokens: Tokens, i: int) -> tuple[int | None, int, int]:
        """The axis that is named before a number, its direction's sign (0 for an axis as such), and the place after it."""
        k = i + (texts(tokens, i, 1) in (["to"], ["towards"], ["toward"]))
        k += texts(tokens, k, 1) == ["the"]
        word = tokens[k].text if k < len(tokens) else ""
        if word in _AXES and k == i:
            axis, sign = _AXES[word], 0
        elif word in _DIRECTIONS:
            axis, sign = _DIRECTIONS[word]
        else:
            return None, 0, i
        k += 1
        links = k
        while k < len(tokens) and tokens[k].text in (":", "=", "by", "is"):
            k += 1
        if k == links and len(word) == 1:
            return None, 0, i  # x4
        return axis, sign, k

    def _direction(self, tokens: Tokens, i: int) -> Direction | None:
        """The direction that follows a number: to the left, leftwards, (right), left of what the prompt counts from."""
        bracket = texts(tokens, i, 1) == ["("]
        k = i + bracket
        k += texts(tokens, k, 1)[:1] in (["to"], ["towards"], ["toward"], ["on"])
        k += texts(tokens, k, 1) == ["the"]
        if k >= len(tokens) or tokens[k].text not in _DIRECTIONS:
            return None
        axis, sign = _DIRECTIONS[tokens[k].text]
        k += 1
        k += texts(tokens, k, 1)[:1] in (["side"], ["direction"])
        if bracket:
            return Direction(axis, sign, k + 1) if texts(tokens, k, 1) == [")"] else None
        return Direction(axis, sign, self._reference(tokens, k))

    def _reference(self, tokens: Tokens, i: int) -> int:
        """The place after "of its current position", or after "of" what the prompt counts from; else the same place."""
        if texts(tokens, i, 1) not in (["of"], ["from"]):
            return i
        k = i + 1
        while k < len(tokens) and tokens[k].text in _FROM_HERE:
            k += 1
        if k > i + 2:
            return k
        for k in range(min(len(tokens), i + 9), i + 2, -1):
            if f" from {' '.join(texts(tokens, i + 1, k - i - 1))} " in f"{self.wording.prompt} ":
                return k
        return i

    def _end_of_unit(self, tokens: Tokens, i: int) -> int | None:
        """The place after the unit at a token, or the same place; None if it is another unit, or the number goes on."""
        if i >= len(tokens):
            return i
        token = tokens[i]
        if token.text in self._units:
            i += 1
            goes_on = i < len(tokens) and tokens[i].glued and (tokens[i].kind != "mark" or tokens[i].text in "^/²")
            return None if goes_on else i
        if token.text in self._foreign or (token.glued and token.kind != "mark"):
            return None
        if (
            texts(tokens, i, 1) == ["("]
            and set(texts(tokens, i + 1, 1)) & self._units
            and texts(tokens, i + 2, 1) == [")"]
        ):
            return i + 3
        if self._counting:
            begun = i
            while i < min(len(tokens), begun + 4) and tokens[i].text in _COUNTED:
                i += 1
            i = self._reference(tokens, i)
        return i


class Direction(NamedTuple):
    """Axis and sign of a direction, and the place after it."""

    axis: int
    sign: int
    end: int


def _skip_approximately(tokens: Tokens, i: int) -> int:
    """The place after "about", "exactly", "a total of"."""
    i += texts(tokens, i, 2) == ["a", "total"]
    while i < len(tokens) and tokens[i].text in _APPROXIMATELY:
        i += 1
    return i


def _sign(tokens: Tokens, i: int) -> tuple[int, int]:
    """The sign before a number (0 without one), and the place after it."""
    if i + 1 >= len(tokens):
        return 0, i
    token, before = tokens[i], tokens[i - 1].text if i else ""
    if token.text in _SIGNS:
        return _SIGNS[token.text], i + 1
    if token.text == "−":
        return -1, i + 1
    if token.text in ("-", "–", "+"):
        # A hyphen that touches what is before it is no minus; one that does not touch its number may be a bullet.
        apart = i == 0 or not token.glued or before in CLAUSE_MARKS or before in ("=", "~")
        near = tokens[i + 1].glued or before in ("=", ":", "(", "[", ",")
        if apart and near:
            return (1 if token.text == "+" else -1), i + 1
    return 0, i


def _number(tokens: Tokens, i: int) -> tuple[float, int] | None:
    """The number at a token, in figures or words, and the place after it."""
    if i >= len(tokens):
        return None
    text = tokens[i].text
    if tokens[i].kind == "number":
        if text.count(".") > 1 or text.startswith("."):
            return None
        return float(text) if len(text) <= 12 else float("inf"), i + 1
    if text not in _NUMBER_WORDS or (text == "one" and i > 0 and tokens[i - 1].text in _DETERMINERS):
        return None
    value, i = _NUMBER_WORDS[text], i + 1
    if value >= 20:
        k = i + (texts(tokens, i, 1) == ["-"])
        unit = _NUMBER_WORDS.get(tokens[k].text, 0) if k < len(tokens) else 0
        if 0 < unit < 10:
            value, i = value + unit, k + 1
    following = texts(tokens, i, 3)
    if following[:1] and (
        following[0] in _NUMBER_WORDS or (following[0] in _NOT_AFTER_WORDS and (following[0] != "of" or value == 1))
    ):
        return None
    if following[:1] == ["and"] and set(following[1:]) & _NOT_AFTER_WORDS - {"of"}:
        return None
    return float(value), i
