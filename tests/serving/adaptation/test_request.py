"""The adaptation extension: its options, its errors, and the prompts to adapt to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selection.access import OPERATOR
from selection.corpus.calibration import Calibration
from selection.embedding import MAX_PROMPT_CHARACTERS, Prompt
from selection.selector import Selection, SelectionStop
from selection.targets import MAX_TARGETS, Truncation
from serving.adaptation.request import AdaptationRequest, parse_adaptation_request
from serving.adaptation.starts import StartingPoint
from serving.budget import AUTO, INSTANT, Budget, Terms
from serving.errors import BudgetError, RequestError

_AUTO = Budget(steps=50, seconds=None, alpha=0.1)
_TERMS = Terms(_AUTO, Budget(steps=40, seconds=60.0), "house")
_SELECTION = Selection(
    corpus="vs_1",
    ids=(1, 2),
    sequences=((5, 6, 7), (8, 9)),
    scored=(((2, 3),), None),
    sources=(),
    uncertainty=(1.0, 0.5, 0.4),
    irreducible=0.1,
    stop=SelectionStop.STEPS,
    calibration=None,
    strategy="sift",
    seconds={},
)


def parse(
    body: dict[str, Any], tokenizer: Any, header: str | None = "steps=5"
) -> AdaptationRequest:
    return parse_adaptation_request(body, header, None, _TERMS, tokenizer)


def test_a_plain_request_takes_the_servers_defaults(tokenizer: Any) -> None:
    body = {"prompt": "Once upon a time"}

    request = parse(body, tokenizer, header=None)

    tokens = tuple(tokenizer("Once upon a time", add_special_tokens=False)["input_ids"])
    prompts, budget = (Prompt("Once upon a time"),), Budget(40, 60.0, 0.1)
    assert request == AdaptationRequest(
        prompts,
        budget,
        ("steps",),
        "house",
        corpus_explicit=False,
        show=None,
        probe_tokens=tokens,
    )
    assert body == {"prompt": "Once upon a time"}


def test_the_extension_is_read_and_taken_out_of_the_body(tokenizer: Any) -> None:
    filters = {"type": "eq", "key": "language", "value": "de"}
    extension = {
        "corpus": "mine",
        "filters": filters,
        "seed": 7,
        "required": True,
        "strategy": "nn",
        "plan": "reuse",
        "progress": True,
        "reuse": "conversation",
        "prompt": "this instead",
    }
    body = {"prompt": "not this", "max_tokens": 5, "adaptation": extension}

    request = parse(body, tokenizer)

    prompts = (Prompt("this instead"),)
    tokens = tuple(tokenizer("this instead", add_special_tokens=False)["input_ids"])
    assert request == AdaptationRequest(
        prompts,
        Budget(5, 60.0),
        (),
        "mine",
        filter=filters,
        strategy="nn",
        plan="reuse",
        seed=7,
        required=True,
        progress=True,
        show=None,
        reuse="conversation",
        probe_tokens=tokens,
    )
    assert body == {"prompt": "not this", "max_tokens": 5}


def test_a_file_search_of_a_response_names_the_corpus(tokenizer: Any) -> None:
    filters = {"type": "eq", "key": "language", "value": "de"}
    search = {"type": "file_search", "vector_store_ids": ["mine"], "filters": filters}
    body: dict[str, Any] = {"input": "x", "tools": [search], "tool_choice": "auto"}

    request = parse(body, tokenizer)

    assert (request.corpus, request.corpus_explicit, request.filter) == ("mine", True, filters)
    assert body == {"input": "x"}
    with pytest.raises(RequestError, match=r"`adaptation\.filters`"):
        parse({"input": "x", "tools": [{**search, "filters": {"type": "like"}}]}, tokenizer)


@pytest.mark.parametrize("extension", [None, {}, {"reuse": None}])
def test_an_empty_extension_changes_nothing(
    tokenizer: Any, extension: dict[str, Any] | None
) -> None:
    body: dict[str, Any] = {"prompt": "x", "adaptation": extension}

    assert parse(body, tokenizer) == parse({"prompt": "x"}, tokenizer)
    assert body == {"prompt": "x"}


def test_a_request_may_decline_the_servers_corpus(tokenizer: Any) -> None:
    assert parse({"prompt": "x", "adaptation": {"corpus": None}}, tokenizer).corpus is None


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ("house", "is an object"),
        ([], "is an object"),
        (5, "is an object"),
        (False, "is an object"),
        ({"corpora": "x"}, "has no corpora; it takes corpus, examples, examples_as, filters"),
        ({"seed": 1, "Seed": 1, "alpha": 2}, "has no Seed, alpha"),
        ({"corpus": 5}, "corpus` is the name"),
        ({"corpus": ["a"]}, "corpus` is the name"),
        ({"strategy": "luck"}, "strategy` is one of sift, nn"),
        ({"strategy": None}, "strategy` is one of sift, nn"),
        ({"plan": "backwards"}, "plan` is one of sequential, batched, reuse"),
        ({"plan": ["reuse"]}, "plan` is one of sequential, batched, reuse"),
        ({"plan": None}, "plan` is one of sequential, batched, reuse"),
        ({"plan": "last-layer"}, "the engine cannot load an adapter of the last linear layer"),
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
        ({"progress": 1}, "progress` is true or false"),
        ({"reuse": True}, 'reuse` is "conversation"'),
        ({"reuse": ["conversation"]}, 'reuse` is "conversation"'),
        ({"reuse": "everything"}, 'reuse` is "conversation"'),
        ({"filters": "language"}, "a filter is an object"),
        ({"filters": {"type": "eq", "key": "a", "value": "\0"}}, "contain the character U\\+0000"),
        ({"filters": {}}, "has `type`, `key`"),
        ({"filters": {"type": "like", "key": "a", "value": "b"}}, "unknown filter type 'like'"),
        ({"prompt": 5}, "prompt` is the text"),
        ({"prompt": ["a"]}, "prompt` is the text"),
        ({"start": "last-week"}, 'start` is "corpus" .* or "fresh"'),
    ],
)
def test_an_invalid_extension_is_refused(tokenizer: Any, extension: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse({"prompt": "x", "adaptation": extension}, tokenizer)


def test_the_largest_seed_is_accepted(tokenizer: Any) -> None:
    request = parse({"prompt": "x", "adaptation": {"seed": (1 << 63) - 1}}, tokenizer)

    assert request.seed == (1 << 63) - 1


@pytest.mark.parametrize("header", ["alpha=0.1", "steps=5, alpha=0.2"])
def test_nearest_neighbours_refuse_an_alpha(tokenizer: Any, header: str) -> None:
    with pytest.raises(RequestError, match="cannot stop by alpha"):
        parse({"prompt": "x", "adaptation": {"strategy": "nn"}}, tokenizer, header)


@pytest.mark.parametrize("header", ["auto", None])
def test_nearest_neighbours_drop_the_servers_alpha(tokenizer: Any, header: str | None) -> None:
    request = parse({"prompt": "x", "adaptation": {"strategy": "nn"}}, tokenizer, header)

    assert request.budget.alpha is None


@pytest.mark.parametrize(("extension", "strategy"), [({}, None), ({"strategy": "sift"}, "sift")])
def test_sift_and_the_choice_of_the_corpus_keep_the_servers_alpha(
    tokenizer: Any, extension: dict[str, Any], strategy: str | None
) -> None:
    request = parse({"prompt": "x", "adaptation": extension}, tokenizer, None)

    assert (request.strategy, request.budget.alpha) == (strategy, 0.1)
    assert request.selection("house", OPERATOR).strategy == strategy


def test_a_budget_is_clamped_to_the_servers_limits(tokenizer: Any) -> None:
    request = parse({"prompt": "x"}, tokenizer, "steps=1000, seconds=1000")

    assert (request.budget, request.clamped) == (Budget(40, 60.0), ("steps", "seconds"))


def test_a_bad_budget_is_refused_first(tokenizer: Any) -> None:
    with pytest.raises(BudgetError):
        parse({"prompt": "x", "adaptation": "neither is this"}, tokenizer, "steps=-1")


@pytest.mark.parametrize(
    ("header", "alias", "field"),
    [
        ("steps=5", None, None),
        (None, "steps=5", None),
        (None, None, {"steps": 5}),
        ("steps=5", "steps=5", "steps=5"),
    ],
)
def test_a_budget_comes_from_a_header_its_alias_or_the_body(
    tokenizer: Any, header: str | None, alias: str | None, field: Any
) -> None:
    body = {"prompt": "x", "compute_budget": field}

    request = parse_adaptation_request(body, header, alias, _TERMS, tokenizer)

    assert request.budget == Budget(5, 60.0)
    assert body == {"prompt": "x"}


def test_places_that_disagree_are_refused(tokenizer: Any) -> None:
    with pytest.raises(BudgetError, match="Compute-Budget and compute_budget disagree"):
        parse({"prompt": "x", "compute_budget": {"steps": 6}}, tokenizer, "steps=5")


def test_nearest_neighbours_refuse_an_alpha_in_the_body(tokenizer: Any) -> None:
    body = {"prompt": "x", "compute_budget": {"alpha": 0.1}, "adaptation": {"strategy": "nn"}}

    with pytest.raises(RequestError, match="cannot stop by alpha"):
        parse(body, tokenizer, None)


_KEYS_DEFAULT, _KEYS_LIMITS = Budget(3, alpha=0.2), Budget(10, 5.0)


@pytest.mark.parametrize(
    ("header", "budget", "cut"),
    [
        (None, Budget(3, 5.0, 0.2), ()),
        ("auto", Budget(10, 5.0, 0.1), ("steps",)),
        ("seconds=2", Budget(10, 2.0), ()),
        ("steps=30, seconds=30", Budget(10, 5.0), ("steps", "seconds")),
        ("none", Budget(0, 5.0), ()),
    ],
)
def test_a_key_has_a_default_and_limits_of_its_own(
    tokenizer: Any, header: str | None, budget: Budget, cut: tuple[str, ...]
) -> None:
    request = parse_adaptation_request(
        {"prompt": "x"},
        header,
        None,
        _TERMS,
        tokenizer,
        default=_KEYS_DEFAULT,
        key_limits=_KEYS_LIMITS,
    )

    assert (request.budget, request.clamped) == (budget, cut)


def test_a_key_gets_no_more_than_the_server_allows(tokenizer: Any) -> None:
    limits = Budget(1000, 1000.0)

    request = parse_adaptation_request(
        {"prompt": "x"}, "steps=500, seconds=500", None, _TERMS, tokenizer, key_limits=limits
    )

    assert request.budget == Budget(40, 60.0)


def test_the_last_user_turn_of_a_chat_is_the_prompt_and_those_before_its_context(
    tokenizer: Any,
) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "u"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}],
        },
    ]

    assert parse({"messages": messages}, tokenizer).prompts == (
        Prompt("and\nnow?", "Be brief.\nLook:"),
    )


def test_what_follows_the_last_user_turn_is_a_prompt_of_its_own(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "What does the file say?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "It says: hello."},
    ]

    assert parse({"messages": messages}, tokenizer).prompts == (
        Prompt("What does the file say?"),
        Prompt("It says: hello."),
    )


def test_a_chat_without_a_user_is_adapted_to_its_last_turn(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "You tell stories."},
        {"role": "assistant", "content": "Once"},
    ]

    assert parse({"messages": messages}, tokenizer).prompts == (
        Prompt("Once", "You tell stories."),
    )


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        5,
        {},
        [None],
        [5],
        ["text"],
        [{}],
        [{"content": {"text": "x"}}],
        [{"content": [5]}],
    ],
)
def test_messages_that_vllm_will_refuse_are_left_to_it(tokenizer: Any, messages: Any) -> None:
    assert parse({"messages": messages}, tokenizer).prompts == (Prompt(""),)


def test_a_response_is_adapted_to_its_input(tokenizer: Any) -> None:
    request = parse({"input": "And now?", "instructions": "Be brief."}, tokenizer)

    assert request.prompts == (Prompt("And now?", "Be brief."),)


def test_a_response_is_adapted_to_the_last_user_turn_in_its_context(tokenizer: Any) -> None:
    items: list[Any] = [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Look:"}, {"type": "input_image"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I see."}],
        },
        {"role": "user", "content": "What does the file say?"},
        {"type": "function_call", "call_id": "1", "name": "read", "arguments": '{"file": 1}'},
        {"type": "function_call_output", "call_id": "1", "output": "It says: hello."},
        {
            "type": "function_call_output",
            "call_id": "2",
            "output": [{"type": "input_text", "text": "And bye."}],
        },
    ]

    assert parse({"input": items, "instructions": "Be brief."}, tokenizer).prompts == (
        Prompt("What does the file say?", "Be brief.\nLook:\nI see."),
        Prompt("It says: hello.\nAnd bye."),
    )


@pytest.mark.parametrize(
    "value", [None, [], 5, {}, [None], [5], ["text"], [{}], [{"role": "user", "content": 5}]]
)
def test_an_input_that_vllm_will_refuse_is_left_to_it(tokenizer: Any, value: Any) -> None:
    assert parse({"input": value, "instructions": 5}, tokenizer).prompts == (Prompt(""),)


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
    assert parse({"prompt": prompt}, tokenizer).prompts == tuple(map(Prompt, prompts))


def test_prompts_of_token_ids_are_read(tokenizer: Any) -> None:
    one, two = ("def add(a, b):\n    return a + b", "Once upon a time")
    ids_of_one, ids_of_two = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, two)
    )

    assert parse({"prompt": ids_of_one}, tokenizer).prompts == (Prompt(one),)
    assert parse({"prompt": [ids_of_one]}, tokenizer).prompts == (Prompt(one),)
    assert parse({"prompt": [ids_of_one, ids_of_two]}, tokenizer).prompts == (
        Prompt(one),
        Prompt(two),
    )
    assert parse({"prompt": [ids_of_one, two]}, tokenizer).prompts == (Prompt(one), Prompt(two))


class Counting:
    """A tokenizer that counts what it decodes and encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.decoded = self.encoded = 0
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._tokenizer)

    def decode(self, tokens: list[int]) -> str:
        self.decoded += len(tokens)
        return str(self._tokenizer.decode(tokens))

    def encode(self, text: str, **options: Any) -> list[int]:
        self.encoded += len(text)
        ids: list[int] = self._tokenizer.encode(text, **options)
        return ids


def test_of_thousands_of_prompts_only_those_used_are_decoded(tokenizer: Any) -> None:
    counting = Counting(tokenizer)
    prompts = [[5 + i % 100] * 1000 for i in range(2048)]

    request = parse({"prompt": prompts}, counting, header="gain=0.4")

    assert len(request.prompts) == MAX_TARGETS
    assert request.truncation == Truncation(MAX_TARGETS, 2048, "prompts")
    assert request.prompts[0] == Prompt(tokenizer.decode(prompts[0]))
    assert request.prompts[-1] == Prompt(tokenizer.decode(prompts[-1]))
    assert counting.decoded == MAX_TARGETS * 1000
    assert counting.encoded <= 16 * 256


def test_prompts_within_the_bound_are_all_used(tokenizer: Any) -> None:
    request = parse({"prompt": [f"prompt {i}" for i in range(MAX_TARGETS)]}, tokenizer)

    assert request.prompts == tuple(Prompt(f"prompt {i}") for i in range(MAX_TARGETS))
    assert request.truncation is None


def test_of_a_very_long_text_only_the_end_is_sent(tokenizer: Any) -> None:
    long = "a" + "b" * MAX_PROMPT_CHARACTERS
    messages = [{"role": "system", "content": long}, {"role": "user", "content": long}]
    tokens = [7] * (2 * MAX_PROMPT_CHARACTERS)
    counting = Counting(tokenizer)

    assert parse({"prompt": long}, tokenizer).prompts == (Prompt(long[1:]),)
    assert parse({"messages": messages}, tokenizer).prompts == (Prompt(long[1:], long[1:]),)
    parse({"prompt": tokens}, counting)
    assert counting.decoded == MAX_PROMPT_CHARACTERS


def test_a_request_without_a_prompt_is_left_to_vllm(tokenizer: Any) -> None:
    assert parse({}, tokenizer).prompts == (Prompt(""),)


@pytest.mark.parametrize("header", ["steps=5", "seconds=2", "gain=0.4", "auto", None])
def test_every_budget_with_a_step_has_probe_tokens(tokenizer: Any, header: str | None) -> None:
    assert len(parse({"prompt": "def add(a, b):"}, tokenizer, header).probe_tokens) > 1


@pytest.mark.parametrize("header", ["none", "instant", "steps=0"])
def test_without_an_adaptation_there_are_no_probe_tokens(tokenizer: Any, header: str) -> None:
    assert parse({"prompt": "def add(a, b):"}, tokenizer, header).probe_tokens == ()
    assert parse({"prompt": "x", "adaptation": {"corpus": None}}, tokenizer).probe_tokens == ()


@pytest.mark.parametrize(
    ("body", "header", "show"),
    [
        ({}, "steps=5", None),
        ({"adaptation": {"show": 0}}, "steps=5", 0),
        ({"adaptation": {"show": 3}}, "none", 3),
        # A budget without steps asks for the base model, and an echo shows the prompt.
        ({}, "none", 0),
        ({}, "steps=0", 0),
        ({"echo": True}, "steps=5", 0),
        ({"adaptation": {"corpus": None}}, "steps=5", 0),
        ({"adaptation": {"corpus": None, "texts": ["Once."]}}, "steps=5", 0),
    ],
)
def test_the_corpus_says_what_is_shown_if_the_request_adapts_to_it_and_does_not_say(
    tokenizer: Any, body: dict[str, Any], header: str, show: int | None
) -> None:
    assert parse({"prompt": "Once upon", **body}, tokenizer, header).show == show


def test_the_servers_number_to_show_comes_before_the_corpus(tokenizer: Any) -> None:
    terms = replace(_TERMS, show=4)

    request = parse_adaptation_request({"prompt": "Once upon"}, "none", None, terms, tokenizer)

    assert request.show == 4


@pytest.mark.parametrize(
    ("budget", "steps"), [(replace(AUTO, steps=9), 3), (Budget(9, gain=0.25), 9), (Budget(9), 9)]
)
def test_the_steps_of_a_calibrated_corpus_bound_a_budget_that_leaves_the_stop_to_the_server(
    tokenizer: Any, budget: Budget, steps: int
) -> None:
    calibration = Calibration(0.1, 0.5, 1e-3, 16, 24, 90.0, 91.0, show=2, steps=3)
    request = replace(parse({"prompt": "Once upon"}, tokenizer), budget=budget)
    selection = replace(
        _SELECTION,
        ids=(1,) * 9,
        sequences=((5, 6),) * 9,
        scored=(None,) * 9,
        calibration=calibration,
    )

    training = request.training(selection, None, StartingPoint())

    assert len(training.sequences) == request.budget_for(calibration).steps == steps
    assert request.budget_for(replace(calibration, steps=None)).steps == 9


def test_the_training_scores_the_tokens_that_the_selection_says(tokenizer: Any) -> None:
    training = parse({"prompt": "Once"}, tokenizer).training(_SELECTION, None, StartingPoint())

    assert (training.sequences, training.scored) == (_SELECTION.sequences, _SELECTION.scored)


@pytest.mark.parametrize(
    ("header", "options", "seeks"),
    [
        ("steps=5", {}, True),
        ("instant", {}, True),
        ("instant", {"start": "corpus", "seed": 3, "plan": "reuse", "strategy": "nn"}, True),
        ("steps=5", {"start": "fresh"}, False),
        ("none", {"start": "corpus"}, False),
        ("instant", {"corpus": None}, False),
        ("instant", {"texts": ["a text"]}, False),
        ("instant", {"texts": ["a text"], "corpus": "web"}, True),
    ],
)
def test_the_adapter_of_the_corpus_is_looked_up_where_it_can_be_used(
    tokenizer: Any, header: str, options: dict[str, Any], seeks: bool
) -> None:
    request = parse({"prompt": "x", "adaptation": options}, tokenizer, header)

    assert request.selection(request.corpus, OPERATOR).start is seeks
    assert request.needs_adapter is (header != "none")


def test_an_instant_answer_takes_no_place_of_an_adaptation(tokenizer: Any) -> None:
    request = parse({"prompt": "x"}, tokenizer, "instant")

    assert request.budget == replace(INSTANT, seconds=60.0)
    assert not request.adapts


def test_a_start_that_an_instant_answer_cannot_have_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="contradict"):
        parse({"prompt": "x", "adaptation": {"start": "fresh"}}, tokenizer, "instant")
