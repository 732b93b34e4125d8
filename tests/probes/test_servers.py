"""Servers as they differ: what they refuse, how they fail inside a reply, and what their replies look like."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openai")

from tests.probes.serving import Body, Server, ask, first_token, picture_hash, pictures, usual
from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.cli import main
from vlm_probe.probes.models import Generation, ModelError, Reply, Trial, endpoint
from vlm_probe.probes.models.endpoint import is_loopback, pause, retry_after
from vlm_probe.probes.models.protocol import fault_of, positions, prompt_tokens, reply_of, words_of_error
from vlm_probe.probes.models.served import ServedModel
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet

NEUTRAL = {
    **{"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "repeat_penalty": 1},
    **{"presence_penalty": 0, "frequency_penalty": 0, "typical_p": 1, "dry_multiplier": 0, "xtc_probability": 0},
}
OPENAI = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")


def refusal(message: str, status: int = 400, **more: Any) -> tuple[int, Body, Body]:
    return status, {}, {"error": {"message": message, "type": "invalid_request_error", "param": None, **more}}


def unknown(body: Body, known: tuple[str, ...]) -> list[str]:
    return [name for name in [*NEUTRAL, "seed"] if name in body and name not in known]


def openai(number: int, body: Body) -> Any:
    """OpenAI: one unknown field at a time."""
    strange = unknown(body, OPENAI)
    return refusal(f"Unrecognized request argument supplied: {strange[0]}") if strange else None


def reasoning_openai(number: int, body: Body) -> Any:
    """OpenAI's reasoning models: no temperature but 1, no penalties, another name for the limit."""
    if "max_tokens" in body:
        return refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens")
    if body["temperature"] != 1:
        return refusal("Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported.")
    strange = unknown(body, ("temperature",))
    return refusal(f"Unsupported parameter: '{strange[0]}' is not supported.", param=strange[0]) if strange else None


def tgi(number: int, body: Body) -> Any:
    """Text Generation Inference: greedy decoding is asked for otherwise, a top_p of 1 is out of range, and 5 log-probabilities."""
    checks = {
        "`temperature` must be strictly positive": body.get("temperature", 1) <= 0,
        "`top_p` must be > 0.0 and < 1.0": body.get("top_p", 0.5) >= 1,
        "`top_n_tokens` must be >= 0 and <= 5. Given: 20": body.get("top_logprobs", 0) > 5,
    }
    for words, wrong in checks.items():
        if wrong:
            return 422, {}, {"error": f"Input validation error: {words}", "error_type": "validation"}
    return first_token({"yes": -0.5, "no": -1.5})(number, body)


def sglang(number: int, body: Body) -> Any:
    """SGLang: takes all fields, and 0 for top_k it does not."""
    if body.get("top_k") == 0:
        return 400, {}, {"object": "error", "message": "top_k must be -1 (disable) or at least 1", "code": 400}
    return None


def zero_top_k(number: int, body: Body) -> Any:
    return refusal("top_k: Input should be greater than or equal to 0") if body.get("top_k") == -1 else None


def pydantic(number: int, body: Body) -> Any:
    """Mistral and others: everything unknown at once, as a list."""
    strange = unknown(body, ("temperature", "top_p", "presence_penalty", "frequency_penalty"))
    told = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in strange
    ]
    return (422, {}, {"detail": told}) if strange else None


def both(number: int, body: Body) -> Any:
    """Anthropic: either temperature or top_p."""
    if "top_p" in body:
        return refusal("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    return None


def silent(number: int, body: Body) -> Any:
    """A gateway that does not say what it objects to."""
    return refusal("Bad Request") if {"min_p", "repetition_penalty"} & set(body) else None


def crashing(number: int, body: Body) -> Any:
    """A server that falls over what it does not know."""
    return refusal("internal error", 500) if "min_p" in body else None


def camel(number: int, body: Body) -> Any:
    if "presence_penalty" in body:
        return refusal("Argument not supported on this model: presencePenalty")
    return None


LLAMA_CPP = {"repeat_penalty", "typical_p", "dry_multiplier", "xtc_probability"}


@pytest.mark.parametrize(
    ("respond", "changed", "missing"),
    [
        (lambda number, body: None, {}, set()),
        (openai, {}, {"top_k", "min_p", "repetition_penalty", *LLAMA_CPP}),
        (tgi, {"temperature": 0.001, "top_p": 0.9999}, set()),
        (sglang, {}, set()),
        (zero_top_k, {"top_k": 0}, set()),
        (pydantic, {}, {"top_k", "min_p", "repetition_penalty", *LLAMA_CPP}),
        (both, {}, {"top_p"}),
        (silent, {}, {"min_p", "repetition_penalty"}),
        (crashing, {}, {"min_p"}),
        (camel, {}, {"presence_penalty"}),
    ],
)
def test_every_sampling_field_is_sent_that_a_server_takes(
    server: Server,
    stability: StimulusSet,
    tmp_path: Path,
    caplog: Any,
    respond: Callable[[int, Body], Any],
    changed: Body,
    missing: set[str],
) -> None:
    server.respond = respond
    report = ask(server, stability, tmp_path / "r", limit=3)
    assert report.n_errors == 0
    asked = [body for _, _, body in server.requests if picture_hash(body) in {i.image_sha256 for i in stability.items}]
    expected = {name: value for name, value in (NEUTRAL | changed).items() if name not in missing}
    for body in asked:
        assert {name: body[name] for name in NEUTRAL if name in body} == expected and body["stream"] is False
        assert ("seed" in body) == (body["temperature"] > 0)
    details = read_run(report.path)["model"]["details"]
    assert set(details["not_taken"]) - {"seed"} == missing
    told = " ".join(details["notes"])
    assert all(name in told and name in caplog.text for name in missing - LLAMA_CPP)
    assert ("asked with 0.001" in told) == ("temperature" in changed)
    assert not LLAMA_CPP & set(told.replace(",", "").split())


def test_what_a_server_takes_is_part_of_a_run(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    from vlm_probe.probes.trials import RunError

    ask(server, stability, tmp_path / "r", limit=2)
    server.respond = openai
    with pytest.raises(RunError, match="another configuration: sampling"):
        ask(server, stability, tmp_path / "r", limit=2)


def test_a_temperature_that_is_not_greedy_any_more_is_refused(
    server: Server, stability: StimulusSet, tmp_path: Path
) -> None:
    server.respond = reasoning_openai
    with pytest.raises(ModelError, match=r"refuses temperature 0 \(HTTP 400: .*\): give --temperature 1") as error:
        ask(server, stability, tmp_path / "r")
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()
    report = ask(server, stability, tmp_path / "r", temperature=1.0, limit=2)
    sent = server.requests[-1][2]
    assert report.n_errors == 0 and sent["max_completion_tokens"] == 12 and sent["temperature"] == 1
    notes = read_run(report.path)["model"]["details"]["notes"]
    assert any("takes no seed" in note for note in notes) and any("top_p" in note for note in notes)


def test_a_seed_that_is_refused_is_left_out(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    server.respond = lambda number, body: refusal("seed is not supported") if "seed" in body else None
    report = ask(server, stability, tmp_path / "r", temperature=0.7, limit=2)
    assert report.n_errors == 0 and "seed" not in server.requests[-1][2]
    assert server.requests[0][2]["temperature"] == 0.7 and "seed" in server.requests[0][2]
    assert "takes no seed" in read_run(report.path)["model"]["details"]["notes"][0]


def images_of(body: Body) -> int:
    return len(pictures(body))


@pytest.mark.parametrize(
    ("changes", "refused", "message"),
    [
        ({"max_new_tokens": 801}, lambda body: body.get("max_tokens", 0) > 800, r"does not answer for 'm'.*At most 1"),
        (
            {"examples": (0, 2)},
            lambda body: images_of(body) > 1,
            r"does not take the 3 images of one prompt.*At most 1.*--examples",
        ),
        ({"style": "think"}, lambda body: body["max_tokens"] > 500, r"does not answer for 'm'.*At most 1"),
    ],
)
def test_the_longest_request_is_tried_before_any_work(
    server: Server, changes: Body, refused: Any, message: str
) -> None:
    from vlm_probe.probes.run import RunConfig, load

    # It names the limit, and would take any number of tokens by the other name.
    words = "At most 1 may be provided; max_tokens must be at most 800"
    server.respond = lambda number, body: refusal(words) if refused(body) else None
    with pytest.raises(ModelError, match=message) as error:
        load(RunConfig("m", "s", base_url=server.url, **changes))
    assert "\n" not in str(error.value)


def test_the_run_s_own_request_is_tried_before_the_first_trial(
    server: Server, stability: StimulusSet, topblock: StimulusSet, tmp_path: Path
) -> None:
    real = {item.image_sha256 for item in (*stability.items, *topblock.items)}

    def strict(number: int, body: Body) -> Any:
        return refusal("prompt too long") if picture_hash(body) in real else None

    server.respond = strict
    with pytest.raises(
        ModelError, match=r"does not take a request of this run \(towers-stability.*prompt too long; give fewer"
    ):
        ask(server, stability, tmp_path / "r")
    assert len(server.asked(stability)) == 2 and not (tmp_path / "r").exists()
    # One image alone may be refused for what it shows, which is no reason to ask nothing.
    (longest, *_) = server.asked(stability)
    server.requests.clear()
    shown = {item.item_id: item.image_sha256 for item in stability.items}
    server.respond = lambda number, body: refusal("I dislike it") if picture_hash(body) == shown[longest] else None
    assert ask(server, stability, tmp_path / "r").n_errors == 1
    server.respond = lambda number, body: refusal("no memory", 500) if picture_hash(body) == shown[longest] else None
    assert ask(server, stability, tmp_path / "q").n_errors == 1
    # The request that was tried is a trial like any other, and not asked twice.
    server.respond = lambda number, body: None
    server.requests.clear()
    ask(server, stability, tmp_path / "s")
    assert sorted(server.asked(stability)) == sorted(shown)
    server.requests.clear()
    conversation = ask(server, topblock, tmp_path / "t", attempts=3)
    first = next(body for _, _, body in server.requests if picture_hash(body) in real)
    assert images_of(first) == 3 and conversation.n_errors == 0


@pytest.mark.parametrize("most", [1, 3, 5, 19, 20])
def test_as_many_log_probabilities_as_a_server_tells(
    server: Server, stability: StimulusSet, tmp_path: Path, most: int
) -> None:
    tokens = first_token({"yes": -0.5, "no": -1.5, **{f"t{n}": -3.0 - n for n in range(18)}})

    def respond(number: int, body: Body) -> Any:
        if body.get("top_logprobs", 0) > most:
            return refusal(f"top_logprobs must be at most {most}")
        given = tokens(number, body)
        if isinstance(given, dict):
            entry = given["choices"][0]["logprobs"]["content"][0]
            entry["top_logprobs"] = entry["top_logprobs"][: body["top_logprobs"]]
        return given

    server.respond = respond
    report = ask(server, stability, tmp_path / "r", readout="options", limit=2)
    assert read_run(report.path)["model"]["details"]["top_logprobs"] == most
    rows = read_trials(report.path)
    if most == 1:
        assert all("'no' is not among the 1 likeliest" in row["error"] for row in rows)
    else:
        assert all(sorted(row["logprobs"]) == [-1.5, -0.5] for row in rows)


@pytest.mark.parametrize("absent", [-9999.0, -10000, -3.4028234663852886e38, None, math.nan, -math.inf])
def test_a_log_probability_that_is_not_there(
    server: Server, stability: StimulusSet, tmp_path: Path, absent: Any
) -> None:
    server.respond = first_token({"yes": -0.5, "no": absent})
    report = ask(server, stability, tmp_path / "r", readout="options", limit=2)
    assert all("'no' is not among the 1 likeliest" in row["error"] for row in read_trials(report.path))


def test_log_probabilities_of_prompts_that_are_not_there(server: Server, stability: StimulusSet) -> None:
    def respond(number: int, body: Body) -> Any:
        words = ["a", *(m["content"] for m in body["messages"] if m["role"] == "assistant")]
        entries: list[Any] = [None, {"1": {"logprob": -9999.0}}]
        entries += [{str(10 + ord(word[0])): {"logprob": -9999.0 if word == "no" else -1.0}} for word in words]
        return {"prompt_logprobs": entries}

    server.respond = respond
    model = ServedModel.connect(server.url, "m", readout="options")
    item = stability.items[0]
    ((_, value, _),) = model.stream([Trial(item, stability.image(item))], "options", Generation())
    assert "tells no log-probability of a token of 'no'" in str(value) and value.refused


def choice(message: Any, finish: Any = "stop", **more: Any) -> Callable[[int, Body], Any]:
    return lambda number, body: {"choices": [{"message": message, "finish_reason": finish, **more}]}


def says(content: Any = None, **more: Any) -> Body:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        (choice(None), "holds no message: message is null"),
        (choice("yes"), "holds no message: message is 'yes'"),
        (choice(says(""), "error", error={"code": 502, "message": "upstream died"}), "upstream died"),
        (choice(says("yes"), "error"), "finish_reason error"),
        (choice(says(""), "abort"), "finish_reason abort"),
        (choice(says("yes"), "stop", error={"message": "connection lost"}), "connection lost"),
        (choice(says(None), "length"), "cut at its token limit before any text: give a larger --max-new-tokens"),
        (choice(says("  "), "length"), "cut at its token limit before any text"),
        (choice(says(7)), "its content is 7"),
        (choice(says({"text": "yes"})), "its content is {'text': 'yes'}"),
        (choice(says([7])), "its content is [7]"),
    ],
)
def test_replies_that_are_failed_trials(
    server: Server, stability: StimulusSet, tmp_path: Path, respond: Any, error: str
) -> None:
    server.respond = respond
    report = ask(server, stability, tmp_path / "r", limit=4)
    rows = read_trials(report.path)
    assert report.n_errors == len(rows) == 4
    for row in rows:
        assert row["status"] == "error" and row["raw"] is None and error in row["error"] and "\n" not in row["error"]
    summary = summarise(report.path)
    assert summary.errors == 4 and summary.accuracy.n == 0  # not wrong answers


SECRETLY = {"prompt_tokens": 26, "completion_tokens_details": {"reasoning_tokens": 12}}


@pytest.mark.parametrize(
    ("respond", "status", "raw", "thought"),
    [
        (choice(says(None), "content_filter"), "filtered", "", None),
        (choice(says("The tow"), "content_filter"), "filtered", "The tow", None),
        (choice(says("yes"), "SAFETY"), "filtered", "yes", None),
        (choice(says(None, refusal="I cannot help with that.")), "filtered", "I cannot help with that.", None),
        (choice(says(None, refusal="No."), "error", error={"message": "x"}), "filtered", "No.", None),
        (choice(says("", reasoning="Hm, yes"), "length"), "unfinished", "", "Hm, yes"),
        (choice(says(None, reasoning_content="answer: yes"), "length"), "unfinished", "", "answer: yes"),
        (choice(says([{"type": "thinking", "thinking": [{"text": "Hm"}]}]), "length"), "unfinished", "", "Hm"),
        (choice(says(None, reasoning="It stays up: yes")), "unfinished", "", "It stays up: yes"),
        (choice(says("The tower looks as if it"), "length"), "unfinished", "The tower looks as if it", None),
        (lambda n, b: choice(says(""), "length")(n, b) | {"usage": SECRETLY}, "unfinished", "", ""),
        (choice(says("Yes, because the tow"), "length"), "ok", "Yes, because the tow", None),
        (choice(says([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}])), "ok", "yes", None),
        (choice(says([{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "yes"}])), "ok", "yes", "no"),
        (choice(says("so it leans.</think>\n\nyes")), "ok", "\n\nyes", "so it leans."),
        (choice(says("<think>no, so yes or"), "length"), "unfinished", "", "no, so yes or"),
        (choice(says("yes", reasoning="no no")), "ok", "yes", "no no"),
        (choice(says("")), "empty", "", None),
        (choice(says("yes"), None), "ok", "yes", None),
        (
            lambda number, body: refusal(
                "The response was filtered due to the prompt triggering our content management policy.", code="content_filter"
            ),
            "filtered",
            "HTTP 400: The response was filtered due to the prompt triggering our content management policy.",
            None,
        ),
        (
            lambda number, body: refusal("The model requires moderation and your input was flagged", 403),
            "filtered",
            "HTTP 403: The model requires moderation and your input was flagged",
            None,
        ),
    ],
)  # fmt: skip
def test_replies_that_have_a_status_of_their_own(
    server: Server,
    stability: StimulusSet,
    tmp_path: Path,
    caplog: Any,
    respond: Any,
    status: str,
    raw: str,
    thought: str | None,
) -> None:
    # A filter on made-up questions would be a server that takes nothing; this one filters what it is shown.
    real = {item.image_sha256 for item in stability.items}
    server.respond = lambda number, body: respond(number, body) if picture_hash(body) in real else None
    report = ask(server, stability, tmp_path / "r", limit=4)
    rows = read_trials(report.path)
    assert report.n_errors == 0
    assert {(row["status"], row["raw"], row["thought"]) for row in rows} == {(status, raw, thought)}
    summary = summarise(report.path)
    assert summary.statuses == {status: 4} and summary.accuracy.n == 4
    if status not in ("ok",):
        assert summary.parse_rate == 0 and summary.accuracy.value == 0 and {row["answer"] for row in rows} == {None}
        assert f"{status} 4" in str(summary)
    hinted = status == "unfinished" and thought is None
    assert ("4 replies were cut at the token limit" in caplog.text and "--max-new-tokens" in caplog.text) == hinted
    within = status == "unfinished" and thought is not None and not thought.startswith("It stays up")
    assert ("4 replies were cut within a thought" in caplog.text) == within
    # Reading the replies again does not forget how they ended.
    stimuli = StimulusSet.load(stability.path)
    assert rescore(report.path, stimuli) == (4, 0, 0)


def test_what_is_withheld_is_not_carried_out(server: Server, topblock: StimulusSet, tmp_path: Path) -> None:
    server.respond = choice(says("20"), "content_filter")
    report = ask(server, topblock, tmp_path / "r", attempts=2, limit=2)
    asked = [body for _, _, body in server.requests if len(body["messages"]) == 3]
    assert {row["status"] for row in read_trials(report.path)} == {"filtered"} and asked
    told = asked[-1]["messages"][-1]["content"]
    assert isinstance(told, str) or told[0]["type"] == "text"  # no picture of what nobody did


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/plain; charset=utf-8", "application/problem+json"])
def test_json_of_another_name_is_read(server: Server, stability: StimulusSet, tmp_path: Path, kind: str) -> None:
    mark = "\ufeff" if "text" in kind else ""
    server.respond = lambda number, body: (200, {"Content-Type": kind}, (mark + json.dumps(usual(body))).encode())
    assert ask(server, stability, tmp_path / "r", limit=2).n_errors == 0
    assert {row["status"] for row in read_trials(tmp_path / "r")} == {"ok"}


@pytest.mark.parametrize(
    "kind", ["text/event-stream", "text/event-stream; charset=utf-8", "application/json", "text/plain"]
)
def test_a_stream_of_events_is_one_line(server: Server, stability: StimulusSet, tmp_path: Path, kind: str) -> None:
    stream = b': hello\n\ndata: {"choices": [{"delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'
    server.respond = lambda number, body: (200, {"Content-Type": kind}, stream)
    with pytest.raises(ModelError, match="sends a stream of events although none was asked for: switch"):
        ask(server, stability, tmp_path / "r")
    assert len(server.requests) == 1


PAGE = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head><body><h1>nginx</h1></body></html>"


def test_an_image_that_is_too_large_is_one_line(
    server: Server, stability: StimulusSet, tmp_path: Path, capfd: Any
) -> None:
    real = {item.image_sha256 for item in stability.items}
    large = (413, {"Content-Type": "text/html"}, PAGE)
    arguments = ["run", "--model", "m", "--base-url", server.url, "--stimuli", str(stability.path), "--limit", "4"]
    for respond in (lambda number, body: large, lambda number, body: large if picture_hash(body) in real else None):
        server.respond = respond
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--no-references", "--out", str(tmp_path / "r")])
        (line,) = capfd.readouterr().err.splitlines()
        assert end.value.code == 1 and "the image is too large for this server (413 Request Entity Too Large)" in line
        assert "<" not in line and "--size" in line
    # Where it is one image only, it is one trial.
    bad = stability.items[7].image_sha256
    server.respond = lambda number, body: large if picture_hash(body) == bad else None
    report = ask(server, stability, tmp_path / "r")
    (failed,) = [row for row in read_trials(report.path) if row["error"]]
    assert "too large for this server" in failed["error"] and report.n_errors == 1


# Faults inside a 200 without a reply


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": {"message": "CUDA out of memory", "code": 500}}, "reports an error: CUDA out of memory"),
        ({"error": "Unexpected endpoint or method."}, "reports an error: Unexpected endpoint or method"),
        ({"object": "error", "message": "boom", "code": 500}, "reports an error: boom"),
        ([{"error": {"message": "x"}}], "no JSON object"),
        ({"choices": "yes"}, "holds no message"),
        ({"choices": [7]}, "holds no message"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"error":' + b'{"message":' * 940 + b"1" + b"}" * 941, "reply is"),
        (b"<html><title>Sign in</title></html>", "is not JSON: 'Sign in'"),
        (b"", "is not JSON"),
        ("yes", "is not JSON: 'yes'"),
        (None, "no JSON object: null"),
    ],
)
def test_answers_without_a_reply_refuse_the_run_in_one_line(
    server: Server, stability: StimulusSet, tmp_path: Path, answer: Any, message: str
) -> None:
    server.respond = lambda number, body: (200, {}, answer)
    with pytest.raises(ModelError, match="does not answer for 'm'") as error:
        ask(server, stability, tmp_path / "r")
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700


def test_an_error_inside_a_reply_counts_like_its_status(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    bad, times = stability.items[7].image_sha256, list[float]()

    def respond(number: int, body: Body) -> Any:
        if picture_hash(body) != bad:
            return None
        times.append(time.monotonic())
        return 200, {}, {"error": {"message": "no such image size", "code": 400}}

    server.respond = respond
    report = ask(server, stability, tmp_path / "r")
    (failed,) = [row for row in read_trials(report.path) if row["error"]]
    assert "no such image size" in failed["error"] and len(times) == 1
    server.respond = lambda number, body: (200, {}, {"error": {"message": "pay", "code": 402}}) if number > 3 else None
    server.requests.clear()
    with pytest.raises(ModelError, match="wants to be paid"):
        ask(server, stability, tmp_path / "s")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, held in inside for deeper in paths(held, (*path, key)))]


def whole_reply() -> Body:
    top = [{"token": "yes", "logprob": -0.5, "bytes": [1]}, {"token": "no", "logprob": -1.5, "bytes": None}]
    message = {"role": "assistant", "content": "yes", "reasoning": "Hm", "refusal": None, "tool_calls": []}
    return {
        "choices": [
            {"message": message, "finish_reason": "stop", "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 1}},
        "error": None,
        "model": "m",
    }


@given(st.data())
def test_a_reply_with_anything_anywhere_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    reply: Any = whole_reply()
    *parents, last = data.draw(st.sampled_from([path for path in paths(reply) if path]))
    place = reply
    for key in parents:
        place = place[key]
    place[last] = data.draw(VALUES)
    style = data.draw(st.sampled_from(["direct", "think"]))
    fault = fault_of(reply)
    prompt_tokens(reply)
    lines = [fault.message] if fault is not None else []
    for read in () if fault is not None else (lambda: reply_of(reply, style), lambda: positions(reply)):
        try:
            found = read()
        except ValueError as error:
            lines.append(str(error))
        else:
            values = [v for _, top in found for v in top.values()] if isinstance(found, list) else []
            assert all(math.isfinite(value) and value <= 0 for value in values)
            assert isinstance(found, list) or isinstance(found.text, str)
    assert all("\n" not in line and len(line) < 500 for line in lines)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"message": "no"}, "no"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]}, "body.top_k: Extra inputs are not permitted"),
        ([{"error": {"code": 400, "message": "API key not valid"}}], "API key not valid"),
        ("a\nplain  text", "a plain text"),
        ("a\x1b[2J \ud83dtext\u2028", "a [2J text"),
        (PAGE.decode(), "413 Request Entity Too Large"),
        ("<html><body><p>Gone</p></body></html>", "Gone"),
        ({"message": {"message": "inside"}}, "inside"),
        ({"code": 7}, "{'code': 7}"),
        (None, ""),
        (7, "7"),
    ],
)  # fmt: skip
def test_the_words_of_errors(error: Any, words: str) -> None:
    assert words_of_error(error) == words


# Waiting


def test_a_wait_may_be_seconds_a_date_or_a_time_of_the_clock() -> None:
    now = time.time()
    for text in (
        f"{now + 20:.0f}",
        f"{(now + 20) * 1000:.0f}",
        formatdate(now + 20, usegmt=True),
        formatdate(now + 20),
        "20",
    ):
        found = retry_after({"retry-after": text})
        assert found is not None and 18 <= found <= 21, text
    for text in ("nan", "inf", "-inf", "1e999", "soon", "", "20 minutes"):
        assert retry_after({"retry-after": text}) is None, text
    for text in ("-5", "0", f"{now - 60:.0f}", formatdate(now - 60)):
        assert retry_after({"retry-after": text}) == 0, text
    assert retry_after({"retry-after-ms": "nan", "retry-after": "2"}) == 2


@given(st.integers(1, 10_000), st.none() | st.floats(0, allow_nan=False))
def test_every_wait_has_a_floor_and_a_ceiling(attempt: int, after: float | None) -> None:
    assert endpoint.BACKOFF / 2 <= pause(attempt, after) <= endpoint.LONGEST_WAIT


def test_a_time_of_the_clock_is_waited_for(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    limited: list[float] = []

    def respond(number: int, body: Body) -> Any:
        if number == 4:
            limited.append(time.time())
            return 429, {"Retry-After": f"{math.ceil(time.time()) + 1}"}, {"error": {"message": "slow down"}}
        return None

    server.respond = respond
    assert ask(server, stability, tmp_path / "r", limit=6).n_errors == 0
    assert 1 <= time.time() - limited[0] < 10


def test_a_server_that_asks_not_to_wait_is_not_run_over(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ServedModel.connect(server.url, "m")
    monkeypatch.setattr(endpoint, "BACKOFF", 0.1)
    monkeypatch.setattr(endpoint, "PATIENCE", 0.5)
    server.requests.clear()
    server.respond = lambda number, body: (429, {"Retry-After": "0"}, {"error": {"message": "busy"}})
    with pytest.raises(endpoint.RequestFailed, match="busy"):
        model._complete({"messages": []})
    assert len(server.requests) <= 6


# The way there


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(
            (h, True)
            for h in ("localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "0.0.0.0")
        ),
        *((h, True) for h in ("vllm.localhost", "localhost.localdomain", "ip6-localhost")),
        *((h, False) for h in ("10.0.0.1", "localhost.example.org", "example.org", "2001:db8::1", "")),
    ],
)
def test_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_is_not_behind_a_proxy(
    stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    import socket

    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    try:
        made = Server(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        assert host == "::1"  # a machine without IPv6
        return
    url = made.url if host != "localhost" else f"http://localhost:{made.port}/v1"
    model = ServedModel.connect(url, "m")
    item = stability.items[0]
    assert model.generate([Trial(item, stability.image(item))], Generation()) in (["yes"], ["no"])
    made.close()


def test_proxies_that_cannot_be_used_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "nonsense://[")
    with pytest.raises(ModelError, match=r"cannot be asked .*HTTP_PROXY"):
        ServedModel.connect("http://192.0.2.1/v1", "m")


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://localhost:99999/v1", "http://localhost:x/v1", "http:///v1", "http://a b/v1", "http://a..b"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ModelError, match="no address of a server"):
        ServedModel.connect(url, "m")


def test_a_reply_knows_how_it_ended() -> None:
    answer = {"choices": [{"message": says("<answer>yes</answer>", reasoning="it leans"), "finish_reason": "stop"}]}
    assert reply_of(answer, "think") == Reply("<answer>yes</answer>", "", "it leans")
    assert reply_of(answer, "direct") == Reply("<answer>yes</answer>", "", "it leans")
    told = {"choices": [{"message": says("<think>it leans</think><answer>yes</answer>"), "finish_reason": "stop"}]}
    assert reply_of(told, "think") == Reply("<think>it leans</think><answer>yes</answer>")
    assert reply_of(told, "direct") == Reply("<answer>yes</answer>", "", "it leans")
