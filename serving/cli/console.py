"""How the commands write to a terminal.

Whatever comes from data or from users is printed as it is: brackets are no markup, and characters
that steer a terminal are shown as escapes. Styles are arguments, or `rich.text.Text` that this
project made.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.errors import SettingsError

# All control characters but tab and newline, those that reverse or separate lines, and halves of
# surrogate pairs.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_WIDE = 1 << 16  # columns; lines of tables that go to a file or a pipe are not broken


def plain(text: str) -> str:
    r"""A text in which everything that could steer a terminal is shown as an escape, such as \x1b."""
    return _UNSAFE.sub(lambda found: _escape(found.group()), text)


def plain_line(text: str) -> str:
    """The same on one line: tabs and newlines are shown as escapes, too."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class PlainConsole(Console):
    """A console that prints strings as they are, wherever they stand: by themselves, in a table,
    beside a `Text`.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """What `Console` makes of every string that it prints."""
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})


out = PlainConsole()
err = PlainConsole(stderr=True)


def say(text: str | Text, style: str = "", to: Console = err) -> None:
    """Print a text as it is, without breaking its lines."""
    to.print(
        Text(plain(text)) if isinstance(text, str) else text, style=style or None, soft_wrap=True
    )


def table(*headers: str) -> Table:
    """An empty table; fill it with `row` and print it with `show`."""
    return Table(*headers, box=None, pad_edge=False)


def row(into: Table, *cells: str) -> None:
    """Add a row, each cell on one line."""
    into.add_row(*(Text(plain_line(cell)) for cell in cells))


def show(what: Table, to: Console = out) -> None:
    """Print a table: folded into the width of a terminal, in whole lines elsewhere."""
    if to.is_terminal:
        to.print(what)
    else:
        for line in to.render_lines(what, to.options.update(width=_WIDE), pad=False):
            say("".join(segment.text for segment in line).rstrip(), to=to)


def read_input() -> str:
    """All of the standard input.

    Raises:
        SettingsError: it is not UTF-8 text.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as problem:
        raise SettingsError(
            f"the standard input is not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from None
