"""Reading one of a list of words: where an answer begins and ends, and which sentences state one in the question's own words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_probe.stimuli.replies.cleaning import Entry, normalised, plain
from vlm_probe.stimuli.replies.words import (
    CLAUSE_MARKS,
    CONDITIONS,
    REASONS,
    Token,
    Tokens,
    Wording,
    is_dash,
    is_negation,
    texts,
    tokens_of,
    words_of,
)

if TYPE_CHECKING:
    from vlm_probe.stimuli.question import Status


def _forms(verbs: str) -> frozenset[str]:
    """Verbs with their endings: tilt, tilts, tilted, tilting; tip, tipping."""
    found: set[str] = set()
    for verb in verbs.split():
        stem, last = verb.removesuffix("e"), verb[-1]
        found |= {verb, verb + "s", verb + "es"} | {
            stem + ending for ending in ("ed", "ing", last + "ed", last + "ing")
        }
    return frozenset(found)


_KEYS = words_of(
    "direction side tilt tilts tips fall falls colour color shape gate outcome stable stability stays option"
)
"""Words in the keys of JSON objects that hold the answer."""
_BEFORE = words_of("( [ { < the a an its to toward towards on onto at in into through via by option side direction")
_AFTER = words_of("side end gate one hand - sided direction option block object ball post load plank ) ] } >")
"""Words around an answer that do not make it a sentence: "to the left side"."""
_AFTER_YES_NO = words_of(
    "it it's its the this that that's they they're there there's these those i i'm we you he she because since as due given according opinion"
    " absolutely definitely not of indeed"
)
"""Words after "no" that show it to be an answer and no determiner: "no it falls", not "no block overhangs"."""
_COORDINATES = words_of("and or yes no but not than maybe perhaps") | CONDITIONS

_DIRECTIONS = words_of("left right up down middle above below")
_ENDINGS = ("ward", "wards")
_NOT_A_SIDE = {
    "right": (
        words_of("that's that all you're exactly quite"),
        words_of("now away angle angles at next before after answer choice amount place position triangle"),
    ),
    "left": (
        words_of("nothing anything what's what none are have has had been"),
        words_of("with over behind alone out untouched unsupported hanging standing to the"),
    ),
    "up": (words_of("end ends ended adds sum sums"), words_of("to")),
}
"""Words before and after which a direction is something else."""
_DISCOURSE = words_of("let let's so okay ok now first well then i i'll we we'll")
"""Words after "Right," that show it to be no answer."""

_MOTION = _forms(
    "tilt tip fall topple collapse go move roll slope point head come turn swing pass drop rotate dip exit travel incline tumble crash sink shift"
) | words_of("fallen went gone")
_STAY = _forms("stay remain keep rest lie")
_COPULA = words_of("is be it's that's are seems appears looks seem appear look")
_DOWN = words_of("drops sinks dips descends falls fall drop sink dip down downward downwards")
_FUNCTION = words_of(
    "the a an it it's its this that is are be will would must should it'll going to toward towards on onto in into at with through i'm we think seem seems appear appears"
    " look looks like expected opinion then my"
)
_ADVERBS = words_of(
    "clearly definitely probably likely most certainly therefore thus so over down out off slightly eventually still simply overall finally immediately"
    " indeed"
)
_ANSWER_NOUNS = words_of("answer option choice colour color shape correct final one")
_SIDED_NOUNS = _ANSWER_NOUNS | words_of(
    "plank board beam seesaw balance scale scales lever tower structure stack system whole side end gate hand direction way"
)
"""What may tilt or fall to a side, or be one."""
_OBJECTS = words_of("ball block object box load post cube figure item")
_COLOURS = words_of("red green blue yellow purple orange white grey gray black brown pink")
_PREDICATES = (
    words_of("heavier heaviest weighs weigh more must certainly"),
    words_of("removed taken take away out vanish can could remove"),
)
"""What may be said of the answer to "Which is heavier?" and "Which can be removed?"."""
_STOP = words_of("and or if of from not no by for but could can might may either than neither nor")
_PREPOSITIONS = words_of("toward towards on onto in into at with through")
_AFTER_DIRECTION = words_of(
    "side end gate hand one direction - first down over immediately eventually my the answer is correct final"
)
_BEFORE_SIDE = words_of(
    "it it's its is the so direction side answer way to toward towards in opinion would be will most likely probably clearly correct"
)
_IMPERATIVES = words_of("take remove")
_SUBJECT = words_of("heavier heaviest weighs weigh removed taken vanish answer choice option")
"""What is said after the answer: "the blue one is heavier", "red is my answer"."""
_STATING = _FUNCTION | _ADVERBS | _ANSWER_NOUNS | _STAY
"""Words that may stand in any sentence that states an answer."""
_LONGEST = 40
"""Sentences with more words are not read as answers."""


class OptionReader:
    """Reads one of a list of words.

    Args:
        options: Pairs of the word and what it means.
        wording: Of the prompt.
    """

    loose = False

    def __init__(self, options: Sequence[tuple[str, str]], wording: Wording) -> None:
        self.wording = wording
        self._exact = {normalised(text).strip(): value for text, value in options}
        meanings = {tuple(token.text for token in tokens_of(plain(normalised(text)))): value for text, value in options}
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for words, value in sorted(meanings.items(), key=lambda pair: -len(pair[0])):
            self._by_first.setdefault(words[0] if words else "", []).append((words, value))
            for word in (words[0] + ending for ending in _ENDINGS if len(words) == 1 and words[0] in _DIRECTIONS):
                if (word,) not in meanings:
                    self._by_first.setdefault(word, []).append(((word,), value))
        self._polar = {words[0] for words in meanings if words in (("yes",), ("no",))}
        # Options such as "a" or "it" stand in any sentence, so that no sentence states them.
        self._stated = not any(set(words) <= _FUNCTION for words in meanings)
        self._asked = self._words_of_question(directional=any(set(words) & _DIRECTIONS for words in meanings))

    @property
    def polar(self) -> bool:
        """Whether the answers are yes and no, which mean nothing without their question."""
        return bool(self._polar)

    def exact(self, text: str) -> str | None:
        """The meaning of a text that is an option and nothing else."""
        return self._exact.get(text)

    def legal(self, said: str) -> tuple[str, Status]:
        """The meaning of an option, which is always legal."""
        return said, "ok"

    def prepared(self, tokens: list[Token]) -> list[Token]:
        """The tokens as they are."""
        return tokens

    def entries(self, entries: Sequence[Entry], answers: Sequence[Entry]) -> str | None:
        """The answer of a JSON object as text: by its key for the answer, by what the question is about, or of its only entry."""
        about = answers or [entry for entry in entries if set(entry.key.split()) & _KEYS] or entries
        return about[0].value if len(about) == 1 else None

    def mentions(self, tokens: Tokens) -> bool:
        """Whether any option is mentioned."""
        return any(self._mention(tokens, i) for i in range(len(tokens)))

    def rivals(self, said: str, tokens: Tokens) -> bool:
        """Whether another option is mentioned."""
        return any(found[0] != said for i in range(len(tokens)) if (found := self._mention(tokens, i)))

    def lists_parts(self, tokens: Tokens, i: int) -> bool:
        """Whether the parts of an answer begin at a token: words have none."""
        return False

    def opposes(self, said: str, tokens: Tokens) -> bool:
        """Whether words that mention no option deny the answer: none do."""
        return False

    def head(self, tokens: Tokens, i: int) -> tuple[str, int] | None:
        """The answer that begins at a token, with its article and noun, and the place after it."""
        for begin in range(i, min(i + 5, len(tokens))):
            found = self._mention(tokens, begin)
            if found:
                value, end = found
                if _stem(tokens[begin].text) not in _DIRECTIONS and _PREPOSITIONS.intersection(
                    texts(tokens, i, begin - i)
                ):
                    return None  # "on the red block"
                stop = min(len(tokens), end + 5)
                while end < stop and tokens[end].text in _AFTER and self._continues(tokens, end):
                    end += 1
                return value, end
            if tokens[begin].text not in _BEFORE:
                return None
        return None

    def closes(self, tokens: Tokens, i: int) -> bool:
        """Whether an answer may end before a token: at punctuation, or where a reason begins."""
        if i == len(tokens):
            return True
        token = tokens[i]
        if (
            token.text in CLAUSE_MARKS
            or token.kind == "line"
            or is_dash(tokens, i)
            or token.text in REASONS
            or token.text == "than"
        ):
            return True
        return tokens[i - 1].text in self._polar and token.text in _AFTER_YES_NO

    def states(self, tokens: Tokens, i: int) -> tuple[str, int] | None:
        """The answer that a clause states in the question's own words, and where it ends.

        Every word must be known to leave the meaning alone: one that is in none of the tables makes it no answer.
        """
        if not self._stated:
            return None
        stop = _end_of_clause(tokens, i)
        clause = tokens[i:stop]
        cut = next((k for k in range(len(clause)) if self._contrasts(clause, k)), len(clause))
        clause = clause[:cut]
        places = self._places(clause)
        if not places or cut > _LONGEST:
            return None
        last = self._mention(clause, places[-1])
        values = {found[0] for k in places if (found := self._mention(clause, k))}
        if last is None or (len(values) > 1 and not self._predicate(clause, places)):
            return None
        place = places[-1] if len(values) > 1 else places[0]
        return (last[0], stop) if self._constructed(clause, place) else None

    def _places(self, clause: Tokens) -> list[int]:
        """Where options stand in a clause; none if a word of it is in no table."""
        found, k = [], 0
        while k < len(clause):
            mention = self._mention(clause, k)
            if mention:
                found.append(k)
                k = mention[1]
            elif (
                clause[k].text in _STATING
                or clause[k].text in self._asked
                or (clause[k].text == "-" and clause[k].glued)
                or self._is_asked_number(clause, k)
            ):
                k += 1
            else:
                return []
        return found

    def _is_asked_number(self, clause: Tokens, k: int) -> bool:
        """Whether a token is the number of the thing that is asked about: block 2."""
        thing = f" {clause[k - 1].text} {clause[k].text} "
        return clause[k].kind == "number" and k > 0 and thing in f" {self.wording.prompt} "

    def _words_of_question(self, directional: bool) -> frozenset[str]:
        """The words of this question that may stand in a sentence that states its answer."""
        if not self.wording.prompt:
            return _OBJECTS | _COLOURS | (_SIDED_NOUNS | _MOTION if directional else _PREDICATES[0])
        asked = self.wording.asked - _STOP
        if directional:
            return (
                _SIDED_NOUNS
                | _MOTION
                | (asked - _PREDICATES[0] - _PREDICATES[1])
                | (words_of("of") if self._relative() else frozenset())
            )
        about = frozenset().union(
            *(group for group in _PREDICATES if group & self.wording.asked - words_of("can could more must"))
        )
        return asked | about

    def _relative(self) -> frozenset[str]:
        """Of a question on which side of something a thing is, what that something is called: "of the blue block", "below the plank"."""
        words = self.wording.prompt.split()
        if not {"is", "where", "compared"} & self.wording.asked or not {"left", "above"} & self.wording.asked:
            return frozenset()
        return frozenset(
            words[k + 2]
            for k, word in enumerate(words[:-2])
            if word in ("of", "below", "with") and words[k + 1] == "the" and words[k + 2] in self.wording.asked
        )

    def _constructed(self, clause: Tokens, place: int) -> bool:
        """Whether the option stands where an answer stands: after the verb, or as the side that goes down."""
        words = texts(clause, 0, len(clause))
        if any(is_negation(t) and not self._mention(clause, k) for k, t in enumerate(clause)):
            return False
        before, after = words[:place], words[place + 1 :]
        if _stem(words[place]) not in _DIRECTIONS:
            said_of_it = set(before) & (_COPULA | _STAY | _IMPERATIVES) or set(after) & _SUBJECT
            return bool(said_of_it) and not set(before) & _PREPOSITIONS
        moves = [k for k, word in enumerate(before) if word in _MOTION]
        if moves:
            return (
                set(before[moves[-1] + 1 :]) <= _FUNCTION | _ADVERBS | _SIDED_NOUNS and set(after) <= _AFTER_DIRECTION
            )
        if after[:1] in (["side"], ["end"]) and set(before) <= words_of("the its so that"):
            return bool(set(after) & _DOWN)
        related = self._relative()
        if related and set(before) & _COPULA:
            told = " ".join(after).partition("of the ")[2].split()
            return not set(before) & related and (not told or told[0] in related)
        if "it" in before and not set(before) & (_COPULA | {"will", "would"}):
            return False  # it left
        return "on" not in before and set(before) <= _BEFORE_SIDE and set(after) <= _AFTER_DIRECTION

    def _predicate(self, clause: Tokens, places: list[int]) -> bool:
        """Whether the last option is what is said of things that others describe: "the block on the blue block is red"."""
        *others, last = places
        found = self._mention(clause, last)
        described = all(clause[k + 1].text in _OBJECTS for k in others)
        copula = last > 1 and clause[last - 1].text == "is" and clause[last - 2].text in _OBJECTS | {"it", "one"}
        return (
            described
            and copula
            and found is not None
            and found[1] == len(clause)
            and clause[last].text not in _DIRECTIONS
        )

    def _contrasts(self, clause: Tokens, k: int) -> bool:
        """Whether "than" or "not" at a token names what the answer is not: "left, not the right side"."""
        if clause[k].text != "not" or k == 0:
            return clause[k].text == "than"
        after, before = range(k + 1, min(k + 4, len(clause))), range(max(0, k - 2), k)
        return any(self._mention(clause, i) for i in after) and any(self._mention(clause, i) for i in before)

    def _continues(self, tokens: Tokens, i: int) -> bool:
        """Whether a noun or bracket at a token belongs to the answer before it."""
        return (tokens[i].text != "-" or tokens[i].glued) and not self._mention(tokens, i)

    def _mention(self, tokens: Tokens, i: int) -> tuple[str, int] | None:
        """The option that stands at a token, and the place after it; None if there is none, or it is used otherwise ("no block")."""
        for words, value in self._by_first.get(tokens[i].text, ()):
            end = i + len(words)
            if tuple(texts(tokens, i, len(words))) == words and not self._otherwise(tokens, i, end):
                return value, end
        return None

    def _otherwise(self, tokens: Tokens, i: int, end: int) -> bool:
        """Whether a word is used in another sense: "no block", "right now", "that's right"."""
        word = tokens[i].text
        after = tokens[end] if end < len(tokens) else None
        if word in self._polar:
            return word == "no" and after is not None and _determines(after)
        if word not in _NOT_A_SIDE:
            return False
        if (
            word == "right"
            and after is not None
            and after.text == ","
            and _DISCOURSE.intersection(texts(tokens, end + 1, 1))
        ):
            return True
        befores, afters = _NOT_A_SIDE[word]
        return (i > 0 and tokens[i - 1].text in befores) or (after is not None and after.text in afters)


def _determines(after: Token) -> bool:
    """Whether "no" before a token is a determiner."""
    if after.kind != "word":
        return after.text == "-" and after.glued
    return not (after.text in _AFTER_YES_NO or after.text in REASONS or after.text in _COORDINATES)


def _stem(word: str) -> str:
    return word.removesuffix("s").removesuffix("ward")


def _end_of_clause(tokens: Tokens, i: int) -> int:
    """Where the clause that begins at a token ends."""
    for k in range(i + 1, len(tokens)):
        if (
            tokens[k].text in CLAUSE_MARKS
            or tokens[k].kind == "line"
            or is_dash(tokens, k)
            or tokens[k].text in REASONS
        ):
            return k
    return len(tokens)
