"""Budget: the compute that one request may cost, and its text and JSON forms.

As text, in a Compute-Budget header, it is an RFC 9651 dictionary: `none`, `instant`, `auto`, or
limits `steps=20, seconds=1.5, gain=0.4, alpha=0.1`, of which the first to bind ends the adaptation;
`;` separates as `,` does, because some clients split headers at commas. A JSON body takes the same
text, or the limits as an object. Anything else is refused. AUTO and LIMITS are a server's defaults.
Except for the names of the header and of the field, this module is independent of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import http_sf

from serving.errors import BudgetError

HEADER = "Compute-Budget"
# Some proxies forward x-* headers only.
ALIAS = "X-Compute-Budget"
FIELD = "compute_budget"
MAX_HEADER = 256  # characters
# The bounds of RFC 9651's integers and decimals.
_MAX_STEPS = 10**15 - 1
_MAX_NUMBER = 1e12
_HELP = "use `none`, `instant`, `auto`, or limits such as `steps=20, seconds=1.5, gain=0.4`"
_HELP_OBJECT = (
    'use "none", "instant", "auto", or limits such as {"steps": 20, "seconds": 1.5, "gain": 0.4}'
)


@dataclass(frozen=True)
class Budget:
    """Limits of an adaptation; whichever binds first ends it.

    Attributes:
        steps: maximum number of gradient steps; 0 answers with the base model, unless `instant`.
        seconds: wall-clock from the request's arrival to the loaded adapter; None for no limit.
        alpha: the stop of ADAPTIVE SIFT (paper section 6); None to select up to `steps`.
        gain: minimum decrease of the prompt's own loss that each further sequence must bring, in
            per cent, over the last measurements; None to take all steps.
        prefers_corpus: whether the gain of a calibrated corpus takes the place of this one, and no
            more than its steps are taken; and none where something at hand helps the prompt
            (`serving.adaptation.auto`).
        instant: whether the adapter of the corpus answers, without a step.
        declined: whether the request asked for no adaptation, rather than for one of no steps; it
            is no limit, so it is not compared.
    """

    steps: int
    seconds: float | None = None
    alpha: float | None = None
    gain: float | None = None
    prefers_corpus: bool = False
    instant: bool = False
    declined: bool = field(default=False, compare=False)

    def clamp(self, limits: Budget) -> tuple[Budget, tuple[str, ...]]:
        """This budget within a server's limits, and the names of the limits that it exceeded."""
        exceeded = []
        clamped = self
        if self.steps > limits.steps:
            clamped, exceeded = replace(clamped, steps=limits.steps), ["steps"]
        if limits.seconds is not None and (self.seconds is None or self.seconds > limits.seconds):
            clamped = replace(clamped, seconds=limits.seconds)
            if self.seconds is not None:
                exceeded.append("seconds")
        return clamped, tuple(exceeded)

    def for_corpus(self, gain: float, steps: int | None) -> Budget:
        """This budget for a corpus that was calibrated to a gain, and to a maximum number of steps
        or none.
        """
        if not self.prefers_corpus:
            return self
        most = self.steps if steps is None else min(self.steps, steps)
        return replace(self, gain=None if self.gain is None else gain, steps=most)

    def as_dict(self) -> dict[str, float | None]:
        """The limits as the report shows them, and whether the corpus's adapter answers instantly
        if it does.
        """
        limits = {
            "steps": self.steps,
            "seconds": self.seconds,
            "alpha": self.alpha,
            "gain": self.gain,
        }
        return {**limits, "instant": True} if self.instant else limits


NONE = Budget(steps=0, declined=True)
INSTANT = Budget(steps=0, instant=True)
# What `auto` means unless a server's settings give another budget. The seconds matter for models on
# which 50 steps take a minute: few clients wait that long for the last part of the gain.
AUTO = Budget(steps=50, seconds=20.0, gain=0.25, prefers_corpus=True)
# The limits of all requests unless a server's settings give others.
LIMITS = Budget(steps=50, seconds=60.0)


@dataclass(frozen=True)
class ExampleLimits:
    """Limits on what a request brings to learn from.

    Attributes:
        count: maximum number of examples, and of texts.
        tokens: maximum number of tokens of all of them together, in the served model's tokens.
    """

    count: int = 128
    tokens: int = 1 << 15


EXAMPLE_LIMITS = ExampleLimits()
# How the examples of a request are trained on: each by itself, or after the others.
ExamplesAs: TypeAlias = Literal["single", "leave-one-out"]
# Which earlier adapter a request uses: that of the turn before, or that of the same examples.
Reuse: TypeAlias = Literal["conversation", "examples"]
# Largest number of sequences that a request may put into its prompt.
MAX_SHOWN = 64


@dataclass(frozen=True)
class Terms:
    """The server's terms of adaptation.

    Attributes:
        auto: budget of `Compute-Budget: auto`, and of a request without a budget.
        limits: limits that no request may exceed.
        corpus: corpus of requests that name none; None answers those with the base model.
        examples: limits on the examples and texts of a request.
        show: number of chosen sequences that are put into the prompt of a request without `show`;
            None for what `auto`, or a calibrated corpus, decides, if the request adapts.
    """

    auto: Budget
    limits: Budget
    corpus: str | None = None
    examples: ExampleLimits = EXAMPLE_LIMITS
    show: int | None = None

    def limits_with(self, key_limits: Budget | None) -> Budget:
        """The server's limits, tightened by an API key's where it has its own."""
        return self.limits if key_limits is None else self.limits.clamp(key_limits)[0]

    def as_dict(self, key_limits: Budget | None) -> dict[str, Any]:
        """The terms as the models endpoint shows them.

        They say whether requests that name no corpus have one, but not its name, which not every
        key may know.
        """
        limits = self.limits_with(key_limits)
        auto, _ = self.auto.clamp(limits)
        return {
            "auto": auto.as_dict(),
            "limits": limits.as_dict(),
            "corpus": self.corpus is not None,
            "examples": {"count": self.examples.count, "tokens": self.examples.tokens},
            "show": self.show,
        }


def agreed_budget(
    sources: Mapping[str, object], default: Budget, auto: Budget, limits: Budget
) -> Budget:
    """The budget that a request gives in one place, or alike in several; not yet clamped.

    Args:
        sources: value by the name of its place: a text as `parse_budget` takes it, the limits as an
            object of a JSON body, or None where the place is empty.
        default, auto, limits: as for `parse_budget`.

    Raises:
        BudgetError: an invalid budget, or places that disagree; the error names them.
    """
    budgets: dict[str, Budget] = {}
    for place, value in sources.items():
        if isinstance(value, str):
            budgets[place] = parse_budget(value, default, auto, limits, place)
        elif isinstance(value, dict):
            if not value:
                raise BudgetError(f"{place} is empty: {_HELP_OBJECT}", place)
            budgets[place] = _limits(value, place, place, limits)
        elif value is not None:
            raise BudgetError(f"{place} is a text or an object: {_HELP_OBJECT}", place)
    if len(set(budgets.values())) > 1:
        raise BudgetError(
            f"{' and '.join(budgets)} disagree: give the budget once, or the same one in each",
            ", ".join(budgets),
        )
    return next(iter(budgets.values()), default)


def parse_budget(
    text: str | None, default: Budget, auto: Budget, limits: Budget, place: str = HEADER
) -> Budget:
    """The budget of a text, not yet clamped to the limits.

    Args:
        text: value of a header, several lines joined by commas; None for no header.
        default: budget of a request without one.
        auto: budget that `auto` stands for.
        limits: the server's limits; a budget without steps may take as many as they allow.
        place: where the text was given, for the error.

    Raises:
        BudgetError: an invalid budget.
    """
    if text is None:
        return default
    if len(text) > MAX_HEADER:
        raise BudgetError(f"{place} is longer than {MAX_HEADER} characters: {_HELP}", place)
    where = f"{place} {text!r}"
    # RFC 9651 would read what follows a semicolon as parameters, which no limit has.
    listed = text.replace(";", ",")
    try:
        members = http_sf.parse(listed.encode("ascii"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError) as problem:
        raise BudgetError(f"cannot read {where}: {_HELP}", place) from problem
    if not members:
        raise BudgetError(f"{place} is empty: {_HELP}", place)
    if len(members) != listed.count(",") + 1:
        raise BudgetError(f"{where} names a limit twice: {_HELP}", place)
    values = {key: member[0] for key, member in members.items()}
    for word, meaning in (("none", NONE), ("instant", INSTANT), ("auto", auto)):
        if values.get(word) is True:
            if len(values) > 1:
                raise BudgetError(f"{where}: {word!r} stands alone: {_HELP}", place)
            return meaning
    return _limits(values, where, place, limits)


def _limits(values: Mapping[str, object], where: str, place: str, limits: Budget) -> Budget:
    steps: int = limits.steps
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if key == "steps":
            if type(value) is not int or not 0 <= value <= _MAX_STEPS:
                raise BudgetError(
                    f"{where}: steps is a whole number, 0 or more, of 15 digits at most", place
                )
            steps = value
        elif key in ("seconds", "alpha", "gain"):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float, Decimal))
                or not 0 < value < _MAX_NUMBER
            ):
                raise BudgetError(f"{where}: {key} is a number above 0 and below 10^12", place)
            numbers[key] = float(value)
        else:
            raise BudgetError(
                f"{where}: unknown key {key!r:.40}: use one of the words `none`, `instant` and "
                "`auto`, or the limits steps, seconds, gain and alpha",
                place,
            )
    return Budget(steps, numbers.get("seconds"), numbers.get("alpha"), numbers.get("gain"))
