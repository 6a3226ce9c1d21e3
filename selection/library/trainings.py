"""StoreTrainings: the training of the adapters of vector stores, by a server that trains them
between its requests.

A server holds no lock of a corpus between its calls, which several processes may answer. What it
records of a training (`AdapterTraining.record`) keeps commands from the corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from selection.access import Principal
from selection.corpus.trained.training import AdapterTraining
from selection.errors import CorpusNotFoundError, LibraryError
from selection.library.vector_stores import VectorStores

P = ParamSpec("P")
Result = TypeVar("Result")


class StoreTrainings:
    """The trainings of one library. Use it from one thread at a time.

    Methods that take a vector store raise as those of `Library`.

    Args:
        stores: the vector stores.
    """

    def __init__(self, stores: VectorStores) -> None:
        self._stores = stores

    def recorded(self) -> dict[str, dict[str, Any] | None]:
        """What is recorded of the training of each vector store that can be used here, by its id;
        None where nothing is.
        """
        found = {}
        for corpus in self._stores.all():
            # One that was removed since it was listed, or has another embedder or tokenizer.
            with suppress(CorpusNotFoundError, LibraryError):
                self._stores.check(corpus)
                found[str(corpus.meta()["id"])] = corpus.training.recorded()
        return found

    def check_free(self, store: str, principal: Principal) -> str:
        """Check that no command trains a vector store that the principal owns; returns its id.

        Raises:
            CorpusError: one does.
        """
        with self._stores.open_owned(store, principal) as corpus, corpus.training.lock():
            identity: str = corpus.meta()["id"]
            return identity

    def call(
        self,
        store: str,
        principal: Principal,
        method: Callable[Concatenate[AdapterTraining, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """Call a method of the training of a vector store that the principal owns."""
        with self._stores.open_owned(store, principal) as corpus:
            return method(corpus.training, *args, **kwargs)

    def read(
        self,
        store: str,
        principal: Principal,
        method: Callable[Concatenate[AdapterTraining, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """As `call`, of a method that changes nothing, for a principal who sees the store."""
        with self._stores.open(store, principal) as corpus:
            return method(corpus.training, *args, **kwargs)
