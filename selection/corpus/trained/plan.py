"""TrainingPlan: on what sequences each part of a corpus adapter is trained, and in which order.

Every sequence that is not learnt is in exactly one part, with the others of its document, so that a
deleted document costs one part. A part that is trained from scratch holds some of its documents
out: their loss decides how the others are trained, and they are learnt last. A plan is computed
from ids and embeddings alone.

Shapes: N sequences, G groups of them, D embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from selection.corpus.trained.division import PART_MIN, PART_SIZE, divide
from selection.corpus.trained.manifest import Snapshot
from selection.embedding import Embeddings

Ids: TypeAlias = npt.NDArray[np.int64]
# The mean embeddings [G, D] of groups of sequences.
Centroids: TypeAlias = Callable[[Sequence[Ids]], Embeddings]

# The number of sequences above which a corpus is trained in parts.
PART_FROM = 20_000
# What is held out of a part: a share of its documents, or HELD_OUT_MIN if that is more and no more
# than a quarter, if it has at least HELD_OUT_FROM of them; at most HELD_OUT_MAX sequences.
HELD_OUT, HELD_OUT_MIN, HELD_OUT_FROM, HELD_OUT_MAX = 0.05, 4, 8, 64
# Groups that are compared with all others at once.
_BLOCK = 1024
_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True)
class PlannedPart:
    """The training of one part.

    Attributes:
        ids: the sequences to train on, in order.
        held_out: the sequences that are learnt last, in order.
        start: name of the part to train further, whose sequences stay learnt; None starts anew.
        replaces: names of the parts that the trained one replaces.
    """

    ids: tuple[int, ...]
    held_out: tuple[int, ...] = ()
    start: str | None = None
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """The training of a corpus adapter.

    Attributes:
        snapshot: the state of the corpus that it was made from.
        divided: whether the corpus is divided into parts, also where one of them is left to train.
        parts: the trainings, in order; none if everything is learnt.
    """

    snapshot: Snapshot
    divided: bool
    parts: tuple[PlannedPart, ...]

    @property
    def sequences(self) -> int:
        """The number of sequences to train on."""
        return sum(len(part.ids) + len(part.held_out) for part in self.parts)

    def replaces_all(self, names: Collection[str]) -> bool:
        """Whether all parts of an adapter are trained anew, none of them further."""
        replaced = {name for part in self.parts if part.start is None for name in part.replaces}
        return bool(self.parts) and replaced.issuperset(names)

    def to_bytes(self) -> bytes:
        """The plan as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> TrainingPlan:
        """The inverse of `to_bytes`."""
        body: dict[str, Any] = json.loads(content)
        return cls(
            Snapshot(**body["snapshot"]),
            body["divided"],
            tuple(
                PlannedPart(
                    tuple(part["ids"]),
                    tuple(part["held_out"]),
                    part["start"],
                    tuple(part["replaces"]),
                )
                for part in body["parts"]
            ),
        )


def plan_anew(
    sequences_N2: Ids, parts: int | None, centroids: Centroids, seed: int
) -> tuple[bool, list[PlannedPart]]:
    """The training of a whole corpus, and whether it is divided into parts.

    Args:
        sequences_N2: document and id of each sequence, in order.
        parts: number of parts; None takes one, or that of PART_SIZE above PART_FROM sequences.
        centroids: mean embeddings of groups of sequences.
        seed: of the order, and of the choice of what is held out.
    """
    total = len(sequences_N2)
    if parts is None:
        parts = 1 if total <= PART_FROM else round(total / PART_SIZE)
    return parts > 1, _new_parts(_documents(sequences_N2), parts, centroids, seed)


def plan_increment(
    sequences_N2: Ids,
    learnt: Mapping[str, Ids],
    divided: bool,
    centroids: Centroids,
    seed: int,
) -> list[PlannedPart]:
    """The training of what no part has learnt: by the part that has learnt others of the same
    document, by new parts if the corpus is divided and there is enough for one, or else by the part
    that is nearest.

    Args:
        sequences_N2: document and id of each sequence, in order.
        learnt: ids of the sequences that each usable part has learnt, ascending; at least one part.
        divided: whether the corpus is divided into parts.
        centroids: mean embeddings of groups of sequences.
        seed: of the order, and of the choice of what new parts hold out.
    """
    names = list(learnt)
    # The part that has learnt each sequence; -1 for none.
    part_N = np.full(len(sequences_N2), -1)
    for part, ids in enumerate(learnt.values()):
        part_N[np.isin(sequences_N2[:, 1], ids)] = part
    known = part_N >= 0
    part_of = dict(zip(sequences_N2[known, 0].tolist(), part_N[known].tolist(), strict=True))
    pending = _documents(sequences_N2[~known])
    further: dict[int, list[Ids]] = {}
    new: dict[int, Ids] = {}
    for document, ids in pending.items():
        if document in part_of:
            further.setdefault(part_of[document], []).append(ids)
        else:
            new[document] = ids
    total = sum(map(len, new.values()))
    planned = []
    if divided and total >= PART_MIN:
        planned = _new_parts(new, max(1, round(total / PART_SIZE)), centroids, seed)
    elif new:
        nearest = [0] * len(new)
        if len(names) > 1:
            parts_PD, documents_ND = centroids([*learnt.values()]), centroids([*new.values()])
            nearest = (documents_ND @ parts_PD.T).argmax(axis=1).tolist()
        for part, ids in zip(nearest, new.values(), strict=True):
            further.setdefault(part, []).append(ids)
    random = np.random.default_rng(seed)
    for part, groups in sorted(further.items()):
        order = _shuffled(np.concatenate(groups), random)
        planned.append(PlannedPart(order, (), names[part], (names[part],)))
    return planned


def _new_parts(
    documents: Mapping[int, Ids], parts: int, centroids: Centroids, seed: int
) -> list[PlannedPart]:
    groups = [*documents.values()]
    if not groups:
        return []
    centroids_GD = centroids(groups)
    divided = [[*range(len(groups))]]
    if parts > 1:
        divided = divide([len(group) for group in groups], centroids_GD, parts)
    return [
        _planned([groups[document] for document in chosen], centroids_GD[chosen], seed + part)
        for part, chosen in enumerate(divided)
    ]


def _planned(documents: Sequence[Ids], centroids_GD: Embeddings, seed: int) -> PlannedPart:
    """The training of a part from scratch.

    It holds out documents of the half that is least like others: the loss on a near copy of what is
    learnt falls further the more often that is repeated, also while the loss on other text rises.
    """
    random = np.random.default_rng(seed)
    order_G = np.argsort(_nearest(centroids_GD), kind="stable")
    halves = np.split(order_G, [len(documents) // 2])
    held_out: set[int] = set()
    if len(documents) >= HELD_OUT_FROM:
        few = min(HELD_OUT_MIN, len(documents) // 4)
        left, room = max(few, int(HELD_OUT * len(documents))), HELD_OUT_MAX
        for document in np.concatenate([random.permutation(half) for half in halves]).tolist():
            if left and len(documents[document]) <= room:
                held_out.add(document)
                left, room = left - 1, room - len(documents[document])
    ids, last = [_NO_IDS], [_NO_IDS]
    for document, group in enumerate(documents):
        (last if document in held_out else ids).append(group)
    return PlannedPart(
        _shuffled(np.concatenate(ids), random), _shuffled(np.concatenate(last), random)
    )


def _nearest(centroids_GD: Embeddings) -> npt.NDArray[np.float32]:
    """The similarity [G] of each group to the one that is most like it."""
    similarity_G = np.empty(len(centroids_GD), np.float32)
    for start in range(0, len(centroids_GD), _BLOCK):
        block_BG = centroids_GD[start : start + _BLOCK] @ centroids_GD.T
        np.fill_diagonal(block_BG[:, start:], -1)
        similarity_G[start : start + _BLOCK] = block_BG.max(axis=1)
    return similarity_G


def _documents(sequences_N2: Ids) -> dict[int, Ids]:
    """The ids of the sequences of each document."""
    if not len(sequences_N2):
        return {}
    documents_N, ids_N = sequences_N2[:, 0], sequences_N2[:, 1]
    starts = np.flatnonzero(np.diff(documents_N, prepend=-1))
    return dict(zip(documents_N[starts].tolist(), np.split(ids_N, starts[1:]), strict=True))


def _shuffled(ids: Ids, random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.permutation(ids).tolist())
