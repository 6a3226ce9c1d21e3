"""What a request asks of its adaptation: the `adaptation` extension, its refusals, and the prompts to adapt to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.trainer import TrainerConfig
from selection.selector import SelectorConfig
from serving.adaptation import Wish
from serving.budget import Budget
from serving.config import Config, EngineConfig
from serving.errors import BudgetError, RequestError
from serving.request import read_wish

_AUTO = Budget(steps=50, seconds=None, alpha=0.1)
_CONFIG = Config(
    EngineConfig("model", "model", 16, ("q_proj",)),
    TrainerConfig("model"),
    SelectorConfig(Path("nowhere")),
    corpus="house",
    auto=_AUTO,
    limits=Budget(steps=40, seconds=60.0),
)


def wish(body: dict[str, Any], tokenizer: Any, header: str | None = "steps=5") -> Wish:
    return read_wish(body, header, _CONFIG, tokenizer)


def test_a_plain_request_takes_the_servers_defaults(tokenizer: Any) -> None:
    body = {"prompt": "Once upon a time"}

    asked = wish(body, tokenizer, header=None)

    assert asked == Wish(("Once upon a time",), Budget(40, 60.0, 0.1), ("steps",), "house", "sift", 0, False)
    assert body == {"prompt": "Once upon a time"}


def test_the_extension_is_read_and_taken_out_of_the_body(tokenizer: Any) -> None:
    extension = {"corpus": "mine", "seed": 7, "required": True, "strategy": "nn", "prompt": "this instead"}
    body = {"prompt": "not this", "max_tokens": 5, "adaptation": extension}

    asked = wish(body, tokenizer)

    assert asked == Wish(("this instead",), Budget(5, 60.0), (), "mine", "nn", 7, True)
    assert body == {"prompt": "not this", "max_tokens": 5}


@pytest.mark.parametrize("extension", [None, {}])
def test_an_extension_that_says_nothing_changes_nothing(tokenizer: Any, extension: dict[str, Any] | None) -> None:
    body: dict[str, Any] = {"prompt": "x", "adaptation": extension}

    assert wish(body, tokenizer) == wish({"prompt": "x"}, tokenizer)
    assert body == {"prompt": "x"}


def test_a_request_may_decline_the_servers_corpus(tokenizer: Any) -> None:
    assert wish({"prompt": "x", "adaptation": {"corpus": None}}, tokenizer).corpus is None


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ("house", "is an object"),
        ([], "is an object"),
        (5, "is an object"),
        (False, "is an object"),
        ({"corpora": "x"}, "has no corpora; it takes corpus, prompt"),
        ({"seed": 1, "Seed": 1, "alpha": 2}, "has no Seed, alpha"),
        ({"corpus": 5}, "corpus` is the name"),
        ({"corpus": ["a"]}, "corpus` is the name"),
        ({"strategy": "luck"}, "strategy` is one of sift, nn"),
        ({"strategy": None}, "strategy` is one of sift, nn"),
        ({"strategy": 1}, "strategy` is one of sift, nn"),
        ({"strategy": ["sift"]}, "strategy` is one of sift, nn"),
        ({"strategy": {"sift": 1}}, "strategy` is one of sift, nn"),
        ({"seed": -1}, "seed` is a whole number"),
        ({"seed": 1.0}, "seed` is a whole number"),
        ({"seed": True}, "seed` is a whole number"),
        ({"seed": "1"}, "seed` is a whole number"),
        ({"seed": 1 << 63}, "seed` is a whole number"),
        ({"seed": None}, "seed` is a whole number"),
        ({"required": 1}, "required` is true or false"),
        ({"required": "yes"}, "required` is true or false"),
        ({"required": None}, "required` is true or false"),
        ({"prompt": 5}, "prompt` is the text"),
        ({"prompt": ["a"]}, "prompt` is the text"),
    ],
)
def test_an_extension_that_is_none_is_refused(tokenizer: Any, extension: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        wish({"prompt": "x", "adaptation": extension}, tokenizer)


def test_the_largest_seed_is_taken(tokenizer: Any) -> None:
    asked = wish({"prompt": "x", "adaptation": {"seed": (1 << 63) - 1}}, tokenizer)

    assert asked.seed == (1 << 63) - 1


@pytest.mark.parametrize("header", ["alpha=0.1", "steps=5, alpha=0.2"])
def test_nearest_neighbours_refuse_an_alpha(tokenizer: Any, header: str) -> None:
    with pytest.raises(RequestError, match="cannot stop by alpha"):
        wish({"prompt": "x", "adaptation": {"strategy": "nn"}}, tokenizer, header)


@pytest.mark.parametrize("header", ["auto", None])
def test_nearest_neighbours_leave_the_servers_own_alpha_out(tokenizer: Any, header: str | None) -> None:
    asked = wish({"prompt": "x", "adaptation": {"strategy": "nn"}}, tokenizer, header)

    assert asked.budget.alpha is None


def test_a_budget_is_cut_to_the_servers_limits(tokenizer: Any) -> None:
    asked = wish({"prompt": "x"}, tokenizer, "steps=1000, seconds=1000")

    assert (asked.budget, asked.cut) == (Budget(40, 60.0), ("steps", "seconds"))


def test_a_bad_budget_is_refused_first(tokenizer: Any) -> None:
    with pytest.raises(BudgetError):
        wish({"prompt": "x", "adaptation": "neither is this"}, tokenizer, "steps=-1")


def test_the_turns_of_a_chat_are_one_prompt(tokenizer: Any) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]},
    ]

    assert wish({"messages": messages}, tokenizer).prompts == ("Be brief.\nLook:\n\nand\nnow?",)


@pytest.mark.parametrize(
    "messages", [None, [], "text", 5, {}, [None], [5], ["text"], [{}], [{"content": {"text": "x"}}], [{"content": [5]}]]
)
def test_messages_that_vllm_will_refuse_are_left_to_it(tokenizer: Any, messages: Any) -> None:
    assert wish({"messages": messages}, tokenizer).prompts == ("",)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("one", ("one",)),
        (["one"], ("one",)),
        (["one", "two"], ("one", "two")),
        ("", ("",)),
        ([], ("",)),
        (None, ("",)),
        (5, ("",)),
        ({"text": "x"}, ("",)),
        (["one", 5, None], ("one", "", "")),
        ([True], ("",)),
        ([[-1]], ("",)),
        ([[1 << 40]], ("",)),
        ([["one"]], ("",)),
    ],
)
def test_the_prompts_of_a_completion(tokenizer: Any, prompt: Any, prompts: tuple[str, ...]) -> None:
    assert wish({"prompt": prompt}, tokenizer).prompts == prompts


def test_prompts_of_token_ids_are_read(tokenizer: Any) -> None:
    one, two = ("def add(a, b):\n    return a + b", "Once upon a time")
    ids_of_one, ids_of_two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, two))

    assert wish({"prompt": ids_of_one}, tokenizer).prompts == (one,)
    assert wish({"prompt": [ids_of_one]}, tokenizer).prompts == (one,)
    assert wish({"prompt": [ids_of_one, ids_of_two]}, tokenizer).prompts == (one, two)
    assert wish({"prompt": [ids_of_one, two]}, tokenizer).prompts == (one, two)


def test_a_request_without_a_prompt_is_left_to_vllm(tokenizer: Any) -> None:
    assert wish({}, tokenizer).prompts == ("",)
