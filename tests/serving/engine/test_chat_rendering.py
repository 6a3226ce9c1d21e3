"""Examples are rendered as vLLM renders requests: a prompt of the same messages has the same
tokens.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
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


TEMPLATES = {
    "smollm2": SMOLLM2,
    "forgetful": FORGETFUL,
    "tools": TOOLS,
    "developer": "{# 'developer' #}" + TOOLS,
}
# In a process of its own, since importing vLLM changes the logging of the whole process.
_VLLM = """
import json, sys
from transformers import AutoTokenizer
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template

model, templates, requests = json.loads(sys.argv[1])
config, tokenizer = ModelConfig(model=model, tokenizer=model), AutoTokenizer.from_pretrained(model)
found = {}
for key, template in templates.items():
    tokenizer.chat_template = template
    for name, body in requests.items():
        request = ChatCompletionRequest.model_validate({"model": model, **body})
        tools = [each.model_dump() for each in request.tools] if request.tools else None
        form = resolve_chat_template_content_format(
            None, tools, "auto", tokenizer, model_config=config
        )
        conversation, *_ = parse_chat_messages(request.messages, config, form)
        found[f"{key} {name}"] = safe_apply_chat_template(
            config, tokenizer, conversation, tools=tools, add_generation_prompt=True
        )
print(json.dumps(found))
"""


def request(name: str) -> dict[str, Any]:
    """The body of the request."""
    return {"messages": CONVERSATIONS[name], **({"tools": [TOOL]} if name == "tools" else {})}


@pytest.fixture(scope="module")
def vllm(nano: str) -> dict[str, list[int]]:
    """vLLM's tokens of each prompt in each template."""
    given = json.dumps([nano, TEMPLATES, {name: request(name) for name in CONVERSATIONS}])
    ran = subprocess.run(
        [sys.executable, "-c", _VLLM, given],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    found: dict[str, list[int]] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_has_the_tokens_that_vllm_gives_it(
    vllm: dict[str, list[int]], tokenizer: Any, template: str, name: str
) -> None:
    served = copy.deepcopy(tokenizer)
    served.chat_template = TEMPLATES[template]
    body = request(name)

    example = parse_example({**body, "messages": [*body["messages"], ANSWER]}, "")
    rendered = Renderer(served).render(example)

    prompt = list(rendered.tokens[: rendered.scored[-1][0]])
    assert prompt == vllm[f"{template} {name}"]
    assert len(prompt) > 5
