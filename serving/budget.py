"""Budget: the compute that one request may cost, and the Compute-Budget header that says it.

The header is an RFC 9651 dictionary: `none`, `auto`, or limits `steps=20, seconds=1.5, alpha=0.1`, of which
the first to bind ends the adaptation. Anything else is refused. Knows no HTTP beyond that header's text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from decimal import Decimal

import http_sf

from serving.errors import BudgetError

MAX_HEADER = 256  # characters
_HELP = "use `none`, `auto`, or limits such as `steps=20, seconds=1.5, alpha=0.1`"


@dataclass(frozen=True)
class Budget:
    """Limits of an adaptation; whichever binds first ends it.

    Attributes:
        steps: the most gradient steps; 0 answers with the base model.
        seconds: wall-clock from the request's arrival to the loaded adapter; None for no limit.
        alpha: the stop of ADAPTIVE SIFT (paper section 6); None to select up to `steps`.
    """

    steps: int
    seconds: float | None = None
    alpha: float | None = None

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
        return asdict(self)


NONE = Budget(steps=0)


def parse_budget(header: str | None, default: Budget, auto: Budget, limits: Budget) -> Budget:
    """The budget that a Compute-Budget header asks for, not yet cut to the limits.

    Args:
        header: the header's text, several lines joined by commas; None when it was not sent.
        default: the budget of a request without the header.
        auto: what `auto` stands for.
        limits: the server's; a request that names no steps may take as many as they allow.

    Raises:
        BudgetError: anything that is not a budget.
    """
    if header is None:
        return default
    if len(header) > MAX_HEADER:
        raise BudgetError(f"Compute-Budget is longer than {MAX_HEADER} characters: {_HELP}")
    try:
        members = http_sf.parse(header.encode("ascii"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError) as problem:
        raise BudgetError(f"cannot read Compute-Budget {header!r}: {_HELP}") from problem
    if not members:
        raise BudgetError(f"Compute-Budget is empty: {_HELP}")
    if len(members) != header.count(",") + 1:
        raise BudgetError(f"Compute-Budget {header!r} names a limit twice: {_HELP}")
    for key, member in members.items():
        if member[1]:
            raise BudgetError(f"Compute-Budget {header!r}: {key!r} takes no parameters: {_HELP}")
    values = {key: member[0] for key, member in members.items()}
    for word, meaning in (("none", NONE), ("auto", auto)):
        if values.get(word) is True:
            if len(values) > 1:
                raise BudgetError(f"Compute-Budget {header!r}: {word!r} stands alone: {_HELP}")
            return meaning
    return _limits(values, header, limits)


def _limits(values: dict[str, object], header: str, limits: Budget) -> Budget:
    steps: int = limits.steps
    seconds: float | None = None
    alpha: float | None = None
    for key, value in values.items():
        if key == "steps":
            if type(value) is not int or value < 0:
                raise BudgetError(f"Compute-Budget {header!r}: steps is a whole number, 0 or more")
            steps = value
        elif key in ("seconds", "alpha"):
            if not isinstance(value, (int, Decimal)) or isinstance(value, bool) or value <= 0:
                raise BudgetError(f"Compute-Budget {header!r}: {key} is a number above 0")
            if key == "seconds":
                seconds = float(value)
            else:
                alpha = float(value)
        else:
            raise BudgetError(f"Compute-Budget {header!r}: unknown key {key!r}: {_HELP}")
    return Budget(steps, seconds, alpha)
