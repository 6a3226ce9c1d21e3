"""The report of an adaptation from the results of its stages, and its progress in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapters.training import TrainingProgress, TrainingResult
from selection.selector import Selection
from serving.adaptation.choice import Choice
from serving.conversations.cached_adapter import CachedAdapter, ExamplesAdapter
from serving.engine.current_request import LoadedAdapter
from serving.report import AdaptationReport, Stage, StopReason, used_sources


@dataclass(frozen=True)
class AdaptationResult:
    """The end of an adaptation, before the answer.

    Attributes:
        report: report for the client.
        adapter: adapter that answers; None for the base model.
        reusable: the same adapter, for the next turn; None outside a conversation.
    """

    report: AdaptationReport
    adapter: LoadedAdapter | None = None
    reusable: CachedAdapter | None = None


def build_report(
    choice: Choice,
    selection: Selection | None,
    training: TrainingResult | None,
    *,
    stop: StopReason,
    reason: str | None,
    reused: CachedAdapter | ExamplesAdapter | None,
    spent_seconds: float,
) -> AdaptationReport:
    """The report without what only an adapted answer has.

    Args:
        choice: the request's.
        selection, training: results of these stages; None where one did not take place.
        stop: what ended the adaptation.
        reason: why the base model answers, or the corpus's adapter as it is; None otherwise.
        reused: the earlier adapter that was trained further, or that answers again; None for
            neither.
        spent_seconds: seconds since the request arrived.
    """
    request, auto = choice.request, choice.auto
    calibration = selection.calibration if selection else None
    seconds = {Stage(name): each for name, each in (selection.seconds if selection else {}).items()}
    if selection is None and choice.lookup_seconds > 0:
        seconds[Stage.SEARCH] = choice.lookup_seconds
    if choice.compare_seconds > 0:
        seconds[Stage.COMPARE] = choice.compare_seconds
    used, learnt = 0, 0
    if training:
        seconds[Stage.QUEUE] = training.waited
        seconds[Stage.TRAIN] = training.seconds - training.waited
        used, learnt = training.sequences_used, training.adapter_sequences
    shows = choice.shown is not None and bool(choice.shown.sequences) and request.shows_chosen
    truncation = request.truncation or (selection.truncation if selection else None)
    sources = [source for source, _ in selection.sources] if selection else []
    report = AdaptationReport(
        adapted=False,
        reason=reason,
        budget=request.budget_for(calibration),
        calibrated=calibration is not None,
        strategy=selection.strategy if selection and (used or shows) else None,
        clamped=request.clamped,
        shed=request.shed,
        targets=truncation.as_dict() if truncation else None,
        corpus=request.corpus,
        auto=auto.as_dict() if auto else None,
        shown=choice.shown.as_dict() if choice.shown else None,
        seed=request.seed,
        start=None,
        reused=reused.as_dict() if reused else None,
        stop=stop,
        uncertainty=selection.uncertainty[: used + 1] if selection else (),
        irreducible=selection.irreducible if selection else None,
        losses=training.losses if training else (),
        prompt_losses=training.probe_losses if training else (),
        learnt=learnt,
        sources=used_sources(sources, selection.ids[:learnt]) if selection else (),
        seconds=seconds,
        spent_seconds=spent_seconds,
        adapter=None,
    )
    if isinstance(reused, ExamplesAdapter):
        # The selection was made again only because its corpus may have been removed.
        return replace(report, uncertainty=(), irreducible=None, sources=reused.sources)
    return report


def describe_progress(step: TrainingProgress, selection: Selection) -> str:
    """The progress of a training after a step, in words for the client."""
    prompt = "" if step.probe_loss is None else f"loss of the prompt {step.probe_loss:.3f}, "
    return (
        f"adapting: step {step.steps} of {step.total_steps}, {prompt}"
        f"sigma {selection.uncertainty[step.sequences_used]:.3f}, "
        f"{step.seconds_left:.1f} seconds left"
    )
