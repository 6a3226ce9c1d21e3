"""Corpora with an adapter, for tests: trained on all of their sequences, without a choice."""

from __future__ import annotations

from adapters.trainer import Trainer
from adapters.training import TrainingRequest
from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import AdapterSettings, TrainedPart
from selection.location import Location


def train_corpus(
    root: Location, name: str, trainer: Trainer, shape: AdapterShape, passes: int = 1
) -> str:
    """Train the adapter of a corpus, and give its name."""
    corpus = Corpus.open(root, name)
    try:
        plan = corpus.training.plan(shape)
        (part,) = plan.parts
        learnt = (*part.ids, *part.held_out)
        rows = corpus.training.sequences(learnt)
        sequences = [rows[i][0] for i in learnt] * passes
        adapter = trainer.train(TrainingRequest(sequences)).adapter
        assert adapter is not None
        settings = AdapterSettings(
            shape.model,
            adapter.rank,
            adapter.scale_numerator,
            adapter.targets,
            learning_rate=1e-3,
            passes=passes,
            divided=plan.divided,
        )
        trained = TrainedPart(adapter.weights, learnt, plan.snapshot)
        return corpus.training.save_part(settings, trained, part.replaces).name
    finally:
        corpus.close()
