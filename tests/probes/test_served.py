"""Served models against servers that behave, servers that fail in every way, and a real one."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai")

from tests.probes.serving import Body, Server, ask, first_token, picture_hash, pictures, said, usual
from vlm_probe.probes.cli import main
from vlm_probe.probes.models import Generation, ModelError, Trial, Turn, endpoint
from vlm_probe.probes.models.endpoint import Endpoint, RequestFailed, backoff, retry_after
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.protocol import data_url
from vlm_probe.probes.models.served import ServedModel
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import RunError, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet

SECRET = "sk-test-0123456789"


def contents(folder: Path) -> dict[str, Any]:
    left_out = ("latency_s", "time")
    return {row["item_id"]: {k: v for k, v in row.items() if k not in left_out} for row in read_trials(folder)}


def test_what_is_sent_is_what_is_in_the_set(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    report = ask(server, stability, tmp_path / "r")
    assert (report.n, report.n_errors) == (24, 0)
    assert sorted(server.asked(stability)) == sorted(item.item_id for item in stability.items)  # byte for byte
    items = {item.image_sha256: item for item in stability.items}
    for _, _, body in server.requests:
        item = items.get(picture_hash(body))
        if item is not None:
            (message,) = body["messages"]
            assert message["role"] == "user" and message["content"][-1] == {
                "type": "text",
                "text": item.question.prompt,
            }
            assert body["temperature"] == 0 and body["max_tokens"] == 3 + 1 + 8 and "seed" not in body
    rows = read_trials(report.path)
    replies = {item.item_id: "yes" if item.image_sha256 < "8" else "no" for item in stability.items}
    assert {row["item_id"]: row["raw"] for row in rows} == replies and set(replies.values()) == {"yes", "no"}
    facts = read_run(report.path)
    details = facts["model"]["details"]
    assert details["server"]["version"] == "1.2.3" and details["server"]["model"] == server.cards[0]
    assert details["endpoint"] == "owner/m" and details["answered_by"] == "m" and facts["versions"]["openai"]
    assert facts["observed"] == {"answered_by": ["m"], "cut_at_limit": False}


def test_whole_conversations(server: Server, stability: StimulusSet) -> None:
    model = ServedModel.connect(server.url, "m")
    item, other = stability.items[:2]
    picture = stability.image(other)
    context = (Turn("user", "And this?", (picture, picture)), Turn("assistant", "yes"))
    model.generate([Trial(item, stability.image(item), context)], Generation(max_new_tokens=5))
    sent = server.requests[-1][2]
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "user"] and sent["max_tokens"] == 5
    assert [hashlib.sha256(data).hexdigest() for data in pictures(sent)] == [
        other.image_sha256,
        other.image_sha256,
        item.image_sha256,
    ]
    assert sent["messages"][1]["content"] == "yes"


def test_several_attempts_are_conversations_that_must_fit(
    server: Server, topblock: StimulusSet, tmp_path: Path
) -> None:
    server.respond = lambda number, body: usual(body, "20" if len(body["messages"]) < 5 else "-20")
    report = ask(server, topblock, tmp_path / "r", attempts=3, memory="all")
    rows = read_trials(report.path)
    assert report.n_errors == 0 and {row["attempt"] for row in rows} == {1, 2, 3}
    by_length = {len(body["messages"]): body for _, _, body in server.requests}
    assert [message["role"] for message in by_length[5]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert len(pictures(by_length[5])) == 3 and len(set(pictures(by_length[5]))) >= 2
    assert by_length[3]["messages"][1]["content"] == "20"
    # Refused by what the server counts, or by the server itself, before anything is asked.
    server.cards = [card | {"max_model_len": 40} for card in server.cards]
    server.respond = lambda number, body: usual(body) | {"usage": {"prompt_tokens": 10 * len(body["messages"])}}
    with pytest.raises(ModelError, match=r"reads 40 tokens .* give fewer"):
        ask(server, topblock, tmp_path / "short", attempts=3)
    assert not (tmp_path / "short").exists()


def test_pictures_lose_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    data = base64.b64decode(data_url(Image.fromarray(noise)).partition(",")[2])
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), noise)


def test_sampling_has_a_seed_for_each_trial(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    def seeds(folder: str, **changes: Any) -> dict[str, int]:
        server.requests.clear()
        ask(server, stability, tmp_path / folder, limit=6, temperature=0.7, **changes)
        real = {item.image_sha256 for item in stability.items}
        sent = [body for _, _, body in server.requests if picture_hash(body) in real]
        assert all(body["temperature"] == 0.7 for body in sent)
        return {picture_hash(body): body["seed"] for body in sent}

    first = seeds("a")
    assert len(set(first.values())) == 6
    assert seeds("b", concurrency=1) == first
    assert set(seeds("c", seed=1).values()).isdisjoint(first.values())


def test_so_many_trials_are_under_way_at_a_time(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    lock, under_way, most = threading.Lock(), [0], [0]

    def respond(number: int, body: Body) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        with lock:
            under_way[0] -= 1

    server.respond = respond
    for concurrency in (1, 6):
        most[0] = 0
        ask(server, stability, tmp_path / str(concurrency), concurrency=concurrency)
        assert most[0] == concurrency
    assert contents(tmp_path / "1") == contents(tmp_path / "6")


def fail_once(kinds: list[str]) -> Callable[[int, Body], Any]:
    """A server that fails the first attempt at every item, in one way after the other."""
    seen: dict[str, str] = {}
    lock = threading.Lock()

    def respond(number: int, body: Body) -> Any:
        digest = picture_hash(body)
        with lock:
            if number < 2 or digest in seen:
                return None
            kind = seen[digest] = kinds[len(seen) % len(kinds)]
        if kind == "cut":
            raise ConnectionError
        if kind == "slow":
            time.sleep(1.5)
        failures = {
            "500": (500, {}, {"error": {"message": "out of order"}}),
            "503": (503, {"Retry-After": "0.05"}, {"error": {"message": "warming up"}}),
            "429": (429, {"Retry-After": "0.05"}, {"error": {"message": "too fast"}}),
            "html": b"<html>gateway</html>",
            "torn": b'{"choices": [',
            "empty": b'{"choices": []}',
            "error": b'{"error": {"message": "upstream"}}',
        }
        return failures.get(kind)

    return respond


def test_nothing_is_lost_to_a_server_that_fails_at_everything_once(
    server: Server, stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.7)
    ask(server, stability, tmp_path / "calm")
    server.requests.clear()
    server.respond = fail_once(["500", "503", "429", "html", "torn", "empty", "error", "cut", "slow"])
    report = ask(server, stability, tmp_path / "r")
    assert report.n_errors == 0 and contents(tmp_path / "r") == contents(tmp_path / "calm")
    assert len(server.asked(stability)) == 2 * len(stability)
    # Every item has one row: what was tried again is not in the log twice.
    assert (tmp_path / "r/trials.jsonl").read_text().count("\n") == len(stability)


@pytest.mark.parametrize(
    ("answer", "attempts", "message"),
    [
        ((400, {}, {"error": {"message": "prompt too long"}}), 1, "HTTP 400: prompt too long"),
        ((500, {}, {"error": {"message": "no memory"}}), endpoint.RETRIES + 1, "HTTP 500: no memory (6 attempts)"),
        (b"nonsense", endpoint.RETRIES + 1, "is not JSON"),
    ],
)
def test_what_fails_for_good_is_one_row_and_is_asked_again(
    server: Server, stability: StimulusSet, tmp_path: Path, answer: Any, attempts: int, message: str
) -> None:
    bad = stability.items[7]
    server.respond = lambda number, body: answer if picture_hash(body) == bad.image_sha256 else None
    report = ask(server, stability, tmp_path / "r")
    failed = [row for row in read_trials(report.path) if row["error"]]
    assert report.n_errors == 1 and [row["item_id"] for row in failed] == [bad.item_id]
    assert failed[0]["error"].startswith("RequestFailed: ") and message in failed[0]["error"]
    assert server.asked(stability).count(bad.item_id) == attempts
    server.respond = lambda number, body: None
    server.requests.clear()
    assert ask(server, stability, tmp_path / "r").n_errors == 0
    assert server.asked(stability) == [bad.item_id]
    ask(server, stability, tmp_path / "calm")
    assert contents(tmp_path / "r") == contents(tmp_path / "calm")


def test_a_rate_limit_holds_for_all_requests(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    limited: list[float] = []

    def respond(number: int, body: Body) -> Any:
        if number == 8:
            limited.append(time.monotonic())
            return 429, {"Retry-After": "0.6"}, {"error": {"message": "slow down"}}
        return None

    server.respond = respond
    assert ask(server, stability, tmp_path / "r").n_errors == 0
    # What was on its way when the limit came is there within a moment.
    after = [at - limited[0] for at, *_ in server.requests if at > limited[0] + 0.2]
    assert len(after) >= 10 and min(after) >= 0.59


def test_a_server_that_goes_away_ends_the_run_and_it_goes_on_when_it_is_back(
    server: Server, stability: StimulusSet, tmp_path: Path
) -> None:
    server.respond = lambda number, body: (502, {}, {"error": {"message": "gone"}}) if number >= 11 else None
    with pytest.raises(ModelError, match=r"failed 4 trials in a row.*HTTP 502: gone.*give the same command again"):
        ask(server, stability, tmp_path / "r", concurrency=2)
    kept = [row for row in read_trials(tmp_path / "r") if not row["error"]]
    assert len(kept) == 8 and read_run(tmp_path / "r")["status"] == "failed"
    server.respond = lambda number, body: None
    server.requests.clear()
    ask(server, stability, tmp_path / "r")
    assert set(server.asked(stability)) == {i.item_id for i in stability.items} - {row["item_id"] for row in kept}
    assert len(server.asked(stability)) == 16 and read_run(tmp_path / "r")["status"] == "finished"
    ask(server, stability, tmp_path / "calm")
    assert contents(tmp_path / "r") == contents(tmp_path / "calm")


def test_a_run_that_is_killed_goes_on(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    def slowly(number: int, body: Body) -> None:
        time.sleep(0.05)

    server.respond = slowly
    code = (
        "import sys; from pathlib import Path; from vlm_probe.probes.run import RunConfig, run;"
        "from vlm_probe.stimuli.dataset import StimulusSet;"
        "run(RunConfig('m', 's', base_url=sys.argv[1], concurrency=3), StimulusSet.load(sys.argv[2]), Path(sys.argv[3]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(stability.path), str(tmp_path / "r")])
    log = tmp_path / "r/trials.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {row["item_id"] for row in read_trials(tmp_path / "r")}
    assert 5 <= len(kept) < 24
    server.requests.clear()
    ask(server, stability, tmp_path / "r")
    assert sorted(server.asked(stability)) == sorted({item.item_id for item in stability.items} - kept)
    assert len(read_trials(tmp_path / "r")) == 24


def test_closing_a_stream_does_not_wait_for_requests(server: Server, stability: StimulusSet) -> None:
    model = ServedModel.connect(server.url, "m", concurrency=2)
    slow = {item.image_sha256 for item in stability.items[1:]}

    def respond(number: int, body: Body) -> None:
        time.sleep(5 * (picture_hash(body) in slow))

    server.respond = respond
    stream = model.stream((Trial(i, stability.image(i)) for i in stability.items), "generate", Generation())
    next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 1


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: Server, stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("PROBE_API_KEY", SECRET)
    out = tmp_path / "r"
    echo = f"who is {SECRET}?"
    bad = stability.items[0].image_sha256
    server.respond = lambda number, body: (400, {}, {"error": {"message": echo}}) if picture_hash(body) == bad else None
    arguments = ["run", "--model", "m", "--base-url", server.url, "--stimuli", str(stability.path), "--limit", "6"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--no-references", "--out", str(out)])
    assert end.value.code == 3
    assert {authorisation for _, authorisation, _ in server.requests} == {f"Bearer {SECRET}"}
    assert any("who is ***?" in (row["error"] or "") for row in read_trials(out))
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err + caplog.text and SECRET.encode() not in written
    monkeypatch.delenv("PROBE_API_KEY")
    server.respond = lambda number, body: (401, {}, {"error": {"message": "Incorrect API key: sk-ot**r"}})
    with pytest.raises(ModelError, match=r"refuses entry.*mend the key in PROBE_API_KEY or OPENAI_API_KEY") as refused:
        ServedModel.connect(server.url, "m")
    assert server.requests[-1][1] == "Bearer sk-other" and "sk-ot" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "no address of a server"),
        ("ftp://host/v1", "no address of a server"),
        ("http://user:word@host/v1", "a key goes into the variable"),
        ("http://host/v1?key=1", "a key goes into the variable"),
        ("http://127.0.0.1:9/v1", "there is no server at http://127.0.0.1:9/v1"),
    ],
)
def test_addresses_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        ServedModel.connect(url, "m")
    assert "word" not in str(error.value)


def test_what_cannot_be_had_is_said_before_the_run(server: Server, stability: StimulusSet, tmp_path: Path) -> None:
    server.respond = lambda number, body: (
        (404, {}, {"error": {"message": "no such model"}}) if body["model"] != "m" else None
    )
    with pytest.raises(ModelError, match=r"'n'.*no such model.*it lists m"):
        ask(server, stability, tmp_path / "r", model="n")
    with pytest.raises(ModelError, match=r"gives no log-probabilities.*--readout generate"):
        ask(server, stability, tmp_path / "r", readout="options")
    with pytest.raises(ModelError, match="--dtype and --load-in-4bit cannot be chosen for a served model"):
        ask(server, stability, tmp_path / "r", dtype="float16", load_in_4bit=True)
    assert not (tmp_path / "r").exists()


def test_a_server_that_wants_another_name_for_the_limit(server: Server, stability: StimulusSet) -> None:
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.respond = lambda number, body: (400, {}, {"error": {"message": message}}) if "max_tokens" in body else None
    model = ServedModel.connect(server.url, "m")
    item = stability.items[0]
    assert model.generate([Trial(item, stability.image(item))], Generation()) == [said(server.requests[-1][2])]
    assert server.requests[-1][2]["max_completion_tokens"] == 12


def test_a_server_that_counts_no_picture_is_suspicious(server: Server, caplog: Any) -> None:
    server.respond = lambda number, body: {"usage": {"prompt_tokens": 10}}
    ServedModel.connect(server.url, "m")
    assert "it may leave images out" in caplog.text


def test_another_server_is_another_run_unless_it_names_the_same_weights(
    server: Server, stability: StimulusSet, tmp_path: Path
) -> None:
    other = Server()
    ask(server, stability, tmp_path / "r", limit=4)
    ask(other, stability, tmp_path / "r", limit=4)
    assert not other.asked(stability)  # everything was there
    other.cards = server.cards = [{"id": "m"}]
    ask(server, stability, tmp_path / "s", limit=4)
    with pytest.raises(RunError, match="another configuration: endpoint"):
        ask(other, stability, tmp_path / "s", limit=4)
    other.close()


def test_reasoning_that_the_server_took_out_is_kept_apart(
    server: Server, stability: StimulusSet, tmp_path: Path
) -> None:
    message = {"role": "assistant", "content": "<answer>yes</answer>", "reasoning_content": "it leans"}
    choice = {"message": message, "finish_reason": "length"}
    server.respond = lambda number, body: {"choices": [choice]}
    report = ask(server, stability, tmp_path / "r", limit=2, style="think")
    rows = read_trials(report.path)
    assert {(row["thought"], row["raw"], row["answer_text"]) for row in rows} == {
        ("it leans", "<answer>yes</answer>", "yes")
    }
    # The first answer of the server has shown that it thinks.
    assert server.requests[-1][2]["max_tokens"] == 512 + 4096 and read_run(report.path)["observed"]["cut_at_limit"]


# Log-probabilities


def vllm(folder: Path) -> Callable[[int, Body], Any]:
    """A server that gives log-probabilities of prompts in the manner of vLLM, computed by the model of that folder."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    lock = threading.Lock()

    def respond(number: int, body: Body) -> Any:
        if "prompt_logprobs" not in body:
            return None
        assert body["prompt_logprobs"] == 1 and body["max_tokens"] == 1
        turns, images = [], [Image.open(io.BytesIO(data)) for data in pictures(body)]
        for turn in body["messages"]:
            content = turn["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            kinds = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            turns.append({"role": turn["role"], "content": kinds})
        rendering = {
            "add_generation_prompt": body.get("add_generation_prompt", True),
            "continue_final_message": body.get("continue_final_message", False),
        }
        with lock, torch.inference_mode():
            text = processor.apply_chat_template(turns, tokenize=False, **rendering)
            inputs = processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False)
            logprobs = torch.log_softmax(model(**inputs).logits[0].double(), dim=-1)
        ids = inputs["input_ids"][0].tolist()
        entries: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            likeliest = int(logprobs[place].argmax())
            entries.append({str(t): {"logprob": float(logprobs[place, t])} for t in dict.fromkeys((token, likeliest))})
        return {"prompt_logprobs": entries} | ({"prompt_token_ids": ids} if number % 2 else {})

    return respond


@pytest.mark.parametrize("closing", ["</s>", "</s>\n"])
def test_log_probabilities_of_prompts_are_those_of_the_model_itself(
    server: Server, stability: StimulusSet, topblock: StimulusSet, save_model: Any, tmp_path: Path, closing: str
) -> None:
    template = (
        "{{ '<s>' }}{% for m in messages %}{{ '<' + m['role'] + '>' }}{% for part in m['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{% if m['role'] == 'assistant' %}{{ '" + closing.replace("\n", "\\n") + "' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    folder = save_model(tmp_path / "model", template=template)
    server.respond = vllm(folder)
    served = ServedModel.connect(server.url, "m", readout="options")
    assert served.identity.details["logprobs"] == "prompt"
    trials = [Trial(item, stability.image(item)) for item in stability.items[:3]]
    trials.append(Trial(topblock.items[0], topblock.image(topblock.items[0])))
    for mine, theirs in zip(served.score_options(trials), load_model(str(folder)).score_options(trials), strict=True):
        assert np.abs(mine - theirs).max() < 1e-4 and np.ptp(theirs) > 0.1


def test_log_probabilities_of_first_tokens(
    server: Server, stability: StimulusSet, topblock: StimulusSet, tmp_path: Path
) -> None:
    server.respond = first_token({"yes": -0.5, " no": -1.5, "no": -2.5, "perhaps": -3.0})
    report = ask(server, stability, tmp_path / "r", readout="options", limit=6)
    assert read_run(report.path)["model"]["details"]["logprobs"] == "first-token" and report.n_errors == 0
    for row in read_trials(report.path):
        item = next(item for item in stability.items if item.item_id == row["item_id"])
        texts = [text for text, _ in item.question.grammar.candidates()]
        expected = {"yes": -0.5, "no": float(np.logaddexp(-1.5, -2.5))}
        assert row["logprobs"] == pytest.approx([expected[text] for text in texts], abs=1e-6)
    with pytest.raises(ModelError, match="cannot tell the answers of towers-topblock apart"):
        ask(server, topblock, tmp_path / "t", readout="options")
    server.respond = first_token({"yes": -0.5, "perhaps": -3.0})
    report = ask(server, stability, tmp_path / "u", readout="options", limit=2)
    assert all("'no' is not among the 2 likeliest" in row["error"] for row in read_trials(report.path))


# Adapters


def adapted(effect: float, noise: float = 0.0, texts: bool = False) -> Callable[[int, Body], Any]:
    """A server with an adapter "a" that changes log-probabilities so much, and noise in all of them."""
    rng = np.random.default_rng(0)

    def respond(number: int, body: Body) -> Any:
        given = usual(body, "blocks" if body["model"] == "a" and texts else "block")
        if body.get("logprobs") and not texts:
            value = -1.0 + effect * (body["model"] == "a") + noise * rng.random()
            top = [{"token": "block", "logprob": value}, {"token": "tower", "logprob": -2.0}]
            given["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        elif body.get("logprobs"):
            return 400, {}, {"error": {"message": "no logprobs"}}
        return given

    return respond


def test_an_adapter_that_the_server_leaves_out_is_refused(
    server: Server, stability: StimulusSet, tmp_path: Path
) -> None:
    server.cards.append({"id": "a", "root": "somewhere/a", "parent": "m"})
    ignored = "answers for the adapter a as it does for m.*leaves the adapter out.*probe adapters merge"
    for respond, how in (
        (adapted(0.0), "log-probabilities"),
        (adapted(1e-9, noise=0.05), "log-probabilities"),
        (
            lambda number, body: usual(body, "block"),
            "greedy replies",
        ),
    ):
        server.respond = respond
        with pytest.raises(ModelError, match=ignored) as error:
            ask(server, stability, tmp_path / "r", adapter="a")
        assert how in str(error.value)
    assert not (tmp_path / "r").exists()
    for respond in (adapted(0.01), adapted(0.5, noise=0.05), adapted(0.0, texts=True)):
        server.respond = respond
        ServedModel.connect(server.url, "m", adapter="a")
    server.requests.clear()
    report = ask(server, stability, tmp_path / "r", adapter="a", limit=3)
    assert {
        b["model"] for _, _, b in server.requests if picture_hash(b) in {i.image_sha256 for i in stability.items}
    } == {"a"}
    facts = read_run(report.path)["model"]
    assert facts["name"] == "m" and len(facts["adapter_sha256"]) == 64 and facts["details"]["adapter_id"] == "a"
    with pytest.raises(RunError, match=r"another configuration: .*adapter"):
        ask(server, stability, tmp_path / "r", limit=3)


def test_an_adapter_of_the_tower_is_pointed_out(server: Server, tmp_path: Path, caplog: Any) -> None:
    from safetensors.numpy import save_file

    names = ["base.model.vision_tower.layers.0.q.lora_A.weight", "base.model.language_model.layers.0.q.lora_A.weight"]
    save_file({name: np.ones((1, 1), np.float32) for name in names}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    server.cards.append({"id": "a", "root": str(tmp_path), "parent": "m"})
    server.respond = adapted(0.5)
    model = ServedModel.connect(server.url, "m", adapter="a")
    assert "1 tensors of the adapter a are outside the language model" in caplog.text and names[0] in caplog.text
    from vlm_probe.probes.models.adapter_folder import adapter_hash

    assert model.identity.adapter_sha256 == adapter_hash(tmp_path)


# Waiting


def test_waiting_doubles_is_bounded_and_random() -> None:
    for attempt, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (20, 30.0)):
        waits = [backoff(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) and max(waits) <= longest and len(set(waits)) > 100


def test_what_retry_after_says() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5 and retry_after({"retry-after-ms": "300"}) == 0.3
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


def test_patience_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ServedModel.connect(server.url, "m")
    monkeypatch.setattr(endpoint, "PATIENCE", 0.5)
    server.respond = lambda number, body: (429, {"Retry-After": "0.2"}, {"error": {"message": "busy"}})
    with pytest.raises(RequestFailed, match=r"HTTP 429: busy \([1-4] attempts?\)"):
        model._complete({"messages": []})


# A real server


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`transformers serve` with the embedded model, whose generation settings bend greedy replies: (base URL, model id)."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from vlm_probe.probes.tiny import WEIGHTS

    folder = tmp_path_factory.mktemp("serve")
    shutil.copytree(WEIGHTS, folder / "tiny")
    bent = folder / "tiny" / "generation_config.json"
    bent.write_text(
        json.dumps(json.loads(bent.read_text()) | {"repetition_penalty": 9.0, "do_sample": True, "top_k": 3})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["transformers", "serve", "tiny", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    script = Path(sys.executable).parent / command[0]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(script), *command[1:], "--dtype", "float32"],
            cwd=folder,
            env=os.environ | settings,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", "tiny"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("name", ["stability", "topblock", "grounding"])
def test_a_real_server_replies_as_the_model_does_here(
    transformers_serve: tuple[str, str], name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, model = transformers_serve
    stimuli = request.getfixturevalue(name)
    served = run(RunConfig(model, "s", base_url=url), stimuli, tmp_path / "served")
    local = run(RunConfig("tiny", "s"), stimuli, tmp_path / "local")
    assert (served.n_errors, local.n_errors) == (0, 0)
    mine, theirs = contents(served.path), contents(local.path)
    assert mine.keys() == theirs.keys() and len({row["raw"] for row in mine.values()}) > 1
    differ = ("key", "model")
    for item_id, row in mine.items():
        assert {k: v for k, v in row.items() if k not in differ} == {
            k: v for k, v in theirs[item_id].items() if k not in differ
        }
    # The name with which it answers is its own affair (transformers wrote tiny@main before 5.24, and tiny since).
    question = [{"role": "user", "content": "Is it stable?"}]
    answer = Endpoint(url).complete({"model": model, "messages": question, "max_tokens": 1})["model"]
    assert answer.startswith("tiny") and read_run(served.path)["model"]["details"]["answered_by"] == answer
    with pytest.raises(ModelError, match="pinned to 'tiny'"):
        ServedModel.connect(url, "other")
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        ServedModel.connect(url, model, readout="options")
