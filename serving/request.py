"""What a request says: its body, the texts to adapt to, and what it wishes of its adaptation.

Only what concerns adaptation is judged here; everything else in the body is vLLM's to judge.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from selection.selector import STRATEGIES
from serving.adaptation import Wish
from serving.budget import parse_budget
from serving.config import Config
from serving.errors import RequestError, TooLargeError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MAX_BODY = 16 << 20  # bytes
_OPTIONS = {"corpus", "prompt", "required", "seed", "strategy"}


async def read_body(receive: Receive) -> dict[str, Any]:
    """The whole body of a request, a JSON object.

    Raises:
        RequestError: not JSON, not Unicode, not an object, or the client left.
        TooLargeError: more than MAX_BODY.
    """
    content = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client left before its request was complete")
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > MAX_BODY:
            raise TooLargeError(f"the request body is larger than {MAX_BODY >> 20} MiB")
    try:
        body = json.loads(content, parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as problem:
        raise RequestError(
            "the request body is not Unicode text: it holds bytes or surrogates that stand alone"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the request body is not JSON: {problem}") from problem
    if not isinstance(body, dict):
        raise RequestError("the request body is not a JSON object")
    return body


def read_wish(body: dict[str, Any], budget_header: str | None, config: Config, tokenizer: Any) -> Wish:
    """What a request asks of its adaptation; takes the `adaptation` extension out of the body.

    Raises:
        BudgetError: the header.
        RequestError: the extension.
    """
    budget = parse_budget(budget_header, default=config.auto, auto=config.auto, limits=config.limits)
    budget, cut = budget.cut_to(config.limits)
    wanted = body.pop("adaptation", None)
    wanted = {} if wanted is None else wanted
    if not isinstance(wanted, dict):
        raise RequestError('`adaptation` is an object such as {"corpus": "name", "seed": 0}')
    unknown = set(wanted) - _OPTIONS
    if unknown:
        raise RequestError(f"`adaptation` has no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(_OPTIONS))}")
    corpus = wanted.get("corpus", config.corpus)
    if corpus is not None and not isinstance(corpus, str):
        raise RequestError("`adaptation.corpus` is the name of a corpus")
    strategy = wanted.get("strategy", "sift")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise RequestError(f"`adaptation.strategy` is one of {', '.join(STRATEGIES)}")
    if strategy == "nn":  # it has no stopping rule
        if budget_header is not None and "alpha" in budget_header:
            raise RequestError("`adaptation.strategy` nn cannot stop by alpha: give Compute-Budget steps or seconds")
        budget = replace(budget, alpha=None)
    seed = wanted.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise RequestError("`adaptation.seed` is a whole number, 0 or more")
    required = wanted.get("required", False)
    if type(required) is not bool:
        raise RequestError("`adaptation.required` is true or false")
    prompt = wanted.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError("`adaptation.prompt` is the text to adapt to, where it is not the request's own prompt")
    prompts = _prompts(body, tokenizer) if prompt is None else (prompt,)
    return Wish(prompts, budget, cut, corpus, strategy, seed, required)


def _prompts(body: dict[str, Any], tokenizer: Any) -> tuple[str, ...]:
    """The texts to adapt to: a chat's turns joined, or each prompt of a completion. vLLM judges their form."""
    if "messages" in body:
        turns = body["messages"] if isinstance(body["messages"], list) else []
        return ("\n".join(_text(turn.get("content")) for turn in turns if isinstance(turn, dict)),)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        return ("",)
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    return tuple(p if isinstance(p, str) else _decode(p, tokenizer) for p in prompt)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def _decode(tokens: Any, tokenizer: Any) -> str:
    sound = isinstance(tokens, list) and all(type(t) is int and 0 <= t < len(tokenizer) for t in tokens)
    return str(tokenizer.decode(tokens)) if sound else ""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
