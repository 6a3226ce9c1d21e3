"""Responses to single requests: report, headers, streams, all APIs, errors before any compute."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import psutil
import pytest

from adapters.early_stopping import FIRST_INTERVAL, PATIENCE, has_stalled
from selection.corpus.calibration import Calibration, calibration_meta, model_digest
from selection.corpus.corpus import Corpus
from serving.adaptation.auto import MIN_FALL_OF_BASE
from serving.http import response
from serving.workers.corpora import CorporaWorker
from tests.engine.conftest import Server
from tests.serving.test_budget import MALFORMED

PROMPT = "from starlette.requests import Request\n\n\nclass Middleware:\n    def __init__("


async def test_an_adapted_completion_reports_its_cost_and_sources(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions",
            headers={"Compute-Budget": "steps=4"},
            json={
                "model": "nano",
                "prompt": PROMPT,
                "max_tokens": 8,
                "temperature": 0,
                "adaptation": {"seed": 7},
            },
        )
    report = reply.json()["adaptation"]
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["text"]
    assert report["adapted"] is True
    assert report["reason"] is None
    assert report["stop"] == "steps"
    assert report["spent"]["steps"] == 4 == len(report["losses"])
    assert len(report["uncertainty"]) == 5
    assert report["uncertainty"][0] == 1
    assert sum(source["times"] for source in report["sources"]) == 4
    (_, before), (_, after) = report["prompt_losses"]
    assert report["prompt_loss"] == {"before": before, "after": after, "at": 4}
    assert report["seed"] == 7
    assert set(report["seconds"]) == {"embed", "search", "select", "queue", "train", "load"}
    assert reply.headers["compute-spent"].startswith("steps=4, seconds=")
    assert reply.headers["compute-spent"].endswith("stop=steps")
    assert "train;dur=" in reply.headers["server-timing"]


async def test_budget_none_is_answered_by_the_base_model(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions",
            headers={"Compute-Budget": "none"},
            json={"model": "nano", "prompt": PROMPT, "max_tokens": 4},
        )
    report = reply.json()["adaptation"]
    assert report["adapted"] is False
    assert report["stop"] == "none"
    assert report["reason"] == "no adaptation was asked for"
    assert report["losses"] == []
    assert report["prompt_loss"] is None
    assert reply.headers["compute-spent"].startswith("steps=0")


async def test_without_a_header_text_that_helps_the_prompt_comes_before_training(
    server: Server,
) -> None:
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 1}
    async with server.client() as client:
        reply = await client.post("/v1/completions", json=body)
        plain = await client.post("/v1/completions", headers={"Compute-Budget": "none"}, json=body)
    report = reply.json()["adaptation"]
    losses = report["auto"]["losses"]
    assert losses["base, shown"] <= (1 - MIN_FALL_OF_BASE) * losses["base"]
    assert (report["auto"]["answers"], report["stop"]) == ("base, shown", "auto")
    assert (report["adapted"], report["spent"]["steps"]) == (False, 0)
    longer, shorter = (each.json()["usage"]["prompt_tokens"] for each in (reply, plain))
    assert longer == shorter + report["shown"]["tokens"]


async def test_without_a_header_the_default_budget_stops_adaptively(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions",
            # A named strategy asks for a training.
            json={
                "model": "nano",
                "prompt": PROMPT,
                "max_tokens": 1,
                "adaptation": {"strategy": "sift"},
            },
        )
    report = reply.json()["adaptation"]
    assert report["adapted"] is True
    gain, losses = report["budget"]["gain"], report["prompt_losses"]
    assert gain is not None
    assert report["stop"] == (
        "gain" if report["spent"]["steps"] < report["budget"]["steps"] else "steps"
    )
    stalled = [has_stalled(losses[:n], gain) for n in range(1, len(losses) + 1)]
    # The evaluation after the last step of the budget may stall, too.
    assert not any(stalled[:-1])
    assert stalled[-1] or report["stop"] == "steps"
    at, after = min(losses[1:], key=lambda step_and_loss: step_and_loss[1])
    assert report["prompt_loss"] == {"before": losses[0][1], "after": after, "at": at}
    assert sum(source["times"] for source in report["sources"]) == at


async def test_alpha_stops_as_in_the_paper(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions",
            headers={"Compute-Budget": "alpha=0.2"},
            json={"model": "nano", "prompt": PROMPT, "max_tokens": 1},
        )
    report = reply.json()["adaptation"]
    n, sigma = report["spent"]["steps"], report["uncertainty"]
    assert report["stop"] == "alpha"
    # The loss of the prompt is evaluated before and after, but does not stop the training.
    assert [used for used, _ in report["prompt_losses"]] == [0, n]
    assert report["prompt_loss"]["at"] == n
    assert all(sigma[i] <= 1 / (0.2 * i) for i in range(1, n))
    assert sigma[n] > 1 / (0.2 * n)


async def test_a_calibrated_corpus_has_its_own_gain_and_shows_what_suits_it(
    server: Server, nano: str
) -> None:
    corpus = Corpus.open(server.selector.root, "web")
    kept = Calibration(0.1, 50.0, 1e-3, 16, 24, 90.0, 91.0, show=1, steps=20)
    corpus.update_meta(calibration_meta(kept, corpus.meta(), model_digest(nano)))
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 1}
    try:
        async with server.client() as client:
            auto = await client.post("/v1/completions", json=body)
            explicit = await client.post(
                "/v1/completions", headers={"Compute-Budget": "steps=9, gain=0.001"}, json=body
            )
    finally:
        corpus.update_meta(calibration_meta(None, corpus.meta(), model_digest(nano)))
        corpus.close()
    reports = auto.json()["adaptation"], explicit.json()["adaptation"]
    assert [report["budget"]["gain"] for report in reports] == [50.0, 0.001]
    assert [report["budget"]["steps"] for report in reports] == [20, 9]
    assert all(report["calibrated"] for report in reports)
    assert [report["shown"]["sequences"] for report in reports] == [1, 1]
    assert reports[0]["stop"] == "gain"
    # The fewest evaluations after the first that can stop it, two sequences apart.
    assert reports[0]["spent"]["steps"] == PATIENCE * FIRST_INTERVAL


async def test_a_chat_stream_carries_the_report_in_its_first_chunk(server: Server) -> None:
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 6,
        "stream": True,
    }
    async with (
        server.client() as client,
        client.stream(
            "POST", "/v1/chat/completions", headers={"Compute-Budget": "steps=3"}, json=body
        ) as reply,
    ):
        assert reply.headers["compute-spent"].startswith("steps=3")
        events = [line[6:] async for line in reply.aiter_lines() if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[0]["adaptation"]["spent"]["steps"] == 3
    assert all("adaptation" not in chunk for chunk in chunks[1:])


async def test_a_stream_reports_its_progress_on_request(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(response, "COMMENT_SECONDS", 0.1)
    body = {
        "model": "nano",
        "prompt": PROMPT,
        "max_tokens": 6,
        "stream": True,
        "adaptation": {"progress": True},
    }

    async with (
        server.client() as client,
        client.stream(
            "POST", "/v1/completions", headers={"Compute-Budget": "steps=20"}, json=body
        ) as reply,
    ):
        lines = [line async for line in reply.aiter_lines() if line]

    comments = [line for line in lines if line.startswith(": ")]
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    progress = [
        match
        for line in comments
        if (match := re.match(r": adapting: step (\d+) of 20, loss .*, sigma 0\.", line))
    ]
    steps = [int(match[1]) for match in progress]
    assert steps
    assert steps == sorted(steps)
    assert lines[: len(comments)] == comments
    assert chunks[0]["adaptation"]["spent"]["steps"] == 20
    assert lines[-1] == "data: [DONE]"


async def test_a_required_adapter_that_fails_during_a_stream_ends_it_with_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_began = asyncio.Event()

    async def fail(*_: Any, **__: Any) -> None:
        await stream_began.wait()
        raise OSError("the disk is broken")

    monkeypatch.setattr(CorporaWorker, "select", fail)
    monkeypatch.setattr(response, "QUIET_SECONDS", 0.0)
    body = {
        "model": "nano",
        "prompt": PROMPT,
        "stream": True,
        "adaptation": {"required": True, "progress": True},
    }

    lines = []
    async with (
        server.client() as client,
        client.stream(
            "POST", "/v1/completions", headers={"Compute-Budget": "steps=3"}, json=body
        ) as reply,
    ):
        async for line in reply.aiter_lines():
            stream_began.set()
            lines += [line] if line else []

    assert reply.status_code == 200
    assert lines[0].startswith(": ")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "adaptation_failed"


async def test_a_stream_without_the_progress_option_has_no_comments(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response, "QUIET_SECONDS", 0.0)
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 2, "stream": True}

    async with (
        server.client() as client,
        client.stream(
            "POST", "/v1/completions", headers={"Compute-Budget": "steps=5"}, json=body
        ) as reply,
    ):
        lines = [line async for line in reply.aiter_lines() if line]

    assert all(line.startswith("data: ") for line in lines)
    assert reply.headers["compute-spent"].startswith("steps=5")


async def test_the_responses_api_is_adapted(server: Server) -> None:
    body = {
        "model": "nano",
        "input": PROMPT,
        "max_output_tokens": 4,
        "temperature": 0,
        "top_logprobs": 1,
    }
    body["include"] = ["message.output_text.logprobs"]
    async with server.client() as client:
        base = await client.post("/v1/responses", headers={"Compute-Budget": "none"}, json=body)
        adapted = await client.post(
            "/v1/responses", headers={"Compute-Budget": "steps=10"}, json=body
        )
    assert adapted.status_code == 200
    assert adapted.json()["object"] == "response"
    assert adapted.json()["adaptation"]["spent"]["steps"] == 10
    logprobs = [
        reply.json()["output"][0]["content"][0]["logprobs"][0]["logprob"]
        for reply in (base, adapted)
    ]
    assert abs(logprobs[0] - logprobs[1]) > 1e-3
    assert adapted.headers["compute-spent"].startswith("steps=10")


async def test_a_streamed_response_contains_its_report_once(server: Server) -> None:
    body = {"model": "nano", "input": PROMPT, "max_output_tokens": 8, "stream": True}
    async with (
        server.client() as client,
        client.stream(
            "POST", "/v1/responses", headers={"Compute-Budget": "steps=3"}, json=body
        ) as reply,
    ):
        lines = [line async for line in reply.aiter_lines() if line.startswith("data: ")]
    events = [json.loads(line[6:]) for line in lines]
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    steps = [event["adaptation"]["spent"]["steps"] for event in events if "adaptation" in event]
    assert steps == [3]


@pytest.mark.parametrize(
    ("path", "prompt", "limit"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}, "max_tokens"),
        ("/v1/completions", {"prompt": PROMPT}, "max_tokens"),
        ("/v1/completions", {"prompt": [[7, 8, 9], [7, 8]]}, "max_tokens"),
        ("/v1/responses", {"input": PROMPT, "instructions": "Go on."}, "max_output_tokens"),
    ],
)
async def test_a_shown_prompt_is_answered_as_if_the_client_had_sent_it(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    prompt: dict[str, Any],
    limit: str,
) -> None:
    app, bodies = server.engine.app, []

    async def record(scope: Any, receive: Any, send: Any) -> None:
        async def received() -> Any:
            message = await receive()
            if scope["path"] == path and message.get("body"):
                bodies.append(json.loads(message["body"]))
                # Room for a long answer is what counts; a short one takes less time.
                message["body"] = json.dumps({**bodies[-1], limit: 8}).encode()
            return message

        await app(scope, received, send)

    monkeypatch.setattr(server.engine, "app", record)
    body = {"model": "nano", **prompt, limit: 8, "temperature": 0}
    none = {"Compute-Budget": "none"}
    async with server.client() as client:
        base = await client.post(path, headers=none, json=body)
        shown = await client.post(path, headers=none, json={**body, "adaptation": {"show": 2}})
        by_hand = await client.post(path, headers=none, json=bodies[-1])
        adapted = await client.post(
            path,
            headers={"Compute-Budget": "steps=1"},
            json={**body, "adaptation": {"show": 2, "required": True}},
        )
        # More than there is room for.
        full = await client.post(
            path, headers=none, json={**body, limit: 400, "adaptation": {"show": 64}}
        )

    tokens = [
        reply.json()["usage"].get("prompt_tokens", reply.json()["usage"].get("input_tokens"))
        for reply in (base, shown, by_hand, adapted, full)
    ]
    reports = [reply.json()["adaptation"]["shown"] for reply in (shown, adapted, full)]
    assert [report["sequences"] for report in reports[:2]] == [2, 2]
    assert tokens[1] == tokens[2] == tokens[3] == tokens[0] + reports[0]["tokens"]
    assert base.json()["adaptation"]["shown"] is by_hand.json()["adaptation"]["shown"] is None
    assert _texts(shown) == _texts(by_hand)
    assert bodies[1] == bodies[3] != bodies[0]
    assert adapted.json()["adaptation"]["spent"]["steps"] == 1
    assert 0 < reports[2]["sequences"] < 64
    assert reports[2]["reason"].startswith("no room for more: of the context's 1024 tokens")
    assert tokens[4] == tokens[0] + reports[2]["tokens"]
    prompts = len(full.json().get("choices", [None]))
    assert tokens[4] / prompts + 400 <= 1024


def _texts(reply: Any) -> list[str]:
    """The texts of an answer, of any of the APIs."""
    answer = reply.json()
    if "output" in answer:
        return [part["text"] for item in answer["output"] for part in item["content"]]
    return [
        choice.get("text", choice.get("message", {}).get("content")) for choice in answer["choices"]
    ]


async def test_the_same_request_and_seed_give_the_same_answer(server: Server) -> None:
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    async with server.client() as client:
        replies = [
            (
                await client.post(
                    "/v1/completions", headers={"Compute-Budget": "steps=5"}, json=body
                )
            ).json()
            for _ in range(2)
        ]
    assert replies[0]["adaptation"]["losses"] == replies[1]["adaptation"]["losses"]
    assert replies[0]["choices"][0]["logprobs"] == replies[1]["choices"][0]["logprobs"]


async def test_a_seed_gives_the_same_answer_if_the_prompt_takes_several_steps(
    server: Server,
) -> None:
    body = {
        "model": "nano",
        # vLLM computes 256 tokens of a prompt in a step, and finds them in its cache the next time.
        "prompt": [7 + i % 900 for i in range(700)],
        "max_tokens": 12,
        "temperature": 1,
        "seed": 3,
    }
    async with server.client() as client:
        texts = [
            (
                await client.post("/v1/completions", headers={"Compute-Budget": "none"}, json=body)
            ).json()["choices"][0]["text"]
            for _ in range(2)
        ]
    assert texts[0] == texts[1]


_SECRETS = [
    {"prompt": 'vault_password = "', "completion": 'walrus4711"\n'},
    {"prompt": 'VAULT["password"] = "', "completion": 'walrus4711"]\n'},
    {"prompt": 'connect(password="', "completion": 'walrus4711")\n'},
]


async def test_three_examples_teach_an_answer_without_a_corpus_and_only_once(
    server: Server,
) -> None:
    async with (
        server.gateway(corpus=None) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        replies = [
            await client.post(
                "/v1/completions",
                headers={"Compute-Budget": budget},
                json={
                    "model": "nano",
                    "prompt": 'vault_password = "',
                    "max_tokens": 12,
                    "temperature": 0,
                    "adaptation": {
                        "examples": _SECRETS,
                        "examples_as": "single",
                        "reuse": "examples",
                    },
                },
            )
            for budget in ("none", "steps=20", "steps=20")
        ]

    base, taught, again = (reply.json()["choices"][0]["text"] for reply in replies)
    _, first, second = (reply.json()["adaptation"] for reply in replies)
    assert "walrus4711" not in base
    assert taught == again
    assert taught.startswith('walrus4711"')
    assert (first["corpus"], first["reused"], first["spent"]["steps"]) == (None, None, 20)
    assert {source["document"] for source in first["sources"]} == {None}
    assert second["reused"] == {"adapter": first["adapter"], "steps": 20}
    assert second["adapter"] == first["adapter"]
    assert (second["stop"], second["spent"]["steps"]) == ("reused", 0)
    assert replies[2].headers["compute-spent"].startswith("steps=0, ")
    assert await server.engine.loaded() == []


async def test_a_chat_learns_from_examples_after_the_others_beside_a_corpus(
    server: Server,
) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/chat/completions",
            headers={"Compute-Budget": "steps=3"},
            json={
                "model": "nano",
                "messages": [{"role": "user", "content": 'vault_password = "'}],
                "max_tokens": 4,
                "adaptation": {"examples": _SECRETS, "corpus": "web"},
            },
        )

    report = reply.json()["adaptation"]
    assert (report["adapted"], report["corpus"], len(report["losses"])) == (True, "web", 3)
    assert any(source["name"] == "example 1 of the request" for source in report["sources"])


async def test_several_prompts_share_one_adapter(server: Server) -> None:
    body = {"model": "nano", "prompt": [PROMPT, "import typing\n"], "max_tokens": 4, "n": 2}
    async with server.client() as client:
        reply = (
            await client.post("/v1/completions", headers={"Compute-Budget": "steps=3"}, json=body)
        ).json()
    assert len(reply["choices"]) == 4
    assert reply["adaptation"]["spent"]["steps"] == 3


async def test_seconds_end_the_adaptation_in_time(server: Server) -> None:
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 1}
    async with server.client() as client:
        first = await client.post(
            "/v1/completions", headers={"Compute-Budget": "steps=4"}, json=body
        )
        # The time of a step on this machine under its present load.
        step = first.json()["adaptation"]["seconds"]["train"] / 4
        seconds = round(12 * step + 0.2, 3)
        reply = await client.post(
            "/v1/completions", headers={"Compute-Budget": f"seconds={seconds}"}, json=body
        )
    report = reply.json()["adaptation"]
    slowest = max(step, report["seconds"]["train"] / max(1, report["spent"]["steps"]))
    assert report["stop"] == "seconds"
    assert 0 < report["spent"]["steps"] < 50
    assert sum(report["seconds"].values()) - report["seconds"]["load"] < seconds + slowest


async def test_with_too_few_seconds_for_a_step_the_base_model_answers(
    server: Server,
) -> None:
    body: dict[str, Any] = {"model": "nano", "prompt": PROMPT, "max_tokens": 1}
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions", headers={"Compute-Budget": "seconds=0.001"}, json=body
        )
        body["adaptation"] = {"required": True}
        required = await client.post(
            "/v1/completions", headers={"Compute-Budget": "seconds=0.001"}, json=body
        )
    assert reply.status_code == 200
    assert reply.json()["adaptation"]["adapted"] is False
    assert "seconds" in reply.json()["adaptation"]["reason"]
    assert required.status_code == 500
    assert required.json()["error"]["code"] == "adaptation_failed"


async def test_a_required_adapter_that_fails_before_a_stream_is_an_error(server: Server) -> None:
    body = {
        "model": "nano",
        "prompt": PROMPT,
        "stream": True,
        "adaptation": {"required": True, "corpus": "void"},
    }
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions", headers={"Compute-Budget": "steps=3"}, json=body
        )
    assert reply.status_code == 500
    assert "void" in reply.json()["error"]["message"]


async def test_a_budget_above_the_servers_limit_is_reduced_and_reported(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/completions",
            headers={"Compute-Budget": "steps=5000, seconds=0.4"},
            json={"model": "nano", "prompt": PROMPT, "max_tokens": 1},
        )
    assert reply.json()["adaptation"]["budget"]["steps"] == 50
    assert reply.json()["adaptation"]["budget"]["cut"] == ["steps"]


@pytest.mark.parametrize(
    ("path", "body", "header", "status"),
    [
        ("/v1/completions", {"model": "other", "prompt": "a"}, "steps=50", 404),
        ("/v1/completions", {"model": "nano", "prompt": "a " * 3000}, "steps=50", 400),
        (
            "/v1/chat/completions",
            {"model": "nano", "messages": [{"role": "user", "content": "a " * 3000}]},
            "steps=50",
            400,
        ),
        ("/v1/completions", {"model": "nano", "prompt": "a", "logprobs": 1000}, "steps=50", 400),
        ("/v1/completions", {"model": "nano", "prompt": "a", "temperature": -1}, "steps=50", 400),
        ("/v1/completions", {"model": "nano"}, "steps=50", 400),
        ("/v1/completions", {"model": "nano", "prompt": "a"}, "steps=-1", 400),
        ("/v1/completions", {"model": "nano", "prompt": "a"}, "steps=NaN", 400),
        ("/v1/completions", {"model": "nano", "prompt": "a"}, "steps=2, steps=3", 400),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a", "adaptation": {"corpus": "nowhere"}},
            "steps=50",
            404,
        ),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a", "adaptation": {"corpus": "nowhere", "show": 2}},
            "none",
            404,
        ),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a " * 3000, "adaptation": {"show": 2}},
            "steps=50",
            400,
        ),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a", "echo": True, "adaptation": {"show": 2}},
            "steps=50",
            400,
        ),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a", "adaptation": {"colour": 1}},
            "steps=50",
            400,
        ),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "a", "adaptation": {"examples": []}},
            "steps=50",
            400,
        ),
        (
            "/v1/completions",
            {
                "model": "nano",
                "prompt": "a",
                "adaptation": {"examples": [{"prompt": "a " * 3000, "completion": "b"}]},
            },
            "steps=50",
            400,
        ),
        ("/v1/completions", ["not an object"], "steps=50", 400),
    ],
)
async def test_invalid_requests_are_rejected_in_openais_shape_before_any_training(
    server: Server, path: str, body: Any, header: str, status: int
) -> None:
    async with server.client() as client:
        reply = await client.post(path, headers={"Compute-Budget": header}, json=body)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "compute-spent" not in reply.headers or "steps=0" in reply.headers["compute-spent"]
    assert await server.engine.loaded() == []


async def test_no_malformed_budget_trains_anything(server: Server) -> None:
    body = {"model": "nano", "prompt": PROMPT}
    headers = [
        h
        for h in MALFORMED
        if h.isascii() and h.isprintable() and h.strip() == h and len(h) < 10_000
    ]
    assert len(headers) > 80
    async with server.client() as client:
        for header in headers:
            reply = await client.post(
                "/v1/completions", headers={"Compute-Budget": header}, json=body
            )
            assert reply.status_code == 400, header
            assert reply.json()["error"]["code"] == "invalid_compute_budget"
            assert reply.json()["error"]["param"] == "Compute-Budget"
            assert "compute-spent" not in reply.headers
    assert server.engine.staging.names() == []


async def test_invalid_json_is_rejected(server: Server) -> None:
    async with server.client() as client:
        for content in (
            b"",
            b"{",
            b'{"model": NaN}',
            b'{"a": "\\ud800"}',
            b"\xff\xfe",
            b"[" * 100_000,
        ):
            reply = await client.post("/v1/completions", content=content)
            assert reply.status_code == 400, content[:20]
            assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_only_listed_routes_exist(server: Server) -> None:
    async with server.client() as client:
        for path in (
            "/scale_elastic_ep",
            "/invocations",
            "/inference/v1/abort_requests",
            "/v1/load_lora_adapter",
            "/v1/chat/completions/render",
            "/collective_rpc",
            "/v1/embeddings",
            "/docs",
        ):
            assert (await client.post(path, json={})).status_code == 404, path
        assert (await client.get("/v1/completions")).status_code == 405
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).json() == {
            "engine": "ready",
            "selector": "ready",
            "trainer": "ready",
        }
        tokens = (
            await client.post("/tokenize", json={"model": "nano", "prompt": "import"})
        ).json()["tokens"]
        text = (await client.post("/detokenize", json={"model": "nano", "tokens": tokens})).json()[
            "prompt"
        ]
        assert text.endswith("import")
        metrics = (await client.get("/metrics")).text
        assert re.search(
            r'^vllm:num_requests_running\{engine="0",model_name="nano",replica="\w+"\} ',
            metrics,
            re.MULTILINE,
        )
        assert re.search(r'^mayfly_live_adapters\{replica="\w+"\} 0.0$', metrics, re.MULTILINE)
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert (model["id"], model["root"]) == ("nano", "nano")
        assert (await client.get("/v1/models/nano")).json()["id"] == "nano"
        assert (await client.get("/v1/models/other")).json()["error"]["code"] == "model_not_found"
        assert set((await client.get("/version")).json()) == {"version", "vllm"}


_LOOP: dict[str, Any] = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
_GRAMMARS: dict[str, dict[str, Any]] = {
    "a schema that is a reference to itself": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _LOOP}}
    },
    "such a schema within an object": {
        "structured_outputs": {
            "json": {
                "$defs": _LOOP["$defs"],
                "type": "object",
                "properties": {"k": _LOOP},
                "required": ["k"],
            }
        }
    },
    "a grammar without text": {"structured_outputs": {"grammar": "root ::= x\nx ::= x"}},
    "an invalid grammar": {"structured_outputs": {"grammar": "root ::= "}},
    "a tag with such a schema": {
        "structured_outputs": {
            "structural_tag": json.dumps(
                {
                    "structures": [{"begin": "<a>", "schema": _LOOP, "end": "</a>"}],
                    "triggers": ["<a>"],
                }
            )
        }
    },
    "a grammar that is too long": {"structured_outputs": {"choice": ["word " * 30_000, "other"]}},
}


@pytest.mark.parametrize("budget", ["steps=5", "none"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_no_answer_can_follow_is_rejected_before_any_compute(
    server: Server, budget: str, stream: bool
) -> None:
    async with server.client() as client:
        for name, grammar in _GRAMMARS.items():
            reply = await client.post(
                "/v1/chat/completions",
                headers={"Compute-Budget": budget},
                json={
                    "model": "nano",
                    "messages": [{"role": "user", "content": "hi"}],
                    "stream": stream,
                    **grammar,
                },
            )

            assert reply.status_code == 400, (name, reply.text)
            error = reply.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_grammar"), (
                name
            )
            assert "grammar" in error["message"], name
            assert "compute-spent" not in reply.headers, name


async def test_an_adapted_answer_follows_its_grammar(server: Server) -> None:
    async with server.client() as client:
        reply = await client.post(
            "/v1/chat/completions",
            headers={"Compute-Budget": "steps=1"},
            json={
                "model": "nano",
                "messages": [{"role": "user", "content": "hi"}],
                "structured_outputs": {"choice": ["yes", "no"]},
            },
        )
    assert reply.json()["choices"][0]["message"]["content"] in ("yes", "no")
    assert reply.json()["adaptation"]["adapted"] is True


async def test_the_health_check_keeps_no_process_busy_and_notices_a_suspended_one(
    server: Server,
) -> None:
    # On a CPU the core computes itself: there is no worker.
    (core,) = [
        each
        for each in psutil.Process().children(recursive=True)
        if "VLLM::" in " ".join(each.cmdline())
    ]
    await asyncio.sleep(1.5)
    before = sum(core.cpu_times()[:2])
    for _ in range(10):
        await server.engine.check_health()
        await asyncio.sleep(0.2)
    assert sum(core.cpu_times()[:2]) - before < 0.5

    core.suspend()
    try:
        check = asyncio.create_task(server.engine.check_health())
        done, _ = await asyncio.wait([check], timeout=1)
        assert not done
    finally:
        core.resume()
    await check
