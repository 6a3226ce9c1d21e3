"""SelectionRequest: what data is chosen for, from where, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selection.access import OPERATOR, Principal
from selection.corpus.calibration import Calibration
from selection.corpus.filters import Filter
from selection.corpus.sequences import Source, StoredSequence
from selection.embedding import Prompt
from selection.examples.example import Spans


@dataclass(frozen=True)
class Candidate:
    """A training sequence that a request brings, chosen among like those of a corpus.

    Attributes:
        prompt: what is embedded, by its last window.
        tokens: the sequence.
        scored: the tokens whose loss counts; None for all but the first.
        name: its name in the sources.
        start: position in the text that it is a part of, in characters.
        text: the sequence as text.
        example: the example as JSON; None for a text.
        further: tokens and scored tokens of other forms of the sequence. A candidate that is chosen
            again is trained on in its next form.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    scored: Spans | None
    name: str
    start: int
    text: str
    example: str | None = None
    further: tuple[tuple[tuple[int, ...], Spans | None], ...] = ()

    @property
    def forms(self) -> tuple[tuple[tuple[int, ...], Spans | None], ...]:
        """Tokens and scored tokens of all forms."""
        return ((self.tokens, self.scored), *self.further)


@dataclass(frozen=True)
class SelectionRequest:
    """One choice of training data; the same in this process and across processes.

    Attributes:
        prompts: one prompt, or several that share an adapter; each is embedded by its last windows
            (`selection.embedding.split_windows`), and all windows are targets, up to a bound
            (`selection.targets`).
        corpus: name or id of the corpus to choose from; None to choose from the candidates alone.
        steps: maximum number of sequences.
        alpha: stopping parameter of Adaptive SIFT (paper section 6); None to choose `steps`
            sequences.
        strategy: one of `selection.STRATEGIES`; None for the calibrated one, see `strategy_for`.
        filter: filter on the documents' metadata (`selection.corpus.filters`).
        seed: seed of the strategy "random".
        principal: on whose behalf; corpora that they may not see do not exist for the request.
        candidates: sequences that the request brings, beside those of the corpus.
        start: whether to look up the corpus's adapter too, for the training to start from.
        shows_calibrated: whether to choose as many sequences as the corpus is calibrated to show,
            if that is more than `steps`.
    """

    prompts: Sequence[Prompt]
    corpus: str | None
    steps: int
    alpha: float | None = None
    strategy: str | None = None
    filter: Filter | None = None
    seed: int = 0
    principal: Principal = OPERATOR
    candidates: tuple[Candidate, ...] = ()
    start: bool = False
    shows_calibrated: bool = False

    def steps_for(self, calibration: Calibration | None) -> int:
        """The maximum number of sequences, given the calibration of the corpus."""
        shown = calibration.show if calibration is not None and self.shows_calibrated else 0
        return max(self.steps, shown)

    def strategy_for(self, calibration: Calibration | None) -> str:
        """The strategy of this request, given the calibration of its corpus.

        A request that names none takes the calibrated one where that was measured: on sequences of
        the corpus alone, and without an alpha, which is SIFT's. Other requests take SIFT.
        """
        if self.strategy is not None:
            return self.strategy
        if calibration is None or self.alpha is not None or self.candidates:
            return "sift"
        return calibration.strategy


def candidates_by_id(candidates: Sequence[Candidate]) -> dict[int, StoredSequence]:
    """A request's own candidates by their ids."""
    return {
        -i: StoredSequence(
            Source(-i, -i, each.name, each.start, each.text, example=each.example),
            each.tokens,
            each.scored,
        )
        for i, each in enumerate(candidates, 1)
    }


def forms_of(
    ids: Sequence[int], sequences: Mapping[int, StoredSequence], candidates: Sequence[Candidate]
) -> list[tuple[tuple[int, ...], Spans | None]]:
    """Tokens and scored tokens of each choice; those of a candidate in its forms by turns."""
    times: Counter[int] = Counter()
    chosen = []
    for i in ids:
        stored = sequences[i]
        forms = candidates[-i - 1].forms if i < 0 else ((stored.tokens, stored.scored),)
        chosen.append(forms[times[i] % len(forms)])
        times[i] += 1
    return chosen
