"""The words of replies: tables of what each kind of word does, tokens, and the units into which a reply falls."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


def words_of(text: str) -> frozenset[str]:
    """The words of a table, given as one text."""
    return frozenset(text.split())


_PHRASES = (
    (
        "wait",
        r"hold on|on second thoughts?|on reflection|let me (?:re|double|check|correct)[\w -]*|scratch that|strike that|my mistake"
        r"|i take that back|i mean|or rather|come to think of it|no,? wait|i was wrong|i made a mistake",
    ),
    (
        "therefore",
        r"as a result|in conclusion|to conclude|in summary|to summari[sz]e|(?:this|that|which) (?:means|implies|suggests)(?: that)?"
        r"|meaning(?: that)?|it follows that|(?:we|i)(?: can)? conclude(?: that)?|for (?:this|that|these) reasons?",
    ),
    ("if", r"as long as|so long as|in case|provided(?: that)?|providing|on condition"),
    ("than", r"rather than|instead of|as opposed to|and not|but not"),
    ("because", r"due to|owing to|thanks to|given that|seeing that|now that"),
    (
        "opinion",
        r"in my (?:opinion|view|judge?ment|estimation),?|(?:that|it)(?:'s| is) an? (?=yes\b|no\b)|i(?:'d| would| will|'ll)? (?:think|believe|say|guess"
        r"|predict|expect|estimate|go with|choose|pick|select|answer|vote)(?: that)?(?: it(?:'s| is| would be| will be))?",
    ),
    ("or", r"and ?/ ?or|versus|vs"),
    ("perhaps", r"give or take|more or less|or so|for (?:example|instance)|such as|let's say|e\. ?g(?:\.|\b)"),
    (",", r"i\. ?e(?:\.|\b)|that is to say|namely|in other words"),
    ("answer", r"in (?:one|a single) word"),
    ("alright", r"all right"),
    ("about", r"(?:approx|ca)\.(?=\s)"),
    ("δx", r"delta x"),
    ("δy", r"delta y"),
    (
        "",
        r"as follows|(?:(?:as )?(?:seen|viewed|shown) )?(?:of|in|from) (?:the|this) (?:given |provided )?(?:picture|image|photo|scene|screen|figure|viewer)",
    ),
)
"""Phrases that do what one word does, or nothing, and that word."""
_PHRASE = re.compile(r"\b(?:" + "|".join(f"({pattern})" for _, pattern in _PHRASES) + r")(?![\w'])")

CUES = words_of("so therefore thus hence consequently accordingly overall conclusion -> =>")
"""Words after which a conclusion stands."""
FILLERS = CUES | words_of(
    "sure well okay ok certainly definitely clearly probably likely most indeed obviously simply then opinion actually alright yeah slightly absolutely oh hmm oops sorry ah um clear obvious"
    " finally ultimately only"
)
"""Words before an answer that change nothing about it."""
REASONS = words_of(
    "because since as considering while whereas although though despite even so therefore thus hence which where making causing with for given"
    " when after once based"
)
"""Words after which a reason, a purpose or a circumstance stands, in which other answers may be mentioned."""
CONDITIONS = words_of("if unless otherwise depends depend depending else whether assuming suppose supposing until")
"""Words that make an answer hold in some case only."""
RETRACTIONS = words_of("wait hmm hmmm hm oops sorry correction rather apologies actually edit corrected scratch")
"""Words at the beginning of a clause that take back what was said before."""
ALTERNATIVES = words_of("or maybe perhaps possibly alternatively either also could might may plus minus")
"""Words that offer a further answer, or weaken the one that was given."""
_NEGATIONS = words_of(
    "not never neither nor cannot hardly unlikely incorrect wrong false impossible unable no without dont doesnt isnt wont cant rule ruled"
)

_LABELS = words_of(
    "answer answers conclusion verdict prediction response output decision solution result choice reply guess judgment judgement estimate ans"
)
"""What an answer is called, before a colon, "is", a dash or the end of a line."""
_NAMES = words_of("direction side colour color shape gate tilt outcome option")
"""What the answer of a question about words may be called, before a colon at the beginning of a sentence."""
_LABELLING = _LABELS | _NAMES | {"a"}
_BEFORE_LABEL = words_of(
    "the my our your its here here's this final correct best right short direct simple single one word so thus therefore hence and then opinion that most likely"
    " overall as a answer brief full complete whole numeric numerical is"
)
_LABEL_LINKS = words_of(": = -> =>")
_BE = words_of("is are be was")

CLAUSE_MARKS = words_of(", : ; ( ) [ ] – -> =>")
"""Punctuation between the clauses of a sentence."""
_TERMINATORS = words_of(". ! ? ;")
_ABBREVIATIONS = words_of("approx ca etc fig eq")

_TOKEN = re.compile(
    r"([\s\"']*)"
    r"([0-9]+(?:\.[0-9]+)*|\.[0-9]+(?:\.[0-9]+)*"
    r"|[\u3040-\u30ff\u4e00-\u9fff]+|[^\W\d\u3040-\u30ff\u4e00-\u9fff]+(?:'[^\W\d_]+)*"
    r"|\.\.+|[-=]{1,3}>|[^\s\"'])"
)
_GAPS = "\"'" + "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_LINE, _FIGURES = "\n", frozenset("0123456789")


class Token(NamedTuple):
    """A word, a number, a mark of punctuation or the end of a line; `glued` if no white space stands before it."""

    text: str
    kind: str
    glued: bool


Tokens = Sequence[Token]


def tokens_of(text: str) -> list[Token]:
    """The tokens of a normalised text.

    Args:
        text: In lower case, without markup.
    """
    text = _PHRASE.sub(lambda phrase: _PHRASES[(phrase.lastindex or 1) - 1][0], text)
    found: list[Token] = []
    # Without what no token follows, over which the search would go again from each of its characters.
    for gap, token in _TOKEN.findall(text.rstrip(_GAPS)):
        if _LINE in gap and found:
            found.append(Token(_LINE, "line", False))
        first = token[0]
        kind = "word" if first.isalpha() else "number" if first in _FIGURES or token[1:2] in _FIGURES else "mark"
        found.append(Token(token, kind, not gap))
    return found


def texts(tokens: Tokens, i: int, n: int) -> list[str]:
    """The texts of up to `n` tokens from the `i`-th on."""
    return [token.text for token in tokens[i : i + n]]


def is_negation(token: Token) -> bool:
    """Whether a word denies something."""
    return token.text in _NEGATIONS or token.text.endswith("n't")


def is_dash(tokens: Tokens, i: int) -> bool:
    """Whether a token is a dash between clauses, and no hyphen or minus."""
    last = i + 1 == len(tokens)
    if tokens[i].text == "–":
        return last or tokens[i + 1].kind != "number" or not tokens[i + 1].glued
    return tokens[i].text == "-" and not tokens[i].glued and (last or not tokens[i + 1].glued)


def starts_clause(tokens: Tokens, i: int) -> bool:
    """Whether a clause begins at a token."""
    return i == 0 or tokens[i - 1].text in CLAUSE_MARKS or tokens[i - 1].kind == "line" or is_dash(tokens, i - 1)


def skip(tokens: Tokens, i: int, words: Container[str]) -> int:
    """The first place from the `i`-th token on at which none of the words stands, nor a comma or colon after one."""
    begun = i
    while i < len(tokens):
        pause = tokens[i].text in (",", ":") and (i > begun or (i == 0 and not any(t.glued for t in tokens[1:2])))
        if not pause and tokens[i].text not in words:
            break
        i += 1
    return i


@dataclass(slots=True)
class Unit:
    """A sentence, or what follows a label such as "Answer:".

    Attributes:
        tokens: Without the punctuation that ends it.
        labelled: Whether it is called the answer.
        question: Whether it ends with a question mark.
        hypothetical: Whether it holds under a supposition only, or answers another question than the one asked.
        begins: Whether it begins a line.
        line: Whether it is a line of its own.
        row: The number of the line that it ends in.
    """

    tokens: list[Token]
    labelled: bool = False
    question: bool = False
    hypothetical: bool = False
    begins: bool = False
    line: bool = False
    row: int = 0


class _Splitter:
    """Puts together the units of a reply, token by token."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.found: list[Unit] = []
        self.start = self.row = 0
        self.labelled = self.pending = self.hypothetical = False
        self.at_line_start = True

    def split(self) -> list[Unit]:
        """The units, in order; empty ones are left out."""
        i = 0
        while i < len(self.tokens):
            label = _label(self.tokens, i, self.start) if self.tokens[i].text in _LABELLING else None
            if label is not None:
                i = self._open(*label)
                continue
            if self.tokens[i].kind == "line" or _ends_sentence(self.tokens, i):
                self._close(i)
            i += 1
        self._close(len(self.tokens))
        return self.found

    def _open(self, begin: int, end: int) -> int:
        """Begin a labelled unit; what stands before its label is a unit of its own."""
        before = self.tokens[self.start : begin]
        conditional = any(token.text in CONDITIONS for token in before)
        # "I don't think the answer is yes", but not "nothing overhangs, so the answer is yes".
        apart = not before or before[-1].text in CLAUSE_MARKS or self.tokens[begin].text in CUES
        doubted = self.hypothetical or conditional or (not apart and any(map(is_negation, before)))
        self._add(begin, question=False, line=False)
        if self.tokens[end - 1].text in _LABEL_LINKS and texts(self.tokens, end, 1) == ["-"]:
            self.tokens[end] = Token("−", "mark", self.tokens[end].glued)  # no bullet after a colon
        self.start, self.labelled, self.hypothetical = end, True, doubted
        return end

    def _close(self, i: int) -> None:
        """End a sentence at a token."""
        mark = self.tokens[i] if i < len(self.tokens) else None
        ends_line = (
            mark is None or mark.kind == "line" or i + 1 == len(self.tokens) or self.tokens[i + 1].kind == "line"
        )
        self._add(i, question=mark is not None and mark.text == "?", line=ends_line)
        self.start, self.labelled, self.hypothetical = i + 1, False, False
        if mark is not None and mark.kind == "line":
            self.at_line_start, self.row = True, self.row + 1

    def _add(self, stop: int, question: bool, line: bool) -> None:
        inner = self.tokens[self.start : stop]
        if inner:
            labelled = self.labelled or self.pending
            self.found.append(
                Unit(
                    inner,
                    labelled,
                    question,
                    self.hypothetical,
                    self.at_line_start,
                    line and self.at_line_start,
                    self.row,
                )
            )
        self.pending = not inner and (self.labelled or self.pending)
        self.at_line_start &= not inner and not self.labelled


def units_of(tokens: list[Token]) -> list[Unit]:
    """The units of a reply, in order.

    Args:
        tokens: Of the whole reply.
    """
    return _Splitter(tokens).split()


def _ends_sentence(tokens: Tokens, i: int) -> bool:
    text = tokens[i].text
    if text not in _TERMINATORS:
        return text.startswith("..")
    if text != "." or i == 0 or i + 1 == len(tokens) or tokens[i + 1].kind == "line":
        return True
    before, after = tokens[i - 1], tokens[i + 1]
    if before.text in ("no", "nr") and (after.kind == "number" or after.text == "of"):
        return False  # No. 3, no. of blocks
    initial = before.kind == "word" and len(before.text) == 1 and after.glued
    return before.text not in _ABBREVIATIONS and not initial


def _label(tokens: Tokens, i: int, start: int) -> tuple[int, int] | None:
    """Where the words of a label at a token begin and where what it labels begins; None if it is no label."""
    word = tokens[i].text
    if word in _NAMES or word == "a":
        return (i, i + 2) if i == start and texts(tokens, i + 1, 1) == [":"] else None
    begin = i
    while begin > start and i - begin < 8 and tokens[begin - 1].text in _BEFORE_LABEL:
        begin -= 1
    if begin > start and tokens[begin - 1].text not in CLAUSE_MARKS | REASONS | {"and", "but", "-"}:
        return None
    end = _link(tokens, _aside(tokens, i + 1))
    return None if end is None else (begin, end + (texts(tokens, end, 1) == ["that"]))


def _aside(tokens: Tokens, j: int) -> int:
    """The place after what may stand between a label and its link: (yes or no), to the question, in one word."""
    words = texts(tokens, j, 10)
    if words[:1] == ["("] and ")" in words:
        return j + words.index(")") + 1
    if words[:1] == ["to"] and "question" in words[:4]:
        return j + words.index("question") + 1
    if words[:1] in (["in"], ["with"], ["as"]):
        for last in ("word", "number", "answer"):
            if last in words[:5]:
                return j + words.index(last) + 1
    return j


def _link(tokens: Tokens, j: int) -> int | None:
    """The place after the link between a label and what it labels: a colon, "is", "would be", a dash, the end of a line."""
    if j >= len(tokens):
        return None
    if tokens[j].text in ("would", "will", "should", "must") and texts(tokens, j + 1, 1) == ["be"]:
        j += 1
    if tokens[j].text in _BE or tokens[j].text in _LABEL_LINKS:
        j += 1
        while j < len(tokens) and tokens[j].text in _LABEL_LINKS:
            j += 1
        return j
    if tokens[j].kind == "line":
        return j
    if is_dash(tokens, j):
        # A dash before a number may be its minus, so that it is left to the reader of numbers, which refuses it.
        return j if j + 1 < len(tokens) and tokens[j + 1].kind == "number" else j + 1
    return None


class Wording(NamedTuple):
    """What the prompt contributes to reading a reply.

    Attributes:
        prompt: In plain words, with single spaces; empty if it is not known.
        asked: The words of its questions, or of all of it if it has none; empty if it is not known.
        sentences: Its sentences, which a reply may quote.
        right: 1 if right is positive, -1 if left is, 0 if it says neither.
    """

    prompt: str
    asked: frozenset[str]
    sentences: frozenset[tuple[str, ...]]
    right: int


UNKNOWN = Wording("", frozenset(), frozenset(), 1)
"""Of a prompt that is not known: right is positive, as in all tasks of the toolkit."""
_RIGHT_POSITIVE = re.compile(
    r"\bright\b[^.;,]{0,40}\bpositive|positive\b[^.;,]{0,40}\bright|\bleft\b[^.;,]{0,40}\bnegative"
)
_LEFT_POSITIVE = re.compile(
    r"\bleft\b[^.;,]{0,40}\bpositive|positive\b[^.;,]{0,40}\bleft|\bright\b[^.;,]{0,40}\bnegative"
)


@lru_cache(maxsize=1024)
def wording_of(prompt: str) -> Wording:
    """What a prompt contributes to reading replies to it.

    Args:
        prompt: As it was asked, in normalised characters.
    """
    if not prompt:
        return UNKNOWN
    units = units_of(tokens_of(prompt))
    asked = [unit for unit in units if unit.question] or units
    right = bool(_RIGHT_POSITIVE.search(prompt)) - bool(_LEFT_POSITIVE.search(prompt))
    return Wording(
        " ".join(token.text for unit in units for token in unit.tokens),
        frozenset(token.text for unit in asked for token in unit.tokens if token.kind == "word"),
        frozenset(tuple(token.text for token in unit.tokens) for unit in units if len(unit.tokens) > 2),
        right,
    )
