"""What a request says: the texts to adapt to, and what it wishes of its adaptation.

A file_search among the tools of a response says it, too. Only what concerns adaptation is judged
here, and by `unsupported` what has no effect; everything else in the body is vLLM's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adapters.step_plan import PLANS
from selection.corpus.filters import Filter, to_sql
from selection.embedding import MAX_PROMPT_CHARACTERS, Prompt
from selection.strategies.registry import STRATEGIES
from selection.targets import MAX_TARGETS, Truncation, evenly_spaced
from serving.adaptation.file_search import take_file_search
from serving.adaptation.terms import Terms
from serving.adaptation.wish import AdaptationRequest
from serving.budget import ALIAS, FIELD, HEADER, Budget, agreed_budget
from serving.engine.limits import are_tokens
from serving.errors import RequestError

WATCHED = 256  # tokens
_CHARACTERS = 16  # of a token, more than any text has on average
_OPTIONS = {
    "corpus",
    "filters",
    "plan",
    "progress",
    "prompt",
    "required",
    "reuse",
    "seed",
    "strategy",
}


def parse_adaptation_request(
    body: dict[str, Any],
    header: str | None,
    alias: str | None,
    terms: Terms,
    tokenizer: Any,
    *,
    default: Budget | None = None,
    limits: Budget | None = None,
) -> AdaptationRequest:
    """What a request asks of its adaptation; takes the budget and the `adaptation` extension out of
    the body.

    Args:
        body: of the request, JSON.
        header, alias: Compute-Budget and X-Compute-Budget.
        terms: the server's.
        tokenizer: the model's, for prompts of token ids.
        default: the budget of a request that says none, where the API key has its own.
        limits: of the API key, within the server's.

    Raises:
        BudgetError: a header or `compute_budget`.
        RequestError: the extension, or a `file_search`.
    """
    if "input" in body and "messages" not in body:  # a response
        take_file_search(body)
    within = terms.within(limits)
    said = {HEADER: header, ALIAS: alias, FIELD: body.pop(FIELD, None)}
    budget = agreed_budget(said, terms.auto if default is None else default, terms.auto, within)
    budget, cut = budget.cut_to(within)
    wanted = body.pop("adaptation", None)
    wanted = {} if wanted is None else wanted
    if not isinstance(wanted, dict):
        raise RequestError('`adaptation` is an object such as {"corpus": "name", "seed": 0}')
    unknown = set(wanted) - _OPTIONS
    if unknown:
        raise RequestError(
            f"`adaptation` has no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(_OPTIONS))}"
        )
    corpus = wanted.get("corpus", terms.corpus)
    if corpus is not None and not isinstance(corpus, str):
        raise RequestError("`adaptation.corpus` is the name of a corpus")
    strategy = wanted.get("strategy", "sift")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise RequestError(f"`adaptation.strategy` is one of {', '.join(STRATEGIES)}")
    if strategy != "sift":  # it alone has a stopping rule
        if any("alpha" in each for each in said.values() if each is not None):
            raise RequestError(
                f"`adaptation.strategy` {strategy} cannot stop by alpha: give {HEADER} steps or seconds"
            )
        budget = replace(budget, alpha=None)
    plan = wanted.get("plan", "sequential")
    if plan == "last-layer":
        raise RequestError(
            "`adaptation.plan` last-layer: the engine cannot load an adapter of the last linear layer"
        )
    if not isinstance(plan, str) or plan not in PLANS:
        raise RequestError(f"`adaptation.plan` is one of {', '.join(PLANS)}")
    seed = wanted.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise RequestError("`adaptation.seed` is a whole number, 0 or more")
    reuse = wanted.get("reuse")
    if reuse not in (None, "conversation"):
        raise RequestError(
            '`adaptation.reuse` is "conversation": go on from the adapter of the turn before'
        )
    prompt = wanted.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError(
            "`adaptation.prompt` is the text to adapt to, where it is not the request's own prompt"
        )
    prompts, truncation = _prompts(body, tokenizer) if prompt is None else ((_end(prompt),), None)
    return AdaptationRequest(
        prompts=prompts,
        budget=budget,
        cut=cut,
        corpus=corpus,
        named="corpus" in wanted,
        only=_filters(wanted.get("filters")),
        strategy=strategy,
        plan=plan,
        seed=seed,
        required=_flag(wanted, "required"),
        progress=_flag(wanted, "progress"),
        reuse=reuse is not None,
        tokens=() if budget.steps == 0 or corpus is None else watched(prompts, tokenizer),
        truncation=truncation,
    )


def watched(prompts: Sequence[Prompt], tokenizer: Any) -> tuple[int, ...]:
    """The tokens whose loss tells whether training pays and has helped: the last WATCHED of the
    longest prompt.
    """
    text = max((prompt.text for prompt in prompts), key=len, default="")[-_CHARACTERS * WATCHED :]
    return tuple(tokenizer.encode(text, add_special_tokens=False)[-WATCHED:])


def _flag(wanted: dict[str, Any], name: str) -> bool:
    value = wanted.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"`adaptation.{name}` is true or false")
    return value


def _filters(wanted: Any) -> Filter | None:
    if wanted is None:
        return None
    try:
        to_sql(wanted)
    except ValueError as problem:
        raise RequestError(f"`adaptation.filters`: {problem}") from problem
    filters: Filter = wanted
    return filters


def _prompts(body: dict[str, Any], tokenizer: Any) -> tuple[tuple[Prompt, ...], Truncation | None]:
    """What to adapt to: the last user turn of a chat or a response, or prompts of a completion.

    Of more prompts than data is chosen for, those that are looked at, and how many that are: the
    others are neither decoded nor sent on. Their form is vLLM's to judge.
    """
    if "messages" in body:
        return _turns(body["messages"] if isinstance(body["messages"], list) else []), None
    if "input" in body:
        said = body["input"]
        items = said if isinstance(said, list) else [{"role": "user", "content": said}]
        return _turns([{"role": "system", "content": body.get("instructions")}, *items]), None
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (_end(prompt),), None
    if not isinstance(prompt, list) or not prompt:
        return (Prompt(""),), None
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    looked_at = evenly_spaced(prompt, MAX_TARGETS)
    truncation = (
        Truncation(len(looked_at), len(prompt), "prompts") if len(looked_at) < len(prompt) else None
    )
    return tuple(
        _end(p if isinstance(p, str) else _decode(p, tokenizer)) for p in looked_at
    ), truncation


def _turns(messages: list[Any]) -> tuple[Prompt, ...]:
    """The last user turn, in the context of those before it; what follows it, a tool's results, is
    another prompt.
    """
    turns = [message for message in messages if isinstance(message, dict)]
    # `output`: of a tool, in a response.
    texts = [_text(turn.get("content") or turn.get("output")) for turn in turns]
    last = max(
        (i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=len(turns) - 1
    )
    if last < 0:
        return (Prompt(""),)
    before, after = (
        "\n".join(filter(None, texts[:last])),
        "\n".join(filter(None, texts[last + 1 :])),
    )
    asked = _end(texts[last], before)
    return (asked, _end(after)) if after else (asked,)


def _end(text: str, context: str = "") -> Prompt:
    """A prompt without what no embedder looks at, which need not travel to one."""
    return Prompt(text[-MAX_PROMPT_CHARACTERS:], context[-MAX_PROMPT_CHARACTERS:])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)
    )


def _decode(tokens: Any, tokenizer: Any) -> str:
    """The text of the last tokens: each is a character at least, but for those that share one."""
    sound = isinstance(tokens, list) and are_tokens(tokens, len(tokenizer))
    return str(tokenizer.decode(tokens[-MAX_PROMPT_CHARACTERS:])) if sound else ""
