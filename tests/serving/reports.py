"""The report of an adaptation, for tests."""

from __future__ import annotations

from serving.budget import Budget
from serving.report import AdaptationReport, Stage, StopReason

REPORT = AdaptationReport(
    adapted=True,
    reason=None,
    budget=Budget(20, 1.5, 0.1),
    clamped=(),
    calibrated=False,
    strategy="sift",
    shed=None,
    targets=None,
    corpus="notes-of-a-patient",
    auto=None,
    shown=None,
    seed=3,
    start={"from": "fresh", "reason": "the corpus has no adapter"},
    reused=None,
    stop=StopReason.ALPHA,
    uncertainty=(1.0, 0.5, 0.3125),
    irreducible=0.01,
    losses=(2.5, 2.25),
    prompt_losses=((0, 3.25), (2, 3.0)),
    learnt=2,
    sources=({"document": 4, "name": "diagnosis.txt", "start": 0, "times": 2},),
    seconds={
        Stage.EMBED: 0.0125,
        Stage.SEARCH: 0.002,
        Stage.SELECT: 0.003,
        Stage.QUEUE: 0.2,
        Stage.TRAIN: 0.55,
        Stage.LOAD: 0.05,
    },
    spent_seconds=0.84,
    adapter="mayfly-1",
)
