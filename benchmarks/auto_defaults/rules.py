"""Rules: which way a request is answered in, by the losses of its prompt's end.

A rule asks for what it compares, so that its seconds are known. Where it ends with the base model
alone, the server would train: what that gains is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks.auto_defaults.ways import (
    BASE,
    CORPUS,
    COUNTS,
    STRATEGIES,
    TEXTS,
    WAYS,
    Model,
    Row,
    Text,
    Way,
)
from benchmarks.corpus_adapters.arms import Strategy
from serving.adaptation.auto import MIN_FALL_OF_BASE
from serving.adaptation.prompts import SHOWN

# Shares by which text must lower the loss of the prompt's end.
CORPUS_BARS = (0.0, 0.01, 0.02, 0.05, 0.10)
BASE_BARS = (0.0, 0.02, 0.05, 0.10, 0.15, 0.20)


@dataclass
class Look:
    """What a rule has looked at, of one passage.

    Attributes:
        row: the passage.
        compared: the ways whose loss was measured.
        chosen: the strategies that chose.
    """

    row: Row
    compared: set[Way] = field(default_factory=set)
    chosen: set[Strategy] = field(default_factory=set)

    def loss(self, way: Way) -> float:
        """The loss of the prompt's end."""
        self.compared.add(way)
        self.choose(way)
        return self.row.loss(way)

    def choose(self, way: Way) -> Way:
        """The same way, after its text was chosen."""
        if way.text:
            self.chosen.add(way.text.strategy)
        return way

    @property
    def seconds(self) -> float:
        """Seconds that all this takes."""
        choosing = sum(self.row.choosing[strategy] for strategy in self.chosen)
        return choosing + sum(self.row.ways[way.name]["seconds"] for way in self.compared)


Rule: TypeAlias = Callable[[Look], Way]
# By model, the share by which text must lower the loss.
Bars: TypeAlias = Mapping[Model, float]


def always(way: Way) -> Rule:
    """The same way, without a comparison."""
    return lambda look: look.choose(way)


def with_text(models: Sequence[Model], texts: Sequence[Text], bars: Bars) -> Rule:
    """The better of some models, with a text if that lowers the loss by a share.

    Args:
        models: the models that are compared; one is used without a comparison.
        texts: the texts, of which the one with the lowest loss counts; one of them is shown without
            a comparison where its model has no bar.
        bars: the share by model.
    """

    def rule(look: Look) -> Way:
        alone = Way(models[0])
        if len(models) > 1:
            alone = min((Way(model) for model in models), key=look.loss)
        shown = [Way(alone.model, text) for text in texts]
        bar = bars.get(alone.model)
        best = look.choose(shown[0]) if len(shown) == 1 else min(shown, key=look.loss)
        if bar is None or look.loss(best) <= (1 - bar) * look.loss(alone):
            return best
        return alone

    return rule


def least_loss(ways: Sequence[Way]) -> Rule:
    """The way with the lowest loss."""
    return lambda look: min(ways, key=look.loss)


def hindsight(ways: Sequence[Way]) -> Rule:
    """The best way, which nobody knows beforehand."""
    return lambda look: min(ways, key=look.row.percent)


_BOTH: tuple[Model, ...] = ("base", "corpus")
# What the server did when the kept result was measured.
_NOW_TEXT = Text(4, "sift")
_NOW: Bars = {"base": 0.10, "corpus": 0.02}
NOW = f"auto as it was: {_NOW_TEXT.name}"
NOW_WITHOUT = f"{_NOW_TEXT.name} from 10 %"
# What the server does with a completion.
_SERVED_TEXT = Text(SHOWN, "sift")
SERVED = f"better model, always {_SERVED_TEXT.name} beside corpus"
SERVED_WITHOUT = f"{_SERVED_TEXT.name} from {round(100 * MIN_FALL_OF_BASE)} %"


def rules_with_adapter() -> dict[str, Rule]:
    """Rules by name, where the corpus has an adapter."""
    bars: Bars = {"base": MIN_FALL_OF_BASE}
    rules: dict[str, Rule] = {
        "always corpus": always(CORPUS),
        **{f"always corpus, {text.name}": always(Way("corpus", text)) for text in TEXTS},
        NOW: with_text(_BOTH, [_NOW_TEXT], _NOW),
    }
    for text in TEXTS:
        rules |= {
            f"better model, {text.name} from {_percent(bar)}": with_text(
                _BOTH, [text], {**bars, "corpus": bar}
            )
            for bar in CORPUS_BARS
        }
        rules[f"better model, always {text.name}"] = with_text(_BOTH, [text], {})
        rules[f"better model, always {text.name} beside corpus"] = with_text(_BOTH, [text], bars)
        rules[f"corpus, {text.name} from 0 %"] = with_text(["corpus"], [text], {"corpus": 0.0})
    for count in COUNTS:
        texts = [Text(count, strategy) for strategy in STRATEGIES]
        rules[f"always corpus, {count} of the better strategy"] = with_text(["corpus"], texts, {})
        rules[f"better model, {count} of the better strategy from 2 %"] = with_text(
            _BOTH, texts, _NOW
        )
    rules["lowest loss of all ways"] = least_loss(WAYS)
    rules["hindsight of all ways"] = hindsight(WAYS)
    return rules


def rules_without_adapter() -> dict[str, Rule]:
    """Rules by name, where the corpus has none: the base model, with or without text."""
    rules: dict[str, Rule] = {"base": always(BASE)}
    for text in TEXTS:
        rules |= {
            f"{text.name} from {_percent(bar)}": with_text(["base"], [text], {"base": bar})
            for bar in BASE_BARS
        }
        rules[f"always {text.name}"] = always(Way("base", text))
    for count in COUNTS:
        texts = [Text(count, strategy) for strategy in STRATEGIES]
        rules |= {
            f"{count} of the better strategy from {_percent(bar)}": with_text(
                ["base"], texts, {"base": bar}
            )
            for bar in (0.0, 0.10)
        }
    rules["hindsight"] = hindsight([BASE, *(Way("base", text) for text in TEXTS)])
    return rules


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"
