"""The benchmark's own client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.latency.client import Answer, Load, excerpts, send
from benchmarks.latency.hot_load import ready_to_first

LOAD = Load("steps=5", 1, 64, 3)
REPORT = {
    "adapted": True,
    "spent": {"steps": 5, "seconds": 0.7},
    "seconds": {"embed": 0.03, "train": 0.6, "load": 0.05},
}


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("steps=20", 20), ("none", 0), (None, 0), ("instant", 0), ("auto", None), ("seconds=1", None)],
)
def test_a_budget_of_steps_states_the_steps(budget: str | None, steps: int | None) -> None:
    assert Load(budget, 1, 64, 3).steps == steps


@pytest.mark.parametrize(
    ("budget", "steps", "short"),
    [
        ("steps=5", 5, False),
        ("steps=5", 4, True),
        ("auto", 41, False),
        ("seconds=1", 0, True),
        ("none", 0, False),
    ],
)
def test_an_answer_with_other_steps_than_requested_is_short(
    budget: str, steps: int, short: bool
) -> None:
    answer = Answer(
        200, 0.1, 0.2, 3, 64, {"adapted": steps > 0, "spent": {"steps": steps, "seconds": 1.0}}
    )

    assert answer.is_short(Load(budget, 1, 64, 3)) == short


def test_an_instant_answer_of_the_base_model_is_short() -> None:
    load, spent = Load("instant", 1, 64, 3), {"steps": 0, "seconds": 0.0}

    assert Answer(200, 0.1, 0.2, 3, 64, {"adapted": False, "spent": spent}).is_short(load)
    assert not Answer(200, 0.1, 0.2, 3, 64, {"adapted": True, "spent": spent}).is_short(load)


def test_an_error_or_an_incomplete_answer_is_short() -> None:
    assert Answer(429).is_short(LOAD)
    assert Answer(200, 0.1, 0.2, 2, 64).is_short(Load(None, 1, 64, 3))
    assert not Answer(200, 0.1, 0.2, 3, 64).is_short(Load(None, 1, 64, 3))


def test_stages_come_from_the_report_and_the_client() -> None:
    answer = Answer(200, 0.8, 1.2, 3, 64, REPORT)

    assert answer.stages() == pytest.approx(
        {
            "embed": 0.03,
            "train": 0.6,
            "load": 0.05,
            "first token": 0.8,
            "per token": 0.2,
            "whole": 1.2,
            "loaded to first token": 0.1,
        }
    )
    assert ready_to_first(answer) == pytest.approx(0.15)


async def test_a_stream_yields_times_counts_and_report() -> None:
    events = [
        {"choices": [{"text": "a"}], "adaptation": REPORT},
        {"choices": [{"text": "b"}]},
        {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 64}},
    ]
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            b": adapting\n\n"
        )
        for event in events:
            await asyncio.sleep(0.05)
            writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address) as client:
            answer = await send(client, LOAD, "def f(")

    assert b"compute-budget: steps=5" in requests[0].lower()
    assert (answer.status, answer.tokens, answer.prompt, answer.report) == (200, 3, 64, REPORT)
    # The server waits this long before each event.
    assert 0.05 <= answer.first <= answer.last
    assert answer.last >= 0.1


async def test_an_unreachable_server_gives_status_0() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:
        assert (await send(client, LOAD, "def f(")).status == 0


def test_prompts_have_the_requested_length_and_depend_on_the_seed(tokenizer: Any) -> None:
    prompts = excerpts(Load("none", 20, 64, 3), 1)

    assert prompts == excerpts(Load("none", 20, 64, 3), 1)
    assert not set(prompts) & set(excerpts(Load("none", 20, 64, 3), 2))
    assert all(abs(len(tokenizer(text)["input_ids"]) - 64) <= 4 for text in prompts)


def test_prompts_are_counted_in_tokens_of_the_base_model(tmp_path: Path) -> None:
    # A token for each byte.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_bytes = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer_class(tokenizer_object=of_bytes).save_pretrained(tmp_path)

    prompts = excerpts(Load("none", 20, 64, 3, base=str(tmp_path)), 1)

    assert all(abs(len(text.encode()) - 64) <= 4 for text in prompts)
