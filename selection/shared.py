"""What the threads of one process share: an embedder, and corpora that stay open with their indexes in memory.

A tokenizer that two threads use at once fails, an index that two threads hold is memory spent twice. So both are taken
in turns; whoever embeds much should do it in small parts, since others wait for a part, not for the whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selection.corpus import Corpus, find_corpus
from selection.embedding import Embedder, Embeddings, Prompt
from selection.reader import EVERYTHING, Reader


class SharedEmbedder:
    """An embedder that threads use one at a time, first come, first served.

    It is loaded and computes in a thread of its own: OpenMP keeps a team for each thread that has computed, and where
    teams have more threads than there are cores it lets none spin, which makes an embedding half as long again.

    Args:
        load: makes the embedder.
    """

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._embedder = self._thread.submit(load).result()
        self.name, self.revision, self.dimension = (
            self._embedder.name,
            self._embedder.revision,
            self._embedder.dimension,
        )

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D] of texts."""
        return self._thread.submit(self._embedder.embed, texts).result()

    def segments(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows, in order."""
        return self._thread.submit(self._embedder.segments, prompt).result()


@dataclass(frozen=True)
class _Held:
    corpus: Corpus
    id: str
    inode: int


class OpenCorpora:
    """Corpora of one embedder and tokenizer, kept open, opened anew when they were removed and made again.

    Args:
        root: the folder of all corpora.
        embedder: whose vectors they must hold; None leaves that unchecked, and the tokenizer.
        tokenizer: the digest of the tokenizer whose tokens they must hold; None leaves that unchecked.
    """

    def __init__(self, root: Path, embedder: Embedder | None, tokenizer: str | None) -> None:
        self._root, self._embedder, self._tokenizer = root, embedder, tokenizer
        self._held: list[_Held] = []
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: str, reader: Reader = EVERYTHING) -> Iterator[Corpus]:
        """The corpus of that name, id or display name, for the length of a `with`; others wait.

        Raises:
            CorpusNotFoundError: there is none, or none that the reader sees.
            CorpusError: it was made with another embedder or tokenizer.
        """
        with self._lock:
            corpus = self._corpus(name, reader)
            if self._embedder is not None:
                corpus.check(self._embedder, self._tokenizer)  # each time: it may have been embedded anew meanwhile
            yield corpus

    def close(self) -> None:
        """Close them all; the next use opens again."""
        with self._lock:
            for held in self._held:
                held.corpus.close()
            self._held = []

    def _corpus(self, name: str, reader: Reader) -> Corpus:
        for held in [held for held in self._held if _inode(held.corpus.folder) != held.inode]:
            held.corpus.close()
            self._held.remove(held)
        for held in self._held:
            if name in (held.corpus.name, held.id) and reader.sees(held.corpus.name, held.corpus.meta()):
                return held.corpus
        folder = find_corpus(self._root, name, reader)
        for held in self._held:
            if held.corpus.folder == folder:  # by its display name
                return held.corpus
        corpus = Corpus.open(self._root, folder.name, reader)
        self._held.append(_Held(corpus, corpus.meta()["id"], _inode(folder)))
        return corpus


def _inode(folder: Path) -> int:
    try:
        return (folder / "corpus.db").stat().st_ino
    except FileNotFoundError:
        return -1
