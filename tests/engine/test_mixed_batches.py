"""Base model and adapters of several ranks in the same batch: each request's log-probabilities are
those of transformers and PEFT with its adapter, for its prompt and for the tokens it generates.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adapters.adapter import Adapter
from tests.engine.conftest import Server

# Long enough for the matrix products of a whole run of tokens, and too short for them.
_PROMPTS = [list(range(100, 100 + length)) for length in (3, 40, 70, 5, 33)]
# The rank of each request's adapter; None for the base model. Two requests share an adapter.
_RANKS = [4, None, 16, 8, 16]
_TOKENS = 12


async def test_a_mixed_batch_has_the_logprobs_of_peft(server: Server, tmp_path: Path) -> None:
    adapters = _adapters(server.trainer)

    found = await _generate(server.engine, adapters)

    for answer, rank in zip(found, _RANKS, strict=True):
        expected = _peft_logprobs(
            server.trainer.model, adapters.get(rank or 0), answer[0], tmp_path
        )
        assert torch.allclose(answer[1], expected, atol=2e-3)
    alone = await _generate(server.engine, {}, [None] * len(_RANKS))
    differences = [
        float((one[1][:2] - other[1][:2]).abs().max())
        for one, other in zip(found, alone, strict=True)
    ]
    assert all(
        (each > 0.01) is (rank is not None) for each, rank in zip(differences, _RANKS, strict=True)
    )


async def test_a_mixed_batch_in_bfloat16_is_close_to_peft(server: Server, tmp_path: Path) -> None:
    from serving.engine.engine import Engine

    engine = await Engine.start(replace(server.engine.config, dtype="bfloat16"))
    try:
        adapters = _adapters(server.trainer)
        found = await _generate(engine, adapters)
    finally:
        engine.stop()
    for answer, rank in zip(found, _RANKS, strict=True):
        expected = _peft_logprobs(
            server.trainer.model, adapters.get(rank or 0), answer[0], tmp_path
        )
        assert float((answer[1] - expected).abs().mean()) < 0.05


async def _generate(
    engine: Any, adapters: dict[int, Adapter], ranks: Sequence[int | None] = tuple(_RANKS)
) -> list[tuple[list[int], torch.Tensor]]:
    """The ids and log-probabilities of all requests, which run at the same time."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    loaded = {rank: await engine.load(adapter) for rank, adapter in adapters.items()}
    params = SamplingParams(
        temperature=0,
        max_tokens=_TOKENS,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    numbers = itertools.count()

    async def one(prompt: list[int], rank: int | None) -> tuple[list[int], torch.Tensor]:
        request = None
        if rank is not None:
            request = LoRARequest(loaded[rank].name, loaded[rank].id, str(loaded[rank].folder))
        outputs = engine._llm.generate(
            {"prompt_token_ids": prompt}, params, f"mixed-{next(numbers)}", lora_request=request
        )
        (output,) = [each async for each in outputs]
        ids = [*prompt, *output.outputs[0].token_ids]
        entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        return ids, torch.tensor(
            [entry[id].logprob for entry, id in zip(entries, ids[1:], strict=True)]
        )

    try:
        return await asyncio.gather(
            *(one(prompt, rank) for prompt, rank in zip(_PROMPTS, ranks, strict=True))
        )
    finally:
        for each in loaded.values():
            await engine.unload(each)


def _adapters(trainer: Any) -> dict[int, Adapter]:
    """An adapter with random weights for each rank."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.from_pretrained(trainer.model)
        )
    found = {}
    for rank in {rank for rank in _RANKS if rank is not None}:
        generator = torch.Generator().manual_seed(rank)
        weights: dict[str, torch.Tensor] = {}
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in trainer.targets:
                key, (out_width, in_width) = f"base_model.model.{name}.lora_", module.weight.shape
                a = torch.randn(rank, in_width, generator=generator)
                b = torch.randn(out_width, rank, generator=generator)
                weights |= {f"{key}A.weight": 0.05 * a, f"{key}B.weight": 0.05 * b}
        found[rank] = Adapter(
            f"mixed-{torch.randint(1 << 60, ()).item()}",
            trainer.model,
            rank,
            2.0 * rank,
            tuple(trainer.targets),
            save(weights),
            (),
        )
    return found


@torch.no_grad()
def _peft_logprobs(
    model_name: str, adapter: Adapter | None, ids: list[int], folder: Path
) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    if adapter is not None:
        adapter.save(folder / adapter.name)
        model = PeftModel.from_pretrained(model, str(folder / adapter.name))
    logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
