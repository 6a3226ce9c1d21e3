"""The search for the settings that suit a base model on one corpus, on the corpus's own documents:
learning rate, rank, lambda', strategy, gain, what is shown in the prompt, and the number of steps.

Learning rate, lambda' and rank are searched one axis after another, from the built-in defaults, on
half of the held-out documents. Nearest neighbours is then tried in place of SIFT with the best of
them. On the other half the settings are judged, the strategy among them. With each other embedder,
lambda' and the strategy are searched at the learning rate and the rank found, and the best of them
is judged. With the best of the corpus's own embedder, chosen sequences are shown in the prompt:
`SHOWN` of them or none, and after each measured number of steps; what is shown is judged, then the
steps. What is not better on the other half, too, is not recommended. The gain that a step must
bring (`adapters.training.Probe`) is read off the curves of the first half: the largest that retains
`curves.GAIN_SHARE` of what all steps gain.

It only searches; `selection.corpus.calibration` stores the result with the corpus. Means over few
documents are noisy: neighbouring settings often differ by less than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from selection.corpus.calibration import Calibration
from selection.strategies.registry import REGULARISATION
from serving.calibration.curves import (
    MEASURED_STEPS,
    STEPS,
    Arm,
    Curve,
    arm,
    best_arm,
    choose_gain,
    exact_match,
    final_percent,
    mean_percent,
    stopped_percent,
    stopping,
)
from serving.calibration.embedders import EmbedderLosses, better_embedder
from serving.calibration.measurer import CurveMeasurer
from serving.calibration.setting import Setting

# Searched multiples of the default learning rate.
LEARNING_RATE_FACTORS = (1 / 3, 2 / 3, 1.0, 5 / 3)
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0)
# Searched multiples of the default rank.
RANK_FACTORS = (0.5, 1.0, 2.0)
# Searched numbers of chosen sequences in the prompt, beside none.
SHOWN = (2, 4, 8)
# The largest number of measurements: each axis but the first has one setting that is measured
# already; nearest neighbours is searched; it, the best and the default settings are judged; what to
# show is searched and judged.
MEASUREMENTS = len(LEARNING_RATE_FACTORS) + len(REGULARISATIONS) + len(RANK_FACTORS) - 2 + 6
# The same of each other embedder: lambda' and nearest neighbours are searched, the best is judged.
MEASUREMENTS_PER_EMBEDDER = len(REGULARISATIONS) + 2


@dataclass(frozen=True)
class Trial:
    """A searched setting, and its mean loss in per cent of the base model's."""

    setting: Setting
    percent_of_base: float


@dataclass(frozen=True)
class StrategyLosses:
    """The losses with one strategy, and otherwise the best settings of the search.

    Attributes:
        strategy: "sift" or "nn".
        searching, judging: Mean loss after all steps on the documents that search, and on those
            that judge, in per cent of the base model's; the latter is None for nearest neighbours
            if SIFT is as good on the former.
    """

    strategy: str
    searching: float
    judging: float | None


@dataclass(frozen=True)
class BestSettings:
    """The result of the search.

    Attributes:
        calibration: The recommended settings.
        tried: All searched settings, in order.
        strategies: SIFT, and nearest neighbours in its place.
        embedders: The corpus's own embedder, and the others.
        better_embedder: The one among the others that is better than the corpus's own, see
            `serving.calibration.embedders`; None if none is.
        arms: All numbers of sequences shown and of steps, on the documents that search.
        by_default, calibrated: Mean loss after 0, 1, ... steps on the documents that judge, in per
            cent of the base model's, with the default and with the recommended settings.
        steps: Mean number of steps with the recommended gain.
        stopped_percent: Mean loss where it stops, in per cent of the base model's.
        exact_match: Share of the examples among these documents that are answered exactly by the
            base model, and with the recommended settings after all their steps; None without
            examples.
    """

    calibration: Calibration
    tried: tuple[Trial, ...]
    strategies: tuple[StrategyLosses, ...]
    embedders: tuple[EmbedderLosses, ...]
    better_embedder: str | None
    arms: tuple[Arm, ...]
    by_default: tuple[float, ...]
    calibrated: tuple[float, ...]
    steps: float
    stopped_percent: float
    exact_match: tuple[float, float] | None


def calibrate(
    measurer: CurveMeasurer,
    on_setting: Callable[[str, int], Callable[[], None]] = lambda name, count: lambda: None,
) -> BestSettings:
    """Search on half of the held-out documents, judge on the other half.

    Args:
        measurer: Measures settings, with four held-out documents or more.
        on_setting: Called before each setting is measured, with its name and the number of
            documents; returns a function to call after each document.
    """
    searching, judging = measurer.held_out[::2], measurer.held_out[1::2]
    curves: dict[Setting, list[Curve]] = {}

    def search(setting: Setting) -> list[Curve]:
        if setting not in curves:
            on_each = on_setting(f"searching: {setting}", len(searching))
            curves[setting] = measurer.measure(setting, searching, on_each)[0]
        return curves[setting]

    def judge(setting: Setting) -> dict[int, list[Curve]]:
        on_each = on_setting(f"judging: {setting}", len(judging))
        return measurer.measure(setting, judging, on_each)

    default = best = Setting(REGULARISATION, measurer.learning_rate, measurer.default.rank)
    axes = (
        [partial(replace, learning_rate=f * default.learning_rate) for f in LEARNING_RATE_FACTORS],
        [partial(replace, regularisation=value) for value in REGULARISATIONS],
        [partial(replace, rank=max(1, round(factor * default.rank))) for factor in RANK_FACTORS],
    )
    for axis in axes:
        for vary in axis:
            search(vary(best))
        best = best_setting(curves)
    sift, nearest = best, replace(best, strategy="nn")
    search(nearest)
    judged = {each: judge(each) for each in dict.fromkeys((default, sift, best_setting(curves)))}
    unshown = {setting: by_show[0] for setting, by_show in judged.items()}
    best = best_setting(unshown)
    own = EmbedderLosses(
        measurer.embedder, best, final_percent(curves[best]), final_percent(unshown[best])
    )
    others = [
        _with_embedder(embedder, own, search, lambda setting: judge(setting)[0])
        for embedder in measurer.other_embeddings
    ]
    on_each = on_setting("searching what to show", len(searching))
    searched = measurer.measure(best, searching, on_each, SHOWN)
    arms = [arm(searched, show, steps) for show in searched for steps in MEASURED_STEPS]
    found = best_arm(arms)
    by_show = judged[best]
    if found.show:
        on_each = on_setting(f"judging: {found.show} shown", len(judging))
        by_show = measurer.measure(best, judging, on_each, [found.show])
    show, steps = _confirmed(by_show, found)
    until = [curve.until(steps) for curve in by_show[show]]
    gain = choose_gain([curve.until(steps) for curve in searched[show]])
    calibration = Calibration(
        regularisation=best.regularisation,
        gain=gain,
        learning_rate=best.learning_rate,
        rank=best.rank,
        passages=len(searching),
        percent_of_base=round(final_percent(until), 2),
        percent_by_default=round(final_percent(unshown[default]), 2),
        show=show,
        steps=None if steps == STEPS else steps,
        strategy=best.strategy,
    )
    before, after = exact_match(by_show[0], 0), exact_match(until, steps)
    return BestSettings(
        calibration,
        tuple(Trial(setting, final_percent(tried)) for setting, tried in curves.items()),
        tuple(
            StrategyLosses(
                setting.strategy,
                final_percent(curves[setting]),
                final_percent(unshown[setting]) if setting in unshown else None,
            )
            for setting in (sift, nearest)
        ),
        (own, *others),
        better_embedder(own, others),
        tuple(arms),
        mean_percent(unshown[default]),
        mean_percent(by_show[show]),
        stopping(until, gain)[0],
        stopped_percent(until, gain),
        None if before is None or after is None else (before, after),
    )


def best_setting(curves: Mapping[Setting, Sequence[Curve]]) -> Setting:
    """The setting of the lowest mean loss after all steps; of equal ones the first."""
    return min(curves, key=lambda setting: final_percent(curves[setting]))


def _with_embedder(
    embedder: str,
    own: EmbedderLosses,
    search: Callable[[Setting], Sequence[Curve]],
    judge: Callable[[Setting], Sequence[Curve]],
) -> EmbedderLosses:
    """The losses with another embedder and the best lambda' or nearest neighbours.

    Args:
        embedder: Its name.
        own: The losses with the corpus's own embedder.
        search, judge: Measure a setting on one of the halves.
    """
    sift = replace(own.setting, strategy="sift", embedder=embedder)
    settings = [*(replace(sift, regularisation=value) for value in REGULARISATIONS)]
    settings.append(replace(sift, strategy="nn"))
    best = best_setting({setting: search(setting) for setting in settings})
    searching = final_percent(search(best))
    judging = final_percent(judge(best)) if searching < own.searching else None
    return EmbedderLosses(embedder, best, searching, judging)


def _confirmed(judged: Mapping[int, Sequence[Curve]], found: Arm) -> tuple[int, int]:
    """What to show and the number of steps, each as found if it is better on the documents that
    judge.
    """
    show, steps = found.show, found.steps
    if not arm(judged, show, steps).is_better_than(arm(judged, 0, steps)):
        show = 0
    if not arm(judged, show, steps).is_better_than(arm(judged, show, STEPS)):
        steps = STEPS
    return show, steps
