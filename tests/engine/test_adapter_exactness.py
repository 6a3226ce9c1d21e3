"""vLLM's log-probabilities with an adapter are those of transformers and PEFT with its files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.engine.conftest import Server

PROMPT = (
    "import typing\n\nfrom starlette.types import ASGIApp, Receive, Scope, Send\n\n\n"
    "class Middleware:\n"
)
TEXT = PROMPT + "    def __init__(self, app: ASGIApp) -> None:\n        self.app = app\n"


async def test_vllms_logprobs_are_those_of_peft(
    server: Server, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    async with server.client() as client:
        body: dict[str, Any] = {
            "model": "nano",
            "prompt": PROMPT,
            "max_tokens": 200,
            "stream": True,
            "ignore_eos": True,
        }
        async with client.stream(
            "POST", "/v1/completions", headers={"Compute-Budget": "steps=10"}, json=body
        ) as stream:
            # The adapter is loaded while the answer is streamed: copy its files.
            async for _ in stream.aiter_lines():
                (name,) = server.engine.staging.names()
                shutil.copytree(server.engine.staging.path / name, tmp_path / "adapter")
                break
        score = {
            "model": "nano",
            "prompt": ids,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "adaptation": {"prompt": PROMPT},
        }
        adapted = await client.post(
            "/v1/completions", headers={"Compute-Budget": "steps=10"}, json=score
        )
        base = await client.post("/v1/completions", headers={"Compute-Budget": "none"}, json=score)

    model = AutoModelForCausalLM.from_pretrained(server.trainer.model, dtype=torch.float32)
    expected_base = _logprobs(model, ids)
    expected = _logprobs(PeftModel.from_pretrained(model, str(tmp_path / "adapter")), ids)

    assert adapted.json()["adaptation"]["adapted"] is True
    assert torch.allclose(_prompt_logprobs(adapted.json()), expected, atol=1e-3)
    assert torch.allclose(_prompt_logprobs(base.json()), expected_base, atol=1e-3)
    assert (expected - expected_base).abs().max() > 0.1


def _prompt_logprobs(reply: dict[str, Any]) -> torch.Tensor:
    entries = reply["choices"][0]["prompt_logprobs"][1:]
    return torch.tensor([next(iter(entry.values()))["logprob"] for entry in entries])


@torch.no_grad()
def _logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
