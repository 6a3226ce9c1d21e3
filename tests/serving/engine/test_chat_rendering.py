"""Examples are rendered as vLLM renders requests: a prompt of the same messages has the same
tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from selection.examples.example import parse_example
from selection.examples.rendering import Renderer
from tests.selection.examples.test_rendering import FORGETFUL, SMOLLM2, TOOLS

ANSWER = {"role": "assistant", "content": "At noon."}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "clock", "arguments": '{"zone": {"name": "\\u00dc"}}'},
}
TOOL = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "clock"}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "When?"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}],
    "developer": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Soon."},
        {"role": "developer", "content": "Be exact."},
        {"role": "user", "content": "When?", "name": "Ann"},
    ],
    "parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "When"}, {"type": "text", "text": "?"}],
        }
    ],
    "tools": [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "00"}],
        },
    ],
}


@pytest.fixture(scope="module")
def model_config(nano: str) -> Any:
    from vllm.config import ModelConfig

    return ModelConfig(model=nano, tokenizer=nano)


@pytest.mark.parametrize("template", [SMOLLM2, FORGETFUL, TOOLS, "{# 'developer' #}" + TOOLS])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_has_the_tokens_that_vllm_gives_it(
    model_config: Any, tokenizer: Any, template: str, name: str
) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.chat_utils import parse_chat_messages
    from vllm.renderers.hf import (
        resolve_chat_template_content_format,
        safe_apply_chat_template,
    )

    served = copy.deepcopy(tokenizer)
    served.chat_template = template
    tools = [TOOL] if name == "tools" else None
    asked = {"messages": CONVERSATIONS[name], **({"tools": tools} if tools else {})}
    request: Any = ChatCompletionRequest.model_validate({"model": "nano", **copy.deepcopy(asked)})
    definitions = [each.model_dump() for each in request.tools] if request.tools else None
    content_format = resolve_chat_template_content_format(
        None, definitions, "auto", served, model_config=model_config
    )
    conversation, *_ = parse_chat_messages(request.messages, model_config, content_format)
    expected = safe_apply_chat_template(
        model_config, served, conversation, tools=definitions, add_generation_prompt=True
    )

    example = parse_example({**asked, "messages": [*CONVERSATIONS[name], ANSWER]}, "")
    rendered = Renderer(served).render(example)

    assert list(rendered.tokens[: rendered.scored[-1][0]]) == expected
    assert len(expected) > 5
