"""Corpora of examples: what is stored, embedded and chosen of them, and what replaces it."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.sequences import StoredSequence
from selection.corpus.shards import Shard, shard_folder, update_shards
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusError, ExampleError
from selection.examples.example import Example, parse_example
from selection.examples.rendering import Renderer
from selection.examples.templates import set_chat_template
from selection.ingest.chunking import Chunking, tokenizer_digest
from selection.ingest.examples import ExampleChunker
from selection.ingest.ingest import Document, IngestCounts, ingest
from selection.ingest.readers import read_file
from selection.ingest.retokenizing import retokenize
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
WHO = parse_example({"prompt": "Who sails?", "completion": " The captain does."}, "")
WHEN = parse_example(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": "At noon."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Quite."},
        ]
    },
    "",
)
SHIPS = Document("ships", "Ships sail the seas, and captains sail the ships.")


def document(name: str, example: Example) -> Document:
    return Document(name, example.text, example=example)


@pytest.fixture
def other(tokenizer: Any) -> Any:
    """The same tokenizer with another chat template."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Corpus]:
    made = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    yield made
    made.close()


def contents(corpus: Corpus, words: Embedder) -> dict[str, StoredSequence]:
    """What each document has stored; of a text, its first sequence."""
    ids, _ = corpus.nearest(words.embed(["anything"]), None)
    read = corpus.read(sorted(ids.tolist(), reverse=True))
    return {read[i].source.name: read[i] for i in sorted(read, reverse=True)}


def test_an_example_is_one_chunk_with_its_scored_tokens(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    counts = ingest(
        corpus,
        [document("who", WHO), SHIPS, document("when", WHEN)],
        words,
        tokenizer,
        chunking=Chunking(8),
    )

    stored, rendered = contents(corpus, words), Renderer(tokenizer).render(WHEN)
    assert (counts.added, counts.chunks) == (3, corpus.counts()[1])
    assert len(rendered.tokens) > 8
    assert (stored["when"].tokens, stored["when"].scored) == (rendered.tokens, rendered.scored)
    assert len(rendered.scored) == 2
    assert stored["when"].source.text == WHEN.text
    assert Example.from_json(stored["when"].source.example or "") == WHEN
    assert (stored["ships"].scored, stored["ships"].source.example) == (None, None)


def test_an_example_is_found_by_its_prompt(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [SHIPS, document("who", WHO), document("when", WHEN)], words, tokenizer)

    for example, name in ((WHO, "who"), (WHEN, "when")):
        target_1D = words.embed(words.windows(example.prompt))
        ids, vectors_KD = corpus.nearest(target_1D, 1)
        assert corpus.read(ids.tolist())[int(ids[0])].source.name == name
        assert np.allclose(vectors_KD, target_1D)


def test_unchanged_examples_are_skipped(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [document("who", WHO), document("when", WHEN)]
    other_answer = parse_example({"prompt": "Who sails?", "completion": "Nobody."}, "")
    ingest(corpus, documents, words, tokenizer)

    again = ingest(corpus, documents, words, tokenizer, chunking=Chunking(32))
    changed = ingest(corpus, [document("who", other_answer)], words, tokenizer)

    assert again == IngestCounts(unchanged=2)
    assert changed == IngestCounts(replaced=1, chunks=1)
    assert contents(corpus, words)["who"].source.text == other_answer.text


def test_of_equal_examples_one_is_kept_if_they_must_be_unique(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    twice = [document("who", WHO), document("again", WHO)]

    counts = ingest(corpus, twice, words, tokenizer, chunking=Chunking(unique=True))

    assert (counts.added, counts.empty) == (1, 1)


def test_an_example_beyond_the_context_is_refused_with_its_row_and_its_file(
    tmp_path: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    file = tmp_path / "t.jsonl"
    rows = [{"prompt": "Who?", "completion": "Me. " * times} for times in (1, 100)]
    file.write_text("\n".join(map(json.dumps, rows)))
    examples = ExampleChunker(tokenizer, 50)
    checked = read_file(file, "t", check_example=examples.chunk)

    with pytest.raises(CorpusError, match=r"^t, row 2: the example has \d+ tokens, and the mod"):
        ingest(corpus, checked, words, tokenizer, examples=examples)
    assert corpus.counts() == (0, 0)
    with pytest.raises(CorpusError, match=r"^t#2: the example has \d+ tokens, and the model's co"):
        ingest(corpus, read_file(file, "t"), words, tokenizer, examples=examples)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(tokenizer: Any) -> None:
    example = parse_example({"prompt": "Who?", "completion": "x" * (1 << 20)}, "")

    class Untouched:
        chat_template, bos_token, eos_token = tokenizer.chat_template, "<s>", "</s>"
        get_vocab = tokenizer.get_vocab

    with pytest.raises(ValueError, match=r"has 1,048,\d+ characters, and the model's context 100 "):
        ExampleChunker(Untouched(), 100).chunk(example)


def test_a_corpus_of_examples_refuses_another_chat_template(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    digest = tokenizer_digest(other)
    assert digest == tokenizer_digest(tokenizer)
    ingest(corpus, [SHIPS], words, tokenizer)
    # Texts do not depend on a chat template.
    corpus.check(words, digest, Renderer(other).digest)
    pool = CorpusPool(corpora, words, digest, Renderer(other).digest)
    with pool.open("notes") as opened:
        ingest(corpus, [document("who", WHO)], words, tokenizer)
        with pytest.raises(CorpusError, match="examples in another chat template"):
            opened.read([1, 2])

    expected = "examples in another chat template: serve .* `mayfly corpus retokenize notes --mod"
    with pytest.raises(CorpusError, match=expected), pool.open("notes"):
        pass
    with pytest.raises(CorpusError, match=expected):
        ingest(corpus, [document("when", WHEN)], words, other)
    assert [each.name for each in corpus.documents()] == ["ships", "who"]
    pool.close()


def test_a_server_with_another_template_refuses_a_corpus_of_the_models_own(
    tmp_path: Path, corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, nano: str
) -> None:
    ingest(corpus, [document("who", WHO)], words, tokenizer)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    embedder = ThreadedEmbedder(lambda: words)
    selectors = [
        Selector(SelectorConfig(corpora, base_model=nano, chat_template=each), embedder=embedder)
        for each in (None, str(tmp_path / "chat.jinja"))
    ]

    selectors[0].check("notes")
    with pytest.raises(CorpusError, match="contains examples in another chat template"):
        selectors[1].check("notes")

    served = copy.deepcopy(tokenizer)
    set_chat_template(served, str(tmp_path / "chat.jinja"))
    retokenize(corpus, served, 512)
    selectors[1].check("notes")
    with pytest.raises(ExampleError, match=r"cannot read the chat template 'absent\.jinja'"):
        set_chat_template(served, "absent.jinja")


def test_two_templates_at_once_are_refused_when_an_example_is_added(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    """Both runs began while the corpus had no example."""
    second = Corpus.open(corpora, "notes")

    def late() -> Iterator[Document]:
        ingest(second, [document("who", WHO)], words, tokenizer)
        yield document("when", WHEN)

    with pytest.raises(CorpusError, match="has examples of another chat template: 'when' was not"):
        ingest(corpus, late(), words, other)
    assert [each.name for each in corpus.documents()] == ["who"]
    second.close()


def test_examples_are_rendered_again_for_another_template(
    corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    ingest(corpus, [SHIPS, document("when", WHEN)], words, tokenizer)
    before, meta = contents(corpus, words), corpus.meta()

    assert retokenize(corpus, other, 512) == 0

    after, rendered = contents(corpus, words), Renderer(other).render(WHEN)
    assert after["ships"] == before["ships"]
    assert (after["when"].tokens, after["when"].scored) == (rendered.tokens, rendered.scored)
    assert after["when"].tokens != before["when"].tokens
    assert after["when"].source == before["when"].source
    assert corpus.meta()["template"] == Renderer(other).digest != meta["template"]
    corpus.check(words, tokenizer_digest(other), Renderer(other).digest)


@pytest.mark.parametrize(
    ("template", "limit", "message"),
    [
        ("{{ raise_exception('only cats') }}", 512, "an example of it cannot be rendered for this"),
        (TEMPLATE, 10, "1 of its sequences have more than 10 tokens"),
    ],
)
def test_a_model_that_cannot_take_an_example_changes_nothing(
    corpus: Corpus, words: Embedder, tokenizer: Any, other: Any, template: str, limit: int,
    message: str,
) -> None:  # fmt: skip
    ingest(corpus, [document("when", WHEN)], words, tokenizer)
    before, meta = contents(corpus, words), corpus.meta()
    other.chat_template = template

    with pytest.raises(CorpusError, match=f"'notes' was not changed: {message}"):
        retokenize(corpus, other, limit)

    assert contents(corpus, words) == before
    assert corpus.meta() == meta


def test_reembedding_embeds_the_prompts(
    corpus: Corpus, words: Embedder, other_words: Embedder, tokenizer: Any
) -> None:
    ingest(corpus, [SHIPS, document("when", WHEN)], words, tokenizer)
    before = corpus.nearest(words.embed(["anything"]), None)

    corpus.reembed(other_words)

    after = corpus.nearest(words.embed(["anything"]), None)
    order = [np.argsort(ids) for ids, _ in (before, after)]
    assert np.allclose(before[1][order[0]], after[1][order[1]])


def test_a_corpus_of_an_earlier_version_takes_examples(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    ingest(corpus, [SHIPS], words, tokenizer)
    before = contents(corpus, words)
    corpus.close()
    with sqlite3.connect(corpora / "notes" / "corpus.db") as database:
        database.execute("ALTER TABLE sequences DROP COLUMN example")
        database.execute("ALTER TABLE sequences DROP COLUMN scored")
    database.close()

    upgraded = Corpus.open(corpora, "notes")
    assert contents(upgraded, words) == before
    ingest(upgraded, [document("who", WHO)], words, tokenizer)

    assert contents(upgraded, words)["who"].scored == Renderer(tokenizer).render(WHO).scored
    upgraded.close()


@pytest.mark.parametrize("shards", [0, 2])
def test_a_selection_says_which_tokens_are_scored(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, nano: str, shards: int
) -> None:
    ingest(corpus, [SHIPS, document("who", WHO), document("when", WHEN)], words, tokenizer)
    roots = [shard_folder(corpora.parent, shard, shards) for shard in range(shards)]
    if shards:
        update_shards(corpus, roots)
    holders, threads = [Shard(root) for root in roots], ThreadPoolExecutor(1)
    calls = [
        lambda method, *args, shard=shard: threads.submit(method, shard, *args) for shard in holders
    ]
    config = SelectorConfig(corpora, base_model=nano, regularisation=0.01)
    selector = Selector(config, calls, ThreadedEmbedder(lambda: words))

    selection = selector.select(
        SelectionRequest([Prompt("Who sails?")], "notes", steps=3, strategy="nn")
    )

    stored = {each.source.sequence: each for each in contents(corpus, words).values()}
    assert selection.ids[0] == contents(corpus, words)["who"].source.sequence
    assert selection.scored == tuple(stored[i].scored for i in selection.ids)
    assert selection.sequences == tuple(stored[i].tokens for i in selection.ids)
    assert len(set(selection.scored)) == 3
    threads.shutdown()
    selector.corpora.close()
