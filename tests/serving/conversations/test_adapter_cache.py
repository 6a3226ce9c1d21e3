"""AdapterCache: the next turn of a conversation finds its adapter, within its scope and bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.adapter import Adapter
from serving.conversations.adapter_cache import AdapterCache, AdapterCacheConfig
from serving.conversations.cached_adapter import CachedAdapter, CacheScope, ExamplesAdapter
from serving.conversations.completion_reader import AssistantMessage
from serving.conversations.examples_reuse import ExamplesReuse
from serving.conversations.transcript import Transcript, parse_transcript

ANN = CacheScope("ann", "handbook", "nano")
QUESTION = {"role": "user", "content": "How do I ask for leave?"}
ANSWER = AssistantMessage("In the yellow book.")
THANKS = {"role": "user", "content": "And how much?"}


class Clock:
    """Seconds that pass when a test sets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cached(name: str = "first", size: int = 10, turns: int = 1, steps: int = 5) -> CachedAdapter:
    return CachedAdapter(b"w" * size, name, turns, steps)


def chat(*messages: dict[str, Any]) -> Transcript:
    transcript = parse_transcript({"messages": list(messages)})
    assert transcript is not None
    return transcript


def completion(prompt: Any) -> Transcript:
    transcript = parse_transcript({"prompt": prompt})
    assert transcript is not None
    return transcript


def assistant(text: str) -> dict[str, Any]:
    """The assistant's message."""
    return {"role": "assistant", "content": text}


@pytest.fixture
def cache() -> AdapterCache:
    return AdapterCache(AdapterCacheConfig())


class TestTheNextTurn:
    def test_the_next_turn_finds_it(self, cache: AdapterCache) -> None:
        cache.store(ANN, chat(QUESTION), [ANSWER], cached())

        assert cache.find(ANN, chat(QUESTION, assistant(ANSWER.text), THANKS)) == cached()
        assert cache.find(ANN, chat(QUESTION)) is None
        assert cache.find(ANN, chat(QUESTION, assistant("In the red book."), THANKS)) is None
        assert cache.find(ANN, chat(THANKS, assistant(ANSWER.text), THANKS)) is None

    def test_the_longest_known_beginning_is_continued(self, cache: AdapterCache) -> None:
        first, more = chat(QUESTION), (QUESTION, assistant(ANSWER.text), THANKS)
        cache.store(ANN, first, [ANSWER], cached("first"))
        cache.store(ANN, chat(*more), [AssistantMessage("Thirty days.")], cached("second", turns=2))

        third = cache.find(ANN, chat(*more, assistant("Thirty days."), THANKS))
        another_second = cache.find(ANN, chat(*more, assistant("No idea."), THANKS))

        assert (third, another_second) == (cached("second", turns=2), cached("first"))

    def test_each_of_n_answers_may_be_followed(self, cache: AdapterCache) -> None:
        answers = [AssistantMessage("Yes."), AssistantMessage("No."), AssistantMessage("Yes.")]
        cache.store(ANN, chat(QUESTION), answers, cached(size=10))

        assert (len(cache), cache.bytes) == (1, 10)
        for answer in answers:
            assert cache.find(ANN, chat(QUESTION, assistant(answer.text), THANKS)) == cached()

    def test_the_same_turn_taken_again_replaces_the_earlier_one(self, cache: AdapterCache) -> None:
        cache.store(
            ANN,
            chat(QUESTION),
            [AssistantMessage("Yes."), AssistantMessage("No.")],
            cached("first"),
        )
        cache.store(ANN, chat(QUESTION), [AssistantMessage("Yes.")], cached("again"))

        assert cache.find(ANN, chat(QUESTION, assistant("Yes."))) == cached("again")
        assert cache.find(ANN, chat(QUESTION, assistant("No."))) == cached("first")
        cache.store(ANN, chat(QUESTION), [AssistantMessage("No.")], cached("third"))
        assert len(cache) == 2

    def test_a_completion_is_continued_by_its_prompt_and_answer(self, cache: AdapterCache) -> None:
        cache.store(ANN, completion("Once upon"), [AssistantMessage(" a time")], cached())

        for prompt in ("Once upon a time", "Once upon a time, ünd", ["Once upon a time there was"]):
            assert cache.find(ANN, completion(prompt)) == cached()
        for prompt in ("Once upon", "Once upon a tim", "once upon a time", " Once upon a time"):
            assert cache.find(ANN, completion(prompt)) is None

    def test_a_chat_is_not_continued_by_a_completion_that_spells_it(
        self, cache: AdapterCache
    ) -> None:
        transcript = chat(QUESTION)
        cache.store(ANN, transcript, [ANSWER], cached())

        assert cache.find(ANN, completion(transcript.with_answer(ANSWER).decode())) is None

    def test_without_an_answer_nothing_is_cached(self, cache: AdapterCache) -> None:
        cache.store(ANN, chat(QUESTION), [], cached())

        assert len(cache) == 0


class TestNeverAcross:
    @pytest.mark.parametrize(
        "other",
        [
            replace(ANN, key="bob"),
            replace(ANN, key=""),
            replace(ANN, corpus="letters"),
            replace(ANN, model="milli"),
            replace(ANN, filter={"type": "eq", "key": "team", "value": "all"}),
            CacheScope("handbook", "ann", "nano"),
        ],
    )
    def test_keys_corpora_models_or_filters(self, cache: AdapterCache, other: CacheScope) -> None:
        cache.store(ANN, chat(QUESTION), [ANSWER], cached("ann's"))

        assert cache.find(other, chat(QUESTION, assistant(ANSWER.text), THANKS)) is None
        cache.store(other, chat(QUESTION), [ANSWER], cached("the other's"))
        found = [
            cache.find(scope, chat(QUESTION, assistant(ANSWER.text), THANKS))
            for scope in (ANN, other)
        ]
        assert found == [cached("ann's"), cached("the other's")]


class TestBounds:
    def test_a_turn_expires_after_its_last_use(self) -> None:
        clock = Clock()
        cache = AdapterCache(AdapterCacheConfig(seconds=10), clock)
        cache.store(ANN, chat(QUESTION), [ANSWER], cached())
        following = chat(QUESTION, assistant(ANSWER.text), THANKS)

        for clock.now in (9.0, 18.0):
            assert cache.find(ANN, following) == cached()
        clock.now = 28.0
        assert cache.find(ANN, following) is None
        assert (len(cache), cache.bytes) == (0, 0)

    def test_an_adapter_beyond_the_bound_is_not_cached_and_evicts_none(self) -> None:
        cache = AdapterCache(AdapterCacheConfig(max_bytes=100))
        cache.store(ANN, chat(QUESTION), [ANSWER], cached(size=100))

        cache.store(ANN, chat(THANKS), [ANSWER], cached(size=101))

        assert cache.find(ANN, chat(THANKS, assistant(ANSWER.text))) is None
        assert cache.find(ANN, chat(QUESTION, assistant(ANSWER.text))) == cached(size=100)

    def test_an_adapter_with_all_its_steps_is_not_continued_nor_is_the_one_before_it(
        self,
    ) -> None:
        cache = AdapterCache(AdapterCacheConfig(max_steps=50))
        messages: list[dict[str, Any]] = []
        behind, steps = [], []
        earlier: CachedAdapter | None = None

        for turn in range(6):
            messages += [{"role": "user", "content": f"question {turn}"}]
            earlier = cache.find(ANN, chat(*messages))
            behind.append(earlier.steps if earlier else 0)
            adapter = Adapter(f"turn {turn}", "nano", 4, 8.0, (), b"weights", (1.0,) * 20)
            after = CachedAdapter.after(earlier, adapter)
            steps.append(after.steps)
            cache.store(ANN, chat(*messages), [AssistantMessage(f"answer {turn}")], after)
            messages += [assistant(f"answer {turn}")]

        assert behind == [0, 20, 40, 0, 20, 40]
        assert max(steps) == 60  # fewer than the bound, and one request's

    def test_an_adapter_with_all_its_steps_takes_no_bytes(self) -> None:
        cache = AdapterCache(AdapterCacheConfig(max_steps=50))

        cache.store(ANN, chat(QUESTION), [ANSWER], cached(steps=50))

        assert (len(cache), cache.bytes) == (1, 0)


class TestExamples:
    @staticmethod
    def made(name: str = "made", size: int = 10) -> ExamplesAdapter:
        adapter = Adapter(name, "nano", 4, 8.0, (), b"w" * size, (2.0, 1.0))
        return ExamplesAdapter(adapter, ({"name": "example 1 of the request", "times": 2},))

    def test_the_same_examples_find_it(self, cache: AdapterCache) -> None:
        first, same, others = (ExamplesReuse(cache, digest, ANN) for digest in (b"a", b"a", b"b"))
        first.store(None, self.made())

        assert same.find(None) == self.made()
        assert (others.find(None), same.find("handbook")) == (None, None)
        assert self.made().as_dict() == {"adapter": "made", "steps": 2}

    @pytest.mark.parametrize("change", [{"key": "bob"}, {"model": "milli"}, {"filter": {"a": 1}}])
    def test_never_across_keys_models_or_filters(
        self, cache: AdapterCache, change: dict[str, Any]
    ) -> None:
        ExamplesReuse(cache, b"a", ANN).store("handbook", self.made())

        assert ExamplesReuse(cache, b"a", replace(ANN, **change)).find("handbook") is None

    def test_they_share_the_bounds_of_conversations(self) -> None:
        clock = Clock()
        cache = AdapterCache(AdapterCacheConfig(max_turns=2, max_bytes=100, seconds=10), clock)
        reuse, other = ExamplesReuse(cache, b"a", ANN), ExamplesReuse(cache, b"b", ANN)

        reuse.store(None, self.made(size=101))
        assert reuse.find(None) is None
        reuse.store(None, self.made("first"))
        reuse.store(None, self.made("again"))
        assert (len(cache), cache.bytes) == (1, 10)
        other.store(None, self.made("other"))
        assert reuse.find(None) == self.made("again")  # used last
        cache.store(ANN, chat(QUESTION), [ANSWER], cached())
        assert (reuse.find(None), other.find(None)) == (self.made("again"), None)
        clock.now = 10.0
        assert (reuse.find(None), len(cache), cache.bytes) == (None, 0, 0)


def test_a_cached_adapter_counts_turns_and_steps() -> None:
    first = CachedAdapter.after(None, Adapter("one", "nano", 4, 8.0, (), b"1", (2.0, 1.0)))
    second = CachedAdapter.after(first, Adapter("two", "nano", 4, 8.0, (), b"2", (1.0,)))

    assert (second.weights, second.name, second.turns, second.steps) == (b"2", "two", 2, 3)
    assert second.as_dict() == {"adapter": "two", "turns": 2, "steps": 3}


_WORDS = st.sampled_from(["a", "b", "ab", "a b", 'a", "b', ""])
_MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _WORDS), max_size=5)


@given(st.lists(_MESSAGES, max_size=6), _MESSAGES)
def test_the_longest_known_beginning_of_whole_messages(
    known: list[list[tuple[str, str]]], asked: list[tuple[str, str]]
) -> None:
    cache = AdapterCache(AdapterCacheConfig())
    for i, turns in enumerate(known):
        transcript = chat(*({"role": role, "content": text} for role, text in turns))
        cache.store(ANN, transcript, [AssistantMessage("a")], cached(str(i)))

    found = cache.find(ANN, chat(*({"role": role, "content": text} for role, text in asked)))

    answered = {(*turns, ("assistant", "a")): cached(str(i)) for i, turns in enumerate(known)}
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
    cache = AdapterCache(AdapterCacheConfig())
    for i, (prompt, answer) in enumerate(known):
        cache.store(ANN, completion(prompt), [AssistantMessage(answer)], cached(str(i)))

    found = cache.find(ANN, completion(asked))

    newest = {prompt + answer: cached(str(i)) for i, (prompt, answer) in enumerate(known)}
    begins = [text for text in newest if asked.startswith(text)]
    assert found == (newest[max(begins, key=len)] if begins else None)


@dataclass
class _Line:
    ends: set[tuple[str, str]]
    cached: CachedAdapter
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
        return line.cached

    def keep(self, key: str, texts: list[str], cached: CachedAdapter) -> None:
        self.expire()
        if len(cached.weights) > self.config.max_bytes:
            return
        ends = {(key, text) for text in texts}
        for line in self.lines:
            line.ends -= ends
        self.lines = [
            *(line for line in self.lines if line.ends),
            _Line(ends, cached, self.clock()),
        ]
        while len(self.lines) > self.config.max_turns or self.bytes > self.config.max_bytes:
            del self.lines[0]

    def expire(self) -> None:
        self.lines = [line for line in self.lines if line.used + self.config.seconds > self.clock()]

    @property
    def bytes(self) -> int:
        return sum(len(line.cached.weights) for line in self.lines)


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
def test_it_equals_a_plain_list_and_stays_within_its_bounds(
    events: list[Any], max_turns: int, max_bytes: int, seconds: float
) -> None:
    clock, names = Clock(), itertools.count()
    config = AdapterCacheConfig(max_bytes=max_bytes, max_turns=max_turns, seconds=seconds)
    cache, plain = AdapterCache(config, clock), _Plain(config, clock)

    for event in events:
        match event:
            case int():
                clock.now += event
            case (str() as key, str() as text):
                assert cache.find(replace(ANN, key=key), completion(text)) == plain.find(key, text)
            case (key, texts, size):
                one = cached(str(next(names)), size)
                cache.store(
                    replace(ANN, key=key),
                    completion(""),
                    [AssistantMessage(text) for text in texts],
                    one,
                )
                plain.keep(key, texts, one)
        assert len(cache) <= max_turns
        assert cache.bytes <= max_bytes

    # Whatever it knew of, it forgets.
    clock.now += seconds
    assert cache.find(ANN, completion("")) is None
    assert (len(cache), cache.bytes) == (0, 0)
