"""CurveMeasurer: what settings gain on held-out sequences of a corpus, as a server would train and
show.

A sequence is drawn from each of some documents. Its first half is the prompt; its second half is
scored, in nats, after data was selected from the rest of the corpus and trained on as a server
does. Of an example, the last answer is scored, and what precedes it is the prompt. The document
itself is excluded, and so are near duplicates (`held_out.near_duplicates`).

Shapes: K candidates, D embedding dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import AutoTokenizer

from adapters.model_defaults import for_model
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.corpus import Corpus
from selection.corpus.sequences import StoredSequence
from selection.embedding import Embedder
from selection.examples.templates import set_chat_template
from selection.selector import Selector
from selection.strategies.registry import choose
from serving.calibration.curves import MEASURED_STEPS, STEPS, Curve
from serving.calibration.embedders import OtherEmbedding
from serving.calibration.held_out import HeldOut, hold_out, near_duplicates
from serving.calibration.setting import Setting
from serving.calibration.shown_prompts import ShownPrompts


@dataclass(frozen=True)
class _Measurements:
    """What was measured during one training, by number of steps: nats of the prompt; and for each
    number of sequences shown, nats of the scored part, and whether an example's answer is exact.
    """

    prompt: dict[int, float] = field(default_factory=dict)
    scored: dict[int, dict[int, tuple[float, bool]]] = field(default_factory=dict)

    def curve(self, show: int, *, is_example: bool) -> Curve:
        # A training that diverged early stays at its last measurement.
        steps = np.array(sorted(self.prompt))
        exact = [self.scored[show][n][1] for n in steps]
        latest = np.searchsorted(steps, range(STEPS + 1), side="right") - 1
        return Curve(
            _percent({n: nats for n, (nats, _) in self.scored[show].items()}, self.scored[0][0][0]),
            _percent(self.prompt, self.prompt[0]),
            tuple(exact[i] for i in latest) if is_example else None,
        )


def _percent(nats: dict[int, float], base: float) -> tuple[float, ...]:
    """Per cent of `base` after 0, 1, ... steps, in between those that were measured."""
    steps = sorted(nats)
    percent = [100 * nats[n] / base for n in steps]
    return tuple(np.interp(range(STEPS + 1), steps, percent).tolist())


class CurveMeasurer:
    """Measures the curves of settings; holds a selector, and a trainer of one rank at a time.

    Attributes:
        default: The default configuration of the trainer.
        learning_rate: The default learning rate.
        held_out: The held-out sequences.
        embedder: Name of the corpus's embedder.
        other_embeddings: The corpus as other embedders embed it, by their names.
    """

    def __init__(self, selector: Selector, model: str, corpus: str, documents: int) -> None:
        self.default = for_model(model)
        self._selector, self._corpus = selector, corpus
        self.embedder = selector.embedder.name
        self.other_embeddings: dict[str, OtherEmbedding] = {}
        tokenizer = AutoTokenizer.from_pretrained(model)
        set_chat_template(tokenizer, selector.config.chat_template)
        with selector.corpora.open(corpus) as opened:
            self.held_out = hold_out(opened, tokenizer, documents)
        self._trainer = Trainer(self.default)
        self._prompts = ShownPrompts(tokenizer, self._trainer.base.context)
        self.learning_rate = self._trainer.learning_rate
        self._cancelled = threading.Event()
        self._selections: dict[tuple[object, ...], tuple[StoredSequence, ...]] = {}

    def embed(self, embedder: Embedder, on_embedded: Callable[[int], None]) -> None:
        """Embed the corpus with another embedder, in memory, for settings that name it.

        Args:
            embedder: The other embedder.
            on_embedded: Called with the number of sequences just embedded.
        """
        with self._selector.corpora.open(self._corpus) as corpus:
            embedding = OtherEmbedding(corpus, embedder, on_embedded)
        self.other_embeddings[embedder.name] = embedding

    def measure(
        self,
        setting: Setting,
        held_out: Sequence[HeldOut],
        on_each: Callable[[], None],
        shown: Sequence[int] = (),
    ) -> dict[int, list[Curve]]:
        """Select and train for all sequences together, and score them on the way.

        Returns:
            The curves by number of chosen sequences in the prompt: without any, and with up to each
            number in `shown`.
        """
        if setting.rank != self._trainer.config.rank:
            # A base model may fill the memory, so the old trainer goes before the new one comes.
            del self._trainer
            self._trainer = Trainer(replace(self.default, rank=setting.rank))
        curves: dict[int, list[Curve]] = {show: [] for show in (0, *shown)}
        try:
            started = [self._start(setting, each, list(curves)) for each in held_out]
            for each, (training, measured) in zip(held_out, started, strict=True):
                training.result()
                on_each()
                for show, listed in curves.items():
                    listed.append(measured.curve(show, is_example=each.example is not None))
        except KeyboardInterrupt:
            # Otherwise the process would not end before all of them are trained.
            self._cancelled.set()
            raise
        return curves

    def _start(
        self, setting: Setting, held_out: HeldOut, shown: Sequence[int]
    ) -> tuple[Future[TrainingResult], _Measurements]:
        """Start a training; the measurements are filled in while it runs."""
        key = held_out.document, setting.embedder, setting.strategy, setting.regularisation
        if key not in self._selections:
            with self._selector.corpora.open(self._corpus) as corpus:
                self._selections[key] = self._select(corpus, held_out, setting)
        trainer, selected = self._trainer, self._selections[key]
        # As in a request, the different ones in the order in which each was first chosen.
        sources = [*{each.source.sequence: each.source for each in selected}.values()]
        prompts = {show: self._prompts.scored(held_out, sources, show) for show in shown}
        measured = _Measurements(scored={show: {} for show in shown})

        def score(
            tokens: tuple[int, ...], middle: int, weights: bytes | None
        ) -> tuple[float, bool]:
            return (
                trainer.nats(tokens, middle, weights),
                held_out.example is not None and trainer.would_generate(tokens, middle, weights),
            )

        def measure(steps: int, weights: bytes | None = None) -> None:
            measured.prompt[steps] = trainer.nats(held_out.tokens[: held_out.middle], 1, weights)
            # More may be asked for than there is to show, or than fits.
            scores = {each: score(*each, weights) for each in set(prompts.values())}
            for show, prompt in prompts.items():
                measured.scored[show][steps] = scores[prompt]

        def on_step(progress: TrainingProgress) -> None:
            # Nearest neighbours has no more steps than there are sequences.
            if progress.steps in MEASURED_STEPS or progress.steps == progress.total_steps:
                measure(progress.steps, trainer.export(progress.slot))

        measure(0)
        request = TrainingRequest(
            [each.tokens for each in selected],
            learning_rate=setting.learning_rate,
            scored=[each.scored for each in selected],
        )
        return trainer.submit(request, cancelled=self._cancelled, on_step=on_step), measured

    def _select(
        self, corpus: Corpus, held_out: HeldOut, setting: Setting
    ) -> tuple[StoredSequence, ...]:
        """The sequences that the setting's strategy selects, without the document itself and its
        near duplicates.
        """
        embedder: Embedder = self._selector.embedder
        searched: Corpus | OtherEmbedding = corpus
        if setting.embedder is not None:
            searched = self.other_embeddings[setting.embedder]
            embedder = searched.embedder
        targets_TD = embedder.embed(embedder.windows(held_out.prompt))
        total = corpus.counts()[1]
        candidates = self._selector.config.candidates
        count = total if candidates is None else candidates
        fetched = 2 * count
        while True:
            ids_K, candidates_KD = searched.nearest(targets_TD, fetched)
            read = corpus.read(ids_K.tolist())
            excluded = {held_out.document} | near_duplicates(held_out, read.values())
            allowed_K = [
                position
                for position, i in enumerate(ids_K.tolist())
                if i in read and read[i].source.document not in excluded
            ]
            if len(allowed_K) >= count or fetched >= total:
                break
            fetched *= 2
        allowed_K = allowed_K[:count]
        choice = choose(
            setting.strategy, candidates_KD[allowed_K], targets_TD, STEPS, setting.regularisation
        )
        return tuple(read[int(ids_K[allowed_K[pick]])] for pick in choice.picks)
