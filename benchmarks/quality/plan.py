"""What the quality benchmark measures, by size: strategies, settings, domains and passages."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.domains import DOMAINS
from benchmarks.quality.passages import Passage, PassageSet
from benchmarks.quality.variants import CENTRED, Variant

BATCH_PASSAGES = 2  # of each domain
STRATEGIES = (
    Variant("SIFT"),
    Variant("NN", "nn"),
    Variant("random", "random"),
    Variant("NN-F", "nn-f"),
    Variant("US", "us"),
    Variant("HullFT", "hull", plan="reuse"),
    Variant("SIFT in context", in_context=True),
    Variant("NN in context", "nn", in_context=True),
)
AXES = {
    "lambda'": tuple(
        Variant(f"lambda' {value:g}", regularisation=value) for value in (0.01, 0.1, 1.0, 10.0)
    ),
    "candidates": (
        Variant("K = 50", candidates=50),
        Variant("K = 1000", candidates=1000),
        Variant("K = all", candidates=None),
    ),
    "corpus": tuple(
        Variant(f"{strategy.upper()}, {share} % of the corpus", strategy, share=share)
        for share in (3, 33)
        for strategy in ("sift", "nn")
    ),
    "copies": tuple(
        Variant(f"{strategy.upper()}, every sequence {copies} times", strategy, copies=copies)
        for copies in (2, 5)
        for strategy in ("sift", "nn")
    ),
    "near-duplicates left in": (
        Variant("SIFT, all documents", near=True),
        Variant("NN, all documents", "nn", near=True),
    ),
    "the paper's own way": (
        Variant("SIFT, whole passage", whole=True),
        Variant("NN, whole passage", "nn", whole=True),
    ),
    "order": (
        Variant("SIFT reversed", order="reversed"),
        Variant("NN reversed", "nn", order="reversed"),
    ),
    "plan": (Variant("batched", plan="batched"), Variant("reuse", plan="reuse")),
    "learning rate": tuple(
        Variant(f"rate {value:g}", learning_rate=value) for value in (1e-4, 3e-4, 1e-3, 2e-3)
    ),
    "scale": tuple(
        Variant(f"scale {scale:g}, rate {rate:g}", scale=scale, learning_rate=rate)
        for scale, rate in ((1.0, 3e-3), (4.0, 2e-3), (64.0, 1.5e-4))
    ),
    "rank": (Variant("rank 4", rank=4), Variant("rank 64", rank=64)),
    "full fine-tuning": tuple(
        Variant(f"all weights, rate {value:g}", full=True, learning_rate=value)
        for value in (1e-4, 3e-4, 1e-3)
    ),
    "embedder": tuple(
        Variant(f"{strategy.upper()}, {name}", strategy, embedder=embedder)
        for embedder, name in (
            ("base-model", "hidden states of the base model"),
            (CENTRED, "centred"),
        )
        for strategy in ("sift", "nn")
    ),
    "last layer": tuple(
        Variant(f"last layer, rate {value:g}", targets=("lm_head",), learning_rate=value)
        for value in (6e-4, 2e-3)
    ),
}


@dataclass(frozen=True)
class Size:
    """The amount of work of a run.

    Attributes:
        domains: names of domains.
        strategies: number of STRATEGIES to measure, from the first.
        held_out: held-out documents of each domain.
        chosen_on: how many of these defaults were chosen on; the first ones, never reported.
        measured: how many of the others the main table measures.
        axis_measured: how many of those measured also measure AXES.
        alone: how many of those measured are measured with nothing else computing.
        corpus_bytes: bytes of each domain in the corpus.
    """

    domains: tuple[str, ...]
    strategies: int
    held_out: int
    chosen_on: int
    measured: int
    axis_measured: int
    alone: int
    corpus_bytes: int


SIZES = {
    "small": Size(("Python", "Rust", "reference"), 3, 9, 3, 6, 0, 1, 500_000),
    "full": Size(
        tuple(domain.name for domain in DOMAINS), len(STRATEGIES), 60, 3, 57, 6, 1, 1_000_000
    ),
}


@dataclass(frozen=True)
class Job:
    """A variant and the passages to measure at once; a single passage if `alone`."""

    variant: Variant
    passages: tuple[Passage, ...]
    alone: bool = False


def jobs(passage_set: PassageSet, size: Size) -> list[Job]:
    """All measurements of a run, those of passages alone first.

    They alternate between domains, so that an interrupted run has some of each.
    """
    by_group: dict[str, list[Passage]] = {}
    for passage in passage_set.passages:
        by_group.setdefault(passage.group, []).append(passage)

    def slice_of_each(start: int, end: int) -> tuple[Passage, ...]:
        return tuple(
            p for passages in by_group.values() for p in passages[size.chosen_on :][start:end]
        )

    strategies = STRATEGIES[: size.strategies]
    jobs_in_order = [
        Job(variant, (passage,), alone=True)
        for passage in slice_of_each(0, size.alone)
        for variant in strategies
        if not variant.in_context
    ]
    for start in range(0, size.measured, BATCH_PASSAGES):
        jobs_in_order += [
            Job(variant, slice_of_each(start, min(start + BATCH_PASSAGES, size.measured)))
            for variant in strategies
        ]
        if start < size.axis_measured:
            axis_passages = slice_of_each(start, min(start + BATCH_PASSAGES, size.axis_measured))
            jobs_in_order += [
                Job(variant, axis_passages) for axis in AXES.values() for variant in axis
            ]
    return jobs_in_order
