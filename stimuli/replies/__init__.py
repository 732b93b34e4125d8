"""Reading replies: what a model said becomes one legal answer, or nothing. One strict rule for evaluation and reward, in stages:

1. `cleaning`: typography, the first turn, thoughts out, answer tags, boxes, JSON objects, markup.
2. `words`: tokens, and the units of the reply: its sentences, and what follows a label ("Answer:").
3. `options`, `numbers`: what each unit says by itself.
4. Here: which units count, and whether they agree.

`docs/replies.md` has the rules with examples. Nothing is guessed: a word that is in no table makes its sentence no answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from vlm_probe.stimuli.replies import cleaning
from vlm_probe.stimuli.replies.cleaning import Entry, Unfinished
from vlm_probe.stimuli.replies.words import (
    ALTERNATIVES,
    CLAUSE_MARKS,
    CONDITIONS,
    CUES,
    FILLERS,
    REASONS,
    RETRACTIONS,
    Answer,
    Status,
    Token,
    Tokens,
    Unit,
    Wording,
    is_dash,
    is_negation,
    skip,
    starts_clause,
    texts,
    tokens_of,
    units_of,
    words_of,
)

VERSION = 2
"""Of the rules. Every run records it; it grows with every change by which any reply is read differently."""

Said = Hashable
"""What a reply says, legal or not: the value of an option, or numbers."""


class Reader(Protocol):
    """What reading needs to know about the legal answers."""

    wording: Wording
    loose: bool
    """Whether an answer at the beginning of a clause counts whatever follows it, as a further number does."""

    @property
    def polar(self) -> bool:
        """Whether the answers are yes and no, which mean nothing without their question."""

    def exact(self, text: str) -> Said | None:
        """What a text that is an answer and nothing else says."""

    def legal(self, said: Any) -> tuple[Answer | None, Status]:
        """The answer, if it is a legal one."""

    def prepared(self, tokens: list[Token]) -> list[Token]:
        """The tokens, with answers that span lines put on one."""

    def entries(self, entries: Sequence[Entry], answers: Sequence[Entry]) -> str | None:
        """The answer of a JSON object as text, from its keys for an answer if it has any; None if it holds none, or several."""

    def mentions(self, tokens: Tokens) -> bool:
        """Whether anything like an answer is mentioned."""

    def rivals(self, said: Any, tokens: Tokens) -> bool:
        """Whether anything like another answer is mentioned."""

    def lists_parts(self, tokens: Tokens, i: int) -> bool:
        """Whether the parts of an answer begin at a token."""

    def opposes(self, said: Any, tokens: Tokens) -> bool:
        """Whether words that state no answer deny one."""

    def head(self, tokens: Tokens, i: int) -> tuple[Said, int] | None:
        """The answer that begins at a token, and the place after it."""

    def closes(self, tokens: Tokens, i: int) -> bool:
        """Whether an answer may end before a token."""

    def states(self, tokens: Tokens, i: int) -> tuple[Said, int] | None:
        """The answer that a clause states, and where that statement ends."""


class Outcome(NamedTuple):
    """What a part of a reply says; nothing, and why, unless the status is "ok"."""

    said: Said | None
    status: Status


NOTHING, AMBIGUOUS = Outcome(None, "no_answer"), Outcome(None, "ambiguous")
_ANSWER_KEYS = words_of(
    "answer answers result response prediction output value choice verdict conclusion decision label"
)
_INSTRUCTING = words_of(
    "answer respond reply choose pick select options choices question instruction instructions please output give format"
)
_CIRCUMSTANCES = words_of("looking from in judging according by at on under to")
_REASONS_FIRST = words_of("because since as given considering based when after once with")
_STARTERS = ALTERNATIVES | words_of("and but then even rather opinion probably")
_WEAKENING = words_of("be so too not wrong it is")
_SUPPOSING = words_of("suppose supposing assume assuming imagine if")
_SHORT = 6
"""A question of so few words about the answer itself is a doubt."""
_MANY_CLAUSES = 60
"""A sentence with more clauses than this is no answer: every clause is compared with the answer."""


def read(reply: str, reader: Reader) -> tuple[Answer | None, Status]:
    """The answer that a reply states, and "ok"; or None, and why it states none.

    Args:
        reply: Any text.
        reader: Of the legal answers.
    """
    outcome = _of_reply(reply, reader)
    return reader.legal(outcome.said) if outcome.status == "ok" else (None, outcome.status)


def read_bare(text: str, reader: Reader) -> tuple[Answer | None, Status]:
    """The answer that a text is, with nothing around it: a cell of a table.

    Args:
        text: The cell.
        reader: Of the legal answers.
    """
    tokens = reader.prepared(tokens_of(cleaning.plain(cleaning.normalised(text))))
    head = reader.head(tokens, 0) if tokens else None
    if head is None or any(token.text != "." for token in tokens[head[1] :]):
        return None, "no_answer"
    return reader.legal(head[0])


def _of_reply(reply: str, reader: Reader) -> Outcome:
    said = cleaning.said(cleaning.normalised(reply))
    if said is None:
        return Outcome(None, "unfinished")
    if not said.strip():
        return Outcome(None, "empty")
    try:
        blocks, text = cleaning.blocks(said)
        outcomes = {_of_text(block, reader) for block in blocks} if blocks else {_of_text(text, reader)}
    except Unfinished:
        return Outcome(None, "unfinished")
    return outcomes.pop() if len(outcomes) == 1 else AMBIGUOUS


def _of_text(text: str, reader: Reader) -> Outcome:
    """What a text without thoughts and answer tags says: its boxes and JSON objects, else its words. All that count must agree."""
    boxes, text = cleaning.boxes(text)
    objects, text = cleaning.objects(text)
    found = [outcome for entries in objects if (outcome := _of_object(entries, reader)) is not None]
    if boxes:
        found.append(_of_boxes(boxes, reader))
    words = _of_words(text, reader)
    if not found:
        return words if words.status != "no_answer" else _of_bold(text, reader) or words
    return _agreed([*found, words] if words.status in ("ok", "ambiguous") else found)


def _agreed(outcomes: Sequence[Outcome]) -> Outcome:
    """What several outcomes say in common."""
    different = set(outcomes)
    return different.pop() if len(different) == 1 else AMBIGUOUS


def _of_boxes(boxes: Sequence[str], reader: Reader) -> Outcome:
    r"""What boxes say: the same each, or a pair one after the other (`\boxed{3}, \boxed{30}`)."""
    each = _agreed([_of_words(box, reader) for box in dict.fromkeys(boxes)])
    return each if each.status == "ok" or len(boxes) != 2 else _of_words(", ".join(boxes), reader)


def _of_object(entries: Sequence[Entry], reader: Reader) -> Outcome | None:
    """What a JSON object says by its key for the answer, or by the keys that the question is about; None if it has neither."""
    answers = [entry for entry in entries if entry.key.split()[-1] in _ANSWER_KEYS]
    text = reader.entries(entries, answers)
    if text is None:
        return NOTHING if answers else None
    outcome = _of_words(text, reader)
    return outcome if answers or outcome.status != "no_answer" else None


def _of_bold(text: str, reader: Reader) -> Outcome | None:
    """What bold words say that are a clause of their own, if nothing before them in their sentence takes it back."""
    if reader.loose:
        return None  # numbers are bold for many reasons
    found: set[Said] = set()
    for span in cleaning.bold(text):
        tokens = tokens_of(cleaning.plain(span.text))
        head = reader.head(tokens, 0) if tokens else None
        if head is None or any(token.text not in (".", ",", ":") for token in tokens[head[1] :]):
            continue
        before, after = tokens_of(cleaning.plain(span.before)), tokens_of(span.after)
        doubted = any(is_negation(t) or t.text in CONDITIONS | ALTERNATIVES | RETRACTIONS for t in before)
        apart = (not before or before[-1].text in CLAUSE_MARKS) and (not after or after[0].kind in ("mark", "line"))
        if doubted or reader.mentions(before) or not apart:
            return None
        found.add(head[0])
    return Outcome(found.pop(), "ok") if len(found) == 1 else None


@dataclass(slots=True)
class Fact:
    """What one unit of a reply says by itself.

    Attributes:
        unit: The unit.
        outcome: What it says, or why that is nothing although it is called the answer; None if it is no answer.
        whole: Whether it is the answer and nothing else.
        concluded: Whether it is a sentence of its own that states the answer, or follows a word such as "so".
        weak: Whether a colon follows the answer, as in a table of both sides.
        mentions: Whether anything like an answer stands in it.
        retracts: Whether it takes back what was said before.
        doubts: Whether it offers a further answer.
    """

    unit: Unit
    outcome: Outcome | None = None
    whole: bool = False
    concluded: bool = False
    weak: bool = False
    mentions: bool = False
    retracts: bool = False
    doubts: bool = False


def _of_words(text: str, reader: Reader) -> Outcome:
    """What plain words say."""
    tokens = reader.prepared(tokens_of(cleaning.plain(text)))
    units = [unit for unit in units_of(tokens) if not _is_quoted(unit, reader.wording)]
    begun = 0
    while begun < len(units) and (units[begun].question or not _says_anything(units[begun], reader)):
        begun += 1
    for before, unit in pairwise(units):
        unit.hypothetical |= before.tokens[0].text in _SUPPOSING
        unit.hypothetical |= not unit.labelled and _is_other_question(before, reader)
    outcome = _decided([_fact(unit, reader) for unit in units[begun:]], reader)
    asked = {head[0] for unit in units[:begun] if (head := reader.head(unit.tokens, 0)) and head[1] == len(unit.tokens)}
    return AMBIGUOUS if outcome.status == "ok" and asked - {outcome.said} else outcome  # 5? 6.


def _says_anything(unit: Unit, reader: Reader) -> bool:
    """Whether a unit is more than "Sure!" or the number of a list."""
    listed = len(unit.tokens) == 1 and unit.tokens[0].kind == "number" and not reader.mentions(unit.tokens)
    return not listed and any(token.text not in FILLERS and token.kind != "mark" for token in unit.tokens)


def _is_other_question(unit: Unit, reader: Reader) -> bool:
    """Whether a reply asks itself something else than it was asked ("Will it fall? No."): its yes answers that."""
    if not unit.question or not reader.polar:
        return False
    if reader.mentions(unit.tokens):  # "Is the answer no? Yes.", but not "Yes or no?"
        return reader.head(unit.tokens, 0) is None and not any(token.text == "or" for token in unit.tokens)
    asked = reader.wording.asked
    return not {token.text for token in unit.tokens if token.kind == "word"} <= asked | words_of(
        "this that the it tower"
    )


def _is_quoted(unit: Unit, wording: Wording) -> bool:
    """Whether a unit repeats the prompt, or the instruction in it."""
    words = texts(unit.tokens, 0, len(unit.tokens))
    if tuple(words) in wording.sentences:
        return True
    if words[0] not in _INSTRUCTING and not {"answer", "with"} <= set(words):
        return False
    joined = " ".join(words)
    return "whole number" in joined or ("one word" in joined and "or" in words)


def _fact(unit: Unit, reader: Reader) -> Fact:
    """What a unit says by itself."""
    tokens = unit.tokens
    fact = Fact(unit, mentions=reader.mentions(tokens), retracts=_takes_back(tokens, reader))
    begun = max(skip(tokens, 0, _STARTERS), 4)  # "it could also be 6"
    fact.doubts = fact.mentions and not unit.question and any(token.text in ALTERNATIVES for token in tokens[:begun])
    if unit.question or unit.hypothetical or not fact.mentions:
        return fact
    answer = _answer(tokens, reader)
    if answer is not None:
        fact.outcome, fact.whole, fact.concluded, fact.weak = answer
    elif unit.labelled:
        fact.outcome = NOTHING
    return fact


def _takes_back(tokens: Tokens, reader: Reader) -> bool:
    """Whether a clause begins with a word of retraction, such as "wait", or "no, 6"."""
    if tokens[0].text == "no" and not reader.mentions(tokens[:2]) and texts(tokens, 1, 1) in ([], [","]):
        return True
    return any(
        token.text in RETRACTIONS and (starts_clause(tokens, i) or tokens[i - 1].text in ("but", "no", "oh", "and"))
        for i, token in enumerate(tokens)
    )


class Finding(NamedTuple):
    """An answer within a unit, and what `Fact` says of it."""

    outcome: Outcome
    whole: bool
    concluded: bool
    weak: bool


def _answer(tokens: Tokens, reader: Reader) -> Finding | None:
    """What a unit answers: at its beginning, after its last "so", or after a circumstance ("Based on the image, ...")."""
    found = _answer_at(tokens, skip(tokens, 0, FILLERS), reader)
    if found is not None:
        return found
    cue = next((i for i in range(len(tokens) - 1, 0, -1) if _is_cue(tokens, i, reader)), 0)
    if cue:
        doubted = any(token.text in CONDITIONS for token in tokens[:cue])
        return None if doubted else _answer_at(tokens, skip(tokens, cue, FILLERS), reader)
    return _after_circumstance(tokens, reader)


def _is_cue(tokens: Tokens, i: int, reader: Reader) -> bool:
    """Whether a conclusion stands after a token: "so", but not "so that", nor the arrow of "5 -> 6"."""
    text = tokens[i].text
    if text not in CUES or texts(tokens, i + 1, 1) in (["that"], ["far"], ["much"], ["many"]):
        return False
    return text not in ("->", "=>") or not reader.loose or reader.head(tokens, 0) is None


def _after_circumstance(tokens: Tokens, reader: Reader) -> Finding | None:
    """What a unit answers after the first or the last comma of a circumstance or a reason that comes first."""
    reason = tokens[0].text in _REASONS_FIRST
    if not reason and tokens[0].text not in _CIRCUMSTANCES:
        return None
    commas = [i for i, token in enumerate(tokens) if token.text == ","]
    # After the last one of several, a number may be the last of a list.
    for comma in dict.fromkeys(commas[:1] if reader.loose else (*commas[:1], *commas[-1:])):
        before = tokens[:comma]
        if comma != commas[0] and reader.mentions(tokens[commas[0] : comma]):
            return None
        # A list ("from the top: red, green") has answers before its last one; a reason may well have.
        if any(token.text in CONDITIONS for token in before) or (not reason and reader.mentions(before)):
            return None
        found = _answer_at(tokens, skip(tokens, comma + 1, FILLERS), reader)
        if found is not None:
            return found
    return None


def _answer_at(tokens: Tokens, i: int, reader: Reader) -> Finding | None:
    """The answer that stands at a token, with what follows it in the unit."""
    if i >= len(tokens):
        return None
    found = reader.head(tokens, i)
    concluded = any(token.text in CUES or token.text == "opinion" for token in tokens[:i])
    if found is None or not reader.closes(tokens, found[1]):
        found, concluded = reader.states(tokens, i), True
        if found is None or not reader.closes(tokens, found[1]):
            return None
    said, end = found
    whole = all(token.text in CLAUSE_MARKS or token.text == "-" for token in tokens[end:])
    weak = texts(tokens, end, 1) == [":"] and not whole
    return Finding(_with_rest(said, tokens, end, reader), whole, concluded, weak)


def _with_rest(said: Said, tokens: Tokens, i: int, reader: Reader) -> Outcome:
    """What an answer amounts to with what follows it in its sentence: a reason leaves it alone, a condition or another answer does not."""
    if texts(tokens, skip(tokens, i, (",",)), 1) in (["when"], ["once"]):
        return NOTHING  # a condition
    reason = parts = fresh = marked = False
    clauses = 0
    while i < len(tokens):
        text = tokens[i].text
        if text in REASONS or text in CLAUSE_MARKS or tokens[i].kind == "line" or is_dash(tokens, i):
            reason |= text in REASONS
            parts |= reader.lists_parts(tokens, i)
            marked = text in CLAUSE_MARKS
            fresh, i = True, i + 1
            continue
        if text in CONDITIONS and not reason:
            return NOTHING
        begun = skip(tokens, i, _STARTERS)
        offers = any(token.text in ALTERNATIVES for token in tokens[i:begun])
        if (fresh and not parts) or (offers and not reason):
            clauses += 1
            compared = not reason or offers or (marked and not reader.loose)
            if clauses > _MANY_CLAUSES:
                return NOTHING
            undone = _undone_by(said, tokens, i, begun, reason, compared, reader)
            if undone is not None:
                return undone
        fresh, i = False, max(begun, i + 1)
    return Outcome(said, "ok")


def _undone_by(
    said: Said, tokens: Tokens, i: int, begun: int, reason: bool, compared: bool, reader: Reader
) -> Outcome | None:
    """What an answer amounts to because of a clause after it; None if that clause leaves it alone."""
    offers = any(token.text in ALTERNATIVES for token in tokens[i:begun])
    begun = skip(tokens, begun, FILLERS)
    if offers and all(token.text in _WEAKENING for token in tokens[begun:]):
        return NOTHING  # left, could be
    if begun >= len(tokens):
        return None
    clause = _clause(tokens, begun)
    if not reason:
        if tokens[i].text in RETRACTIONS:
            return AMBIGUOUS
        joined = tokens[i].text == "and" or reader.polar
        if (joined and reader.rivals(said, clause)) or reader.opposes(said, clause):
            return NOTHING
    head = reader.head(tokens, begun) if compared else None
    if head is not None and head[0] != said and (offers or reader.loose or reader.closes(tokens, head[1])):
        return AMBIGUOUS
    stated = reader.states(tokens, begun)
    return AMBIGUOUS if stated is not None and stated[0] != said else None


def _clause(tokens: Tokens, i: int) -> Tokens:
    """The tokens from one on, up to the end of its clause."""
    end = next(
        (k for k in range(i, len(tokens)) if tokens[k].text in CLAUSE_MARKS or tokens[k].text in REASONS), len(tokens)
    )
    return tokens[i:end]


def _decided(facts: list[Fact], reader: Reader) -> Outcome:
    """What the units say together: those that count must agree, and nothing after them may take it back."""
    last_mention = max((i for i, fact in enumerate(facts) if fact.mentions), default=-1)
    claims = [i for i, fact in enumerate(facts) if fact.outcome is not None and _counts(i, facts, last_mention, reader)]
    if len({fact.outcome for fact in facts if fact.weak}) > 1:  # a table, "left: 4 kg, right: 2 kg"
        facts = [replace(fact, outcome=None) if fact.weak else fact for fact in facts]
        claims = [i for i in claims if facts[i].outcome is not None]
    if not claims:
        return AMBIGUOUS if last_mention > 0 and _clashes(facts[last_mention], facts[:last_mention]) else NOTHING
    outcome = facts[claims[0]].outcome
    assert outcome is not None
    if any(facts[i].outcome != outcome for i in claims):
        return AMBIGUOUS
    if outcome.status == "ok" and any(_undoes(i, fact, outcome, claims, facts, reader) for i, fact in enumerate(facts)):
        return AMBIGUOUS
    return outcome


def _counts(i: int, facts: list[Fact], last_mention: int, reader: Reader) -> bool:
    """Whether a unit's answer is the reply's: it is called the answer, begins or ends the reply, or is a line of its own."""
    fact = facts[i]
    listed = len(fact.unit.tokens) == 1 and fact.unit.tokens[0].kind == "number"  # 1. The block ...
    alone = fact.whole and (fact.unit.line or (fact.unit.begins and not listed))
    if fact.unit.labelled or i == 0 or alone:
        return True
    if i != last_mention or fact.outcome is None:
        return False
    # A bare word at the end of a line in which another answer stands may belong to that: "It seems left. Right."
    before = (other.unit for other in facts[:i] if other.unit.row == fact.unit.row)
    return fact.concluded or not any(reader.rivals(fact.outcome.said, unit.tokens) for unit in before)


def _clashes(fact: Fact, before: list[Fact]) -> bool:
    """Whether another answer stands before one in the same line: "yes... no"."""
    others = {other.outcome for other in before if other.unit.row == fact.unit.row}
    return fact.outcome is not None and bool(others - {None, fact.outcome})


def _undoes(i: int, fact: Fact, outcome: Outcome, claims: list[int], facts: list[Fact], reader: Reader) -> bool:
    """Whether a unit takes back, doubts or contradicts what the claims say."""
    if not fact.mentions and reader.opposes(outcome.said, fact.unit.tokens):
        return True
    if {"depends", "depend"} & set(texts(fact.unit.tokens, 0, 3)):
        return True
    asks = fact.mentions and fact.unit.question
    if asks and len(fact.unit.tokens) > _SHORT:
        asks = reader.rivals(outcome.said, fact.unit.tokens)  # "Shall I explain why it tilts to the left?"
    doubts = fact.doubts and reader.rivals(outcome.said, fact.unit.tokens)
    if i > claims[-1] and (fact.retracts or doubts or asks):
        return True
    if fact.outcome is None:
        # A line of nothing but numbers that are no answer: 3, 30, and then 5.
        named = any(token.kind == "word" and len(token.text) > 1 for token in fact.unit.tokens)
        bare = reader.loose and fact.mentions and not named
        return bare and i > claims[0] and (fact.unit.line or fact.unit.row == facts[claims[0]].unit.row)
    if fact.outcome == outcome:
        return False
    # Before the answer, others are the way to it, unless they are as plain: "yes... no".
    return i > claims[0] or (fact.whole and fact.unit.row == facts[claims[0]].unit.row)
