"""A manuscript that does not fit its results is refused, with the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlm_probe.paper.build import HOME
from vlm_probe.paper.manuscript import MAIN, check, typed
from vlm_probe.paper.names import CITED
from vlm_probe.paper.numbers import NumberError, Numbers
from vlm_probe.paper.verdicts import VERDICTS, does_not_transfer, improves, no_advantage, together, verdict

BEGIN = "\\documentclass{article}\n\\begin{document}\n"


@pytest.fixture
def numbers() -> Numbers:
    made = Numbers()
    made.rate("gain", 0.256, 0.1, 0.4)
    made.verdict("gain.verdict", "higher", VERDICTS)
    made.count("runs", 3)
    return made


def every(text: str = "x", words: tuple[str, ...] = VERDICTS) -> str:
    return "".join(f"{{{word}}}{{{text}}}" for word in words)


def test_a_manuscript_that_fits_has_no_slips(numbers, tmp_path):
    text = (
        BEGIN
        + rf"It rose by \val{{gain}} \val{{gain.ci}} in \val{{runs.word}} runs. \case{{gain.verdict}}{{{every()}}}"
    )
    assert check(text, numbers, tmp_path) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("fine\nIt rose by \\val{gian}.", r"line 4: \val{gian} is no number"),
        (r"\case{loss}{{a}{b}}", r"\case{loss} is no verdict"),
        (rf"\case{{gain.verdict}}{{{every(words=VERDICTS[:3])}}}", "says nothing for equivalent, undecided"),
        (rf"\case{{gain.verdict}}{{{every()}{{better}}{{x}}}}", "has better, which it cannot be"),
        (r"\case{gain}{{a}{b}}", "gain is a number, and no verdict"),
        ("fine\nfine\nIt rose by .26.", "line 5: the number .26 is typed by hand"),
        (r"\includegraphics{generated/figures/nothing}", "there is no generated/figures/nothing"),
        (
            rf"\case{{gain.verdict}}{{{{higher}}{{\val{{gone}}}}{every(words=VERDICTS[1:])}}}",
            r"\val{gone} is no number",
        ),
    ],
)
def test_what_does_not_fit_is_named(body, said, numbers, tmp_path):
    slips = check(BEGIN + body, numbers, tmp_path)
    assert len(slips) == 1
    assert said in slips[0]


def test_texts_that_are_not_chosen_may_use_numbers_that_are_not_there(numbers, tmp_path):
    inner = r"\case{gain.verdict}{" + every(r"{\bfseries in \{braces\}}") + "}"
    others = every(r"\val{not-there} \case{nor-this}{{a}{b}}", VERDICTS[1:])
    text = r"\case{gain.verdict}{{higher}{" + inner + "}" + others + "}"
    assert check(BEGIN + text, numbers, tmp_path) == []


def test_lines_after_a_long_case_are_still_counted_rightly(numbers, tmp_path):
    words = "\n".join(f"{{{word}}}\n{{text}}" for word in VERDICTS)
    slips = check(BEGIN + f"\\case{{gain.verdict}}{{{words}}}\n\\val{{gian}}", numbers, tmp_path)
    assert slips == [f"line {2 + 1 + 2 * len(VERDICTS)}: \\val{{gian}} is no number of this study"]


def test_comments_names_and_lengths_are_no_numbers():
    text = BEGIN + "% 17\n\\label{fig2} \\citep[p.]{a2020b} \\vspace{3mm} \\includegraphics[width=0.5\\textwidth]{f1}"
    assert list(typed(text)) == []


def test_the_paper_itself_has_no_number_typed_by_hand():
    assert list(typed((HOME / MAIN).read_text(encoding="utf-8"))) == []


def test_every_citation_of_the_paper_is_in_its_bibliography():
    text = (HOME / MAIN).read_text(encoding="utf-8")
    entries = (HOME / "references.bib").read_text(encoding="utf-8")
    text += "".join(CITED.values())
    cited = {
        key.strip() for keys in re.findall(r"\\cite\w*(?:\[[^\]]*\])*\{([^{}]*)\}", text) for key in keys.split(",")
    }
    assert cited
    assert [key for key in cited if f"{{{key}," not in entries] == []


def test_numbers_are_given_once_and_written_as_the_apa_asks_for(numbers):
    assert numbers["gain"].text == "$.26$"
    assert numbers["gain.ci"].text == "$[.10, .40]$"
    assert numbers["runs.word"].text == "three"
    numbers.rate("loss", -0.031)
    assert numbers["loss"].text == "$-.03$"
    numbers.p("p", 0.0002)
    assert numbers["p"].text == "$< .001$"
    numbers.rate("undefined", float("nan"))
    assert "undefined" not in numbers
    with pytest.raises(NumberError, match="given twice"):
        numbers.rate("gain", 0.3)
    with pytest.raises(NumberError, match="not among"):
        numbers.verdict("other", "better", VERDICTS)


@pytest.mark.parametrize(
    ("difference", "p", "p_equivalence", "word"),
    [
        (0.4, 0.001, 1.0, "higher"),
        (-0.4, 0.001, 1.0, "lower"),
        (0.02, 0.01, 0.001, "trivial"),
        (0.01, 0.5, 0.01, "equivalent"),
        (0.2, 0.2, 0.7, "undecided"),
        (float("nan"), float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_verdict_follows_from_both_tests(difference, p, p_equivalence, word):
    assert verdict(difference, p, p_equivalence) == word


def test_no_transfer_is_agreed_to_only_on_evidence():
    assert does_not_transfer(["equivalent", "lower", "trivial"]) == "agrees"
    assert does_not_transfer(["equivalent", "undecided"]) == "open"
    assert does_not_transfer(["equivalent", "higher"]) == "partly"
    assert does_not_transfer(["higher", "higher"]) == "contradicts"
    assert does_not_transfer([]) == "open"
    assert improves(["higher", "higher"]) == "agrees"
    assert improves(["higher", "undecided"]) == "partly"
    assert improves(["equivalent", "lower"]) == "contradicts"
    assert improves(["undecided"]) == "open"
    assert together([]) == together(["agrees", "open"]) == "open"
    assert together(["agrees", "contradicts"]) == together(["open", "partly"]) == "partly"
    assert together(["contradicts"] * 3) == "contradicts" and together(["agrees", "agrees"]) == "agrees"
    assert [no_advantage(word) for word in VERDICTS] == ["contradicts", "agrees", "agrees", "agrees", "open"]


def test_the_macros_need_no_package_and_the_file_has_every_value(numbers):
    text = numbers.to_latex()
    assert r"\setval{gain}{$.26$}" in text
    assert "usepackage" not in text
    assert Path(HOME / MAIN).read_text(encoding="utf-8").count(r"\input{generated/numbers}") == 1
