"""StoreTrainings: the training of the adapters of vector stores, by a server that trains them
between its requests.

A server begins a training once, and then calls what it needs (`call`); between the calls it holds
the lock of the corpus, so that no command trains it as well. It does not hold that of a corpus in a
database: the end of a training may be told to another process, on another machine. There, what the
server records of the training (`AdapterTraining.record`) keeps commands from it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Concatenate, ParamSpec, TypeVar

from selection.access import Principal
from selection.corpus.trained.training import AdapterTraining
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
        # The locks held, by the id of their corpus.
        self._locks: dict[str, ExitStack] = {}

    def begin(self, store: str, principal: Principal) -> str:
        """Be the one that trains a vector store that the principal owns, until `end`; returns its
        id. Beginning again changes nothing.

        Raises:
            CorpusError: another process trains it.
        """
        with self._stores.open_owned(store, principal) as corpus:
            identity = corpus.meta()["id"]
            if identity not in self._locks:
                lock = ExitStack()
                lock.enter_context(corpus.training.lock())
                if corpus.training.is_shared:
                    lock.close()
                else:
                    self._locks[identity] = lock
            return identity

    def end(self, identity: str) -> None:
        """Let others train the vector store with that id, which may have been deleted."""
        lock = self._locks.pop(identity, None)
        if lock is not None:
            lock.close()

    def close(self) -> None:
        """End all trainings."""
        for identity in [*self._locks]:
            self.end(identity)

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
