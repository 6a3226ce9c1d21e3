"""How the commands write to a terminal.

Text that comes from data or users is printed as it is: brackets are not markup, and characters that
control a terminal are shown as escapes. Styles are passed as arguments or as a `rich.text.Text`
that this project has made.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.errors import SettingsError

# All control characters except tab and newline, characters that reverse or separate lines, and lone
# surrogates.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Columns of a table that is written to a file or a pipe, where lines are not broken.
_UNLIMITED_WIDTH = 1 << 16


def plain(text: str) -> str:
    r"""Show every character that could control a terminal as an escape, such as \x1b."""
    return _UNSAFE.sub(lambda match: _escape(match.group()), text)


def plain_line(text: str) -> str:
    """As `plain`, on one line: tabs and newlines are shown as escapes, too."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class PlainConsole(Console):
    """A console that prints strings as they are: alone, in a table, or next to a `Text`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string; `Console` calls this for every string that it prints."""
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})


out = PlainConsole()
err = PlainConsole(stderr=True)


def say(text: str | Text, style: str = "", to: PlainConsole = err) -> None:
    """Print a text as it is and without line breaks of rich's own."""
    to.print(
        Text(plain(text)) if isinstance(text, str) else text, style=style or None, soft_wrap=True
    )


def table(*headers: str) -> Table:
    """Make an empty table, to be filled with `row` and printed with `show`."""
    return Table(*headers, box=None, pad_edge=False)


def row(into: Table, *cells: str) -> None:
    """Add a row, each cell on one line."""
    into.add_row(*(Text(plain_line(cell)) for cell in cells))


def show(shown: Table, to: PlainConsole = out) -> None:
    """Print a table, wrapped to the width of a terminal, with whole lines elsewhere."""
    if to.is_terminal:
        to.print(shown)
    else:
        for line in to.render_lines(shown, to.options.update(width=_UNLIMITED_WIDTH), pad=False):
            say("".join(segment.text for segment in line).rstrip(), to=to)


def read_input() -> str:
    """Read all of standard input.

    Raises:
        SettingsError: standard input is not UTF-8 text.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as problem:
        raise SettingsError(
            f"standard input is not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from None
