"""SmolLM2-135M-Instruct as `make install` imports it, where that has succeeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.models.card import ModelCard
from serving.models.catalogue import SMOLLM2
from tests.conftest import INSTALLED_MODELS

FOLDER = INSTALLED_MODELS / SMOLLM2

pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason=f"{SMOLLM2} is not installed: `make install` brings it"
)


def test_its_card_states_the_licence_and_the_rounding() -> None:
    card = ModelCard.read(FOLDER)

    assert card is not None
    assert card.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert (card.license, card.quantisation, card.bits) == ("apache-2.0", "Q4_1", 4)
    assert card.parameters == 134_515_008


def test_it_answers_a_question() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")

    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=10, do_sample=False)

    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])
