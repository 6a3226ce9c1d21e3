"""langchain-tests' own tests of a chat model, over langchain-openai."""

# mypy: ignore-errors
# (langchain is in this file's own environment only)

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """Settings of these tests."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class of langchain-openai."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """The server, and limits for a model that rarely ends its answer.

        The bias towards quotes helps it to complete JSON.
        """
        tokenizer = json.loads(
            (Path(os.environ["COMPAT_TOKENIZER"]) / "tokenizer.json").read_text()
        )
        return {
            "base_url": f"{os.environ['COMPAT_URL']}/v1",
            "api_key": "none",
            "model": os.environ["COMPAT_MODEL"],
            "stream_usage": True,
            "temperature": 0,
            "max_tokens": 96,
            "frequency_penalty": 2,
            "logit_bias": {tokenizer["model"]["vocab"]['"']: 10},
        }

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """JSON schema, which vLLM enforces."""
        return {"method": "json_schema"}

    @property
    def model_override_value(self) -> str:
        """A model to override with."""
        return os.environ["COMPAT_MODEL"]
