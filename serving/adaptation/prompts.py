"""The prompts of a request that are adapted to: the last user turn, or a completion's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selection.embedding import MAX_PROMPT_CHARACTERS, Prompt
from selection.targets import MAX_TARGETS, Truncation, evenly_spaced
from serving.engine.limits import are_tokens
from serving.errors import RequestError

PROBE_TOKENS = 256
# Number of chosen sequences that `auto` considers to put before the prompt of a completion, and
# into a chat, which is compared with them as a whole (benchmarks/README.md).
SHOWN, SHOWN_IN_CHAT = 8, 4
# More than a token of any text has on average.
_CHARACTERS_PER_TOKEN = 16


def parse_prompts(
    body: dict[str, Any], instead: object, tokenizer: Any
) -> tuple[tuple[Prompt, ...], Truncation | None]:
    """The last user turn of a chat or a response, or the prompts of a completion.

    Of more prompts than data is chosen for, a part is used, and the rest is neither decoded nor
    sent on. Whether their form is valid is vLLM's to check.

    Args:
        body: body of the request.
        instead: `adaptation.prompt`, the text to adapt to in place of them; None for them.
        tokenizer: the model's, for prompts of token ids.

    Raises:
        RequestError: `adaptation.prompt` is not a text.
    """
    if isinstance(instead, str):
        return (_tail_of(instead),), None
    if instead is not None:
        raise RequestError(
            "`adaptation.prompt` is the text to adapt to, where it is not the request's own prompt"
        )
    if "messages" in body:
        return _turns(body["messages"] if isinstance(body["messages"], list) else []), None
    if "input" in body:
        value = body["input"]
        items = value if isinstance(value, list) else [{"role": "user", "content": value}]
        return _turns([{"role": "system", "content": body.get("instructions")}, *items]), None
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (_tail_of(prompt),), None
    if not isinstance(prompt, list) or not prompt:
        return (Prompt(""),), None
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    used = evenly_spaced(prompt, MAX_TARGETS)
    truncation = Truncation(len(used), len(prompt), "prompts") if len(used) < len(prompt) else None
    texts = [p if isinstance(p, str) else _decode(p, tokenizer) for p in used]
    return tuple(map(_tail_of, texts)), truncation


def probe_tokens(prompts: Sequence[Prompt], tokenizer: Any) -> tuple[int, ...]:
    """The last tokens of the longest prompt, whose loss shows whether training helps."""
    longest = max((prompt.text for prompt in prompts), key=len, default="")
    end = longest[-_CHARACTERS_PER_TOKEN * PROBE_TOKENS :]
    return tuple(tokenizer.encode(end, add_special_tokens=False)[-PROBE_TOKENS:])


def _turns(messages: list[Any]) -> tuple[Prompt, ...]:
    """The last user turn in the context of the turns before it; what follows it, such as the result
    of a tool, is another prompt.
    """
    turns = [message for message in messages if isinstance(message, dict)]
    # A response's result of a tool has its text in `output`.
    texts = [_text(turn.get("content") or turn.get("output")) for turn in turns]
    last = max(
        (i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=len(turns) - 1
    )
    if last < 0:
        return (Prompt(""),)
    before = "\n".join(filter(None, texts[:last]))
    after = "\n".join(filter(None, texts[last + 1 :]))
    question = _tail_of(texts[last], before)
    return (question, _tail_of(after)) if after else (question,)


def _tail_of(text: str, context: str = "") -> Prompt:
    """A prompt without the characters that no embedder reads, which need not be sent to one."""
    return Prompt(text[-MAX_PROMPT_CHARACTERS:], context[-MAX_PROMPT_CHARACTERS:])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)
    )


def _decode(tokens: Any, tokenizer: Any) -> str:
    """The text of the last tokens; a token has a character at least, unless it shares one."""
    valid = isinstance(tokens, list) and are_tokens(tokens, len(tokenizer))
    return str(tokenizer.decode(tokens[-MAX_PROMPT_CHARACTERS:])) if valid else ""
