"""Selection: the result of a choice of training data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selection.corpus.calibration import Calibration
from selection.corpus.sequences import Source
from selection.corpus.trained.manifest import CorpusStart
from selection.examples.example import Spans
from selection.targets import Truncation


class SelectionStop(StrEnum):
    """What ended a selection."""

    STEPS = "steps"  # as many sequences were chosen as were asked for
    ALPHA = "alpha"  # the stopping rule of Adaptive SIFT
    CORPUS = "corpus"  # the corpus is empty, or no document passes the filter


@dataclass(frozen=True)
class Selection:
    """What to train on, in order.

    Attributes:
        corpus: id of the corpus; None for a request that names none.
        ids: sequence ids, repeats allowed; -1, -2, ... for the request's own candidates.
        sequences: tokens of each id.
        scored: the tokens of each to train on; None for all but the first.
        sources: each distinct sequence and how often it was chosen, most used first.
        uncertainty: sigma_0 .. sigma_n, one entry more than `ids`.
        irreducible: sigma_infinity, the uncertainty that would be left if every candidate were seen
            infinitely often.
        stop: what ended the selection.
        calibration: the corpus's calibration for this base model, if there is one.
        strategy: the strategy that chose.
        seconds: duration of each stage: embed, search, select.
        truncation: how much of the prompts was used, if not all.
        start: the corpus's adapter to start from, if the request asks for one and there is one.
        no_start: why there is none although the request asks for one, for the client.
    """

    corpus: str | None
    ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    scored: tuple[Spans | None, ...]
    sources: tuple[tuple[Source, int], ...]
    uncertainty: tuple[float, ...]
    irreducible: float
    stop: SelectionStop
    calibration: Calibration | None
    strategy: str
    seconds: dict[str, float]
    truncation: Truncation | None = None
    start: CorpusStart | None = None
    no_start: str | None = None
