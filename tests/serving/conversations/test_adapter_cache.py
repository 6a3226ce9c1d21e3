"""Conversations: a turn's adapter is found by whoever goes on from it, by nobody else, and not for
ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter
from serving.conversations.adapter_cache import (
    AdapterCache,
    AdapterCacheConfig,
    CachedAdapter,
    CacheScope,
    Reused,
)
from serving.conversations.completion_reader import AssistantMessage
from serving.conversations.transcript import Transcript, parse_transcript

ANN = CacheScope("ann", "handbook", "nano")
QUESTION = {"role": "user", "content": "How do I ask for leave?"}
ANSWER = AssistantMessage("In the yellow book.")
THANKS = {"role": "user", "content": "And how much?"}


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(name: str = "first", size: int = 10, turns: int = 1, steps: int = 5) -> CachedAdapter:
    return CachedAdapter(b"w" * size, name, turns, steps)


def chat(*messages: dict[str, Any]) -> Transcript:
    talk = parse_transcript({"messages": list(messages)})
    assert talk is not None
    return talk


def completion(prompt: Any) -> Transcript:
    talk = parse_transcript({"prompt": prompt})
    assert talk is not None
    return talk


def said(text: str) -> dict[str, Any]:
    """The assistant's message."""
    return {"role": "assistant", "content": text}


@pytest.fixture
def conversations() -> AdapterCache:
    return AdapterCache(AdapterCacheConfig())


class TestTheNextTurn:
    def test_it_is_found_by_who_goes_on(self, conversations: AdapterCache) -> None:
        conversations.keep(ANN, chat(QUESTION), [ANSWER], kept())

        assert conversations.find(ANN, chat(QUESTION, said(ANSWER.text), THANKS)) == kept()
        assert conversations.find(ANN, chat(QUESTION)) is None
        assert conversations.find(ANN, chat(QUESTION, said("In the red book."), THANKS)) is None
        assert conversations.find(ANN, chat(THANKS, said(ANSWER.text), THANKS)) is None

    def test_the_longest_beginning_that_is_known_is_continued(
        self, conversations: AdapterCache
    ) -> None:
        first, more = chat(QUESTION), (QUESTION, said(ANSWER.text), THANKS)
        conversations.keep(ANN, first, [ANSWER], kept("first"))
        conversations.keep(
            ANN, chat(*more), [AssistantMessage("Thirty days.")], kept("second", turns=2)
        )

        third = conversations.find(ANN, chat(*more, said("Thirty days."), THANKS))
        another_second = conversations.find(ANN, chat(*more, said("No idea."), THANKS))

        assert (third, another_second) == (kept("second", turns=2), kept("first"))

    def test_each_of_n_answers_may_be_followed(self, conversations: AdapterCache) -> None:
        answers = [AssistantMessage("Yes."), AssistantMessage("No."), AssistantMessage("Yes.")]
        conversations.keep(ANN, chat(QUESTION), answers, kept(size=10))

        assert (len(conversations), conversations.bytes) == (1, 10)
        for answer in answers:
            assert conversations.find(ANN, chat(QUESTION, said(answer.text), THANKS)) == kept()

    def test_the_same_turn_taken_again_replaces_the_earlier_one(
        self, conversations: AdapterCache
    ) -> None:
        conversations.keep(
            ANN, chat(QUESTION), [AssistantMessage("Yes."), AssistantMessage("No.")], kept("first")
        )
        conversations.keep(ANN, chat(QUESTION), [AssistantMessage("Yes.")], kept("again"))

        assert conversations.find(ANN, chat(QUESTION, said("Yes."))) == kept("again")
        assert conversations.find(ANN, chat(QUESTION, said("No."))) == kept("first")
        conversations.keep(ANN, chat(QUESTION), [AssistantMessage("No.")], kept("third"))
        assert len(conversations) == 2

    def test_a_completion_goes_on_from_its_prompt_and_answer(
        self, conversations: AdapterCache
    ) -> None:
        conversations.keep(ANN, completion("Once upon"), [AssistantMessage(" a time")], kept())

        for prompt in ("Once upon a time", "Once upon a time, ünd", ["Once upon a time there was"]):
            assert conversations.find(ANN, completion(prompt)) == kept()
        for prompt in ("Once upon", "Once upon a tim", "once upon a time", " Once upon a time"):
            assert conversations.find(ANN, completion(prompt)) is None

    def test_a_chat_is_not_continued_by_a_completion_that_spells_it(
        self, conversations: AdapterCache
    ) -> None:
        talk = chat(QUESTION)
        conversations.keep(ANN, talk, [ANSWER], kept())

        assert conversations.find(ANN, completion(talk.answered(ANSWER).decode())) is None

    def test_after_no_answer_nothing_is_kept(self, conversations: AdapterCache) -> None:
        conversations.keep(ANN, chat(QUESTION), [], kept())

        assert len(conversations) == 0


class TestNeverAcross:
    @pytest.mark.parametrize(
        "other",
        [
            replace(ANN, key="bob"),
            replace(ANN, key=""),
            replace(ANN, corpus="letters"),
            replace(ANN, model="milli"),
            replace(ANN, only={"type": "eq", "key": "team", "value": "all"}),
            CacheScope("handbook", "ann", "nano"),
        ],
    )
    def test_keys_corpora_models_or_filters(
        self, conversations: AdapterCache, other: CacheScope
    ) -> None:
        conversations.keep(ANN, chat(QUESTION), [ANSWER], kept("ann's"))

        assert conversations.find(other, chat(QUESTION, said(ANSWER.text), THANKS)) is None
        conversations.keep(other, chat(QUESTION), [ANSWER], kept("the other's"))
        found = [
            conversations.find(whose, chat(QUESTION, said(ANSWER.text), THANKS))
            for whose in (ANN, other)
        ]
        assert found == [kept("ann's"), kept("the other's")]


class TestBounds:
    def test_a_turn_is_kept_so_many_seconds_after_its_last_use(self) -> None:
        clock = Clock()
        conversations = AdapterCache(AdapterCacheConfig(seconds=10), clock)
        conversations.keep(ANN, chat(QUESTION), [ANSWER], kept())
        following = chat(QUESTION, said(ANSWER.text), THANKS)

        for clock.now in (9.0, 18.0):
            assert conversations.find(ANN, following) == kept()
        clock.now = 28.0
        assert conversations.find(ANN, following) is None
        assert (len(conversations), conversations.bytes) == (0, 0)

    def test_an_adapter_beyond_all_bounds_is_not_kept_and_drives_nobody_out(self) -> None:
        conversations = AdapterCache(AdapterCacheConfig(most_bytes=100))
        conversations.keep(ANN, chat(QUESTION), [ANSWER], kept(size=100))

        conversations.keep(ANN, chat(THANKS), [ANSWER], kept(size=101))

        assert conversations.find(ANN, chat(THANKS, said(ANSWER.text))) is None
        assert conversations.find(ANN, chat(QUESTION, said(ANSWER.text))) == kept(size=100)

    def test_one_whose_steps_are_spent_is_not_trained_further_nor_is_the_one_before_it(
        self,
    ) -> None:
        conversations = AdapterCache(AdapterCacheConfig(most_steps=50))
        messages: list[dict[str, Any]] = []
        behind, steps = [], []
        earlier: CachedAdapter | None = None

        for turn in range(6):
            messages += [{"role": "user", "content": f"question {turn}"}]
            earlier = conversations.find(ANN, chat(*messages))
            behind.append(earlier.steps if earlier else 0)
            adapter = Adapter(f"turn {turn}", "nano", 4, 8.0, (), b"weights", (1.0,) * 20)
            after = CachedAdapter.after(earlier, adapter)
            steps.append(after.steps)
            conversations.keep(ANN, chat(*messages), [AssistantMessage(f"answer {turn}")], after)
            messages += [said(f"answer {turn}")]

        assert behind == [0, 20, 40, 0, 20, 40]
        assert max(steps) == 60  # fewer than the bound, and one request's

    def test_a_spent_one_takes_no_bytes(self) -> None:
        conversations = AdapterCache(AdapterCacheConfig(most_steps=50))

        conversations.keep(ANN, chat(QUESTION), [ANSWER], kept(steps=50))

        assert (len(conversations), conversations.bytes) == (1, 0)


def test_the_report_says_what_was_reused() -> None:
    first = CachedAdapter.after(None, Adapter("one", "nano", 4, 8.0, (), b"1", (2.0, 1.0)))
    second = CachedAdapter.after(first, Adapter("two", "nano", 4, 8.0, (), b"2", (1.0,)))

    assert (second.weights, second.adapter, second.turns, second.steps) == (b"2", "two", 2, 3)
    assert second.reused == Reused("two", 2, 3)
    assert second.reused.as_dict() == {"adapter": "two", "turns": 2, "steps": 3}


_WORDS = st.sampled_from(["a", "b", "ab", "a b", 'a", "b', ""])
_MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _WORDS), max_size=5)


@given(st.lists(_MESSAGES, max_size=6), _MESSAGES)
def test_the_longest_known_beginning_of_whole_messages(
    known: list[list[tuple[str, str]]], asked: list[tuple[str, str]]
) -> None:
    conversations = AdapterCache(AdapterCacheConfig())
    for i, turns in enumerate(known):
        talk = chat(*({"role": role, "content": text} for role, text in turns))
        conversations.keep(ANN, talk, [AssistantMessage("a")], kept(str(i)))

    found = conversations.find(
        ANN, chat(*({"role": role, "content": text} for role, text in asked))
    )

    answered = {(*turns, ("assistant", "a")): kept(str(i)) for i, turns in enumerate(known)}
    begins = [
        answered[tuple(asked[:length])]
        for length in range(len(asked) + 1)
        if tuple(asked[:length]) in answered
    ]
    assert found == (begins[-1] if begins else None)


@given(
    st.lists(
        st.tuples(st.text("ab", max_size=3), st.text("ab", min_size=1, max_size=2)), max_size=6
    ),
    st.text("ab"),
)
def test_the_longest_known_beginning_of_a_text(known: list[tuple[str, str]], asked: str) -> None:
    conversations = AdapterCache(AdapterCacheConfig())
    for i, (prompt, answer) in enumerate(known):
        conversations.keep(ANN, completion(prompt), [AssistantMessage(answer)], kept(str(i)))

    found = conversations.find(ANN, completion(asked))

    newest = {prompt + answer: kept(str(i)) for i, (prompt, answer) in enumerate(known)}
    begins = [text for text in newest if asked.startswith(text)]
    assert found == (newest[max(begins, key=len)] if begins else None)


@dataclass
class _Line:
    ends: set[tuple[str, str]]
    kept: CachedAdapter
    used: float


class _Plain:
    """The same, the slow and plain way: one list, the least recently used first. Texts only."""

    def __init__(self, config: AdapterCacheConfig, clock: Callable[[], float]) -> None:
        self.config, self.clock = config, clock
        self.lines: list[_Line] = []

    def find(self, key: str, text: str) -> CachedAdapter | None:
        self.expire()
        known = [
            (end, line)
            for line in self.lines
            for end in line.ends
            if end[0] == key and text.startswith(end[1])
        ]
        if not known:
            return None
        _, line = max(known, key=lambda pair: len(pair[0][1]))
        line.used = self.clock()
        self.lines.remove(line)
        self.lines.append(line)
        return line.kept

    def keep(self, key: str, texts: list[str], kept: CachedAdapter) -> None:
        self.expire()
        if len(kept.weights) > self.config.most_bytes:
            return
        ends = {(key, text) for text in texts}
        for line in self.lines:
            line.ends -= ends
        self.lines = [*(line for line in self.lines if line.ends), _Line(ends, kept, self.clock())]
        while len(self.lines) > self.config.most_turns or self.bytes > self.config.most_bytes:
            del self.lines[0]

    def expire(self) -> None:
        self.lines = [line for line in self.lines if line.used + self.config.seconds > self.clock()]

    @property
    def bytes(self) -> int:
        return sum(len(line.kept.weights) for line in self.lines)


_KEYS = st.sampled_from(["ann", "bob"])
_KEEPS = st.tuples(
    _KEYS,
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, 12),
)
_FINDS = st.tuples(_KEYS, st.text("ab", max_size=4))


@settings(max_examples=300)
@given(
    st.lists(st.one_of(_KEEPS, _FINDS, st.integers(1, 4)), max_size=30),
    st.integers(0, 5),
    st.integers(0, 30),
    st.sampled_from([0.0, 5.0, 1000.0]),
)
def test_it_holds_what_a_plain_list_would_and_never_more_than_its_bounds(
    events: list[Any], most_turns: int, most_bytes: int, seconds: float
) -> None:
    clock, names = Clock(), itertools.count()
    config = AdapterCacheConfig(most_bytes=most_bytes, most_turns=most_turns, seconds=seconds)
    conversations, plain = AdapterCache(config, clock), _Plain(config, clock)

    for event in events:
        match event:
            case int():
                clock.now += event
            case (str() as key, str() as text):
                assert conversations.find(replace(ANN, key=key), completion(text)) == plain.find(
                    key, text
                )
            case (key, texts, size):
                one = kept(str(next(names)), size)
                conversations.keep(
                    replace(ANN, key=key),
                    completion(""),
                    [AssistantMessage(text) for text in texts],
                    one,
                )
                plain.keep(key, texts, one)
        assert len(conversations) <= most_turns
        assert conversations.bytes <= most_bytes

    # Whatever it knew of, it forgets.
    clock.now += seconds
    assert conversations.find(ANN, completion("")) is None
    assert (len(conversations), conversations.bytes) == (0, 0)
