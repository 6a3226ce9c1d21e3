"""AdapterTraining: what trains the adapter of a corpus: what is left to train, its sequences, and
where the result and the checkpoints go.

It does not depend on how adapters are trained. A part that has learnt a sequence which was deleted
in the meantime may be saved all the same: it is found to be invalid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from selection.config import AdapterShape
from selection.corpus.stores.protocols import CorpusStore
from selection.corpus.trained.files import (
    MOMENTS,
    WEIGHTS,
    Checkpoint,
    LockedError,
)
from selection.corpus.trained.manifest import (
    AdapterSettings,
    AdapterStatus,
    CorpusAdapterInfo,
    PartInfo,
    Snapshot,
    TrainedPart,
)
from selection.corpus.trained.places import files_of
from selection.corpus.trained.plan import TrainingPlan, plan_anew, plan_increment
from selection.corpus.trained.validity import Validity, documents_of
from selection.errors import CorpusError
from selection.examples.example import Spans


class AdapterTraining:
    """The training of one corpus's adapter. Use it from one thread at a time.

    Every method raises CorpusError if the corpus is damaged or was removed.

    Args:
        store: the corpus's store.
    """

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._sequences = store.sequence_ids
        self._files = files_of(store)
        self._validity = Validity(store)

    def status(
        self, shape: AdapterShape | None = None, *, check_weights: bool = False
    ) -> AdapterStatus:
        """How far the adapter is.

        Args:
            shape: what it must have been trained for; None skips this check.
            check_weights: whether to read the weights, to find damaged ones.
        """
        with self._store.reading():
            kinds = (WEIGHTS,) if check_weights else ()
            state = self._validity.checked(*kinds)
            return AdapterStatus(
                state.info,
                sum(map(len, state.learnt.values())),
                state.not_learnt,
                tuple(part.name for part in state.invalid),
                self._validity.why_not(state, shape),
            )

    def plan(
        self, shape: AdapterShape, parts: int | None = None, *, fresh: bool = False, seed: int = 0
    ) -> TrainingPlan:
        """What is left to train; damaged parts among it.

        Args:
            shape: what the adapter is trained for.
            parts: number of parts; None leaves an adapter of one part as it is, and otherwise
                follows from the number of sequences. An adapter of one part is trained anew for
                several, and the reverse; one of several is trained further, however many it has.
            fresh: train everything anew.
            seed: of the order, and of the choice of what is held out.
        """
        centroids = self._sequences.centroids
        with self._store.reading():
            snapshot = Snapshot.of(self._store.meta())
            state = self._validity.checked(WEIGHTS, MOMENTS)
            sequences_N2, earlier = self._sequences.all(), None if fresh else state.info
            if parts is None and earlier is not None and not earlier.divided:
                parts = 1
            if (
                earlier is not None
                and state.learnt
                and earlier.shape.mismatch(shape) is None
                and (parts is None or earlier.divided == (parts > 1))
            ):
                divided = earlier.divided
                further = plan_increment(sequences_N2, state.learnt, divided, centroids, seed)
                return TrainingPlan(snapshot, divided, tuple(further))
            divided, anew = plan_anew(sequences_N2, parts, centroids, seed)
        if state.info is not None and anew:
            replaced = tuple(part.name for part in state.info.parts)
            anew[0] = replace(anew[0], replaces=replaced)
        return TrainingPlan(snapshot, divided, tuple(anew))

    def sequences(self, ids: Sequence[int]) -> dict[int, tuple[tuple[int, ...], Spans | None]]:
        """The tokens of sequences, and which of them to train on; deleted ones are left out."""
        read = self._store.read(ids)
        return {i: (sequence.tokens, sequence.scored) for i, sequence in read.items()}

    def are_present(self, ids: Sequence[int]) -> bool:
        """Whether none of these sequences was deleted."""
        return bool(self._store.replication.present(np.array(ids, np.int64)).all())

    def part(self, name: str) -> TrainedPart:
        """A part, to train it further.

        Raises:
            CorpusError: there is no such part, or it must be trained anew.
        """
        with self._store.reading():
            state = self._validity.current()
        info = next((part for part in state.usable if part.name == name), None)
        if info is None or state.info is None:
            raise self._error(f"has no usable part {name!r}")
        moments = self._validity.read(info, MOMENTS) if MOMENTS in info.sha256 else b""
        return TrainedPart(
            self._validity.read(info, WEIGHTS),
            tuple(state.learnt[name].tolist()),
            Snapshot(info.generation, state.info.tokenizer, state.info.template),
            moments,
            info.steps,
            info.scaling,
        )

    def save_part(
        self, settings: AdapterSettings, part: TrainedPart, replaces: Sequence[str] = ()
    ) -> PartInfo:
        """Add a part, durably. Other parts stay if they are usable and were trained for the same.

        Only for the one that trains the corpus.

        Args:
            settings: what it was trained for, and how.
            part: the part.
            replaces: names of the parts that it replaces.

        Raises:
            CorpusError: the corpus was retokenized since it was planned, or the part cannot be
                written; the adapter stays as it was.
        """
        learnt = np.array(part.learnt, np.int64)
        with self._store.reading():
            meta = self._store.meta()
            then = part.snapshot
            if not Snapshot.of(meta).has_tokens_of(then.tokenizer, then.template):
                raise self._error("was retokenized in the meantime: train it again")
            state = self._validity.current()
            documents, content = documents_of(
                learnt, self._sequences.all(), self._sequences.contents()
            )
        kept: list[PartInfo] = []
        template = then.template
        if state.info is not None and settings.continues(state.info):
            kept = [each for each in state.usable if each.name not in replaces]
            template = template or state.info.template
        with self._writing():
            name, sha256 = self._files.write_part(part.weights, learnt, part.moments)
            info = PartInfo(
                name,
                sha256,
                sequences=len(learnt),
                documents=documents,
                content=content,
                generation=then.generation,
                steps=part.steps,
                scaling=part.scaling,
            )
            self._files.save(
                CorpusAdapterInfo(
                    **asdict(settings),
                    corpus=meta["id"],
                    tokenizer=then.tokenizer,
                    template=template,
                    parts=(*kept, info),
                )
            )
        return info

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint of the training under way, durably. Only for the one that trains
        the corpus.

        Raises:
            CorpusError: it cannot be written; the old one stays.
        """
        self._store.meta()  # refuses a corpus that was removed
        with self._writing():
            self._files.save_checkpoint(checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of an interrupted training; None if there is none that can be continued:
        it is damaged, or has learnt a sequence that was deleted or retokenized since.
        """
        checkpoint = self._files.load_checkpoint()
        if checkpoint is None:
            return None
        with self._store.reading():
            now, then = Snapshot.of(self._store.meta()), checkpoint.snapshot
            current = (
                then.generation <= now.generation
                and now.has_tokens_of(then.tokenizer, then.template)
                and self.are_present(checkpoint.learnt)
            )
        return checkpoint if current else None

    def clear_checkpoint(self) -> None:
        """Delete the checkpoint, if there is one."""
        self._files.clear_checkpoint()

    def record(self, record: Mapping[str, Any] | None) -> None:
        """Replace what a server has to remember of the training, as JSON; None forgets it.

        Raises:
            CorpusError: it cannot be written; the old record stays.
        """
        self._store.meta()  # refuses a corpus that was removed
        with self._writing():
            self._files.save_record(record)

    def recorded(self) -> dict[str, Any] | None:
        """What `record` was given last; None if that was nothing, or if it is damaged."""
        return self._files.load_record()

    def drop_invalid(self) -> None:
        """Delete the parts that must be trained anew; they may have learnt what was deleted since.
        Only for the one that trains the corpus.

        Raises:
            CorpusError: the others cannot be recorded; the adapter stays as it was.
        """
        with self._store.reading():
            state = self._validity.checked(WEIGHTS, MOMENTS)
        if state.info is None or not state.invalid:
            return
        if not state.usable:
            self._files.remove()
            return
        with self._writing():
            self._files.save(replace(state.info, parts=tuple(state.usable)))

    def remove(self) -> None:
        """Delete the adapter and the checkpoint, if there are any. Only for the one that trains
        the corpus."""
        self._files.remove()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one that trains the corpus within the `with` block. It ends with the process.

        Raises:
            CorpusError: another process trains it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._files.lock())
            except LockedError:
                raise self._error(
                    "is being trained by another process: wait until it has ended, or stop it"
                ) from None
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._error(
                f"was trained, but the result cannot be saved: {problem.strerror}"
            ) from problem

    def _error(self, why: str) -> CorpusError:
        return self._store.unusable(why)
