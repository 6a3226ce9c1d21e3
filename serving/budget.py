"""Budget: the compute that one request may cost, and the texts and JSON that say it.

As text, in a Compute-Budget header, an RFC 9651 dictionary: `none`, `auto`, or limits `steps=20,
seconds=1.5, gain=0.4, alpha=0.1`, of which the first to bind ends the adaptation; `;` separates as
`,` does, because some clients cut headers at commas. In a JSON body the same text, or the limits as
an object. Anything else is refused. Knows no HTTP beyond the names of the places where a budget is
said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

import http_sf

from serving.errors import BudgetError

HEADER = "Compute-Budget"
ALIAS = "X-Compute-Budget"  # some proxies forward x-* headers only
FIELD = "compute_budget"  # of a JSON body
MAX_HEADER = 256  # characters
_MAX_STEPS = 10**15 - 1  # RFC 9651's largest integer
_MAX_NUMBER = 1e12  # and the bound of its decimals
_HELP = "use `none`, `auto`, or limits such as `steps=20, seconds=1.5, gain=0.4`"
_HELP_OBJECT = 'use "none", "auto", or limits such as {"steps": 20, "seconds": 1.5, "gain": 0.4}'


@dataclass(frozen=True)
class Budget:
    """Limits of an adaptation; whichever binds first ends it.

    Attributes:
        steps: the most gradient steps; 0 answers with the base model.
        seconds: wall-clock from the request's arrival to the loaded adapter; None for no limit.
        alpha: the stop of ADAPTIVE SIFT (paper section 6); None to select up to `steps`.
        gain: the least per cent of the prompt's own loss that each further sequence must bring,
            over the last looks at it; None to take all steps.
        own_gain: that this gain is only what holds for a corpus that has not been calibrated.
        declined: whether no adaptation was asked for, rather than one of no steps; no limit, so it
            is not compared.
    """

    steps: int
    seconds: float | None = None
    alpha: float | None = None
    gain: float | None = None
    own_gain: bool = False
    declined: bool = field(default=False, compare=False)

    def cut_to(self, limits: Budget) -> tuple[Budget, tuple[str, ...]]:
        """This budget within a server's limits, and the names of what was cut."""
        cut = []
        within = self
        if self.steps > limits.steps:
            within, cut = replace(within, steps=limits.steps), ["steps"]
        if limits.seconds is not None and (self.seconds is None or self.seconds > limits.seconds):
            within = replace(within, seconds=limits.seconds)
            if self.seconds is not None:
                cut.append("seconds")
        return within, tuple(cut)

    def as_dict(self) -> dict[str, float | None]:
        """For the report."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "alpha": self.alpha,
            "gain": self.gain,
        }


NONE = Budget(steps=0, declined=True)


def agreed_budget(
    said: Mapping[str, object], default: Budget, auto: Budget, limits: Budget
) -> Budget:
    """The budget that a request asks for in one place, or alike in several; not yet cut to the
    limits.

    Args:
        said: what each place says, by its name: a text as `parse_budget` takes it, the limits as an
            object of a JSON body, or None where nothing was said.
        default, auto, limits: as of `parse_budget`.

    Raises:
        BudgetError: anything that is not a budget, or places that disagree; it names them.
    """
    budgets: dict[str, Budget] = {}
    for place, value in said.items():
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
            f"{' and '.join(budgets)} disagree: say the budget once, or alike", ", ".join(budgets)
        )
    return next(iter(budgets.values()), default)


def parse_budget(
    text: str | None, default: Budget, auto: Budget, limits: Budget, place: str = HEADER
) -> Budget:
    """The budget that a text asks for, not yet cut to the limits.

    Args:
        text: of a header, several lines joined by commas; None when there is none.
        default: the budget of a request that says none.
        auto: what `auto` stands for.
        limits: the server's; a request that names no steps may take as many as they allow.
        place: where the text stands, for the error.

    Raises:
        BudgetError: anything that is not a budget.
    """
    if text is None:
        return default
    if len(text) > MAX_HEADER:
        raise BudgetError(f"{place} is longer than {MAX_HEADER} characters: {_HELP}", place)
    where = f"{place} {text!r}"
    listed = text.replace(";", ",")  # what RFC 9651 would read as parameters, which no limit has
    try:
        members = http_sf.parse(listed.encode("ascii"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError) as problem:
        raise BudgetError(f"cannot read {where}: {_HELP}", place) from problem
    if not members:
        raise BudgetError(f"{place} is empty: {_HELP}", place)
    if len(members) != listed.count(",") + 1:
        raise BudgetError(f"{where} names a limit twice: {_HELP}", place)
    values = {key: member[0] for key, member in members.items()}
    for word, meaning in (("none", NONE), ("auto", auto)):
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
                f"{where}: unknown key {key!r:.40}: the limits are steps, seconds, gain and alpha",
                place,
            )
    return Budget(steps, numbers.get("seconds"), numbers.get("alpha"), numbers.get("gain"))
