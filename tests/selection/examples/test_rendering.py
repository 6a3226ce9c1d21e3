"""Rendering: an example's tokens are those that a request for it is served with, and the answers
are scored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from selection.errors import ExampleError
from selection.examples.example import Example, parse_example
from selection.examples.rendering import RenderedExample, Renderer

# SmolLM2's, which adds a system message.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are SmolLM<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3's: the reasoning is left out of every answer but the last, which always has some.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function.name }}"
    "{% for k, v in call.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Make = Callable[[str | None], Any]


@pytest.fixture
def with_template(tokenizer: Any) -> Make:
    """The bundled model's tokenizer with ChatML's special tokens and another chat template."""

    def make(template: str | None) -> Any:
        made = copy.deepcopy(tokenizer)
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        made.add_special_tokens({"eos_token": "<|im_end|>"})
        made.chat_template = template
        return made

    return make


def chat(*contents: str, **last: Any) -> Example:
    """A conversation of user and assistant, in turns."""
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    messages[-1] |= last
    return parse_example({"messages": messages}, "the example")


def pieces(tokenizer: Any, rendered: RenderedExample) -> list[tuple[str, bool]]:
    """The text in pieces that are scored, and that are not."""
    found = []
    position = 0
    for start, end in (*rendered.scored, (len(rendered.tokens),) * 2):
        for first, last, scored in ((position, start, False), (start, end, True)):
            if first < last:
                found.append((tokenizer.decode(rendered.tokens[first:last]), scored))
        position = end
    return found


def test_the_answer_and_its_end_of_turn_are_scored_after_the_prompt_of_a_request(
    with_template: Make,
) -> None:
    tokenizer = with_template(SMOLLM2)

    rendered = Renderer(tokenizer).render(chat("Who?", "Me."))

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(rendered.tokens[: len(prompt)]) == prompt
    assert rendered.scored == ((len(prompt), len(rendered.tokens)),)
    assert pieces(tokenizer, rendered) == [
        (
            "<|im_start|>system\nYou are SmolLM<|im_end|>\n"
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("Me.<|im_end|>", True),
    ]


def test_every_answer_is_scored_unless_its_weight_is_0(with_template: Make) -> None:
    tokenizer = with_template(SMOLLM2)
    example = chat("A?", "Yes.", "B?", "No.", "C?", "Perhaps.")
    first = {**example.messages[1], "weight": 0}
    weighted = Example((example.messages[0], first, *example.messages[2:]))

    texts = [
        text for text, scored in pieces(tokenizer, Renderer(tokenizer).render(example)) if scored
    ]
    fewer = [
        text for text, scored in pieces(tokenizer, Renderer(tokenizer).render(weighted)) if scored
    ]

    assert texts == ["Yes.<|im_end|>", "No.<|im_end|>", "Perhaps.<|im_end|>"]
    assert fewer == texts[1:]


def test_an_earlier_answer_that_the_template_rewrites_is_context(with_template: Make) -> None:
    tokenizer = with_template(FORGETFUL)

    rendered = Renderer(tokenizer).render(chat("A?", "Yes.", "B?", "No."))

    context, answer = pieces(tokenizer, rendered)
    assert answer == ("<think>\n\n</think>\n\nNo.<|im_end|>", True)
    assert "Yes." in context[0]
    assert not context[1]


@pytest.mark.parametrize("score_before", [False, True])
def test_examples_before_it_are_earlier_turns(with_template: Make, score_before: bool) -> None:
    tokenizer = with_template(SMOLLM2)
    system = {"role": "system", "content": "Be brief."}
    other = Example(({"role": "system", "content": "Ramble."}, *chat("A?", "Yes.").messages))
    example = Example((system, *chat("B?", "No.").messages))

    rendered = Renderer(tokenizer).render(example, [other], score_before=score_before)

    assert tokenizer.decode(rendered.tokens) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>"
    )
    scored = [text for text, is_scored in pieces(tokenizer, rendered) if is_scored]
    assert scored == ["Yes.<|im_end|>", "No.<|im_end|>"][not score_before :]


def test_tools_and_calls_are_rendered_with_arguments_as_objects(with_template: Make) -> None:
    tokenizer = with_template(TOOLS)
    call = {"function": {"name": "clock", "arguments": '{"zone": 1}'}}
    example = parse_example(
        {
            "messages": [
                {"role": "user", "content": "Time?"},
                {"role": "assistant", "tool_calls": [call]},
            ],
            "tools": [{"function": {"name": "clock", "parameters": {}}}],
        },
        "the example",
    )

    text, answer = pieces(tokenizer, Renderer(tokenizer).render(example))

    assert text[0].startswith(
        '[{"type": "function", "function": '
        '{"name": "clock", "description": null, "parameters": {}}}]'
    )
    assert answer == ("<call>clock zone=1</call><|im_end|>", True)


def test_the_developer_becomes_the_system_of_a_template_that_does_not_know_him(
    with_template: Make,
) -> None:
    tokenizer = with_template(SMOLLM2)
    developer = {"role": "developer", "content": "Be brief."}
    example = Example((developer, *chat("A?", "Yes.").messages))
    knows = with_template("{# 'developer' #}" + SMOLLM2)

    assert "system\nBe brief.<|im_end|>" in tokenizer.decode(
        Renderer(tokenizer).render(example).tokens
    )
    assert "developer\nBe brief.<|im_end|>" in knows.decode(Renderer(knows).render(example).tokens)


def test_a_model_without_a_chat_template_gets_prompt_completion_and_end(
    with_template: Make,
) -> None:
    tokenizer = with_template(None)
    renderer = Renderer(tokenizer)
    pair = parse_example({"prompt": "Q: x\nA:", "completion": " y"}, "the example")

    rendered = renderer.render(pair)
    shown = renderer.render(pair, [chat("Q: w\nA:", " v")])
    scored = renderer.render(pair, [chat("Q: w\nA:", " v")], score_before=True)

    assert not renderer.chat
    assert pieces(tokenizer, rendered) == [("Q: x\nA:", False), (" y<|im_end|>", True)]
    assert pieces(tokenizer, shown) == [
        ("Q: w\nA: v\n\nQ: x\nA:", False),
        (" y<|im_end|>", True),
    ]
    assert pieces(tokenizer, scored) == [
        ("Q: w\nA:", False),
        (" v", True),
        ("\n\nQ: x\nA:", False),
        (" y<|im_end|>", True),
    ]
    assert rendered == Renderer(with_template(SMOLLM2), chat=False).render(pair)
    with pytest.raises(ExampleError, match="must be a `prompt` and a `completion`"):
        renderer.render(chat("A?", "Yes.", "B?", "No."))
    with pytest.raises(ExampleError, match="the model has no chat template"):
        Renderer(tokenizer, chat=True)


def test_the_bundled_model_has_a_template_without_headers(tokenizer: Any) -> None:
    rendered = Renderer(tokenizer).render(chat("def f():", "    return 1"))

    assert pieces(tokenizer, rendered) == [("def f():\n", False), ("    return 1\n", True)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", "no generation promp"),
        ("{{ raise_exception('only cats') }}", "refuses the messages: only cats"),
        ("{{ messages[7].content.x }}", "refuses the messages: "),
        ("{% if add_generation_prompt %}<go>{% endif %}{{ messages[0].content }}", "not render"),
        ("{{ messages[0].content }}{% if add_generation_prompt or messages[1] %}>{% endif %}",
         "leaves out the answer"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_render_an_example_is_refused(
    with_template: Make, template: str, message: str
) -> None:
    with pytest.raises(ExampleError, match=message):
        Renderer(with_template(template)).render(chat("A?", "Yes."))


def test_tool_calls_that_the_template_ignores_are_refused(with_template: Make) -> None:
    call = {"function": {"name": "clock", "arguments": "{}"}}

    with pytest.raises(ExampleError, match="leaves out the tool calls"):
        Renderer(with_template(SMOLLM2)).render(chat("A?", "Yes.", tool_calls=[call]))


def test_an_answer_is_tokenised_as_it_is_generated_after_its_prompt() -> None:
    """A tokenizer of SentencePiece's kind puts a blank before a text, but not within one."""
    alphabet = {token: i for i, token in enumerate(["?", "<s>", "</s>", "▁", "\n", *"qaes: yn"])}
    backend = Tokenizer(models.BPE(alphabet, [], unk_token="?"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    backend.decoder = decoders.Replace("▁", " ")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", alphabet["<s>"])]
    )
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer = tokenizer_class(tokenizer_object=backend, eos_token="</s>")

    rendered = Renderer(tokenizer).render(chat("q:\n", "yes"))

    # vLLM begins the prompt of a completion with this token.
    expected = ["<s>", *"▁q:\n", *"yes", "</s>"]
    assert tokenizer.convert_ids_to_tokens(list(rendered.tokens)) == expected
    assert rendered.scored == ((5, 9),)


def test_the_digest_is_the_templates(with_template: Make) -> None:
    digests = {Renderer(with_template(template)).digest for template in (None, SMOLLM2, FORGETFUL)}

    assert len(digests) == 3
    assert Renderer(with_template(SMOLLM2), chat=False).digest in digests
    assert Renderer(with_template(SMOLLM2)).digest in digests
