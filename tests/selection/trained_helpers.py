"""Helpers of the tests of corpus adapters: adapters of random weights, "trained" as planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from safetensors.numpy import save

from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import (
    AdapterSettings,
    CorpusStart,
    PartInfo,
    TrainedPart,
)

SHAPE = AdapterShape("model", 2, ("q_proj", "v_proj"))
SETTINGS = AdapterSettings("model", 2, 4.0, ("q_proj", "v_proj"), 1e-3, 1, divided=False)


def weights(seed: int) -> bytes:
    """A LoRA of random weights, as a trainer exports it."""
    random = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.layers.0.{target}.lora_{matrix}.weight": random.standard_normal(
            shape
        ).astype(np.float32)
        for target in SHAPE.targets
        for matrix, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    return save(tensors, metadata={"format": "pt"})


def train(corpus: Corpus, seed: int = 0, **options: Any) -> list[PartInfo]:
    """Save a part of random weights for everything that is left to train; the new parts."""
    plan = corpus.training.plan(SHAPE, **options)
    saved = []
    for number, part in enumerate(plan.parts):
        learnt = (*part.ids, *part.held_out)
        if part.start is not None:
            learnt += corpus.training.part(part.start).learnt
        trained = TrainedPart(
            weights(seed + number), learnt, plan.snapshot, b"moments of %d" % seed, len(learnt)
        )
        settings = replace(SETTINGS, divided=plan.divided)
        saved.append(corpus.training.save_part(settings, trained, part.replaces))
    return saved


def found(corpus: Corpus) -> CorpusStart:
    """What a request starts from, where the adapter has one part."""
    result = corpus.trained.start(SHAPE, None)
    assert result is not None
    assert result.start is not None, result.reason
    return result.start


def refusal(corpus: Corpus, shape: AdapterShape = SHAPE) -> str | None:
    """Why no request starts from the adapter."""
    result = corpus.trained.start(shape, None)
    assert result is not None
    return result.reason
