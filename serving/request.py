"""What a request says: the texts to adapt to, and what it wishes of its adaptation.

Only what concerns adaptation is judged here; everything else in the body is vLLM's to judge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adapters.plan import PLANS
from selection.embedding import Prompt
from selection.filters import Filter, to_sql
from selection.selector import STRATEGIES
from serving.adaptation import Wish
from serving.budget import parse_budget
from serving.config import Config
from serving.errors import RequestError

_OPTIONS = {"corpus", "filters", "plan", "prompt", "required", "seed", "strategy"}


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
    if strategy != "sift":  # it alone has a stopping rule
        if budget_header is not None and "alpha" in budget_header:
            raise RequestError(
                f"`adaptation.strategy` {strategy} cannot stop by alpha: give Compute-Budget steps or seconds"
            )
        budget = replace(budget, alpha=None)
    plan = wanted.get("plan", "sequential")
    if plan == "last-layer":
        raise RequestError("`adaptation.plan` last-layer: the engine cannot load an adapter of the last linear layer")
    if not isinstance(plan, str) or plan not in PLANS:
        raise RequestError(f"`adaptation.plan` is one of {', '.join(PLANS)}")
    seed = wanted.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise RequestError("`adaptation.seed` is a whole number, 0 or more")
    required = wanted.get("required", False)
    if type(required) is not bool:
        raise RequestError("`adaptation.required` is true or false")
    prompt = wanted.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError("`adaptation.prompt` is the text to adapt to, where it is not the request's own prompt")
    prompts = _prompts(body, tokenizer) if prompt is None else (Prompt(prompt),)
    return Wish(prompts, budget, cut, corpus, _filters(wanted.get("filters")), strategy, plan, seed, required)


def _filters(wanted: Any) -> Filter | None:
    if wanted is None:
        return None
    try:
        to_sql(wanted)
    except ValueError as problem:
        raise RequestError(f"`adaptation.filters`: {problem}") from problem
    filters: Filter = wanted
    return filters


def _prompts(body: dict[str, Any], tokenizer: Any) -> tuple[Prompt, ...]:
    """What to adapt to: a chat's last user turn, or each prompt of a completion. vLLM judges their form."""
    if "messages" in body:
        return _turns(body["messages"] if isinstance(body["messages"], list) else [])
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (Prompt(prompt),)
    if not isinstance(prompt, list) or not prompt:
        return (Prompt(""),)
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    return tuple(Prompt(p if isinstance(p, str) else _decode(p, tokenizer)) for p in prompt)


def _turns(messages: list[Any]) -> tuple[Prompt, ...]:
    """The last user turn, in the context of those before it; what follows it, a tool's results, is another prompt."""
    turns = [message for message in messages if isinstance(message, dict)]
    texts = [_text(turn.get("content")) for turn in turns]
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=len(turns) - 1)
    if last < 0:
        return (Prompt(""),)
    before, after = "\n".join(filter(None, texts[:last])), "\n".join(filter(None, texts[last + 1 :]))
    asked = Prompt(texts[last], before)
    return (asked, Prompt(after)) if after else (asked,)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def _decode(tokens: Any, tokenizer: Any) -> str:
    sound = isinstance(tokens, list) and all(type(t) is int and 0 <= t < len(tokenizer) for t in tokens)
    return str(tokenizer.decode(tokens)) if sound else ""
