"""Server-sent events: every stream is parsed alike, wherever its bytes are split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sse import Comment, Event, EventParser

_STREAM = (
    b": adapting\n\n"
    b'event: response.created\ndata: {"a": "\xe2\x80\xa8"}\n\n'
    b"data:first\ndata: second\r\nid: 7\r\n\r\n"
    b":\n"
    b"\n\n"
    b"data: [DONE]\n\n"
)
_PARSED = [
    Comment("adapting"),
    Event(b'{"a": "\xe2\x80\xa8"}'),
    Event(b"first\nsecond"),
    Comment(""),
    Event(b"[DONE]"),
]


@given(st.lists(st.integers(0, len(_STREAM))))
def test_a_stream_may_be_split_anywhere(splits: list[int]) -> None:
    edges = [0, *sorted(splits), len(_STREAM)]
    parser = EventParser()

    parts = [_STREAM[start:end] for start, end in itertools.pairwise(edges)]

    assert [found for part in parts for found in parser.feed(part)] == _PARSED


def test_an_event_is_found_with_the_byte_that_ends_it() -> None:
    parser = EventParser()

    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [Event(b"x")]


@pytest.mark.parametrize("incomplete", [b"data: x", b"data: x\n", b": x", b"data"])
def test_incomplete_events_are_not_returned(incomplete: bytes) -> None:
    assert EventParser().feed(incomplete) == []
